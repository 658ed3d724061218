use super::phy::{ChecksumCapabilities, Device as _, RxToken as _, TxToken as _};
use super::time::Instant;
use super::wire::{IpRepr, Ipv4Address, Ipv6Address, TcpControl, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr};
use super::*;
use crate::irq::EventFd;
use crate::mem::{Arena, ArenaOptions};
use crate::net::{PortConfig, QueueState};
use crate::reactor::Armed;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What queues have: packets that come, how many may be sent, those that were.
#[derive(Default)]
struct State {
    come: Vec<Buf>,
    polls: usize,
    room: usize,
    sent: Vec<Buf>,
}

/// Both queues.
#[derive(Clone, Default)]
struct Mock(Arc<Mutex<State>>);

impl RxQueue for Mock {
    fn rx(&mut self, out: &mut Burst) -> usize {
        let mut state = self.0.lock().unwrap();
        state.polls += 1;
        let n = state.come.len().min(out.room());
        state.come.drain(..n).for_each(|buf| out.push(buf).unwrap());
        n
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        None
    }

    fn arm(&mut self) -> Armed {
        Armed::No
    }

    fn disarm(&mut self) {}
}

impl TxQueue for Mock {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        let mut state = self.0.lock().unwrap();
        let n = packets.len().min(state.room);
        state.room -= n;
        state.sent.extend(packets.take(n));
        n
    }

    fn reclaim(&mut self) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }
}

fn port() -> Box<dyn Port> {
    crate::net::open(crate::open("sim:virtio-net").unwrap(), &PortConfig::default()).unwrap()
}

fn pool(count: u32, size: u32) -> Pool {
    Pool::new(Arena::new(1 << 20, ArenaOptions::default()).unwrap(), count, size, 64).unwrap()
}

fn device(pool: &Pool) -> (Mock, Device) {
    let mock = Mock::default();
    let device = Device::new(port().as_ref(), Box::new(mock.clone()), Box::new(mock.clone()), pool);
    (mock, device.unwrap())
}

#[test]
fn buffers_hold_a_packet_and_headroom_or_are_refused() {
    let (port, mock) = (port(), Mock::default());
    let new = |size| Device::new(port.as_ref(), Box::new(mock.clone()), Box::new(mock.clone()), &pool(1, size));
    let capabilities = new(1514 + 128).unwrap().capabilities();
    assert_eq!((capabilities.max_transmission_unit, capabilities.ip_mtu()), (1514, 1500));
    assert!(capabilities.checksum.tcp.tx() && capabilities.segmentation.tcpv4.is_none());
    let refused = new(1514 + 127).err().unwrap();
    assert_eq!(refused, BufferTooSmall { port: "sim:virtio-net".into(), packet: 1514, size: 1641 });
    assert!(refused.to_string().ends_with("make them of 1642"));
    assert!(new(1).is_err());
}

#[test]
fn what_is_received_is_read_where_it_is() {
    let (mine, theirs) = (pool(64, 2048), pool(8, 2048));
    let (mock, mut device) = device(&mine);
    let packet = |content: &[u8]| {
        let mut buf = theirs.get().unwrap();
        buf.copy_from(content);
        buf
    };
    let (mut chain, mut tagged) = (packet(b"three"), packet(b"tagged"));
    chain.append(packet(b" in "));
    chain.append(packet(b"one"));
    tagged.set_vlan(Some(7));
    let (one, two) = (packet(b"one"), packet(b"two"));
    let places = [one.bytes().as_ptr().addr(), two.bytes().as_ptr().addr()];
    mock.0.lock().unwrap().come.extend([one, tagged, two, chain]);
    let mut next = || Some(device.receive(Instant::ZERO)?.0.consume(|b| (b.as_ptr().addr(), b.to_vec())));
    assert_eq!(next(), Some((places[0], b"one".to_vec())));
    assert_eq!(next(), Some((places[1], b"two".to_vec())));
    assert_eq!(next().map(|(_, bytes)| bytes), Some(b"three in one".to_vec()));
    assert_eq!((next(), theirs.available()), (None, 8));
}

#[test]
fn there_is_no_token_without_a_buffer_or_room_and_queues_are_polled() {
    let pool = pool(2, 2048);
    let (mock, mut device) = device(&pool);
    let polls = || mock.0.lock().unwrap().polls;
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    assert!(device.transmit(Instant::ZERO).is_none() && device.receive(Instant::ZERO).is_none());
    assert_eq!(polls(), 1);
    drop(held);
    // There is room for one.
    mock.0.lock().unwrap().room = 1;
    for byte in 1..=2 {
        device.transmit(Instant::ZERO).unwrap().consume(60, |bytes| bytes.fill(byte));
    }
    mock.0.lock().unwrap().come.push(self::pool(1, 64).get_len(60).unwrap());
    assert!(device.transmit(Instant::ZERO).is_none() && device.receive(Instant::ZERO).is_none());
    assert_eq!(polls(), 2);
    mock.0.lock().unwrap().room = 9;
    assert!(device.transmit(Instant::ZERO).is_none(), "both buffers are in flight");
    {
        let mut state = mock.0.lock().unwrap();
        let sent = state.sent.drain(..);
        assert_eq!(
            sent.map(|b| (b.bytes().to_vec(), b.headroom())).collect::<Vec<_>>(),
            [(vec![1; 60], HEADROOM.into()), (vec![2; 60], HEADROOM.into())]
        );
    }
    // What came meanwhile is there, and so is a token to answer it. More than a buffer holds is not sent.
    let (received, token) = device.receive(Instant::ZERO).unwrap();
    assert_eq!((received.consume(<[u8]>::len), token.consume(1 << 16, |bytes| bytes.len())), (60, 1 << 16));
    assert!(mock.0.lock().unwrap().sent.is_empty());
}

/// With a token to be had, and with none.
#[test]
fn a_reset_goes_on_while_it_is_polled() {
    let port = port();
    let arena = Arena::new(8 << 20, ArenaOptions::default()).unwrap();
    port.attach(arena.clone()).unwrap();
    let (rx_pool, tx_pool) =
        (Pool::new(arena.clone(), 2048, 2176, 64).unwrap(), Pool::new(arena, 4, 2176, 64).unwrap());
    let (rx, tx) = (port.rx_queue(0, &rx_pool).unwrap(), port.tx_queue(0).unwrap());
    let mut device = Device::new(port.as_ref(), rx, tx, &tx_pool).unwrap();
    let mut held: Vec<_> = std::iter::from_fn(|| tx_pool.get()).collect();
    for tokens in [false, true] {
        let stop = AtomicBool::new(false);
        let reset = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(tokens || device.receive(Instant::ZERO).is_none());
                    device.receive(Instant::ZERO);
                    std::thread::yield_now();
                }
            });
            let reset = port.reset();
            stop.store(true, Ordering::Relaxed);
            reset
        });
        reset.unwrap();
        held.clear();
    }
    // This model's plug sends back what it is sent.
    device.transmit(Instant::ZERO).unwrap().consume(60, |bytes| bytes.fill(0xff));
    let began = std::time::Instant::now();
    loop {
        assert!(began.elapsed().as_secs() < 60, "nothing comes after a reset");
        if let Some((received, _)) = device.receive(Instant::ZERO) {
            break assert_eq!(received.consume(<[u8]>::to_vec), [0xff; 60]);
        }
    }
}

/// A TCP and a UDP packet of each version of IP, with all checksums, and with none in the transport's header.
fn packets(checksum: &ChecksumCapabilities) -> Vec<Vec<u8>> {
    let v4 = [Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 0, 0, 2)].map(IpAddress::Ipv4);
    let v6 = ["fd00::1", "fd00::2"].map(|a| IpAddress::Ipv6(a.parse::<Ipv6Address>().unwrap()));
    let payload = b"an odd number of bytes.";
    let tcp = TcpRepr {
        src_port: 80,
        dst_port: 49152,
        control: TcpControl::Psh,
        seq_number: TcpSeqNumber(1),
        ack_number: Some(TcpSeqNumber(2)),
        window_len: 3,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let udp = UdpRepr { src_port: 53, dst_port: 49152 };
    let mut all = Vec::new();
    for ([from, to], protocol) in [v4, v6].into_iter().flat_map(|a| [(a, IpProtocol::Tcp), (a, IpProtocol::Udp)]) {
        let len = if protocol == IpProtocol::Tcp { tcp.buffer_len() } else { udp.header_len() + payload.len() };
        let ip = IpRepr::new(from, to, protocol, len, 64);
        let mut packet = vec![0; ETHERNET + ip.buffer_len()];
        packet[12..14].copy_from_slice(if matches!(from, IpAddress::Ipv4(_)) { &[8, 0] } else { &[0x86, 0xdd] });
        ip.emit(&mut packet[ETHERNET..], checksum);
        let l4 = &mut packet[ETHERNET + ip.header_len()..];
        if protocol == IpProtocol::Tcp {
            tcp.emit(&mut TcpPacket::new_unchecked(l4), &from, &to, checksum);
        } else {
            let put = |out: &mut [u8]| out.copy_from_slice(payload);
            udp.emit(&mut UdpPacket::new_unchecked(l4), &from, &to, payload.len(), put, checksum);
        }
        all.push(packet);
    }
    all
}

#[test]
fn checksums_that_are_left_to_the_other_end_come_out_as_smoltcps_own() {
    let mut none = ChecksumCapabilities::default();
    (none.tcp, none.udp) = (Checksum::Rx, Checksum::Rx);
    let lengths = [(20, 24), (20, 8), (40, 24), (40, 8)];
    for ((mut packet, whole), (l3_len, l4_len)) in
        packets(&none).into_iter().zip(packets(&ChecksumCapabilities::default())).zip(lengths)
    {
        assert_ne!(packet, whole);
        let offload = partial_checksum(&mut packet, 1448).unwrap();
        assert_eq!((offload.l2_len, offload.l3_len, offload.l4_len, offload.segment), (14, l3_len, l4_len, 1448));
        assert_eq!((offload.ipv6, offload.l4 == Some(L4::Udp)), (l3_len == 40, l4_len == 8));
        complete(&mut packet, offload);
        assert_eq!(packet, whole);
    }
    // A fragment has no checksum of its own, and what is neither TCP nor UDP has one that smoltcp fills in; nor has what is cut off.
    let mut packet = packets(&none).remove(0);
    for (at, value) in [(20, 0x20), (21, 1), (23, 1), (13, 6), (14, 0x4f)] {
        let was = std::mem::replace(&mut packet[at], value);
        assert_eq!(partial_checksum(&mut packet, 0), None, "{at}");
        packet[at] = was;
    }
    assert_eq!(partial_checksum(&mut packet[..50], 0), None);
    let beyond = Offload { l2_len: 127, l3_len: 511, l4: Some(L4::Tcp), ..Offload::default() };
    complete(&mut packet, beyond);
    complete(&mut packet[..40], Offload { l2_len: 14, l3_len: 20, l4: Some(L4::Tcp), ..Offload::default() });
}
