//! What machine this is, as far as figures depend on it.

use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use wholebar::PageSize;

/// The facts of a machine that stand beside every figure measured on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's name and release.
    pub kernel: String,
    /// The CPU architecture.
    pub arch: String,
    /// Bytes.
    pub page_size: u64,
    /// The CPU's name, where the system tells it.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Hugepages of the default size.
    pub hugepages: Hugepages,
    /// Hugepages of each size that the kernel has, the smallest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hugepages_by_size: Vec<Hugepages>,
    /// Tasks that ran or waited to run when this was read, over the last minute: above 0 and a bit, others disturb the figures.
    pub load: Option<f64>,
}

/// Hugepages of one size.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Hugepages {
    /// Bytes of one; 0 where there is no such thing.
    pub size: u64,
    /// How many are set aside.
    pub total: u64,
    /// How many of these are free.
    pub free: u64,
}

impl Host {
    /// Of this machine, now.
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let word = |path: &str| read(path).trim().to_owned();
        let meminfo = read("/proc/meminfo");
        let huge = |name| number(&meminfo, name).unwrap_or(0);
        let cpuinfo = read("/proc/cpuinfo");
        // x86 says "model name", powerpc "cpu"; arm64 has numbers only.
        let cpu = ["model name", "cpu"].into_iter().find_map(|name| field(&cpuinfo, name));
        Self {
            kernel: format!("{} {}", word("/proc/sys/kernel/ostype"), word("/proc/sys/kernel/osrelease")),
            arch: std::env::consts::ARCH.to_owned(),
            page_size: PageSize::host().bytes(),
            cpu: cpu.unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            hugepages: Hugepages {
                size: huge("Hugepagesize") << 10,
                total: huge("HugePages_Total"),
                free: huge("HugePages_Free"),
            },
            hugepages_by_size: hugepages(Path::new("/sys/kernel/mm/hugepages")),
            load: read("/proc/loadavg").split_whitespace().next().and_then(|v| v.parse().ok()),
        }
    }
}

/// Hugepages by the kernel's own listing (Documentation/admin-guide/mm/hugetlbpage.rst): a folder for each size.
fn hugepages(listing: &Path) -> Vec<Hugepages> {
    let one = |entry: fs::DirEntry| {
        let number = |file: &str| fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok();
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(Hugepages {
            size: kib.checked_mul(1024)?,
            total: number("nr_hugepages")?,
            free: number("free_hugepages")?,
        })
    };
    let mut all: Vec<_> = fs::read_dir(listing).into_iter().flatten().flatten().filter_map(one).collect();
    all.sort_by_key(|kind| kind.size);
    all
}

/// Memory that can be had without pushing others out, in bytes.
pub fn free_memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib(&meminfo, "MemAvailable").unwrap_or(u64::MAX)
}

/// A line of /proc/meminfo, in bytes.
pub fn kib(meminfo: &str, name: &str) -> Option<u64> {
    number(meminfo, name)?.checked_mul(1024)
}

fn number(meminfo: &str, name: &str) -> Option<u64> {
    field(meminfo, name)?.split_whitespace().next()?.parse().ok()
}

/// The value of a `name: value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_machine() {
        let host = Host::now();
        assert!(host.kernel.starts_with("Linux "), "{host:?}");
        assert!(host.page_size >= 4096 && host.cores >= 1);
    }

    #[test]
    fn fields() {
        let text = "Hugepagesize:       2048 kB\ncpu\t\t: POWER10\n";
        assert_eq!(field(text, "Hugepagesize"), Some("2048 kB"));
        assert_eq!(field(text, "cpu"), Some("POWER10"));
        assert_eq!(field(text, "CPU"), None);
    }
}
