//! Log pages (NVM Express Base 2.0, 5.16.1). The bytes are a device's: any of them parse.

use crate::bytes::{text, u8_at, u16_at, u32_at, u64_at, u128_at};
use crate::command::{admin_name, io_name};
use crate::status::StatusCode;

/// Log page identifiers (5.16.1, figure 202).
pub(crate) mod lid {
    pub const ERROR: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const COMMAND_EFFECTS: u8 = 0x05;
    pub const SELF_TEST: u8 = 0x06;
    pub const FDP_CONFIGS: u8 = 0x20;
    pub const FDP_USAGE: u8 = 0x21;
    pub const FDP_STATISTICS: u8 = 0x22;
    pub const FDP_EVENTS: u8 = 0x23;
    pub const RESERVATION: u8 = 0x80;
    pub const SANITIZE: u8 = 0x81;
}

/// Which log page [`Nvme::log_page`](crate::Nvme::log_page) reads, and from where on: fields of Get Log Page (5.16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogRequest {
    /// LID: which.
    pub lid: u8,
    /// NSID: ffffffffh, which is the default, for the controller's.
    pub nsid: u32,
    /// LSP: its meaning is the log page's, 7 bits.
    pub lsp: u8,
    /// LSI: its meaning is the log page's.
    pub lsi: u16,
    /// CSI: the I/O command set, for log pages that are of one.
    pub csi: u8,
    /// RAE: the asynchronous event that the log page explains is not cleared.
    pub retain: bool,
    /// LPO: where to begin, in bytes, a multiple of 4.
    pub offset: u64,
}

impl LogRequest {
    /// Log page `lid` of the controller, from its beginning.
    pub fn new(lid: u8) -> Self {
        Self { lid, nsid: u32::MAX, lsp: 0, lsi: 0, csi: 0, retain: false, offset: 0 }
    }
}

/// Bytes of one entry of the error log.
pub(crate) const ERROR_ENTRY: usize = 64;
/// Bytes of the SMART and of the firmware slot log.
pub(crate) const LEN: usize = 512;

/// An entry of the Error Information log (5.16.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorEntry {
    /// A number of its own, counting up over the controller's life.
    pub count: u64,
    /// The submission queue of the command; `ffffh` where it belongs to none.
    pub sqid: u16,
    /// The command; `ffffh` where it belongs to none.
    pub cid: u16,
    /// The status of the command.
    pub status: StatusCode,
    /// The location of the wrong parameter: byte in bits 7:0, bit in 10:8; `ffffh` where it is not given.
    pub parameter: u16,
    /// The first block that had the error.
    pub lba: u64,
    /// The namespace.
    pub nsid: u32,
}

impl ErrorEntry {
    /// Reads the log; entries that aren't used have no count, and are left out.
    pub fn parse(bytes: &[u8]) -> Vec<Self> {
        let entry = |b: &[u8]| Self {
            count: u64_at(b, 0),
            sqid: u16_at(b, 8),
            cid: u16_at(b, 10),
            // Bit 0 is the phase tag.
            status: StatusCode(u16_at(b, 12) >> 1),
            parameter: u16_at(b, 14),
            lba: u64_at(b, 16),
            nsid: u32_at(b, 24),
        };
        bytes.chunks_exact(ERROR_ENTRY).map(entry).filter(|e| e.count > 0).collect()
    }
}

/// The SMART / Health Information log (5.16.1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Smart {
    /// Critical Warning: a bit each for spare, temperature, reliability, read-only, backup, persistent memory.
    pub critical_warning: u8,
    /// Composite temperature, in kelvins.
    pub temperature: u16,
    /// Spare capacity left, in percent.
    pub available_spare: u8,
    /// The threshold below which the available spare should not fall, in percent.
    pub spare_threshold: u8,
    /// Life used, in percent; it may go beyond 100.
    pub percentage_used: u8,
    /// Read from it, in units of 1,000 times 512 bytes.
    pub data_units_read: u128,
    /// Written to it, in units of 1,000 times 512 bytes.
    pub data_units_written: u128,
    /// Read and compare commands.
    pub reads: u128,
    /// Write commands.
    pub writes: u128,
    /// Minutes with commands in flight.
    pub busy_minutes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours with power on.
    pub power_on_hours: u128,
    /// Losses of power without a shutdown.
    pub unsafe_shutdowns: u128,
    /// Errors of media and data integrity.
    pub media_errors: u128,
    /// Entries that its error log had over its life.
    pub error_log_entries: u128,
    /// Minutes above the warning temperature.
    pub warning_minutes: u32,
    /// Minutes above the critical temperature.
    pub critical_minutes: u32,
    /// The temperatures of the sensors that there are, in kelvins.
    pub sensors: Vec<u16>,
}

impl Smart {
    pub(crate) fn parse(b: &[u8]) -> Self {
        Self {
            critical_warning: u8_at(b, 0),
            temperature: u16_at(b, 1),
            available_spare: u8_at(b, 3),
            spare_threshold: u8_at(b, 4),
            percentage_used: u8_at(b, 5),
            data_units_read: u128_at(b, 32),
            data_units_written: u128_at(b, 48),
            reads: u128_at(b, 64),
            writes: u128_at(b, 80),
            busy_minutes: u128_at(b, 96),
            power_cycles: u128_at(b, 112),
            power_on_hours: u128_at(b, 128),
            unsafe_shutdowns: u128_at(b, 144),
            media_errors: u128_at(b, 160),
            error_log_entries: u128_at(b, 176),
            warning_minutes: u32_at(b, 192),
            critical_minutes: u32_at(b, 196),
            sensors: (0..8).map(|i| u16_at(b, 200 + 2 * i)).filter(|t| *t > 0).collect(),
        }
    }
}

/// The Firmware Slot Information log (5.16.1.4).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FirmwareSlots {
    /// The slot that runs, 1 to 7.
    pub active: u8,
    /// The slot that will run after the next controller reset, where that is decided.
    pub next: Option<u8>,
    /// The revision in each slot, from slot 1 on; empty where there is none.
    pub revisions: Vec<String>,
}

impl FirmwareSlots {
    /// Reads the log; what is missing of it reads as 0.
    pub fn parse(b: &[u8]) -> Self {
        let afi = u8_at(b, 0);
        Self {
            active: afi & 7,
            next: Some(afi >> 4 & 7).filter(|n| *n > 0),
            revisions: (0..7).map(|i| text(b, 8 + 8 * i, 8)).collect(),
        }
    }
}

/// Bytes of the self-test log, and of one of its results.
pub(crate) const SELF_TEST_LEN: usize = 564;
const SELF_TEST_RESULT: usize = 28;

/// The Device Self-test log (5.16.1.7).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelfTestLog {
    /// The test that runs: 0 for none, 1 for a short one, 2 for an extended one, eh for a vendor's.
    pub current: u8,
    /// How far it is, in percent.
    pub completion: u8,
    /// What earlier ones found, newest first.
    pub results: Vec<SelfTestResult>,
}

/// What a self-test found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SelfTestResult {
    /// Which test: 1 for a short one, 2 for an extended one, eh for a vendor's.
    pub kind: u8,
    /// How it ended: 0 without an error; [`outcome`](Self::outcome) names it.
    pub result: u8,
    /// The segment that failed first, where `result` is 7.
    pub segment: u8,
    /// The hours the controller had been powered.
    pub power_on_hours: u64,
    /// The namespace that failed, where it says.
    pub nsid: Option<u32>,
    /// The block that failed, where it says.
    pub lba: Option<u64>,
    /// The status that came with it, where it says.
    pub status: Option<StatusCode>,
}

impl SelfTestLog {
    /// Reads the log; what is missing of it reads as 0.
    pub fn parse(b: &[u8]) -> Self {
        let results = b.get(4..).unwrap_or(&[]).chunks_exact(SELF_TEST_RESULT).take(20);
        // Fh: an entry that isn't used.
        let used = results.filter(|r| u8_at(r, 0) & 0xf != 0xf && r.iter().any(|byte| *byte != 0));
        Self {
            current: u8_at(b, 0) & 0xf,
            completion: u8_at(b, 1) & 0x7f,
            results: used.map(SelfTestResult::parse).collect(),
        }
    }
}

impl SelfTestResult {
    fn parse(b: &[u8]) -> Self {
        let valid = |bit: u32| u8_at(b, 2) >> bit & 1 != 0;
        Self {
            kind: u8_at(b, 0) >> 4,
            result: u8_at(b, 0) & 0xf,
            segment: u8_at(b, 1),
            power_on_hours: u64_at(b, 4),
            nsid: valid(0).then(|| u32_at(b, 12)),
            lba: valid(1).then(|| u64_at(b, 16)),
            status: (valid(2) && valid(3))
                .then(|| StatusCode(u16::from(u8_at(b, 24) & 7) << 8 | u16::from(u8_at(b, 25)))),
        }
    }

    /// Returns the words of the standard for how it ended.
    pub fn outcome(&self) -> &'static str {
        match self.result {
            0 => "completed without error",
            1 => "aborted by a Device Self-test command",
            2 => "aborted by a controller level reset",
            3 => "aborted because a namespace was removed",
            4 => "aborted because of a Format NVM command",
            5 => "a fatal or unknown error, not completed",
            6 => "completed: a segment failed, which one is not known",
            7 => "completed: segments failed",
            8 => "aborted for an unknown reason",
            9 => "aborted because of a sanitize operation",
            _ => "reserved",
        }
    }
}

/// The Sanitize Status log (5.16.1, log page 81h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SanitizeStatus {
    /// SPROG: how far it is, in 65536ths; ffffh where none runs.
    pub progress: u16,
    /// SSTAT bits 2:0: 0 never sanitized, 1 completed, 2 in progress, 3 failed, 4 completed but for blocks that were not deallocated.
    pub status: u8,
    /// SSTAT bits 7:3: completed passes of an overwrite.
    pub passes: u8,
    /// SSTAT bit 8: nothing was written since the controller was made, or sanitized.
    pub global_data_erased: bool,
    /// SCDW10: dword 10 of the Sanitize command that it tells of.
    pub cdw10: u32,
    /// How long overwrite, block erase and crypto erase take, in seconds, where it says.
    pub estimates: [Option<u32>; 3],
}

impl SanitizeStatus {
    /// Reads the log; what is missing of it reads as 0.
    pub fn parse(b: &[u8]) -> Self {
        let status = u16_at(b, 2);
        Self {
            progress: u16_at(b, 0),
            status: (status & 7) as u8,
            passes: (status >> 3 & 0x1f) as u8,
            global_data_erased: status & 1 << 8 != 0,
            cdw10: u32_at(b, 4),
            estimates: [8, 12, 16].map(|at| Some(u32_at(b, at)).filter(|seconds| *seconds != u32::MAX)),
        }
    }

    /// Returns the words of the standard for the status.
    pub fn outcome(&self) -> &'static str {
        match self.status {
            0 => "never sanitized",
            1 => "completed",
            2 => "in progress",
            3 => "failed",
            4 => "completed, without deallocating blocks as it was asked to",
            _ => "reserved",
        }
    }
}

/// A command in the Commands Supported and Effects log (5.16.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandEffects {
    /// Whether this is an admin command; else it is an I/O command.
    pub admin: bool,
    /// The opcode.
    pub opcode: u8,
    /// CSUPP in bit 0, LBCC (changes blocks) in 1, NCC (changes namespaces' capabilities) in 2, NIC (changes their inventory) in 3, CCC (changes the
    /// controller's capabilities) in 4, CSE in 18:16: 1 no other command on that namespace, 2 no other on any.
    pub effects: u32,
}

impl CommandEffects {
    /// Bytes of the log.
    pub(crate) const LEN: usize = 4096;

    /// Reads the log: the commands that are supported.
    pub fn parse(b: &[u8]) -> Vec<Self> {
        let entry = |i: usize| Self { admin: i < 256, opcode: i as u8, effects: u32_at(b, 4 * i) };
        (0..512).map(entry).filter(|e| e.effects & 1 != 0).collect()
    }

    /// Returns what the standard calls the command.
    pub fn name(&self) -> &'static str {
        if self.admin { admin_name(self.opcode) } else { io_name(self.opcode) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read() {
        let mut b = vec![0; SELF_TEST_LEN];
        (b[0], b[1]) = (2, 40);
        b[4] = 0x17;
        (b[5], b[6], b[8]) = (3, 0b1011, 9);
        (b[16], b[20]) = (1, 7);
        b[32] = 0xff;
        let log = SelfTestLog::parse(&b);
        assert_eq!((log.current, log.completion, log.results.len()), (2, 40, 1));
        let r = &log.results[0];
        assert_eq!((r.kind, r.result, r.segment, r.power_on_hours), (1, 7, 3, 9));
        assert_eq!((r.nsid, r.lba, r.status), (Some(1), Some(7), None));

        let mut b = vec![0; LEN];
        b[..4].copy_from_slice(&[0, 0x80, 0b1_0010, 1]);
        b[8..20].fill(0xff);
        b[12] = 5;
        b[13..16].fill(0);
        let status = SanitizeStatus::parse(&b);
        assert_eq!((status.progress, status.outcome(), status.passes), (0x8000, "in progress", 2));
        assert!(status.global_data_erased);
        assert_eq!(status.estimates, [None, Some(5), None]);

        let mut b = vec![0; CommandEffects::LEN];
        (b[4 * 6], b[1024 + 4]) = (1, 3);
        let names: Vec<_> = CommandEffects::parse(&b).iter().map(|e| (e.name(), e.effects)).collect();
        assert_eq!(names, [("Identify", 1), ("Write", 3)]);
    }

    #[test]
    fn logs_are_read() {
        let mut b = vec![0; LEN];
        b[1..3].copy_from_slice(&310u16.to_le_bytes());
        b[5] = 3;
        b[64] = 9;
        b[202..204].copy_from_slice(&305u16.to_le_bytes());
        let smart = Smart::parse(&b);
        assert_eq!((smart.temperature, smart.percentage_used, smart.reads), (310, 3, 9));
        assert_eq!(smart.sensors, [305]);

        let mut b = vec![0; LEN];
        b[0] = 0x21;
        b[16..24].copy_from_slice(b"2.1     ");
        let slots = FirmwareSlots::parse(&b);
        assert_eq!((slots.active, slots.next, &slots.revisions[1][..]), (1, Some(2), "2.1"));

        let mut b = vec![0; 3 * ERROR_ENTRY];
        b[64] = 5;
        b[64 + 12..64 + 14].copy_from_slice(&(0x80u16 << 1 | 1).to_le_bytes());
        let entries = ErrorEntry::parse(&b);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].status.name(), Some("LBA Out of Range"));
    }

    #[test]
    fn short_logs_read_as_zeroes() {
        assert_eq!(Smart::parse(&[0xff; 3]).available_spare, 0);
        assert_eq!(FirmwareSlots::parse(&[]).revisions.len(), 7);
        assert!(ErrorEntry::parse(&[1; 63]).is_empty());
    }
}
