//! The capabilities that drivers use, decoded. Section numbers are those of the PCI Express Base Specification 6.0.

use super::Config;
use std::ops::Range;

/// The MSI-X capability (7.7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Msix {
    /// The offset of the capability, in bytes.
    pub offset: u16,
    /// Number of vectors: 1 to 2048.
    pub vectors: u16,
    /// MSI-X is enabled: Message Control bit 15.
    pub enabled: bool,
    /// All vectors are masked: Message Control bit 14.
    pub function_masked: bool,
    /// The BAR that holds the table: 0 to 5.
    pub table_bar: u8,
    /// The table's offset in that BAR, in bytes: a multiple of 8.
    pub table_offset: u32,
    /// The BAR that holds the pending bits (PBA): 0 to 5.
    pub pba_bar: u8,
    /// The PBA's offset in that BAR, in bytes: a multiple of 8.
    pub pba_offset: u32,
}

impl Msix {
    pub(super) fn at(config: &Config, offset: u16) -> Option<Self> {
        let control = config.u16(offset + 2)?;
        let (table, pba) = (config.u32(offset + 4)?, config.u32(offset + 8)?);
        // All of a capability of the compatible part lies in the compatible part.
        if usize::from(offset) + 12 > super::COMPATIBLE {
            return None;
        }
        Some(Self {
            offset,
            vectors: (control & 0x7ff) + 1,
            enabled: control & 1 << 15 != 0,
            function_masked: control & 1 << 14 != 0,
            table_bar: (table & 7) as u8,
            table_offset: table & !7,
            pba_bar: (pba & 7) as u8,
            pba_offset: pba & !7,
        })
    }

    /// Returns the table as a range of its BAR: 16 bytes a vector (7.7.2.3).
    pub fn table(&self) -> Range<u64> {
        let start = u64::from(self.table_offset);
        start..start + 16 * u64::from(self.vectors)
    }

    /// Returns the pending bits as a range of their BAR: a bit a vector, in 64-bit words (7.7.2.4).
    pub fn pba(&self) -> Range<u64> {
        let start = u64::from(self.pba_offset);
        start..start + 8 * u64::from(self.vectors).div_ceil(64)
    }
}

/// The MSI capability (7.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Msi {
    /// The offset of the capability, in bytes.
    pub offset: u16,
    /// Number of vectors that the device can use: 1 to 32.
    pub vectors: u8,
    /// Number of vectors that are enabled.
    pub granted: u8,
    /// MSI is enabled.
    pub enabled: bool,
    /// Message addresses can have 64 bits.
    pub wide: bool,
    /// Vectors can be masked individually.
    pub maskable: bool,
}

impl Msi {
    pub(super) fn at(config: &Config, offset: u16) -> Option<Self> {
        let control = config.u16(offset + 2)?;
        // Encodings 6 and 7 are reserved; 32 is the most there can be.
        let count = |encoded: u16| 1 << (encoded & 7).min(5);
        Some(Self {
            offset,
            vectors: count(control >> 1),
            granted: count(control >> 4),
            enabled: control & 1 != 0,
            wide: control & 1 << 7 != 0,
            maskable: control & 1 << 8 != 0,
        })
    }
}

/// The PCI Express capability (7.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Express {
    /// The offset of the capability, in bytes.
    pub offset: u16,
    /// The capability's version (7.5.3.2).
    pub version: u8,
    /// The function's place in the hierarchy (7.5.3.2).
    pub port: PortType,
    /// The function has a function-level reset (7.5.3.3).
    pub function_level_reset: bool,
    /// The largest payload that the function can take, in bytes (7.5.3.3); 0 for a reserved encoding.
    pub max_payload: u16,
    /// The link, where the function has one.
    pub link: Option<Link>,
}

/// A link's capabilities (7.5.3.6) and its state (7.5.3.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// The highest generation: 1 is 2.5 GT/s, 4 is 16 GT/s.
    pub max_generation: u8,
    /// The largest number of lanes.
    pub max_lanes: u8,
    /// The current generation.
    pub generation: u8,
    /// The current number of lanes.
    pub lanes: u8,
}

/// A function's place in the PCI Express hierarchy (7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortType {
    /// An endpoint.
    Endpoint,
    /// A legacy endpoint.
    LegacyEndpoint,
    /// A root port.
    RootPort,
    /// A switch's upstream port.
    UpstreamPort,
    /// A switch's downstream port.
    DownstreamPort,
    /// An endpoint of the root complex itself.
    RootComplexEndpoint,
    /// Another one, by its number.
    Other(u8),
}

impl Express {
    pub(super) fn at(config: &Config, offset: u16) -> Option<Self> {
        let (flags, device) = (config.u16(offset + 2)?, config.u32(offset + 4)?);
        let port = match (flags >> 4 & 0xf) as u8 {
            0 => PortType::Endpoint,
            1 => PortType::LegacyEndpoint,
            4 => PortType::RootPort,
            5 => PortType::UpstreamPort,
            6 => PortType::DownstreamPort,
            9 => PortType::RootComplexEndpoint,
            other => PortType::Other(other),
        };
        let payload = device & 7;
        Some(Self {
            offset,
            version: (flags & 0xf) as u8,
            port,
            function_level_reset: device & 1 << 28 != 0,
            max_payload: if payload < 6 { 128 << payload } else { 0 },
            link: Link::at(config, offset),
        })
    }
}

impl Link {
    fn at(config: &Config, offset: u16) -> Option<Self> {
        let (capable, status) = (config.u32(offset + 0x0c)?, config.u16(offset + 0x12)?);
        let link = Self {
            max_generation: (capable & 0xf) as u8,
            max_lanes: (capable >> 4 & 0x3f) as u8,
            generation: (status & 0xf) as u8,
            lanes: (status >> 4 & 0x3f) as u8,
        };
        // Zeroes: the function is inside the root complex, or the one who shows the capability has no link to show.
        (link.max_lanes > 0).then_some(link)
    }
}
