//! Where every packet went that was sent from one port to another: it was received, or it was dropped and that was counted, somewhere.

use crate::Rig;
use crate::storage::PATIENCE;
use crate::virtio::{End, Pair};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::Instant;
use wholebar::mem::PoolCache;
use wholebar::net::{Burst, Faults, Faulty, Port, PortConfig, RxQueue, TxQueue};
use wholebar::virtio::Options;

/// Both sides of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Packets that were handed over to be sent.
    pub sent: u64,
    /// Copies of them that faults made.
    pub duplicated: u64,
    /// Packets that came.
    pub received: u64,
    /// Packets that did not, by cause: those that there were.
    pub dropped: BTreeMap<String, u64>,
}

impl Account {
    /// Whether each packet is where it should be.
    pub fn balances(&self) -> bool {
        self.sent + self.duplicated == self.received + self.dropped.values().sum::<u64>()
    }
}

/// Packets at once.
const BURST: usize = 32;
/// Buffers of a port.
const BUFFERS: u32 = 1024;
/// Bytes in front of a packet.
const HEADROOM: u16 = 64;

/// What models count as lost. What queues dropped has names that say so.
const LOST: [&str; 8] = [
    "wire_lost",
    "tx_malformed",
    "tx_no_carrier",
    "rx_no_buffer",
    "rx_too_long",
    "rx_filtered",
    "rx_malformed",
    "rx_no_driver",
];

/// Sends `count` packets of 64 bytes from one port to the other, which is wired to it, and tells where they went. With faults, those are done to
/// what is sent and, by other chances, to what is received. Without, packets have to come in their order. The receiver looks once `pause` packets
/// were sent since it last did: at 0 always; above what its ring holds, on a wire that doesn't wait, it is sure to be too late for some.
///
/// # Errors
/// Where that doesn't balance, a packet is not what was sent, or a buffer is missing in the end.
pub fn account(rigs: &[Rig; 2], options: &Options, faults: Option<Faults>, count: u64, pause: u64) -> Result<Account> {
    let Pair { mut a, mut b } = Pair::open_with(rigs, &PortConfig::default(), options, BUFFERS)?;
    let (mut tx, mut rx) = (a.tx.remove(0), b.rx.remove(0));
    let (mut faulty, mut copied): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    if let Some(faults) = faults {
        let around_tx = Faulty::new(tx, faults, a.pool.cache(8));
        let around_rx = Faulty::new(rx, Faults { seed: !faults.seed, ..faults }, b.pool.cache(8));
        faulty = vec![around_tx.counters().clone(), around_rx.counters().clone()];
        copied = faulty.clone();
        (tx, rx) = (Box::new(around_tx), Box::new(around_rx));
    }
    let mut run = Run {
        to: b.port.mac().0,
        in_order: faults.is_none(),
        made: 0,
        next: 0,
        account: Account::default(),
        caches: [a.pool.cache(BURST as u32), b.pool.cache(BURST as u32)],
        out: Burst::new(BURST),
        got: Burst::new(BURST),
        tx,
        rx,
    };
    let mut sent_then = 0;
    while run.account.sent < count {
        let before = (run.account.sent, run.account.received);
        run.send(count);
        if run.account.sent - sent_then >= pause {
            sent_then = run.account.sent;
            run.receive()?;
        }
        if before == (run.account.sent, run.account.received) {
            // With fewer cores than threads, the models must get to run.
            std::thread::yield_now();
        }
    }
    let told = |account: &mut Account| {
        account.duplicated = copied.iter().map(|c| c.duplicated.get()).sum();
        account.dropped = dropped([&a, &b], rigs);
        let by_faults = faulty.iter().map(|c| c.dropped.get() + c.abandoned.get()).sum();
        if by_faults > 0 {
            account.dropped.insert("faults".to_owned(), by_faults);
        }
        account.balances()
    };
    // What is under way arrives; and then nothing more does.
    let (began, mut quiet) = (Instant::now(), 0);
    while quiet < 1000 {
        let before = run.account.received;
        run.tx.reclaim();
        run.receive()?;
        let settled = run.account.received == before && run.tx.in_flight() == 0 && told(&mut run.account);
        quiet = if settled { quiet + 1 } else { 0 };
        ensure!(began.elapsed() < PATIENCE, "it does not balance, or never ends: {:?}", run.account);
        std::thread::yield_now();
    }
    let Run { account, caches, out, got, tx, rx, .. } = run;
    drop((caches, out, got, tx, rx));
    a.close()?;
    b.close()?;
    Ok(account)
}

/// Packets that ports and their models dropped, by cause.
fn dropped(ends: [&End; 2], rigs: &[Rig; 2]) -> BTreeMap<String, u64> {
    let mut dropped = BTreeMap::new();
    let mut add = |name: &str, n| {
        if n > 0 {
            *dropped.entry(name.to_owned()).or_default() += n;
        }
    };
    for end in ends {
        for counter in end.port.statistics().iter().filter(|c| c.name.starts_with("dropped_")) {
            add(&counter.name, counter.value);
        }
    }
    for port in rigs.iter().filter_map(|rig| rig.far.as_ref()) {
        for counter in port.statistics().iter().filter(|c| c.name.starts_with("dropped_")) {
            add(&counter.name, counter.value);
        }
    }
    for handle in rigs.iter().filter_map(|rig| rig.net.as_ref()) {
        handle.stats().all().filter(|(name, _)| LOST.contains(name)).for_each(|(name, n)| add(name, n));
    }
    dropped
}

struct Run {
    to: [u8; 6],
    in_order: bool,
    /// Packets made, which are their numbers.
    made: u64,
    /// The least number that the next one can have.
    next: u64,
    account: Account,
    caches: [PoolCache; 2],
    out: Burst,
    got: Burst,
    tx: Box<dyn TxQueue>,
    rx: Box<dyn RxQueue>,
}

impl Run {
    /// A burst; never more than `count` in all.
    fn send(&mut self, count: u64) {
        let room = (self.out.room() as u64).min(count - self.made) as usize;
        let had = self.out.len();
        if had == 0 && self.out.fill(&mut self.caches[0], room) {
            for packet in &mut self.out[had..] {
                packet.reserve(HEADROOM);
                packet.set_len(64);
                let bytes = packet.bytes_mut();
                bytes[..6].copy_from_slice(&self.to);
                bytes[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
                bytes[14..22].copy_from_slice(&self.made.to_le_bytes());
                self.made += 1;
            }
        }
        self.account.sent += self.tx.tx(&mut self.out) as u64;
    }

    fn receive(&mut self) -> Result<()> {
        self.account.received += self.rx.rx(&mut self.got) as u64;
        if self.in_order {
            for packet in self.got.iter() {
                let number = packet.bytes().get(14..22).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
                let (next, made) = (self.next, self.made);
                let good = number.is_some_and(|number| (next..made).contains(&number)) && packet.len() == 64;
                ensure!(good, "{:?} came, where {next} or later was to", packet.bytes());
                self.next = number.map_or(0, |number| number + 1);
            }
        }
        self.got.give_back_to(&mut self.caches[1]);
        Ok(())
    }
}
