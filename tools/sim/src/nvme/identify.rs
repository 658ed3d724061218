//! Identify data structures (base 5.17; the NVM command set's in nvm 4.1.5).

use super::bits::Status;
use super::command::Command;
use super::io::{self, Namespace, Store};
use super::manage::{Manage, SLOTS, lba_formats};
use super::params::NvmeParams;
use super::placement;
use super::quirk::Quirk;

/// Every Identify data structure has this many bytes.
pub(super) type Page = Box<[u8; 4096]>;

/// How many error log entries are kept; how many aborts and asynchronous events can be outstanding.
pub(super) const ERROR_LOG: usize = 64;
pub(super) const ABORT_LIMIT: u8 = 4;
pub(super) const EVENT_LIMIT: usize = 4;

/// Absolute zero is 0; the log pages count in kelvins.
pub(super) const KELVIN: u16 = 273;
/// Where the composite temperature is a warning, and where it is critical, in degrees Celsius.
pub(super) const WARNING_TEMPERATURE: u16 = 70;
pub(super) const CRITICAL_TEMPERATURE: u16 = 85;

/// This version as eight characters: what firmware revisions are.
pub(super) fn firmware() -> [u8; 8] {
    padded(env!("CARGO_PKG_VERSION"))
}

/// Answers an Identify command.
pub(super) fn identify(params: &NvmeParams, manage: &Manage, store: &Store, cmd: &Command) -> Result<Page, Status> {
    let namespaces = &store.namespaces[..];
    let id = store.member.as_ref().map_or(0, |member| member.controller);
    let managed = params.spare > 0;
    let find = |nsid: u32| namespaces.get((nsid as usize).wrapping_sub(1)).ok_or(Status::INVALID_NAMESPACE);
    let cns = cmd.cdw10() & 0xff;
    match if params.quirk.is_some_and(Quirk::has_old_identify) { cns.min(1) } else { cns } {
        // Of one that is not active: zeros (base 5.17.2.1).
        0x00 => find(cmd.nsid()).map(|ns| if ns.attached { namespace(params, ns) } else { blank() }),
        0x01 => Ok(controller(params, manage, namespaces, id)),
        0x02 if !params.namespace_list => Err(Status::INVALID_FIELD),
        0x02 if cmd.nsid() >= 0xffff_fffe => Err(Status::INVALID_NAMESPACE),
        0x02 => Ok(list(namespaces, cmd.nsid(), |ns| ns.attached)),
        0x03 if !find(cmd.nsid())?.attached => Err(Status::INVALID_FIELD),
        0x03 => Ok(descriptors(params, cmd.nsid())),
        // Of the NVM command set: LBSTM, PIC, and extended LBA formats (nvm 4.1.5.3: STS in bits 6:0, PIF in bits 8:7).
        0x05 if params.metadata.is_extended() && cmd.cdw11() >> 24 == 0 => find(cmd.nsid()).map(|_| {
            let mut page = blank();
            // All bits of a storage tag are compared; those of 16-bit guards may have one.
            page[..8].copy_from_slice(&((1u128 << params.metadata.storage) as u64).wrapping_sub(1).to_le_bytes());
            page[8] = 1;
            let formats = lba_formats(params.metadata.size);
            for (i, _) in formats.iter().enumerate().filter(|(_, (_, metadata))| *metadata > 0) {
                let format = u32::from(params.metadata.format) << 7 | u32::from(params.metadata.storage);
                page[12 + 4 * i..][..4].copy_from_slice(&format.to_le_bytes());
            }
            page
        }),
        // Of zoned namespaces, by CSI.
        0x05 if params.zoned && cmd.cdw11() >> 24 == 2 => find(cmd.nsid()).map(zoned),
        0x06 if params.zoned && cmd.cdw11() >> 24 == 2 => {
            let mut page = blank();
            // ZASL.
            page[0] = params.zasl;
            Ok(page)
        }
        // I/O command sets that go together (base 5.17.2.19): NVM and zoned namespaces.
        0x1c if params.zoned => {
            let mut page = blank();
            page[0] = 0b101;
            Ok(page)
        }
        // The NVM command set's controller data: limits of Verify, Write Zeroes and Dataset Management, all 0: none.
        0x06 if cmd.cdw11() >> 24 == 0 => Ok(blank()),
        // Those that are there, attached or not (base 5.17.2.8, 5.17.2.9), and the controllers (5.17.2.10, 5.17.2.11): this one, whose identifier is 0.
        0x10 if managed && cmd.nsid() < 0xffff_fffe => Ok(list(namespaces, cmd.nsid(), |ns| ns.allocated)),
        0x11 if managed => find(cmd.nsid()).map(|ns| if ns.allocated { namespace(params, ns) } else { blank() }),
        0x12 if managed => Ok(controllers(cmd, find(cmd.nsid())?.attached)),
        0x13 if managed => Ok(controllers(cmd, true)),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// A controller list (base 4.4.1) of this one, where it is among them, and not before the one that is asked for.
fn controllers(cmd: &Command, among: bool) -> Page {
    let mut page = blank();
    page[0] = u8::from(among && cmd.cdw10() >> 16 == 0);
    page
}

/// CNS 01h (base 5.17.2.1).
fn controller(params: &NvmeParams, manage: &Manage, namespaces: &[Namespace], id: u16) -> Page {
    let managed = params.spare > 0;
    let mut page = blank();
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let vendor = params.quirk.map_or(crate::config::VENDOR, |quirk| quirk.ids().0);
    put(0, &vendor.to_le_bytes());
    put(2, &vendor.to_le_bytes());
    // Of its vendor: stripes of 2^5 smallest pages.
    put(3075, &[if params.quirk == Some(Quirk::Stripe) { 5 } else { 0 }]);
    put(4, &padded::<20>(&params.serial));
    put(24, &padded::<40>("wholebar NVMe model"));
    put(64, &manage.firmware());
    // CMIC: there may be further controllers.
    put(76, &[u8::from(params.subsystem.is_some()) << 1]);
    put(77, &[params.mdts]);
    put(78, &id.to_le_bytes());
    put(80, &super::VERSION.to_le_bytes());
    // OAES: Namespace Attribute Notices.
    put(92, &(1u32 << 8).to_le_bytes());
    // CTRATT: host identifiers of 128 bits, endurance groups, extended LBA formats, flexible data placement. ENDGIDMAX.
    let groups = if params.fdp { 1 << 4 | 1 << 19 } else { 0 };
    let formats = u32::from(params.metadata.is_extended()) << 15;
    put(96, &(u32::from(params.subsystem.is_some()) | groups | formats).to_le_bytes());
    if params.fdp {
        put(340, &placement::GROUP.to_le_bytes());
    }
    // CNTRLTYPE: an I/O controller.
    put(111, &[1]);
    // OACS: Security Send and Receive, Format NVM, firmware, Namespace Management, Device Self-test, Directives, Doorbell Buffer
    // Config.
    let directives = u16::from(params.has_directives());
    put(256, &(0b1_0111 | u16::from(managed) << 3 | directives << 5 | u16::from(params.shadow) << 8).to_le_bytes());
    put(258, &[ABORT_LIMIT - 1, EVENT_LIMIT as u8 - 1]);
    // FRMW: the first slot can only be read; activation without a reset.
    put(260, &[1 << 4 | (SLOTS as u8) << 1 | 1]);
    // LPA: commands supported and effects; log page offsets; the log pages that 2.0 brought.
    put(261, &[0b10_0110]);
    put(262, &[ERROR_LOG as u8 - 1]);
    put(266, &(WARNING_TEMPERATURE + KELVIN).to_le_bytes());
    put(268, &(CRITICAL_TEMPERATURE + KELVIN).to_le_bytes());
    if managed {
        // TNVMCAP and UNVMCAP.
        let used: u128 = namespaces.iter().map(|ns| u128::from(ns.bytes)).sum();
        put(280, &(used + u128::from(manage.unallocated)).to_le_bytes());
        put(296, &u128::from(manage.unallocated).to_le_bytes());
    }
    // HMPRE and HMMIN, in units of 4 KiB.
    put(272, &((params.hmb >> 12) as u32).to_le_bytes());
    put(276, &(if params.hmb > 0 { params.hmb_min >> 12 } else { 0 } as u32).to_le_bytes());
    // EDSTT: an extended self-test takes a minute at most. DSTO: one at a time. FWUG: 4 KiB.
    put(316, &[1, 0, 1, 1]);
    // SANICAP: crypto erase, block erase, overwrite.
    put(328, &0b111u32.to_le_bytes());
    // Queue entries of 64 and 16 bytes, no others; or of 128.
    put(512, &[if params.quirk == Some(Quirk::LongEntries) { 0x76 } else { 0x66 }, 0x44]);
    put(516, &(namespaces.len() as u32).to_le_bytes());
    // ONCS: Compare, Write Uncorrectable, Dataset Management, Write Zeroes, reservations, Verify, Copy.
    put(520, &(0b1_1000_1111 | u16::from(params.subsystem.is_some()) << 5).to_le_bytes());
    // VWC: there is one, and Flush takes the broadcast namespace id.
    put(525, &[0b111]);
    // OCFS: Copy descriptors of format 0.
    put(534, &[1]);
    // SGLS: any length and alignment.
    put(536, &u32::from(params.sgl).to_le_bytes());
    let name = match params.quirk {
        Some(Quirk::SubsystemName) => "nqn.2017-12.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555".to_owned(),
        _ => format!("nqn.2014-08.org.nvmexpress:uuid:{}", hyphenated(uuid(params, 0))),
    };
    put(768, name.as_bytes());
    // Power state 0: 0.01 W units; what a model takes is not known, and 0 says so.
    page
}

/// CNS 00h (nvm 4.1.5.1).
fn namespace(params: &NvmeParams, ns: &Namespace) -> Page {
    let mut page = blank();
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // NSZE, NCAP, NUSE: not thinly provisioned.
    for at in [0, 8, 16] {
        put(at, &ns.blocks.to_le_bytes());
    }
    // NLBAF, less one; FLBAS; MC: both ways; DPC: all types, first and last; DPS.
    let formats = lba_formats(params.metadata.size);
    let format = formats.iter().position(|f| *f == (ns.shift, ns.format.size)).unwrap_or(0);
    put(25, &[formats.len() as u8 - 1, format as u8 | u8::from(ns.format.extended) << 4]);
    if params.metadata.size > 0 {
        put(27, &[0b11, 0b1_1111, ns.format.protection | u8::from(ns.format.first) << 3]);
    }
    if params.subsystem.is_some() {
        // NMIC: shared. RESCAP: all types, persisting through power loss, IEKEY as of 1.3.
        put(30, &[1, 0xff]);
    }
    // DLFEAT: what deallocated blocks read as.
    put(33, &[u8::from(ns.media.zeroes_deallocated())]);
    put(46, &params.noiob.to_le_bytes());
    put(48, &ns.bytes.to_le_bytes());
    // MSSRL, MCL, MSRC.
    put(74, &io::COPY_RANGE_BLOCKS.to_le_bytes());
    put(76, &io::COPY_BLOCKS.to_le_bytes());
    put(80, &[io::COPY_RANGES - 1]);
    // NSATTR: write protected.
    put(99, &[u8::from(ns.read_only)]);
    if params.fdp {
        put(102, &placement::GROUP.to_le_bytes());
    }
    for (i, (shift, metadata)) in formats.into_iter().enumerate() {
        put(128 + 4 * i, &(shift << 16 | u32::from(metadata)).to_le_bytes());
    }
    page
}

/// CNS 05h of zoned namespaces (zns 4.1.5.1).
fn zoned(ns: &Namespace) -> Page {
    let mut page = blank();
    let Some(zones) = &ns.zones else { return page };
    // MAR and MOR are 0's based; all ones is no limit.
    page[4..8].copy_from_slice(&zones.max_active.wrapping_sub(1).to_le_bytes());
    page[8..12].copy_from_slice(&zones.max_open.wrapping_sub(1).to_le_bytes());
    // Of each LBA format: ZSZE. Zones have the same bytes in both.
    for (i, shift) in [9, 12].into_iter().enumerate() {
        let size = zones.size << ns.shift >> shift;
        page[2816 + 16 * i..][..8].copy_from_slice(&u64::to_le_bytes(size));
    }
    page
}

/// CNS 02h and 10h: the ids above `after`.
fn list(namespaces: &[Namespace], after: u32, which: impl Fn(&Namespace) -> bool) -> Page {
    let mut page = blank();
    let (slots, _) = page.as_chunks_mut::<4>();
    let those = (1u32..).zip(namespaces).skip(after as usize).filter(|(_, ns)| which(ns));
    for (slot, (nsid, _)) in slots.iter_mut().zip(those) {
        *slot = nsid.to_le_bytes();
    }
    page
}

/// CNS 03h (base 5.17.2.3): a UUID, and the command set. No EUI-64 and no NGUID: those belong to who owns an OUI.
fn descriptors(params: &NvmeParams, nsid: u32) -> Page {
    let mut page = blank();
    page[..2].copy_from_slice(&[3, 16]);
    let same = params.quirk == Some(Quirk::Identifiers);
    page[4..20].copy_from_slice(&uuid(params, if same { 1 } else { nsid }));
    page[20..22].copy_from_slice(&[4, 1]);
    page[24] = if params.zoned { 2 } else { 0 };
    page
}

/// A UUID of the model's own making (RFC 9562, version 8), from its serial number and a namespace id.
fn uuid(params: &NvmeParams, nsid: u32) -> [u8; 16] {
    // FNV-1a, 128 bits.
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128;
    for byte in params.serial.bytes().chain(nsid.to_le_bytes()) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    let mut bytes = hash.to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

fn hyphenated(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// Text, padded with spaces.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [b' '; N];
    bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

fn blank() -> Page {
    Box::new([0; 4096])
}
