//! Submission queue entries: sixteen dwords (NVM Express Base 2.0, 3.3.3.1), stored as eight 64-bit words, of which no command
//! here uses more than five. What is built here does not name its command identifier: whoever posts it adds one.

/// Opcodes of the admin command set (NVM Express Base 2.0, section 5).
pub mod admin {
    /// Delete I/O Submission Queue (5.7).
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue (5.5).
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page (5.16).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue (5.6).
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue (5.4).
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify (5.17).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (5.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (5.27).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (5.15).
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (5.2).
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Namespace Management (5.23).
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Firmware Commit (5.11).
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    /// Firmware Image Download (5.12).
    pub const FIRMWARE_DOWNLOAD: u8 = 0x11;
    /// Device Self-test (5.9).
    pub const SELF_TEST: u8 = 0x14;
    /// Namespace Attachment (5.22).
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Directive Send (5.11).
    pub const DIRECTIVE_SEND: u8 = 0x19;
    /// Directive Receive (5.10).
    pub const DIRECTIVE_RECEIVE: u8 = 0x1a;
    /// Virtualization Management (5.28).
    pub const VIRTUALIZATION_MANAGEMENT: u8 = 0x1c;
    /// Capacity Management (5.3).
    pub const CAPACITY_MANAGEMENT: u8 = 0x20;
    /// Controller Data Queue (of NVM Express Base 2.1, 5.1.4).
    pub const CONTROLLER_DATA_QUEUE: u8 = 0x45;
    /// Doorbell Buffer Config (5.8).
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
    /// Fabrics commands (6).
    pub const FABRICS: u8 = 0x7f;
    /// Format NVM (5.14).
    pub const FORMAT: u8 = 0x80;
    /// Security Send (5.26).
    pub const SECURITY_SEND: u8 = 0x81;
    /// Security Receive (5.25).
    pub const SECURITY_RECEIVE: u8 = 0x82;
    /// Sanitize (5.24).
    pub const SANITIZE: u8 = 0x84;
}

/// Opcodes of the NVM command set (NVM Command Set 1.0, section 3.2; Flush: NVM Express Base 2.0, 7.1).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write (3.2.6).
    pub const WRITE: u8 = 0x01;
    /// Read (3.2.4).
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable (3.2.7).
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare (3.2.1).
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes (3.2.8).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify (3.2.5).
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register (NVM Express Base 2.0, 7.3).
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report (Base 2.0, 7.5).
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire (Base 2.0, 7.2).
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// I/O Management Receive (NVM Express Base 2.1, 7.3).
    pub const MANAGEMENT_RECEIVE: u8 = 0x12;
    /// Reservation Release (Base 2.0, 7.4).
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Copy (3.2.2).
    pub const COPY: u8 = 0x19;
    /// I/O Management Send (NVM Express Base 2.1, 7.4).
    pub const MANAGEMENT_SEND: u8 = 0x1d;
    /// Zone Management Send (Zoned Namespace Command Set 1.1, 3.4.3).
    pub const ZONE_MANAGEMENT_SEND: u8 = 0x79;
    /// Zone Management Receive (ZNS 1.1, 3.4.2).
    pub const ZONE_MANAGEMENT_RECEIVE: u8 = 0x7a;
    /// Zone Append (ZNS 1.1, 3.4.1).
    pub const ZONE_APPEND: u8 = 0x7d;

    /// Commands whose data is none of blocks, so that no metadata goes along.
    pub const WITHOUT_BLOCKS: [u8; 10] = [
        DATASET_MANAGEMENT,
        RESERVATION_REGISTER,
        RESERVATION_REPORT,
        RESERVATION_ACQUIRE,
        RESERVATION_RELEASE,
        MANAGEMENT_RECEIVE,
        COPY,
        MANAGEMENT_SEND,
        ZONE_MANAGEMENT_SEND,
        ZONE_MANAGEMENT_RECEIVE,
    ];
}

/// What the data pointer says (3.3.3.1, DPTR and PSDT).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataPointer {
    /// PRP entry 1, or the SGL descriptor's address.
    pub low: u64,
    /// PRP entry 2, or the rest of the SGL descriptor.
    pub high: u64,
    /// It is an SGL descriptor (PSDT 01b).
    pub sgl: bool,
}

impl DataPointer {
    /// Two PRP entries.
    #[inline(always)]
    pub fn prp(low: u64, high: u64) -> Self {
        Self { low, high, sgl: false }
    }
}

/// Which 64-bit words of an entry a command sets: dwords 0 and 1, the data pointer (6 to 9), 10 and 11, 12 and 13. The others (reserved,
/// metadata pointer, 14 and 15) are 0 in all of them.
pub const WORDS: [usize; 5] = [0, 3, 4, 5, 6];

/// A command without its identifier: its [`WORDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command([u64; 5]);

impl Command {
    /// A command of `opcode` on namespace `nsid`, with data at `data`; dwords 10 to 13 are 0.
    #[inline(always)]
    pub fn new(opcode: u8, nsid: u32, data: DataPointer) -> Self {
        let dword0 = u64::from(opcode) | u64::from(data.sgl) << 14;
        Self([dword0 | u64::from(nsid) << 32, data.low, data.high, 0, 0])
    }

    /// With dwords 10 and 11.
    #[inline(always)]
    #[must_use]
    pub fn dw10(mut self, dw10: u32, dw11: u32) -> Self {
        self.0[3] = u64::from(dw10) | u64::from(dw11) << 32;
        self
    }

    /// A command on `blocks` (1 to 65,536) logical blocks from `lba` on: SLBA in dwords 10 and 11, NLB, 0's based, in dword 12.
    #[inline(always)]
    pub fn on_blocks(opcode: u8, nsid: u32, data: DataPointer, lba: u64, blocks: u32) -> Self {
        let mut command = Self::new(opcode, nsid, data);
        command.0[3] = lba;
        command.0[4] = u64::from(blocks.wrapping_sub(1) as u16);
        command
    }

    /// The words to store, with identifier `cid` in them.
    #[inline(always)]
    pub fn words(mut self, cid: u16) -> [u64; 5] {
        self.0[0] |= u64::from(cid) << 16;
        self.0
    }

    /// With dwords 12 and 13.
    #[must_use]
    pub fn dw12(mut self, dw12: u32, dw13: u32) -> Self {
        self.0[4] = u64::from(dw12) | u64::from(dw13) << 32;
        self
    }

    /// All eight words of the entry, with identifier `cid` in them.
    pub fn entry(self, cid: u16) -> [u64; 8] {
        let mut entry = [0; 8];
        WORDS.into_iter().zip(self.words(cid)).for_each(|(i, word)| entry[i] = word);
        entry
    }

    /// The opcode.
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }
}

/// What the standard calls an admin command (NVM Express Base 2.0, 5; Get LBA Status: NVM Command Set 1.0, 4.2.1).
pub fn admin_name(opcode: u8) -> &'static str {
    match opcode {
        admin::DELETE_SQ => "Delete I/O Submission Queue",
        admin::CREATE_SQ => "Create I/O Submission Queue",
        admin::GET_LOG_PAGE => "Get Log Page",
        admin::DELETE_CQ => "Delete I/O Completion Queue",
        admin::CREATE_CQ => "Create I/O Completion Queue",
        admin::IDENTIFY => "Identify",
        admin::ABORT => "Abort",
        admin::SET_FEATURES => "Set Features",
        admin::GET_FEATURES => "Get Features",
        admin::ASYNC_EVENT_REQUEST => "Asynchronous Event Request",
        admin::NAMESPACE_MANAGEMENT => "Namespace Management",
        admin::FIRMWARE_COMMIT => "Firmware Commit",
        admin::FIRMWARE_DOWNLOAD => "Firmware Image Download",
        admin::SELF_TEST => "Device Self-test",
        admin::NAMESPACE_ATTACHMENT => "Namespace Attachment",
        0x18 => "Keep Alive",
        admin::DIRECTIVE_SEND => "Directive Send",
        admin::DIRECTIVE_RECEIVE => "Directive Receive",
        admin::VIRTUALIZATION_MANAGEMENT => "Virtualization Management",
        0x1d => "NVMe-MI Send",
        0x1e => "NVMe-MI Receive",
        admin::CAPACITY_MANAGEMENT => "Capacity Management",
        0x24 => "Lockdown",
        admin::CONTROLLER_DATA_QUEUE => "Controller Data Queue",
        admin::DOORBELL_BUFFER_CONFIG => "Doorbell Buffer Config",
        admin::FABRICS => "a Fabrics command",
        admin::FORMAT => "Format NVM",
        admin::SECURITY_SEND => "Security Send",
        admin::SECURITY_RECEIVE => "Security Receive",
        admin::SANITIZE => "Sanitize",
        0x86 => "Get LBA Status",
        0xc0.. => "a vendor specific admin command",
        _ => "an admin command",
    }
}

/// Identify, with CNS (5.17): PRP1 is `to`. `csi` is the command set for the CNS values that have one.
pub fn identify(cns: u8, nsid: u32, csi: u8, to: u64) -> Command {
    Command::new(admin::IDENTIFY, nsid, DataPointer::prp(to, 0)).dw10(cns.into(), u32::from(csi) << 24)
}

/// Get Log Page (5.16): `bytes` (a multiple of 4) of log `lid`, for all namespaces.
pub fn get_log_page(lid: u8, bytes: u32, to: u64) -> Command {
    let dwords = (bytes / 4).saturating_sub(1);
    Command::new(admin::GET_LOG_PAGE, u32::MAX, DataPointer::prp(to, 0))
        .dw10(u32::from(lid) | (dwords & 0xffff) << 16, dwords >> 16)
}

/// What the standard calls an I/O command (NVM Express Base 2.0, 7; NVM Command Set 1.0, 3.2; Zoned Namespace Command Set 1.1, 3.4; I/O Management: Base
/// 2.1).
pub fn io_name(opcode: u8) -> &'static str {
    match opcode {
        io::FLUSH => "Flush",
        io::WRITE => "Write",
        io::READ => "Read",
        io::WRITE_UNCORRECTABLE => "Write Uncorrectable",
        io::COMPARE => "Compare",
        io::WRITE_ZEROES => "Write Zeroes",
        io::DATASET_MANAGEMENT => "Dataset Management",
        io::VERIFY => "Verify",
        io::RESERVATION_REGISTER => "Reservation Register",
        io::RESERVATION_REPORT => "Reservation Report",
        io::RESERVATION_ACQUIRE => "Reservation Acquire",
        io::MANAGEMENT_RECEIVE => "I/O Management Receive",
        io::RESERVATION_RELEASE => "Reservation Release",
        io::COPY => "Copy",
        io::MANAGEMENT_SEND => "I/O Management Send",
        io::ZONE_MANAGEMENT_SEND => "Zone Management Send",
        io::ZONE_MANAGEMENT_RECEIVE => "Zone Management Receive",
        io::ZONE_APPEND => "Zone Append",
        0x80.. => "a vendor specific I/O command",
        _ => "an I/O command",
    }
}

/// Get Features (5.15), the current value.
pub fn get_features(id: u8, nsid: u32) -> Command {
    Command::new(admin::GET_FEATURES, nsid, DataPointer::default()).dw10(id.into(), 0)
}

/// Set Features (5.27); `save` keeps it across resets and power cycles.
pub fn set_features(id: u8, nsid: u32, value: u32, save: bool) -> Command {
    Command::new(admin::SET_FEATURES, nsid, DataPointer::default()).dw10(u32::from(id) | u32::from(save) << 31, value)
}

/// Create I/O Completion Queue (5.4): physically contiguous, with interrupts by `vector` where there is one.
pub fn create_cq(qid: u16, entries: u32, base: u64, vector: Option<u16>) -> Command {
    let interrupts = vector.map_or(0, |v| 1 << 1 | u32::from(v) << 16);
    Command::new(admin::CREATE_CQ, 0, DataPointer::prp(base, 0))
        .dw10(u32::from(qid) | entries.wrapping_sub(1) << 16, 1 | interrupts)
}

/// Create I/O Submission Queue (5.5): physically contiguous, completing to the queue of the same number.
pub fn create_sq(qid: u16, entries: u32, base: u64) -> Command {
    Command::new(admin::CREATE_SQ, 0, DataPointer::prp(base, 0))
        .dw10(u32::from(qid) | entries.wrapping_sub(1) << 16, 1 | u32::from(qid) << 16)
}

/// Delete I/O Submission Queue (5.7).
pub fn delete_sq(qid: u16) -> Command {
    Command::new(admin::DELETE_SQ, 0, DataPointer::default()).dw10(qid.into(), 0)
}

/// Delete I/O Completion Queue (5.6).
pub fn delete_cq(qid: u16) -> Command {
    Command::new(admin::DELETE_CQ, 0, DataPointer::default()).dw10(qid.into(), 0)
}

/// Abort (5.1): command `cid` of submission queue `qid`.
pub fn abort(qid: u16, cid: u16) -> Command {
    Command::new(admin::ABORT, 0, DataPointer::default()).dw10(u32::from(qid) | u32::from(cid) << 16, 0)
}

/// Asynchronous Event Request (5.2).
pub fn async_event_request() -> Command {
    Command::new(admin::ASYNC_EVENT_REQUEST, 0, DataPointer::default())
}

/// Doorbell Buffer Config (5.8): the page of shadow doorbells, and the page of event indexes.
pub fn doorbell_buffer_config(shadows: u64, events: u64) -> Command {
    Command::new(admin::DOORBELL_BUFFER_CONFIG, 0, DataPointer::prp(shadows, events))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dwords as the standard numbers them.
    fn dwords(c: Command, cid: u16) -> [u32; 16] {
        let entry = c.entry(cid);
        std::array::from_fn(|i| (entry[i / 2] >> (i % 2 * 32)) as u32)
    }

    #[test]
    fn a_read_has_its_fields_where_the_standard_has_them() {
        let c = Command::on_blocks(io::READ, 7, DataPointer::prp(0x1111_2000, 0x3000), 0x1_2345_6789, 8);
        let mut want = [0; 16];
        (want[0], want[1]) = (0x0005_0002, 7);
        (want[6], want[8]) = (0x1111_2000, 0x3000);
        (want[10], want[11], want[12]) = (0x2345_6789, 1, 7);
        assert_eq!(dwords(c, 5), want);
    }

    #[test]
    fn the_largest_number_of_blocks_is_all_ones() {
        assert_eq!(dwords(Command::on_blocks(io::VERIFY, 1, DataPointer::default(), 0, 65536), 0)[12], 0xffff);
    }

    #[test]
    fn an_sgl_is_marked_in_psdt() {
        let data = DataPointer { low: 0x1000, high: 0x200, sgl: true };
        assert_eq!(dwords(Command::new(io::WRITE, 1, data), 0)[0], 0x4001);
    }

    #[test]
    fn queues_are_created_contiguous() {
        let cq = dwords(create_cq(3, 256, 0x8000, Some(5)), 0);
        assert_eq!((cq[0], cq[6], cq[10], cq[11]), (5, 0x8000, 0x00ff_0003, 0x0005_0003));
        let quiet = dwords(create_cq(3, 256, 0x8000, None), 0);
        assert_eq!(quiet[11], 1);
        let sq = dwords(create_sq(3, 65536, 0x9000), 0);
        assert_eq!((sq[0], sq[6], sq[10], sq[11]), (1, 0x9000, 0xffff_0003, 0x0003_0001));
    }

    #[test]
    fn log_lengths_are_zeros_based_dwords() {
        let c = dwords(get_log_page(2, 512, 0x1000), 0);
        assert_eq!((c[1], c[10], c[11]), (u32::MAX, 127 << 16 | 2, 0));
        assert_eq!(dwords(set_features(7, 0, 0x0003_0003, true), 0)[10..12], [0x8000_0007, 0x0003_0003]);
        assert_eq!(dwords(abort(2, 9), 0)[10], 0x0009_0002);
    }
}
