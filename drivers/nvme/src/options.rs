//! The options with which a controller is opened, and a queue created.

use crate::quirks::Quirk;
use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;
pub use wholebar_core::control_plane::Service;
use wholebar_core::pci::Irq;

/// The options with which a controller is opened.
///
/// SPDK: `spdk_nvme_ctrlr_opts`.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of BAR0 is mapped.
    pub policy: MapPolicy,
    /// The page size to plan BAR0 for; `None` for the device's own.
    pub page: Option<PageSize>,
    /// Number of I/O queue pairs to ask the controller for. It may grant fewer: [`Nvme::io_queues`](crate::Nvme::io_queues).
    pub io_queues: u16,
    /// Entries of a queue, a power of two; one command fewer can be in flight. Where the controller takes fewer, its limit.
    pub entries: u32,
    /// When shadow doorbells (Doorbell Buffer Config) are used, where the controller has them.
    pub shadow_doorbells: ShadowDoorbells,
    /// Whether SGLs are used where the controller has them: for buffers that PRPs cannot describe, and instead of long PRP lists.
    pub sgls: bool,
    /// What the controller does otherwise than the standard says; `None` for what is known of it, by its PCI ids and its model ([`Nvme::quirks`](crate::Nvme::quirks)).
    pub quirks: Option<Vec<Quirk>>,
    /// Whether submission queues and PRP lists lie in the controller's memory buffer (CMB), where it has one: see [`Nvme::memory_buffer`](crate::Nvme::memory_buffer).
    /// It has no use for shadow doorbells then. (SPDK: `use_cmb_sqs` of `spdk_nvme_ctrlr_opts`.)
    pub controller_memory: bool,
    /// Whether completion queues lie there, too, where that is offered (CMBSZ.CQS) and [`controller_memory`](Self::controller_memory) is on. Each poll is then a
    /// read over the bus, or a system call: it is for trying controllers, not for speed.
    pub controller_completions: bool,
    /// How many bytes of the host's memory a controller can have at most that prefers to have some (Host Memory Buffer): drives without memory of their own are
    /// slow without. `None` gives it none. See [`Nvme::host_memory_buffer`](crate::Nvme::host_memory_buffer). (Linux: `max_host_mem_size_mb` of the module
    /// nvme.)
    pub host_memory_buffer: Option<u64>,
    /// This host's identifier, by which controllers know who reserves namespaces: a UUID's bytes. Of controllers that know identifiers of 64 bits alone, its
    /// first eight. `None` for a host that shares nothing with others. (SPDK: `hostid` of `spdk_nvme_ctrlr_opts`.)
    pub host_id: Option<[u8; 16]>,
    /// The largest transfer of one command, in bytes, where the controller has no smaller limit (MDTS).
    pub max_transfer: u32,
    /// The interrupts that wake the slow path: MSI-X, MSI or INTx; `None` for the first of these that the controller has.
    pub interrupts: Option<Irq>,
    /// How long the controller may take at most to become ready, or to stop, however long it says that it may take (CAP.TO: up to 127.5 s; CRTO.CRWMT: up to nine
    /// hours).
    pub ready_timeout: Duration,
    /// How long an I/O command may take before it is aborted. Where it does not end within as long again, or within 5 s where that is less, the
    /// controller is reset.
    pub timeout: Duration,
    /// How long an admin command may take, and the controller to shut down.
    pub admin_timeout: Duration,
    /// How long a reset waits for the owner of a queue to poll it.
    pub stop_timeout: Duration,
    /// Which thread does the slow path's work.
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
            quirks: None,
            controller_memory: false,
            controller_completions: false,
            host_memory_buffer: None,
            host_id: None,
            max_transfer: 1 << 20,
            interrupts: None,
            // What CAP.TO can say.
            ready_timeout: Duration::from_millis(255 * 500),
            timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(5),
            service: Service::Thread,
        }
    }
}

/// When shadow doorbells are used.
///
/// The host writes them to memory, where an emulated controller polls them, and writes the register only where the controller asks for that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ShadowDoorbells {
    /// Where the registers cannot be mapped, so that each doorbell would be a system call or a message.
    #[default]
    Auto,
    /// Wherever the controller has them.
    Always,
    /// Never.
    Never,
}

/// The options with which a queue is created.
#[derive(Debug, Clone, Copy, Default)]
pub struct QueueOptions {
    /// Entries, a power of two; `None` for [`Options::entries`].
    pub entries: Option<u32>,
    /// The MSI-X vector that completions raise, so that an idle core can sleep: [`ANY_VECTOR`] for one that no other queue has, and which is raised only while
    /// the queue is [armed](crate::Queue::arm); or the number of one, not 0, which is the admin queue's: it is raised by each completion, and the
    /// program waits for it ([`Nvme::interrupts`](crate::Nvme::interrupts)). `None` for a queue that is only polled.
    pub interrupt: Option<u16>,
}

/// For [`QueueOptions::interrupt`]: a vector that no other queue has, if one is left; else the queue is only polled. No device has so many vectors.
pub const ANY_VECTOR: u16 = u16::MAX;
