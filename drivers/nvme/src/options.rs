//! How a controller is opened, and a queue made.

use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;
use wholebar_core::pci::Irq;

/// How a controller is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of BAR0 is mapped.
    pub policy: MapPolicy,
    /// A page size to plan BAR0 for; `None` for the device's own.
    pub page: Option<PageSize>,
    /// I/O queue pairs to ask the controller for; it may grant fewer.
    pub io_queues: u16,
    /// Entries of a queue, a power of two; one fewer commands can be in flight. At most what the controller takes.
    pub entries: u32,
    /// When to use shadow doorbells (Doorbell Buffer Config), where the controller has them.
    pub shadow_doorbells: ShadowDoorbells,
    /// Use SGLs where the controller has them: for buffers that PRPs can't describe, and instead of long PRP lists.
    pub sgls: bool,
    /// The most that one command transfers, in bytes, where the controller has no smaller limit (MDTS).
    pub max_transfer: u32,
    /// Which interrupts wake the slow path: MSI-X, MSI or INTx; `None` for the first of these that the controller has.
    pub interrupts: Option<Irq>,
    /// How long an I/O command may take before it is aborted, and then again before the controller is reset.
    pub timeout: Duration,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// How long a queue's owner may take to poll it while the controller is to be reset.
    pub stop_timeout: Duration,
    /// Who does the slow path's work.
    pub service: Service,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: MapPolicy::Auto,
            page: None,
            io_queues: 16,
            entries: 256,
            shadow_doorbells: ShadowDoorbells::Auto,
            sgls: true,
            max_transfer: 1 << 20,
            interrupts: None,
            timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(5),
            service: Service::Thread,
        }
    }
}

/// When to use shadow doorbells: the host writes them to memory, where an emulated controller looks by itself, and rings a register only where
/// the controller asks for that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ShadowDoorbells {
    /// Where the registers cannot be mapped, so that each doorbell would be a system call or a message.
    #[default]
    Auto,
    /// Wherever the controller has them.
    Always,
    /// Nowhere.
    Never,
}

/// Who does the slow path's work: asynchronous events, aborts, resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// A thread that sleeps until an interrupt, or a queue, wakes it.
    #[default]
    Thread,
    /// Whoever calls [`Nvme::service`](crate::Nvme::service), regularly.
    Manual,
}

/// How a queue is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueOptions {
    /// Entries, a power of two; `None` for [`Options::entries`].
    pub entries: Option<u32>,
    /// Completions raise this MSI-X vector (not 0, which is the admin queue's), so that an idle core can sleep; `None` for a queue that is
    /// only polled. See [`Nvme::interrupts`](crate::Nvme::interrupts).
    pub interrupt: Option<u16>,
}
