//! Where `barmap` has its facts from.

use crate::args::Usage;
use crate::names::Names;
use crate::{output, target};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io;
use wholebar::PageSize;
use wholebar::pci::{Address, DeviceKind, PciDevice};
use wholebar::vfio::sysfs::Sysfs;
use wholebar_barmap::{Function, Machine, lspci};

/// The driver by which functions of this machine are opened.
const VFIO: &str = "vfio-pci";

/// The functions there are to show.
pub struct Source {
    /// `lspci`, `sysfs`, `model`, …
    pub name: &'static str,
    pub machine: Machine,
    /// The index of the only one that is asked for.
    pub only: Option<usize>,
}

impl Source {
    /// `host`: the page size of the machine that a text or a system in a folder is of.
    pub fn of(target: Option<&str>, text: Option<&str>, root: Option<&str>, host: Option<PageSize>) -> Result<Self> {
        let wanted = |target: &str| match target.parse::<Address>() {
            Ok(address) => Ok(address.to_string()),
            // A path, as `lspci -P` writes it.
            Err(_) if text.is_some() && target.contains('/') => Ok(target.to_owned()),
            Err(_) => Err(Usage(format!("{target:?} is no address of a PCI function, like 0000:01:00.0"))),
        };
        if let Some(file) = text {
            let wanted = target.map(wanted).transpose()?;
            let machine = Machine { page: host, ..of_text(file)? };
            return Self::narrowed("lspci", machine, wanted);
        }
        if let Some(root) = root {
            // The page size is this machine's, and known of no other.
            let page = (root == "/").then(PageSize::host).or(host);
            let machine = Machine::of_system(&Sysfs::at(root), page);
            if machine.functions.is_empty() {
                bail!(
                    "there are no PCI functions under {root}{}sys/bus/pci/devices",
                    if root.ends_with('/') { "" } else { "/" }
                );
            }
            return Self::narrowed("sysfs", named(machine), target.map(wanted).transpose()?);
        }
        let target = target.unwrap_or_default();
        match target.parse::<Address>() {
            Ok(address) => Self::of_function(target, address),
            Err(_) => Self::open(target::open(target, &[], None)?.device.as_ref()),
        }
    }

    fn narrowed(name: &'static str, machine: Machine, wanted: Option<String>) -> Result<Self> {
        let Some(wanted) = wanted else { return Ok(Self { name, machine, only: None }) };
        let Some(only) = machine.functions.iter().position(|function| function.name == wanted) else {
            let known: Vec<&str> = machine.functions.iter().take(8).map(|function| function.name.as_str()).collect();
            bail!(
                "{wanted} is not among its {} functions: {}{}",
                machine.functions.len(),
                known.join(", "),
                if machine.functions.len() > known.len() { ", …" } else { "" }
            );
        };
        Ok(Self { name, machine, only: Some(only) })
    }

    /// A device that is open.
    pub fn open(device: &dyn PciDevice) -> Result<Self> {
        let function = Function::of_device(device).context("cannot find the device's BARs")?;
        let name = match device.kind() {
            DeviceKind::Model => "model",
            DeviceKind::VfioUser => "vfio-user",
            DeviceKind::VhostUser => "vhost-user",
            DeviceKind::Kernel => "kernel VFIO",
        };
        Ok(Self { name, machine: Machine { functions: vec![function], ..Machine::default() }, only: Some(0) })
    }

    /// A function of this machine: opened where vfio-pci has it, and else as `/sys` tells of it.
    fn of_function(name: &str, address: Address) -> Result<Self> {
        let sysfs = Sysfs::default();
        let Some(function) = sysfs.function(address) else {
            bail!("{address}: no such PCI function in this machine; `wholebar barmap --sysfs` shows those there are");
        };
        let machine = named(Machine::of_system(&sysfs, Some(PageSize::host())));
        let mut source = Self::narrowed("sysfs", machine, Some(address.to_string()))?;
        let why = match function.driver() {
            Some(driver) if driver == VFIO => {
                match target::open(name, &[], None).and_then(|target| Self::open(target.device.as_ref())) {
                    Ok(open) => {
                        source.opened(open);
                        return Ok(source);
                    }
                    Err(e) => format!("it could not be opened: {e:#}"),
                }
            }
            Some(driver) => format!("{driver} has it, and not {VFIO}"),
            None => format!("no driver has it, {VFIO} neither"),
        };
        output::note(format!("{address}: {why}. What follows is what /sys tells of it."));
        Ok(source)
    }

    /// Takes what an open device says, with the addresses that only the system knows.
    fn opened(&mut self, mut open: Self) {
        let (Some(told), Some(mut function)) =
            (self.only.and_then(|only| self.machine.functions.get_mut(only)), open.machine.functions.pop())
        else {
            return;
        };
        for bar in &mut function.bars {
            bar.place.address =
                told.bars.iter().find(|other| other.index == bar.index).and_then(|bar| bar.place.address);
        }
        function.driver = told.driver.take();
        function.title = told.title.take();
        function.rom = told.rom;
        function.sriov = told.sriov.take().or(function.sriov);
        *told = function;
        self.name = open.name;
        self.machine.notes.clear();
    }
}

/// With the names that numbers have.
fn named(mut machine: Machine) -> Machine {
    let names = Names::load();
    for function in &mut machine.functions {
        let (Some(vendor), Some(device)) = (function.ids.vendor, function.ids.device) else { continue };
        let name = names.device(vendor, device);
        let class = function.ids.class.and_then(|class| names.class(u32::from(class) << 8).1);
        function.title = Some(class.map_or(name.clone(), |class| format!("{class}: {name}")));
    }
    machine
}

fn of_text(file: &str) -> Result<Machine> {
    let (name, machine) = match file {
        "-" => ("standard input", lspci::read(io::stdin().lock())),
        file => (file, lspci::read(File::open(file).with_context(|| format!("cannot read {file}"))?)),
    };
    machine.with_context(|| format!("{name} is of no use"))
}
