//! The network driver on a device that is told what to do: by the rules, and against them.

mod device;

use device::{LONG, Rig, Spec, VERSION_1, patient, rig};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Checked, L4, Offload, Pool};
use wholebar_core::net::{Burst, Event, Mac, Offloads, Port, PortConfig, QueueState, Rss, RxQueue, TxQueue};
use wholebar_virtio::{Coalescing, Error, Net, Options};

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const HOST_TSO: u64 = 1 << 11 | 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;
const CTRL: u64 = CTRL_VQ | 1 << 18 | 1 << 19 | 1 << 21 | 1 << 23;
const MQ: u64 = 1 << 22;
const RSS: u64 = 1 << 60;

struct Bench {
    port: Net,
    pool: Pool,
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    rig: Rig,
}

fn spec(features: u64) -> Spec {
    let control = (features & CTRL_VQ != 0).then_some(2);
    Spec { features: VERSION_1 | MAC | features, control, ..Spec::default() }
}

fn bench_with(spec: Spec, config: PortConfig) -> Bench {
    bench_of(rig(spec), &config, patient())
}

fn bench_of(rig: Rig, config: &PortConfig, options: Options) -> Bench {
    let port = Net::open(rig.device.clone(), config, options).unwrap();
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    port.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, 192, 2048, 64).unwrap();
    let (rx, tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
    Bench { port, pool, rx, tx, rig }
}

fn bench(features: u64, offloads: Offloads) -> Bench {
    bench_with(spec(features), PortConfig { offloads, ..PortConfig::default() })
}

fn open(spec: Spec, config: PortConfig) -> Result<(), Error> {
    Net::open(rig(spec).device.clone(), &config, patient()).map(drop)
}

impl Bench {
    /// Has the device write a header and a packet, in parts.
    fn arrive(&self, header: [u8; 12], packet: &[u8], parts: &[usize]) {
        let bytes = [&header, packet].concat();
        let parts = parts.to_vec();
        assert!(self.rig.run(move |state, host| state.receive(host, 0, &bytes, &parts)), "no buffer is there");
    }

    fn receive(&mut self) -> Vec<Buf> {
        let mut burst = Burst::new(8);
        self.rx.rx(&mut burst);
        burst.take(8).collect()
    }

    fn count(&self, queue: &str, name: &str) -> u64 {
        let all = self.port.statistics();
        all.iter().find(|s| s.queue == queue && s.name == name).unwrap_or_else(|| panic!("{queue} {name}")).value
    }

    fn packet(&self, len: u32, headroom: u16) -> Buf {
        let mut buf = self.pool.get().unwrap();
        assert!(buf.reserve(headroom));
        buf.set_len(len);
        for (i, byte) in buf.bytes_mut().iter_mut().enumerate() {
            *byte = i as u8;
        }
        buf
    }

    fn send(&mut self, packet: Buf) -> Option<Vec<u8>> {
        let mut burst = Burst::new(1);
        burst.push(packet).unwrap();
        assert_eq!((self.tx.tx(&mut burst), burst.len()), (1, 0));
        self.rig.run(|state, host| state.sent(host, 1))
    }

    /// Polls until the reset that is under way is over.
    fn ride_out(&mut self, resets: u64) {
        let began = Instant::now();
        while self.count("", "resets") < resets
            || self.rx.state() != QueueState::Running
            || self.tx.state() != QueueState::Running
        {
            self.receive();
            self.tx.reclaim();
            assert!(began.elapsed() < LONG, "{:?}, {:?}", self.rx.state(), self.tx.state());
            std::thread::yield_now();
        }
    }

    fn close(self) {
        let Bench { port, pool, rx, tx, rig } = self;
        drop((rx, tx));
        port.shutdown().unwrap();
        assert_eq!((pool.available(), pool.capacity()), (192, 192), "a buffer is missing");
        assert_eq!(rig.state().status, 0);
    }
}

const PLAIN: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

#[test]
fn the_device_is_started_as_the_standard_says() {
    let bench = bench(MTU | STATUS, Offloads::NONE);
    let state = bench.rig.state();
    let last: Vec<_> = state.statuses.iter().rev().take(5).rev().copied().collect();
    assert_eq!(last, [0, 1, 3, 11, 15]);
    // Of the MTU it was not asked for buffers of 9000 bytes: it is not negotiated.
    assert_eq!(state.features, VERSION_1 | MAC | STATUS);
    assert!(state.queues[..2].iter().all(|q| q.enabled && q.size == 64 && q.vector == 0xffff));
    assert!(!state.queues[2].enabled);
    drop(state);
    assert_eq!((bench.port.mac().to_string().as_str(), bench.port.mtu()), ("52:54:00:01:02:03", 1500));
    assert_eq!((bench.port.limits().mtu, bench.port.link().up), (9000, true));
    bench.close();
}

/// 4.1.5.1.3: the largest size is each queue's own, that of the control queue too.
#[test]
fn queues_are_as_large_as_each_of_them_can_be() {
    let mut spec = spec(STATUS | CTRL | MQ);
    (spec.queues, spec.control, spec.config[8]) = (9, Some(8), 4);
    spec.sizes = vec![256, 64, 128, 2, 512, 512, 512, 512, 2];
    let bench =
        bench_with(spec.clone(), PortConfig { rx_queues: 2, tx_queues: 2, promiscuous: true, ..PortConfig::default() });
    let sizes = |bench: &Bench| bench.rig.state().queues.iter().map(|q| q.size).collect::<Vec<_>>();
    let enabled = |bench: &Bench| (0..9).filter(|i| bench.rig.state().queues[*i].enabled).collect::<Vec<_>>();
    assert_eq!((&sizes(&bench)[..4], sizes(&bench)[8]), (&[256, 64, 128, 2][..], 2));
    assert_eq!((enabled(&bench), bench.port.limits().descriptors), (vec![0, 1, 2, 3, 8], 2));
    // The control queue works: two descriptors are what a command takes.
    assert_eq!(bench.rig.state().commands, [vec![4, 0, 2, 0], vec![0, 0, 1], vec![0, 1, 0]]);
    bench.close();
    // What is asked for holds for each of them.
    let asked = PortConfig { rx_queues: 2, tx_queues: 2, tx_descriptors: Some(32), ..PortConfig::default() };
    let error = open(spec.clone(), asked.clone()).unwrap_err().to_string();
    assert!(
        error.contains("32 descriptors cannot be had for queue 3: it must be a power of two from 2 to 2"),
        "{error}"
    );
    spec.sizes[3] = 1;
    let error = open(spec.clone(), PortConfig { tx_descriptors: None, ..asked.clone() }).unwrap_err().to_string();
    assert!(error.contains("queue 3 has one descriptor"), "{error}");
    spec.sizes[3] = 32;
    bench_with(spec, asked).close();
}

/// Two descriptors a queue: packets in one piece pass.
#[test]
fn the_smallest_queues_work() {
    let mut bench =
        bench_with(Spec { sizes: vec![2], ..spec(CTRL) }, PortConfig { promiscuous: true, ..PortConfig::default() });
    for _ in 0..5 {
        bench.arrive(PLAIN, &[5; 60], &[]);
        assert_eq!(bench.receive().len(), 1);
        let packet = bench.packet(60, 64);
        assert_eq!(bench.send(packet).unwrap().len(), 72);
    }
    bench.port.set_promiscuous(false).unwrap();
    bench.close();
}

/// 5.1.5: an address by chance, of one station, locally administered; the device learns of it where it can.
#[test]
fn a_device_without_an_address_gets_one() {
    let without = |features: u64| Spec { features: (VERSION_1 | features) & !MAC, ..spec(features) };
    let commands = |bench: &Bench| bench.rig.state().commands.clone();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let bench = bench_with(without(CTRL), PortConfig::default());
        let mac = bench.port.mac();
        assert!(mac.is_unicast() && mac.0[0] & 2 != 0, "{mac}");
        assert!(commands(&bench).contains(&[&[1, 1][..], &mac.0].concat()), "{:?}", commands(&bench));
        seen.insert(mac);
        // One that is set is the one it has.
        bench.port.set_mac(Mac([2, 0, 0, 0, 0, 9])).unwrap();
        assert_eq!(bench.port.mac(), Mac([2, 0, 0, 0, 0, 9]));
        bench.close();
    }
    assert_eq!(seen.len(), 4);
    // Where it cannot be told, it is a filter; and without those all comes anyway.
    let bench = bench_with(without(CTRL & !(1 << 23)), PortConfig::default());
    let table = [&[1, 0, 1, 0, 0, 0][..], &bench.port.mac().0, &[0; 4]].concat();
    assert!(commands(&bench).contains(&table), "{:?}", commands(&bench));
    bench.close();
    let bench = bench_with(without(0), PortConfig::default());
    assert!(bench.port.mac().is_unicast());
    bench.close();
    // An address that no station can have is none.
    let mut zeros = spec(0);
    zeros.config[..6].fill(0);
    let bench = bench_with(zeros, PortConfig::default());
    assert!(bench.port.mac().is_unicast());
    bench.close();
}

/// Twice as many queues, and the one for control behind them, have numbers of 16 bits.
#[test]
fn pairs_without_numbers_are_refused() {
    for pairs in [0u16, 0x8000, 0xffff] {
        let mut many = spec(CTRL | MQ);
        many.config[8..10].copy_from_slice(&pairs.to_le_bytes());
        let error = open(many, PortConfig::default()).unwrap_err().to_string();
        assert!(error.contains(&format!("it has {pairs} pairs of queues")), "{error}");
    }
}

/// 5.1.4.2: who negotiates the MTU has buffers for packets of it. 5.1.6.3.1: and for 1526 bytes, whatever it is.
#[test]
fn buffers_hold_the_mtu_or_it_is_not_negotiated() {
    let opened = |mtu, offloads| {
        let rig = rig(spec(MTU | MRG_RXBUF));
        let config = PortConfig { mtu, offloads, ..PortConfig::default() };
        (Net::open(rig.device.clone(), &config, patient()).unwrap(), rig)
    };
    let scatter = Offloads { scatter: true, ..Offloads::NONE };
    for (mtu, offloads, negotiated, least) in [
        (None, Offloads::NONE, 0, 128 + 1518),
        (Some(9000), Offloads::NONE, MTU, 128 + 9018),
        (Some(576), Offloads::NONE, 0, 128 + 1514),
        // In several buffers: those of a ring of 64, together.
        (Some(9000), scatter, MTU | MRG_RXBUF, 116 + 9030_u32.div_ceil(64)),
        (None, scatter, MRG_RXBUF, 116 + 12 + 64),
    ] {
        let (port, rig) = opened(mtu, offloads);
        assert_eq!(port.features() & (MTU | MRG_RXBUF), negotiated, "{mtu:?}");
        let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
        port.attach(arena.clone()).unwrap();
        let pool = |size| Pool::new(arena, 4, size, 64).unwrap();
        let error = port.rx_queue(0, &pool.clone()(least - 1)).err().unwrap().to_string();
        assert!(error.contains(&format!("{least} are needed")), "{error}");
        assert!(port.rx_queue(0, &pool(least)).is_ok(), "{mtu:?}");
        drop((port, rig));
    }
}

/// Between DRIVER_OK and the commands a device filters by its defaults: it has no buffers until it was told all, the first time and after each reset.
#[test]
fn nothing_is_received_before_the_device_knows_what_is_wanted() {
    let offloads = Offloads { vlan_filter: true, ..Offloads::NONE };
    let config = PortConfig { offloads, promiscuous: true, ..PortConfig::default() };
    let mut bench = bench_with(spec(CTRL), config);
    bench.port.set_vlan(7, true).unwrap();
    let at_first = std::mem::take(&mut bench.rig.state().had_buffers);
    assert_eq!(at_first, [false, false, true], "two while it was opened, one afterwards");
    bench.port.request_reset();
    bench.ride_out(1);
    assert_eq!(bench.rig.state().had_buffers, [false; 3]);
    bench.arrive(PLAIN, &[1; 60], &[]);
    assert_eq!(bench.receive().len(), 1);
    bench.close();
}

/// It is not waited for an answer of a device that has given up.
#[test]
fn a_device_that_gives_up_over_a_command_is_told_at_once() {
    let rig = rig(spec(CTRL));
    rig.state().gives_up = true;
    // Its patience is ten minutes.
    let error = Net::open(rig.device.clone(), &PortConfig::default(), patient()).err().unwrap();
    assert!(matches!(error, Error::NeedsReset { status: 0x4f, .. }), "{error}");
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let usual = PortConfig::default;
    assert!(matches!(open(Spec { vendor: 0x8086, ..spec(0) }, usual()), Err(Error::Unfit { .. })));
    assert!(matches!(open(Spec { id: 0x1042, ..spec(0) }, usual()), Err(Error::Unfit { .. })));
    assert!(matches!(open(Spec { features: MAC, ..spec(0) }, usual()), Err(Error::Legacy { .. })));
    assert!(matches!(open(Spec { id: 0x1000, capabilities: false, ..spec(0) }, usual()), Err(Error::Legacy { .. })));
    let unavailable = |features, config| match open(spec(features), config) {
        Err(Error::Unavailable { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert!(unavailable(0, PortConfig { rx_queues: 2, tx_queues: 2, ..usual() }).contains("1 at most"));
    assert!(unavailable(0, PortConfig { tx_queues: 0, ..usual() }).contains("pairs"));
    assert!(unavailable(0, PortConfig { rx_descriptors: Some(48), ..usual() }).contains("power of two from 2 to 64"));
    assert!(unavailable(0, PortConfig { tx_descriptors: Some(128), ..usual() }).contains("power of two from 2 to 64"));
    assert!(unavailable(MTU, PortConfig { mtu: Some(9001), ..usual() }).contains("from 68 to 9000"));
    assert!(unavailable(0, PortConfig { mtu: Some(60), ..usual() }).contains("from 68"));
    assert!(unavailable(0, PortConfig { promiscuous: true, ..usual() }).contains("promiscuous"));
    assert!(unavailable(0, PortConfig { rss: Some(Rss::evenly(1, 8)), ..usual() }).contains("RSS"));

    let bench = bench(0, Offloads::NONE);
    let small = Pool::new(bench.pool.arena().clone(), 1, 1024, 64).unwrap();
    assert!(bench.port.rx_queue(0, &small).err().unwrap().to_string().contains("too small"));
    assert!(bench.port.rx_queue(0, &bench.pool).err().unwrap().to_string().contains("no receiving queue 0"));
    assert!(bench.port.tx_queue(9).err().unwrap().to_string().contains("no sending queue 9"));
    assert!(bench.port.set_promiscuous(true).is_err() && bench.port.set_vlan(5, true).is_err());
    assert!(bench.port.set_mac(Mac::BROADCAST).unwrap_err().to_string().contains("one station"));
    drop(small);
    bench.close();
}

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

#[test]
fn a_device_that_breaks_the_rules_is_reset_and_goes_on() {
    let mut bench = bench(0, Offloads::NONE);
    type Lie = fn(&mut device::State, &wholebar_core::model::Host<'_>);
    let lies: [(&str, Lie); 6] = [
        ("used index", |s, h| s.use_buffer(h, 0, 0, 64, 65)),
        ("used index behind", |s, h| s.use_buffer(h, 0, 0, 64, 0xffff)),
        ("identifier", |s, h| s.use_buffer(h, 0, 64, 64, 1)),
        ("large identifier", |s, h| s.use_buffer(h, 0, 0x10000, 64, 1)),
        ("length", |s, h| s.use_buffer(h, 0, 0, 2048, 1)),
        ("twice", |s, h| {
            s.use_buffer(h, 0, 3, 64, 1);
            s.use_buffer(h, 0, 3, 64, 1);
        }),
    ];
    let in_flight = bench.packet(60, 64);
    for (i, (what, lie)) in lies.into_iter().enumerate() {
        let mut burst = Burst::new(1);
        burst.push(bench.packet(60, 64)).unwrap();
        bench.tx.tx(&mut burst);
        bench.rig.run(move |state, host| lie(state, host));
        drop(bench.receive());
        assert_ne!(bench.rx.state(), QueueState::Running, "{what} was believed");
        bench.ride_out(i as u64 + 1);
        // What was in flight is counted, and it works again.
        assert_eq!(bench.count("tx0", "dropped_reset"), i as u64 + 1);
        bench.arrive(PLAIN, &[9; 64], &[]);
        assert_eq!(bench.receive()[0].bytes(), [9; 64]);
        // It is told once queues run again, and may be told later than they are seen to.
        let event = bench.port.events().recv_timeout(LONG).unwrap();
        assert!(
            matches!(&event, Event::Device(DeviceEvent::Reset { lost, .. }) if lost.is_empty()),
            "{what}: {event:?}"
        );
    }
    // The same of a queue that sends.
    bench.rig.run(|state, host| state.use_buffer(host, 1, 5, 0, 1));
    bench.tx.reclaim();
    bench.ride_out(7);
    assert!(bench.send(in_flight).is_some());
    bench.close();
}

#[test]
fn a_reset_waits_for_queues_and_a_needed_one_is_made() {
    let mut bench = bench(STATUS, Offloads::NONE);
    // DEVICE_NEEDS_RESET, seen by the health check.
    bench.rig.state().status |= 64;
    bench.ride_out(1);
    // Dropped queues take part by themselves, and can be had again.
    let Bench { port, pool, rx, tx, rig } = bench;
    drop((rx, tx));
    port.reset().unwrap();
    let (rx, tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
    let mut bench = Bench { port, pool, rx, tx, rig };
    assert_eq!(bench.count("", "resets"), 2);
    bench.arrive(PLAIN, &[1; 60], &[]);
    assert_eq!(bench.receive().len(), 1);
    bench.close();
}

#[test]
fn links_go_down_and_up() {
    let bench = bench(STATUS | CTRL, Offloads::NONE);
    let told = |bench: &Bench, up: bool| {
        bench.rig.state().spec.config[6] = up.into();
        bench.rig.state().generation += 1;
        let event = bench.port.events().recv_timeout(LONG).unwrap();
        assert!(matches!(event, Event::Link(link) if link.up == up), "{event:?}");
        assert_eq!(bench.port.link().up, up);
    };
    told(&bench, false);
    told(&bench, true);
    assert_eq!(bench.count("", "link_changes"), 2);
    // An announcement is asked for, told, and acknowledged.
    bench.rig.state().spec.config[6] = 3;
    assert_eq!(bench.port.events().recv_timeout(LONG).unwrap(), Event::Announce);
    bench.rig.state().spec.config[6] = 1;
    bench.rig.until("an acknowledgement", |state| state.commands.contains(&vec![3, 0]));
    bench.close();
}

#[test]
fn commands_are_as_the_standard_has_them() {
    let offloads = Offloads { vlan_filter: true, ..Offloads::NONE };
    let config = PortConfig { offloads, promiscuous: true, ..PortConfig::default() };
    let bench = bench_with(spec(STATUS | CTRL), config);
    let commands = || std::mem::take(&mut bench.rig.state().commands);
    assert_eq!(commands(), [vec![0, 0, 1], vec![0, 1, 0]]);
    bench.port.set_promiscuous(false).unwrap();
    assert_eq!(commands(), [vec![0, 0, 0], vec![0, 1, 0]]);
    bench.port.set_vlan(0x123, true).unwrap();
    bench.port.set_vlan(7, true).unwrap();
    bench.port.set_vlan(7, false).unwrap();
    assert_eq!(commands(), [vec![2, 0, 0x23, 1], vec![2, 0, 7, 0], vec![2, 1, 7, 0]]);
    bench.port.set_mac("02:00:00:00:00:09".parse().unwrap()).unwrap();
    assert_eq!((commands(), bench.port.mac().0[5]), (vec![vec![1, 1, 2, 0, 0, 0, 0, 9]], 9));
    bench.port.set_filters(&[Mac([2, 0, 0, 0, 0, 1]), Mac([1, 0, 0x5e, 0, 0, 1])]).unwrap();
    assert_eq!(commands(), [vec![1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1]]);
    bench.rig.state().answer = 1;
    assert!(bench.port.set_all_multicast(true).unwrap_err().to_string().contains("refused"));
    bench.rig.state().answer = 0;
    commands();
    // After a reset the device is told everything again.
    let Bench { port, pool, rx, tx, rig } = bench;
    drop((rx, tx));
    port.reset().unwrap();
    let again = std::mem::take(&mut rig.state().commands);
    let filters = vec![1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1];
    let mac = vec![1, 1, 2, 0, 0, 0, 0, 9];
    assert_eq!(again, [vec![0, 0, 0], vec![0, 1, 1], filters, mac, vec![2, 0, 0x23, 1]]);
    drop(port);
    assert_eq!(pool.available(), 192);
}

/// VIRTIO 1.3, 5.1.6.5.9: all queues that receive, or one by its virtqueue; packets, then microseconds.
#[test]
fn interrupts_are_coalesced_where_that_is_offered() {
    let (vq, all) = (1 << 52, 1 << 53);
    let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let set = |packets, micros| Coalescing { events: packets, time: Duration::from_micros(micros) };
    let bench = bench_with(spec(STATUS | CTRL | vq | all), config.clone());
    let commands = || std::mem::take(&mut bench.rig.state().commands);
    commands();
    bench.port.set_coalescing(None, set(64, 0x1234)).unwrap();
    bench.port.set_coalescing(Some(0), set(8, 50)).unwrap();
    let told = [vec![6, 1, 64, 0, 0, 0, 0x34, 0x12, 0, 0], vec![6, 2, 0, 0, 0, 0, 8, 0, 0, 0, 50, 0, 0, 0]];
    assert_eq!(commands(), told);
    assert!(matches!(bench.port.set_coalescing(Some(1), set(8, 50)), Err(Error::Unavailable { .. })));
    assert!(matches!(bench.port.set_coalescing(None, set(8, 1 << 32)), Err(Error::Unavailable { .. })));
    // What is refused is not told again after a reset; what was taken is.
    bench.rig.state().answer = 1;
    assert!(matches!(bench.port.set_coalescing(Some(0), set(9, 9)), Err(Error::Refused { .. })));
    bench.rig.state().answer = 0;
    commands();
    let Bench { port, rx, tx, rig, .. } = bench;
    drop((rx, tx));
    port.reset().unwrap();
    let again: Vec<_> = std::mem::take(&mut rig.state().commands).into_iter().filter(|c| c[0] == 6).collect();
    assert_eq!(again, told);
    // Of all queues: none is told anything else any more.
    port.set_coalescing(None, Coalescing::default()).unwrap();
    rig.state().commands.clear();
    port.reset().unwrap();
    let again: Vec<_> = std::mem::take(&mut rig.state().commands).into_iter().filter(|c| c[0] == 6).collect();
    assert_eq!(again, [[6, 1, 0, 0, 0, 0, 0, 0, 0, 0]]);
    drop(port);
    // Without interrupts there is nothing to coalesce.
    for (features, config) in [(CTRL | all, PortConfig::default()), (CTRL, config)] {
        let bench = bench_with(spec(features), config);
        assert!(matches!(bench.port.set_coalescing(None, set(1, 1)), Err(Error::Unavailable { .. })));
        bench.close();
    }
}

#[test]
fn packets_are_spread_over_pairs() {
    let mut spec = spec(CTRL | MQ | RSS);
    (spec.queues, spec.control) = (9, Some(8));
    (spec.config[8], spec.config[17], spec.config[18], spec.config[20]) = (4, 40, 128, 0x3f);
    let rss = Rss::evenly(2, 4);
    let config = PortConfig { rx_queues: 2, tx_queues: 2, rss: Some(rss.clone()), ..PortConfig::default() };
    let rig = rig(spec.clone());
    let port = Net::open(rig.device.clone(), &config, patient()).unwrap();
    assert_eq!((port.limits().rx_queues, port.limits().rss_table), (4, 128));
    let expected = [&[4, 1, 0x3f, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 40][..], &Rss::KEY].concat();
    assert_eq!(rig.state().commands[0], expected);
    assert!(rig.state().queues[..4].iter().all(|q| q.enabled) && !rig.state().queues[4].enabled);
    for bad in [
        Rss { table: vec![0, 1, 2, 0], ..rss.clone() },
        Rss { table: vec![0; 3], ..rss.clone() },
        Rss { table: vec![0; 256], ..rss.clone() },
        Rss { key: vec![0; 41], ..rss.clone() },
    ] {
        assert!(port.set_rss(&bad).is_err(), "{bad:?}");
    }
    port.set_rss(&Rss { table: vec![1; 2], ..rss }).unwrap();
    drop(port);
    // Without a table of one's own, the device has its way.
    let other = device::rig(spec);
    let port = Net::open(other.device.clone(), &PortConfig { rss: None, ..config }, patient()).unwrap();
    assert_eq!(other.state().commands[0], [4, 0, 2, 0]);
    drop(port);
}

#[test]
fn idle_queues_are_woken() {
    let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let mut bench = bench_with(spec(0), config);
    assert_eq!(bench.rig.state().queues.iter().map(|q| q.vector).collect::<Vec<_>>(), [1, 0xffff, 0xffff]);
    let wakeup = bench.rx.wakeup().unwrap();
    assert_eq!(bench.rx.arm(), wholebar_core::reactor::Armed::Yes);
    assert!(bench.receive().is_empty());
    bench.rig.run(|state, host| {
        state.receive(host, 0, &[0; 72], &[]);
        host.interrupt(1);
    });
    assert!(wakeup.wait(Some(LONG)).unwrap().is_some());
    bench.rx.disarm();
    assert_eq!(bench.receive().len(), 1);
    bench.close();
}
