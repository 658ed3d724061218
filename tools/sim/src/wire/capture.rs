//! Capture files as a wire: what a port sends is written to one, what it receives is read from another. Nanosecond pcapng is written, by
//! a library; pcap and pcapng are read, as fast as the port takes packets: their times are not looked at.

use super::Frame;
use super::offload::{Accepts, Fit, cut, fit};
use super::source::Source;
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use wholebar::net::PcapNg;

/// Files that stand for the rest of the world.
pub(super) struct Capture {
    from: Option<Source<BufReader<File>>>,
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
            let failed = |cause| wholebar::Error::Io { what: format!("{} cannot be written", path.display()), cause };
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
        match source.next(|packet| {
            frame.resize(packet.len());
            frame.packet_mut().copy_from_slice(packet);
            frame.header().fill(0);
        }) {
            Some(Ok(())) => true,
            ended => {
                if let Some(Err(error)) = ended {
                    tracing::warn!(%error, "the capture file changed, and makes no sense any more");
                }
                self.from = None;
                false
            }
        }
    }
}

/// Opens a file, after reading it to its end once to see that all of it makes sense.
fn open(path: &Path) -> Result<Source<BufReader<File>>, String> {
    let failed = |e: std::io::Error| format!("it cannot be read: {e}");
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|_| "it is empty, or cut off".to_owned())?;
    let mut again = || {
        file.rewind().map_err(failed)?;
        Source::start(BufReader::new(file.try_clone().map_err(failed)?), magic)
    };
    again()?.check(super::LONGEST)?;
    again()
}
