//! Block devices and files as [`Disk`]s, through io_uring.

mod target;

pub use target::Target;

use crate::{Error, Result};
use wholebar_core::block::{Disk, DiskConfig};

/// Opens a block device or a file as a disk.
///
/// # Errors
/// [`Error::NotBuiltIn`].
pub fn open(target: &Target, _: &DiskConfig) -> Result<Box<dyn Disk>> {
    Err(Error::NotBuiltIn { target: target.to_string(), what: "disks through the kernel" })
}
