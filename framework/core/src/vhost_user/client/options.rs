//! How a vhost-user back end is reached, and what its device is to be.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The type of a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceType {
    /// A network device (VIRTIO 1.2, 5.1).
    Net,
    /// A block device (5.2).
    Blk,
}

/// How a back end is reached, and what its device is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The type of the device; `None`: by the features that the back end offers, which is all that it says of it.
    pub device_type: Option<DeviceType>,
    /// Whether the front end listens and the back end connects, rather than the other way around.
    pub server: bool,
    /// How long the back end may take to answer one message.
    pub timeout: Duration,
    /// How long all answers together may take while the device is opened, and how long a listening front end waits for the first back end.
    pub open_timeout: Duration,
    /// How long a back end that went away may take to come back. Zero: its device is gone at once.
    pub reconnect: Duration,
    /// A network device's address, where the back end does not say one or another is wanted; `None`: by chance, locally administered.
    pub mac: Option<[u8; 6]>,
    /// The largest MTU that a network device has, where the back end does not say one or another is wanted.
    pub mtu: Option<u16>,
}

impl Default for Options {
    /// Returns 5 seconds a message, 30 for opening, and 10 for coming back.
    fn default() -> Self {
        Self {
            device_type: None,
            server: false,
            timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(30),
            reconnect: Duration::from_secs(10),
            mac: None,
            mtu: None,
        }
    }
}

impl Options {
    /// Returns these options with `timeout` for a message, and for opening 30 seconds, or `timeout` where that is more.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, open_timeout: timeout.max(Duration::from_secs(30)), ..self }
    }
}

/// An address by chance: locally administered, of one station.
pub(super) fn local_mac() -> [u8; 6] {
    // Each `RandomState` has keys of its own, from the system's source of randomness.
    let [mut first, rest @ ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    first = first & !1 | 2;
    [first, rest[0], rest[1], rest[2], rest[3], rest[4]]
}
