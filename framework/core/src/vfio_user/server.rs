//! The server: a model on a Unix socket, for one client after another.
//!
//! What a client says is handled in `session.rs`; when the model has its turns, in `crate::server`.

use super::session::Session;
use crate::Result;
use crate::model::{Model, ModelFunction};
use crate::server::{self, Peers};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A model, served to one client at a time.
///
/// Further clients wait in the socket's backlog.
///
/// When a client disconnects, by its own will or not, its memory is unmapped, its interrupts are disabled, and the model is reset.
pub type Server<M> = server::Server<M, Session>;

impl<M: Model> Server<M> {
    /// Listens on `path`. A socket that a dead server left there is replaced.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) where another server listens there, where something else is there, or where the system has no socket.
    pub fn bind(path: impl AsRef<Path>, model: M) -> Result<Self> {
        Ok(Self::new(Peers::bind(path.as_ref())?, ModelFunction::distrusting(model), ()))
    }

    /// Serves the client at the other end of a connection that exists already, and none after it.
    pub fn from_stream(stream: UnixStream, model: M) -> Self {
<<<<<<< HEAD
        let mut server = Self::new(Peers::None, ModelFunction::distrusting(model), ());
        server.session = Some(Session::new(stream));
        server
=======
        Self {
            listener: None,
            function: ModelFunction::distrusting(model),
            session: Some(Session::new(stream)),
            pace: Pace::new(),
            rest: Rest::default(),
            spin: false,
        }
    }

    /// Sets whether [`run`](Self::run) polls on when nothing happens. Otherwise it sleeps then: until a message or a wire wakes it; or, where the client
    /// was given memory to map, for a sixteenth of the time that nothing has happened, and a millisecond at the most.
    #[must_use]
    pub fn spin(mut self, spin: bool) -> Self {
        self.spin = spin;
        self
    }

    /// Returns the model and what it can reach.
    pub fn function(&mut self) -> &mut ModelFunction<M> {
        &mut self.function
    }

    /// Returns whether a client is connected.
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
                    self.lose(session::ROBBED);
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

    /// A look at the socket: whether anything came.
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
            None => {
                self.session = self.listener.as_ref().and_then(Listener::accept).map(Session::new);
                if self.session.is_some() {
                    tracing::info!("a client is here");
                }
                self.session.is_some()
            }
        };
        self.pace.looked(came);
        came
    }

    /// A turn found nothing: for how long to rest, and whether the model takes what comes by its wires; `None` where it is not time for that, or something
    /// is found once more.
    fn rests(&mut self) -> Option<(Duration, bool)> {
        let quiet = self.rest.idle()?;
        let (wakes, due) = Wakes::of(self.function.arm());
        let mapped = self.session.as_ref().is_none_or(Session::has_mapped);
        let time = if mapped { Wakes::Some } else { wakes }.rest(quiet, due)?;
        // What the model told its driver, of when to ring, is seen by who rings, or their work is seen by the look that follows.
        barrier::store_then_load();
        self.pace.hurry();
        (self.poll() == Work::Idle).then_some((time, wakes == Wakes::All))
    }

    /// The client goes, and all that is left of it.
    #[cold]
    fn lose(&mut self, why: &str) {
        tracing::info!(why, "the client is gone");
        self.session = None;
        self.function.release();
    }

    /// Runs turns until `stop` is set; or, made [from a stream](Self::from_stream), until the client has disconnected.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot wait.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let waiting = |cause| Error::Io { what: "waiting for a client".to_owned(), cause };
        let mut idle = 0u32;
        // Relaxed: the flag publishes nothing else.
        while !stop.load(Ordering::Relaxed) {
            match (self.poll(), &self.session, &self.listener) {
                (Work::Busy, ..) => {
                    idle = 0;
                    self.rest.busy();
                }
                (Work::Idle, None, None) => return Ok(()),
                // Somebody waits who can't be let in: who asks at once whether that is over asks without end.
                (Work::Idle, None, Some(listener)) if listener.is_stuck() => {
                    std::thread::sleep(STOP_LATENCY);
                    self.pace.hurry();
                }
                (Work::Idle, None, Some(listener)) => {
                    wait_for(listener, PollFlags::IN, STOP_LATENCY).map_err(waiting)?;
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
                        // On a busy machine that took as long as thousands of turns: the client is not to wait for as many of them.
                        self.pace.hurry();
                    }
                }
            }
        }
        Ok(())
>>>>>>> idle
    }
}
