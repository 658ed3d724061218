//! Where a modern device's registers are: the vendor capabilities of configuration space (VIRTIO 1.2, 4.1.4).
//!
//! Pure: bytes in, places out. What the device says is checked to be inside of its BARs when they are opened.

use crate::error::{Error, Result};
use std::ops::Range;
use wholebar_core::pci::Config;
use wholebar_core::pci::config::CapabilityId;

/// The capability's number: vendor-specific (PCI Express Base 6.0, 7.9.4).
const VENDOR_SPECIFIC: CapabilityId = CapabilityId::Pci(0x09);
/// `cfg_type` (4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;
/// Bytes of `struct virtio_pci_cap` (4.1.4), and of the one with a multiplier behind it (4.1.4.4).
const CAP: u8 = 16;
const NOTIFY_CAP: u8 = 20;

/// The vendor of virtio devices (4.1.2).
const VENDOR: u16 = 0x1af4;
/// Modern devices have this plus their type for a number; transitional ones have numbers below (4.1.2.1).
const MODERN: u16 = 0x1040;
const TRANSITIONAL: u16 = 0x1000;

/// A part of a BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub bar: u8,
    pub range: Range<u64>,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    /// The device's type (chapter 5): 1 is a network device, 2 a block device.
    pub kind: u16,
    pub common: Place,
    pub notify: Place,
    /// From one queue's notification to the next, in bytes (4.1.4.4).
    pub multiplier: u32,
    /// The configuration of its type, where it has one.
    pub device: Option<Place>,
}

impl Places {
    /// Finds them.
    ///
    /// # Errors
    /// [`Error::Unfit`] where it isn't a virtio device, [`Error::Legacy`] where it isn't a modern one, [`Error::Nonsense`].
    pub fn of(name: &str, config: &Config) -> Result<Self> {
        let unfit = |why: String| Error::Unfit { device: name.to_owned(), why };
        let (vendor, device) = (config.vendor(), config.device());
        let kind = match device {
            _ if vendor != VENDOR => return Err(unfit(format!("its vendor is {vendor:#06x}, not virtio's 0x1af4"))),
            MODERN..=0x107f => device - MODERN,
            // 4.1.2.3: of a transitional device, the subsystem's number.
            TRANSITIONAL..=0x103f => config.subsystem().map_or(0, |(_, id)| id),
            _ => return Err(unfit(format!("its number is {device:#06x}, and virtio's are 0x1000 to 0x107f"))),
        };
        let mut found = [const { None }; 3];
        let mut multiplier = 0;
        for cap in config.capabilities().filter(|cap| cap.id == VENDOR_SPECIFIC) {
            let Some((kind, place)) = place(config, cap.offset) else { continue };
            // The first of each type counts (4.1.4.1).
            let slot = match kind {
                COMMON => &mut found[0],
                NOTIFY => &mut found[1],
                DEVICE => &mut found[2],
                _ => continue,
            };
            if slot.is_none() {
                if kind == NOTIFY {
                    match config.u32(cap.offset + u16::from(CAP)) {
                        Some(value) if config.u8(cap.offset + 2).is_some_and(|len| len >= NOTIFY_CAP) => {
                            multiplier = value
                        }
                        _ => continue,
                    }
                }
                *slot = Some(place);
            }
        }
        let nonsense = |what: &str| Error::Nonsense { device: name.to_owned(), what: what.to_owned() };
        let [common, notify, device_config] = found;
        let common = match common {
            None if device < MODERN => return Err(Error::Legacy { device: name.to_owned() }),
            None => return Err(nonsense("it has no capability for its common configuration")),
            Some(place) => place,
        };
        let notify = notify.ok_or_else(|| nonsense("it has no capability for notifications"))?;
        // 4.1.4.4.1: a power of two, at least 2, or 0.
        if multiplier != 0 && (multiplier < 2 || !multiplier.is_power_of_two()) {
            return Err(nonsense(&format!("its notifications are {multiplier} bytes apart")));
        }
        Ok(Self { kind, common, notify, multiplier, device: device_config })
    }
}

/// A capability's type, and where it points; `None` where it is cut off, or names a reserved BAR (4.1.4.1: to be ignored).
fn place(config: &Config, at: u16) -> Option<(u8, Place)> {
    let (len, kind, bar) = (config.u8(at + 2)?, config.u8(at + 3)?, config.u8(at + 4)?);
    let (offset, length) = (config.u32(at + 8)?, config.u32(at + 12)?);
    let start = u64::from(offset);
    (len >= CAP && bar <= 5).then(|| (kind, Place { bar, range: start..start + u64::from(length) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration space with these capabilities of 20 bytes: type, BAR, offset, length, multiplier.
    fn config(vendor: u16, device: u16, caps: &[(u8, u8, u32, u32, u32)]) -> Config {
        let mut bytes = vec![0; 256];
        bytes[0..2].copy_from_slice(&vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&device.to_le_bytes());
        bytes[6] = 0x10;
        bytes[0x2e] = 1;
        let mut link = 0x34;
        for (i, (kind, bar, offset, length, multiplier)) in caps.iter().enumerate() {
            let at = 0x40 + 20 * i;
            bytes[link] = at as u8;
            link = at + 1;
            bytes[at] = 9;
            (bytes[at + 2], bytes[at + 3], bytes[at + 4]) = (20, *kind, *bar);
            for (j, word) in [offset, length, multiplier].into_iter().enumerate() {
                bytes[at + 8 + 4 * j..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
        Config::from_bytes("test", bytes).unwrap()
    }

    const CAPS: [(u8, u8, u32, u32, u32); 4] =
        [(1, 4, 0, 0x38, 0), (2, 4, 0x3000, 0x100, 4), (4, 4, 0x2000, 24, 0), (1, 2, 0, 8, 0)];

    #[test]
    fn the_first_of_each_type_counts() {
        let places = Places::of("test", &config(0x1af4, 0x1041, &CAPS)).unwrap();
        assert_eq!((places.kind, places.multiplier), (1, 4));
        assert_eq!(places.common, Place { bar: 4, range: 0..0x38 });
        assert_eq!(places.notify, Place { bar: 4, range: 0x3000..0x3100 });
        assert_eq!(places.device, Some(Place { bar: 4, range: 0x2000..0x2018 }));
        // A transitional device with modern capabilities is one; reserved BARs and unknown types are passed over.
        let odd: Vec<_> = [(1, 6, 0, 8, 0), (77, 0, 0, 8, 0)].into_iter().chain(CAPS).collect();
        assert_eq!(Places::of("test", &config(0x1af4, 0x1000, &odd)).unwrap(), places);
    }

    #[test]
    fn what_is_not_modern_virtio_is_refused() {
        let of = |vendor, device, caps: &[_]| Places::of("test", &config(vendor, device, caps)).unwrap_err();
        assert!(matches!(of(0x8086, 0x1041, &CAPS), Error::Unfit { .. }));
        assert!(matches!(of(0x1af4, 0x1080, &CAPS), Error::Unfit { .. }));
        assert!(matches!(of(0x1af4, 0x1000, &[]), Error::Legacy { .. }));
        assert!(matches!(of(0x1af4, 0x1041, &[]), Error::Nonsense { .. }));
        assert!(matches!(of(0x1af4, 0x1041, &CAPS[..1]), Error::Nonsense { .. }));
        assert!(matches!(of(0x1af4, 0x1041, &[CAPS[0], (2, 4, 0, 64, 3)]), Error::Nonsense { .. }));
    }
}
