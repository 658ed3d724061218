//! The control plane of a device: its one lock, the slow path's thread, faults that queues report, resets, the end.
//!
//! It is the same for every driver; what differs is a [`Driver`]: how its device is stopped and brought up again, and what has to be looked
//! after. This file does *not* know any device, nor what queues do while they wait ([`reset`](crate::reset)).

use crate::irq::{EventFd, Interrupts};
use crate::mem::{Arena, DmaMapping};
use crate::pci::{IRQ_ERR, IRQ_REQ, PciDevice, config, function};
use crate::reset::{Domain, End, Phase};
use crate::{Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::fmt::Display;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a driver adds. All but the first four are called under the lock.
pub trait Driver: Send + Sync + Sized + 'static {
    /// What the slow path's thread is called.
    const NAME: &'static str;
    /// What is under the lock.
    type State: Send;
    /// What its users are told.
    type Event: Send;
    /// A fault that a queue reports.
    type QueueFault: Send;
    /// What can go wrong.
    type Error: From<Error> + Display;

    /// The device.
    fn device(&self) -> &Arc<dyn PciDevice>;

    /// What its queues are members of.
    fn domain(&self) -> &Domain;

    /// An event of any device, as the users of this driver are told of it.
    fn event(event: DeviceEvent) -> Self::Event;

    /// What an error says of the device.
    fn recovery(error: &Self::Error) -> Recovery;

    /// Stops the device: it reaches no memory any more, nor its queues.
    fn stop(&self, state: &mut Self::State) -> Result<(), Self::Error>;

    /// Brings the device up again, with its queues, but for those that were `lost`; it was stopped, or the function reset.
    fn restart(&self, state: &mut Self::State, lost: &[u32]) -> Result<(), Self::Error>;

    /// Polls the queues that no application has: they take part in a reset, too.
    fn poll_parked(&self, state: &mut Self::State);

    /// Handles a fault of a queue. Returns why the device has to be reset, where it has to be.
    fn handle_fault(&self, state: &mut Self::State, fault: Self::QueueFault) -> Result<Option<String>, Self::Error>;

    /// Checks the health of the device, and passes on the events that it has for users.
    fn poll_events(&self, state: &mut Self::State, tell: &mut dyn FnMut(Self::Event)) -> Result<(), Self::Error>;

    /// Has the device write back what it holds, before it is stopped for good.
    fn prepare_shutdown(&self, state: &mut Self::State) -> Result<(), Self::Error>;

    /// The device is stopped for good: its memory may be given back.
    fn release(&self, state: &mut Self::State);
}

/// What can happen to any device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
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

/// What is to be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: the device is as it was.
    Nothing,
    /// The device has to be reset.
    Reset,
    /// The device is gone.
    Gone,
}

/// The control plane of a device that is open, with the thread of its slow path. Dropped, it stops the device for good.
pub struct ControlPlane<D: Driver> {
    kept: Arc<DeviceControl<D>>,
    thread: Option<JoinHandle<()>>,
}

/// What the threads of a control plane share.
pub struct DeviceControl<D: Driver> {
    driver: D,
    control: Mutex<Control<D>>,
    queue_context: Arc<QueueContext<D::QueueFault>>,
    events: Receiver<D::Event>,
    /// What the kernel has to say of the function.
    notices: Vec<(u32, Interrupts, Arc<EventFd>)>,
    /// How long a queue's owner may take to poll it while the device is to be reset.
    patience: Duration,
    /// The slow path's thread has to end.
    closing: AtomicBool,
}

/// What queues have of the control plane. It is a part of its own, since queues may themselves be under the lock.
pub struct QueueContext<T> {
    device: Arc<dyn PciDevice>,
    queue_faults: Mutex<Vec<(u64, T)>>,
    /// Arenas whose buffers queues can use.
    arenas: Mutex<Vec<Arc<DmaMapping>>>,
    /// Signalled by the device's own vector, and by queues that report faults.
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

impl<D: Driver> ControlPlane<D> {
    /// Takes over a device that runs.
    ///
    /// # Errors
    /// What the backend says of the kernel's notices; [`Error::Io`] where there is no thread to be had.
    pub fn new(
        driver: D,
        state: D::State,
        queue_context: Arc<QueueContext<D::QueueFault>>,
        patience: Duration,
    ) -> Result<Self> {
        let mut notices = Vec::new();
        for index in [IRQ_ERR, IRQ_REQ] {
            if driver.device().irq_info(index).is_ok_and(|info| info.count > 0) {
                let interrupts = Interrupts::new(driver.device().clone(), index, 1)?;
                let fd = interrupts.vector(0)?;
                notices.push((index, interrupts, fd));
            }
        }
        let (send, events) = bounded(EVENTS);
        let control = Mutex::new(Control { state, stopping: None, lost: Vec::new(), events: send });
        let closing = AtomicBool::new(false);
        let kept = Arc::new(DeviceControl { driver, control, queue_context, events, notices, patience, closing });
        Ok(Self { kept, thread: None })
    }

    /// Starts the slow path's thread. Without it somebody calls [`service`](DeviceControl::service), regularly.
    ///
    /// # Errors
    /// [`Error::Io`] where there is none to be had.
    pub fn spawn(&mut self) -> Result<()> {
        let kept = self.kept.clone();
        let thread = std::thread::Builder::new().name(D::NAME.to_owned()).spawn(move || kept.run());
        let failed = |cause| Error::Io { what: "starting the slow path's thread".to_owned(), cause };
        self.thread = Some(thread.map_err(failed)?);
        Ok(())
    }
}

impl<D: Driver> DeviceControl<D> {
    /// What queues have of it.
    pub fn queue_context(&self) -> &Arc<QueueContext<D::QueueFault>> {
        &self.queue_context
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

    /// Does what there is to do on the slow path; whether it wants to be called again soon. It waits for the device, but not for queues.
    ///
    /// # Errors
    /// [`Error::Gone`] or [`Error::Ended`], from when that is so.
    pub fn service(&self) -> Result<bool> {
        let mut control = self.control();
        self.check()?;
        for (index, _, fd) in &self.notices {
            if fd.take() > 0 {
                if *index == IRQ_ERR {
                    control.tell(DeviceEvent::FunctionError);
                    self.begin_reset(&mut control, "the kernel reports an error of the function".to_owned());
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
                    Ok(Some(why)) => self.begin_reset(&mut control, why),
                    Err(error) => self.settle(&mut control, &error),
                }
            }
        }
        if control.stopping.is_none() {
            let Control { state, events, .. } = &mut *control;
            // The oldest stay where nobody takes them.
            let attended = self.driver.poll_events(state, &mut |event| drop(events.try_send(event)));
            if let Err(error) = attended {
                self.settle(&mut control, &error);
            }
        }
        self.advance(&mut control);
        self.check()?;
        Ok(control.stopping.is_some())
    }

    /// Acts upon what an error says of the device.
    fn settle(&self, control: &mut Control<D>, error: &D::Error) {
        match D::recovery(error) {
            Recovery::Gone => self.end(control, error, ""),
            Recovery::Reset => self.begin_reset(control, error.to_string()),
            Recovery::Nothing => {}
        }
    }

    fn begin_reset(&self, control: &mut Control<D>, why: String) {
        if control.stopping.is_none() && self.domain().phase() == Phase::Running {
            tracing::warn!(device = self.device().name(), why, "resetting the device");
            self.domain().stop();
            control.stopping = Some((why, Instant::now()));
            self.queue_context.wake.signal();
        }
    }

    /// Goes on with a reset, if one is under way and does not wait for queues.
    fn advance(&self, control: &mut Control<D>) {
        let Some((_, since)) = &control.stopping else { return };
        let (since, domain) = (*since, self.domain());
        self.driver.poll_parked(&mut control.state);
        if !domain.waiting().is_empty() && since.elapsed() < self.patience {
            return;
        }
        control.lost = domain.expel();
        let why = control.stopping.take().map(|(why, _)| why).unwrap_or_default();
        match self.reset_now(control) {
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
                // Where it took the vectors' eventfds away, it took these too. (Vectors are the driver's.)
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
        self.driver.restart(state, lost)
    }

    /// The device cannot be used any more.
    fn end(&self, control: &mut Control<D>, error: &D::Error, during: &str) {
        control.stopping = None;
        let gone = D::recovery(error) == Recovery::Gone;
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

impl<T> QueueContext<T> {
    /// Of a device; what is to be done at once signals `wake`.
    pub fn new(device: &Arc<dyn PciDevice>, wake: Arc<EventFd>) -> Arc<Self> {
        let (device, queue_faults, arenas) = (device.clone(), Mutex::default(), Mutex::default());
        Arc::new(Self { device, queue_faults, arenas, wake })
    }

    /// What is signalled when there is something for [`service`](DeviceControl::service) to do at once.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    /// Reports a fault of a queue, in the epoch that the queue is in.
    pub fn report_fault(&self, epoch: u64, fault: T) {
        self.queue_faults.lock().unwrap_or_else(|e| e.into_inner()).push((epoch, fault));
        self.wake.signal();
    }

    /// Lets the device into an arena, whose buffers its queues can use then. Once more changes nothing.
    ///
    /// # Errors
    /// What the address space says.
    pub fn attach(&self, arena: &Arc<Arena>) -> Result<Arc<DmaMapping>> {
        let mapping = self.device.dma().attach(arena)?;
        let mut arenas = self.arenas();
        if arenas.iter().all(|m| m.arena().id() != arena.id()) {
            arenas.push(mapping.clone());
        }
        Ok(mapping)
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
    fn tell(&self, event: DeviceEvent) {
        let _ = self.events.try_send(D::event(event));
    }
}

impl<D: Driver> Deref for ControlPlane<D> {
    type Target = DeviceControl<D>;

    fn deref(&self) -> &DeviceControl<D> {
        &self.kept
    }
}

impl<D: Driver> Deref for DeviceControl<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.driver
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
