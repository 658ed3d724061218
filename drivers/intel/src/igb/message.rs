//! What virtual functions of an 82576 ask of their physical one, as words of the mailbox. The datasheet (7.8.2.9, 8.14) has the mailbox, and leaves the
//! words to drivers: these are Linux's (`drivers/net/ethernet/intel/igbvf/mbx.h`), so that either side may be its driver.
//!
//! No access happens here: the mailbox is memory, and each of its sides reads and writes it in its own way.

use wholebar_core::net::Mac;

/// Words of a mailbox.
pub const WORDS: usize = 16;
/// The answer to a request: it was done.
pub const DONE: u32 = 1 << 31;
/// The answer to a request: it was refused.
pub const REFUSED: u32 = 1 << 30;
/// The physical function's driver knows this virtual function: it need not begin anew (CTS).
pub const CLEAR_TO_SEND: u32 = 1 << 29;
/// From the physical function: it is there, and its link may have changed.
pub const CONTROL: u32 = 0x100;

/// The most groups of one request.
pub const GROUPS: usize = 30;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// To begin anew. The answer has the function's address in its second and third word.
    Reset,
    /// To have another address.
    Address(Mac),
    /// To have no address besides that one. Linux's igbvf asks for this whenever it sets its filters, and there never is another.
    OneAddress,
    /// To receive for groups that have these hashes, in place of those before.
    Groups(Vec<u16>),
    /// To be in a VLAN, or not.
    Vlan { vlan: u16, on: bool },
    /// To receive frames of so many bytes, header and frame checksum included.
    Longest(u32),
}

const RESET: u32 = 1;
const SET_ADDRESS: u32 = 2;
const SET_GROUPS: u32 = 3;
const SET_VLAN: u32 = 4;
const SET_LONGEST: u32 = 5;
/// Bits 23:16 are what a request has to say besides its words.
const INFO: u32 = 16;
/// Of SET_ADDRESS: no more addresses (E1000_VF_MAC_FILTER_CLR).
const CLEAR: u32 = 1;

/// An address in two words.
fn address(mac: Mac) -> [u32; 2] {
    let [a, b, c, d, e, f] = mac.0;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0])]
}

/// The address in the second and third word.
pub fn address_of(words: &[u32; WORDS]) -> Mac {
    let ([a, b, c, d], [e, f, ..]) = (words[1].to_le_bytes(), words[2].to_le_bytes());
    Mac([a, b, c, d, e, f])
}

impl Request {
    /// What the first word says, without what is no part of the request.
    pub fn kind(word: u32) -> u32 {
        word & 0xffff
    }

    /// As words.
    pub fn words(&self) -> [u32; WORDS] {
        let mut words = [0; WORDS];
        match self {
            Self::Reset => words[0] = RESET,
            Self::Address(mac) => {
                words[0] = SET_ADDRESS;
                words[1..3].copy_from_slice(&address(*mac));
            }
            Self::OneAddress => words[0] = SET_ADDRESS | CLEAR << INFO,
            Self::Groups(hashes) => {
                let hashes = &hashes[..hashes.len().min(GROUPS)];
                words[0] = SET_GROUPS | (hashes.len() as u32) << INFO;
                for (i, hash) in hashes.iter().enumerate() {
                    words[1 + i / 2] |= u32::from(*hash) << (16 * (i % 2));
                }
            }
            Self::Vlan { vlan, on } => {
                words[0] = SET_VLAN | u32::from(*on) << INFO;
                words[1] = (*vlan).into();
            }
            Self::Longest(bytes) => (words[0], words[1]) = (SET_LONGEST, *bytes),
        }
        words
    }

    /// From words; `None` where they are none.
    pub fn parse(words: &[u32; WORDS]) -> Option<Self> {
        let info = (words[0] >> INFO & 0xff) as usize;
        Some(match Self::kind(words[0]) {
            RESET => Self::Reset,
            SET_ADDRESS if info == 0 => Self::Address(address_of(words)),
            SET_ADDRESS if info == CLEAR as usize => Self::OneAddress,
            // Others: a further address, which there is no room for.
            SET_GROUPS => {
                let hash = |i: usize| (words[1 + i / 2] >> (16 * (i % 2)) & 0xfff) as u16;
                Self::Groups((0..info.min(GROUPS)).map(hash).collect())
            }
            SET_VLAN => Self::Vlan { vlan: (words[1] & 0xfff) as u16, on: info != 0 },
            SET_LONGEST => Self::Longest(words[1]),
            _ => return None,
        })
    }
}

/// The answer to a request: its first word, and for a reset the function's address.
pub fn answer(first: u32, done: bool, mac: Option<Mac>) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    words[0] = Request::kind(first) | if done { DONE } else { REFUSED };
    // A function that begins anew is told so by the answer itself.
    match mac {
        Some(mac) => words[1..3].copy_from_slice(&address(mac)),
        None => words[0] |= CLEAR_TO_SEND,
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_words_and_back() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        for request in [
            Request::Reset,
            Request::Address(mac),
            Request::OneAddress,
            Request::Groups(vec![]),
            Request::Groups((0..30).map(|i| i * 100).collect()),
            Request::Vlan { vlan: 4094, on: true },
            Request::Vlan { vlan: 1, on: false },
            Request::Longest(9728),
        ] {
            assert_eq!(Request::parse(&request.words()), Some(request));
        }
        assert_eq!(Request::Address(mac).words()[..3], [2, 0x1200_5452, 0x5634]);
        assert_eq!(Request::Groups(vec![0x123, 0x456, 0x789]).words()[..3], [0x3_0003, 0x456_0123, 0x789]);
        assert_eq!(Request::Vlan { vlan: 5, on: true }.words()[..2], [0x1_0004, 5]);
        // More than there is room for.
        assert_eq!(Request::parse(&Request::Groups(vec![1; 99]).words()), Some(Request::Groups(vec![1; 30])));
    }

    #[test]
    fn any_words_are_a_request_or_none() {
        let mut seed = 1u32;
        for _ in 0..10_000 {
            let words = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                seed >> 3
            });
            let _ = Request::parse(&words);
        }
        for first in [0, 6, 7, 0xffff, 0x2_0002] {
            assert_eq!(Request::parse(&[first; WORDS]), None, "{first:#x}");
        }
    }

    #[test]
    fn answers_name_what_they_answer() {
        assert_eq!(answer(0x1_0004, false, None)[0], 4 | REFUSED | CLEAR_TO_SEND);
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let words = answer(1, true, Some(mac));
        assert_eq!((words[0], address_of(&words)), (1 | DONE, mac));
    }
}
