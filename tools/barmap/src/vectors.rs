//! The entries of an MSI-X table, looked at: what is wrong with them. Pure.

use std::collections::HashMap;
use std::ops::Range;

/// One entry, with its pending bit (PCI Express Base 6.0, 7.7.2.5 to 7.7.2.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The vector is masked.
    pub masked: bool,
    /// The vector's message was to be sent while it was masked.
    pub pending: bool,
}

/// Where x86 takes interrupt messages (Intel Software Developer's Manual, volume 3, 12.11.1): writes elsewhere are writes to memory.
pub const X86_WINDOW: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// What looks wrong, as (vector, what): a sentence each.
///
/// `enabled`: MSI-X is in use, by Message Control. `window`: where this platform takes messages; `None` where that isn't known, and then nothing is
/// said of addresses but what PCI says.
pub fn findings(vectors: &[VectorState], enabled: bool, window: Option<&Range<u64>>) -> Vec<(u32, String)> {
    let mut findings = Vec::new();
    let mut senders: HashMap<(u64, u32), u32> = HashMap::new();
    for (number, vector) in (0u32..).zip(vectors) {
        let VectorState { address, data, masked, .. } = *vector;
        if address == u64::MAX && data == u32::MAX {
            findings.push((number, "reads all ones: the device is gone, or its memory is not decoded".to_owned()));
            continue;
        }
        // What is masked, or not in use, sends nothing.
        if masked || !enabled {
            continue;
        }
        if address == 0 {
            findings.push((number, "is not masked, and has no address: it would write to address 0".to_owned()));
            continue;
        }
        if address % 4 != 0 {
            findings.push((number, format!("has the address {address:#x}, which is no multiple of 4 (7.7.2.5)")));
        }
        if let Some(window) = window.filter(|window| !window.contains(&address)) {
            let (start, last) = (window.start, window.end - 1);
            findings.push((
                number,
                format!("has the address {address:#x}, and messages are taken at {start:#x} to {last:#x}"),
            ));
        }
        match senders.get(&(address, data)) {
            Some(first) => {
                findings.push((number, format!("sends the same message as vector {first}: nobody can tell them apart")))
            }
            None => {
                senders.insert((address, data), number);
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(address: u64, data: u32) -> VectorState {
        VectorState { address, data, masked: false, pending: false }
    }

    #[test]
    fn each_kind_of_trouble() {
        let masked = VectorState { masked: true, ..vector(0, 0) };
        for (vectors, enabled, window, found) in [
            (vec![vector(0xfee0_0318, 0), vector(0xfee0_0338, 0), masked], true, Some(X86_WINDOW), vec![]),
            (vec![masked, vector(0, 0)], true, None, vec![(1, "address 0")]),
            // Not in use: nothing is sent.
            (vec![vector(0, 0), vector(0, 0)], false, Some(X86_WINDOW), vec![]),
            (vec![vector(0xfee0_0000, 1), masked, vector(0xfee0_0000, 1)], true, None, vec![(2, "as vector 0")]),
            (vec![vector(0xfee0_0000, 1), vector(0xfee0_0000, 2)], true, Some(X86_WINDOW), vec![]),
            (vec![vector(0x1000, 1)], true, Some(X86_WINDOW), vec![(0, "0xfee00000 to 0xfeefffff")]),
            (vec![vector(0xfef0_0000, 1)], true, Some(X86_WINDOW), vec![(0, "0xfef00000")]),
            // Elsewhere nobody knows.
            (vec![vector(0x0800_0040, 1)], true, None, vec![]),
            (vec![vector(0xfee0_0002, 1)], true, Some(X86_WINDOW), vec![(0, "multiple of 4")]),
            (vec![vector(u64::MAX, u32::MAX)], true, Some(X86_WINDOW), vec![(0, "all ones")]),
            (vec![], true, None, vec![]),
        ] {
            let findings = findings(&vectors, enabled, window.as_ref());
            assert_eq!(findings.len(), found.len(), "{vectors:x?}: {findings:?}");
            for ((number, text), (at, says)) in findings.iter().zip(found) {
                assert!(*number == at && text.contains(says), "{number} {text}");
            }
        }
    }
}
