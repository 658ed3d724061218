//! `wholebar vf list`: physical functions, and their virtual ones.

use super::{named, physical};
use crate::bind::has_vfio;
use crate::names::Names;
use crate::{output, token};
use anyhow::Result;
use serde::Serialize;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar_barmap as barmap;

/// List the functions that can have virtual functions, and those that they have
///
/// Shown of each virtual function: who has it, its IOMMU group, and the name that opens it, with the VF token where it needs one and this user may
/// read it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar vf list
  wholebar vf list 0000:02:00.0
  wholebar vf list --json")]
pub struct Args {
    /// Only this physical function, or that of this virtual one
    #[arg(value_name = "BDF")]
    function: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    physical_functions: Vec<Physical>,
}

/// A physical function; `null` for what cannot be read.
#[derive(Serialize)]
pub(super) struct Physical {
    address: String,
    name: Option<String>,
    driver: Option<String>,
    /// How many virtual functions there can be.
    total: u16,
    /// Whether the kernel looks for drivers when some are made.
    autoprobe: bool,
    /// The VF token, where vfio-pci has it, and it is known to this user.
    token: Option<String>,
    /// The BARs of each virtual function.
    bars: Vec<Bar>,
    virtual_functions: Vec<Virtual>,
}

#[derive(Serialize)]
struct Bar {
    index: u8,
    bytes: Option<u64>,
}

#[derive(Serialize)]
struct Virtual {
    address: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    /// The name by which it is opened, once vfio-pci has it.
    opens_as: Option<String>,
}

pub fn run(args: Args) -> Result<()> {
    let sysfs = Sysfs::default();
    let functions = match &args.function {
        None => sysfs.functions().into_iter().filter(|f| f.sriov().is_some()).collect(),
        Some(name) => {
            let function = named(&sysfs, name)?;
            let function = function.physical_function().unwrap_or(function);
            physical(&function)?;
            vec![function]
        }
    };
    show(&sysfs, &functions, args.json)
}

/// Shows physical functions.
pub(super) fn show(sysfs: &Sysfs, functions: &[Function], json: bool) -> Result<()> {
    let names = Names::load();
    let physical_functions: Vec<Physical> = functions.iter().map(|f| Physical::of(sysfs, f, &names)).collect();
    if json {
        return output::print_json(&Report { schema: "wholebar.vf/1", physical_functions });
    }
    if physical_functions.is_empty() {
        return output::print(output::paragraph(
            "No function of this machine can have virtual functions: none is an SR-IOV device, the firmware's setup hides that (SR-IOV), or this \
             kernel was built without CONFIG_PCI_IOV.",
        ));
    }
    let texts: Vec<String> = physical_functions.iter().map(Physical::text).collect();
    output::print(texts.join("\n"))
}

impl Physical {
    pub(super) fn of(sysfs: &Sysfs, function: &Function, names: &Names) -> Self {
        let address = function.address();
        let sriov = function.sriov();
        let virtual_function = |f: &Function| Virtual {
            address: f.address().to_string(),
            driver: f.driver(),
            iommu_group: f.group(),
            opens_as: token::opens_as(sysfs, f),
        };
        let bars = barmap::Function::of_system(function).sriov.map_or(Vec::new(), |sriov| sriov.bars);
        Self {
            address: address.to_string(),
            name: function.vendor().zip(function.device()).map(|(vendor, device)| names.device(vendor, device)),
            driver: function.driver(),
            total: sriov.map_or(0, |sriov| sriov.total),
            autoprobe: sriov.is_some_and(|sriov| sriov.autoprobe),
            token: token::recall(sysfs, address).filter(|_| has_vfio(function)).map(|token| token.to_string()),
            bars: bars.iter().map(|bar| Bar { index: bar.index, bytes: bar.place.size }).collect(),
            virtual_functions: function.virtual_functions().iter().map(virtual_function).collect(),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let or = |text: &Option<String>, none: &str| text.clone().unwrap_or_else(|| none.to_owned());
        let bar = |bar: &Bar| match bar.bytes {
            Some(bytes) => format!("BAR{} of {}", bar.index, output::bytes(bytes)),
            None => format!("BAR{}", bar.index),
        };
        let bars: Vec<String> = self.bars.iter().map(bar).collect();
        let mut what = format!(
            "{} of {} virtual functions; {} has it",
            self.virtual_functions.len(),
            self.total,
            or(&self.driver, "no driver")
        );
        if !bars.is_empty() {
            what += &format!("; each of them has {}", bars.join(", "));
        }
        if !self.autoprobe {
            what += "; drivers don't take them by themselves (sriov_drivers_autoprobe is 0)";
        }
        let mut text = format!("{}  {}\n", self.address, or(&self.name, ""));
        text += &output::lines(&what, 78).iter().map(|line| format!("  {line}\n")).collect::<String>();
        if self.virtual_functions.is_empty() {
            return text;
        }
        let row = |f: &Virtual| {
            let group = f.iommu_group.map_or_else(|| "-".to_owned(), |group| group.to_string());
            let opens = f.opens_as.clone().unwrap_or_else(|| format!("{},token=?", f.address));
            vec![format!("  {opens}"), or(&f.driver, "-"), group]
        };
        text + &output::table(["  opens as", "driver", ">group"], self.virtual_functions.iter().map(row))
    }
}
