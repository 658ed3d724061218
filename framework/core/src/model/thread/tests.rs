//! A thread that sleeps is woken by everything that brings its models work. Nobody looks round in these tests: what is lost is never found.

use crate::irq::EventFd;
use crate::mem::{Arena, ArenaOptions};
use crate::model::rest::LONGEST;
use crate::model::{Host, InProcess, Model, ModelRegion, Pages, Refused, Shape};
use crate::pci::{BAR0, PciDevice, Prot};
use crate::reactor::Armed;
use crate::{PageSize, Work};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);
/// A region whose accesses are calls.
const CALLS: u32 = 1;

/// A device that answers: what is in its doorbell, what is written to its register, how often its wire was signalled.
struct Answering {
    doorbell: Arc<Pages>,
    register: u32,
    reset: bool,
    wire: Arc<EventFd>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    doorbell: AtomicU32,
    register: AtomicU32,
    wire: AtomicU64,
    resets: AtomicU64,
}

impl Model for Answering {
    fn shape(&self) -> Shape {
        let len = self.doorbell.len();
        let mapped = ModelRegion { size: len, pages: Some(self.doorbell.clone()), direct: vec![0..len] };
        let calls = ModelRegion { size: 4, ..ModelRegion::default() };
        let regions = vec![mapped, calls];
        Shape { name: "answering".to_owned(), page: PageSize::host(), regions, irqs: Vec::new(), msix: None }
    }

    fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Refused> {
        Ok(())
    }

    fn write(&mut self, _: u32, _: u64, buf: &[u8]) -> Result<(), Refused> {
        self.register = u32::from_le_bytes(buf.try_into().map_err(|_| Refused(libc::EINVAL))?);
        Ok(())
    }

    fn reset(&mut self) {
        self.reset = true;
    }

    fn poll(&mut self, _: &mut Host<'_>) -> Work {
        let doorbell = u32::from_le(self.doorbell.u32(0).unwrap().load(Ordering::Acquire));
        let mut work = Work::Idle;
        if self.seen.doorbell.swap(doorbell, Ordering::Release) != doorbell {
            work = Work::Busy;
        }
        if self.seen.register.swap(self.register, Ordering::Release) != self.register {
            work = Work::Busy;
        }
        if std::mem::take(&mut self.reset) {
            self.seen.resets.fetch_add(1, Ordering::Release);
            work = Work::Busy;
        }
        match self.wire.take() {
            0 => work,
            count => {
                self.seen.wire.fetch_add(count, Ordering::Release);
                Work::Busy
            }
        }
    }

    fn arm(&mut self) -> Armed {
        Armed::Yes
    }

    fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.wire.as_fd()]
    }
}

fn device() -> (Arc<InProcess>, Arc<Seen>, Arc<EventFd>) {
    let (seen, wire) = (Arc::new(Seen::default()), Arc::new(EventFd::new().unwrap()));
    let doorbell = Pages::new(PageSize::host().bytes()).unwrap();
    let model = Answering { doorbell, register: 0, reset: false, wire: wire.clone(), seen: seen.clone() };
    (InProcess::new(model).unwrap(), seen, wire)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < SOON, "{what}: nothing came of it");
        std::thread::yield_now();
    }
}

/// It is at rest, or about to lie down.
fn asleep(device: &InProcess) {
    until("it does not come to rest", || device.is_resting());
}

#[test]
fn a_sleeping_model_is_woken_by_each_kind_of_call_and_wire() {
    let (device, seen, wire) = device();
    device.spawn(|| {}).unwrap();
    let mut resets = 0;
    for n in 1..=5_000u32 {
        // Now and then it certainly sleeps; else it does what it does.
        if n % 100 == 1 && n > 1 {
            asleep(&device);
        }
        match n % 4 {
            0 => {
                device.write(BAR0, 0, &n.to_le_bytes()).unwrap();
                until("a trapped doorbell", || seen.doorbell.load(Ordering::Acquire) == n);
            }
            1 => {
                device.write(CALLS, 0, &n.to_le_bytes()).unwrap();
                until("a register", || seen.register.load(Ordering::Acquire) == n);
            }
            2 => {
                let before = seen.wire.load(Ordering::Acquire);
                wire.signal();
                until("a wire", || seen.wire.load(Ordering::Acquire) > before);
            }
            _ => {
                resets += 1;
                device.reset().unwrap();
                until("a reset", || seen.resets.load(Ordering::Acquire) == resets);
            }
        }
    }
    assert!(device.rests() > Some(0));
}

/// What is mapped can be stored to by whoever has it: its thread naps, and sees a store with nobody waking it.
#[test]
fn a_model_that_is_mapped_naps() {
    let (device, seen, _wire) = device();
    device.spawn(|| {}).unwrap();
    asleep(&device);
    let page = PageSize::host().bytes();
    let mapping = device.map(BAR0, 0..page, Prot::ReadWrite).unwrap();
    for n in 1..20u32 {
        asleep(&device);
        assert!(mapping.store(0, n.to_le()));
        until("a store to a mapped doorbell", || seen.doorbell.load(Ordering::Acquire) == n);
    }
    assert!(LONGEST < SOON);
}

/// A model that joins a sleeping thread is polled, and a thread ends with its last model though it sleeps.
#[test]
fn a_sleeping_thread_sees_models_come_and_go() {
    let ((first, ..), (second, seen, _wire)) = (device(), device());
    first.spawn(|| {}).unwrap();
    asleep(&first);
    assert!(second.spawn_beside(&first));
    let arena = Arena::new(1 << 16, ArenaOptions::default()).unwrap();
    let memory = second.dma().attach(arena).unwrap();
    drop(first);
    for n in 1..1000u32 {
        if n % 100 == 1 {
            asleep(&second);
        }
        second.write(BAR0, 0, &n.to_le_bytes()).unwrap();
        until("a doorbell of the other", || seen.doorbell.load(Ordering::Acquire) == n);
    }
    asleep(&second);
    drop(memory);
    second.stop();
    assert_eq!(second.rests(), None);
}
