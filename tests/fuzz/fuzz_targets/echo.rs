//! Packets that ask for an answer, and any bytes instead, to the host that `net fwd --mode icmpecho` is: what is answered goes back to who asked, is
//! no longer or shorter, changes nothing else, keeps its checksums right, and asks for nothing itself.
#![no_main]

#[path = "../../../apps/wholebar/src/net/fwd/echo.rs"]
mod echo;

use echo::Host;
use etherparse::{ArpEthIpv4Packet, ArpOperation, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use wholebar::net::Mac;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const THERE: [u8; 4] = [10, 0, 0, 1];
const THEIRS: [u8; 4] = [10, 0, 0, 9];

/// For all addresses or one; a packet to begin with; bytes to be changed by others; what is missing at its end; what comes behind it.
type Input = (bool, u8, Vec<(u8, u8)>, u8, Vec<u8>);

static PACKETS: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
    let (mut arp, mut echo, mut tagged) = (Vec::new(), Vec::new(), Vec::new());
    let request = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: ASKER,
        sender_ipv4: THEIRS,
        target_mac: [0; 6],
        target_ipv4: THERE,
    };
    PacketBuilder::ethernet2(ASKER, [0xff; 6]).arp(request.to_arp_packet()).write(&mut arp).unwrap();
    let ethernet = || PacketBuilder::ethernet2(ASKER, OWN.0);
    let ip = ethernet().ipv4(THEIRS, THERE, 64).icmpv4_echo_request(3, 4);
    ip.write(&mut echo, &[7; 57]).unwrap();
    let vlan = ethernet().single_vlan(5.try_into().unwrap()).ipv4(THEIRS, THERE, 64).icmpv4_echo_request(5, 6);
    vlan.write(&mut tagged, &[8; 30]).unwrap();
    [arp, echo, tagged, Vec::new()]
});

fuzz_target!(|input: Input| {
    let (all, which, changes, missing, more) = input;
    let mut packet = PACKETS[usize::from(which) % 4].clone();
    for (at, change) in changes {
        if let Some(byte) = packet.get_mut(usize::from(at)) {
            *byte ^= change;
        }
    }
    packet.truncate(packet.len().saturating_sub(missing.into()));
    packet.extend(more);
    let addresses = if all { Vec::new() } else { vec![Ipv4Addr::from(THERE)] };
    let host = Host { mac: OWN, addresses };

    let mut answer = packet.clone();
    let whole = packet.len() as u64;
    if !host.answer(&mut answer, whole) {
        assert_eq!(answer, packet, "what is not answered stays");
        return;
    }
    assert_eq!((answer.len(), &answer[..6], &answer[6..12]), (packet.len(), &packet[6..12], &OWN.0[..]));
    assert_eq!(answer[12..14], packet[12..14]);
    let same = answer.iter().zip(&packet).rev().take_while(|(a, b)| a == b).count();
    // Behind the last tag: ARP, or IP with all its options and the head of ICMP.
    assert!(packet.len() - same <= 14 + 3 * 4 + 60 + 4, "{same} of {} bytes stay", packet.len());
    assert!(!host.answer(&mut answer.clone(), whole), "an answer asks for nothing");

    let (Ok(asked), Ok(told)) = (SlicedPacket::from_ethernet(&packet), SlicedPacket::from_ethernet(&answer)) else {
        return;
    };
    match (&asked.net, &told.net) {
        (Some(NetSlice::Arp(asked)), Some(NetSlice::Arp(told))) => {
            let asked = asked.to_packet().try_eth_ipv4().unwrap();
            let told = told.to_packet().try_eth_ipv4().unwrap();
            assert_eq!((told.operation, told.sender_mac), (ArpOperation::REPLY, OWN.0));
            assert_eq!((told.sender_ipv4, told.target_ipv4), (asked.target_ipv4, asked.sender_ipv4));
            assert!(all || told.sender_ipv4 == THERE);
        }
        (Some(NetSlice::Ipv4(from)), Some(NetSlice::Ipv4(to))) => {
            let (from, to) = (from.header(), to.header());
            assert_eq!((to.source(), to.destination()), (from.destination(), from.source()));
            assert!(all || to.source() == THERE);
            let right = |header: etherparse::Ipv4Header| header.header_checksum == header.calc_header_checksum();
            assert_eq!(right(from.to_header()), right(to.to_header()));
        }
        nets => panic!("it is something else now: {nets:?}"),
    }
    let right = |packet: &SlicedPacket<'_>| match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => {
            let sum = icmp.slice().chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)));
            let sum = sum.sum::<u32>();
            ((sum & 0xffff) + (sum >> 16)) % 0xffff == 0
        }
        _ => true,
    };
    assert_eq!(right(&asked), right(&told), "a checksum that was right is, and one that was not is not");
});
