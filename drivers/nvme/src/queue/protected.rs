//! Requests on namespaces with metadata: what their commands have beside others, and what the driver makes and checks of protection information.

use super::{Limits, Queue};
use crate::fdp::Placement;
use crate::protection::{Layout, Protection, ProtectionError};
use wholebar_core::block::{Completion, Data, Op, Reject, Rejected, Request, Status};
use wholebar_core::mem::Buf;

/// What the commands of a request have beside those on blocks without metadata.
#[derive(Clone, Copy)]
pub(super) struct Tags {
    layout: Layout,
    protection: Protection,
    /// Bits 29:26 of dword 12, and bit 24 (STC).
    prinfo: u64,
    /// The request's first block.
    first: u64,
    /// Where the metadata of that block is, if it is in a buffer of its own.
    metadata: Option<u64>,
}

/// A read whose protection information the driver checks once it is complete.
pub(super) struct HostCheck {
    /// The slot that has the request.
    pub head: u16,
    tags: Tags,
}

impl Tags {
    /// Puts them into an entry: MPTR, PRINFO, and dwords 14 (LBST and ILBRT, or those that are expected) and 15 (LBAT in bits 15:0, LBATM above). Of storage and
    /// reference tag together, bits above 31 are in dword 3, and those above 63 in dword 2.
    pub fn put(&self, entry: &mut [u64; 8], lba: u64) {
        let Self { layout, protection, prinfo, first, metadata } = self;
        let index = lba.wrapping_sub(*first);
        if let Some(at) = metadata {
            entry[2] = at.wrapping_add(index.wrapping_mul(layout.metadata.into()));
        }
        if layout.protection.is_some() {
            let tag = u64::from(protection.application_tag) | u64::from(protection.application_tag_mask) << 16;
            entry[6] |= prinfo;
            let space = layout.space(protection, *first, index);
            entry[1] = (space >> 64) as u64 | u64::from((space >> 32) as u32) << 32;
            entry[7] = space as u64 & 0xffff_ffff | tag << 32;
        }
    }

    /// Whether the driver checks what a request has read.
    pub fn is_checked(&self, op: &Op) -> bool {
        let Self { layout, protection, .. } = self;
        matches!(op, Op::Read { .. })
            && layout.protection.is_some()
            && layout.transfers(protection.action)
            && protection.host_check != crate::Checks::NONE
    }

    /// Bytes of a block as it is transferred with its data.
    pub fn block(&self) -> u64 {
        let Layout { block, metadata, extended, .. } = self.layout;
        match extended && self.layout.transfers(self.protection.action) {
            true => u64::from(block) + u64::from(metadata),
            false => block.into(),
        }
    }
}

impl Queue {
    /// Posts a request on a namespace with metadata, with what is to become of that. [`submit`](Self::submit) is this with
    /// [`Protection::controller`], for namespaces that have no other metadata than protection information. (SPDK: `spdk_nvme_ns_cmd_read_with_md`.)
    ///
    /// Of a read, write or compare, the data has the metadata in it: behind each block, where the namespace has it so
    /// ([`metadata_extended`](crate::Namespace::metadata_extended)), or else in the last of its buffers. It has none with
    /// [`action`](Protection::action) where the metadata is protection information alone.
    ///
    /// Where the driver's own check fails, the completion has the status that a controller would have, and
    /// [`protection_error`](Self::protection_error) the block. Of a controller's, the block is in the error log ([`Nvme::error_log`](crate::Nvme::error_log)).
    ///
    /// # Errors
    /// [`Rejected`], with the request and the reason: those of [`submit`](Self::submit), and [`Reject::Invalid`] where the namespace has no metadata, or
    /// the last buffer isn't as long as the metadata of all blocks.
    pub fn submit_with_metadata(&mut self, req: Request, protection: Protection) -> Result<(), Rejected> {
        self.submit_tagged(req, Some(protection), Placement::Any)
    }

    /// Returns what the driver's check of a read found last.
    pub fn protection_error(&self) -> Option<&ProtectionError> {
        self.protection_error.as_ref()
    }

    /// The tags of a request, and its data less the metadata that has a buffer of its own; puts protection information into it, where that is asked for.
    pub(super) fn tags<'a>(
        &mut self,
        ns: Limits,
        req: &'a mut Request,
        protection: Option<Protection>,
    ) -> Result<(Option<Tags>, &'a [Buf]), Reject> {
        let layout = ns.layout;
        if layout.metadata == 0 {
            let none = Err(Reject::Invalid("the namespace has no metadata"));
            return if protection.is_some() { none } else { Ok((None, req.data.bufs())) };
        }
        let plain = protection.is_none();
        let mut protection = protection.unwrap_or_default();
        if layout.protection == Some(crate::ProtectionType::Type3) {
            // A controller refuses to check them (NVM Command Set 1.0, 5.3.3).
            protection.check.reference_tag = false;
        }
        let (first, moves) = match req.op {
            Op::Read { lba } | Op::Write { lba } | Op::Compare { lba } => (lba, true),
            Op::WriteZeroes { lba, .. } => {
                // Blocks of zeros with protection information that is right.
                protection.action = true;
                (lba, false)
            }
            Op::Verify { lba, .. } => {
                protection.action = false;
                (lba, false)
            }
            Op::Flush | Op::Deallocate { .. } => return Ok((None, req.data.bufs())),
        };
        let check = protection.check;
        let prinfo = u64::from(protection.action) << 29
            | u64::from(check.guard) << 28
            | u64::from(check.application_tag) << 27
            | u64::from(check.reference_tag) << 26
            | u64::from(check.storage_tag && layout.storage_tag > 0) << 24;
        let mut tags = Tags { layout, protection, prinfo, first, metadata: None };
        if !moves || !layout.transfers(protection.action) {
            return Ok((Some(tags), req.data.bufs()));
        }
        if plain {
            return Err(Reject::Invalid(
                "its blocks have metadata, which goes along: see `Queue::submit_with_metadata`",
            ));
        }
        if let Some((_, metadata)) = parts(&layout, &mut req.data)? {
            tags.metadata = Some(self.arena_base(metadata.arena_id())?.wrapping_add(metadata.arena_offset()));
            if tags.metadata.is_some_and(|at| !at.is_multiple_of(4)) {
                return Err(Reject::Invalid("the metadata's address is no multiple of 4"));
            }
        }
        if self.slots.free_count() == 0 {
            return Err(Reject::Full);
        }
        if protection.host_generate && layout.protection.is_some() && !matches!(req.op, Op::Read { .. }) {
            with_bytes(&layout, &mut req.data, true, |data, metadata| {
                layout.generate(data, metadata, first, &protection);
            })?;
        }
        let bufs = req.data.bufs();
        let data = if layout.extended { bufs.len() } else { bufs.len().saturating_sub(1) };
        Ok((Some(tags), bufs.get(..data).unwrap_or(&[])))
    }

    /// Notes that a read is to be checked, if it is.
    pub(super) fn expect(&mut self, head: u16, tags: Tags) {
        self.checks.push(HostCheck { head, tags });
    }

    /// Checks what a request has read, if that was asked for.
    #[cold]
    pub(super) fn check_protection(&mut self, head: u16, completion: &mut Completion) {
        let Some(at) = self.checks.iter().position(|check| check.head == head) else { return };
        let Tags { layout, protection, first, .. } = self.checks.swap_remove(at).tags;
        if completion.status != Status::Ok {
            return;
        }
        let mut found = Ok(());
        // It was right when it was submitted.
        let _ = with_bytes(&layout, &mut completion.data, false, |data, metadata| {
            found = layout.verify(data, metadata, first, &protection);
        });
        if let Err(error) = found {
            completion.status = Status::Device(error.status.0);
            self.protection_error = Some(error);
        }
    }
}

/// The buffers of the data, and that of the metadata, which has to be as long as it is for all blocks; `None` where the data has it.
fn parts<'a>(layout: &Layout, data: &'a mut Data) -> Result<Option<(&'a mut [Buf], &'a mut Buf)>, Reject> {
    if layout.extended {
        return Ok(None);
    }
    const LACKS: Reject = Reject::Invalid("the last buffer of the data has to be the metadata of all its blocks");
    let Data::Many(bufs) = data else { return Err(LACKS) };
    let Some((metadata, data)) = bufs.split_last_mut() else { return Err(LACKS) };
    let blocks = data.iter().map(|b| u64::from(b.len())).sum::<u64>() / u64::from(layout.block.max(1));
    if u64::from(metadata.len()) != blocks * u64::from(layout.metadata) {
        return Err(LACKS);
    }
    Ok(Some((data, metadata)))
}

/// Has `what` look at the bytes of data and metadata, and change them where `change` says that it does.
fn with_bytes(
    layout: &Layout,
    data: &mut Data,
    change: bool,
    what: impl FnOnce(&mut [u8], &mut [u8]),
) -> Result<(), Reject> {
    let mut none = [];
    let split = parts(layout, data)?.is_some();
    let all: &mut [Buf] = match data {
        Data::None => &mut none,
        Data::One(buf) => std::slice::from_mut(buf),
        Data::Many(bufs) => bufs,
    };
    let count = all.len() - usize::from(split);
    let (bufs, metadata) = all.split_at_mut(count);
    let metadata = metadata.first_mut().map_or(&mut [][..], Buf::bytes_mut);
    if let [one] = bufs {
        what(one.bytes_mut(), metadata);
        return Ok(());
    }
    // Blocks may lie across buffers.
    let mut bytes = Vec::new();
    bufs.iter().for_each(|buf| bytes.extend_from_slice(buf.bytes()));
    what(&mut bytes, metadata);
    let mut rest = &bytes[..];
    for buf in bufs.iter_mut().filter(|_| change) {
        let (now, later) = rest.split_at(rest.len().min(buf.len() as usize));
        buf.copy_from(now);
        rest = later;
    }
    Ok(())
}
