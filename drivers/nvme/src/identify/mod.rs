//! What a controller and its [namespaces](Namespace) say of themselves (NVM Express Base 2.0, 5.17.2; NVM Command Set 1.0, 4.1.5).
//!
//! The bytes are a device's: any of them parse, and what makes no sense is said so.

mod namespace;

pub use namespace::{CopyLimits, Namespace};

use crate::bytes::{text, u8_at, u16_at, u32_at, u64_at, u128_at};

/// Bytes of an Identify data structure.
pub(crate) const LEN: usize = 4096;

/// CNS values (5.17.1, figure 273).
pub(crate) mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const DESCRIPTORS: u8 = 0x03;
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    pub const CONTROLLERS: u8 = 0x13;
    pub const PRIMARY_CAPABILITIES: u8 = 0x14;
    pub const SECONDARY_CONTROLLERS: u8 = 0x15;
}

/// I/O command sets (CSI, 5.17.1).
pub(crate) mod csi {
    pub const NVM: u8 = 0;
    pub const ZONED: u8 = 2;
}

/// Identify Controller (5.17.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Controller {
    /// VID: the vendor's PCI identifier.
    pub vendor: u16,
    /// SN.
    pub serial: String,
    /// MN.
    pub model: String,
    /// FR.
    pub firmware: String,
    /// CNTLID.
    pub id: u16,
    /// CNTRLTYPE: 1 for an I/O controller, 0 where it doesn't say.
    pub kind: u8,
    /// VER, or the VS register of older controllers: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// MDTS, in bytes: the most that one command may transfer; `None` for no limit.
    pub max_transfer: Option<u64>,
    /// CTRATT: its attributes.
    pub attributes: u32,
    /// ZASL, in bytes: the most that one Zone Append may write, which is no more than [`max_transfer`](Self::max_transfer) (ZNS 1.1, 4.1.5.2); `None` where
    /// it doesn't say.
    pub max_append: Option<u64>,
    /// OACS: optional admin commands.
    pub admin_commands: u16,
    /// OAES: optional asynchronous events.
    pub events: u32,
    /// ACL: how many Abort commands it takes at a time.
    pub abort_limit: u16,
    /// AERL: how many Asynchronous Event Requests it takes at a time.
    pub event_limit: u16,
    /// ELPE: entries of its error log.
    pub error_log_entries: u16,
    /// WCTEMP, in kelvins; 0 where it doesn't say.
    pub warning_temperature: u16,
    /// CCTEMP, in kelvins; 0 where it doesn't say.
    pub critical_temperature: u16,
    /// TNVMCAP, in bytes; 0 where it doesn't say.
    pub capacity: u128,
    /// NN: the highest namespace identifier there can be.
    pub namespaces: u32,
    /// ONCS: optional NVM commands.
    pub io_commands: u16,
    /// VWC bit 0: it has a volatile write cache, so that writes need a Flush to be durable.
    pub volatile_cache: bool,
    /// SGLS: how SGLs are supported.
    pub sgls: u32,
    /// LPA: which attributes of log pages it has.
    pub log_attributes: u8,
    /// FRMW: its firmware slots, as [`firmware_slots`](Self::firmware_slots) has them.
    pub firmware_updates: u8,
    /// FWUG, in bytes: what pieces of a firmware image have to be multiples of; `None` where the field is 0 (not reported) or FFh (no restriction).
    pub firmware_granularity: Option<u32>,
    /// SANICAP: which ways to sanitize it has.
    pub sanitize: u32,
    /// FNA: attributes of Format NVM.
    pub format: u8,
    /// UNVMCAP, in bytes: what is not allocated to namespaces; 0 where namespace management is not supported.
    pub unallocated: u128,
    /// AVSCC bit 0: its vendor specific admin commands have the common format (NDT in dword 10, NDM in dword 11).
    pub admin_vendor_format: bool,
    /// ICSVSCC bit 0: its vendor specific I/O commands have that format.
    pub io_vendor_format: bool,
    /// OCFS: which formats of Copy descriptors it takes, a bit each.
    pub copy_formats: u16,
    /// Bytes of a stripe, which commands had better not cross; `None` but for controllers that are known to have such ([`Quirk::Stripe`](crate::Quirk::Stripe)),
    /// which tell it in a vendor specific field (byte 3,075: 2 to that power, of smallest pages).
    pub stripe: Option<u64>,
    /// HMPRE, in bytes: how much of the host's memory it prefers to have (8.9); 0 for none.
    pub host_memory_preferred: u64,
    /// HMMIN, in bytes: below that it makes no use of any.
    pub host_memory_minimum: u64,
    /// HMMINDS, in bytes: the smallest piece of it that makes sense; 0 for no such limit.
    pub host_memory_piece: u64,
    /// HMMAXD: how many pieces of it make sense; 0 for no such limit.
    pub host_memory_pieces: u16,
    /// SUBNQN.
    pub subsystem: String,
    /// The most blocks of one Verify, Write Zeroes and range of Dataset Management, as size limits of the NVM command set
    /// (NVM Command Set 1.0, 4.1.5.4).
    pub limits: CommandLimits,
}

/// Size limits of commands that transfer no data. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommandLimits {
    /// VSL, in bytes.
    pub verify: u64,
    /// WZSL, in bytes.
    pub write_zeroes: u64,
    /// DMRSL, in blocks.
    pub deallocate: u32,
    /// DMRL: ranges of one Dataset Management.
    pub deallocate_ranges: u8,
    /// DMSL, in blocks: of all ranges of one Dataset Management together.
    pub deallocate_total: u64,
}

/// Which data structure [`Nvme::identify_data`](crate::Nvme::identify_data) reads: fields of Identify (5.17).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdentifyRequest {
    /// CNS: which.
    pub cns: u8,
    /// NSID.
    pub nsid: u32,
    /// CNTID: the controller, for those that are of one.
    pub cntid: u16,
    /// CSI: the I/O command set, for those that are of one.
    pub csi: u8,
}

/// 2 to the power of `exponent`, times the controller's smallest page; 0, which stands for "no limit", where `exponent` is 0 or senseless.
pub(crate) fn pages(exponent: u8, min_page: u64) -> u64 {
    match exponent {
        0 => 0,
        e => 1u64.checked_shl(e.into()).and_then(|n| n.checked_mul(min_page)).unwrap_or(0),
    }
}

impl Controller {
    /// Reads the structure. `min_page` is CAP.MPSMIN in bytes, `version` what the VS register says.
    pub fn parse(bytes: &[u8], min_page: u64, version: (u16, u8, u8)) -> Self {
        let ver = u32_at(bytes, 80);
        let limit = pages(u8_at(bytes, 77), min_page);
        Self {
            vendor: u16_at(bytes, 0),
            serial: text(bytes, 4, 20),
            model: text(bytes, 24, 40),
            firmware: text(bytes, 64, 8),
            id: u16_at(bytes, 78),
            kind: u8_at(bytes, 111),
            version: if ver == 0 { version } else { ((ver >> 16) as u16, (ver >> 8) as u8, ver as u8) },
            max_transfer: (limit > 0).then_some(limit),
            attributes: u32_at(bytes, 96),
            max_append: None,
            events: u32_at(bytes, 92),
            admin_commands: u16_at(bytes, 256),
            // The next three are 0's based.
            abort_limit: u16::from(u8_at(bytes, 258)) + 1,
            event_limit: u16::from(u8_at(bytes, 259)) + 1,
            error_log_entries: u16::from(u8_at(bytes, 262)) + 1,
            warning_temperature: u16_at(bytes, 266),
            critical_temperature: u16_at(bytes, 268),
            capacity: u128_at(bytes, 280),
            namespaces: u32_at(bytes, 516),
            io_commands: u16_at(bytes, 520),
            volatile_cache: u8_at(bytes, 525) & 1 != 0,
            sgls: u32_at(bytes, 536),
            log_attributes: u8_at(bytes, 261),
            firmware_updates: u8_at(bytes, 260),
            firmware_granularity: match u8_at(bytes, 319) {
                0 | 0xff => None,
                n => Some(u32::from(n) * 4096),
            },
            sanitize: u32_at(bytes, 328),
            format: u8_at(bytes, 524),
            unallocated: u128_at(bytes, 296),
            admin_vendor_format: u8_at(bytes, 264) & 1 != 0,
            io_vendor_format: u8_at(bytes, 530) & 1 != 0,
            copy_formats: u16_at(bytes, 534),
            stripe: Some(pages(u8_at(bytes, 3075), min_page)).filter(|bytes| *bytes > 0),
            // In units of 4 KiB, whatever the controller's pages are.
            host_memory_preferred: u64::from(u32_at(bytes, 272)) << 12,
            host_memory_minimum: u64::from(u32_at(bytes, 276)) << 12,
            host_memory_piece: u64::from(u32_at(bytes, 332)) << 12,
            host_memory_pieces: u16_at(bytes, 336),
            subsystem: text(bytes, 768, 256),
            limits: CommandLimits::default(),
        }
    }

    /// Returns whether LBA formats say more of themselves than Identify Namespace has room for (CTRATT bit 15, ELBAS): guards of more than 16 bits.
    pub fn has_extended_formats(&self) -> bool {
        self.attributes & 1 << 15 != 0
    }

    /// Returns whether the controller has reservations (ONCS bit 5).
    pub fn has_reservations(&self) -> bool {
        self.io_commands & 1 << 5 != 0
    }

    /// Returns whether hosts can have identifiers of 128 bits (CTRATT bit 0), and not of 64 alone.
    pub fn has_long_host_ids(&self) -> bool {
        self.attributes & 1 != 0
    }

    /// Returns whether the controller has flexible data placement (CTRATT bit 19).
    pub fn has_fdp(&self) -> bool {
        self.attributes & 1 << 19 != 0
    }

    /// Returns whether the controller has Directive Send and Receive (OACS bit 5).
    pub fn has_directives(&self) -> bool {
        self.admin_commands & 1 << 5 != 0
    }

    /// Returns whether the controller has Compare (ONCS bit 0).
    pub fn has_compare(&self) -> bool {
        self.io_commands & 1 != 0
    }

    /// Returns whether the controller has Write Uncorrectable (ONCS bit 1).
    pub fn has_write_uncorrectable(&self) -> bool {
        self.io_commands & 1 << 1 != 0
    }

    /// Returns whether the controller has Copy, with descriptors of format 0 (ONCS bit 8, OCFS bit 0).
    pub fn has_copy(&self) -> bool {
        self.io_commands & 1 << 8 != 0 && self.copy_formats & 1 != 0
    }

    /// Returns whether the controller has Security Send and Receive (OACS bit 0).
    pub fn has_security(&self) -> bool {
        self.admin_commands & 1 != 0
    }

    /// Returns whether the controller has Format NVM (OACS bit 1).
    pub fn has_format(&self) -> bool {
        self.admin_commands & 1 << 1 != 0
    }

    /// Returns whether the controller has Firmware Commit and Firmware Image Download (OACS bit 2).
    pub fn has_firmware_update(&self) -> bool {
        self.admin_commands & 1 << 2 != 0
    }

    /// Returns whether the controller has Namespace Management and Attachment (OACS bit 3).
    pub fn has_namespace_management(&self) -> bool {
        self.admin_commands & 1 << 3 != 0
    }

    /// Returns whether the controller has Device Self-test (OACS bit 4).
    pub fn has_self_test(&self) -> bool {
        self.admin_commands & 1 << 4 != 0
    }

    /// Returns the number of firmware slots, and whether the first can only be read (FRMW bits 3:1 and 0).
    pub fn firmware_slots(&self) -> (u8, bool) {
        (self.firmware_updates >> 1 & 7, self.firmware_updates & 1 != 0)
    }

    /// Returns whether Get Log Page takes an offset and lengths above 64 KiB (LPA bit 2).
    pub fn has_log_offsets(&self) -> bool {
        self.log_attributes & 1 << 2 != 0
    }

    /// Returns whether the controller has Dataset Management (ONCS bit 2).
    pub fn has_dataset_management(&self) -> bool {
        self.io_commands & 1 << 2 != 0
    }

    /// Returns whether the controller has Write Zeroes (ONCS bit 3).
    pub fn has_write_zeroes(&self) -> bool {
        self.io_commands & 1 << 3 != 0
    }

    /// Returns whether the controller has Verify (ONCS bit 7).
    pub fn has_verify(&self) -> bool {
        self.io_commands & 1 << 7 != 0
    }

    /// Returns whether the controller has Virtualization Management (OACS bit 7): it is a primary one.
    pub fn has_virtualization(&self) -> bool {
        self.admin_commands & 1 << 7 != 0
    }

    /// Returns whether the controller has Doorbell Buffer Config (OACS bit 8).
    pub fn has_shadow_doorbells(&self) -> bool {
        self.admin_commands & 1 << 8 != 0
    }

    /// SGLS bits 1:0: what address and length of an SGL's data block have to be multiples of, in bytes; `None` without SGLs.
    pub fn sgl_alignment(&self) -> Option<u64> {
        match self.sgls & 3 {
            1 => Some(1),
            2 => Some(4),
            _ => None,
        }
    }
}

impl CommandLimits {
    /// Reads the I/O command set specific Identify Controller structure of the NVM command set.
    pub fn parse(bytes: &[u8], min_page: u64) -> Self {
        Self {
            verify: pages(u8_at(bytes, 0), min_page),
            write_zeroes: pages(u8_at(bytes, 1), min_page),
            deallocate: u32_at(bytes, 4),
            deallocate_ranges: u8_at(bytes, 3),
            deallocate_total: u64_at(bytes, 8),
        }
    }
}

/// The identifiers in a controller list (4.4.1): their number, and then that many.
pub(crate) fn controller_list(bytes: &[u8]) -> Vec<u16> {
    let count = usize::from(u16_at(bytes, 0)).min(LEN / 2 - 1);
    (0..count).map(|i| u16_at(bytes, 2 + 2 * i)).collect()
}

/// The identifiers in a namespace list (CNS 02h): ascending, and above `after`; the list ends at the first that isn't.
pub(crate) fn namespace_list(bytes: &[u8], after: u32) -> Vec<u32> {
    let ids = (0..LEN / 4).map(|i| u32_at(bytes, 4 * i));
    let mut last = after;
    ids.take_while(|id| *id > std::mem::replace(&mut last, *id)).take_while(|id| *id < u32::MAX - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_read() {
        let mut bytes = vec![0; LEN];
        bytes[4..24].copy_from_slice(b"S1\0                 ");
        bytes[24..64].copy_from_slice(b"A model                                 ");
        bytes[64..72].copy_from_slice(b"1.0\xff    ");
        bytes[77] = 5;
        bytes[520] = 0b1000_1101;
        bytes[257] = 1;
        bytes[536] = 2;
        let c = Controller::parse(&bytes, 4096, (1, 3, 0));
        assert_eq!((&c.serial[..], &c.model[..], &c.firmware[..]), ("S1", "A model", "1.0?"));
        assert_eq!((c.max_transfer, c.version, c.event_limit), (Some(128 << 10), (1, 3, 0), 1));
        assert!(c.has_compare() && c.has_dataset_management() && c.has_write_zeroes() && c.has_verify());
        assert!(c.has_shadow_doorbells());
        assert_eq!(c.sgl_alignment(), Some(4));
        for (mdts, want) in [(0, None), (1, Some(8192)), (51, Some(1 << 63)), (52, None), (255, None)] {
            bytes[77] = mdts;
            assert_eq!(Controller::parse(&bytes, 4096, (1, 3, 0)).max_transfer, want);
        }
    }

    #[test]
    fn lists_end_where_they_stop_ascending() {
        let list = |ids: &[u32]| {
            let mut bytes = vec![0; LEN];
            ids.iter().enumerate().for_each(|(i, id)| bytes[4 * i..][..4].copy_from_slice(&id.to_le_bytes()));
            namespace_list(&bytes, 0)
        };
        assert_eq!(list(&[1, 2, 9]), [1, 2, 9]);
        assert!(list(&[]).is_empty());
        assert_eq!(list(&[3, 3, 4]), [3]);
        assert_eq!(list(&[1, u32::MAX]), [1]);
    }

    #[test]
    fn any_bytes_parse() {
        let mut seed = 1u64;
        for len in [0, 1, 77, 200, LEN] {
            for _ in 0..50 {
                let mut next = || {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 56) as u8
                };
                let bytes: Vec<_> = (0..len).map(|_| next()).collect();
                Controller::parse(&bytes, 1 << 27, (0, 0, 0));
                CommandLimits::parse(&bytes, 1 << 27);
                namespace_list(&bytes, 0);
                let mut n = Namespace::parse(1, &bytes, &bytes);
                n.parse_more(&bytes);
                assert!(n.unsupported.is_some() || n.size() > 0);
            }
        }
    }
}
