//! Bodies for what is left to a network device: checksums, and TCP that is not cut into segments yet. They take two ports that are wired to each other, or
//! have something else between them, which judges.

use crate::Rig;
use crate::virtio::{End, Pair, bytes};
use anyhow::{Context, Result, ensure};
use wholebar::mem::{Checked, L4, Offload};
use wholebar::net::{Mac, Offloads, Port, PortConfig};
use wholebar::virtio::Options;

/// An Ethernet, IP and UDP or TCP packet, whose checksum is that of the pseudo header alone; and what remains to be done.
pub(crate) fn datagram(to: Mac, flow: u16, l4: L4, ipv6: bool, payload: &[u8]) -> (Vec<u8>, Offload) {
    let (header, protocol, at) = match l4 {
        L4::Tcp => (20, 6, TCP_CHECKSUM),
        L4::Udp => (8, 17, 6),
    };
    let len = (header + payload.len()) as u16;
    let ip = if ipv6 {
        [&[0x60, 0, 0, 0], &len.to_be_bytes()[..], &[protocol, 64], &[0xfd; 32]].concat()
    } else {
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ip[2..4].copy_from_slice(&(20 + len).to_be_bytes());
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    };
    let mut segment = vec![0; header];
    segment[..2].copy_from_slice(&flow.to_be_bytes());
    segment[2..4].copy_from_slice(&80u16.to_be_bytes());
    match l4 {
        L4::Udp => segment[4..6].copy_from_slice(&len.to_be_bytes()),
        L4::Tcp => (segment[4], segment[12], segment[13]) = (1, 5 << 4, 0x18),
    }
    let pseudo = !checksum(&[&pseudo_header(&ip, len)]);
    segment[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    segment.extend(payload);
    let ethernet = [&to.0[..], &[2, 0, 0, 0, 0, 1], if ipv6 { &[0x86, 0xdd] } else { &[8, 0] }].concat();
    let l3_len = ip.len() as u16;
    let offload = Offload { l2_len: 14, l3_len, l4_len: header as u8, ipv6, l4: Some(l4), ..Offload::default() };
    ([ethernet, ip, segment].concat(), offload)
}

/// Where the checksum is in TCP's header.
const TCP_CHECKSUM: usize = 16;

/// What a checksum is over besides the segment of `len` bytes: addresses, protocol, length.
fn pseudo_header(ip: &[u8], len: u16) -> Vec<u8> {
    let (addresses, protocol) = if ip[0] >> 4 == 6 { (&ip[8..40], ip[6]) } else { (&ip[12..20], ip[9]) };
    [addresses, &[0, protocol], &len.to_be_bytes()].concat()
}

/// The Internet checksum (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let words =
        parts.iter().flat_map(|p| p.chunks(2)).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether the checksums of an IP packet and of what is in it are right.
fn is_sound(frame: &[u8]) -> bool {
    let ipv6 = frame[12..14] == [0x86, 0xdd];
    let (ip, segment) = frame[14..].split_at(if ipv6 { 40 } else { 20 });
    let said = if ipv6 { [ip[4], ip[5]] } else { [ip[2], ip[3]] };
    let len = usize::from(u16::from_be_bytes(said)) - if ipv6 { 0 } else { 20 };
    let whole = ipv6 || checksum(&[ip]) == 0;
    len == segment.len() && whole && checksum(&[&pseudo_header(ip, len as u16), segment]) == 0
}

/// Two ends, which have these offloads.
fn pair(rigs: &[Rig; 2], offloads: [Offloads; 2], rx_descriptors: Option<u16>, options: &Options) -> Result<Pair> {
    let open = |i: usize| {
        let config = PortConfig { offloads: offloads[i], rx_descriptors, ..PortConfig::default() };
        let end = End::open(&rigs[i], &config, options.clone(), 768)?;
        ensure!(offloads[i].without(end.port.granted()) == Offloads::NONE, "granted: {}", end.port.granted());
        Ok(end)
    };
    Pair::linked(open(0)?, open(1)?)
}

/// What sending TCP that is not cut yet needs.
const UNCUT: Offloads = Offloads { tx_l4_checksum: true, tso: true, gather: true, ..Offloads::NONE };
/// Bytes of a segment's payload.
const SEGMENT: u16 = 1448;

/// A TCP packet that is to be cut, and its payload.
fn uncut(to: Mac, ipv6: bool, len: u32) -> (Vec<u8>, Offload, Vec<u8>) {
    let payload: Vec<_> = (0..len).map(|i| (i * 13 + i / 251) as u8).collect();
    let (wire, offload) = datagram(to, 1000, L4::Tcp, ipv6, &payload);
    (wire, Offload { segment: SEGMENT, ..offload }, payload)
}

/// Checksums that a sender leaves out are filled in, for who takes only what could have been on a wire. Returns how many packets were sent, and came.
///
/// # Errors
/// What went wrong.
pub fn checksums_are_filled_in(rigs: &[Rig; 2], options: &Options) -> Result<u64> {
    let leaving_out = Offloads { tx_l4_checksum: true, ..Offloads::NONE };
    let Pair { mut a, mut b } = pair(rigs, [leaving_out, Offloads::NONE], None, options)?;
    let to = b.port.mac();
    for len in [18u32, 19, 500, 1001, 1440] {
        let payload: Vec<_> = (0..len).map(|i| (i * 7) as u8).collect();
        for (l4, ipv6) in [(L4::Udp, false), (L4::Tcp, false), (L4::Udp, true), (L4::Tcp, true)] {
            let what = format!("{l4:?} with {len} bytes, IPv6 {ipv6}");
            let (wire, offload) = datagram(to, 1000, l4, ipv6, &payload);
            ensure!(!is_sound(&wire), "the checksum remains to be filled in");
            let mut packet = a.packet(&wire)?;
            packet.set_offload(Some(offload));
            a.send(0, packet)?;
            let got = bytes(&b.receive().with_context(|| format!("{what}: {:?}", a.counted()))?.1);
            ensure!(is_sound(&got), "{what}: the checksum is wrong");
            ensure!(apart_from_sum(&got, offload) == apart_from_sum(&wire, offload), "{what}: it came changed");
        }
    }
    let count = a.count("packets");
    ensure!(count == b.count("packets"), "{count} were sent, {} came", b.count("packets"));
    Pair { a, b }.close()?;
    Ok(count)
}

/// A packet's bytes without its TCP or UDP checksum.
fn apart_from_sum(wire: &[u8], offload: Offload) -> Vec<u8> {
    let at = offload.l4_start() as usize + if offload.l4 == Some(L4::Udp) { 6 } else { TCP_CHECKSUM };
    [&wire[..at], &wire[at + 2..]].concat()
}

/// TCP is cut into segments, for who takes only what could have been on a wire, and has so many descriptors.
///
/// # Errors
/// What went wrong.
pub fn segments_are_cut(rigs: &[Rig; 2], options: &Options, rx_descriptors: Option<u16>) -> Result<()> {
    let Pair { mut a, mut b } = pair(rigs, [UNCUT, Offloads::NONE], rx_descriptors, options)?;
    for ipv6 in [false, true] {
        let (wire, offload, payload) = uncut(b.port.mac(), ipv6, 32 << 10);
        let mut packet = a.packet(&wire)?;
        packet.set_offload(Some(offload));
        a.send(0, packet)?;
        let (head, tcp) = (wire.len() - payload.len(), offload.l4_start() as usize);
        let mut came: Vec<u8> = Vec::new();
        while came.len() < payload.len() {
            let got = bytes(&b.receive()?.1);
            ensure!(is_sound(&got), "a segment of {} bytes is wrong", got.len());
            ensure!(got.len() <= head + usize::from(SEGMENT), "a segment has {} bytes", got.len());
            let sequence = u32::from_be_bytes([got[tcp + 4], got[tcp + 5], got[tcp + 6], got[tcp + 7]]);
            ensure!(sequence == 0x0100_0000 + came.len() as u32, "a segment has sequence number {sequence:#x}");
            came.extend(&got[head..]);
        }
        ensure!(came == payload, "the payload came changed");
    }
    Pair { a, b }.close()
}

/// TCP that is not cut yet goes as it is to who takes that, in several buffers, and is told so. Returns how many packets were sent, and came.
///
/// # Errors
/// What went wrong.
pub fn segments_are_passed_on(rigs: &[Rig; 2], options: &Options) -> Result<u64> {
    let taking = Offloads { rx_checksum: true, lro: true, scatter: true, ..Offloads::NONE };
    let Pair { mut a, mut b } = pair(rigs, [UNCUT, taking], None, options)?;
    for (ipv6, len) in [(false, 3000), (false, 32 << 10), (true, 4001), (true, 50_000)] {
        let (wire, offload, _) = uncut(b.port.mac(), ipv6, len);
        let mut packet = a.packet(&wire)?;
        packet.set_offload(Some(offload));
        a.send(0, packet)?;
        let (_, got) = b.receive()?;
        let told = got.offload().context("nothing was said of what remains to be done")?;
        ensure!(told == offload, "{told:?} remains to be done, and {offload:?} was to be");
        ensure!(got.checked().1 == Checked::Good && got.next().is_some(), "{} bytes in one buffer", got.packet_len());
        let got = bytes(&got);
        ensure!(apart_from_sum(&got, offload) == apart_from_sum(&wire, offload), "{len} bytes came changed");
        // The pseudo header's sum; DPDK leaves the length out of that, as some cards want it.
        let (start, ip) = (offload.l4_start() as usize, &wire[14..]);
        let sums = [wire.len() - start, 0].map(|len| !checksum(&[&pseudo_header(ip, len as u16)]));
        let field = u16::from_be_bytes([got[start + TCP_CHECKSUM], got[start + TCP_CHECKSUM + 1]]);
        ensure!(sums.contains(&field), "the checksum's field holds {field:#x}, and not one of {sums:x?}");
    }
    let count = a.count("packets");
    ensure!(count == b.count("packets"), "{count} were sent, {} came", b.count("packets"));
    Pair { a, b }.close()?;
    Ok(count)
}

/// Checksums are filled in, and TCP is cut into segments, by the device; or it passes on what its receiver takes undone.
///
/// # Errors
/// What went wrong.
pub fn offloads_are_done(rigs: &[Rig; 2], options: Options) -> Result<()> {
    checksums_are_filled_in(rigs, &options)?;
    segments_are_cut(rigs, &options, None)?;
    segments_are_passed_on(rigs, &options)?;
    Ok(())
}
