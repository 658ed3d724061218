//! TAP interfaces: the kernel's network stack at one end, this process at the other. (Linux: `Documentation/networking/tuntap.rst`.)
//!
//! Each packet is preceded by the virtio header of 12 bytes, so that checksums and segmentation can be left to either side. This file does
//! *not* configure addresses, or set the link up: use `ip` for that.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::ffi::{CStr, c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The size of the header in front of each packet, in bytes: a virtio header (VIRTIO 1.2, 5.1.6), little-endian.
pub const HEADER: usize = 12;

/// One end of a TAP interface.
///
/// Dropping it removes the interface, unless that was made persistent.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Attaches to the interface `name`, and creates it where it does not exist. The descriptor does not block. Checksum and segmentation offloads are on.
    ///
    /// # Errors
    /// `InvalidInput` for a name that an interface can't have, `PermissionDenied` where this process may not (CAP_NET_ADMIN, or an interface that
    /// was made for its user), `ResourceBusy` where another process has it, `Unsupported` for one that was made with `multi_queue`, `NotFound` where
    /// the kernel has no TAP.
    pub fn open(name: &str) -> io::Result<Self> {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(plain) || matches!(name, "." | "..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        let fd = OwnedFd::from(file);
        // SAFETY: an `ifreq` is integers, arrays and addresses of them, for which zeroes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, b)| *to = b as _);
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let mut attach = |flags: c_int| {
            request.ifr_ifru.ifru_flags = flags as _;
            // SAFETY: the kernel reads and writes an `ifreq`, which this is.
            unsafe { call(fd.as_fd(), libc::TUNSETIFF as _, &raw mut request) }
        };
        if let Err(error) = attach(flags) {
            // The kernel says the same of a queue too few as of a name that can't be. This end goes as the error returns.
            let queues = error.kind() == io::ErrorKind::InvalidInput && attach(flags | libc::IFF_MULTI_QUEUE).is_ok();
            let several = || io::Error::new(io::ErrorKind::Unsupported, "it was made with multi_queue");
            return Err(if queues { several() } else { error });
        }
        // The kernel may have made another name of it.
        // SAFETY: the name is terminated: it was shorter than the array of zeroes, and the kernel keeps it so.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) }.to_string_lossy().into_owned();
        for (what, value) in [(libc::TUNSETVNETHDRSZ, HEADER as c_int), (libc::TUNSETVNETLE, 1)] {
            let mut value = value;
            // SAFETY: the kernel reads an int, which this is.
            unsafe { call(fd.as_fd(), what as _, &raw mut value) }?;
        }
        let tap = Self { fd, name };
        tap.offload(true)?;
        Ok(tap)
    }

    /// Sets whether packets that are read may have incomplete checksums and be TCP segments larger than the MTU. (Linux: `TUNSETOFFLOAD`.)
    ///
    /// # Errors
    /// `InvalidInput` where the kernel's driver has no such offloads, and the others of ioctl(TUNSETOFFLOAD).
    pub fn offload(&self, on: bool) -> io::Result<()> {
        let all = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        let flags: c_uint = if on { all } else { 0 };
        // SAFETY: the argument is a number, which the kernel does not dereference.
        unsafe {
            call(self.fd.as_fd(), libc::TUNSETOFFLOAD as _, std::ptr::without_provenance_mut::<u8>(flags as usize))
        }
    }

    /// Returns the interface's name, which the kernel may have chosen.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one packet, with its header, and returns its size; `None` where none waits. A packet that does not fit into `buf` is truncated. One
    /// system call.
    ///
    /// # Errors
    /// Those of read(2), as where the interface is gone.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, buf) {
            Ok(n) => Ok(Some(n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes one packet, with its header; returns `false` where the kernel does not take it now, since it has no room, or the interface is down. One
    /// system call.
    ///
    /// # Errors
    /// Those of write(2): `InvalidInput` for a header that makes no sense; and where the interface is gone.
    pub fn write(&self, packet: &[u8]) -> io::Result<bool> {
        use rustix::io::Errno;
        match rustix::io::write(&self.fd, packet) {
            Ok(_) => Ok(true),
            // EIO: it is down.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::IO) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// # Safety
/// What `request` makes the kernel read or write at `arg` lies inside of it.
unsafe fn call<T>(fd: BorrowedFd<'_>, request: u64, arg: *mut T) -> io::Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, arg) } {
        failed if failed < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
