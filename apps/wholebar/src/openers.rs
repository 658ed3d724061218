//! Which processes have files open, as far as this one may see: VFIO's nodes of a function, a disk's nodes, sockets.

use std::fs;
use wholebar::vfio::sysfs::{Function, Sysfs, is_vfio};

/// The processes that have a function, or its IOMMU group, open through VFIO, as far as this one may see: `process 77 (spdk)`.
pub fn openers(sysfs: &Sysfs, function: &Function) -> Vec<String> {
    if !function.driver().as_deref().is_some_and(is_vfio) {
        return Vec::new();
    }
    let group = function.group().map(|n| [format!("/dev/vfio/{n}"), format!("/dev/vfio/noiommu-{n}")]);
    let own = function.vfio_device().map(|name| format!("/dev/vfio/devices/{name}"));
    let nodes: Vec<String> = group.into_iter().flatten().chain(own).collect();
    let mut openers: Vec<String> = who_has_open(sysfs, &nodes).into_iter().map(|(process, _)| process).collect();
    openers.dedup();
    openers
}

/// The processes that have one of these files open, as far as this one may see: `process 77 (spdk)`, and the file. By the names that /proc/PID/fd has:
/// paths, and `socket:[INODE]`.
pub fn who_has_open(sysfs: &Sysfs, files: &[String]) -> Vec<(String, String)> {
    if files.is_empty() {
        return Vec::new();
    }
    let open = |pid: u32| {
        let fds = fs::read_dir(sysfs.path(format!("proc/{pid}/fd"))).into_iter().flatten().flatten();
        let has: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
        files.iter().filter(move |file| has.iter().any(|path| path.as_os_str() == file.as_str()))
    };
    let name = |pid: u32| sysfs.read(format!("proc/{pid}/comm")).unwrap_or_default();
    let entries = fs::read_dir(sysfs.path("proc")).into_iter().flatten().flatten();
    let mut all: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    all.sort();
    all.into_iter()
        .flat_map(|pid| open(pid).map(move |file| (format!("process {pid} ({})", name(pid)), file.clone())))
        .collect()
}
