//! Where a virtio function's structures are, and its configuration space with the capabilities that say so (4.1.4).
//!
//! BAR0 holds what acts when it is accessed: common configuration, ISR, device configuration; never mapped. BAR2 holds the notification
//! addresses and, unless asked otherwise, the MSI-X table and PBA: all of it can be mapped, and on a host with pages of 64 KiB whoever may not map
//! the table can't map the notifications.

use super::bits::{VENDOR, cap};
use super::queue::KINDS;
use crate::config::{Config, Identity};
use crate::faults::FaultPlan;
use crate::params::{Given, Parameter};
use crate::{Error, Result};
use std::sync::Arc;
use wholebar_core::PageSize;
use wholebar_core::model::{ModelRegion, MsixPlace, Pages};

/// BAR0: the structures, a page each.
pub(super) const BAR0_SIZE: u64 = 16 << 10;
pub(super) const COMMON: u64 = 0x0000;
pub(super) const COMMON_LEN: u64 = 0x3c;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
/// BAR2: notifications, then table and PBA.
const NOTIFY_BAR: u8 = 2;
const NOTIFY_SIZE: u64 = 16 << 10;
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;
const OWN_BAR: u8 = 4;
/// Where the capabilities are in configuration space: in what PM, PCI Express and MSI-X leave.
const PCI_CAP: u8 = 0x48;
const COMMON_CAP: u8 = 0xac;
const NOTIFY_CAP: u8 = 0xbc;
const ISR_CAP: u8 = 0xd0;
const DEVICE_CAP: u8 = 0xe0;

/// How a function is laid out, and what its queues offer: what every virtio model can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// The largest queue.
    pub entries: u16,
    /// Whether packed queues are offered.
    pub packed: bool,
    /// Whether split queues are: else a driver that does not take packed ones is refused.
    pub split: bool,
    /// Whether indirect descriptors are offered.
    pub indirect: bool,
    /// Whether event indexes are offered.
    pub event_idx: bool,
    /// Whether buffers are used in order, and that is offered.
    pub in_order: bool,
    /// Whether the device asks to be notified, though it looks anyway.
    pub notify: bool,
    /// Bytes between the notification addresses of two queues; 0: all have the same.
    pub stride: u16,
    /// Where the MSI-X table is.
    pub msix: VirtioMsix,
    /// MSI-X vectors; `None`: one a queue, and one for changes of configuration.
    pub vectors: Option<u16>,
    /// The host's page size, as the model pretends to see it.
    pub page: PageSize,
    /// What is to go wrong with used buffers.
    pub faults: FaultPlan,
}

/// Where a virtio model's MSI-X table and PBA are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtioMsix {
    /// In BAR2, at 0x2000 and 0x3000: within a 64 KiB page of the notification addresses.
    Notify,
    /// In BAR4.
    Own,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            entries: 256,
            packed: true,
            split: true,
            indirect: true,
            event_idx: true,
            in_order: true,
            notify: true,
            stride: 4,
            msix: VirtioMsix::Notify,
            vectors: None,
            page: PageSize::host(),
            faults: FaultPlan::default(),
        }
    }
}

/// The parameters of every virtio model, with what each can be.
pub(super) const PARAMETERS: [Parameter; 12] = [
    ("entries", "the largest queue, a power of two from 2 to 32768 (256)"),
    ("ring", "both, split or packed: the layouts it offers (both)"),
    ("indirect", "0 or 1: offer indirect descriptors (1)"),
    ("event", "0 or 1: offer event indexes (1)"),
    ("inorder", "0 or 1: offer use in order, and give back in batches (1)"),
    ("notify", "0 or 1: ask to be notified, as hardware does; it polls anyway (1)"),
    ("stride", "0, 2, 4, 8, 16 or 32 bytes between the notification addresses of queues (4)"),
    ("msix", "notify (table beside the notification addresses) or own (a BAR of its own) (notify)"),
    ("vectors", "1 to 256 (queues + 1)"),
    ("page", "4k, 16k or 64k: the host page it pretends to see, not below the host's"),
    ("faults", "KIND:N/M or KIND:@N of used buffers, joined by +; drop dup id corrupt fatal hang vanish"),
    ("faultseed", "a number: which buffers have faults (1)"),
];

impl Transport {
    /// Takes a parameter that is the transport's; false for one that isn't.
    pub(super) fn set(&mut self, given: &Given<'_>) -> Result<bool> {
        match given.key {
            "entries" => {
                self.entries = given.number(2..=32768)?;
                if !self.entries.is_power_of_two() {
                    return Err(given.bad());
                }
            }
            "ring" => {
                (self.split, self.packed) = match given.value {
                    "both" => (true, true),
                    "split" => (true, false),
                    "packed" => (false, true),
                    _ => return Err(given.bad()),
                }
            }
            "indirect" => self.indirect = given.flag()?,
            "event" => self.event_idx = given.flag()?,
            "inorder" => self.in_order = given.flag()?,
            "notify" => self.notify = given.flag()?,
            "stride" => {
                self.stride = given.number(0..=32)?;
                if self.stride == 1 || self.stride > 0 && !self.stride.is_power_of_two() {
                    return Err(given.bad());
                }
            }
            "msix" => {
                self.msix = match given.value {
                    "notify" => VirtioMsix::Notify,
                    "own" => VirtioMsix::Own,
                    _ => return Err(given.bad()),
                }
            }
            "vectors" => self.vectors = Some(given.number(1..=256)?),
            "page" => self.page = given.page()?,
            "faults" => {
                self.faults.set(given)?;
                if self.faults.faults.iter().any(|(fault, _)| !KINDS.contains(fault)) {
                    return Err(given.bad());
                }
            }
            "faultseed" => self.faults.seed = given.number(0..=u64::MAX)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Where a driver notifies of a queue, in the notifications' BAR.
    pub(super) fn notify_offset(&self, queue: usize) -> u64 {
        queue as u64 * u64::from(self.stride)
    }

    /// Whether the parameters go together.
    pub(super) fn check(&self) -> Result<()> {
        if self.page < PageSize::host() {
            return Err(Error::Conflict(format!("page={} is below this host's {}", self.page, PageSize::host())));
        }
        Ok(())
    }
}

/// What a function is.
pub(super) struct Kind {
    pub(super) device: u16,
    pub(super) class: u32,
    pub(super) queues: u16,
    /// Bytes of device configuration.
    pub(super) config: u64,
}

/// A function's BARs and configuration space.
pub(super) struct Layout {
    pub(super) config: Config,
    pub(super) msix: MsixPlace,
    pub(super) notify: Arc<Pages>,
    /// BAR4, where the MSI-X table has a BAR of its own.
    pub(super) table: Option<(Arc<Pages>, u64)>,
}

impl Layout {
    pub(super) fn new(kind: &Kind, transport: &Transport) -> Result<Self> {
        let vectors = u32::from(transport.vectors.unwrap_or(kind.queues + 1).min(256));
        let own = (u64::from(vectors) * 16).next_multiple_of(4096);
        let (table, msix) = match transport.msix {
            VirtioMsix::Notify => {
                let (table_bar, pba_bar) = (NOTIFY_BAR, NOTIFY_BAR);
                (None, MsixPlace { table_bar, table_offset: TABLE, pba_bar, pba_offset: PBA, vectors })
            }
            VirtioMsix::Own => {
                let size = (own + 4096).next_power_of_two();
                let (table_bar, pba_bar) = (OWN_BAR, OWN_BAR);
                let place = MsixPlace { table_bar, table_offset: 0, pba_bar, pba_offset: own, vectors };
                (Some((Pages::new(size)?, size)), place)
            }
        };
        let mut bars = vec![(0, BAR0_SIZE), (NOTIFY_BAR, NOTIFY_SIZE)];
        bars.extend(table.as_ref().map(|(_, size)| (OWN_BAR, *size)));
        let (device, class) = (kind.device, kind.class);
        let mut config = Config::new(&Identity { vendor: VENDOR, device, class, bars, msix: Some(msix) });
        let stride = u64::from(transport.stride);
        let notify = u64::from(kind.queues - 1) * stride + 4;
        config.add_vendor_capability(COMMON_CAP, &structure(cap::COMMON, 0, COMMON, COMMON_LEN, &[]));
        let notify = structure(cap::NOTIFY, NOTIFY_BAR, 0, notify, &u32::from(transport.stride).to_le_bytes());
        config.add_vendor_capability(NOTIFY_CAP, &notify);
        config.add_vendor_capability(ISR_CAP, &structure(cap::ISR, 0, ISR, 1, &[]));
        config.add_vendor_capability(DEVICE_CAP, &structure(cap::DEVICE, 0, DEVICE, kind.config, &[]));
        config.add_vendor_capability(PCI_CAP, &structure(cap::PCI, 0, 0, 0, &[0; 4]));
        // Its bar, offset, length and data are the driver's (4.1.4.9).
        let at = usize::from(PCI_CAP);
        config.open(at + 4, 1);
        config.open(at + 8, 12);
        Ok(Self { config, msix, notify: Pages::new(NOTIFY_SIZE)?, table })
    }

    /// The regions, by VFIO index.
    pub(super) fn regions(&self) -> Vec<ModelRegion> {
        let mut regions = vec![ModelRegion::default(); 9];
        let direct = |size, pages: &Arc<Pages>| ModelRegion { size, pages: Some(pages.clone()), direct: vec![0..size] };
        regions[0] = ModelRegion { size: BAR0_SIZE, ..ModelRegion::default() };
        regions[usize::from(NOTIFY_BAR)] = direct(NOTIFY_SIZE, &self.notify);
        if let Some((pages, size)) = &self.table {
            regions[usize::from(OWN_BAR)] = direct(*size, pages);
        }
        regions[7] = ModelRegion { size: crate::config::SIZE, ..ModelRegion::default() };
        regions
    }

    /// What an access to configuration space means to reach by the window of 4.1.4.9, if it touches the window's data.
    pub(super) fn window(&self, offset: u64, len: usize) -> Option<Window> {
        let data = u64::from(PCI_CAP) + 16;
        if offset >= data + 4 || offset + len as u64 <= data {
            return None;
        }
        let at = usize::from(PCI_CAP);
        let [bar] = self.config.bytes(at + 4);
        let offset = u32::from_le_bytes(self.config.bytes(at + 8));
        let len = u32::from_le_bytes(self.config.bytes(at + 12));
        matches!(len, 1 | 2 | 4).then_some(Window { bar, offset: offset.into(), len: len as usize, data })
    }
}

/// Where the window of 4.1.4.9 looks.
pub(super) struct Window {
    pub(super) bar: u8,
    pub(super) offset: u64,
    pub(super) len: usize,
    /// Where its data is in configuration space.
    pub(super) data: u64,
}

/// A structure's capability (4.1.4), from its length on.
fn structure(kind: u8, bar: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + extra.len() as u8, kind, bar, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(extra);
    body
}
