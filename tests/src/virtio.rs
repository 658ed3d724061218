//! Bodies for virtio devices: what must hold on a model, over vfio-user, and on a hypervisor's.
//!
//! Those of block devices write to the device. Those of network devices take two ports that are wired to each other.

use crate::Rig;
use crate::offloads::datagram;
use crate::storage::{PATIENCE, ok, request, round_trips, run};
use anyhow::{Context, Result, bail, ensure};
use std::time::Instant;
use wholebar::block::{Data, Op, Reject, Status};
use wholebar::mem::{Arena, ArenaOptions, Buf, L4, Pool};
use wholebar::net::{Burst, Mac, Offloads, Port, PortConfig, Rss, RxQueue, TxQueue};
use wholebar::virtio::blk::{BlkConfig, Queue};
use wholebar::virtio::{Blk, Net, Options};
pub use wholebar_selftest::packets::{bytes, frame};

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    let product = Options::default();
    Options { timeout: PATIENCE, admin_timeout: PATIENCE, stall_timeout: PATIENCE, stop_timeout: PATIENCE, ..product }
}

fn disk(rig: &Rig, options: Options, queues: u16) -> Result<(Blk, Pool)> {
    let blk = Blk::open(rig.device.clone(), &BlkConfig { queues, ..BlkConfig::default() }, options)?;
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    blk.attach(arena.clone())?;
    let pool = Pool::new(arena, 24, 128 << 10, 4096)?;
    Ok((blk, pool))
}

/// Writes, reads back and compares, by every queue of two.
///
/// # Errors
/// What went wrong.
pub fn data_comes_back(rig: &Rig, options: Options) -> Result<()> {
    let (blk, pool) = disk(rig, options, 2)?;
    let mut queues = (0..blk.queues()).map(|_| blk.queue()).collect::<Result<Vec<_>, _>>()?;
    for queue in &mut queues {
        round_trips(queue, &pool, (1, blk.disk().block_size), 0..blk.disk().blocks)?;
        ensure!(queue.in_flight() == 0 && pool.available() == pool.capacity(), "a buffer is missing");
    }
    Ok(())
}

/// Every request that is not a plain read or write; and what cannot be done.
///
/// # Errors
/// What went wrong.
pub fn other_requests(rig: &Rig, options: Options) -> Result<()> {
    let (blk, pool) = disk(rig, options, 1)?;
    let (disk, mut queue) = (*blk.disk(), blk.queue()?);
    let block = disk.block_size;
    let buf = |len: u32| pool.get_len(len).context("no buffer left");
    let mut full = buf(8 * block)?;
    full.bytes_mut().fill(0xee);
    ok(run(&mut queue, request(1, Op::Write { lba: 16 }, Data::One(full)))?, "write")?;
    if disk.flush {
        ok(run(&mut queue, request(1, Op::Flush, Data::None))?, "flush")?;
    }
    ensure!(disk.max_write_zeroes >= 4 && disk.max_deallocate >= 4, "too little can be zeroed or discarded: {disk:?}");
    ok(run(&mut queue, request(1, Op::WriteZeroes { lba: 18, blocks: 2 }, Data::None))?, "write zeroes")?;
    ok(run(&mut queue, request(1, Op::Deallocate { lba: 22, blocks: 2 }, Data::None))?, "deallocate")?;
    // In pieces, of which some are shorter than a block.
    let pieces = [buf(block / 2)?, buf(block / 2)?, buf(5 * block)?];
    let data = ok(run(&mut queue, request(1, Op::Read { lba: 16 }, Data::Many(Box::new(pieces))))?, "read")?;
    let bytes: Vec<_> = data.bufs().iter().flat_map(|b| b.bytes().to_vec()).collect();
    let zeroed = 2 * block as usize..4 * block as usize;
    let good = bytes.iter().enumerate().all(|(i, b)| *b == if zeroed.contains(&i) { 0 } else { 0xee });
    ensure!(good && bytes.len() == 6 * block as usize, "zeroes are not where they were written");
    drop(data);
    for (what, op, data) in [
        ("a block past the end", Op::Read { lba: disk.blocks }, Data::One(buf(block)?)),
        ("part of a block", Op::Read { lba: 0 }, Data::One(buf(block / 2)?)),
        ("no data", Op::Read { lba: 0 }, Data::None),
    ] {
        match queue.submit(request(1, op, data)) {
            Err(rejected) => ensure!(matches!(rejected.why, Reject::Invalid(_)), "{what}: {}", rejected.why),
            Ok(()) => bail!("{what}: it was taken"),
        }
    }
    Ok(())
}

/// Requests that a reset aborts are done again, and nothing is lost.
///
/// # Errors
/// What went wrong.
pub fn requests_survive_resets(rig: &Rig, options: Options) -> Result<()> {
    const DEPTH: u64 = 16;
    let (blk, pool) = disk(rig, options, 1)?;
    let block = blk.disk().block_size;
    let mut queue = blk.queue()?;
    for round in 0..10 {
        let mut open: Vec<u64> = (0..DEPTH).collect();
        let (began, mut flying) = (Instant::now(), 0);
        let mut asked = false;
        while !open.is_empty() || flying > 0 {
            while let Some(tag) = open.pop() {
                let mut buf = pool.get_len(block).context("no buffer left")?;
                crate::storage::fill(&mut buf, tag, block, round);
                let mut req = request(1, Op::Write { lba: tag }, Data::One(buf));
                req.tag = tag;
                match queue.submit(req) {
                    Ok(()) => flying += 1,
                    Err(rejected) if matches!(rejected.why, Reject::Full | Reject::Resetting) => {
                        open.push(tag);
                        break;
                    }
                    Err(rejected) => bail!("refused: {}", rejected.why),
                }
            }
            queue.ring();
            if !std::mem::replace(&mut asked, true) {
                blk.request_reset();
            }
            queue.poll_each(8, |c| {
                flying -= 1;
                if c.status != Status::Ok {
                    open.push(c.tag);
                }
            });
            ensure!(began.elapsed() < PATIENCE, "no progress: the queue is {:?}", queue.state());
            std::thread::yield_now();
        }
    }
    check_blocks(&mut queue, &pool, block, DEPTH, 9)?;
    ensure!(pool.available() == pool.capacity() && blk.quarantined() == 0, "a buffer is missing");
    Ok(())
}

fn check_blocks(queue: &mut Queue, pool: &Pool, block: u32, count: u64, seed: u64) -> Result<()> {
    for lba in 0..count {
        let buf = pool.get_len(block).context("no buffer left")?;
        let data = ok(run(queue, request(1, Op::Read { lba }, Data::One(buf)))?, "read")?;
        let same = data.bufs().iter().all(|b| crate::storage::holds(b, lba, block, seed));
        ensure!(same, "block {lba} does not hold what was written");
    }
    Ok(())
}

/// One end of a wire, with one queue each way a core.
pub struct End {
    /// The port.
    pub port: Net,
    /// Its buffers.
    pub pool: Pool,
    /// Its queues that receive.
    pub rx: Vec<Box<dyn RxQueue>>,
    /// Its queues that send.
    pub tx: Vec<Box<dyn TxQueue>>,
}

impl End {
    /// Opens a port with all its queues, and a pool of `buffers`.
    ///
    /// # Errors
    /// The driver's own, where the device does not come up or an operation fails.
    pub fn open(rig: &Rig, config: &PortConfig, options: Options, buffers: u32) -> Result<Self> {
        let port = Net::open(rig.device.clone(), config, options)?;
        let arena = Arena::new(u64::from(buffers) * 2048 + (1 << 20), ArenaOptions::default())?;
        port.attach(arena.clone())?;
        let pool = Pool::new(arena, buffers, 2048, 64)?;
        let (rx, tx) = port.queues();
        let rx = (0..rx).map(|i| port.rx_queue(i, &pool)).collect::<Result<_, _>>()?;
        let tx = (0..tx).map(|i| port.tx_queue(i)).collect::<Result<_, _>>()?;
        Ok(Self { port, pool, rx, tx })
    }

    /// Waits for the link to be there, or not: what is sent before the other end runs is lost, as on any wire.
    ///
    /// # Errors
    /// Where it isn't for a long time.
    pub fn wait_for_link(&self, up: bool) -> Result<()> {
        let began = Instant::now();
        while self.port.link().up != up {
            ensure!(began.elapsed() < PATIENCE, "the link is {}", self.port.link());
            std::thread::yield_now();
        }
        Ok(())
    }

    /// A counter, summed over queues.
    pub fn count(&self, name: &str) -> u64 {
        self.port.statistics().iter().filter(|s| s.name == name).map(|s| s.value).sum()
    }

    /// What was counted, for messages.
    pub(crate) fn counted(&self) -> Vec<String> {
        let all = self.port.statistics().into_iter().filter(|s| s.value > 0);
        all.map(|s| format!("{} {} {}", s.queue, s.name, s.value)).collect()
    }

    /// A packet with these bytes, in as many buffers as it takes.
    ///
    /// # Errors
    /// Where no buffer is left.
    pub fn packet(&self, bytes: &[u8]) -> Result<Buf> {
        let mut first = self.pool.get().context("no buffer left")?;
        ensure!(first.reserve(64), "a buffer has room for its headroom");
        let (head, rest) = bytes.split_at(bytes.len().min(1900));
        first.copy_from(head);
        for part in rest.chunks(1900) {
            let mut next = self.pool.get().context("no buffer left")?;
            next.copy_from(part);
            first.append(next);
        }
        Ok(first)
    }

    /// Sends a packet by queue `queue`.
    ///
    /// # Errors
    /// Where there is no room for a long time.
    pub fn send(&mut self, queue: usize, packet: Buf) -> Result<()> {
        let (mut burst, began) = (Burst::new(1), Instant::now());
        let _ = burst.push(packet);
        while !burst.is_empty() {
            self.tx[queue].tx(&mut burst);
            ensure!(began.elapsed() < PATIENCE, "a packet cannot be sent: {:?}", self.tx[queue].state());
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The next packet, and the queue that it came by.
    ///
    /// # Errors
    /// Where none comes for a long time.
    pub fn receive(&mut self) -> Result<(usize, Buf)> {
        let (mut burst, began) = (Burst::new(1), Instant::now());
        loop {
            for (i, queue) in self.rx.iter_mut().enumerate() {
                if queue.rx(&mut burst) > 0 {
                    return Ok((i, burst.pop().context("a packet")?));
                }
            }
            ensure!(began.elapsed() < PATIENCE, "no packet comes: {:?}, {:?}", self.rx[0].state(), self.counted());
            std::thread::yield_now();
        }
    }

    /// Closes the port: every buffer has to be home.
    ///
    /// # Errors
    /// Where one isn't.
    pub fn close(self) -> Result<()> {
        let Self { port, pool, rx, tx } = self;
        drop((rx, tx));
        port.shutdown()?;
        ensure!(pool.available() == pool.capacity(), "{} of {} buffers are home", pool.available(), pool.capacity());
        Ok(())
    }
}

/// Two ports that are wired to each other.
pub struct Pair {
    /// One end.
    pub a: End,
    /// The other.
    pub b: End,
}

impl Pair {
    /// Opens both ends in the same way.
    ///
    /// # Errors
    /// As [`End::open`].
    pub fn open(rigs: &[Rig; 2], config: &PortConfig, options: &Options) -> Result<Self> {
        Self::open_with(rigs, config, options, 768)
    }

    /// The same with pools of `buffers`.
    ///
    /// # Errors
    /// As [`End::open`].
    pub fn open_with(rigs: &[Rig; 2], config: &PortConfig, options: &Options, buffers: u32) -> Result<Self> {
        let open = |rig| End::open(rig, config, options.clone(), buffers);
        Self::linked(open(&rigs[0])?, open(&rigs[1])?)
    }

    pub(crate) fn linked(a: End, b: End) -> Result<Self> {
        a.wait_for_link(true)?;
        b.wait_for_link(true)?;
        Ok(Self { a, b })
    }

    pub(crate) fn close(self) -> Result<()> {
        self.a.close()?;
        self.b.close()
    }
}

/// Packets of all sizes cross in both directions at once, in bursts of several sizes; each comes as it was sent, in order, and none is lost.
///
/// # Errors
/// What went wrong.
pub fn packets_cross(rigs: &[Rig; 2], options: Options, count: u64) -> Result<()> {
    let Pair { mut a, mut b } = Pair::open(rigs, &PortConfig::default(), &options)?;
    let to = [b.port.mac(), a.port.mac()];
    let (mut sent, mut came) = ([0u64; 2], [0u64; 2]);
    let (mut bursts, mut got) = ([Burst::new(32), Burst::new(32)], Burst::new(32));
    let size = |number: u64| 60 + (number * 131 % 1455) as usize;
    let began = Instant::now();
    while came != [count; 2] {
        for (i, end) in [&mut a, &mut b].into_iter().enumerate() {
            let burst = &mut bursts[i];
            for _ in 0..1 + sent[i] % 32 {
                // Not so far ahead that buffers run out.
                if burst.room() == 0 || sent[i] == count || sent[i] - came[i] > 128 {
                    break;
                }
                let packet = end.packet(&frame(to[i], size(sent[i]), sent[i]))?;
                let _ = burst.push(packet);
                sent[i] += 1;
            }
            end.tx[0].tx(burst);
        }
        for (i, end) in [&mut b, &mut a].into_iter().enumerate() {
            end.rx[0].rx(&mut got);
            for packet in got.take(32) {
                let expected = frame(to[i], size(came[i]), came[i]);
                ensure!(
                    bytes(&packet) == expected,
                    "packet {} of direction {i} came changed, or out of order",
                    came[i]
                );
                came[i] += 1;
            }
        }
        let flying = || [&a, &b].map(|end| end.tx[0].in_flight());
        let told = || format!("{:?} in flight, {:?} and {:?}", flying(), a.counted(), b.counted());
        ensure!(began.elapsed() < PATIENCE, "{came:?} of {count} packets came, {sent:?} were sent, {}", told());
        // With fewer cores than threads, the models must get to run.
        std::thread::yield_now();
    }
    for end in [&a, &b] {
        let (packets, all) = (end.count("packets"), 2 * count);
        ensure!(packets == all, "{packets} packets counted at {}, and there were {all}", end.port.name());
    }
    Pair { a, b }.close()
}

/// Packets larger than a buffer go in several, and come in several.
///
/// # Errors
/// What went wrong.
pub fn jumbo_frames_cross(rigs: &[Rig; 2], options: Options) -> Result<()> {
    let offloads = Offloads { scatter: true, gather: true, ..Offloads::NONE };
    let config = PortConfig { mtu: Some(9000), offloads, ..PortConfig::default() };
    let Pair { mut a, mut b } = Pair::open(rigs, &config, &options)?;
    ensure!(offloads.without(a.port.granted()) == Offloads::NONE, "granted: {}", a.port.granted());
    let to = b.port.mac();
    for (number, len) in [9014, 60, 5000, 1932, 1933, 3864, 9014].into_iter().enumerate() {
        let wire = frame(to, len, number as u64);
        let packet = a.packet(&wire)?;
        a.send(0, packet)?;
        let (_, packet) = b.receive()?;
        ensure!(bytes(&packet) == wire, "{len} bytes came changed");
        ensure!(len < 2048 || packet.next().is_some(), "{len} bytes in one buffer");
    }
    let packet = a.packet(&frame(to, 9019, 0))?;
    a.send(0, packet)?;
    ensure!(a.count("dropped_length") == 1, "a frame beyond the MTU is not sent");
    Pair { a, b }.close()
}

/// Flows come by the queue that RSS says, with the hash that it is by; and by another once the table changes.
///
/// # Errors
/// What went wrong.
pub fn flows_are_spread(rigs: &[Rig; 2], options: Options) -> Result<()> {
    let rss = Rss::evenly(2, 64);
    let offloads = Offloads { rss_hash: true, ..Offloads::NONE };
    let config = PortConfig { rx_queues: 2, tx_queues: 2, rss: Some(rss.clone()), offloads, ..PortConfig::default() };
    let Pair { mut a, mut b } = Pair::open(rigs, &config, &options)?;
    ensure!(b.port.granted().rss_hash, "granted: {}", b.port.granted());
    let to = b.port.mac();
    let mut seen = [0; 2];
    for flow in 0..64u16 {
        let (wire, offload) = datagram(to, flow, L4::Udp, false, &[5; 30]);
        ensure!(offload.l4_start() == 34, "UDP begins behind IPv4");
        let packet = a.packet(&wire)?;
        a.send(usize::from(flow % 2), packet)?;
        let (queue, packet) = b.receive()?;
        let input = [&wire[26..34], &wire[34..38]].concat();
        let hash = rss.hash(&input);
        ensure!(packet.hash() == Some(hash), "flow {flow}: {:x?}, and it is {hash:x}", packet.hash());
        let expected = rss.table[hash as usize % rss.table.len()];
        ensure!(queue == usize::from(expected), "flow {flow} came by queue {queue}, not {expected}");
        seen[queue] += 1;
    }
    ensure!(seen.iter().all(|n| *n > 8), "flows are spread {seen:?}");
    b.port.set_rss(&Rss { table: vec![1], ..rss })?;
    for flow in 0..8 {
        let packet = a.packet(&datagram(to, flow, L4::Udp, false, &[5; 30]).0)?;
        a.send(0, packet)?;
        ensure!(b.receive()?.0 == 1, "flow {flow} came by the queue that is not in the table");
    }
    Pair { a, b }.close()
}

/// What is not for a port is not received, unless it is promiscuous, or the address is one of its filters; so with VLANs.
///
/// # Errors
/// What went wrong.
pub fn filters_filter(rigs: &[Rig; 2], options: Options) -> Result<()> {
    let offloads = Offloads { vlan_filter: true, ..Offloads::NONE };
    let Pair { mut a, mut b } = Pair::open(rigs, &PortConfig { offloads, ..PortConfig::default() }, &options)?;
    let (own, other, group) = (b.port.mac(), Mac([2, 0, 0, 0, 9, 9]), Mac([1, 0, 0x5e, 1, 2, 3]));
    let mut number = 0;
    // A packet to all follows, so that one that isn't received is not waited for.
    let mut arrives = |a: &mut End, b: &mut End, to: Mac, vlan: Option<u16>| -> Result<bool> {
        number += 2;
        let mut wire = frame(to, 100, number);
        if let Some(vlan) = vlan {
            wire.splice(12..12, [0x81, 0, (vlan >> 8) as u8, vlan as u8]);
        }
        let marker = frame(Mac::BROADCAST, 100, number + 1);
        for wire in [&wire, &marker] {
            let packet = a.packet(wire)?;
            a.send(0, packet)?;
        }
        let mut came = false;
        loop {
            let got = bytes(&b.receive()?.1);
            if got == marker {
                return Ok(came);
            }
            came |= got == wire;
        }
    };
    for (what, to, expected) in [("own", own, true), ("another's", other, false), ("a group's", group, false)] {
        ensure!(arrives(&mut a, &mut b, to, None)? == expected, "{what} address");
    }
    b.port.set_filters(&[other, group])?;
    ensure!(arrives(&mut a, &mut b, other, None)? && arrives(&mut a, &mut b, group, None)?, "filters");
    b.port.set_filters(&[])?;
    ensure!(!arrives(&mut a, &mut b, other, None)? && !arrives(&mut a, &mut b, group, None)?, "no filters");
    b.port.set_all_multicast(true)?;
    ensure!(!arrives(&mut a, &mut b, other, None)? && arrives(&mut a, &mut b, group, None)?, "all multicast");
    b.port.set_promiscuous(true)?;
    ensure!(arrives(&mut a, &mut b, other, None)?, "promiscuous");
    b.port.set_promiscuous(false)?;
    b.port.set_mac(other)?;
    ensure!(b.port.mac() == other && arrives(&mut a, &mut b, other, None)?, "a new address");
    ensure!(!arrives(&mut a, &mut b, own, None)?, "the old address");
    // QEMU 10.0 begins with all of them.
    for vlan in [7, 8] {
        b.port.set_vlan(vlan, false)?;
    }
    ensure!(!arrives(&mut a, &mut b, other, Some(7))?, "a VLAN that was not asked for");
    b.port.set_vlan(7, true)?;
    ensure!(arrives(&mut a, &mut b, other, Some(7))? && !arrives(&mut a, &mut b, other, Some(8))?, "a VLAN");
    // All of that is told again after a reset, for which nobody polls: dropped queues take part by themselves.
    let End { port, pool, rx, tx } = b;
    drop((rx, tx));
    port.reset()?;
    let (rx, tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
    let mut b = End { port, pool, rx: vec![rx], tx: vec![tx] };
    // The other end sees the link come back a little later.
    let (began, mut got) = (Instant::now(), Burst::new(1));
    while b.rx[0].rx(&mut got) == 0 {
        let packet = a.packet(&frame(Mac::BROADCAST, 60, 0))?;
        a.send(0, packet)?;
        ensure!(began.elapsed() < PATIENCE, "no packet comes after a reset");
        std::thread::yield_now();
    }
    drop(got);
    ensure!(arrives(&mut a, &mut b, other, Some(7))? && !arrives(&mut a, &mut b, own, None)?, "after a reset");
    Pair { a, b }.close()
}

/// Packets go on after resets of either end; what was lost is counted, or was in the other's hands.
///
/// # Errors
/// What went wrong.
pub fn packets_go_on_after_resets(rigs: &[Rig; 2], options: Options, resets: u64) -> Result<()> {
    let Pair { mut a, mut b } = Pair::open(rigs, &PortConfig::default(), &options)?;
    let to = b.port.mac();
    let (mut out, mut got, mut number) = (Burst::new(16), Burst::new(16), 0);
    let mut reset = 0;
    // And further ones, until there is a packet that was sent and did not come.
    while reset < resets || (a.count("packets") == b.count("packets") && reset < 100 * resets) {
        reset += 1;
        let (end, began) = (if reset % 2 == 0 { &a } else { &b }, Instant::now());
        let before = end.count("resets");
        end.port.request_reset();
        let mut after = 0;
        // Until it is over, and packets come again.
        while after < 20 {
            while out.room() > 0
                && let Ok(packet) = a.packet(&frame(to, 200, number))
            {
                number += 1;
                let _ = out.push(packet);
            }
            a.tx[0].tx(&mut out);
            a.tx[0].reclaim();
            a.rx[0].rx(&mut got);
            b.tx[0].reclaim();
            b.rx[0].rx(&mut got);
            let over = if reset % 2 == 0 { a.count("resets") } else { b.count("resets") } > before;
            after += if over { got.len() } else { 0 };
            for packet in got.take(16) {
                ensure!(packet.len() == 200, "a packet of {} bytes", packet.len());
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "no packets after reset {reset}: {:?}, {} in flight, {:?}, {:?}",
                b.rx[0].state(),
                a.tx[0].in_flight(),
                a.counted(),
                b.counted()
            );
            std::thread::yield_now();
        }
    }
    out.give_back();
    let (sent, came) = (a.count("packets"), b.count("packets"));
    ensure!(sent > came && came > 0, "{sent} were sent, {came} came");
    Pair { a, b }.close()
}
