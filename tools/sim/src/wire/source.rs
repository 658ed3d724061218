//! Packets of a capture, pcap or pcapng, one after the other. It does *not* know of wires, nor of files: whatever can be read will do.

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};
use std::io::Read;

/// A capture that is read.
pub enum Source<R: Read> {
    /// A pcap.
    Pcap(PcapReader<R>),
    /// A pcapng, and the limit that the section's first interface has for packets; 0 for none.
    Ng(PcapNgReader<R>, Option<u32>),
}

/// The block type of a pcapng section header, which reads the same both ways.
const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

impl<R: Read> Source<R> {
    /// Begins to read a capture whose first bytes are `magic`; they are still to come.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn start(reader: R, magic: [u8; 4]) -> Result<Self, String> {
        let failed = |e: PcapError| format!("it is neither pcap nor pcapng: {e}");
        if magic == SECTION {
            return PcapNgReader::new(reader).map(|reader| Self::Ng(reader, None)).map_err(failed);
        }
        let reader = PcapReader::new(reader).map_err(failed)?;
        if reader.header().datalink != DataLink::ETHERNET {
            return Err("its packets are not Ethernet's".to_owned());
        }
        Ok(Self::Pcap(reader))
    }

    /// Reads to the end, to see that all of it makes sense, and no packet is above `most` bytes.
    ///
    /// # Errors
    /// Where it doesn't.
    pub fn check(mut self, most: usize) -> Result<(), String> {
        let mut count = 0u64;
        while let Some(length) = self.next(<[u8]>::len) {
            let length =
                length.map_err(|e| format!("behind its packet {count} it is cut off, or makes no sense: {e}"))?;
            count += 1;
            if length > most {
                return Err(format!("its packet {count} has {length} bytes"));
            }
        }
        Ok(())
    }

    /// Does something with the next packet.
    pub fn next<T>(&mut self, each: impl FnOnce(&[u8]) -> T) -> Option<Result<T, PcapError>> {
        match self {
            Self::Pcap(reader) => Some(reader.next_packet()?.map(|packet| each(&packet.data))),
            Self::Ng(reader, snaplen) => loop {
                match reader.next_block()? {
                    Ok(Block::EnhancedPacket(packet)) => return Some(Ok(each(&packet.data))),
                    Ok(Block::Packet(packet)) => return Some(Ok(each(&packet.data))),
                    Ok(Block::SimplePacket(packet)) => {
                        let kept = simple(&packet.data, packet.original_len, *snaplen);
                        return Some(kept.map(each));
                    }
                    Ok(Block::SectionHeader(_)) => *snaplen = None,
                    Ok(Block::InterfaceDescription(i)) if i.linktype != DataLink::ETHERNET => {
                        return Some(Err(PcapError::InvalidField("an interface that is not Ethernet")));
                    }
                    Ok(Block::InterfaceDescription(i)) => _ = snaplen.get_or_insert(i.snaplen),
                    Ok(_) => {}
                    Err(error) => return Some(Err(error)),
                }
            },
        }
    }
}

/// What a simple packet holds: it does not say how much of its data is padding (draft-ietf-opsawg-pcapng, 4.4).
fn simple(data: &[u8], whole: u32, snaplen: Option<u32>) -> Result<&[u8], PcapError> {
    let snaplen = snaplen.ok_or(PcapError::InvalidField("a simple packet without an interface"))?;
    let kept = if snaplen == 0 { whole } else { whole.min(snaplen) };
    data.get(..kept as usize).ok_or(PcapError::InvalidField("a simple packet longer than its block"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = ((12 + body.len().next_multiple_of(4)) as u32).to_le_bytes();
        let mut out = [&kind.to_le_bytes(), &len, body].concat();
        out.resize(out.len().next_multiple_of(4), 0xee);
        out.extend(len);
        out
    }

    fn section() -> Vec<u8> {
        block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat())
    }

    fn interface(snaplen: u32) -> Vec<u8> {
        block(1, &[&[1, 0, 0, 0][..], &snaplen.to_le_bytes()].concat())
    }

    fn packet(whole: u32, bytes: &[u8]) -> Vec<u8> {
        block(3, &[&whole.to_le_bytes()[..], bytes].concat())
    }

    fn read(file: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        let file = file.concat();
        let mut source = Source::start(&file[..], SECTION)?;
        let mut packets = Vec::new();
        while let Some(packet) = source.next(<[u8]>::to_vec) {
            packets.push(packet.map_err(|e| e.to_string())?);
        }
        Ok(packets)
    }

    #[test]
    fn simple_packets_come_without_their_padding() {
        let file = [
            section(),
            interface(0),
            // Simple packets are the first interface's.
            interface(20),
            packet(61, &[1; 61]),
            packet(64, &[2; 64]),
            section(),
            interface(62),
            packet(63, &[3; 62]),
            packet(17, &[4; 17]),
        ];
        assert_eq!(read(&file).unwrap(), [vec![1; 61], vec![2; 64], vec![3; 62], vec![4; 17]]);
    }

    #[test]
    fn simple_packets_that_cannot_be_are_errors() {
        let says = |file: &[Vec<u8>]| read(file).unwrap_err();
        let long = says(&[section(), interface(0), packet(65, &[1; 64])]);
        assert!(long.contains("longer than its block"), "{long}");
        let stray = says(&[section(), interface(0), section(), packet(60, &[1; 60])]);
        assert!(stray.contains("without an interface"), "{stray}");
    }
}
