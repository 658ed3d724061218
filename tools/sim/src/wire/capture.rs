//! Capture files as a wire: what a port sends is written to one, what it receives is read from another. Nanosecond pcapng is written, by
//! a library; pcap and pcapng are read, as fast as the port takes packets: their times are not looked at.

use super::Frame;
use super::offload::{Accepts, Fit, cut, fit};
use crate::pcap::{ETHERNET, Reader};
use crate::{Error, Result};
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use wholebar_capture::PcapNg;

/// Files that stand for the rest of the world.
pub(super) struct Capture {
    from: Option<Reader<'static>>,
    to: Option<PcapNg>,
    /// Something is not in the file yet.
    dirty: bool,
    /// A driver is there. What nobody would receive stays in the file.
    running: bool,
    /// Scratch: a segment.
    segment: Vec<u8>,
}

impl Capture {
    /// Opens `from`, which is read to its end once to see that all of it makes sense, and makes `to`.
    pub(super) fn open(from: Option<&Path>, to: Option<&Path>) -> Result<Self> {
        let from = from.map(|path| open(path).map_err(|why| Error::Capture { path: path.to_owned(), why }));
        let make = |path: &Path| -> Result<PcapNg> {
            let mut file = PcapNg::create(path)?;
            let failed =
                |cause| wholebar_core::Error::Io { what: format!("{} cannot be written", path.display()), cause };
            file.interface(None).map_err(failed)?;
            Ok(file)
        };
        let to = to.map(make);
        Ok(Self { from: from.transpose()?, to: to.transpose()?, dirty: false, running: false, segment: Vec::new() })
    }

    /// Writes packets; returns how many were lost.
    pub(super) fn send(&mut self, frames: &mut [Frame]) -> u64 {
        let Self { to: Some(writer), dirty, segment, .. } = self else { return 0 };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut lost = 0;
        for frame in frames {
            let done = match fit(frame, Accepts::default()) {
                Ok(Fit::Fits) => writer.packet(0, now, None, frame.packet()).is_ok(),
                Ok(Fit::Cut) => {
                    let each = |len, fill: &mut dyn FnMut(&mut [u8])| {
                        segment.resize(len, 0);
                        fill(segment);
                        writer.packet(0, now, None, segment)
                    };
                    matches!(cut(frame.packet(), &frame.offload(), each), Ok(Ok(())))
                }
                Err(_) => false,
            };
            *dirty = true;
            if !done {
                lost += 1;
            }
        }
        lost
    }

    /// Nothing is sent now: what was, goes to the file.
    pub(super) fn idle(&mut self) {
        if std::mem::take(&mut self.dirty)
            && let Some(writer) = &mut self.to
            && let Err(error) = writer.flush()
        {
            tracing::warn!(%error, "the capture file could not be written");
        }
    }

    pub(super) fn run(&mut self, on: bool) {
        self.running = on;
    }

    /// The next packet of the file, into `frame`; none while no driver is there.
    pub(super) fn receive(&mut self, frame: &mut Frame) -> bool {
        if !self.running {
            return false;
        }
        let Some(source) = &mut self.from else { return false };
        match source.next() {
            Ok(Some(packet)) => {
                frame.resize(packet.data.len());
                frame.packet_mut().copy_from_slice(packet.data);
                frame.header().fill(0);
                return true;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the capture file changed, and cannot be read any more"),
        }
        self.from = None;
        false
    }
}

/// Opens a file, after reading it to its end once to see that all of it makes sense.
fn open(path: &Path) -> Result<Reader<'static>, String> {
    let again = || {
        let file = File::open(path).map_err(|e| format!("it cannot be read: {e}"))?;
        Reader::new(file).map_err(|e| e.to_string())
    };
    let (mut reader, mut count) = (again()?, 0u64);
    while let Some(packet) = reader.next().map_err(|e| format!("behind its packet {count}: {e}"))? {
        count += 1;
        let length = packet.data.len();
        if packet.link != ETHERNET {
            return Err(format!("its packet {count} is not of an Ethernet, but of link type {}", packet.link));
        }
        if length > super::LONGEST {
            return Err(format!("its packet {count} has {length} bytes, above {}", super::LONGEST));
        }
    }
    again()
}
