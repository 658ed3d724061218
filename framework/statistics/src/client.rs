//! Reads a snapshot from another process's socket. What comes is input: it may be anything, or nothing.

use super::{FORMAT, Snapshot};
use crate::{Error, Result};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// An answer is no longer than this.
const LONGEST: usize = 16 << 20;

impl Snapshot {
    /// What the program that serves `socket` has come to. It has `patience` to answer.
    ///
    /// # Errors
    /// [`Error::Read`]: no such socket, nobody who listens, no answer in time, or one that makes no sense.
    pub fn read(socket: &Path, patience: Duration) -> Result<Self> {
        let failed = |why: String| Error::Read { socket: socket.display().to_string(), why };
        let answer = ask(socket, patience).map_err(|error| failed(reason(&error, patience)))?;
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let body = match response.parse(&answer) {
            Ok(httparse::Status::Complete(head)) => &answer[head..],
            Ok(httparse::Status::Partial) => return Err(failed("the answer is cut off, or is none".to_owned())),
            Err(error) => return Err(failed(format!("what listens there does not speak HTTP ({error})"))),
        };
        if response.code != Some(200) {
            let (code, why) = (response.code.unwrap_or(0), response.reason.unwrap_or(""));
            return Err(failed(format!("what listens there has none: it answers {code} {why}")));
        }
        let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length != body.len()) {
            return Err(failed("the answer is cut off".to_owned()));
        }
        let snapshot: Self = serde_json::from_slice(body)
            .map_err(|error| failed(format!("the answer makes no sense as {FORMAT}: {error}")))?;
        match snapshot.format.as_str() {
            FORMAT => Ok(snapshot),
            other => Err(failed(format!("the answer is {other:?}, and this reads {FORMAT}"))),
        }
    }
}

/// The whole answer, head and all.
fn ask(socket: &Path, patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut stream = wholebar_core::listener::connect(socket, patience)?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(patience.max(Duration::from_millis(1))))?;
    stream.write_all(b"GET /json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut part = [0; 1 << 14];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(n) if answer.len() + n > LONGEST => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(n) => answer.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It went without having read all that it was asked: its answer is here all the same.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(answer),
            Err(error) => return Err(error),
        }
    }
}

fn reason(error: &io::Error, patience: Duration) -> String {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => {
            "there is no such socket: is the program running, and was it told to make one there?".to_owned()
        }
        Kind::ConnectionRefused => "nobody listens there: the program has ended".to_owned(),
        Kind::PermissionDenied => "this user may not connect to it (permission denied)".to_owned(),
        Kind::TimedOut | Kind::WouldBlock => format!("no answer came in {} s", patience.as_secs_f64()),
        Kind::FileTooLarge => format!("the answer has more than {} MiB", LONGEST >> 20),
        _ => error.to_string(),
    }
}
