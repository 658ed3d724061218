//! What the controller remembers to tell: the error log, SMART, the firmware slot, and asynchronous events (base 5.2, 5.16); and what it can do.

use super::bits::{Status, admin, io};
use super::identify::{ERROR_LOG, EVENT_LIMIT};
use super::io::Counters;
use super::params::NvmeParams;
use std::collections::VecDeque;

/// Log page identifiers (base 5.16.1).
pub(super) mod page {
    pub(crate) const SUPPORTED: u8 = 0x00;
    pub(crate) const ERROR: u8 = 0x01;
    pub(crate) const SMART: u8 = 0x02;
    pub(crate) const FIRMWARE: u8 = 0x03;
    pub(crate) const CHANGED_NAMESPACES: u8 = 0x04;
    pub(crate) const COMMANDS: u8 = 0x05;
    pub(crate) const SELF_TEST: u8 = 0x06;
    pub(crate) const FEATURES: u8 = 0x12;
    pub(crate) const MANAGEMENT: u8 = 0x13;
    pub(crate) const FDP_CONFIGS: u8 = 0x20;
    pub(crate) const FDP_USAGE: u8 = 0x21;
    pub(crate) const FDP_STATISTICS: u8 = 0x22;
    pub(crate) const FDP_EVENTS: u8 = 0x23;
    pub(crate) const RESERVATION: u8 = 0x80;
    pub(crate) const SANITIZE: u8 = 0x81;

    /// The vendor's own: what became of a host memory buffer.
    pub(crate) const HOST_MEMORY: u8 = 0xc0;

    /// All there are: 2.0 makes each of them mandatory (base 3.1.2.1.2, and LPA bit 5), but for those of self-tests and of sanitizing, which go with these.
    pub(crate) const ALL: [u8; 10] =
        [SUPPORTED, ERROR, SMART, FIRMWARE, CHANGED_NAMESPACES, COMMANDS, SELF_TEST, FEATURES, MANAGEMENT, SANITIZE];
    /// Those of flexible data placement (Base 2.1, 5.1.12.1.25 to 28).
    pub(crate) const FDP: [u8; 4] = [FDP_CONFIGS, FDP_USAGE, FDP_STATISTICS, FDP_EVENTS];
}

/// An asynchronous event (base 5.2, "Asynchronous Event Request").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A doorbell was given a value outside of its queue (error status, 01h).
    InvalidDoorbellValue,
    /// The composite temperature crossed a threshold (SMART / health status, 01h).
    TemperatureThreshold,
    /// A namespace was attached or detached (notice, 00h).
    NamespacesChanged,
    /// There is a page of the Reservation Notification log (I/O command specific status, 00h).
    ReservationLog,
    /// A sanitize operation is done (I/O command specific status, 01h).
    SanitizeCompleted,
}

impl Event {
    fn kind(self) -> u8 {
        match self {
            Self::InvalidDoorbellValue => 0,
            Self::TemperatureThreshold => 1,
            Self::NamespacesChanged => 2,
            Self::ReservationLog | Self::SanitizeCompleted => 6,
        }
    }

    fn info(self) -> u8 {
        match self {
            Self::InvalidDoorbellValue | Self::TemperatureThreshold | Self::SanitizeCompleted => 1,
            Self::NamespacesChanged | Self::ReservationLog => 0,
        }
    }

    /// The log page that tells more, and that re-arms the event's kind when it is read.
    fn log_page(self) -> u8 {
        match self {
            Self::InvalidDoorbellValue => page::ERROR,
            Self::TemperatureThreshold => page::SMART,
            Self::NamespacesChanged => page::CHANGED_NAMESPACES,
            Self::ReservationLog => page::RESERVATION,
            Self::SanitizeCompleted => page::SANITIZE,
        }
    }

    /// Dword 0 of the completion: type, information, log page.
    fn dword(self) -> u32 {
        u32::from(self.kind()) | u32::from(self.info()) << 8 | u32::from(self.log_page()) << 16
    }
}

/// Outstanding requests, and events that wait for one.
#[derive(Default)]
pub(super) struct Events {
    /// Command ids of Asynchronous Event Requests.
    waiting: VecDeque<u16>,
    pending: VecDeque<Event>,
    /// Kinds that were reported and whose log page was not read since: a bit each.
    masked: u8,
    /// The namespaces that changed since their list was read.
    changed: Vec<u32>,
}

impl Events {
    /// Takes a request.
    pub(super) fn request(&mut self, cid: u16) -> Result<(), Status> {
        if self.waiting.len() == EVENT_LIMIT {
            return Err(Status::TOO_MANY_EVENTS);
        }
        self.waiting.push_back(cid);
        Ok(())
    }

    /// Takes a request back. False where there is none of that id.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|c| *c != cid);
        self.waiting.len() < before
    }

    /// Something happened. An event that waits already is not queued again.
    pub(super) fn raise(&mut self, event: Event) {
        if !self.pending.contains(&event) {
            self.pending.push_back(event);
        }
    }

    /// A namespace changed; `tell` raises the event.
    pub(super) fn namespace_changed(&mut self, nsid: u32, tell: bool) {
        if !self.changed.contains(&nsid) {
            self.changed.push(nsid);
        }
        if tell {
            self.raise(Event::NamespacesChanged);
        }
    }

    /// The Changed Namespace List (base 5.16.1.5).
    pub(super) fn changed_namespaces(&self) -> Vec<u8> {
        let mut ids = self.changed.clone();
        ids.sort_unstable();
        if ids.len() > 1024 {
            ids = vec![u32::MAX];
        }
        ids.resize(1024, 0);
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    /// A log page was read: its events can be reported again.
    pub(super) fn read(&mut self, log_page: u8) {
        if log_page == page::CHANGED_NAMESPACES {
            self.changed.clear();
        }
        let all = [
            Event::InvalidDoorbellValue,
            Event::TemperatureThreshold,
            Event::NamespacesChanged,
            Event::ReservationLog,
            Event::SanitizeCompleted,
        ];
        for event in all {
            if event.log_page() == log_page {
                self.masked &= !(1 << event.kind());
            }
        }
    }

    /// Whether something waits to be told, and someone to be told it.
    #[inline]
    pub(super) fn ready(&self) -> bool {
        !self.pending.is_empty() && !self.waiting.is_empty()
    }

    /// The next request that can be answered, and dword 0 of its completion.
    pub(super) fn answer(&mut self) -> Option<(u16, u32)> {
        if !self.ready() {
            return None;
        }
        let at = self.pending.iter().position(|e| self.masked & 1 << e.kind() == 0)?;
        let event = self.pending.remove(at)?;
        let cid = self.waiting.pop_front()?;
        self.masked |= 1 << event.kind();
        Some((cid, event.dword()))
    }
}

/// The error log.
#[derive(Default)]
pub(super) struct ErrorLog {
    /// Newest first.
    entries: VecDeque<[u8; 64]>,
    count: u64,
}

impl ErrorLog {
    /// Remembers an error. (Base 5.16.1.2 has the fields.)
    pub(super) fn record(&mut self, sq: u16, cid: u16, status: Status, lba: u64, nsid: u32) {
        self.count += 1;
        let mut e = [0; 64];
        e[..8].copy_from_slice(&self.count.to_le_bytes());
        e[8..10].copy_from_slice(&sq.to_le_bytes());
        e[10..12].copy_from_slice(&cid.to_le_bytes());
        // The status field as it is in the completion: bit 0 is the phase's place.
        e[12..14].copy_from_slice(&(status.0 << 1).to_le_bytes());
        // The parameter's place in the command is not told.
        e[14..16].copy_from_slice(&u16::MAX.to_le_bytes());
        e[16..24].copy_from_slice(&lba.to_le_bytes());
        e[24..28].copy_from_slice(&nsid.to_le_bytes());
        self.entries.truncate(ERROR_LOG - 1);
        self.entries.push_front(e);
    }

    /// All of the log.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; ERROR_LOG * 64];
        let (slots, _) = bytes.as_chunks_mut::<64>();
        slots.iter_mut().zip(&self.entries).for_each(|(slot, e)| *slot = *e);
        bytes
    }
}

/// What SMART is made of beside the counters.
pub(super) struct Health {
    /// Composite temperature in kelvins.
    pub(super) temperature: u16,
    /// It is outside of the thresholds.
    pub(super) too_hot: bool,
}

/// The SMART / Health Information log (base 5.16.1.3).
pub(super) fn smart(health: &Health, counters: &Counters, errors: &ErrorLog) -> Vec<u8> {
    let mut page = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // Critical warning, bit 1: temperature.
    put(0, &[u8::from(health.too_hot) << 1]);
    put(1, &health.temperature.to_le_bytes());
    // Available spare and its threshold, in percent.
    put(3, &[100, 10]);
    // Thousands of 512-byte units, rounded up.
    put(32, &counters.units_read.div_ceil(1000).to_le_bytes());
    put(48, &counters.units_written.div_ceil(1000).to_le_bytes());
    put(64, &counters.reads.to_le_bytes());
    put(80, &counters.writes.to_le_bytes());
    put(112, &1u64.to_le_bytes());
    put(160, &counters.media_errors.to_le_bytes());
    put(176, &errors.count.to_le_bytes());
    page
}

/// What is there, and what it does: bits of Supported Log Pages (5.16.1.1), Commands Supported and Effects (5.16.1.6) and Feature Identifiers
/// Supported and Effects (5.16.1.17) alike.
const THERE: u32 = 1;
/// It changes blocks.
const CHANGES_BLOCKS: u32 = 1 << 1;
/// It changes what namespaces can do, which there are, what the controller can do.
const CHANGES_NAMESPACES: u32 = 1 << 2;
const CHANGES_INVENTORY: u32 = 1 << 3;
const CHANGES_CONTROLLER: u32 = 1 << 4;
/// No other command runs meanwhile (CSE 2).
const ALONE: u32 = 2 << 16;
/// Its scope: a namespace, or the controller.
const OF_NAMESPACE: u32 = 1 << 20;
const OF_CONTROLLER: u32 = 1 << 21;

/// A table of dwords, by number.
fn table(entries: usize, set: impl IntoIterator<Item = (usize, u32)>) -> Vec<u8> {
    let mut page = vec![0; entries * 4];
    set.into_iter().for_each(|(at, value)| page[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes()));
    page
}

/// The Supported Log Pages log (base 5.16.1.1).
pub(super) fn supported(params: &NvmeParams) -> Vec<u8> {
    let ids = page::ALL.into_iter().chain(page::FDP.into_iter().filter(|_| params.fdp));
    let ids = ids.chain(params.subsystem.as_ref().map(|_| page::RESERVATION));
    let ids = ids.chain((params.hmb > 0).then_some(page::HOST_MEMORY));
    table(256, ids.map(|id| (id.into(), THERE)))
}

/// The Commands Supported and Effects log (base 5.16.1.6): admin commands, then those of I/O.
pub(super) fn commands(params: &NvmeParams) -> Vec<u8> {
    let NvmeParams { shadow, spare, zoned, fdp, .. } = *params;
    let shared = params.subsystem.is_some();
    let admin = admin::ALL.into_iter().chain(shadow.then_some(admin::DOORBELL_BUFFER));
    let admin = admin.chain(admin::DIRECTIVES.into_iter().filter(|_| params.has_directives()));
    let admin = admin.chain(admin::NAMESPACES.into_iter().filter(move |_| spare > 0)).map(|opcode| {
        let changes = match opcode {
            admin::FORMAT => CHANGES_BLOCKS | CHANGES_NAMESPACES | ALONE,
            admin::SANITIZE => CHANGES_BLOCKS | ALONE,
            admin::NAMESPACE_MANAGEMENT | admin::NAMESPACE_ATTACHMENT => CHANGES_INVENTORY,
            admin::FIRMWARE_COMMIT => CHANGES_CONTROLLER,
            _ => 0,
        };
        (opcode.into(), THERE | OF_CONTROLLER | changes)
    });
    let io = io::ALL.into_iter().chain(io::ZONED.into_iter().filter(|_| zoned));
    let io = io.chain(io::RESERVATIONS.into_iter().filter(|_| shared));
    let io = io.chain(io::PLACED.into_iter().filter(|_| fdp)).map(|opcode| {
        let reads = [io::FLUSH, io::READ, io::COMPARE, io::VERIFY, io::ZONE_RECEIVE];
        let about = io::PLACED.contains(&opcode) || io::RESERVATIONS.contains(&opcode);
        let changes = !reads.contains(&opcode) && !about;
        (256 + usize::from(opcode), THERE | OF_NAMESPACE | if changes { CHANGES_BLOCKS } else { 0 })
    });
    table(1024, admin.chain(io))
}

/// The Feature Identifiers Supported and Effects log (base 5.16.1.17).
pub(super) fn features(ids: impl IntoIterator<Item = u8>) -> Vec<u8> {
    table(256, ids.into_iter().map(|id| (id.into(), THERE | OF_CONTROLLER)))
}

/// The NVMe-MI Commands Supported and Effects log (base 5.16.1.18): there are none.
pub(super) fn management() -> Vec<u8> {
    table(256, [])
}
