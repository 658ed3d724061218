//! Reads captures, packet by packet: pcap and pcapng (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng), plain or compressed by gzip, known by how they begin.
//!
//! Whatever tools write is read, as long as it says where packets are: blocks and options that say nothing of that are passed over unread. It does *not*
//! write captures, look into packets, or know what somebody wants with them.

use flate2::read::MultiGzDecoder;
use std::io::{self, BufReader, Cursor, ErrorKind, Read};

/// What is wrong with a capture.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It does not begin as one.
    #[error("it is neither pcap nor pcapng")]
    Neither,
    /// It ends within its header.
    #[error("it is cut off in its header")]
    NoHeader,
    /// It ends within a packet, or a block.
    #[error("it is cut off")]
    CutOff,
    /// It contradicts itself.
    #[error("it makes no sense: {0}")]
    Nonsense(String),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
}

/// A packet of a capture.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The kind of link that it was captured on, by its LINKTYPE number.
    pub link: u16,
    /// When, in nanoseconds since 1970; none for packets that have no time.
    pub time: Option<u64>,
    /// Bytes that it had.
    pub whole: u32,
    /// The bytes that were kept: the first ones.
    pub data: &'a [u8],
}

/// Ethernet, as a [link](Packet::link).
pub const ETHERNET: u16 = 1;

/// A capture that is read.
pub struct Reader<'a> {
    input: Box<dyn Read + Send + 'a>,
    /// Numbers are big-endian.
    big: bool,
    format: Format,
    /// The last block, or packet.
    body: Vec<u8>,
}

enum Format {
    Pcap {
        link: u16,
        /// Nanoseconds of a fraction's unit.
        unit: u64,
        /// Bytes of a packet's header behind the usual ones.
        more: usize,
    },
    /// With the interfaces of the section so far.
    Ng(Vec<Interface>),
}

/// A packet, and where in its block its data is.
struct Found {
    link: u16,
    time: Option<u64>,
    whole: u32,
    from: usize,
    kept: usize,
}

struct Interface {
    link: u16,
    /// Bytes of a packet at most, where it is not 0: simple packets do not say how many were kept.
    snaplen: u32,
    /// `if_tsresol`, and `if_tsoffset` in seconds.
    resolution: u8,
    offset: i64,
}

/// How gzip begins (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// The type of a section header, which reads the same both ways; and what says which way the others are.
const SECTION: u32 = 0x0a0d_0d0a;
const ORDER: u32 = 0x1a2b_3c4d;
/// Types of blocks: interface description; packets: obsolete, simple, enhanced.
const INTERFACE: u32 = 1;
const OBSOLETE: u32 = 2;
const SIMPLE: u32 = 3;
const ENHANCED: u32 = 6;
/// How a pcap begins: with times in microseconds, in nanoseconds; and as Linux 2.2 had it, whose packets have 8 bytes more.
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const MODIFIED: u32 = 0xa1b2_cd34;
/// A packet, or a block with one, is not longer: a length says more than a file holds otherwise.
const LONGEST: u32 = 64 << 20;

impl<'a> Reader<'a> {
    /// Begins to read.
    ///
    /// # Errors
    /// Where it does not begin as a capture does.
    pub fn new(input: impl Read + Send + 'a) -> Result<Self, Problem> {
        let (magic, input) = begin(BufReader::new(input))?;
        if !magic.starts_with(&GZIP) {
            return Self::plain(&magic, Box::new(input));
        }
        let (magic, input) = begin(BufReader::new(MultiGzDecoder::new(input)))?;
        Self::plain(&magic, Box::new(input))
    }

    fn plain(magic: &[u8], input: Box<dyn Read + Send + 'a>) -> Result<Self, Problem> {
        let Some(magic) = magic.first_chunk() else { return Err(Problem::Neither) };
        let mut reader = Self { input, big: false, format: Format::Ng(Vec::new()), body: Vec::new() };
        if u32::from_le_bytes(*magic) == SECTION {
            reader.read(8).map_err(header)?;
            reader.section().map_err(header)?;
            return Ok(reader);
        }
        let known = |word: u32| [MICROSECONDS, NANOSECONDS, MODIFIED].contains(&word);
        reader.big = known(u32::from_be_bytes(*magic));
        let kind = if reader.big { u32::from_be_bytes(*magic) } else { u32::from_le_bytes(*magic) };
        if !known(kind) {
            return Err(Problem::Neither);
        }
        reader.read(24).map_err(header)?;
        // Its upper half tells of frame checksums.
        let link = reader.u32(20)? as u16;
        let (unit, more) = (if kind == NANOSECONDS { 1 } else { 1000 }, if kind == MODIFIED { 8 } else { 0 });
        reader.format = Format::Pcap { link, unit, more };
        Ok(reader)
    }

    /// The next packet, if there is one.
    ///
    /// # Errors
    /// What is wrong there: nothing can be read behind it.
    #[allow(clippy::should_implement_trait, reason = "packets lie in the reader: an iterator cannot lend them")]
    pub fn next(&mut self) -> Result<Option<Packet<'_>>, Problem> {
        match self.format {
            Format::Pcap { link, unit, more } => {
                if !self.read_or_end(16 + more)? {
                    return Ok(None);
                }
                let [seconds, fraction, kept, whole] = [0, 4, 8, 12].map(|at| self.u32(at).unwrap_or(0));
                let time = Some(u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * unit);
                if kept > LONGEST {
                    return Err(Problem::Nonsense(format!("a packet of {kept} bytes")));
                }
                // What it is said to have been at most says nothing of what it was: some write 0, and longer packets.
                self.read(kept as usize)?;
                Ok(Some(Packet { link, time, whole, data: &self.body }))
            }
            Format::Ng(_) => {
                while let Some(kind) = self.block()? {
                    if let Some(Found { link, time, whole, from, kept }) = self.found(kind)? {
                        return Ok(Some(Packet { link, time, whole, data: &self.body[from..from + kept] }));
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reads the next block's body, but for blocks that say nothing of packets; its type, or none at the end.
    fn block(&mut self) -> Result<Option<u32>, Problem> {
        if !self.read_or_end(8)? {
            return Ok(None);
        }
        let (kind, len) = (self.u32(0)?, self.u32(4)?);
        if kind == SECTION {
            self.section()?;
            return Ok(Some(kind));
        }
        if len < 12 || !len.is_multiple_of(4) {
            return Err(Problem::Nonsense(format!("a block of {len} bytes")));
        }
        let body = len as usize - 12;
        if [INTERFACE, OBSOLETE, SIMPLE, ENHANCED].contains(&kind) {
            if len > LONGEST {
                return Err(Problem::Nonsense(format!("a block of {len} bytes")));
            }
            // Its length again stands behind it.
            self.read(body + 4)?;
            let again = self.u32(body)?;
            if again != len {
                return Err(Problem::Nonsense(format!("a block of {len} bytes ends as one of {again}")));
            }
            self.body.truncate(body);
        } else if io::copy(&mut (&mut self.input).take(body as u64 + 4), &mut io::sink()).map_err(failed)?
            < body as u64 + 4
        {
            return Err(Problem::CutOff);
        }
        Ok(Some(kind))
    }

    /// Reads the rest of a section header (4.1), of which type and length are there.
    fn section(&mut self) -> Result<(), Problem> {
        let mut len = self.u32(4)?;
        self.read(8)?;
        if self.u32(0)? != ORDER {
            (self.big, len) = (!self.big, len.swap_bytes());
        }
        if self.u32(0)? != ORDER {
            return Err(Problem::Nonsense("a section that does not say how its numbers are written".to_owned()));
        }
        let major = self.u16(4)?;
        if major != 1 || len < 28 || !len.is_multiple_of(4) || len > LONGEST {
            return Err(Problem::Nonsense(format!("a section header of {len} bytes, of version {major}")));
        }
        self.read(len as usize - 16)?;
        self.format = Format::Ng(Vec::new());
        Ok(())
    }

    /// The packet in the block that was read, if there is one.
    fn found(&mut self, kind: u32) -> Result<Option<Found>, Problem> {
        if kind == INTERFACE {
            let interface = self.interface()?;
            if let Format::Ng(interfaces) = &mut self.format {
                interfaces.push(interface);
            }
            return Ok(None);
        }
        let (number, from) = match kind {
            ENHANCED => (self.u32(0)?, 20),
            OBSOLETE => (self.u16(0)?.into(), 20),
            SIMPLE => (0, 4),
            _ => return Ok(None),
        };
        let Format::Ng(interfaces) = &self.format else { return Ok(None) };
        let Some(interface) = interfaces.get(number as usize) else {
            return Err(Problem::Nonsense(format!("a packet of interface {number}, which there isn't")));
        };
        let (time, kept, whole) = if kind == SIMPLE {
            let (whole, snaplen) = (self.u32(0)?, interface.snaplen);
            (None, if snaplen == 0 { whole } else { whole.min(snaplen) }, whole)
        } else {
            // Two halves, the upper one first, whichever way round numbers are.
            let units = u64::from(self.u32(4)?) << 32 | u64::from(self.u32(8)?);
            (Some(interface.nanos(units)), self.u32(12)?, self.u32(16)?)
        };
        let kept = kept as usize;
        if kept > self.body.len().saturating_sub(from) {
            return Err(Problem::Nonsense(format!("a packet of {kept} bytes that is longer than its block")));
        }
        Ok(Some(Found { link: interface.link, time, whole, from, kept }))
    }

    /// An interface (4.2). Options may end with a mark, or with their block.
    fn interface(&self) -> Result<Interface, Problem> {
        let mut interface = Interface { link: self.u16(0)?, snaplen: self.u32(4)?, resolution: 6, offset: 0 };
        let mut at = 8;
        while at + 4 <= self.body.len() {
            let (code, len) = (self.u16(at)?, usize::from(self.u16(at + 2)?));
            let value = self.body.get(at + 4..at + 4 + len);
            let value = value.ok_or_else(|| Problem::Nonsense("an option that is longer than its block".to_owned()))?;
            match (code, value) {
                (0, _) => break,
                (9, [resolution]) => interface.resolution = *resolution,
                (14, value) => {
                    if let Ok(seconds) = value.try_into() {
                        interface.offset =
                            if self.big { i64::from_be_bytes(seconds) } else { i64::from_le_bytes(seconds) };
                    }
                }
                _ => {}
            }
            at += 4 + len.next_multiple_of(4);
        }
        Ok(interface)
    }

    /// Reads so many bytes, which replace those before, or as many as there are.
    fn fill(&mut self, len: usize) -> Result<usize, Problem> {
        self.body.clear();
        // As it comes: a length that is a lie takes no memory.
        (&mut self.input).take(len as u64).read_to_end(&mut self.body).map_err(failed)
    }

    fn read(&mut self, len: usize) -> Result<(), Problem> {
        if self.fill(len)? < len { Err(Problem::CutOff) } else { Ok(()) }
    }

    /// The same, or says that nothing more comes.
    fn read_or_end(&mut self, len: usize) -> Result<bool, Problem> {
        match self.fill(len)? {
            0 => Ok(false),
            n if n < len => Err(Problem::CutOff),
            _ => Ok(true),
        }
    }

    fn u32(&self, at: usize) -> Result<u32, Problem> {
        let bytes = self.body.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
        Ok(if self.big { u32::from_be_bytes(*bytes) } else { u32::from_le_bytes(*bytes) })
    }

    fn u16(&self, at: usize) -> Result<u16, Problem> {
        let bytes = self.body.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
        Ok(if self.big { u16::from_be_bytes(*bytes) } else { u16::from_le_bytes(*bytes) })
    }
}

/// How it begins; and all of it, from there on.
fn begin<'a>(mut input: impl Read + Send + 'a) -> Result<(Vec<u8>, impl Read + Send + 'a), Problem> {
    let mut magic = Vec::new();
    input.by_ref().take(4).read_to_end(&mut magic).map_err(failed)?;
    if magic.is_empty() {
        return Err(Problem::Empty);
    }
    Ok((magic.clone(), Cursor::new(magic).chain(input)))
}

fn failed(error: io::Error) -> Problem {
    match error.kind() {
        ErrorKind::UnexpectedEof => Problem::CutOff,
        ErrorKind::InvalidInput | ErrorKind::InvalidData => Problem::Nonsense(error.to_string()),
        _ => Problem::Io(error),
    }
}

fn header(problem: Problem) -> Problem {
    if let Problem::CutOff = problem { Problem::NoHeader } else { problem }
}

fn short() -> Problem {
    Problem::Nonsense("a block that is too short".to_owned())
}

impl Interface {
    /// A time, in nanoseconds since 1970.
    fn nanos(&self, units: u64) -> u64 {
        let (base, exponent) = match self.resolution {
            decimal @ ..0x80 => (10u128, decimal),
            binary => (2, binary & 0x7f),
        };
        let nanos = match base.checked_pow(exponent.into()) {
            Some(per_second) => u128::from(units) * 1_000_000_000 / per_second,
            // Units that small make no nanosecond, however many.
            None => 0,
        };
        (nanos as u64).wrapping_add((self.offset as u64).wrapping_mul(1_000_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    /// Numbers as a file of one order has them.
    #[derive(Clone, Copy)]
    struct Order(bool);

    impl Order {
        fn u16(self, n: u16) -> [u8; 2] {
            if self.0 { n.to_be_bytes() } else { n.to_le_bytes() }
        }

        fn u32s(self, words: &[u32]) -> Vec<u8> {
            words.iter().flat_map(|n| if self.0 { n.to_be_bytes() } else { n.to_le_bytes() }).collect()
        }

        fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
            let len = (12 + body.len().next_multiple_of(4)) as u32;
            let mut out = [self.u32s(&[kind, len]), body.to_vec()].concat();
            out.resize(len as usize - 4, 0xee);
            out.extend(self.u32s(&[len]));
            out
        }

        fn section(self) -> Vec<u8> {
            self.block(SECTION, &[&self.u32s(&[ORDER])[..], &self.u16(1), &self.u16(0), &[0xff; 8]].concat())
        }

        fn interface(self, link: u16, snaplen: u32, options: &[u8]) -> Vec<u8> {
            self.block(INTERFACE, &[&self.u16(link)[..], &[0; 2], &self.u32s(&[snaplen]), options].concat())
        }

        fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
            let mut out = [&self.u16(code)[..], &self.u16(value.len() as u16), value].concat();
            out.resize(out.len().next_multiple_of(4), 0xee);
            out
        }

        fn enhanced(self, interface: u32, units: u64, whole: u32, data: &[u8]) -> Vec<u8> {
            let words = [interface, (units >> 32) as u32, units as u32, data.len() as u32, whole];
            self.block(ENHANCED, &[&self.u32s(&words)[..], data].concat())
        }

        fn simple(self, whole: u32, data: &[u8]) -> Vec<u8> {
            self.block(SIMPLE, &[&self.u32s(&[whole])[..], data].concat())
        }

        fn pcap(self, magic: u32, snaplen: u32, link: u32) -> Vec<u8> {
            let version = [self.u16(2), self.u16(4)].concat();
            [self.u32s(&[magic]), version, self.u32s(&[0, 0, snaplen, link])].concat()
        }
    }

    const ORDERS: [Order; 2] = [Order(false), Order(true)];

    type Read = (u16, Option<u64>, u32, Vec<u8>);

    fn read(file: &[u8]) -> Result<Vec<Read>, String> {
        let mut reader = Reader::new(file).map_err(|e| e.to_string())?;
        let mut all = Vec::new();
        while let Some(Packet { link, time, whole, data }) = reader.next().map_err(|e| e.to_string())? {
            all.push((link, time, whole, data.to_vec()));
        }
        Ok(all)
    }

    #[test]
    fn options_end_with_a_mark_or_with_their_block() {
        for o in ORDERS {
            let resolution = o.option(9, &[9]);
            // 4.2: a name is UTF-8, and tools write what they have; if_tzone has 4 bytes; an option that nobody knows.
            let odd = [o.option(2, b"\xff\xfe\xc3"), o.option(10, &[0, 0, 0x0e, 0x10]), o.option(77, &[1; 9])].concat();
            let shift = o.option(14, &if o.0 { (-5i64).to_be_bytes() } else { (-5i64).to_le_bytes() });
            for (options, second) in [
                (resolution.clone(), 7),
                ([resolution.clone(), vec![0; 4]].concat(), 7),
                ([odd.clone(), resolution.clone()].concat(), 7),
                ([odd.clone(), resolution.clone(), vec![0; 4]].concat(), 7),
                // What stands behind the mark is none.
                ([vec![0; 4], resolution.clone()].concat(), 7000),
                (Vec::new(), 7000),
                ([resolution.clone(), shift].concat(), 7),
            ] {
                let later = if options.len() > 12 && options[8..].starts_with(&o.u16(14)) { 5 } else { 0 };
                let file =
                    [o.section(), o.interface(1, 0, &options), o.enhanced(0, 6_000_000_000 + 7, 60, &[1; 60])].concat();
                let time = if second == 7 { 6_000_000_007 - later * 1_000_000_000 } else { 6_000_000_007_000 };
                assert_eq!(read(&file).unwrap(), [(1, Some(time), 60, vec![1; 60])], "{options:?}");
            }
            let long = [o.section(), o.interface(1, 0, &o.option(2, &[1; 8])[..8])].concat();
            assert_eq!(read(&long).unwrap_err(), "it makes no sense: an option that is longer than its block");
        }
    }

    #[test]
    fn packets_of_all_kinds_have_their_times_and_lengths() {
        for o in ORDERS {
            // 2^-10 s; and the obsolete packet, whose interface has 16 bits and whose time has two halves.
            let obsolete = [&o.u16(1)[..], &o.u16(0xffff), &o.u32s(&[1, 2, 61, 90]), &[5; 61]].concat();
            let file = [
                o.section(),
                o.interface(1, 62, &[]),
                o.interface(113, 0, &o.option(9, &[0x8a])),
                o.enhanced(1, 1025, 60, &[2; 60]),
                o.block(OBSOLETE, &obsolete),
                o.simple(64, &[3; 62]),
                o.simple(17, &[4; 17]),
                // What says nothing of packets: names, statistics, secrets, of one's own.
                o.block(4, &[0xff; 40]),
                o.block(5, &[1; 8]),
                o.block(10, &[]),
                o.block(0x8000_0bad, &[9; 4]),
                // Another section, which may be written the other way round, has interfaces of its own.
                Order(!o.0).section(),
                Order(!o.0).interface(1, 0, &[]),
                Order(!o.0).simple(15, &[6; 15]),
            ];
            let second = 1_000_000_000;
            assert_eq!(
                read(&file.concat()).unwrap(),
                [
                    (113, Some(second + 976_562), 60, vec![2; 60]),
                    (113, Some(((1u64 << 32) + 2) * 1_000_000_000 / 1024), 90, vec![5; 61]),
                    (1, None, 64, vec![3; 62]),
                    (1, None, 17, vec![4; 17]),
                    (1, None, 15, vec![6; 15]),
                ]
            );
            for (blocks, why) in [
                (vec![o.simple(60, &[1; 60])], "interface 0, which there isn't"),
                (vec![o.interface(1, 0, &[]), o.simple(65, &[1; 64])], "longer than its block"),
                (vec![o.interface(1, 0, &[]), o.enhanced(3, 0, 60, &[1; 60])], "interface 3"),
                (vec![o.block(ENHANCED, &[0; 8])], "interface 0"),
                (vec![o.interface(1, 0, &[]), o.block(ENHANCED, &[0; 8])], "too short"),
                (vec![o.u32s(&[ENHANCED, 11])], "a block of 11 bytes"),
                (vec![o.u32s(&[77, 14, 0, 0])], "a block of 14 bytes"),
                (vec![o.u32s(&[INTERFACE, 20, 1, 0, 24])], "a block of 20 bytes ends as one of 24"),
                (vec![o.u32s(&[ENHANCED, 0xffff_fff0])], "a block of 4294967280 bytes"),
                (vec![o.u32s(&[77, 0xffff_fff0])], "it is cut off"),
            ] {
                let error = read(&[o.section(), blocks.concat()].concat()).unwrap_err();
                assert!(error.contains(why), "{error:?} does not say {why:?}");
            }
        }
    }

    /// What a pcap says of the longest packet is not always so.
    #[test]
    fn a_pcap_has_what_it_has() {
        for o in ORDERS {
            for (magic, snaplen, link, unit, more) in [
                (MICROSECONDS, 65_535, 1, 1000, 0),
                (NANOSECONDS, 0, 1, 1, 0),
                (MICROSECONDS, 96, 1, 1000, 0),
                (MODIFIED, 65_535, 1, 1000, 8),
                // A link's number has 16 bits; those above tell of frame checksums.
                (NANOSECONDS, 262_144, 0x1400_0001, 1, 0),
            ] {
                let packet = |seconds, fraction, whole, data: &[u8]| {
                    let words = o.u32s(&[seconds, fraction, data.len() as u32, whole]);
                    [words, vec![0xee; more], data.to_vec()].concat()
                };
                let packets = [packet(5, 7, 1514, &[1; 1514]), packet(u32::MAX, 0, 300, &[2; 60])];
                let file = [o.pcap(magic, snaplen, link), packets.concat()].concat();
                let last = u64::from(u32::MAX) * 1_000_000_000;
                let expected =
                    [(1, Some(5_000_000_000 + 7 * unit), 1514, vec![1; 1514]), (1, Some(last), 300, vec![2; 60])];
                assert_eq!(read(&file).unwrap(), expected);
                for cut in [25, 24 + 16 + more, file.len() - 1] {
                    assert_eq!(read(&file[..cut]).unwrap_err(), "it is cut off", "{cut}");
                }
                let lie = [o.pcap(magic, snaplen, link), o.u32s(&[0, 0, 0x7fff_ffff, 0]), vec![0; more]].concat();
                assert!(read(&lie).unwrap_err().contains("a packet of 2147483647 bytes"));
            }
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// By how it begins, whatever it is called. gzip's files can be put behind each other (RFC 1952, 2.2).
    #[test]
    fn what_is_compressed_is_read_too() {
        let o = Order(false);
        let packet = [o.u32s(&[1, 2, 60, 60]), vec![1; 60]].concat();
        let file = [o.pcap(NANOSECONDS, 0, 1), packet.clone(), packet].concat();
        let ng = [o.section(), o.interface(1, 0, &[]), o.simple(60, &[7; 60])].concat();
        assert_eq!(read(&gzip(&file)).unwrap(), read(&file).unwrap());
        assert_eq!(read(&gzip(&ng)).unwrap(), read(&ng).unwrap());
        let parts = [gzip(&file[..50]), gzip(&file[50..])].concat();
        assert_eq!(read(&parts).unwrap(), read(&file).unwrap());
        let whole = gzip(&file);
        for cut in 2..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "{cut}");
        }
        assert_eq!(read(&gzip(b"text")).unwrap_err(), "it is neither pcap nor pcapng");
        assert_eq!(read(&gzip(b"")).unwrap_err(), "it is empty");
    }

    #[test]
    fn what_is_no_capture_is_told() {
        let o = Order(false);
        for (bytes, says) in [
            (&b""[..], "it is empty"),
            (b"abc", "it is neither pcap nor pcapng"),
            (b"hello, this is text", "it is neither pcap nor pcapng"),
            (&o.pcap(MICROSECONDS, 0, 1)[..23], "it is cut off in its header"),
            (&o.section()[..11], "it is cut off in its header"),
            (&o.section()[..27], "it is cut off in its header"),
        ] {
            assert_eq!(read(bytes).unwrap_err(), says);
        }
        let mut other = o.section();
        other[12] = 2;
        assert!(read(&other).unwrap_err().contains("of version 2"));
        other[8] = 0;
        assert!(read(&other).unwrap_err().contains("how its numbers are written"));
    }
}
