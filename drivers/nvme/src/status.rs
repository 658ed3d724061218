//! The status of a completed command, decoded to the standard's names (NVM Express Base 2.0, 3.3.3.2.1).

use std::fmt;

/// The 15-bit status field of a completion: what [`wholebar_core::block::Status::Device`] carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusCode(pub u16);

impl StatusCode {
    /// "Successful Completion".
    pub const SUCCESS: Self = Self(0);

    /// Whether it is "Successful Completion"; more and retry bits do not matter then.
    pub fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// SC, bits 7:0: the status within its type.
    pub fn code(self) -> u8 {
        self.0 as u8
    }

    /// SCT, bits 10:8: the type.
    pub fn kind(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// M, bit 13: the error log has more of it.
    pub fn more(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// DNR, bit 14: the same command would fail again.
    pub fn do_not_retry(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// What the standard calls it; `None` for reserved and vendor specific codes.
    pub fn name(self) -> Option<&'static str> {
        let table = match self.kind() {
            0 => GENERIC,
            1 => COMMAND_SPECIFIC,
            2 => MEDIA,
            3 => PATH,
            _ => return None,
        };
        table.iter().find(|(code, _)| *code == self.code()).map(|(_, name)| *name)
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or(match self.kind() {
            7 => "vendor specific status",
            _ => "reserved status",
        });
        write!(f, "{name} (type {:x}h, code {:02x}h)", self.kind(), self.code())?;
        if self.do_not_retry() { f.write_str(", do not retry") } else { Ok(()) }
    }
}

impl fmt::Debug for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Generic Command Status (3.3.3.2.1.1), and those of the NVM command set (NVM Command Set 1.0, 3.1).
const GENERIC: &[(u8, &str)] = &[
    (0x00, "Successful Completion"),
    (0x01, "Invalid Command Opcode"),
    (0x02, "Invalid Field in Command"),
    (0x03, "Command ID Conflict"),
    (0x04, "Data Transfer Error"),
    (0x05, "Commands Aborted due to Power Loss Notification"),
    (0x06, "Internal Error"),
    (0x07, "Command Abort Requested"),
    (0x08, "Command Aborted due to SQ Deletion"),
    (0x09, "Command Aborted due to Failed Fused Command"),
    (0x0a, "Command Aborted due to Missing Fused Command"),
    (0x0b, "Invalid Namespace or Format"),
    (0x0c, "Command Sequence Error"),
    (0x0d, "Invalid SGL Segment Descriptor"),
    (0x0e, "Invalid Number of SGL Descriptors"),
    (0x0f, "Data SGL Length Invalid"),
    (0x10, "Metadata SGL Length Invalid"),
    (0x11, "SGL Descriptor Type Invalid"),
    (0x12, "Invalid Use of Controller Memory Buffer"),
    (0x13, "PRP Offset Invalid"),
    (0x14, "Atomic Write Unit Exceeded"),
    (0x15, "Operation Denied"),
    (0x16, "SGL Offset Invalid"),
    (0x18, "Host Identifier Inconsistent Format"),
    (0x19, "Keep Alive Timer Expired"),
    (0x1a, "Keep Alive Timeout Invalid"),
    (0x1b, "Command Aborted due to Preempt and Abort"),
    (0x1c, "Sanitize Failed"),
    (0x1d, "Sanitize In Progress"),
    (0x1e, "SGL Data Block Granularity Invalid"),
    (0x1f, "Command Not Supported for Queue in CMB"),
    (0x20, "Namespace is Write Protected"),
    (0x21, "Command Interrupted"),
    (0x22, "Transient Transport Error"),
    (0x23, "Command Prohibited by Command and Feature Lockdown"),
    (0x24, "Admin Command Media Not Ready"),
    (0x29, "FDP Disabled"),
    (0x2a, "Invalid Placement Handle List"),
    (0x80, "LBA Out of Range"),
    (0x81, "Capacity Exceeded"),
    (0x82, "Namespace Not Ready"),
    (0x83, "Reservation Conflict"),
    (0x84, "Format In Progress"),
];

/// Command Specific Status (3.3.3.2.1.2), those of the NVM command set, and of zoned namespaces (Zoned Namespace Command Set
/// 1.1, 3.1).
const COMMAND_SPECIFIC: &[(u8, &str)] = &[
    (0x00, "Completion Queue Invalid"),
    (0x01, "Invalid Queue Identifier"),
    (0x02, "Invalid Queue Size"),
    (0x03, "Abort Command Limit Exceeded"),
    (0x05, "Asynchronous Event Request Limit Exceeded"),
    (0x06, "Invalid Firmware Slot"),
    (0x07, "Invalid Firmware Image"),
    (0x08, "Invalid Interrupt Vector"),
    (0x09, "Invalid Log Page"),
    (0x0a, "Invalid Format"),
    (0x0b, "Firmware Activation Requires Conventional Reset"),
    (0x0c, "Invalid Queue Deletion"),
    (0x0d, "Feature Identifier Not Saveable"),
    (0x0e, "Feature Not Changeable"),
    (0x0f, "Feature Not Namespace Specific"),
    (0x10, "Firmware Activation Requires NVM Subsystem Reset"),
    (0x11, "Firmware Activation Requires Controller Level Reset"),
    (0x12, "Firmware Activation Requires Maximum Time Violation"),
    (0x13, "Firmware Activation Prohibited"),
    (0x14, "Overlapping Range"),
    (0x15, "Namespace Insufficient Capacity"),
    (0x16, "Namespace Identifier Unavailable"),
    (0x18, "Namespace Already Attached"),
    (0x19, "Namespace Is Private"),
    (0x1a, "Namespace Not Attached"),
    (0x1b, "Thin Provisioning Not Supported"),
    (0x1c, "Controller List Invalid"),
    (0x1d, "Device Self-test In Progress"),
    (0x1e, "Boot Partition Write Prohibited"),
    (0x1f, "Invalid Controller Identifier"),
    (0x20, "Invalid Secondary Controller State"),
    (0x21, "Invalid Number of Controller Resources"),
    (0x22, "Invalid Resource Identifier"),
    (0x23, "Sanitize Prohibited While Persistent Memory Region is Enabled"),
    (0x24, "ANA Group Identifier Invalid"),
    (0x25, "ANA Attach Failed"),
    (0x26, "Insufficient Capacity"),
    (0x27, "Namespace Attachment Limit Exceeded"),
    (0x28, "Prohibition of Command Execution Not Supported"),
    (0x29, "I/O Command Set Not Supported"),
    (0x2a, "I/O Command Set Not Enabled"),
    (0x2b, "I/O Command Set Combination Rejected"),
    (0x2c, "Invalid I/O Command Set"),
    (0x2d, "Identifier Unavailable"),
    (0x7f, "Stream Resource Allocation Failed"),
    (0x80, "Conflicting Attributes"),
    (0x81, "Invalid Protection Information"),
    (0x82, "Attempted Write to Read Only Range"),
    (0x83, "Command Size Limit Exceeded"),
    (0xb8, "Zone Boundary Error"),
    (0xb9, "Zone Is Full"),
    (0xba, "Zone Is Read Only"),
    (0xbb, "Zone Is Offline"),
    (0xbc, "Zone Invalid Write"),
    (0xbd, "Too Many Active Zones"),
    (0xbe, "Too Many Open Zones"),
    (0xbf, "Invalid Zone State Transition"),
];

/// Media and Data Integrity Errors (3.3.3.2.1.3).
const MEDIA: &[(u8, &str)] = &[
    (0x80, "Write Fault"),
    (0x81, "Unrecovered Read Error"),
    (0x82, "End-to-end Guard Check Error"),
    (0x83, "End-to-end Application Tag Check Error"),
    (0x84, "End-to-end Reference Tag Check Error"),
    (0x85, "Compare Failure"),
    (0x86, "Access Denied"),
    (0x87, "Deallocated or Unwritten Logical Block"),
    (0x88, "End-to-End Storage Tag Check Error"),
];

/// Path Related Status (3.3.3.2.1.4).
const PATH: &[(u8, &str)] = &[
    (0x00, "Internal Path Error"),
    (0x01, "Asymmetric Access Persistent Loss"),
    (0x02, "Asymmetric Access Inaccessible"),
    (0x03, "Asymmetric Access Transition"),
    (0x60, "Controller Pathing Error"),
    (0x70, "Host Pathing Error"),
    (0x71, "Command Aborted By Host"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_standards() {
        let cases = [
            (0x0000, "Successful Completion (type 0h, code 00h)"),
            (0x0080, "LBA Out of Range (type 0h, code 80h)"),
            (0x4002, "Invalid Field in Command (type 0h, code 02h), do not retry"),
            (0x0101, "Invalid Queue Identifier (type 1h, code 01h)"),
            (0x0281, "Unrecovered Read Error (type 2h, code 81h)"),
            (0x0371, "Command Aborted By Host (type 3h, code 71h)"),
            (0x0742, "vendor specific status (type 7h, code 42h)"),
            (0x00ff, "reserved status (type 0h, code ffh)"),
        ];
        for (code, text) in cases {
            assert_eq!(StatusCode(code).to_string(), text);
        }
    }

    #[test]
    fn every_value_has_a_text() {
        for code in 0..=u16::MAX {
            let status = StatusCode(code);
            assert!(!status.to_string().is_empty());
            assert_eq!(status.is_success(), status.name() == Some("Successful Completion"));
        }
    }

    #[test]
    fn tables_are_sorted_without_duplicates() {
        for table in [GENERIC, COMMAND_SPECIFIC, MEDIA, PATH] {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
