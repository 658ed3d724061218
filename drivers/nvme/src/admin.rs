//! The admin queue: commands one at a time, each waited for, within a time. Asynchronous event requests stay out meanwhile.

use crate::bounce::Bounce;
use crate::command::{self, Command, DataPointer, admin_name};
use crate::doorbell::Bell;
use crate::error::{Error, Fault, Result};
use crate::hardware::Hardware;
use crate::quirks::{ADMIN_TAGS, Quirk};
use crate::raw::Transfer;
use crate::ring::QueuePair;
use crate::status::StatusCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::mem::{Arena, Chunk, DmaMapping};

/// Entries of the admin queues; and where they have to be whole pages of 4 KiB.
const ENTRIES: u32 = 32;
const WHOLE_PAGE: u32 = 64;
/// Asynchronous event requests that are kept out at most, each with an identifier of its own, from 0 on.
const MAX_EVENTS: u16 = 4;
/// The identifiers of waited-for commands, in turn: a late answer to one that was given up is told from the next one's.
const FIRST: u16 = 0x100;
const LAST: u16 = 0xffe;
/// How often the status register is looked at while a command is waited for.
const HEALTH_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) struct AdminQueue {
    pair: QueuePair,
    /// Where commands put their data: one page of the controller's.
    data: Chunk,
    data_iova: u64,
    /// Where the data of commands is that say themselves how much there is.
    bounce: Option<Bounce>,
    iova: (u64, u64),
    timeout: Duration,
    /// The identifiers of waited-for commands: the first, and the last.
    identifiers: (u16, u16),
    next: u16,
    /// The one that is waited for.
    waiting: Option<u16>,
    /// One bit for each event request that is out.
    out: u16,
    /// How many are wanted.
    wanted: u16,
    /// Results of event requests, not looked at yet.
    events: Vec<u32>,
}

impl AdminQueue {
    pub fn new(hw: &Hardware, mapping: &DmaMapping, timeout: Duration) -> Result<Self> {
        let arena: &Arc<Arena> = mapping.arena();
        let bells = Bell::pair(&hw.bar, 0, hw.cap.doorbell_stride(), None)?;
        let entries = if hw.has(Quirk::WholeAdminPages) { WHOLE_PAGE } else { ENTRIES };
        let pair = QueuePair::new(0, arena.clone(), entries, hw.page, bells)?;
        pair.set_quarantine(true);
        let data = arena.alloc(hw.page, hw.page)?;
        data.set_quarantine(true);
        let base = mapping.iova();
        let (sq, cq) = pair.rings().offsets();
        let iova = (hw.aligned(base.offset(sq).0)?, hw.aligned(base.offset(cq).0)?);
        let data_iova = hw.aligned(base.offset(data.offset()).0)?;
        // Where they are shared with an I/O queue, these are the first.
        let identifiers = if hw.has(Quirk::SharedTags) { (MAX_EVENTS, ADMIN_TAGS - 1) } else { (FIRST, LAST) };
        Ok(Self {
            pair,
            data,
            data_iova,
            bounce: None,
            iova,
            timeout,
            identifiers,
            next: identifiers.0,
            waiting: None,
            out: 0,
            wanted: 0,
            events: Vec::new(),
        })
    }

    /// Enables the controller with this queue, both as new. It was disabled before.
    pub fn start(&mut self, hw: &Hardware) -> Result<()> {
        self.pair.rings().zero();
        self.pair.restart();
        (self.waiting, self.out) = (None, 0);
        self.events.clear();
        hw.enable(self.iova.0, self.iova.1, self.pair.entries())
    }

    /// The controller was disabled and cannot reach memory: this queue's may be given back.
    pub fn release(&self) {
        self.pair.set_quarantine(false);
        self.data.set_quarantine(false);
        if let Some(bounce) = &self.bounce {
            bounce.set_quarantine(false);
        }
    }

    /// Where a command's data goes or comes from, as the controller sees it: one page.
    pub fn data_iova(&self) -> u64 {
        self.data_iova
    }

    /// Executes a command and waits for it: its result (dword 0).
    pub fn execute(&mut self, hw: &Hardware, command: Command) -> Result<u32> {
        self.execute_entry(hw, command.entry(0))
    }

    /// The same of a command with more words than a [`Command`] has; what its data pointer says is the caller's.
    pub fn execute_entry(&mut self, hw: &Hardware, entry: [u64; 8]) -> Result<u32> {
        let command = admin_name(entry[0] as u8);
        match self.exchange(hw, entry, self.timeout)? {
            (result, status) if status.is_success() => Ok(result),
            (_, status) => Err(Error::Refused { device: hw.name(), command, status }),
        }
    }

    /// Executes a command that may be anything, but for its data pointer, which is put in: `data` goes to the controller, or is filled by it. Waits for
    /// so long, or as long as for every other: result and status.
    pub fn transfer(
        &mut self,
        hw: &Hardware,
        mut entry: [u64; 8],
        data: &mut Transfer<'_>,
        timeout: Option<Duration>,
    ) -> Result<(u32, StatusCode)> {
        // Opcode bits 1:0: none where it transfers nothing.
        if entry[0] & 3 != 0 {
            let DataPointer { low, high, .. } = Bounce::of(&mut self.bounce, hw, data.len())?.fill(data)?;
            (entry[3], entry[4]) = (low, high);
        }
        let done = self.exchange(hw, entry, timeout.unwrap_or(self.timeout))?;
        if let Some(bounce) = &self.bounce {
            bounce.take(data)?;
        }
        Ok(done)
    }

    /// Executes a command that puts `len` bytes into the page at [`data_iova`](Self::data_iova); returns them.
    pub fn fetch(&mut self, hw: &Hardware, command: Command, len: usize) -> Result<Vec<u8>> {
        self.data.zero();
        self.execute(hw, command)?;
        let mut bytes = vec![0; len];
        self.data.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Executes a command: result and status.
    fn exchange(&mut self, hw: &Hardware, mut entry: [u64; 8], timeout: Duration) -> Result<(u32, StatusCode)> {
        let cid = self.next;
        self.next = if cid == self.identifiers.1 { self.identifiers.0 } else { cid + 1 };
        self.waiting = Some(cid);
        let opcode = entry[0] as u8;
        entry[0] |= u64::from(cid) << 16;
        self.pair.post_entry(entry);
        self.pair.ring();
        let start = Instant::now();
        let mut next_check = start + HEALTH_INTERVAL;
        loop {
            // The clock first: an answer that is there once the time is over is one.
            let now = Instant::now();
            if let Some(done) = self.poll(hw)? {
                self.waiting = None;
                return Ok(done);
            }
            if now >= next_check {
                // One that is gone or has failed will not answer.
                hw.healthy("while an admin command was waited for")?;
                next_check = now + HEALTH_INTERVAL;
            }
            if now - start >= timeout {
                self.waiting = None;
                return Err(Error::Unanswered { device: hw.name(), command: admin_name(opcode), waited: timeout });
            }
            std::thread::yield_now();
        }
    }

    /// Takes what completed: the answer that is waited for, if it came; events are kept.
    fn poll(&mut self, hw: &Hardware) -> Result<Option<(u32, StatusCode)>> {
        let mut answer = None;
        while answer.is_none()
            && let Some(entry) = self.pair.take()
        {
            let broken = |fault| Error::Broken { device: hw.name(), fault };
            self.pair.check(entry).map_err(broken)?;
            let (cid, status) = (entry.cid(), StatusCode(entry.status()));
            if Some(cid) == self.waiting {
                answer = Some((self.pair.result() as u32, status));
            } else if cid < MAX_EVENTS && self.out & 1 << cid != 0 {
                self.out &= !(1 << cid);
                match status.is_success() {
                    true => self.events.push(self.pair.result() as u32),
                    // It takes fewer at a time than it said.
                    false => self.wanted = self.wanted.saturating_sub(1),
                }
            } else {
                return Err(broken(Fault::UnknownCommand { qid: 0, cid }));
            }
        }
        self.pair.acknowledge();
        Ok(answer)
    }

    /// Keeps `count` asynchronous event requests out, or as many as this driver has use for.
    pub fn listen(&mut self, count: u16) {
        self.wanted = count.min(MAX_EVENTS);
        self.rearm();
    }

    fn rearm(&mut self) {
        for cid in 0..MAX_EVENTS {
            if self.out & 1 << cid == 0 && (self.out.count_ones() as u16) < self.wanted {
                self.out |= 1 << cid;
                let mut entry = command::async_event_request().entry(0);
                entry[0] |= u64::from(cid) << 16;
                // All words: an entry here may have been anything before.
                self.pair.post_entry(entry);
            }
        }
        self.pair.ring();
    }

    /// The results of event requests that completed; they are out again.
    pub fn events(&mut self, hw: &Hardware) -> Result<Vec<u32>> {
        self.poll(hw)?;
        self.rearm();
        Ok(std::mem::take(&mut self.events))
    }
}
