//! Ports: the control plane of a network device, the same for every driver.

use super::{Mac, Offloads, Rss, RxCounters, RxQueue, TxCounters, TxQueue};
use crate::DriverError;
use crate::control_plane::DeviceEvent;
use crate::irq::Coalescing;
use crate::mem::{Arena, Pool};
use crate::pci::PciDevice;
use crossbeam_channel::Receiver;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A network device, opened: its configuration, statistics and resets, as `rte_ethdev` has them in DPDK.
///
/// Its queues are values of their own ([`RxQueue`], [`TxQueue`]), which keep the device open: a port and its queues may be dropped in any order.
///
/// Every method can be called at any time, from any thread, while queues are polled on others. Those that return a `Result` take the lock of
/// the device's control plane, wait for a reset that is under way, and access registers or a control queue: microseconds to milliseconds.
/// They are not for the loop that moves packets. Their error is the driver's own: [`DriverError::downcast_ref`] returns it.
///
/// An implementer makes each change survive resets: what `set_promiscuous` and its like were given is told to the device again when it comes up. A method whose
/// device cannot do what is asked returns an error and has changed nothing. [`ControlPlane`](crate::control_plane::ControlPlane) has the lock, the events and the
/// steps of a reset, for every driver.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::mem::{Arena, ArenaOptions, Pool};
/// use wholebar::net::{Burst, Port, QueueState, RxQueue, TxQueue};
///
/// /// Sends back whatever comes, until the queue is lost.
/// fn reflect(port: &dyn Port) -> Result<(), Box<dyn std::error::Error>> {
///     let arena = Arena::new(8 << 20, ArenaOptions::default())?;
///     port.attach(arena.clone())?;
///     let pool = Pool::new(arena, 2048, 2048, 64)?;
///     let (mut rx, mut tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
///     let mut burst = Burst::new(32);
///     while rx.state() == QueueState::Running {
///         rx.rx(&mut burst);
///         tx.tx(&mut burst);
///     }
///     Ok(())
/// }
/// ```
pub trait Port: Send + Sync {
    /// Returns the driver's name: `virtio`, `igb`, `vmxnet3`.
    fn driver(&self) -> &'static str;

    /// Returns the device's name: its PCI address, or the target by which it was opened.
    fn name(&self) -> &str;

    /// Returns the largest configuration that the device supports, whatever it was opened with. (DPDK: `rte_eth_dev_info_get`.)
    fn limits(&self) -> &Limits;

    /// Returns the offloads that the device does: those of [`PortConfig::offloads`](super::PortConfig::offloads) that it has.
    fn granted(&self) -> Offloads;

    /// Returns the numbers of receive and of send queues that the port was opened with.
    fn queues(&self) -> (u16, u16);

    /// Returns the MTU: the largest packet, in bytes, without link-layer header and checksum.
    fn mtu(&self) -> u16;

    /// Returns the station address: that of [`set_mac`](Self::set_mac), or else the device's own. (DPDK: `rte_eth_macaddr_get`.)
    fn mac(&self) -> Mac;

    /// Sets the station address. It lasts until the device is closed, through resets. (DPDK: `rte_eth_dev_default_mac_addr_set`.)
    ///
    /// # Errors
    /// The driver's, where `mac` is a group address or zero, where the device cannot change its address, or is gone.
    fn set_mac(&self, mac: Mac) -> Result<(), DriverError>;

    /// Sets promiscuous mode: whether packets to any address are received. It lasts through resets. (DPDK: `rte_eth_promiscuous_enable`.)
    ///
    /// # Errors
    /// The driver's, where the device has no such mode, or is gone.
    fn set_promiscuous(&self, on: bool) -> Result<(), DriverError>;

    /// Sets whether packets to any multicast address are received. It lasts through resets. (DPDK: `rte_eth_allmulticast_enable`.)
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

    /// Sets whether packets of the VLAN `vlan`, 1 to 4094, are received, where [`Offloads::vlan_filter`] was granted. It lasts through resets. (DPDK:
    /// `rte_eth_dev_vlan_filter`.)
    ///
    /// # Errors
    /// The driver's, for a number that is no VLAN, where the device does not filter VLANs, or is gone.
    fn set_vlan(&self, vlan: u16, on: bool) -> Result<(), DriverError>;

    /// Sets receive-side scaling: how packets are spread over the receive queues. It lasts through resets. (DPDK: `rte_eth_dev_rss_hash_update`,
    /// `rte_eth_dev_rss_reta_update`.)
    ///
    /// # Errors
    /// The driver's, for a table or key that the device cannot have, or queues that the port has not; where the device has no RSS, or is gone.
    fn set_rss(&self, rss: &Rss) -> Result<(), DriverError>;

    /// Returns when the receive queues interrupt; `None` where the device has no coalescing, or no interrupts for them
    /// ([`PortConfig::rx_interrupts`](super::PortConfig::rx_interrupts)). By default there is none.
    fn coalescing(&self) -> Option<Coalescing> {
        None
    }

    /// Sets when the receive queues interrupt, and returns what the device made of it. It lasts through resets. (Linux: `ethtool -C`.)
    ///
    /// # Errors
    /// The driver's, where the device was opened without interrupts for its queues, has no coalescing, or not for so long, or is gone. By default
    /// [`Error::NoCoalescing`](crate::Error::NoCoalescing).
    fn set_coalescing(&self, _coalescing: Coalescing) -> Result<Coalescing, DriverError> {
        Err(crate::Error::NoCoalescing { device: self.name().to_owned() }.into())
    }

    /// Returns the state of the link, as it was last read: up to a fifth of a second old. It may read a register. (DPDK: `rte_eth_link_get_nowait`.)
    fn link(&self) -> Link;

    /// Has the device negotiate its link anew, which takes the link away for up to some seconds; [`Event::Link`] tells of both. (Linux: `ethtool -r`.)
    ///
    /// # Errors
    /// The driver's, where the device cannot be reached, or is gone. By default [`Error::NoNegotiation`](crate::Error::NoNegotiation): a link that nobody negotiates.
    fn renegotiate(&self) -> Result<(), DriverError> {
        Err(crate::Error::NoNegotiation { device: self.name().to_owned() }.into())
    }

    /// Returns the receiver of the port's events. While 256 wait, further ones are dropped. Clones of the receiver share the events: each goes to one.
    fn events(&self) -> &Receiver<Event>;

    /// Returns every counter of each queue and of the device. (DPDK: `rte_eth_xstats_get`.)
    ///
    /// Counters begin at 0 when the port is opened and go on through resets. Where counters are registers of the device, this takes the lock.
    ///
    /// Packets that a device drops because they are for other addresses are counted only where the device does so. VIRTIO 1.2 has no such counter;
    /// a model in this process has one (`rx_filtered`). An 82576 counts good packets that passed its filters (`rx_packets`), and all packets
    /// (`rx_packets_all`), those with errors included.
    fn statistics(&self) -> Vec<Statistic>;

    /// Maps an arena for DMA by the device, so that queues can use buffers there. For an arena that is attached already it does nothing.
    /// (DPDK: `rte_dev_dma_map`.)
    ///
    /// # Errors
    /// The driver's, where the address space has no room for the arena, or the system refuses to map it.
    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError>;

    /// Unmaps an arena from the device: when this returns, the device cannot reach it any more. For an arena that is not attached it does nothing. (DPDK:
    /// `rte_dev_dma_unmap`.)
    ///
    /// # Errors
    /// [`Error::StillAttached`](crate::Error::StillAttached), as the driver has it, while a queue exists that was given buffers of the arena. A
    /// virtio device or a vmxnet3 keeps all of its queues as long as it is open, so there it is enough that a queue was given some. Nothing has changed then.
    fn detach(&self, arena: &Arena) -> Result<(), DriverError>;

    /// Returns receive queue `index`, from 0, which takes its buffers from `pool`; the pool's arena is attached. A dropped queue can be had again. (DPDK:
    /// `rte_eth_rx_queue_setup`.)
    ///
    /// # Errors
    /// The driver's, where the port has no such queue or it is in use, where the arena cannot be mapped, or the buffers are too small for the MTU and
    /// headroom.
    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, DriverError>;

    /// Returns send queue `index`, from 0. A dropped queue can be had again; its packets in flight end with the port. (DPDK: `rte_eth_tx_queue_setup`.)
    ///
    /// # Errors
    /// The driver's, where the port has no such queue or it is in use.
    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, DriverError>;

    /// Resets the device, and returns when its queues can go on: packets in flight are dropped and counted, and their buffers return to their pools.
    /// (DPDK: `rte_eth_dev_reset`.)
    ///
    /// Each queue must be polled on another thread meanwhile: one that is not, within five seconds, is lost, and its buffers quarantined.
    ///
    /// # Errors
    /// The driver's, where queues were not polled, or the device did not come up again.
    fn reset(&self) -> Result<(), DriverError>;
}

/// The largest configuration that a device supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of receive queues.
    pub rx_queues: u16,
    /// The largest number of send queues.
    pub tx_queues: u16,
    /// The largest number of descriptors of a queue.
    pub descriptors: u16,
    /// The largest MTU, in bytes.
    pub mtu: u16,
    /// The offloads that the device has.
    pub offloads: Offloads,
    /// The largest number of entries of the RSS redirection table; 0 where the device has another way of spreading packets.
    pub rss_table: u16,
}

/// The state of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// The link is up.
    pub up: bool,
    /// The speed in Mb/s, where it is known.
    pub speed: Option<u32>,
    /// Whether the link is full duplex, where that is known.
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

/// An event of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The link changed.
    Link(Link),
    /// A send queue is stuck: for some time it has had no room, though the link is up, and no packet of it was sent. Reported once, until packets are
    /// sent again.
    ///
    /// Either the other end takes nothing, or the device has lost its packets, and only a reset ([`Port::reset`]) gets it going.
    Stalled {
        /// The queue's number.
        queue: u16,
        /// How long nothing moved.
        waited: Duration,
    },
    /// The device asks the driver's side to announce its address, by a gratuitous ARP or the like, after a migration.
    Announce,
    /// An event that can happen to any device.
    Device(DeviceEvent),
}

impl From<DeviceEvent> for Event {
    fn from(event: DeviceEvent) -> Self {
        Self::Device(event)
    }
}

/// A counter and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistic {
    /// The queue that the counter belongs to (`rx0`, `tx3`); empty for the device's own, or `model`.
    pub queue: Cow<'static, str>,
    /// The counter's name.
    pub name: Cow<'static, str>,
    /// The counter's value.
    pub value: u64,
}

impl Statistic {
    /// Returns a counter's value: that of a queue, or of the device where `queue` is empty.
    pub fn new(queue: impl Into<Cow<'static, str>>, name: impl Into<Cow<'static, str>>, value: u64) -> Self {
        Self { queue: queue.into(), name: name.into(), value }
    }

    /// Returns the counters of receive queue `index`, as part of [`Port::statistics`]. For drivers.
    pub fn of_rx(index: usize, counters: &RxCounters) -> impl Iterator<Item = Self> {
        counters.all().map(move |(name, value)| Self::new(format!("rx{index}"), name, value))
    }

    /// Returns the counters of send queue `index`, as part of [`Port::statistics`]. For drivers.
    pub fn of_tx(index: usize, counters: &TxCounters) -> impl Iterator<Item = Self> {
        counters.all().map(move |(name, value)| Self::new(format!("tx{index}"), name, value))
    }

    /// Returns the counters of a device that is a model in this process, as part of [`Port::statistics`]. For drivers.
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
