//! What is refused, in which order things are done, and what is kept; on trees of files like a kernel's, which no kernel changes: a tree's virtual
//! functions are there all along, and their number is not. Those that a kernel makes are shown in guests.

use super::create::{Drivers, check, make};
use super::{destroy, list, named};
use crate::doctor::tests::{Tree, function};
use crate::in_use::Network;
use crate::names::Names;
use crate::token;
use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use wholebar::pci::Address;
use wholebar::vfio::VfToken;
use wholebar::vfio::sysfs::Sysfs;

const PHYSICAL: &str = "0000:02:00.0";
const VIRTUAL: [&str; 2] = ["0000:02:10.0", "0000:02:10.2"];
const TOKEN: &str = "2ab74924-c335-45f4-9b16-8569e5b08258";
const ENABLE: &str = "sys/module/vfio_pci/parameters/enable_sriov";

/// A physical function with a driver, which has two virtual ones, or none as it says.
fn machine(driver: &str, there: u16) -> Tree {
    Tree::healthy()
        .function(PHYSICAL, driver, Some(1))
        .function(VIRTUAL[0], "vfio-pci", Some(2))
        .function(VIRTUAL[1], "vfio-pci", Some(3))
        .sriov(PHYSICAL, 7, &VIRTUAL)
        .put_device(PHYSICAL, "sriov_numvfs", &there.to_string())
        .put(ENABLE, "N")
        .put("proc/sys/kernel/random/uuid", TOKEN)
        .directory("sys/bus/pci/drivers/vfio-pci")
}

fn parsed(token: &str) -> VfToken {
    token.parse().unwrap()
}

fn refused(tree: &Tree, name: &str, count: u16, token: Option<&str>) -> String {
    let token = token.map(parsed);
    named(&tree.sysfs, name).and_then(|f| check(&tree.sysfs, &f, count, token)).unwrap_err().to_string()
}

#[test]
fn what_would_not_work_is_refused_with_what_does() {
    let none = machine("igb", 0);
    for (tree, name, count, token, says) in [
        (&none, "0000:03:00.0", 1, None, "no such PCI function"),
        (&none, "nonsense", 1, None, "nonsense"),
        (&none, VIRTUAL[0], 1, None, "is itself a virtual function: 0000:02:00.0 has it"),
        (&none, PHYSICAL, 8, None, "can have 7 virtual functions at most, not 8"),
        (&none, PHYSICAL, 2, Some(TOKEN), "igb has 0000:02:00.0: leave --token out"),
        (
            &machine("igb", 2),
            PHYSICAL,
            3,
            None,
            "has 2 virtual functions already, and their number changes by way of none",
        ),
        (&machine("", 0), PHYSICAL, 2, None, "no driver has it"),
        (&Tree::healthy().function(PHYSICAL, "igb", None), PHYSICAL, 1, None, "it is no SR-IOV device"),
        (&none_allowed(), PHYSICAL, 1, None, "sriov_totalvfs is 0"),
        (
            &opened(),
            PHYSICAL,
            2,
            None,
            "process 77 (l2fwd) has 0000:02:00.0, or its IOMMU group, open: give the VF token",
        ),
    ] {
        let text = refused(tree, name, count, token);
        assert!(text.contains(says), "{text}\ndoes not say {says:?}");
    }
    check(&none.sysfs, &function(&none.sysfs, PHYSICAL), 7, None).unwrap();
    check(&opened().sysfs, &function(&opened().sysfs, PHYSICAL), 7, Some(parsed(TOKEN))).unwrap();
}

fn none_allowed() -> Tree {
    machine("igb", 0).put_device(PHYSICAL, "sriov_totalvfs", "0")
}

/// With a program that has the physical function open.
fn opened() -> Tree {
    machine("vfio-pci", 0).put("proc/77/comm", "l2fwd").link("proc/77/fd/9", "/dev/vfio/1")
}

/// Makes two; what was said, and the token that the physical function was told.
fn made(tree: &Tree, given: Option<&str>, drivers: Drivers) -> (Vec<String>, Option<VfToken>) {
    let (said, told) = (RefCell::new(Vec::new()), RefCell::new(None));
    let set = |address: Address, token| {
        assert_eq!(
            (address.to_string().as_str(), numvfs(&tree.sysfs).as_str()),
            (PHYSICAL, "0"),
            "before there are any"
        );
        *told.borrow_mut() = Some(token);
        Ok(())
    };
    let say = |line| said.borrow_mut().push(line);
    make(&tree.sysfs, &function(&tree.sysfs, PHYSICAL), 2, given.map(parsed), drivers, set, &say).unwrap();
    assert_eq!(numvfs(&tree.sysfs), "2");
    (said.take(), told.take())
}

fn numvfs(sysfs: &Sysfs) -> String {
    function(sysfs, PHYSICAL).read("sriov_numvfs").unwrap()
}

#[test]
fn vfio_gets_a_token_before_there_are_virtual_functions() {
    let tree = machine("vfio-pci", 0);
    let (said, told) = made(&tree, None, Drivers::Any);
    assert_eq!(told, Some(parsed(TOKEN)), "a new one");
    assert_eq!(tree.sysfs.read(ENABLE).unwrap(), "Y");
    assert!(said[0].starts_with("echo Y > /sys/module/vfio_pci"), "{said:?}");
    let physical: Address = PHYSICAL.parse().unwrap();
    assert_eq!(token::recall(&tree.sysfs, physical), Some(parsed(TOKEN)));
    let file = tree.sysfs.path("run/wholebar/vf-token").join(PHYSICAL);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "nobody else reads it");
    let named = token::opens_as(&tree.sysfs, &function(&tree.sysfs, VIRTUAL[1]));
    assert_eq!(named, Some(format!("0000:02:10.2,token={TOKEN}")));

    // A program has it open, and its token is the one that was given: it is not told again.
    let tree = opened();
    let other = "00000000-c335-45f4-9b16-8569e5b08258";
    assert_eq!(made(&tree, Some(other), Drivers::Any).1, None);
    assert_eq!(token::recall(&tree.sysfs, physical), Some(parsed(other)));
}

#[test]
fn a_kernels_driver_gets_none_and_drivers_are_as_asked() {
    let tree = machine("igb", 0);
    let (said, told) = made(&tree, None, Drivers::None);
    assert_eq!((told, said.len()), (None, 1), "{said:?}");
    assert_eq!(tree.sysfs.read(ENABLE).unwrap(), "N");
    let autoprobe = function(&tree.sysfs, PHYSICAL).read("sriov_drivers_autoprobe");
    assert_eq!(autoprobe.as_deref(), Some("1"), "it is as it was");
    assert_eq!(token::opens_as(&tree.sysfs, &function(&tree.sysfs, VIRTUAL[0])).as_deref(), Some(VIRTUAL[0]));
}

#[test]
fn those_in_use_stay() {
    let tree = machine("igb", 2);
    let physical = || function(&tree.sysfs, PHYSICAL);
    let check =
        |tree: &Tree, force| destroy::check(&tree.sysfs, &function(&tree.sysfs, PHYSICAL), force, &Network::default());
    check(&tree, false).unwrap();
    let open = machine("igb", 2).put("proc/77/comm", "testpmd").link("proc/77/fd/9", "/dev/vfio/3");
    let error = check(&open, false).unwrap_err().to_string();
    assert!(error.contains("0000:02:10.2: process 77 (testpmd) has it"), "{error}");
    check(&open, true).unwrap();
    token::remember(&tree.sysfs, PHYSICAL.parse().unwrap(), parsed(TOKEN)).unwrap();
    let gone = destroy::take_away(&tree.sysfs, &physical(), &|_| {}).unwrap();
    assert_eq!((gone, numvfs(&tree.sysfs)), (VIRTUAL.map(str::to_owned).to_vec(), "0".to_owned()));
    assert_eq!(token::recall(&tree.sysfs, PHYSICAL.parse().unwrap()), None);
    assert!(destroy::take_away(&tree.sysfs, &physical(), &|_| {}).unwrap().is_empty(), "there are none");
}

#[test]
fn a_list_fits_80_columns() {
    let tree = machine("vfio-pci", 2);
    let list = || list::Physical::of(&tree.sysfs, &function(&tree.sysfs, PHYSICAL), &Names::load()).text();
    let unknown = list();
    assert!(unknown.contains("2 of 7 virtual functions; vfio-pci has it"), "{unknown}");
    assert!(unknown.contains("0000:02:10.2,token=? "), "{unknown}");
    token::remember(&tree.sysfs, PHYSICAL.parse().unwrap(), parsed(TOKEN)).unwrap();
    let known = list();
    assert!(known.contains(&format!("0000:02:10.0,token={TOKEN}")), "{known}");
    assert!(known.lines().all(|line| line.chars().count() <= 80), "{known}");
}
