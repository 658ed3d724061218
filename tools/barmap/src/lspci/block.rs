//! What `lspci` says of one function: lines in, facts out.

use super::line::{self, Rank, Slot};
use crate::config::of_config;
use crate::{Bar, Function, Ids, MsixFact, Notify, Place, Sriov};
use wholebar_core::pci::Config;
use wholebar_core::pci::config::{BarKind, Msix};

/// The lines of one function, as they come.
pub(super) struct Block {
    function: Function,
    /// Its first line was there.
    named: bool,
    /// What the lines belong to that come now.
    inside: Inside,
    capabilities: Capabilities,
    msix: Option<PartOfMsix>,
    /// The hex dump, from 0 on without gap.
    bytes: Vec<u8>,
    /// The last line that says what it is.
    last: Option<Rank>,
    /// A line was seen that comes after all capabilities.
    past_capabilities: bool,
    /// `lspci -vv` wrote it: BARs that aren't there aren't hidden.
    verbose: bool,
    gaps: Gaps,
    /// The last line was empty.
    blank: bool,
    /// What stood behind the first line and an empty one: its own, if all lines are so, and else another function's.
    held: Option<String>,
    /// Lines that look like a BAR or MSI-X and can't be read: how many, and the first.
    unread: (u64, String),
    /// It tells of something that can be mapped, or of a capability.
    useful: bool,
}

/// How its lines stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gaps {
    /// Only the first one came.
    Unknown,
    /// One below the other: an empty one ends them.
    None,
    /// An empty one behind each.
    Each,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// The function itself.
    Function,
    Msix,
    Sriov,
    Notify,
    /// Another capability.
    Other,
}

/// What was said of the list of capabilities.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Capabilities {
    /// Nothing.
    Unsaid,
    /// There is none.
    None,
    /// There is one.
    Promised,
    /// Some were listed.
    Listed,
    /// Denied to whoever asked.
    Denied,
}

/// An MSI-X capability, as far as it was told.
#[derive(PartialEq)]
struct PartOfMsix {
    offset: u16,
    /// Enabled, masked, how many vectors.
    control: Option<(bool, bool, u16)>,
    table: Option<(u8, u32)>,
    pba: Option<(u8, u32)>,
    /// There is another, which says something else.
    contradicted: bool,
}

/// Whose a line is.
pub(super) enum Whose {
    /// This function's.
    Own,
    /// No more this function's; and neither was this line, which came before.
    Others(Option<String>),
}

impl Block {
    pub(super) fn new(slot: &Slot<'_>) -> Self {
        let rest = slot.rest;
        let title = rest.split(" (rev ").next().unwrap_or(rest).split(" (prog-if ").next().unwrap_or(rest);
        let mut function = Function {
            name: slot.name.clone(),
            address: slot.address,
            title: Some(title.trim().to_owned()),
            ids: ids(rest),
            ..Function::default()
        };
        if slot.address.is_none() {
            function
                .notes
                .push("its name is the path to it (`lspci -P`): on which bus it is isn't in the text".to_owned());
        }
        Self { named: true, ..Self::of(function) }
    }

    /// Of lines whose first one is missing.
    pub(super) fn unnamed() -> Self {
        Self { gaps: Gaps::None, ..Self::of(Function::default()) }
    }

    fn of(function: Function) -> Self {
        Self {
            function,
            named: false,
            inside: Inside::Function,
            capabilities: Capabilities::Unsaid,
            msix: None,
            bytes: Vec::new(),
            last: None,
            past_capabilities: false,
            verbose: false,
            gaps: Gaps::Unknown,
            blank: false,
            held: None,
            unread: (0, String::new()),
            useful: false,
        }
    }

    /// Whether its first line was there.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }

    /// An empty line.
    pub(super) fn blank(&mut self) {
        self.blank = true;
    }

    /// Whether `line` is one of its own, which is to be told before [`line`](Self::line) takes it.
    pub(super) fn whose(&mut self, line: &str) -> Whose {
        let rank = line::rank(line);
        // Inside of SR-IOV's capability are BARs too.
        let nested = self.inside == Inside::Sriov && line.starts_with("Region ");
        let turns_back = rank.zip(self.last).is_some_and(|(rank, last)| !rank.follows(last)) && !nested;
        let second = !self.named && self.msix.is_some() && line.contains("] MSI-X:");
        if turns_back || second || line::is_like_slot(line) {
            return Whose::Others(self.held.take());
        }
        let blank = std::mem::take(&mut self.blank);
        match (self.gaps, blank) {
            (Gaps::Unknown, true) if self.held.is_some() => {
                self.gaps = Gaps::Each;
                if let Some(held) = self.held.take() {
                    self.take(&held);
                }
                Whose::Own
            }
            (Gaps::Unknown, true) if rank.is_some() => Whose::Own,
            (Gaps::Unknown, false) if self.held.is_some() => Whose::Others(self.held.take()),
            (Gaps::Unknown, false) => {
                self.gaps = Gaps::None;
                Whose::Own
            }
            (Gaps::Each, _) | (Gaps::None, false) => Whose::Own,
            (Gaps::Unknown | Gaps::None, true) => {
                self.blank = true;
                Whose::Others(None)
            }
        }
    }

    /// One of its own lines; `cut`: its end may be missing.
    pub(super) fn line(&mut self, line: &str, cut: bool) {
        if let Some(rank) = line::rank(line).filter(|_| self.inside != Inside::Sriov || !line.starts_with("Region ")) {
            self.last = Some(rank);
            self.past_capabilities |= rank.is_past_capabilities();
        }
        // Its numbers may be parts of numbers.
        if cut {
            return;
        }
        match self.gaps {
            Gaps::Unknown => self.held = Some(line.to_owned()),
            _ => self.take(line),
        }
    }

    fn take(&mut self, line: &str) {
        if self.inside != Inside::Function && !line.starts_with("Capabilities:") && line::rank(line).is_none() {
            self.inner(line);
        } else if let Some((offset, bytes)) = line::hex(line) {
            self.useful = true;
            if offset == self.bytes.len() && offset < 4096 {
                self.bytes.extend(bytes.iter().map_while(|byte| *byte));
            }
        } else if let Some(rest) = line.strip_prefix("Capabilities:") {
            self.capability(rest.trim_start());
        } else if let Some(driver) = line.strip_prefix("Kernel driver in use:") {
            self.inside = Inside::Function;
            self.function.driver = driver.split_whitespace().next().map(str::to_owned);
        } else if let Some((address, size)) = line::rom(line) {
            self.function.rom = Some(Place { address, size });
        } else if line.starts_with("Status:") && self.inside == Inside::Function {
            self.verbose = true;
            self.useful = true;
            match line::flag(line, "Cap") {
                Some(false) => self.capabilities = Capabilities::None,
                Some(true) if self.capabilities == Capabilities::Unsaid => self.capabilities = Capabilities::Promised,
                _ => {}
            }
        } else if line.starts_with("Control: I/O") {
            self.useful = true;
        } else if line.starts_with("!!!") {
            self.note(format!("lspci says: {}", line.trim_start_matches('!').trim()));
        } else {
            self.inner(line);
        }
    }

    fn capability(&mut self, rest: &str) {
        if rest.starts_with('<') {
            // `<access denied>`, `<chain looped>`, `<chain broken>`.
            self.inside = Inside::Function;
            if rest.contains("denied") {
                self.capabilities = Capabilities::Denied;
            } else {
                self.note(format!("lspci says of its capabilities: {rest}"));
            }
            return;
        }
        if matches!(self.capabilities, Capabilities::Unsaid | Capabilities::Promised) {
            self.capabilities = Capabilities::Listed;
        }
        let (place, what) = rest.split_once(']').unwrap_or(("", rest));
        let offset = place.trim_start_matches('[').split_whitespace().next().and_then(|at| line::digits(at, 16));
        let what = what.trim_start();
        self.inside = if what.starts_with("MSI-X:") {
            self.msix(offset.and_then(|at| u16::try_from(at).ok()).unwrap_or(0), what)
        } else if what.starts_with("Single Root I/O Virtualization") {
            self.function.sriov = Some(Sriov::default());
            Inside::Sriov
        } else if what.starts_with("Vendor Specific Information: VirtIO: Notify") || what.starts_with("VirtIO: Notify")
        {
            Inside::Notify
        } else if rest.contains("MSI-X:") {
            self.cannot_read(rest);
            Inside::Other
        } else {
            if rest.contains("<chain") {
                self.note(format!("lspci says of its capabilities: {rest}"));
            }
            Inside::Other
        };
    }

    fn msix(&mut self, offset: u16, what: &str) -> Inside {
        self.useful = true;
        let control = line::msix(what);
        if control.is_none() {
            self.cannot_read(what);
        }
        match &mut self.msix {
            None => self.msix = Some(PartOfMsix { offset, control, table: None, pba: None, contradicted: false }),
            // Whether it is enabled may have changed: of a diff, both are there.
            Some(first) => {
                let vectors = |control: Option<(bool, bool, u16)>| control.map(|(_, _, vectors)| vectors);
                first.contradicted |= (first.offset, vectors(first.control)) != (offset, vectors(control));
            }
        }
        Inside::Msix
    }

    /// A line that means something only where it stands.
    fn inner(&mut self, line: &str) {
        match self.inside {
            Inside::Function => {
                if let Some(region) = line::region(line) {
                    self.useful = true;
                    self.function.bars.push(bar(region));
                } else if line.starts_with("Region") {
                    self.cannot_read(line);
                }
            }
            Inside::Msix => {
                let (is_table, is_pba) = (line.starts_with("Vector table:"), line.starts_with("PBA:"));
                if !is_table && !is_pba {
                    return;
                }
                let place = line::place(line).and_then(|(bar, at)| Some((bar, u32::try_from(at).ok()?)));
                if place.is_none() {
                    self.cannot_read(line);
                }
                if let Some(msix) = &mut self.msix {
                    let part = if is_table { &mut msix.table } else { &mut msix.pba };
                    msix.contradicted |= part.is_some() && *part != place;
                    *part = part.or(place);
                }
            }
            Inside::Sriov => self.sriov(line),
            Inside::Notify => {
                let multiplier = line::wide(line, "multiplier=").and_then(|n| u32::try_from(n).ok());
                if let (Some((bar, offset)), Some(size)) = (line::place(line), line::wide(line, "size=")) {
                    self.function.notify = Some(Notify { bar, offset, size, multiplier: multiplier.unwrap_or(0) });
                } else if let (Some(notify), Some(multiplier)) = (&mut self.function.notify, multiplier) {
                    // Where pciutils before 3.3 wrote it.
                    notify.multiplier = multiplier;
                } else if line.starts_with("BAR=") {
                    self.cannot_read(line);
                }
            }
            Inside::Other if line.starts_with("Vector table:") => self.cannot_read(line),
            Inside::Other => {}
        }
    }

    /// What `lspci` says beside the facts, a few times.
    fn note(&mut self, note: String) {
        if self.function.notes.len() < 8 {
            self.function.notes.push(note);
        }
    }

    fn cannot_read(&mut self, line: &str) {
        self.unread.0 += 1;
        if self.unread.0 == 1 {
            self.unread.1 = super::shortened(line);
        }
    }

    fn sriov(&mut self, line: &str) {
        let Some(sriov) = &mut self.function.sriov else { return };
        let number = |key| line::value(line, key, 10).and_then(|n| u16::try_from(n).ok());
        if line.starts_with("Initial VFs:") {
            sriov.total = number("Total VFs: ").unwrap_or(0);
            sriov.enabled = number("Number of VFs: ").unwrap_or(0);
        } else if line.starts_with("VF offset:") {
            sriov.offset = number("VF offset: ").unwrap_or(0);
            sriov.stride = number("stride: ").unwrap_or(0);
        } else if line.starts_with("Supported Page Size:") {
            sriov.supported_pages = line::wide(line, "Supported Page Size: ").and_then(|n| u32::try_from(n).ok());
        } else if let Some(region) = line::region(line) {
            if sriov.bars.iter().all(|bar| bar.index != region.index) {
                sriov.bars.push(Bar { hidden: true, ..bar(region) });
            }
        } else if line.starts_with("Region") {
            self.cannot_read(line);
        }
    }

    /// What came of it; `ended`: another function follows, so that all of its lines were there. And whether it tells more than that it is there.
    pub(super) fn finish(mut self, ended: bool) -> (Function, bool) {
        if let Some(held) = self.held.take() {
            self.take(&held);
        }
        let ended = ended || self.past_capabilities || (self.blank && self.gaps == Gaps::None);
        let text = self.msix_of_text(ended);
        let bytes = std::mem::take(&mut self.bytes);
        let mut function = self.function;
        function.msix = text;
        if let Ok(config) = Config::from_bytes(&function.name, bytes) {
            match config.bytes()[..64].iter().all(|b| *b == 0xff) {
                true => {
                    function.notes.push("its configuration space reads all ones: it was gone, or asleep".to_owned());
                }
                false => believe(&mut function, &config, self.verbose),
            }
        }
        if self.named && self.msix.is_some() && !self.verbose {
            let note = "not all of its lines are in the text: a capability below its name is taken to be its own";
            function.notes.push(note.to_owned());
        }
        match self.unread {
            (0, _) => {}
            (1, line) => function.notes.push(format!("a line of it can't be read: `{line}`")),
            (n, line) => function.notes.push(format!("{n} lines of it can't be read, the first: `{line}`")),
        }
        (function, self.useful)
    }

    fn msix_of_text(&self, ended: bool) -> MsixFact {
        let unknown = |why: &str| MsixFact::Unknown(why.to_owned());
        let Some(part) = &self.msix else {
            return match self.capabilities {
                _ if self.unread.1.contains("MSI-X") || self.unread.1.starts_with("Vector table") => {
                    unknown("the line that tells of it can't be read")
                }
                Capabilities::Denied => unknown("its capabilities were hidden from whoever ran lspci: run it as root"),
                Capabilities::None => MsixFact::Absent,
                Capabilities::Unsaid => unknown("the text says nothing of its capabilities"),
                _ if !ended => unknown("the text ends here, and may have been cut off"),
                Capabilities::Listed => MsixFact::Absent,
                Capabilities::Promised => unknown("it has capabilities, by its status, and the text tells of none"),
            };
        };
        if part.contradicted {
            return unknown("MSI-X is listed twice, and not alike: lines of other functions are among its own");
        }
        let Some((enabled, function_masked, vectors)) = part.control else {
            return unknown("the line that tells of it can't be read");
        };
        let (Some((table_bar, table_offset)), Some((pba_bar, pba_offset))) = (part.table, part.pba) else {
            return unknown("the text doesn't say where table and PBA are: `lspci -vv` does");
        };
        if table_bar > 5 || pba_bar > 5 {
            return unknown("its table or PBA would be in a BAR that no function has");
        }
        MsixFact::Present(Msix {
            offset: part.offset,
            vectors,
            enabled,
            function_masked,
            table_bar,
            // Its lowest bits are the BAR's number.
            table_offset: table_offset & !7,
            pba_bar,
            pba_offset: pba_offset & !7,
        })
    }
}
/// Takes what configuration space says, where it says something, before what the text says.
fn believe(function: &mut Function, config: &Config, verbose: bool) {
    let bytes = of_config(&function.name, config);
    let ids = &mut function.ids;
    // Virtual functions have no numbers of their own: the system knows them.
    ids.vendor = bytes.ids.vendor.or(ids.vendor);
    ids.device = bytes.ids.device.or(ids.device);
    ids.class = bytes.ids.class.or(ids.class);
    ids.interface = bytes.ids.interface.or(ids.interface);
    function.notify = bytes.notify.or(function.notify);
    match (&bytes.msix, &function.msix) {
        (MsixFact::Present(found), MsixFact::Present(told)) if found != told => {
            let note = "its hex dump and the text above it tell of different MSI-X capabilities: the dump is believed";
            function.notes.push(note.to_owned());
            function.msix = bytes.msix;
        }
        (MsixFact::Present(_), _) => function.msix = bytes.msix,
        (MsixFact::Absent, MsixFact::Unknown(_)) => function.msix = MsixFact::Absent,
        (MsixFact::Absent, MsixFact::Present(_)) => {
            function
                .notes
                .push("its hex dump has no MSI-X capability, the text above it has: the text is believed".to_owned());
        }
        _ => {}
    }
    if let Some(sriov) = bytes.sriov {
        function.sriov = Some(sriov);
    }
    // With `-v` or without, lspci doesn't say which BAR is which.
    if function.bars.is_empty() && !verbose {
        let registers = config.bars().into_iter().filter(|register| register.address != 0);
        let found = registers.map(|register| Bar {
            index: register.index,
            kind: register.kind,
            place: Place { address: Some(register.address), size: None },
            disabled: matches!(register.kind, BarKind::Memory { .. }) && !config.memory_enabled(),
            hidden: false,
            unplaced: None,
            region: None,
        });
        function.bars = found.collect();
    }
}

fn bar(region: line::Region) -> Bar {
    let line::Region { index, kind, address, unplaced, size, disabled, hidden } = region;
    Bar { index, kind, place: Place { address, size }, disabled, hidden, unplaced, region: None }
}

/// What the first line says of a function's numbers: `-n` and `-nn` write them, and some classes have well-known names.
fn ids(rest: &str) -> Ids {
    let mut ids = Ids::default();
    let (class, name) = rest.split_once(':').unwrap_or((rest, ""));
    let class = class.strip_prefix("Class ").unwrap_or(class);
    let numbered = class.rsplit_once('[').and_then(|(_, n)| n.strip_suffix(']')).unwrap_or(class);
    let number = |text: &str| Some(text).filter(|t| t.len() == 4).and_then(|t| line::digits(t, 16)).map(|n| n as u16);
    ids.class = number(numbered).or_else(|| CLASSES.iter().find(|(name, _)| *name == class).map(|(_, class)| *class));
    let pair = |text: &str| {
        let (vendor, device) = text.split_once(':')?;
        Some((number(vendor)?, number(device)?))
    };
    let bracketed = name.split('[').filter_map(|part| part.split(']').next()).filter_map(pair).next_back();
    let first = name.split_whitespace().next().and_then(pair);
    if let Some((vendor, device)) = bracketed.or(first) {
        (ids.vendor, ids.device) = (Some(vendor), Some(device));
    }
    let interface = rest.split_once("(prog-if ").and_then(|(_, rest)| rest.get(..2));
    ids.interface = interface.and_then(|text| line::digits(text, 16)).map(|n| n as u8);
    ids
}

/// Names of classes as `lspci` writes them, where something here depends on the class.
const CLASSES: [(&str, u16); 6] = [
    ("Non-Volatile memory controller", 0x0108),
    ("SATA controller", 0x0106),
    ("Ethernet controller", 0x0200),
    ("VGA compatible controller", 0x0300),
    ("3D controller", 0x0302),
    ("PCI bridge", 0x0604),
];
