//! What a port and its queues have in common, and the numbers of queues in their reset domain. The port stays open as long as one of them.

use super::filter::Filter;
use super::sockets::{RxSlot, Sockets, TxSlot};
use super::watch::{State, Watch};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use wholebar_core::kernel::{PacketSocket, Wakeup};
use wholebar_core::net::{Limits, Mac, Offloads, PortConfig};

/// The two directions, as part of a queue's number.
pub(super) const RX: u32 = 0;
pub(super) const TX: u32 = 1;

/// A queue's number among all of the port's.
pub(super) fn id(index: u16, direction: u32) -> u32 {
    2 * u32::from(index) + direction
}

/// What queues hold, too: the port stays open as long as one of them.
pub(super) struct Shared {
    pub name: String,
    pub state: Arc<State>,
    pub config: PortConfig,
    pub granted: Offloads,
    /// The longest packet that is sent or received, in bytes, Ethernet and VLAN headers included.
    pub max_packet: u32,
    pub patience: Duration,
    pub filter: Filter,
    /// Packets that the filter left out.
    pub filtered: AtomicU64,
    pub sockets: Sockets,
    /// What asks the interface for more, as long as it is open.
    pub members: Arc<PacketSocket>,
    /// One of a pair, which passes on packets whose checksums nobody has completed.
    pub veth: bool,
    pub mac: Mac,
    pub mtu: u16,
    pub limits: Limits,
    pub _watch: Watch,
}

impl Shared {
    /// What wakes a queue's owner, where that was asked for and can be had; else the queue can only be polled.
    pub fn wakeup(&self) -> Option<Wakeup> {
        let made = self.config.rx_interrupts.then(Wakeup::new)?;
        made.inspect_err(|error| tracing::warn!(%error, interface = self.name, "no wake-ups: its queues are polled"))
            .ok()
    }

    pub fn rx(&self, index: u16) -> Option<&RxSlot> {
        self.sockets.rx.get(usize::from(index))
    }

    pub fn tx(&self, index: u16) -> Option<&TxSlot> {
        self.sockets.tx.get(usize::from(index))
    }
}
