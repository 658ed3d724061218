//! The kernel's VFIO ioctls, one function each: arguments checked into the kernel's structures, answers copied out of them.
//!
//! One path for every CPU. The numbers are `_IO(';', 100 + n)`, which is `0x3b64 + n` on most and `0x20003b64 + n` on powerpc (whose
//! `_IOC_NONE` is 1): rustix composes them for the CPU, which `vmm-sys-util`, under `vfio-ioctls`, does not. This file does
//! *not* know in which order they work, nor what to say when one fails.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::mem::{Arena, Iova};
use rustix::ioctl::{Opcode, opcode};
use std::ffi::CStr;
use std::io;
use std::mem::offset_of;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use vfio_bindings::bindings::vfio::*;

const fn number(n: u8) -> Opcode {
    opcode::none(VFIO_TYPE, (VFIO_BASE as u8).wrapping_add(n))
}

/// A structure of the kernel's interface that begins with its own size, `argsz`.
///
/// # Safety
/// `#[repr(C)]`, made of integers without padding between them, and the first is a `u32` `argsz`. Any bytes are a value of it.
unsafe trait Sized32: Copy {}
// SAFETY: as the trait asks; so for those below (vfio.h).
unsafe impl Sized32 for vfio_group_status {}
// SAFETY: see above.
unsafe impl Sized32 for vfio_device_info {}
// SAFETY: see above.
unsafe impl Sized32 for vfio_region_info {}
// SAFETY: see above.
unsafe impl Sized32 for vfio_irq_info {}
// SAFETY: see above.
unsafe impl Sized32 for vfio_iommu_type1_info {}
// SAFETY: see above.
unsafe impl Sized32 for vfio_iommu_spapr_tce_info {}
// SAFETY: see above.
unsafe impl Sized32 for vfio_iommu_spapr_tce_create {}

/// An answer: the structure, and all bytes of it with what follows (a capability chain; offsets in it count from the start).
pub(super) struct Answer<T> {
    pub head: T,
    pub bytes: Vec<u8>,
}

/// An answer longer than this is not one.
const LONGEST_ANSWER: usize = 1 << 20;

/// What an ioctl returned where that is no error: 0 or more. What it means is each request's own.
#[must_use = "an ioctl that does not fail may have done nothing"]
struct Returned(u32);

impl Returned {
    /// Of a request that returns 0 when it is done, and nothing else.
    fn done(self) -> io::Result<()> {
        match self.0 {
            0 => Ok(()),
            n => Err(io::Error::other(format!("the kernel returned {n}, where 0 says that it is done"))),
        }
    }

    /// Of a request that returns a number.
    fn number(self) -> u32 {
        self.0
    }

    /// Of a request that returns a new descriptor, which may be 0.
    ///
    /// # Safety
    /// The request is one of these.
    unsafe fn descriptor(self) -> OwnedFd {
        // SAFETY: a new descriptor that nobody else knows, as the caller promises; the kernel's are at most `i32::MAX`.
        unsafe { OwnedFd::from_raw_fd(self.0 as i32) }
    }

    /// Of `VFIO_DEVICE_SET_IRQS` for `count` vectors: 0 when it is done. Where the kernel can allocate fewer message interrupts than that, it returns
    /// how many, and has enabled none (`vfio_msi_enable`, drivers/vfio/pci/vfio_pci_intrs.c).
    fn vectors(self, count: u32) -> io::Result<()> {
        match self.0 {
            0 => Ok(()),
            n => Err(io::Error::other(format!(
                "the kernel can allocate {n} message interrupts of {count}, and enabled none: ask for at most {n}"
            ))),
        }
    }
}

/// # Safety
/// What `request` makes the kernel read or write at `arg` lies inside of it, and where that holds addresses, the kernel may access
/// what they point to as the request says.
unsafe fn call<T: ?Sized>(fd: BorrowedFd<'_>, request: Opcode, arg: *mut T) -> io::Result<Returned> {
    // SAFETY: the caller's promise.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, arg.cast::<u8>()) } {
        failed if failed < 0 => Err(io::Error::last_os_error()),
        value => Ok(Returned(value as u32)),
    }
}

/// A request whose argument is a number, or nothing.
fn call_with(fd: BorrowedFd<'_>, request: Opcode, value: u32) -> io::Result<Returned> {
    // SAFETY: the requests this is called for take the argument by value.
    unsafe { call(fd, request, std::ptr::without_provenance_mut::<u8>(value as usize)) }
}

/// Fills `head` in and returns it with what the kernel appends; asked again where the kernel says that there is more.
fn query<T: Sized32>(fd: BorrowedFd<'_>, request: Opcode, head: T) -> io::Result<Answer<T>> {
    let mut size = size_of::<T>();
    loop {
        // Words, so that the structure in front is aligned.
        let mut words = vec![0u64; size.div_ceil(8)];
        let at = words.as_mut_ptr().cast::<T>();
        // SAFETY: the words are at least as large as the structure and aligned to 8, which no structure here exceeds.
        unsafe { at.write(head) };
        // SAFETY: as above; each begins with a `u32` that is its size.
        unsafe { at.cast::<u32>().write(size as u32) };
        // SAFETY: the kernel writes at most `argsz` bytes, and nothing in these structures is an address.
        unsafe { call(fd, request, at) }?.done()?;
        // SAFETY: the kernel's bytes, or still ours; any are a value.
        let (argsz, head) = unsafe { (at.cast::<u32>().read() as usize, at.read()) };
        if argsz <= size {
            let bytes = words.iter().flat_map(|w| w.to_ne_bytes()).take(size).collect();
            return Ok(Answer { head, bytes });
        }
        if argsz > LONGEST_ANSWER {
            return Err(io::Error::other(format!("an answer of {argsz} bytes")));
        }
        size = argsz;
    }
}

// The container: `/dev/vfio/vfio`.

pub(super) fn api_version(container: BorrowedFd<'_>) -> io::Result<u32> {
    call_with(container, number(0), 0).map(Returned::number)
}

/// Whether there is an extension: 0 is no, any other number that an extension returns is yes.
pub(super) fn has_extension(container: BorrowedFd<'_>, extension: u32) -> bool {
    call_with(container, number(1), extension).is_ok_and(|returned| returned.number() > 0)
}

pub(super) fn set_iommu(container: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    call_with(container, number(2), kind)?.done()
}

pub(super) fn type1_info(container: BorrowedFd<'_>) -> io::Result<Answer<vfio_iommu_type1_info>> {
    query(container, number(12), vfio_iommu_type1_info::default())
}

/// Lets the devices of a container into all of `arena`, at `iova`.
pub(super) fn map_dma(container: BorrowedFd<'_>, arena: &Arena, iova: Iova) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: arena.mapping().base().as_ptr().expose_provenance() as u64,
        iova: iova.0,
        size: arena.len(),
    };
    // SAFETY: the structure is whole. An arena is memory that devices may read and write: this process reaches it by atomics alone,
    // or where a device was not told of it. The kernel pins its pages, so they stay ours to the device for as long as it is let in,
    // even where the arena is unmapped first.
    unsafe { call(container, number(13), &raw mut map) }?.done()
}

/// Keeps the devices of a container out again, and returns how many bytes that was.
pub(super) fn unmap_dma(container: BorrowedFd<'_>, iova: Iova, len: u64) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        argsz: offset_of!(vfio_iommu_type1_dma_unmap, data) as u32,
        flags: 0,
        iova: iova.0,
        size: len,
        ..Default::default()
    };
    // SAFETY: the structure is whole, and without flags nothing follows it.
    unsafe { call(container, number(14), &raw mut unmap) }?.done()?;
    Ok(unmap.size)
}

// The container, on sPAPR.

pub(super) fn tce_info(container: BorrowedFd<'_>) -> io::Result<vfio_iommu_spapr_tce_info> {
    Ok(query(container, number(12), vfio_iommu_spapr_tce_info::default())?.head)
}

/// Version 1: accounts for the whole window, which can then be mapped.
pub(super) fn tce_enable(container: BorrowedFd<'_>) -> io::Result<()> {
    call_with(container, number(15), 0)?.done()
}

/// Version 2: pins `arena`, which can then be mapped.
pub(super) fn register_memory(container: BorrowedFd<'_>, arena: &Arena) -> io::Result<()> {
    memory(container, number(17), arena.mapping().base().as_ptr().expose_provenance() as u64, arena.len())
}

/// Version 2: undoes [`register_memory`] of what was at `address`.
pub(super) fn unregister_memory(container: BorrowedFd<'_>, address: u64, len: u64) -> io::Result<()> {
    memory(container, number(18), address, len)
}

fn memory(container: BorrowedFd<'_>, request: Opcode, vaddr: u64, size: u64) -> io::Result<()> {
    let argsz = size_of::<vfio_iommu_spapr_register_memory>() as u32;
    let mut memory = vfio_iommu_spapr_register_memory { argsz, flags: 0, vaddr, size };
    // SAFETY: the structure is whole. The kernel pins or lets go of the pages at that address; it neither reads nor writes them.
    unsafe { call(container, request, &raw mut memory) }?.done()
}

/// Version 2: a further window, and where it starts.
pub(super) fn tce_create(container: BorrowedFd<'_>, page_shift: u32, window_size: u64, levels: u32) -> io::Result<u64> {
    let create = vfio_iommu_spapr_tce_create { page_shift, window_size, levels, ..Default::default() };
    Ok(query(container, number(19), create)?.head.start_addr)
}

// The group: `/dev/vfio/N`.

pub(super) fn group_flags(group: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(query(group, number(3), vfio_group_status::default())?.head.flags)
}

pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut fd = container.as_raw_fd();
    // SAFETY: the kernel reads one descriptor.
    unsafe { call(group, number(4), &raw mut fd) }?.done()
}

/// A device's descriptor. `name` is its address, which may be followed by ` vf_token=UUID`.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string up to its end.
    let returned = unsafe { call(group, number(6), name.as_ptr().cast_mut()) }?;
    // SAFETY: VFIO_GROUP_GET_DEVICE_FD returns one.
    Ok(unsafe { returned.descriptor() })
}

// The device.

pub(super) fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    Ok(query(device, number(7), vfio_device_info::default())?.head)
}

pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<Answer<vfio_region_info>> {
    query(device, number(8), vfio_region_info { index, ..Default::default() })
}

pub(super) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<vfio_irq_info> {
    Ok(query(device, number(9), vfio_irq_info { index, ..Default::default() })?.head)
}

/// `VFIO_DEVICE_SET_IRQS` with descriptors (-1 takes a vector's away).
pub(super) fn set_irq_fds(
    device: BorrowedFd<'_>,
    index: u32,
    first: u32,
    fds: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    let fds: Vec<i32> = fds.iter().map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())).collect();
    set_irqs(device, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, first, fds.len() as u32, &fds)
}

/// `VFIO_DEVICE_SET_IRQS` without data: `action` is one of `VFIO_IRQ_SET_ACTION_*`; to trigger none disables the whole index.
pub(super) fn set_irq_action(
    device: BorrowedFd<'_>,
    action: u32,
    index: u32,
    first: u32,
    count: u32,
) -> io::Result<()> {
    set_irqs(device, VFIO_IRQ_SET_DATA_NONE | action, index, first, count, &[])
}

fn set_irqs(device: BorrowedFd<'_>, flags: u32, index: u32, first: u32, count: u32, data: &[i32]) -> io::Result<()> {
    // struct vfio_irq_set: argsz, flags, index, start, count, data.
    let argsz = offset_of!(vfio_irq_set, data).saturating_add(size_of_val(data));
    let mut set = vec![argsz as u32, flags, index, first, count];
    set.extend(data.iter().map(|fd| *fd as u32));
    // SAFETY: the kernel reads `argsz` bytes, which is all of the vector.
    unsafe { call(device, number(10), set.as_mut_ptr()) }?.vectors(count)
}

pub(super) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    call_with(device, number(11), 0)?.done()
}

/// A function that a hot reset of the slot or bus would reset too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dependent {
    /// Its IOMMU group; with a device opened by its own node, its number there instead (or 0 and -1: owned by us, and not).
    pub group: u32,
    pub segment: u16,
    pub bus: u8,
    pub devfn: u8,
}

/// Who would be reset together, and whether all of them are ours already (known for a device opened by its own node).
pub(super) fn hot_reset_info(device: BorrowedFd<'_>) -> io::Result<(Vec<Dependent>, bool)> {
    // struct vfio_pci_hot_reset_info: argsz, flags, count, then 8 bytes each: group, segment, bus, function.
    const HEAD: usize = offset_of!(vfio_pci_hot_reset_info, devices) / 4;
    let mut room = 64;
    loop {
        let mut words = vec![0u32; HEAD.saturating_add(usize::saturating_mul(room, 2))];
        words[0] = size_of_val(&words[..]) as u32;
        // SAFETY: the kernel writes at most `argsz` bytes, which is all of the vector.
        match unsafe { call(device, number(12), words.as_mut_ptr()) } {
            // It tells how many there are; a bus has at most 256 functions.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < words[2] as usize && words[2] <= 1 << 16 => {
                room = words[2] as usize;
            }
            Err(e) => return Err(e),
            Ok(returned) => {
                returned.done()?;
                let count = (words[2] as usize).min(room);
                let ours = words[1] & VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED != 0;
                let dependents = words[HEAD..].chunks_exact(2).take(count).map(|d| {
                    let [low, high, bus, devfn] = d[1].to_ne_bytes();
                    Dependent { group: d[0], segment: u16::from_ne_bytes([low, high]), bus, devfn }
                });
                return Ok((dependents.collect(), ours));
            }
        }
    }
}

/// Resets the slot or bus; `groups` are those of all that is on it (none for a device opened by its own node).
pub(super) fn hot_reset(device: BorrowedFd<'_>, groups: &[BorrowedFd<'_>]) -> io::Result<()> {
    // struct vfio_pci_hot_reset: argsz, flags, count, descriptors.
    let argsz = offset_of!(vfio_pci_hot_reset, group_fds).saturating_add(groups.len().saturating_mul(4));
    let mut words = vec![argsz as u32, 0, groups.len() as u32];
    words.extend(groups.iter().map(|g| g.as_raw_fd() as u32));
    // SAFETY: the kernel reads `argsz` bytes, which is all of the vector.
    unsafe { call(device, number(13), words.as_mut_ptr()) }?.done()
}

// The device, opened by its own node.

/// Binds a device to an iommufd, with a VF token if it needs one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn bind_iommufd(
    device: BorrowedFd<'_>,
    iommufd: BorrowedFd<'_>,
    token: Option<&[u8; 16]>,
) -> io::Result<()> {
    let mut bind = vfio_device_bind_iommufd {
        // Without a token, the size from before there were tokens.
        argsz: match token {
            Some(_) => size_of::<vfio_device_bind_iommufd>(),
            None => offset_of!(vfio_device_bind_iommufd, token_uuid_ptr),
        } as u32,
        flags: if token.is_some() { VFIO_DEVICE_BIND_FLAG_TOKEN } else { 0 },
        iommufd: iommufd.as_raw_fd(),
        out_devid: 0,
        token_uuid_ptr: token.map_or(0, |t| t.as_ptr().expose_provenance() as u64),
    };
    // SAFETY: the structure is whole, and its address is that of 16 bytes to read, or not used.
    unsafe { call(device, number(18), &raw mut bind) }?.done()
}

/// Puts a device into an address space of the iommufd it is bound to.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn attach_iommufd(device: BorrowedFd<'_>, ioas: u32) -> io::Result<()> {
    let mut attach = vfio_device_attach_iommufd_pt {
        // Without a PASID, the size from before there were any.
        argsz: offset_of!(vfio_device_attach_iommufd_pt, pasid) as u32,
        flags: 0,
        pt_id: ioas,
        pasid: 0,
    };
    // SAFETY: the structure is whole.
    unsafe { call(device, number(19), &raw mut attach) }?.done()
}

/// The ranges that an address space can map (`IOMMU_IOAS_IOVA_RANGES`), and what maps must be aligned to.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn iova_ranges(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<(Vec<RangeInclusive<u64>>, u64)> {
    use iommufd_bindings::{IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_iova_ranges};
    let mut pairs: Vec<[u64; 2]> = vec![[0; 2]; 32];
    loop {
        let mut ranges = iommu_ioas_iova_ranges {
            size: size_of::<iommu_ioas_iova_ranges>() as u32,
            ioas_id: ioas,
            num_iovas: pairs.len() as u32,
            __reserved: 0,
            allowed_iovas: pairs.as_mut_ptr().expose_provenance() as u64,
            out_iova_alignment: 0,
        };
        let request = opcode::none(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_IOVA_RANGES as u8);
        // SAFETY: the structure is whole, and its address is that of as many pairs as it says, which the kernel writes.
        match unsafe { call(iommufd, request, &raw mut ranges) } {
            // It tells how many there are.
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) && (ranges.num_iovas as usize) > pairs.len() => {
                if ranges.num_iovas as usize > LONGEST_ANSWER {
                    return Err(e);
                }
                pairs.resize(ranges.num_iovas as usize, [0; 2]);
            }
            Err(e) => return Err(e),
            Ok(returned) => {
                returned.done()?;
                pairs.truncate(ranges.num_iovas as usize);
                return Ok((pairs.into_iter().map(|[first, last]| first..=last).collect(), ranges.out_iova_alignment));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn numbers_are_those_of_this_cpu() {
        let first = if cfg!(target_arch = "powerpc64") { 0x2000_3b64 } else { 0x3b64 };
        assert_eq!((number(0), number(21)), (first, first + 21));
    }

    #[test]
    fn what_is_returned_means_what_the_request_says() {
        assert!(Returned(0).done().is_ok() && Returned(0).vectors(8).is_ok());
        let text = |done: io::Result<()>| done.unwrap_err().to_string();
        assert!(text(Returned(1).done()).contains("returned 1"));
        let fewer = text(Returned(4).vectors(8));
        assert!(fewer.contains("4 message interrupts of 8") && fewer.contains("enabled none"), "{fewer}");
        assert_eq!(Returned(7).number(), 7);
    }

    #[test]
    fn what_is_no_vfio_file_says_so() {
        let file = tempfile::tempfile().unwrap();
        for answer in [api_version(file.as_fd()).err(), reset(file.as_fd()).err(), device_info(file.as_fd()).err()] {
            assert_eq!(answer.and_then(|e| e.raw_os_error()), Some(libc::ENOTTY));
        }
        assert!(!has_extension(file.as_fd(), VFIO_TYPE1_IOMMU));
        assert_eq!(hot_reset_info(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
