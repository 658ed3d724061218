//! What a driver writes into a virtio network model's rings and registers, as bytes: no panic, no poll that does not end, and a reset mends it.
#![no_main]

#[path = "../../../tools/sim/tests/virtio/net.rs"]
#[allow(dead_code, unused_imports)]
mod net;
#[path = "../../../tools/sim/tests/virtio/rig.rs"]
#[allow(dead_code)]
mod rig;

use libfuzzer_sys::fuzz_target;
use net::{Nic, packet};
use rig::*;
use wholebar::mem::Chunk;
use wholebar::model::InProcess;
use wholebar::pci::{CONFIG, PciDevice};
use wholebar::sim::virtio::net::{NetParams, model};

const ENTRIES: u16 = 8;
/// CSUM, HOST_TSO4, HOST_TSO6.
const OFFLOADS: u64 = 1 | 1 << 11 | 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.iter().copied();
    let mut take = |n: usize| {
        let mut word = [0; 8];
        word.iter_mut().take(n).zip(&mut bytes).for_each(|(to, from)| *to = from);
        u64::from_le_bytes(word)
    };
    let first = take(1);
    let layout = if first & 1 != 0 { PACKED } else { 0 };
    let features = [(1, IN_ORDER), (2, INDIRECT), (3, EVENT_IDX), (4, OFFLOADS), (5, MRG_RXBUF)];
    let features = features.iter().filter(|(bit, _)| first >> bit & 1 != 0).fold(layout, |all, (_, f)| all | f);
    let (model, port) = model(NetParams::parse("mtu=9000").unwrap()).unwrap();
    let mut rig = Rig::with_memory(InProcess::new(model).unwrap(), Some(port.handle), 1 << 18);
    assert_eq!(rig.agree(features | VERSION_1), 11);
    let (rx, tx) = (rig.queue(0, ENTRIES), rig.queue(1, ENTRIES));
    rig.ok();
    let mut nic = Nic { rig, rx, tx };
    let data = nic.rig.memory(4096);
    let at = nic.rig.at(&data);
    let mut kept: Vec<Chunk> = Vec::new();
    for _ in 0..60 {
        let step = take(1);
        let q = if step & 8 != 0 { &mut nic.rx } else { &mut nic.tx };
        match step & 7 {
            0 => {
                let area = [&q.desc, &q.driver, &q.device][(step >> 4) as usize % 3];
                area.write(take(1) % (area.len() - 1) & !1, &(take(2) as u16).to_le_bytes()).unwrap();
            }
            1 | 2 => {
                let count = 1 + (step >> 5);
                let buffers: Vec<Buffer> = (0..count)
                    .map(|_| {
                        let word = take(2);
                        (at, word as u32 & 0xfff, word >> 15 != 0)
                    })
                    .collect();
                match step & 0x10 {
                    0 => {
                        q.add(&buffers);
                    }
                    _ => kept.push(q.add_indirect(&nic.rig, &buffers).1),
                }
            }
            3 => {
                let (address, len, flags) =
                    (if step & 0x10 != 0 { at } else { take(8) }, take(4) as u32, take(2) as u16);
                if layout == PACKED {
                    q.add_raw(address, len, flags);
                } else {
                    let index = (step >> 5) as u16;
                    q.desc(index, address, len, flags, take(1) as u16);
                    q.offer(index);
                }
            }
            // Registers of the common configuration, but for those that end it all.
            4 => {
                let value = (take(4) as u32).to_le_bytes();
                let _ = nic.rig.device.write(0, take(1) & 0x3f, &value[..1 << (step >> 4 & 3).min(2)]);
            }
            // What the buffers hold: the header, or the packet behind it.
            5 => data.write(take(1), &take(8).to_le_bytes()).unwrap(),
            6 => q.take().map(drop).unwrap_or_default(),
            _ => {
                nic.rig.step();
            }
        }
    }
    for _ in 0..8 {
        nic.rig.step();
    }
    // Whatever it was, a reset mends it.
    nic.rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    assert_eq!(nic.rig.agree(VERSION_1 | layout), 11);
    (nic.rx, nic.tx) = (nic.rig.queue(0, ENTRIES), nic.rig.queue(1, ENTRIES));
    nic.rig.ok();
    let buffer = nic.buffer(128);
    let sent = nic.send(&[0; 12], &packet(60, 1));
    nic.rig.settle();
    assert_eq!(nic.rx.take().map(|taken| taken.1), Some(72));
    drop((buffer, sent, kept));
});
