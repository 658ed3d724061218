//! `wholebar barmap`: what of each BAR is mapped, page by page, for several page sizes and policies, and why: of a device, of what `/sys`
//! tells of one, or of the text of `lspci`.

mod draw;
mod source;

use crate::args::{self, Policy};
use crate::output;
use anyhow::Result;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::pci::PciDevice;
use wholebar_barmap::json::Report;
use wholebar_barmap::{FunctionMap, PAGES};

/// Show what of each BAR is mapped, page by page, and why
///
/// For each BAR: a strip of its pages for hosts with 4, 16 and 64 KiB pages, mapped whole and carved (without the pages that hold the MSI-X
/// table), and what that means. Of a device, of a function of this machine whoever drives it, or of another machine from the text of
/// `lspci -vv`. Nothing of a device is touched but its configuration space, and NVMe's CAP register.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar barmap sim:nvme                      table beside the doorbells, as on many drives
  wholebar barmap sim:nvme,msix=own             table in a BAR of its own
  wholebar barmap sim:fpga --page-size 64k
  wholebar barmap 0000:01:00.0                  a function of this machine, bound to vfio-pci or not
  sudo wholebar barmap --sysfs                  all functions of this machine
  ssh host sudo lspci -vv | wholebar barmap --lspci -
  wholebar barmap --lspci host.txt 3b:00.0 --json")]
pub struct Args {
    /// The PCI function; with --lspci or --sysfs: only this one
    #[arg(required_unless_present_any = ["lspci", "sysfs"])]
    target: Option<String>,
    /// The functions that a text tells of, written by `lspci -vv` (better: -vvxxxx) as root on any machine; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    lspci: Option<String>,
    /// The functions of this machine, as /sys tells of them (or the system whose sys/ is in DIR)
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true, default_missing_value = "/", conflicts_with = "lspci")]
    sysfs: Option<String>,
    /// With --lspci or --sysfs: also functions without MSI-X
    #[arg(long)]
    all: bool,
    /// Only for hosts with pages of this size
    #[arg(long, value_name = "SIZE", value_parser = args::page)]
    page_size: Option<PageSize>,
    /// Only under this policy
    #[arg(long)]
    policy: Option<Policy>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let source = source::Source::of(args.target.as_deref(), args.lspci.as_deref(), args.sysfs.as_deref())?;
    let pages = args.page_size.map_or(PAGES.to_vec(), |page| vec![page]);
    let policies = args.policy.map_or(vec![MapPolicy::Whole, MapPolicy::Carved], |policy| vec![policy.into()]);
    let maps = match source.only {
        Some(index) => source.machine.map(index, &pages, &policies).into_iter().collect(),
        None => source.machine.maps(&pages, &policies),
    };
    if args.json {
        return output::print_json(&Report::of(source.name, &source.machine, &maps));
    }
    let (shown, left): (Vec<FunctionMap<'_>>, Vec<_>) =
        maps.into_iter().partition(|map| args.all || source.only.is_some() || draw::is_of_interest(map));
    output::print(draw::text(&source, &shown, left.len()))
}

/// The maps of a device that is open, as `barmap` shows them.
pub fn of_device(device: &dyn PciDevice) -> Result<String> {
    let source = source::Source::open(device)?;
    let maps = source.machine.maps(&PAGES, &[MapPolicy::Whole, MapPolicy::Carved]);
    Ok(draw::text(&source, &maps, 0))
}
