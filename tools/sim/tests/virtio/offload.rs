//! Checksums and segments: passed on where the receiver can take them, done for it where it can't. Looked at by a library that knows nothing of this.

use crate::net::{Nic, bytes};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpSlice, TransportSlice};

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MRG: u64 = 1 << 15;

/// Two cards, and what each agreed to.
fn pair(name: &str, a: u64, b: u64) -> (Nic, Nic) {
    let params = format!("wire=pair:{name}");
    let pair = (Nic::new(&params, a, 64), Nic::new(&params, b, 64));
    pair.0.rig.step();
    pair
}

/// A TCP packet, of IPv4 or IPv6, tagged or not, and where its TCP header is.
fn tcp(v6: bool, tagged: bool, payload: &[u8]) -> (Vec<u8>, usize) {
    let start = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
    let mut out = Vec::new();
    macro_rules! rest {
        ($b:expr) => {
            $b.tcp(1000, 2000, 0xffff_fff0, 500).fin().psh().ack(7).write(&mut out, payload).unwrap()
        };
    }
    match (v6, tagged) {
        (false, false) => rest!(start.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
        (false, true) => {
            rest!(start.single_vlan(etherparse::VlanId::try_new(5).unwrap()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64))
        }
        (true, false) => rest!(start.ipv6([1; 16], [2; 16], 64)),
        (true, true) => rest!(start.single_vlan(etherparse::VlanId::try_new(5).unwrap()).ipv6([1; 16], [2; 16], 64)),
    }
    let at = 14 + if tagged { 4 } else { 0 } + if v6 { 40 } else { 20 };
    (out, at)
}

/// A header that leaves the checksum, and the cutting if `gso` says so.
fn header(gso: u8, size: u16, start: usize, offset: u16) -> Vec<u8> {
    let halves = [54, size, start as u16, offset, 0].map(u16::to_le_bytes).concat();
    [vec![1, gso], halves].concat()
}

/// Puts the pseudo header's sum where the checksum goes, as a driver that leaves the rest does.
fn leave_checksum(packet: &mut [u8], at: usize) {
    let mut sum: u32 = 6 + (packet.len() - at) as u32;
    let v6 = at >= 54 && packet[at - 40] >> 4 == 6;
    let addresses = if v6 { at - 32..at } else { at - 8..at };
    sum += packet[addresses].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[at + 16..at + 18].copy_from_slice(&(sum as u16).to_be_bytes());
}

/// The TCP part of a packet whose checksums are all right.
fn checked(packet: &[u8]) -> TcpSlice<'_> {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("not TCP") };
    let sum = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => {
            assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
        }
        NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
        _ => panic!("not IP"),
    };
    assert_eq!(sum.unwrap(), tcp.checksum());
    tcp
}

#[test]
fn a_checksum_is_completed_for_who_cannot_and_passed_on_to_who_can() {
    for (i, (v6, tagged)) in [(false, false), (false, true), (true, false), (true, true)].into_iter().enumerate() {
        for able in [false, true] {
            let (mut a, mut b) = pair(&format!("csum{i}{able}"), CSUM, if able { GUEST_CSUM } else { 0 });
            let (whole, at) = tcp(v6, tagged, &[7; 101]);
            let mut packet = whole.clone();
            leave_checksum(&mut packet, at);
            assert_ne!(packet, whole);
            let head = header(0, 0, at, 16);
            let (kept, buffer) = (a.send(&head, &packet), b.buffer(512));
            a.rig.settle();
            b.rig.settle();
            assert_eq!(b.rx.take(), Some((0, 12 + packet.len() as u32)));
            let got = bytes(&buffer, 12 + packet.len());
            if able {
                assert_eq!((&got[..10], &got[10..12], &got[12..]), (&head[..10], &[1, 0][..], &packet[..]));
            } else {
                assert_eq!((&got[..10], &got[12..]), (&[0; 10][..], &whole[..]));
                checked(&got[12..]);
            }
            drop(kept);
        }
    }
}

#[test]
fn segments_are_cut_for_who_cannot_take_them_whole() {
    let payload: Vec<u8> = (0..5000u32).map(|i| (i / 3) as u8).collect();
    for (i, (v6, tagged)) in [(false, false), (false, true), (true, false), (true, true)].into_iter().enumerate() {
        let (mut a, mut b) = pair(&format!("cut{i}"), CSUM | HOST_TSO4 | HOST_TSO6, 0);
        let buffers: Vec<_> = (0..6).map(|_| b.buffer(2048)).collect();
        let (mut packet, at) = tcp(v6, tagged, &payload);
        leave_checksum(&mut packet, at);
        let kept = a.send(&header(if v6 { 4 } else { 1 }, 1200, at, 16), &packet);
        a.rig.settle();
        b.rig.settle();
        let used = b.rx.take_all();
        assert_eq!(used.len(), 5);
        let mut together = Vec::<u8>::new();
        for (n, ((_, len), buffer)) in used.iter().zip(&buffers).enumerate() {
            let got = bytes(buffer, *len as usize);
            assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            let tcp = checked(&got[12..]);
            assert_eq!(tcp.sequence_number(), 0xffff_fff0u32.wrapping_add(1200 * n as u32));
            assert_eq!((tcp.fin(), tcp.psh(), tcp.ack()), (n == 4, n == 4, true));
            together.extend_from_slice(tcp.payload());
        }
        assert_eq!(together, payload);
        drop(kept);
    }
}

#[test]
fn segments_are_passed_on_to_who_takes_them() {
    let (mut a, mut b) = pair("whole", CSUM | HOST_TSO4, GUEST_CSUM | GUEST_TSO4 | MRG);
    let buffers: Vec<_> = (0..32).map(|_| b.buffer(2048)).collect();
    let (mut packet, at) = tcp(false, false, &[9; 60_000]);
    leave_checksum(&mut packet, at);
    let head = header(1, 1448, at, 16);
    let kept = a.send(&head, &packet);
    a.rig.settle();
    b.rig.settle();
    let used = b.rx.take_all();
    assert_eq!(used.len(), (packet.len() + 12).div_ceil(2048));
    let got: Vec<u8> = buffers.iter().zip(&used).flat_map(|(buffer, (_, len))| bytes(buffer, *len as usize)).collect();
    assert_eq!((&got[..10], got[10], &got[12..]), (&head[..10], used.len() as u8, &packet[..]));
    // One that can take them no more says so by the control queue: see the tests of that.
    drop(kept);
}

#[test]
fn headers_that_make_no_sense_are_counted_and_nothing_else() {
    let (mut a, mut b) = pair("malformed", CSUM | HOST_TSO4, 0);
    let (packet, at) = tcp(false, false, &[9; 3000]);
    let mut cases = vec![
        (header(0, 0, 5000, 16), "a checksum behind the end"),
        (header(0, 0, at, 60_000), "a checksum field behind the end"),
        (header(1, 0, at, 16), "segments of nothing"),
        (header(4, 1000, at, 16), "IPv6 segments, which were not agreed on"),
        (header(3, 1000, at, 16), "UDP fragments, which there are none of"),
        (header(0x80, 1000, at, 16), "congestion bits without segments"),
        (header(1 | 0x80, 1000, at, 16), "congestion bits, which were not agreed on"),
        (header(0, 0, at, 16), "longer than the MTU"),
    ];
    let mut unsummed = header(1, 1000, at, 16);
    unsummed[0] = 0;
    cases.push((unsummed, "segments with their checksum done"));
    for (head, what) in &cases {
        let kept = a.send(head, &packet);
        a.rig.settle();
        assert!(a.tx.take().is_some() && !a.rig.needs_reset(), "{what}");
        drop(kept);
    }
    assert_eq!(a.rig.handle.as_ref().unwrap().stats().tx_malformed, cases.len() as u64);
    // What the sender can't know to be wrong, the cutting finds out.
    for at in [0, 12, 33, 35, packet.len() - 18] {
        let kept = a.send(&header(1, 1000, at, 16), &packet);
        a.rig.settle();
        b.rig.settle();
        drop(kept);
    }
    let stats = b.rig.handle.as_ref().unwrap().stats();
    assert_eq!((stats.rx_malformed, stats.rx_packets), (5, 0));
    assert_eq!(b.rx.take(), None);
}
