//! What SR-IOV makes of a function: a physical one, a virtual one, or neither.

use crate::openers::openers;
use crate::token;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar_barmap as barmap;

/// What SR-IOV makes of a function.
#[derive(Debug, Clone)]
pub enum Role {
    /// It has virtual functions, or can have some.
    Physical {
        /// How many there can be.
        total: u16,
        /// Those that there are.
        functions: Vec<Address>,
        /// Those of them that a process has open, each with the process.
        open: Vec<(Address, String)>,
        /// The BARs of each: its number, and bytes.
        bars: Vec<(u8, Option<u64>)>,
    },
    /// It is a virtual one.
    Virtual {
        /// Its physical function.
        physical: Address,
        /// Who has that.
        driver: Option<String>,
        /// How it is named with its VF token, as far as that is known here.
        opens_as: Option<String>,
    },
}

impl Role {
    /// `None` where SR-IOV makes nothing of it.
    pub fn read(sysfs: &Sysfs, function: &Function) -> Option<Self> {
        if let Some(physical) = function.physical_function() {
            let opens_as = token::opens_as(sysfs, function);
            return Some(Self::Virtual { physical: physical.address(), driver: physical.driver(), opens_as });
        }
        let sriov = function.sriov().filter(|sriov| sriov.total > 0)?;
        let functions = function.virtual_functions();
        let open = functions.iter().filter_map(|f| Some((f.address(), openers(sysfs, f).into_iter().next()?)));
        let bars = barmap::Function::of_system(function).sriov.map_or(Vec::new(), |sriov| sriov.bars);
        Some(Self::Physical {
            total: sriov.total,
            functions: functions.iter().map(Function::address).collect(),
            open: open.collect(),
            bars: bars.iter().map(|bar| (bar.index, bar.place.size)).collect(),
        })
    }
}
