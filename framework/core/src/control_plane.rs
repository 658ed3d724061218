//! The control plane of a device: its lock, the slow path's thread, faults that queues report, resets, shutdown.
//!
//! It is the same for every driver. The part that differs is a [`Driver`]: how its device is stopped and brought up again, and how its events are polled.
//! This file does *not* know any device, nor what queues do during a reset ([`reset`](crate::reset)).

use crate::irq::{EventFd, Interrupts};
use crate::pci::{Irq, Opening, PciDevice, config, function};
use crate::reset::{Domain, End, Phase};
use crate::{Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fmt::Display;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod context;
mod event;
mod iovas;
mod service;

pub use context::QueueContext;
pub use event::{DeviceEvent, Event};
pub use iovas::Iovas;
pub use service::Service;

/// A driver's part of the control plane: how its device is stopped and brought up.
///
/// All methods are called under the control plane's lock, from [`DeviceControl::service`] and from the methods of [`DeviceControl`] that wait for a
/// reset, fail or shut the device down. They must not call back into the control plane. The provided methods do what most drivers need.
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::time::Duration;
/// use wholebar::bar::Bar;
/// use wholebar::control_plane::{ControlPlane, DeviceEvent, Driver, QueueContext};
/// use wholebar::irq::Interrupts;
/// use wholebar::pci::config;
/// use wholebar::{Error, Result};
///
/// struct Engine(Bar);
///
/// impl Driver for Engine {
///     const NAME: &'static str = "engine";
///     type State = ();
///     type Event = DeviceEvent;
///     type QueueFault = String;
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
///
/// /// Brings an engine up. Dropping the control plane stops it.
/// fn start(bar: Bar) -> Result<ControlPlane<Engine>> {
///     let device = bar.device().clone();
///     let context = QueueContext::new(device.clone(), Interrupts::best(device.clone(), 1)?)?;
///     ControlPlane::start(Engine(bar), (), context, Duration::from_secs(5))
/// }
/// ```
pub trait Driver: Send + Sync + Sized + 'static {
    /// The name of the slow path's thread; the kernel shows its first 15 bytes.
    const NAME: &'static str;
    /// The state that the control plane's lock guards.
    type State: Send;
    /// The type of the events that users of the device receive: [`Event`], or an enum of the driver's own.
    type Event: From<DeviceEvent> + Send;
    /// A fault that a queue reports. Its `Display` says what is wrong.
    type QueueFault: Display + Send;
    /// The driver's error.
    type Error: From<Error> + Display;

    /// Returns how to recover from an error. By default [`Recovery::Gone`] where the function does not answer on its bus any more, and else
    /// [`Recovery::Nothing`].
    fn recovery(error: &Self::Error, device: &dyn PciDevice) -> Recovery {
        let _ = error;
        match function::check(device) {
            Err(Error::Gone { .. }) => Recovery::Gone,
            _ => Recovery::Nothing,
        }
    }

    /// Stops the device. An implementer returns `Ok` only once the device, its queues included, does not reach memory any more.
    ///
    /// # Errors
    /// The driver's own. The device may still reach memory then. The control plane resets the function, where it can; else the device has ended.
    fn stop(&self, state: &mut Self::State) -> Result<(), Self::Error>;

    /// Brings the device up, with all of its queues but those in `lost`. Called after [`stop`](Self::stop), perhaps after a reset of the function,
    /// with bus mastering off and interrupts set up: an implementer turns bus mastering on.
    ///
    /// # Errors
    /// The driver's own. The control plane resets the function, where it can, and tries once more; else the device has ended.
    fn restart(&self, state: &mut Self::State, lost: &[u32]) -> Result<(), Self::Error>;

    /// Polls the queues that no application has at the moment, because they take part in resets, too. By default there are none.
    fn poll_parked(&self, state: &mut Self::State) {
        let _ = state;
    }

    /// Handles a fault that a queue reported. Returns the reason for a reset of the device, where it needs one; by default the fault's text.
    ///
    /// # Errors
    /// The driver's own. The control plane acts as [`recovery`](Self::recovery) says.
    fn handle_fault(&self, state: &mut Self::State, fault: Self::QueueFault) -> Result<Option<String>, Self::Error> {
        let _ = state;
        Ok(Some(fault.to_string()))
    }

    /// Polls the device for events, and passes them to `tell`. Called when vector 0 was raised, and several times a second. An interrupt that the
    /// device must be told to lower is acknowledged here. By default it does nothing.
    ///
    /// # Errors
    /// The driver's own. The control plane acts as [`recovery`](Self::recovery) says.
    fn poll_events(&self, state: &mut Self::State, tell: &mut dyn FnMut(Self::Event)) -> Result<(), Self::Error> {
        let _ = (state, tell);
        Ok(())
    }

    /// Prepares the device for being stopped for good: it writes back its caches, for example. By default it does nothing.
    ///
    /// # Errors
    /// The driver's own. The device is stopped all the same.
    fn prepare_shutdown(&self, state: &mut Self::State) -> Result<(), Self::Error> {
        let _ = state;
        Ok(())
    }

    /// Returns memory that was [quarantined](crate::mem::Chunk::set_quarantine) while the device knew of it. Called once the device is stopped for
    /// good. By default it does nothing.
    fn release(&self, state: &mut Self::State) {
        let _ = state;
    }
}

/// How to recover from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing needs to be done: the device is as it was.
    Nothing,
    /// The device must be reset.
    Reset,
    /// The device is gone.
    Gone,
}

/// The control plane of an open device, with the slow path's thread.
///
/// Dropping it stops the thread, then the device for good.
///
/// It dereferences to [`DeviceControl`], which has its methods.
pub struct ControlPlane<D: Driver> {
    control: Arc<DeviceControl<D>>,
    thread: Option<JoinHandle<()>>,
}

/// The part of a control plane that its threads share.
///
/// Every method can be called from any thread.
pub struct DeviceControl<D: Driver> {
    driver: D,
    control: Mutex<Control<D>>,
    queue_context: Arc<QueueContext<D::QueueFault>>,
    events: Receiver<D::Event>,
    /// What the kernel has to say of the function.
    notices: Vec<(Irq, Interrupts, Arc<EventFd>)>,
    /// How long a queue's owner may take to poll it while the device is to be reset.
    patience: Duration,
    /// The slow path's thread has to end.
    closing: AtomicBool,
}

/// What is under the lock.
struct Control<D: Driver> {
    state: D::State,
    /// The reset that waits for queues to take their hands off.
    stopping: Option<Stopping>,
    /// Resets since any queue completed something, and when the last of them was.
    in_vain: (u32, Option<Instant>),
    /// The queues that the last reset waited for in vain.
    lost: Vec<u32>,
    events: Sender<D::Event>,
}

/// A reset that has begun.
struct Stopping {
    why: String,
    since: Instant,
    /// Somebody asked for it: the device may be well.
    asked_for: bool,
}

/// How many resets in a row a device gets between which it completed nothing. Then it has ended.
const IN_VAIN: u32 = 10;
/// Those that are further apart are not in a row.
const IN_A_ROW: Duration = Duration::from_secs(3600);
/// How many events wait where nobody takes them.
const EVENTS: usize = 256;
/// How often the slow path's thread looks after a device without being asked to.
const TICK: Duration = Duration::from_millis(200);

impl<D: Driver> ControlPlane<D> {
    /// Brings a device up and starts the slow path's thread: bus mastering goes off, then come [`Driver::stop`] and [`Driver::restart`].
    ///
    /// `patience` is how long a reset waits for the owner of a queue to poll it.
    ///
    /// # Errors
    /// The driver's, where the device does not come up; [`Error::Io`] where the system has no thread or descriptor left.
    pub fn start(
        driver: D,
        state: D::State,
        queue_context: Arc<QueueContext<D::QueueFault>>,
        patience: Duration,
    ) -> Result<Self, D::Error> {
        let _opening = Opening::of(queue_context.device().clone());
        config::enable_bus_master(queue_context.device().as_ref(), false)?;
        // Dropped, it stops the device.
        let mut control_plane = Self::new(driver, state, queue_context, patience)?;
        let mut control = control_plane.control();
        // Whoever had it before may have left it running.
        control_plane.driver.stop(&mut control.state)?;
        control_plane.driver.restart(&mut control.state, &[])?;
        drop(control);
        control_plane.spawn()?;
        Ok(control_plane)
    }

    /// Creates the control plane of a device that runs already, without a thread. [`spawn`](Self::spawn) starts one.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Access`] where the kernel's error and unbind notices cannot be enabled.
    pub fn new(
        driver: D,
        state: D::State,
        queue_context: Arc<QueueContext<D::QueueFault>>,
        patience: Duration,
    ) -> Result<Self> {
        let mut notices = Vec::new();
        for kind in [Irq::Err, Irq::Req] {
            if queue_context.device().irq_info(kind).is_ok_and(|info| info.count > 0) {
                let interrupts = Interrupts::new(queue_context.device().clone(), kind, 1)?;
                let fd = interrupts.vector(0)?;
                notices.push((kind, interrupts, fd));
            }
        }
        let (send, events) = bounded(EVENTS);
        let control = Mutex::new(Control { state, stopping: None, in_vain: (0, None), lost: Vec::new(), events: send });
        let closing = AtomicBool::new(false);
        let control = Arc::new(DeviceControl { driver, control, queue_context, events, notices, patience, closing });
        Ok(Self { control, thread: None })
    }

    /// Starts the slow path's thread. Without it, the program calls [`service`](DeviceControl::service) regularly.
    ///
    /// # Errors
    /// [`Error::Io`] where the system has no thread left.
    pub fn spawn(&mut self) -> Result<()> {
        let control = self.control.clone();
        let thread = std::thread::Builder::new().name(D::NAME.to_owned()).spawn(move || control.run());
        let failed = |cause| Error::Io { what: "starting the slow path's thread".to_owned(), cause };
        self.thread = Some(thread.map_err(failed)?);
        Ok(())
    }
}

impl<D: Driver> DeviceControl<D> {
    /// Returns the driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        self.queue_context.device()
    }

    /// Returns the reset domain of the device's queues.
    pub fn domain(&self) -> &Domain {
        self.queue_context.domain()
    }

    /// Returns the part of the control plane that queues hold.
    pub fn queue_context(&self) -> &Arc<QueueContext<D::QueueFault>> {
        &self.queue_context
    }

    fn control(&self) -> MutexGuard<'_, Control<D>> {
        self.control.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs `f` on the driver's state under the lock, whatever the device is doing: during a reset, too, and after the end.
    pub fn peek<T>(&self, f: impl FnOnce(&mut D::State) -> T) -> T {
        f(&mut self.control().state)
    }

    /// Runs `f` on the driver's state under the lock, once no reset is under way. Where `f` fails, the control plane acts as [`Driver::recovery`] says.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`] where the device is that; else those of `f`.
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

    /// Returns the receiver of the device's events. While 256 wait, further ones are dropped.
    pub fn events(&self) -> &Receiver<D::Event> {
        &self.events
    }

    /// Checks that the device can be used. It takes the reset domain's lock.
    ///
    /// # Errors
    /// [`Error::Gone`] where the device is gone; [`Error::Ended`] where it failed or was shut down.
    pub fn check(&self) -> Result<()> {
        let device = || self.device().name().to_owned();
        match self.domain().ended() {
            None => Ok(()),
            Some(End { gone: true, why, .. }) => Err(Error::Gone { device: device(), why }),
            Some(End { why, .. }) => Err(Error::Ended { device: device(), why }),
        }
    }

    fn run(&self) {
        // Pairs with the Release store when the control plane is dropped; the wake-up that follows it brings us here.
        while !self.closing.load(Ordering::Acquire) {
            let wait = match self.service() {
                Ok(true) => Duration::from_millis(1),
                Ok(false) => TICK,
                Err(_) => return,
            };
            if let Err(error) = self.queue_context.wake.wait(Some(wait)) {
                return tracing::error!(%error, "the slow path ended");
            }
        }
    }

    /// Does the slow path's work: notices of the kernel, faults of queues, events of the device, the next step of a reset. Returns whether it wants
    /// to be called again within a millisecond. It waits for the device, never for queues.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`], as soon as the device is that.
    pub fn service(&self) -> Result<bool> {
        let mut control = self.control();
        self.check()?;
        for (kind, _, fd) in &self.notices {
            if fd.take() > 0 {
                if *kind == Irq::Err {
                    control.tell(DeviceEvent::FunctionError);
                    self.begin_reset(&mut control, "the kernel reports an error of the function".to_owned(), false);
                } else {
                    control.tell(DeviceEvent::UnbindRequest);
                }
            }
        }
        let queue_faults =
            std::mem::take(&mut *self.queue_context.queue_faults.lock().unwrap_or_else(|e| e.into_inner()));
        for (epoch, fault) in queue_faults {
            // Else a reset, or an earlier fault, ended what it was of.
            if epoch == self.domain().epoch() && self.domain().ended().is_none() {
                match self.driver.handle_fault(&mut control.state, fault) {
                    Ok(None) => {}
                    Ok(Some(why)) => self.begin_reset(&mut control, why, false),
                    Err(error) => self.settle(&mut control, &error),
                }
            }
        }
        if control.stopping.is_none() {
            let Control { state, events, .. } = &mut *control;
            // The oldest stay where nobody takes them.
            let polled = self.driver.poll_events(state, &mut |event| drop(events.try_send(event)));
            // What raised an interrupt was served above.
            let rearmed = self.queue_context.interrupts().map_or(Ok(()), Interrupts::rearm);
            if let Err(error) = polled.and(rearmed.map_err(D::Error::from)) {
                self.settle(&mut control, &error);
            }
        }
        self.advance(&mut control);
        self.check()?;
        Ok(control.stopping.is_some())
    }

    /// Acts upon what an error says of the device.
    fn settle(&self, control: &mut Control<D>, error: &D::Error) {
        match D::recovery(error, self.device().as_ref()) {
            Recovery::Gone => self.end(control, error, ""),
            Recovery::Reset => self.begin_reset(control, error.to_string(), false),
            Recovery::Nothing => {}
        }
    }

    fn begin_reset(&self, control: &mut Control<D>, why: String, asked_for: bool) {
        if control.stopping.is_none() && self.domain().phase() == Phase::Running {
            tracing::warn!(device = self.device().name(), why, "resetting the device");
            self.domain().stop();
            control.stopping = Some(Stopping { why, since: Instant::now(), asked_for });
            self.queue_context.wake.signal();
        }
    }

    /// Goes on with a reset, if one is under way and does not wait for queues.
    fn advance(&self, control: &mut Control<D>) {
        let Some(Stopping { since, .. }) = control.stopping else { return };
        let domain = self.domain();
        self.driver.poll_parked(&mut control.state);
        if !domain.waiting().is_empty() && since.elapsed() < self.patience {
            return;
        }
        control.lost = domain.expel();
        let Some(Stopping { why, asked_for, .. }) = control.stopping.take() else { return };
        let helps = control.count_reset(domain.take_completed(), asked_for, since);
        let in_vain = || Error::ResetsInVain { device: self.device().name().to_owned(), resets: IN_VAIN };
        match if helps { self.reset_now(control) } else { Err(in_vain().into()) } {
            Ok(()) => {
                domain.resume();
                self.driver.poll_parked(&mut control.state);
                let lost = control.lost.clone();
                control.tell(DeviceEvent::Reset { why, lost });
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
        self.driver.poll_parked(state);
        if let Some(interrupts) = self.queue_context.interrupts() {
            // A reset of the function took them away.
            interrupts.restore()?;
        }
        self.driver.restart(state, lost)
    }

    /// The device cannot be used any more.
    fn end(&self, control: &mut Control<D>, error: &D::Error, during: &str) {
        control.stopping = None;
        let gone = D::recovery(error, self.device().as_ref()) == Recovery::Gone;
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
        control.tell(DeviceEvent::Ended { why });
    }

    /// Begins a reset of the device and returns at once. [`service`](Self::service) continues it.
    pub fn request_reset(&self) {
        self.begin_reset(&mut self.control(), "it was asked for".to_owned(), true);
    }

    /// Resets the device, and returns when its queues can go on. Queues must be polled on other threads meanwhile.
    ///
    /// It waits at most the `patience` of [`ControlPlane::start`] for the queues, and as long as the device takes.
    ///
    /// # Errors
    /// [`Error::Unresponsive`] where queues were not polled, which are lost then; [`Error::Ended`] or [`Error::Gone`] where the reset failed.
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

    /// Stops the device for good: [`Driver::prepare_shutdown`], then [`Driver::stop`]; bus mastering goes off. Queues end.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`] where the device was that before; else the driver's. The device is not used again, even then.
    pub fn shut_down(&self) -> Result<(), D::Error> {
        let mut control = self.control();
        self.check()?;
        let away = self.driver.prepare_shutdown(&mut control.state);
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

impl<D: Driver> Control<D> {
    /// Counts a reset that began at `now`; whether there may be a point in it. `completed` says whether any queue got something done since the one before.
    fn count_reset(&mut self, completed: bool, asked_for: bool, now: Instant) -> bool {
        let (count, last) = &mut self.in_vain;
        if completed || last.is_some_and(|last| now.saturating_duration_since(last) > IN_A_ROW) {
            *count = 0;
        }
        // Who asks has reasons of his own.
        if !asked_for {
            (*count, *last) = (*count + 1, Some(now));
        }
        *count <= IN_VAIN
    }

    /// Passes an event on; the oldest stay where nobody takes them.
    fn tell(&self, event: DeviceEvent) {
        let _ = self.events.try_send(event.into());
    }
}

impl<D: Driver> Deref for ControlPlane<D> {
    type Target = DeviceControl<D>;

    fn deref(&self) -> &DeviceControl<D> {
        &self.control
    }
}

impl<D: Driver> Drop for ControlPlane<D> {
    fn drop(&mut self) {
        // Pairs with the Acquire load in the thread.
        self.closing.store(true, Ordering::Release);
        self.queue_context.wake.signal();
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
