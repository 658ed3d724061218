//! What the kernel knows of network interfaces: their properties, addresses and routes, by rtnetlink(7), which is of this network namespace whatever is
//! mounted at /sys. (Linux: `include/uapi/linux/rtnetlink.h`, `if_link.h`, `if_addr.h`.)

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use wholebar_core::net::Mac;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
/// NLM_F_REQUEST and NLM_F_DUMP.
const DUMP: u16 = 1 | 0x300;
/// The group of messages about interfaces.
const RTMGRP_LINK: u32 = 1;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
const IFF_UP: u32 = 1;
/// The carrier is there.
const IFF_LOWER_UP: u32 = 1 << 16;
/// Addresses and routes of this scope do not leave the link.
const RT_SCOPE_LINK: u8 = 253;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub index: u32,
    pub name: String,
    /// `ARPHRD_*`.
    pub kind: u16,
    pub up: bool,
    pub carrier: bool,
    pub mac: Mac,
    /// In bytes.
    pub mtu: u32,
    /// The index of the bridge or the bond that it is a part of.
    pub master: Option<u32>,
    /// It is one of a pair of virtual Ethernet interfaces.
    pub veth: bool,
    /// An XDP program has its packets, before Linux or instead of it.
    pub xdp: bool,
}

/// What is said of an interface as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Now(Interface),
    Gone { index: u32 },
}

/// Every interface of this network namespace.
pub(super) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut all = Vec::new();
    dump(RTM_GETLINK, 16, |kind, body| all.extend((kind == RTM_NEWLINK).then(|| interface(body)).flatten()))?;
    Ok(all)
}

/// Returns the names of this network namespace's interfaces whose packets an XDP program has, before Linux or instead of it: what rtnetlink says and no file does.
///
/// # Errors
/// Those of socket(2), send(2) and recv(2), and the kernel's own answer to a question that it refuses.
pub fn with_xdp_programs() -> io::Result<Vec<String>> {
    Ok(interfaces()?.into_iter().filter(|interface| interface.xdp).map(|interface| interface.name).collect())
}

/// The addresses of an interface, but those that it gives itself.
pub(super) fn addresses(index: u32) -> io::Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    dump(RTM_GETADDR, 8, |kind, body| {
        // ifaddrmsg: family, length of the prefix, flags, scope, interface.
        if kind == RTM_NEWADDR && word(body, 4) == Some(index) && body.get(3) != Some(&RT_SCOPE_LINK) {
            // IFA_LOCAL, else IFA_ADDRESS, which is the peer's on a point-to-point link.
            let of = |wanted| attributes(body.get(8..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            all.extend(of(2).or_else(|| of(1)).and_then(address));
        }
    })?;
    Ok(all)
}

/// Whether a default route goes through an interface.
pub(super) fn has_default_route(index: u32) -> io::Result<bool> {
    let mut has = false;
    dump(RTM_GETROUTE, 12, |kind, body| {
        // rtmsg: family, length of the destination's prefix, …, type at 7, of which RTN_UNICAST is 1. RTA_OIF.
        let through = || attributes(body.get(12..)?).find(|(kind, _)| *kind == 4).and_then(|(_, value)| word(value, 0));
        has |= kind == RTM_NEWROUTE && body.get(1) == Some(&0) && body.get(7) == Some(&1) && through() == Some(index);
    })?;
    Ok(has)
}

/// A socket on which the kernel says what happens to interfaces.
pub(super) struct Changes(OwnedFd);

impl Changes {
    pub fn new() -> io::Result<Self> {
        let socket = open()?;
        bind(&socket, &SocketAddrNetlink::new(0, RTMGRP_LINK))?;
        Ok(Self(socket))
    }

    /// What has happened since this was last called; `false` where some of that was lost, and has to be asked for.
    pub fn take(&self, each: &mut dyn FnMut(Change)) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    for (kind, body) in messages(buffer.get(..len).unwrap_or_default()) {
                        match (kind, interface(body)) {
                            (RTM_NEWLINK, Some(now)) => each(Change::Now(now)),
                            (RTM_DELLINK, Some(Interface { index, .. })) => each(Change::Gone { index }),
                            _ => {}
                        }
                    }
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Bytes for an answer: the kernel writes no more at once.
const BUFFER: usize = 64 << 10;

fn open() -> io::Result<OwnedFd> {
    // Protocol 0 is NETLINK_ROUTE.
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// Asks for all there is of a kind, with a header of so many bytes, all zero, behind the message's own; `each` gets the type and the body of each answer.
fn dump(kind: u16, header: usize, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = open()?;
    let mut request = vec![0; HEADER + header];
    let len = request.len() as u32;
    request[..4].copy_from_slice(&len.to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        // The kernel has an answer by the time that it has taken the question, and the next as soon as that was taken.
        let (len, _) = match recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => continue,
            received => received?,
        };
        for (kind, body) in messages(buffer.get(..len).unwrap_or_default()) {
            match kind {
                NLMSG_DONE => return Ok(()),
                // Its errno, negative.
                NLMSG_ERROR => {
                    let code = word(body, 0).map_or(0, u32::cast_signed);
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
                kind => each(kind, body),
            }
        }
    }
}

/// Type and body of each of a run of messages; ends at one that does not fit.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = word(bytes, 0)? as usize;
        let (kind, body) = (half(bytes, 4)?, bytes.get(HEADER..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Type and value of each of a run of attributes (`struct nlattr`); ends at one that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(half(bytes, 0)?);
        let (kind, value) = (half(bytes, 2)?, bytes.get(4..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        Some((kind & 0x3fff, value))
    })
}

/// Out of the body of a message about an interface: `struct ifinfomsg`, and attributes.
fn interface(body: &[u8]) -> Option<Interface> {
    // ifinfomsg: family, type, index, flags, change.
    let (kind, index, flags) = (half(body, 2)?, word(body, 4)?, word(body, 8)?);
    let (up, carrier) = (flags & IFF_UP != 0, flags & IFF_LOWER_UP != 0);
    let (mac, name) = (Mac::default(), String::new());
    let mut found = Interface { index, name, kind, up, carrier, mac, mtu: 0, master: None, veth: false, xdp: false };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            // IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER.
            1 => found.mac = Mac(value.try_into().unwrap_or_default()),
            3 => found.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned(),
            4 => found.mtu = word(value, 0).unwrap_or(0),
            10 => found.master = word(value, 0),
            // IFLA_LINKINFO, and in it IFLA_INFO_KIND.
            18 => found.veth = attributes(value).any(|(kind, value)| kind == 1 && value.starts_with(b"veth\0")),
            // IFLA_XDP, and in it IFLA_XDP_ATTACHED, of which XDP_ATTACHED_NONE is 0; the others say how.
            43 => {
                found.xdp =
                    attributes(value).any(|(kind, value)| kind == 2 && value.first().is_some_and(|how| *how != 0))
            }
            _ => {}
        }
    }
    Some(found)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn an_interface_is_read_and_nothing_else_is_believed() {
        let mut body = vec![0, 0, 1, 0, 7, 0, 0, 0];
        if cfg!(target_endian = "big") {
            body = vec![0, 0, 0, 1, 0, 0, 0, 7];
        }
        body.extend((IFF_UP | IFF_LOWER_UP).to_ne_bytes());
        body.extend([0; 4]);
        let mac = [2, 0, 0, 0, 0, 9];
        for (kind, value) in [(3, &b"veth0\0"[..]), (1, &mac), (4, &9000u32.to_ne_bytes()), (10, &3u32.to_ne_bytes())] {
            body.extend(attribute(kind, value));
        }
        body.extend(attribute(18, &attribute(1, b"veth\0")));
        let without = body.clone();
        let xdp = |how: u8| {
            let nested = [attribute(2, &[how]), attribute(4, &97u32.to_ne_bytes())].concat();
            [&without[..], &attribute(43 | 0x8000, &nested)].concat()
        };
        for how in 0..=4 {
            assert_eq!(interface(&xdp(how)).map(|found| found.xdp), Some(how != 0));
        }
        body = xdp(1);
        let expected = Interface {
            index: 7,
            name: "veth0".to_owned(),
            kind: 1,
            up: true,
            carrier: true,
            mac: Mac(mac),
            mtu: 9000,
            master: Some(3),
            veth: true,
            xdp: true,
        };
        assert_eq!(interface(&body), Some(expected));
        for len in 0..body.len() {
            let _ = interface(&body[..len]);
        }
        // An attribute of no length, and a message of none, end them.
        assert_eq!(attributes(&[0; 8]).count(), 0);
        assert_eq!(messages(&[0; 32]).count(), 0);
        assert_eq!(messages(&u32::MAX.to_ne_bytes().repeat(8)).count(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "sockets")]
    fn the_kernel_answers() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|i| i.name == "lo").expect("every namespace has a loopback interface");
        assert_eq!((lo.index, lo.kind, lo.mac), (1, 772, Mac::default()));
        assert!(with_xdp_programs().is_ok());
        assert!(addresses(0x7fff_fff0).unwrap().is_empty() && !has_default_route(0x7fff_fff0).unwrap());
        assert!(Changes::new().unwrap().take(&mut |change| panic!("{change:?}")).unwrap());
    }
}
