//! VF tokens that `vf create` made or was given: kept for the user who made them, where a restart of the machine, which takes the virtual
//! functions away, takes them too.
//!
//! A token is a secret that a physical function's program shares with those of its virtual functions, where vfio-pci has them all
//! (Linux include/uapi/linux/vfio.h, VFIO_DEVICE_FEATURE_PCI_VF_TOKEN). The kernel shows it to nobody.

use anyhow::{Context, Result, anyhow};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use wholebar::pci::Address;
use wholebar::vfio::VfToken;
use wholebar::vfio::sysfs::{Function, Sysfs, is_vfio};

fn file(sysfs: &Sysfs, physical: Address) -> PathBuf {
    sysfs.path("run/wholebar/vf-token").join(physical.to_string())
}

/// A new token.
pub fn make(sysfs: &Sysfs) -> Result<VfToken> {
    const RANDOM: &str = "proc/sys/kernel/random/uuid";
    let text = sysfs.read(RANDOM).with_context(|| format!("a token is a random UUID, and /{RANDOM} cannot be read"))?;
    Ok(text.parse()?)
}

/// Keeps a physical function's token, for this user alone.
pub fn remember(sysfs: &Sysfs, physical: Address, token: VfToken) -> Result<()> {
    let file = file(sysfs, physical);
    let write = || {
        fs::create_dir_all(sysfs.path("run/wholebar/vf-token"))?;
        // A file of old may have other rights.
        forget(sysfs, physical);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file)?;
        writeln!(file, "{token}")
    };
    write().map_err(|error| anyhow!("the token cannot be kept in {}: {error}", file.display()))
}

/// A physical function's token; `None` where none is kept, or not for this user.
pub fn recall(sysfs: &Sysfs, physical: Address) -> Option<VfToken> {
    fs::read_to_string(file(sysfs, physical)).ok()?.trim().parse().ok()
}

/// Keeps it no longer.
pub fn forget(sysfs: &Sysfs, physical: Address) {
    // What isn't there is forgotten.
    let _ = fs::remove_file(file(sysfs, physical));
}

/// How a virtual function is named to be opened: with the token, where its physical function's driver wants one; `None` where it does, and the token is
/// not known here.
pub fn opens_as(sysfs: &Sysfs, function: &Function) -> Option<String> {
    let address = function.address();
    match function.physical_function().filter(|physical| physical.driver().as_deref().is_some_and(is_vfio)) {
        None => Some(address.to_string()),
        Some(physical) => Some(format!("{address},token={}", recall(sysfs, physical.address())?)),
    }
}
