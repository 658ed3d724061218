//! What of a PCI function's BARs can be mapped, on hosts with pages of any size, and what that costs: the same facts, plans and verdicts
//! whichever the source, a device that was opened ([`Function::of_device`]), sysfs ([`Machine::of_system`]), or the text of `lspci -vv` ([`lspci::parse`]).
//!
//! ```no_run
//! # fn show(text: &str) {
//! use wholebar_core::bar::MapPolicy;
//! use wholebar_barmap::{PAGES, lspci};
//! let machine = lspci::parse(text);
//! for map in machine.maps(&PAGES, &[MapPolicy::Whole, MapPolicy::Carved]) {
//!     for bar in &map.bars {
//!         for sheet in &bar.sheets {
//!             println!("{} BAR{} {}: {}", map.function.name, bar.bar.index, sheet.page, sheet.verdict.text);
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! Drawing is left to others: [`runs`] gives the pages of a plan as few runs of like pages (for HTML, say), [`Strip`] their widths in a line of
//! text. Hot registers that are known here, each with its source, are [`HotRegisters::of`] a function. [`json::Report`] has all of it for programs.
//!
//! Nothing here touches a device but by reading its configuration space, and NVMe's CAP register.

mod config;
mod function;
mod hot;
pub mod json;
mod live;
pub mod lspci;
mod map;
mod neighbours;
mod strip;
mod system;
mod vectors;
mod verdict;

pub use function::{Bar, Function, Ids, Machine, MsixFact, Notify, Open, Place, Sriov, Unplaced};
pub use hot::{Hot, HotRegisters};
pub use map::{BarMap, FunctionMap, PAGES, Sheet, trapped_registers};
pub use neighbours::Placement;
pub use strip::{Kind, Run, Strip, runs};
pub use vectors::{VectorState, X86_WINDOW, findings};
pub use verdict::{Verdict, VerdictKind};
