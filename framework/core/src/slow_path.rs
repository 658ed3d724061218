//! The slow path: one thread that waits for a device's rare interrupts and turns them into typed events.
//!
//! Administration queues, link changes, errors, requests to give the device back: none of them deserves a polled core. The thread
//! calls a handler, in which a driver does its work and sends what it found to its own channel; or [`SlowPath::channel`] sends
//! the bare events.

use crate::irq::{Epoll, Interrupts, rearm};
use crate::pci::{IRQ_ERR, IRQ_REQ, PciDevice};
use crate::reactor::Stop;
use crate::{Error, Result};
use crossbeam_channel::{Receiver, bounded};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What the slow-path thread saw. Several signals of one kind may be one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A vector that it was told to listen to.
    Vector(u32),
    /// The kernel reports an uncorrectable error of the device (AER): reset it before using it on.
    DeviceError,
    /// The kernel wants the device back: close it soon. Repeated until that is done.
    UnbindRequest,
}

/// The slow-path thread of one device; stopped and joined on drop.
pub struct SlowPath {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

/// How many bare events can wait in [`SlowPath::channel`].
const CHANNEL: usize = 1024;

impl SlowPath {
    /// A thread that calls `handler` for each event: `vectors` of `interrupts` (enabled here), and the device's error and unbind
    /// notices where it has them.
    ///
    /// An eventfd is taken before the handler is called, so a signal during the call makes another event. The handler may drop
    /// the `SlowPath`; it must not own it (give it a `Weak`), or neither is ever dropped.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] for a vector that isn't there; [`Error::Io`] where the system has no descriptor or thread left; what
    /// the backend says.
    pub fn spawn(
        interrupts: &Interrupts,
        vectors: &[u32],
        mut handler: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self> {
        let device = interrupts.device();
        let epoll = Epoll::new()?;
        let stop = Stop::new()?;
        let mut sources = Vec::new();
        for vector in vectors {
            sources.push((Event::Vector(*vector), interrupts.vector(*vector)?));
        }
        let notices = Notices::of(device)?;
        for (event, notice) in &notices.0 {
            sources.push((*event, notice.vector(0)?));
        }
        for (number, (_, fd)) in sources.iter().enumerate() {
            epoll.add(fd, number as u64)?;
        }
        epoll.add(stop.wakeup(), sources.len() as u64)?;

        let (device, kind) = (device.clone(), interrupts.info().0);
        let seen = stop.clone();
        let run = move || {
            // The notices are disabled when the thread ends.
            let _notices = notices;
            loop {
                let signalled = match epoll.wait(None) {
                    Ok(signalled) => signalled,
                    Err(error) => return tracing::error!(device = device.name(), %error, "the slow path ended"),
                };
                for number in signalled {
                    if seen.is_asked() {
                        return;
                    }
                    if let Some((event, fd)) = sources.get(number as usize)
                        && fd.take() > 0
                    {
                        handler(*event);
                        if let Event::Vector(_) = event
                            && let Err(error) = rearm(device.as_ref(), kind)
                        {
                            tracing::warn!(device = device.name(), %error, "its interrupt stays masked");
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("slow-path".to_owned())
            .spawn(run)
            .map_err(|cause| Error::Io { what: "starting the slow-path thread".to_owned(), cause })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// As [`spawn`](Self::spawn), with the bare events on a channel. While 1,024 wait there, further ones are dropped.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn channel(interrupts: &Interrupts, vectors: &[u32]) -> Result<(Self, Receiver<Event>)> {
        let (send, receive) = bounded(CHANNEL);
        let slow_path = Self::spawn(interrupts, vectors, move |event| {
            let _ = send.try_send(event);
        })?;
        Ok((slow_path, receive))
    }

    /// Whether the thread runs. It ends early only where the handler panics or the system cannot wait.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.stop.ask();
        let Some(thread) = self.thread.take() else { return };
        // Dropped by its own handler: the thread ends when that returns, and must not wait for itself.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the slow path's handler panicked");
        }
    }
}

/// The interrupts by which the kernel speaks of a device, where it has them.
struct Notices(Vec<(Event, Interrupts)>);

impl Notices {
    fn of(device: &Arc<dyn PciDevice>) -> Result<Self> {
        let mut notices = Vec::new();
        for (index, event) in [(IRQ_ERR, Event::DeviceError), (IRQ_REQ, Event::UnbindRequest)] {
            // A kind that the backend doesn't know is one the device doesn't have.
            if index < device.info().irqs && device.irq_info(index).is_ok_and(|info| info.count > 0) {
                notices.push((event, Interrupts::new(device.clone(), index, 1)?));
            }
        }
        Ok(Self(notices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::tests::Wires;
    use crate::pci::{IRQ_INTX, IRQ_MSIX};
    use std::sync::Mutex;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(60);

    fn wires() -> (Arc<Wires>, Interrupts) {
        let device = Wires::new(4, true, 1);
        let irqs = Interrupts::new(device.clone(), IRQ_MSIX, 4).unwrap();
        (device, irqs)
    }

    #[test]
    fn interrupts_become_events() {
        let (device, irqs) = wires();
        let (slow, events) = SlowPath::channel(&irqs, &[0, 2]).unwrap();
        for (index, vector, event) in [
            (IRQ_MSIX, 2, Event::Vector(2)),
            (IRQ_ERR, 0, Event::DeviceError),
            (IRQ_MSIX, 0, Event::Vector(0)),
            (IRQ_REQ, 0, Event::UnbindRequest),
        ] {
            device.raise(index, vector);
            assert_eq!(events.recv_timeout(SOON), Ok(event));
        }
        assert!(slow.is_running());
        drop(slow);
        assert!(events.recv().is_err(), "the thread has ended, and its sender with it");
        let left: Vec<_> = device.state.lock().unwrap().fds.keys().copied().collect();
        assert_eq!(left, [(IRQ_MSIX, 0), (IRQ_MSIX, 2)], "error and unbind notices are disabled, vectors are not ours");
    }

    #[test]
    fn an_interrupt_line_is_unmasked_once_it_was_served() {
        let device = Wires::new(0, true, 0);
        let irqs = Interrupts::new(device.clone(), IRQ_INTX, 1).unwrap();
        let (slow, events) = SlowPath::channel(&irqs, &[0]).unwrap();
        for _ in 0..2 {
            device.raise(IRQ_INTX, 0);
            assert_eq!(events.recv_timeout(SOON), Ok(Event::Vector(0)));
        }
        drop(slow);
        assert_eq!(device.calls(), ["0: 0+1", "0: unmasked", "0: unmasked"]);
    }

    #[test]
    fn no_signal_is_lost_between_take_and_wait() {
        let (device, irqs) = wires();
        let count = if cfg!(miri) { 20 } else { 2000 };
        let (send, receive) = bounded(0);
        let _slow = SlowPath::spawn(&irqs, &[1], move |event| send.send(event).unwrap()).unwrap();
        for _ in 0..count {
            device.raise(IRQ_MSIX, 1);
            assert_eq!(receive.recv_timeout(SOON), Ok(Event::Vector(1)));
        }
    }

    #[test]
    fn a_handler_may_drop_its_thread_and_may_panic() {
        let (device, irqs) = wires();
        let own = Arc::new(Mutex::new(None::<SlowPath>));
        let (send, receive) = bounded(1);
        let weak = Arc::downgrade(&own);
        let slow = SlowPath::spawn(&irqs, &[0], move |_| {
            drop(weak.upgrade().and_then(|own| own.lock().unwrap().take()));
            send.send(()).unwrap();
        });
        *own.lock().unwrap() = Some(slow.unwrap());
        device.raise(IRQ_MSIX, 0);
        assert_eq!(receive.recv_timeout(SOON), Ok(()));
        // Its end drops the handler, and the sender with it.
        assert!(receive.recv_timeout(SOON).is_err());

        let slow = SlowPath::spawn(&irqs, &[3], |_| panic!("a driver's mistake")).unwrap();
        device.raise(IRQ_MSIX, 3);
        while slow.is_running() {
            std::thread::yield_now();
        }
        drop(slow);
        assert!(matches!(SlowPath::channel(&irqs, &[9]), Err(Error::NoSuchIrq { vector: 9, .. })));
    }
}
