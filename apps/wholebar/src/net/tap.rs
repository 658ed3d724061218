//! Received packets, written to a capture file as they come: by the lane that receives them, so that none is missing unless the device
//! drops it. That takes system calls.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use wholebar::capture::PcapNg;
use wholebar::mem::Buf;
use wholebar::net::Count;

/// What was written, for all to see.
#[derive(Default)]
pub struct Written {
    /// Packets.
    pub packets: Count,
    broken: AtomicBool,
    error: Mutex<Option<io::Error>>,
}

impl Written {
    /// Whether nothing more can be written.
    pub fn is_broken(&self) -> bool {
        // Relaxed: the error itself is behind a lock.
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether all of it could be written. That nobody reads standard output any more is no failure.
    ///
    /// # Errors
    /// What the system said, from a tap that was dropped.
    pub fn check(&self, name: &str) -> Result<()> {
        match self.error.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(error) if !(is_output(name) && error.kind() == ErrorKind::BrokenPipe) => {
                Err(error).with_context(|| format!("cannot write {name}"))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a file's name means standard output.
pub fn is_output(name: &str) -> bool {
    name == "-"
}

/// A capture file that is being written.
pub struct Tap {
    file: PcapNg,
    snaplen: usize,
    /// A packet that is in several buffers.
    whole: Vec<u8>,
    /// Something is not in the file yet.
    dirty: bool,
    written: Arc<Written>,
}

impl Tap {
    /// Makes a file, or writes to standard output for `-`. Of each packet, at most `snaplen` bytes are kept.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn create(name: &str, interface: &str, snaplen: Option<u32>, written: Arc<Written>) -> Result<Self> {
        let open = || {
            let file = match is_output(name) {
                true => File::from(io::stdout().as_fd().try_clone_to_owned()?),
                false => File::create(Path::new(name))?,
            };
            let mut file = PcapNg::to(file)?;
            file.interface(Some(interface))?;
            file.flush()?;
            Ok::<_, io::Error>(file)
        };
        let file = open().with_context(|| format!("cannot write {name}"))?;
        let snaplen = snaplen.map_or(usize::MAX, |snaplen| snaplen as usize);
        Ok(Self { file, snaplen, whole: Vec::new(), dirty: false, written })
    }

    /// Writes packets.
    pub fn write(&mut self, packets: &[Buf]) {
        if self.written.is_broken() {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for packet in packets {
            let len = packet.packet_len();
            let bytes = if packet.next().is_none() {
                packet.bytes()
            } else {
                self.whole.clear();
                packet.segments().for_each(|segment| self.whole.extend_from_slice(segment.bytes()));
                &self.whole
            };
            let kept = &bytes[..bytes.len().min(self.snaplen)];
            if let Err(error) = self.file.cut_packet(0, now, None, kept, len as u32) {
                return self.fail(error);
            }
            self.written.packets.add(1);
            self.dirty = true;
        }
    }

    /// Nothing comes now: what came goes to the file.
    pub fn idle(&mut self) {
        if std::mem::take(&mut self.dirty)
            && let Err(error) = self.file.flush()
        {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: io::Error) {
        self.written.error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        self.written.broken.store(true, Ordering::Relaxed);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.idle();
    }
}
