//! The address of a PCI function: `0000:01:00.0`.

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// A PCI address: segment (domain), bus, device and function.
///
/// Shown as Linux does: `0000:01:00.0`.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::pci::Address;
///
/// let address: Address = "0000:3b:1f.2".parse()?;
/// assert_eq!((address.bus, address.routing_id()), (0x3b, 0x3bfa));
/// // The segment may be left out.
/// assert_eq!("3b:1f.2".parse::<Address>()?, address);
/// # Ok::<_, wholebar::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The segment, which Linux calls domain. Those above 0xffff are made up by software.
    pub segment: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, below 32.
    pub device: u8,
    /// The function of the device, below 8.
    pub function: u8,
}

impl Address {
    /// Returns bus, device and function as one number, which a device sends with its requests (PCI Express Base 6.0, 2.2.4.2).
    pub fn routing_id(self) -> u16 {
        u16::from_be_bytes([self.bus, self.device << 3 | self.function & 7])
    }

    /// Returns the function of the same segment that sends `id` with its requests.
    pub fn with_routing_id(self, id: u16) -> Self {
        let [bus, rest] = id.to_be_bytes();
        Self { segment: self.segment, bus, device: rest >> 3, function: rest & 7 }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.device, self.function)
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Parses an address as it is shown, or without its segment, which is 0 then.
    ///
    /// # Errors
    /// [`Error::Address`] where the text is no address.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::Address { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Address> {
    let (front, function) = text.rsplit_once('.')?;
    let (front, device) = front.rsplit_once(':')?;
    let (segment, bus) = front.rsplit_once(':').unwrap_or(("0000", front));
    // Digits alone, and as many as the field is written with: `from_str_radix` would take a sign.
    let hex = |digits: &str, lengths: std::ops::RangeInclusive<usize>, below: u64| {
        let whole = lengths.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(digits, 16).ok().filter(|n| whole && *n < below)
    };
    Some(Address {
        segment: hex(segment, 4..=8, 1 << 32)? as u32,
        bus: hex(bus, 2..=2, 256)? as u8,
        device: hex(device, 2..=2, 32)? as u8,
        function: hex(function, 1..=1, 8)? as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["0000:01:00.0", "ffff:ff:1f.7", "10000:e1:00.0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("3a:1F.2".parse::<Address>().unwrap().to_string(), "0000:3a:1f.2");
    }

    #[test]
    fn routing_ids() {
        let address: Address = "0001:3b:1f.2".parse().unwrap();
        assert_eq!(address.routing_id(), 0x3bfa);
        assert_eq!(address.with_routing_id(0x3bfa), address);
        assert_eq!(address.with_routing_id(0x3c00).to_string(), "0001:3c:00.0");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "1",
            "01:00",
            "01:00.",
            "1:0.0",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:+1:00.0",
            "000:01:00.0",
            "a:0000:01:00.0",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
