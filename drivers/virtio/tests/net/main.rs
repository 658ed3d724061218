//! The network driver on a device that is told what to do: by the rules, and against them.

#[path = "../device/mod.rs"]
mod device;
mod life;
mod packets;

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
