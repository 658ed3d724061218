//! What the system offers of memory, and what it can be asked to do with a mapping: hugepages, NUMA nodes, prefaulting.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Mapping;
use crate::{Error, PageSize, Result};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

/// One size of hugepages, and how many nobody has taken yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hugepages {
    pub(super) page: PageSize,
    pub(super) free: u64,
}

impl Display for Hugepages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} free of {}", self.free, self.page)
    }
}

/// The sizes of hugepages there are, on a node or in all.
pub(super) fn hugepages(node: Option<u32>) -> Vec<Hugepages> {
    match node {
        Some(node) => hugepages_in(Path::new(&format!("/sys/devices/system/node/node{node}/hugepages"))),
        None => hugepages_in(Path::new("/sys/kernel/mm/hugepages")),
    }
}

fn hugepages_in(dir: &Path) -> Vec<Hugepages> {
    // Not readable is none to be had.
    let entries = (!cfg!(miri)).then(|| std::fs::read_dir(dir)).into_iter().flatten().flatten().flatten();
    let one = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let page = PageSize::new(kib.checked_mul(1024)?).ok()?;
        // Reserved ones are free still, but promised to somebody. A node's directory doesn't tell.
        let reserved = number(&entry.path().join("resv_hugepages")).unwrap_or(0);
        let free = number::<u64>(&entry.path().join("free_hugepages"))?.saturating_sub(reserved);
        Some(Hugepages { page, free })
    };
    entries.filter_map(one).collect()
}

/// The system's default size of hugepages: what `hugepage-rs` takes.
pub(super) fn default_hugepage() -> Option<PageSize> {
    PageSize::new(meminfo("Hugepagesize:")?).ok()
}

/// Bytes that can be had without pushing anything out, as the kernel estimates it.
pub(super) fn available() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(key: &str) -> Option<u64> {
    let text = read("/proc/meminfo".as_ref())?;
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    read(path)?.trim().parse().ok()
}

/// A small file's content. Under Miri there are none.
fn read(path: &Path) -> Option<String> {
    if cfg!(miri) { None } else { std::fs::read_to_string(path).ok() }
}

/// The NUMA nodes there are, as the kernel writes them; a kernel that knows none has one.
fn nodes() -> String {
    read("/sys/devices/system/node/online".as_ref()).map_or_else(|| "0".to_owned(), |s| s.trim().to_owned())
}

/// Whether `ranges` (as the kernel writes them: `0-3,8`) holds `number`.
fn holds(ranges: &str, number: u32) -> bool {
    ranges.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().is_ok_and(|first: u32| first <= number) && last.parse().is_ok_and(|last: u32| number <= last)
    })
}

/// Says whether there is such a node.
pub(super) fn check_node(node: u32) -> Result<()> {
    let nodes = nodes();
    if holds(&nodes, node) { Ok(()) } else { Err(Error::NoSuchNode { node, nodes }) }
}

/// Has a mapping's pages come from one NUMA node, before any of them is touched.
pub(super) fn bind(mapping: &Mapping, node: u32) -> Result<()> {
    check_node(node)?;
    if nodes() == "0" {
        // All memory is there. (The system call may be missing, or forbidden in a container.)
        return Ok(());
    }
    let mut mask = vec![0u64; (node as usize / 64).saturating_add(1)];
    mask[node as usize / 64] = 1 << (node % 64);
    // The kernel looks at one bit fewer than it is told of.
    let bits = mask.len().saturating_mul(64).saturating_add(1);
    let (base, len) = (mapping.base().as_ptr(), mapping.len() as usize);
    // SAFETY: the range is mapped, the mask has as many bits as said, and a policy changes no memory.
    let done = unsafe { libc::syscall(libc::SYS_mbind, base, len, libc::MPOL_BIND, mask.as_ptr(), bits, 0) };
    if done == 0 { Ok(()) } else { Err(failed(mapping, "mbind", std::io::Error::last_os_error())) }
}

/// Touches all pages of a mapping, so that nothing faults later and a lack of memory is an error now.
pub(super) fn prefault(mapping: &Mapping, page: PageSize) -> Result<()> {
    loop {
        match advise(mapping, Advice::LinuxPopulateWrite) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Kernels before 5.14 don't know it: each page by hand, its content unchanged.
            Err(Errno::INVAL) => {
                for offset in (0..mapping.len()).step_by(page.bytes() as usize) {
                    if let Some(byte) = mapping.u8(offset) {
                        byte.fetch_or(0, std::sync::atomic::Ordering::Relaxed);
                    }
                }
                return Ok(());
            }
            Err(e) => return Err(failed(mapping, "touching all of it", e.into())),
        }
    }
}

/// Keeps a mapping out of child processes: a fork would make its pages copy-on-write, away from the device's.
pub(super) fn keep_from_forks(mapping: &Mapping) -> Result<()> {
    advise(mapping, Advice::LinuxDontFork).map_err(|e| failed(mapping, "madvise(MADV_DONTFORK)", e.into()))
}

fn advise(mapping: &Mapping, advice: Advice) -> Result<(), Errno> {
    // SAFETY: the range is mapped, and neither advice changes what it holds here.
    unsafe { madvise(mapping.base().as_ptr().cast(), mapping.len() as usize, advice) }
}

fn failed(mapping: &Mapping, step: &'static str, source: std::io::Error) -> Error {
    Error::Memory { bytes: mapping.len(), step, cause: source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_writes_them() {
        for (ranges, inside, outside) in [("0", 0, 1), ("0-3,8", 3, 4), ("0-3,8", 8, 9), ("2,4-5", 5, 3), ("", 0, 0)] {
            assert_eq!(holds(ranges, inside), !ranges.is_empty());
            assert!(!holds(ranges, outside));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn hugepages_are_counted_by_size() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("2048kB", "free", "12\n"),
            ("2048kB", "resv", "3\n"),
            ("16777216kB", "free", "1\n"),
            ("64kB", "free", "7\n"),
        ];
        for (size, what, content) in files {
            let one = dir.path().join(format!("hugepages-{size}"));
            std::fs::create_dir_all(&one).unwrap();
            std::fs::write(one.join(format!("{what}_hugepages")), content).unwrap();
        }
        std::fs::create_dir(dir.path().join("hugepages-oddkB")).unwrap();
        let mut found = hugepages_in(dir.path());
        found.sort_by_key(|h| h.page);
        let expected =
            [Hugepages { page: PageSize::K64, free: 7 }, Hugepages { page: PageSize::new(2 << 20).unwrap(), free: 9 }];
        assert_eq!(found, expected);
        assert!(hugepages_in(Path::new("/nowhere")).is_empty());
    }
}
