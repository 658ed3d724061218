//! A capture file, read into memory to be sent again: pcap or pcapng, with times of any resolution. All of it is read and looked at before
//! anything is sent: what cannot be sent as it was is refused, and the packet named.

use anyhow::{Context, Result, anyhow, bail};
use std::fs::File;
use std::io::{self, Read};
use wholebar::sim::pcap::{ETHERNET, Packet, Problem, Reader};

/// An Ethernet header: the least a packet is.
const LEAST: u64 = 14;

/// Packets, one after the other.
pub struct Capture {
    /// The file.
    name: String,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// When the last packet was sent, in nanoseconds after the first.
    span: u64,
}

/// One packet.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    len: usize,
    /// Nanoseconds after the first.
    at: u64,
}

impl Capture {
    /// Reads a file, or standard input for `-`.
    ///
    /// # Errors
    /// Where it cannot be read, is no capture of an Ethernet, is cut off, or has packets that were.
    pub fn read(name: &str) -> Result<Self> {
        match name {
            "-" => Self::read_from(name, io::stdin()),
            name => Self::read_from(name, File::open(name).with_context(|| format!("cannot open {name}"))?),
        }
    }

    /// The same of what is open already; `name` is for messages.
    ///
    /// # Errors
    /// As above.
    pub fn read_from(name: &str, input: impl Read + Send) -> Result<Self> {
        let mut reader = Reader::new(input).map_err(|problem| match problem {
            Problem::Empty => anyhow!("{name} is empty"),
            Problem::Neither => anyhow!("{name} is neither pcap nor pcapng"),
            Problem::NoHeader | Problem::CutOff => anyhow!("{name} is cut off in its header"),
            Problem::Io(e) => anyhow!(e).context(format!("cannot read {name}")),
            Problem::Nonsense(what) => anyhow!("the header of {name} makes no sense: {what}"),
        })?;
        let mut this = Self { name: name.to_owned(), bytes: Vec::new(), entries: Vec::new(), span: 0 };
        while let Some(packet) = reader.next().map_err(|problem| this.at_packet(problem))? {
            this.add(&packet)?;
        }
        let Some(first) = this.entries.first().map(|entry| entry.at) else { bail!("{name} has no packets") };
        this.entries.iter_mut().for_each(|entry| entry.at = entry.at.saturating_sub(first));
        this.span = this.entries.iter().map(|entry| entry.at).max().unwrap_or(0);
        Ok(this)
    }

    fn add(&mut self, packet: &Packet<'_>) -> Result<()> {
        let Packet { link, time, whole, data } = *packet;
        let (name, number, len) = (&self.name, self.number(), data.len() as u64);
        if link != ETHERNET {
            bail!("{name}: packet {number} is not of an Ethernet, but of link type {link}");
        }
        // One that has no time comes with the one before.
        let at = time.unwrap_or_else(|| self.entries.last().map_or(0, |entry| entry.at));
        if len < u64::from(whole) {
            bail!(
                "{name}: packet {number} was cut to {len} of its {whole} bytes when it was captured (its snaplen), and cannot be sent as it was"
            );
        }
        if len < LEAST {
            bail!("{name}: packet {number} has {len} bytes, fewer than an Ethernet header");
        }
        self.entries.push(Entry { start: self.bytes.len(), len: data.len(), at });
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// The next packet's number, from 1 as other tools count.
    fn number(&self) -> usize {
        self.entries.len() + 1
    }

    /// What is wrong behind the packets so far.
    fn at_packet(&self, problem: Problem) -> anyhow::Error {
        let (name, number) = (&self.name, self.number());
        match problem {
            Problem::Nonsense(what) => anyhow!("{name} makes no sense at packet {number}: {what}"),
            Problem::Io(e) => anyhow!(e).context(format!("cannot read {name}")),
            _ => anyhow!("{name} is cut off in packet {number}"),
        }
    }

    /// Says whether each packet has at most `most` bytes; if not, which has more.
    ///
    /// # Errors
    /// The packet's number and length.
    pub fn check_lengths(&self, most: usize, mtu: u16) -> Result<()> {
        match self.entries.iter().position(|entry| entry.len > most) {
            None => Ok(()),
            Some(i) => bail!(
                "{}: packet {} has {} bytes, and an MTU of {mtu} allows {most}: see --mtu",
                self.name,
                i + 1,
                self.entries[i].len
            ),
        }
    }

    /// How many packets there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// From the first packet to the last, in nanoseconds.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// How much later the first packet comes once more after the last: the span, and a gap of average length.
    pub fn lap(&self) -> u64 {
        self.span() + self.span() / (self.count() as u64 - 1).max(1)
    }

    /// A packet, from 0, and when it was sent, in nanoseconds after the first.
    #[inline]
    pub fn packet(&self, index: usize) -> (u64, &[u8]) {
        let Entry { start, len, at } = self.entries[index];
        (at, &self.bytes[start..start + len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Capture, String> {
        Capture::read_from("FILE", bytes).map_err(|e| e.to_string())
    }

    fn error(bytes: &[u8]) -> String {
        read(bytes).err().unwrap()
    }

    /// A pcap of these packets: seconds, fractions, length that is said, bytes.
    fn pcap(magic: u32, link: u32, packets: &[(u32, u32, u32, &[u8])]) -> Vec<u8> {
        let header = [magic, 4 << 16 | 2, 0, 0, 65_535, link];
        let mut out: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        for (seconds, fraction, whole, bytes) in packets {
            out.extend([*seconds, *fraction, bytes.len() as u32, *whole].iter().flat_map(|word| word.to_le_bytes()));
            out.extend_from_slice(bytes);
        }
        out
    }

    const MICRO: u32 = 0xa1b2_c3d4;
    const NANO: u32 = 0xa1b2_3c4d;

    #[test]
    fn times_are_those_of_the_file() {
        for (magic, second) in [(MICRO, 1_000_007_000), (NANO, 1_000_000_007)] {
            let file = pcap(magic, 1, &[(5, 0, 60, &[1; 60]), (6, 7, 14, &[2; 14]), (4, 0, 9000, &[3; 9000])]);
            let capture = read(&file).unwrap();
            assert_eq!((capture.count(), capture.span()), (3, second));
            assert_eq!(capture.packet(1), (second, &[2; 14][..]));
            assert_eq!(capture.packet(2), (0, &[3; 9000][..]), "before the first is at once");
            assert!(capture.check_lengths(9000, 8986).is_ok());
            let long = capture.check_lengths(1514, 1500).unwrap_err().to_string();
            assert!(long.contains("packet 3 has 9000 bytes"), "{long}");
        }
    }

    /// A pcapng block.
    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = (12 + body.len().next_multiple_of(4)) as u32;
        let mut out = [kind.to_le_bytes(), len.to_le_bytes()].concat();
        out.extend_from_slice(body);
        out.resize(len as usize - 4, 0);
        out.extend(len.to_le_bytes());
        out
    }

    fn section() -> Vec<u8> {
        block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat())
    }

    /// An interface: its link type, and its if_tsresol.
    fn interface(link: u16, resolution: Option<u8>) -> Vec<u8> {
        let option = resolution.map_or(vec![], |r| vec![9, 0, 1, 0, r, 0, 0, 0, 0, 0, 0, 0]);
        block(1, &[&link.to_le_bytes()[..], &[0; 6], &option].concat())
    }

    fn enhanced(interface: u32, time: u64, whole: u32, bytes: &[u8]) -> Vec<u8> {
        let words = [interface, (time >> 32) as u32, time as u32, bytes.len() as u32, whole];
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        body.extend_from_slice(bytes);
        block(6, &body)
    }

    #[test]
    fn units_are_those_of_the_interface() {
        let file = [
            section(),
            interface(1, None),
            interface(1, Some(9)),
            interface(1, Some(0x8a)),
            enhanced(0, 1_000_000, 61, &[1; 61]),
            enhanced(1, 1_000_000_005, 60, &[2; 60]),
            // 2^-10 s.
            enhanced(2, 1025, 62, &[3; 62]),
            // A simple packet: padded, and without a time.
            block(3, &[&63u32.to_le_bytes()[..], &[4; 63]].concat()),
        ];
        let capture = read(&file.concat()).unwrap();
        let at: Vec<_> = (0..4).map(|i| (capture.packet(i).0, capture.packet(i).1.len())).collect();
        assert_eq!(at, [(0, 61), (5, 60), (976_562, 62), (976_562, 63)]);
        assert_eq!(capture.packet(3).1, [4; 63]);
    }

    /// Whatever bytes are changed or missing: what is read is what the file has room for, or there is an error.
    #[test]
    fn damaged_files_are_errors_at_worst() {
        let packets = [(1, 2, 60, &[1; 60][..]), (3, 4, 1514, &[2; 1514]), (5, 6, 14, &[3; 14])];
        let ng = [
            section(),
            interface(1, Some(9)),
            enhanced(0, 7, 60, &[1; 60]),
            section(),
            interface(1, None),
            block(2, &[&[0, 0, 0, 0], &[0; 8][..], &60u32.to_le_bytes(), &60u32.to_le_bytes(), &[5; 60]].concat()),
            block(3, &[&63u32.to_le_bytes()[..], &[4; 63]].concat()),
        ];
        let mut chance = fastrand::Rng::with_seed(5);
        for good in [pcap(MICRO, 1, &packets), pcap(NANO, 1, &packets), ng.concat()] {
            for _ in 0..400 {
                let mut bad = good.clone();
                for _ in 0..chance.usize(1..4) {
                    let at = chance.usize(..bad.len());
                    bad[at] = [0, 0xff, bad[at] ^ 1 << chance.u8(..8), chance.u8(..)][chance.usize(..4)];
                }
                bad.truncate(if chance.bool() { bad.len() } else { chance.usize(..bad.len()) });
                if let Ok(capture) = read(&bad) {
                    let all: usize = (0..capture.count()).map(|i| capture.packet(i).1.len()).sum();
                    assert!(all <= bad.len());
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_as_it_was_is_refused() {
        let two = pcap(MICRO, 1, &[(0, 0, 60, &[1; 60]), (0, 0, 60, &[1; 60])]);
        for (bytes, says) in [
            (vec![], "FILE is empty"),
            (b"hello, this is text".to_vec(), "FILE is neither pcap nor pcapng"),
            (b"abc".to_vec(), "FILE is neither pcap nor pcapng"),
            (two[..20].to_vec(), "FILE is cut off in its header"),
            (section()[..20].to_vec(), "FILE is cut off in its header"),
            (two[..24].to_vec(), "FILE has no packets"),
            (two[..two.len() - 1].to_vec(), "FILE is cut off in packet 2"),
            (two[..30].to_vec(), "FILE is cut off in packet 1"),
            (pcap(MICRO, 113, &[(0, 0, 60, &[1; 60])]), "FILE: packet 1 is not of an Ethernet, but of link type 113"),
            (
                pcap(MICRO, 1, &[(0, 0, 60, &[1; 60]), (0, 0, 1514, &[1; 96])]),
                "FILE: packet 2 was cut to 96 of its 1514 bytes when it was captured (its snaplen), and cannot be sent as it was",
            ),
            (pcap(MICRO, 1, &[(0, 0, 13, &[1; 13])]), "FILE: packet 1 has 13 bytes, fewer than an Ethernet header"),
            ([section(), interface(1, None)].concat(), "FILE has no packets"),
            (
                // Of a simple packet, what fills its block up is no part.
                [section(), block(1, &[1, 0, 0, 0, 62, 0, 0, 0]), block(3, &[&[63, 0, 0, 0][..], &[4; 62]].concat())]
                    .concat(),
                "FILE: packet 1 was cut to 62 of its 63 bytes when it was captured (its snaplen), and cannot be sent as it was",
            ),
            (
                [section(), enhanced(0, 0, 60, &[1; 60])].concat(),
                "FILE makes no sense at packet 1: a packet of interface 0, which there isn't",
            ),
            (
                [section(), interface(1, None), enhanced(0, 0, 60, &[1; 60])[..40].to_vec()].concat(),
                "FILE is cut off in packet 1",
            ),
        ] {
            assert_eq!(error(&bytes), says);
        }
        let text = error(&[section(), interface(1, None), vec![7; 40]].concat());
        assert!(text.starts_with("FILE makes no sense at packet 1") || text.contains("cut off"), "{text}");
        assert!(Capture::read("/no/such/file").err().unwrap().to_string().contains("/no/such/file"));
    }
}
