//! What the virtio network model can be told to be.

use crate::params::{self, Parameter};
use crate::virtio::layout::{self, Transport};
use crate::wire::{Impairments, Share, Wire};
use crate::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// The parameters that are the network model's own, with what each can be.
const OWN: [Parameter; 14] = [
    ("queues", "queue pairs, 1 to 64 (1)"),
    (
        "wire",
        "loop, pair:NAME (two ports that give it), tap:NAME (an interface), pcap or pcap:FILE (sent packets go there) (loop)",
    ),
    ("replay", "FILE: with wire=pcap, a capture (pcap or pcapng, gzip or not) whose packets are received"),
    ("mac", "aa:bb:cc:dd:ee:ff (made of the wire)"),
    ("mtu", "68 to 65521: the largest packet without its Ethernet header (1500)"),
    ("offloads", "0 or 1: offer checksums and TCP segmentation, both ways (1)"),
    ("mergeable", "0 or 1: offer packets spread over several buffers (1)"),
    ("control", "0 or 1: offer the control queue, and filters, RSS and more by it (1)"),
    (
        "full",
        "drop (and count) or wait: what becomes of packets where the driver has no buffer (drop; of a TAP's, which has a queue, wait)",
    ),
    ("speed", "what it says its speed is, in Mb/s (10000)"),
    ("loss", "N/M: how many packets the wire loses (0/1)"),
    ("reorder", "N/M: how many packets others overtake on the wire (0/1)"),
    ("delay", "how long packets take, 0 to 1000000 us (0)"),
    ("seed", "a number: which packets are lost or late (1)"),
];

/// All parameters of `sim:virtio-net`.
pub const PARAMETERS: [Parameter; OWN.len() + layout::PARAMETERS.len()] = {
    let mut all = [("", ""); OWN.len() + layout::PARAMETERS.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < OWN.len() { OWN[i] } else { layout::PARAMETERS[i - OWN.len()] };
        i += 1;
    }
    all
};

/// What a virtio network model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetParams {
    /// Pairs of a receive and a transmit queue.
    pub pairs: u16,
    /// What its packets pass.
    pub wire: Wire,
    /// Its address; `None`: one that is locally administered, made of the wire and the end of it.
    pub mac: Option<[u8; 6]>,
    /// The largest packet, without its Ethernet header, in bytes.
    pub mtu: u16,
    /// Whether checksum and segmentation offloads are offered.
    pub offloads: bool,
    /// Whether mergeable receive buffers are.
    pub mergeable: bool,
    /// Whether a control queue is, and what goes by it.
    pub control: bool,
    /// Whether packets wait for buffers, rather than being dropped.
    pub wait: bool,
    /// What it says its speed is, in Mb/s.
    pub speed: u32,
    /// What the wire does to what it sends.
    pub impairments: Impairments,
    /// What all virtio models have.
    pub transport: Transport,
}

impl Default for NetParams {
    fn default() -> Self {
        Self {
            pairs: 1,
            wire: Wire::Loop,
            mac: None,
            mtu: 1500,
            offloads: true,
            mergeable: true,
            control: true,
            wait: false,
            speed: 10_000,
            impairments: Impairments::default(),
            transport: Transport::default(),
        }
    }
}

impl NetParams {
    /// Reads `key=value,...`; see [`PARAMETERS`].
    ///
    /// # Errors
    /// [`Error::Parameter`] for a key that there isn't, [`Error::Value`] for a value that makes no sense, [`Error::Conflict`] for some
    /// that don't go together.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut p, mut replay, mut wait) = (Self::default(), None, None);
        for given in params::split("sim:virtio-net", text, &PARAMETERS)? {
            let share = || Share::parse(given.value).ok_or_else(|| given.bad()).map(|s| Some(s).filter(|s| s.0 > 0));
            match given.key {
                "queues" => p.pairs = given.number(1..=64)?,
                "wire" => p.wire = Wire::parse(given.value).ok_or_else(|| given.bad())?,
                "replay" if !given.value.is_empty() => replay = Some(PathBuf::from(given.value)),
                "mac" => p.mac = Some(mac(given.value).ok_or_else(|| given.bad())?),
                // 5.1.4.1: at least 68; and what a frame of 64 KiB holds.
                "mtu" => p.mtu = given.number(68..=65_521)?,
                "offloads" => p.offloads = given.flag()?,
                "mergeable" => p.mergeable = given.flag()?,
                "control" => p.control = given.flag()?,
                "full" => {
                    wait = Some(match given.value {
                        "drop" => false,
                        "wait" => true,
                        _ => return Err(given.bad()),
                    })
                }
                "speed" => p.speed = given.number(1..=0x7fff_ffff)?,
                "loss" => p.impairments.loss = share()?,
                "reorder" => p.impairments.reorder = share()?,
                "delay" => p.impairments.delay = Duration::from_micros(given.number(0..=1_000_000)?),
                "seed" => p.impairments.seed = given.number(0..=u64::MAX)?,
                _ => {
                    if !p.transport.set(&given)? {
                        return Err(given.bad());
                    }
                }
            }
        }
        // One frame of a TAP's may be 44 packets for the driver: dropped, they are a TCP connection that stalls where the peer acknowledges in order alone.
        p.wait = wait.unwrap_or(matches!(p.wire, Wire::Tap(_)));
        match (&mut p.wire, replay) {
            (Wire::Capture { from, .. }, replay) => *from = replay,
            (_, None) => {}
            (_, Some(_)) => return Err(Error::Conflict("replay= goes with wire=pcap".to_owned())),
        }
        p.check()?;
        Ok(p)
    }

    /// Whether the parameters go together.
    ///
    /// # Errors
    /// [`Error::Conflict`], saying which don't.
    pub fn check(&self) -> Result<()> {
        if !self.control && self.pairs > 1 {
            return Err(Error::Conflict("queues above 1 need control=1: a driver asks for them by it".to_owned()));
        }
        self.transport.check()
    }
}

/// A unicast address that is not zero.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts.next().filter(|p| p.len() == 2).and_then(|p| u8::from_str_radix(p, 16).ok())?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}
