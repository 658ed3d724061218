//! The device that a front end finds: a network card whose queues are polled elsewhere, and which does nothing itself.
//!
//! It offers the offloads that the port has: without them, what is sent is complete.

use crate::Result;
use crate::virtio::bits::{NET, net};
use crate::virtio::layout::Kind;
use crate::virtio::net::dangling;
use crate::virtio::queue::{Broken, FaultState, Queue};
use crate::virtio::{CONFIG_MAX, Device, Transport, Virtio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use wholebar_core::Work;
use wholebar_core::channel::Sender;
use wholebar_core::model::Host;
use wholebar_core::net::{Event, Link, Offloads};
use wholebar_core::reactor::Armed;

/// The largest ring: what the specification allows. There is nothing here that would be longer for it.
pub(super) const ENTRIES: u16 = 32_768;

/// What is known of a front end outside of its lock.
pub(super) struct State {
    /// A driver is there.
    link: AtomicBool,
    link_changes: AtomicU64,
    /// Queue pairs that it uses.
    pairs: AtomicU16,
    events: Sender<Event>,
}

impl State {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { link: AtomicBool::new(false), link_changes: AtomicU64::new(0), pairs: AtomicU16::new(1), events }
    }

    // Relaxed, here and below: nothing else is read by these.
    pub(super) fn link(&self) -> Link {
        Link { up: self.link.load(Ordering::Relaxed), ..Link::default() }
    }

    pub(super) fn link_changes(&self) -> u64 {
        self.link_changes.load(Ordering::Relaxed)
    }

    pub(super) fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, event: Event) {
        // Where nobody takes events, further ones are dropped.
        let _ = self.events.try_send(event);
    }

    fn set_link(&self, up: bool) {
        if self.link.swap(up, Ordering::Relaxed) != up {
            self.link_changes.fetch_add(1, Ordering::Relaxed);
            self.tell(Event::Link(self.link()));
        }
    }
}

/// The device.
struct Nic {
    mac: [u8; 6],
    mtu: u16,
    /// Queue pairs that there are.
    pairs: u16,
    /// What the port has been granted.
    offloads: Offloads,
    state: Arc<State>,
}

/// A network card of so many queue pairs, whose queues are polled elsewhere.
///
/// # Errors
/// Those of the transport: none here.
pub(super) fn nic(
    name: &str,
    mac: [u8; 6],
    mtu: u16,
    pairs: u16,
    offloads: Offloads,
    state: Arc<State>,
) -> Result<Virtio> {
    // By its control queue, which the front end serves itself, a driver asks for more than one pair.
    let kind = Kind { device: NET, class: 0x02_00_00, queues: 2 * pairs + u16::from(pairs > 1), config: 24 };
    // Who polls asks for no notifications: a queue does that is about to sleep.
    let transport = Transport { entries: ENTRIES, notify: false, ..Transport::default() };
    let nic = Nic { mac, mtu, pairs, offloads, state };
    Ok(Virtio::new("vhost-user", &kind, transport, Box::new(nic))?.named(name))
}

impl Device for Nic {
    fn features(&self) -> u64 {
        let Offloads { rx_checksum, lro, tx_l4_checksum, tso, .. } = self.offloads;
        let when = |on: bool, bits: u64| if on { bits } else { 0 };
        // What the front end sends is received here, and the other way round: large receive is its segmentation.
        net::MAC
            | net::MTU
            | net::STATUS
            | net::MRG_RXBUF
            | when(self.pairs > 1, net::MQ | net::CTRL_VQ)
            | when(rx_checksum || lro, net::CSUM)
            | when(lro, net::HOST_TSO4 | net::HOST_TSO6)
            | when(tx_l4_checksum || tso, net::GUEST_CSUM)
            | when(tso, net::GUEST_TSO4 | net::GUEST_TSO6)
    }

    fn refuses(&self, features: u64) -> Option<&'static str> {
        dangling(features)
    }

    /// 5.1.4: address, status, pairs, MTU.
    fn config(&self, out: &mut [u8; CONFIG_MAX]) {
        out[..6].copy_from_slice(&self.mac);
        // VIRTIO_NET_S_LINK_UP: as long as the port is open.
        out[6..8].copy_from_slice(&1u16.to_le_bytes());
        out[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        out[10..12].copy_from_slice(&self.mtu.to_le_bytes());
    }

    fn configure(&mut self, _: usize, _: &[u8]) {
        // Nothing of it is the driver's to write.
    }

    fn changed(&mut self) -> bool {
        false
    }

    fn start(&mut self, _: u64) {
        self.state.set_link(true);
    }

    fn set_pairs(&mut self, pairs: u16) {
        self.state.pairs.store(pairs.clamp(1, self.pairs), Ordering::Relaxed);
    }

    fn reset(&mut self) {
        self.state.set_link(false);
        self.state.pairs.store(1, Ordering::Relaxed);
    }

    fn poll_queues(&mut self, _: &mut Host<'_>, _: &mut [Option<Queue>], _: &mut FaultState) -> Result<Work, Broken> {
        Ok(Work::Idle)
    }

    fn rest(&mut self) -> Work {
        Work::Idle
    }

    fn arm(&mut self) -> Armed {
        Armed::Yes
    }
}
