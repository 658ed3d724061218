//! The system calls of packet sockets, which no crate has in a safe form: their options, their addresses, and sending several packets at once.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::mem::Buf;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The options of packet sockets that are used here. The value of none of them holds an address.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
pub(super) enum PacketOption {
    AddMembership = libc::PACKET_ADD_MEMBERSHIP,
    DropMembership = libc::PACKET_DROP_MEMBERSHIP,
    RxRing = libc::PACKET_RX_RING,
    Statistics = libc::PACKET_STATISTICS,
    Version = libc::PACKET_VERSION,
    VnetHdr = libc::PACKET_VNET_HDR,
    Fanout = libc::PACKET_FANOUT,
    QdiscBypass = libc::PACKET_QDISC_BYPASS,
    IgnoreOutgoing = libc::PACKET_IGNORE_OUTGOING,
}

/// Sets an option.
pub(super) fn set(fd: BorrowedFd<'_>, option: PacketOption, value: &[u32]) -> io::Result<()> {
    let len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, which are those of `value`, and takes none of them for an address: see `PacketOption`.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option as i32, value.as_ptr().cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks for an option.
pub(super) fn get(fd: BorrowedFd<'_>, option: PacketOption, value: &mut [u32]) -> io::Result<()> {
    let mut len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the kernel writes `len` bytes at most, which are those of `value`, and how many it wrote.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option as i32, value.as_mut_ptr().cast(), &raw mut len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Binds a packet socket to an interface, and to a protocol; 0 for none.
pub(super) fn bind(fd: BorrowedFd<'_>, interface: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of an address, which this is.
    let done = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The most packets that one system call takes.
pub const SEND_BURST: usize = 32;
/// The most buffers of a packet that is sent.
pub const SEND_SEGMENTS: usize = 32;
/// Buffers of all of them: room for one of many, or for two each.
const PIECES: usize = 2 * SEND_BURST;

/// Sends packets; returns how many were taken.
pub(super) fn send(fd: BorrowedFd<'_>, packets: &[Buf]) -> io::Result<usize> {
    // SAFETY: both structures are integers and addresses, for which zeroes are a value.
    let (mut pieces, mut messages) =
        unsafe { (std::mem::zeroed::<[libc::iovec; PIECES]>(), std::mem::zeroed::<[libc::mmsghdr; SEND_BURST]>()) };
    let (mut used, mut count) = (0usize, 0usize);
    for (packet, message) in packets.iter().zip(&mut messages) {
        let segments = packet.segments().count();
        if segments > SEND_SEGMENTS {
            // Those before it, or this one's error.
            if count == 0 {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            break;
        }
        let Some(room) = used.checked_add(segments).and_then(|end| pieces.get_mut(used..end)) else { break };
        for (piece, segment) in room.iter_mut().zip(packet.segments()) {
            let bytes = segment.bytes();
            *piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        }
        message.msg_hdr.msg_iov = room.as_mut_ptr();
        message.msg_hdr.msg_iovlen = segments as _;
        (used, count) = (used.saturating_add(segments), count.saturating_add(1));
    }
    // SAFETY: `count` messages are filled in, each with as many pieces as it says, which are bytes of packets that are borrowed until the kernel has
    // returned, and which it only reads.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count as _, libc::MSG_DONTWAIT as _) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
