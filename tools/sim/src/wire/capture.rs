//! Capture files as a wire: what a port sends is written to one, what it receives is read from another. Nanosecond pcapng is written, by
//! a library; pcap and pcapng are read, as fast as the port takes packets: their times are not looked at.

use super::Frame;
use super::offload::{Accepts, Fit, cut, fit};
use crate::{Error, Result};
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use wholebar::net::PcapNg;

/// Files that stand for the rest of the world.
pub(super) struct Capture {
    from: Option<Source>,
    to: Option<PcapNg>,
    /// Something is not in the file yet.
    dirty: bool,
    /// A driver is there. What nobody would receive stays in the file.
    running: bool,
    /// Scratch: a segment.
    segment: Vec<u8>,
}

/// A file that is read.
enum Source {
    Pcap(PcapReader<BufReader<File>>),
    Ng(PcapNgReader<BufReader<File>>),
}

impl Capture {
    /// Opens `from`, which is read to its end once to see that all of it makes sense, and makes `to`.
    pub(super) fn open(from: Option<&Path>, to: Option<&Path>) -> Result<Self> {
        let from = from.map(|path| Source::open(path).map_err(|why| Error::Capture { path: path.to_owned(), why }));
        let make = |path: &Path| -> Result<PcapNg> {
            let mut file = PcapNg::create(path)?;
            let failed = |source| wholebar::Error::Io { what: format!("{} cannot be written", path.display()), source };
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

impl Source {
    fn open(path: &Path) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("it cannot be read: {e}");
        let mut file = File::open(path).map_err(failed)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).map_err(|_| "it is empty, or cut off".to_owned())?;
        let mut again = || {
            file.rewind().map_err(failed)?;
            Self::start(BufReader::new(file.try_clone().map_err(failed)?), magic)
        };
        let (mut check, mut count) = (again()?, 0u64);
        if let Self::Pcap(reader) = &check
            && reader.header().datalink != DataLink::ETHERNET
        {
            return Err("its packets are not Ethernet's".to_owned());
        }
        while let Some(length) = check.next(<[u8]>::len) {
            let length =
                length.map_err(|e| format!("behind its packet {count} it is cut off, or makes no sense: {e}"))?;
            if length > super::LONGEST {
                return Err(format!("its packet {} has {length} bytes", count + 1));
            }
            count += 1;
        }
        again()
    }

    fn start(reader: BufReader<File>, magic: [u8; 4]) -> Result<Self, String> {
        let failed = |e: PcapError| format!("it is neither pcap nor pcapng: {e}");
        // The block type of a pcapng section header reads the same both ways.
        if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
            PcapNgReader::new(reader).map(Self::Ng).map_err(failed)
        } else {
            PcapReader::new(reader).map(Self::Pcap).map_err(failed)
        }
    }

    /// Does something with the next packet.
    fn next<R>(&mut self, each: impl FnOnce(&[u8]) -> R) -> Option<Result<R, PcapError>> {
        match self {
            Self::Pcap(reader) => Some(reader.next_packet()?.map(|packet| each(&packet.data))),
            Self::Ng(reader) => loop {
                match reader.next_block()? {
                    Ok(Block::EnhancedPacket(packet)) => return Some(Ok(each(&packet.data))),
                    Ok(Block::SimplePacket(packet)) => return Some(Ok(each(&packet.data))),
                    Ok(Block::Packet(packet)) => return Some(Ok(each(&packet.data))),
                    Ok(Block::InterfaceDescription(i)) if i.linktype != DataLink::ETHERNET => {
                        return Some(Err(PcapError::InvalidField("an interface that is not Ethernet")));
                    }
                    Ok(_) => {}
                    Err(error) => return Some(Err(error)),
                }
            },
        }
    }
}
