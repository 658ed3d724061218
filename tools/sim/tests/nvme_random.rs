//! Whatever a host does, the models neither panic nor hang: random entries, doorbells, registers, accesses and faults, a bounded number of polls each.
#![cfg(not(miri))]

mod common;

use common::{CC, Cmd, PAGE, Pair, Rig};
use proptest::prelude::*;
use wholebar_core::Work;
use wholebar_core::model::InProcess;
use wholebar_core::pci::PciDevice;
use wholebar_sim::fpga::Fpga;

/// Something a host may do.
#[derive(Debug, Clone)]
enum Act {
    /// Post an entry to queue 0, 1 or 2, and ring.
    Post(u8, [u64; 8]),
    /// Write a doorbell.
    Ring(u16, u64, u32),
    /// Write a register of BAR0.
    Register(u64, u32),
    /// Write configuration space.
    Config(u64, Vec<u8>),
    /// Write into the memory that entries point to.
    Memory(u64, [u64; 4]),
    /// Take what was completed.
    Take,
    Step,
    Reset,
    Enable,
}

/// An entry that has some chance of making sense.
fn entry() -> impl Strategy<Value = [u64; 8]> {
    let opcode = prop_oneof![0u64..0x10, Just(0x7c), 0u64..0x100];
    let psdt = prop_oneof![4 => Just(0u64), 1 => 0u64..4];
    let nsid = prop_oneof![4 => 1u64..4, 1 => Just(0), 1 => Just(0xffff_ffff)];
    // Addresses from the arena's start on, see `placed`.
    let prp = prop_oneof![4 => (0u64..0x400).prop_map(|n| n * 0x400), 1 => any::<u64>()];
    let small = prop_oneof![4 => 0u64..0x20, 1 => any::<u64>()];
    (opcode, psdt, nsid, [prp.clone(), prp], [small.clone(), small.clone(), small], any::<u64>()).prop_map(
        |(opcode, psdt, nsid, [prp1, prp2], [a, b, c], cid)| {
            [opcode | psdt << 14 | (cid & 0xffff) << 16 | nsid << 32, 0, 0, prp1, prp2, a | (b & 0xf) << 32, c, 0]
        },
    )
}

/// An entry whose small addresses are in the arena.
fn placed(rig: &Rig, mut words: [u64; 8]) -> [u64; 8] {
    for word in &mut words[3..5] {
        if *word < 1 << 20 {
            *word += rig.dma.iova().0;
        }
    }
    words
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0u8..3, entry()).prop_map(|(q, e)| Act::Post(q, e)),
        2 => (0u8..3, any::<[u64; 8]>()).prop_map(|(q, e)| Act::Post(q, e)),
        3 => (0u16..5, 0u64..2, prop_oneof![0u32..20, any::<u32>()]).prop_map(|(q, s, v)| Act::Ring(q, s, v)),
        1 => ((0u64..0x20).prop_map(|r| 4 * r), any::<u32>()).prop_map(|(r, v)| Act::Register(r, v)),
        1 => (0u64..0x110, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(o, b)| Act::Config(o, b)),
        2 => ((0u64..=8 * PAGE).prop_map(|o| 8 * o), any::<[u64; 4]>()).prop_map(|(o, w)| Act::Memory(o, w)),
        4 => Just(Act::Take),
        6 => Just(Act::Step),
        1 => Just(Act::Reset),
        3 => Just(Act::Enable),
    ]
}

fn parameters() -> impl Strategy<Value = String> {
    let faults =
        "drop:1/9+dup:1/9+id:1/9+phase:1/30+head:1/9+delay:1/9+corrupt:1/9+dma:1/9+fatal:1/50+hang:1/20+vanish:1/99";
    let faults = prop_oneof![
        Just(String::new()),
        (any::<u64>(), prop_oneof![Just("io"), Just("all")])
            .prop_map(move |(seed, strike)| format!(",faults={faults},seed={seed},strike={strike},delay=0")),
    ];
    (
        prop_oneof![Just("sgl=1"), Just("shadow=1,dstrd=1"), Just("mdts=0,ns=2,block=512+4096"), Just("backing=null")],
        faults,
    )
        .prop_map(|(kind, faults)| format!("size=1M,queues=3,entries=32,{kind}{faults}"))
}

/// A controller with two I/O queues, if it can be had.
fn bring_up(rig: &mut Rig) -> Option<[Pair; 2]> {
    rig.device.write(7, 4, &6u16.to_le_bytes()).unwrap();
    rig.write32(CC, 0);
    rig.step();
    rig.enable_as(0x0046_0001);
    let mut pairs = Vec::new();
    for id in 1..3u16 {
        let pair = common::pair(rig.arena.clone(), id, 16);
        let size = 15 << 16 | u32::from(id);
        let (cq, sq) = (rig.at(pair.cq.chunk()), rig.at(pair.sq.chunk()));
        for cmd in
            [Cmd::new(5).prp(cq, 0).dw10(size).dw11(1), Cmd::new(1).prp(sq, 0).dw10(size).dw11(u32::from(id) << 16 | 1)]
        {
            let cid = rig.cid();
            rig.admin.post(cmd.words(cid));
            rig.ring_pair(&rig.admin);
            rig.settle();
            while rig.admin.take().is_some() {}
            rig.ring_pair(&rig.admin);
        }
        pairs.push(pair);
    }
    pairs.try_into().ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn nvme(params in parameters(), acts in prop::collection::vec(act(), 1..60)) {
        let mut rig = Rig::off(&params);
        // First in the arena, so that entries meet it.
        let memory = rig.memory(64 * PAGE + 32);
        let mut pairs = bring_up(&mut rig).unwrap();
        for act in acts {
            match act {
                Act::Post(0, words) => {
                    let words = placed(&rig, words);
                    rig.admin.post(words);
                    rig.ring_pair(&rig.admin);
                }
                Act::Post(q, words) => {
                    let pair = &mut pairs[usize::from(q) - 1];
                    pair.post(placed(&rig, words));
                    rig.ring_pair(pair);
                }
                Act::Ring(q, side, value) => rig.ring(q, side, value),
                Act::Register(at, value) => rig.write32(at, value),
                Act::Config(at, bytes) => {
                    let _ = rig.device.write(7, at, &bytes);
                }
                Act::Memory(at, words) => {
                    memory.write(at, words.map(u64::to_le_bytes).as_flattened()).unwrap();
                }
                Act::Take => {
                    for pair in &mut pairs {
                        while pair.take().is_some() {}
                        rig.ring(pair.id, 1, pair.head);
                    }
                }
                Act::Step => {
                    rig.step();
                }
                Act::Reset => rig.device.reset().unwrap(),
                Act::Enable => pairs = bring_up(&mut rig).unwrap(),
            }
            // Whatever it was told, it comes to rest.
            rig.settle();
        }
    }

    #[test]
    fn fpga(acts in prop::collection::vec((0u64..4, any::<u64>(), any::<u32>()), 1..200)) {
        let device = InProcess::new(Fpga::new().unwrap()).unwrap();
        let arena = wholebar_core::mem::Arena::new(16 * PAGE, wholebar_core::mem::ArenaOptions::default()).unwrap();
        let dma = device.dma().attach(arena.clone()).unwrap();
        let memory = arena.alloc(16 * PAGE, 1).unwrap();
        device.write(7, 4, &6u16.to_le_bytes()).unwrap();
        let write = |at: u64, value: u32| { let _ = device.write(0, at, &value.to_le_bytes()); };
        for (what, place, value) in acts {
            match what {
                0 => write(0x2100 + place % 0x10, value),
                1 => write(0x3000 + 4 * (place % 0x20), value),
                2 => {
                    memory.write(8 * (place % 0x1000), &(dma.iova().0 + u64::from(value % 0x20000)).to_le_bytes()).unwrap();
                }
                _ => {
                    let _ = device.write(0, 0x3008, &dma.iova().0.to_le_bytes());
                    for (register, value) in [(0x3010, 1 << (value % 8)), (0x3040, value % 300), (0x3014, 1)] {
                        write(register, value);
                    }
                }
            }
            let rests = (0..1000).any(|_| device.step() == Work::Idle);
            prop_assert!(rests);
        }
    }
}
