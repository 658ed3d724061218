//! The messages of vhost-user (docs/interop/vhost-user.rst in QEMU's tree), as bytes: what both sides share.
//!
//! Layouts only: what a message means is the front end's and the back end's. Integers are in the host's byte order: both ends of a Unix socket are on
//! one host. A payload has exactly its layout's size: what is shorter or longer is refused.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::socket;
use std::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How many regions one `SET_MEM_TABLE` has at most ("Memory regions description").
pub const MAX_REGIONS: usize = 8;
/// How many bytes of device configuration there are at most ("Virtio device config space").
pub const MAX_CONFIG: usize = 256;
/// The longest payload of a message to us: a configuration, or a memory table; both are less.
pub const MAX_PAYLOAD: usize = 4096;

/// What a message of the front end, or the reply to it, is about ("Front-end message types").
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub struct Request(pub u32);

macro_rules! requests {
    ($type:ident: $($name:ident = $number:literal),* $(,)?) => {
        impl $type {
            $(pub const $name: Self = Self($number);)*
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match *self {
                    $(Self::$name => stringify!($name),)*
                    Self(other) => return write!(f, "request {other}"),
                })
            }
        }
    };
}

requests! { Request:
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, RESET_OWNER = 4, SET_MEM_TABLE = 5, SET_LOG_BASE = 6, SET_LOG_FD = 7, SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9, SET_VRING_BASE = 10, GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13, SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, GET_QUEUE_NUM = 17, SET_VRING_ENABLE = 18, SEND_RARP = 19, NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21, IOTLB_MSG = 22, SET_VRING_ENDIAN = 23, GET_CONFIG = 24, SET_CONFIG = 25, CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27, POSTCOPY_ADVISE = 28, POSTCOPY_LISTEN = 29, POSTCOPY_END = 30, GET_INFLIGHT_FD = 31, SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33, RESET_DEVICE = 34, VRING_KICK = 35, GET_MAX_MEM_SLOTS = 36, ADD_MEM_REG = 37, REM_MEM_REG = 38, SET_STATUS = 39,
    GET_STATUS = 40, GET_SHARED_OBJECT = 41, SET_DEVICE_STATE_FD = 42, CHECK_DEVICE_STATE = 43,
}

/// What a message of the back end's, on its own connection, is about ("Back-end message types").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendRequest(pub u32);

requests! { BackendRequest:
    IOTLB_MSG = 1, CONFIG_CHANGE_MSG = 2, VRING_HOST_NOTIFIER_MSG = 3, VRING_CALL = 4, VRING_ERR = 5, SHARED_OBJECT_ADD = 6,
    SHARED_OBJECT_REMOVE = 7, SHARED_OBJECT_LOOKUP = 8,
}

/// What every message begins with ("Header").
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Header {
    /// The same in a reply. A back end's own messages have [`BackendRequest`]'s numbers here.
    pub request: Request,
    /// [`VERSION`], and [`REPLY`] or [`NEED_REPLY`].
    pub flags: u32,
    /// Bytes of the payload, which follows.
    pub size: u32,
}

/// The version, in the low two bits of [`Header::flags`].
pub const VERSION: u32 = 1;
/// The bits of the version.
pub const VERSION_MASK: u32 = 3;
/// Flag: this is a reply.
pub const REPLY: u32 = 1 << 2;
/// Flag: a message that has no reply of its own is to have one, a `u64` that is 0 for success ([`protocol::REPLY_ACK`]).
pub const NEED_REPLY: u32 = 1 << 3;

impl Header {
    /// A message of ours; its size is set when it is sent.
    pub fn new(request: Request, flags: u32) -> Self {
        Self { request, flags: VERSION | flags, size: 0 }
    }

    /// Whether it has a flag, and the version is the one there is.
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }

    /// Whether it is of the version that this speaks.
    pub fn is_known(&self) -> bool {
        self.flags & VERSION_MASK == VERSION
    }
}

impl socket::Header for Header {
    const MAX_PAYLOAD: usize = MAX_PAYLOAD;

    fn size(&self) -> u64 {
        u64::from(self.size).saturating_add(size_of::<Self>() as u64)
    }

    fn set_payload(&mut self, bytes: usize) {
        self.size = bytes as u32;
    }
}

/// Feature bits that are vhost's, in the place of virtio's. Drivers do not see them.
pub mod feature {
    /// `VHOST_F_LOG_ALL`: writes are logged, for a migration.
    pub const LOG_ALL: u64 = 1 << 26;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`: the other side knows [`protocol`](super::protocol).
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
}

/// Protocol features ("Protocol features"), as masks.
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CROSS_ENDIAN: u64 = 1 << 6;
    pub const CRYPTO_SESSION: u64 = 1 << 7;
    pub const PAGEFAULT: u64 = 1 << 8;
    pub const CONFIG: u64 = 1 << 9;
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    pub const HOST_NOTIFIER: u64 = 1 << 11;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }
    )*};
}

layouts! {
    /// "A vring state description": of `SET_VRING_NUM`, `_BASE` and `_ENABLE`, and of `GET_VRING_BASE` both ways.
    VringState { index: u32, num: u32 }
    /// "A vring address description": of `SET_VRING_ADDR`. The addresses are the front end's ([`Region::user_address`]); `log` is a guest address.
    VringAddr { index: u32, flags: u32, descriptor: u64, used: u64, available: u64, log: u64 }
    /// "A memory region description". A descriptor of the file comes with it; the region begins at `mmap_offset` of that.
    Region { guest_address: u64, size: u64, user_address: u64, mmap_offset: u64 }
    /// What `SET_MEM_TABLE` begins with; `regions` times [`Region`] follow.
    MemTable { regions: u32, padding: u32 }
    /// "Single memory region description": of `ADD_MEM_REG` and `REM_MEM_REG`.
    MemRegion { padding: u64, region: Region }
    /// "Virtio device config space", both ways; `size` bytes follow.
    Config { offset: u32, size: u32, flags: u32 }
    /// "Inflight description": of `GET_INFLIGHT_FD`, both ways, and of `SET_INFLIGHT_FD`. On the wire it has C's padding: 24 bytes.
    Inflight { mmap_size: u64, mmap_offset: u64, num_queues: u16, queue_size: u16, padding: u32 }
    /// "Log description": of `SET_LOG_BASE`.
    Log { size: u64, offset: u64 }
}

/// `SET_VRING_KICK`, `_CALL` and `_ERR`: the queue's number in a `u64`'s low bits ...
pub const VRING_INDEX: u64 = 0xff;
/// ... and that no descriptor comes with the message.
pub const VRING_NO_FD: u64 = 1 << 8;
/// [`VringAddr::flags`]: the used ring is logged.
pub const VRING_LOG: u32 = 1 << 0;
/// [`Config::flags`] of `SET_CONFIG`: a driver's write (0), or a migration's.
pub const CONFIG_MIGRATION: u32 = 1 << 0;

/// A payload that is exactly `T`; `None` where it is shorter or longer.
pub fn exactly<T: FromBytes>(payload: &[u8]) -> Option<T> {
    T::read_from_bytes(payload).ok()
}

impl Region {
    /// Whether it is one: it has bytes, and no address of it, nor offset in its file, is beyond 64 bits.
    pub fn is_sound(&self) -> bool {
        let ends = [self.guest_address, self.user_address, self.mmap_offset].map(|start| start.checked_add(self.size));
        self.size > 0 && ends.iter().all(Option::is_some)
    }
}

/// The payload of `SET_MEM_TABLE`.
pub fn mem_table(regions: &[Region]) -> Vec<u8> {
    let header = MemTable { regions: regions.len() as u32, padding: 0 };
    let mut payload = header.as_bytes().to_vec();
    payload.extend_from_slice(regions.as_bytes());
    payload
}

/// The regions of `SET_MEM_TABLE`: as many as it says, at most [`MAX_REGIONS`], each sound, and no two over each other.
///
/// # Errors
/// What is wrong with it.
pub fn regions(payload: &[u8]) -> Result<Vec<Region>, String> {
    let cut = |_| format!("{} bytes are not a memory table", payload.len());
    let (header, rest) = MemTable::read_from_prefix(payload).map_err(|_| cut(()))?;
    let count = header.regions as usize;
    if count > MAX_REGIONS {
        return Err(format!("{count} regions of memory, where at most {MAX_REGIONS} may be"));
    }
    let regions = <[Region]>::ref_from_bytes(rest).ok().filter(|regions| regions.len() == count);
    let regions = regions.ok_or_else(|| format!("{count} regions of memory do not take {} bytes", rest.len()))?;
    let mut sorted = regions.to_vec();
    for by in [|r: &Region| r.guest_address, |r: &Region| r.user_address] {
        if let Some(bad) = regions.iter().find(|region| !region.is_sound()) {
            return Err(format!("no region has {:#x} bytes at {:#x}", bad.size, bad.guest_address));
        }
        sorted.sort_by_key(by);
        let over = |two: &&[Region]| by(&two[0]).saturating_add(two[0].size) > by(&two[1]);
        if let Some(two) = sorted.windows(2).find(over) {
            return Err(format!("the regions at {:#x} and {:#x} overlap", by(&two[0]), by(&two[1])));
        }
    }
    Ok(regions.to_vec())
}

/// The payload of `GET_CONFIG` and `SET_CONFIG`.
pub fn config(offset: u32, flags: u32, bytes: &[u8]) -> Vec<u8> {
    let header = Config { offset, size: bytes.len() as u32, flags };
    let mut payload = header.as_bytes().to_vec();
    payload.extend_from_slice(bytes);
    payload
}

/// A payload of `GET_CONFIG` or `SET_CONFIG`: inside of [`MAX_CONFIG`] bytes, and as long as it says.
///
/// # Errors
/// What is wrong with it.
pub fn config_of(payload: &[u8]) -> Result<(Config, &[u8]), String> {
    let (header, bytes) =
        Config::read_from_prefix(payload).map_err(|_| format!("{} bytes are no configuration", payload.len()))?;
    let end = header.offset.checked_add(header.size).filter(|end| *end <= MAX_CONFIG as u32);
    if end.is_none() || bytes.len() != header.size as usize {
        let (offset, size, len) = (header.offset, header.size, bytes.len());
        return Err(format!("{size} bytes of configuration at {offset}, of {MAX_CONFIG}, and {len} came"));
    }
    Ok((header, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_specification_s_sizes() {
        assert_eq!(size_of::<Header>(), 12);
        assert_eq!(size_of::<VringState>(), 8);
        assert_eq!(size_of::<VringAddr>(), 40);
        assert_eq!(size_of::<Region>(), 32);
        assert_eq!(size_of::<MemTable>(), 8);
        assert_eq!(size_of::<MemRegion>(), 40);
        assert_eq!(size_of::<Config>(), 12);
        assert_eq!(size_of::<Inflight>(), 24);
        assert_eq!(size_of::<Log>(), 16);
        assert_eq!((exactly::<u64>(&[0; 7]), exactly::<u64>(&[0; 9]), exactly::<u64>(&[0; 8])), (None, None, Some(0)));
        assert_eq!(Request::SET_VRING_KICK.to_string(), "SET_VRING_KICK");
        assert_eq!((Request(99).to_string(), BackendRequest::CONFIG_CHANGE_MSG.0), ("request 99".to_owned(), 2));
        let header = Header::new(Request::GET_FEATURES, NEED_REPLY);
        assert!(header.is_known() && header.has(NEED_REPLY) && !header.has(REPLY));
    }

    #[test]
    fn a_memory_table_is_what_it_says_and_nothing_overlaps() {
        let region = |at: u64, size| Region { guest_address: at, size, user_address: at + 0x1000_0000, mmap_offset: 0 };
        let good = [region(0x4000, 0x1000), region(0, 0x4000), region(0x10000, 0x1000)];
        assert_eq!(regions(&mem_table(&good)), Ok(good.to_vec()));
        assert_eq!(regions(&mem_table(&[])), Ok(Vec::new()));
        let bad = |payload: &[u8], why: &str| {
            let said = regions(payload).unwrap_err();
            assert!(said.contains(why), "{said}");
        };
        let table = mem_table(&good);
        bad(&table[..7], "not a memory table");
        bad(&table[..table.len() - 1], "do not take");
        bad(&[&table[..], &[0; 32]].concat(), "do not take");
        bad(&mem_table(&[region(0, 1); 9]), "9 regions");
        bad(&[&u32::MAX.to_ne_bytes()[..], &[0; 4]].concat(), "at most 8");
        bad(&mem_table(&[region(0x4000, 0x1001), region(0x5000, 1)]), "overlap");
        let users = Region { user_address: 0x1000_0000, ..region(0x9000, 0x1000) };
        bad(&mem_table(&[region(0, 0x1000), users]), "overlap");
        for wrong in
            [region(0, 0), Region { size: u64::MAX, ..region(1, 0) }, Region { mmap_offset: u64::MAX, ..region(0, 2) }]
        {
            bad(&mem_table(&[wrong]), "no region has");
        }
    }

    #[test]
    fn a_configuration_is_as_long_as_it_says() {
        let payload = config(4, 0, &[1, 2, 3]);
        assert_eq!(config_of(&payload), Ok((Config { offset: 4, size: 3, flags: 0 }, &[1, 2, 3][..])));
        for bad in [
            &payload[..11],
            &payload[..14],
            &[&payload[..], &[0]].concat(),
            &config(254, 0, &[0; 3]),
            &config(u32::MAX, 0, &[0; 3]),
        ] {
            assert!(config_of(bad).is_err(), "{bad:?}");
        }
    }
}
