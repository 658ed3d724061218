//! The controller's registers ("properties"): offsets and bits, as NVM Express Base 2.0 section 3.1.3 has them, and the
//! doorbells, as the PCIe Transport 1.0 section 3.1.2 has them. Only those that the driver uses. No access happens here.

use std::time::Duration;

/// Controller Capabilities, 64 bits, read-only (3.1.3.1).
pub const CAP: u64 = 0x00;
/// Version, 32 bits, read-only (3.1.3.2).
pub const VS: u64 = 0x08;
/// Controller Configuration, 32 bits (3.1.3.5).
pub const CC: u64 = 0x14;
/// Controller Status, 32 bits (3.1.3.6).
pub const CSTS: u64 = 0x1c;
/// Admin Queue Attributes, 32 bits (3.1.3.8).
pub const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address, 64 bits (3.1.3.9).
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address, 64 bits (3.1.3.10).
pub const ACQ: u64 = 0x30;
/// Controller Memory Buffer Location, 32 bits, read-only (3.1.3.11).
pub const CMBLOC: u64 = 0x38;
/// Controller Memory Buffer Size, 32 bits, read-only (3.1.3.12).
pub const CMBSZ: u64 = 0x3c;
/// Controller Memory Buffer Memory Space Control, 64 bits (3.1.3.16): a base address from bit 12 on.
pub const CMBMSC: u64 = 0x50;
/// CMBMSC.CRE: CMBLOC and CMBSZ tell.
pub const CMBMSC_TELL: u64 = 1;
/// CMBMSC.CMSE: the buffer is at its base address.
pub const CMBMSC_ENABLE: u64 = 1 << 1;
/// Controller Memory Buffer Status, 32 bits, read-only (3.1.3.17): bit 0, the base address is none that can be.
pub const CMBSTS: u64 = 0x58;
/// Controller Ready Timeouts, 32 bits, read-only; there where CAP.CRMS says so.
pub const CRTO: u64 = 0x68;
/// Persistent Memory Region Capabilities, 32 bits, read-only (3.1.3.20); there where CAP.PMRS says so, as the next ones.
pub const PMRCAP: u64 = 0xe00;
/// Persistent Memory Region Control, 32 bits (3.1.3.21).
pub const PMRCTL: u64 = 0xe04;
/// PMRCTL.EN.
pub const PMRCTL_ENABLE: u32 = 1;
/// Persistent Memory Region Status, 32 bits, read-only (3.1.3.22).
pub const PMRSTS: u64 = 0xe08;
/// The first doorbell.
pub const DOORBELLS: u64 = 0x1000;

/// What a register of a device that is gone reads as.
pub const GONE: u32 = u32::MAX;

/// CAP's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// MQES, bits 15:0: entries an I/O queue can have; the field is 0's based.
    pub fn max_entries(self) -> u32 {
        (self.0 as u32 & 0xffff) + 1
    }

    /// TO, bits 31:24: how long CSTS.RDY may take to follow CC.EN, in units of 500 ms.
    pub fn timeout_ms(self) -> u64 {
        (self.0 >> 24 & 0xff) * 500
    }

    /// DSTRD, bits 35:32: bytes from one doorbell to the next.
    pub fn doorbell_stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// CSS, bits 44:37: bit 0, the NVM command set; bit 6, one or more I/O command sets; bit 7, none.
    pub fn command_sets(self) -> u8 {
        (self.0 >> 37) as u8
    }

    /// MPSMIN, bits 51:48, in bytes.
    pub fn min_page(self) -> u64 {
        1 << (12 + (self.0 >> 48 & 0xf))
    }

    /// MPSMAX, bits 55:52, in bytes.
    pub fn max_page(self) -> u64 {
        1 << (12 + (self.0 >> 52 & 0xf))
    }

    /// PMRS, bit 56: there is a persistent memory region.
    pub fn has_persistent_memory(self) -> bool {
        self.0 >> 56 & 1 != 0
    }

    /// CMBS, bit 57: there may be a controller memory buffer, which can be given an address.
    pub fn has_memory_buffer(self) -> bool {
        self.0 >> 57 & 1 != 0
    }

    /// CRMS, bits 60:59: whether [`CRTO`] is there.
    pub fn has_ready_timeouts(self) -> bool {
        self.0 >> 59 & 3 != 0
    }
}

/// CMBLOC's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cmbloc(pub u32);

impl Cmbloc {
    /// BIR, bits 2:0: the BAR.
    pub fn bar(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// OFST, bits 31:12: where in the BAR, in the units of CMBSZ.
    pub fn offset(self) -> u64 {
        (self.0 >> 12).into()
    }
}

/// CMBSZ's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cmbsz(pub u32);

impl Cmbsz {
    /// SZU, bits 11:8: bytes of a unit, 4 KiB to 64 GiB.
    pub fn unit(self) -> u64 {
        4096 << (4 * (self.0 >> 8 & 0xf).min(6))
    }

    /// SZ, bits 31:12, in bytes; `None` for none.
    pub fn bytes(self) -> Option<u64> {
        u64::from(self.0 >> 12).checked_mul(self.unit()).filter(|bytes| *bytes > 0)
    }

    /// SQS, bit 0.
    pub fn submission_queues(self) -> bool {
        self.0 & 1 != 0
    }

    /// CQS, bit 1.
    pub fn completion_queues(self) -> bool {
        self.0 & 2 != 0
    }

    /// LISTS, bit 2.
    pub fn lists(self) -> bool {
        self.0 & 4 != 0
    }
}

/// PMRCAP's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pmrcap(pub u32);

impl Pmrcap {
    /// Returns RDS, bit 3: data of commands can be read from the region.
    pub fn read_data(self) -> bool {
        self.0 >> 3 & 1 != 0
    }

    /// Returns WDS, bit 4: data of commands can be written to the region.
    pub fn write_data(self) -> bool {
        self.0 >> 4 & 1 != 0
    }

    /// BIR, bits 7:5: the BAR.
    pub fn bar(self) -> u8 {
        (self.0 >> 5 & 7) as u8
    }

    /// PMRWBM, bits 13:10, of which bit 10: what was written lasts once a read of the memory is complete. (Bit 11 says the same of a read of PMRSTS.)
    pub fn flushed_by_reading_memory(self) -> bool {
        self.0 >> 10 & 1 != 0
    }

    /// PMRTO, bits 23:16, in units of PMRTU, bits 9:8 (0: 500 ms, 1: minutes): how long PMRSTS.NRDY may take to follow PMRCTL.EN; half a second at least.
    pub fn timeout(self) -> Duration {
        let unit = if self.0 >> 8 & 3 == 1 { Duration::from_secs(60) } else { Duration::from_millis(500) };
        unit * (self.0 >> 16 & 0xff).max(1)
    }
}

/// PMRSTS's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pmrsts(pub u32);

impl Pmrsts {
    /// Returns ERR, bits 7:0: 0 where the region works, else the controller's own code of an error.
    pub fn error(self) -> u8 {
        self.0 as u8
    }

    /// NRDY, bit 8, is 0: it can be read and written.
    pub fn is_ready(self) -> bool {
        self.0 >> 8 & 1 == 0
    }

    /// Returns HSTS, bits 11:9: the health of the region.
    pub fn health(self) -> u8 {
        (self.0 >> 9 & 7) as u8
    }
}

/// CSTS's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// RDY, bit 0: the controller takes commands.
    pub fn ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS, bit 1: it had a fatal error and can only be reset.
    pub fn fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// SHST, bits 3:2: shutdown processing is complete.
    pub fn shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }

    /// All ones: nobody answers.
    pub fn gone(self) -> bool {
        self.0 == GONE
    }
}

/// CC.EN, bit 0.
pub const CC_ENABLE: u32 = 1;
/// CC.SHN, bits 15:14, "normal shutdown notification".
pub const CC_SHUTDOWN: u32 = 1 << 14;
/// CC.SHN's bits.
pub const CC_SHUTDOWN_MASK: u32 = 3 << 14;

/// CC's value to enable with: pages of `page` bytes, round robin, entries of 64 (2^6) and 16 (2^4) bytes, or of 128 (2^7) in I/O submission queues; all supported
/// command sets (CSS 110b) or the NVM command set alone (000b).
pub fn cc_enable(page: u64, all_command_sets: bool, long_entries: bool) -> u32 {
    let css = if all_command_sets { 0b110 } else { 0 };
    let mps = page.trailing_zeros().saturating_sub(12);
    CC_ENABLE | css << 4 | mps << 7 | (6 + u32::from(long_entries)) << 16 | 4 << 20
}

/// Submission queue `qid`'s tail doorbell (PCIe Transport 1.0, 3.1.2.1).
pub fn sq_doorbell(qid: u16, stride: u64) -> u64 {
    DOORBELLS + 2 * u64::from(qid) * stride
}

/// Completion queue `qid`'s head doorbell (PCIe Transport 1.0, 3.1.2.2).
pub fn cq_doorbell(qid: u16, stride: u64) -> u64 {
    DOORBELLS + (2 * u64::from(qid) + 1) * stride
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_known_drive() {
        // QEMU's nvme: MQES 2047, CQR, TO 15 (7.5 s), DSTRD 0, CSS NVM, MPSMIN 4 KiB, MPSMAX 64 KiB.
        let cap = Cap(0x0040_0020_0f01_07ff);
        assert_eq!((cap.max_entries(), cap.timeout_ms(), cap.doorbell_stride()), (2048, 7500, 4));
        assert_eq!((cap.min_page(), cap.max_page(), cap.command_sets()), (4096, 65536, 1));
        assert!(!cap.has_ready_timeouts());
    }

    #[test]
    fn a_memory_buffer_has_units() {
        let size = Cmbsz(3 << 12 | 1 << 8 | 0b101);
        assert_eq!((size.unit(), size.bytes()), (65536, Some(3 << 16)));
        assert!(size.submission_queues() && !size.completion_queues() && size.lists());
        assert_eq!(Cmbsz(0b1_1111).bytes(), None);
        assert_eq!((Cmbloc(2 | 5 << 12).bar(), Cmbloc(2 | 5 << 12).offset()), (2, 5));
        assert!(Cmbsz(u32::MAX).bytes().is_some());
    }

    #[test]
    fn persistent_memory_has_units_of_time() {
        let capabilities = Pmrcap(2 << 16 | 0b1011 << 10 | 1 << 8 | 4 << 5 | 0b11 << 3);
        assert_eq!((capabilities.bar(), capabilities.timeout()), (4, Duration::from_secs(120)));
        assert!(capabilities.read_data() && capabilities.write_data() && capabilities.flushed_by_reading_memory());
        assert_eq!(Pmrcap(0).timeout(), Duration::from_millis(500));
        let status = Pmrsts(2 << 9 | 1 << 8 | 7);
        assert_eq!((status.error(), status.is_ready(), status.health()), (7, false, 2));
    }

    #[test]
    fn doorbells_follow_the_stride() {
        assert_eq!([sq_doorbell(0, 4), cq_doorbell(0, 4), sq_doorbell(3, 4)], [0x1000, 0x1004, 0x1018]);
        assert_eq!(cq_doorbell(1, 4 << 2), 0x1030);
    }

    #[test]
    fn configuration_carries_the_page_size() {
        assert_eq!(cc_enable(4096, false, false), 0x0046_0001);
        assert_eq!(cc_enable(65536, true, false), 0x0046_0001 | 4 << 7 | 6 << 4);
        assert_eq!(cc_enable(4096, false, true), 0x0047_0001);
    }
}
