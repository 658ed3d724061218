//! What rtnetlink says of an interface and no file does: whether an XDP program has its packets, before Linux or instead of it.

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

// Of include/uapi/linux/rtnetlink.h, netlink.h and if_link.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
/// struct nlmsghdr and struct ifinfomsg: 16 bytes each.
const HEADERS: usize = 32;

/// Whether an XDP program is attached to the interface with this index.
///
/// # Errors
/// What the system says; [`Errno::PROTO`] where the answer is none to this question.
pub fn has_xdp(index: u32) -> Result<bool, Errno> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // nlmsghdr: length, type, flags, sequence, port; ifinfomsg: family, type, index, flags, change.
    let mut request = [0; HEADERS];
    request[..4].copy_from_slice(&(HEADERS as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[20..24].copy_from_slice(&index.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = vec![0; 64 << 10];
    // The kernel has answered by the time that it has taken the question.
    let (len, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)?;
    xdp_of(answer.get(..len).unwrap_or_default(), index).ok_or(Errno::PROTO)
}

/// Out of an answer; `None` where it isn't one.
fn xdp_of(answer: &[u8], index: u32) -> Option<bool> {
    let is = |at: usize, bytes: &[u8]| answer.get(at..at + bytes.len()) == Some(bytes);
    if !is(4, &RTM_NEWLINK.to_ne_bytes()) || !is(20, &index.to_ne_bytes()) {
        return None;
    }
    let attached = |xdp| attributes(xdp).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
    let xdp = attributes(answer.get(HEADERS..)?).find(|(kind, _)| *kind == IFLA_XDP);
    // XDP_ATTACHED_NONE is 0; the others say how.
    Some(xdp.and_then(|(_, xdp)| attached(xdp)).is_some_and(|(_, how)| how.first().is_some_and(|how| *how != 0)))
}

/// Type and value of each of a run of attributes (struct nlattr); ends at one that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        // Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
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

    fn answer(index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; HEADERS];
        bytes[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        bytes[20..24].copy_from_slice(&index.to_ne_bytes());
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn programs_are_found_however_they_are_attached() {
        let xdp = |how: u8| {
            let nested = [attribute(IFLA_XDP_ATTACHED, &[how]), attribute(4, &97u32.to_ne_bytes())].concat();
            answer(7, &[attribute(3, b"eth0\0"), attribute(IFLA_XDP | 0x8000, &nested), attribute(30, &[0; 4])])
        };
        for how in 0..=4 {
            assert_eq!(xdp_of(&xdp(how), 7), Some(how != 0));
        }
        assert_eq!(xdp_of(&answer(7, &[attribute(3, b"eth0\0")]), 7), Some(false));
        assert_eq!((xdp_of(&xdp(1), 8), xdp_of(&[], 7)), (None, None), "no answer to this question");
        for len in 0..xdp(1).len() {
            let _ = xdp_of(&xdp(1)[..len], 7);
        }
        let mut endless = answer(7, &[attribute(3, b"")]);
        endless[HEADERS] = 0;
        assert_eq!(xdp_of(&endless, 7), Some(false), "an attribute of no length ends them");
    }

    #[test]
    fn the_kernel_answers() {
        // Every network namespace has a loopback interface, whose index is 1.
        assert!(has_xdp(1).is_ok());
        assert!(has_xdp(0x7fff_fff0).is_err(), "there is no such interface");
    }
}
