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
//! | `registers` | the model's registers, as a driver finds them |

mod device;
mod inflight;
mod kicks;
mod memory;
mod registers;
mod rings;
mod session;

use crate::model::{Model, ModelFunction};
use crate::pci::Irq;
use crate::server::{self, Peers};
use crate::{Error, Result};
pub use inflight::QueueRecord;
use registers::Registers;
use session::Session;
use std::os::unix::net::UnixStream;
use std::path::Path;

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
<<<<<<< HEAD
        Ok(Self::new(peers, function, registers))
=======
        Ok(Self { peers, function, registers, session: None, pace: Pace::new(), rest: Rest::default(), spin: false })
    }

    /// Sets whether [`run`](Self::run) polls on when nothing happens. Otherwise it sleeps then, until a message, a kick or a wire wakes it; where a ring
    /// has no kick, or the model asks for none, for a millisecond at the most.
    #[must_use]
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Returns the model and what it can reach.
    pub fn function(&mut self) -> &mut ModelFunction<M> {
        &mut self.function
    }

    /// Returns whether a front end is connected.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Runs one turn of the model, and at times reads the socket. It never waits.
    #[inline]
    pub fn poll(&mut self) -> Work {
        let work = match &self.session {
            Some(session) => {
                let work = self.function.poll();
                // Before the next turn: what is not there any more is not worked with.
                if session.is_robbed() {
                    self.lose(TAKEN);
                    return Work::Busy;
                }
                work
            }
            None => Work::Idle,
        };
        if !self.pace.is_due(work) {
            return work;
        }
        match self.poll_socket() {
            true => Work::Busy,
            false => work,
        }
    }

    /// A look at the socket and the kicks: whether anything came.
    #[cold]
    fn poll_socket(&mut self) -> bool {
        let came = match &mut self.session {
            Some(session) => match session.poll(&mut self.function) {
                Ok(came) => came,
                Err(why) => {
                    self.lose(&why);
                    true
                }
            },
            None => match self.peers.next() {
                Some(stream) => {
                    match Session::new(stream, &mut self.function, self.registers) {
                        Ok(session) => {
                            tracing::info!("a front end is here");
                            self.session = Some(session);
                        }
                        Err(why) => tracing::warn!(why, "a front end cannot be served"),
                    }
                    true
                }
                None => false,
            },
        };
        self.pace.looked(came);
        came
    }

    /// A turn found nothing: for how long to rest, and whether the model takes what comes by its wires; `None` where it is not time for that, or something
    /// is found once more.
    fn rests(&mut self) -> Option<(Duration, bool)> {
        let quiet = self.rest.idle()?;
        let (wakes, due) = Wakes::of(self.function.arm());
        let kicks = self.session.as_ref().is_some_and(Session::kicks_all);
        let time = if kicks { wakes } else { Wakes::Some }.rest(quiet, due)?;
        // What the model told the driver, of when to kick, is seen by who kicks, or their work is seen by the look that follows.
        barrier::store_then_load();
        self.pace.hurry();
        (self.poll() == Work::Idle).then_some((time, wakes == Wakes::All))
    }

    /// The front end goes, and all that is left of it.
    #[cold]
    fn lose(&mut self, why: &str) {
        tracing::info!(why, "the front end is gone");
        self.session = None;
        self.function.release();
    }

    /// Runs turns until `stop` is set; or, made [from a stream](Self::from_stream), until the front end has disconnected.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot wait.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let waiting = |cause| Error::Io { what: "waiting for a front end".to_owned(), cause };
        let mut idle = 0u32;
        // Relaxed: the flag publishes nothing else.
        while !stop.load(Ordering::Relaxed) {
            match (self.poll(), &self.session, &self.peers) {
                (Work::Busy, ..) => {
                    idle = 0;
                    self.rest.busy();
                }
                (Work::Idle, None, Peers::None) => return Ok(()),
                // Somebody waits who can't be let in, or nobody listens: who asks at once whether that is over asks without end.
                (Work::Idle, None, Peers::Listens(..)) => {
                    std::thread::sleep(RETRY);
                    self.pace.hurry();
                }
                (Work::Idle, None, Peers::Listener(listener)) => {
                    if listener.is_stuck() {
                        std::thread::sleep(STOP_LATENCY);
                    } else {
                        wait_for(listener, PollFlags::IN, STOP_LATENCY).map_err(waiting)?;
                    }
                    self.pace.hurry();
                }
                (Work::Idle, Some(_), _) => {
                    if !self.spin
                        && let Some((time, wires)) = self.rests()
                        && let Some(session) = &self.session
                    {
                        let wires = if wires { self.function.wakeups() } else { Vec::new() };
                        session.wait(time, wires).map_err(waiting)?;
                        self.pace.hurry();
                        continue;
                    }
                    idle = idle.saturating_add(1);
                    std::hint::spin_loop();
                    if idle > POLITE {
                        std::thread::yield_now();
                        // On a busy machine that took as long as thousands of turns: the front end is not to wait for as many of them.
                        self.pace.hurry();
                    }
                }
            }
        }
        Ok(())
    }
}

impl Peers {
    /// The next front end, if one is there.
    fn next(&mut self) -> Option<UnixStream> {
        match self {
            Self::Listener(listener) => listener.accept(),
            Self::Listens(path, tried) => {
                if tried.is_some_and(|tried| tried.elapsed() < RETRY) {
                    return None;
                }
                let first = tried.replace(Instant::now()).is_none();
                let stream = listener::connect(path, Duration::ZERO);
                if let Err(error) = &stream
                    && first
                {
                    tracing::info!(%error, path = %path.display(), "no front end listens yet: it is tried again and again");
                }
                stream.ok()
            }
            Self::None => None,
        }
>>>>>>> idle
    }
}
