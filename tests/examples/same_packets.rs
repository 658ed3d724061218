//! `same_packets A.pcap MAC-OF-A B.pcap MAC-OF-B same|cut`: whether what two stations captured of their link is the same packets, in order, both ways.
//!
//! With `same` a packet that one sent came to the other as it was, byte for byte. With `cut` it went through a card that completes checksums
//! and cuts TCP segments: then each came, or its segments did one after the other, with the headers they are to have, right checksums and
//! all of its payload. Both are found out by libraries that had no part in it.
//!
//! Captures begin and end at some moment, so what is compared is from the first to the last packet of each station that ends with `wholebar`,
//! as `ping -p 77686f6c65626172` makes them.

use anyhow::{Context, Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use wholebar::net::Mac;

const MARK: &[u8] = b"wholebar";

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [a, mac_a, b, mac_b, how] = &args[..] else {
        bail!("usage: same_packets A.pcap MAC-OF-A B.pcap MAC-OF-B same|cut")
    };
    let cut = match how.as_str() {
        "same" => false,
        "cut" => true,
        _ => bail!("{how} is neither same nor cut"),
    };
    let (a, b) = (read(a)?, read(b)?);
    for (way, mac, sender, receiver) in [("a to b", mac_a, &a, &b), ("b to a", mac_b, &b, &a)] {
        let mac: Mac = mac.parse()?;
        let (sent, came) = (marked(sender, mac), marked(receiver, mac));
        let result = if cut { compare_cut(&sent, &came) } else { compare(&sent, &came) };
        result.with_context(|| format!("{way}: {} packets were sent, and {} came", sent.len(), came.len()))?;
        let kinds = kinds(&sent)?;
        for kind in ["TCP/IPv4", "ICMP/IPv4", "TCP/IPv6", "ICMP/IPv6"] {
            ensure!(kinds.contains_key(kind), "{way}: there was no {kind} among {kinds:?}");
        }
        let longest = sent.iter().map(|packet| packet.len()).max().unwrap_or(0);
        writeln!(
            out,
            "  {way}: {} packets sent, of up to {longest} bytes, {} came: {kinds:?}",
            sent.len(),
            came.len()
        )?;
    }
    Ok(())
}

fn read(path: &str) -> Result<Vec<Vec<u8>>> {
    let mut reader = PcapReader::new(File::open(path).with_context(|| path.to_owned())?)?;
    ensure!(reader.header().datalink == DataLink::ETHERNET, "{path} is not of Ethernet");
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.with_context(|| format!("{path}: behind packet {}", packets.len()))?;
        ensure!(packet.orig_len as usize == packet.data.len(), "{path}: packet {} is cut off", packets.len());
        packets.push(packet.data.into_owned());
    }
    Ok(packets)
}

/// What a station sent, from its first marked packet to its last.
fn marked(packets: &[Vec<u8>], from: Mac) -> Vec<&[u8]> {
    let own: Vec<_> = packets.iter().map(Vec::as_slice).filter(|p| p.get(6..12) == Some(&from.0)).collect();
    let mark = |packet: &&[u8]| packet.ends_with(MARK);
    match (own.iter().position(mark), own.iter().rposition(mark)) {
        (Some(first), Some(last)) => own[first..=last].to_vec(),
        _ => Vec::new(),
    }
}

fn kinds(packets: &[&[u8]]) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for packet in packets {
        let packet = SlicedPacket::from_ethernet(packet)?;
        let network = match packet.net {
            Some(NetSlice::Ipv4(_)) => "IPv4",
            Some(NetSlice::Ipv6(_)) => "IPv6",
            Some(NetSlice::Arp(_)) => "ARP",
            None => "other",
        };
        let kind = match packet.transport {
            Some(TransportSlice::Tcp(_)) => format!("TCP/{network}"),
            Some(TransportSlice::Udp(_)) => format!("UDP/{network}"),
            Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) => format!("ICMP/{network}"),
            Some(TransportSlice::Igmp(_)) => format!("IGMP/{network}"),
            None => network.to_owned(),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    Ok(kinds)
}

/// Packet by packet.
fn compare(sent: &[&[u8]], came: &[&[u8]]) -> Result<()> {
    for (i, (sent, came)) in sent.iter().zip(came).enumerate() {
        let (parsed, other) = (SlicedPacket::from_ethernet(sent)?, SlicedPacket::from_ethernet(came)?);
        ensure!(sent == came && parsed == other, "packet {i} is not the same: {parsed:?} and {other:?}");
    }
    ensure!(sent.len() == came.len(), "the first of them are the same");
    Ok(())
}

/// Packet by packet, those of TCP in as many as they were cut into.
fn compare_cut(sent: &[&[u8]], came: &[&[u8]]) -> Result<()> {
    let mut came = came.iter();
    for (i, packet) in sent.iter().enumerate() {
        let missing = || format!("packet {i} did not come, or not all of it");
        let whole = Tcp::of(packet)?;
        let Some(whole) = whole else {
            let other = came.next().with_context(missing)?;
            ensure!(packet == other, "packet {i}, which is not of TCP, is not the same");
            continue;
        };
        let mut payload = whole.tcp.payload();
        let mut first = true;
        loop {
            let segment = Tcp::of(came.next().with_context(missing)?)?.with_context(missing)?;
            let n = segment.tcp.payload().len();
            let last = n == payload.len();
            segment.is_part_of(&whole, first, last).with_context(|| format!("packet {i}"))?;
            ensure!(payload.get(..n) == Some(segment.tcp.payload()), "packet {i}: its payload is not the same");
            payload = &payload[n..];
            first = false;
            if last {
                break;
            }
            ensure!(n > 0, "packet {i}: a segment of it is empty");
        }
    }
    ensure!(came.next().is_none(), "more came than was sent");
    Ok(())
}

/// A packet of TCP.
struct Tcp<'a> {
    net: NetSlice<'a>,
    tcp: TcpSlice<'a>,
}

impl<'a> Tcp<'a> {
    fn of(packet: &'a [u8]) -> Result<Option<Self>> {
        let packet = SlicedPacket::from_ethernet(packet)?;
        Ok(match (packet.net, packet.transport) {
            (Some(net), Some(TransportSlice::Tcp(tcp))) => Some(Self { net, tcp }),
            _ => None,
        })
    }

    /// Whether it is what a card makes of `whole`, which was sent: sequence number, flags, addresses, checksums.
    fn is_part_of(&self, whole: &Tcp<'_>, first: bool, last: bool) -> Result<()> {
        let (own, other) = (self.tcp.to_header(), whole.tcp.to_header());
        let sum = match (&self.net, &whole.net) {
            (NetSlice::Ipv4(ip), NetSlice::Ipv4(of)) => {
                let (ip, of) = (ip.header().to_header(), of.header().to_header());
                ensure!(ip.header_checksum == ip.calc_header_checksum(), "the checksum of its IPv4 header is wrong");
                let same = (ip.source, ip.destination, ip.time_to_live, ip.dscp, ip.ecn, ip.dont_fragment);
                let same_of = (of.source, of.destination, of.time_to_live, of.dscp, of.ecn, of.dont_fragment);
                ensure!(same == same_of && (ip.identification == of.identification || !first), "{ip:?} of {of:?}");
                own.calc_checksum_ipv4(&ip, self.tcp.payload())?
            }
            (NetSlice::Ipv6(ip), NetSlice::Ipv6(of)) => {
                let (ip, of) = (ip.header().to_header(), of.header().to_header());
                let same = (ip.source, ip.destination, ip.hop_limit, ip.traffic_class, ip.flow_label);
                let same_of = (of.source, of.destination, of.hop_limit, of.traffic_class, of.flow_label);
                ensure!(same == same_of, "{ip:?} of {of:?}");
                own.calc_checksum_ipv6(&ip, self.tcp.payload())?
            }
            _ => bail!("it is of another protocol"),
        };
        ensure!(own.checksum == sum, "its checksum is {:#06x}, and should be {sum:#06x}", own.checksum);
        // What does not change, but for fields that only the first or the last segment has.
        let mut should = other.clone();
        should.checksum = own.checksum;
        should.fin &= last;
        should.psh &= last;
        should.cwr &= first;
        should.sequence_number = own.sequence_number;
        ensure!(own == should, "its header is {own:?}, and should be {should:?}");
        // Where it begins in the whole.
        let offset = own.sequence_number.wrapping_sub(other.sequence_number) as usize;
        ensure!((offset == 0) == first || self.tcp.payload().is_empty(), "its sequence number is wrong");
        let own_part = whole.tcp.payload().get(offset..offset + self.tcp.payload().len());
        ensure!(own_part == Some(self.tcp.payload()), "at its sequence number there is something else");
        Ok(())
    }
}
