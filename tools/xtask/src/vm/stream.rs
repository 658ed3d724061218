//! What comes out of a guest: one byte stream for standard output and one for standard error, each through a serial port of its own,
//! with marks of our init in between. Kernel messages go to the console, which is another port.
//!
//! A mark is a NUL, this run's token, a space, a word, and a newline: `begin` when the command starts, `exit CODE` when it has ended.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};

/// A token that output does not hold by chance.
pub fn new_token() -> String {
    format!("wholebar-{:016x}", RandomState::new().build_hasher().finish())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Begin,
    /// The command's exit code as a shell sees it: 128 and the signal's number for one that was killed.
    Exit(u8),
}

/// Takes the marks out of a stream.
pub struct Decoder {
    prefix: Vec<u8>,
    /// Bytes that may yet turn out to be a mark.
    held: Vec<u8>,
}

impl Decoder {
    pub fn new(token: &str) -> Decoder {
        Decoder { prefix: format!("\0{token} ").into_bytes(), held: Vec::new() }
    }

    /// Writes to `out` what is not a mark, and returns the marks seen.
    pub fn feed(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<Vec<Mark>> {
        self.held.extend_from_slice(bytes);
        let mut marks = Vec::new();
        loop {
            let text = self.mark_or_its_beginning();
            out.write_all(&self.held[..text])?;
            self.held.drain(..text);
            let Some(end) = self.held.iter().position(|&byte| byte == b'\n') else { break };
            if !self.held.starts_with(&self.prefix) {
                break;
            }
            match parse(&self.held[self.prefix.len()..end]) {
                Some(mark) => marks.push(mark),
                // Never written by our init: it is text after all.
                None => out.write_all(&self.held[..=end])?,
            }
            self.held.drain(..=end);
        }
        out.flush()?;
        Ok(marks)
    }

    /// Where the first mark, or what may become one, begins; the end if there is none.
    fn mark_or_its_beginning(&self) -> usize {
        (0..self.held.len())
            .find(|&at| {
                let rest = &self.held[at..];
                let common = rest.len().min(self.prefix.len());
                rest[..common] == self.prefix[..common]
            })
            .unwrap_or(self.held.len())
    }
}

fn parse(mark: &[u8]) -> Option<Mark> {
    let mark = std::str::from_utf8(mark).ok()?;
    match mark.strip_prefix("exit ") {
        Some(code) => code.parse().ok().map(Mark::Exit),
        None => (mark == "begin").then_some(Mark::Begin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `stream` in pieces of `size` bytes.
    fn decode(stream: &[u8], size: usize) -> (Vec<u8>, Vec<Mark>) {
        let mut decoder = Decoder::new("T0");
        let (mut out, mut marks) = (Vec::new(), Vec::new());
        for piece in stream.chunks(size) {
            marks.extend(decoder.feed(piece, &mut out).unwrap());
        }
        (out, marks)
    }

    #[test]
    fn marks_are_found_however_the_stream_is_cut() {
        let stream = b"\0T0 begin\nbinary \0\0T0\xff\n\0T0 no mark\nlast line without newline\0T0 exit 139\n";
        for size in 1..=stream.len() {
            let (out, marks) = decode(stream, size);
            assert_eq!(out, b"binary \0\0T0\xff\n\0T0 no mark\nlast line without newline", "pieces of {size}");
            assert_eq!(marks, [Mark::Begin, Mark::Exit(139)]);
        }
    }

    #[test]
    fn text_is_not_held_back() {
        let (out, marks) = decode(b"password: ", 64);
        assert_eq!(out, b"password: ");
        assert_eq!(marks, []);
    }

    #[test]
    fn codes_that_no_process_has_are_text() {
        for code in ["256", "-1", "", "1 2"] {
            let stream = format!("\0T0 exit {code}\n");
            assert_eq!(decode(stream.as_bytes(), 3), (stream.into_bytes(), vec![]));
        }
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(new_token(), new_token());
    }
}
