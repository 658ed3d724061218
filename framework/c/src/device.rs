//! Devices by name, and what they are.

use crate::error::entry;
use crate::handle;
use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;
use wholebar::pci::{Config, PciDevice};

/// A PCI function, opened.
pub struct wb_device {
    pub(crate) device: Arc<dyn PciDevice>,
    name: CString,
}

/// What a PCI function says that it is, in its configuration space.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wb_device_info {
    /// Vendor.
    pub vendor_id: u16,
    /// Device.
    pub device_id: u16,
    /// Vendor of the card; 0 where there is none.
    pub subsystem_vendor_id: u16,
    /// The card; 0 where there is none.
    pub subsystem_device_id: u16,
    /// Base class, subclass and programming interface, in the lowest 24 bits: 0x010802 is NVMe.
    pub class_code: u32,
    /// Revision.
    pub revision: u8,
}

/// Opens a device by name: `0000:01:00.0` (the kernel's VFIO), `vfio-user:/run/nvme.sock`, `sim:nvme,size=64M` (a model in this process). NULL
/// where that fails: wb_errno is EINVAL for a name that is wrong. Disks and ports of it keep the device, so that it may be freed as soon as they
/// are open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_open(target: *const c_char) -> *mut wb_device {
    entry(|| {
        // SAFETY: rule 3: text.
        let device = wholebar::open(unsafe { handle::text(target) }?)?;
        let name = handle::owned(device.name());
        Ok(handle::give(wb_device { device, name }))
    })
}

/// Closes a device, once no disk, port or queue of it is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_free(device: *mut wb_device) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(device) };
        Ok(())
    })
}

/// The name it was opened by; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_name(device: *const wb_device) -> *const c_char {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(unsafe { handle::get(device) }?.name.as_ptr()))
}

/// Reads what it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_device_info(device: *const wb_device, info: *mut wb_device_info) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let config = Config::of(unsafe { handle::get(device) }?.device.as_ref())?;
        // SAFETY: rule 3: a place to fill in.
        unsafe { handle::fill(info, facts(&config)) }?;
        Ok(0)
    })
}

fn facts(config: &Config) -> wb_device_info {
    let (class, subsystem) = (config.class(), config.subsystem().unwrap_or_default());
    wb_device_info {
        vendor_id: config.vendor(),
        device_id: config.device(),
        subsystem_vendor_id: subsystem.0,
        subsystem_device_id: subsystem.1,
        class_code: u32::from_be_bytes([0, class.base, class.sub, class.interface]),
        revision: config.revision(),
    }
}

/// The version of this library: `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn wb_version() -> *const c_char {
    entry(|| Ok(VERSION.as_ptr().cast()))
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
