//! Feature bits (VIRTIO 1.2): those of every device (chapter 6), of network devices (5.1.3) and of block devices (5.2.3).

/// VIRTIO_F_INDIRECT_DESC: a descriptor can be of a table of descriptors.
pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1: the device is one of VIRTIO 1.0 or later.
pub(crate) const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM: the device goes through the IOMMU.
pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
/// VIRTIO_F_RING_PACKED.
pub(crate) const RING_PACKED: u64 = 1 << 34;
/// VIRTIO_F_IN_ORDER.
pub(crate) const IN_ORDER: u64 = 1 << 35;
/// VIRTIO_F_ORDER_PLATFORM: memory is to be ordered as for any device. This driver always does.
pub(crate) const ORDER_PLATFORM: u64 = 1 << 36;
/// VIRTIO_F_RING_RESET: a queue can be reset alone.
pub(crate) const RING_RESET: u64 = 1 << 40;

pub(crate) mod net {
    //! Network devices (5.1.3).

    /// VIRTIO_NET_F_CSUM: the device fills in checksums.
    pub const CSUM: u64 = 1 << 0;
    /// VIRTIO_NET_F_GUEST_CSUM: the driver takes packets whose checksums are not filled in, and is told which are right.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// VIRTIO_NET_F_MTU: the device tells its largest MTU.
    pub const MTU: u64 = 1 << 3;
    /// VIRTIO_NET_F_MAC: the device has an address.
    pub const MAC: u64 = 1 << 5;
    /// VIRTIO_NET_F_GUEST_TSO4 and _TSO6: the driver takes TCP that is not cut into segments.
    pub const GUEST_TSO: u64 = 1 << 7 | 1 << 8;
    /// VIRTIO_NET_F_HOST_TSO4 and _TSO6: the device cuts TCP into segments.
    pub const HOST_TSO: u64 = 1 << 11 | 1 << 12;
    /// VIRTIO_NET_F_MRG_RXBUF: a packet can be in several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// VIRTIO_NET_F_STATUS: the link's state is told.
    pub const STATUS: u64 = 1 << 16;
    /// VIRTIO_NET_F_CTRL_VQ: there is a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// VIRTIO_NET_F_CTRL_RX: it takes receive modes.
    pub const CTRL_RX: u64 = 1 << 18;
    /// VIRTIO_NET_F_CTRL_VLAN: it takes VLAN filters.
    pub const CTRL_VLAN: u64 = 1 << 19;
    /// VIRTIO_NET_F_GUEST_ANNOUNCE: the device can ask for announcements.
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    /// VIRTIO_NET_F_MQ: there are several pairs of queues.
    pub const MQ: u64 = 1 << 22;
    /// VIRTIO_NET_F_CTRL_MAC_ADDR: the address can be set.
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// VIRTIO_NET_F_VQ_NOTF_COAL (VIRTIO 1.3): interrupts of single queues can be coalesced.
    pub const VQ_NOTF_COAL: u64 = 1 << 52;
    /// VIRTIO_NET_F_NOTF_COAL (VIRTIO 1.3): interrupts can be coalesced.
    pub const NOTF_COAL: u64 = 1 << 53;
    /// VIRTIO_NET_F_HASH_REPORT: packets have their hashes.
    pub const HASH_REPORT: u64 = 1 << 57;
    /// VIRTIO_NET_F_RSS.
    pub const RSS: u64 = 1 << 60;
    /// VIRTIO_NET_F_SPEED_DUPLEX.
    pub const SPEED_DUPLEX: u64 = 1 << 63;
}

pub(crate) mod blk {
    //! Block devices (5.2.3).

    /// VIRTIO_BLK_F_SIZE_MAX: a segment has a largest size.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX: a request can have several segments.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_RO: it is read-only.
    pub const RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE: its blocks may not be of 512 bytes.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH: it has a cache, which can be flushed.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_TOPOLOGY.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// VIRTIO_BLK_F_MQ: it has several queues.
    pub const MQ: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}
