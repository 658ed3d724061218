//! A model of a virtio block device (5.2), over the same media as the NVMe model. Requests are done at once, in order.
//!
//! It has *not*: secure erase, lifetime, geometry.

use super::bits::{BLK, blk};
use super::layout::{self, Kind, Transport};
use super::queue::{Broken, FaultState, Part, Pass, Queue, gather, lengths, poll_and_signal, scatter};
use super::{CONFIG_MAX, Device, Virtio};
use crate::media::{self, Backing, BackingParams, Failed, Media};
use crate::params::{self, Parameter};
use crate::{Error, Result};
use wholebar_core::Work;
use wholebar_core::mem::Iova;
use wholebar_core::model::Host;
use wholebar_core::reactor::Armed;

/// The unit of addresses and lengths (5.2.6), in bytes.
const SECTOR: u64 = 512;
/// How many requests of a queue are done in one poll.
const BURST: usize = 32;
/// How many ranges a discard or write-zeroes request can name.
const RANGES: usize = 64;
/// A header: type, reserved, sector.
const HEADER: u64 = 16;
/// The longest request, in bytes.
const LONGEST: u64 = 64 << 20;
/// What a descriptor costs beside the data that it names, in bytes.
const PART: u64 = 64;
/// A request's status (5.2.6).
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// The parameters that are the block model's own, with what each can be.
const OWN: [Parameter; 8] = [
    ("size", "BYTES (1G, or the file's)"),
    ("block", "512 or 4096: the block size it suggests (512)"),
    ("backing", "ram or null (ram)"),
    ("file", "PATH: a file or block device instead of memory"),
    ("ro", "0 or 1: open the file for reading only (0)"),
    ("queues", "request queues, 1 to 64 (1)"),
    ("id", "up to 20 printable characters (WHOLEBAR0001)"),
    ("cache", "write-back (with flushes) or write-through (write-back)"),
];

/// All parameters of `sim:virtio-blk`.
pub const PARAMETERS: [Parameter; OWN.len() + layout::PARAMETERS.len()] = {
    let mut all = [("", ""); OWN.len() + layout::PARAMETERS.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < OWN.len() { OWN[i] } else { layout::PARAMETERS[i - OWN.len()] };
        i += 1;
    }
    all
};

/// What a virtio block model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkParams {
    /// Bytes; `None`: the file's, or 1 GiB.
    pub size: Option<u64>,
    /// The block size that it suggests, in bytes.
    pub block: u32,
    /// What blocks are kept in.
    pub backing: Backing,
    /// Request queues.
    pub queues: u16,
    /// Its id: printable ASCII.
    pub id: String,
    /// Whether it offers flushes, and writes are durable after one only.
    pub write_back: bool,
    /// What all virtio models have.
    pub transport: Transport,
}

impl Default for BlkParams {
    fn default() -> Self {
        Self {
            size: None,
            block: 512,
            backing: Backing::Ram,
            queues: 1,
            id: "WHOLEBAR0001".to_owned(),
            write_back: true,
            transport: Transport::default(),
        }
    }
}

impl BlkParams {
    /// Reads `key=value,...`; see [`PARAMETERS`].
    ///
    /// # Errors
    /// As of [`NetParams::parse`](super::net::NetParams::parse).
    pub fn parse(text: &str) -> Result<Self> {
        let mut p = Self::default();
        let mut backing = BackingParams::default();
        for given in params::split("sim:virtio-blk", text, &PARAMETERS)? {
            match given.key {
                "size" => p.size = Some(given.bytes().ok().filter(|n| *n > 0).ok_or_else(|| given.bad())?),
                "block" => {
                    p.block = match given.bytes()? {
                        512 => 512,
                        4096 => 4096,
                        _ => return Err(given.bad()),
                    }
                }
                "backing" | "file" | "ro" => backing.set(&given)?,
                "queues" => p.queues = given.number(1..=64)?,
                "id" => p.id = given.value.to_owned(),
                "cache" => {
                    p.write_back = match given.value {
                        "write-back" => true,
                        "write-through" => false,
                        _ => return Err(given.bad()),
                    }
                }
                _ => {
                    if !p.transport.set(&given)? {
                        return Err(given.bad());
                    }
                }
            }
        }
        p.backing = backing.backing()?;
        p.check()?;
        Ok(p)
    }

    /// Whether the parameters go together.
    ///
    /// # Errors
    /// [`Error::Conflict`], saying which don't.
    pub fn check(&self) -> Result<()> {
        let conflict = if self.id.len() > 20 || !self.id.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            format!("id={:?} is not up to 20 printable characters", self.id)
        } else if let Some(size) = self.size.filter(|s| !s.is_multiple_of(self.block.into())) {
            format!("size={size} is not a multiple of the block size")
        } else if self.size.is_some_and(|size| size > 64 << 40) {
            "size= is above 64T".to_owned()
        } else if self.transport.entries < 4 {
            "a request takes three descriptors or more: entries= is below 4".to_owned()
        } else {
            return self.transport.check();
        };
        Err(Error::Conflict(conflict))
    }
}

/// A virtio block device as `params` say.
///
/// # Errors
/// Those of parameters that don't go together, and of the backing file.
pub fn model(params: BlkParams) -> Result<Virtio> {
    params.check()?;
    let (media, size, read_only) = Media::open(&params.backing, params.size, params.block.into())?;
    let kind = Kind { device: BLK, class: 0x01_80_00, queues: params.queues, config: 60 };
    let transport = params.transport.clone();
    let blk = Blk {
        sectors: size / SECTOR,
        media,
        read_only,
        features: 0,
        write_back: params.write_back,
        first: 0,
        spent: 0,
        params,
    };
    Virtio::new("sim:virtio-blk", &kind, transport, Box::new(blk))
}

/// A block device.
struct Blk {
    params: BlkParams,
    media: Media,
    sectors: u64,
    read_only: bool,
    features: u64,
    /// The cache as it is now.
    write_back: bool,
    /// The queue that the next poll begins with.
    first: usize,
    /// What the requests of this poll cost so far, in bytes.
    spent: u64,
}

/// Why a request fails: its status.
struct Bad(u8);

impl From<Failed> for Bad {
    fn from(_: Failed) -> Self {
        Self(IOERR)
    }
}

impl Blk {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Does one request, and says how many bytes it wrote to the host.
    #[inline]
    fn request(&mut self, host: &Host<'_>, parts: &[Part]) -> Result<u32, Broken> {
        let (readable, writable) = lengths(parts);
        if readable < HEADER || writable < 1 {
            return Err("a request without its header, or without room for its status".into());
        }
        if readable.max(writable) > LONGEST {
            return Err("a request longer than any device takes".into());
        }
        self.spent += readable + writable + PART * parts.len() as u64;
        let mut header = [0; HEADER as usize];
        gather(host, parts, 0, &mut header)?;
        let (words, _) = header.as_chunks::<4>();
        let kind = u32::from_le_bytes(words[0]);
        let sector = u64::from_le_bytes(*header.last_chunk().unwrap_or(&[0; 8]));
        let (out, room) = (readable - HEADER, writable - 1);
        let status = match self.execute(host, parts, kind, sector, out, room)? {
            Ok(()) => OK,
            Err(Bad(status)) => {
                tracing::debug!(kind, sector, out, room, status, "a request fails");
                zero(host, parts, room)?;
                status
            }
        };
        scatter(host, parts, room, &[status])?;
        Ok(writable as u32)
    }

    #[inline]
    fn execute(
        &mut self,
        host: &Host<'_>,
        parts: &[Part],
        kind: u32,
        sector: u64,
        out: u64,
        room: u64,
    ) -> Result<Result<(), Bad>, Broken> {
        match kind {
            blk::IN => {
                let Some(at) = self.extent(sector, room) else { return Ok(Err(Bad(IOERR))) };
                transfer(host, parts, true, 0, room, at, |at, dma| self.media.read(at, dma))
            }
            blk::OUT => {
                let Some(at) = self.extent(sector, out).filter(|_| !self.read_only) else {
                    return Ok(Err(Bad(IOERR)));
                };
                let done = transfer(host, parts, false, HEADER, out, at, |at, dma| self.media.write(at, dma))?;
                Ok(done.and_then(|()| self.settle()))
            }
            blk::FLUSH if self.params.write_back => {
                self.spent += self.media.cost();
                Ok(self.media.flush().map_err(Bad::from))
            }
            blk::GET_ID if room == 20 => {
                let mut id = [0; 20];
                id[..self.params.id.len()].copy_from_slice(self.params.id.as_bytes());
                scatter(host, parts, 0, &id)?;
                Ok(Ok(()))
            }
            blk::GET_ID => Ok(Err(Bad(IOERR))),
            blk::DISCARD if self.has(blk::F_DISCARD) => self.ranges(host, parts, out, true),
            blk::WRITE_ZEROES if self.has(blk::F_WRITE_ZEROES) => self.ranges(host, parts, out, false),
            _ => Ok(Err(Bad(UNSUPP))),
        }
    }

    /// Discard, or write zeroes: ranges of sector, count and flags (5.2.6).
    fn ranges(&mut self, host: &Host<'_>, parts: &[Part], out: u64, discard: bool) -> Result<Result<(), Bad>, Broken> {
        const RANGE: u64 = 16;
        if !out.is_multiple_of(RANGE) || out == 0 || out > RANGES as u64 * RANGE || self.read_only {
            return Ok(Err(Bad(IOERR)));
        }
        let mut bytes = [0; RANGES * RANGE as usize];
        let bytes = &mut bytes[..out as usize];
        gather(host, parts, HEADER, bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        let ranges = || pairs.iter().map(|r| r.map(u64::from_le_bytes)).map(|[s, rest]| (s, rest as u32, rest >> 32));
        // Unmap is for write zeroes alone; other flags are unknown.
        let known = if discard { 0 } else { 1 };
        if ranges().any(|(.., flags)| flags & !known != 0) {
            return Ok(Err(Bad(UNSUPP)));
        }
        let extent = |sector, count| self.extent(sector, u64::from(count) * SECTOR);
        if ranges().any(|(sector, count, _)| extent(sector, count).is_none()) {
            return Ok(Err(Bad(IOERR)));
        }
        self.spent += self.media.cost();
        for (sector, count, _) in ranges() {
            let (at, len) = (sector * SECTOR, u64::from(count) * SECTOR);
            let done = if discard { self.media.deallocate(at, len) } else { self.media.zero(at, len) };
            if let Err(failed) = done {
                return Ok(Err(failed.into()));
            }
        }
        Ok(if discard { Ok(()) } else { self.settle() })
    }

    /// Where `len` bytes at `sector` start; `None` where they are no sectors of the device's.
    #[inline]
    fn extent(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len / SECTOR)?;
        (len.is_multiple_of(SECTOR) && end <= self.sectors).then(|| sector * SECTOR)
    }

    /// Makes a write durable, where there is no cache (5.2.6.2).
    #[inline]
    fn settle(&mut self) -> Result<(), Bad> {
        let cached = match self.has(blk::F_CONFIG_WCE) {
            true => self.write_back,
            false => self.has(blk::F_FLUSH),
        };
        if cached { Ok(()) } else { Ok(self.media.flush()?) }
    }
}

/// Moves `len` bytes of a request's data, `skip` bytes into its readable or writable part, to or from `at` of the media.
#[inline]
fn transfer(
    host: &Host<'_>,
    parts: &[Part],
    writable: bool,
    skip: u64,
    len: u64,
    mut at: u64,
    mut each: impl FnMut(u64, &wholebar_core::model::Dma<'_>) -> Result<(), Failed>,
) -> Result<Result<(), Bad>, Broken> {
    let (mut skip, mut left) = (skip, len);
    for part in parts.iter().filter(|p| p.writable == writable) {
        let n = u64::from(part.len).saturating_sub(skip).min(left);
        if n > 0 {
            let start = Iova(part.address).offset(skip);
            let memory = host.dma(start, n).filter(|m| !writable || m.writable());
            let memory = memory.ok_or_else(|| Broken::memory(host, "a request's data", start.0, n, writable))?;
            if let Err(failed) = each(at, &memory) {
                return Ok(Err(failed.into()));
            }
            (at, left) = (at + n, left - n);
        }
        skip = skip.saturating_sub(part.len.into());
    }
    Ok(Ok(()))
}

/// Fills a failed request's data with zeroes: what it says it wrote, it wrote.
#[cold]
fn zero(host: &Host<'_>, parts: &[Part], room: u64) -> Result<(), Broken> {
    transfer(host, parts, true, 0, room, 0, |_, dma| {
        dma.fill(0, dma.len(), 0);
        Ok(())
    })
    .map(drop)
}

impl Device for Blk {
    fn features(&self) -> u64 {
        let when = |offered, bits| if offered { bits } else { 0 };
        blk::F_SEG_MAX
            | blk::F_BLK_SIZE
            | blk::F_TOPOLOGY
            | when(self.read_only, blk::F_RO)
            | when(!self.read_only, blk::F_DISCARD | blk::F_WRITE_ZEROES)
            | when(self.params.write_back, blk::F_FLUSH | blk::F_CONFIG_WCE)
            | when(self.params.queues > 1, blk::F_MQ)
    }

    fn refuses(&self, _: u64) -> Option<&'static str> {
        None
    }

    /// 5.2.4.
    fn config(&self, out: &mut [u8; CONFIG_MAX]) {
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        let word = |value: u32| value.to_le_bytes();
        put(0, &self.sectors.to_le_bytes());
        // Data segments: a request's descriptors but for its header and status.
        put(12, &word(u32::from(self.params.transport.entries) - 2));
        put(20, &word(self.params.block));
        // Topology: a physical block of 4 KiB in logical ones; optimal I/O of 64 KiB.
        put(24, &[(4096 / self.params.block).trailing_zeros() as u8, 0]);
        put(26, &1u16.to_le_bytes());
        put(28, &word(65536 / self.params.block));
        put(32, &[u8::from(self.write_back)]);
        put(34, &self.params.queues.to_le_bytes());
        for at in [36, 48] {
            // The most sectors and ranges of a discard, and of write zeroes.
            put(at, &word(u32::MAX));
            put(at + 4, &word(RANGES as u32));
        }
        put(44, &word(self.params.block / SECTOR as u32));
        // Write zeroes may deallocate.
        put(56, &[1]);
    }

    fn configure(&mut self, offset: usize, bytes: &[u8]) {
        // `writeback` alone can be written (5.2.5).
        if let (32, [value @ 0..=1]) = (offset, bytes)
            && self.has(blk::F_CONFIG_WCE)
        {
            self.write_back = *value == 1;
        }
    }

    #[inline]
    fn changed(&mut self) -> bool {
        false
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        // 5.2.5.2: without flushes there is no cache.
        self.write_back = self.params.write_back && self.has(blk::F_FLUSH);
    }

    fn reset(&mut self) {
        self.features = 0;
        self.write_back = self.params.write_back;
    }

    #[inline]
    fn poll_queues(
        &mut self,
        host: &mut Host<'_>,
        queues: &mut [Option<Queue>],
        fault_state: &mut FaultState,
    ) -> Result<Work, Broken> {
        let mut work = Work::Idle;
        let used = if self.has(blk::F_MQ) { queues.len() } else { 1 };
        let first = std::mem::take(&mut self.first);
        self.spent = 0;
        let (before, from) = queues[..used].split_at_mut(first.min(used));
        for (index, queue) in (first..).zip(from).chain((0..).zip(before)) {
            let Some(queue) = queue else { continue };
            poll_and_signal!(queue, host, fault_state, |pass, ahead| {
                for _ in 0..BURST {
                    if self.spent > media::BUDGET {
                        break;
                    }
                    let Some((chain, parts)) = ahead.next(&mut pass, host)? else { break };
                    work = Work::Busy;
                    let len = self.request(host, parts)?;
                    pass.used(chain, len);
                }
            });
            if self.spent > media::BUDGET {
                self.first = index + 1;
                break;
            }
        }
        Ok(work)
    }

    fn rest(&mut self) -> Work {
        Work::Idle
    }

    fn arm(&mut self) -> Armed {
        Armed::Yes
    }
}
