//! What reactors, their policies and bells promise.

use super::*;
use crate::ring::{Consumer, spsc};
use crossbeam_channel::{Sender, unbounded};
use std::sync::atomic::AtomicU64;

const SOON: Duration = Duration::from_secs(60);

/// Takes numbers from a ring and sends each back.
struct Echo {
    take: Consumer<u64>,
    bell: Arc<Bell>,
    back: Sender<u64>,
    armed: bool,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    arms: AtomicU64,
    /// How often it found nothing once it was armed: its reactor sleeps then.
    sleeps: AtomicU64,
}

impl Poller for Echo {
    fn poll(&mut self) -> Work {
        let Some(n) = self.take.pop() else {
            self.counts.sleeps.fetch_add(u64::from(self.armed), Ordering::Relaxed);
            return Work::Idle;
        };
        let _ = self.back.send(n);
        Work::Busy
    }
    fn wakeups(&self) -> Vec<Arc<EventFd>> {
        vec![self.bell.wakeup()]
    }
    fn arm(&mut self) -> Armed {
        self.bell.arm();
        self.armed = true;
        self.counts.arms.fetch_add(1, Ordering::Relaxed);
        Armed::Yes
    }
    fn disarm(&mut self) {
        self.bell.disarm();
        self.armed = false;
    }
}

/// Sends numbers through a reactor, one by one, until it has armed so often. A lost wake-up is a number that never comes back.
fn echoes(arms: u64, policy: Policy) {
    let (mut put, take) = spsc(4).unwrap();
    let (back, replies) = unbounded();
    let (bell, counts) = (Arc::new(Bell::new().unwrap()), Arc::new(Counts::default()));
    let echo = Echo { take, bell: bell.clone(), back, armed: false, counts: counts.clone() };
    let reactor = Reactor::on_core(cores::allowed()[0]).unwrap();
    let running = reactor.policy(policy).with(echo).spawn().unwrap();
    let mut sent = 0u64;
    while counts.arms.load(Ordering::Relaxed) < arms {
        // Now and then it certainly sleeps; else it does what it does.
        let began = Instant::now();
        while sent.is_multiple_of(1000) && counts.sleeps.load(Ordering::Relaxed) <= sent / 1000 {
            assert!(began.elapsed() < SOON, "it does not look once more before it sleeps");
            std::thread::yield_now();
        }
        put.push(sent).unwrap();
        bell.ring();
        assert_eq!(replies.recv_timeout(SOON), Ok(sent), "the wake-up for {sent} was lost");
        sent += 1;
    }
    let stats = running.join().unwrap();
    assert_eq!((stats.busy, stats.slept), (sent, counts.sleeps.load(Ordering::Relaxed)));
    assert!(stats.slept > 0, "it never slept: {stats:?}");
}

#[test]
fn no_wake_up_is_lost() {
    echoes(if cfg!(miri) { 60 } else { 100_000 }, Policy::Sleep);
}

#[test]
#[ignore = "takes minutes"]
fn no_wake_up_of_ten_million_is_lost() {
    echoes(10_000_000, Policy::Sleep);
}

/// Work that comes when a poll has found nothing, and before the bell is armed, is rung for by nobody: the last poll finds it.
#[test]
fn work_that_comes_before_arming_is_found() {
    struct Late {
        arms: u64,
        work: u64,
        bell: Bell,
        tell: Sender<u64>,
    }
    impl Poller for Late {
        fn poll(&mut self) -> Work {
            if self.work == 0 {
                return Work::Idle;
            }
            self.work -= 1;
            if self.arms.is_multiple_of(1000) {
                let _ = self.tell.send(self.arms);
            }
            Work::Busy
        }
        fn wakeups(&self) -> Vec<Arc<EventFd>> {
            vec![self.bell.wakeup()]
        }
        fn arm(&mut self) -> Armed {
            self.work += 1;
            self.bell.ring();
            self.bell.arm();
            self.arms += 1;
            Armed::Yes
        }
        fn disarm(&mut self) {
            self.bell.disarm();
        }
    }
    let (tell, told) = unbounded();
    let late = Late { arms: 0, work: 0, bell: Bell::new().unwrap(), tell };
    let running = Reactor::anywhere().policy(Policy::Sleep).with(late).spawn().unwrap();
    for arms in 1..=if cfg!(miri) { 1 } else { 100 } {
        assert_eq!(told.recv_timeout(SOON), Ok(1000 * arms));
    }
    assert_eq!(running.join().unwrap().slept, 0);
}

/// With nothing to do it comes to sleep, and what wakes it is not lost, whatever it has learnt meanwhile.
#[test]
fn the_hybrid_policy_sleeps_when_nothing_comes() {
    echoes(if cfg!(miri) { 10 } else { 1000 }, Policy::Hybrid);
}

/// Work that comes every few polls is never slept for.
#[test]
fn the_hybrid_policy_polls_at_saturation() {
    struct Steady {
        polls: u64,
        arms: u64,
        done: Sender<u64>,
    }
    impl Poller for Steady {
        fn poll(&mut self) -> Work {
            self.polls += 1;
            if self.polls == if cfg!(miri) { 1000 } else { 1_000_000 } {
                let _ = self.done.send(self.arms);
            }
            if self.polls.is_multiple_of(10) { Work::Busy } else { Work::Idle }
        }
        fn arm(&mut self) -> Armed {
            self.arms += 1;
            Armed::Yes
        }
    }
    let (done, over) = unbounded();
    let running = Reactor::anywhere().with(Steady { polls: 0, arms: 0, done }).spawn().unwrap();
    assert_eq!(over.recv_timeout(SOON), Ok(0));
    assert_eq!(running.join().unwrap().slept, 0);
}

#[test]
fn a_policy_to_poll_never_arms() {
    struct Never(u64, Sender<()>);
    impl Poller for Never {
        fn poll(&mut self) -> Work {
            self.0 += 1;
            if self.0 == 10_000 {
                let _ = self.1.send(());
            }
            Work::Idle
        }
        fn arm(&mut self) -> Armed {
            panic!("armed");
        }
    }
    let (tell, told) = unbounded();
    let running = Reactor::anywhere().policy(Policy::Poll).with(Never(0, tell)).spawn().unwrap();
    assert_eq!(told.recv_timeout(SOON), Ok(()));
    assert_eq!(running.join().unwrap().slept, 0);
}

/// The protocol alone, with the sleep replaced by a look at the bell: never do both sides see nothing.
#[test]
fn arming_and_ringing_see_one_another() {
    for _ in 0..if cfg!(miri) { 100 } else { 2000 } {
        let bell = Arc::new((Bell::new().unwrap(), AtomicU64::new(0)));
        let ringer = std::thread::spawn({
            let bell = bell.clone();
            move || {
                bell.1.store(1, Ordering::Relaxed);
                bell.0.ring();
            }
        });
        bell.0.arm();
        let found = bell.1.load(Ordering::Relaxed) == 1;
        ringer.join().unwrap();
        assert!(found || bell.0.fd.take() == 1, "work was there, unseen, and no signal came");
    }
}

#[test]
fn a_deadline_ends_the_sleep() {
    const LONG: Duration = Duration::from_secs(120);
    #[derive(Debug, PartialEq)]
    enum Told {
        /// It looked once more, armed, and found nothing: it sleeps until its deadline.
        Asleep,
        /// Its deadline has passed.
        Awake,
    }
    struct Late {
        until: Option<Instant>,
        /// How far away its next deadline is.
        ahead: Duration,
        armed: bool,
        slept: bool,
        tell: Sender<Told>,
    }
    impl Poller for Late {
        fn poll(&mut self) -> Work {
            match self.until {
                Some(until) if Instant::now() >= until => {
                    self.until = None;
                    if self.slept {
                        self.ahead = LONG;
                        let _ = self.tell.send(Told::Awake);
                    } else {
                        // It got no core before its deadline.
                        self.ahead *= 2;
                    }
                    return Work::Busy;
                }
                Some(_) if self.armed => {
                    self.slept = true;
                    let _ = self.tell.send(Told::Asleep);
                }
                _ => {}
            }
            Work::Idle
        }
        fn arm(&mut self) -> Armed {
            self.armed = true;
            Armed::Until(*self.until.get_or_insert(Instant::now() + self.ahead))
        }
        fn disarm(&mut self) {
            self.armed = false;
        }
    }
    let (tell, told) = unbounded();
    let late = Late { until: None, ahead: Duration::from_millis(20), armed: false, slept: false, tell };
    let running = Reactor::anywhere().policy(Policy::Sleep).with(late).spawn().unwrap();
    assert_eq!(told.recv_timeout(SOON), Ok(Told::Asleep));
    while told.recv_timeout(SOON).expect("its deadline passed") != Told::Awake {}
    assert_eq!(told.recv_timeout(SOON), Ok(Told::Asleep));
    // It sleeps towards the next deadline now; stopping must not wait for that.
    let before = Instant::now();
    assert!(running.join().unwrap().slept > 0);
    assert!(before.elapsed() < LONG);
}

#[test]
fn one_poller_that_cannot_be_woken_keeps_all_awake() {
    let (count, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counter, looker) = (count.clone(), seen.clone());
    let tick = move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Work::Idle
    };
    let poll_work = move || {
        looker.fetch_add(1, Ordering::Relaxed);
        Work::Idle
    };
    let running = Reactor::anywhere().policy(Policy::Sleep).with(tick).with(poll_work).spawn().unwrap();
    while seen.load(Ordering::Relaxed) < 50 {
        std::thread::yield_now();
    }
    assert!(running.is_running());
    let stats = running.join().unwrap();
    assert_eq!((stats.slept, stats.busy), (0, 0));
    assert_eq!(count.load(Ordering::Relaxed), stats.idle);
}

#[test]
fn a_panic_is_told_at_the_join() {
    let mut left = 3;
    let poller = move || {
        left -= 1;
        assert!(left > 0, "out of {}", "luck");
        Work::Busy
    };
    let running = Reactor::anywhere().with(poller).spawn().unwrap();
    match running.join() {
        // Whether it got that far before it was stopped is the scheduler's affair.
        Ok(stats) => assert!(stats.busy < 3),
        Err(error) => assert_eq!(error.to_string(), "the reactor panicked: out of luck"),
    }
    let running = Reactor::anywhere().with(|| panic!("at once")).spawn().unwrap();
    while running.is_running() {
        std::thread::yield_now();
    }
    assert!(matches!(running.join(), Err(Error::Panicked { said, .. }) if said == "at once"));
}

#[test]
#[cfg_attr(miri, ignore = "reads what the system says")]
fn a_core_that_is_not_there_is_refused() {
    assert!(matches!(Reactor::on_core(4711), Err(Error::NoSuchCore { core: 4711, .. })));
}
