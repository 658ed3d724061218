//! A model of an NVMe controller: NVM Express Base Specification 2.0, NVM Command Set 1.0, over PCIe 1.0.
//!
//! An independent reading of the specifications, so that a driver's misreading fails a test. It has what a driver uses: admin and I/O queues, PRPs
//! and SGLs, the usual log pages and features, shadow doorbells, MSI-X; and what is done to a controller: formats, sanitizing, self-tests, firmware,
//! namespaces that come and go; metadata and protection information with guards of 16 or 64 bits; NVM Express Zoned Namespace Command Set 1.1; flexible data placement
//! (Base 2.1) and streams; reservations; a controller memory buffer, a host memory buffer, a persistent
//! memory region. It has *not*: fused commands, arbitration other than round robin.
//!
//! | file | what it is |
//! |---|---|
//! | `bits` | registers, opcodes, status codes |
//! | `command`, `queue`, `data` | a command; the queues it passes; its data in host memory |
//! | `admin`, `identify`, `log` | admin commands, and what they tell |
//! | `manage` | formats, sanitizing, self-tests, firmware, security protocols, namespace management |
//! | `protection` | metadata and protection information |
//! | `zones` | zoned namespaces |
//! | `placement` | flexible data placement, streams |
//! | `reservation`, `notices` | hosts that share namespaces, and what they are told of each other |
//! | `host_memory` | copies of blocks in memory of the host's |
//! | `pmr` | the persistent memory region |
//! | `registers` | BAR0's words |
//! | `quirk` | controllers that break rules |
//! | `uncorrectable` | blocks that are to fail |
//! | `io` | I/O commands; what blocks are kept in is `media` |
//! | `poll` | one poll: doorbells, commands, completions, and faults where they are asked for |
//! | `mod` | the controller: registers and state |
//!
//! **Memory semantics**: all of BAR0 can be mapped, so the model cannot see an access, only values. It looks at CC and at the
//! doorbells of queues that exist, each poll. What follows: registers that act when they are *written* are missing (INTMS, NSSR); a
//! doorbell of a queue that isn't there is not noticed; doorbells are cleared when the controller is reset and when a queue is made.
//!
//! **Order**: a doorbell's or CC's Acquire load pairs with the driver's Release store of it; CSTS and a completion's last word are stored with Release,
//! and pair with the driver's Acquire load of them.

mod admin;
mod bits;
mod command;
mod data;
mod host_memory;
mod identify;
mod io;
mod log;
mod manage;
mod notices;
mod params;
mod placement;
mod pmr;
mod poll;
mod protection;
mod queue;
mod quirk;
mod registers;
mod reservation;
mod uncorrectable;
mod zones;

pub use crate::media::Backing;
pub use params::{Msix, NvmeParams, PARAMETERS};
pub use pmr::PmrState;
pub use protection::Metadata;
pub use quirk::Quirk;

use crate::Result;
use crate::config::{self, Config, Identity};
use crate::faults::{FaultCounts, Faults};
use crate::media::Media;
use admin::Features;
use bits::{Cc, cap, csts, reg};
use command::{Answer, Command};
use data::Rules;
use host_memory::HostMemory;
use io::{Counters, Namespace, Store};
use log::{ErrorLog, Events};
use manage::{Manage, SPARE_NAMESPACES};
use placement::{Fdp, Streams};
use pmr::Pmr;
use poll::Held;
use queue::{Cq, QueueLost, Sq};
use reservation::Member;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use uncorrectable::Uncorrectable;
use wholebar_core::Work;
use wholebar_core::mem::Iova;
use wholebar_core::model::{Host, Model, ModelRegion, MsixPlace, Pages, Refused, Registers, Shape};
use wholebar_core::pci::{Irq, IrqInfo};
use wholebar_core::reactor::Armed;
use zones::Zones;

/// The version it reports: 2.0 (base 3.1.3.2).
const VERSION: u32 = 0x0002_0000;
/// Its device id.
const DEVICE: u16 = 0x0001;
/// How long a queue that has work may not be there: longer than any hypervisor takes to remap memory.
const PATIENCE: Duration = Duration::from_millis(100);
/// BAR0: registers, doorbells at 0x1000, and where asked for the MSI-X table at 0x2000 and the PBA at 0x3000.
const BAR0_SIZE: u64 = 16 << 10;

/// An NVMe controller.
pub struct Nvme {
    params: NvmeParams,
    name: String,
    bar: Arc<Pages>,
    doorbells: Registers<AtomicU32>,
    /// BAR4, where the MSI-X table has a BAR of its own.
    table: Option<(Arc<Pages>, u64)>,
    /// BAR2, the controller memory buffer, where there is one; and CMBMSC as it was last seen.
    cmb: Option<(Arc<Pages>, u64)>,
    /// BAR4, the persistent memory region, where there is one.
    pmr: Option<Pmr>,
    msix: MsixPlace,
    config: Config,
    state: State,
    /// CC as it was last seen.
    cc: Cc,
    /// When it was disabled.
    disabled: Option<Instant>,
    rules: Rules,
    queues: Queues,
    shadow: Option<Shadow>,
    features: Features,
    manage: Manage,
    events: Events,
    errors: ErrorLog,
    /// Admin completions that found no room yet.
    deferred: VecDeque<Answer>,
    faults: Option<Box<Faults>>,
    /// Commands that a fault delays.
    held: Vec<Held>,
    /// A completion queue may wait before it interrupts.
    coalesced: bool,
    /// Since when a queue that has work is not there.
    lost: Option<Instant>,
    store: Store,
    /// Scratch: the commands of one poll of a queue, and their answers.
    batch: Vec<Command>,
    answers: Vec<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// CC.EN is 0.
    Off,
    /// Ready.
    Running,
    /// Shut down: nothing is done until the next reset.
    Down,
    /// CSTS.CFS is set: nothing is done until the next reset.
    Fatal,
    /// A fault: a reset that does not end until the function is reset.
    Hung,
    /// A fault: the device is not there any more.
    Gone,
}

/// The queues there are, by id; 0 are the admin queues.
struct Queues {
    sqs: Vec<Option<Sq>>,
    cqs: Vec<Option<Cq>>,
    /// I/O submission queues, in the order they get their turn.
    active: Vec<u16>,
}

impl Queues {
    fn none(io_queues: u16) -> Self {
        let slots = usize::from(io_queues) + 1;
        let (sqs, cqs) = ((0..slots).map(|_| None).collect(), (0..slots).map(|_| None).collect());
        Self { sqs, cqs, active: Vec::new() }
    }

    fn sq(&mut self, id: u16) -> Option<&mut Sq> {
        self.sqs.get_mut(usize::from(id))?.as_mut()
    }

    fn cq(&mut self, id: u16) -> Option<&mut Cq> {
        self.cqs.get_mut(usize::from(id))?.as_mut()
    }

    /// A submission queue and the completion queue it uses.
    #[inline]
    fn pair(&mut self, id: u16) -> Option<(&mut Sq, &mut Cq)> {
        let sq = self.sqs.get_mut(usize::from(id))?.as_mut()?;
        let cq = self.cqs.get_mut(usize::from(sq.cq))?.as_mut()?;
        Some((sq, cq))
    }
}

/// Shadow doorbells: pages of the host's, laid out as the doorbells are (base 5.8 and annex B.5).
#[derive(Debug, Clone, Copy)]
struct Shadow {
    /// What the host would have written to the doorbells.
    values: u64,
    /// EventIdx: how far the controller looked. The host rings a real doorbell as it passes that.
    seen: u64,
}

impl Nvme {
    /// A controller as `params` say.
    ///
    /// # Errors
    /// Those of parameters that don't go together, and of the backing file.
    pub fn new(params: NvmeParams) -> Result<Self> {
        params.check()?;
        let vectors = u32::from(params.vector_count());
        let pba = (u64::from(vectors) * 16).next_multiple_of(4096);
        let (table, msix) = match params.msix {
            Msix::Bar0 => {
                (None, MsixPlace { table_bar: 0, table_offset: 0x2000, pba_bar: 0, pba_offset: 0x3000, vectors })
            }
            Msix::Own => {
                let size = (pba + 4096).next_power_of_two();
                let place = MsixPlace { table_bar: 4, table_offset: 0, pba_bar: 4, pba_offset: pba, vectors };
                (Some((Pages::new(size)?, size)), place)
            }
        };
        let mut bars = vec![(0, BAR0_SIZE)];
        bars.extend(table.as_ref().map(|(_, size)| (4, *size)));
        let cmb = if params.cmb > 0 { Some((Pages::new(params.cmb)?, 0)) } else { None };
        bars.extend(cmb.as_ref().map(|_| (2, params.cmb)));
        let pmr = if params.pmr > 0 { Some(Pmr::new(params.pmr, params.pmr_state)?) } else { None };
        bars.extend(pmr.as_ref().map(|_| (pmr::BAR as u8, params.pmr)));
        let bar = Pages::new(BAR0_SIZE)?;
        let (vendor, device) = params.quirk.map_or((config::VENDOR, DEVICE), Quirk::ids);
        let (offset, len) = (reg::DOORBELLS, 4096);
        let missing = wholebar_core::Error::OutOfRange { what: "BAR", offset, len, size: BAR0_SIZE };
        let nvme = Self {
            name: "sim:nvme".to_owned(),
            doorbells: bar.registers(offset, len as usize / 4).ok_or(missing)?,
            bar,
            table,
            cmb,
            pmr,
            msix,
            config: Config::new(&Identity { vendor, device, class: 0x01_08_02, bars, msix: Some(msix) }),
            state: State::Off,
            cc: Cc(0),
            disabled: None,
            rules: Rules {
                page: params.mps_min.bytes(),
                sgl: params.sgl && params.quirk != Some(Quirk::Sgls),
                list_align: if params.quirk == Some(Quirk::Lists) { 512 } else { 8 },
            },
            queues: Queues::none(params.queues),
            shadow: None,
            features: Features::new(params.queues),
            manage: Manage::new(params.spare),
            events: Events::default(),
            errors: ErrorLog::default(),
            deferred: VecDeque::new(),
            faults: params.faults.start(),
            held: Vec::new(),
            coalesced: false,
            lost: None,
            store: Store {
                namespaces: namespaces(&params)?,
                max_transfer: match params.mdts {
                    0 => u64::MAX,
                    n => params.mps_min.bytes() << n,
                },
                max_append: match params.zasl {
                    0 => u64::MAX,
                    n => params.mps_min.bytes() << n,
                },
                write_cache: true,
                counters: Counters::default(),
                sanitizing: false,
                spent: 0,
                failed: None,
                result: 0,
                fdp: params.fdp.then(|| Box::new(Fdp::new(params.fdp_groups, params.fdp_handles, params.fdp_unit))),
                data_limit: params.quirk == Some(Quirk::DataLimit),
                no_write_zeroes: params.quirk == Some(Quirk::WriteZeroes),
                member: params.subsystem.as_deref().map(|name| Box::new(Member::join(name))),
                host_memory: (params.hmb > 0).then(|| Box::new(HostMemory::new(params.hmb_min))),
                streams: (params.streams > 0).then(|| Box::new(Streams::new(params.streams))),
            },
            batch: Vec::with_capacity(poll::BURST as usize),
            answers: Vec::with_capacity(2 * poll::BURST as usize),
            params,
        };
        // Each register's width is known before anybody else looks.
        nvme.set_registers(0);
        nvme.publish();
        Ok(nvme)
    }

    /// Sets what a person calls it.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How often each fault struck; `None` where none are asked for.
    pub fn fault_counts(&self) -> Option<Arc<FaultCounts>> {
        self.faults.as_ref().map(|f| f.fault_counts())
    }

    /// The registers that say what the controller is.
    fn publish(&self) {
        let p = &self.params;
        let mps = |page: wholebar_core::PageSize| u64::from(page.bytes().trailing_zeros()) - 12;
        let cap = u64::from(p.entries - 1)
            | cap::CQR
            | u64::from(p.timeout) << cap::TO_SHIFT
            | u64::from(p.dstrd) << cap::DSTRD_SHIFT
            | cap::CSS_NVM
            | if p.zoned { cap::CSS_ALL } else { 0 }
            | if p.cmb > 0 { cap::CMBS } else { 0 }
            | self.pmr_capability()
            | mps(p.mps_min) << cap::MPSMIN_SHIFT
            | mps(p.mps_max) << cap::MPSMAX_SHIFT
            | cap::CRWMS;
        self.put64(reg::CAP, cap);
        self.put32(reg::VS, VERSION);
        self.put32(reg::CRTO, p.timeout.into());
        self.publish_pmr();
    }

    /// CC changed.
    fn configure(&mut self, cc: Cc) {
        if self.state == State::Gone {
            return self.vanish();
        }
        let was = std::mem::replace(&mut self.cc, cc);
        let shuts_down = cc.shn() != 0 && was.shn() == 0;
        if (was.enabled() != cc.enabled() || shuts_down) && self.faults.as_mut().is_some_and(|f| f.hangs()) {
            self.state = State::Hung;
        }
        if self.state == State::Hung {
            return;
        }
        match (was.enabled(), cc.enabled()) {
            (false, true) => self.enable(cc),
            (true, false) => self.disable(),
            _ => {}
        }
        if shuts_down {
            if let Some(memory) = &mut self.store.host_memory {
                memory.shut_down();
            }
            let _ = self.store.namespaces.iter_mut().try_for_each(|ns| ns.media.flush());
            if self.state == State::Running {
                self.state = State::Down;
            }
            if self.params.quirk != Some(Quirk::Shutdown) {
                self.put32(reg::CSTS, self.get32(reg::CSTS) | csts::SHST_COMPLETE);
            }
        }
    }

    /// The controller memory buffer as the host wants it (base 3.1.3.15 and 8.5): whether it tells where it is, and whether it is at an address of the host's.
    fn configure_memory(&mut self, host: &mut Host<'_>, again: bool) {
        let Some((pages, seen)) = self.cmb.as_ref().map(|(pages, seen)| (pages.clone(), *seen)) else { return };
        let (control, size) = (self.get64(reg::CMBMSC), pages.len());
        // Again as the controller is enabled: the host may have unmapped all there was.
        if control == seen && !again {
            return;
        }
        let (told, enabled, base) = (control & 1 != 0, control & 2 != 0, control & !0xfff);
        // BAR2, from its start on; in units of 4 KiB, for submission and completion queues, lists, and data both ways.
        self.put32(reg::CMBLOC, if told { 2 } else { 0 });
        self.put32(reg::CMBSZ, if told { ((size >> 12) as u32) << 12 | 0b1_1111 } else { 0 });
        let wrong = enabled && base.checked_add(size).is_none();
        self.put32(reg::CMBSTS, wrong.into());
        let place = (told && enabled && !wrong).then_some((Iova(base), pages));
        host.place_own_memory(place);
        if let Some((_, seen)) = &mut self.cmb {
            *seen = control;
        }
    }

    /// CC.EN went from 0 to 1 (base 3.5.1): takes the admin queues, if what is configured can be done.
    fn enable(&mut self, cc: Cc) {
        let aqa = self.get32(reg::AQA);
        let (asq, acq) = (self.get64(reg::ASQ), self.get64(reg::ACQ));
        let (asqs, acqs) = ((aqa & 0xfff) + 1, (aqa >> 16 & 0xfff) + 1);
        let page = 4096u64 << cc.mps();
        let too_early = |since: Instant| since.elapsed() < quirk::READY;
        let why = if self.params.quirk == Some(Quirk::Ready) && self.disabled.is_some_and(too_early) {
            "it was enabled too early"
        } else if self.params.quirk == Some(Quirk::AdminPages) && !asqs.is_multiple_of(64) {
            "the admin submission queue is no whole pages"
        } else if self.params.quirk == Some(Quirk::Dma48) && (asq | acq) >> 48 != 0 {
            "an admin queue is beyond 48 bits"
        } else if !(self.params.mps_min.bytes()..=self.params.mps_max.bytes()).contains(&page) {
            "CC.MPS is outside of CAP.MPSMIN to CAP.MPSMAX"
        } else if cc.css() != 0 && !(cc.css() == 6 && self.params.zoned) || cc.ams() != 0 {
            "CC.CSS or CC.AMS names what CAP does not offer"
        } else if asqs < 2 || acqs < 2 {
            "an admin queue has less than two entries"
        } else if (asq | acq) & (page - 1) != 0 {
            "an admin queue is not aligned to the memory page"
        } else {
            self.rules.page = page;
            self.clear_doorbells();
            self.queues.sqs[0] = Some(Sq::new(0, 0, asq, asqs, false));
            self.queues.cqs[0] = Some(Cq::new(0, acq, acqs, Some(0)));
            self.state = State::Running;
            self.put32(reg::CSTS, csts::RDY);
            return;
        };
        self.fatal(why);
    }

    /// CC.EN went from 1 to 0 (base 3.7.2, "Controller Level Reset"): what the host set up is gone, but the admin queue registers stay.
    fn disable(&mut self) {
        self.state = State::Off;
        self.disabled = Some(Instant::now());
        self.queues = Queues::none(self.params.queues);
        self.shadow = None;
        self.features = Features::new(self.params.queues);
        self.manage.reset();
        self.events = Events::default();
        self.deferred.clear();
        self.held.clear();
        self.lost = None;
        self.store.write_cache = true;
        if let Some(streams) = &mut self.store.streams {
            streams.reset();
        }
        if let Some(memory) = &mut self.store.host_memory {
            memory.reset();
        }
        if let Some(member) = &mut self.store.member {
            member.reset();
        }
        self.clear_doorbells();
        self.publish();
        self.put32(reg::CSTS, 0);
    }

    /// A queue that has work is not there: fatal, if that goes on.
    #[cold]
    fn wait_for(&mut self, lost: &QueueLost) -> Work {
        match self.lost {
            Some(since) if since.elapsed() > PATIENCE => {
                self.fatal(&lost.to_string());
                return Work::Busy;
            }
            Some(_) => {}
            None => {
                tracing::debug!(device = self.name, %lost, "a queue is not there: it waits");
                self.lost = Some(Instant::now());
            }
        }
        Work::Idle
    }

    /// Controller Fatal Status: nothing works until the next reset.
    #[cold]
    fn fatal(&mut self, why: &str) {
        tracing::warn!(device = self.name, why, "controller fatal status");
        self.state = State::Fatal;
        self.put32(reg::CSTS, self.get32(reg::CSTS) | csts::CFS);
    }

    /// A fault: from here on the device is not there, and what is read of it is all ones.
    #[cold]
    fn vanish(&mut self) {
        self.state = State::Gone;
        self.cc = Cc(u32::MAX);
        self.set_registers(u32::MAX);
        let table = self.table.as_ref().map_or(0x2000..BAR0_SIZE, |(_, size)| 0..*size);
        let pages = self.table.as_ref().map_or(&self.bar, |(pages, _)| pages);
        table.step_by(4).filter_map(|at| pages.u32(at)).for_each(|w| w.store(u32::MAX, Ordering::Release));
    }
}

impl Model for Nvme {
    fn shape(&self) -> Shape {
        let mut regions = vec![ModelRegion::default(); 9];
        #[allow(clippy::single_range_in_vec_init, reason = "one area, all of it")]
        let direct = |size, pages: &Arc<Pages>| ModelRegion { size, pages: Some(pages.clone()), direct: vec![0..size] };
        regions[0] = direct(BAR0_SIZE, &self.bar);
        if let Some((pages, size)) = &self.table {
            regions[4] = direct(*size, pages);
        }
        if let Some((pages, _)) = &self.cmb {
            regions[2] = direct(pages.len(), pages);
        }
        if let Some(pmr) = &self.pmr {
            regions[pmr::BAR as usize] = direct(pmr.pages.len(), &pmr.pages);
        }
        regions[7] = ModelRegion { size: config::SIZE, ..ModelRegion::default() };
        let mut irqs = vec![IrqInfo::default(); 5];
        irqs[2] = IrqInfo { count: self.msix.vectors, eventfd: true, maskable: false, resizable: true };
        irqs[Irq::Err as usize] = IrqInfo { count: 1, eventfd: true, ..IrqInfo::default() };
        Shape { name: self.name.clone(), page: self.params.page, regions, irqs, msix: Some(self.msix) }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match region {
            wholebar_core::pci::CONFIG if self.state == State::Gone => {
                buf.fill(0xff);
                Ok(())
            }
            wholebar_core::pci::CONFIG => self.config.read(offset, buf),
            _ => Err(Refused(libc::EINVAL)),
        }
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        match region {
            wholebar_core::pci::CONFIG => {
                if self.state != State::Gone && self.config.write(offset, buf)? {
                    self.reset();
                }
                Ok(())
            }
            _ => Err(Refused(libc::EINVAL)),
        }
    }

    fn reset(&mut self) {
        if self.state == State::Gone {
            return;
        }
        self.disable();
        self.cc = Cc(0);
        self.config.reset();
        self.switch_pmr(false);
        self.set_registers(0);
        self.publish();
    }

    #[inline]
    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let cc = Cc(self.get32(reg::CC));
        if self.cmb.is_some() {
            self.configure_memory(host, cc != self.cc);
        }
        if self.pmr.is_some() && !matches!(self.state, State::Gone | State::Hung) {
            self.configure_pmr();
        }
        if cc != self.cc {
            self.configure(cc);
            return Work::Busy;
        }
        // Without bus mastering a function neither reads nor writes memory, nor signals an interrupt (that is a write).
        if self.state != State::Running || !self.config.bus_master() {
            return Work::Idle;
        }
        match self.poll_queues(host) {
            Ok(work) => {
                if self.store.host_memory.as_ref().is_some_and(|memory| memory.lost) {
                    self.fatal("the host memory buffer is not there");
                }
                self.lost = None;
                work
            }
            Err(lost) => self.wait_for(&lost),
        }
    }

    fn arm(&mut self) -> Armed {
        // Delayed commands and interrupts are done in time, and a queue that is not there is waited for.
        if self.held.is_empty() && self.lost.is_none() && !self.coalesced { Armed::Yes } else { Armed::No }
    }
}

/// The namespaces that `params` describe.
fn namespaces(params: &NvmeParams) -> Result<Vec<Namespace>> {
    let sizes = params.blocks.iter().cycle().take(params.namespaces as usize);
    let there = sizes
        .map(|block| {
            let (media, size, read_only) = Media::open(&params.backing, params.size, (*block).into())?;
            let shift = block.trailing_zeros();
            // Of zones, there are whole ones.
            let bytes = if params.zoned { size - size % params.zone_size } else { size };
            let blocks = bytes >> shift;
            Ok(Namespace {
                shift,
                blocks,
                bytes,
                read_only,
                allocated: true,
                attached: true,
                media,
                format: params.metadata,
                zones: params.zoned.then(|| {
                    let (size, capacity) = (params.zone_size >> shift, params.zone_capacity() >> shift);
                    Box::new(Zones::new(blocks / size, size, capacity, params.max_open, params.max_active))
                }),
                ..Namespace::none()
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let free = if params.spare > 0 { SPARE_NAMESPACES } else { 0 };
    Ok(there.into_iter().chain((0..free).map(|_| Namespace::none())).collect())
}
