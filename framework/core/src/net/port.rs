//! A port: the control plane of a network device, the same for every driver.

use super::{Mac, Offloads, Rss, RxQueue, TxQueue};
use crate::keeper::Happened;
use crate::mem::{Arena, Pool};
use crossbeam::channel::Receiver;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a driver's own error becomes where a program does not know which driver it has.
pub type PortError = Box<dyn std::error::Error + Send + Sync>;

/// A network device, opened. Its queues are values of their own.
pub trait Port: Send + Sync {
    /// What a person calls it.
    fn name(&self) -> &str;

    /// What the device can be asked for.
    fn limits(&self) -> &Limits;

    /// Of the offloads that were asked for, those that there are.
    fn granted(&self) -> Offloads;

    /// Queues that receive, queues that send.
    fn queues(&self) -> (u16, u16);

    /// The largest packet, in bytes, without link-layer header.
    fn mtu(&self) -> u16;

    /// Its address.
    fn mac(&self) -> Mac;

    /// Gives it another address.
    ///
    /// # Errors
    /// What the driver says; so below.
    fn set_mac(&self, mac: Mac) -> Result<(), PortError>;

    /// Whether it receives what is sent to anybody.
    fn set_promiscuous(&self, on: bool) -> Result<(), PortError>;

    /// Whether it receives what is sent to any group.
    fn set_all_multicast(&self, on: bool) -> Result<(), PortError>;

    /// The addresses besides its own for which it receives; instead of those set before.
    fn set_filters(&self, addresses: &[Mac]) -> Result<(), PortError>;

    /// Whether it receives packets of a VLAN (1 to 4094), where it filters them.
    fn set_vlan(&self, vlan: u16, on: bool) -> Result<(), PortError>;

    /// How packets are spread over the queues that receive.
    fn set_rss(&self, rss: &Rss) -> Result<(), PortError>;

    /// How its link is.
    fn link(&self) -> Link;

    /// What happens to it. While as many wait here as the driver keeps, further ones are dropped.
    fn events(&self) -> &Receiver<Event>;

    /// Everything that is counted: for each queue, and for the device.
    fn statistics(&self) -> Vec<Statistic>;

    /// Lets the device into an arena, so that its queues can use buffers there. Once more changes nothing.
    fn attach(&self, arena: &Arc<Arena>) -> Result<(), PortError>;

    /// Takes an arena away from the device: it can't reach it any more when this returns. One that is not attached is no error.
    ///
    /// # Errors
    /// [`Error::StillAttached`](crate::Error::StillAttached) while a queue is there that was given buffers of it, or, of a device that always has all of
    /// its queues (virtio), was there; nothing has changed then.
    fn detach(&self, arena: &Arc<Arena>) -> Result<(), PortError>;

    /// A queue that receives, into buffers of `pool`. It can be had again once it was dropped.
    fn rx_queue(&self, index: u16, pool: &Pool) -> Result<Box<dyn RxQueue>, PortError>;

    /// A queue that sends. It can be had again once it was dropped.
    fn tx_queue(&self, index: u16) -> Result<Box<dyn TxQueue>, PortError>;

    /// Resets the device, and waits until its queues can go on. They have to be polled meanwhile, on other threads.
    fn reset(&self) -> Result<(), PortError>;
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
    /// The kernel reports an error of the function (AER).
    FunctionError,
    /// The kernel wants the device back: close it soon.
    UnbindRequest,
    /// The device was reset; queues run again.
    Reset {
        /// Why.
        why: String,
        /// Queues whose owners did not poll: they are lost, and their buffers quarantined.
        lost: Vec<u32>,
    },
    /// The device cannot be used any more.
    Ended {
        /// Why.
        why: String,
    },
}

impl From<Happened> for Event {
    fn from(happened: Happened) -> Self {
        match happened {
            Happened::FunctionError => Self::FunctionError,
            Happened::UnbindRequest => Self::UnbindRequest,
            Happened::Reset { why, lost } => Self::Reset { why, lost },
            Happened::Ended { why } => Self::Ended { why },
        }
    }
}

/// One counter, and what it has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistic {
    /// The queue it is of (`rx0`, `tx3`), or nothing for the device's own.
    pub queue: Cow<'static, str>,
    /// What it counts.
    pub name: Cow<'static, str>,
    /// What it has come to.
    pub value: u64,
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
