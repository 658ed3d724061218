//! Copies between a namespace and a file: many commands in flight, the file in order.
//!
//! Chunks complete in any order and meet the file in theirs: a window of chunks holds those that came early. It does *not* check
//! that the range exists; whoever asks has done that.

use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar::block::{BlockQueue, Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};
use wholebar::mem::{Buf, Pool};

/// One copy between a namespace and a file.
pub struct Transfer<'a> {
    /// The queue, used for nothing else meanwhile.
    pub queue: &'a mut dyn BlockQueue,
    /// Buffers: how many there are is how many commands are in flight.
    pub pool: Pool,
    /// Bytes that a buffer holds: whole blocks.
    pub chunk: u64,
    /// The namespace.
    pub nsid: u32,
    /// Bytes of its blocks.
    pub block: u64,
    /// The first block.
    pub lba: u64,
    /// Ends it early.
    pub interrupted: &'a AtomicBool,
    /// Told how many bytes are done.
    pub progress: &'a mut dyn FnMut(u64),
    /// What a status is called.
    pub status_name: &'a dyn Fn(Status) -> String,
}

/// Chunks in flight or waiting for their turn: `None` until a chunk is here.
struct Window {
    first: u64,
    chunks: VecDeque<Option<Data>>,
    failed: Option<(u64, Status)>,
    /// Bytes that met the file.
    copied: u64,
}

impl Window {
    fn new() -> Self {
        Self { first: 0, chunks: VecDeque::new(), failed: None, copied: 0 }
    }

    fn next(&self) -> u64 {
        self.first + self.chunks.len() as u64
    }

    fn done(&mut self, completion: Completion) {
        if completion.status != Status::Ok {
            self.failed = self.failed.or(Some((completion.tag, completion.status)));
        }
        let at = completion.tag.checked_sub(self.first).and_then(|i| self.chunks.get_mut(i as usize));
        if let Some(chunk) = at {
            *chunk = Some(completion.data);
        }
    }

    /// The next chunk in order, if it is here.
    fn take(&mut self) -> Option<Data> {
        self.chunks.front().filter(|chunk| chunk.is_some())?;
        self.first += 1;
        self.chunks.pop_front().flatten()
    }
}

impl Transfer<'_> {
    /// Reads `bytes` (whole blocks) into `out`.
    ///
    /// # Errors
    /// The first command that failed, and what `out` says.
    pub fn read(mut self, bytes: u64, out: &mut dyn Write) -> Result<()> {
        let chunk = self.chunk;
        let (chunks, mut window) = (bytes.div_ceil(chunk), Window::new());
        while window.first < chunks {
            while window.next() < chunks {
                let len = chunk.min(bytes - window.next() * chunk);
                let Some(buf) = self.pool.get_len(len as u32) else { break };
                let lba = self.lba_of(window.next());
                self.submit(&mut window, Op::Read { lba }, Data::One(buf))?;
            }
            self.poll(&mut window)?;
            while let Some(data) = window.take() {
                for buf in data.bufs() {
                    out.write_all(buf.bytes()).context("cannot write the output")?;
                    window.copied += u64::from(buf.len());
                }
                (self.progress)(window.copied);
            }
        }
        out.flush().context("cannot write the output")
    }

    /// Writes all that `input` has, then flushes. Returns how many bytes of the namespace that is.
    ///
    /// The last block may be filled up with zeros (`pad`), or else be refused where `input` doesn't end with a block. `room` is what the
    /// namespace holds from the first block on.
    ///
    /// # Errors
    /// The first command that failed, what `input` says, and an input that is too long.
    pub fn write(mut self, input: &mut dyn Read, pad: bool, room: u64) -> Result<u64> {
        let (chunk, mut window) = (self.chunk, Window::new());
        let (mut read, mut ended) = (0, false);
        while !ended || !window.chunks.is_empty() {
            while !ended && let Some(buf) = self.pool.get_len(chunk as u32) {
                let (buf, len) = self.fill(buf, input, pad, read)?;
                ended = len < chunk;
                if len == 0 {
                    break;
                }
                if len > room - read {
                    bail!("the input is longer than the {room} bytes of room: {read} bytes of it were written");
                }
                let lba = self.lba_of(window.next());
                self.submit(&mut window, Op::Write { lba }, Data::One(buf))?;
                read += len;
            }
            self.poll(&mut window)?;
            while let Some(data) = window.take() {
                window.copied += data.len();
                (self.progress)(window.copied);
            }
        }
        self.submit(&mut window, Op::Flush, Data::None)?;
        while window.take().is_none() {
            self.poll(&mut window)?;
        }
        Ok(window.copied)
    }

    /// A chunk of the input, and how long it is: whole blocks.
    fn fill(&self, mut buf: Buf, input: &mut dyn Read, pad: bool, read: u64) -> Result<(Buf, u64)> {
        let mut len = 0;
        while len < buf.len() as usize {
            match input.read(&mut buf.bytes_mut()[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("cannot read the input"),
            }
        }
        let whole = len.next_multiple_of(self.block as usize);
        if whole > len && !pad {
            let (all, block) = (read + len as u64, self.block);
            bail!(
                "the input has {all} bytes, not a multiple of the namespace's {block}-byte blocks: --pad fills the last one up with zeros"
            );
        }
        buf.bytes_mut()[len..whole].fill(0);
        buf.set_len(whole as u32);
        Ok((buf, whole as u64))
    }

    fn lba_of(&self, chunk: u64) -> u64 {
        self.lba + chunk * (self.chunk / self.block)
    }

    /// Submits the window's next chunk.
    fn submit(&mut self, window: &mut Window, op: Op, data: Data) -> Result<()> {
        let mut req = Request { tag: window.next(), nsid: self.nsid, op, data, deadline: None };
        loop {
            match self.queue.submit(req) {
                Ok(()) => break,
                // A command that the driver splits takes more than one place.
                Err(Rejected { req: back, why: Reject::Full | Reject::Resetting }) => {
                    req = back;
                    self.poll(window)?;
                }
                Err(Rejected { why, .. }) => bail!("the queue did not take a command: {why}"),
            }
        }
        window.chunks.push_back(None);
        Ok(())
    }

    /// Rings, and polls until something is done.
    fn poll(&mut self, window: &mut Window) -> Result<()> {
        self.queue.ring();
        let mut idle = 0u32;
        while self.queue.poll(64, &mut |completion| window.done(completion)) == 0 && self.queue.in_flight() > 0 {
            idle += 1;
            // The device may be a process that wants this core.
            if idle.is_multiple_of(256) {
                std::thread::yield_now();
            }
            if idle.is_multiple_of(1 << 12) {
                match self.queue.state() {
                    QueueState::Failed(why) => bail!("the queue failed: {why}"),
                    QueueState::Gone => bail!("the device is gone"),
                    QueueState::Running | QueueState::Resetting => {}
                }
            }
        }
        if let Some((chunk, status)) = window.failed {
            bail!("the command at block {} failed: {}", self.lba_of(chunk), (self.status_name)(status));
        }
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted after {} bytes", window.copied);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar::measure::block::testing::{Mishap, Ram};
    use wholebar::mem::{Arena, ArenaOptions};

    const BLOCKS: usize = 101;

    /// A copy with buffers of four blocks, six at a time, beginning at block 1.
    fn on<T>(ram: &mut Ram, copy: impl FnOnce(Transfer<'_>) -> Result<T>) -> Result<T> {
        let arena = Arena::new(1 << 16, ArenaOptions::default())?;
        let pool = Pool::new(arena, 6, 2048, 4096)?;
        copy(Transfer {
            queue: ram,
            pool,
            chunk: 2048,
            nsid: 1,
            block: 512,
            lba: 1,
            interrupted: &AtomicBool::new(false),
            progress: &mut |_| {},
            status_name: &|status| format!("{status:?}"),
        })
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    #[test]
    fn what_is_written_is_read_in_order() {
        for bytes in [512, 2048, 2560, 100 * 512] {
            // A queue smaller than the window is full now and then.
            let mut ram = Ram::new(BLOCKS, 4, Mishap::None);
            let (input, mut output) = (content(bytes), Vec::new());
            let written = on(&mut ram, |t| t.write(&mut &input[..], false, 100 * 512)).unwrap();
            assert_eq!(written, bytes as u64);
            assert!(ram.flushed);
            on(&mut ram, |t| t.read(bytes as u64, &mut output)).unwrap();
            assert!(output == input, "{bytes} bytes");
            assert_eq!(ram.blocks[0], [0; 512], "before the first block");
        }
    }

    #[test]
    fn a_part_of_a_block_is_refused_or_padded() {
        let input = content(1000);
        let mut ram = Ram::new(BLOCKS, 8, Mishap::None);
        let refused = on(&mut ram, |t| t.write(&mut &input[..], false, 100 * 512)).unwrap_err();
        assert!(refused.to_string().contains("1000 bytes, not a multiple"), "{refused}");
        assert_eq!(on(&mut ram, |t| t.write(&mut &input[..], true, 100 * 512)).unwrap(), 1024);
        assert_eq!(ram.blocks[2][..488], input[512..]);
        assert_eq!(ram.blocks[2][488..], [0; 24]);
    }

    #[test]
    fn an_input_that_is_too_long_is_refused() {
        let input = content(8192);
        let mut ram = Ram::new(BLOCKS, 8, Mishap::None);
        let refused = on(&mut ram, |t| t.write(&mut &input[..], false, 4096)).unwrap_err();
        assert!(refused.to_string().contains("longer than the 4096 bytes"), "{refused}");
        assert_eq!(ram.blocks[9], [0; 512], "after the last block");
    }

    #[test]
    fn a_command_that_fails_ends_the_copy() {
        let mut ram = Ram::new(BLOCKS, 8, Mishap::Fail(3, 0x281));
        let failed = on(&mut ram, |t| t.read(100 * 512, &mut Vec::new())).unwrap_err();
        assert!(failed.to_string().contains("failed: Device(641)"), "{failed}");
        let mut ram = Ram::new(BLOCKS, 8, Mishap::Vanish(3));
        let failed = on(&mut ram, |t| t.read(100 * 512, &mut Vec::new())).unwrap_err();
        assert!(failed.to_string().contains("gone"), "{failed}");
    }

    #[test]
    fn an_output_that_fails_ends_the_copy() {
        let mut ram = Ram::new(BLOCKS, 8, Mishap::None);
        let failed = on(&mut ram, |t| t.read(100 * 512, &mut &mut [0; 3000][..])).unwrap_err();
        assert!(failed.to_string().contains("cannot write the output"), "{failed}");
    }
}
