//! Shows what protects a table whose pages hold nothing else: maps BAR0 of a function by plan, then writes to the first page that is mapped
//! read-only, on purpose. Dies by SIGSEGV where there is one, and ends well where there is none.
//!
//!     vfio_scribble 0000:01:00.0

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::pci::PciDevice;
use wholebar_core::vfio::{Vfio, VfioOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let Some(address) = std::env::args().nth(1) else {
        writeln!(out, "usage: vfio_scribble 0000:01:00.0")?;
        return Ok(());
    };
    let device: Arc<dyn PciDevice> = Vfio::open(address.parse()?, &VfioOptions::default())?;
    let _bar = Bar::of(device.clone(), 0, BarOptions::default())?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    // `7f0000000000-7f0000002000 r--s 00002000 00:0b 7 anon_inode:[vfio-device]`
    let page = maps.lines().find(|line| line.contains("vfio") && line.contains(" r--s "));
    let Some(start) = page.and_then(|line| line.split('-').next()) else {
        writeln!(out, "no page of BAR0 is mapped read-only")?;
        return Ok(());
    };
    writeln!(out, "writing to {start}")?;
    let at = std::ptr::with_exposed_provenance_mut::<u32>(usize::from_str_radix(start, 16)?);
    // SAFETY: mapped, aligned, and of no Rust object. It is not writable: the process ends here.
    unsafe { at.write_volatile(0) };
    Err("it was written to".into())
}
