//! A model served to one peer after another over a Unix socket: when the model is polled, when the socket is polled, and what becomes of both when
//! a peer goes. It does *not* know what is said: that is a [`Session`]'s, of vfio-user or of vhost-user.
//!
//! Polled or blocking, as its owner likes. A poll of the model costs tens of nanoseconds, a poll of the socket a system call: so there are
//! fewer and fewer of those while nothing comes.

use crate::barrier;
use crate::listener::{self, Listener};
use crate::model::rest::{Rest, Wakes};
use crate::model::{Model, ModelFunction};
use crate::pace::{POLITE, Pace, STOP_LATENCY};
use crate::socket::wait_for;
use crate::{Error, Result, Work};
use rustix::event::PollFlags;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One peer of a served model: what it asks, and what it shared.
pub trait Session<M: Model>: Sized {
    /// What each session needs to know of the model.
    type Setup: Copy;
    /// What the peer is called.
    const PEER: &'static str;

    /// Begins with the peer at the other end of a connection.
    ///
    /// # Errors
    /// Why it can't be served.
    fn begin(stream: UnixStream, function: &mut ModelFunction<M>, setup: Self::Setup) -> Result<Self, String>;

    /// Whether the peer took memory away that it had shared, and that was touched.
    fn is_robbed(&self) -> bool;

    /// Handles the next message, if there is one, once the answer to the one before is sent. Returns whether anything came.
    ///
    /// # Errors
    /// Why there is no peer any more.
    fn poll(&mut self, function: &mut ModelFunction<M>) -> Result<bool, String>;

    /// Waits until the peer says something, or takes what we said, or one of `wires` is readable.
    ///
    /// # Errors
    /// Where the system cannot wait.
    fn wait(&self, timeout: Duration, wires: Vec<BorrowedFd<'_>>) -> io::Result<()>;

    /// Whether all that the peer does ends a [wait](Self::wait). What it stores in memory of the device's that it has mapped does not.
    fn tells_all(&self) -> bool;
}

/// Why a peer is sent away that [takes its memory away](Session::is_robbed).
const ROBBED: &str = "it took memory away that it had shared";
/// How long to wait before it is tried again to connect.
pub(crate) const RETRY: Duration = Duration::from_millis(50);

/// A model, served to one peer at a time: as `vfio_user::Server`, or as `vhost_user::Server`, which say how one is made.
pub struct Server<M: Model, S: Session<M>> {
    pub(crate) peers: Peers,
    function: ModelFunction<M>,
    setup: S::Setup,
    pub(crate) session: Option<S>,
    pace: Pace,
    rest: Rest,
    spin: bool,
}

/// Where peers come from.
pub(crate) enum Peers {
    Listener(Listener),
    /// It listens: where, and when it was tried last to connect.
    Listens(PathBuf, Option<Instant>),
    /// None comes after the one that is here.
    None,
}

impl<M: Model, S: Session<M>> Server<M, S> {
    pub(crate) fn new(peers: Peers, function: ModelFunction<M>, setup: S::Setup) -> Self {
        Self { peers, function, setup, session: None, pace: Pace::new(), rest: Rest::default(), spin: false }
    }

    /// Sets whether [`run`](Self::run) polls on when nothing happens. Otherwise it sleeps then: until a message, a kick or a wire wakes it; or, where the peer
    /// may do what nobody is told of (it was given memory of the device's to map, or gives no kicks), for a sixteenth of the time that nothing has happened,
    /// and a millisecond at the most.
    #[must_use]
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Returns the model and what it can reach.
    pub fn function(&mut self) -> &mut ModelFunction<M> {
        &mut self.function
    }

    /// Returns whether a peer is connected.
    pub fn is_connected(&self) -> bool {
        self.session.is_some()
    }

    /// Returns whether the peer took memory away that it had shared, and that was touched. Then nothing of it is to be believed, until
    /// the next poll of the socket has sent it away.
    #[inline]
    pub fn is_robbed(&self) -> bool {
        self.session.as_ref().is_some_and(S::is_robbed)
    }

    /// Polls the model once, and at times reads the socket. It never waits.
    #[inline]
    pub fn poll(&mut self) -> Work {
        let work = match &self.session {
            Some(session) => {
                let work = self.function.poll();
                // Before the next poll: what is not there any more is not worked with.
                if session.is_robbed() {
                    self.lose(ROBBED);
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

    /// Polls the socket: whether anything came.
    #[cold]
    pub(crate) fn poll_socket(&mut self) -> bool {
        let came = match &mut self.session {
            Some(session) if session.is_robbed() => Err(ROBBED.to_owned()),
            Some(session) => session.poll(&mut self.function),
            None => Ok(self.accept()),
        };
        let came = came.unwrap_or_else(|why| {
            self.lose(&why);
            true
        });
        self.pace.polled(came);
        came
    }

    /// The next peer, if one is there: whether one was, which may be one that can't be served.
    fn accept(&mut self) -> bool {
        let Some(stream) = self.peers.next() else { return false };
        match self.meet(stream) {
            Ok(()) => tracing::info!("a {} is here", S::PEER),
            Err(why) => tracing::warn!(why, "a {} cannot be served", S::PEER),
        }
        true
    }

    /// The peer at the other end of `stream` is served from now on.
    pub(crate) fn meet(&mut self, stream: UnixStream) -> Result<(), String> {
        self.session = Some(S::begin(stream, &mut self.function, self.setup)?);
        Ok(())
    }

    /// A poll found nothing: for how long to rest, and whether the model takes what comes by its wires; `None` where it is not time for that, or something
    /// is found once more.
    fn rests(&mut self) -> Option<(Duration, bool)> {
        let quiet = self.rest.idle()?;
        let (wakes, due) = Wakes::of(self.function.arm());
        let told = self.session.as_ref().is_some_and(S::tells_all);
        let time = if told { wakes } else { Wakes::Some }.rest(quiet, due)?;
        // What the model told its driver, of when to ring, is seen by who rings, or their work is seen by the poll that follows.
        barrier::store_then_load();
        self.pace.hurry();
        (self.poll() == Work::Idle).then_some((time, wakes == Wakes::All))
    }

    /// The peer goes, and all that is left of it.
    #[cold]
    fn lose(&mut self, why: &str) {
        tracing::info!(why, "the {} is gone", S::PEER);
        self.session = None;
        self.function.release();
    }

    /// Polls it until `stop` is set; or, for a server made from a stream, until the peer has disconnected.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot wait.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let waiting = |cause| Error::Io { what: format!("waiting for a {}", S::PEER), cause };
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
                        // On a busy machine that took as long as thousands of polls: the peer is not to wait for as many of them.
                        self.pace.hurry();
                    }
                }
            }
        }
        Ok(())
    }
}

impl Peers {
    /// Those that connect to `path`.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let failed = |cause| Error::Io { what: format!("listening on {}", path.display()), cause };
        Ok(Self::Listener(Listener::bind(path).map_err(failed)?))
    }

    /// The next one, if one is there.
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
                    tracing::info!(%error, path = %path.display(), "nobody listens yet: it is tried again and again");
                }
                stream.ok()
            }
            Self::None => None,
        }
    }
}
