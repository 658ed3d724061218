//! Single lines of `lspci`'s output. Every function here takes any text.

use std::borrow::Cow;
use wholebar::pci::Address;
use wholebar::pci::config::BarKind;

/// A BAR, as a line tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) index: u8,
    pub(super) kind: BarKind,
    pub(super) address: Option<u64>,
    pub(super) size: Option<u64>,
    pub(super) disabled: bool,
    pub(super) hidden: bool,
}

/// Without what surrounds it where it was pasted: space, quote marks.
pub(super) fn clean(line: &str) -> &str {
    line.trim_start_matches(|c: char| c.is_whitespace() || c == '>').trim_end()
}

/// Without what HTML makes of angle brackets, and Markdown of square ones.
pub(super) fn decoded(line: &str) -> Cow<'_, str> {
    match line.contains("&lt;") || line.contains("\\[") {
        true => {
            let codes = [("&lt;", "<"), ("&gt;", ">"), ("\\[", "["), ("\\]", "]")];
            Cow::Owned(codes.iter().fold(line.to_owned(), |line, (code, text)| line.replace(code, text)))
        }
        false => Cow::Borrowed(line),
    }
}

/// The first line of a function: its address, and the rest.
pub(super) fn slot(line: &str) -> Option<(Address, &str)> {
    let (address, rest) = line.split_once(' ')?;
    // `Ethernet controller: …`, `0200: 8086:10fb`, `Class 0200: …`.
    let (class, _) = rest.split_once(':')?;
    let class = class.trim();
    let named = class.starts_with(|c: char| c.is_ascii_alphanumeric()) && class.len() < 80;
    Some((address.parse().ok().filter(|_| named)?, rest))
}

/// A line of a hex dump: its offset, and up to 16 bytes.
pub(super) fn hex(line: &str) -> Option<(usize, Vec<u8>)> {
    let (offset, rest) = line.split_once(':')?;
    if !(2..=3).contains(&offset.len()) {
        return None;
    }
    let offset = usize::try_from(digits(offset, 16)?).ok()?;
    let bytes: Option<Vec<u8>> = rest
        .split_whitespace()
        .map(|byte| if byte.len() == 2 { u8::try_from(digits(byte, 16)?).ok() } else { None })
        .collect();
    bytes.filter(|bytes| (1..=16).contains(&bytes.len())).map(|bytes| (offset, bytes))
}

/// `Region 0: Memory at f0000000 (64-bit, prefetchable) [size=256M]`.
pub(super) fn region(line: &str) -> Option<Region> {
    let (index, rest) = line.strip_prefix("Region ")?.split_once(':')?;
    let index = u8::try_from(digits(index, 10)?).ok().filter(|index| *index < 6)?;
    let rest = rest.trim_start();
    let (before, rest) = match rest.strip_prefix("[virtual]") {
        Some(rest) => (true, rest.trim_start()),
        None => (false, rest),
    };
    let (kind, rest) = if let Some(rest) = rest.strip_prefix("I/O ports at ") {
        (BarKind::Io, rest)
    } else {
        let rest = rest.strip_prefix("Memory at ")?;
        let wide = rest.contains("(64-bit");
        // What kind of memory it is stands behind the address: without it, the address may be cut off.
        rest.find("-bit").or(rest.find("low-1M")).or(rest.find("type 3"))?;
        (BarKind::Memory { wide, prefetchable: rest.contains(", prefetchable") }, rest)
    };
    let word = rest.split_whitespace().next().unwrap_or("");
    Some(Region {
        index,
        kind,
        // Unassigned or ignored: words in brackets.
        address: digits(word, 16).filter(|address| *address != 0),
        size: size(rest),
        disabled: rest.contains("[disabled]"),
        hidden: before || rest.contains("[virtual]"),
    })
}

/// `Expansion ROM at f7c00000 [disabled] [size=64K]`: its address and size.
pub(super) fn rom(line: &str) -> Option<(Option<u64>, Option<u64>)> {
    let rest = line.strip_prefix("Expansion ROM at ")?;
    let word = rest.split_whitespace().next().unwrap_or("");
    Some((digits(word, 16).filter(|address| *address != 0), size(rest)))
}

/// `[size=16K]`, in bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("[size=")?;
    let (text, _) = rest.split_once(']')?;
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let shift = match suffix {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits(number, 10)?.checked_mul(1 << shift).filter(|size| *size > 0)
}

/// `BAR=3 offset=00002000`: a BAR and an offset, which is written with eight digits or more.
pub(super) fn place(text: &str) -> Option<(u8, u64)> {
    let bar = u8::try_from(value(text, "BAR=", 10)?).ok()?;
    Some((bar, wide(text, "offset=")?))
}

/// A hex number behind `key` that is written with eight digits or more: with fewer it was cut off.
pub(super) fn wide(text: &str, key: &str) -> Option<u64> {
    let (_, rest) = text.split_once(key)?;
    let word = word(rest);
    (word.len() >= 8).then(|| digits(word, 16)).flatten()
}

/// The number behind `key`.
pub(super) fn value(text: &str, key: &str, radix: u32) -> Option<u64> {
    let (_, rest) = text.split_once(key)?;
    digits(word(rest.trim_start()), radix)
}

fn word(text: &str) -> &str {
    text.split(|c: char| c.is_whitespace() || c == ',').next().unwrap_or("")
}

/// `+` or `-` behind `key`.
pub(super) fn flag(text: &str, key: &str) -> Option<bool> {
    let (_, rest) = text.split_once(key)?;
    match rest.chars().next()? {
        '+' => Some(true),
        '-' => Some(false),
        _ => None,
    }
}

/// Digits alone: no sign, nothing else.
pub(super) fn digits(text: &str, radix: u32) -> Option<u64> {
    let whole = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    u64::from_str_radix(text, radix).ok().filter(|_| whole)
}
