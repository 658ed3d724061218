//! The port: a server for one front end after another, the thread that hears them, and queues that are in use or not.

use super::BackEnd;
use super::device::{ENTRIES, State, nic};
use super::queues::{Rx, Tx};
use crate::virtio::Virtio;
use crate::virtio::net::HEADER;
use crate::wire::{LONGEST, mac_of};
use crate::{Error, Result};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;
use wholebar_core::DriverError;
use wholebar_core::channel::{Receiver, bounded};
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{
    Count, Event, Limits, Link, Mac, Offloads, Port, PortConfig, Rss, RxCounters, RxQueue, Statistic, TxCounters,
    TxQueue,
};
use wholebar_core::vhost_user::Server;

/// The most queues each way.
const MAX_QUEUES: u16 = 64;
/// The usual MTU.
const MTU: u16 = 1500;
/// An Ethernet header with two VLAN tags.
const LINK_HEADER: usize = 22;
/// Bytes of all headers of a packet, at most: Ethernet with tags, IPv4 and TCP with all their options, or some of IPv6's extensions.
const HEADERS: usize = 256;
/// How many events wait where nobody takes them.
const EVENTS: usize = 256;
/// What there is besides moving packets. What is left to a front end that can't do it is done here.
const OFFLOADS: Offloads = Offloads {
    rx_checksum: true,
    tx_l4_checksum: true,
    tso: true,
    lro: true,
    scatter: true,
    gather: true,
    ..Offloads::NONE
};

/// A port at the other end of a front end's rings.
pub(super) struct BackEndPort {
    open: Arc<Open>,
    limits: Limits,
    events: Receiver<Event>,
}

/// What queues hold, too: the port stays open as long as one of them.
pub(super) struct Open {
    shared: Arc<Shared>,
    config: PortConfig,
    mtu: u16,
    mac: Mac,
    rx: Vec<Arc<RxSlot>>,
    tx: Vec<Arc<TxSlot>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has.
struct Shared {
    name: String,
    server: Mutex<Server<Virtio>>,
    state: Arc<State>,
    /// Has the thread look at the server, or end.
    poke: EventFd,
    end: AtomicBool,
    wakeups: Vec<Arc<EventFd>>,
}

/// What is known of a queue that receives, whoever has it.
pub(super) struct RxSlot {
    pub(super) counters: RxCounters,
    /// Signalled for whatever comes from the front end but packets that it does not tell of.
    pub(super) wakeup: Option<Arc<EventFd>>,
    taken: AtomicBool,
}

/// What is known of a queue that sends.
#[derive(Default)]
pub(super) struct TxSlot {
    pub(super) counters: TxCounters,
    /// Packets that were dropped while no driver was there.
    pub(super) no_carrier: Count,
    taken: AtomicBool,
}

impl RxSlot {
    pub(super) fn put_back(&self) {
        self.taken.store(false, Ordering::Release);
    }
}

impl TxSlot {
    pub(super) fn put_back(&self) {
        self.taken.store(false, Ordering::Release);
    }
}

impl Open {
    pub(super) fn name(&self) -> &str {
        &self.shared.name
    }

    /// What of the offloads was asked for.
    pub(super) fn granted(&self) -> Offloads {
        self.config.offloads.and(OFFLOADS)
    }

    /// Bytes in front of a received packet: the program's, which hold the header that it comes with.
    pub(super) fn headroom(&self) -> u16 {
        self.config.headroom.max(HEADER as u16)
    }

    /// The largest packet that is not to be cut.
    pub(super) fn largest(&self) -> usize {
        usize::from(self.mtu) + LINK_HEADER
    }

    pub(super) fn link(&self) -> Link {
        self.shared.state.link()
    }

    pub(super) fn pairs(&self) -> u16 {
        self.shared.state.pairs()
    }

    /// The server, unless somebody else has it now, or its front end is to be sent away.
    #[inline]
    pub(super) fn try_server(&self) -> Option<MutexGuard<'_, Server<Virtio>>> {
        let server = match self.shared.server.try_lock() {
            Ok(server) => server,
            Err(TryLockError::Poisoned(server)) => server.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if server.is_robbed() {
            self.give_up(server);
            return None;
        }
        Some(server)
    }

    /// Gives the server up; where it has something to tell its front end, or to send it away, the thread sees to that.
    #[inline]
    pub(super) fn give_up(&self, mut server: MutexGuard<'_, Server<Virtio>>) {
        if server.is_robbed() || server.function().model().common.tell {
            drop(server);
            self.shared.poke.signal();
        }
    }

    fn failed(&self, why: impl Into<String>) -> DriverError {
        DriverError::new(Error::Port { port: self.shared.name.clone(), why: why.into() })
    }
}

impl Shared {
    /// Hears front ends until the end.
    fn run(&self) {
        loop {
            let (came, wait) = {
                let mut server = self.server.lock().unwrap_or_else(|e| e.into_inner());
                (server.service(), server.waits_for())
            };
            if came {
                // Kicked or told: there may be packets.
                self.wakeups.iter().for_each(|wakeup| wakeup.signal());
            } else if let Err(error) = wait.wait(self.poke.as_fd()) {
                tracing::error!(%error, port = self.name, "front ends are not heard any more");
                return;
            }
            self.poke.take();
            // Relaxed: nothing else is published by it.
            if self.end.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        self.shared.poke.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What can be asked of the port.
fn check(name: &str, config: &PortConfig) -> Result<()> {
    let failed = |why: String| Err(Error::Port { port: name.to_owned(), why });
    for (direction, asked) in [("receive", config.rx_queues), ("send", config.tx_queues)] {
        if !(1..=MAX_QUEUES).contains(&asked) {
            return failed(format!("{asked} queues that {direction} are asked for, and there are 1 to {MAX_QUEUES}"));
        }
    }
    if config.rss.is_some() {
        return failed(
            "which queue a packet comes by is the front end's choice: leave out receive-side scaling".to_owned(),
        );
    }
    Ok(())
}

impl BackEndPort {
    pub(super) fn open(target: &BackEnd, config: &PortConfig) -> Result<Self> {
        let name = target.to_string();
        check(&name, config)?;
        let (send, events) = bounded(EVENTS);
        let state = Arc::new(State::new(send));
        let mtu = config.mtu.unwrap_or(MTU);
        let path = target.path.to_string_lossy();
        let mac = target.mac.unwrap_or_else(|| mac_of(&path, 1));
        let nic = nic(&name, mac, mtu, config.rx_queues, config.offloads.and(OFFLOADS), state.clone())?;
        let server = match target.server {
            true => Server::bind(&target.path, nic)?,
            false => Server::connect(&target.path, nic)?,
        };
        let wakeup = || config.rx_interrupts.then(|| EventFd::new().map(Arc::new)).transpose();
        let rx = (0..config.rx_queues).map(|_| {
            Ok(Arc::new(RxSlot { counters: RxCounters::default(), wakeup: wakeup()?, taken: AtomicBool::new(false) }))
        });
        let rx: Vec<Arc<RxSlot>> = rx.collect::<Result<_>>()?;
        let shared = Arc::new(Shared {
            name,
            server: Mutex::new(server),
            state,
            poke: EventFd::new()?,
            end: AtomicBool::new(false),
            wakeups: rx.iter().filter_map(|slot| slot.wakeup.clone()).collect(),
        });
        let run = {
            let shared = shared.clone();
            move || shared.run()
        };
        let thread = std::thread::Builder::new().name("wholebar-vhost".to_owned()).spawn(run);
        let thread =
            thread.map_err(|cause| wholebar_core::Error::Io { what: "starting a thread".to_owned(), cause })?;
        let open = Open {
            shared,
            config: config.clone(),
            mtu,
            mac: Mac(mac_of(&path, 2)),
            rx,
            tx: (0..config.tx_queues).map(|_| Arc::default()).collect(),
            thread: Some(thread),
        };
        let limits = Limits {
            rx_queues: MAX_QUEUES,
            tx_queues: MAX_QUEUES,
            descriptors: ENTRIES,
            mtu: u16::MAX,
            offloads: OFFLOADS,
            rss_table: 0,
        };
        Ok(Self { open: Arc::new(open), limits, events })
    }
}

impl Port for BackEndPort {
    fn driver(&self) -> &'static str {
        "vhost"
    }

    fn name(&self) -> &str {
        self.open.name()
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn granted(&self) -> Offloads {
        self.open.granted()
    }

    fn queues(&self) -> (u16, u16) {
        (self.open.config.rx_queues, self.open.config.tx_queues)
    }

    fn mtu(&self) -> u16 {
        self.open.mtu
    }

    fn mac(&self) -> Mac {
        self.open.mac
    }

    fn set_mac(&self, _: Mac) -> Result<(), DriverError> {
        Err(self.open.failed("its own address is made of its name; the front end's is given by mac="))
    }

    /// All that the front end sends is received.
    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError> {
        if on { Ok(()) } else { Err(self.open.failed("it filters nothing: all that the front end sends is received")) }
    }

    fn set_all_multicast(&self, on: bool) -> Result<(), DriverError> {
        self.set_promiscuous(on)
    }

    fn set_filters(&self, _: &[Mac]) -> Result<(), DriverError> {
        // What they would let in comes in.
        Ok(())
    }

    fn set_vlan(&self, _: u16, _: bool) -> Result<(), DriverError> {
        self.set_promiscuous(false)
    }

    fn set_rss(&self, _: &Rss) -> Result<(), DriverError> {
        Err(self.open.failed("which queue a packet comes by is the front end's choice"))
    }

    fn link(&self) -> Link {
        self.open.link()
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn statistics(&self) -> Vec<Statistic> {
        let of = |queue: &str, name: &'static str, value| Statistic {
            queue: queue.to_owned().into(),
            name: name.into(),
            value,
        };
        let mut all = Vec::new();
        for (i, slot) in self.open.rx.iter().enumerate() {
            let queue = format!("rx{i}");
            all.extend(slot.counters.all().map(|(name, value)| of(&queue, name, value)));
        }
        for (i, slot) in self.open.tx.iter().enumerate() {
            let queue = format!("tx{i}");
            all.extend(slot.counters.all().map(|(name, value)| of(&queue, name, value)));
            all.push(of(&queue, "dropped_no_carrier", slot.no_carrier.get()));
        }
        all.push(of("", "link_changes", self.open.shared.state.link_changes()));
        all
    }

    fn attach(&self, _: Arc<Arena>) -> Result<(), DriverError> {
        // Packets are copied: the front end sees none of the program's memory.
        Ok(())
    }

    fn detach(&self, _: &Arena) -> Result<(), DriverError> {
        Ok(())
    }

    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError> {
        let open = &self.open;
        let (granted, headroom, size) = (open.granted(), usize::from(open.headroom()), pool.size() as usize);
        // In several buffers, the first has all headers.
        let several = granted.scatter || granted.lro;
        let needed = headroom + if several { HEADERS } else { open.largest() };
        if needed > size {
            let what = if several { "the headers of a packet, and their" } else { "a packet and its" };
            return Err(open.failed(format!("buffers of {size} bytes are too small: {what} headroom take {needed}")));
        }
        // A packet for which there can never be enough would hold up the queue.
        let longest = headroom + if granted.lro { LONGEST } else { open.largest() };
        let (there, needed) = (pool.capacity(), longest.div_ceil(size));
        if needed > there as usize {
            let why = format!("a pool of {there} buffers of {size} bytes is too small: one packet may take {needed}");
            return Err(open.failed(why));
        }
        let slot = open.rx.get(usize::from(index));
        let slot = slot.ok_or_else(|| open.failed(format!("there is no queue {index} that receives")))?;
        if slot.taken.swap(true, Ordering::Acquire) {
            return Err(open.failed(format!("queue {index} that receives is in use")));
        }
        Ok(Box::new(Rx::new(open.clone(), slot.clone(), index, pool)))
    }

    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError> {
        let open = &self.open;
        let slot = open.tx.get(usize::from(index));
        let slot = slot.ok_or_else(|| open.failed(format!("there is no queue {index} that sends")))?;
        if slot.taken.swap(true, Ordering::Acquire) {
            return Err(open.failed(format!("queue {index} that sends is in use")));
        }
        Ok(Box::new(Tx::new(open.clone(), slot.clone(), index)))
    }

    /// Nothing is in flight, and the device is the front end's to reset: queues go on.
    fn reset(&self) -> Result<(), DriverError> {
        let why = "it was asked for".to_owned();
        self.open.shared.state.tell(DeviceEvent::Reset { why, lost: Vec::new() }.into());
        Ok(())
    }
}
