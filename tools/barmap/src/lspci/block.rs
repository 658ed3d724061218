//! What `lspci` says of one function: lines in, facts out.

use super::line;
use crate::config::of_config;
use crate::{Bar, Function, Ids, MsixFact, Notify, Place, Sriov};
use wholebar::pci::config::{BarKind, Msix};
use wholebar::pci::{Address, Config};

/// The lines of one function, as they come.
pub(super) struct Block {
    function: Function,
    /// What the lines belong to that come now.
    inside: Inside,
    capabilities: Capabilities,
    msix: Option<PartOfMsix>,
    /// The hex dump, from 0 on without gap.
    bytes: Vec<u8>,
    /// A line was seen that comes after all capabilities.
    past_capabilities: bool,
    /// `lspci -vv` wrote it: BARs that aren't there aren't hidden.
    verbose: bool,
    /// The last line was empty, as after the last line of a function.
    blank: bool,
    /// Not so here: its lines are set apart by empty ones.
    spaced: bool,
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
    /// Some were listed.
    Listed,
    /// Denied to whoever asked.
    Denied,
}

/// An MSI-X capability, as far as it was told.
struct PartOfMsix {
    offset: u16,
    vectors: Option<u16>,
    enabled: bool,
    masked: bool,
    table: Option<(u8, u32)>,
    pba: Option<(u8, u32)>,
}

impl Block {
    pub(super) fn new(address: Address, rest: &str) -> Self {
        let title = rest.split(" (rev ").next().unwrap_or(rest).split(" (prog-if ").next().unwrap_or(rest);
        let function = Function {
            name: address.to_string(),
            address: Some(address),
            title: Some(title.trim().to_owned()),
            ids: ids(rest),
            ..Function::default()
        };
        let (inside, capabilities) = (Inside::Function, Capabilities::Unsaid);
        Self {
            function,
            inside,
            capabilities,
            msix: None,
            bytes: Vec::new(),
            past_capabilities: false,
            verbose: false,
            blank: false,
            spaced: false,
        }
    }

    /// One line; `cut`: its end may be missing.
    pub(super) fn line(&mut self, line: &str, cut: bool) {
        if line.is_empty() {
            // What was cut off may have begun with its indentation.
            self.blank |= !cut;
            return;
        }
        if line.contains(':') {
            self.spaced |= std::mem::take(&mut self.blank);
        }
        if line.starts_with("Kernel driver in use:") || line.starts_with("Kernel modules:") {
            self.past_capabilities = true;
        }
        // Its numbers may be parts of numbers.
        if cut {
            return;
        }
        if let Some((offset, bytes)) = line::hex(line) {
            self.past_capabilities = true;
            if offset == self.bytes.len() && offset < 4096 {
                self.bytes.extend(bytes);
            }
        } else if let Some(rest) = line.strip_prefix("Capabilities:") {
            self.capability(rest.trim_start());
        } else if let Some(driver) = line.strip_prefix("Kernel driver in use:") {
            self.inside = Inside::Function;
            self.function.driver = Some(driver.trim().to_owned()).filter(|driver| !driver.is_empty());
        } else if let Some((address, size)) = line::rom(line) {
            self.function.rom = Some(Place { address, size });
        } else if line.starts_with("Status:") && self.inside == Inside::Function {
            self.verbose = true;
            if line::flag(line, "Cap") == Some(false) {
                self.capabilities = Capabilities::None;
            }
        } else if line.starts_with("!!!") {
            self.function.notes.push(format!("lspci says: {}", line.trim_start_matches('!').trim()));
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
                self.function.notes.push(format!("lspci says of its capabilities: {rest}"));
            }
            return;
        }
        if self.capabilities == Capabilities::Unsaid {
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
        } else if what.starts_with("Vendor Specific Information: VirtIO: Notify") {
            Inside::Notify
        } else {
            Inside::Other
        };
    }

    fn msix(&mut self, offset: u16, what: &str) -> Inside {
        if self.msix.is_some() {
            self.function.notes.push("it lists MSI-X more than once: the first is taken".to_owned());
            return Inside::Other;
        }
        // `Count=33 Masked-`; pciutils before 3.1 wrote `Mask- TabSize=33`.
        let vectors = line::value(what, "Count=", 10).or_else(|| line::value(what, "TabSize=", 10));
        self.msix = Some(PartOfMsix {
            offset,
            vectors: vectors.and_then(|n| u16::try_from(n).ok()).filter(|n| (1..=2048).contains(n)),
            enabled: line::flag(what, "Enable") == Some(true),
            masked: line::flag(what, "Masked").or_else(|| line::flag(what, "Mask")) == Some(true),
            table: None,
            pba: None,
        });
        Inside::Msix
    }

    /// A line that means something only where it stands.
    fn inner(&mut self, line: &str) {
        match self.inside {
            Inside::Function => {
                if let Some(region) = line::region(line)
                    && self.function.bars.iter().all(|bar| bar.index != region.index)
                {
                    self.function.bars.push(bar(region));
                }
            }
            Inside::Msix => {
                let place = || line::place(line).and_then(|(bar, at)| Some((bar, u32::try_from(at).ok()?)));
                if let Some(msix) = &mut self.msix {
                    if line.starts_with("Vector table:") {
                        msix.table = msix.table.or_else(place);
                    } else if line.starts_with("PBA:") {
                        msix.pba = msix.pba.or_else(place);
                    }
                }
            }
            Inside::Sriov => self.sriov(line),
            Inside::Notify => {
                if let (Some((bar, offset)), Some(size)) = (line::place(line), line::wide(line, "size=")) {
                    let multiplier = line::wide(line, "multiplier=").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
                    self.function.notify = Some(Notify { bar, offset, size, multiplier });
                }
            }
            Inside::Other => {}
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
        } else if let Some(region) = line::region(line)
            && sriov.bars.iter().all(|bar| bar.index != region.index)
        {
            sriov.bars.push(Bar { hidden: true, ..bar(region) });
        }
    }

    /// What came of it; `ended`: another function follows, so that all of its lines were there.
    pub(super) fn finish(mut self, ended: bool) -> Function {
        let ended = ended || self.past_capabilities || (self.blank && !self.spaced);
        let text = self.msix_of_text(ended);
        let bytes = std::mem::take(&mut self.bytes);
        let mut function = self.function;
        function.bars.sort_by_key(|bar| bar.index);
        function.msix = text;
        let told = Config::from_bytes(&function.name, bytes).ok();
        if let Some(config) = told {
            match config.bytes()[..64].iter().all(|b| *b == 0xff) {
                true => {
                    function.notes.push("its configuration space reads all ones: it was gone, or asleep".to_owned())
                }
                false => believe(&mut function, &config, self.verbose),
            }
        }
        function
    }

    fn msix_of_text(&self, ended: bool) -> MsixFact {
        let unknown = |why: &str| MsixFact::Unknown(why.to_owned());
        let Some(part) = &self.msix else {
            return match self.capabilities {
                Capabilities::Denied => unknown("its capabilities were hidden from whoever ran lspci: run it as root"),
                Capabilities::None => MsixFact::Absent,
                _ if !ended => unknown("the text ends here, and may have been cut off"),
                Capabilities::Listed => MsixFact::Absent,
                // Had they been hidden, it would say so: the list is empty.
                Capabilities::Unsaid if self.verbose => MsixFact::Absent,
                Capabilities::Unsaid => unknown("the text says nothing of its capabilities"),
            };
        };
        let PartOfMsix { offset, vectors, enabled, masked, table, pba } = *part;
        let (Some(vectors), Some((table_bar, table_offset)), Some((pba_bar, pba_offset))) = (vectors, table, pba)
        else {
            return unknown("the text doesn't say where table and PBA are: `lspci -vv` does");
        };
        if table_bar > 5 || pba_bar > 5 {
            return unknown("its table or PBA would be in a BAR that no function has");
        }
        MsixFact::Present(Msix {
            offset,
            vectors,
            enabled,
            function_masked: masked,
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
            region: None,
        });
        function.bars = found.collect();
    }
}

fn bar(region: line::Region) -> Bar {
    let line::Region { index, kind, address, size, disabled, hidden } = region;
    Bar { index, kind, place: Place { address, size }, disabled, hidden, region: None }
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
