//! Wake-ups under loom: `RUSTFLAGS="--cfg loom" cargo test -p wholebar-core --lib exhaustive`
//!
//! Eventfds and epoll are the kernel's own; what loom turns over are the stores and loads on both sides of them.

use super::*;
use crate::ring::{Consumer, spsc};
use crate::sync::explore;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

/// Who arms and finds nothing is signalled by who brings work, in every order.
#[test]
fn a_bell_is_heard_or_the_work_is_seen() {
    explore(|| {
        let (bell, work) = (Arc::new(Bell::new().unwrap()), loom::sync::Arc::new(AtomicUsize::new(0)));
        let bringer = thread::spawn({
            let (bell, work) = (bell.clone(), work.clone());
            move || {
                work.store(1, Ordering::Relaxed);
                bell.ring();
            }
        });
        bell.arm();
        let seen = work.load(Ordering::Relaxed) == 1;
        bringer.join().unwrap();
        assert!(seen || bell.wakeup().take() > 0, "the wake-up is lost");
    });
}

/// Two who bring work to one poller: that the second finds the bell disarmed by the first loses nothing.
#[test]
fn one_signal_is_enough_for_two() {
    explore(|| {
        let (bell, work) = (Arc::new(Bell::new().unwrap()), loom::sync::Arc::new(AtomicUsize::new(0)));
        let bringers = [1, 2].map(|bit| {
            let (bell, work) = (bell.clone(), work.clone());
            thread::spawn(move || {
                work.fetch_or(bit, Ordering::Relaxed);
                bell.ring();
            })
        });
        bell.arm();
        let seen = work.load(Ordering::Relaxed);
        bringers.into_iter().for_each(|bringer| bringer.join().unwrap());
        assert!(seen == 3 || bell.wakeup().take() > 0, "the wake-up is lost");
    });
}

/// Takes numbers from a ring; stops its reactor after the last.
struct Taker {
    take: Consumer<usize>,
    bell: Arc<Bell>,
    stop: Stop,
    last: usize,
}

impl Poller for Taker {
    fn poll(&mut self) -> Work {
        match self.take.pop() {
            None => return Work::Idle,
            Some(number) if number == self.last => self.stop.ask(),
            Some(_) => {}
        }
        Work::Busy
    }
    fn wakeups(&self) -> Vec<Arc<EventFd>> {
        vec![self.bell.wakeup()]
    }
    fn arm(&mut self) -> Armed {
        self.bell.arm();
        Armed::Yes
    }
    fn disarm(&mut self) {
        self.bell.disarm();
    }
}

/// The reactor itself, which sleeps whenever it can. A lost wake-up is one that sleeps for ever, which loom calls too many branches.
fn a_reactor_takes(numbers: usize) {
    explore(move || {
        let (mut put, take) = spsc(2).unwrap();
        let (bell, stop) = (Arc::new(Bell::new().unwrap()), Stop::new().unwrap());
        let taker = Taker { take, bell: bell.clone(), stop: stop.clone(), last: numbers };
        let reactor = thread::spawn(move || {
            let stats = Reactor::anywhere().policy(Policy::Sleep).with(taker).run(&stop).unwrap();
            assert_eq!(stats.busy, numbers as u64);
        });
        for number in 1..=numbers {
            assert!(put.push(number).is_ok());
            bell.ring();
        }
        reactor.join().unwrap();
    });
}

#[test]
fn a_reactor_that_sleeps_is_woken() {
    a_reactor_takes(1);
}

/// The second comes while it wakes up, while it is awake, or while it arms again.
#[test]
fn a_reactor_is_woken_again() {
    a_reactor_takes(2);
}
