//! Numbers of the VIRTIO specification 1.2, each with its section. Nothing here is shared with a driver.

/// PCI vendor of all virtio devices (4.1.2).
pub(super) const VENDOR: u16 = 0x1af4;
/// PCI device ids: 0x1040 and the device type (4.1.2, 5).
pub(super) const NET: u16 = 0x1041;
pub(super) const BLK: u16 = 0x1042;

/// Device status (2.1).
pub(super) mod status {
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
    pub(in super::super) const FAILED: u8 = 128;
}

/// Feature bits that are not of a device type (6), as masks.
pub(super) mod feature {
    pub(in super::super) const INDIRECT: u64 = 1 << 28;
    pub(in super::super) const EVENT_IDX: u64 = 1 << 29;
    pub(in super::super) const VERSION_1: u64 = 1 << 32;
    pub(in super::super) const ACCESS_PLATFORM: u64 = 1 << 33;
    pub(in super::super) const PACKED: u64 = 1 << 34;
    pub(in super::super) const IN_ORDER: u64 = 1 << 35;
    pub(in super::super) const ORDER_PLATFORM: u64 = 1 << 36;
    pub(in super::super) const RING_RESET: u64 = 1 << 40;
}

/// Structure types of vendor capabilities (4.1.4).
pub(super) mod cap {
    pub(in super::super) const COMMON: u8 = 1;
    pub(in super::super) const NOTIFY: u8 = 2;
    pub(in super::super) const ISR: u8 = 3;
    pub(in super::super) const DEVICE: u8 = 4;
    pub(in super::super) const PCI: u8 = 5;
}

/// No vector (4.1.5.1.2): interrupts are off.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Descriptor flags (2.7.5, 2.8.1).
pub(super) mod desc {
    pub(in super::super) const NEXT: u16 = 1;
    pub(in super::super) const WRITE: u16 = 2;
    pub(in super::super) const INDIRECT: u16 = 4;
    /// Packed: available and used (2.8.1).
    pub(in super::super) const AVAIL: u16 = 1 << 7;
    pub(in super::super) const USED: u16 = 1 << 15;
}

/// Packed event suppression flags (2.8.10).
pub(super) mod event {
    pub(in super::super) const ENABLE: u16 = 0;
    pub(in super::super) const DISABLE: u16 = 1;
    pub(in super::super) const DESC: u16 = 2;
}

/// Network device features (5.1.3), as masks.
pub(super) mod net {
    pub(in super::super) const CSUM: u64 = 1 << 0;
    pub(in super::super) const GUEST_CSUM: u64 = 1 << 1;
    pub(in super::super) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(in super::super) const MTU: u64 = 1 << 3;
    pub(in super::super) const MAC: u64 = 1 << 5;
    pub(in super::super) const GUEST_TSO4: u64 = 1 << 7;
    pub(in super::super) const GUEST_TSO6: u64 = 1 << 8;
    pub(in super::super) const GUEST_ECN: u64 = 1 << 9;
    pub(in super::super) const HOST_TSO4: u64 = 1 << 11;
    pub(in super::super) const HOST_TSO6: u64 = 1 << 12;
    pub(in super::super) const HOST_ECN: u64 = 1 << 13;
    pub(in super::super) const MRG_RXBUF: u64 = 1 << 15;
    pub(in super::super) const STATUS: u64 = 1 << 16;
    pub(in super::super) const CTRL_VQ: u64 = 1 << 17;
    pub(in super::super) const CTRL_RX: u64 = 1 << 18;
    pub(in super::super) const CTRL_VLAN: u64 = 1 << 19;
    pub(in super::super) const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub(in super::super) const MQ: u64 = 1 << 22;
    pub(in super::super) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(in super::super) const VQ_NOTF_COAL: u64 = 1 << 52;
    pub(in super::super) const NOTF_COAL: u64 = 1 << 53;
    pub(in super::super) const HASH_REPORT: u64 = 1 << 57;
    pub(in super::super) const RSS: u64 = 1 << 60;
    pub(in super::super) const SPEED_DUPLEX: u64 = 1 << 63;
}

/// Block device features, as masks (5.2.3), and request types (5.2.6).
pub(super) mod blk {
    pub(in super::super) const F_SEG_MAX: u64 = 1 << 2;
    pub(in super::super) const F_RO: u64 = 1 << 5;
    pub(in super::super) const F_BLK_SIZE: u64 = 1 << 6;
    pub(in super::super) const F_FLUSH: u64 = 1 << 9;
    pub(in super::super) const F_TOPOLOGY: u64 = 1 << 10;
    pub(in super::super) const F_CONFIG_WCE: u64 = 1 << 11;
    pub(in super::super) const F_MQ: u64 = 1 << 12;
    pub(in super::super) const F_DISCARD: u64 = 1 << 13;
    pub(in super::super) const F_WRITE_ZEROES: u64 = 1 << 14;
    pub(in super::super) const IN: u32 = 0;
    pub(in super::super) const OUT: u32 = 1;
    pub(in super::super) const FLUSH: u32 = 4;
    pub(in super::super) const GET_ID: u32 = 8;
    pub(in super::super) const DISCARD: u32 = 11;
    pub(in super::super) const WRITE_ZEROES: u32 = 13;
}
