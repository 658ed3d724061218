//! Packets there and back: in one piece and in several, with what is to be done to them, and queues that are full or stuck.

use super::*;

#[test]
fn packets_are_received_with_their_headroom() {
    let mut bench = bench(0, Offloads::NONE);
    for round in 0..200u32 {
        let packet: Vec<_> = (0..60 + round).map(|i| (i + round) as u8).collect();
        bench.arrive(PLAIN, &packet, &[]);
        let got = bench.receive();
        assert_eq!((got.len(), got[0].bytes()), (1, &packet[..]));
        assert_eq!((got[0].headroom(), got[0].offload()), (128, None));
    }
    assert_eq!((bench.count("rx0", "packets"), bench.count("rx0", "bytes")), (200, 200 * 60 + 199 * 100));
    // The queue is full of buffers; a program that keeps packets leaves it none, which is counted.
    let mut kept = Vec::new();
    loop {
        let there = bench.rig.run(|state, host| state.receive(host, 0, &[0; 72], &[]));
        if !there {
            break;
        }
        kept.extend(bench.receive());
    }
    assert_eq!(kept.len(), 192);
    assert!(bench.count("rx0", "no_buffers") > 0);
    drop(kept);
    assert!(bench.receive().is_empty());
    bench.arrive(PLAIN, &[7; 64], &[]);
    assert_eq!(bench.receive().len(), 1);
    bench.close();
}

#[test]
fn packets_are_sent_in_one_piece_or_several() {
    let mut bench = bench(0, Offloads::NONE);
    for headroom in [128, 12, 11, 0] {
        let packet = bench.packet(60, headroom);
        let wire = [&[0; 12], packet.bytes()].concat();
        assert_eq!(bench.send(packet).unwrap(), wire, "headroom {headroom}");
        let (mut first, second, third) = (bench.packet(20, headroom), bench.packet(30, 7), bench.packet(1000, 0));
        let wire = [&[0; 12], first.bytes(), second.bytes(), third.bytes()].concat();
        first.append(second);
        first.append(third);
        assert_eq!(bench.send(first).unwrap(), wire, "headroom {headroom}");
    }
    assert_eq!((bench.count("tx0", "packets"), bench.count("tx0", "bytes")), (8, 4 * 60 + 4 * 1050));
    // Dropped, each for its cause, and the device sees none of them.
    let elsewhere = Pool::new(Arena::new(4096, ArenaOptions::default()).unwrap(), 1, 2048, 64).unwrap();
    let mut tagged = bench.packet(60, 64);
    tagged.set_vlan(Some(5));
    let mut tcp = bench.packet(60, 64);
    tcp.set_offload(Some(Offload { l4: Some(L4::Tcp), ..Offload::default() }));
    let mut many = bench.packet(60, 64);
    (0..33).for_each(|_| many.append(bench.packet(1, 0)));
    for (packet, counter) in [
        (bench.packet(13, 64), "dropped_length"),
        (bench.packet(1519, 64), "dropped_length"),
        (tagged, "dropped_offload"),
        (tcp, "dropped_offload"),
        (many, "dropped_segments"),
        (elsewhere.get_len(60).unwrap(), "dropped_arena"),
    ] {
        let before = bench.count("tx0", counter);
        assert_eq!(bench.send(packet), None);
        assert_eq!(bench.count("tx0", counter), before + 1);
    }
    bench.close();
}

#[test]
fn a_full_queue_leaves_the_rest_in_the_burst() {
    let mut bench = bench(0, Offloads::NONE);
    let mut burst = Burst::new(80);
    for len in 0..80 {
        burst.push(bench.packet(60 + len, 128)).unwrap();
    }
    assert_eq!((bench.tx.tx(&mut burst), burst.len(), burst[0].len()), (64, 16, 124));
    assert_eq!((bench.tx.tx(&mut burst), bench.tx.in_flight(), bench.count("tx0", "full")), (0, 64, 2));
    let sent = bench.rig.run(|state, host| (0..64).map(|_| state.sent(host, 1).unwrap().len()).collect::<Vec<_>>());
    assert!(sent.into_iter().eq((72..72 + 64).collect::<Vec<_>>()));
    assert_eq!((bench.tx.tx(&mut burst), burst.len()), (16, 0));
    bench.rig.run(|state, host| (0..16).for_each(|_| drop(state.sent(host, 1).unwrap())));
    bench.tx.reclaim();
    assert_eq!(bench.tx.in_flight(), 0);
    // One notification a burst that had a packet in it, and at most one more by the slow path.
    let notices = bench.rig.state().notified.iter().filter(|q| **q == 1).count();
    assert!((2..=4).contains(&notices), "{notices}");
    bench.close();
}

/// What was sent while the link was down is swallowed, and never given back (as QEMU 10.0 does, in order): that is told and counted, and a reset mends it.
#[test]
fn a_queue_whose_packets_are_swallowed_is_told_to_be_stuck() {
    let rig = rig(spec(STATUS));
    let patience = Duration::from_millis(300);
    let options = Options { stall_timeout: patience, ..patient() };
    let mut bench = bench_of(rig, &PortConfig::default(), options);
    let mut burst = Burst::new(80);
    for len in 0..80 {
        burst.push(bench.packet(60 + len, 128)).unwrap();
    }
    let began = Instant::now();
    let event = loop {
        bench.tx.tx(&mut burst);
        match bench.port.events().try_recv() {
            Ok(event) => break event,
            Err(_) => assert!(began.elapsed() < LONG, "it is not told"),
        }
        std::thread::yield_now();
    };
    assert!(matches!(event, Event::Stalled { queue: 0, waited } if waited >= patience), "{event:?}");
    assert_eq!((bench.count("", "tx_stalls"), burst.len(), bench.tx.in_flight()), (1, 16, 64));
    bench.port.request_reset();
    while bench.tx.tx(&mut burst) == 0 {
        bench.rx.rx(&mut Burst::new(1));
        assert!(began.elapsed() < LONG, "it does not go on: {:?}", bench.tx.state());
        std::thread::yield_now();
    }
    assert_eq!((burst.len(), bench.count("tx0", "dropped_reset"), bench.count("", "tx_stalls")), (0, 64, 1));
    bench.rig.run(|state, host| (0..16).for_each(|_| drop(state.sent(host, 1).unwrap())));
    bench.tx.reclaim();
    bench.close();
}

/// Within a tick of the slow path; where its queue is full, sooner.
#[test]
fn a_device_that_asks_for_no_notification_is_told_all_the_same() {
    let mut bench = bench_with(spec(0), PortConfig { tx_descriptors: Some(4), ..PortConfig::default() });
    bench.rig.run(|state, host| {
        let used = host.dma(wholebar_core::mem::Iova(state.queues[1].areas[2]), 2).unwrap();
        // VIRTQ_USED_F_NO_NOTIFY.
        used.slice::<AtomicU16>(0, 1).unwrap()[0].store(1u16.to_le(), Ordering::Release);
    });
    let mut burst = Burst::new(8);
    (0..8).for_each(|_| burst.push(bench.packet(60, 64)).unwrap());
    assert_eq!(bench.tx.tx(&mut burst), 4);
    bench.rig.until("it was not told", |state| state.notified.contains(&1));
    // Of nothing new it is not told again, and then it is.
    bench.rig.state().notified.clear();
    for call in 1..128 {
        assert_eq!((bench.tx.tx(&mut burst), burst.len()), (0, 4));
        if call == 127 {
            let told = |state: &device::State| state.notified.iter().filter(|index| **index == 1).count();
            bench.rig.until("it was not told that the queue stays full", |state| told(state) == 1);
        }
    }
    burst.give_back();
    bench.close();
}

/// A device that overlooked buffers (as QEMU 10.0 does with RSS) is told of them again, within a tick, until packets come.
#[test]
fn buffers_are_told_of_again_while_no_packet_comes() {
    let bench = bench_with(spec(0), PortConfig::default());
    for _ in 0..2 {
        bench.rig.state().notified.clear();
        bench.rig.until("it was not told", |state| state.notified.contains(&0));
    }
    bench.close();
}

#[test]
fn packets_come_in_several_buffers() {
    let offloads = Offloads { scatter: true, ..Offloads::NONE };
    let mut bench = bench(MRG_RXBUF, offloads);
    assert!(bench.port.granted().scatter);
    let packet: Vec<_> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    let header = |buffers: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers, 0];
    for parts in [&[1000, 12, 1900, 1900][..], &[12, 1, 1, 1, 1900, 1900], &[]] {
        let buffers = if parts.is_empty() { 3 } else { parts.len() + 1 };
        bench.arrive(header(buffers as u8), &packet, parts);
        let got = bench.receive();
        assert_eq!(bench.rx.state(), QueueState::Running);
        assert_eq!((got.len(), got[0].packet_len(), got[0].segments().count()), (1, 5000, buffers));
        assert_eq!(got[0].segments().flat_map(|b| b.bytes().to_vec()).collect::<Vec<_>>(), packet);
    }
    // Zero buffers, and a header that is cut off: dropped and counted.
    bench.arrive(header(0), &[1; 60], &[]);
    bench.rig.run(|state, host| state.receive(host, 0, &[0; 11], &[]));
    bench.arrive(header(1), &[2; 60], &[]);
    let got = bench.receive();
    assert_eq!((got.len(), got[0].bytes()[0], bench.count("rx0", "dropped_malformed")), (1, 2, 2));
    drop(got);
    // More than came: the queue is broken, the device reset, and then it goes on.
    bench.arrive(header(3), &[3; 60], &[40]);
    assert!(bench.receive().is_empty());
    bench.ride_out(1);
    bench.arrive(header(1), &[4; 60], &[]);
    assert_eq!(bench.receive()[0].bytes(), [4; 60]);
    bench.close();
}

#[test]
fn checksums_and_segments_are_asked_for_and_told() {
    let all = CSUM | GUEST_CSUM | HOST_TSO;
    let offloads = Offloads { rx_checksum: true, tx_l4_checksum: true, tso: true, vlan_insert: true, ..Offloads::NONE };
    let mut bench = bench(all, offloads);
    assert_eq!(bench.rig.state().features, VERSION_1 | MAC | all);
    assert_eq!(offloads.without(bench.port.granted()), Offloads { vlan_insert: true, ..Offloads::NONE });
    let mut packet = bench.packet(60, 64);
    let udp = Offload { l2_len: 14, l3_len: 20, l4: Some(L4::Udp), ..Offload::default() };
    packet.set_offload(Some(udp));
    assert_eq!(bench.send(packet).unwrap()[..12], [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]);
    let mut packet = bench.packet(1900, 64);
    packet.append(bench.packet(2048, 0));
    packet.set_offload(Some(Offload { l3_len: 40, l4: Some(L4::Tcp), l4_len: 20, segment: 1440, ipv6: true, ..udp }));
    let sent = bench.send(packet).unwrap();
    assert_eq!((&sent[..12], sent.len()), (&[1, 4, 74, 0, 0xa0, 5, 54, 0, 16, 0, 0, 0][..], 12 + 1900 + 2048));

    bench.arrive([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 60], &[]);
    bench.arrive([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 1, 0], &[0; 60], &[]);
    bench.arrive([1, 0, 0, 0, 0, 0, 34, 0, 25, 0, 1, 0], &[0; 60], &[]);
    let got = bench.receive();
    assert_eq!(got.len(), 2);
    assert_eq!((got[0].checked(), got[0].offload()), ((Checked::Unknown, Checked::Good), None));
    assert_eq!(got[1].offload(), Some(udp));
    assert_eq!(bench.count("rx0", "dropped_malformed"), 1);
    drop(got);
    bench.close();
}
