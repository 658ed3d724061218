//! HTTP on a Unix socket, as little of it as statistics take: one thread, requests parsed by a library, an answer each, and the connection is
//! closed. It waits for nobody: clients have a few seconds, there is room for a few, and the oldest makes room for a new one.

use crate::{Error, Figures, Result, openmetrics};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wholebar_core::irq::EventFd;
use wholebar_core::listener::Listener;

/// A socket that statistics are read from, until it is dropped.
pub struct StatisticsServer {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Clients at once.
const CLIENTS: usize = 32;
/// How long a client has, to ask and to take its answer: it may get no core for seconds, and where it is in others' way it has to go sooner.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a request, at most.
const REQUEST: usize = 8 << 10;

impl Figures {
    /// Serves these on `socket`, by a thread of its own. A socket that a dead program left there is replaced.
    ///
    /// # Errors
    /// [`Error::Serve`] where somebody listens there, where something else is there, or the system has no socket or thread.
    pub fn serve(self, socket: &Path) -> Result<StatisticsServer> {
        self.serve_with(socket, PATIENCE)
    }

    /// The same, with so long for each client.
    pub(super) fn serve_with(self, socket: &Path, patience: Duration) -> Result<StatisticsServer> {
        let failed = |cause| Error::Serve { socket: socket.display().to_string(), cause };
        let listener = Listener::bind(socket).map_err(failed)?;
        let stop = Arc::new(EventFd::new()?);
        let mut server = Server { figures: self, listener, stop: stop.clone(), patience, clients: Vec::new() };
        let thread = std::thread::Builder::new().name("statistics".to_owned()).spawn(move || server.run());
        Ok(StatisticsServer { stop, thread: Some(thread.map_err(failed)?) })
    }
}

impl Drop for StatisticsServer {
    /// The thread ends, and lets go of ports and pools; the socket is removed.
    fn drop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    figures: Figures,
    listener: Listener,
    stop: Arc<EventFd>,
    patience: Duration,
    /// The oldest first.
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    request: Vec<u8>,
    /// Once the request is understood, or refused.
    answer: Option<Vec<u8>>,
    sent: usize,
    until: Instant,
}

impl Server {
    fn run(&mut self) {
        loop {
            let (stop, listener) = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::warn!(%error, "statistics are not served any more");
                    return;
                }
            };
            if stop {
                return;
            }
            if listener {
                self.let_in();
            }
            let now = Instant::now();
            let figures = &self.figures;
            // Its turn comes first: it is not to blame where this thread was late.
            self.clients.retain_mut(|client| client.poll(figures) && client.until > now);
        }
    }

    /// Waits until something is to be done: whether to stop, and whether somebody is at the listener.
    fn wait(&self) -> Result<(bool, bool), Errno> {
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(self.clients.iter().map(|client| {
            let events = if client.answer.is_some() { PollFlags::OUT } else { PollFlags::IN };
            PollFd::new(&client.stream, events)
        }));
        let first = self.clients.first().map(|client| client.until.saturating_duration_since(Instant::now()));
        // A millisecond more: it is over then, not almost.
        let first = first.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        match poll(&mut fds, first.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty())),
            Err(error) => Err(error),
        }
    }

    fn let_in(&mut self) {
        let Some(stream) = self.listener.accept().filter(|stream| stream.set_nonblocking(true).is_ok()) else {
            // Who waits at the listener still waits: there is no descriptor for it now.
            std::thread::sleep(Duration::from_millis(50));
            return;
        };
        if self.clients.len() == CLIENTS {
            self.clients.remove(0);
        }
        let until = Instant::now() + self.patience;
        self.clients.push(Client { stream, request: Vec::new(), answer: None, sent: 0, until });
    }
}

impl Client {
    /// Whether it stays.
    fn poll(&mut self, figures: &Figures) -> bool {
        while self.answer.is_none() {
            let mut part = [0; 2048];
            match self.stream.read(&mut part) {
                Ok(0) => return false,
                Ok(n) => self.request.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
            self.answer = answer(&self.request, figures);
        }
        let Some(answer) = &self.answer else { return true };
        while self.sent < answer.len() {
            match self.stream.write(&answer[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// What is answered to a request; `None` while it isn't all there.
fn answer(request: &[u8], figures: &Figures) -> Option<Vec<u8>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let (status, kind, body) = match parsed.parse(request) {
        Ok(httparse::Status::Partial) if request.len() < REQUEST => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            ("431 Request Header Fields Too Large", TEXT, "the request is too long\n".to_owned())
        }
        Err(error) => ("400 Bad Request", TEXT, format!("that is no HTTP request: {error}\n")),
        Ok(httparse::Status::Complete(_)) => {
            let path = parsed.path.unwrap_or("").split('?').next().unwrap_or("");
            match (parsed.method, path) {
                (Some("GET" | "HEAD"), "/metrics") => {
                    ("200 OK", openmetrics::CONTENT_TYPE, openmetrics::text(&figures.snapshot()))
                }
                (Some("GET" | "HEAD"), "/json") => match serde_json::to_string(&figures.snapshot()) {
                    Ok(json) => ("200 OK", "application/json", json + "\n"),
                    Err(error) => ("500 Internal Server Error", TEXT, format!("{error}\n")),
                },
                (Some("GET" | "HEAD"), "/") => {
                    ("200 OK", TEXT, "statistics: /json, and /metrics as OpenMetrics text\n".to_owned())
                }
                (Some("GET" | "HEAD"), _) => ("404 Not Found", TEXT, "there are /json and /metrics\n".to_owned()),
                _ => ("405 Method Not Allowed\r\nAllow: GET, HEAD", TEXT, "statistics can be read only\n".to_owned()),
            }
        }
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let body = if parsed.method == Some("HEAD") { String::new() } else { body };
    Some((head + &body).into_bytes())
}
