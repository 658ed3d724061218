//! A driver of nothing, kept: what is called when.

use super::*;
use crate::irq::tests::Wires;
use crate::pci::function::tests::Slot;
use crate::reset::Turn;

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
    type Event = Happened;
    type Trouble = &'static str;
    type Error = Error;

    fn remedy(error: &Error, _: &dyn PciDevice) -> Remedy {
        match error {
            Error::Gone { .. } => Remedy::Gone,
            Error::Config { .. } => Remedy::Reset,
            _ => Remedy::Nothing,
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
    fn help(&self, calls: &mut Calls, trouble: &'static str) -> Result<Option<String>> {
        calls.seen.push("help");
        match calls.gone {
            true => Err(Error::Gone { device: "wires".to_owned(), why: trouble.to_owned() }),
            false => Ok(Some(trouble.to_owned())),
        }
    }
    fn attend(&self, calls: &mut Calls, _: &mut dyn FnMut(Happened)) -> Result<()> {
        if calls.sick { Err(self.sick()) } else { Ok(()) }
    }
    fn put_away(&self, calls: &mut Calls) -> Result<()> {
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

fn keeper(patience: Duration) -> (Arc<Wires>, Keeper<Toy>) {
    let wires = Wires::new(1, true, 1);
    let device: Arc<dyn PciDevice> = wires.clone();
    let ties = Ties::new(&device, None).unwrap();
    (wires, Keeper::new(Toy, Calls::default(), ties, patience).unwrap())
}

fn seen(keeper: &Keeper<Toy>) -> Vec<&'static str> {
    keeper.peek(|calls| std::mem::take(&mut calls.seen))
}

#[test]
fn a_queue_in_trouble_has_the_device_reset_once_all_have_their_hands_off() {
    let (_, keeper) = keeper(Duration::from_secs(60));
    let mut gate = keeper.domain().join(1);
    keeper.ties().trouble(0, "it hurts");
    assert!(keeper.service().unwrap() && keeper.service().unwrap());
    assert_eq!(seen(&keeper), ["help"], "it waits for the queue");
    assert_eq!(gate.turn(), Turn::Stop);
    assert!(!keeper.service().unwrap());
    assert_eq!((seen(&keeper), gate.turn()), (vec!["stop", "restart"], Turn::Restart));
    let reset = Happened::Reset { why: "it hurts".to_owned(), lost: vec![] };
    assert_eq!(keeper.events().try_recv(), Ok(reset));
    // What it was of has ended.
    keeper.ties().trouble(0, "it hurt");
    assert!(!keeper.service().unwrap() && seen(&keeper).is_empty());
}

#[test]
fn who_does_not_poll_is_lost_and_named() {
    let (wires, keeper) = keeper(Duration::ZERO);
    let _gate = keeper.domain().join(7);
    assert!(matches!(keeper.reset(), Err(Error::Unresponsive { queues, .. }) if queues == [7]));
    keeper.with(|_| Ok(())).unwrap();
    wires.raise(Irq::Err, 0);
    wires.raise(Irq::Req, 0);
    keeper.service().unwrap();
    let events: Vec<_> = keeper.events().try_iter().skip(1).collect();
    assert!(matches!(
        &events[..],
        [Happened::FunctionError, Happened::UnbindRequest, Happened::Reset { lost, .. }] if lost.is_empty()
    ));
}

#[test]
fn what_no_reset_mends_has_ended() {
    let (_, keeper) = keeper(Duration::ZERO);
    keeper.peek(|calls| calls.sick = true);
    assert!(matches!(keeper.service(), Err(Error::Ended { why, .. }) if why.contains("reset because")));
    let end = keeper.domain().ended().unwrap();
    assert!(!end.gone && !end.harmless, "it may still write");
    assert!(keeper.with(|_| Ok(())).is_err() && keeper.reset().is_err() && keeper.shut_down().is_err());
    assert_eq!(seen(&keeper), ["stop", "stop"]);
}

/// However many commands wait for a device that is gone, it ends once, and what is said of it says once that it is gone.
#[test]
fn one_that_is_gone_ends_once() {
    let (_, keeper) = keeper(Duration::ZERO);
    keeper.peek(|calls| calls.gone = true);
    (0..33).for_each(|_| keeper.ties().trouble(0, "nobody answers"));
    let gone = keeper.service().unwrap_err();
    assert_eq!(gone.to_string(), "wires is gone: nobody answers");
    assert_eq!(seen(&keeper), ["help"]);
    let events: Vec<_> = keeper.events().try_iter().collect();
    assert_eq!(events, [Happened::Ended { why: "nobody answers".to_owned() }]);
}

#[test]
fn dropped_it_is_put_away_and_releases_its_memory() {
    let (_, mut keeper) = keeper(Duration::ZERO);
    keeper.spawn().unwrap();
    let kept = keeper.kept.clone();
    drop(keeper);
    assert_eq!(kept.peek(|calls| calls.seen.clone()), ["away", "stop", "release"]);
}

/// A driver that writes no more than it must.
struct Plain(Arc<AtomicBool>);

impl Driver for Plain {
    const NAME: &'static str = "plain";
    type State = u32;
    type Event = Happened;
    type Trouble = &'static str;
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
    let ties = Ties::new(&device, None).unwrap();
    let keeper = Keeper::start(Plain(stuck.clone()), 0, ties, Duration::ZERO).unwrap();
    let event = || keeper.events().recv_timeout(Duration::from_secs(60)).unwrap();
    let reset = |why: &str| Happened::Reset { why: why.to_owned(), lost: vec![] };
    assert_eq!(keeper.peek(|starts| *starts), 1);
    keeper.reset().unwrap();
    assert_eq!(event(), reset("it was asked for"));
    keeper.ties().trouble(keeper.domain().epoch(), "help");
    assert_eq!((event(), keeper.peek(|starts| *starts)), (reset("help"), 3));
    // Where it does not stop, its function is reset; this one does not come back, which its bus tells.
    stuck.store(true, Ordering::Relaxed);
    assert!(matches!(keeper.reset(), Err(Error::Gone { .. })));
    assert!(matches!(event(), Happened::Ended { why } if why.contains("did not come back")));
    assert!(keeper.domain().ended().is_some_and(|end| end.gone && end.harmless));

    let ties = Ties::new(&device, None).unwrap();
    assert!(Keeper::start(Plain(stuck), 0, ties, Duration::ZERO).is_err(), "it cannot be stopped");
}

#[test]
fn a_line_is_unmasked_once_the_driver_has_looked_after_its_device() {
    let wires = Wires::new(0, true, 0);
    let device: Arc<dyn PciDevice> = wires.clone();
    let ties = Ties::new(&device, Interrupts::best(device.clone(), 4).unwrap()).unwrap();
    let keeper = Keeper::new(Toy, Calls::default(), ties, Duration::ZERO).unwrap();
    wires.raise(Irq::Intx, 0);
    keeper.service().unwrap();
    assert_eq!(wires.calls(), ["INTx: 0+1", "INTx: unmasked"]);
    // What a reset of the function took away is there again before the driver goes on.
    wires.reset().unwrap();
    keeper.reset().unwrap();
    assert_eq!(wires.calls(), ["INTx: 0+1"]);
    keeper.ties().wake().take();
    wires.raise(Irq::Intx, 0);
    assert_eq!(keeper.ties().wake().take(), 1);
}
