//! The server: a model on a Unix socket, for one client after another.
//!
//! What a client says is handled in `session.rs`; when the model is polled, in `crate::server`.

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
        let mut server = Self::new(Peers::None, ModelFunction::distrusting(model), ());
        server.session = Some(Session::new(stream));
        server
    }
}
