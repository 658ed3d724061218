//! What a virtio device writes into its rings, as bytes: no panic, no packet out of nothing, no request that ends twice, no buffer that is lost.
//! Split and packed rings, used in any order or in order; receive, transmit and control queues, and a block device's.
#![no_main]

#[path = "../../../drivers/virtio/tests/device/mod.rs"]
mod device;

use device::{Rig, Spec, State, VERSION_1, by_hand, rig};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;
use wholebar::block::{Data, Op, QueueState, Request};
use wholebar::mem::{Arena, ArenaOptions, Iova, L4, Offload, Pool};
use wholebar::model::Host;
use wholebar::net::{Burst, Mac, Offloads, Port, PortConfig};
use wholebar::virtio::blk::BlkConfig;
use wholebar::virtio::{Blk, Error, Net, Options, Service};

const EVENT_IDX: u64 = 1 << 29;
const PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
/// CSUM, GUEST_CSUM, MAC, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF.
const NET: u64 = 1 | 1 << 1 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15;
/// CTRL_VQ, CTRL_RX, CTRL_VLAN, CTRL_RX_EXTRA, CTRL_MAC_ADDR.
const CONTROL: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23;
/// FLUSH, DISCARD, WRITE_ZEROES.
const BLK: u64 = 1 << 9 | 1 << 13 | 1 << 14;

const ENTRIES: u16 = 16;
const BUFFERS: u32 = 64;
const SIZE: u32 = 1024;
const STEPS: usize = 200;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut take = Take(rest);
    let chosen = |bit: u8, feature: u64| if first >> bit & 1 != 0 { feature } else { 0 };
    let features = VERSION_1 | chosen(0, PACKED) | chosen(1, IN_ORDER) | chosen(2, EVENT_IDX);
    match first >> 5 {
        0..4 => packets(features | NET, &mut take),
        // Its control queue is a split one, and answers from a thread: slow.
        4 => packets(features & !PACKED | NET | CONTROL, &mut take),
        _ => blocks(features | BLK, &mut take),
    }
});

/// The bytes, a number at a time; zeros when there are no more.
struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let mut word = [0; 8];
        let (now, later) = self.0.split_at(bytes.min(self.0.len()));
        word[..now.len()].copy_from_slice(now);
        self.0 = later;
        u64::from_le_bytes(word)
    }

    /// A step, while there are bytes.
    fn step(&mut self) -> Option<u32> {
        (!self.0.is_empty()).then(|| self.number(1) as u32)
    }
}

fn options() -> Options {
    // Nobody is late here, but for a device that does not answer commands.
    let late = Duration::from_secs(60);
    let admin_timeout = Duration::from_millis(30);
    Options { service: Service::Manual, timeout: late, stop_timeout: late, admin_timeout, ..Options::default() }
}

fn packets(features: u64, take: &mut Take<'_>) {
    let control = features & CONTROL != 0;
    let spec = Spec { features, control: control.then_some(2), ..Spec::default() };
    let rig = if control { rig(spec) } else { by_hand(spec) };
    let offloads = Offloads { lro: true, ..Offloads::ALL };
    let entries = Some(ENTRIES);
    let config = PortConfig { rx_descriptors: entries, tx_descriptors: entries, offloads, ..PortConfig::default() };
    let port = match Net::open(rig.device.clone(), &config, options()) {
        // Its thread had no core for so long.
        Err(Error::Unanswered { .. }) => return,
        port => port.unwrap(),
    };
    let pool = pool(|arena| port.attach(arena).unwrap());
    let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
    let (mut held, mut out) = (Burst::new(24), Burst::new(4));
    let mut places = [Place::default(); 2];
    for _ in 0..STEPS {
        let Some(step) = take.step() else { break };
        let arg = step >> 3;
        match step & 7 {
            0 => {
                let Some(mut packet) = pool.get_len(take.number(2) as u32 % SIZE) else { continue };
                if arg & 8 != 0 {
                    packet.reserve(32);
                }
                for _ in 0..arg & 3 {
                    if let Some(more) = pool.get_len(take.number(1) as u32) {
                        packet.append(more);
                    }
                }
                if arg & 4 != 0 {
                    let (l2_len, l3_len, segment) =
                        (take.number(1) as u8, take.number(2) as u16, take.number(1) as u16);
                    let offload = Offload { l2_len, l3_len, segment, l4: Some(L4::Tcp), ..Offload::default() };
                    packet.set_offload(Some(offload));
                }
                let _ = out.push(packet);
                tx.tx(&mut out);
                out.give_back();
            }
            1 => {
                rx.rx(&mut held);
                for packet in held.iter() {
                    // No more than all buffers of the ring.
                    assert!(packet.packet_len() <= u64::from(ENTRIES) * u64::from(SIZE));
                    assert!(packet.segments().all(|part| part.bytes().len() <= SIZE as usize));
                }
                if arg & 1 != 0 {
                    held.give_back();
                }
            }
            2 => tx.reclaim(),
            3 | 4 => {
                let queue = (arg & 1) as usize;
                // A header of 12 bytes, for packets that are received: nothing to be said, or anything.
                let header: Vec<u8> = match arg >> 1 & 1 {
                    0 => [[0; 10].as_slice(), &[1, 0]].concat(),
                    _ => (0..12).map(|i| if i == 11 { 0 } else { take.number(1) as u8 }).collect(),
                };
                use_next(&rig, &mut places, queue, arg >> 2, &header, take);
            }
            5 => scribble(&rig, (arg & 1) as usize, take),
            6 => {
                if arg == 31 {
                    port.request_reset();
                    places = Default::default();
                }
                let _ = port.service();
            }
            // Who calls while a reset waits for queues has to poll them on another thread.
            _ if control && port.service().is_ok_and(|more| !more) => {
                {
                    let mut state = rig.state();
                    state.answer = (arg >> 3) as u8 & 1;
                    if arg & 7 == 7 {
                        let (id, len, by) = (take.number(1) as u32, take.number(1) as u32, take.number(1) as u16);
                        state.lie = Some((id, len, by));
                    }
                }
                let _ = match arg & 3 {
                    0 => port.set_promiscuous(arg & 16 != 0),
                    1 => port.set_mac(Mac([2, 0, 0, 0, 0, arg as u8])),
                    2 => port.set_vlan(take.number(2) as u16, arg & 16 != 0),
                    _ => port.set_filters(&[Mac([2; 6])]),
                };
            }
            _ => {
                let _ = port.link();
            }
        }
        if rx.state() != QueueState::Running {
            places = Default::default();
        }
    }
    held.give_back();
    // A reset that is under way comes to its end.
    while port.service().is_ok_and(|more| more) || [rx.state(), tx.state()].contains(&QueueState::Resetting) {
        rx.rx(&mut held);
        tx.reclaim();
        held.give_back();
    }
    drop((rx, tx, held, out));
    let quarantined = port.quarantined();
    let _ = port.shutdown();
    assert_eq!(u64::from(pool.available()) + quarantined, u64::from(BUFFERS), "a buffer was lost");
}

fn blocks(features: u64, take: &mut Take<'_>) {
    let mut config = vec![0; 60];
    // Capacity, and the limits of discarding and of writing zeroes.
    for (at, value) in [(0, 1000), (36, 64), (40, 1), (44, 8), (48, 128), (52, 1u32)] {
        config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let rig = by_hand(Spec { id: 0x1042, features, config, queues: 1, ..Spec::default() });
    let config = BlkConfig { descriptors: Some(ENTRIES), ..BlkConfig::default() };
    let blk = Blk::open(rig.device.clone(), &config, options()).unwrap();
    let pool = pool(|arena| blk.attach(arena).unwrap());
    let mut queue = blk.queue().unwrap();
    let (mut open, mut tag) = (BTreeSet::new(), 0);
    let mut places = [Place::default(); 1];
    for _ in 0..STEPS {
        let Some(step) = take.step() else { break };
        let arg = step >> 3;
        match step & 7 {
            0 | 1 => {
                let lba = take.number(2) % 1100;
                let op = match arg & 7 {
                    0 => Op::Flush,
                    1 => Op::Write { lba },
                    2 => Op::WriteZeroes { lba, blocks: arg >> 3 },
                    _ => Op::Read { lba },
                };
                let wants = matches!(op, Op::Write { .. } | Op::Read { .. });
                let mut data = Data::None;
                if wants && let Some(buf) = pool.get_len(512 << (arg >> 3 & 1)) {
                    data = Data::One(buf);
                }
                if queue.submit(Request { tag, nsid: 1, op, data, deadline: None }).is_ok() {
                    open.insert(tag);
                }
                tag += 1;
            }
            2 => queue.ring(),
            3 | 4 => use_next(&rig, &mut places, 0, arg >> 1, &[], take),
            5 => scribble(&rig, 0, take),
            6 => {
                if arg == 31 {
                    blk.request_reset();
                }
                let _ = blk.service();
            }
            _ => {
                let most = 1 + arg as usize;
                queue.poll_each(most, |done| assert!(open.remove(&done.tag), "request {} ended twice", done.tag));
            }
        }
        if queue.state() != QueueState::Running {
            places = Default::default();
        }
    }
    while blk.service().is_ok_and(|more| more) || queue.state() == QueueState::Resetting {
        queue.poll_each(64, |done| assert!(open.remove(&done.tag), "request {} ended twice", done.tag));
    }
    assert!(queue.in_flight() <= open.len(), "{} in flight, {} open", queue.in_flight(), open.len());
    drop(queue);
    let quarantined = blk.quarantined();
    let _ = blk.shutdown();
    assert_eq!(u64::from(pool.available()) + quarantined, u64::from(BUFFERS), "a buffer was lost");
}

fn pool(attach: impl Fn(std::sync::Arc<Arena>)) -> Pool {
    let arena = Arena::new(1 << 17, ArenaOptions::default()).unwrap();
    attach(arena.clone());
    Pool::new(arena, BUFFERS, SIZE, 64).unwrap()
}

/// Where the device is in a packed ring: the next descriptor, and how often it went round, as a bit.
#[derive(Clone, Copy)]
struct Place(u16, bool);

impl Default for Place {
    fn default() -> Self {
        Self(0, true)
    }
}

/// Uses the next buffer of a queue, with `header` in it, if it can be written; `how` it does so is true, or one of three lies.
fn use_next<const N: usize>(
    rig: &Rig,
    places: &mut [Place; N],
    queue: usize,
    how: u32,
    header: &[u8],
    take: &mut Take<'_>,
) {
    let packed = rig.state().features & PACKED != 0;
    let (len, lie) = (take.number(2) as u32 % (SIZE + 12), if how & 3 == 0 { 0 } else { take.number(2) as u32 });
    let (header, place) = (header.to_vec(), places[queue]);
    let used = rig.run(move |state, host| {
        let (id, address, room, count) =
            if packed { next_packed(state, host, queue, place)? } else { next_split(state, host, queue)? };
        if let Some(memory) = host.dma(Iova(address), header.len() as u64) {
            memory.write(0, &header);
        }
        let id = if how & 3 == 1 { id ^ lie } else { id };
        let len = if how & 3 == 2 { lie } else { len.min(room) };
        if !packed {
            state.use_buffer(host, queue, id, len, if how & 3 == 3 { lie as u16 } else { 1 });
            return None;
        }
        // Used: both flags as the wrap counter (2.8.1).
        let flags = if place.1 { 0x8080 } else { 0 } ^ if how & 3 == 3 { lie as u16 } else { 0 };
        let word = u64::from(len) | u64::from(id as u16) << 32 | u64::from(flags) << 48;
        let entry = host.dma(Iova(state.queues[queue].areas[0] + 16 * u64::from(place.0)), 16)?;
        entry.u64(8)?.store(word.to_le(), Ordering::Release);
        Some(count)
    });
    if let Some(count) = used {
        let size = rig.state().queues[queue].size.max(1);
        let Place(at, wrap) = place;
        let next = at + count;
        places[queue] = if next >= size { Place(next - size, !wrap) } else { Place(next, wrap) };
    }
}

/// The next buffer that is available: identifier, address and length of its first piece, descriptors.
fn next_split(state: &mut State, host: &Host<'_>, queue: usize) -> Option<(u32, u64, u32, u16)> {
    let q = state.queues.get_mut(queue).filter(|q| q.enabled)?;
    let driver = host.dma(Iova(q.areas[1]), 6 + 2 * u64::from(q.size))?;
    let index = u16::from_le(driver.slice::<AtomicU16>(2, 1)?[0].load(Ordering::Acquire));
    if q.seen == index {
        return None;
    }
    let head = u16::from_le(
        driver.slice::<AtomicU16>(4, q.size.into())?[usize::from(q.seen % q.size)].load(Ordering::Relaxed),
    );
    q.seen = q.seen.wrapping_add(1);
    let table = host.dma(Iova(q.areas[0]), 16 * u64::from(q.size))?;
    let entry = &table.slice::<[AtomicU64; 2]>(0, q.size.into())?[usize::from(head % q.size)];
    let [address, rest] = [0, 1].map(|i| u64::from_le(entry[i].load(Ordering::Relaxed)));
    Some((head.into(), address, rest as u32, 1))
}

fn next_packed(state: &mut State, host: &Host<'_>, queue: usize, place: Place) -> Option<(u32, u64, u32, u16)> {
    let q = state.queues.get(queue).filter(|q| q.enabled)?;
    let table = host.dma(Iova(q.areas[0]), 16 * u64::from(q.size))?;
    let table = table.slice::<[AtomicU64; 2]>(0, q.size.into())?;
    let word = |at: u16, i: usize| u64::from_le(table[usize::from(at % q.size)][i].load(Ordering::Acquire));
    let rest = word(place.0, 1);
    // Available: one flag as the wrap counter, the other not (2.8.1).
    if (rest >> 55 & 1 != 0) != place.1 || (rest >> 63 & 1 != 0) == place.1 {
        return None;
    }
    let address = word(place.0, 0);
    let count = (0..q.size).find(|i| word(place.0 + i, 1) >> 48 & 1 == 0)? + 1;
    let id = word(place.0 + count - 1, 1) >> 32 & 0xffff;
    Some((id as u32, address, rest as u32, count))
}

/// Writes anywhere in a queue's areas.
fn scribble(rig: &Rig, queue: usize, take: &mut Take<'_>) {
    let (at, value, bytes) = (take.number(2), take.number(2), 1 + (take.number(1) & 1));
    rig.run(move |state, host| {
        let q = state.queues[queue];
        let area = q.areas[at as usize % 3];
        if q.enabled
            && let Some(memory) = host.dma(Iova(area + (at >> 2) % (16 * u64::from(q.size))), bytes)
        {
            memory.write(0, &value.to_le_bytes()[..bytes as usize]);
        }
    });
}
