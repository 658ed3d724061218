//! Log pages (NVM Express Base 2.0, 5.16.1). The bytes are a device's: any of them parse.

use crate::bytes::{text, u8_at, u16_at, u32_at, u64_at, u128_at};
use crate::status::StatusCode;

/// Log page identifiers (5.16.1, figure 202).
pub(crate) mod lid {
    pub const ERROR: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
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
    pub(crate) fn parse(bytes: &[u8]) -> Vec<Self> {
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
    pub(crate) fn parse(b: &[u8]) -> Self {
        let afi = u8_at(b, 0);
        Self {
            active: afi & 7,
            next: Some(afi >> 4 & 7).filter(|n| *n > 0),
            revisions: (0..7).map(|i| text(b, 8 + 8 * i, 8)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
