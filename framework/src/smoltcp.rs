//! TCP/IP without the kernel's network stack: [smoltcp](https://docs.rs/smoltcp), and a [`Device`] that puts it over a port's queues.
//!
//! What smoltcp receives it reads in the buffer that the device wrote, and what it sends it writes where the device reads. This file does *not* know
//! of addresses, sockets or time: those are smoltcp's, whose modules are here too, so that a program needs no other dependency.
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "virtio"))] {
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//! use wholebar::net::{self, PortConfig};
//! use wholebar::smoltcp::iface::{Config, Interface, SocketSet};
//! use wholebar::smoltcp::socket::tcp;
//! use wholebar::smoltcp::time::Instant;
//! use wholebar::smoltcp::wire::{EthernetAddress, IpCidr};
//! use wholebar::smoltcp::{self, Device};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A host: a port of whichever driver, its queues, and an address.
//! let host = |address: &str| -> Result<_, Box<dyn std::error::Error>> {
//!     let port = net::open(wholebar::open("sim:virtio-net,wire=pair:tcp")?, &PortConfig::default())?;
//!     let arena = Arena::new(8 << 20, ArenaOptions::default())?;
//!     port.attach(arena.clone())?;
//!     let pool = Pool::new(arena, 2048, 2048 + u32::from(smoltcp::HEADROOM), 64)?;
//!     let mut device = Device::new(port.as_ref(), port.rx_queue(0, &pool)?, port.tx_queue(0)?, &pool)?;
//!     let config = Config::new(EthernetAddress(port.mac().0).into());
//!     let mut interface = Interface::new(config, &mut device, Instant::now());
//!     interface.update_ip_addrs(|all| all.extend([address.parse::<IpCidr>().unwrap()]));
//!     let buffer = || tcp::SocketBuffer::new(vec![0; 16384]);
//!     let mut sockets = SocketSet::new(vec![]);
//!     let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
//!     Ok((port, device, interface, sockets, socket))
//! };
//! // Two of them, on one wire.
//! let (_port, mut device, mut interface, mut sockets, listener) = host("10.0.0.1/24")?;
//! let (_other, mut other_device, mut other, mut other_sockets, client) = host("10.0.0.2/24")?;
//! sockets.get_mut::<tcp::Socket>(listener).listen(80)?;
//! other_sockets.get_mut::<tcp::Socket>(client).connect(other.context(), ("10.0.0.1".parse::<std::net::IpAddr>()?, 80), 49152)?;
//!
//! // One thread polls both.
//! loop {
//!     interface.poll(Instant::now(), &mut device, &mut sockets);
//!     let socket = sockets.get_mut::<tcp::Socket>(listener);
//!     if socket.can_send() {
//!         socket.send_slice(b"hello")?;
//!         socket.close();
//!     }
//!     other.poll(Instant::now(), &mut other_device, &mut other_sockets);
//!     let socket = other_sockets.get_mut::<tcp::Socket>(client);
//!     if socket.can_recv() {
//!         assert!(socket.recv(|bytes| (bytes.len(), bytes == b"hello"))?);
//!         break;
//!     }
//! }
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```

use crate::mem::{Buf, L4, Offload, Pool, PoolCache};
use crate::net::{Burst, Port, RxQueue, TxQueue};
use ::smoltcp::phy::{Checksum, DeviceCapabilities, Medium, PacketMeta};
use ::smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, checksum,
};
use std::num::NonZeroUsize;

#[doc(no_inline)]
pub use ::smoltcp::{iface, phy, socket, storage, time, wire};

/// Bytes that are left in front of a packet that is sent, for a driver's own header: a pool's buffers hold these and the largest packet.
pub const HEADROOM: u16 = 128;
/// Packets that are taken from the receive queue at once.
const BURST: usize = 32;
/// Bytes of an Ethernet header.
const ETHERNET: usize = EthernetFrame::<&[u8]>::header_len();
/// Bytes of the largest packet that a device is to cut into segments: its length has 16 bits in the IP header.
const LARGEST: usize = ETHERNET + 0xffff;
/// Where the checksum is in a TCP header (RFC 9293, 3.1), and in one of UDP (RFC 768).
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// A pool's buffers cannot hold what the port may send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{port} sends packets of up to {packet} bytes, and buffers of {size} are too small for one and {HEADROOM} bytes of headroom: make them of {}", packet + u32::from(HEADROOM))]
pub struct BufferTooSmall {
    /// The port's name.
    pub port: String,
    /// Bytes of its largest packet, the Ethernet header included.
    pub packet: u32,
    /// Bytes that a buffer of the pool holds.
    pub size: u32,
}

/// A receive queue and a send queue as a device of smoltcp's, for one thread.
///
/// **Receiving** copies nothing: smoltcp is handed the packet's own buffer, which goes home when it was read. Only a packet in several buffers, as they
/// come where [`scatter`](crate::net::Offloads::scatter) or [`lro`](crate::net::Offloads::lro) was asked for, is copied into one piece. Up to 32 packets
/// are taken from the queue at once. Packets whose VLAN tag the device took off ([`vlan_strip`](crate::net::Offloads::vlan_strip)) are dropped, as smoltcp drops those that have one.
///
/// **Sending** gives a packet to the queue as soon as it was written. While the queue has no room, or the pool no buffer, smoltcp is given no token:
/// nothing is lost, and nothing received either until there is room for an answer. So a pool that both queues share needs a hundred buffers more than both have descriptors.
///
/// **Offloads** are used where the port was opened with them, and [granted](Port::granted) them:
///
/// | offload | what becomes of it |
/// |---|---|
/// | `tx_l4_checksum` | the device fills in checksums of TCP and UDP; all else, as well as these without it, smoltcp computes |
/// | `tso` (with `tx_l4_checksum`) | TCP over IPv4 is handed over in pieces as large as the pool's buffers, up to 64 KiB, which the device cuts |
/// | `rx_checksum` | nothing: smoltcp verifies all that comes, also what the device found bad. Not to ask for it saves work: what a neighbour in the same machine left incomplete has to be completed first |
///
/// The MTU is the port's; what smoltcp calls so has the Ethernet header in it. There is no limit to bursts: that of a queue is its descriptors, hundreds of them.
/// A port receives what is sent to its address, and broadcasts; IPv6 needs [`set_all_multicast`](Port::set_all_multicast) as well, for it to be found.
///
/// A reset of the port needs nothing else than that the interface is polled. A port that is lost receives and sends nothing more:
/// [`Port::events`] tells.
pub struct Device {
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    cache: PoolCache,
    capabilities: DeviceCapabilities,
    /// Received, and not read yet.
    received: Burst,
    /// A packet in several buffers, in one piece.
    linear: Vec<u8>,
    /// What the next token writes into.
    spare: Option<Buf>,
    /// Written, and the queue had no room for it: one packet at most.
    unsent: Burst,
}

impl Device {
    /// A device of `port`'s queues `rx` and `tx`, or of queues around them; what is sent is in buffers of `pool`, whose arena is
    /// [attached](Port::attach). It allocates; nothing it does later does, but for packets that come in several buffers, the first time.
    ///
    /// # Errors
    /// [`BufferTooSmall`] where a buffer of the pool does not hold a packet of the port's MTU, its Ethernet header and [`HEADROOM`].
    pub fn new(
        port: &dyn Port,
        rx: Box<dyn RxQueue>,
        tx: Box<dyn TxQueue>,
        pool: &Pool,
    ) -> Result<Self, BufferTooSmall> {
        let packet = ETHERNET + usize::from(port.mtu());
        let room = (pool.size() as usize).saturating_sub(HEADROOM.into());
        if room < packet {
            return Err(BufferTooSmall { port: port.name().to_owned(), packet: packet as u32, size: pool.size() });
        }
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = packet;
        let granted = port.granted();
        if granted.tx_l4_checksum {
            (capabilities.checksum.tcp, capabilities.checksum.udp) = (Checksum::Rx, Checksum::Rx);
        }
        // Of IPv6, smoltcp does not tell the device that it is to cut.
        if granted.tx_l4_checksum && granted.tso {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(room.min(LARGEST));
        }
        Ok(Self {
            rx,
            tx,
            cache: pool.cache(BURST as u32),
            capabilities,
            received: Burst::new(BURST),
            linear: Vec::new(),
            spare: None,
            unsent: Burst::new(1),
        })
    }

    /// Whether a packet can be written now: there is a buffer, and no packet that waits for the queue.
    fn can_send(&mut self) -> bool {
        if !self.unsent.is_empty() {
            self.tx.tx(&mut self.unsent);
        }
        if self.spare.is_none() {
            self.spare = self.cache.get();
            if self.spare.is_none() {
                // Those of packets that were sent.
                self.tx.reclaim();
                self.spare = self.cache.get();
            }
        }
        self.unsent.is_empty() && self.spare.is_some()
    }

    fn token(&mut self) -> (&mut Vec<u8>, TxToken<'_>) {
        let Self { tx, spare, unsent, linear, capabilities, .. } = self;
        let partial = !capabilities.checksum.tcp.tx();
        (linear, TxToken { tx: tx.as_mut(), spare, unsent, partial, segment: 0 })
    }
}

impl phy::Device for Device {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: time::Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let can_send = self.can_send();
        // Both queues are polled whatever there is to do: a reset waits for them.
        if (self.received.is_empty() || !can_send) && self.rx.rx(&mut self.received) == 0 {
            self.tx.reclaim();
        }
        if !can_send {
            return None;
        }
        let packet = loop {
            let packet = self.received.take(1).next()?;
            if packet.vlan().is_none() {
                break packet;
            }
        };
        let (linear, token) = self.token();
        Some((RxToken { packet, linear }, token))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<TxToken<'_>> {
        if self.can_send() { Some(self.token().1) } else { None }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// A packet that was received.
pub struct RxToken<'a> {
    packet: Buf,
    linear: &'a mut Vec<u8>,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let Self { mut packet, linear } = self;
        let offload = packet.offload();
        let bytes = if packet.next().is_none() {
            packet.bytes_mut()
        } else {
            linear.clear();
            packet.segments().for_each(|buf| linear.extend_from_slice(buf.bytes()));
            linear
        };
        if let Some(offload) = offload {
            complete(bytes, offload);
        }
        f(bytes)
    }
}

/// A packet to be written.
pub struct TxToken<'a> {
    tx: &'a mut dyn TxQueue,
    spare: &'a mut Option<Buf>,
    unsent: &'a mut Burst,
    /// The device fills in checksums of TCP and UDP.
    partial: bool,
    /// Bytes of payload after which the device is to cut; 0 where it isn't.
    segment: u16,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Some(mut buf) =
            self.spare.take().filter(|buf| len <= buf.capacity().saturating_sub(HEADROOM.into()) as usize)
        else {
            // Larger than what smoltcp was told that a packet can be: it is written somewhere, and not sent.
            return f(&mut vec![0; len]);
        };
        buf.reserve(HEADROOM);
        buf.set_len(len as u32);
        let result = f(buf.bytes_mut());
        if self.partial {
            let offload = partial_checksum(buf.bytes_mut(), self.segment);
            buf.set_offload(offload);
        }
        // There is room, or there would be no token.
        let _ = self.unsent.push(buf);
        self.tx.tx(self.unsent);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map_or(0, Into::into);
    }
}

/// Fills in the checksum that was left to the receiver: over all from the transport layer's header on, where its field holds the pseudo header's sum.
#[cold]
fn complete(packet: &mut [u8], offload: Offload) {
    let at = match offload.l4 {
        Some(L4::Tcp) => TCP_CHECKSUM,
        Some(L4::Udp) => UDP_CHECKSUM,
        None => return,
    };
    let Some(bytes) = packet.get_mut(offload.l4_start() as usize..) else { return };
    // One of zero would mean that there is none (RFC 768).
    let sum = match !checksum::data(bytes) {
        0 if at == UDP_CHECKSUM => 0xffff,
        sum => sum,
    };
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// Prepares a packet for a device that fills in its checksum: the field gets the pseudo header's sum. `None` where the packet is not one of TCP or UDP,
/// or a fragment of one.
fn partial_checksum(packet: &mut [u8], segment: u16) -> Option<Offload> {
    let frame = EthernetFrame::new_checked(&*packet).ok()?;
    let (l3_len, from, to, protocol, payload) = match frame.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip =
                Ipv4Packet::new_checked(frame.payload()).ok().filter(|ip| !ip.more_frags() && ip.frag_offset() == 0)?;
            let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
            (ip.header_len().into(), from, to, ip.next_header(), ip.payload())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(frame.payload()).ok()?;
            let (from, to) = (IpAddress::Ipv6(ip.src_addr()), IpAddress::Ipv6(ip.dst_addr()));
            (ip.header_len() as u16, from, to, ip.next_header(), ip.payload())
        }
        _ => return None,
    };
    let (l4, l4_len, at) = match protocol {
        IpProtocol::Tcp => (L4::Tcp, TcpPacket::new_checked(payload).ok()?.header_len(), TCP_CHECKSUM),
        IpProtocol::Udp => (L4::Udp, 8, UDP_CHECKSUM),
        _ => return None,
    };
    let sum = checksum::pseudo_header(&from, &to, protocol, payload.len() as u32);
    let offload = Offload {
        l2_len: ETHERNET as u8,
        l3_len,
        l4_len,
        ipv6: matches!(from, IpAddress::Ipv6(_)),
        l3: false,
        l4: Some(l4),
        segment,
    };
    let field = offload.l4_start() as usize + at;
    packet.get_mut(field..field + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(offload)
}

#[cfg(all(test, feature = "sim", feature = "virtio"))]
mod tests;
