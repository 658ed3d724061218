//! The controller as registers: enabling, disabling, looking after its health. Every wait ends.

use crate::cmb::{self, ControllerMemory, MemoryBuffer};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::pmr::PersistentMemoryRegion;
use crate::quirks::{ADMIN_TAGS, MIN_SHARED_ENTRIES, Quirk, READY_DELAY};
use crate::regs::{self, Cap, Csts};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::pci::{CONFIG, PciDevice, config, function};
use wholebar_core::{Error as Core, PageSize};

/// BAR0, and what CAP says.
pub(crate) struct Hardware {
    pub device: Arc<dyn PciDevice>,
    pub bar: Bar,
    pub cap: Cap,
    /// The controller's page size (CC.MPS), in bytes.
    pub page: u64,
    /// VS: major, minor, tertiary.
    pub version: (u16, u8, u8),
    ready: Duration,
    /// What it does otherwise than the standard says.
    pub quirks: Vec<Quirk>,
    /// The controller memory buffer, where it has one.
    pub memory: Option<MemoryBuffer>,
    /// It, where it is used.
    pub controller_memory: Option<Arc<ControllerMemory>>,
    /// The persistent memory region, where it has one; and whether somebody has it open.
    pub persistent: Option<PersistentMemoryRegion>,
    pub persistent_open: AtomicBool,
    /// How often the persistent memory region was enabled again after a reset of the function.
    pub persistent_restored: AtomicU64,
}

impl Hardware {
    /// Opens BAR0 and reads what the controller can do.
    pub fn open(device: Arc<dyn PciDevice>, options: &Options) -> Result<Self> {
        let Options { policy, page, .. } = *options;
        // Registers of what isn't one are not to be touched (PCIe Transport 1.0, 3.2.1: class 01h 08h).
        let mut class = [0; 4];
        device.read(CONFIG, 0x08, &mut class)?;
        let [_, interface, sub, base] = class;
        if (base, sub) != (0x01, 0x08) {
            function::check(device.as_ref())?;
            let why = format!("its PCI class is {base:02x}{sub:02x}{interface:02x}, and theirs is 010802");
            return Err(Error::Unfit { device: device.name().to_owned(), why });
        }
        let quirks = match &options.quirks {
            Some(quirks) => quirks.clone(),
            None => {
                let mut ids = [0; 4];
                device.read(CONFIG, 0x00, &mut ids)?;
                let [v0, v1, d0, d1] = ids;
                let ids = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
                Quirk::of(ids.0, ids.1).map(|(quirk, _)| quirk).collect()
            }
        };
        if quirks.contains(&Quirk::Dma48) {
            device.dma().set_dma_mask(device.dma().dma_mask().min(48));
        }
        config::enable_memory(device.as_ref(), true)?;
        // Doorbells are written: a page that holds some is not to be mapped read-only because a table is there too.
        let registers = [0..regs::DOORBELLS, regs::DOORBELLS..regs::DOORBELLS + 8];
        let bar = Bar::of(device.clone(), 0, BarOptions { policy, page, registers: &registers })?;
        let mut hw = Self {
            device,
            bar,
            cap: Cap(0),
            page: PageSize::host().bytes(),
            version: (0, 0, 0),
            ready: Duration::ZERO,
            quirks,
            memory: None,
            controller_memory: None,
            persistent: None,
            persistent_open: AtomicBool::new(false),
            persistent_restored: AtomicU64::new(0),
        };
        let cap = u64::from(hw.read(regs::CAP)?) | u64::from(hw.read(regs::CAP + 4)?) << 32;
        if cap as u32 == regs::GONE {
            return Err(hw.gone("its capabilities read as all ones"));
        }
        hw.cap = Cap(cap);
        let version = hw.read(regs::VS)?;
        hw.version = ((version >> 16) as u16, (version >> 8) as u8, version as u8);
        hw.ready = hw.ready_timeout()?.min(options.ready_timeout);
        if hw.cap.min_page() > hw.cap.max_page() {
            let what = format!("its pages are from {} to {} bytes", hw.cap.min_page(), hw.cap.max_page());
            return Err(Error::Nonsense { device: hw.name(), what });
        }
        if hw.max_entries() < 2 {
            let what = "its queues have one entry (CAP.MQES is 0, and has to be 1 at least)".to_owned();
            return Err(Error::Nonsense { device: hw.name(), what });
        }
        if hw.has(Quirk::SharedTags) && hw.max_entries() < MIN_SHARED_ENTRIES {
            let why = format!(
                "its queues have {} entries at most, and command identifiers are shared with {ADMIN_TAGS} of the admin queue's",
                hw.max_entries()
            );
            return Err(Error::Unfit { device: hw.name(), why });
        }
        hw.page = hw.page.clamp(hw.cap.min_page(), hw.cap.max_page());
        if hw.cap.command_sets() & 0b100_0001 == 0 {
            let why = format!("it has no I/O command set (CAP.CSS is {:#x})", hw.cap.command_sets());
            return Err(Error::Unfit { device: hw.name(), why });
        }
        hw.persistent = PersistentMemoryRegion::find(&hw)?;
        Ok(hw)
    }

    /// Asks for the controller memory buffer, and uses it where that is wanted and submission queues can lie in it. The controller is disabled, and DMA memory
    /// not attached yet.
    pub fn find_memory_buffer(&mut self, options: &Options) -> Result<()> {
        let Options { policy, page, admin_timeout, .. } = *options;
        let used = options.controller_memory && !self.has(Quirk::LongEntries);
        if self.cap.has_memory_buffer() {
            self.memory = MemoryBuffer::find(&self.bar, admin_timeout)?;
        }
        if used && let Some(memory) = self.memory.as_mut().filter(|memory| memory.submission_queues) {
            self.controller_memory = Some(memory.open(&self.device, policy, page)?);
            memory.used = true;
        }
        Ok(())
    }

    /// Has the persistent memory region be enabled again, after a reset of the function, where somebody has it open. This does not wait until it is ready, which may
    /// take minutes: who uses it waits.
    pub fn restore_persistent_memory(&self) -> Result<()> {
        if self.persistent_open.load(Ordering::Relaxed)
            && self.bar.read::<u32>(regs::PMRCTL)? & regs::PMRCTL_ENABLE == 0
        {
            // Release pairs with the Acquire load of who looks whether it was off while it was used: it is not on before this.
            self.persistent_restored.fetch_add(1, Ordering::Release);
            self.bar.write(regs::PMRCTL, regs::PMRCTL_ENABLE)?;
        }
        Ok(())
    }

    /// Entries that an I/O queue can have.
    pub fn max_entries(&self) -> u32 {
        let known = self.quirks.iter().find_map(|quirk| match quirk {
            Quirk::QueueEntries(entries) => Some(*entries),
            _ => None,
        });
        self.cap.max_entries().min(known.unwrap_or(u32::MAX))
    }

    pub fn has(&self, quirk: Quirk) -> bool {
        self.quirks.contains(&quirk)
    }

    /// CAP.TO, or the longer CRTO.CRWMT where that is there (3.1.3.1).
    fn ready_timeout(&self) -> Result<Duration> {
        let cap = self.cap.timeout_ms();
        let crto = match self.cap.has_ready_timeouts() {
            true => u64::from(self.read(regs::CRTO)? & 0xffff) * 500,
            false => 0,
        };
        Ok(Duration::from_millis(cap.max(crto).max(500)))
    }

    pub fn name(&self) -> String {
        self.device.name().to_owned()
    }

    pub fn gone(&self, why: &str) -> Error {
        Core::Gone { device: self.name(), why: why.to_owned() }.into()
    }

    /// Reads a register. A backend whose device is gone says so.
    fn read(&self, register: u64) -> Result<u32> {
        Ok(self.bar.read(register)?)
    }

    fn write(&self, register: u64, value: u32) -> Result<()> {
        Ok(self.bar.write(register, value)?)
    }

    pub fn csts(&self) -> Result<Csts> {
        self.known(Csts(self.read(regs::CSTS)?))
    }

    fn known(&self, csts: Csts) -> Result<Csts> {
        if csts.gone() { Err(self.gone("its status reads as all ones")) } else { Ok(csts) }
    }

    /// Whether the controller answers and has not failed. Configuration space is asked too: a mapped register still reads as it did when a
    /// vfio-user peer is dead.
    pub fn healthy(&self, when: &'static str) -> Result<()> {
        function::check(self.device.as_ref())?;
        let csts = self.csts()?;
        if let Some(error) = self.bar.failure() {
            tracing::debug!(%error, "a trapped doorbell failed");
            if matches!(error, Core::Gone { .. }) {
                return Err(self.gone("a trapped doorbell found nobody"));
            }
        }
        if csts.fatal() { Err(Error::Fatal { device: self.name(), csts: csts.0, when }) } else { Ok(()) }
    }

    /// Waits until `is` holds of CSTS.
    fn wait(&self, what: &'static str, waited: Duration, is: impl Fn(Csts) -> bool) -> Result<()> {
        let is = |csts: u32| Csts(csts).gone() || is(Csts(csts));
        self.known(Csts(self.bar.wait_for(what, regs::CSTS, waited, is)?)).map(drop)
    }

    /// Clears CC.EN and waits for CSTS.RDY to follow (3.7.2): a controller level reset.
    pub fn disable(&self) -> Result<()> {
        let cc = self.read(regs::CC)?;
        if cc == regs::GONE {
            return Err(self.gone("its configuration reads as all ones"));
        }
        if cc & regs::CC_ENABLE != 0 {
            // EN may not be cleared before RDY has followed its setting (3.1.3.5), unless that will not happen.
            let started = self.wait("start", self.ready, |csts| csts.ready() || csts.fatal());
            if let Err(error @ Error::Core(Core::Gone { .. })) = started {
                return Err(error);
            }
            self.write(regs::CC, cc & !(regs::CC_ENABLE | regs::CC_SHUTDOWN_MASK))?;
            if self.has(Quirk::DelayBeforeReady) {
                // Nothing tells when it is over.
                std::thread::sleep(READY_DELAY);
            }
        }
        self.wait("stop", self.ready, |csts| !csts.ready())
    }

    /// Whether all I/O command sets that the controller has are used (CAP.CSS bit 6), and not the NVM command set alone.
    pub fn all_command_sets(&self) -> bool {
        self.cap.command_sets() & 1 << 6 != 0
    }

    /// Enables the controller with its admin queues (3.5.1). It is disabled before.
    pub fn enable(&self, asq: u64, acq: u64, entries: u32) -> Result<()> {
        let last = entries - 1;
        self.write(regs::AQA, last | last << 16)?;
        for (register, base) in [(regs::ASQ, asq), (regs::ACQ, acq)] {
            // Two halves: trapped 64-bit accesses are that on some kernels anyway.
            self.write(register, base as u32)?;
            self.write(register + 4, (base >> 32) as u32)?;
        }
        if self.controller_memory.is_some() {
            // Two halves, the one that enables it last.
            self.write(regs::CMBMSC + 4, (cmb::CONTROL >> 32) as u32)?;
            self.write(regs::CMBMSC, cmb::CONTROL as u32)?;
            if self.read(regs::CMBSTS)? & 1 != 0 {
                let what = "it takes no address for its memory buffer (CMBSTS.CBAI)".to_owned();
                return Err(Error::Nonsense { device: self.name(), what });
            }
        }
        self.write(regs::CC, regs::cc_enable(self.page, self.all_command_sets(), self.has(Quirk::LongEntries)))?;
        self.wait("become ready", self.ready, |csts| csts.ready() || csts.fatal())?;
        self.healthy("while it was enabled")
    }

    /// Tells the controller that power may go, and waits until it has put everything away (3.6.1).
    pub fn shut_down(&self, timeout: Duration) -> Result<()> {
        let cc = self.read(regs::CC)?;
        if cc & regs::CC_ENABLE == 0 {
            return Ok(());
        }
        self.write(regs::CC, cc & !regs::CC_SHUTDOWN_MASK | regs::CC_SHUTDOWN)?;
        match self.wait("shut down", timeout, |csts| csts.shut_down() || csts.fatal()) {
            Err(Error::Core(Core::NotReady { .. })) if self.has(Quirk::ShutdownNotTold) => {
                tracing::warn!(
                    device = self.name(),
                    ?timeout,
                    "the end of its shutdown was not told: it is taken for shut down"
                );
                Ok(())
            }
            done => done,
        }
    }

    /// Lets the function do DMA, or not.
    pub fn bus_master(&self, on: bool) -> Result<()> {
        Ok(config::enable_bus_master(self.device.as_ref(), on)?)
    }

    /// Whether a doorbell is a store.
    pub fn direct_doorbells(&self) -> Result<bool> {
        let first = regs::sq_doorbell(1, self.cap.doorbell_stride());
        Ok(self.bar.doorbell::<u32>(first)?.is_direct())
    }

    /// `iova`, where the controller can take it for the start of a page.
    pub fn aligned(&self, iova: u64) -> Result<u64> {
        match iova.is_multiple_of(self.page) {
            true => Ok(iova),
            false => Err(Error::Misaligned { device: self.name(), iova, page: self.page }),
        }
    }
}
