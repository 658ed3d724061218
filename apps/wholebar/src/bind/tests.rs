//! What is refused, what is remembered, and what becomes of a function that vfio-pci does not take; on trees of files like a
//! kernel's, which no kernel changes. Bindings that work are shown in guests.

use super::*;
use crate::doctor::tests::{Tree, function};
use std::cell::RefCell;
use std::net::IpAddr;

const NIC: &str = "0000:02:00.0";
const DISK: &str = "0000:01:00.0";

/// A disk with two partitions, and a network card.
fn machine() -> Tree {
    let (nvme, net) = ("sys/bus/pci/devices/0000:01:00.0/nvme/nvme0", "sys/bus/pci/devices/0000:02:00.0/net/eth0");
    let mut tree = Tree::healthy()
        .function(DISK, "nvme", Some(1))
        .function(NIC, "igb", Some(2))
        .put_device(NIC, "class", "0x020000");
    for (name, directory) in [("nvme0n1", ""), ("nvme0n1p1", "/nvme0n1p1"), ("nvme0n1p2", "/nvme0n1p2")] {
        let path = format!("{nvme}/nvme0n1{directory}");
        let to = tree.sysfs.path(&path);
        tree = tree.directory(&path).link(&format!("sys/class/block/{name}"), to.to_str().unwrap());
    }
    for (part, number) in [("1", "259:1"), ("2", "259:2")] {
        let path = format!("{nvme}/nvme0n1/nvme0n1p{part}");
        tree = tree.put(&format!("{path}/partition"), part).put(&format!("{path}/dev"), number);
    }
    let to = tree.sysfs.path(net);
    tree.put(&format!("{nvme}/nvme0n1/dev"), "259:0").directory(net).link("sys/class/net/eth0", to.to_str().unwrap())
}

fn check(tree: &Tree, address: &str, addresses: &[(String, IpAddr)]) -> String {
    check_with(tree, address, &in_use::Network { addresses: addresses.to_vec(), xdp: Vec::new() })
}

fn check_with(tree: &Tree, address: &str, network: &in_use::Network) -> String {
    let functions = [function(&tree.sysfs, address)];
    check_bind(&tree.sysfs, &functions, true, network).unwrap();
    match check_bind(&tree.sysfs, &functions, false, network) {
        Ok(()) => String::new(),
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("refused, and nothing was changed; --force"), "{text}");
            text.split_once('\n').unwrap().1.trim().to_owned()
        }
    }
}

#[test]
fn disks_in_use_are_refused() {
    assert_eq!(check(&machine(), DISK, &[]), "", "a disk that nobody uses");
    let table = |line: &str| machine().put("proc/self/mountinfo", &format!("22 1 0:2 / / rw - rootfs none rw\n{line}"));
    for (tree, says) in [
        (
            table("30 22 259:1 / /mnt/a\\040b rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw"),
            "nvme0n1p1 is mounted at /mnt/a b",
        ),
        (table("30 22 259:0 / /mnt rw - ext4 /dev/root rw"), "nvme0n1 is mounted at /mnt"),
        // A file system with a device number of its own.
        (table("30 22 0:44 /@ /mnt rw - btrfs /dev/nvme0n1p2 rw"), "nvme0n1p2 is mounted at /mnt"),
        (
            table("30 22 259:1 / /a rw - ext4 /dev/x rw\n31 22 259:1 / /b rw - ext4 /dev/x rw"),
            "nvme0n1p1 is mounted at /a and 1 more places",
        ),
        (
            machine().put("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2"),
            "nvme0n1p2 is swap",
        ),
        (
            machine()
                .directory("sys/class/block/nvme0n1p2/holders/dm-0")
                .put("sys/class/block/dm-0/dm/name", "vg-root"),
            "dm-0 (vg-root) is built on nvme0n1p2",
        ),
        (machine().directory("sys/class/block/nvme0n1/holders/md127"), "md127 is built on nvme0n1"),
        (machine().put("sys/class/block/loop3/loop/backing_file", "/dev/nvme0n1p2"), "loop3 is built on nvme0n1p2"),
        (exported("1"), "nvme0n1 is namespace 7 of the NVMe target's nqn.x"),
        // Read and written past file systems: by a virtual machine, by somebody with the controller's or a partition's node.
        (opened("/dev/nvme0n1"), "process 77 (qemu) has /dev/nvme0n1 open"),
        (opened("/dev/nvme0n1p2"), "process 77 (qemu) has /dev/nvme0n1p2 open"),
        (opened("/dev/nvme0"), "process 77 (qemu) has /dev/nvme0 open"),
    ] {
        assert_eq!(check(&tree, DISK, &[]), format!("{DISK}: {says}"));
        assert_eq!(check(&tree, NIC, &[]), "", "the other one is free");
    }
    for free in [exported("0"), opened("/dev/nvme1"), opened("/dev/nvme0n11"), opened("/dev/vfio/1")] {
        assert_eq!(check(&free, DISK, &[]), "");
    }
    let elsewhere =
        table("30 22 8:1 / /mnt rw - ext4 /dev/sda1 rw").put("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2");
    assert_eq!(check(&elsewhere, DISK, &[]), "");
}

/// With a namespace of the kernel's NVMe target.
fn exported(enable: &str) -> Tree {
    let namespace = "sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/7";
    machine().put(&format!("{namespace}/device_path"), "/dev/nvme0n1").put(&format!("{namespace}/enable"), enable)
}

/// With a process that has a file open.
fn opened(file: &str) -> Tree {
    let place = "sys/bus/pci/devices/0000:01:00.0/nvme/nvme0";
    let tree = machine().put(&format!("{place}/uevent"), "MAJOR=240\nDEVNAME=nvme0");
    let to = tree.sysfs.path(place);
    let tree = tree.link("sys/dev/char/240:0", to.to_str().unwrap());
    tree.put("proc/77/comm", "qemu").link("proc/77/fd/12", file)
}

const ROUTES: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT";

#[test]
fn cards_with_routes_or_addresses_are_refused() {
    assert_eq!(check(&machine(), NIC, &[]), "", "a card without either");
    // In words of this machine's order.
    let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
    let route = |interface: &str, to: [u8; 4], mask: [u8; 4]| {
        format!("{interface} {} 00000000 0001 0 0 0 {} 0 0 0", word(to), word(mask))
    };
    let (default, net) = (route("eth0", [0; 4], [0; 4]), route("eth0", [10, 1, 0, 0], [255, 255, 0, 0]));
    let v4 = |lines: &[String]| machine().put("proc/net/route", &format!("{ROUTES}\n{}", lines.join("\n")));
    let zero = "0".repeat(32);
    let v6 = |to: &str, length: &str, flags: &str, interface: &str| {
        let line = format!("{to} {length} {zero} 00 {zero} 00000400 00000001 00000000 {flags} {interface}");
        machine().put("proc/net/ipv6_route", &line)
    };
    let link_local = "fe80".to_owned() + &"0".repeat(28);
    for (tree, says) in [
        (v4(std::slice::from_ref(&net)), "eth0 carries the IPv4 route to 10.1.0.0/16"),
        (v4(&[net.clone(), default]), "eth0 carries the IPv4 route to everywhere (the default route) and 1 more"),
        (v4(&[route("eth1", [0; 4], [0; 4])]), ""),
        (v6(&zero, "00", "00450003", "eth0"), "eth0 carries the IPv6 route to everywhere (the default route)"),
        (
            v6(&("20010db8".to_owned() + &"0".repeat(24)), "40", "00000001", "eth0"),
            "eth0 carries the IPv6 route to 2001:db8::/64",
        ),
        (v6(&zero, "00", "00450003", "eth1"), ""),
        // What every interface has by itself.
        (v6(&link_local, "40", "00000001", "eth0"), ""),
        (v6(&("ff".to_owned() + &"0".repeat(30)), "08", "00000001", "eth0"), ""),
        (v6(&("20010db8".to_owned() + &"0".repeat(24)), "80", "80200001", "eth0"), ""),
        // A bridge above it.
        (
            v4(&[route("br0", [10, 1, 0, 0], [255, 255, 0, 0])]).directory("sys/class/net/eth0/upper_br0"),
            "br0 is built on eth0\n  0000:02:00.0: br0, above eth0, carries the IPv4 route to 10.1.0.0/16",
        ),
    ] {
        let expected = if says.is_empty() { String::new() } else { format!("{NIC}: {says}") };
        assert_eq!(check(&tree, NIC, &[]), expected);
    }
    let has = |name: &str, ip: &str| (name.to_owned(), ip.parse::<IpAddr>().unwrap());
    let addresses =
        [has("lo", "127.0.0.1"), has("eth0", "fe80::1"), has("eth0", "10.1.2.3"), has("eth0", "2001:db8::1")];
    assert_eq!(check(&machine(), NIC, &addresses), format!("{NIC}: eth0 has the address 10.1.2.3, 2001:db8::1"));
    assert_eq!(check(&machine(), NIC, &addresses[..2]), "");
}

#[test]
fn cards_that_something_is_built_on_are_refused() {
    let above = |upper: &str, devtype: &str| {
        let tree = machine().directory(&format!("sys/class/net/eth0/upper_{upper}"));
        tree.put(&format!("sys/class/net/{upper}/uevent"), &format!("INTERFACE={upper}\n{devtype}"))
    };
    let port = |upper: &str, devtype: &str| {
        let tree = above(upper, devtype);
        let to = tree.sysfs.path(format!("sys/class/net/{upper}"));
        tree.link("sys/class/net/eth0/master", to.to_str().unwrap())
    };
    let vlan_in_bridge = above("eth0.5", "DEVTYPE=vlan").directory("sys/class/net/eth0.5/upper_br1");
    let packets = "sk RefCnt Type Proto Iface R Rmem User Inode\n0 3 3 0003 4 1 0 0 9001\n0 3 3 0003 5 1 0 0 9002";
    let listener = |index: &str| machine().put("proc/net/packet", packets).put("sys/class/net/eth0/ifindex", index);
    for (tree, says) in [
        (port("bond0", "DEVTYPE=bond"), "eth0 is a port of bond0 (bond)"),
        (port("br0", "DEVTYPE=bridge"), "eth0 is a port of br0 (bridge)"),
        // Linux has no word for these kinds here.
        (port("team0", ""), "eth0 is a port of team0"),
        (port("ovs-system", ""), "eth0 is a port of ovs-system"),
        (port("vrf-blue", ""), "eth0 is a port of vrf-blue"),
        (above("macvlan0", "DEVTYPE=macvlan"), "macvlan0 (macvlan) is built on eth0"),
        (above("ipvl0", ""), "ipvl0 is built on eth0"),
        (vlan_in_bridge, "eth0.5 (vlan) is built on eth0\n  0000:02:00.0: br1 is built on eth0.5"),
        (listener("4"), "a packet socket listens on eth0"),
        (
            listener("5").put("proc/88/comm", "lldpd").link("proc/88/fd/3", "socket:[9002]"),
            "process 88 (lldpd) has a packet socket on eth0",
        ),
        (
            machine().put("proc/net/pppoe", "Id       Address              Device\n00000001 02:00:00:00:00:01 eth0"),
            "a PPPoE session runs over eth0",
        ),
    ] {
        assert_eq!(check(&tree, NIC, &[]), format!("{NIC}: {says}"));
        assert_eq!(check(&tree, DISK, &[]), "", "the other one is free");
    }
    assert_eq!(check(&listener("6"), NIC, &[]), "", "they listen on others");
    let xdp = |name: &str| in_use::Network { addresses: Vec::new(), xdp: vec![name.to_owned()] };
    assert_eq!(check_with(&machine(), NIC, &xdp("eth0")), format!("{NIC}: an XDP program is attached to eth0"));
    assert_eq!(check_with(&machine(), NIC, &xdp("eth1")), "");
}

#[test]
fn what_was_not_bound_is_not_advised_to_be() {
    let (second, third) = ("0000:01:00.1", "0000:01:00.2");
    let tree = machine().function(second, "igb", Some(1)).function(third, "snd_hda_intel", Some(1));
    let functions = [DISK, second].map(|address| function(&tree.sysfs, address));
    let outcomes = |errors: [Option<&str>; 2]| {
        let outcome =
            |(f, e): (&Function, Option<&str>)| outcome(f, |_| e.map_or(Ok(()), |e| Err(anyhow!(e.to_owned()))));
        functions.iter().zip(errors).map(outcome).collect::<Vec<_>>()
    };
    let advised = |errors| obstacles(&tree.sysfs, &functions, &outcomes(errors));
    assert_eq!(advised([Some("no"), Some("no")]), [], "neither was bound: no group is waited for");
    // One was: neither the one that was not nor itself is advised, but who was not asked for.
    let other = |address: &str| (address.parse().unwrap(), third.parse().unwrap(), "snd_hda_intel".to_owned());
    assert_eq!(advised([Some("no"), None]), [other(second)]);
    assert_eq!(advised([None, None]), [other(DISK), other(second)]);
}

#[test]
fn cards_whose_use_cannot_be_seen_are_refused() {
    let moved = machine().without("sys/class/net/eth0");
    assert!(check(&moved, NIC, &[]).contains("another network namespace"));
    assert!(check(&machine().put_device(NIC, "sriov_numvfs", "2"), NIC, &[]).contains("2 virtual functions"));
}

#[test]
fn what_vfio_pci_cannot_take_is_refused_by_force_too() {
    for (tree, says) in [
        (machine().put_device(DISK, "class", "0x060400"), "bridge"),
        (machine().without("sys/bus/pci/devices/0000:01:00.0/iommu_group"), "in no IOMMU group"),
    ] {
        let error = check_bind(&tree.sysfs, &[function(&tree.sysfs, DISK)], true, &in_use::Network::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says) && error.contains("nothing was changed"), "{error}");
    }
    // Without an IOMMU only where VFIO is told to do without.
    let parameter = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    let bare = machine().without("sys/bus/pci/devices/0000:01:00.0/iommu_group").put(parameter, "Y");
    check_bind(&bare.sysfs, &[function(&bare.sysfs, DISK)], false, &in_use::Network::default()).unwrap();
}

#[test]
fn whoever_has_it_open_keeps_it() {
    let tree = Tree::healthy()
        .function(DISK, "vfio-pci", Some(1))
        .link("proc/77/fd/5", "/dev/vfio/1")
        .put("proc/77/comm", "spdk");
    let tree = tree.link("proc/78/fd/5", "/dev/vfio/11");
    let functions = [function(&tree.sysfs, DISK)];
    let error = check_unbind(&tree.sysfs, &functions, false).unwrap_err().to_string();
    assert!(error.contains("process 77 (spdk)") && !error.contains("78"), "{error}");
    check_unbind(&tree.sysfs, &functions, true).unwrap();
}

/// Carries something out, and returns what it said.
fn said(change: impl FnOnce(&dyn Fn(String)) -> Result<()>) -> (Vec<String>, Result<()>) {
    let lines = RefCell::new(Vec::new());
    let done = change(&|line| lines.borrow_mut().push(line));
    (lines.into_inner(), done)
}

#[test]
fn a_function_that_is_not_taken_goes_back() {
    // No kernel is behind these files: the driver stays what it was.
    let tree = machine().put_device(DISK, "driver_override", "(null)").directory("sys/bus/pci/drivers/vfio-pci");
    let disk = function(&tree.sysfs, DISK);
    let (lines, done) = said(|say| give(&tree.sysfs, &disk, &say));
    assert_eq!(lines, ["0000:01:00.0: taking it from nvme"]);
    let error = done.unwrap_err().to_string();
    assert!(error.contains("bound to nvme") && error.ends_with("nvme has it, as before"), "{error}");
    assert_eq!(disk.read("driver_override").as_deref(), Some(""), "an empty line takes it away");
    assert_eq!(tree.sysfs.read("sys/bus/pci/drivers_probe").as_deref(), Some(DISK));
    assert_eq!(Earlier::recall(&tree.sysfs, disk.address()), None);
}

#[test]
fn what_is_done_already_is_not_done_again() {
    let tree = machine().function("0000:03:00.0", "vfio-pci", Some(3));
    let (bound, disk) = (function(&tree.sysfs, "0000:03:00.0"), function(&tree.sysfs, DISK));
    let (lines, done) = said(|say| give(&tree.sysfs, &bound, &say));
    assert!(done.is_ok() && lines == ["0000:03:00.0: vfio-pci has it already"], "{lines:?} {done:?}");
    let (lines, done) = said(|say| give_back(&tree.sysfs, &disk, &say));
    assert!(done.is_ok() && lines == ["0000:01:00.0: nvme has it already"], "{lines:?} {done:?}");
    assert!(!tree.sysfs.path("sys/bus/pci/drivers_probe").exists(), "nothing was written");
}

#[test]
fn what_had_it_is_remembered() {
    let (tree, address) = (machine(), DISK.parse().unwrap());
    let earlier = Earlier { driver: Some("nvme".to_owned()), driver_override: None };
    earlier.remember(&tree.sysfs, address).unwrap();
    assert_eq!(Earlier::recall(&tree.sysfs, address), Some(earlier));
    Earlier::forget(&tree.sysfs, address);
    assert_eq!(Earlier::recall(&tree.sysfs, address), None);
}
