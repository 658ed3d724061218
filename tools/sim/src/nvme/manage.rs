//! What is done to the controller and its namespaces, not to blocks: formats, sanitizing, self-tests, firmware, security protocols, namespaces that come
//! and go (base 5).
//!
//! Nothing takes time here: a self-test and a sanitize operation go on as their log pages are read, and are done at the second read. So a host that waits
//! for them sees them running, and no clock decides what it sees.

use super::admin::Outcome;
use super::bits::Status;
use super::command::Command;
use super::data;
use super::identify;
use super::io::Namespace;
use super::log::Event;
use super::protection::Metadata;
use super::{Nvme, Uncorrectable};
use crate::media::Media;
use std::collections::VecDeque;
use wholebar_core::model::Host;

/// What a host can have changed of the controller.
pub(super) struct Manage {
    /// The firmware revision in each slot; the first is the one it was made with, and stays.
    slots: [Option<[u8; 8]>; SLOTS],
    /// The slot that runs, less one; and the one that will after a reset.
    active: usize,
    next: Option<usize>,
    /// The image that was sent and not yet stored.
    image: Vec<u8>,
    self_test: SelfTest,
    sanitize: Sanitize,
    /// What was sent last by the protocol that echoes: SPSP and data.
    echo: (u16, Vec<u8>),
    /// Bytes that are not allocated to namespaces.
    pub(super) unallocated: u64,
}

/// Firmware slots.
pub(super) const SLOTS: usize = 3;
/// The largest firmware image.
const MAX_IMAGE: usize = 4 << 20;
/// The most that the echoing security protocol keeps.
const MAX_ECHO: usize = 64 << 10;
/// How many self-test results are kept (base 5.16.1.7).
const RESULTS: usize = 20;
/// The protocol that tells which there are, and one of those for vendors (SFSC, security protocols F0h to FFh): this one gives back what it was sent.
const INFORMATION: u8 = 0x00;
const ECHO: u8 = 0xf0;
/// Identifiers for namespaces that are created, beside those that are there.
pub(super) const SPARE_NAMESPACES: u32 = 8;

#[derive(Default)]
struct SelfTest {
    /// STC of the one that runs, its NSID, and how often its log was read.
    running: Option<(u8, u32, u8)>,
    /// Newest first.
    results: VecDeque<[u8; 28]>,
}

#[derive(Default)]
struct Sanitize {
    /// How often the log was read while it ran; `None` where it does not.
    reads: Option<u8>,
    /// Dword 10 of the last.
    cdw10: u32,
    done: bool,
}

impl Manage {
    pub(super) fn new(unallocated: u64) -> Self {
        let mut slots = [None; SLOTS];
        slots[0] = Some(identify::firmware());
        Self {
            slots,
            active: 0,
            next: None,
            image: Vec::new(),
            self_test: SelfTest::default(),
            sanitize: Sanitize::default(),
            echo: (0, Vec::new()),
            unallocated,
        }
    }

    /// A controller level reset: firmware that was to run then does; a short self-test ends (base 5.9), an extended one goes on.
    pub(super) fn reset(&mut self) {
        if let Some(next) = self.next.take() {
            self.active = next;
        }
        self.image.clear();
        if matches!(self.self_test.running, Some((1, ..))) {
            self.self_test.end(2);
        }
    }

    /// The firmware that runs.
    pub(super) fn firmware(&self) -> [u8; 8] {
        self.slots[self.active].unwrap_or_default()
    }

    /// The Firmware Slot Information log (base 5.16.1.4).
    pub(super) fn firmware_slots(&self) -> Vec<u8> {
        let mut page = vec![0; 512];
        page[0] = ((self.active + 1) | (self.next.map_or(0, |next| next + 1) << 4)) as u8;
        for (to, slot) in page[8..].chunks_mut(8).zip(self.slots) {
            to.copy_from_slice(&slot.unwrap_or_default());
        }
        page
    }

    /// The Device Self-test log (base 5.16.1.7).
    pub(super) fn self_test_log(&mut self) -> Vec<u8> {
        let mut page = vec![0; 4 + RESULTS * 28];
        if let Some((kind, _, reads)) = &mut self.self_test.running {
            match *reads {
                0 => (page[0], page[1], *reads) = (*kind, 50, 1),
                _ => self.self_test.end(0),
            }
        }
        for (i, to) in page[4..].chunks_mut(28).enumerate() {
            match self.self_test.results.get(i) {
                Some(result) => to.copy_from_slice(result),
                None => to[0] = 0x0f,
            }
        }
        page
    }
}

impl SelfTest {
    /// The one that runs has ended like this.
    fn end(&mut self, how: u8) {
        let Some((kind, nsid, _)) = self.running.take() else { return };
        let mut result = [0; 28];
        result[0] = kind << 4 | how;
        // Bit 0: the namespace is told.
        result[2] = u8::from(nsid != 0);
        result[12..16].copy_from_slice(&nsid.to_le_bytes());
        self.results.truncate(RESULTS - 1);
        self.results.push_front(result);
    }
}

impl Nvme {
    /// The Sanitize Status log (base 5.16.1, log page 81h): read for the second time while one runs, that is done.
    pub(super) fn sanitize_log(&mut self) -> Vec<u8> {
        let mut page = vec![0; 512];
        let sanitize = &mut self.manage.sanitize;
        let mut progress = u16::MAX;
        match &mut sanitize.reads {
            Some(reads @ 0) => (*reads, progress) = (1, 0x8000),
            Some(_) => {
                (sanitize.reads, sanitize.done, self.store.sanitizing) = (None, true, false);
                self.events.raise(Event::SanitizeCompleted);
            }
            None => {}
        }
        let status: u16 = match (sanitize.reads, sanitize.done) {
            (Some(_), _) => 2,
            // Bit 8: all data is gone.
            (None, true) => 1 | 1 << 8,
            (None, false) => 0,
        };
        page[..2].copy_from_slice(&progress.to_le_bytes());
        page[2..4].copy_from_slice(&status.to_le_bytes());
        page[4..8].copy_from_slice(&sanitize.cdw10.to_le_bytes());
        // No time is told.
        page[8..32].fill(0xff);
        page
    }

    /// What a sanitize operation does not let be done meanwhile (base 5.24.1).
    fn not_sanitizing(&self) -> Result<(), Status> {
        if self.store.sanitizing { Err(Status::SANITIZE_IN_PROGRESS) } else { Ok(()) }
    }

    /// Format NVM (base 5.14): at once.
    pub(super) fn format(&mut self, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        let (cdw10, nsid) = (cmd.cdw10(), cmd.nsid());
        let lba_format = cdw10 & 0xf | (cdw10 >> 12 & 3) << 4;
        // User data or its key is erased, or neither.
        if cdw10 >> 9 & 7 > 2 {
            return Err(Status::INVALID_FORMAT);
        }
        let (shift, format) =
            self.new_format(lba_format, cdw10 & 1 << 4 != 0, (cdw10 >> 5 & 7) as u8, cdw10 & 1 << 8 != 0)?;
        let all = nsid == u32::MAX;
        let chosen = |id: u32, ns: &Namespace| if all { ns.attached } else { id == nsid };
        if !all {
            self.store.allocated(nsid)?.is_attached()?;
        }
        let mut these: Vec<_> = (1..).zip(&mut self.store.namespaces).filter(|(id, ns)| chosen(*id, ns)).collect();
        if these.iter().any(|(_, ns)| ns.read_only) {
            return Err(Status::WRITE_PROTECTED);
        }
        these.iter_mut().try_for_each(|(_, ns)| ns.format(shift, format))?;
        Ok(Some(0))
    }

    /// What an LBA format and the fields beside it come to: block size as a power of two, and metadata.
    fn new_format(
        &self,
        lba_format: u32,
        extended: bool,
        protection: u8,
        first: bool,
    ) -> Result<(u32, Metadata), Status> {
        let formats = lba_formats(self.params.metadata.size);
        let (shift, size) = *formats.get(lba_format as usize).ok_or(Status::INVALID_FORMAT)?;
        let Metadata { format, storage, .. } = self.params.metadata;
        let (format, storage) = if protection > 0 { (format, storage) } else { (0, 0) };
        let needed = if format > 0 { 16 } else { 8 };
        if protection > 3 || protection > 0 && size < needed {
            return Err(Status::INVALID_FORMAT);
        }
        let (extended, first) = (extended && size > 0, first && protection > 0);
        Ok((shift, Metadata { size, extended, protection, first, format, storage }))
    }

    /// Sanitize (base 5.24).
    pub(super) fn sanitize(&mut self, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        match cmd.cdw10() & 7 {
            // Exit Failure Mode: there is none to leave.
            1 => return Ok(Some(0)),
            2..=4 => {}
            _ => return Err(Status::INVALID_FIELD),
        }
        let there = self.store.namespaces.iter_mut().filter(|ns| ns.allocated);
        let mut there: Vec<_> = there.collect();
        if there.iter().any(|ns| ns.read_only) {
            return Err(Status::WRITE_PROTECTED);
        }
        there.iter_mut().try_for_each(|ns| ns.format(ns.shift, ns.format))?;
        self.manage.sanitize = Sanitize { reads: Some(0), cdw10: cmd.cdw10(), done: false };
        self.store.sanitizing = true;
        Ok(Some(0))
    }

    /// Device Self-test (base 5.9).
    pub(super) fn self_test(&mut self, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        let test = &mut self.manage.self_test;
        match (cmd.cdw10() & 0xf, test.running) {
            (0xf, _) => test.end(1),
            (1 | 2, Some(_)) => return Err(Status::SELF_TEST_IN_PROGRESS),
            (kind @ (1 | 2), None) => {
                if ![0, u32::MAX].contains(&cmd.nsid()) {
                    self.store.allocated(cmd.nsid())?.is_attached()?;
                }
                self.manage.self_test.running = Some((kind as u8, cmd.nsid(), 0));
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(Some(0))
    }

    /// Firmware Image Download (base 5.12).
    pub(super) fn firmware_download(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        let (len, at) = ((u64::from(cmd.cdw10()) + 1) * 4, u64::from(cmd.cdw11()) * 4);
        if len > self.store.max_transfer || at + len > MAX_IMAGE as u64 {
            return Err(Status::INVALID_FIELD);
        }
        let (at, end) = (at as usize, (at + len) as usize);
        let mut piece = vec![0; end - at];
        data::copy_in(host, cmd, &mut piece, self.rules)?;
        let image = &mut self.manage.image;
        image.resize(image.len().max(end), 0);
        image[at..end].copy_from_slice(&piece);
        Ok(Some(0))
    }

    /// Firmware Commit (base 5.11). An image begins with its revision: eight printable characters.
    pub(super) fn firmware_commit(&mut self, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        let (slot, action) = ((cmd.cdw10() & 7) as usize, cmd.cdw10() >> 3 & 7);
        let manage = &mut self.manage;
        // Slot 0: the controller chooses; slot 1 can only be read.
        let slot = if slot == 0 { if manage.active == 1 { 2 } else { 1 } } else { slot - 1 };
        if slot >= SLOTS {
            return Err(Status::INVALID_FIRMWARE_SLOT);
        }
        if action > 3 {
            return Err(Status::INVALID_FIELD);
        }
        let image = std::mem::take(&mut manage.image);
        if matches!(action, 0 | 1) || action == 3 && !image.is_empty() {
            if slot == 0 {
                return Err(Status::INVALID_FIRMWARE_SLOT);
            }
            let revision = image.first_chunk::<8>().filter(|r| r.iter().all(|c| matches!(c, b' '..=b'~')));
            manage.slots[slot] = Some(*revision.ok_or(Status::INVALID_FIRMWARE_IMAGE)?);
        }
        if manage.slots[slot].is_none() {
            return Err(Status::INVALID_FIRMWARE_IMAGE);
        }
        match action {
            0 => {}
            3 => (manage.active, manage.next) = (slot, None),
            _ => {
                manage.next = Some(slot);
                return Err(Status::FIRMWARE_NEEDS_RESET);
            }
        }
        Ok(Some(0))
    }

    /// Security Send (base 5.26).
    pub(super) fn security_send(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let (protocol, specific, len) = security(cmd);
        if protocol != ECHO || len > MAX_ECHO as u64 || len > self.store.max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        let mut bytes = vec![0; len as usize];
        data::copy_in(host, cmd, &mut bytes, self.rules)?;
        self.manage.echo = (specific, bytes);
        Ok(Some(0))
    }

    /// Security Receive (base 5.25).
    pub(super) fn security_receive(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        let (protocol, specific, len) = security(cmd);
        let mut answer = match (protocol, specific) {
            // The list of protocols: six bytes reserved, its length, the list.
            (INFORMATION, 0) => vec![0, 0, 0, 0, 0, 0, 0, 2, INFORMATION, ECHO],
            (ECHO, specific) if specific == self.manage.echo.0 => self.manage.echo.1.clone(),
            _ => return Err(Status::INVALID_FIELD),
        };
        if len > self.store.max_transfer || len > data::LONGEST {
            return Err(Status::INVALID_FIELD);
        }
        answer.resize(len as usize, 0);
        data::copy_out(host, cmd, &answer, self.rules)?;
        Ok(Some(0))
    }

    /// Namespace Management (base 5.23; nvm 4.1.6).
    pub(super) fn namespace_management(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        match cmd.cdw10() & 0xf {
            0 if cmd.cdw11() >> 24 == 0 => self.create_namespace(host, cmd).map(Some),
            1 => self.delete_namespaces(cmd.nsid()),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn create_namespace(&mut self, host: &Host<'_>, cmd: &Command) -> Result<u32, Status> {
        let mut fields = [0; 4096];
        data::copy_in(host, cmd, &mut fields, self.rules)?;
        let word = |at: usize| fields[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let (blocks, capacity, format, protection) = (word(0), word(8), fields[26], fields[29]);
        let lba_format = u32::from(format & 0xf | format >> 5 << 4);
        let (shift, format) =
            self.new_format(lba_format, format & 1 << 4 != 0, protection & 7, protection & 1 << 3 != 0)?;
        if blocks == 0 || capacity > blocks {
            return Err(Status::INVALID_FIELD);
        }
        if capacity < blocks {
            return Err(Status::THIN_PROVISIONING);
        }
        let bytes = blocks.checked_mul(1 << shift).filter(|bytes| *bytes <= self.manage.unallocated);
        let bytes = bytes.ok_or(Status::INSUFFICIENT_CAPACITY)?;
        let free = (1..).zip(&mut self.store.namespaces).find(|(_, ns)| !ns.allocated);
        let (nsid, ns) = free.ok_or(Status::NO_NAMESPACE_ID)?;
        let media = if self.params.backing == crate::media::Backing::Null {
            Media::Null
        } else {
            Media::Ram(Default::default())
        };
        *ns = Namespace { shift, blocks, bytes, allocated: true, media, format, ..Namespace::none() };
        self.manage.unallocated -= bytes;
        Ok(nsid)
    }

    fn delete_namespaces(&mut self, nsid: u32) -> Outcome {
        if nsid != u32::MAX {
            self.store.allocated(nsid)?;
        }
        for (id, ns) in (1..).zip(&mut self.store.namespaces) {
            if ns.allocated && [id, u32::MAX].contains(&nsid) {
                self.manage.unallocated += ns.bytes;
                *ns = Namespace::none();
            }
        }
        Ok(Some(0))
    }

    /// Namespace Attachment (base 5.22): this controller is the only one, and has identifier 0.
    pub(super) fn namespace_attachment(&mut self, host: &Host<'_>, cmd: &Command) -> Outcome {
        self.not_sanitizing()?;
        let mut list = [0; 4096];
        data::copy_in(host, cmd, &mut list, self.rules)?;
        let (words, _) = list.as_chunks::<2>();
        let mut words = words.iter().map(|w| u16::from_le_bytes(*w));
        let count = words.next().unwrap_or(0);
        if !(1..=2047).contains(&count) || words.take(count.into()).ne([0]) {
            return Err(Status::INVALID_CONTROLLER_LIST);
        }
        let ns = self.store.allocated(cmd.nsid())?;
        match (cmd.cdw10() & 0xf, ns.attached) {
            (0, false) => ns.attached = true,
            (0, true) => return Err(Status::ALREADY_ATTACHED),
            (1, true) => ns.attached = false,
            (1, false) => return Err(Status::NOT_ATTACHED),
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(Some(0))
    }
}

/// LBA formats: blocks of 512 and 4096 bytes, as powers of two, without metadata, and with so many bytes of it, where there is any.
pub(super) fn lba_formats(metadata: u16) -> Vec<(u32, u16)> {
    let mut formats = vec![(9, 0), (12, 0)];
    if metadata > 0 {
        formats.extend([(9, metadata), (12, metadata)]);
    }
    formats
}

/// SECP, SPSP and the length of a Security Send or Receive.
fn security(cmd: &Command) -> (u8, u16, u64) {
    ((cmd.cdw10() >> 24) as u8, (cmd.cdw10() >> 8) as u16, cmd.cdw11().into())
}

impl Namespace {
    /// An identifier that no namespace has.
    pub(super) fn none() -> Self {
        Self {
            shift: 9,
            blocks: 0,
            bytes: 0,
            read_only: false,
            allocated: false,
            attached: false,
            uncorrectable: Uncorrectable::default(),
            media: Media::Null,
            format: Metadata::default(),
            metadata: Media::Ram(Default::default()),
            zones: None,
        }
    }

    fn is_attached(&self) -> Result<(), Status> {
        if self.attached { Ok(()) } else { Err(Status::INVALID_FIELD) }
    }

    /// Everything on it is gone, and its blocks have this size, and this metadata.
    fn format(&mut self, shift: u32, format: Metadata) -> Result<(), Status> {
        self.media.zero(0, self.bytes)?;
        self.metadata = Media::Ram(Default::default());
        self.uncorrectable = Uncorrectable::default();
        if let Some(zones) = &mut self.zones {
            **zones = zones.of_blocks(self.bytes, self.shift, shift);
        }
        (self.shift, self.blocks, self.format) = (shift, self.bytes >> shift, format);
        Ok(())
    }
}
