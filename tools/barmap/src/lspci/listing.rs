//! The functions of a text: one record each, however often it is listed.
//!
//! The fullest record is kept; what others have that it lacks is added, and where they differ a note says so. One address with two devices is of
//! two machines.

use crate::{Function, Ids, Machine, MsixFact};
use std::collections::HashMap;
use wholebar_core::pci::Address;

/// How many devices at one address are told apart.
const MOST_MACHINES: usize = 64;

#[derive(Default)]
pub(super) struct Listing {
    functions: Vec<Function>,
    by_address: HashMap<Address, u32>,
    by_path: HashMap<String, u32>,
    /// Of several devices at one address: the one before.
    before: HashMap<u32, u32>,
    /// Those that are listed again: how often, and what is told otherwise there.
    again: HashMap<u32, (u32, Vec<String>)>,
    /// Where one address is two devices: the first such.
    mixed: Option<String>,
}

impl Listing {
    pub(super) fn len(&self) -> usize {
        self.functions.len()
    }

    pub(super) fn add(&mut self, mut function: Function) {
        let next = self.functions.len() as u32;
        let last = match function.address {
            Some(address) => self.by_address.get(&address).copied(),
            None => self.by_path.get(&function.name).copied(),
        };
        // The devices that have been seen at this address: one, but where this is of several machines.
        let seen = std::iter::successors(last, |index| self.before.get(index).copied()).take(MOST_MACHINES);
        let same = seen.into_iter().find(|index| !is_another(&self.functions[*index as usize], &function));
        let Some(index) = same else {
            if let Some(last) = last {
                self.before.insert(next, last);
                self.mixed.get_or_insert_with(|| function.name.clone());
            }
            match function.address {
                Some(address) => self.by_address.insert(address, next),
                None => self.by_path.insert(function.name.clone(), next),
            };
            self.functions.push(function);
            return;
        };
        let kept = &mut self.functions[index as usize];
        let (count, differences) = self.again.entry(index).or_insert((1, Vec::new()));
        *count += 1;
        if fullness(&function) > fullness(kept) {
            std::mem::swap(kept, &mut function);
        }
        for difference in differences_of(kept, &function) {
            if differences.len() < 4 && !differences.contains(&difference) {
                differences.push(difference);
            }
        }
        complete(kept, function);
    }

    /// Hands the functions over, and says what was found. How many there are.
    pub(super) fn finish(self, machine: &mut Machine) -> usize {
        machine.functions = self.functions;
        let twice = self.again.len();
        for (index, (count, differences)) in self.again {
            if !differences.is_empty() {
                let note = format!(
                    "it is listed {count} times, and not alike; shown is the fullest. Elsewhere: {}",
                    differences.join("; ")
                );
                machine.functions[index as usize].notes.push(note);
            }
        }
        match twice {
            0 => {}
            1 => machine.notes.push("one function is listed more than once: it is shown once".to_owned()),
            n => machine.notes.push(format!("{n} functions are listed more than once: each is shown once")),
        }
        if let Some(name) = self.mixed {
            machine.mixed = true;
            machine.notes.push(format!(
                "{name} is two different devices: this is of several machines, or of one before and after a change. Who is whose neighbour \
                 isn't known then: read them one by one"
            ));
        }
        machine.functions.len()
    }
}

/// Whether two records of one address are of two devices.
fn is_another(a: &Function, b: &Function) -> bool {
    let numbers = |ids: &Ids| ids.vendor.zip(ids.device);
    let differ = |a: Option<(u16, u16)>, b: Option<(u16, u16)>| a.zip(b).map(|(a, b)| a != b);
    if let Some(differ) = differ(numbers(&a.ids), numbers(&b.ids)) {
        return differ;
    }
    if a.ids.class.zip(b.ids.class).is_some_and(|(a, b)| a != b) {
        return true;
    }
    // One written with names, the other with numbers, can't be compared; one may be cut off.
    let named = |function: &Function| {
        let title = function.title.as_deref().unwrap_or("");
        let title = title.split_once(" [").map_or(title, |(front, _)| front);
        title
            .split_once(':')
            .filter(|(class, _)| !class.trim_start_matches("Class ").starts_with(|c: char| c.is_ascii_digit()))
            .map(|(class, name)| format!("{class}:{name}"))
    };
    match (named(a), named(b)) {
        (Some(a), Some(b)) => !a.starts_with(&b) && !b.starts_with(&a),
        _ => false,
    }
}

/// How much is told: what MSI-X is, BARs with places and sizes, the rest.
fn fullness(function: &Function) -> (bool, usize, usize) {
    let known = !matches!(function.msix, MsixFact::Unknown(_));
    let bars = function
        .bars
        .iter()
        .map(|bar| 1 + usize::from(bar.place.size.is_some()) + usize::from(bar.place.address.is_some()))
        .sum();
    let rest = [
        function.driver.is_some(),
        function.sriov.is_some(),
        function.notify.is_some(),
        function.ids.interface.is_some(),
        function.ids.vendor.is_some(),
    ];
    (known, bars, rest.into_iter().filter(|told| *told).count())
}

/// What `other` tells otherwise.
fn differences_of(kept: &Function, other: &Function) -> Vec<String> {
    let mut differences = Vec::new();
    match (&kept.msix, &other.msix) {
        (MsixFact::Present(a), MsixFact::Present(b)) if a != b => {
            let places = |m: &wholebar_core::pci::config::Msix| {
                (m.vectors, m.table_bar, m.table_offset, m.pba_bar, m.pba_offset)
            };
            if places(a) != places(b) {
                differences.push(format!(
                    "MSI-X has {} vectors, its table is in BAR{} at {:#x}, its PBA in BAR{} at {:#x}",
                    b.vectors, b.table_bar, b.table_offset, b.pba_bar, b.pba_offset
                ));
            }
            if a.enabled != b.enabled {
                differences.push(format!("MSI-X is {}", if b.enabled { "enabled" } else { "not enabled" }));
            }
        }
        (MsixFact::Present(_), MsixFact::Absent) => differences.push("it has no MSI-X".to_owned()),
        (MsixFact::Absent, MsixFact::Present(_)) => differences.push("it has MSI-X".to_owned()),
        _ => {}
    }
    for bar in &other.bars {
        match kept.bars.iter().find(|kept| kept.index == bar.index) {
            None if !kept.bars.is_empty() => differences.push(format!("it has a BAR{}", bar.index)),
            Some(kept) if kept.place != bar.place => {
                let address = bar.place.address.map_or("no address".to_owned(), |address| format!("{address:#x}"));
                let size = bar.place.size.map_or("no size".to_owned(), crate::verdict::bytes);
                differences.push(format!("BAR{} has {address} and {size}", bar.index));
            }
            _ => {}
        }
    }
    if let (Some(a), Some(b)) = (&kept.driver, &other.driver)
        && a != b
    {
        differences.push(format!("its driver is {b}"));
    }
    differences
}

/// Adds to `kept` what only `other` tells.
fn complete(kept: &mut Function, other: Function) {
    let ids = &mut kept.ids;
    ids.vendor = ids.vendor.or(other.ids.vendor);
    ids.device = ids.device.or(other.ids.device);
    ids.class = ids.class.or(other.ids.class);
    ids.interface = ids.interface.or(other.ids.interface);
    kept.driver = kept.driver.take().or(other.driver);
    kept.sriov = kept.sriov.take().or(other.sriov);
    kept.notify = kept.notify.or(other.notify);
    if kept.bars.is_empty() {
        kept.bars = other.bars;
    }
}

/// What [`Auto`](wholebar_core::bar::MapPolicy::Auto) comes to on this machine, where its bridges tell of the platform.
pub(super) fn auto(machine: &Machine) -> Option<&'static str> {
    // IBM's PCI host bridges 3 to 5, which POWER8 to POWER10 have.
    const BRIDGES: [(u16, &str); 3] = [(0x03dc, "Device 03dc"), (0x04c1, "Device 04c1"), (0x0652, "Device 0652")];
    let power = |function: &Function| {
        let title = function.title.as_deref().unwrap_or("");
        let numbers = |(id, _): &(u16, _)| (function.ids.vendor, function.ids.device) == (Some(0x1014), Some(*id));
        let named =
            |(_, name): &(_, &str)| title.contains(name) || (title.contains("POWER") && title.contains("Host Bridge"));
        BRIDGES.iter().any(numbers) || (title.contains("IBM") && BRIDGES.iter().any(named))
    };
    machine.functions.iter().any(power).then_some(crate::map::SPAPR)
}
