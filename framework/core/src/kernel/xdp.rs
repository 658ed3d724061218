//! AF_XDP sockets: packets of one queue of an interface, before the kernel's stack has seen them. (Linux: `Documentation/networking/af_xdp.rst`.)
//!
//! The memory that the kernel, or the card itself, writes and reads (UMEM) is the socket's own, and packets are copied to and from it by atomic words: so nothing has to
//! be known of when the kernel lets go of it, which a child process that has the socket, too, can put off.
//!
//! This file does *not* know what packets are.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Malformed;
use super::bpf::XdpProgram;
use crate::mem::{Buf, Mapping, memfd};
use crate::pci::Prot;
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags, XdpRingOffset, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with, sockopt,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of memory for a packet: no page is smaller.
const CHUNK: u32 = 4096;
/// Bytes that the kernel leaves free in front of a packet (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// The largest packet, in bytes.
pub const XDP_LARGEST: u32 = CHUNK - HEADROOM;
/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// A socket on one queue.
#[derive(Debug)]
pub struct XdpSocket {
    fd: OwnedFd,
    memory: Mapping,
    fill: Ring,
    rx: Ring,
    tx: Ring,
    completion: Ring,
    zero_copy: bool,
}

/// One of a socket's rings, of which the kernel has the other end.
#[derive(Debug)]
struct Ring {
    mapping: Mapping,
    offsets: XdpRingOffset,
    size: u32,
    /// Bytes of an entry.
    entry: u64,
}

impl Ring {
    fn map(fd: &OwnedFd, at: u64, offsets: XdpRingOffset, size: u32, entry: u64) -> Result<Self> {
        let len = offsets.desc.saturating_add(u64::from(size).saturating_mul(entry));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let mapping = Mapping::of_fd(fd.as_fd(), at, len, Prot::ReadWrite)?;
        Ok(Self { mapping, offsets, size, entry })
    }

    #[inline]
    fn load(&self, at: u64) -> u32 {
        // Acquire pairs with the kernel's release of its index (`__xskq_prod_submit`, `__xskq_cons_release`): entries were written, or read, before.
        self.mapping.u32(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store(&self, at: u64, value: u32) {
        if let Some(word) = self.mapping.u32(at) {
            // Release pairs with the kernel's acquire of this index (`__xskq_cons_peek`, `xskq_prod_nb_free`).
            word.store(value, Ordering::Release);
        }
    }

    /// Entries that this side may take, where it has taken `taken`.
    #[inline]
    fn ready(&self, taken: u32) -> u32 {
        self.load(self.offsets.producer).wrapping_sub(taken).min(self.size)
    }

    /// Entries that this side may fill, where it has filled `filled`.
    #[inline]
    fn room(&self, filled: u32) -> u32 {
        self.size.saturating_sub(filled.wrapping_sub(self.load(self.offsets.consumer)))
    }

    #[inline]
    fn at(&self, index: u32) -> u64 {
        let place = u64::from(index & self.size.wrapping_sub(1));
        self.offsets.desc.wrapping_add(place.wrapping_mul(self.entry))
    }

    /// The address in an entry.
    #[inline]
    fn address(&self, index: u32) -> u64 {
        // Relaxed: the index was loaded before.
        self.mapping.u64(self.at(index)).map_or(u64::MAX, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn put_address(&self, index: u32, address: u64) {
        if let Some(word) = self.mapping.u64(self.at(index)) {
            // Relaxed: the index is stored after.
            word.store(address, Ordering::Relaxed);
        }
    }

    /// The length in an entry of a packet (`struct xdp_desc`).
    #[inline]
    fn length(&self, index: u32) -> u32 {
        self.mapping.u32(self.at(index).wrapping_add(8)).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn put_length(&self, index: u32, length: u32) {
        for (at, value) in [(8, length), (12, 0)] {
            if let Some(word) = self.mapping.u32(self.at(index).wrapping_add(at)) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.offsets.flags.is_none_or(|at| self.load(at) & NEED_WAKEUP != 0)
    }
}

/// How a socket is opened.
#[derive(Debug, Clone, Copy)]
pub struct XdpOptions {
    /// Entries of the rings of received packets and of buffers for them, a power of two.
    pub rx_descriptors: u32,
    /// Entries of the rings of packets to send and of those that were sent, a power of two.
    pub tx_descriptors: u32,
    /// Have the card itself write and read buffers, which its driver must know how to do; else the kernel copies.
    pub zero_copy: bool,
}

/// Packets that a socket took and dropped, since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XdpCounts {
    /// Packets dropped for want of a buffer, or of room for them.
    pub dropped: u64,
    /// Entries that the kernel found to make no sense.
    pub invalid: u64,
}

/// The receiving half of a socket.
#[derive(Debug)]
pub struct XdpRx {
    socket: Arc<XdpSocket>,
    /// Entries taken of received packets, and filled with memory for further ones.
    taken: u32,
    filled: u32,
}

/// The sending half of a socket.
#[derive(Debug)]
pub struct XdpTx {
    socket: Arc<XdpSocket>,
    /// Entries filled with packets, and taken of those that were sent.
    filled: u32,
    taken: u32,
    /// Where packets can be copied to.
    free: Vec<u64>,
}

/// A packet that was received, until its memory is given back.
#[derive(Debug, Clone, Copy)]
pub struct XdpFrame {
    at: u64,
    /// Its length, in bytes.
    pub len: u32,
}

impl XdpSocket {
    /// Opens a socket on `queue` of `interface`, whose packets `program` hands to it.
    ///
    /// # Errors
    /// [`Error::Io`] with the step that failed: `PermissionDenied` without CAP_NET_RAW, `ENOBUFS` where more memory would be locked than is allowed
    /// (RLIMIT_MEMLOCK), `EINVAL` where there is no such queue, `EBUSY` where another has it, `EOPNOTSUPP` where there is no zero copy; [`Error::Mmap`]
    /// and [`Error::Memory`].
    pub fn open(
        program: &XdpProgram,
        interface: u32,
        queue: u32,
        options: XdpOptions,
    ) -> Result<(Arc<Self>, XdpRx, XdpTx)> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |cause: Errno| Error::Io { what, cause: cause.into() }
        };
        let (rx_size, tx_size) = (options.rx_descriptors, options.tx_descriptors);
        let chunks = u64::from(rx_size).saturating_add(tx_size.into());
        let (memory, _) = memfd("wholebar-umem", chunks.saturating_mul(CHUNK.into()).next_multiple_of(64 << 10), None)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)
            .map_err(failed("opening an AF_XDP socket"))?;
        let registration = XdpUmemReg {
            addr: memory.base().as_ptr().expose_provenance() as u64,
            len: memory.len(),
            chunk_size: CHUNK,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&fd, registration).map_err(failed("registering memory for an AF_XDP socket"))?;
        let sizes = || {
            sockopt::set_xdp_umem_fill_ring_size(&fd, rx_size)?;
            sockopt::set_xdp_umem_completion_ring_size(&fd, tx_size)?;
            sockopt::set_xdp_rx_ring_size(&fd, rx_size)?;
            sockopt::set_xdp_tx_ring_size(&fd, tx_size)?;
            sockopt::xdp_mmap_offsets(&fd)
        };
        let offsets = sizes().map_err(failed("making the rings of an AF_XDP socket"))?;
        let fill = Ring::map(&fd, XDP_UMEM_PGOFF_FILL_RING, offsets.fr, rx_size, 8)?;
        let completion = Ring::map(&fd, XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr, tx_size, 8)?;
        let rx = Ring::map(&fd, XDP_PGOFF_RX_RING, offsets.rx, rx_size, 16)?;
        let tx = Ring::map(&fd, XDP_PGOFF_TX_RING, offsets.tx, tx_size, 16)?;
        // The memory for received packets comes first.
        let chunk = |index: u32| u64::from(index).saturating_mul(CHUNK.into());
        for index in 0..rx_size {
            fill.put_address(index, chunk(index));
        }
        fill.store(fill.offsets.producer, rx_size);
        let mode = if options.zero_copy { SocketAddrXdpFlags::XDP_ZEROCOPY } else { SocketAddrXdpFlags::XDP_COPY };
        let address = SocketAddrXdp::new(mode | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP, interface, queue);
        bind(&fd, &address).map_err(failed("binding an AF_XDP socket to a queue of the interface"))?;
        program.insert(queue, fd.as_fd())?;
        let zero_copy = sockopt::xdp_options(&fd).is_ok_and(|o| o.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY));
        let socket = Arc::new(Self { fd, memory, fill, rx, tx, completion, zero_copy });
        let receiver = XdpRx { socket: socket.clone(), taken: 0, filled: rx_size };
        let free = (rx_size..rx_size.saturating_add(tx_size)).map(chunk).collect();
        Ok((socket.clone(), receiver, XdpTx { socket, filled: 0, taken: 0, free }))
    }

    /// Returns what the kernel counted. One system call.
    ///
    /// # Errors
    /// Those of getsockopt(2); none is expected of an open socket.
    pub fn counts(&self) -> std::io::Result<XdpCounts> {
        let all = sockopt::xdp_statistics(&self.fd)?;
        Ok(XdpCounts {
            dropped: all.rx_dropped.wrapping_add(all.rx_ring_full.unwrap_or(0)),
            invalid: all.rx_invalid_descs.wrapping_add(all.tx_invalid_descs),
        })
    }

    /// Returns whether the card itself writes and reads the socket's memory.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }
}

impl XdpRx {
    /// Returns the next packet; `None` where there is none yet. No system call.
    ///
    /// # Errors
    /// [`Malformed`] where what the kernel says of it lies outside of one piece of the socket's memory.
    #[inline]
    pub fn peek(&self) -> Option<Result<XdpFrame, Malformed>> {
        let ring = &self.socket.rx;
        (ring.ready(self.taken) > 0).then(|| {
            let (at, len) = (ring.address(self.taken), ring.length(self.taken));
            let inside = at & u64::from(CHUNK.wrapping_sub(1));
            let fits = inside.checked_add(len.into()).is_some_and(|end| end <= CHUNK.into());
            if fits && at < self.socket.memory.len() { Ok(XdpFrame { at, len }) } else { Err(Malformed) }
        })
    }

    /// Copies the first bytes of a packet; returns whether it has as many. By atomic words: sound whatever the kernel writes meanwhile.
    #[inline]
    pub fn copy(&self, frame: &XdpFrame, out: &mut [u8]) -> bool {
        out.len() <= frame.len as usize && self.socket.memory.read(frame.at, out)
    }

    /// Takes the packet that was looked at, and gives its memory back to the kernel; [`publish`](Self::publish) makes that known. It does nothing where there
    /// is none.
    #[inline]
    pub fn release(&mut self) {
        let XdpSocket { rx, fill, .. } = &*self.socket;
        if rx.ready(self.taken) == 0 {
            return;
        }
        let at = rx.address(self.taken) & !u64::from(CHUNK.wrapping_sub(1));
        self.taken = self.taken.wrapping_add(1);
        rx.store(rx.offsets.consumer, self.taken);
        // There is room, unless the kernel counts otherwise; then the memory is lost to it.
        if fill.room(self.filled) > 0 {
            fill.put_address(self.filled, at);
            self.filled = self.filled.wrapping_add(1);
        }
    }

    /// Makes memory known to the kernel; returns whether that took a system call.
    #[inline]
    pub fn publish(&self) -> bool {
        let fill = &self.socket.fill;
        fill.store(fill.offsets.producer, self.filled);
        // Where the kernel copies, it needs none.
        let wakes = self.socket.zero_copy && fill.needs_wakeup();
        if wakes {
            let _ = recv(&self.socket.fd, &mut [0u8; 0][..], RecvFlags::DONTWAIT);
        }
        wakes
    }
}

impl AsFd for XdpRx {
    /// The socket: it can be read while there is a packet.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }
}

impl XdpTx {
    /// Returns how many packets can be posted now.
    #[inline]
    pub fn room(&self) -> usize {
        self.free.len().min(self.socket.tx.room(self.filled) as usize)
    }

    /// Returns the number of packets that are not known to be sent.
    #[inline]
    pub fn in_flight(&self) -> usize {
        (self.socket.tx.size as usize).saturating_sub(self.free.len())
    }

    /// Copies a packet, chains of buffers included, and posts it; [`ring`](Self::ring) makes it known. Returns `false` where there is no room, or it is empty or
    /// longer than [`XDP_LARGEST`].
    #[inline]
    pub fn post(&mut self, packet: &Buf) -> bool {
        let len = packet.packet_len();
        if self.room() == 0 || !(1..=u64::from(XDP_LARGEST)).contains(&len) {
            return false;
        }
        let Some(at) = self.free.pop() else { return false };
        let mut to = at;
        for segment in packet.segments() {
            self.socket.memory.write(to, segment.bytes());
            to = to.wrapping_add(segment.len().into());
        }
        self.socket.tx.put_address(self.filled, at);
        self.socket.tx.put_length(self.filled, len as u32);
        self.filled = self.filled.wrapping_add(1);
        true
    }

    /// Has the kernel send what was posted: by a system call, unless it says that it needs none. Returns whether it took one.
    ///
    /// # Errors
    /// The system's: `EAGAIN` where it is to be asked again, `EBUSY` where a packet was dropped on its way, `ENOBUFS`, `ENETDOWN`, `ENXIO`.
    #[inline]
    pub fn ring(&self) -> std::io::Result<bool> {
        let ring = &self.socket.tx;
        ring.store(ring.offsets.producer, self.filled);
        if !ring.needs_wakeup() {
            return Ok(false);
        }
        send(&self.socket.fd, &[], SendFlags::DONTWAIT)?;
        Ok(true)
    }

    /// Takes back the memory of packets that were sent.
    #[inline]
    pub fn reclaim(&mut self) {
        let ring = &self.socket.completion;
        let (first, end) = (u64::from(self.socket.rx.size), u64::from(self.socket.rx.size.saturating_add(ring.size)));
        for _ in 0..ring.ready(self.taken) {
            let chunk = ring.address(self.taken) >> CHUNK.trailing_zeros();
            self.taken = self.taken.wrapping_add(1);
            // What was not posted is not believed.
            if (first..end).contains(&chunk) && self.free.len() < ring.size as usize {
                self.free.push(chunk.wrapping_mul(CHUNK.into()));
            }
        }
        ring.store(ring.offsets.consumer, self.taken);
    }
}
