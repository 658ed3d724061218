//! Models whose host's memory lies as a hypervisor with a virtual IOMMU has it: mapped page by page, neighbours nowhere near each other; for
//! reading only where a device only reads; taken away and given back while queues are idle. And turns that end though there is more to do.
#![cfg(not(miri))]

mod controller;
mod disk;

use std::sync::Arc;
use wholebar_core::Work;
use wholebar_core::mem::{Arena, ArenaOptions, Chunk, Iova};
use wholebar_core::model::{Model, ModelFunction};

const PAGE: u64 = 4096;
const PAGES: u64 = 128;
/// Where the device sees the memory.
const BASE: u64 = 0x7_0000_0000;

/// What one poll may move before it ends, with the request that it is at.
const BUDGET: u64 = 1 << 20;

/// How a host's memory lies in the device's address space.
#[derive(Clone, Copy, PartialEq)]
enum Lies {
    /// As it is.
    Flat,
    /// Page by page, in falling order.
    Scattered,
}
use Lies::{Flat, Scattered};

/// A model and its host's memory.
struct Guest<M: Model> {
    lies: Lies,
    nic: ModelFunction<M>,
    arena: Arc<Arena>,
    memory: Chunk,
}

impl<M: Model> Guest<M> {
    fn new(lies: Lies, model: M) -> Self {
        let arena = Arena::new(PAGES * PAGE, ArenaOptions::default()).unwrap();
        let memory = arena.alloc(PAGES * PAGE, PAGE).unwrap();
        memory.zero();
        let mut guest = Self { lies, nic: ModelFunction::new(model), arena, memory };
        guest.map_all();
        guest.nic.write(7, 4, &6u16.to_le_bytes()).unwrap();
        guest
    }

    /// Maps everything: what each of the first two queues of a disk has for itself.
    fn map_all(&mut self) {
        [0..16, 16..32, 32..PAGES].into_iter().for_each(|pages| self.map(pages, true));
    }

    /// Maps pages: in one map, or in one each.
    fn map(&mut self, pages: std::ops::Range<u64>, writable: bool) {
        let count = pages.end - pages.start;
        let (step, len) = if self.lies == Flat { (count, count * PAGE) } else { (1, PAGE) };
        for page in pages.step_by(step as usize) {
            let at = self.memory.offset() + self.place(page * PAGE);
            self.nic.dma_map_arena(Iova(BASE + page * PAGE), self.arena.clone(), at, len, writable).unwrap();
        }
    }

    fn unmap(&mut self, pages: std::ops::Range<u64>) {
        let (start, count) = (pages.start, pages.end - pages.start);
        assert_ne!(self.nic.dma_unmap_all_in(Iova(BASE + start * PAGE), count * PAGE), Ok(0));
    }

    /// Maps pages for reading only.
    fn map_reading(&mut self, pages: std::ops::Range<u64>) {
        self.unmap(pages.clone());
        self.map(pages, false);
    }

    /// Where in memory it is what the device sees at `at`.
    fn place(&self, at: u64) -> u64 {
        match self.lies {
            Flat => at,
            Scattered => (PAGES - 1 - at / PAGE) * PAGE + at % PAGE,
        }
    }

    /// The parts of `len` bytes at `at`: where in memory, and which of them.
    fn parts(&self, at: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let now = at + done as u64;
            let n = (len - done).min((PAGE - now % PAGE) as usize);
            done += n;
            (n > 0).then_some((self.place(now), done - n..done))
        })
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.parts(at, bytes.len()).for_each(|(place, part)| self.memory.write(place, &bytes[part]).unwrap());
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.parts(at, len).for_each(|(place, part)| self.memory.read(place, &mut bytes[part]).unwrap());
        bytes
    }

    fn word<const N: usize>(&self, at: u64) -> [u8; N] {
        self.get(at, N).try_into().unwrap()
    }

    fn register<const N: usize>(&mut self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.nic.read(0, at, &mut bytes).unwrap();
        bytes
    }

    fn set(&mut self, at: u64, bytes: &[u8]) {
        self.nic.write(0, at, bytes).unwrap();
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.nic.poll() == Work::Idle {
                return;
            }
        }
        panic!("the model is never idle");
    }

    /// Polls until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let start = std::time::Instant::now();
        while !so(self) {
            assert!(start.elapsed().as_secs() < 600, "never: {what}");
            self.nic.poll();
        }
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}
