//! Types of devices: which features the function offers of what the back end can do, and its device configuration.
//!
//! A feature is either the rings' and the data's, and then the back end's; or the front end's own: a network device's address, link state and control
//! queue. What neither can honour is not offered.

use super::options::{DeviceType, Options};
use crate::vhost_user::wire::protocol;

/// Features of every device (VIRTIO 1.2, 6) that are the back end's. Not `VIRTIO_F_ACCESS_PLATFORM`: then addresses would have to be translated by
/// messages, and there is no IOMMU here.
pub mod ring {
    pub const VERSION_1: u64 = 1 << 32;
    pub const PACKED: u64 = 1 << 34;
    /// Where a packed queue begins: at its first descriptor, both wrap counters 1 (2.8.1); a split one begins at 0.
    pub const PACKED_START: u32 = 0x8000_8000;
    /// Indirect descriptors, event index, VERSION_1, packed, in order, order platform.
    pub const ALL: u64 = 1 << 28 | 1 << 29 | VERSION_1 | PACKED | 1 << 35 | 1 << 36;
}

/// Network devices (5.1.3).
pub mod net {
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    /// Checksums, segmentation and mergeable buffers: the back end's.
    pub const DATA: u64 =
        1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | MRG_RXBUF;
}

/// Block devices (5.2.3): all are the back end's.
pub mod blk {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const MQ: u64 = 1 << 12;
    /// Those of 1.2, but for secure erase, lifetime and zones.
    pub const ALL: u64 =
        SIZE_MAX | SEG_MAX | 1 << 4 | 1 << 5 | BLK_SIZE | 1 << 9 | 1 << 10 | 1 << 11 | MQ | 1 << 13 | 1 << 14;
    /// `struct virtio_blk_config` up to write zeroes, in bytes; and where its number of queues is.
    pub const CONFIG: usize = 60;
    pub const NUM_QUEUES: usize = 34;
    /// Where the largest segment is.
    pub const SIZE_MAX_AT: usize = 8;
}

/// What a back end said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    pub features: u64,
    /// Whether it knows protocol features at all: then queues have to be enabled.
    pub extended: bool,
    /// The protocol features that were negotiated.
    pub protocol: u64,
    /// `GET_QUEUE_NUM`: queues, or a network device's pairs; 1 where it was not asked.
    pub queues: u64,
    /// Its device configuration, where it has one.
    pub config: Option<Vec<u8>>,
}

/// What the function is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub device_type: DeviceType,
    /// What a driver is offered.
    pub offered: u64,
    /// The queues that the back end has.
    pub queues: u16,
    /// Whether a control queue, which the front end serves, comes behind them.
    pub control: bool,
    pub config: Vec<u8>,
}

/// A queue's number has eight bits in `SET_VRING_KICK`.
const MOST_QUEUES: u64 = 256;

impl DeviceType {
    /// The type's number (VIRTIO 1.2, 5).
    pub fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Blk => 2,
        }
    }

    /// The class code of its functions.
    pub fn class(self) -> u32 {
        match self {
            Self::Net => 0x02_00_00,
            Self::Blk => 0x01_00_00,
        }
    }

    /// How many bytes of configuration a back end of this type is asked for.
    pub fn config_len(self) -> usize {
        match self {
            Self::Net => 12,
            Self::Blk => blk::CONFIG,
        }
    }

    /// The type of a back end by the feature bits that it offers: the protocol has no message for it. Of the bits that tell, a network device has mergeable buffers, and
    /// a disk a block size and segments.
    pub fn of(features: u64, protocol: u64) -> Option<Self> {
        let disk = features & blk::SEG_MAX != 0 && features & blk::BLK_SIZE != 0 && protocol & protocol::CONFIG != 0;
        match (disk, features & net::MRG_RXBUF != 0) {
            (true, false) => Some(Self::Blk),
            (false, true) => Some(Self::Net),
            _ => None,
        }
    }
}

impl Function {
    /// The function that a back end gives.
    ///
    /// # Errors
    /// Why it gives none.
    pub fn of(said: &Said, device_type: DeviceType, options: &Options) -> Result<Self, String> {
        let ring = said.features & ring::ALL;
        if said.queues == 0 {
            return Err("it says that it has no queues".to_owned());
        }
        match device_type {
            DeviceType::Net => {
                let pairs = said.queues.min(MOST_QUEUES / 2) as u16;
                let control = pairs > 1;
                let theirs = said.config.as_deref().filter(|config| config.len() >= 12);
                let mut offered = ring | said.features & net::DATA | net::MAC | net::STATUS;
                offered |= if control { net::CTRL_VQ | net::MQ } else { 0 };
                let mut config = vec![0; 12];
                let mac = theirs.filter(|_| said.features & net::MAC != 0).map(|theirs| theirs[..6].to_vec());
                config[..6].copy_from_slice(&options.mac.map_or_else(|| mac.unwrap_or(vec![0; 6]), |mac| mac.to_vec()));
                let up =
                    theirs.filter(|_| said.features & net::STATUS != 0).map_or([1, 0], |theirs| [theirs[6] & 1, 0]);
                config[6..8].copy_from_slice(&up);
                config[8..10].copy_from_slice(&pairs.to_le_bytes());
                let mtu = theirs
                    .filter(|_| said.features & net::MTU != 0)
                    .map(|theirs| u16::from_le_bytes([theirs[10], theirs[11]]));
                if let Some(mtu) = options.mtu.or(mtu) {
                    offered |= net::MTU;
                    config[10..12].copy_from_slice(&mtu.to_le_bytes());
                }
                Ok(Self { device_type, offered, queues: 2 * pairs, control, config })
            }
            DeviceType::Blk => {
                let Some(config) = said.config.clone().filter(|config| config.len() >= blk::CONFIG) else {
                    let what = "it has no device configuration (GET_CONFIG), which a disk's size is in: is it a network back end?";
                    return Err(what.to_owned());
                };
                let mut config = config;
                let own = u16::from_le_bytes([config[blk::NUM_QUEUES], config[blk::NUM_QUEUES + 1]]);
                let several = said.features & blk::MQ != 0 && said.protocol & protocol::MQ != 0;
                let queues = if several { said.queues.min(own.into()).clamp(1, MOST_QUEUES) as u16 } else { 1 };
                config[blk::NUM_QUEUES..blk::NUM_QUEUES + 2].copy_from_slice(&queues.to_le_bytes());
                let mut offered = ring | said.features & blk::ALL & if several { u64::MAX } else { !blk::MQ };
                // QEMU's storage daemon offers a largest segment of no bytes, and means none.
                if config[blk::SIZE_MAX_AT..][..4] == [0; 4] {
                    offered &= !blk::SIZE_MAX;
                }
                Ok(Self { device_type, offered, queues, control: false, config })
            }
        }
    }

    /// All queues, the control queue included.
    pub fn all_queues(&self) -> u16 {
        self.queues + u16::from(self.control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: u64 = ring::VERSION_1 | net::MRG_RXBUF | 1 << 33 | 1 << 21 | net::CTRL_VQ | net::MTU;

    #[test]
    fn what_nobody_can_honour_is_not_offered() {
        let said = Said { features: NET, protocol: protocol::MQ, queues: 1, ..Said::default() };
        let options = Options { mac: Some([2, 0, 0, 0, 0, 1]), ..Options::default() };
        let one = Function::of(&said, DeviceType::Net, &options).unwrap();
        assert_eq!(one.offered, ring::VERSION_1 | net::MRG_RXBUF | net::MAC | net::STATUS);
        assert_eq!((one.all_queues(), &one.config[..]), (2, &[2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0][..]));
        let four =
            Function::of(&Said { queues: 4, ..said.clone() }, DeviceType::Net, &Options { mtu: Some(9000), ..options })
                .unwrap();
        assert_eq!(four.offered & !one.offered, net::CTRL_VQ | net::MQ | net::MTU);
        assert_eq!(
            (four.queues, four.all_queues(), four.config[8], &four.config[10..]),
            (8, 9, 4, &9000u16.to_le_bytes()[..])
        );
        let many = Function::of(&Said { queues: u64::MAX, ..said.clone() }, DeviceType::Net, &options).unwrap();
        assert_eq!(many.queues, 256);
        assert!(Function::of(&Said { queues: 0, ..said.clone() }, DeviceType::Net, &options).is_err());
        assert!(Function::of(&said, DeviceType::Blk, &options).unwrap_err().contains("GET_CONFIG"));
    }

    #[test]
    fn a_disk_has_as_many_queues_as_both_say() {
        let mut config = vec![0; blk::CONFIG];
        config[blk::NUM_QUEUES] = 4;
        let features = ring::VERSION_1 | blk::SIZE_MAX | blk::SEG_MAX | blk::BLK_SIZE | blk::MQ;
        let said = Said {
            features,
            protocol: protocol::MQ | protocol::CONFIG,
            queues: 2,
            config: Some(config),
            ..Said::default()
        };
        let disk = Function::of(&said, DeviceType::Blk, &Options::default()).unwrap();
        assert_eq!((disk.queues, disk.config[blk::NUM_QUEUES], disk.offered), (2, 2, features & !blk::SIZE_MAX));
        let one =
            Function::of(&Said { protocol: protocol::CONFIG, ..said.clone() }, DeviceType::Blk, &Options::default())
                .unwrap();
        assert_eq!((one.queues, one.offered & blk::MQ), (1, 0));
        assert_eq!(DeviceType::of(features, said.protocol), Some(DeviceType::Blk));
        assert_eq!(DeviceType::of(NET, 0), Some(DeviceType::Net));
        assert_eq!(DeviceType::of(ring::VERSION_1, protocol::CONFIG), None);
    }
}
