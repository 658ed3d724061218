//! What a port is asked for and cannot be: the same with every driver that configures a card, and a variant of its error. It does *not* have what a device
//! does wrong.

/// What a port was asked for and cannot be, or give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The port cannot have this number of queues.
    #[error("{device}: {asked} queues that {direction} cannot be had: there are 1 to {most}")]
    Queues {
        /// The device.
        device: String,
        /// `receive` or `send`.
        direction: &'static str,
        /// What was asked for.
        asked: u16,
        /// How many there are.
        most: u16,
    },
    /// The queue does not exist, or is in use.
    #[error("{device}: queue {queue} that {direction} cannot be had: {why}")]
    NoQueue {
        /// The device.
        device: String,
        /// `receives` or `sends`.
        direction: &'static str,
        /// The queue.
        queue: u16,
        /// Why.
        why: &'static str,
    },
    /// A queue cannot have this number of descriptors.
    #[error("{device}: a queue of {asked} descriptors cannot be had: it must be a power of two from {least} to {most}")]
    Descriptors {
        /// The device.
        device: String,
        /// What was asked for.
        asked: u16,
        /// The fewest.
        least: u16,
        /// The most.
        most: u16,
    },
    /// The port cannot have this MTU.
    #[error("{device}: an MTU of {asked} cannot be had: it is from {least} to {most} bytes")]
    Mtu {
        /// The device.
        device: String,
        /// What was asked for, in bytes.
        asked: u16,
        /// The smallest.
        least: u16,
        /// The largest.
        most: u16,
    },
    /// The buffers are too small for packets.
    #[error("{device}: buffers of {size} bytes with {headroom} of headroom cannot receive: {why}")]
    Buffers {
        /// The device.
        device: String,
        /// What a buffer of the pool holds, in bytes.
        size: u32,
        /// What is left in front, in bytes.
        headroom: u16,
        /// What would do.
        why: String,
    },
    /// A way of spreading packets that the device hasn't.
    #[error("{device}: packets cannot be spread like that: {why}")]
    Rss {
        /// The device.
        device: String,
        /// What is wrong with it.
        why: String,
    },
    /// An address, a VLAN or a filter that cannot be set.
    #[error("{device}: {why}")]
    Address {
        /// The device.
        device: String,
        /// What is wrong with it.
        why: String,
    },
}
