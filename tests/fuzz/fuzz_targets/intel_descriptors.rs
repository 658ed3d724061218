//! What an 82576 or 82574 writes into its rings, and into registers, as bytes: no panic, no buffer that is lost or in two places.
#![no_main]

#[path = "../../../drivers/intel/tests/common/mod.rs"]
mod common;

use common::{BUFFERS, manual, rig_with, small};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use wholebar::intel::e1000e::I82574;
use wholebar::intel::igb::I82576;
use wholebar::intel::{Controller, Options};
use wholebar::mem::{L4, Offload};
use wholebar::net::{Burst, Port, QueueState};

fuzz_target!(|bytes: &[u8]| match bytes.split_first() {
    Some((first, rest)) if first & 1 != 0 => play::<I82574>(rest),
    _ => play::<I82576>(bytes),
});

fn play<F: Controller>(bytes: &[u8]) {
    // Nobody is late here.
    let rig = rig_with::<F>(small(), Options { stop_timeout: Duration::from_secs(60), ..manual() });
    let (mut rx, mut tx) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.tx(0).unwrap());
    let (rx_at, tx_at) = (rig.nic.rx(), rig.nic.tx());
    let (mut held, mut out) = (Burst::new(24), Burst::new(4));
    let mut bytes = bytes.iter().copied();
    let mut take = |n: usize| {
        let mut word = [0; 8];
        word.iter_mut().take(n).zip(&mut bytes).for_each(|(to, from)| *to = from);
        u64::from_le_bytes(word)
    };
    for _ in 0..200 {
        let step = take(1) as u32;
        match step & 7 {
            // The device writes words of a descriptor.
            0 | 1 => {
                let queue = if step & 1 == 0 { rx_at } else { tx_at };
                let [low, high] = rig.nic.words(&rig.device, queue, step >> 3 & 15);
                // Little of it, so that much of it makes sense.
                let high = if step >> 7 == 0 { high | take(1) } else { take(8) };
                let high = if queue == tx_at { high ^ (take(1) & 1) << 32 } else { high };
                rig.nic.write_back(&rig.device, queue, step >> 3 & 15, [low ^ take(1), high]);
            }
            2 => {
                rx.rx(&mut held);
                for packet in held.iter() {
                    let bytes: usize = packet.segments().map(|part| part.bytes().len()).sum();
                    assert!(bytes > 0 && bytes <= 1518, "a packet of {bytes} bytes");
                }
            }
            3 => held.give_back(),
            4 => {
                let Some(mut packet) = rig.pool.get_len(take(2) as u32 % 1100) else { continue };
                for _ in 0..step >> 3 & 3 {
                    if let Some(more) = rig.pool.get_len(take(1) as u32) {
                        packet.append(more);
                    }
                }
                if step >> 5 & 1 != 0 {
                    packet.set_vlan(Some(take(2) as u16));
                }
                if step >> 6 & 1 != 0 {
                    let (l2_len, l3_len) = (take(1) as u8, take(2) as u16);
                    let (l4_len, segment) = (take(1) as u8, take(1) as u16);
                    let offload =
                        Offload { l2_len, l3_len, l4_len, segment, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
                    packet.set_offload(Some(offload));
                }
                let _ = out.push(packet);
                tx.tx(&mut out);
                out.give_back();
            }
            5 => tx.reclaim(),
            6 => {
                // The link's and the counters' registers.
                rig.nic.set([8, 0xc0, 0x4010, 0x40a0][step as usize >> 3 & 3], take(4) as u32 & 0x7fff_ffff);
                let _ = rig.port.service();
            }
            _ => {
                if step >> 3 == 31 {
                    rig.port.request_reset();
                }
                let _ = rig.port.service();
            }
        }
    }
    held.give_back();
    // A reset that is under way comes to its end.
    while rig.port.service().is_ok_and(|more| more) || [rx.state(), tx.state()].contains(&QueueState::Resetting) {
        rx.rx(&mut held);
        tx.reclaim();
        held.give_back();
    }
    drop((rx, tx));
    let _ = rig.port.statistics();
    assert_eq!((rig.pool.available(), rig.port.quarantined()), (BUFFERS, 0), "a buffer was lost");
}
