//! The XDP program that hands an interface's packets to sockets, and its map, by bpf(2): five instructions, so that no compiler and no library is needed.
//!
//! A packet goes to the socket of the queue that it came on; where that queue has none, to the kernel's own stack.

use crate::{Error, Result};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Of include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const REDIRECT_MAP: i32 = 51;
const XDP_PASS: i32 = 2;
/// Where `rx_queue_index` is in `struct xdp_md`.
const RX_QUEUE_INDEX: i16 = 16;

/// A program on an interface, and the sockets that it hands packets to. The program goes from the interface when this is dropped, or the process ends.
#[derive(Debug)]
pub struct XdpProgram {
    map: OwnedFd,
    /// It keeps the program, and is what keeps it attached.
    _link: OwnedFd,
}

/// `union bpf_attr`, as words of 4 bytes: as many as any call here needs.
type Attributes = [u32; 32];

/// Makes a call.
///
/// # Safety
/// Addresses in `attributes` are of what the call reads there, and live until it returns.
unsafe fn bpf(call: libc::c_int, attributes: &mut Attributes, what: &str) -> Result<libc::c_int> {
    let (at, len) = (attributes.as_mut_ptr(), size_of::<Attributes>());
    // SAFETY: the kernel reads and writes `len` bytes there, and the caller answers for what they point to.
    let done = unsafe { libc::syscall(libc::SYS_bpf, call, at, len) };
    match libc::c_int::try_from(done) {
        Ok(done) if done >= 0 => Ok(done),
        _ => Err(Error::Io { what: what.to_owned(), cause: io::Error::last_os_error() }),
    }
}

/// Makes a call that returns a descriptor.
///
/// # Safety
/// As [`bpf`]; and the call is one of those.
unsafe fn bpf_fd(call: libc::c_int, attributes: &mut Attributes, what: &str) -> Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { bpf(call, attributes, what) }?;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts an address, which takes two words.
fn put<T: ?Sized>(attributes: &mut Attributes, word: usize, value: &T) {
    let address = std::ptr::from_ref(value).cast::<u8>().expose_provenance() as u64;
    let [a, b, c, d, e, f, g, h] = address.to_ne_bytes();
    attributes[word] = u32::from_ne_bytes([a, b, c, d]);
    attributes[word + 1] = u32::from_ne_bytes([e, f, g, h]);
}

/// An instruction (`struct bpf_insn`).
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let registers = if cfg!(target_endian = "big") { destination << 4 | source } else { source << 4 | destination };
    let ([o0, o1], [i0, i1, i2, i3]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, registers, o0, o1, i0, i1, i2, i3]
}

impl XdpProgram {
    /// Loads the program and attaches it to `interface`, for sockets of up to `queues` queues: as the interface's driver runs it, or else before the
    /// kernel's stack.
    ///
    /// # Errors
    /// [`Error::Io`] with the step that failed: `PermissionDenied` without CAP_BPF and CAP_NET_ADMIN, `EBUSY` where the interface has a program.
    pub fn attach(interface: u32, queues: u32) -> Result<Self> {
        let mut map = Attributes::default();
        map[..4].copy_from_slice(&[MAP_TYPE_XSKMAP, 4, 4, queues.max(1)]);
        // SAFETY: no addresses; it returns a descriptor.
        let map = unsafe { bpf_fd(MAP_CREATE, &mut map, "making a map of sockets (bpf)") }?;
        let instructions = [
            // r2 = the queue; r1 = the map; r3 = what to do where that has no socket.
            instruction(0x61, 2, 1, RX_QUEUE_INDEX, 0),
            instruction(0x18, 1, 1, 0, map.as_raw_fd()),
            instruction(0, 0, 0, 0, 0),
            instruction(0xb7, 3, 0, 0, XDP_PASS),
            instruction(0x85, 0, 0, 0, REDIRECT_MAP),
            instruction(0x95, 0, 0, 0, 0),
        ];
        let mut load = Attributes::default();
        load[..2].copy_from_slice(&[PROG_TYPE_XDP, instructions.len() as u32]);
        put(&mut load, 2, &instructions);
        put(&mut load, 4, c"MIT");
        load[17] = ATTACH_XDP;
        // SAFETY: as many instructions as said, and a string that is terminated; it returns a descriptor.
        let program = unsafe { bpf_fd(PROG_LOAD, &mut load, "loading an XDP program (bpf)") }?;
        let mut link = Attributes::default();
        link[..3].copy_from_slice(&[program.as_raw_fd() as u32, interface, ATTACH_XDP]);
        // SAFETY: no addresses; it returns a descriptor.
        let link = unsafe { bpf_fd(LINK_CREATE, &mut link, "attaching an XDP program (bpf)") }?;
        Ok(Self { map, _link: link })
    }

    /// Has the packets of `queue` go to `socket`, which the kernel takes out again when that is closed.
    pub(super) fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<()> {
        let (key, value) = (queue, socket.as_raw_fd() as u32);
        let mut update = Attributes::default();
        update[0] = self.map.as_fd().as_raw_fd() as u32;
        put(&mut update, 2, &key);
        put(&mut update, 4, &value);
        // SAFETY: a key and a value of 4 bytes each, as the map was made.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut update, "having packets go to a socket (bpf)") }.map(drop)
    }
}
