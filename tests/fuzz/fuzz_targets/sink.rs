//! Packets as `net gen` makes them, changed here and there, cut off, in any number of buffers, with marks for other lengths, and any bytes instead,
//! to what `net sink` finds out about each: what it takes for good is as it was made, and its ledger agrees with those that forget nothing.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use wholebar::measure::net::ledger::{Arrival, Ledger};
use wholebar::measure::net::mark::{self, Mark, Pattern};
use wholebar::measure::net::packet::{Verdict, check};
use wholebar::measure::net::template::{Headers, Template};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::net::Mac;

#[derive(Debug, Arbitrary)]
struct Input {
    /// Bytes of the first buffer, and of the others.
    first: u8,
    others: u8,
    packets: Vec<Packet>,
}

#[derive(Debug, Arbitrary)]
enum Packet {
    /// As it is made.
    Made(Made),
    /// With bytes that are changed by others, less bytes at its end, or more.
    Changed(Made, Vec<(u8, u8)>, u8, u8),
    /// With a mark for a payload of another length, and UDP's length with it, or not.
    Lies(Made, u64, bool, u8),
    /// Any bytes.
    Other(Vec<u8>),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
struct Made {
    v6: bool,
    tagged: bool,
    rest: u8,
    flow: u8,
    number: u16,
    /// Numbers have 48 bits.
    high: u32,
    sent: u64,
    now: u64,
}

/// Flows that templates have.
const FLOWS: u32 = 4;

struct Kit {
    pool: Pool,
    pattern: Pattern,
    templates: Vec<(Headers, Template)>,
}

// Made once: that takes longer than a packet.
thread_local! {
    static KIT: RefCell<Kit> = RefCell::new({
        let arena = Arena::new(4 << 20, ArenaOptions::default()).unwrap();
        let templates = (0..4).map(|n| {
            let headers = Headers { from: Mac([2; 6]), to: Mac([4; 6]), vlan: (n & 2 != 0).then_some(5), v6: n & 1 != 0 };
            (headers, Template::new(&headers, FLOWS, 9).unwrap())
        });
        Kit { templates: templates.collect(), pool: Pool::new(arena, 1024, 512, 64).unwrap(), pattern: Pattern::new() }
    });
}

impl Made {
    fn mark(self) -> Mark {
        let number = u64::from(self.high) << 16 | u64::from(self.number);
        Mark { run: 1, flow: u16::from(self.flow) % FLOWS as u16, number, sent: self.sent & 0xff_ffff_ffff }
    }

    /// The packet, and where its payload begins.
    fn bytes(self, kit: &Kit) -> (Vec<u8>, usize) {
        let (headers, template) = &kit.templates[usize::from(self.v6) | usize::from(self.tagged) << 1];
        let mut bytes = vec![0; headers.len() + mark::LEN + usize::from(self.rest)];
        template.write(&mut bytes, self.mark());
        (bytes, headers.len())
    }
}

/// A packet in buffers of so many bytes.
fn buffers(pool: &Pool, mut bytes: &[u8], first: u8, others: u8) -> Buf {
    let mut part = |most: u8| {
        let (here, rest) = bytes.split_at(bytes.len().min(usize::from(most) + 1));
        bytes = rest;
        let mut buf = pool.get().unwrap();
        assert_eq!(buf.copy_from(here), here.len());
        (buf, rest.is_empty())
    };
    let (mut all, mut last) = part(first);
    while !last {
        let next = part(others);
        all.append(next.0);
        last = next.1;
    }
    all
}

/// A ones' complement sum of 16 bits.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b))).sum::<u32>() % 0xffff
}

/// What comes of one packet; its mark where it is taken for good.
fn one(kit: &Kit, input: &Packet, first: u8, others: u8) -> Option<Mark> {
    let check = |bytes: &[u8]| check(&buffers(&kit.pool, bytes, first, others), &kit.pattern);
    match input {
        Packet::Made(made) => {
            assert_eq!(check(&made.bytes(kit).0), Verdict::Good(made.mark()));
            return Some(made.mark());
        }
        Packet::Changed(made, changes, missing, more) => {
            let (good, at) = made.bytes(kit);
            let mut bytes = good.clone();
            for (at, change) in changes {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte ^= change;
                }
            }
            bytes.truncate(bytes.len().saturating_sub((*missing).into()));
            bytes.extend((0..*more).map(|n| n ^ 0x55));
            // Several changes may keep all sums right; the payload has more than sums.
            let seen = check(&bytes);
            if let Verdict::Good(mark) = seen
                && mark == made.mark()
            {
                assert_eq!(bytes.get(at..good.len()), good.get(at..), "{seen:?}");
                let udp = &bytes[at - 8..good.len()];
                let (addresses, length) = (if made.v6 { at - 40 } else { at - 16 }, udp.len() as u32);
                assert_eq!((sum(&bytes[addresses..at - 8]) + 17 + length + sum(udp)) % 0xffff, 0, "{seen:?}");
            }
        }
        Packet::Lies(made, len, told, missing) => {
            let (mut bytes, at) = made.bytes(kit);
            let len = if len >> 63 == 0 { *len as usize % 80 } else { *len as usize | 0xffff_ffff };
            bytes[at..at + mark::LEN].copy_from_slice(&made.mark().bytes(len));
            if *told {
                bytes[at - 4..at - 2].copy_from_slice(&(len as u16).wrapping_add(8).to_be_bytes());
            }
            bytes.truncate(bytes.len().saturating_sub((*missing).into()));
            let seen = check(&bytes);
            let fits = (mark::LEN..=bytes.len().saturating_sub(at)).contains(&len);
            assert!(fits || !matches!(seen, Verdict::Good(_)), "{seen:?} of {len} bytes");
        }
        Packet::Other(bytes) => _ = check(&bytes[..bytes.len().min(900)]),
    }
    None
}

fuzz_target!(|input: Input| {
    KIT.with_borrow(|kit| {
        let mut all: HashMap<u16, (HashSet<u64>, u64)> = HashMap::new();
        // A ledger is large: it is for those who need it.
        let mut ledger = None;
        for packet in input.packets.iter().take(64) {
            let Some(mark) = one(kit, packet, input.first, input.others | 7) else { continue };
            if let Packet::Made(made) = packet {
                let age = mark.age(made.now);
                assert!(age.is_none_or(|age| age < 1 << 40), "{age:?}");
            }
            let arrival = ledger.get_or_insert_with(Ledger::new).record(mark);
            let (seen, next) = all.entry(mark.flow).or_default();
            let expected = match seen.contains(&mark.number) {
                _ if mark.number >= *next => Arrival::New,
                _ if *next - 1 - mark.number >= 4096 => Arrival::TooLate,
                true => Arrival::Duplicate,
                false => Arrival::Reordered,
            };
            assert_eq!(arrival, expected, "{mark:?}");
            if arrival != Arrival::TooLate {
                seen.insert(mark.number);
                *next = (*next).max(mark.number + 1);
            }
        }
        let Some(ledger) = ledger else { return };
        let (received, missing) = all.values().fold((0, 0), |(received, missing), (seen, next)| {
            (received + seen.len() as u64, missing + next - seen.len() as u64)
        });
        assert_eq!((ledger.arrivals().received, ledger.missing(), ledger.flows()), (received, missing, all.len()));
    });
    KIT.with_borrow(|kit| assert_eq!(kit.pool.available(), kit.pool.capacity(), "a buffer was lost"));
});
