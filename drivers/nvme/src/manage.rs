//! What is asked of a controller by admin commands besides what it takes to do I/O: commands that programs make themselves, log pages, features, formats,
//! sanitizing, self-tests, firmware, security protocols. Namespaces are made and deleted in `namespace_management.rs`.
//!
//! Each of these takes the lock of the control plane while the controller is at it: aborts, events and resets wait as long.

use crate::command::{admin, admin_name};
use crate::control::Control;
use crate::device::Inner;
use crate::error::{Error, Result};
use crate::feature::Select;
use crate::identify::{self, IdentifyRequest};
use crate::log::{self, CommandEffects, LogRequest, SanitizeStatus, SelfTestLog, lid};
use crate::nvme::Nvme;
use crate::raw::{RawCommand, RawCompletion, Transfer};
use crate::status::StatusCode;
use std::time::Duration;

/// What Format NVM is to make of a namespace (5.14).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Format {
    /// LBAF: the number of the LBA format, 0 to 63.
    pub lba_format: u8,
    /// MSET: metadata follows its block.
    pub metadata_extended: bool,
    /// PI: the type of protection information, 0 for none, 1 to 3.
    pub protection: u8,
    /// PIL: protection information is first in the metadata, not last.
    pub protection_first: bool,
    /// SES: 0 erases nothing by intent, 1 erases user data, 2 does so by deleting its key.
    pub secure_erase: u8,
}

/// What Sanitize does (5.24, SANACT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SanitizeAction {
    /// Leaves the state in which a failed sanitize has left the controller.
    ExitFailure,
    /// Erases blocks.
    BlockErase,
    /// Overwrites them.
    Overwrite {
        /// How often, 1 to 16.
        passes: u8,
        /// With what.
        pattern: u32,
        /// The pattern is inverted from pass to pass.
        invert: bool,
    },
    /// Deletes the key of the data.
    CryptoErase,
}

/// A sanitize operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sanitize {
    /// What it does.
    pub action: SanitizeAction,
    /// AUSE: a failure can be left without completing another sanitize.
    pub allow_unrestricted_exit: bool,
    /// NDAS: blocks are not deallocated afterwards.
    pub no_deallocate: bool,
}

/// Which self-test is begun, or ended (5.9, STC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelfTest {
    /// The short one, of two minutes at most.
    Short,
    /// The extended one.
    Extended,
    /// The vendor's.
    Vendor,
    /// Ends the one that runs.
    Abort,
}

/// What Firmware Commit does with an image and a slot (5.11, CA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitAction {
    /// The image goes to the slot.
    Store,
    /// The image goes to the slot, and runs from the next reset on.
    StoreAndActivate,
    /// The slot's image runs from the next reset on.
    Activate,
    /// The image goes to the slot, where there is one, and the slot's runs now.
    ActivateNow,
}

/// What a Security Send or Receive is of (5.25, 5.26).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SecurityProtocol {
    /// SECP: the protocol; 0 is the one that tells which there are.
    pub protocol: u8,
    /// SPSP: what is the protocol's own.
    pub specific: u16,
    /// NSSF: of protocol eah.
    pub nvme_specific: u8,
    /// NSID, for protocols that want one.
    pub nsid: u32,
}

/// A number of an LBA format, as bits 3:0 and 5:4 of it.
pub(crate) fn split_format(format: u8) -> (u32, u32) {
    (u32::from(format & 0xf), u32::from(format >> 4 & 3))
}

impl Inner {
    fn admin_command(
        &self,
        control: &mut Control,
        command: &RawCommand,
        data: &mut Transfer<'_>,
        timeout: Option<Duration>,
    ) -> Result<RawCompletion> {
        // What queues know of a namespace's blocks decides how much of their memory the controller writes.
        match control.queues.len() {
            0 => self.namespaces.forget_lost(),
            queues => {
                let other_blocks = match command.attaches() {
                    Some(nsid) => self.namespaces.has_other_blocks(&self.hw, &mut control.admin, nsid)?,
                    None => command.opcode == admin::FORMAT,
                };
                if other_blocks {
                    let command = admin_name(command.opcode);
                    return Err(Error::QueuesExist { device: self.hw.name(), command, queues });
                }
            }
        }
        let (result, status) = control.admin.transfer(&self.hw, command.entry(), data, timeout)?;
        if command.changes_namespaces() {
            let all = crate::namespaces::Changed::All;
            self.namespaces.read_again(&self.hw, &mut control.admin, &self.controller, &all)?;
        }
        Ok(RawCompletion { status, result })
    }
}

impl Nvme {
    /// Executes an admin command of the program's making, and waits for it: `timeout`, or [`Options::admin_timeout`](crate::Options::admin_timeout). A
    /// status that is none of success is returned, and is no error. (nvme-cli: `admin-passthru`; SPDK: `spdk_nvme_ctrlr_cmd_admin_raw`.)
    ///
    /// Whatever is in its dwords, the controller reads and writes memory of the driver's alone. Commands that change namespaces have them read again.
    ///
    /// ```no_run
    /// # fn nvme() -> wholebar_nvme::Nvme { unimplemented!() }
    /// use wholebar_nvme::{RawCommand, Transfer};
    ///
    /// # fn main() -> wholebar_nvme::Result<()> {
    /// let mut controller = [0; 4096];
    /// let identify = RawCommand { opcode: 0x06, cdw10: 1, ..RawCommand::default() };
    /// let done = nvme().admin_command(&identify, Transfer::Read(&mut controller), None)?;
    /// println!("{}: {:?}", done.status, &controller[4..24]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotSent`] for commands that create or delete queues, make the controller keep an address, or contradict their data;
    /// [`Error::TooMuchData`] above [`max_transfer`](Self::max_transfer); [`Error::QueuesExist`] where it gives a namespace other blocks while there are
    /// queues; [`Error::Unanswered`] where the controller does not answer in time; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn admin_command(
        &self,
        command: &RawCommand,
        mut data: Transfer<'_>,
        timeout: Option<Duration>,
    ) -> Result<RawCompletion> {
        let driver = self.0.driver();
        command.check_admin(&driver.hw.name(), &driver.controller, &data, driver.max_transfer())?;
        self.0.with(|control| driver.admin_command(control, command, &mut data, timeout))
    }

    /// A command whose status has to be success: dword 0.
    pub(crate) fn command(&self, command: &RawCommand, data: Transfer<'_>, timeout: Option<Duration>) -> Result<u32> {
        let done = self.admin_command(command, data, timeout)?;
        match done.status.is_success() {
            true => Ok(done.result),
            false => Err(self.refused(command, done.status)),
        }
    }

    fn refused(&self, command: &RawCommand, status: StatusCode) -> Error {
        Error::Refused { device: self.0.driver().hw.name(), command: admin_name(command.opcode), status }
    }

    pub(crate) fn not_offered(&self, why: impl Into<String>) -> Error {
        Error::NotOffered { device: self.0.driver().hw.name(), why: why.into() }
    }

    pub(crate) fn needs(&self, has: bool, what: &str) -> Result<()> {
        if has { Ok(()) } else { Err(self.not_offered(format!("the controller has no {what}"))) }
    }

    /// Reads an Identify data structure (5.17): 4096 bytes.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn identify_data(&self, request: IdentifyRequest) -> Result<Vec<u8>> {
        let IdentifyRequest { cns, nsid, cntid, csi } = request;
        let (cdw10, cdw11) = (u32::from(cns) | u32::from(cntid) << 16, u32::from(csi) << 24);
        let command = RawCommand { opcode: admin::IDENTIFY, nsid, cdw10, cdw11, ..RawCommand::default() };
        let mut bytes = vec![0; identify::LEN];
        self.command(&command, Transfer::Read(&mut bytes), None)?;
        Ok(bytes)
    }

    /// Reads `len` bytes of a log page (5.16), in as many commands as that takes; the event that it explains is cleared by the last of them.
    ///
    /// # Errors
    /// [`Error::NotOffered`] for an offset, or a length above that of one command, where the controller has none (LPA bit 2), and for an offset that is no
    /// multiple of 4; [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time,
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn log_page(&self, request: LogRequest, len: usize) -> Result<Vec<u8>> {
        let offsets = self.identify().has_log_offsets();
        // Without LPA bit 2, the number of dwords has 12 bits.
        let most = if offsets { self.max_transfer() as usize / 4096 * 4096 } else { 16 << 10 };
        let most = most.min(self.max_transfer() as usize);
        if !request.offset.is_multiple_of(4) {
            return Err(self.not_offered(format!(
                "a log page cannot be read from byte {} on: not a multiple of 4",
                request.offset
            )));
        }
        if !offsets && (request.offset > 0 || len > most) {
            let why = "the controller has log pages from their beginning only, and not more of them than one command transfers";
            return Err(self.not_offered(why));
        }
        // Dwords; there is always one.
        let mut bytes = vec![0; len.next_multiple_of(4).max(4)];
        let (all, mut done) = (bytes.len(), 0);
        while done < all {
            let end = all.min(done + most);
            let dwords = ((end - done) / 4 - 1) as u32;
            let offset = request.offset.wrapping_add(done as u64);
            let retain = request.retain || end < all;
            let command = RawCommand {
                opcode: admin::GET_LOG_PAGE,
                nsid: request.nsid,
                cdw10: u32::from(request.lid)
                    | u32::from(request.lsp & 0x7f) << 8
                    | u32::from(retain) << 15
                    | dwords << 16,
                cdw11: dwords >> 16 | u32::from(request.lsi) << 16,
                cdw12: offset as u32,
                cdw13: (offset >> 32) as u32,
                cdw14: u32::from(request.csi) << 24,
                ..RawCommand::default()
            };
            self.command(&command, Transfer::Read(&mut bytes[done..end]), None)?;
            done = end;
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Reads the Device Self-test log (5.16.1.7).
    ///
    /// # Errors
    /// Those of [`log_page`](Self::log_page).
    pub fn self_test_log(&self) -> Result<SelfTestLog> {
        Ok(SelfTestLog::parse(&self.log(lid::SELF_TEST, log::SELF_TEST_LEN)?))
    }

    /// Reads the Sanitize Status log (5.16.1, log page 81h).
    ///
    /// # Errors
    /// Those of [`log_page`](Self::log_page).
    pub fn sanitize_status(&self) -> Result<SanitizeStatus> {
        Ok(SanitizeStatus::parse(&self.log(lid::SANITIZE, log::LEN)?))
    }

    /// Reads the Commands Supported and Effects log (5.16.1.6): the commands that the controller has.
    ///
    /// # Errors
    /// Those of [`log_page`](Self::log_page).
    pub fn command_effects(&self) -> Result<Vec<CommandEffects>> {
        Ok(CommandEffects::parse(&self.log(lid::COMMAND_EFFECTS, CommandEffects::LEN)?))
    }

    /// Reads a feature (5.15): dword 0 of the completion, and as many bytes of its data as `data` has. `value` is dword 11: what some features
    /// are asked for by, as a vector or a sensor.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn get_feature(&self, id: u8, select: Select, nsid: u32, value: u32, data: &mut [u8]) -> Result<u32> {
        let cdw10 = u32::from(id) | (select as u32) << 8;
        let command = RawCommand { opcode: admin::GET_FEATURES, nsid, cdw10, cdw11: value, ..RawCommand::default() };
        self.command(&command, if data.is_empty() { Transfer::None } else { Transfer::Read(data) }, None)
    }

    /// Sets a feature (5.27) of a namespace, or with data, which [`set_feature`](Self::set_feature) does not; returns dword 0 of the completion.
    ///
    /// # Errors
    /// [`Error::NotSent`] for Host Memory Buffer, and the other errors of [`get_feature`](Self::get_feature).
    pub fn set_feature_with(&self, id: u8, nsid: u32, value: u32, save: bool, data: &[u8]) -> Result<u32> {
        self.set_feature_dwords(id, nsid, [value, 0], save, data)
    }

    /// The same, with dwords 11 and 12.
    pub(crate) fn set_feature_dwords(
        &self,
        id: u8,
        nsid: u32,
        [cdw11, cdw12]: [u32; 2],
        save: bool,
        data: &[u8],
    ) -> Result<u32> {
        let cdw10 = u32::from(id) | u32::from(save) << 31;
        let command = RawCommand { opcode: admin::SET_FEATURES, nsid, cdw10, cdw11, cdw12, ..RawCommand::default() };
        self.command(&command, if data.is_empty() { Transfer::None } else { Transfer::Write(data) }, None)
    }

    /// Formats a namespace, or all of them (ffffffffh): **what is on it is lost**. It takes as long as the controller needs, `timeout` at most; the
    /// namespaces are read again. (SPDK: `spdk_nvme_ctrlr_format`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no Format NVM, or a field is out of its range; [`Error::QueuesExist`] while there are I/O queues;
    /// [`Error::Refused`] with the controller's status, as `Invalid Format`; [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn format(&self, nsid: u32, format: Format, timeout: Duration) -> Result<()> {
        self.needs(self.identify().has_format(), "Format NVM")?;
        if format.lba_format > 63 || format.protection > 3 || format.secure_erase > 2 {
            return Err(
                self.not_offered("an LBA format is from 0 to 63, protection from 0 to 3, and secure erase from 0 to 2")
            );
        }
        let (low, high) = split_format(format.lba_format);
        let cdw10 = low
            | u32::from(format.metadata_extended) << 4
            | u32::from(format.protection) << 5
            | u32::from(format.protection_first) << 8
            | u32::from(format.secure_erase) << 9
            | high << 12;
        let command = RawCommand { opcode: admin::FORMAT, nsid, cdw10, ..RawCommand::default() };
        self.command(&command, Transfer::None, Some(timeout)).map(drop)
    }

    /// Begins a sanitize operation: **what is on all namespaces of the subsystem is lost**, for good. [`sanitize_status`](Self::sanitize_status) tells how
    /// far it is; commands on blocks fail meanwhile. (SPDK: `spdk_nvme_ctrlr_sanitize`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] for an action that the controller does not have (SANICAP); [`Error::Refused`] with the controller's status;
    /// [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn sanitize(&self, sanitize: Sanitize) -> Result<()> {
        let has = |bit: u32| self.identify().sanitize >> bit & 1 != 0;
        let (action, more, cdw11) = match sanitize.action {
            SanitizeAction::ExitFailure => {
                self.needs(self.identify().sanitize & 7 != 0, "Sanitize")?;
                (1, 0, 0)
            }
            SanitizeAction::BlockErase => {
                self.needs(has(1), "sanitize by block erase")?;
                (2, 0, 0)
            }
            SanitizeAction::Overwrite { passes, pattern, invert } => {
                self.needs(has(2), "sanitize by overwriting")?;
                if !(1..=16).contains(&passes) {
                    return Err(self.not_offered(format!("{passes} passes cannot be: 1 to 16")));
                }
                // 16 passes are 0.
                (3, u32::from(passes & 0xf) << 4 | u32::from(invert) << 8, pattern)
            }
            SanitizeAction::CryptoErase => {
                self.needs(has(0), "sanitize by crypto erase")?;
                (4, 0, 0)
            }
        };
        let flags = u32::from(sanitize.allow_unrestricted_exit) << 3 | u32::from(sanitize.no_deallocate) << 9;
        let command =
            RawCommand { opcode: admin::SANITIZE, cdw10: action | more | flags, cdw11, ..RawCommand::default() };
        self.command(&command, Transfer::None, None).map(drop)
    }

    /// Begins a self-test of the controller (`nsid` 0), or with a namespace, or all (ffffffffh); or ends the one that runs.
    /// [`self_test_log`](Self::self_test_log) tells how far it is, and what it found.
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has none; [`Error::Refused`] with the controller's status, as `Device Self-test In Progress`;
    /// [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn self_test(&self, nsid: u32, test: SelfTest) -> Result<()> {
        self.needs(self.identify().has_self_test(), "Device Self-test")?;
        let cdw10 = match test {
            SelfTest::Short => 1,
            SelfTest::Extended => 2,
            SelfTest::Vendor => 0xe,
            SelfTest::Abort => 0xf,
        };
        let command = RawCommand { opcode: admin::SELF_TEST, nsid, cdw10, ..RawCommand::default() };
        self.command(&command, Transfer::None, None).map(drop)
    }

    /// Sends `bytes` of a firmware image, which belong `offset` bytes into it; both are multiples of 4, and of
    /// [`firmware_granularity`](crate::Controller::firmware_granularity). The image is used by [`firmware_commit`](Self::firmware_commit) alone. (SPDK:
    /// `spdk_nvme_ctrlr_update_firmware`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no firmware update, or offset and length are not such multiples; [`Error::TooMuchData`] above
    /// [`max_transfer`](Self::max_transfer); [`Error::Refused`] with the controller's status; [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone)
    /// or [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn firmware_download(&self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.needs(self.identify().has_firmware_update(), "firmware update")?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(4) || !offset.is_multiple_of(4) {
            return Err(self.not_offered(
                "offset and length of a piece of a firmware image are multiples of 4, and there is some of it",
            ));
        }
        if let Some(unit) = self.identify().firmware_granularity
            && !(offset.is_multiple_of(unit) && (bytes.len() as u64).is_multiple_of(unit.into()))
        {
            return Err(
                self.not_offered(format!("pieces of a firmware image have to be multiples of {unit} bytes (FWUG)"))
            );
        }
        let (cdw10, cdw11) = ((bytes.len() / 4 - 1) as u32, offset / 4);
        let command = RawCommand { opcode: admin::FIRMWARE_DOWNLOAD, cdw10, cdw11, ..RawCommand::default() };
        self.command(&command, Transfer::Write(bytes), None).map(drop)
    }

    /// Stores the image that was sent in a slot, 1 to 7, or 0 for the controller's choice, or has a slot's image run. Returns the status where it says that
    /// something has to be reset before the image runs (`Firmware Activation Requires …`), else success.
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no firmware update, or no such slot; [`Error::Refused`] with the controller's status, as `Invalid
    /// Firmware Image`; [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn firmware_commit(&self, slot: u8, action: CommitAction, timeout: Duration) -> Result<StatusCode> {
        self.needs(self.identify().has_firmware_update(), "firmware update")?;
        let (slots, _) = self.identify().firmware_slots();
        if slot > slots {
            return Err(self.not_offered(format!("the controller has no firmware slot {slot}: it has {slots}")));
        }
        let action = match action {
            CommitAction::Store => 0,
            CommitAction::StoreAndActivate => 1,
            CommitAction::Activate => 2,
            CommitAction::ActivateNow => 3,
        };
        let cdw10 = u32::from(slot) | action << 3;
        let command = RawCommand { opcode: admin::FIRMWARE_COMMIT, cdw10, ..RawCommand::default() };
        let status = self.admin_command(&command, Transfer::None, Some(timeout))?.status;
        // Command specific (5.11.1): 0bh, 10h and 11h name the reset that it takes.
        match (status.is_success(), status.kind(), status.code()) {
            (true, ..) | (_, 1, 0x0b | 0x10 | 0x11) => Ok(status),
            _ => Err(self.refused(&command, status)),
        }
    }

    /// Sends data of a security protocol (5.26).
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has none; [`Error::TooMuchData`] above [`max_transfer`](Self::max_transfer); [`Error::Refused`] with
    /// the controller's status; [`Error::Unanswered`], [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) as every command.
    pub fn security_send(&self, of: SecurityProtocol, bytes: &[u8]) -> Result<()> {
        self.needs(self.identify().has_security(), "Security Send and Receive")?;
        let command = of.command(admin::SECURITY_SEND, bytes.len());
        self.command(&command, Transfer::Write(bytes), None).map(drop)
    }

    /// Receives `len` bytes of a security protocol (5.25).
    ///
    /// # Errors
    /// Those of [`security_send`](Self::security_send).
    pub fn security_receive(&self, of: SecurityProtocol, len: usize) -> Result<Vec<u8>> {
        self.needs(self.identify().has_security(), "Security Send and Receive")?;
        let mut bytes = vec![0; len];
        self.command(&of.command(admin::SECURITY_RECEIVE, len), Transfer::Read(&mut bytes), None)?;
        Ok(bytes)
    }
}

impl SecurityProtocol {
    fn command(self, opcode: u8, len: usize) -> RawCommand {
        let cdw10 = u32::from(self.protocol) << 24 | u32::from(self.specific) << 8 | u32::from(self.nvme_specific);
        // More than one command transfers is refused before it is sent.
        let cdw11 = u32::try_from(len).unwrap_or(u32::MAX);
        RawCommand { opcode, nsid: self.nsid, cdw10, cdw11, ..RawCommand::default() }
    }
}
