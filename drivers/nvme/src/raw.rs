//! Commands that programs make themselves, and what of them is not sent.
//!
//! The driver has the data pointer: a program says how much data there is, and whose it is. What makes the controller keep an address, or has one in
//! its dwords, is refused by name; so is a command whose opcode says another direction than the program does.

use crate::command::{admin, admin_name, io, io_name};
use crate::error::{Error, Result};
use crate::identify::{Controller, Namespace};
use crate::status::StatusCode;

/// A command as its dwords (NVM Express Base 2.0, 3.3.3.1). Linux: `struct nvme_passthru_cmd`.
///
/// The command identifier and both data pointers are the driver's; fused commands are none of these.
///
/// ```
/// use wholebar_nvme::RawCommand;
///
/// // Identify (5.17): the controller (CNS 01h).
/// let identify = RawCommand { opcode: 0x06, cdw10: 1, ..RawCommand::default() };
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawCommand {
    /// The opcode. Its bits 1:0 say which way data goes: 01b to the controller, 10b from it, 00b none.
    pub opcode: u8,
    /// NSID: the namespace, 0 for none, ffffffffh for all.
    pub nsid: u32,
    /// Dword 2.
    pub cdw2: u32,
    /// Dword 3.
    pub cdw3: u32,
    /// Dword 10.
    pub cdw10: u32,
    /// Dword 11.
    pub cdw11: u32,
    /// Dword 12.
    pub cdw12: u32,
    /// Dword 13.
    pub cdw13: u32,
    /// Dword 14.
    pub cdw14: u32,
    /// Dword 15.
    pub cdw15: u32,
}

/// The data of a [`RawCommand`]. It is copied: the controller never sees the program's memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Transfer<'a> {
    /// No data.
    #[default]
    None,
    /// From the controller.
    Read(&'a mut [u8]),
    /// To the controller.
    Write(&'a [u8]),
}

/// What became of a [`RawCommand`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawCompletion {
    /// The status.
    pub status: StatusCode,
    /// Dword 0 of the completion: the command's own result.
    pub result: u32,
}

impl Transfer<'_> {
    /// Bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Read(bytes) => bytes.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Host Memory Buffer (5.27.1.10): a feature that gives the controller memory to keep.
const HOST_MEMORY_BUFFER: u8 = 0x0d;

impl RawCommand {
    /// The entry, without data pointers and identifier.
    pub(crate) fn entry(&self) -> [u64; 8] {
        let two = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [
            two(self.opcode.into(), self.nsid),
            two(self.cdw2, self.cdw3),
            0,
            0,
            0,
            two(self.cdw10, self.cdw11),
            two(self.cdw12, self.cdw13),
            two(self.cdw14, self.cdw15),
        ]
    }

    /// Whether data may go along.
    pub(crate) fn has_data(&self) -> bool {
        self.opcode & 3 != 0
    }

    /// Whether namespaces may be others when it is done.
    pub(crate) fn changes_namespaces(&self) -> bool {
        [admin::FORMAT, admin::NAMESPACE_MANAGEMENT, admin::NAMESPACE_ATTACHMENT, admin::CAPACITY_MANAGEMENT]
            .contains(&self.opcode)
    }

    /// The namespace that it attaches (5.22: SEL 0).
    pub(crate) fn attaches(&self) -> Option<u32> {
        (self.opcode == admin::NAMESPACE_ATTACHMENT && self.cdw10 & 0xf == 0).then_some(self.nsid)
    }

    /// Whether it can be an admin command, with this data.
    pub(crate) fn check_admin(
        &self,
        device: &str,
        controller: &Controller,
        data: &Transfer<'_>,
        max: u32,
    ) -> Result<()> {
        let why = match self.opcode {
            admin::DELETE_SQ | admin::CREATE_SQ | admin::DELETE_CQ | admin::CREATE_CQ => {
                "queues are the driver's: see `Nvme::queue`"
            }
            admin::ASYNC_EVENT_REQUEST => "the driver has those requests out: see `Nvme::events`",
            admin::DOORBELL_BUFFER_CONFIG => "the controller would keep two addresses of memory",
            admin::CONTROLLER_DATA_QUEUE => "the controller would keep an address of memory",
            admin::FABRICS => "it is none of a PCIe controller",
            admin::SET_FEATURES if self.cdw10 as u8 == HOST_MEMORY_BUFFER => {
                "Host Memory Buffer has addresses of memory in its dwords, which the controller would keep"
            }
            // Vendor specific commands of the common format (3.3.3.1): dword 11 is a length of metadata, whose pointer is not given.
            0xc0.. if controller.admin_vendor_format && self.cdw11 != 0 => {
                "dword 11 is a length of metadata (NDM), and metadata cannot be given"
            }
            _ => return self.check_data(device, admin_name(self.opcode), data, max),
        };
        Err(Error::NotSent { device: device.to_owned(), command: self.name(admin_name(self.opcode)), why })
    }

    /// Whether it can be an I/O command, with this data.
    pub(crate) fn check_io(
        &self,
        device: &str,
        controller: &Controller,
        namespaces: &[Namespace],
        data: &Transfer<'_>,
        max: u32,
    ) -> Result<()> {
        let name = io_name(self.opcode);
        let of = |ns: &&Namespace| ns.nsid == self.nsid || [0, u32::MAX].contains(&self.nsid);
        let apart = |ns: &Namespace| ns.metadata_size > 0 && !ns.metadata_extended;
        let why = match self.opcode {
            admin::FABRICS => "it is none of a PCIe controller",
            0x80.. if controller.io_vendor_format && self.cdw11 != 0 => {
                "dword 11 is a length of metadata (NDM), and metadata cannot be given"
            }
            _ if self.has_data()
                && !io::WITHOUT_BLOCKS.contains(&self.opcode)
                && namespaces.iter().filter(of).any(apart) =>
            {
                "the namespace has its metadata in a buffer of its own, which cannot be given"
            }
            _ => return self.check_data(device, name, data, max),
        };
        Err(Error::NotSent { device: device.to_owned(), command: self.name(name), why })
    }

    fn check_data(&self, device: &str, name: &'static str, data: &Transfer<'_>, max: u32) -> Result<()> {
        let why = match (self.opcode & 3, data) {
            (3, _) => "data would go both ways (opcode bits 1:0 are 11b), which this driver cannot do",
            (0, data) if !data.is_empty() => "it has no data (opcode bits 1:0 are 00b)",
            (1, Transfer::Read(_)) => "its data goes to the controller (opcode bits 1:0 are 01b)",
            (2, Transfer::Write(_)) => "its data comes from the controller (opcode bits 1:0 are 10b)",
            _ if data.len() as u64 > u64::from(max) => {
                return Err(Error::TooMuchData {
                    device: device.to_owned(),
                    command: self.name(name),
                    len: data.len(),
                    max,
                });
            }
            _ => return Ok(()),
        };
        Err(Error::NotSent { device: device.to_owned(), command: self.name(name), why })
    }

    /// A name for people.
    fn name(&self, name: &'static str) -> String {
        format!("{name} (opcode {:02x}h)", self.opcode)
    }
}
