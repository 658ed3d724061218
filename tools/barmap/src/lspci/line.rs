//! Single lines of `lspci`'s output, cleaned. Every function here takes any text.

use crate::Unplaced;
use wholebar_core::pci::Address;
use wholebar_core::pci::config::BarKind;

/// A BAR, as a line tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) index: u8,
    pub(super) kind: BarKind,
    pub(super) address: Option<u64>,
    pub(super) unplaced: Option<Unplaced>,
    pub(super) size: Option<u64>,
    pub(super) disabled: bool,
    pub(super) hidden: bool,
}

/// The first line of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot<'a> {
    /// `None` where the line has the path to it, without bus numbers (`lspci -P`).
    pub(super) address: Option<Address>,
    /// The address, or the path.
    pub(super) name: String,
    /// Its class and what follows.
    pub(super) rest: &'a str,
}

/// How lines that say what they are begin, in the order in which `lspci` writes them.
const KEYS: [&str; 14] = [
    "DeviceName:",
    "Subsystem:",
    "Physical Slot:",
    "Control: I/O",
    "Status: Cap",
    "Interrupt: pin",
    "NUMA node:",
    "IOMMU group:",
    "Region ",
    "Bus: primary=",
    "Expansion ROM at ",
    "Capabilities:",
    "Kernel driver in use:",
    "Kernel modules:",
];
/// Those that may be there more than once.
const CAPABILITIES: usize = 11;
/// Behind all of these stands a hex dump.
const DUMP: usize = KEYS.len();

/// Which of a function's lines it is, in their order: each is there once, and a line that should have come earlier belongs to another function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(usize, u64);

impl Rank {
    /// Whether a line can stand behind a line of rank `last`.
    pub(super) fn follows(self, last: Rank) -> bool {
        self > last || (self.0 == last.0 && self.0 == CAPABILITIES)
    }

    /// Whether all capabilities stand before it.
    pub(super) fn is_past_capabilities(self) -> bool {
        self.0 > CAPABILITIES
    }
}

pub(super) fn rank(line: &str) -> Option<Rank> {
    // How none of them begins, most lines do.
    if !line.starts_with(|c: char| c.is_ascii_hexdigit() || "DSPCINRBEK[".contains(c)) {
        return None;
    }
    let line = line.strip_prefix("[virtual] ").unwrap_or(line);
    if let Some(key) = KEYS.iter().position(|key| line.starts_with(key)) {
        let index = line.strip_prefix("Region ").and_then(|rest| digits(rest.split(':').next()?, 10));
        return Some(Rank(key, index.unwrap_or(0)));
    }
    hex(line).map(|(offset, _)| Rank(DUMP, offset as u64))
}

/// Whether it looks like a line that says what it is.
pub(super) fn is_known(line: &str) -> bool {
    rank(line).is_some() || is_inner(line) || slot(line).is_some()
}

/// Whether it is of a capability, and is read here.
fn is_inner(line: &str) -> bool {
    const INNER: [&str; 8] = [
        "Vector table:",
        "PBA:",
        "BAR=",
        "multiplier=",
        "Initial VFs:",
        "VF offset:",
        "Supported Page Size:",
        "Status: ",
    ];
    INNER.iter().any(|start| line.starts_with(start))
}

/// The first line of a function: `01:00.0 Ethernet controller: …`, `0001:01:00.0 0200: 8086:10fb`, `00:1c.0/01:00.0 Class 0200: …`.
pub(super) fn slot(line: &str) -> Option<Slot<'_>> {
    let (place, rest) = line.split_once(' ').filter(|(place, _)| is_like_slot(place))?;
    let (class, _) = rest.split_once(':')?;
    let class = class.trim();
    if !class.starts_with(|c: char| c.is_ascii_alphanumeric()) || class.len() >= 80 {
        return None;
    }
    let Some((first, path)) = place.split_once('/') else {
        let address: Address = place.parse().ok()?;
        return Some(Slot { address: Some(address), name: address.to_string(), rest });
    };
    // The path through each bridge: with buses (`lspci -PP`), or without (`lspci -P`), where only the first one is known.
    let first: Address = first.parse().ok()?;
    let (segment, _) = first.to_string().split_once(':').map(|(segment, rest)| (segment.to_owned(), rest.len()))?;
    let parse = |part: &str, bus: &str| format!("{segment}:{bus}{part}").parse::<Address>().ok();
    let parts: Vec<&str> = path.split('/').collect();
    if parts.iter().all(|part| part.len() == 7 && parse(part, "").is_some()) {
        let address = parse(parts.last()?, "")?;
        return Some(Slot { address: Some(address), name: address.to_string(), rest });
    }
    let known = parts.iter().all(|part| part.len() == 4 && parse(part, "00:").is_some());
    known.then(|| Slot { address: None, name: format!("{first}/{path}"), rest })
}

/// Whether it begins as the first line of a function does: what can't be read of it is no line of the function before it.
pub(super) fn is_like_slot(line: &str) -> bool {
    if !line.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return false;
    }
    let place = line.split([' ', '\t', '"']).next().unwrap_or("").trim_end_matches(':');
    let path = place.contains('/');
    let of_address =
        |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '/') || (path && c.is_ascii_alphanumeric());
    let (front, function) = place.rsplit_once('.').unwrap_or(("", ""));
    place.chars().all(of_address) && function.len() == 1 && front.len() >= 5 && front.contains([':', '/'])
}

/// Whether `line` goes on with what `held` began: it was wrapped, as mails are. `width`: how wide `held` was.
pub(super) fn continues(held: &str, width: usize, line: &str) -> bool {
    let open = held.ends_with([':', ',', '(']) || (held.starts_with("Capabilities: [") && held.ends_with(']'));
    let first = line.split(' ').next().unwrap_or("");
    let rest = ["[", "(", "offset=", "size="].iter().any(|start| line.starts_with(start));
    let wrapped = width + 1 + first.len() >= 60 || rest;
    if line.is_empty() || !(open || wrapped) || is_known(line) || is_like_slot(line) {
        return false;
    }
    // Its class, and the colon behind it, is missing.
    let begun = is_like_slot(held) && held.contains(' ') && slot(held).is_none();
    let has_key = || {
        line.split_once(':').is_some_and(|(key, rest)| {
            key.len() <= 32 && (rest.is_empty() || rest.starts_with(' ')) && !key.contains(['[', '('])
        })
    };
    (begun || is_known(held)) && (open || begun || !has_key())
}

/// A line of a hex dump: its offset, and up to 16 bytes.
pub(super) fn hex(line: &str) -> Option<(usize, [Option<u8>; 16])> {
    let (offset, rest) = line.split_once(':')?;
    if !(2..=3).contains(&offset.len()) || !rest.starts_with(' ') {
        return None;
    }
    let offset = usize::try_from(digits(offset, 16)?).ok()?;
    let mut bytes = [None; 16];
    for (i, byte) in rest.split_whitespace().enumerate() {
        *bytes.get_mut(i)? = Some(u8::try_from(digits(byte, 16).filter(|_| byte.len() == 2)?).ok()?);
    }
    bytes[0].map(|_| (offset, bytes))
}

/// `Region 0: Memory at f0000000 (64-bit, prefetchable) [size=256M]`. Nothing of it is taken where a part can't be read.
pub(super) fn region(line: &str) -> Option<Region> {
    let (index, rest) = line.strip_prefix("Region ")?.split_once(':')?;
    let index = u8::try_from(digits(index, 10)?).ok().filter(|index| *index < 6)?;
    let rest = rest.trim_start();
    // Where pciutils before 2020 wrote it.
    let (before, rest) = match rest.strip_prefix("[virtual] ") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let (word, kind, flags) = if let Some(rest) = rest.strip_prefix("I/O ports at ") {
        let (word, flags) = rest.split_once(' ').unwrap_or((rest, ""));
        (word, BarKind::Io, flags)
    } else {
        let (word, rest) = rest.strip_prefix("Memory at ")?.split_once(" (")?;
        // What kind of memory it is stands behind the address: without it, the address may be cut off.
        let (what, flags) = rest.split_once(')')?;
        let (width, prefetch) = what.split_once(", ")?;
        let known = matches!(width, "32-bit" | "64-bit" | "low-1M" | "type 3");
        let prefetchable = match prefetch {
            "prefetchable" => true,
            "non-prefetchable" => false,
            _ => return None,
        };
        known.then_some(())?;
        (word, BarKind::Memory { wide: width == "64-bit", prefetchable }, flags)
    };
    // Four digits at least of ports, eight of memory: fewer are a part of them.
    let least = if kind == BarKind::Io { 4 } else { 8 };
    let (address, unplaced) = match word {
        "<unassigned>" => (None, Some(Unplaced::Unassigned)),
        "<ignored>" => (None, Some(Unplaced::Ignored)),
        "<broken-64-bit-slot>" => (None, Some(Unplaced::Broken)),
        _ => (digits(word, 16).filter(|_| word.len() >= least).map(Some)?, None),
    };
    let flags = flags.trim();
    let whole = flags.is_empty() || (flags.starts_with('[') && flags.ends_with(']'));
    Some(Region {
        index,
        kind,
        address: address.filter(|address| *address != 0),
        unplaced,
        size: size(flags).filter(|_| whole),
        disabled: flags.contains("[disabled]"),
        hidden: before || flags.contains("[virtual]"),
    })
}

/// `Expansion ROM at f7c00000 [disabled] [size=64K]`: its address and size.
pub(super) fn rom(line: &str) -> Option<(Option<u64>, Option<u64>)> {
    let rest = line.strip_prefix("[virtual] ").unwrap_or(line).strip_prefix("Expansion ROM at ")?;
    let word = rest.split(' ').next().unwrap_or("");
    Some((digits(word, 16).filter(|address| *address != 0 && word.len() >= 8), size(rest)))
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

/// `MSI-X: Enable+ Count=33 Masked-`, and what pciutils before 3.1 wrote: `MSI-X: Enable- Mask- TabSize=33`. Enabled, masked, how many.
pub(super) fn msix(text: &str) -> Option<(bool, bool, u16)> {
    let mut words = text.strip_prefix("MSI-X: ")?.split(' ');
    let flag = |word: &str, key: &str| match word.strip_prefix(key)? {
        "+" => Some(true),
        "-" => Some(false),
        _ => None,
    };
    let enabled = flag(words.next()?, "Enable")?;
    let (second, third) = (words.next()?, words.next()?);
    let (count, masked) = match second.strip_prefix("Count=") {
        Some(count) => (count, flag(third, "Masked")?),
        None => (third.strip_prefix("TabSize=")?, flag(second, "Mask")?),
    };
    let count = digits(count, 10).and_then(|n| u16::try_from(n).ok()).filter(|n| (1..=2048).contains(n))?;
    words.next().is_none().then_some((enabled, masked, count))
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
