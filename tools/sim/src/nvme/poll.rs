//! One poll of the controller: it looks at doorbells, fetches commands, has them done, posts their completions. Bounded: so many
//! commands of each queue, queue by queue, and so many bytes in all.
//!
//! Queues are touched only where there is something to fetch or to post. A queue that has work, and whose memory is not there, waits for a
//! while: memory may be on its way to another place.
//!
//! Where faults are asked for, they are done here, between a command and its completion.

use super::bits::Status;
use super::command::{Answer, Command};
use super::io::Store;
use super::log::Event;
use super::queue::{Cq, QueueLost, Sq};
use super::quirk::{self, Quirk};
use super::{Nvme, Queues, Shadow, State};
use crate::faults::{Fault, Faults};
use crate::media;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use wholebar_core::Work;
use wholebar_core::mem::Iova;
use wholebar_core::model::{Entries, Host};

/// How many commands of a queue are done in one poll: enough to hide the way their cache lines have to travel.
pub(super) const BURST: u32 = 32;
/// How many admin commands are done in one poll.
const ADMIN_BURST: u32 = 8;
/// An address that nothing is ever mapped at: the last 4 KiB there are.
const WILD: u64 = 0xffff_ffff_ffff_f000;

/// A command that a fault delays.
pub(super) struct Held {
    sq: u16,
    cmd: Command,
    due: Instant,
    aborted: bool,
}

impl Held {
    pub(super) fn sq(&self) -> u16 {
        self.sq
    }

    pub(super) fn is(&self, sq: u16, cid: u16) -> bool {
        self.sq == sq && self.cmd.cid() == cid
    }

    /// Has it completed as aborted, soon.
    pub(super) fn abort(&mut self) {
        (self.aborted, self.due) = (true, Instant::now());
    }
}

impl Nvme {
    /// One poll: some admin commands, then some of each I/O queue.
    #[inline]
    pub(super) fn poll_queues(&mut self, host: &mut Host<'_>) -> Result<Work, Box<QueueLost>> {
        self.store.spent = 0;
        if !self.held.is_empty() {
            self.release(host)?;
        }
        if self.coalesced {
            self.interrupt_late(host);
        }
        if self.store.member.as_ref().is_some_and(|member| member.inbox.came()) {
            self.events.raise(Event::ReservationLog);
        }
        // Where one queue is lost, the others are not.
        let (admin, io) = (self.poll_admin(host), self.poll_io(host));
        match (admin?, io?) {
            (Work::Idle, Work::Idle) => Ok(Work::Idle),
            _ => Ok(Work::Busy),
        }
    }

    #[inline]
    fn poll_admin(&mut self, host: &mut Host<'_>) -> Result<Work, Box<QueueLost>> {
        // The registers, never their shadows: few hosts have shadows of these, and those are told to ring always.
        let doorbells = Doorbells::registers(&self.doorbells, self.params.dstrd);
        let (tail, head) = (doorbells.tail(0), doorbells.head(0));
        let Some((sq, cq)) = self.queues.pair(0) else { return Ok(Work::Idle) };
        if !(sq.rung(tail) & cq.rung(head)) {
            self.events.raise(Event::InvalidDoorbellValue);
        }
        if sq.pending() == 0 && !self.events.ready() && self.deferred.is_empty() {
            return Ok(Work::Idle);
        }
        self.admin_burst(host)
    }

    #[cold]
    fn admin_burst(&mut self, host: &mut Host<'_>) -> Result<Work, Box<QueueLost>> {
        let Some((sq, cq)) = self.queues.pair(0) else { return Ok(Work::Idle) };
        match (cq.ring(host), sq.pending()) {
            // What the controller has to tell can wait.
            (Err(_), 0) => return Ok(Work::Idle),
            (Err(lost), _) => return Err(lost),
            (Ok(_), _) => {}
        }
        let mut work = Work::Idle;
        for _ in 0..ADMIN_BURST {
            if self.state != State::Running || self.queues.cq(0).is_none_or(|cq| cq.room() == 0) {
                break;
            }
            if let Some((cid, dw0)) = self.events.answer() {
                self.deferred.push_back(Answer::new(0, cid, Ok(dw0.into())));
            }
            if let Some(answer) = self.deferred.pop_front() {
                work = Work::Busy;
                self.post(host, answer, None)?;
                continue;
            }
            let Some(sq) = self.queues.sq(0).filter(|sq| sq.pending() > 0) else { break };
            self.batch.clear();
            sq.fetch(&sq.ring(host)?, 1, &mut self.batch);
            let Some(cmd) = self.batch.first().copied() else { break };
            sq.take();
            if self.params.quirk == Some(Quirk::LongEntries) && cmd.cid() >= quirk::ADMIN_TAGS {
                self.fatal("an admin command has an identifier of the I/O queue's");
                break;
            }
            work = Work::Busy;
            match self.faults.as_mut().and_then(|f| f.strike(true).map(|fault| (fault, f.delay()))) {
                Some((Fault::Delay, late)) => {
                    self.held.push(Held { sq: 0, cmd, due: Instant::now() + late, aborted: false });
                }
                Some((fault @ (Fault::Fatal | Fault::Vanish), _)) => self.end(fault),
                fault_counts => self.complete(host, 0, &cmd, fault_counts.map(|(fault, _)| fault))?,
            }
        }
        Ok(work)
    }

    #[inline]
    fn poll_io(&mut self, host: &mut Host<'_>) -> Result<Work, Box<QueueLost>> {
        let Self {
            doorbells,
            queues,
            store,
            batch,
            answers,
            rules,
            events,
            errors,
            faults,
            held,
            features,
            coalesced,
            ..
        } = self;
        let Some(doorbells) = Doorbells::new(doorbells, host, self.shadow, rules.page, self.params.dstrd) else {
            return Ok(Work::Idle);
        };
        let mut work = Work::Idle;
        let (mut end, mut lost) = (None, None);
        let Queues { sqs, cqs, active } = queues;
        let mut served = 0;
        for id in active.iter().copied() {
            served += 1;
            let Some(Some(sq)) = sqs.get_mut(usize::from(id)) else { continue };
            if !sq.rung(doorbells.tail(id)) {
                events.raise(Event::InvalidDoorbellValue);
                work = Work::Busy;
            }
            if sq.pending() == 0 {
                continue;
            }
            let Some(Some(cq)) = cqs.get_mut(usize::from(sq.cq)) else { continue };
            if !cq.rung(doorbells.head(cq.id)) {
                events.raise(Event::InvalidDoorbellValue);
                work = Work::Busy;
            }
            // A faulty controller may answer a command twice.
            let room = if faults.is_some() { cq.room().div_ceil(2) } else { cq.room() };
            let n = sq.pending().min(room).min(BURST);
            if n == 0 {
                continue;
            }
            let (entries, completions) = match (sq.ring(host), cq.ring(host)) {
                (Ok(entries), Ok(completions)) => (entries, completions),
                (Err(why), _) | (_, Err(why)) => {
                    lost = Some(why);
                    continue;
                }
            };
            work = Work::Busy;
            // Fetched together, done one by one, answered together: each cache line travels once.
            batch.clear();
            sq.fetch(&entries, n, batch);
            if self.params.quirk == Some(Quirk::LongEntries) && batch.iter().any(|cmd| cmd.cid() < quirk::ADMIN_TAGS) {
                end = Some(Fault::Fatal);
                break;
            }
            answers.clear();
            let mut answer = |store: &mut Store, cmd: &Command, sq: &Sq| {
                let mut status = store.execute(host, cmd, *rules);
                if status.is_error() {
                    status = status.logged();
                    let lba = store.failed.take().unwrap_or(cmd.cdw10_11());
                    errors.record(id, cmd.cid(), status, lba, cmd.nsid());
                }
                let result = std::mem::take(&mut store.result);
                Answer { result, sq_head: sq.head(), sq_id: id, cid: cmd.cid(), status, stale: false }
            };
            for cmd in batch.iter() {
                if store.spent > media::BUDGET {
                    break;
                }
                sq.take();
                let Some((faults, fault)) = faults.as_mut().and_then(|f| f.strike(false).map(|fault| (f, fault)))
                else {
                    answers.push(answer(store, cmd, sq));
                    continue;
                };
                match fault {
                    Fault::Delay => {
                        let due = Instant::now() + faults.delay();
                        held.push(Held { sq: id, cmd: *cmd, due, aborted: false });
                    }
                    Fault::Fatal | Fault::Vanish => {
                        end = Some(fault);
                        break;
                    }
                    Fault::WildDma => answers.push(answer(store, &cmd.with_data_at(WILD), sq)),
                    Fault::Detach | Fault::Attach => {
                        for nsid in store.attach(cmd.nsid(), fault == Fault::Attach) {
                            events.namespace_changed(nsid, features.tells_of_namespaces());
                        }
                        answers.push(answer(store, cmd, sq));
                    }
                    Fault::FlipData | Fault::FlipGuard | Fault::FlipApplicationTag | Fault::FlipReferenceTag => {
                        store.flip(cmd, fault, faults.random());
                        answers.push(answer(store, cmd, sq));
                    }
                    Fault::ZoneReadOnly | Fault::ZoneOffline => {
                        store.spoil_zone(cmd, fault);
                        answers.push(answer(store, cmd, sq));
                    }
                    _ => spoil(faults, fault, answer(store, cmd, sq), sq.entries(), answers),
                }
            }
            answers.truncate(cq.room() as usize);
            cq.post(&completions, answers);
            doorbells.set_event_indexes(sq, cq);
            if let Some(vector) = cq.vector {
                match features.coalescing(vector) {
                    None => host.interrupt(vector.into()),
                    Some(limits) => match cq.interrupt(answers.len(), limits) {
                        Some(vector) => host.interrupt(vector.into()),
                        None => *coalesced = true,
                    },
                }
            }
            if end.is_some() || store.spent > media::BUDGET {
                break;
            }
        }
        if store.spent > media::BUDGET {
            // The next poll begins with the next queue.
            active.rotate_left(served);
        }
        if let Some(fault) = end {
            self.end(fault);
        }
        lost.map_or(Ok(work), Err)
    }

    /// Does delayed commands whose time has come, and those that were aborted.
    #[cold]
    fn release(&mut self, host: &mut Host<'_>) -> Result<(), Box<QueueLost>> {
        let now = Instant::now();
        let mut i = 0;
        while let Some(held) = self.held.get(i) {
            let id = held.sq;
            let doorbells = Doorbells::new(&self.doorbells, host, self.shadow, self.rules.page, self.params.dstrd);
            let Some(doorbells) = doorbells.filter(|_| self.store.spent <= media::BUDGET) else { break };
            let room = self.queues.pair(id).is_some_and(|(_, cq)| {
                cq.rung(doorbells.head(cq.id));
                cq.room() > 0 && cq.ring(host).is_ok()
            });
            if !room || held.due > now {
                i += 1;
                continue;
            }
            let held = self.held.remove(i);
            if held.aborted {
                self.post(host, Answer::new(id, held.cmd.cid(), Err(Status::ABORT_REQUESTED)), None)?;
            } else {
                self.complete(host, id, &held.cmd, None)?;
            }
        }
        Ok(())
    }

    /// Interrupts of completion queues that have waited long enough.
    #[cold]
    fn interrupt_late(&mut self, host: &mut Host<'_>) {
        self.coalesced = false;
        for cq in self.queues.cqs.iter_mut().flatten().filter(|cq| cq.coalesce.waits()) {
            let limits = cq.vector.and_then(|vector| self.features.coalescing(vector)).unwrap_or_default();
            match cq.interrupt(0, limits) {
                Some(vector) => host.interrupt(vector.into()),
                None => self.coalesced |= cq.coalesce.waits(),
            }
        }
    }

    /// Does one command and answers it, if it is to be answered now.
    fn complete(
        &mut self,
        host: &mut Host<'_>,
        id: u16,
        cmd: &Command,
        fault: Option<Fault>,
    ) -> Result<(), Box<QueueLost>> {
        let cmd = if fault == Some(Fault::WildDma) { cmd.with_data_at(WILD) } else { *cmd };
        let outcome = match id {
            0 => self.admin(host, &cmd),
            _ => match self.store.execute(host, &cmd, self.rules) {
                Status::OK => Ok(Some(0)),
                error => Err(error),
            },
        };
        let result = std::mem::take(&mut self.store.result);
        let answer = match outcome {
            Ok(None) => return Ok(()),
            Ok(Some(dw0)) => Answer::new(id, cmd.cid(), Ok(u64::from(dw0) | result)),
            Err(status) => {
                let lba = if id == 0 { 0 } else { self.store.failed.take().unwrap_or(cmd.cdw10_11()) };
                self.errors.record(id, cmd.cid(), status.logged(), lba, cmd.nsid());
                Answer::new(id, cmd.cid(), Err(status.logged()))
            }
        };
        self.post(host, answer, fault)
    }

    /// Posts one answer to the completion queue of its submission queue.
    fn post(&mut self, host: &mut Host<'_>, mut answer: Answer, fault: Option<Fault>) -> Result<(), Box<QueueLost>> {
        let Some((sq, cq)) = self.queues.pair(answer.sq_id) else { return Ok(()) };
        answer.sq_head = sq.head();
        self.answers.clear();
        match (fault, &mut self.faults) {
            (Some(fault), Some(faults)) => spoil(faults, fault, answer, sq.entries(), &mut self.answers),
            _ => self.answers.push(answer),
        }
        self.answers.truncate(cq.room() as usize);
        cq.post(&cq.ring(host)?, &self.answers);
        if let Some(vector) = cq.vector {
            // Admin completions are never held back (base 5.27.1.8).
            match self.features.coalescing(vector).filter(|_| sq.id != 0) {
                None => host.interrupt(vector.into()),
                Some(limits) => match cq.interrupt(self.answers.len(), limits) {
                    Some(vector) => host.interrupt(vector.into()),
                    None => self.coalesced = true,
                },
            }
        }
        if sq.id == 0
            && let Some(words) = self.shadow.and_then(|shadow| ShadowWords::new(host, shadow, self.rules.page))
        {
            words.set_event_indexes([(0, sq.seen()), (1, cq.seen())], self.params.dstrd);
        }
        Ok(())
    }

    /// The controller's end, by a fault.
    #[cold]
    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Vanish => self.vanish(),
            _ => self.fatal("a fault that was asked for"),
        }
    }
}

/// Puts an answer into `out` as a fault has it.
fn spoil(faults: &mut Faults, fault: Fault, mut answer: Answer, entries: u32, out: &mut Vec<Answer>) {
    let chance = faults.random();
    match fault {
        Fault::Drop => return,
        Fault::Duplicate => out.push(answer),
        Fault::WrongId => answer.cid ^= (chance % 0xffff) as u16 + 1,
        Fault::WrongPhase => answer.stale = true,
        // An entry too far at least; a queue of 65536 has none, and then the head is any.
        Fault::BadHead => answer.sq_head = (u64::from(entries) + chance % u64::from(0x1_0000 - entries).max(1)) as u16,
        Fault::StillHead => answer.sq_head = 0,
        Fault::Corrupt => answer.status = Status(chance as u16 & 0x7fff | 1),
        Fault::Delay | Fault::WildDma | Fault::Detach | Fault::Attach | Fault::Fatal | Fault::Hang | Fault::Vanish => {}
        Fault::FlipData | Fault::FlipGuard | Fault::FlipApplicationTag | Fault::FlipReferenceTag => {}
        Fault::ZoneReadOnly | Fault::ZoneOffline => {}
    }
    out.push(answer);
}

/// Where the controller looks for tails and heads.
struct Doorbells<'a, 'h> {
    registers: &'a [AtomicU32],
    shadow: Option<ShadowWords<'h>>,
    dstrd: u8,
}

/// The shadow doorbells, looked up.
struct ShadowWords<'h> {
    values: Entries<'h, AtomicU32>,
    seen: Entries<'h, AtomicU32>,
}

impl<'h> ShadowWords<'h> {
    /// `None` where they are not there: nobody can have rung them.
    fn new(host: &Host<'h>, shadow: Shadow, page: u64) -> Option<Self> {
        let words = |base| host.dma(Iova(base), page)?.entries(0, page as usize / 4);
        Some(Self { values: words(shadow.values)?, seen: words(shadow.seen)? })
    }

    /// Stores event indexes.
    fn set_event_indexes(&self, indexes: [(usize, u32); 2], dstrd: u8) {
        for (index, seen) in indexes {
            if let Some(word) = self.seen.at(index << dstrd) {
                word.store(seen.to_le(), Ordering::Release);
            }
        }
    }
}

impl<'a, 'h> Doorbells<'a, 'h> {
    #[inline]
    fn new(registers: &'a [AtomicU32], host: &Host<'h>, shadow: Option<Shadow>, page: u64, dstrd: u8) -> Option<Self> {
        let shadow = match shadow {
            Some(shadow) => Some(ShadowWords::new(host, shadow, page)?),
            None => None,
        };
        Some(Self { shadow, ..Self::registers(registers, dstrd) })
    }

    /// The registers alone.
    #[inline]
    fn registers(registers: &'a [AtomicU32], dstrd: u8) -> Self {
        Self { registers, shadow: None, dstrd }
    }

    #[inline]
    fn tail(&self, sq: u16) -> u32 {
        self.value(2 * usize::from(sq))
    }

    #[inline]
    fn head(&self, cq: u16) -> u32 {
        self.value(2 * usize::from(cq) + 1)
    }

    /// Doorbell `index` (pcie 3.1.2: at `index * (4 << CAP.DSTRD)`). Acquire pairs with the driver's Release store: what was written
    /// before it rang is seen after.
    #[inline]
    fn value(&self, index: usize) -> u32 {
        let index = index << self.dstrd;
        let word = match &self.shadow {
            Some(shadow) => shadow.values.at(index),
            None => self.registers.get(index),
        };
        word.map_or(0, |w| u32::from_le(w.load(Ordering::Acquire)))
    }

    /// Tells the host how far the shadows were looked at. A controller that always looks never wants to be rung: it says so by an
    /// index just behind what it saw, which the host's next update does not pass.
    #[inline]
    fn set_event_indexes(&self, sq: &Sq, cq: &Cq) {
        if let Some(shadow) = &self.shadow {
            let (sq_index, cq_index) = (2 * usize::from(sq.id), 2 * usize::from(cq.id) + 1);
            shadow.set_event_indexes([(sq_index, sq.behind()), (cq_index, cq.behind())], self.dstrd);
        }
    }
}
