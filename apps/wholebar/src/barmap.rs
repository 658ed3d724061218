//! `wholebar barmap`: what of each BAR is mapped, page by page, for several page sizes and policies, and why: of a device, of what `/sys`
//! tells of one, or of the text of `lspci`.

mod draw;
mod source;

use crate::args::{self, Policy, Usage};
use crate::output;
use anyhow::Result;
use source::Source;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::pci::PciDevice;
use wholebar_barmap::PAGES;
use wholebar_barmap::json::Report;

/// Show what of each BAR is mapped, page by page, and why
///
/// A line for each function: what becomes of its registers on hosts with 4, 16 and 64 KiB pages. Then, of one function, or of all with --details, a
/// strip of the pages of each BAR, mapped whole and carved (without the pages that hold the MSI-X table), and what that means. Of a device, of a
/// function of this machine whoever drives it, or of another machine from the text of `lspci -vv`. Nothing of a device is touched but its
/// configuration space, and NVMe's CAP register.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar barmap sim:nvme                      table beside the doorbells, as on many drives
  wholebar barmap sim:nvme,msix=own             table in a BAR of its own
  wholebar barmap sim:fpga --page-size 64k
  wholebar barmap 0000:01:00.0                  a function of this machine, bound to vfio-pci or not
  sudo wholebar barmap --sysfs                  all functions of this machine
  ssh host sudo lspci -vv | wholebar barmap --lspci -
  wholebar barmap --lspci host.txt --host-page 64k --details
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
    /// Also strips, addresses and sources of each function, where there are several
    #[arg(long)]
    details: bool,
    /// The host that the text (or DIR) is of has pages of this size: what its addresses forbid holds there, and nowhere else
    #[arg(long, value_name = "SIZE", value_parser = args::page)]
    host_page: Option<PageSize>,
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
    let (target, text, root) = (args.target.as_deref(), args.lspci.as_deref(), args.sysfs.as_deref());
    if args.host_page.is_some() && text.is_none() && root.is_none_or(|root| root == "/") {
        return Err(Usage("--host-page is of another machine: it goes with --lspci, or --sysfs=DIR".to_owned()).into());
    }
    let source = Source::of(target, text, root, args.host_page)?;
    let mut pages = args.page_size.map_or(PAGES.to_vec(), |page| vec![page]);
    if let Some(host) = args.host_page.filter(|host| args.page_size.is_none() && !pages.contains(host)) {
        pages.push(host);
        pages.sort_unstable();
    }
    let policies = args.policy.map_or(vec![MapPolicy::Whole, MapPolicy::Carved], |policy| vec![policy.into()]);
    let (pages, policies) = (pages.as_slice(), policies.as_slice());
    if args.json {
        let Source { name, machine, only } = &source;
        return output::stream_json(&Report { source: name, machine, only: *only, pages, policies });
    }
    let what = draw::What { all: args.all, details: args.details };
    draw::draw(&source, pages, policies, what, &mut |part| output::print(part))
}

/// The maps of a device that is open, as `barmap` shows them.
pub fn of_device(device: &dyn PciDevice) -> Result<String> {
    let source = Source::open(device)?;
    let mut text = String::new();
    let policies = [MapPolicy::Whole, MapPolicy::Carved];
    draw::draw(&source, &PAGES, &policies, draw::What::default(), &mut |part| {
        text += part;
        Ok(())
    })?;
    Ok(text)
}
