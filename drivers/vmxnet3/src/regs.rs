//! Where things are: registers of BAR0 and BAR1, commands, and the memory that driver and device share. Only what the driver uses. No access happens
//! here.
//!
//! VMware has published no manual. The names are those of its driver in Linux (`drivers/net/vmxnet3/vmxnet3_defs.h`, `upt1_defs.h`), beside each
//! number.

/// What a register of a device that is gone reads as.
pub const GONE: u32 = u32::MAX;
/// Bytes of BAR0 and of BAR1 that hold registers (`VMXNET3_PT_REG_SIZE`, `VMXNET3_VD_REG_SIZE`).
pub const SIZE: u64 = 4096;
/// Queues that receive (`VMXNET3_MAX_RX_QUEUES`, as of revision 1 to 5).
pub const RX_QUEUES: u16 = 16;
/// Queues that send (`VMXNET3_MAX_TX_QUEUES`).
pub const TX_QUEUES: u16 = 8;

/// Registers of BAR0, all of 32 bits and 8 bytes apart (PT).
pub mod pt {
    /// Interrupt mask of a vector (`VMXNET3_REG_IMR`): 1 masks it.
    pub fn imr(vector: u32) -> u64 {
        8 * u64::from(vector)
    }

    /// Where queue `n` sends up to (`VMXNET3_REG_TXPROD`): the doorbell.
    pub fn tx_prod(n: u16) -> u64 {
        0x600 + 8 * u64::from(n)
    }

    /// Where queue `n` has buffers up to, by ring (`VMXNET3_REG_RXPROD`, `VMXNET3_REG_RXPROD2`).
    pub fn rx_prod(n: u16) -> [u64; 2] {
        [0x800, 0xa00].map(|base| base + 8 * u64::from(n))
    }
}

/// Registers of BAR1 (VD).
pub mod vd {
    /// Revisions of the device, a bit each; written, the one that the driver has chosen (`VMXNET3_REG_VRRS`).
    pub const VRRS: u64 = 0x00;
    /// Versions of pass-through, likewise (`VMXNET3_REG_UVRS`).
    pub const UVRS: u64 = 0x08;
    /// Where shared memory is (`VMXNET3_REG_DSAL`, `VMXNET3_REG_DSAH`); the lower half first.
    pub const DSAL: u64 = 0x10;
    /// The upper half.
    pub const DSAH: u64 = 0x18;
    /// A command; read, its result (`VMXNET3_REG_CMD`).
    pub const CMD: u64 = 0x20;
    /// The station address in use (`VMXNET3_REG_MACL`, `VMXNET3_REG_MACH`).
    pub const MACL: u64 = 0x28;
    /// Its last two octets.
    pub const MACH: u64 = 0x30;
    /// Event cause: writing a one takes an event out of shared memory (`VMXNET3_REG_ECR`).
    pub const ECR: u64 = 0x40;
}

/// Commands (`VMXNET3_CMD_*`).
pub mod cmd {
    /// Starts the device with what shared memory says; the result is 0 where it did.
    pub const ACTIVATE_DEV: u32 = 0xcafe_0000;
    /// Stops it.
    pub const QUIESCE_DEV: u32 = 0xcafe_0001;
    /// Resets it.
    pub const RESET_DEV: u32 = 0xcafe_0002;
    /// Reads which packets are received.
    pub const UPDATE_RX_MODE: u32 = 0xcafe_0003;
    /// Reads the table of groups.
    pub const UPDATE_MAC_FILTERS: u32 = 0xcafe_0004;
    /// Reads the table of VLANs.
    pub const UPDATE_VLAN_FILTERS: u32 = 0xcafe_0005;
    /// Reads how packets are spread.
    pub const UPDATE_RSSIDT: u32 = 0xcafe_0006;
    /// Reads the features.
    pub const UPDATE_FEATURE: u32 = 0xcafe_0009;
    /// Writes to shared memory which queues are stopped.
    pub const GET_QUEUE_STATUS: u32 = 0xf00d_0000;
    /// Writes to shared memory what was counted.
    pub const GET_STATS: u32 = 0xf00d_0001;
    /// Bit 0: the link is up; bits 31:16: its speed in Mb/s.
    pub const GET_LINK: u32 = 0xf00d_0002;
    /// The first four octets of the device's own address.
    pub const GET_PERM_MAC_LO: u32 = 0xf00d_0003;
    /// The last two.
    pub const GET_PERM_MAC_HI: u32 = 0xf00d_0004;
    /// Bits 1:0: the type of interrupts; bits 3:2: how vectors are masked.
    pub const GET_CONF_INTR: u32 = 0xf00d_0008;
}

/// `VMXNET3_IMM_AUTO`: an interrupt masks its vector.
pub const IMM_AUTO: u32 = 0;

/// Features (`UPT1_F_*`): what the device does with packets that it receives.
pub mod feature {
    /// It checks checksums.
    pub const RXCSUM: u64 = 1;
    /// It spreads packets.
    pub const RSS: u64 = 1 << 1;
    /// It takes VLAN tags off.
    pub const RXVLAN: u64 = 1 << 2;
    /// It merges TCP segments.
    pub const LRO: u64 = 1 << 3;
}

/// Which packets are received (`VMXNET3_RXM_*`).
pub mod rx_mode {
    /// Those to its own address.
    pub const UCAST: u32 = 1;
    /// Those to groups of the table.
    pub const MCAST: u32 = 1 << 1;
    /// Broadcasts.
    pub const BCAST: u32 = 1 << 2;
    /// Those to any group.
    pub const ALL_MULTI: u32 = 1 << 3;
    /// All.
    pub const PROMISC: u32 = 1 << 4;
}

/// Events (`VMXNET3_ECR_*`), in shared memory.
pub mod event {
    /// A queue that receives has stopped.
    pub const RQERR: u32 = 1;
    /// A queue that sends has stopped.
    pub const TQERR: u32 = 1 << 1;
    /// The link changed.
    pub const LINK: u32 = 1 << 2;
    /// Another implementation of the device serves it from here on.
    pub const DIC: u32 = 1 << 3;
}

/// `struct Vmxnet3_DriverShared`: bytes from its start.
pub mod shared {
    /// `magic`.
    pub const MAGIC: u64 = 0;
    /// `VMXNET3_REV1_MAGIC`.
    pub const MAGIC_VALUE: u32 = 0xbabe_fee1;
    /// `devRead.misc.driverInfo`: version, guest, revision, pass-through version.
    pub const DRIVER: u64 = 8;
    /// `uptFeatures`, 64 bits.
    pub const FEATURES: u64 = 24;
    /// `queueDescPA`, 64 bits.
    pub const QUEUES_AT: u64 = 40;
    /// `queueDescLen`, in bytes.
    pub const QUEUES_LEN: u64 = 52;
    /// `mtu`.
    pub const MTU: u64 = 56;
    /// `maxNumRxSG` in bits 15:0, `numTxQueues` in 23:16, `numRxQueues` in 31:24.
    pub const COUNTS: u64 = 60;
    /// `intrConf`: `autoMask` in bits 7:0, `numIntrs` in 15:8, `eventIntrIdx` in 23:16. How far interrupts are held back follows: 0, not at all.
    pub const INTERRUPTS: u64 = 80;
    /// `intrCtrl`: bit 0 turns all off.
    pub const INTERRUPTS_OFF: u64 = 108;
    /// `rxFilterConf.rxMode`.
    pub const RX_MODE: u64 = 120;
    /// `mfTableLen`, in bytes.
    pub const GROUPS_LEN: u64 = 124;
    /// `mfTablePA`, 64 bits.
    pub const GROUPS_AT: u64 = 128;
    /// `vfTable`: a bit a VLAN.
    pub const VLANS: u64 = 136;
    /// `rssConfDesc`: version, length, and its place in 64 bits.
    pub const RSS: u64 = 648;
    /// `ecr`: events, written by the device.
    pub const ECR: u64 = 696;
}

/// `struct Vmxnet3_TxQueueDesc` and `Vmxnet3_RxQueueDesc`: bytes from its start. They differ in what the first words are, and in the rings' names.
pub mod queue {
    /// Bytes of one.
    pub const SIZE: u64 = 256;
    /// Sending, `txNumDeferred`: packets posted since the doorbell was rung last. Receiving, `updateRxProd` in bits 7:0: the device wants to be told of
    /// buffers.
    pub const CONTROL: u64 = 0;
    /// Sending, `txThreshold`: from so many packets on the doorbell is to be rung. The device's.
    pub const TX_THRESHOLD: u64 = 4;
    /// `txRingBasePA`, or `rxRingBasePA`.
    pub const RING: u64 = 16;
    /// Receiving: `rxRingBasePA[1]`.
    pub const RING2: u64 = 24;
    /// `compRingBasePA`.
    pub const DONE: u64 = 32;
    /// `txRingSize`, or `rxRingSize`, in descriptors.
    pub const RING_SIZE: u64 = 56;
    /// Receiving: `rxRingSize[1]`.
    pub const RING2_SIZE: u64 = 60;
    /// `compRingSize`.
    pub const DONE_SIZE: u64 = 64;
    /// `intrIdx`, in bits 7:0: its vector.
    pub const VECTOR: u64 = 72;
    /// `status.stopped`, in bits 7:0.
    pub const STOPPED: u64 = 80;
    /// `status.error`.
    pub const ERROR: u64 = 84;
    /// `stats`: ten counters of 64 bits.
    pub const STATS: u64 = 88;
}

/// `struct UPT1_RSSConf`: bytes of it up to the table.
pub const RSS_HEAD: usize = 48;
/// Bytes of the hash's key (`UPT1_RSS_MAX_KEY_SIZE`).
pub const RSS_KEY: usize = 40;
/// Entries of the table (`UPT1_RSS_MAX_IND_TABLE_SIZE`).
pub const RSS_TABLE: u16 = 128;

/// What the device counts of a queue that receives (`struct UPT1_RxStats`).
pub const RX_STATS: [&str; 10] = [
    "device_lro_packets",
    "device_lro_bytes",
    "device_unicast_packets",
    "device_unicast_bytes",
    "device_multicast_packets",
    "device_multicast_bytes",
    "device_broadcast_packets",
    "device_broadcast_bytes",
    "dropped_no_descriptors",
    "device_errors",
];

/// What the device counts of a queue that sends (`struct UPT1_TxStats`).
pub const TX_STATS: [&str; 10] = [
    "device_tso_packets",
    "device_tso_bytes",
    "device_unicast_packets",
    "device_unicast_bytes",
    "device_multicast_packets",
    "device_multicast_bytes",
    "device_broadcast_packets",
    "device_broadcast_bytes",
    "device_errors",
    "device_discarded",
];

/// Why a queue has stopped (`VMXNET3_ERR_*`).
pub fn why_stopped(error: u32) -> &'static str {
    match error {
        0x8000_0000 => "no end of a packet was found",
        0x8000_0001 => "a descriptor was used again before it was done",
        0x8000_0002 => "a packet has too many descriptors",
        0x8000_0003 => "a type of descriptor is not supported",
        0x8000_0004 => "a buffer is too small",
        0x8000_0005 => "the hypervisor was told to fail",
        0x8000_0006 => "a switch of modes failed",
        0x8000_0007 => "a descriptor is invalid",
        _ => "of an error that has no name",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_structures_are_where_they_are() {
        assert_eq!((pt::imr(24), pt::tx_prod(7), pt::rx_prod(15)), (0xc0, 0x638, [0x878, 0xa78]));
        assert_eq!(shared::MAGIC_VALUE, 3_133_079_265);
        // The table of VLANs has 512 bytes, three descriptions of 16 follow it.
        assert_eq!((shared::VLANS + 512, shared::RSS + 3 * 16), (shared::RSS, shared::ECR));
        assert_eq!(queue::STATS + 10 * 8 + 88, queue::SIZE);
    }
}
