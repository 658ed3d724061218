//! What a system uses a PCI function for: file systems, swap, what is built on its disks; routes and addresses of its interfaces;
//! virtual functions.
//!
//! It is looked for under the function's place in sysfs, whatever is in between: the disks of a USB stick are its host controller's.

use nix::ifaddrs::getifaddrs;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileTypeExt;
use wholebar::vfio::sysfs::{Function, Sysfs, is_vfio};

/// An interface, and an address that it has.
pub type Address = (String, IpAddr);

/// The addresses of this machine's interfaces; none where the system doesn't tell.
pub fn addresses() -> Vec<Address> {
    let all = getifaddrs().into_iter().flatten();
    let ip = |storage: &nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    all.filter_map(|i| Some((i.interface_name, ip(i.address.as_ref()?)?))).collect()
}

/// What a function is used for, a sentence each; none where it can be taken away.
pub fn uses(sysfs: &Sysfs, function: &Function, addresses: &[Address]) -> Vec<String> {
    let mut uses: Vec<String> = function.disks().iter().flat_map(|disk| disk_uses(sysfs, disk)).collect();
    let interfaces = function.interfaces();
    for interface in &interfaces {
        uses.extend(interface_uses(sysfs, interface, addresses));
    }
    let driver = function.driver();
    let network = function.class().is_some_and(|class| class >> 16 == 0x02);
    if let Some(driver) =
        driver.as_ref().filter(|d| network && interfaces.is_empty() && !is_vfio(d) && *d != "pci-stub")
    {
        uses.push(format!(
            "{driver} has it, and its interface is not to be seen here: another network namespace may use it"
        ));
    }
    match function.read("sriov_numvfs").and_then(|n| n.parse::<u32>().ok()) {
        None | Some(0) => {}
        Some(n) => uses.push(format!("it has {n} virtual functions, which would go")),
    }
    uses
}

fn disk_uses(sysfs: &Sysfs, disk: &str) -> Vec<String> {
    let directory = format!("sys/class/block/{disk}");
    let mut parts: Vec<String> = names(sysfs, &directory)
        .into_iter()
        .filter(|name| sysfs.path(&directory).join(name).join("partition").exists())
        .collect();
    parts.sort();
    parts.insert(0, disk.to_owned());
    let mut uses: Vec<String> = parts.iter().flat_map(|part| part_uses(sysfs, part)).collect();
    if uses.is_empty() && has_exclusive_user(sysfs, disk) {
        uses.push(format!("somebody has {disk} or a part of it for itself alone"));
    }
    uses
}

/// Of a disk or a partition of one.
fn part_uses(sysfs: &Sysfs, part: &str) -> Vec<String> {
    let mut uses = Vec::new();
    let number = sysfs.read(format!("sys/class/block/{part}/dev")).unwrap_or_default();
    // The first process sees what this one's mount namespace may not.
    let tables = ["proc/self/mountinfo", "proc/1/mountinfo"].map(|file| sysfs.read(file).unwrap_or_default());
    let places: BTreeSet<String> =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| mounted(line, &number, part)).collect();
    uses.extend(places.iter().take(1).map(|place| match places.len() {
        1 => format!("{part} is mounted at {place}"),
        n => format!("{part} is mounted at {place} and {} more places", n - 1),
    }));
    let swaps = sysfs.read("proc/swaps").unwrap_or_default();
    if swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next()).any(|path| base_name(path) == part) {
        uses.push(format!("{part} is swap"));
    }
    for holder in names(sysfs, &format!("sys/class/block/{part}/holders")) {
        let name = sysfs.read(format!("sys/class/block/{holder}/dm/name"));
        let name = name.map_or(String::new(), |name| format!(" ({name})"));
        uses.push(format!("{holder}{name} is built on {part}"));
    }
    uses
}

/// Where a line of mountinfo says that a block device is mounted.
fn mounted(line: &str, number: &str, part: &str) -> Option<String> {
    // Documentation/filesystems/proc.rst, 3.5: ID, parent, major:minor, root, mount point, …, "-", type, source, ….
    let mut words = line.split_whitespace();
    let (device, place) = (words.nth(2)?, words.nth(1)?);
    let source = line.split_once(" - ")?.1.split_whitespace().nth(1)?;
    // Some file systems (btrfs) have numbers of their own.
    let is_it = device == number || source.starts_with("/dev/") && base_name(source) == part;
    is_it.then(|| place.replace("\\040", " "))
}

/// Whether the kernel refuses an exclusive use of a disk, or of a part of it: mounted anywhere, swap, part of something else.
fn has_exclusive_user(sysfs: &Sysfs, disk: &str) -> bool {
    let node = sysfs.path("dev").join(disk);
    let is_disk = fs::metadata(&node).is_ok_and(|meta| meta.file_type().is_block_device());
    is_disk && matches!(open(&node, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()), Err(Errno::BUSY))
}

fn interface_uses(sysfs: &Sysfs, interface: &str, addresses: &[Address]) -> Vec<String> {
    let mut uses = Vec::new();
    // What is above it (bridges, bonds, VLANs) uses it too.
    let (mut all, mut at) = (vec![interface.to_owned()], 0);
    while let Some(one) = all.get(at).cloned() {
        for name in names(sysfs, &format!("sys/class/net/{one}")) {
            if let Some(upper) = name.strip_prefix("upper_").filter(|upper| !all.iter().any(|known| known == upper)) {
                all.push(upper.to_owned());
            }
        }
        at += 1;
    }
    for one in &all {
        let who = if one == interface { one.clone() } else { format!("{one}, above {interface},") };
        let has = addresses.iter().filter(|(name, ip)| name == one && !is_link_local(ip)).map(|(_, ip)| ip.to_string());
        let has: Vec<String> = has.collect();
        if !has.is_empty() {
            uses.push(format!("{who} has the address {}", has.join(", ")));
        }
        for (version, routes) in [("IPv4", ipv4_routes(sysfs, one)), ("IPv6", ipv6_routes(sysfs, one))] {
            if let Some(first) = routes.first() {
                let more = if routes.len() > 1 { format!(" and {} more", routes.len() - 1) } else { String::new() };
                uses.push(format!("{who} carries the {version} route to {first}{more}"));
            }
        }
    }
    uses
}

/// Addresses that an interface gives itself.
fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

/// Where packets go through an interface, the default route first.
fn ipv4_routes(sysfs: &Sysfs, interface: &str) -> Vec<String> {
    let table = sysfs.read("proc/net/route").unwrap_or_default();
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Interface, destination, gateway, flags, …, mask at 7; addresses are words of memory, in network order.
        let address = |at: usize| {
            let word = u32::from_str_radix(words.get(at)?, 16).ok()?;
            Some(Ipv4Addr::from(word.to_ne_bytes()))
        };
        if *words.first()? != interface {
            return None;
        }
        let (destination, mask) = (address(1)?, address(7)?);
        Some((destination.into(), mask.to_bits().count_ones()))
    };
    in_words(table.lines().skip(1).filter_map(route))
}

/// Likewise; routes that every interface gets by itself do not count.
fn ipv6_routes(sysfs: &Sysfs, interface: &str) -> Vec<String> {
    /// RTF_LOCAL and RTF_ANYCAST, of include/uapi/linux/ipv6_route.h: addresses of this machine's own.
    const OWN: u32 = 0x8000_0000 | 0x0010_0000;
    let table = sysfs.read("proc/net/ipv6_route").unwrap_or_default();
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Destination, its length, source, its length, gateway, metric, two counts, flags, interface.
        if words.get(9)? != &interface || u32::from_str_radix(words[8], 16).ok()? & OWN != 0 {
            return None;
        }
        let destination = IpAddr::V6(Ipv6Addr::from_bits(u128::from_str_radix(words[0], 16).ok()?));
        (!is_link_local(&destination)).then_some((destination, u32::from_str_radix(words[1], 16).ok()?))
    };
    in_words(table.lines().filter_map(route))
}

fn in_words(routes: impl Iterator<Item = (IpAddr, u32)>) -> Vec<String> {
    let mut routes: Vec<(IpAddr, u32)> = routes.collect();
    routes.sort_by_key(|(_, length)| *length);
    let word = |(to, length): (IpAddr, u32)| match length {
        0 => "everywhere (the default route)".to_owned(),
        n => format!("{to}/{n}"),
    };
    routes.into_iter().map(word).collect()
}

fn names(sysfs: &Sysfs, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(sysfs.path(directory)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
