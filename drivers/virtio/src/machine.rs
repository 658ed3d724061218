//! A device that runs: what is under the one lock, the slow path's thread, resets. The same for every type of device.
//!
//! All of a device's queues are made when it is opened, since a device has to know them before it starts (VIRTIO 1.2, 3.1.1). One that nobody
//! has, or whose owner dropped it, is *parked* here, with what it has in flight, and looked after.

use crate::error::{Error, Result};
use crate::hardware::{Hardware, NO_VECTOR};
use crate::options::{Options, Service};
use crate::ring::{Areas, Ring, RingOptions};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wholebar::irq::{EventFd, Interrupts};
use wholebar::mem::{Arena, ArenaOptions, DmaMapping};
use wholebar::pci::{IRQ_ERR, IRQ_MSIX, IRQ_REQ, function};
use wholebar::reset::{Domain, End, Phase};

/// What a type of device adds.
pub(crate) trait Personality: Send + Sync + Sized + 'static {
    /// What its users are told.
    type Event: Send;
    /// Its queues, as they are parked.
    type Queue: Parked;
    /// What else is under the lock.
    type State: Send;

    /// What happened to the device, as its users are told.
    fn event(happening: Happening) -> Self::Event;

    /// The device runs, for the first time or again: tells it what it has to know.
    fn started(&self, shared: &Shared, state: &mut Self::State) -> Result<()>;

    /// Its configuration may have changed.
    fn changed(&self, shared: &Shared, state: &mut Self::State, tell: &mut dyn FnMut(Self::Event)) -> Result<()>;
}

/// A queue that nobody has.
pub(crate) trait Parked: Send {
    /// Takes part in resets.
    fn look(&mut self);
}

/// What can happen to any device.
#[derive(Debug)]
pub(crate) enum Happening {
    FunctionError,
    UnbindRequest,
    Reset { why: String, lost: Vec<u32> },
    Ended { why: String },
}

/// What queues have of their device.
pub(crate) struct Shared {
    pub hw: Hardware,
    pub options: Options,
    /// What was negotiated.
    pub features: u64,
    pub domain: Domain,
    /// Arenas whose buffers its queues can use.
    arenas: Mutex<Vec<Arc<DmaMapping>>>,
    troubles: Mutex<Vec<(u64, Error)>>,
    /// Signalled by configuration changes, and by queues in trouble.
    wake: Arc<EventFd>,
}

/// A queue that the device knows of.
pub(crate) struct Record {
    pub index: u16,
    pub size: u16,
    pub vector: Option<u16>,
    pub mapping: Arc<DmaMapping>,
    pub areas: Areas,
}

/// A device, and what looks after it.
pub(crate) struct Machine<P: Personality> {
    pub shared: Arc<Shared>,
    pub personality: P,
    control: Mutex<Control<P>>,
    pub events: Receiver<P::Event>,
    pub interrupts: Option<Interrupts>,
    /// What the kernel has to say of the function: errors, requests to unbind.
    notices: Vec<(u32, Interrupts, Arc<EventFd>)>,
    /// The slow path's thread has to end.
    closing: AtomicBool,
}

pub(crate) struct Control<P: Personality> {
    records: Vec<Record>,
    parked: BTreeMap<u16, P::Queue>,
    pub state: P::State,
    /// A reset that waits for queues to take their hands off.
    stopping: Option<(String, Instant)>,
    /// The queues that the last reset waited for in vain.
    lost: Vec<u32>,
    events: Sender<P::Event>,
}

/// What keeps a device open, and its slow path's thread running: held by its owner and by its queues.
pub(crate) struct Handle<P: Personality> {
    machine: Arc<Machine<P>>,
    thread: Option<JoinHandle<()>>,
}

/// What a machine is made of: the device is reset, and its features are chosen.
pub(crate) struct Parts<P: Personality> {
    pub shared: Arc<Shared>,
    pub personality: P,
    pub interrupts: Option<Interrupts>,
    pub records: Vec<Record>,
    pub queues: BTreeMap<u16, P::Queue>,
    pub state: P::State,
}

/// How many events wait where nobody takes them.
const EVENTS: usize = 256;
/// How often the slow path's thread looks after a device's health, and, without an interrupt, its configuration.
const TICK: Duration = Duration::from_millis(200);

/// The MSI-X vectors of a device with `queues` queues that interrupt, where it has any, and what vector 0 signals.
pub(crate) fn vectors(hw: &Hardware, queues: u16) -> Result<(Option<Interrupts>, Arc<EventFd>)> {
    if hw.device.irq_info(IRQ_MSIX)?.count == 0 {
        return Ok((None, Arc::new(EventFd::new()?)));
    }
    let interrupts = Interrupts::new(hw.device.clone(), IRQ_MSIX, 1 + u32::from(queues))?;
    let wake = interrupts.vector(0)?;
    Ok((Some(interrupts), wake))
}

/// Lets the device into an arena of `bytes`.
pub(crate) fn memory(hw: &Hardware, bytes: u64) -> Result<Arc<DmaMapping>> {
    let arena = Arena::new(bytes, ArenaOptions::default())?;
    Ok(hw.device.dma().attach(&arena)?)
}

/// A ring in memory that the device was let into; recorded.
pub(crate) fn ring<R: Ring>(
    records: &mut Vec<Record>,
    memory: &Arc<DmaMapping>,
    index: u16,
    size: u16,
    options: RingOptions,
    vector: Option<u16>,
) -> Result<R> {
    let ring = R::new(memory.arena(), size, options)?;
    records.push(Record { index, size, vector, mapping: memory.clone(), areas: ring.areas() });
    Ok(ring)
}

impl Shared {
    pub fn new(hw: Hardware, options: Options, features: u64, wake: Arc<EventFd>) -> Arc<Self> {
        let (domain, arenas, troubles) = Default::default();
        Arc::new(Self { hw, options, features, domain, arenas, troubles, wake })
    }

    /// Whether a feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    /// Where arena `id` is, as the device sees it.
    pub fn arena(&self, id: u32) -> Option<Arc<DmaMapping>> {
        self.arenas().iter().find(|m| m.arena().id() == id).cloned()
    }

    /// Lets the device into an arena. Once more changes nothing.
    pub fn attach(&self, arena: &Arc<Arena>) -> Result<()> {
        let mapping = self.hw.device.dma().attach(arena)?;
        let mut arenas = self.arenas();
        if arenas.iter().all(|m| m.arena().id() != arena.id()) {
            arenas.push(mapping);
        }
        Ok(())
    }

    fn arenas(&self) -> MutexGuard<'_, Vec<Arc<DmaMapping>>> {
        self.arenas.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A queue's call for help, in the epoch it is in step with.
    pub fn trouble(&self, epoch: u64, error: Error) {
        self.troubles.lock().unwrap_or_else(|e| e.into_inner()).push((epoch, error));
        self.wake.signal();
    }

    /// Whether the device can be used.
    pub fn check(&self) -> Result<()> {
        match self.domain.ended() {
            None => Ok(()),
            Some(End { gone: true, why, .. }) => Err(Error::Gone { device: self.hw.name(), why }),
            Some(End { why, .. }) => Err(Error::Ended { device: self.hw.name(), why }),
        }
    }
}

impl<P: Personality> Handle<P> {
    /// Starts a device.
    pub fn start(parts: Parts<P>) -> Result<Self> {
        let Parts { shared, personality, interrupts, records, queues, state } = parts;
        let mut notices = Vec::new();
        for index in [IRQ_ERR, IRQ_REQ] {
            if shared.hw.device.irq_info(index).is_ok_and(|info| info.count > 0) {
                let interrupts = Interrupts::new(shared.hw.device.clone(), index, 1)?;
                let fd = interrupts.vector(0)?;
                notices.push((index, interrupts, fd));
            }
        }
        let (send, events) = bounded(EVENTS);
        let control = Control { records, parked: queues, state, stopping: None, lost: Vec::new(), events: send };
        let machine = Arc::new(Machine {
            shared,
            personality,
            control: Mutex::new(control),
            events,
            interrupts,
            notices,
            closing: AtomicBool::new(false),
        });
        // Dropped, it shuts the device down.
        let mut handle = Self { machine: machine.clone(), thread: None };
        machine.bring_up(&mut machine.control())?;
        if machine.shared.options.service == Service::Thread {
            let thread = std::thread::Builder::new().name("virtio".to_owned()).spawn(move || look_after(&machine));
            let failed = |source| wholebar::Error::Io { what: "starting the slow path's thread".to_owned(), source };
            handle.thread = Some(thread.map_err(failed)?);
        }
        Ok(handle)
    }
}

/// The slow path's thread.
fn look_after<P: Personality>(machine: &Machine<P>) {
    // Pairs with the Release store when the handle is dropped; the wake-up that follows it brings us here.
    while !machine.closing.load(Ordering::Acquire) {
        let wait = match machine.service() {
            Ok(true) => Duration::from_millis(1),
            Ok(false) => TICK,
            Err(_) => return,
        };
        if let Err(error) = machine.shared.wake.wait(Some(wait)) {
            return tracing::error!(%error, "the slow path ended");
        }
    }
}

impl<P: Personality> Machine<P> {
    pub fn control(&self) -> MutexGuard<'_, Control<P>> {
        self.control.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn hw(&self) -> &Hardware {
        &self.shared.hw
    }

    /// From reset to DRIVER_OK, and what the type of device does then (VIRTIO 1.2, 3.1.1).
    fn bring_up(&self, control: &mut Control<P>) -> Result<()> {
        let hw = self.hw();
        hw.bus_master(true)?;
        hw.negotiate(self.shared.features)?;
        if self.interrupts.is_some() {
            hw.set_config_vector(0)?;
        }
        for record in &control.records {
            record.areas.set_quarantine(true);
            let base = record.mapping.iova();
            let areas = record.areas.offsets().map(|at| base.offset(at).0);
            hw.enable_queue(record.index, record.size, areas, record.vector.unwrap_or(NO_VECTOR))?;
        }
        hw.start()?;
        self.personality.started(&self.shared, &mut control.state)
    }

    /// Does something under the lock, once no reset is under way. What the error says of the device is acted upon.
    pub fn with<T>(&self, f: impl FnOnce(&P, &Shared, &mut P::State) -> Result<T>) -> Result<T> {
        let mut control = loop {
            let mut control = self.control();
            self.shared.check()?;
            if control.stopping.is_none() {
                break control;
            }
            self.advance(&mut control);
            drop(control);
            std::thread::yield_now();
        };
        let done = f(&self.personality, &self.shared, &mut control.state);
        done.inspect_err(|error| self.settle(&mut control, error))
    }

    /// Acts upon what an error says of the device.
    fn settle(&self, control: &mut Control<P>, error: &Error) {
        match error {
            Error::Gone { .. } => self.end(control, error, ""),
            Error::NeedsReset { .. } | Error::Unanswered { .. } | Error::Broken { .. } => {
                self.begin_reset(control, error.to_string());
            }
            _ => {}
        }
    }

    fn begin_reset(&self, control: &mut Control<P>, why: String) {
        if control.stopping.is_none() && self.shared.domain.phase() == Phase::Running {
            tracing::warn!(device = self.hw().name(), why, "resetting the device");
            self.shared.domain.stop();
            control.stopping = Some((why, Instant::now()));
            self.shared.wake.signal();
        }
    }

    /// Does what there is to do on the slow path; whether it wants to be called again soon.
    pub fn service(&self) -> Result<bool> {
        let mut control = self.control();
        self.shared.check()?;
        for (index, _, fd) in &self.notices {
            if fd.take() > 0 {
                if *index == IRQ_ERR {
                    control.tell(Happening::FunctionError);
                    self.begin_reset(&mut control, "the kernel reports an error of the function".to_owned());
                } else {
                    control.tell(Happening::UnbindRequest);
                }
            }
        }
        let troubles = std::mem::take(&mut *self.shared.troubles.lock().unwrap_or_else(|e| e.into_inner()));
        for (epoch, error) in troubles {
            // Else it was of what a reset ended.
            if epoch == self.shared.domain.epoch() {
                self.begin_reset(&mut control, error.to_string());
            }
        }
        if control.stopping.is_none() {
            let Control { state, events, .. } = &mut *control;
            let mut tell = |event| drop(events.try_send(event));
            let healthy = self.hw().healthy();
            let done = healthy.and_then(|()| self.personality.changed(&self.shared, state, &mut tell));
            if let Err(error) = done {
                self.settle(&mut control, &error);
            }
        }
        self.advance(&mut control);
        self.shared.check()?;
        Ok(control.stopping.is_some())
    }

    /// Goes on with a reset, if one is under way and does not wait for queues.
    fn advance(&self, control: &mut Control<P>) {
        let Some((_, since)) = &control.stopping else { return };
        let (since, domain) = (*since, &self.shared.domain);
        control.parked.values_mut().for_each(Parked::look);
        if !domain.waiting().is_empty() && since.elapsed() < self.shared.options.stop_timeout {
            return;
        }
        control.lost = domain.expel();
        let why = control.stopping.take().map(|(why, _)| why).unwrap_or_default();
        match self.reset_now(control) {
            Ok(()) => {
                domain.resume();
                control.parked.values_mut().for_each(Parked::look);
                let lost = control.lost.clone();
                control.tell(Happening::Reset { why, lost });
            }
            Err(error) => self.end(control, &error, &why),
        }
    }

    /// Resets the device; where that doesn't work, the function. Queues have their hands off.
    fn reset_now(&self, control: &mut Control<P>) -> Result<()> {
        let hw = self.hw();
        if let Err(error) = hw.bus_master(false) {
            tracing::debug!(%error, "bus mastering could not be turned off");
        }
        match hw.reset().and_then(|()| self.restart(control)) {
            Err(error) if hw.device.info().resettable => {
                tracing::warn!(%error, "resetting the function");
                function::reset(hw.device.as_ref())?;
                hw.reset()?;
                self.restart(control)
            }
            done => done,
        }
    }

    fn restart(&self, control: &mut Control<P>) -> Result<()> {
        self.shared.domain.quiet();
        control.parked.values_mut().for_each(Parked::look);
        // A lost queue's ring is its owner's still; the device is not told of it again.
        let lost = std::mem::take(&mut control.lost);
        control.records.retain(|record| !lost.contains(&record.index.into()));
        control.lost = lost;
        control.records.iter().for_each(|record| record.areas.zero());
        if let Some(interrupts) = &self.interrupts {
            // A function level reset took them away.
            interrupts.restore()?;
        }
        self.bring_up(control)
    }

    /// The device cannot be used any more.
    fn end(&self, control: &mut Control<P>, error: &Error, during: &str) {
        control.stopping = None;
        let gone = matches!(error, Error::Gone { .. });
        let hw = self.hw();
        let _ = hw.bus_master(false);
        // Nobody on the bus writes nothing; a device that was reset doesn't either.
        let absent = function::is_absent(hw.device.as_ref()).unwrap_or(false);
        let harmless = absent || (!gone && hw.reset().is_ok());
        let why =
            if during.is_empty() { error.to_string() } else { format!("{error} (it was reset because {during})") };
        tracing::error!(why, harmless, "the device has ended");
        self.shared.domain.end(End { gone, harmless, why: why.clone() });
        control.tell(Happening::Ended { why });
    }

    /// Begins to reset the device.
    pub fn request_reset(&self) {
        self.begin_reset(&mut self.control(), "it was asked for".to_owned());
    }

    /// Resets the device, and waits until its queues can go on.
    pub fn reset(&self) -> Result<()> {
        self.request_reset();
        loop {
            let mut control = self.control();
            self.advance(&mut control);
            if control.stopping.is_none() {
                self.shared.check()?;
                if control.lost.is_empty() {
                    return Ok(());
                }
                let (queues, waited) = (control.lost.clone(), self.shared.options.stop_timeout);
                return Err(Error::Unresponsive { device: self.hw().name(), queues, waited });
            }
            drop(control);
            std::thread::yield_now();
        }
    }

    /// Takes a queue that is parked.
    pub fn take(&self, index: u16) -> Option<P::Queue> {
        self.control().parked.remove(&index)
    }

    /// Parks a queue.
    pub fn park(&self, index: u16, queue: P::Queue) {
        self.control().parked.insert(index, queue);
    }

    pub fn shut_down(&self) -> Result<()> {
        let mut control = self.control();
        self.shared.check()?;
        let done = self.hw().reset();
        let _ = self.hw().bus_master(false);
        match &done {
            Ok(()) => {
                control.stopping = None;
                let why = "it was shut down".to_owned();
                self.shared.domain.end(End { gone: false, harmless: true, why });
            }
            Err(error) => self.end(&mut control, error, ""),
        }
        done
    }
}

impl<P: Personality> Control<P> {
    /// Passes an event on; the oldest stay where nobody takes them.
    fn tell(&self, happening: Happening) {
        let _ = self.events.try_send(P::event(happening));
    }
}

impl<P: Personality> Deref for Handle<P> {
    type Target = Machine<P>;

    fn deref(&self) -> &Machine<P> {
        &self.machine
    }
}

impl<P: Personality> Drop for Handle<P> {
    fn drop(&mut self) {
        // Pairs with the Acquire load in the thread.
        self.closing.store(true, Ordering::Release);
        self.shared.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.shared.domain.ended().is_none()
            && let Err(error) = self.shut_down()
        {
            tracing::warn!(%error, "the device was not shut down");
        }
        // Its memory is unmapped and freed after this, the memory that it may still write only unmapped.
        if self.shared.domain.ended().is_some_and(|end| end.harmless) {
            self.control().records.iter().for_each(|record| record.areas.set_quarantine(false));
        }
    }
}
