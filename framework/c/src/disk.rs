//! Disks: what they hold, what happens to them, their queues.

use crate::device::wb_device;
use crate::error::{Failure, entry};
use crate::event::{self, wb_event};
use crate::handle::{self, Out};
use crate::memory::{count, wb_arena};
use crate::queue::wb_block_queue;
use std::ffi::{CString, c_char, c_int};
use wholebar::block::{self, Disk, DiskConfig};

/// A storage device, opened: an NVMe controller, or a virtio block device. (SPDK: a controller of spdk_nvme.)
pub struct wb_disk {
    disk: Box<dyn Disk>,
    name: CString,
    driver: CString,
}

/// How a disk is opened: 0 is what suits the device, so that `{0}` is the default.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct wb_disk_config {
    /// Queues to ask for; the device may have fewer. 0 is one.
    pub queues: u16,
    /// Entries of each: a power of two.
    pub entries: u16,
}

/// What can be read and written of a disk, and how. (SPDK: a namespace of spdk_nvme.)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wb_namespace {
    /// Its capacity, in blocks.
    pub blocks: u64,
    /// Its number, as requests have it.
    pub nsid: u32,
    /// Bytes of a block: a power of two from 512.
    pub block_size: u32,
    /// Bytes of one read or write at most.
    pub max_transfer: u32,
    /// Blocks of one WB_OP_WRITE_ZEROES at most; 0 where it takes none.
    pub max_write_zeroes: u32,
    /// Blocks of one WB_OP_DEALLOCATE at most; 0 where it takes none.
    pub max_deallocate: u32,
    /// Blocks of one WB_OP_VERIFY at most; 0 where it takes none.
    pub max_verify: u32,
    /// It cannot be written.
    pub read_only: bool,
    /// It takes WB_OP_FLUSH; where it does not, what was written is durable.
    pub flush: bool,
    /// It takes WB_OP_COMPARE.
    pub compare: bool,
}

/// Opens a storage device with the driver that is for it; `config` may be NULL. NULL where that fails: wb_errno is ENOTSUP where no driver is for the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_open(device: *const wb_device, config: *const wb_disk_config) -> *mut wb_disk {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let device = &unsafe { handle::get(device) }?.device;
        // SAFETY: rule 3: a structure of integers, or NULL.
        let config = settings(unsafe { handle::copy(config) }?.unwrap_or_default());
        Ok(given(block::open(device.clone(), &config)?))
    })
}

/// Opens a disk by the name of any target: those of wb_device_open, which are opened with the driver that is for them, and `kernel:/dev/nvme0n1` or
/// `kernel:./disk.img`, which are read and written through the kernel (io_uring). `config` may be NULL. NULL where that fails: wb_errno is EINVAL for a name that is
/// wrong, or names no disk.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_open_target(target: *const c_char, config: *const wb_disk_config) -> *mut wb_disk {
    entry(|| {
        // SAFETY: rule 3: text.
        let target = unsafe { handle::text(target) }?;
        // SAFETY: rule 3: a structure of integers, or NULL.
        let config = settings(unsafe { handle::copy(config) }?.unwrap_or_default());
        Ok(given(block::open_target(target, &config)?))
    })
}

fn settings(wb_disk_config { queues, entries }: wb_disk_config) -> DiskConfig {
    DiskConfig { queues: queues.max(1), entries: (entries > 0).then_some(entries) }
}

fn given(disk: Box<dyn Disk>) -> *mut wb_disk {
    let (name, driver) = (handle::owned(disk.name()), handle::owned(disk.driver()));
    handle::give(wb_disk { disk, name, driver })
}

/// Closes a disk, once no queue of it is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_free(disk: *mut wb_disk) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(disk) };
        Ok(())
    })
}

/// The device's name; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_name(disk: *const wb_disk) -> *const c_char {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(unsafe { handle::get(disk) }?.name.as_ptr()))
}

/// The driver's name: `nvme`, `virtio`; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_driver(disk: *const wb_disk) -> *const c_char {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(unsafe { handle::get(disk) }?.driver.as_ptr()))
}

/// How many queues can be had at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_queues(disk: *const wb_disk) -> c_int {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(unsafe { handle::get(disk) }?.disk.queues().into()))
}

/// The namespaces that can be used, in the order of their numbers, as they are now: fills in at most `max`, and returns how many there are. A device that is one
/// disk has one, number 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_namespaces(disk: *const wb_disk, namespaces: *mut wb_namespace, max: usize) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let found = unsafe { handle::get(disk) }?.disk.namespaces();
        // SAFETY: rule 3: `max` elements to fill in.
        let mut out = unsafe { Out::new(namespaces, max) }?;
        // Stops where the array is full.
        found.iter().map(namespace).all(|namespace| out.push(namespace));
        Ok(count(found.len()))
    })
}

fn namespace(from: &block::Namespace) -> wb_namespace {
    wb_namespace {
        blocks: from.blocks,
        nsid: from.nsid,
        block_size: from.block_size,
        max_transfer: from.max_transfer,
        max_write_zeroes: from.max_write_zeroes,
        max_deallocate: from.max_deallocate,
        max_verify: from.max_verify,
        read_only: from.read_only,
        flush: from.flush,
        compare: from.compare,
    }
}

/// Lets the device into an arena, so that its queues can use buffers there; does nothing where it is in already.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_attach(disk: *const wb_disk, arena: *const wb_arena) -> c_int {
    entry(|| {
        // SAFETY: rule 1: handles of these types, not freed.
        let (disk, arena) = unsafe { (handle::get(disk)?, handle::get(arena)?) };
        disk.disk.attach(arena.arena.clone())?;
        Ok(0)
    })
}

/// A queue, for one thread at a time; NULL where all are in use. It keeps the disk open. (SPDK: spdk_nvme_ctrlr_alloc_io_qpair.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_queue(disk: *const wb_disk) -> *mut wb_block_queue {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(handle::give(wb_block_queue::new(unsafe { handle::get(disk) }?.disk.queue()?))))
}

/// Takes the oldest event that waits: returns 1 and fills it in, or 0 where none does. While 256 wait, further ones are dropped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_event(disk: *const wb_disk, event: *mut wb_event) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let disk = unsafe { handle::get(disk) }?;
        if event.is_null() {
            return Err(Failure::of(libc::EINVAL, c"a place to fill in is NULL"));
        }
        let Some(found) = disk.disk.event() else { return Ok(0) };
        // SAFETY: rule 3: a place to fill in.
        unsafe { handle::fill(event, event::of_disk(&found)) }?;
        Ok(1)
    })
}

/// Resets the device, and returns when its queues can go on: what was in flight completes as WB_STATUS_ABORTED. Each queue has to be polled on another thread meanwhile:
/// one that is not, within five seconds, is lost, and its buffers are never reused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_disk_reset(disk: *const wb_disk) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        unsafe { handle::get(disk) }?.disk.reset()?;
        Ok(0)
    })
}
