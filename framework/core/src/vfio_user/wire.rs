//! The messages of vfio-user 0.1 (docs/interop/vfio-user.rst in QEMU's tree), as bytes.
//!
//! Layouts only: what a message means is the client's and the server's. Integers are in the host's byte order, as the
//! specification has it: both ends of a Unix socket are on one host. What a register holds travels as its bytes.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::socket::{self, MAX_FDS};
use serde::{Deserialize, Serialize};
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The version this speaks: 0.1. A peer may lower the minor one.
pub const VERSION: (u16, u16) = (0, 1);
/// How many bytes of data a message may carry to us: the specification's default.
pub const MAX_DATA: usize = 1 << 20;
/// The longest payload of a message to us: a region write (or a DMA write) of `MAX_DATA` bytes.
pub const MAX_PAYLOAD: usize = size_of::<RegionAccess>() + MAX_DATA;
/// How many maps can be valid at once, if the peer says nothing of it. QEMU refuses a server that allows more.
pub const MAX_MAPS: u64 = 65_535;

/// What a message is about ("Commands").
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Command(pub u16);

impl Command {
    pub const VERSION: Self = Self(1);
    pub const DMA_MAP: Self = Self(2);
    pub const DMA_UNMAP: Self = Self(3);
    pub const GET_INFO: Self = Self(4);
    pub const GET_REGION_INFO: Self = Self(5);
    pub const GET_IRQ_INFO: Self = Self(7);
    pub const SET_IRQS: Self = Self(8);
    pub const REGION_READ: Self = Self(9);
    pub const REGION_WRITE: Self = Self(10);
    pub const DMA_READ: Self = Self(11);
    pub const DMA_WRITE: Self = Self(12);
    pub const RESET: Self = Self(13);
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::VERSION => "VERSION",
            Self::DMA_MAP => "DMA_MAP",
            Self::DMA_UNMAP => "DMA_UNMAP",
            Self::GET_INFO => "DEVICE_GET_INFO",
            Self::GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            Self::GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Self::SET_IRQS => "DEVICE_SET_IRQS",
            Self::REGION_READ => "REGION_READ",
            Self::REGION_WRITE => "REGION_WRITE",
            Self::DMA_READ => "DMA_READ",
            Self::DMA_WRITE => "DMA_WRITE",
            Self::RESET => "DEVICE_RESET",
            Self(other) => return write!(f, "command {other}"),
        })
    }
}

/// What every message begins with ("Header").
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Header {
    /// The sender's; echoed in the reply.
    pub id: u16,
    pub command: Command,
    /// Bytes of the whole message, header included.
    pub size: u32,
    pub flags: u32,
    /// An `errno`, where `flags` has [`ERROR`].
    pub error: u32,
}

impl Header {
    pub const SIZE: usize = size_of::<Self>();

    /// Command or reply: the low four bits of `flags`.
    pub fn kind(&self) -> u32 {
        self.flags & 0xf
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

impl socket::Header for Header {
    const MAX_PAYLOAD: usize = MAX_PAYLOAD;

    fn size(&self) -> u64 {
        self.size.into()
    }

    fn set_payload(&mut self, bytes: usize) {
        self.size = Self::SIZE.saturating_add(bytes) as u32;
    }
}

/// [`Header::kind`]: a command.
pub const COMMAND: u32 = 0;
/// [`Header::kind`]: a reply.
pub const REPLY: u32 = 1;
/// Flag of a command: nobody waits for a reply.
pub const NO_REPLY: u32 = 1 << 4;
/// Flag of a reply: the command failed.
pub const ERROR: u32 = 1 << 5;

macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type),* }
    )*};
}

layouts! {
    /// `VFIO_USER_VERSION`, both ways; JSON ([`Capabilities`]) follows.
    Version { major: u16, minor: u16 }
    /// `VFIO_USER_DMA_MAP`.
    DmaMap { argsz: u32, flags: u32, offset: u64, address: u64, size: u64 }
    /// `VFIO_USER_DMA_UNMAP`, both ways.
    DmaUnmap { argsz: u32, flags: u32, address: u64, size: u64 }
    /// `VFIO_USER_DEVICE_GET_INFO`, both ways.
    DeviceInfo { argsz: u32, flags: u32, regions: u32, irqs: u32 }
    /// `VFIO_USER_DEVICE_GET_REGION_INFO`, both ways; in a reply, capabilities follow.
    RegionInfo { argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64 }
    /// The header of a region's capability; `next` counts from the start of [`RegionInfo`].
    CapHeader { id: u16, version: u16, next: u32 }
    /// A sparse capability's own header; `areas` times [`Area`] follow.
    Sparse { areas: u32, reserved: u32 }
    /// A part of a region that can be mapped.
    Area { offset: u64, size: u64 }
    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`, both ways.
    IrqInfo { argsz: u32, flags: u32, index: u32, count: u32 }
    /// `VFIO_USER_DEVICE_SET_IRQS`; an array of booleans may follow.
    IrqSet { argsz: u32, flags: u32, index: u32, start: u32, count: u32 }
    /// `VFIO_USER_REGION_READ` and `_WRITE`, both ways; data follows a write command and a read's reply.
    RegionAccess { offset: u64, region: u32, count: u32 }
}

/// `T` at the start of `bytes`, and what follows it; `None` where that is too short.
pub fn split<T: FromBytes>(bytes: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(bytes).ok()
}

/// What a peer can do ("Capabilities" of `VFIO_USER_VERSION`). What it leaves out has the specification's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// How many file descriptors it takes in one message.
    pub max_msg_fds: u64,
    /// How many bytes of data it takes in one message.
    pub max_data_xfer_size: u64,
    /// How many DMA maps can be valid at once.
    pub max_dma_maps: u64,
    /// The page sizes DMA maps can have, or'ed.
    pub pgsizes: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { max_msg_fds: 1, max_data_xfer_size: 1 << 20, max_dma_maps: MAX_MAPS, pgsizes: 4096 }
    }
}

impl Capabilities {
    /// Ours, as client and as server.
    pub const OURS: Self = Self {
        max_msg_fds: MAX_FDS as u64,
        max_data_xfer_size: MAX_DATA as u64,
        max_dma_maps: MAX_MAPS,
        // 4 KiB, 2 MiB, 1 GiB. Maps are parts of files here, so any multiple of the smallest will do.
        pgsizes: 4096 | 2 << 20 | 1 << 30,
    };

    /// As the bytes that follow [`Version`]: JSON and a NUL.
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(&VersionData { capabilities: self }).unwrap_or_default();
        bytes.push(0);
        bytes
    }

    /// From the bytes that follow [`Version`]; nothing is all defaults.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes {
            [] => Ok(Self::default()),
            [json @ .., 0] => {
                let data: VersionData = serde_json::from_slice(json).map_err(|e| format!("its JSON is bad: {e}"))?;
                Ok(data.capabilities)
            }
            _ => Err("its JSON does not end in a NUL".to_owned()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_specification_s_sizes() {
        assert_eq!(Header::SIZE, 16);
        assert_eq!(size_of::<DmaMap>(), 32);
        assert_eq!(size_of::<DmaUnmap>(), 24);
        assert_eq!(size_of::<DeviceInfo>(), 16);
        assert_eq!(size_of::<RegionInfo>(), 32);
        assert_eq!(size_of::<IrqInfo>(), 16);
        assert_eq!(size_of::<IrqSet>(), 20);
        assert_eq!(size_of::<RegionAccess>(), 16);
        assert_eq!(split::<CapHeader>(&[0; 7]), None);
    }

    #[test]
    fn capabilities_default_where_nothing_is_said() {
        let decode = |json: &[u8]| Capabilities::decode(json);
        assert_eq!(decode(b""), Ok(Capabilities::default()));
        assert_eq!(decode(b"{}\0"), Ok(Capabilities::default()));
        let some = decode(br#"{"capabilities":{"max_msg_fds":8,"migration":{"pgsize":4096}}}"#);
        assert!(some.is_err(), "no NUL");
        let some = decode(b"{\"capabilities\":{\"max_msg_fds\":8,\"migration\":{\"pgsize\":4096}}}\0");
        assert_eq!(some, Ok(Capabilities { max_msg_fds: 8, ..Capabilities::default() }));
        for bad in ["3", "{\"capabilities\":3}", "{\"capabilities\":{\"max_msg_fds\":-1}}", "\u{7f}ELF"] {
            assert!(decode(format!("{bad}\0").as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(decode(&Capabilities::OURS.encode()), Ok(Capabilities::OURS));
    }
}
