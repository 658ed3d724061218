//! Numbers of NVM Express: registers, opcodes, status codes. Only what the model uses, each with its section in the Base Specification 2.0
//! ("base"), the NVM Command Set Specification 1.0 ("nvm") or the PCIe Transport Specification 1.0 ("pcie").

use crate::media::Failed;

/// Controller registers, offsets in BAR0 (base 3.1.3).
pub(super) mod reg {
    /// Controller Capabilities, 64 bits.
    pub(crate) const CAP: u64 = 0x00;
    /// Version.
    pub(crate) const VS: u64 = 0x08;
    /// Controller Configuration.
    pub(crate) const CC: u64 = 0x14;
    /// Controller Status.
    pub(crate) const CSTS: u64 = 0x1c;
    /// Admin Queue Attributes.
    pub(crate) const AQA: u64 = 0x24;
    /// Admin Submission Queue Base Address, 64 bits.
    pub(crate) const ASQ: u64 = 0x28;
    /// Admin Completion Queue Base Address, 64 bits.
    pub(crate) const ACQ: u64 = 0x30;
    /// Controller Memory Buffer Location, and Size.
    pub(crate) const CMBLOC: u64 = 0x38;
    pub(crate) const CMBSZ: u64 = 0x3c;
    /// Controller Memory Buffer Memory Space Control, 64 bits; Status.
    pub(crate) const CMBMSC: u64 = 0x50;
    pub(crate) const CMBSTS: u64 = 0x58;
    /// Controller Ready Timeouts.
    pub(crate) const CRTO: u64 = 0x68;
    /// Persistent Memory Region Capabilities, Control, Status.
    pub(crate) const PMRCAP: u64 = 0xe00;
    pub(crate) const PMRCTL: u64 = 0xe04;
    pub(crate) const PMRSTS: u64 = 0xe08;
    /// The first doorbell (pcie 3.1.2).
    pub(crate) const DOORBELLS: u64 = 0x1000;
}

/// Fields of CAP (base 3.1.3.1).
pub(super) mod cap {
    pub(crate) const CQR: u64 = 1 << 16;
    pub(crate) const TO_SHIFT: u32 = 24;
    pub(crate) const DSTRD_SHIFT: u32 = 32;
    /// The NVM command set.
    pub(crate) const CSS_NVM: u64 = 1 << 37;
    /// More than one I/O command set.
    pub(crate) const CSS_ALL: u64 = 1 << 43;
    pub(crate) const MPSMIN_SHIFT: u32 = 48;
    pub(crate) const MPSMAX_SHIFT: u32 = 52;
    /// There is a persistent memory region.
    pub(crate) const PMRS: u64 = 1 << 56;
    /// There is a controller memory buffer.
    pub(crate) const CMBS: u64 = 1 << 57;
    /// Ready with media (CRMS.CRWMS).
    pub(crate) const CRWMS: u64 = 1 << 59;
}

/// A Controller Configuration value (base 3.1.3.5).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Cc(pub(super) u32);

impl Cc {
    pub(super) fn enabled(self) -> bool {
        self.0 & 1 != 0
    }
    /// I/O command set selected.
    pub(super) fn css(self) -> u32 {
        self.0 >> 4 & 7
    }
    /// Memory page size: 2 to the power of 12 plus this.
    pub(super) fn mps(self) -> u32 {
        self.0 >> 7 & 15
    }
    /// Arbitration mechanism.
    pub(super) fn ams(self) -> u32 {
        self.0 >> 11 & 7
    }
    /// Shutdown notification.
    pub(super) fn shn(self) -> u32 {
        self.0 >> 14 & 3
    }
    /// I/O submission queue entry size, as a power of two.
    pub(super) fn iosqes(self) -> u32 {
        self.0 >> 16 & 15
    }
    /// I/O completion queue entry size, as a power of two.
    pub(super) fn iocqes(self) -> u32 {
        self.0 >> 20 & 15
    }
}

/// Fields of CSTS (base 3.1.3.6).
pub(super) mod csts {
    pub(crate) const RDY: u32 = 1;
    pub(crate) const CFS: u32 = 1 << 1;
    pub(crate) const SHST_COMPLETE: u32 = 2 << 2;
}

/// Admin opcodes (base 5, figure "Opcodes for Admin Commands").
pub(super) mod admin {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
    pub(crate) const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    pub(crate) const FIRMWARE_COMMIT: u8 = 0x10;
    pub(crate) const FIRMWARE_DOWNLOAD: u8 = 0x11;
    pub(crate) const SELF_TEST: u8 = 0x14;
    pub(crate) const NAMESPACE_ATTACHMENT: u8 = 0x15;
    pub(crate) const DIRECTIVE_SEND: u8 = 0x19;
    pub(crate) const DIRECTIVE_RECEIVE: u8 = 0x1a;
    pub(crate) const DOORBELL_BUFFER: u8 = 0x7c;
    pub(crate) const FORMAT: u8 = 0x80;
    pub(crate) const SECURITY_SEND: u8 = 0x81;
    pub(crate) const SECURITY_RECEIVE: u8 = 0x82;
    pub(crate) const SANITIZE: u8 = 0x84;

    /// Those that are there always.
    pub(crate) const ALL: [u8; 17] = [
        DELETE_SQ,
        CREATE_SQ,
        GET_LOG_PAGE,
        DELETE_CQ,
        CREATE_CQ,
        IDENTIFY,
        ABORT,
        SET_FEATURES,
        GET_FEATURES,
        ASYNC_EVENT,
        FIRMWARE_COMMIT,
        FIRMWARE_DOWNLOAD,
        SELF_TEST,
        FORMAT,
        SECURITY_SEND,
        SECURITY_RECEIVE,
        SANITIZE,
    ];
    /// Those that are there where there is capacity for namespaces.
    pub(crate) const NAMESPACES: [u8; 2] = [NAMESPACE_MANAGEMENT, NAMESPACE_ATTACHMENT];
    /// Those that are there where writes can say where their data goes.
    pub(crate) const DIRECTIVES: [u8; 2] = [DIRECTIVE_SEND, DIRECTIVE_RECEIVE];
}

/// I/O opcodes (nvm 3, figure "Opcodes for NVM Commands"; Flush is in base 7.1).
pub(super) mod io {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_UNCORRECTABLE: u8 = 0x04;
    pub(crate) const COMPARE: u8 = 0x05;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET: u8 = 0x09;
    pub(crate) const VERIFY: u8 = 0x0c;

    pub(crate) const COPY: u8 = 0x19;

    // Of reservations (base 7.2 to 7.5).
    pub(crate) const RESERVATION_REGISTER: u8 = 0x0d;
    pub(crate) const RESERVATION_REPORT: u8 = 0x0e;
    pub(crate) const RESERVATION_ACQUIRE: u8 = 0x11;
    pub(crate) const RESERVATION_RELEASE: u8 = 0x15;

    // Of flexible data placement (Base 2.1, 7.3 and 7.4).
    pub(crate) const MANAGEMENT_RECEIVE: u8 = 0x12;
    pub(crate) const MANAGEMENT_SEND: u8 = 0x1d;

    // Of zoned namespaces (zns 3.4).
    pub(crate) const ZONE_SEND: u8 = 0x79;
    pub(crate) const ZONE_RECEIVE: u8 = 0x7a;
    pub(crate) const ZONE_APPEND: u8 = 0x7d;

    /// Those that are there.
    pub(crate) const ALL: [u8; 9] =
        [FLUSH, WRITE, READ, WRITE_UNCORRECTABLE, COMPARE, WRITE_ZEROES, DATASET, VERIFY, COPY];
    /// Those that are there where there are zones.
    pub(crate) const ZONED: [u8; 3] = [ZONE_SEND, ZONE_RECEIVE, ZONE_APPEND];
    /// Those that are there where hosts share namespaces.
    pub(crate) const RESERVATIONS: [u8; 4] =
        [RESERVATION_REGISTER, RESERVATION_REPORT, RESERVATION_ACQUIRE, RESERVATION_RELEASE];
    /// Those that are there where data is placed.
    pub(crate) const PLACED: [u8; 2] = [MANAGEMENT_RECEIVE, MANAGEMENT_SEND];
}

/// What is done to zones: Zone Send Action (zns 3.4.3).
pub(super) mod zone {
    pub(crate) const CLOSE: u32 = 1;
    pub(crate) const FINISH: u32 = 2;
    pub(crate) const OPEN: u32 = 3;
    pub(crate) const RESET: u32 = 4;
    pub(crate) const OFFLINE: u32 = 5;
}

/// A completion's Status Field without its phase bit (base 3.3.3.2.1): SC in bits 7:0, SCT in 10:8, M in 13, DNR in 14.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(pub(super) u16);

impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Read => Self::UNRECOVERED_READ,
            Failed::Write => Self::WRITE_FAULT,
            Failed::Differs => Self::COMPARE_FAILURE,
            Failed::Transfer => Self::DATA_TRANSFER_ERROR,
        }
    }
}

impl Status {
    const DNR: u16 = 1 << 14;
    /// The error log has more on it.
    const MORE: u16 = 1 << 13;

    /// A generic status that a retry does not change.
    const fn generic(code: u16) -> Self {
        Self(code | Self::DNR)
    }
    /// A command specific status that a retry does not change.
    const fn specific(code: u16) -> Self {
        Self(1 << 8 | code | Self::DNR)
    }
    /// A media and data integrity status.
    const fn media(code: u16) -> Self {
        Self(2 << 8 | code)
    }

    pub(super) const OK: Self = Self(0);
    // Generic (base figure "Generic Command Status Values").
    pub(super) const INVALID_OPCODE: Self = Self::generic(0x01);
    pub(super) const INVALID_FIELD: Self = Self::generic(0x02);
    /// A retry may find memory there.
    pub(super) const DATA_TRANSFER_ERROR: Self = Self(0x04);
    pub(super) const ABORT_REQUESTED: Self = Self(0x07);
    pub(super) const INVALID_NAMESPACE: Self = Self::generic(0x0b);
    pub(super) const COMMAND_SEQUENCE: Self = Self::generic(0x0c);
    pub(super) const INVALID_SGL_SEGMENT: Self = Self::generic(0x0d);
    pub(super) const INVALID_SGL_COUNT: Self = Self::generic(0x0e);
    pub(super) const SGL_LENGTH: Self = Self::generic(0x0f);
    pub(super) const SGL_TYPE: Self = Self::generic(0x11);
    pub(super) const PRP_OFFSET: Self = Self::generic(0x13);
    pub(super) const HOST_IDENTIFIER_FORMAT: Self = Self::generic(0x18);
    /// A retry may come later.
    pub(super) const SANITIZE_IN_PROGRESS: Self = Self(0x1d);
    pub(super) const WRITE_PROTECTED: Self = Self::generic(0x20);
    /// Base 2.1.
    pub(super) const FDP_DISABLED: Self = Self::generic(0x29);
    pub(super) const LBA_OUT_OF_RANGE: Self = Self::generic(0x80);
    pub(super) const RESERVATION_CONFLICT: Self = Self::generic(0x83);
    // Command specific (base figure "Command Specific Status Values").
    pub(super) const CQ_INVALID: Self = Self::specific(0x00);
    pub(super) const INVALID_QUEUE_ID: Self = Self::specific(0x01);
    pub(super) const INVALID_QUEUE_SIZE: Self = Self::specific(0x02);
    pub(super) const TOO_MANY_EVENTS: Self = Self::specific(0x05);
    pub(super) const INVALID_FIRMWARE_SLOT: Self = Self::specific(0x06);
    pub(super) const INVALID_FIRMWARE_IMAGE: Self = Self::specific(0x07);
    pub(super) const INVALID_VECTOR: Self = Self::specific(0x08);
    pub(super) const INVALID_LOG_PAGE: Self = Self::specific(0x09);
    pub(super) const INVALID_FORMAT: Self = Self::specific(0x0a);
    pub(super) const INVALID_QUEUE_DELETION: Self = Self::specific(0x0c);
    pub(super) const NOT_SAVEABLE: Self = Self::specific(0x0d);
    /// It was stored: a controller level reset has it run.
    pub(super) const FIRMWARE_NEEDS_RESET: Self = Self(1 << 8 | 0x11);
    pub(super) const INSUFFICIENT_CAPACITY: Self = Self::specific(0x15);
    pub(super) const NO_NAMESPACE_ID: Self = Self::specific(0x16);
    pub(super) const ALREADY_ATTACHED: Self = Self::specific(0x18);
    pub(super) const NOT_ATTACHED: Self = Self::specific(0x1a);
    pub(super) const THIN_PROVISIONING: Self = Self::specific(0x1b);
    pub(super) const INVALID_CONTROLLER_LIST: Self = Self::specific(0x1c);
    pub(super) const SELF_TEST_IN_PROGRESS: Self = Self::specific(0x1d);
    pub(super) const STREAMS_NOT_ALLOCATED: Self = Self::specific(0x7f);
    // Command specific, of the NVM command set (nvm 5.3.3 and 3.2.2).
    pub(super) const INVALID_PROTECTION: Self = Self::specific(0x81);
    pub(super) const COPY_LIMIT: Self = Self::specific(0x83);
    // Command specific, of zoned namespaces (zns 3.1).
    pub(super) const ZONE_BOUNDARY: Self = Self::specific(0xb8);
    pub(super) const ZONE_FULL: Self = Self::specific(0xb9);
    pub(super) const ZONE_READ_ONLY: Self = Self::specific(0xba);
    pub(super) const ZONE_OFFLINE: Self = Self::specific(0xbb);
    pub(super) const ZONE_INVALID_WRITE: Self = Self::specific(0xbc);
    pub(super) const TOO_MANY_ACTIVE: Self = Self::specific(0xbd);
    pub(super) const TOO_MANY_OPEN: Self = Self::specific(0xbe);
    pub(super) const ZONE_TRANSITION: Self = Self::specific(0xbf);
    // Media and data integrity (base figure "Media and Data Integrity Error Values").
    pub(super) const WRITE_FAULT: Self = Self::media(0x80);
    pub(super) const UNRECOVERED_READ: Self = Self::media(0x81);
    pub(super) const GUARD_CHECK: Self = Self::media(0x82);
    pub(super) const APPLICATION_TAG_CHECK: Self = Self::media(0x83);
    pub(super) const REFERENCE_TAG_CHECK: Self = Self::media(0x84);
    pub(super) const STORAGE_TAG_CHECK: Self = Self::media(0x88);
    pub(super) const COMPARE_FAILURE: Self = Self(Self::media(0x85).0 | Self::DNR);

    pub(super) fn is_error(self) -> bool {
        self.0 & 0x7ff != 0
    }

    /// With the bit that says that the error log has more.
    #[must_use]
    pub(super) fn logged(self) -> Self {
        Self(self.0 | Self::MORE)
    }
}
