//! A command's data in host memory: PRPs, PRP lists and SGLs (base 4.1), as a walk over pieces of it.
//!
//! What the host wrote is input: each address is looked up in what was mapped for the device, each list and chain is bounded.

use super::bits::Status;
use super::command::Command;
use std::sync::atomic::AtomicU64;
use wholebar_core::mem::Iova;
use wholebar_core::model::{Dma, Entries, Host, ReadOnly};

/// How many SGL descriptors a command may have.
const MAX_DESCRIPTORS: u32 = 4096;

/// The longest data that is made for a command at once, where there is no limit by MDTS, in bytes.
pub(super) const LONGEST: u64 = 1 << 20;

/// What a walk needs to know beside the command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The memory page size by CC.MPS, in bytes.
    pub(super) page: u64,
    /// Whether SGLs are done.
    pub(super) sgl: bool,
    /// What PRP lists have to begin at a multiple of, in bytes.
    pub(super) list_align: u64,
}

/// Gives `each` the pieces of `len` bytes of a command's data, in order.
#[inline]
pub(super) fn walk<'a>(
    host: &Host<'a>,
    cmd: &Command,
    len: u64,
    rules: Rules,
    mut each: impl FnMut(Dma<'a>) -> Result<(), Status>,
) -> Result<(), Status> {
    if cmd.psdt() != 0 {
        return if rules.sgl && cmd.psdt() != 3 {
            sgl(host, cmd.sgl1(), len, &mut each)
        } else {
            Err(Status::INVALID_FIELD)
        };
    }
    let first = len.min(rules.page - (cmd.prp1() & (rules.page - 1)));
    if cmd.prp1() & 3 != 0 {
        return Err(Status::PRP_OFFSET);
    }
    piece(host, cmd.prp1(), first, &mut each)?;
    if first == len {
        return Ok(());
    }
    prp2(host, cmd.prp2(), len - first, rules, &mut each)
}

/// Copies `bytes` to a command's data.
pub(super) fn copy_out(host: &Host<'_>, cmd: &Command, bytes: &[u8], rules: Rules) -> Result<(), Status> {
    let mut rest = bytes;
    walk(host, cmd, bytes.len() as u64, rules, |dma| {
        let (now, later) = rest.split_at(rest.len().min(dma.len() as usize));
        rest = later;
        if dma.write(0, now) { Ok(()) } else { Err(Status::DATA_TRANSFER_ERROR) }
    })
}

/// Fills `bytes` from a command's data.
pub(super) fn copy_in(host: &Host<'_>, cmd: &Command, bytes: &mut [u8], rules: Rules) -> Result<(), Status> {
    let mut at = 0;
    walk(host, cmd, bytes.len() as u64, rules, |dma| {
        let end = bytes.len().min(at + dma.len() as usize);
        let done = dma.read(0, &mut bytes[at..end]);
        at = end;
        if done { Ok(()) } else { Err(Status::DATA_TRANSFER_ERROR) }
    })
}

type Each<'e, 'a> = &'e mut dyn FnMut(Dma<'a>) -> Result<(), Status>;

/// What PRP2 stands for: a second page, or a list of pages (base 4.1.1).
fn prp2<'a>(host: &Host<'a>, prp2: u64, mut left: u64, rules: Rules, each: Each<'_, 'a>) -> Result<(), Status> {
    let page = rules.page;
    if left <= page {
        return whole(prp2, page).and_then(|at| piece(host, at, left, each));
    }
    let mut list = prp2;
    if !list.is_multiple_of(rules.list_align) {
        return Err(Status::PRP_OFFSET);
    }
    loop {
        // A list ends with its page; where more entries are needed, its last one points to the next list.
        let room = (page - (list & (page - 1))) / 8;
        let need = left.div_ceil(page);
        let (pages, chained) = if need <= room { (need, false) } else { (room - 1, true) };
        let count = (pages + u64::from(chained)) as usize;
        let entries = words(host, list, count)?;
        for i in 0..pages as usize {
            let n = left.min(page);
            piece(host, whole(word(&entries, i)?, page)?, n, each)?;
            left -= n;
        }
        if !chained {
            return Ok(());
        }
        list = whole(word(&entries, pages as usize)?, page)?;
    }
}

/// An entry that must point to the start of a page.
fn whole(prp: u64, page: u64) -> Result<u64, Status> {
    if prp & (page - 1) == 0 { Ok(prp) } else { Err(Status::PRP_OFFSET) }
}

/// `count` 64-bit words of host memory.
fn words<'a>(host: &Host<'a>, at: u64, count: usize) -> Result<Entries<'a, ReadOnly<AtomicU64>>, Status> {
    let len = count as u64 * 8;
    let memory = host.dma(Iova(at), len).and_then(|m| m.entries(0, count));
    memory.ok_or_else(|| denied(host, "a list", at, len, false))
}

/// Word `index` of them.
#[inline]
fn word(words: &Entries<'_, ReadOnly<AtomicU64>>, index: usize) -> Result<u64, Status> {
    words.at(index).map(|w| u64::from_le(w.load())).ok_or(Status::DATA_TRANSFER_ERROR)
}

/// Memory that the controller may not use.
#[cold]
pub(super) fn denied(host: &Host<'_>, what: &str, at: u64, len: u64, write: bool) -> Status {
    tracing::debug!(what, why = %host.denied(Iova(at), len, write), "a command fails");
    Status::DATA_TRANSFER_ERROR
}

/// Walks SGL segments (base 4.1.2) from the descriptor in the command.
fn sgl<'a>(host: &Host<'a>, first: [u64; 2], len: u64, each: Each<'_, 'a>) -> Result<(), Status> {
    let (mut left, mut seen) = (len, 0);
    let mut data = |d: Descriptor| {
        left = left.checked_sub(d.len).ok_or(Status::SGL_LENGTH)?;
        if d.len == 0 { Ok(()) } else { piece(host, d.address, d.len, each) }
    };
    let mut next = descriptor(first)?;
    loop {
        let last = match next.kind {
            Kind::Data => {
                data(next)?;
                break;
            }
            Kind::Segment => false,
            Kind::LastSegment => true,
        };
        let count = next.len / 16;
        seen += count;
        if seen > MAX_DESCRIPTORS.into() {
            return Err(Status::INVALID_SGL_COUNT);
        }
        if count == 0 || !next.len.is_multiple_of(16) {
            return Err(Status::INVALID_SGL_SEGMENT);
        }
        let entries = words(host, next.address, 2 * count as usize)?;
        let mut onward = None;
        for i in 0..count as usize {
            if onward.is_some() {
                return Err(Status::INVALID_SGL_SEGMENT);
            }
            let d = descriptor([word(&entries, 2 * i)?, word(&entries, 2 * i + 1)?])?;
            match d.kind {
                Kind::Data => data(d)?,
                Kind::Segment | Kind::LastSegment => onward = Some(d),
            }
        }
        match (last, onward) {
            (true, None) => break,
            (false, Some(d)) => next = d,
            // A last segment that points on, or another that doesn't.
            _ => return Err(Status::INVALID_SGL_SEGMENT),
        }
    }
    if left == 0 { Ok(()) } else { Err(Status::SGL_LENGTH) }
}

/// An SGL descriptor of the types that the model offers.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u64,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Data,
    Segment,
    LastSegment,
}

/// Reads a descriptor: address, length, and type and subtype in the last byte.
fn descriptor([address, rest]: [u64; 2]) -> Result<Descriptor, Status> {
    let kind = match rest >> 56 {
        0x00 => Kind::Data,
        0x20 => Kind::Segment,
        0x30 => Kind::LastSegment,
        _ => return Err(Status::SGL_TYPE),
    };
    Ok(Descriptor { address, len: rest & 0xffff_ffff, kind })
}

/// One piece of data, contiguous as the device sees it.
#[inline]
fn piece<'a, E>(host: &Host<'a>, at: u64, len: u64, each: &mut E) -> Result<(), Status>
where
    E: FnMut(Dma<'a>) -> Result<(), Status> + ?Sized,
{
    let Some(dma) = host.dma(Iova(at), len) else { return Err(denied(host, "data", at, len, false)) };
    match each(dma) {
        Ok(()) => Ok(()),
        Err(status) => Err(failed(host, at, len, status)),
    }
}

/// Why a piece that is there failed: what is not the media's fault can't be written.
#[cold]
fn failed(host: &Host<'_>, at: u64, len: u64, status: Status) -> Status {
    if status == Status::DATA_TRANSFER_ERROR { denied(host, "data", at, len, true) } else { status }
}
