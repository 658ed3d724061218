//! The control queue of a network device (VIRTIO 1.2, 5.1.6.5), which no back end has: the front end takes its commands by itself, as a device would.
//!
//! The one command there is says how many pairs of queues are in use. What is in the ring is the driver's, and is checked as by any device.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::memory::Memory;
use super::registers::Queue;

/// VIRTQ_DESC_F_NEXT, _WRITE and _INDIRECT (2.7.5, 2.8.6).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// VIRTQ_DESC_F_AVAIL and VIRTQ_DESC_F_USED (2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Bytes of a descriptor, in either layout.
const DESC: u64 = 16;
/// VIRTIO_NET_OK and VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERR: u8 = 1;
/// How much of a command is read: all commands that are known are shorter.
const COMMAND: usize = 64;

/// Where the device is in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// The next descriptor of a packed ring; of a split one the index that comes next.
    next: u16,
    /// The lap of a packed ring.
    wrap: bool,
}

impl Default for Control {
    fn default() -> Self {
        Self { next: 0, wrap: true }
    }
}

/// A descriptor.
#[derive(Clone, Copy)]
struct Desc {
    address: u64,
    len: u32,
    flags: u16,
    /// The next of a split ring; the identifier in a packed one.
    link: u16,
}

/// A command, and where its answer goes.
struct Chain {
    command: Vec<u8>,
    answer: Option<u64>,
    /// How the driver knows it.
    id: u16,
    /// How many descriptors of a packed ring it takes.
    count: u16,
}

/// Reads `N` bytes of the driver's memory.
fn get<const N: usize>(memory: &Memory, iova: Option<u64>) -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    let iova = iova.ok_or("an address has more than 64 bits")?;
    if memory.read(iova, &mut bytes) { Ok(bytes) } else { Err(format!("nothing is mapped at {iova:#x}")) }
}

fn put(memory: &Memory, iova: Option<u64>, bytes: &[u8]) -> Result<(), String> {
    let iova = iova.ok_or("an address has more than 64 bits")?;
    if memory.write(iova, bytes) { Ok(()) } else { Err(format!("nothing is mapped at {iova:#x}")) }
}

/// The address of entry `index` of a table.
fn entry(start: u64, index: u16, size: u64) -> Option<u64> {
    start.checked_add(u64::from(index).checked_mul(size)?)
}

impl Desc {
    fn get(memory: &Memory, table: u64, index: u16, packed: bool) -> Result<Self, String> {
        let bytes: [u8; 16] = get(memory, entry(table, index, DESC))?;
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at.saturating_add(1)]]);
        let (flags, link) = if packed { (word(14), word(12)) } else { (word(12), word(14)) };
        let (address, rest) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let len = rest.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
        Ok(Self { address: u64::from_le_bytes(*address), len, flags, link })
    }
}

impl Control {
    /// Takes all commands that are there: `execute` says of each whether it could be done.
    ///
    /// # Errors
    /// What the driver did wrong, and `execute`'s.
    pub fn run<E: From<String>>(
        &mut self,
        queue: &Queue,
        packed: bool,
        memory: &Memory,
        mut execute: impl FnMut(&[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        // As many as there can be: a driver that goes on and on comes again.
        for _ in 0..queue.size {
            let chain = if packed { self.take_packed(queue, memory)? } else { self.take_split(queue, memory)? };
            let Some(chain) = chain else { break };
            let done = execute(&chain.command)?;
            if let Some(answer) = chain.answer {
                put(memory, Some(answer), &[if done { OK } else { ERR }])?;
            }
            if packed { self.give_packed(queue, memory, &chain)? } else { self.give_split(queue, memory, &chain)? }
        }
        Ok(())
    }

    fn take_split(&mut self, queue: &Queue, memory: &Memory) -> Result<Option<Chain>, String> {
        let available = u16::from_le_bytes(get(memory, queue.driver.checked_add(2))?);
        if available == self.next {
            return Ok(None);
        }
        let slot = self.next.checked_rem(queue.size).unwrap_or(0);
        let head = u16::from_le_bytes(get(memory, queue.driver.checked_add(4).and_then(|ring| entry(ring, slot, 2)))?);
        self.next = self.next.wrapping_add(1);
        let mut chain = Chain { command: Vec::new(), answer: None, id: head, count: 1 };
        chain.follow(memory, queue.desc, head, queue.size, true)?;
        Ok(Some(chain))
    }

    fn give_split(&self, queue: &Queue, memory: &Memory, chain: &Chain) -> Result<(), String> {
        let slot = self.next.wrapping_sub(1).checked_rem(queue.size).unwrap_or(0);
        let at = queue.device.checked_add(4).and_then(|ring| entry(ring, slot, 8));
        let len = u32::from(chain.answer.is_some());
        put(memory, at, &u32::from(chain.id).to_le_bytes())?;
        put(memory, at.and_then(|at| at.checked_add(4)), &len.to_le_bytes())?;
        // The available event: it wants to hear of the next one.
        let event = queue.device.checked_add(4).and_then(|ring| entry(ring, queue.size, 8));
        put(memory, event, &self.next.to_le_bytes())?;
        put(memory, queue.device.checked_add(2), &self.next.to_le_bytes())
    }

    fn take_packed(&mut self, queue: &Queue, memory: &Memory) -> Result<Option<Chain>, String> {
        let mut chain = Chain { command: Vec::new(), answer: None, id: 0, count: 0 };
        let mut at = self.next;
        loop {
            let desc = Desc::get(memory, queue.desc, at, true)?;
            // The first one's flags make all of them available (2.8.6).
            let available = if self.wrap { AVAIL } else { USED };
            if chain.count == 0 && desc.flags & (AVAIL | USED) != available {
                return Ok(None);
            }
            chain.count = chain.count.saturating_add(1);
            chain.id = desc.link;
            chain.add(memory, desc, true)?;
            if desc.flags & NEXT == 0 {
                return Ok(Some(chain));
            }
            if chain.count >= queue.size {
                return Err("a chain of descriptors has no end".to_owned());
            }
            at = if at.saturating_add(1) == queue.size { 0 } else { at.saturating_add(1) };
        }
    }

    fn give_packed(&mut self, queue: &Queue, memory: &Memory, chain: &Chain) -> Result<(), String> {
        let at = |field: u64| entry(queue.desc, self.next, DESC).and_then(|desc| desc.checked_add(field));
        let len = u32::from(chain.answer.is_some());
        put(memory, at(8), &len.to_le_bytes())?;
        put(memory, at(12), &chain.id.to_le_bytes())?;
        let flags = if self.wrap { AVAIL | USED } else { 0 } | if len > 0 { WRITE } else { 0 };
        put(memory, at(14), &flags.to_le_bytes())?;
        let next = u32::from(self.next).saturating_add(chain.count.into());
        let size = u32::from(queue.size);
        if next >= size {
            self.wrap = !self.wrap;
        }
        self.next = next.checked_rem(size).unwrap_or(0) as u16;
        Ok(())
    }
}

impl Chain {
    /// Follows a chain by its links, as in a split ring and its indirect tables.
    fn follow(&mut self, memory: &Memory, table: u64, head: u16, size: u16, outer: bool) -> Result<(), String> {
        let mut at = head;
        for _ in 0..size {
            if at >= size {
                return Err(format!("descriptor {at} is named, and there are {size}"));
            }
            let desc = Desc::get(memory, table, at, false)?;
            if desc.flags & INDIRECT != 0 && outer {
                return self.follow(memory, desc.address, 0, entries(desc), false);
            }
            self.add(memory, Desc { flags: desc.flags & !INDIRECT, ..desc }, false)?;
            if desc.flags & NEXT == 0 {
                return Ok(());
            }
            at = desc.link;
        }
        Err("a chain of descriptors has no end".to_owned())
    }

    /// A part of the chain: the command's, or the answer's place.
    fn add(&mut self, memory: &Memory, desc: Desc, packed: bool) -> Result<(), String> {
        if desc.flags & INDIRECT != 0 && packed {
            // One after another (2.8.7).
            for index in 0..entries(desc) {
                let inner = Desc::get(memory, desc.address, index, true)?;
                self.add(memory, Desc { flags: inner.flags & WRITE, ..inner }, false)?;
            }
            return Ok(());
        }
        if desc.flags & WRITE != 0 {
            self.answer = self.answer.or((desc.len > 0).then_some(desc.address));
            return Ok(());
        }
        let room = COMMAND.saturating_sub(self.command.len());
        let mut bytes = vec![0; room.min(desc.len as usize)];
        if !bytes.is_empty() && !memory.read(desc.address, &mut bytes) {
            return Err(format!("nothing is mapped at {:#x}", desc.address));
        }
        self.command.append(&mut bytes);
        Ok(())
    }
}

/// How many descriptors an indirect table has: more than a ring can have are not looked at.
fn entries(desc: Desc) -> u16 {
    u64::from(desc.len).checked_div(DESC).unwrap_or(0).min(1 << 15) as u16
}
