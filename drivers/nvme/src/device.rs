//! The controller, opened: what its handle and its queues share, and what a reset of it is. The handle that applications hold is elsewhere
//! ([`Nvme`](crate::Nvme)), and so is the queues' own work ([`Queue`](crate::Queue)).

use crate::cmb::Part;
use crate::control::{Control, QueueFault, Record, memory};
use crate::doorbell::{Bell, Elsewhere};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::hardware::Hardware;
use crate::identify::Controller;
use crate::namespaces::{Changed, Namespaces};
use crate::options::{ANY_VECTOR, Options};
use crate::prp::list_words;
use crate::quirks::{LIST_ALIGN, Quirk};
use crate::ring::QueuePair;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use wholebar_core::control_plane::{ControlPlane, Driver, QueueContext, Recovery};
use wholebar_core::irq::Interrupts;
use wholebar_core::mem::{DmaMapping, DmaRing};
use wholebar_core::pci::PciDevice;
use wholebar_core::reset::{Domain, Gate};

/// What keeps a controller open: held by the controller's handle and by its queues.
pub(crate) type Handle = ControlPlane<Inner>;

pub(crate) struct Inner {
    pub hw: Hardware,
    pub options: Options,
    pub controller: Controller,
    pub namespaces: Namespaces,
    pub domain: Domain,
    pub queue_context: Arc<QueueContext<QueueFault>>,
}

/// What a queue is made of.
pub(crate) struct Parts {
    pub qid: u16,
    pub gate: Gate,
    pub pair: QueuePair,
    pub lists: DmaRing<AtomicU64>,
    pub lists_iova: u64,
    pub list_words: u32,
    /// Where the controller has the submission queue, if that is not where the driver writes it.
    pub elsewhere: Option<u64>,
    /// Where lists of PRPs are, if they are in the controller's memory.
    pub controller_lists: Option<Part>,
    /// One that was dealt, for the queue to arm.
    pub vector: Option<u16>,
    pub aborts: Arc<AtomicU64>,
}

/// Bytes of the next arena for rings, where a queue takes `bytes`: twice as much as the one `before` has, so that queues share a few arenas
/// however many there are; or enough for all that are left, where maps are few.
fn ring_memory(bytes: u64, before: u64, queues_left: u16, maps_left: Option<usize>) -> u64 {
    // Some are the application's.
    const FEW: usize = 8;
    match maps_left {
        Some(..=FEW) => bytes.saturating_mul(queues_left.max(1).into()),
        _ => bytes.max(before.saturating_mul(2)),
    }
}

impl Inner {
    pub fn max_entries(&self) -> u32 {
        // The largest power of two.
        1 << self.hw.max_entries().ilog2()
    }

    pub fn max_transfer(&self) -> u32 {
        // A PRP list has one page, and one entry is in the command.
        let list = self.hw.page / 8 * self.hw.page;
        let device = self.controller.max_transfer.unwrap_or(u64::MAX);
        let limit = u64::from(self.options.max_transfer).min(list).min(device).max(self.hw.cap.min_page());
        limit.min(1 << 30) as u32
    }

    /// Bytes of one command at most, metadata between blocks among them, where there is some.
    pub fn max_interleaved(&self) -> u32 {
        let data = self.max_transfer();
        // A list has one page. Metadata is never more than its block.
        let list = (self.hw.page / 8 * self.hw.page).min(1 << 30) as u32;
        if self.hw.has(Quirk::DataOnlyLimit) { data.saturating_mul(2).min(list) } else { data }
    }

    /// Words of a slot's list: a power of two.
    fn list_words(&self) -> u32 {
        let words = list_words(self.max_interleaved(), self.hw.page);
        if self.hw.has(Quirk::AlignedLists) { words.max(LIST_ALIGN / 8) } else { words }
    }

    /// Everything a queue needs; the controller knows of it then.
    pub fn make_queue(&self, control: &mut Control, entries: u32, vector: Option<u16>) -> Result<Parts> {
        let granted = control.granted;
        let qid = (1..=granted).find(|q| !control.queues.contains_key(q));
        let qid = qid.ok_or_else(|| Error::NoQueueLeft { device: self.hw.name(), granted })?;
        let count = self.queue_context.interrupts().map_or(0, Interrupts::count);
        let dealt = vector == Some(ANY_VECTOR);
        let vector = match vector {
            Some(ANY_VECTOR) => {
                let used = |v: u16| control.queues.values().any(|record| record.vector == Some(v));
                (1..count.min(ANY_VECTOR.into()) as u16).find(|v| !used(*v))
            }
            asked => asked,
        };
        if let Some(vector) = vector.filter(|&vector| vector == 0 || u32::from(vector) >= count) {
            return Err(Error::Vector { device: self.hw.name(), vector, count });
        }
        let page = self.hw.page;
        let list_words = self.list_words();
        let long = if self.hw.has(Quirk::LongEntries) { 128 } else { 0 };
        let bytes = u64::from(entries) * (64 + long + 16 + 8 * u64::from(list_words)) + 5 * page;
        let mut made = None;
        let before = control.memory.last().map_or(0, |m| m.arena().len());
        // After a reset it may grant fewer than there were.
        let queues_left = granted.saturating_sub(control.queues.len() as u16);
        let more = ring_memory(bytes, before, queues_left, self.hw.device.dma().maps_left());
        for attempt in 0..2 {
            let Some(mapping) = control.memory.last().cloned() else { break };
            let shadows = control.shadows.as_ref().map(|(s, _)| s);
            let bells = Bell::pair(&self.hw.bar, qid, self.hw.cap.doorbell_stride(), shadows)?;
            let arena = mapping.arena();
            let parts = QueuePair::new(qid, arena.clone(), entries, page, bells)
                .and_then(|pair| Ok((pair, DmaRing::new(arena.clone(), entries * list_words, page)?)));
            match parts {
                Ok((pair, lists)) => {
                    made = Some((pair, lists, mapping));
                    break;
                }
                Err(wholebar_core::Error::ArenaFull { .. }) if attempt == 0 => {
                    control.memory.push(memory(&self.hw, more)?)
                }
                Err(error) => return Err(error.into()),
            }
        }
        let Some((mut pair, lists, mapping)) = made else {
            return Err(Error::NoQueueLeft { device: self.hw.name(), granted });
        };
        let (elsewhere, controller_lists) = self.elsewhere(&mut pair, &mapping, entries, list_words)?;
        let aborts = Arc::new(AtomicU64::new(0));
        let record = Record {
            entries,
            vector,
            mapping: mapping.clone(),
            rings: pair.rings(),
            elsewhere,
            epoch: self.domain.epoch(),
            aborts: aborts.clone(),
            orphan: false,
        };
        let quarantine = |on| {
            pair.set_quarantine(on);
            lists.set_quarantine(on);
            controller_lists.iter().for_each(|part| part.set_quarantine(on));
        };
        quarantine(true);
        let created = control.create(&self.hw, qid, &record);
        if let Err(Error::Refused { .. }) = created {
            quarantine(false);
        }
        created?;
        control.queues.insert(qid, record);
        let gate = self.domain.join(qid.into());
        let lists_iova = mapping.iova().offset(lists.chunk().offset()).0;
        let vector = vector.filter(|_| dealt);
        Ok(Parts { qid, gate, pair, lists, lists_iova, list_words, elsewhere, controller_lists, vector, aborts })
    }

    /// Has a queue's entries, its lists of PRPs, and its completions if that is asked for, lie in the controller's memory, as far as that is used and has room; or
    /// the entries where there is room for long ones: where the entries are, and the lists.
    fn elsewhere(
        &self,
        pair: &mut QueuePair,
        mapping: &DmaMapping,
        entries: u32,
        list_words: u32,
    ) -> Result<(Option<u64>, Option<Part>)> {
        if self.hw.has(Quirk::LongEntries) {
            let ring = DmaRing::new(mapping.arena().clone(), entries, self.hw.page)?;
            let at = mapping.iova().offset(ring.chunk().offset()).0;
            pair.copy_entries(Elsewhere::Long(ring));
            return Ok((Some(at), None));
        }
        let Some(memory) = &self.hw.controller_memory else { return Ok((None, None)) };
        let Some(part) = memory.take(u64::from(entries) * 64, self.hw.page) else { return Ok((None, None)) };
        let at = part.iova();
        pair.copy_entries(Elsewhere::Controller(part));
        if self.options.controller_completions
            && self.hw.memory.is_some_and(|memory| memory.completion_queues)
            && let Some(part) = memory.take(u64::from(entries) * 16, self.hw.page)
        {
            pair.move_completions(part);
        }
        let lists = self.hw.memory.is_some_and(|memory| memory.lists);
        // Each list lies in a page.
        let list_bytes = u64::from(list_words) * 8;
        let lists = lists.then(|| memory.take(u64::from(entries) * list_bytes, self.hw.page)).flatten();
        Ok((Some(at), lists))
    }
}

impl Driver for Inner {
    const NAME: &'static str = "nvme";
    type State = Control;
    type Event = Event;
    type QueueFault = QueueFault;
    type Error = Error;

    fn recovery(error: &Error, _: &dyn PciDevice) -> Recovery {
        match error {
            Error::Core(wholebar_core::Error::Gone { .. }) => Recovery::Gone,
            Error::Fatal { .. } | Error::Unanswered { .. } | Error::Broken { .. } => Recovery::Reset,
            _ => Recovery::Nothing,
        }
    }

    fn stop(&self, _: &mut Control) -> Result<()> {
        self.hw.disable()
    }

    fn restart(&self, control: &mut Control, _: &[u32]) -> Result<()> {
        self.hw.bus_master(true)?;
        self.hw.restore_persistent_memory()?;
        control.admin.start(&self.hw)?;
        control.set_up(&self.hw, &self.controller, &self.options)?;
        // What it would have told meanwhile is lost.
        self.namespaces.read_again(&self.hw, &mut control.admin, &self.controller, &Changed::All)?;
        control.recreate(&self.hw, &self.domain)
    }

    fn handle_fault(&self, control: &mut Control, fault: QueueFault) -> Result<Option<String>> {
        match fault {
            QueueFault::Overdue { qid, cid } => control.abort(&self.hw, qid, cid).map(|()| None),
            QueueFault::Stuck { .. } | QueueFault::Broken(_) => Ok(Some(fault.to_string())),
        }
    }

    fn poll_events(&self, control: &mut Control, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.hw.healthy("while it was running")?;
        control.take_events(&self.hw, &self.controller, &self.namespaces, tell)
    }

    fn prepare_shutdown(&self, control: &mut Control) -> Result<()> {
        // A controller that does not give it back is shut down all the same.
        let taken = control.take_host_memory(&self.hw);
        self.hw.shut_down(self.options.admin_timeout).and(taken)
    }

    fn release(&self, control: &mut Control) {
        control.release();
    }
}

/// Has the controller forget a queue whose owner drops it; whether it certainly cannot reach its memory any more.
pub(crate) fn delete_queue(handle: &Handle, qid: u16) -> bool {
    let driver = handle.driver();
    let deleted = handle.with(|control| {
        let Some(record) = control.queues.get_mut(&qid) else { return Ok(()) };
        // In any other epoch the controller was reset since, and the queue not made again.
        if record.epoch == driver.domain.epoch() {
            record.orphan = true;
            control.delete(&driver.hw, qid)?;
        }
        control.queues.remove(&qid);
        Ok(())
    });
    match deleted {
        Ok(()) => true,
        Err(error) => {
            let ended = driver.domain.ended();
            if ended.is_none() {
                tracing::warn!(qid, %error, "a queue could not be deleted");
            }
            ended.is_some_and(|end| end.harmless)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ring_memory;

    #[test]
    fn rings_take_few_maps() {
        assert_eq!(ring_memory(500, 0, 64, None), 500);
        assert_eq!(ring_memory(500, 1000, 64, Some(65_535)), 2000);
        assert_eq!(ring_memory(500, 100, 64, Some(9)), 500);
        assert_eq!(ring_memory(500, 1000, 64, Some(8)), 32_000, "one map for all that are left");
        assert_eq!(ring_memory(500, 1000, 1, Some(0)), 500);
    }
}
