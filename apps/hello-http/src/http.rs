//! Requests and their answers (RFC 9112): what is asked for by whom, in bytes. This file does *not* know of sockets.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a request at most.
const REQUEST: usize = 8192;

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
pub struct Answer {
    pub head: Vec<u8>,
    pub offset: u64,
    pub end: u64,
}

impl Answer {
    /// The answer to a request, where `len` bytes are served; `None` while more of the request has to come.
    pub fn to(request: &[u8], len: u64) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        let (status, more, len) = match parsed.parse(request) {
            Ok(httparse::Status::Partial) if request.len() < REQUEST => return None,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                ("431 Request Header Fields Too Large", "", 0)
            }
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
