//! Capture files: pcapng with times in nanoseconds, written by a library. This does *not* read any.

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgBlock};
use pcap_file::{DataLink, PcapError};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;
use wholebar_core::{Error, Result};

/// Which way a packet went, seen from the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It was received.
    In,
    /// It was sent.
    Out,
}

/// A file that packets are written to.
pub struct PcapNg {
    writer: PcapNgWriter<BufWriter<File>>,
    interfaces: u32,
}

impl PcapNg {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let what = || format!("{} cannot be written", path.display());
        File::create(path).and_then(Self::to).map_err(|cause| Error::Io { what: what(), cause })
    }

    /// Writes to a file, or a pipe, that is open.
    ///
    /// # Errors
    /// Those of write(2), for the file's header.
    pub fn to(file: File) -> io::Result<Self> {
        Ok(Self { writer: PcapNgWriter::new(BufWriter::new(file)).map_err(io_error)?, interfaces: 0 })
    }

    /// One more Ethernet interface; returns its number, counted from 0. Before its first packet.
    pub fn interface(&mut self, name: Option<&str>) -> io::Result<u32> {
        let mut options = vec![InterfaceDescriptionOption::IfTsResol(9)];
        options.extend(name.map(|name| InterfaceDescriptionOption::IfName(name.into())));
        let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options };
        self.put(&block.into_block())?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    /// Writes a packet of an interface; `time` is since the epoch.
    pub fn packet(
        &mut self,
        interface: u32,
        time: Duration,
        direction: Option<Direction>,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.cut_packet(interface, time, direction, bytes, bytes.len() as u32)
    }

    /// Writes a packet as [`packet`](Self::packet) does, of which only its first bytes are kept; it had `whole` bytes.
    pub fn cut_packet(
        &mut self,
        interface: u32,
        time: Duration,
        direction: Option<Direction>,
        bytes: &[u8],
        whole: u32,
    ) -> io::Result<()> {
        // The lowest two bits of epb_flags (draft-ietf-opsawg-pcapng, 4.3.1).
        let flags = direction.map(|d| EnhancedPacketOption::Flags(if d == Direction::In { 1 } else { 2 }));
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: time,
            original_len: whole,
            data: bytes.into(),
            options: flags.into_iter().collect(),
        };
        self.put(&block.into_block())
    }

    /// Everything written so far goes to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    fn put(&mut self, block: &Block<'_>) -> io::Result<()> {
        self.writer.write_block(block).map(drop).map_err(io_error)
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
