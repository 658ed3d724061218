//! The back end: a model of a virtio function behind a vhost-user socket, for one front end after another.
//!
//! The model is driven through its registers, as a driver would: features, ring addresses and status from messages are written there. So there is
//! one model of a device, whether PCI or vhost-user leads to it. Interrupts are the rings' call eventfds; kicks are watched, and the model's rings are
//! looked at all the time. The front end's memory is the model's DMA space: it is reached by guest addresses.
//!
//! | file | what it is |
//! |---|---|
//! | `mod` | the server: which models it takes, and where front ends come from |
//! | `session` | one front end: its messages |
//! | `device` | the model as the front end set it up |
//! | `rings`, `kicks`, `memory` | a front end's rings: sizes, bases and addresses; their eventfds; its memory |
//! | `inflight` | the record of what is in flight, for another back end |
//! | `wait` | for a server whose queues others poll: what comes besides, and waiting for that |
//! | `registers` | the model's registers, as a driver finds them |

mod device;
mod inflight;
mod kicks;
mod memory;
mod registers;
mod rings;
mod session;
mod wait;

use crate::model::{Model, ModelFunction};
use crate::pci::Irq;
use crate::server::{self, Peers};
use crate::{Error, Result};
pub use inflight::QueueRecord;
use registers::Registers;
use session::Session;
use std::os::unix::net::UnixStream;
use std::path::Path;
pub use wait::Wait;

/// A model of a modern virtio PCI function that a [`Server`] can drive: vring bases and pairs in use, for which such a function has no registers.
///
/// The function has an MSI-X vector for each of its queues at least. Queues are numbered as the function's are.
pub trait VirtioModel: Model {
    /// Says where a queue begins that is enabled next: split, an index of the available ring; packed, a place in the ring, with the wrap counter in
    /// bit 15. Without this it begins at its beginning. A reset, of the queue or of the device, forgets it.
    fn set_queue_base(&mut self, queue: u16, base: u16);

    /// Returns where a queue that is enabled would go on, were it disabled now, in the form of [`set_queue_base`](Self::set_queue_base); `None` for
    /// one that is not.
    fn queue_base(&self, queue: u16) -> Option<u16>;

    /// Takes where a packed queue that has just been enabled is to record what it uses, each buffer for itself: [`QueueRecord::begin_use`] before the descriptor is
    /// overwritten, [`QueueRecord::end_use`] once its flags are stored. A reset, of the queue or of the device, forgets it.
    fn set_queue_record(&mut self, queue: u16, record: QueueRecord);

    /// Sets how many queue pairs of a network card are in use, as VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET does: a front end keeps the control queue for itself.
    fn set_queue_pairs(&mut self, pairs: u16);
}

/// A model, as sessions have it.
type Function = ModelFunction<dyn VirtioModel>;

/// A virtio model, served to one vhost-user front end at a time.
///
/// Further front ends wait in the socket's backlog. When one disconnects, by its own will or not, its memory is unmapped and the model is reset.
///
/// The protocol is vhost-user's (docs/interop/vhost-user.rst in QEMU's tree), with these of its features: `MQ`, `REPLY_ACK`, `BACKEND_REQ`,
/// `CONFIG`, `INFLIGHT_SHMFD` (disks), `RESET_DEVICE`, `CONFIGURE_MEM_SLOTS` and `STATUS`. Nothing is logged, so that a guest can't be migrated live.
pub type Server<M> = server::Server<M, Session>;

impl<M: VirtioModel + 'static> Server<M> {
    /// Listens on `path`. A socket that a dead server left there is replaced.
    ///
    /// # Errors
    /// [`Error::Io`] where another server listens there, where something else is there, or where the system has no socket; [`Error::Config`] where
    /// the model is no virtio network card or disk.
    pub fn bind(path: impl AsRef<Path>, model: M) -> Result<Self> {
        Self::distrusting(Peers::bind(path.as_ref())?, model)
    }

    /// Connects to front ends that listen on `path`: again and again, whether one is there yet or not.
    ///
    /// # Errors
    /// [`Error::Config`] where the model is no virtio network card or disk.
    pub fn connect(path: impl AsRef<Path>, model: M) -> Result<Self> {
        Self::distrusting(Peers::Listens(path.as_ref().to_owned(), None), model)
    }

    /// Serves the front end at the other end of a connection that exists already, and none after it.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Error::Io`] where the system has no descriptor left.
    pub fn from_stream(stream: UnixStream, model: M) -> Result<Self> {
        let mut server = Self::distrusting(Peers::None, model)?;
        let failed = |why| Error::Io { what: "serving a front end".to_owned(), cause: std::io::Error::other(why) };
        server.meet(stream).map_err(failed)?;
        Ok(server)
    }

    fn distrusting(peers: Peers, model: M) -> Result<Self> {
        let mut function = ModelFunction::distrusting(model);
        let registers = Registers::find(&mut function)?;
        let queues = registers.queues(&mut function).unwrap_or(u16::MAX);
        let vectors = function.irq_info(Irq::Msix.index()).count;
        if vectors < queues.into() {
            let why = format!("it has {vectors} MSI-X vectors for {queues} queues, of which each needs one");
            return Err(Error::Config { device: function.shape().name.clone(), why });
        }
        Ok(Self::new(peers, function, registers))
    }
}
