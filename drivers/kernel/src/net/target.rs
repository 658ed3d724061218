//! The names of ports behind `kernel:`: an interface, perhaps followed by a parameter.

use crate::{Error, Result};
use std::fmt;

/// The kernel's path to an interface's packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Packet sockets (`AF_PACKET`): the kernel's stack sees all packets, too. Every interface can.
    #[default]
    Packet,
    /// AF_XDP sockets: the packets of some of the interface's queues come here, and the kernel's stack does not see them.
    Xdp,
}

/// A network interface, and how it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// The interface's name: `eth0`.
    pub interface: String,
    /// Use it although the kernel uses it too: it has an address or a default route, or is a part of a bridge or a bond.
    pub force: bool,
    /// By which path.
    pub mode: Mode,
    /// The first of the interface's queues whose packets come here, with [`Mode::Xdp`].
    pub queue: u16,
    /// Have the card itself write and read packets, with [`Mode::Xdp`].
    pub zerocopy: bool,
}

const KNOWN: &str = "mode=packet|xdp, queue=N and zerocopy with mode=xdp, and force";

impl Target {
    /// Parses what stands behind `kernel:` and has no slash in it: `eth0`, `eth0,force`, `eth0,mode=xdp,queue=3`.
    ///
    /// # Errors
    /// [`Error::Target`] where that names no interface; [`Error::Parameter`] and [`Error::Value`] for what follows it.
    pub fn parse(text: &str) -> Result<Self> {
        let (interface, parameters) = text.split_once(',').unwrap_or((text, ""));
        if interface.is_empty() {
            return Err(Error::Target { text: text.to_owned() });
        }
        let mut target = Self { interface: interface.to_owned(), ..Self::default() };
        let mut of_xdp = None;
        for part in parameters.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let bad = |key, expected| Error::Value { key, value: value.to_owned(), expected };
            match part {
                "force" => target.force = true,
                "zerocopy" => (target.zerocopy, of_xdp) = (true, Some("zerocopy")),
                "mode=packet" => target.mode = Mode::Packet,
                "mode=xdp" => target.mode = Mode::Xdp,
                _ if key == "mode" => return Err(bad("mode", "packet or xdp")),
                _ if key == "queue" => {
                    target.queue = value.parse().map_err(|_| bad("queue", "a queue's number, from 0"))?;
                    of_xdp = Some("queue");
                }
                _ => {
                    let target = "a network interface";
                    return Err(Error::Parameter { target, key: part.to_owned(), known: KNOWN });
                }
            }
        }
        match of_xdp {
            Some(key) if target.mode != Mode::Xdp => {
                Err(Error::Parameter { target: "a packet socket", key: key.to_owned(), known: KNOWN })
            }
            _ => Ok(target),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.interface)?;
        if self.mode == Mode::Xdp {
            f.write_str(",mode=xdp")?;
        }
        if self.queue > 0 {
            write!(f, ",queue={}", self.queue)?;
        }
        let set = [(self.zerocopy, ",zerocopy"), (self.force, ",force")];
        set.into_iter().filter(|(set, _)| *set).try_for_each(|(_, name)| f.write_str(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_and_shown_as_they_were() {
        for text in ["eth0", "eth0,force", "veth@if7", "eth0,mode=xdp", "eth0,mode=xdp,queue=3,zerocopy,force"] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        assert!(Target::parse("eth0,force").unwrap().force && !Target::parse("eth0").unwrap().force);
        for text in ["", ",force"] {
            assert!(matches!(Target::parse(text), Err(Error::Target { .. })), "{text}");
        }
        for text in ["eth0,speed=1", "eth0,force=1", "eth0,force,x", "eth0,queue=1", "eth0,zerocopy,mode=packet"] {
            assert!(matches!(Target::parse(text), Err(Error::Parameter { known: KNOWN, .. })), "{text}");
        }
        for text in ["eth0,mode=fast", "eth0,mode", "eth0,mode=xdp,queue=-1", "eth0,mode=xdp,queue=70000", "eth0,queue"]
        {
            assert!(matches!(Target::parse(text), Err(Error::Value { .. })), "{text}");
        }
    }
}
