//! HTTP/1.1 as far as one page needs it (RFC 9112): a request is read, answered, and its connection closed. This file does *not* know of devices.

use anyhow::{Context, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use wholebar::smoltcp::socket::tcp::{Socket, State};
use wholebar::smoltcp::time::{Duration, Instant};

/// The port that is listened on.
pub const PORT: u16 = 80;
/// Bytes of a request at most.
const REQUEST: usize = 8192;
/// A connection on which nothing moves for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is served: a file, or bytes that are made up, each of its offset.
pub struct Content {
    pub file: Option<File>,
    pub len: u64,
}

impl Content {
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        if let Some(file) = &self.file {
            return file.read_at(out, offset);
        }
        for (byte, i) in out.iter_mut().zip(0..) {
            let i = (offset as u32).wrapping_add(i);
            *byte = (i ^ i >> 8 ^ i >> 16 ^ i >> 24) as u8;
        }
        Ok(out.len())
    }
}

/// What is left of an answer: bytes of its header, then the content from `offset` to `end`.
struct Answer {
    head: Vec<u8>,
    offset: u64,
    end: u64,
}

impl Answer {
    /// The answer to a request, where `len` bytes are served; `None` while more of the request has to come.
    fn to(request: &[u8], len: u64) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        let too_long = ("431 Request Header Fields Too Large", "", 0);
        let (status, more, len) = match parsed.parse(request) {
            Ok(httparse::Status::Partial) if request.len() < REQUEST => return None,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => too_long,
            Ok(httparse::Status::Complete(head)) if head > REQUEST => too_long,
            Err(_) => ("400 Bad Request", "", 0),
            Ok(_) if !matches!(parsed.method, Some("GET" | "HEAD")) => {
                ("405 Method Not Allowed", "Allow: GET, HEAD\r\n", 0)
            }
            Ok(_) if parsed.path.and_then(|path| path.split('?').next()) != Some("/") => ("404 Not Found", "", 0),
            Ok(_) => ("200 OK", "Content-Type: application/octet-stream\r\n", len),
        };
        let head =
            format!("HTTP/1.1 {status}\r\n{more}Content-Length: {len}\r\nConnection: close\r\n\r\n").into_bytes();
        Some(Self { head, offset: 0, end: if parsed.method == Some("HEAD") { 0 } else { len } })
    }
}

/// What is known of a socket: it listens, or is a connection.
#[derive(Default)]
pub struct Connection {
    request: Vec<u8>,
    answer: Option<Answer>,
    /// Where it was when it was last seen to move, and when that was.
    moved: Option<((State, usize, usize, u64), Instant)>,
}

impl Connection {
    /// Does what can be done now.
    pub fn serve(&mut self, socket: &mut Socket, content: &Content, now: Instant) -> Result<()> {
        let done = self.answer.as_ref().map_or(0, |answer| answer.offset);
        let place = (socket.state(), self.request.len(), socket.send_queue(), done);
        match self.moved {
            Some((was, since)) if was == place && !socket.is_listening() => {
                if now - since > PATIENCE {
                    // It is told, and listens again the next time.
                    socket.abort();
                    return Ok(());
                }
            }
            _ => self.moved = Some((place, now)),
        }
        // Closed by this side, it would wait for late packets for 10 seconds; others need it.
        if !socket.is_open() || socket.state() == State::TimeWait {
            socket.abort();
            (self.request, self.answer) = (Vec::new(), None);
            return socket.listen(PORT).context("listening");
        }
        if self.answer.is_none() && socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), self.request.extend_from_slice(bytes)))?;
            self.answer = Answer::to(&self.request, content.len);
        } else if self.answer.is_none() && socket.state() == State::CloseWait {
            // It asked for nothing.
            socket.close();
        }
        while let Some(Answer { head, offset, end }) = &mut self.answer
            && socket.can_send()
        {
            if !head.is_empty() {
                let sent = socket.send_slice(head)?;
                head.drain(..sent);
            } else if offset == end {
                socket.close();
            } else {
                // Straight into the socket's buffer.
                let read = socket.send(|room| {
                    let most = room.len().min((*end - *offset).try_into().unwrap_or(usize::MAX));
                    let read = content.read(*offset, &mut room[..most]).unwrap_or(0);
                    (read, read)
                })?;
                *offset += read as u64;
                if read == 0 {
                    // What was promised is not there any more, and the client is to know that.
                    socket.abort();
                }
            }
        }
        Ok(())
    }
}
