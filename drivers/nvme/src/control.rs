//! The control plane: what is under the one lock. Brings the controller up, makes and deletes queues, aborts, resets.

use crate::admin::AdminQueue;
use crate::command;
use crate::doorbell::Shadows;
use crate::error::{Error, Fault, Result};
use crate::event::{AsyncEvent, Event};
use crate::hardware::Hardware;
use crate::host_memory::HostMemory;
use crate::identify::Controller;
use crate::namespaces::{Changed, Namespaces};
use crate::options::Options;
use crate::quirks::Quirk;
use crate::raw::Transfer;
use crate::reservation::ReservationNotification;
use crate::ring::Rings;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::mem::{Arena, ArenaOptions, DmaMapping};
use wholebar_core::reset::Domain;

/// What a queue tells the control plane.
#[derive(Debug)]
pub(crate) enum QueueFault {
    /// A command took longer than it may: abort it.
    Overdue { qid: u16, cid: u16 },
    /// A command was not answered after it was to be aborted.
    Stuck { qid: u16, cid: u16 },
    /// The completion queue holds nonsense; the queue takes nothing from it any more.
    Broken(Fault),
}

impl fmt::Display for QueueFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overdue { qid, cid } => write!(f, "command {cid} of queue {qid} takes too long"),
            Self::Stuck { qid, cid } => {
                write!(f, "command {cid} of queue {qid} was neither completed nor aborted in time")
            }
            Self::Broken(fault) => fault.fmt(f),
        }
    }
}

/// An I/O queue that the controller knows of, or knew.
pub(crate) struct Record {
    pub entries: u32,
    pub vector: Option<u16>,
    pub mapping: Arc<DmaMapping>,
    pub rings: Rings,
    /// Where the controller has the submission queue, if that is not where the driver writes it.
    pub elsewhere: Option<u64>,
    /// The epoch in which it was made, or made again.
    pub epoch: u64,
    /// How many aborts of its commands are done with.
    pub aborts: Arc<AtomicU64>,
    /// Its owner dropped it, and the controller would not delete it.
    pub orphan: bool,
}

pub(crate) struct Control {
    pub admin: AdminQueue,
    pub queues: BTreeMap<u16, Record>,
    /// I/O queue pairs that the controller grants.
    pub granted: u16,
    pub shadows: Option<(Arc<Shadows>, (u64, u64))>,
    /// Feature 08h as it was set, which no reset keeps.
    pub coalescing: Option<u32>,
    /// What the controller was given of the host's memory, or had before a reset.
    pub host_memory: Option<HostMemory>,
    /// What was told of reservations, and nobody has asked for yet.
    pub notifications: VecDeque<ReservationNotification>,
    /// Memory for rings, newest last.
    pub memory: Vec<Arc<DmaMapping>>,
}

/// Bytes of an arena for rings, at least.
const ARENA: u64 = 1 << 20;

/// Lets the controller into an arena of at least `bytes`.
pub(crate) fn memory(hw: &Hardware, bytes: u64) -> Result<Arc<DmaMapping>> {
    let arena = Arena::new(bytes.max(ARENA), ArenaOptions::default())?;
    Ok(hw.device.dma().attach(arena)?)
}

impl Control {
    /// Everything that has to be done after CC.EN, but for identifying: first and after each reset.
    pub fn set_up(&mut self, hw: &Hardware, controller: &Controller, options: &Options) -> Result<()> {
        let want = if hw.has(Quirk::SharedTags) { 1 } else { options.io_queues.max(1) };
        let want = u32::from(want) - 1;
        let number = command::set_features(crate::feature::NUMBER_OF_QUEUES, 0, want | want << 16, false);
        let granted = self.admin.execute(hw, number)?;
        // 0's based, submission and completion; it may grant more than was asked for.
        let granted = (granted & 0xffff).min(granted >> 16).min(want) + 1;
        self.granted = granted as u16;
        if let Some((shadows, (doorbells, events))) = self.shadows.clone() {
            shadows.zero();
            match self.admin.execute(hw, command::doorbell_buffer_config(doorbells, events)) {
                // It offered them. No queue uses them yet, unless this is a reset.
                Err(Error::Refused { status, .. }) if self.queues.is_empty() => {
                    tracing::warn!(device = hw.name(), %status, "doorbells have no shadows");
                    shadows.set_quarantine(false);
                    self.shadows = None;
                }
                other => drop(other?),
            }
        }
        if controller.has_extended_formats() {
            self.enable_extended_formats(hw)?;
        }
        self.give_host_memory(hw, controller, options)?;
        if let Some(id) = &options.host_id {
            self.set_host_id(hw, controller, id)?;
        }
        // Critical warnings (bits 4:0), and notices of changed namespaces and firmware activation as far as it has them.
        let wanted = 0x1f | controller.events & 0x300;
        let config = command::set_features(crate::feature::ASYNC_EVENT_CONFIGURATION, 0, wanted, false);
        match self.admin.execute(hw, config) {
            Ok(_) => {}
            Err(Error::Refused { status, .. }) => {
                tracing::warn!(device = hw.name(), %status, "few events will be told")
            }
            Err(error) => return Err(error),
        }
        if let Some(value) = self.coalescing {
            self.admin.execute(hw, command::set_features(crate::feature::INTERRUPT_COALESCING, 0, value, false))?;
        }
        self.admin.listen(controller.event_limit);
        Ok(())
    }

    /// Gives the controller memory of the host's, where it prefers some and may have it; after a reset the same as before, which nobody has touched.
    fn give_host_memory(&mut self, hw: &Hardware, controller: &Controller, options: &Options) -> Result<()> {
        if self.host_memory.is_none() {
            self.host_memory = HostMemory::find(hw, controller, options.host_memory_buffer)?;
        }
        let Some(memory) = &mut self.host_memory else { return Ok(()) };
        match memory.give(hw, &mut self.admin) {
            Err(Error::Refused { status, .. }) => {
                tracing::warn!(device = hw.name(), %status, "it does not take a host memory buffer");
                self.host_memory = None;
                Ok(())
            }
            done => done,
        }
    }

    /// Takes back what the controller was given of the host's memory.
    pub fn take_host_memory(&mut self, hw: &Hardware) -> Result<()> {
        self.host_memory.as_mut().map_or(Ok(()), |memory| memory.take_back(hw, &mut self.admin))
    }

    /// Has the controller use LBA formats that say more of themselves (Host Behavior Support, 5.27.1.18: LBAFEE in byte 2).
    fn enable_extended_formats(&mut self, hw: &Hardware) -> Result<()> {
        let mut behavior = [0; 512];
        behavior[2] = 1;
        let set = command::set_features(crate::feature::HOST_BEHAVIOR, 0, 0, false);
        let (_, status) = self.admin.transfer(hw, set.entry(0), &mut Transfer::Write(&behavior), None)?;
        if !status.is_success() {
            tracing::warn!(device = hw.name(), %status, "guards of more than 16 bits may be refused");
        }
        Ok(())
    }

    /// Tells the controller which host this is (Host Identifier, 5.27.1.25): a reset has it forget that.
    fn set_host_id(&mut self, hw: &Hardware, controller: &Controller, id: &[u8; 16]) -> Result<()> {
        let long = controller.has_long_host_ids();
        let id = if long { &id[..] } else { &id[..8] };
        let set = command::set_features(crate::feature::HOST_IDENTIFIER, 0, long.into(), false);
        match self.admin.transfer(hw, set.entry(0), &mut Transfer::Write(id), None)? {
            (_, status) if status.is_success() => Ok(()),
            (_, status) => {
                Err(Error::Refused { device: hw.name(), command: command::admin_name(set.opcode()), status })
            }
        }
    }

    /// Makes a queue known to the controller: completion queue first (5.5).
    pub fn create(&mut self, hw: &Hardware, qid: u16, record: &Record) -> Result<()> {
        let base = record.mapping.iova();
        let (sq, cq) = record.rings.offsets();
        let sq = record.elsewhere.unwrap_or(base.offset(sq).0);
        let cq = record.rings.far_completions().unwrap_or(base.offset(cq).0);
        let (sq, cq) = (hw.aligned(sq)?, hw.aligned(cq)?);
        self.admin.execute(hw, command::create_cq(qid, record.entries, cq, record.vector))?;
        match self.admin.execute(hw, command::create_sq(qid, record.entries, sq)) {
            Ok(_) => Ok(()),
            Err(error) => {
                self.admin.execute(hw, command::delete_cq(qid))?;
                Err(error)
            }
        }
    }

    /// Has the controller forget a queue, submission queue first (5.6). What was in flight there has then ended.
    pub fn delete(&mut self, hw: &Hardware, qid: u16) -> Result<()> {
        self.admin.execute(hw, command::delete_sq(qid))?;
        self.admin.execute(hw, command::delete_cq(qid))?;
        Ok(())
    }

    /// Aborts a command, as far as the controller is willing.
    pub fn abort(&mut self, hw: &Hardware, qid: u16, cid: u16) -> Result<()> {
        let done = self.admin.execute(hw, command::abort(qid, cid));
        if let Some(record) = self.queues.get(&qid) {
            // Release pairs with the queue's Acquire load: the identifier may be used again.
            record.aborts.fetch_add(1, Ordering::Release);
        }
        match done {
            Ok(result) => {
                tracing::warn!(device = hw.name(), qid, cid, aborted = result & 1 == 0, "a command took too long")
            }
            Err(Error::Refused { status, .. }) => tracing::warn!(device = hw.name(), qid, cid, %status, "not aborted"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes the controller's events, reads the log page that each wants read, and passes them on; namespaces are read again where they changed.
    pub fn take_events(
        &mut self,
        hw: &Hardware,
        controller: &Controller,
        namespaces: &Namespaces,
        tell: &mut dyn FnMut(Event),
    ) -> Result<()> {
        for event in self.admin.events(hw)?.into_iter().map(AsyncEvent) {
            let mut log = None;
            if event.is_reservation() {
                match self.read_notifications(hw) {
                    Err(Error::Refused { status, .. }) => {
                        tracing::warn!(%event, %status, "its log page cannot be read")
                    }
                    done => done?,
                }
            } else if event.log_page() != 0 {
                let bytes = event.log_bytes().min(hw.page as u32);
                let read = command::get_log_page(event.log_page(), bytes, self.admin.data_iova());
                match self.admin.fetch(hw, read, bytes as usize) {
                    Ok(bytes) => log = Some(bytes),
                    Err(Error::Refused { status, .. }) => {
                        tracing::warn!(%event, %status, "its log page cannot be read")
                    }
                    Err(error) => return Err(error),
                }
            }
            if event.namespaces_changed() {
                let changed = log.as_deref().map_or(Changed::All, Changed::parse);
                namespaces.read_again(hw, &mut self.admin, controller, &changed)?;
            }
            tell(Event::Driver(event));
        }
        Ok(())
    }

    /// Makes every queue that takes part known again, with zeroed rings.
    pub fn recreate(&mut self, hw: &Hardware, domain: &Domain) -> Result<()> {
        let mut queues = std::mem::take(&mut self.queues);
        queues.retain(|_, record| !record.orphan);
        let mut done = Ok(());
        for (qid, record) in &mut queues {
            if done.is_ok() && domain.has((*qid).into()) {
                record.rings.zero();
                done = self.create(hw, *qid, record);
                record.epoch = domain.epoch();
            }
        }
        self.queues = queues;
        done
    }

    /// The controller is disabled: its memory may be given back.
    pub fn release(&self) {
        self.admin.release();
        if let Some(memory) = &self.host_memory {
            memory.set_quarantine(false);
        }
        if let Some((shadows, _)) = &self.shadows {
            shadows.set_quarantine(false);
        }
    }
}
