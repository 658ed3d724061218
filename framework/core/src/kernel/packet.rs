//! Packet sockets: an interface's packets, which the kernel writes into a ring that is mapped here, and sends from buffers. (packet(7); Linux:
//! `Documentation/networking/packet_mmap.rst`, `TPACKET_V2`.)
//!
//! What the kernel writes is treated as what a device writes: words of the ring are atomics, and where it says that a packet lies is checked.
//!
//! A slot of the ring has room for the largest packet that a network stack hands over, 64 KiB with its headers: cards merge TCP segments that they receive, and
//! virtual interfaces pass on what was never cut. What remains to be done to a packet stands in its virtio header (`PACKET_VNET_HDR`), so that nobody has
//! to guess which checksums are still to be completed.
//!
//! This file does *not* know addresses, links, or who may use an interface.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::sys::{self, PacketOption};
use crate::mem::{Buf, Mapping};
use crate::pci::Prot;
use crate::{Error, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a slot: 64 KiB, the ring's own headers, and a packet's; a multiple of 16 (`TPACKET_ALIGNMENT`).
const SLOT: u32 = (64 << 10) + 256;
/// Slots lie in blocks, which are whole pages on every host.
const BLOCK: u32 = 1 << 20;
const PER_BLOCK: u32 = BLOCK / SLOT;
/// The most slots of a ring.
pub const MAX_SLOTS: u32 = 16 << 10;

/// `struct tpacket2_hdr`: where its fields are in a slot.
mod field {
    pub const STATUS: u64 = 0;
    pub const LEN: u64 = 4;
    pub const SNAPLEN: u64 = 8;
    pub const MAC: u64 = 12;
    pub const SECONDS: u64 = 16;
    pub const NANOSECONDS: u64 = 20;
    pub const VLAN_TCI: u64 = 24;
    pub const VLAN_TPID: u64 = 26;
    /// `sll_pkttype` of the `struct sockaddr_ll` behind it.
    pub const KIND: u64 = 32 + 10;
    /// What comes first lies behind that.
    pub const END: u32 = 32 + 20;
}

/// Bytes of `struct virtio_net_hdr`, right in front of the packet.
const NET_HEADER: u32 = 10;

/// A packet socket on one interface. Dropping it, and the ring made of it, gives back all that it had asked of the interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    interface: u32,
}

/// To whom a packet was addressed, as the kernel sees it (`PACKET_HOST` and others).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// This interface.
    Host,
    /// Everybody.
    Broadcast,
    /// A group.
    Multicast,
    /// Another station.
    Other,
    /// It was sent here, and is no packet that came.
    Outgoing,
}

/// What an interface is to receive besides what is addressed to it (`PACKET_ADD_MEMBERSHIP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// A group, or a further address.
    Address([u8; 6]),
    /// All groups.
    AllMulticast,
    /// Everything.
    Promiscuous,
}

/// What remains to be done to a received packet, as the kernel says (`struct virtio_net_hdr`; VIRTIO 1.2, 5.1.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// Bit 0 (`NEEDS_CSUM`): the checksum remains to be completed; bit 1 (`DATA_VALID`): checksums were checked.
    pub flags: u8,
    /// How it is to be cut: 0 not at all, 1 as TCP over IPv4, 4 as TCP over IPv6, 5 as UDP; bit 7 (`ECN`) besides.
    pub gso_type: u8,
    /// Bytes of all headers, as a hint.
    pub hdr_len: u16,
    /// Bytes of a segment's payload.
    pub gso_size: u16,
    /// Where summing begins, in bytes from the packet's start.
    pub csum_start: u16,
    /// Where the checksum goes, in bytes from `csum_start`.
    pub csum_offset: u16,
}

/// A packet in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Where in the mapping it begins.
    at: u64,
    /// Bytes of it that are in the ring.
    pub captured: u32,
    /// Bytes that it had: more than `captured` where it was cut off.
    pub len: u32,
    /// To whom it was addressed.
    pub destination: Destination,
    /// Tag control information and protocol of the VLAN tag that was taken off.
    pub vlan: Option<(u16, u16)>,
    /// When it came, in nanoseconds since 1970.
    pub time: u64,
    /// What remains to be done.
    pub header: NetHeader,
}

/// What the kernel says of a packet makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Packets that a socket's ring took and dropped, since this was last asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PacketStatistics {
    /// Packets that came, those dropped included.
    pub packets: u32,
    /// Packets dropped because no slot was free.
    pub dropped: u32,
}

impl PacketSocket {
    /// Opens a socket that sends packets on `interface`, by its index, past its queueing discipline (`PACKET_QDISC_BYPASS`), and receives none.
    ///
    /// # Errors
    /// [`Error::Io`] with the step that failed: `PermissionDenied` without CAP_NET_RAW, `ENODEV` where there is no such interface.
    pub fn sender(interface: u32) -> Result<Arc<Self>> {
        let socket = Self::new(interface)?;
        socket.set(PacketOption::QdiscBypass, &[1], "having packets sent past the queueing discipline")?;
        // As much as the system allows: a card holds packets until it has sent them.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&socket.fd, SEND_BUFFER)
            .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&socket.fd, SEND_BUFFER));
        socket.bind(0)?;
        Ok(Arc::new(socket))
    }

    /// Opens a socket that receives the packets of `interface`, by its index, but none that are sent there, in a ring of at least `slots` packets, at most
    /// [`MAX_SLOTS`]. Each takes 64 KiB of the kernel's memory.
    ///
    /// # Errors
    /// [`Error::Io`] with the step that failed: `PermissionDenied` without CAP_NET_RAW, `ENODEV` where there is no such interface, `OutOfMemory`;
    /// [`Error::Mmap`].
    pub fn receiver(interface: u32, slots: u32) -> Result<(Arc<Self>, PacketRing)> {
        let socket = Self::new(interface)?;
        let version = libc::tpacket_versions::TPACKET_V2 as u32;
        socket.set(PacketOption::Version, &[version], "asking for rings of version 2")?;
        socket.set(PacketOption::VnetHdr, &[1], "asking for virtio headers")?;
        socket.set(PacketOption::IgnoreOutgoing, &[1], "leaving out what is sent (since Linux 4.20)")?;
        let blocks = slots.clamp(1, MAX_SLOTS).div_ceil(PER_BLOCK);
        let slots = blocks.saturating_mul(PER_BLOCK);
        socket.set(PacketOption::RxRing, &[BLOCK, blocks, SLOT, slots], "making the ring")?;
        let len = (blocks as usize).saturating_mul(BLOCK as usize);
        let mapping = Mapping::of_fd(socket.fd.as_fd(), 0, len, Prot::ReadWrite)?;
        // Only now do packets come.
        socket.bind(libc::ETH_P_ALL as u16)?;
        let socket = Arc::new(socket);
        let ring = PacketRing { mapping, slots, next: 0, socket: socket.clone() };
        Ok((socket, ring))
    }

    fn new(interface: u32) -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
            .map_err(|e| Error::Io { what: "opening a packet socket".to_owned(), cause: e.into() })?;
        Ok(Self { fd, interface })
    }

    fn set(&self, option: PacketOption, value: &[u32], what: &str) -> Result<()> {
        sys::set(self.fd.as_fd(), option, value).map_err(|cause| Error::Io { what: what.to_owned(), cause })
    }

    fn bind(&self, protocol: u16) -> Result<()> {
        let what = || format!("binding a packet socket to interface {}", self.interface);
        sys::bind(self.fd.as_fd(), self.interface, protocol).map_err(|cause| Error::Io { what: what(), cause })
    }

    /// Joins the sockets of `group`, or begins one where that is `None`: each packet goes to one socket of the group, by a hash of its flow
    /// (`PACKET_FANOUT_HASH`). Returns the group.
    ///
    /// # Errors
    /// [`Error::Io`], of setsockopt(2): `EINVAL` where the group has sockets of another interface or kind.
    pub fn join(&self, group: Option<u16>) -> Result<u16> {
        let flags = if group.is_some() { 0 } else { libc::PACKET_FANOUT_FLAG_UNIQUEID };
        let kind = (libc::PACKET_FANOUT_HASH | flags) << 16 | u32::from(group.unwrap_or(0));
        self.set(PacketOption::Fanout, &[kind], "sharing packets between queues")?;
        let mut value = [0];
        let asked = sys::get(self.fd.as_fd(), PacketOption::Fanout, &mut value);
        asked.map_err(|cause| Error::Io { what: "asking for the group of sockets".to_owned(), cause })?;
        Ok(value[0] as u16)
    }

    /// Has the interface receive more, or no longer; the kernel counts how many ask for it, and what this socket asked for ends with it.
    ///
    /// # Errors
    /// Those of setsockopt(2): `ENODEV` where the interface is gone.
    pub fn set_membership(&self, membership: Membership, on: bool) -> io::Result<()> {
        let (kind, address) = match membership {
            // The lowest bit of the first octet is that of groups.
            Membership::Address(address) if address[0] & 1 == 0 => (libc::PACKET_MR_UNICAST, address),
            Membership::Address(address) => (libc::PACKET_MR_MULTICAST, address),
            Membership::AllMulticast => (libc::PACKET_MR_ALLMULTI, [0; 6]),
            Membership::Promiscuous => (libc::PACKET_MR_PROMISC, [0; 6]),
        };
        // `struct packet_mreq`: the interface, the kind, the length of the address, and eight bytes for that.
        let ([k0, k1], [l0, l1], [a, b, c, d, e, f]) = ((kind as u16).to_ne_bytes(), 6u16.to_ne_bytes(), address);
        let words = [[k0, k1, l0, l1], [a, b, c, d], [e, f, 0, 0]].map(u32::from_ne_bytes);
        let value = [self.interface, words[0], words[1], words[2]];
        let option = if on { PacketOption::AddMembership } else { PacketOption::DropMembership };
        sys::set(self.fd.as_fd(), option, &value)
    }

    /// Returns how many packets came and were dropped since this was last called.
    ///
    /// # Errors
    /// Those of getsockopt(2); none is expected of an open socket.
    pub fn statistics(&self) -> io::Result<PacketStatistics> {
        let mut counts = [0; 2];
        sys::get(self.fd.as_fd(), PacketOption::Statistics, &mut counts)?;
        Ok(PacketStatistics { packets: counts[0], dropped: counts[1] })
    }

    /// Sends packets, in order and as they are, chains of buffers included, and returns how many the kernel took: at most [`SEND_BURST`], by one system
    /// call. The kernel has copied them when this returns. It waits for nothing.
    ///
    /// # Errors
    /// That of the first packet, where that was not taken: `WouldBlock` or `ENOBUFS` where there is no room now, `EMSGSIZE` where it is longer than the MTU
    /// allows, or in more than [`SEND_SEGMENTS`] buffers, `ENETDOWN` where the interface is down, `ENXIO` where it is gone.
    #[inline]
    pub fn send(&self, packets: &[Buf]) -> io::Result<usize> {
        sys::send(self.fd.as_fd(), packets)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub use sys::{SEND_BURST, SEND_SEGMENTS};

/// Bytes that may be on their way through an interface.
const SEND_BUFFER: usize = 8 << 20;

/// The ring of a socket that receives.
///
/// Packets are looked at in their order: [`peek`](Self::peek), [`copy`](Self::copy), and [`release`](Self::release) gives the slot back to the kernel.
#[derive(Debug)]
pub struct PacketRing {
    pub(super) mapping: Mapping,
    slots: u32,
    next: u32,
    /// Without it, nothing comes.
    socket: Arc<PacketSocket>,
}

impl PacketRing {
    /// Returns the number of slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Where the next slot is in the mapping.
    #[inline]
    pub(super) fn slot(&self) -> u64 {
        let (block, place) = (self.next / PER_BLOCK, self.next % PER_BLOCK);
        u64::from(block).wrapping_mul(BLOCK.into()).wrapping_add(u64::from(place).wrapping_mul(SLOT.into()))
    }

    /// Returns whether a packet is in the next slot. No system call.
    #[inline]
    pub fn is_ready(&self) -> bool {
        // Acquire pairs with the kernel's barrier before it stores the status (`__packet_set_status`): the packet was written before.
        let status = self.mapping.u32(self.slot().wrapping_add(field::STATUS));
        status.is_some_and(|status| status.load(Ordering::Acquire) & libc::TP_STATUS_USER != 0)
    }

    /// Returns the packet in the next slot; `None` where there is none yet. No system call.
    ///
    /// # Errors
    /// [`Malformed`] where what the kernel says of it lies outside of the slot.
    #[inline]
    pub fn peek(&self) -> Option<Result<Frame, Malformed>> {
        self.is_ready().then(|| self.frame().ok_or(Malformed))
    }

    fn frame(&self) -> Option<Frame> {
        let slot = self.slot();
        // Relaxed: the status was loaded before.
        let word = |at: u64| Some(self.mapping.u32(slot.wrapping_add(at))?.load(Ordering::Relaxed));
        let half = |at: u64| Some(self.mapping.u16(slot.wrapping_add(at))?.load(Ordering::Relaxed));
        let (status, len, captured) = (word(field::STATUS)?, word(field::LEN)?, word(field::SNAPLEN)?);
        let begins = u32::from(half(field::MAC)?);
        let ends = begins.checked_add(captured)?;
        if ends > SLOT || captured > len || begins.checked_sub(NET_HEADER)? < field::END {
            return None;
        }
        let destination = match self.mapping.u8(slot.wrapping_add(field::KIND))?.load(Ordering::Relaxed) {
            libc::PACKET_HOST => Destination::Host,
            libc::PACKET_BROADCAST => Destination::Broadcast,
            libc::PACKET_MULTICAST => Destination::Multicast,
            libc::PACKET_OUTGOING => Destination::Outgoing,
            _ => Destination::Other,
        };
        let tagged = status & libc::TP_STATUS_VLAN_VALID != 0;
        let vlan = if tagged { Some((half(field::VLAN_TCI)?, half(field::VLAN_TPID)?)) } else { None };
        let time =
            u64::from(word(field::SECONDS)?).wrapping_mul(1_000_000_000).wrapping_add(word(field::NANOSECONDS)?.into());
        let at = slot.wrapping_add(begins.into());
        let mut bytes = [0; NET_HEADER as usize];
        if !self.mapping.read(at.wrapping_sub(NET_HEADER.into()), &mut bytes) {
            return None;
        }
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        // In the byte order of this CPU (`vio_le`).
        let header = NetHeader {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Some(Frame { at, captured, len, destination, vlan, time, header })
    }

    /// Copies bytes `from..from + out.len()` of a packet; returns whether it has as many. By atomic words: sound whatever the kernel writes meanwhile.
    #[inline]
    pub fn copy(&self, frame: &Frame, from: u32, out: &mut [u8]) -> bool {
        let end = (from as usize).checked_add(out.len());
        end.is_some_and(|end| end <= frame.captured as usize)
            && self.mapping.read(frame.at.wrapping_add(from.into()), out)
    }

    /// Gives the slot of the packet that was looked at back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        if let Some(status) = self.mapping.u32(self.slot().wrapping_add(field::STATUS)) {
            // Release pairs with the kernel's load of the status (`packet_lookup_frame`): what was read of the slot was read before.
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        self.next = self.next.wrapping_add(1);
        if self.next >= self.slots {
            self.next = 0;
        }
    }
}

impl AsFd for PacketRing {
    /// The socket: it can be read while a packet is in the ring.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
