//! The device as registers: revisions, commands, address, link, on and off. Commands and their results share a register, so whoever gives one has the
//! control plane's lock.

use crate::Options;
use crate::error::{Error, Result};
use crate::regs::{self, cmd, pt, vd};
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::Error as Core;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::mem::Iova;
use wholebar_core::net::{Link, Mac};
use wholebar_core::pci::{Config, PciDevice, config, function};

/// The PCI ids, vendor and device, of what this driver is for.
pub const IDS: [(u16, u16); 1] = [(0x15ad, 0x07b0)];
/// How long the device may take to stop, or to reset itself.
const PATIENCE: Duration = Duration::from_millis(500);
/// The revisions of the device that the driver knows, best first, as bits of VRRS. From 2 on completions say how segments were merged.
const REVISIONS: [u32; 2] = [1 << 1, 1];

/// BAR0 and BAR1.
pub(crate) struct Hardware {
    pub device: Arc<dyn PciDevice>,
    /// Doorbells and interrupt masks.
    pub pt: Bar,
    /// Commands.
    vd: Bar,
    /// The revision that was chosen, as a bit.
    pub revision: u32,
}

impl Hardware {
    /// Maps the registers of a device of ours, and chooses its revision.
    pub fn open(device: Arc<dyn PciDevice>, options: &Options) -> Result<Self> {
        function::check(device.as_ref())?;
        let found = Config::of(device.as_ref())?;
        let unfit = |why| Error::Unfit { device: device.name().to_owned(), why };
        if !IDS.contains(&(found.vendor(), found.device())) {
            return Err(unfit(format!("it is {:04x}:{:04x}, and not a vmxnet3", found.vendor(), found.device())));
        }
        config::enable_memory(device.as_ref(), true)?;
        let all = [0..regs::SIZE];
        let [pt, vd] = [0, 1].map(|bar| {
            let options = BarOptions { policy: options.policy, page: options.page, registers: &all };
            Bar::of(device.clone(), bar, options)
        });
        let (pt, vd) = (pt?, vd?);
        if pt.size().min(vd.size()) < regs::SIZE {
            let why = format!("its BAR0 has {:#x} bytes, and its BAR1 {:#x}", pt.size(), vd.size());
            return Err(unfit(why));
        }
        let mut hw = Self { device, pt, vd, revision: 0 };
        let (revisions, versions) = (hw.read(vd::VRRS)?, hw.read(vd::UVRS)?);
        if revisions == regs::GONE {
            return Err(hw.gone());
        }
        match REVISIONS.into_iter().find(|revision| revisions & revision != 0) {
            Some(revision) if versions & 1 != 0 => hw.revision = revision,
            _ => {
                let why = format!("its revisions are {revisions:#x}, and those of pass-through {versions:#x}");
                return Err(Error::Unfit { device: hw.name(), why });
            }
        }
        hw.write(vd::VRRS, hw.revision)?;
        hw.write(vd::UVRS, 1)?;
        Ok(hw)
    }

    pub fn name(&self) -> String {
        self.device.name().to_owned()
    }

    fn gone(&self) -> Error {
        Core::Gone { device: self.name(), why: "its revisions read as all ones".to_owned() }.into()
    }

    fn read(&self, register: u64) -> Result<u32> {
        Ok(self.vd.read(register)?)
    }

    fn write(&self, register: u64, value: u32) -> Result<()> {
        Ok(self.vd.write(register, value)?)
    }

    /// Gives a command that has no result.
    pub fn command(&self, command: u32) -> Result<()> {
        self.write(vd::CMD, command)
    }

    /// Gives a command, and returns its result.
    pub fn query(&self, command: u32) -> Result<u32> {
        self.command(command)?;
        self.read(vd::CMD)
    }

    /// Whether the device answers. Configuration space is asked too: a mapped register may still read as it did when nobody is there.
    pub fn healthy(&self) -> Result<()> {
        function::check(self.device.as_ref())?;
        for bar in [&self.pt, &self.vd] {
            if let Some(Core::Gone { why, .. }) = bar.failure() {
                return Err(Core::Gone { device: self.name(), why: why.clone() }.into());
            }
        }
        match self.read(vd::VRRS)? {
            regs::GONE => Err(self.gone()),
            _ => Ok(()),
        }
    }

    /// Stops and resets the device: it knows of no memory afterwards.
    pub fn reset(&self) -> Result<()> {
        for (what, command) in [("stop", cmd::QUIESCE_DEV), ("end its reset", cmd::RESET_DEV)] {
            self.command(command)?;
            self.vd.wait_for(what, vd::CMD, PATIENCE, |result: u32| result == 0)?;
        }
        self.write(vd::DSAL, 0)?;
        self.write(vd::DSAH, 0)?;
        self.healthy()
    }

    /// Starts the device with what shared memory at `at` says.
    pub fn activate(&self, at: Iova) -> Result<()> {
        self.write(vd::DSAL, at.0 as u32)?;
        self.write(vd::DSAH, (at.0 >> 32) as u32)?;
        match self.query(cmd::ACTIVATE_DEV)? {
            0 => Ok(()),
            regs::GONE => Err(self.gone()),
            status => Err(Error::Refused { device: self.name(), status }),
        }
    }

    /// Whether an interrupt masks its vector.
    pub fn masks_itself(&self) -> Result<bool> {
        Ok(self.query(cmd::GET_CONF_INTR)? >> 2 & 3 == regs::IMM_AUTO)
    }

    /// Masks a vector, or opens it.
    pub fn mask(&self, vector: u32, masked: bool) -> Result<()> {
        Ok(self.pt.write(pt::imr(vector), u32::from(masked))?)
    }

    /// Takes events out of shared memory.
    pub fn acknowledge(&self, events: u32) -> Result<()> {
        self.write(vd::ECR, events)
    }

    /// The device's own address.
    pub fn address(&self) -> Result<Mac> {
        let [a, b, c, d] = self.query(cmd::GET_PERM_MAC_LO)?.to_le_bytes();
        let [e, f, ..] = self.query(cmd::GET_PERM_MAC_HI)?.to_le_bytes();
        let mac = Mac([a, b, c, d, e, f]);
        let why = || format!("its address is {mac}, which no station can have");
        if mac.is_unicast() { Ok(mac) } else { Err(Error::Unfit { device: self.name(), why: why() }) }
    }

    /// Sets the address to which packets are received.
    pub fn set_address(&self, mac: Mac) -> Result<()> {
        let [a, b, c, d, e, f] = mac.0;
        self.write(vd::MACL, u32::from_le_bytes([a, b, c, d]))?;
        self.write(vd::MACH, u32::from_le_bytes([e, f, 0, 0]))
    }

    /// How the link is.
    pub fn link(&self) -> Result<Link> {
        let link = self.query(cmd::GET_LINK)?;
        match link {
            regs::GONE => Err(self.gone()),
            _ if link & 1 == 0 => Ok(Link::default()),
            _ => Ok(Link { up: true, speed: Some(link >> 16), full_duplex: Some(true) }),
        }
    }

    /// Lets the function do DMA, or not.
    pub fn bus_master(&self, on: bool) -> Result<()> {
        Ok(config::enable_bus_master(self.device.as_ref(), on)?)
    }
}
