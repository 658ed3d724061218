//! Virtqueues as a device sees them: what the driver made available, taken chain by chain, and given back as used.
//!
//! Both layouts, split (2.7) and packed (2.8), stand behind [`Pass`]: one pass over a queue, in which its memory is looked up once. What the driver
//! wrote is input: what breaks the specification is [`Broken`], after which a device needs a reset. This file does *not* know what buffers mean.
//!
//! **Order**: the Acquire load of the available index (split) or of a descriptor's flags (packed) pairs with the driver's Release store of it: what it
//! wrote before is seen after. The used index, or a used descriptor's flags, are stored with Release, and pair with the driver's Acquire load.
//!
//! **Memory that is not there**: a device that looks without being notified may look while its queue is not mapped: firmware and hypervisors
//! remap memory under queues that are idle. Such a queue waits. It is broken where the driver notified meanwhile, and it still is not there.

mod ahead;
mod faulty;
mod packed;
mod split;

use super::bits::{desc, feature};
use crate::faults::{Fault, Faults};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::mem::Iova;
use wholebar_core::model::{Denied, Dma, Host, Pages, ReadOnly};
use wholebar_core::vhost_user::QueueRecord;

pub(super) use ahead::Ahead;
pub(super) use faulty::{Faulty, KINDS};

/// How long a queue that the driver notified of may still not be there: longer than any hypervisor takes to remap memory.
const PATIENCE: Duration = Duration::from_millis(100);
/// What a notification address holds while there is no notification: no queue's index.
const SILENT: u16 = u16::MAX;

/// Why a queue can't be gone on with.
#[derive(Debug)]
pub(super) enum Broken {
    /// What the specification forbids.
    Rule(&'static str),
    /// Memory that the device may not use: what was to be there, and what of it was refused.
    Memory(Box<(&'static str, Denied)>),
}

impl Broken {
    #[cold]
    pub(super) fn memory(host: &Host<'_>, what: &'static str, iova: u64, len: u64, write: bool) -> Self {
        Self::Memory(Box::new((what, host.denied(Iova(iova), len, write))))
    }
}

impl From<&'static str> for Broken {
    fn from(rule: &'static str) -> Self {
        Self::Rule(rule)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => f.write_str(rule),
            Self::Memory(memory) => write!(f, "{}: {}", memory.0, memory.1),
        }
    }
}

/// A descriptor that the device only reads, in the words it is read by: the address; length, flags and id.
type Desc = [ReadOnly<AtomicU64>; 2];

/// A queue as the driver configured it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Setup {
    pub(super) size: u16,
    /// Descriptor, driver and device area.
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    /// The vector to signal, if any.
    pub(super) vector: Option<u16>,
    /// Where it begins: split, an index of the available ring; packed, a place with its wrap counter in bit 15. `None`: at the beginning.
    pub(super) base: Option<u16>,
}

/// What was negotiated, for queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    packed: bool,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
    /// Whether the device asks to be notified.
    notify: bool,
    /// The longest chain in an indirect table: the device's largest queue, whatever the size of this one. A disk's largest request is said before
    /// queues have a size, and Linux keeps to that alone.
    longest: u16,
}

impl Rules {
    pub(super) fn new(features: u64, notify: bool, longest: u16) -> Self {
        let has = |bit| features & bit != 0;
        Self {
            packed: has(feature::PACKED),
            indirect: has(feature::INDIRECT),
            event_idx: has(feature::EVENT_IDX),
            in_order: has(feature::IN_ORDER),
            notify,
            longest,
        }
    }
}

/// A queue that runs.
pub(super) struct Queue {
    pub(super) vector: Option<u16>,
    pub(super) ring: Ring,
    /// Scratch: the chain at hand, and those taken ahead.
    pub(super) ahead: Ahead,
    pub(super) bell: Bell,
}

/// One of the two layouts.
pub(super) enum Ring {
    Split(split::Split),
    Packed(packed::Packed),
}

impl Queue {
    /// A queue as it starts (and starts again, after a reset of it).
    pub(super) fn new(setup: &Setup, rules: Rules, bell: Bell) -> Result<Self, &'static str> {
        let aligned = |address: u64, to: u64| address.is_multiple_of(to);
        let ring = if rules.packed {
            if !(1..=32768).contains(&setup.size) {
                return Err("a packed queue's size is not 1 to 32768");
            }
            // 2.8.10.1: the alignment of the three areas.
            if !aligned(setup.desc, 16) || !aligned(setup.driver, 4) || !aligned(setup.device, 4) {
                return Err("a packed queue's areas are not aligned");
            }
            if setup.base.is_some_and(|base| base & 0x7fff >= setup.size) {
                return Err("a packed queue begins outside of itself");
            }
            Ring::Packed(packed::Packed::new(setup, rules))
        } else {
            if !setup.size.is_power_of_two() || setup.size > 32768 {
                return Err("a split queue's size is no power of two");
            }
            // 2.7: the alignment of the three areas.
            if !aligned(setup.desc, 16) || !aligned(setup.driver, 2) || !aligned(setup.device, 4) {
                return Err("a split queue's areas are not aligned");
            }
            Ring::Split(split::Split::new(setup, rules))
        };
        Ok(Self { vector: setup.vector, ring, ahead: Ahead::default(), bell })
    }

    /// Where a queue would begin that goes on after what this one used, as [`Setup::base`] has it.
    pub(super) fn base(&self) -> u16 {
        match &self.ring {
            Ring::Split(ring) => ring.base(),
            Ring::Packed(ring) => ring.base(),
        }
    }

    /// Records what a packed ring uses; a split one needs none.
    pub(super) fn set_record(&mut self, record: QueueRecord) {
        if let Ring::Packed(ring) = &mut self.ring {
            ring.set_record(record);
        }
    }

    /// Says whether to be notified, from here on; the next pass tells the driver.
    pub(super) fn set_notify(&mut self, notify: bool) {
        match &mut self.ring {
            Ring::Split(ring) => ring.set_notify(notify),
            Ring::Packed(ring) => ring.set_notify(notify),
        }
    }

    /// Whether nothing is available. Where that can't be seen, a pass will tell why.
    #[inline]
    pub(super) fn is_idle(&self, host: &Host<'_>) -> bool {
        match &self.ring {
            Ring::Split(ring) => ring.is_idle(host),
            Ring::Packed(ring) => ring.is_idle(host),
        }
    }

    /// Whether nothing is available, whatever the driver was told.
    pub(super) fn is_empty(&self, host: &Host<'_>) -> bool {
        match &self.ring {
            Ring::Split(ring) => ring.is_empty(host),
            Ring::Packed(ring) => ring.is_empty(host),
        }
    }
}

/// Where a driver notifies of a queue: looked at only while the queue's memory is not there.
pub(super) struct Bell {
    notify: Arc<Pages>,
    offset: u64,
    index: u16,
    away: Away,
}

/// Whether a queue's memory was there when it was looked at.
enum Away {
    No,
    /// No, and no notification came since.
    Idle,
    /// No, though the driver notified.
    Notified(Instant),
}

impl Bell {
    /// For a queue that begins: what its address holds is another's.
    pub(super) fn new(notify: Arc<Pages>, offset: u64, index: u16) -> Self {
        let bell = Self { notify, offset, index, away: Away::Idle };
        bell.clear();
        bell
    }

    fn clear(&self) {
        if let Some(word) = self.notify.u16(self.offset) {
            word.store(SILENT, Ordering::Relaxed);
        }
    }

    fn rung(&self) -> bool {
        let word = self.notify.u16(self.offset);
        word.is_some_and(|word| u16::from_le(word.load(Ordering::Relaxed)) == self.index)
    }

    /// What came of a look at the queue: `None` where it is not there, and may be so.
    #[inline(always)]
    pub(super) fn there<T>(&mut self, polled: Result<T, Broken>) -> Result<Option<T>, Broken> {
        match polled {
            Ok(pass) => {
                self.away = Away::No;
                Ok(Some(pass))
            }
            Err(why) => self.not_there(why).map(|()| None),
        }
    }

    #[cold]
    fn not_there(&mut self, why: Broken) -> Result<(), Broken> {
        if let Broken::Rule(_) = why {
            return Err(why);
        }
        match self.away {
            Away::No => {
                // Of what is notified from here on nothing was served yet.
                self.clear();
                tracing::debug!(queue = self.index, %why, "a queue is not there: it waits");
                self.away = Away::Idle;
            }
            Away::Idle if self.rung() => self.away = Away::Notified(Instant::now()),
            Away::Notified(since) if since.elapsed() > PATIENCE => return Err(why),
            Away::Idle | Away::Notified(_) => {}
        }
        Ok(())
    }
}

/// A device's faults, and the one that ended it.
#[derive(Default)]
pub(super) struct FaultState {
    pub(super) faults: Option<Box<Faults>>,
    pub(super) end: Option<Fault>,
}

/// Does something with a pass over a queue, whichever its layout: what that returns, and whether the driver wants an interrupt. `None` where the
/// queue's memory is not there now.
macro_rules! poll {
    ($queue:expr, $host:expr, $fault_state:expr, |$pass:ident, $ahead:ident| $body:expr) => {{
        let $crate::virtio::queue::Queue { vector, ring, ahead: $ahead, bell } = &mut *$queue;
        $ahead.clear();
        macro_rules! with {
            ($ring:ident, $ring_pass:ident => $made:expr) => {
                match bell.there($ring.pass($host))? {
                    Some($ring_pass) => {
                        let mut $pass = $made;
                        let done = $body;
                        Some((done, $crate::virtio::queue::Pass::finish($pass, vector.is_some())))
                    }
                    None => None,
                }
            };
        }
        use $crate::virtio::queue::{Faulty, Ring, FaultState};
        match (ring, &mut *$fault_state) {
            (Ring::Split(ring), FaultState { faults: None, .. }) => with!(ring, ring_pass => ring_pass),
            (Ring::Packed(ring), FaultState { faults: None, .. }) => with!(ring, ring_pass => ring_pass),
            (Ring::Split(ring), FaultState { faults: Some(faults), end }) => {
                with!(ring, ring_pass => Faulty::new(ring_pass, faults, end))
            }
            (Ring::Packed(ring), FaultState { faults: Some(faults), end }) => {
                with!(ring, ring_pass => Faulty::new(ring_pass, faults, end))
            }
        }
    }};
}
pub(super) use poll;

/// The same, with the interrupt signalled at once if the driver wants it.
macro_rules! poll_and_signal {
    ($queue:expr, $host:expr, $fault_state:expr, |$pass:ident, $ahead:ident| $body:expr) => {
        $crate::virtio::queue::poll!($queue, $host, $fault_state, |$pass, $ahead| $body).map(|(done, signal)| {
            if signal && let Some(vector) = $queue.vector {
                $host.interrupt(vector.into());
            }
            done
        })
    };
}
pub(super) use poll_and_signal;

/// One pass over a queue: what the driver made available is taken, and given back as used.
pub(super) trait Pass {
    /// Takes the next available chain, whose descriptors replace `parts`.
    fn next(&mut self, host: &Host<'_>, parts: &mut Vec<Part>) -> Result<Option<Chain>, Broken>;

    /// Takes available chains that are one descriptor each, as long as they come, `most` at the most.
    fn singles(&mut self, most: usize, out: &mut Vec<(Chain, Part)>);

    /// Gives back the last chains that were taken and not used: they stay available.
    fn put_back(&mut self, chains: impl DoubleEndedIterator<Item = Chain>);

    /// Marks a chain as used, with `len` bytes written to it. The driver sees none of these before [`finish`](Self::finish).
    fn used(&mut self, chain: Chain, len: u32);

    /// The same for one that nothing was written to: where the driver relies on order, one entry stands for a batch (2.7.9, 2.8.8).
    fn used_unwritten(&mut self, chain: Chain);

    /// Shows what was used to the driver; says whether it wants an interrupt for it.
    fn finish(self, asked: bool) -> bool;
}

/// A chain that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The head's index (split), or the buffer's id (packed).
    id: u16,
    /// How many entries of the ring it takes.
    entries: u16,
}

/// A descriptor's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) writable: bool,
}

impl Part {
    /// The memory it names.
    #[inline(always)]
    pub(super) fn memory<'h>(&self, host: &Host<'h>) -> Result<Dma<'h>, Broken> {
        let memory = host.dma(Iova(self.address), self.len.into()).filter(|m| !self.writable || m.writable());
        memory.ok_or_else(|| Broken::memory(host, "a buffer", self.address, self.len.into(), self.writable))
    }

    /// Writes pieces to its beginning, one behind the other, for which there is room.
    #[inline(always)]
    pub(super) fn write<'p>(&self, host: &Host<'_>, pieces: impl Iterator<Item = &'p [u8]>) -> Result<(), Broken> {
        if host.write(Iova(self.address), self.len.into(), pieces) {
            return Ok(());
        }
        Err(self.refused(host, "a buffer can't be written"))
    }

    /// Reads its first bytes.
    #[inline(always)]
    pub(super) fn read(&self, host: &Host<'_>, out: &mut [u8]) -> Result<(), Broken> {
        if host.read(Iova(self.address), self.len.into(), out) {
            return Ok(());
        }
        Err(self.refused(host, "a buffer can't be read"))
    }

    /// Why it can't be accessed; `otherwise` where that is not known.
    #[cold]
    fn refused(&self, host: &Host<'_>, otherwise: &'static str) -> Broken {
        self.memory(host).err().unwrap_or_else(|| otherwise.into())
    }
}

/// Takes a descriptor's words apart: address, length, and the last two fields. Split: flags and next (2.7.5); packed: id and flags (2.8.13).
#[inline]
fn words([address, rest]: [u64; 2]) -> (u64, u32, u16, u16) {
    let (address, rest) = (u64::from_le(address), u64::from_le(rest));
    (address, rest as u32, (rest >> 32) as u16, (rest >> 48) as u16)
}

/// Adds a buffer to a chain; those to be written come last (2.7.4.2, 2.8.17).
#[inline]
fn add(parts: &mut Vec<Part>, address: u64, len: u32, flags: u16) -> Result<(), Broken> {
    let writable = flags & desc::WRITE != 0;
    if !writable && parts.last().is_some_and(|p| p.writable) {
        return Err("a readable buffer comes behind a writable one".into());
    }
    parts.push(Part { address, len, writable });
    Ok(())
}

/// An indirect table (2.7.5.3, 2.8.7). The device only reads it, and nothing is said of its alignment.
struct Table<'h> {
    memory: Dma<'h>,
    count: usize,
}

impl<'h> Table<'h> {
    /// One that is not longer than the rules let it be.
    fn new(host: &Host<'h>, address: u64, len: u32, rules: &Rules) -> Result<Self, Broken> {
        let count = len as usize / 16;
        if count == 0 || !len.is_multiple_of(16) {
            return Err("an indirect table's length is no multiple of 16".into());
        }
        if count > rules.longest.into() {
            return Err("an indirect table is longer than the device's largest queue".into());
        }
        let memory = host.dma(Iova(address), len.into());
        let memory = memory.ok_or_else(|| Broken::memory(host, "an indirect table", address, len.into(), false))?;
        Ok(Self { memory, count })
    }

    fn get(&self, index: usize) -> Option<[u64; 2]> {
        let mut bytes = [0; 16];
        if index >= self.count || !self.memory.read(16 * index as u64, &mut bytes) {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        Some([u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])])
    }
}

/// Whether an event index asks for a notification of going from `old` to `new` (2.7.7.2).
#[inline]
fn wanted(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// How many bytes of `parts` are readable, and how many writable.
pub(super) fn lengths(parts: &[Part]) -> (u64, u64) {
    parts.iter().fold(
        (0, 0),
        |(r, w), p| {
            if p.writable { (r, w + u64::from(p.len)) } else { (r + u64::from(p.len), w) }
        },
    )
}

/// Reads from the readable part of a chain, `skip` bytes into it.
pub(super) fn gather(host: &Host<'_>, parts: &[Part], skip: u64, out: &mut [u8]) -> Result<(), Broken> {
    let (mut skip, mut done) = (skip, 0);
    for part in parts.iter().filter(|p| !p.writable) {
        if skip >= part.len.into() {
            skip -= u64::from(part.len);
            continue;
        }
        let n = (u64::from(part.len) - skip).min((out.len() - done) as u64) as usize;
        if n == 0 {
            break;
        }
        if !part.memory(host)?.read(skip, &mut out[done..done + n]) {
            return Err("a buffer can't be read".into());
        }
        (skip, done) = (0, done + n);
    }
    if done == out.len() { Ok(()) } else { Err("a chain is too short".into()) }
}

/// Writes to the writable part of a chain, `skip` bytes into it; says how much fitted.
pub(super) fn scatter(host: &Host<'_>, parts: &[Part], skip: u64, bytes: &[u8]) -> Result<usize, Broken> {
    let (mut skip, mut done) = (skip, 0);
    for part in parts.iter().filter(|p| p.writable) {
        if skip >= part.len.into() {
            skip -= u64::from(part.len);
            continue;
        }
        let n = (u64::from(part.len) - skip).min((bytes.len() - done) as u64) as usize;
        if n == 0 {
            break;
        }
        if !part.memory(host)?.write(skip, &bytes[done..done + n]) {
            return Err("a buffer can't be written".into());
        }
        (skip, done) = (0, done + n);
    }
    Ok(done)
}
