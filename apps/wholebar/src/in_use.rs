//! What a system uses a PCI function for: file systems, swap, what is built on its disks; routes and addresses of its interfaces, what is built
//! on these, who takes their packets; processes that have one of its nodes open; virtual functions.
//!
//! It is looked for under the function's place in sysfs, whatever is in between: the disks of a USB stick are its host controller's. What another network
//! namespace has made of an interface of this one (a macvlan that was moved there) is not to be seen from here.

use crate::openers::who_has_open;
use nix::ifaddrs::getifaddrs;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileTypeExt;
use wholebar::kernel::net::with_xdp_programs;
use wholebar::vfio::sysfs::{Function, Sysfs, is_vfio};

/// What the kernel tells of this network namespace by calls, and no file of it.
#[derive(Default)]
pub struct Network {
    /// The addresses of interfaces.
    pub addresses: Vec<(String, IpAddr)>,
    /// Interfaces whose packets an XDP program has.
    pub xdp: Vec<String>,
}

impl Network {
    /// Of this process; empty where the system doesn't tell.
    pub fn read() -> Self {
        let all = getifaddrs().into_iter().flatten();
        let ip = |storage: &nix::sys::socket::SockaddrStorage| {
            let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        };
        let addresses = all.filter_map(|i| Some((i.interface_name, ip(i.address.as_ref()?)?))).collect();
        Self { addresses, xdp: with_xdp_programs().unwrap_or_default() }
    }
}

/// What a function is used for, a sentence each; none where it can be taken away.
pub fn uses(sysfs: &Sysfs, function: &Function, network: &Network) -> Vec<String> {
    let disks = function.disks();
    let mut uses: Vec<String> = disks.iter().flat_map(|disk| disk_uses(sysfs, disk)).collect();
    let interfaces = function.interfaces();
    for interface in &interfaces {
        uses.extend(interface_uses(sysfs, interface, network));
    }
    let nodes = nodes(sysfs, function, &disks);
    let open = who_has_open(sysfs, &nodes).into_iter();
    uses.extend(open.map(|(process, node)| format!("{process} has {node} open")));
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

/// The nodes of what a function is or leads to: its disks and their partitions, and everything that has a number under its place in sysfs (controllers,
/// clocks, serial ports, graphics, RDMA).
fn nodes(sysfs: &Sysfs, function: &Function, disks: &[String]) -> Vec<String> {
    let mut nodes: Vec<String> =
        disks.iter().flat_map(|disk| parts(sysfs, disk)).map(|part| format!("/dev/{part}")).collect();
    let Ok(place) = function.path().canonicalize() else { return nodes };
    for kind in ["sys/dev/char", "sys/dev/block"] {
        for number in names(sysfs, kind) {
            let device = sysfs.path(kind).join(number);
            if device.canonicalize().is_ok_and(|device| device.starts_with(&place)) {
                let uevent = fs::read_to_string(device.join("uevent")).unwrap_or_default();
                nodes.extend(value(&uevent, "DEVNAME").map(|name| format!("/dev/{name}")));
            }
        }
    }
    nodes.sort();
    nodes.dedup();
    nodes
}

/// A disk, and its partitions.
fn parts(sysfs: &Sysfs, disk: &str) -> Vec<String> {
    let directory = format!("sys/class/block/{disk}");
    let is_part = |name: &String| sysfs.path(&directory).join(name).join("partition").exists();
    let mut parts: Vec<String> = names(sysfs, &directory).into_iter().filter(is_part).collect();
    parts.sort();
    parts.insert(0, disk.to_owned());
    parts
}

fn disk_uses(sysfs: &Sysfs, disk: &str) -> Vec<String> {
    let mut uses: Vec<String> = parts(sysfs, disk).iter().flat_map(|part| part_uses(sysfs, part)).collect();
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
    // A loop device is no holder of what it reads, and neither is the kernel's NVMe target.
    for name in names(sysfs, "sys/class/block") {
        let file = sysfs.read(format!("sys/class/block/{name}/loop/backing_file"));
        if file.is_some_and(|file| file == format!("/dev/{part}")) {
            uses.push(format!("{name} is built on {part}"));
        }
    }
    let exported = "sys/kernel/config/nvmet/subsystems";
    for subsystem in names(sysfs, exported) {
        for namespace in names(sysfs, &format!("{exported}/{subsystem}/namespaces")) {
            let read = |file: &str| sysfs.read(format!("{exported}/{subsystem}/namespaces/{namespace}/{file}"));
            let on = read("enable").as_deref() == Some("1");
            if on && read("device_path").is_some_and(|path| path == format!("/dev/{part}")) {
                uses.push(format!("{part} is namespace {namespace} of the NVMe target's {subsystem}"));
            }
        }
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

fn interface_uses(sysfs: &Sysfs, interface: &str, network: &Network) -> Vec<String> {
    let mut uses = Vec::new();
    // What is above it (bridges, bonds, VLANs) uses it too.
    let (mut all, mut at) = (vec![interface.to_owned()], 0);
    while let Some(one) = all.get(at).cloned() {
        let master = fs::read_link(sysfs.path(format!("sys/class/net/{one}/master"))).ok();
        let master = master.as_ref().and_then(|path| path.file_name()?.to_str());
        let mut uppers: Vec<String> = names(sysfs, &format!("sys/class/net/{one}"))
            .iter()
            .filter_map(|name| name.strip_prefix("upper_").map(str::to_owned))
            .collect();
        uppers.sort();
        for upper in uppers {
            let named = with_kind(sysfs, &upper);
            uses.push(match master == Some(upper.as_str()) {
                true => format!("{one} is a port of {named}"),
                false => format!("{named} is built on {one}"),
            });
            if !all.contains(&upper) {
                all.push(upper);
            }
        }
        at += 1;
    }
    if network.xdp.iter().any(|name| name == interface) {
        uses.push(format!("an XDP program is attached to {interface}"));
    }
    uses.extend(packet_sockets(sysfs, interface));
    let pppoe = sysfs.read("proc/net/pppoe").unwrap_or_default();
    // Id, address, device.
    if pppoe.lines().skip(1).any(|line| line.split_whitespace().nth(2) == Some(interface)) {
        uses.push(format!("a PPPoE session runs over {interface}"));
    }
    let addresses = &network.addresses;
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

/// An interface above others, with its kind where the kernel has a word for it: `br0 (bridge)`.
fn with_kind(sysfs: &Sysfs, name: &str) -> String {
    let read = |file: &str| sysfs.read(format!("sys/class/net/{name}/{file}"));
    match value(&read("uevent").unwrap_or_default(), "DEVTYPE") {
        Some(kind) => format!("{name} ({kind})"),
        None => name.to_owned(),
    }
}

/// The packet sockets (AF_PACKET) that are bound to an interface: of tcpdump, DHCP and LLDP clients.
fn packet_sockets(sysfs: &Sysfs, interface: &str) -> Vec<String> {
    let index = sysfs.read(format!("sys/class/net/{interface}/ifindex"));
    let table = sysfs.read("proc/net/packet").unwrap_or_default();
    // Address, references, type, protocol, interface, running, memory, user, inode.
    let ours = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(4).copied() == index.as_deref()).then(|| words.get(8).map(|inode| format!("socket:[{inode}]")))?
    };
    let sockets: Vec<String> = table.lines().skip(1).filter_map(ours).collect();
    let owners: BTreeSet<String> = who_has_open(sysfs, &sockets).into_iter().map(|(process, _)| process).collect();
    match owners.len() {
        0 if sockets.is_empty() => Vec::new(),
        0 => vec![format!("a packet socket listens on {interface}")],
        _ => owners.iter().map(|process| format!("{process} has a packet socket on {interface}")).collect(),
    }
}

/// The value of a `NAME=value` line.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
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
