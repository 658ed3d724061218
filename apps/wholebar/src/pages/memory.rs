//! What the size of pages changes beside the MSI-X table's page: what is pinned, lists of transfers, maps, hugepages, the TLB. What follows from sizes is
//! computed, for hosts with pages of 4, 16 and 64 KiB; the rest is measured, on the pages that this host has.

use crate::host::{Host, free_memory};
use crate::nvme::Controller;
use crate::output;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::time::Instant;
use wholebar::mem::{Arena, ArenaOptions, Chunk};
use wholebar::pci::PciDevice;

/// The hosts that are compared, in bytes of a page.
const PAGES: [u64; 3] = [4 << 10, 16 << 10, 64 << 10];
/// An NVMe queue pair of 128 entries: 64 bytes a command, 16 a completion (base 4.1, 4.2).
const PAIR: [u64; 2] = [128 * 64, 128 * 16];
/// The transfer whose list is counted.
const TRANSFER: u64 = 128 << 10;
/// The memory that is touched and read.
const WORKING_SET: u64 = 64 << 20;
/// How far apart the places that are read lie: each has a page of its own on a host with 4 KiB pages.
const STRIDE: u64 = 4 << 10;
const READS: u32 = 200_000;
const ROUNDS: usize = 7;

/// What the size of pages changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    /// What memory costs on hosts with pages of each size.
    pub pinned: Vec<Pinned>,
    /// The lists of a transfer.
    pub transfer: Transfer,
    /// The maps of the device.
    pub maps: Maps,
    /// What was measured on the kinds of pages that this host has.
    pub backings: Vec<Backing>,
    /// Why something was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// What memory of a kind takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pinned {
    /// Its use: a queue pair, buffers of a pool.
    pub what: String,
    /// Bytes of it that are used.
    pub used: u64,
    /// Bytes that are pinned, by the host's pages: 4, 16 and 64 KiB.
    pub pinned: [u64; 3],
}

/// How many entries a transfer of 128 KiB needs in its list (PRP, base 4.3), if it begins with a page.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes of the controller's page as the driver chose it (CC.MPS).
    pub page: u64,
    /// Entries with that.
    pub entries: u64,
    /// Bytes of the largest page that the controller offers (CAP.MPSMAX).
    pub max_page: u64,
    /// Entries with that.
    pub min_entries: u64,
}

/// The device's maps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Maps {
    /// Arenas that are mapped.
    pub mapped: usize,
    /// How many more can be, where there is a limit.
    pub left: Option<usize>,
    /// What addresses and lengths are multiples of, in bytes: the IOMMU's smallest page, or the peer's.
    pub granule: u64,
}

/// Memory of one kind of pages.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Backing {
    /// Bytes of a page.
    pub page: u64,
    /// Whether they are hugepages.
    pub huge: bool,
    /// Nanoseconds that making an arena takes, for each of its pages, which are all touched: the median of the rounds.
    pub touch_ns: f64,
    /// Nanoseconds of a read whose place is known only after the one before it, over 16,384 places: the median of the rounds.
    pub read_ns: f64,
}

impl Memory {
    /// Of this device, on this host. What is mapped for the device is what the controller's driver maps for itself.
    ///
    /// # Errors
    /// Those of memory that was there a moment ago.
    pub fn measure(device: &dyn PciDevice, controller: &Controller) -> Result<Self> {
        let entries = |page: u64| TRANSFER.div_ceil(page);
        let (page, max_page) = controller.pages();
        let dma = device.dma();
        let granule = dma.windows().iter().map(|window| window.page.bytes()).min().unwrap_or(0);
        let (backings, left_out) = backings()?;
        Ok(Self {
            pinned: pinned(page),
            transfer: Transfer { page, entries: entries(page), max_page, min_entries: entries(max_page) },
            maps: Maps { mapped: dma.mapped(), left: dma.maps_left(), granule },
            backings,
            left_out,
        })
    }

    /// For people.
    pub fn text(&self, host: &Host) -> String {
        let mut text = "Memory, by the host's pages\n\n".to_owned();
        text += &output::table(Self::PINNED, self.pinned_rows());
        text += "\n";
        text += &output::table(Self::MEASURED, self.measured_rows());
        text += "\n";
        text += &output::paragraph(&self.note(host));
        text
    }

    /// Titles of [`pinned_rows`](Self::pinned_rows).
    pub const PINNED: [&'static str; 5] = ["pinned", ">used", ">4 KiB", ">16 KiB", ">64 KiB"];

    /// What is pinned.
    pub fn pinned_rows(&self) -> Vec<Vec<String>> {
        let row = |row: &Pinned| {
            let sizes = [row.used].into_iter().chain(row.pinned).map(output::bytes);
            [row.what.clone()].into_iter().chain(sizes).collect()
        };
        let mut rows: Vec<Vec<String>> = self.pinned.iter().map(row).collect();
        let pages = PAGES.map(|page| output::count((1 << 30) / page));
        rows.push(["pages to pin for 1 GiB".to_owned(), String::new()].into_iter().chain(pages).collect());
        rows
    }

    /// Titles of [`measured_rows`](Self::measured_rows).
    pub const MEASURED: [&'static str; 5] = ["on this host", ">page", ">made, a page", ">64 MiB", ">read"];

    /// What was measured.
    pub fn measured_rows(&self) -> Vec<Vec<String>> {
        let row = |backing: &Backing| {
            let kind = if backing.huge { "hugepages" } else { "plain pages" };
            let all = backing.touch_ns * (WORKING_SET as f64 / backing.page as f64);
            let times = [backing.touch_ns, all, backing.read_ns].map(output::time);
            [kind.to_owned(), output::bytes(backing.page)].into_iter().chain(times).collect()
        };
        self.backings.iter().map(row).collect()
    }

    /// How the tables are read, and what is no table.
    pub fn note(&self, host: &Host) -> String {
        let Transfer { page, entries, max_page, min_entries } = self.transfer;
        let mut text = format!(
            "used: bytes that hold something; pinned: what of them is kept in memory for the device. Larger pages pin more for what is small and has \
             pages of its own, and take fewer pins and fewer TLB entries for what is large. made: an arena, with all its pages touched. read: one of \
             {} places, 4 KiB apart, each known from the one before: what differs between rows is the TLB's part. ",
            output::count(WORKING_SET / STRIDE)
        );
        text += &format!(
            "A transfer of 128 KiB takes {entries} PRP entries with the controller's pages of {}",
            output::bytes(page)
        );
        text += &match max_page > page {
            true => format!(" (it offers up to {}: {min_entries} entries). ", output::bytes(max_page)),
            false => " (it offers no larger ones). ".to_owned(),
        };
        let Maps { mapped, left, granule } = self.maps;
        let left =
            left.map_or("no limit is known".to_owned(), |left| format!("{} more can be", output::count(left as u64)));
        text += &format!(
            "An arena is one map, whatever its pages: {mapped} mapped now, {left}; addresses and lengths are multiples of {}. ",
            output::bytes(granule)
        );
        if !host.hugepages_by_size.is_empty() {
            let sizes: Vec<_> = host
                .hugepages_by_size
                .iter()
                .map(|h| format!("{} ({} of {} free)", output::bytes(h.size), h.free, h.total))
                .collect();
            text += &format!("Hugepages here: {}. ", sizes.join(", "));
        }
        for why in &self.left_out {
            text += &format!("Left out: {why}. ");
        }
        text.trim_end().to_owned()
    }
}

/// What is pinned for what a device is given, where the controller's pages have so many bytes.
fn pinned(controller_page: u64) -> Vec<Pinned> {
    let row =
        |what: &str, used: u64, of: &dyn Fn(u64) -> u64| Pinned { what: what.to_owned(), used, pinned: PAGES.map(of) };
    let aligned = PAIR.map(|ring| ring.next_multiple_of(controller_page)).iter().sum::<u64>();
    let (pair, frame) = (PAIR.iter().sum::<u64>(), 1514);
    vec![
        row("queue pair of 128, each ring on its own", pair, &|page| {
            PAIR.map(|ring| ring.next_multiple_of(page)).iter().sum()
        }),
        row("32 of them in one arena, as here", 32 * pair, &|page| (32 * aligned).next_multiple_of(page)),
        row("512 frames of 1514 B, a page each", 512 * frame, &|page| 512 * page),
        row("the same in a pool of 2 KiB buffers", 512 * frame, &|page| (512u64 * 2048).next_multiple_of(page)),
    ]
}

/// Memory of each kind of pages there is, in rounds that take turns; and why some is missing.
fn backings() -> Result<(Vec<Backing>, Vec<String>)> {
    let mut left_out = Vec::new();
    if free_memory() < 4 * WORKING_SET {
        left_out.push(format!("less than {} of memory are free", output::bytes(4 * WORKING_SET)));
        return Ok((Vec::new(), left_out));
    }
    let make = |huge| Arena::new(WORKING_SET, ArenaOptions { hugepages: Some(huge), ..ArenaOptions::default() });
    let mut kinds = vec![false];
    match make(true) {
        Ok(_) => kinds.push(true),
        Err(why) => left_out.push(format!("hugepages, since {why}")),
    }
    let mut found: Vec<_> = kinds.iter().map(|huge| (*huge, 0, Vec::new(), Vec::new())).collect();
    for _ in 0..ROUNDS {
        for (huge, page, touches, reads) in &mut found {
            let began = Instant::now();
            let arena = make(*huge)?;
            *page = arena.page().bytes();
            touches.push(began.elapsed().as_nanos() as f64 / (WORKING_SET / *page) as f64);
            reads.push(read(&arena.alloc(WORKING_SET, 64)?)?);
        }
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let backing =
        |(huge, page, touches, reads)| Backing { page, huge, touch_ns: median(touches), read_ns: median(reads) };
    Ok((found.into_iter().map(backing).collect(), left_out))
}

/// Nanoseconds a read, each of a place that the one before it holds: one cycle through all of them, in no order that anything could foresee.
fn read(chunk: &Chunk) -> Result<f64> {
    let places = (WORKING_SET / STRIDE) as usize;
    // Lines differ from page to page, so that all sets of the caches take part.
    let offset = |place: usize| place as u64 * STRIDE + place as u64 % (STRIDE / 64) * 64;
    let (mut order, mut random) = ((0..places).collect::<Vec<_>>(), fastrand::Rng::with_seed(1));
    random.shuffle(&mut order);
    for pair in 0..places {
        let (from, to) = (order[pair], order[(pair + 1) % places]);
        chunk.write(offset(from), &offset(to).to_le_bytes())?;
    }
    let mut at = [0; 8];
    let began = Instant::now();
    for _ in 0..READS {
        chunk.read(u64::from_le_bytes(at), &mut at)?;
    }
    black_box(at);
    Ok(began.elapsed().as_nanos() as f64 / f64::from(READS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_rings_pin_more_on_larger_pages_and_pools_do_not() {
        let [pair, shared, frames, pool] = &pinned(4096)[..] else { panic!("four rows") };
        assert_eq!((pair.used, pair.pinned), (10 << 10, [12 << 10, 32 << 10, 128 << 10]));
        assert_eq!((shared.used, shared.pinned), (320 << 10, [384 << 10; 3]));
        assert_eq!(frames.pinned, [2 << 20, 8 << 20, 32 << 20]);
        assert_eq!((pool.used, pool.pinned), (frames.used, [1 << 20; 3]));
    }

    /// The chain of places comes back to the first after all of them, and not before.
    #[test]
    fn every_place_is_read() {
        let arena =
            Arena::new(WORKING_SET, ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() }).unwrap();
        let chunk = arena.alloc(WORKING_SET, 64).unwrap();
        assert!(read(&chunk).unwrap() > 0.0);
        let (mut at, mut steps) = ([0; 8], 0);
        loop {
            chunk.read(u64::from_le_bytes(at), &mut at).unwrap();
            steps += 1;
            if at == [0; 8] {
                break;
            }
        }
        assert_eq!(steps, WORKING_SET / STRIDE);
    }
}
