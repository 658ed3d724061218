//! Capture files, pcap and pcapng, to who reads them, and to `net gen --replay`: no panic; and where gen has no doubts, it has the packets of the file, as
//! they are.
#![no_main]

#[path = "../../../apps/wholebar/src/net/capture.rs"]
#[allow(dead_code)]
mod capture;

use capture::Capture;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use wholebar::sim::pcap::{ETHERNET, Reader};

/// A file, as its parts, or it would take ages to find one that makes sense.
#[derive(Debug, Arbitrary)]
enum Input {
    Any(Vec<u8>),
    Pcap { order: Order, nanoseconds: bool, link: u8, packets: Vec<Packet>, changes: Vec<(u16, u8)>, cut: u8 },
    Ng { order: Order, blocks: Vec<Block>, changes: Vec<(u16, u8)>, cut: u8 },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Order {
    Little,
    Big,
}

/// When it came; how many bytes more it had than there are; they.
#[derive(Debug, Arbitrary)]
struct Packet(u32, u32, u8, Vec<u8>);

#[derive(Debug, Arbitrary)]
enum Block {
    Section,
    /// Its limit for packets, its units, seconds that times begin with.
    Interface(u8, Option<u8>, Option<u64>),
    /// Its interface.
    Enhanced(u8, Packet),
    Simple(Packet),
    Old(u8, Packet),
    Other(u8, Vec<u8>),
}

impl Order {
    fn half(self, n: u16) -> [u8; 2] {
        match self {
            Self::Little => n.to_le_bytes(),
            Self::Big => n.to_be_bytes(),
        }
    }

    fn word(self, n: u32) -> [u8; 4] {
        match self {
            Self::Little => n.to_le_bytes(),
            Self::Big => n.to_be_bytes(),
        }
    }

    fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| self.word(*word)).collect()
    }

    fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let len = self.word((12 + body.len().next_multiple_of(4)) as u32);
        let mut block = [&self.word(kind), &len, body].concat();
        block.resize(block.len().next_multiple_of(4), 0);
        block.extend(len);
        block
    }

    fn section(self) -> Vec<u8> {
        let versions = [self.half(1), self.half(0)].concat();
        self.block(0x0a0d_0d0a, &[&self.word(0x1a2b_3c4d)[..], &versions, &[0xff; 8]].concat())
    }

    fn any(self, block: &Block) -> Vec<u8> {
        match block {
            Block::Section => self.section(),
            Block::Interface(snaplen, resolution, offset) => {
                let mut body = [&self.half(1)[..], &[0, 0], &self.word((*snaplen).into())].concat();
                if let Some(resolution) = resolution {
                    body.extend([&self.half(9)[..], &self.half(1), &[*resolution, 0, 0, 0]].concat());
                }
                if let Some(offset) = offset {
                    let offset = match self {
                        Self::Little => offset.to_le_bytes(),
                        Self::Big => offset.to_be_bytes(),
                    };
                    body.extend([&self.half(14)[..], &self.half(8), &offset].concat());
                }
                if resolution.is_some() || offset.is_some() {
                    body.extend([0; 4]);
                }
                self.block(1, &body)
            }
            Block::Enhanced(interface, p) => {
                let len = p.3.len() as u32;
                let head = self.words(&[u32::from(*interface % 3), p.0, p.1, len, len + u32::from(p.2)]);
                self.block(6, &[head, p.3.clone()].concat())
            }
            Block::Simple(p) => self.block(3, &[&self.word(p.3.len() as u32 + u32::from(p.2))[..], &p.3].concat()),
            Block::Old(interface, p) => {
                let len = p.3.len() as u32;
                let head = [self.half(u16::from(*interface % 3)), [0, 0]].concat();
                self.block(2, &[head, self.words(&[p.0, p.1, len, len + u32::from(p.2)]), p.3.clone()].concat())
            }
            Block::Other(kind, body) => self.block((*kind).into(), body),
        }
    }
}

fn file(input: Input) -> Vec<u8> {
    let (mut file, changes, cut) = match input {
        Input::Any(bytes) => return bytes,
        Input::Pcap { order, nanoseconds, link, packets, changes, cut } => {
            let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
            let link = if link < 250 { 1 } else { link };
            let versions = [order.half(2), order.half(4)].concat();
            let mut file = [order.word(magic).to_vec(), versions, order.words(&[0, 0, 65_535, link.into()])].concat();
            for p in packets {
                let len = p.3.len() as u32;
                file.extend(order.words(&[p.0, p.1, len, len + u32::from(p.2)]));
                file.extend(p.3);
            }
            (file, changes, cut)
        }
        Input::Ng { order, blocks, changes, cut } => {
            let mut file = order.section();
            blocks.iter().for_each(|block| file.extend(order.any(block)));
            (file, changes, cut)
        }
    };
    for (at, change) in changes {
        if let Some(byte) = file.get_mut(usize::from(at)) {
            *byte ^= change;
        }
    }
    file.truncate(file.len().saturating_sub(cut.into()));
    file
}

fuzz_target!(|input: Input| {
    let file = file(input);
    let (mut packets, mut whole) = (Vec::new(), false);
    if let Ok(mut reader) = Reader::new(&file[..]) {
        whole = loop {
            match reader.next() {
                Ok(Some(packet)) => packets.push((packet.link, packet.data.to_vec())),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
    }
    let all: usize = packets.iter().map(|(_, data)| data.len()).sum();
    let compressed = file.starts_with(&[0x1f, 0x8b]);
    assert!(compressed || all <= file.len(), "{all} bytes of {}", file.len());

    let Ok(capture) = Capture::read_from("FILE", &file[..]) else { return };
    assert!(whole, "gen reads what does not end well");
    assert!(packets.iter().all(|(link, _)| *link == ETHERNET));
    let replayed: Vec<_> = (0..capture.count()).map(|i| capture.packet(i)).collect();
    assert!(replayed.iter().map(|(_, bytes)| *bytes).eq(packets.iter().map(|(_, data)| data.as_slice())));
    assert!(replayed.iter().all(|(at, _)| *at <= capture.span()));
    assert!(capture.lap() >= capture.span());
});
