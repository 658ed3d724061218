//! A driver of nothing, kept: what is called when.

use super::*;
use crate::irq::tests::Wires;
use crate::pci::function::tests::Slot;
use crate::reset::Step;

/// A driver of nothing.
struct Toy;

/// What was called, and what fails.
#[derive(Default)]
struct Calls {
    seen: Vec<&'static str>,
    sick: bool,
    gone: bool,
}

impl Driver for Toy {
    const NAME: &'static str = "toy";
    type State = Calls;
    type Event = DeviceEvent;
    type QueueFault = &'static str;
    type Error = Error;

    fn recovery(error: &Error, _: &dyn PciDevice) -> Recovery {
        match error {
            Error::Gone { .. } => Recovery::Gone,
            Error::Config { .. } => Recovery::Reset,
            _ => Recovery::Nothing,
        }
    }
    fn stop(&self, calls: &mut Calls) -> Result<()> {
        calls.seen.push("stop");
        if calls.sick { Err(self.sick()) } else { Ok(()) }
    }
    fn restart(&self, calls: &mut Calls, _: &[u32]) -> Result<()> {
        calls.seen.push("restart");
        Ok(())
    }
    fn handle_fault(&self, calls: &mut Calls, fault: &'static str) -> Result<Option<String>> {
        calls.seen.push("help");
        match calls.gone {
            true => Err(Error::Gone { device: "wires".to_owned(), why: fault.to_owned() }),
            false => Ok(Some(fault.to_owned())),
        }
    }
    fn poll_events(&self, calls: &mut Calls, _: &mut dyn FnMut(DeviceEvent)) -> Result<()> {
        if calls.sick { Err(self.sick()) } else { Ok(()) }
    }
    fn prepare_shutdown(&self, calls: &mut Calls) -> Result<()> {
        calls.seen.push("away");
        Ok(())
    }
    fn release(&self, calls: &mut Calls) {
        calls.seen.push("release");
    }
}

impl Toy {
    fn sick(&self) -> Error {
        Error::Config { device: "wires".to_owned(), why: "it is sick".to_owned() }
    }
}

fn control_plane(patience: Duration) -> (Arc<Wires>, ControlPlane<Toy>) {
    let wires = Wires::new(1, true, 1);
    let device: Arc<dyn PciDevice> = wires.clone();
    let queue_context = QueueContext::new(device, None).unwrap();
    (wires, ControlPlane::new(Toy, Calls::default(), queue_context, patience).unwrap())
}

fn seen(control_plane: &ControlPlane<Toy>) -> Vec<&'static str> {
    control_plane.peek(|calls| std::mem::take(&mut calls.seen))
}

#[test]
fn a_queue_with_a_fault_has_the_device_reset_once_all_have_their_hands_off() {
    let (_, control_plane) = control_plane(Duration::from_secs(60));
    let mut gate = control_plane.domain().join(1);
    control_plane.queue_context().report_fault(0, "it hurts");
    assert!(control_plane.service().unwrap() && control_plane.service().unwrap());
    assert_eq!(seen(&control_plane), ["help"], "it waits for the queue");
    assert_eq!(gate.step(false), Step::Stop);
    assert!(!control_plane.service().unwrap());
    assert_eq!((seen(&control_plane), gate.step(false)), (vec!["stop", "restart"], Step::Restart));
    let reset = DeviceEvent::Reset { why: "it hurts".to_owned(), lost: vec![] };
    assert_eq!(control_plane.events().try_recv(), Ok(reset));
    // What it was of has ended.
    control_plane.queue_context().report_fault(0, "it hurt");
    assert!(!control_plane.service().unwrap() && seen(&control_plane).is_empty());
}

#[test]
fn who_does_not_poll_is_lost_and_named() {
    let (wires, control_plane) = control_plane(Duration::ZERO);
    let _gate = control_plane.domain().join(7);
    assert!(matches!(control_plane.reset(), Err(Error::Unresponsive { queues, .. }) if queues == [7]));
    control_plane.with(|_| Ok(())).unwrap();
    wires.raise(Irq::Err, 0);
    wires.raise(Irq::Req, 0);
    control_plane.service().unwrap();
    let events: Vec<_> = control_plane.events().try_iter().skip(1).collect();
    assert!(matches!(
        &events[..],
        [DeviceEvent::FunctionError, DeviceEvent::UnbindRequest, DeviceEvent::Reset { lost, .. }] if lost.is_empty()
    ));
}

#[test]
fn what_no_reset_mends_has_ended() {
    let (_, control_plane) = control_plane(Duration::ZERO);
    control_plane.peek(|calls| calls.sick = true);
    assert!(matches!(control_plane.service(), Err(Error::Ended { why, .. }) if why.contains("reset because")));
    let end = control_plane.domain().ended().unwrap();
    assert!(!end.gone && !end.harmless, "it may still write");
    assert!(
        control_plane.with(|_| Ok(())).is_err() && control_plane.reset().is_err() && control_plane.shut_down().is_err()
    );
    assert_eq!(seen(&control_plane), ["stop", "stop"]);
}

#[test]
fn one_that_does_nothing_between_its_resets_has_ended() {
    let (_, control_plane) = control_plane(Duration::from_secs(60));
    let mut gate = control_plane.domain().join(1);
    let mut reset = |asked_for, completed| {
        match asked_for {
            true => control_plane.request_reset(),
            false => control_plane.queue_context().report_fault(control_plane.domain().epoch(), "it hurts"),
        }
        assert!(control_plane.service().unwrap());
        assert_eq!(gate.step(completed), Step::Stop);
        control_plane.service()?;
        assert_eq!(gate.step(completed), Step::Restart);
        gate.enter();
        Ok::<_, Error>(())
    };
    // Now and then it does something.
    for n in 0..50 {
        reset(false, n % IN_VAIN == 0).unwrap();
    }
    // As often as somebody wants.
    (0..50).for_each(|_| reset(true, false).unwrap());
    reset(false, true).unwrap();
    (1..IN_VAIN).for_each(|_| reset(false, false).unwrap());
    let error = reset(false, false).unwrap_err();
    assert!(control_plane.domain().ended().unwrap().harmless);
    assert_eq!(
        error.to_string(),
        "wires can no longer be used: wires was reset 10 times in a row, and completed nothing in between (it was reset because it hurts)"
    );
}

/// However many commands wait for a device that is gone, it ends once, and what is said of it says once that it is gone.
#[test]
fn one_that_is_gone_ends_once() {
    let (_, control_plane) = control_plane(Duration::ZERO);
    control_plane.peek(|calls| calls.gone = true);
    (0..33).for_each(|_| control_plane.queue_context().report_fault(0, "nobody answers"));
    let gone = control_plane.service().unwrap_err();
    assert_eq!(gone.to_string(), "wires is gone: nobody answers");
    assert_eq!(seen(&control_plane), ["help"]);
    let events: Vec<_> = control_plane.events().try_iter().collect();
    assert_eq!(events, [DeviceEvent::Ended { why: "nobody answers".to_owned() }]);
}

#[test]
fn dropped_it_shuts_down_and_releases_its_memory() {
    let (_, mut control_plane) = control_plane(Duration::ZERO);
    control_plane.spawn().unwrap();
    let control = control_plane.control.clone();
    drop(control_plane);
    assert_eq!(control.peek(|calls| calls.seen.clone()), ["away", "stop", "release"]);
}

/// A driver that writes no more than it must.
struct Plain(Arc<AtomicBool>);

impl Driver for Plain {
    const NAME: &'static str = "plain";
    type State = u32;
    type Event = DeviceEvent;
    type QueueFault = &'static str;
    type Error = Error;

    fn stop(&self, _: &mut u32) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(Error::Config { device: "plain".to_owned(), why: "it does not stop".to_owned() }),
            false => Ok(()),
        }
    }

    fn restart(&self, starts: &mut u32, _: &[u32]) -> Result<()> {
        *starts += 1;
        Ok(())
    }
}

#[test]
#[cfg_attr(miri, ignore = "waits two seconds for a function that does not come back")]
fn a_driver_need_only_stop_and_start_its_device() {
    let (device, stuck): (Arc<dyn PciDevice>, _) = (Slot::start(0, u32::MAX), Arc::new(AtomicBool::new(false)));
    let queue_context = QueueContext::new(device.clone(), None).unwrap();
    let control_plane = ControlPlane::start(Plain(stuck.clone()), 0, queue_context, Duration::ZERO).unwrap();
    let event = || control_plane.events().recv_timeout(Duration::from_secs(60)).unwrap();
    let reset = |why: &str| DeviceEvent::Reset { why: why.to_owned(), lost: vec![] };
    assert_eq!(control_plane.peek(|starts| *starts), 1);
    control_plane.reset().unwrap();
    assert_eq!(event(), reset("it was asked for"));
    control_plane.queue_context().report_fault(control_plane.domain().epoch(), "help");
    assert_eq!((event(), control_plane.peek(|starts| *starts)), (reset("help"), 3));
    // Where it does not stop, its function is reset; this one does not come back, which its bus tells.
    stuck.store(true, Ordering::Relaxed);
    assert!(matches!(control_plane.reset(), Err(Error::Gone { .. })));
    assert!(matches!(event(), DeviceEvent::Ended { why } if why.contains("did not come back")));
    assert!(control_plane.domain().ended().is_some_and(|end| end.gone && end.harmless));

    let queue_context = QueueContext::new(device, None).unwrap();
    assert!(ControlPlane::start(Plain(stuck), 0, queue_context, Duration::ZERO).is_err(), "it cannot be stopped");
}

#[test]
fn a_line_is_unmasked_once_the_driver_has_looked_after_its_device() {
    let wires = Wires::new(0, true, 0);
    let device: Arc<dyn PciDevice> = wires.clone();
    let queue_context = QueueContext::new(device.clone(), Interrupts::best(device.clone(), 4).unwrap()).unwrap();
    let control_plane = ControlPlane::new(Toy, Calls::default(), queue_context, Duration::ZERO).unwrap();
    wires.raise(Irq::Intx, 0);
    control_plane.service().unwrap();
    assert_eq!(wires.calls(), ["INTx: 0+1", "INTx: unmasked"]);
    // What a reset of the function took away is there again before the driver goes on.
    wires.reset().unwrap();
    control_plane.reset().unwrap();
    assert_eq!(wires.calls(), ["INTx: 0+1"]);
    control_plane.queue_context().wake().take();
    wires.raise(Irq::Intx, 0);
    assert_eq!(control_plane.queue_context().wake().take(), 1);
}
