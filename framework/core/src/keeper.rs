//! What keeps a device going: the one lock of its control plane, the slow path's thread, calls for help from queues, resets, the end.
//!
//! It is the same for every driver; what differs is a [`Driver`]: how its device is stopped and brought up again, and what has to be looked
//! after. This file does *not* know any device, nor what queues do while they wait ([`reset`](crate::reset)).

use crate::irq::{EventFd, Interrupts};
use crate::mem::{Arena, DmaMapping};
use crate::pci::{Irq, Opening, PciDevice, config, function};
use crate::reset::{Domain, End, Phase};
use crate::{Error, Result};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::fmt::Display;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a driver adds: how its device is stopped and brought up. All but [`remedy`](Self::remedy) are called under the lock of the control plane, from
/// [`Kept::service`] and whoever resets the device; what is not written here does what most drivers need.
///
/// ```
/// use wholebar_core::bar::Bar;
/// use wholebar_core::keeper::{Driver, Happened};
/// use wholebar_core::pci::config;
/// use wholebar_core::{Error, Result};
///
/// struct Engine(Bar);
///
/// impl Driver for Engine {
///     const NAME: &'static str = "engine";
///     type State = ();
///     type Event = Happened;
///     type Trouble = String;
///     type Error = Error;
///
///     fn stop(&self, _: &mut ()) -> Result<()> {
///         self.0.write(0x10, 0u32)
///     }
///
///     fn restart(&self, _: &mut (), _: &[u32]) -> Result<()> {
///         config::enable_bus_master(self.0.device().as_ref(), true)?;
///         self.0.write(0x10, 1u32)
///     }
/// }
/// ```
pub trait Driver: Send + Sync + Sized + 'static {
    /// What the slow path's thread is called.
    const NAME: &'static str;
    /// What is under the lock.
    type State: Send;
    /// What its users are told: [`Event`] does, where they need no more.
    type Event: From<Happened> + Send;
    /// A queue's call for help, which says what is wrong.
    type Trouble: Display + Send;
    /// What can go wrong.
    type Error: From<Error> + Display;

    /// What an error says of the device. By default, that it is gone where nobody answers for it on its bus, and else nothing.
    fn remedy(error: &Self::Error, device: &dyn PciDevice) -> Remedy {
        let _ = error;
        match function::check(device) {
            Err(Error::Gone { .. }) => Remedy::Gone,
            _ => Remedy::Nothing,
        }
    }

    /// Stops the device: when this returns, it reaches no memory any more, nor its queues. An error says that it may.
    fn stop(&self, state: &mut Self::State) -> Result<(), Self::Error>;

    /// Brings the device up, with its queues, but for those that were `lost`: after [`stop`](Self::stop), a reset of the function perhaps, and
    /// with bus mastering off. Interrupts are set up.
    fn restart(&self, state: &mut Self::State, lost: &[u32]) -> Result<(), Self::Error>;

    /// Queues that nobody has take their turn in a reset. By default, there are none.
    fn turn(&self, state: &mut Self::State) {
        let _ = state;
    }

    /// Helps a queue. A reason is one to reset the device, as is any trouble by default.
    fn help(&self, state: &mut Self::State, trouble: Self::Trouble) -> Result<Option<String>, Self::Error> {
        let _ = state;
        Ok(Some(trouble.to_string()))
    }

    /// Looks after the device, and passes on what it tells: when its vector 0 was raised, and several times a second. Interrupts that a device has to be
    /// told to lower are acknowledged here. By default, there is nothing to do.
    fn attend(&self, state: &mut Self::State, tell: &mut dyn FnMut(Self::Event)) -> Result<(), Self::Error> {
        let _ = (state, tell);
        Ok(())
    }

    /// Has the device put everything away (caches written back, say), before it is stopped for good. By default, there is nothing.
    fn put_away(&self, state: &mut Self::State) -> Result<(), Self::Error> {
        let _ = state;
        Ok(())
    }

    /// The device is stopped for good: memory that was [quarantined](crate::mem::Chunk::set_quarantine) while it knew of it may be given back. By
    /// default, there is none.
    fn release(&self, state: &mut Self::State) {
        let _ = state;
    }
}

/// What can happen to any device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// The kernel reports an error of the function (AER).
    FunctionError,
    /// The kernel wants the device back: close it soon.
    UnbindRequest,
    /// The device was reset; queues run again.
    Reset {
        /// Why.
        why: String,
        /// Queues whose owners did not poll: they are lost, and their buffers quarantined.
        lost: Vec<u32>,
    },
    /// The device cannot be used any more.
    Ended {
        /// Why.
        why: String,
    },
}

/// What users of a device are told, for a driver that needs no more than this: `T` is what its device tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T> {
    /// The device told something.
    Device(T),
    /// Something happened to the device.
    Happened(Happened),
}

impl<T> From<Happened> for Event<T> {
    fn from(happened: Happened) -> Self {
        Self::Happened(happened)
    }
}

/// What is to be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the device is as it was.
    Nothing,
    /// The device has to be reset.
    Reset,
    /// The device is gone.
    Gone,
}

/// Keeps a device open, and its slow path's thread running. Dropped, it stops the device for good.
pub struct Keeper<D: Driver> {
    kept: Arc<Kept<D>>,
    thread: Option<JoinHandle<()>>,
}

/// A device that is kept.
pub struct Kept<D: Driver> {
    driver: D,
    control: Mutex<Control<D>>,
    ties: Arc<Ties<D::Trouble>>,
    events: Receiver<D::Event>,
    /// What the kernel has to say of the function.
    notices: Vec<(Irq, Interrupts, Arc<EventFd>)>,
    /// How long a queue's owner may take to poll it while the device is to be reset.
    patience: Duration,
    /// The slow path's thread has to end.
    closing: AtomicBool,
}

/// What queues have of it: a part of its own, for queues that are themselves kept under the lock.
pub struct Ties<T> {
    device: Arc<dyn PciDevice>,
    domain: Domain,
    interrupts: Option<Interrupts>,
    troubles: Mutex<Vec<(u64, T)>>,
    /// Arenas whose buffers queues can use.
    arenas: Mutex<Vec<Arc<DmaMapping>>>,
    /// Signalled by vector 0 of the device, and by queues in trouble.
    wake: Arc<EventFd>,
}

/// What is under the lock.
struct Control<D: Driver> {
    state: D::State,
    /// Why a reset waits for queues to take their hands off, and since when.
    stopping: Option<(String, Instant)>,
    /// The queues that the last reset waited for in vain.
    lost: Vec<u32>,
    events: Sender<D::Event>,
}

/// How many events wait where nobody takes them.
const EVENTS: usize = 256;
/// How often the slow path's thread looks after a device without being asked to.
const TICK: Duration = Duration::from_millis(200);

impl<D: Driver> Keeper<D> {
    /// Brings a device up ([`Driver::stop`], [`Driver::restart`]), keeps it, and starts the slow path's thread. A queue's owner may take
    /// `patience` to poll it while the device is to be reset.
    ///
    /// # Errors
    /// The driver's, where the device does not come up; [`Error::Io`] where the system has no thread or descriptor left.
    pub fn start(
        driver: D,
        state: D::State,
        ties: Arc<Ties<D::Trouble>>,
        patience: Duration,
    ) -> Result<Self, D::Error> {
        let _opening = Opening::of(ties.device());
        config::enable_bus_master(ties.device().as_ref(), false)?;
        // Dropped, it stops the device.
        let mut keeper = Self::new(driver, state, ties, patience)?;
        let mut control = keeper.control();
        // Whoever had it before may have left it running.
        keeper.driver.stop(&mut control.state)?;
        keeper.driver.restart(&mut control.state, &[])?;
        drop(control);
        keeper.spawn()?;
        Ok(keeper)
    }

    /// Keeps a device that runs.
    ///
    /// # Errors
    /// What the backend says of the kernel's notices; [`Error::Io`] where there is no thread to be had.
    pub fn new(driver: D, state: D::State, ties: Arc<Ties<D::Trouble>>, patience: Duration) -> Result<Self> {
        let mut notices = Vec::new();
        for kind in [Irq::Err, Irq::Req] {
            if ties.device().irq_info(kind).is_ok_and(|info| info.count > 0) {
                let interrupts = Interrupts::new(ties.device().clone(), kind, 1)?;
                let fd = interrupts.vector(0)?;
                notices.push((kind, interrupts, fd));
            }
        }
        let (send, events) = bounded(EVENTS);
        let control = Mutex::new(Control { state, stopping: None, lost: Vec::new(), events: send });
        let closing = AtomicBool::new(false);
        let kept = Arc::new(Kept { driver, control, ties, events, notices, patience, closing });
        Ok(Self { kept, thread: None })
    }

    /// Starts the slow path's thread. Without it somebody calls [`service`](Kept::service), regularly.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none to be had.
    pub fn spawn(&mut self) -> Result<()> {
        let kept = self.kept.clone();
        let thread = std::thread::Builder::new().name(D::NAME.to_owned()).spawn(move || kept.look_after());
        let failed = |cause| Error::Io { what: "starting the slow path's thread".to_owned(), cause };
        self.thread = Some(thread.map_err(failed)?);
        Ok(())
    }
}

impl<D: Driver> Kept<D> {
    /// The device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        self.ties.device()
    }

    /// What its queues are members of.
    pub fn domain(&self) -> &Domain {
        self.ties.domain()
    }

    /// What queues have of it.
    pub fn ties(&self) -> &Arc<Ties<D::Trouble>> {
        &self.ties
    }

    fn control(&self) -> MutexGuard<'_, Control<D>> {
        self.control.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Looks at what is under the lock, whatever the device is doing.
    pub fn peek<T>(&self, f: impl FnOnce(&mut D::State) -> T) -> T {
        f(&mut self.control().state)
    }

    /// Does something under the lock, once no reset is under way. What the error says of the device is acted upon.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`] where the device is that; what `f` says.
    pub fn with<T>(&self, f: impl FnOnce(&mut D::State) -> Result<T, D::Error>) -> Result<T, D::Error> {
        let mut control = loop {
            let mut control = self.control();
            self.check()?;
            if control.stopping.is_none() {
                break control;
            }
            self.advance(&mut control);
            drop(control);
            std::thread::yield_now();
        };
        f(&mut control.state).inspect_err(|error| self.settle(&mut control, error))
    }

    /// What happens to the device. While 256 events wait here, further ones are dropped.
    pub fn events(&self) -> &Receiver<D::Event> {
        &self.events
    }

    /// Whether the device can be used.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`] where it can't.
    pub fn check(&self) -> Result<()> {
        let device = || self.device().name().to_owned();
        match self.domain().ended() {
            None => Ok(()),
            Some(End { gone: true, why, .. }) => Err(Error::Gone { device: device(), why }),
            Some(End { why, .. }) => Err(Error::Ended { device: device(), why }),
        }
    }

    fn look_after(&self) {
        // Pairs with the Release store when the keeper is dropped; the wake-up that follows it brings us here.
        while !self.closing.load(Ordering::Acquire) {
            let wait = match self.service() {
                Ok(true) => Duration::from_millis(1),
                Ok(false) => TICK,
                Err(_) => return,
            };
            if let Err(error) = self.ties.wake.wait(Some(wait)) {
                return tracing::error!(%error, "the slow path ended");
            }
        }
    }

    /// Does what there is to do on the slow path; whether it wants to be called again soon. It waits for the device, but not for queues.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`], from when that is so.
    pub fn service(&self) -> Result<bool> {
        let mut control = self.control();
        self.check()?;
        for (kind, _, fd) in &self.notices {
            if fd.take() > 0 {
                if *kind == Irq::Err {
                    control.tell(Happened::FunctionError);
                    self.begin_reset(&mut control, "the kernel reports an error of the function".to_owned());
                } else {
                    control.tell(Happened::UnbindRequest);
                }
            }
        }
        let troubles = std::mem::take(&mut *self.ties.troubles.lock().unwrap_or_else(|e| e.into_inner()));
        for (epoch, trouble) in troubles {
            // Else it was of what a reset, or another's call for help, ended.
            if epoch == self.domain().epoch() && self.domain().ended().is_none() {
                match self.driver.help(&mut control.state, trouble) {
                    Ok(None) => {}
                    Ok(Some(why)) => self.begin_reset(&mut control, why),
                    Err(error) => self.settle(&mut control, &error),
                }
            }
        }
        if control.stopping.is_none() {
            let Control { state, events, .. } = &mut *control;
            // The oldest stay where nobody takes them.
            let attended = self.driver.attend(state, &mut |event| drop(events.try_send(event)));
            // What raised an interrupt was served above.
            let rearmed = self.ties.interrupts().map_or(Ok(()), Interrupts::rearm);
            if let Err(error) = attended.and(rearmed.map_err(D::Error::from)) {
                self.settle(&mut control, &error);
            }
        }
        self.advance(&mut control);
        self.check()?;
        Ok(control.stopping.is_some())
    }

    /// Acts upon what an error says of the device.
    fn settle(&self, control: &mut Control<D>, error: &D::Error) {
        match D::remedy(error, self.device().as_ref()) {
            Remedy::Gone => self.end(control, error, ""),
            Remedy::Reset => self.begin_reset(control, error.to_string()),
            Remedy::Nothing => {}
        }
    }

    fn begin_reset(&self, control: &mut Control<D>, why: String) {
        if control.stopping.is_none() && self.domain().phase() == Phase::Running {
            tracing::warn!(device = self.device().name(), why, "resetting the device");
            self.domain().stop();
            control.stopping = Some((why, Instant::now()));
            self.ties.wake.signal();
        }
    }

    /// Goes on with a reset, if one is under way and does not wait for queues.
    fn advance(&self, control: &mut Control<D>) {
        let Some((_, since)) = &control.stopping else { return };
        let (since, domain) = (*since, self.domain());
        self.driver.turn(&mut control.state);
        if !domain.waiting().is_empty() && since.elapsed() < self.patience {
            return;
        }
        control.lost = domain.expel();
        let why = control.stopping.take().map(|(why, _)| why).unwrap_or_default();
        match self.reset_now(control) {
            Ok(()) => {
                domain.resume();
                self.driver.turn(&mut control.state);
                let lost = control.lost.clone();
                control.tell(Happened::Reset { why, lost });
            }
            Err(error) => self.end(control, &error, &why),
        }
    }

    /// Resets the device; where that doesn't work, the function. Queues have their hands off.
    fn reset_now(&self, control: &mut Control<D>) -> Result<(), D::Error> {
        let device = self.device().as_ref();
        if let Err(error) = config::enable_bus_master(device, false) {
            tracing::debug!(%error, "bus mastering could not be turned off");
        }
        match self.start_over(control) {
            Err(error) if device.info().resettable => {
                tracing::warn!(%error, "resetting the function");
                function::reset(device)?;
                // Where it took the vectors' eventfds away, it took these too.
                for (_, interrupts, _) in &self.notices {
                    interrupts.restore()?;
                }
                self.start_over(control)
            }
            done => done,
        }
    }

    fn start_over(&self, Control { state, lost, .. }: &mut Control<D>) -> Result<(), D::Error> {
        self.driver.stop(state)?;
        self.domain().quiet();
        self.driver.turn(state);
        if let Some(interrupts) = self.ties.interrupts() {
            // A reset of the function took them away.
            interrupts.restore()?;
        }
        self.driver.restart(state, lost)
    }

    /// The device cannot be used any more.
    fn end(&self, control: &mut Control<D>, error: &D::Error, during: &str) {
        control.stopping = None;
        let gone = D::remedy(error, self.device().as_ref()) == Remedy::Gone;
        let device = self.device().as_ref();
        let _ = config::enable_bus_master(device, false);
        // Nobody on the bus writes nothing; a device that was stopped doesn't either.
        let absent = function::is_absent(device).unwrap_or(false);
        let harmless = absent || (!gone && self.driver.stop(&mut control.state).is_ok());
        // Who asks later is told which device is gone, and then this.
        let (error, known) = (error.to_string(), format!("{} is gone: ", device.name()));
        let error = error.strip_prefix(&known).filter(|_| gone).unwrap_or(&error);
        let why = if during.is_empty() { error.to_owned() } else { format!("{error} (it was reset because {during})") };
        tracing::error!(device = device.name(), why, harmless, "the device has ended");
        self.domain().end(End { gone, harmless, why: why.clone() });
        control.tell(Happened::Ended { why });
    }

    /// Begins to reset the device. [`service`](Self::service) goes on with it.
    pub fn request_reset(&self) {
        self.begin_reset(&mut self.control(), "it was asked for".to_owned());
    }

    /// Resets the device, and waits until its queues can go on. Queues have to be polled meanwhile, on other threads.
    ///
    /// # Errors
    /// [`Error::Unresponsive`] where queues were not polled, [`Error::Ended`] or [`Error::Gone`] where the reset did not work.
    pub fn reset(&self) -> Result<()> {
        self.request_reset();
        loop {
            let mut control = self.control();
            self.advance(&mut control);
            if control.stopping.is_none() {
                self.check()?;
                if control.lost.is_empty() {
                    return Ok(());
                }
                let (device, queues) = (self.device().name().to_owned(), control.lost.clone());
                return Err(Error::Unresponsive { device, queues, waited: self.patience });
            }
            drop(control);
            std::thread::yield_now();
        }
    }

    /// Stops the device for good. Queues end.
    ///
    /// # Errors
    /// What the device says, or doesn't.
    pub fn shut_down(&self) -> Result<(), D::Error> {
        let mut control = self.control();
        self.check()?;
        let away = self.driver.put_away(&mut control.state);
        let stopped = self.driver.stop(&mut control.state);
        let _ = config::enable_bus_master(self.device().as_ref(), false);
        match &stopped {
            Ok(()) => {
                control.stopping = None;
                self.domain().end(End { gone: false, harmless: true, why: "it was shut down".to_owned() });
            }
            Err(error) => self.end(&mut control, error, ""),
        }
        away.and(stopped)
    }
}

impl<T> Ties<T> {
    /// Of a device and its interrupts, whose vector 0 wakes the slow path. Without any, the slow path looks after the device several times a second.
    ///
    /// # Errors
    /// What [`Interrupts::vector`] says; [`Error::Io`] where the process has no descriptor left.
    pub fn new(device: &Arc<dyn PciDevice>, interrupts: Option<Interrupts>) -> Result<Arc<Self>> {
        let wake = match &interrupts {
            Some(interrupts) => interrupts.vector(0)?,
            None => Arc::new(EventFd::new()?),
        };
        let (device, domain, troubles, arenas) = (device.clone(), Domain::new(), Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { device, domain, interrupts, troubles, arenas, wake }))
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.device
    }

    /// What the device's queues are members of.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The device's interrupts, where it has some: vector 0 is the slow path's.
    pub fn interrupts(&self) -> Option<&Interrupts> {
        self.interrupts.as_ref()
    }

    /// What is signalled when there is something for [`service`](Kept::service) to do at once.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    /// A queue's call for help, in the epoch it is in step with.
    pub fn trouble(&self, epoch: u64, trouble: T) {
        self.troubles.lock().unwrap_or_else(|e| e.into_inner()).push((epoch, trouble));
        self.wake.signal();
    }

    /// Lets the device into an arena, whose buffers its queues can use then, at an address within the device's DMA mask. Once more changes nothing.
    ///
    /// # Errors
    /// As [`DmaSpace::attach`](crate::mem::DmaSpace::attach).
    pub fn attach(&self, arena: &Arc<Arena>) -> Result<Arc<DmaMapping>> {
        let mapping = self.device.dma().attach(arena)?;
        let mut arenas = self.arenas();
        if arenas.iter().all(|m| m.arena().id() != arena.id()) {
            arenas.push(mapping.clone());
        }
        Ok(mapping)
    }

    /// Takes an arena away from the device: it is unmapped when this returns, and no queue can use its buffers. One that is not attached is no
    /// error.
    ///
    /// # Errors
    /// [`Error::StillAttached`] where a queue was given buffers of it and still is there, or a ring is in it: nothing has changed then.
    pub fn detach(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut arenas = self.arenas();
        let Some(at) = arenas.iter().position(|m| m.arena().id() == arena.id()) else { return Ok(()) };
        let mapping = arenas.swap_remove(at);
        mapping.detach().map_err(|held| {
            arenas.push(held);
            Error::StillAttached { device: self.device.name().to_owned(), len: arena.len() }
        })
    }

    /// Where arena `id` is, as the device sees it.
    pub fn arena(&self, id: u32) -> Option<Arc<DmaMapping>> {
        self.arenas().iter().find(|m| m.arena().id() == id).cloned()
    }

    fn arenas(&self) -> MutexGuard<'_, Vec<Arc<DmaMapping>>> {
        self.arenas.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl<D: Driver> Control<D> {
    /// Passes an event on; the oldest stay where nobody takes them.
    fn tell(&self, happened: Happened) {
        let _ = self.events.try_send(happened.into());
    }
}

impl<D: Driver> Deref for Keeper<D> {
    type Target = Kept<D>;

    fn deref(&self) -> &Kept<D> {
        &self.kept
    }
}

impl<D: Driver> Deref for Kept<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.driver
    }
}

impl<D: Driver> Drop for Keeper<D> {
    fn drop(&mut self) {
        // Pairs with the Acquire load in the thread.
        self.closing.store(true, Ordering::Release);
        self.ties.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.domain().ended().is_none()
            && let Err(error) = self.shut_down()
        {
            tracing::warn!(%error, "the device was not shut down");
        }
        // Its memory is unmapped and freed after this, the memory that it may still write only unmapped.
        if self.domain().ended().is_some_and(|end| end.harmless) {
            self.driver.release(&mut self.control().state);
        }
    }
}

#[cfg(test)]
mod tests;
