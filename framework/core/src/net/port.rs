//! A port: the control plane of a network device, the same for every driver.

use super::{Mac, Offloads, Rss, RxQueue, TxQueue};
use crate::DriverError;
use crate::control_plane::DeviceEvent;
use crate::mem::{Arena, Pool};
use crate::pci::PciDevice;
use crossbeam_channel::Receiver;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A network device, opened: what is configured, read or reset, as `rte_ethdev` has it in DPDK. Its queues are values of their own
/// ([`RxQueue`], [`TxQueue`]), which keep the device open: a port and its queues may be dropped in any order.
///
/// Every method can be called at any time, from any thread, while queues are polled on others. Those that return a `Result` take the lock of
/// the device's control plane, wait for a reset that is under way, and reach registers or a control queue: microseconds to milliseconds.
/// They are not for the loop that moves packets. Their error is the driver's own: [`DriverError::downcast_ref`] gives it.
///
/// ```
/// # use wholebar_core::{DriverError, mem::{Arena, ArenaOptions, Pool}, net::{Burst, Port}};
/// /// Sends back whatever comes, until the queue is lost.
/// fn reflect(port: &dyn Port) -> Result<(), Box<dyn std::error::Error>> {
///     let arena = Arena::new(8 << 20, ArenaOptions::default())?;
///     port.attach(&arena)?;
///     let pool = Pool::new(&arena, 2048, 2048, 64)?;
///     let (mut rx, mut tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
///     let mut burst = Burst::new(32);
///     while rx.state() == wholebar_core::block::QueueState::Running {
///         rx.rx(&mut burst);
///         tx.tx(&mut burst);
///     }
///     Ok(())
/// }
/// ```
pub trait Port: Send + Sync {
    /// The driver's name: `virtio`, `igb`.
    fn driver(&self) -> &'static str;

    /// The device's name: its PCI address, or the target that it was opened by.
    fn name(&self) -> &str;

    /// The most that the device can be asked for, whatever it was opened with. (DPDK: `rte_eth_dev_info_get`.)
    fn limits(&self) -> &Limits;

    /// Of the offloads that [`PortConfig::offloads`](super::PortConfig::offloads) asked for, those that the device has and does.
    fn granted(&self) -> Offloads;

    /// How many receive and how many send queues the port was opened with.
    fn queues(&self) -> (u16, u16);

    /// The largest packet, in bytes, without link-layer header and checksum.
    fn mtu(&self) -> u16;

    /// The station address: that of [`set_mac`](Self::set_mac), or else the device's own.
    fn mac(&self) -> Mac;

    /// Sets the station address. It lasts until the device is closed, through resets.
    ///
    /// # Errors
    /// The driver's, where `mac` is a group address or zero, where the device cannot change its address, or is gone.
    fn set_mac(&self, mac: Mac) -> Result<(), DriverError>;

    /// Promiscuous mode: whether packets to any address are received. It lasts through resets.
    ///
    /// # Errors
    /// The driver's, where the device has no such mode, or is gone.
    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError>;

    /// Whether packets to any multicast address are received. It lasts through resets.
    ///
    /// # Errors
    /// The driver's, where the device has no such mode, or is gone.
    fn set_all_multicast(&self, on: bool) -> Result<(), DriverError>;

    /// Sets the addresses, besides [`mac`](Self::mac), to which packets are received; they replace those set before. It lasts through resets.
    /// (DPDK: `rte_eth_dev_set_mc_addr_list`, `rte_eth_dev_mac_addr_add`.)
    ///
    /// # Errors
    /// The driver's, where there are more than the device has room for, where it has no filters, or is gone.
    fn set_filters(&self, addresses: &[Mac]) -> Result<(), DriverError>;

    /// Whether packets of the VLAN `vlan`, 1 to 4094, are received, where [`Offloads::vlan_filter`] was granted. It lasts through resets.
    ///
    /// # Errors
    /// The driver's, for a number that is no VLAN, where the device does not filter VLANs, or is gone.
    fn set_vlan(&self, vlan: u16, on: bool) -> Result<(), DriverError>;

    /// Sets how packets are spread over the receive queues: receive-side scaling. It lasts through resets.
    ///
    /// # Errors
    /// The driver's, for a table or key that the device cannot have, or queues that the port has not; where the device has no RSS, or is gone.
    fn set_rss(&self, rss: &Rss) -> Result<(), DriverError>;

    /// The state of the link, as it was last told or read. Up to a fifth of a second old; may read a register.
    fn link(&self) -> Link;

    /// What happens to the port. While 256 events wait here, further ones are dropped. Receivers share what comes: each event goes to one.
    fn events(&self) -> &Receiver<Event>;

    /// Every counter of each queue and of the device. Counters begin at 0 when the port is opened and go on through resets. It takes the lock
    /// where counters are registers of the device.
    ///
    /// Packets that a device drops because they are for other addresses are here only where somebody counts them. VIRTIO 1.2 has no such counter;
    /// a model in this process tells (`rx_filtered`). A 82576 counts good packets that passed its filters (`rx_packets`), and all packets
    /// (`rx_packets_all`): the latter has those with errors, too.
    fn statistics(&self) -> Vec<Statistic>;

    /// Maps an arena for DMA by the device, so that queues can use buffers there. For an arena that is attached already it does nothing.
    /// (DPDK: `rte_dev_dma_map`.)
    ///
    /// # Errors
    /// The driver's, where the address space has no room for the arena, or the system refuses to map it.
    fn attach(&self, arena: &Arc<Arena>) -> Result<(), DriverError>;

    /// Takes an arena away from the device: it is unmapped when this returns. For an arena that is not attached it does nothing. (DPDK:
    /// `rte_dev_dma_unmap`.)
    ///
    /// # Errors
    /// [`Error::StillAttached`](crate::Error::StillAttached), as the driver has it, while there is a queue that was given buffers of the arena, or, of a
    /// virtio device, was: that has all of its queues as long as it is open. Nothing has changed then.
    fn detach(&self, arena: &Arc<Arena>) -> Result<(), DriverError>;

    /// Receive queue `index`, from 0, which takes its buffers from `pool`. Dropped, it can be had again.
    ///
    /// # Errors
    /// The driver's, where the port has no such queue or it is in use, where the pool's arena is not attached, or its buffers are too small for the
    /// MTU and headroom.
    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError>;

    /// Send queue `index`, from 0. Dropped, it can be had again; packets in flight end with the port.
    ///
    /// # Errors
    /// The driver's, where the port has no such queue or it is in use.
    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError>;

    /// Resets the device, and returns when its queues can go on: packets in flight are dropped and counted, their buffers go home. Each
    /// queue has to be polled on another thread meanwhile: one that is not, within five seconds, is lost, and its buffers quarantined.
    ///
    /// # Errors
    /// The driver's, where queues were not polled, or the device did not come up again.
    fn reset(&self) -> Result<(), DriverError>;
}

/// What a device can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Queues that receive, at most.
    pub rx_queues: u16,
    /// Queues that send, at most.
    pub tx_queues: u16,
    /// Descriptors of a queue, at most.
    pub descriptors: u16,
    /// The largest MTU, in bytes.
    pub mtu: u16,
    /// What it offers.
    pub offloads: Offloads,
    /// Entries of the table that spreads packets, at most; 0 where it spreads them in a way of its own.
    pub rss_table: u16,
}

/// How a link is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// It is there.
    pub up: bool,
    /// In Mb/s, where that is known.
    pub speed: Option<u32>,
    /// Both directions at once, where that is known.
    pub full_duplex: Option<bool>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.up { "up" } else { "down" })?;
        if let Some(speed) = self.speed {
            write!(f, ", {speed} Mb/s")?;
        }
        match self.full_duplex {
            Some(true) => f.write_str(", full duplex"),
            Some(false) => f.write_str(", half duplex"),
            None => Ok(()),
        }
    }
}

/// Something that happened to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Its link changed.
    Link(Link),
    /// A queue that sends is stuck: for some time it has had no room, though the link is up, and nothing that it sent was given back. The other end may take
    /// nothing; or the device has lost what it had, and only a reset ([`Port::reset`]) gets it going. Told once, until packets go again.
    Stalled {
        /// The queue.
        queue: u16,
        /// How long nothing moved.
        waited: Duration,
    },
    /// The device asks that its address be announced (a gratuitous ARP or its like), after it was moved.
    Announce,
    /// What happens to any device.
    Device(DeviceEvent),
}

impl From<DeviceEvent> for Event {
    fn from(event: DeviceEvent) -> Self {
        Self::Device(event)
    }
}

/// One counter, and what it has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistic {
    /// The queue it is of (`rx0`, `tx3`), nothing for the device's own, or `model`.
    pub queue: Cow<'static, str>,
    /// What it counts.
    pub name: Cow<'static, str>,
    /// What it has come to.
    pub value: u64,
}

impl Statistic {
    /// What a device counts of itself where it is a model in this process, as part of [`Port::statistics`].
    pub fn of_model(device: &dyn PciDevice) -> impl Iterator<Item = Self> + use<> {
        let counters = device.counters().into_iter();
        counters.map(|(name, value)| Self { queue: "model".into(), name: name.into(), value })
    }
}

#[cfg(test)]
mod tests {
    use super::Link;

    #[test]
    fn links_are_shown_as_far_as_they_are_known() {
        let link = Link { up: true, speed: Some(1000), full_duplex: Some(true) };
        assert_eq!(
            (link.to_string().as_str(), Link::default().to_string().as_str()),
            ("up, 1000 Mb/s, full duplex", "down")
        );
    }
}
