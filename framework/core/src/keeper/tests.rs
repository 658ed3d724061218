//! A driver of nothing, kept: what is called when.

use super::*;
use crate::irq::tests::Wires;
use crate::reset::Turn;

/// A driver of nothing.
struct Toy {
    device: Arc<dyn PciDevice>,
    domain: Domain,
}

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

    fn device(&self) -> &Arc<dyn PciDevice> {
        &self.device
    }
    fn domain(&self) -> &Domain {
        &self.domain
    }
    fn event(happened: Happened) -> Happened {
        happened
    }
    fn remedy(error: &Error) -> Remedy {
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
    fn turn(&self, _: &mut Calls) {}
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
    let ties = Ties::new(&device, Arc::new(EventFd::new().unwrap()));
    let toy = Toy { device, domain: Domain::new() };
    (wires, Keeper::new(toy, Calls::default(), ties, patience).unwrap())
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
