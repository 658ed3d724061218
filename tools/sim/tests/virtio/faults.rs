//! Faults, and drivers that write anything at all: the model goes on, or says that it needs a reset.

use crate::net::{Nic, packet};
use crate::rig::*;
use proptest::prelude::*;
use wholebar_core::mem::Chunk;
use wholebar_sim::{Target, open};

/// Sends `n` packets one by one; returns what each poll used.
fn send(nic: &mut Nic, n: usize) -> Vec<Vec<(u16, u32)>> {
    (0..n)
        .map(|i| {
            let _kept = nic.send(&[0; 12], &packet(60, i as u8));
            nic.rig.settle();
            nic.tx.take_all()
        })
        .collect()
}

#[test]
fn used_buffers_are_faulted_as_asked() {
    // The buffer of each receive queue is never there, so that each used buffer is a packet sent.
    let mut nic = Nic::new("faults=drop:@2", 0, 8);
    assert_eq!(send(&mut nic, 4), [vec![(0, 0)], vec![], vec![(2, 0)], vec![(3, 0)]]);
    let mut nic = Nic::new("faults=dup:@2", 0, 8);
    assert_eq!(send(&mut nic, 3), [vec![(0, 0)], vec![(1, 0), (1, 0)], vec![(2, 0)]]);
    let mut nic = Nic::new("faults=id:@2", 0, 8);
    let used = send(&mut nic, 2);
    assert_ne!(used[1][0].0, 1);
    let mut nic = Nic::new("faults=corrupt:@1,faultseed=5", 0, 8);
    let used = send(&mut nic, 1)[0][0];
    assert_ne!(used, (0, 0));
    assert_eq!(
        used,
        send(&mut Nic::new("faults=corrupt:@1,faultseed=5", 0, 8), 1)[0][0],
        "the same seed, the same length"
    );
    let mut nic = Nic::new("faults=fatal:@2", PACKED, 8);
    assert_eq!(send(&mut nic, 3).len(), 3);
    assert!(nic.rig.needs_reset());
    nic.rig.agree(VERSION_1);
    assert!(!nic.rig.needs_reset());
}

#[test]
fn a_device_that_is_gone_or_hangs_says_so_by_its_registers() {
    let mut nic = Nic::new("faults=vanish:@2", 0, 8);
    send(&mut nic, 2);
    assert_eq!((nic.rig.get8(STATUS), nic.rig.get32(0x2000)), (0xff, u32::MAX));
    nic.rig.set8(STATUS, 0);
    nic.rig.device.step();
    assert_eq!(nic.rig.get8(STATUS), 0xff);
    // The first reset is the one that it begins with.
    let rig = Rig::off("faults=hang:@2");
    rig.set8(STATUS, 0);
    assert_eq!(rig.get8(STATUS), 0);
    rig.set8(STATUS, 0);
    assert_ne!(rig.get8(STATUS), 0);
    use wholebar_core::pci::PciDevice;
    rig.device.reset().unwrap();
    assert_eq!(rig.get8(STATUS), 0);
}

#[test]
#[cfg_attr(miri, ignore = "a thread for each")]
fn faults_are_counted_where_they_can_be_read() {
    for name in ["sim:virtio-net,faults=drop:1/10", "sim:virtio-blk,faults=id:1/10"] {
        let opened = open(name).unwrap();
        assert_eq!(opened.fault_counts.unwrap().total(), 0);
    }
    for bad in ["phase:1/2", "delay:@1", "dma:1/2", "head:1/2", "drop"] {
        assert!(Target::parse(&format!("sim:virtio-net,faults={bad}")).is_err(), "{bad}");
    }
}

/// What a driver that does anything does.
#[derive(Debug, Clone)]
enum Act {
    /// Writes anywhere in a queue's areas: which queue, which area, where, what.
    Scribble(bool, u8, u16, u16),
    /// Makes a chain available: of these lengths, to be written or not.
    Chain(bool, Vec<(u16, bool)>),
    /// Puts a head into the available ring, or a raw descriptor into a packed one.
    Raw(bool, u16, u64, u32, u16),
    /// Writes a register of any width.
    Register(u8, u8, u32),
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (any::<bool>(), 0..3u8, 0..200u16, any::<u16>()).prop_map(|(a, b, c, d)| Act::Scribble(a, b, c, d)),
        (any::<bool>(), prop::collection::vec((0..3000u16, any::<bool>()), 1..6)).prop_map(|(a, b)| Act::Chain(a, b)),
        (any::<bool>(), 0..10u16, any::<u64>(), any::<u32>(), any::<u16>())
            .prop_map(|(a, b, c, d, e)| Act::Raw(a, b, c, d, e)),
        (0..0x40u8, 0..3u8, any::<u32>()).prop_map(|(a, b, c)| Act::Register(a, b, c)),
        Just(Act::Step),
        Just(Act::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 200 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_driver_brings_a_model_down(packed: bool, extra in 0..4u64, acts in prop::collection::vec(act(), 1..40)) {
        let layout = if packed { PACKED } else { 0 };
        let features = layout | [0, 1 << 15, INDIRECT | EVENT_IDX, IN_ORDER | 1 | 1 << 11][extra as usize];
        let mut nic = Nic::new("mtu=9000", features, 8);
        let data = nic.rig.memory(4096);
        let at = nic.rig.at(&data);
        let mut kept: Vec<Chunk> = Vec::new();
        for act in acts {
            match act {
                Act::Scribble(rx, area, place, value) => {
                    let q = if rx { &nic.rx } else { &nic.tx };
                    let area = [&q.desc, &q.driver, &q.device][usize::from(area)];
                    let place = u64::from(place) % (area.len() - 1);
                    area.write(place & !1, &value.to_le_bytes()).unwrap();
                }
                Act::Chain(rx, parts) => {
                    let buffers: Vec<Buffer> = parts.iter().map(|(len, w)| (at, u32::from(*len), *w)).collect();
                    let q = if rx { &mut nic.rx } else { &mut nic.tx };
                    if buffers.len().is_multiple_of(2) {
                        kept.push(q.add_indirect(&nic.rig, &buffers).1);
                    } else {
                        q.add(&buffers);
                    }
                }
                Act::Raw(rx, index, address, len, flags) => {
                    let q = if rx { &mut nic.rx } else { &mut nic.tx };
                    if packed {
                        q.add_raw(address, len, flags);
                    } else {
                        q.desc(index % 8, address, len, flags, index);
                        q.offer(index);
                    }
                }
                Act::Register(register, width, value) => {
                    use wholebar_core::pci::PciDevice;
                    let bytes = value.to_le_bytes();
                    let _ = nic.rig.device.write(0, register.into(), &bytes[..1 << width]);
                }
                Act::Step => {
                    nic.rig.step();
                }
            }
        }
        for _ in 0..8 {
            nic.rig.step();
        }
        // Whatever it was, a reset mends it.
        use wholebar_core::pci::{CONFIG, PciDevice};
        nic.rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
        prop_assert_eq!(nic.rig.agree(VERSION_1 | layout), 11);
        (nic.rx, nic.tx) = (nic.rig.queue(0, 8), nic.rig.queue(1, 8));
        nic.rig.ok();
        let buffer = nic.buffer(128);
        let sent = nic.send(&[0; 12], &packet(60, 1));
        nic.rig.settle();
        prop_assert_eq!(nic.rx.take().map(|t| t.1), Some(72));
        drop((buffer, sent));
    }
}
