//! The host memory buffer (base 5.27.1.10 and 8.9), put to use: copies of what was read lie there, in lines of 4 KiB, and are read from there the next time. Which line
//! has what the controller keeps to itself, so that whoever else writes there has wrong data read, and memory that is not there any more is the controller's end.
//!
//! Plain reads are served so; whatever else could change blocks has all copies forgotten, but for plain writes, which have those of their own blocks forgotten.

use super::bits::{Status, io};
use super::command::Command;
use super::data::{self, Rules};
use super::io::{Namespace, Store, active};
use wholebar_core::mem::Iova;
use wholebar_core::model::Host;

/// Bytes of a line, and of the units in which a host's memory is asked for.
pub(super) const LINE: u64 = 4096;
/// The most lines that are used of what the host gives.
const MOST: u64 = 1 << 20;
/// Pieces of memory that one list can have.
const PIECES: u32 = 256;

/// What became of reads, as log page C0h tells: three words.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Lines that were read from the buffer.
    hits: u64,
    /// Lines that were put there.
    fills: u64,
    /// How often the controller was shut down without giving it back.
    kept: u64,
}

/// What the host gave.
pub(super) struct HostMemory {
    /// HMMIN, in bytes.
    least: u64,
    enabled: bool,
    /// Set Features, dwords 12 to 15.
    set: [u32; 4],
    /// Address and bytes of each piece.
    pieces: Vec<(u64, u64)>,
    /// Which line of which namespace each line has.
    lines: Vec<Option<(u32, u64)>>,
    counts: Counts,
    /// The host's memory was not there.
    pub(super) lost: bool,
}

impl HostMemory {
    pub(super) fn new(least: u64) -> Self {
        Self {
            least,
            enabled: false,
            set: [0; 4],
            pieces: Vec::new(),
            lines: Vec::new(),
            counts: Counts::default(),
            lost: false,
        }
    }

    /// Set Features (base 5.27.1.10).
    pub(super) fn set(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let (enable, back) = (cmd.cdw11() & 1 != 0, cmd.cdw11() & 2 != 0);
        if !enable {
            self.enabled = false;
            return Ok(());
        }
        if self.enabled {
            return Err(Status::COMMAND_SEQUENCE);
        }
        let tail = cmd.cdw14_15();
        let set = [cmd.cdw12(), cmd.cdw13(), tail as u32, (tail >> 32) as u32];
        let [pages, low, high, count] = set;
        let list = u64::from(high) << 32 | u64::from(low);
        if count == 0 || count > PIECES || !list.is_multiple_of(16) || u64::from(pages) * rules.page < self.least {
            return Err(Status::INVALID_FIELD);
        }
        let mut pieces = Vec::new();
        for at in (0..count).map(|i| list + 16 * u64::from(i)) {
            let mut entry = [0; 16];
            let there = host.dma(Iova(at), 16).is_some_and(|memory| memory.read(0, &mut entry));
            if !there {
                return Err(data::denied(host, "a list of memory for the controller", at, 16, false));
            }
            let ([address, size], _) = entry.as_chunks::<8>() else { return Err(Status::INVALID_FIELD) };
            let (address, len) = (u64::from_le_bytes(*address), (u64::from_le_bytes(*size) & 0xffff_ffff) * rules.page);
            if len == 0 || !address.is_multiple_of(rules.page) {
                return Err(Status::INVALID_FIELD);
            }
            if !host.dma(Iova(address), len).is_some_and(|memory| memory.writable()) {
                return Err(data::denied(host, "memory for the controller", address, len, true));
            }
            pieces.push((address, len));
        }
        if pieces.iter().map(|(_, len)| len).sum::<u64>() != u64::from(pages) * rules.page {
            return Err(Status::INVALID_FIELD);
        }
        match back {
            // The same as before, or it is not what it says.
            true if pieces != self.pieces => return Err(Status::INVALID_FIELD),
            true => {}
            false => {
                let lines = pieces.iter().map(|(_, len)| len / LINE).sum::<u64>().min(MOST);
                self.lines = vec![None; lines as usize];
            }
        }
        (self.enabled, self.set, self.pieces) = (true, set, pieces);
        Ok(())
    }

    /// Get Features (base 5.27.1.10): its data, and dword 0.
    pub(super) fn get(&self) -> (Vec<u8>, u32) {
        let mut bytes: Vec<u8> = self.set.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(4096, 0);
        (bytes, self.enabled.into())
    }

    /// Log page C0h.
    pub(super) fn log(&self) -> Vec<u8> {
        let Counts { hits, fills, kept } = self.counts;
        [hits, fills, kept].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// A controller level reset: the host has its memory back, and may give it again as it is (MR).
    pub(super) fn reset(&mut self) {
        (self.enabled, self.lost) = (false, false);
    }

    /// The controller is shut down.
    pub(super) fn shut_down(&mut self) {
        self.counts.kept += u64::from(self.enabled);
    }

    /// All copies are forgotten.
    pub(super) fn forget(&mut self) {
        self.lines.fill(None);
    }

    /// Where a line of a namespace would be: its place among the lines.
    fn place(&self, nsid: u32, line: u64) -> usize {
        (line ^ u64::from(nsid).wrapping_mul(0x9e37)) as usize % self.lines.len().max(1)
    }

    /// The copies of these bytes of a namespace are forgotten.
    fn forget_range(&mut self, nsid: u32, at: u64, len: u64) {
        for line in at / LINE..(at + len).div_ceil(LINE) {
            let place = self.place(nsid, line);
            if let Some(known) = self.lines.get_mut(place).filter(|known| **known == Some((nsid, line))) {
                *known = None;
            }
        }
    }

    /// The address of line `place`.
    fn address(&self, place: usize) -> Option<u64> {
        let mut at = place as u64 * LINE;
        for (address, len) in &self.pieces {
            if at < *len {
                return Some(address + at);
            }
            at -= len;
        }
        None
    }

    /// A line of a namespace, from the buffer where it is there; else from the media, and put there.
    fn line(
        &mut self,
        host: &Host<'_>,
        nsid: u32,
        ns: &mut Namespace,
        line: u64,
    ) -> Result<[u8; LINE as usize], Status> {
        let mut bytes = [0; LINE as usize];
        let whole = (line + 1) * LINE <= ns.bytes;
        let place = self.place(nsid, line);
        let memory = self.address(place).filter(|_| self.enabled && whole && place < self.lines.len());
        let Some(at) = memory else {
            let len = LINE.min(ns.bytes - line * LINE);
            ns.media.load(line * LINE, &mut bytes[..len as usize])?;
            return Ok(bytes);
        };
        let there = host.dma(Iova(at), LINE);
        let done = if self.lines[place] == Some((nsid, line)) {
            self.counts.hits += 1;
            there.is_some_and(|memory| memory.read(0, &mut bytes))
        } else {
            ns.media.load(line * LINE, &mut bytes)?;
            self.counts.fills += 1;
            self.lines[place] = Some((nsid, line));
            there.is_some_and(|memory| memory.write(0, &bytes))
        };
        if !done {
            self.lost = true;
            return Err(data::denied(host, "the host memory buffer", at, LINE, true));
        }
        Ok(bytes)
    }
}

impl Store {
    /// A read, with the host's memory for what was read before.
    pub(super) fn read_with_host_memory(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let (ns, mut at, len) = self.transfer(cmd)?;
        ns.readable(at, len)?;
        let nsid = cmd.nsid();
        let Self { namespaces, host_memory, .. } = self;
        let (ns, Some(buffer)) = (active(namespaces, nsid)?, host_memory) else { return Err(Status::INVALID_FIELD) };
        data::walk(host, cmd, len, rules, |dma| {
            let mut done = 0;
            while done < dma.len() {
                let (line, within) = (at / LINE, at % LINE);
                let n = (LINE - within).min(dma.len() - done);
                let bytes = buffer.line(host, nsid, ns, line)?;
                if !dma.write(done, &bytes[within as usize..(within + n) as usize]) {
                    return Err(Status::DATA_TRANSFER_ERROR);
                }
                (at, done) = (at + n, done + n);
            }
            Ok(())
        })?;
        self.counters.reads += 1;
        self.counters.units_read += len >> 9;
        Ok(())
    }

    /// A command that may change blocks is about to be done.
    #[cold]
    pub(super) fn forget_copies(&mut self, cmd: &Command) {
        let Self { namespaces, host_memory: Some(buffer), .. } = self else { return };
        match cmd.opcode() {
            io::READ | io::FLUSH | io::COMPARE | io::VERIFY => {}
            io::WRITE => {
                // One that is refused changes nothing.
                let extent = active(namespaces, cmd.nsid()).and_then(|ns| ns.extent(cmd));
                if let Ok((at, len)) = extent {
                    buffer.forget_range(cmd.nsid(), at, len);
                }
            }
            _ => buffer.forget(),
        }
    }
}
