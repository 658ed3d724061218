//! The port: sockets of an interface, parked while nobody has their queues.

use super::error::Error;
use super::filter::Filter;
use super::netlink::Interface;
use super::rx::Rx;
use super::shared::Shared;
use super::sockets::{RxRing, Sockets, TxRing, lock};
use super::target::{Mode, Target};
use super::tx::Tx;
use super::uses;
use super::watch::{State, Watch};
use super::xdp::{XdpReceiver, XdpSender};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wholebar_core::DriverError;
use wholebar_core::channel::{Receiver, bounded};
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::kernel::xdp::XDP_LARGEST;
use wholebar_core::kernel::{MAX_SLOTS, Membership, PacketSocket};
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{Event, Limits, Link, Mac, Offloads, Port, PortConfig, Rss, RxQueue, Statistic, TxQueue};

/// The most queues each way: a socket each.
const MAX_QUEUES: u16 = 64;
/// The usual MTU.
const MTU: u16 = 1500;
/// An Ethernet header with two VLAN tags.
const LINK_HEADER: u32 = 22;
/// How many events wait where nobody takes them.
const EVENTS: usize = 256;
/// How long a reset waits for the owner of a queue to poll it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What packet sockets have, whichever interface they are of.
const OFFLOADS: Offloads = Offloads { rx_checksum: true, gather: true, timestamps: true, ..Offloads::NONE };

/// A port of an interface.
pub(super) struct KernelPort {
    shared: Arc<Shared>,
    events: Receiver<Event>,
    /// One change of settings, or reset, at a time; the filters that were set.
    control: Mutex<Vec<Mac>>,
}

impl KernelPort {
    pub fn open(target: &Target, config: &PortConfig) -> Result<Self, Error> {
        let found = uses::find(target)?;
        let mtu = check(&found, target, config)?;
        let core = |error| Error::of(&found.name, error);
        let (send, events) = bounded(EVENTS);
        let state = Arc::new(State {
            index: found.index,
            name: found.name.clone(),
            domain: Default::default(),
            link: (found.up && found.carrier).into(),
            link_changes: AtomicU64::new(0),
            events: send,
        });
        let watch = Watch::start(state.clone()).map_err(core)?;
        let sockets = match target.mode {
            Mode::Packet => Sockets::packet(found.index, config),
            Mode::Xdp => Sockets::xdp(found.index, target, config),
        };
        let sockets = sockets.map_err(core)?;
        let members = PacketSocket::sender(found.index).map_err(core)?;
        let offloads = match target.mode {
            Mode::Packet => OFFLOADS,
            Mode::Xdp => Offloads { gather: true, ..Offloads::NONE },
        };
        let shared = Shared {
            name: target.to_string(),
            state,
            granted: config.offloads.and(offloads),
            max_packet: u32::from(mtu) + LINK_HEADER,
            patience: PATIENCE,
            filter: Filter::default(),
            filtered: AtomicU64::new(0),
            sockets,
            members,
            veth: found.veth,
            mac: found.mac,
            mtu,
            limits: Limits {
                rx_queues: MAX_QUEUES,
                tx_queues: MAX_QUEUES,
                descriptors: MAX_SLOTS as u16,
                mtu: found.mtu.try_into().unwrap_or(u16::MAX),
                offloads,
                rss_table: 0,
            },
            config: config.clone(),
            _watch: watch,
        };
        let port = Self { shared: Arc::new(shared), events, control: Mutex::default() };
        if config.promiscuous {
            port.member(Membership::Promiscuous, true)?;
            port.shared.filter.promiscuous.store(true, Ordering::Relaxed);
        }
        Ok(port)
    }

    /// Asks the interface for more, or no longer.
    fn member(&self, membership: Membership, on: bool) -> Result<(), Error> {
        let what = || format!("{} {membership:?}", if on { "asking for" } else { "giving back" });
        let done = self.shared.members.set_membership(membership, on);
        done.map_err(|cause| Error::system(&self.shared.state.name, what(), cause))
    }

    /// Sets a mode of the interface, where that changes it.
    fn mode(&self, membership: Membership, mode: &AtomicBool, on: bool) -> Result<(), DriverError> {
        let _control = lock(&self.control);
        self.check()?;
        if mode.load(Ordering::Relaxed) != on {
            self.member(membership, on)?;
            mode.store(on, Ordering::Relaxed);
        }
        Ok(())
    }

    fn unsupported(&self, what: &'static str, advice: String) -> DriverError {
        Error::Unsupported { interface: self.shared.state.name.clone(), what, advice }.into()
    }

    fn check(&self) -> Result<(), wholebar_core::Error> {
        match self.shared.state.domain.ended() {
            None => Ok(()),
            Some(end) => Err(wholebar_core::Error::Gone { device: self.shared.name.clone(), why: end.why }),
        }
    }

    fn no_queue(&self, direction: &'static str, queue: u16, why: &'static str) -> DriverError {
        Error::NoQueue { interface: self.shared.state.name.clone(), direction, queue, why }.into()
    }
}

/// Whether the interface can be that; the MTU then.
fn check(found: &Interface, target: &Target, config: &PortConfig) -> Result<u16, Error> {
    let interface = || found.name.clone();
    for (direction, asked) in [("receive", config.rx_queues), ("send", config.tx_queues)] {
        if !(1..=MAX_QUEUES).contains(&asked) {
            return Err(Error::Queues { interface: interface(), direction, asked, most: MAX_QUEUES });
        }
    }
    // A packet socket's queue that sends has no descriptors: what is asked for is not needed.
    let tx = config.tx_descriptors.filter(|_| target.mode == Mode::Xdp);
    if let Some(asked) =
        [config.rx_descriptors, tx].into_iter().flatten().find(|n| !n.is_power_of_two() || u32::from(*n) > MAX_SLOTS)
    {
        return Err(Error::Descriptors { interface: interface(), asked, most: MAX_SLOTS as u16 });
    }
    if config.rss.is_some() {
        let advice = "packets are spread by a hash of their flow anyway".to_owned();
        return Err(Error::Unsupported { interface: interface(), what: "receive-side scaling", advice });
    }
    let largest = u32::from(config.mtu.unwrap_or(MTU)) + LINK_HEADER;
    if target.mode == Mode::Xdp && largest > XDP_LARGEST {
        let advice = format!("AF_XDP sockets have {XDP_LARGEST} bytes for a packet: use mode=packet");
        return Err(Error::Unsupported { interface: interface(), what: "a page's size", advice });
    }
    match config.mtu {
        Some(asked) if u32::from(asked) > found.mtu => {
            Err(Error::Mtu { interface: interface(), asked, mtu: found.mtu })
        }
        Some(asked) => Ok(asked),
        None => Ok(MTU.min(found.mtu.try_into().unwrap_or(MTU))),
    }
}

impl Port for KernelPort {
    fn driver(&self) -> &'static str {
        self.shared.sockets.driver
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    fn granted(&self) -> Offloads {
        self.shared.granted
    }

    fn queues(&self) -> (u16, u16) {
        (self.shared.config.rx_queues, self.shared.config.tx_queues)
    }

    fn mtu(&self) -> u16 {
        self.shared.mtu
    }

    fn mac(&self) -> Mac {
        self.shared.mac
    }

    fn set_mac(&self, mac: Mac) -> Result<(), DriverError> {
        let advice = format!("use `ip link set {} address {mac}` before it is opened", self.shared.state.name);
        Err(self.unsupported("the address of an interface", advice))
    }

    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError> {
        self.mode(Membership::Promiscuous, &self.shared.filter.promiscuous, on)
    }

    fn set_all_multicast(&self, on: bool) -> Result<(), DriverError> {
        self.mode(Membership::AllMulticast, &self.shared.filter.all_multicast, on)
    }

    fn set_filters(&self, addresses: &[Mac]) -> Result<(), DriverError> {
        let mut control = lock(&self.control);
        self.check()?;
        // The new ones first: those that are in both stay.
        for (i, new) in addresses.iter().enumerate() {
            if let Err(error) = self.member(Membership::Address(new.0), true) {
                for new in &addresses[..i] {
                    let _ = self.member(Membership::Address(new.0), false);
                }
                return Err(error.into());
            }
        }
        for old in std::mem::replace(&mut *control, addresses.to_vec()) {
            self.member(Membership::Address(old.0), false)?;
        }
        *self.shared.filter.addresses.write().unwrap_or_else(|e| e.into_inner()) = addresses.to_vec();
        Ok(())
    }

    fn set_vlan(&self, vlan: u16, _: bool) -> Result<(), DriverError> {
        let name = &self.shared.state.name;
        let advice =
            format!("use `ip link add link {name} name {name}.{vlan} type vlan id {vlan}`, and that interface");
        Err(self.unsupported("a VLAN", advice))
    }

    fn set_rss(&self, _: &Rss) -> Result<(), DriverError> {
        let advice = "packets are spread by a hash of their flow anyway".to_owned();
        Err(self.unsupported("receive-side scaling", advice))
    }

    fn link(&self) -> Link {
        self.shared.state.link()
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
        let (mut all, mut kernel) = (Vec::new(), BTreeMap::new());
        for (i, slot) in self.shared.sockets.rx.iter().enumerate() {
            let queue = format!("rx{i}");
            slot.counted().into_iter().for_each(|(name, value)| *kernel.entry(name).or_default() += value);
            all.extend(slot.counters.all().map(|(name, value)| of(&queue, name, value)));
        }
        for (i, slot) in self.shared.sockets.tx.iter().enumerate() {
            let queue = format!("tx{i}");
            all.extend(slot.counters.all().map(|(name, value)| of(&queue, name, value)));
            all.push(of(&queue, "dropped_refused", slot.refused.get()));
            all.push(of(&queue, "tx_dropped", slot.lost.get()));
        }
        let counted = [
            ("rx_filtered", self.shared.filtered.load(Ordering::Relaxed)),
            ("link_changes", self.shared.state.link_changes.load(Ordering::Relaxed)),
        ];
        all.extend(kernel.into_iter().chain(counted).map(|(name, value)| of("", name, value)));
        all
    }

    fn attach(&self, _: Arc<Arena>) -> Result<(), DriverError> {
        // Packets are copied: no memory is shared with the kernel but its own ring.
        Ok(())
    }

    fn detach(&self, _: &Arena) -> Result<(), DriverError> {
        Ok(())
    }

    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError> {
        let (shared, size) = (&self.shared, pool.size());
        self.check()?;
        let (headroom, packet) = (shared.config.headroom, shared.max_packet);
        if u32::from(headroom) + packet > size {
            let interface = shared.state.name.clone();
            return Err(Error::Buffers { interface, size, headroom, packet }.into());
        }
        let none = |why| self.no_queue("receives", index, why);
        let slot = shared.rx(index).filter(|_| index < shared.config.rx_queues).ok_or_else(|| none("there is none"))?;
        Ok(match lock(&slot.ring).take().ok_or_else(|| none("it is in use"))? {
            RxRing::Packet(ring) => Box::new(Rx::new(shared.clone(), index, ring, pool)),
            RxRing::Xdp(ring) => Box::new(XdpReceiver::new(shared.clone(), index, ring, pool)),
        })
    }

    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError> {
        self.check()?;
        let none = |why| self.no_queue("sends", index, why);
        let shared = &self.shared;
        let slot = shared.tx(index).filter(|_| index < shared.config.tx_queues).ok_or_else(|| none("there is none"))?;
        Ok(match lock(&slot.ring).take().ok_or_else(|| none("it is in use"))? {
            TxRing::Packet(socket) => Box::new(Tx::new(shared.clone(), index, socket)),
            TxRing::Xdp(ring) => Box::new(XdpSender::new(shared.clone(), index, ring)),
        })
    }

    fn reset(&self) -> Result<(), DriverError> {
        let _control = lock(&self.control);
        self.check()?;
        let domain = &self.shared.state.domain;
        domain.stop();
        let began = Instant::now();
        while !domain.waiting().is_empty() && began.elapsed() < self.shared.patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        let queues = domain.expel();
        domain.quiet();
        // The kernel has nothing of this port's that a reset would change: queues have taken their steps, and go on.
        domain.resume();
        self.check()?;
        self.shared.state.tell(DeviceEvent::Reset { why: "it was asked for".to_owned(), lost: queues.clone() });
        if queues.is_empty() {
            return Ok(());
        }
        let device = self.shared.name.clone();
        Err(wholebar_core::Error::Unresponsive { device, queues, waited: self.shared.patience }.into())
    }
}
