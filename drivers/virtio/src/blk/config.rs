//! What a block device says of itself (VIRTIO 1.2, 5.2.4).

use crate::error::Result;
use crate::feature::blk as bit;
use crate::hardware::Hardware;

/// What addresses count in the protocol, whatever the block size is (5.2.5).
pub(super) const SECTOR: u32 = 512;
/// The largest block.
const MAX_BLOCK: u32 = 1 << 16;

/// `struct virtio_blk_config`, in bytes from its start.
mod at {
    pub const CAPACITY: u64 = 0;
    pub const SIZE_MAX: u64 = 8;
    pub const SEG_MAX: u64 = 12;
    pub const BLK_SIZE: u64 = 20;
    pub const PHYSICAL_BLOCK_EXP: u64 = 24;
    pub const ALIGNMENT_OFFSET: u64 = 25;
    pub const MIN_IO_SIZE: u64 = 26;
    pub const OPT_IO_SIZE: u64 = 28;
    pub const NUM_QUEUES: u64 = 34;
    pub const MAX_DISCARD_SECTORS: u64 = 36;
    pub const DISCARD_SECTOR_ALIGNMENT: u64 = 44;
    pub const MAX_WRITE_ZEROES_SECTORS: u64 = 48;
}

/// The size, block size and limits of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The capacity in blocks.
    pub blocks: u64,
    /// The size of a block in bytes: a power of two.
    pub block_size: u32,
    /// The device cannot be written (VIRTIO_BLK_F_RO).
    pub read_only: bool,
    /// The device has a cache, and takes [`Op::Flush`](wholebar_core::block::Op::Flush). Without a cache, what was written is durable.
    pub flush: bool,
    /// The largest number of blocks that the device deallocates at once; 0 where that is not supported. Larger
    /// [requests](wholebar_core::block::Op::Deallocate) are cut.
    pub max_deallocate: u32,
    /// The alignment at which deallocations work best, in blocks: where they are cut.
    pub deallocate_alignment: u32,
    /// The largest number of blocks that the device zeroes at once; 0 where that is not supported. Larger
    /// [requests](wholebar_core::block::Op::WriteZeroes) are cut.
    pub max_write_zeroes: u32,
    /// Number of queues that the device has.
    pub queues: u16,
    /// The largest number of pieces of memory that the device takes at once, and its queues have room for. Requests of more are cut.
    pub max_segments: u32,
    /// The largest size of such a piece in bytes. A larger buffer is several.
    pub max_segment: u32,
    /// The topology, where the device reports one.
    pub topology: Option<Topology>,
}

/// The relation of blocks to the physical blocks below them (5.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The size of a physical block in bytes.
    pub physical_block: u64,
    /// The first block that begins a physical block.
    pub aligned_at: u8,
    /// The smallest I/O that wastes nothing, in blocks.
    pub min_io: u16,
    /// The optimal I/O, in blocks.
    pub best_io: u32,
}

impl Geometry {
    pub(super) fn of(hw: &Hardware) -> Result<Self> {
        let has = |feature: u64| hw.offered & feature != 0;
        let (disk, sectors) = hw.config(|config| {
            let read = |on: u64, at: u64, otherwise: u32| if has(on) { config.read::<u32>(at) } else { Ok(otherwise) };
            let sectors =
                u64::from(config.read::<u32>(at::CAPACITY)?) | u64::from(config.read::<u32>(at::CAPACITY + 4)?) << 32;
            let topology = match has(bit::TOPOLOGY) {
                false => None,
                true => Some(Topology {
                    // As an exponent, of blocks, until the block size is known.
                    physical_block: config.read::<u8>(at::PHYSICAL_BLOCK_EXP)?.into(),
                    aligned_at: config.read(at::ALIGNMENT_OFFSET)?,
                    min_io: config.read(at::MIN_IO_SIZE)?,
                    best_io: config.read(at::OPT_IO_SIZE)?,
                }),
            };
            let disk = Self {
                blocks: 0,
                block_size: read(bit::BLK_SIZE, at::BLK_SIZE, SECTOR)?,
                read_only: has(bit::RO),
                flush: has(bit::FLUSH),
                max_deallocate: read(bit::DISCARD, at::MAX_DISCARD_SECTORS, 0)?,
                deallocate_alignment: read(bit::DISCARD, at::DISCARD_SECTOR_ALIGNMENT, 0)?,
                max_write_zeroes: read(bit::WRITE_ZEROES, at::MAX_WRITE_ZEROES_SECTORS, 0)?,
                queues: if has(bit::MQ) { config.read(at::NUM_QUEUES)? } else { 1 },
                max_segments: read(bit::SEG_MAX, at::SEG_MAX, 1)?.max(1),
                max_segment: read(bit::SIZE_MAX, at::SIZE_MAX, u32::MAX)?,
                topology,
            };
            Ok((disk, sectors))
        })?;
        let block = disk.block_size;
        if !block.is_power_of_two() || !(SECTOR..=MAX_BLOCK).contains(&block) {
            return Err(hw.nonsense(format!(
                "its blocks have {block} bytes, and a power of two from {SECTOR} to {MAX_BLOCK} is needed"
            )));
        }
        if disk.queues == 0 || disk.max_segment < SECTOR {
            let (queues, segment) = (disk.queues, disk.max_segment);
            return Err(hw.nonsense(format!("it has {queues} queues, and takes {segment} bytes at once")));
        }
        let per_block = block / SECTOR;
        let topology = match disk.topology {
            Some(Topology { physical_block, .. }) if physical_block > 32 => None,
            other => other.map(|t| Topology { physical_block: u64::from(block) << t.physical_block, ..t }),
        };
        Ok(Self {
            blocks: sectors / u64::from(per_block),
            max_deallocate: disk.max_deallocate / per_block,
            deallocate_alignment: disk.deallocate_alignment / per_block,
            max_write_zeroes: disk.max_write_zeroes / per_block,
            topology,
            ..disk
        })
    }

    /// The features to negotiate.
    pub(super) fn features(hw: &Hardware, queues: u16) -> u64 {
        let mut wanted = bit::SIZE_MAX
            | bit::SEG_MAX
            | bit::RO
            | bit::BLK_SIZE
            | bit::FLUSH
            | bit::TOPOLOGY
            | bit::DISCARD
            | bit::WRITE_ZEROES;
        wanted |= if queues > 1 { bit::MQ } else { 0 };
        hw.offered & wanted
    }
}
