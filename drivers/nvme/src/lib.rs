//! An NVMe driver: NVM Express Base 2.0 over PCIe, the NVM command set, polled, without unsafe code.
//!
//! [`Nvme`] is a controller: identity, namespaces, logs, features, events, resets. [`Queue`] is a queue pair, an owned value for one
//! core. A buffer belongs to the command in flight, so no safe program can free or reuse one early. Programs that do not care which driver they use open
//! controllers as [`Disk`](wholebar_core::block::Disk)s.
//!
//! ```no_run
//! # fn open() -> std::sync::Arc<dyn wholebar_core::pci::PciDevice> { unimplemented!() }
//! use wholebar_core::block::{Data, Op, Request};
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_nvme::{Nvme, Options, QueueOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let nvme = Nvme::open(open(), Options::default())?;
//! let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//! nvme.attach(arena.clone())?;
//! let pool = Pool::new(arena, 16, 4096, 4096)?;
//! let mut queue = nvme.queue(QueueOptions::default())?;
//! let data = Data::One(pool.get_len(4096).ok_or("no buffer left")?);
//! queue.submit(Request { tag: 0, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None }).map_err(|r| r.why.to_string())?;
//! queue.ring();
//! while queue.poll_each(1, |done| println!("{:?}: {:?}", done.status, done.data)) == 0 {}
//! # Ok(()) }
//! ```

mod admin;
mod bounce;
mod bytes;
mod cmb;
mod command;
mod control;
mod device;
mod directive;
mod disk;
mod doorbell;
mod error;
mod event;
mod fdp;
pub mod feature;
mod hardware;
mod host_memory;
mod identify;
mod log;
mod manage;
mod namespace_management;
mod namespaces;
mod nvme;
mod options;
mod pmr;
mod protection;
mod prp;
mod queue;
mod quirks;
mod raw;
mod regs;
mod reservation;
mod ring;
mod split;
mod status;
mod virtualization;
mod zone;

pub use cmb::MemoryBuffer;
pub use directive::{Directive, DirectiveState, Directives, StreamParameters};
pub use error::{Error, Fault, Result};
pub use event::{AsyncEvent, Event};
pub use fdp::{FdpConfig, FdpEvent, FdpEventConfig, FdpMode, FdpStatistics, Placement, ReclaimUnit, fdp_event_name};
pub use identify::{CommandLimits, Controller, CopyLimits, IdentifyRequest, Namespace};
pub use log::{
    CommandEffects, ErrorEntry, FirmwareSlots, LogRequest, SanitizeStatus, SelfTestLog, SelfTestResult, Smart,
};
pub use manage::{CommitAction, Format, Sanitize, SanitizeAction, SecurityProtocol, SelfTest};
pub use namespace_management::NewNamespace;
pub use nvme::Nvme;
pub use options::{ANY_VECTOR, Options, QueueOptions, Service, ShadowDoorbells};
pub use pmr::{PersistentMemory, PersistentMemoryHealth, PersistentMemoryRegion};
pub use protection::{Checks, GuardFormat, Protection, ProtectionError, ProtectionType};
pub use queue::{BlockRange, DatasetAttributes, Queue};
pub use quirks::Quirk;
pub use raw::{RawCommand, RawCompletion, Transfer};
pub use reservation::{
    AcquireAction, Register, RegisterAction, Registrant, ReleaseAction, ReservationChange, ReservationMask,
    ReservationNotification, ReservationType, Reservations,
};
pub use status::StatusCode;
pub use virtualization::{FlexibleResource, PrimaryCapabilities, ResourceCapabilities, SecondaryController};
pub use zone::{Zone, ZoneAction, ZoneReport, ZoneState, Zoned};

/// The PCI class of NVMe controllers (NVM Express over PCIe 1.0, 3.8): mass storage, non-volatile memory, NVM Express.
pub const CLASS: wholebar_core::pci::Class = wholebar_core::pci::Class { base: 1, sub: 8, interface: 2 };
