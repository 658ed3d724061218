//! What the facts mean for who wants to open a device: pure.
//!
//! Each rule looks at one thing and says one line about it, or nothing where it doesn't matter here: a consequence of something
//! else that is in the way is not told again.

use super::facts::{Device, Group, Host, Hugepages, Module, Node, SmallBar};
use super::finding::Finding;
use super::known;
use super::virtual_function;
use crate::output;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::is_vfio;
use wholebar::vfio::{Route, VfioOptions};

/// What is so for every device of this machine, opened by `route`.
pub fn host(host: &Host, route: Route) -> Vec<Finding> {
    let bare = route == Route::NoIommu;
    if !host.sees_sysfs {
        let what = "/sys is not to be seen here: drivers, IOMMU and interrupts are not known";
        let mend =
            ["mount -t sysfs sysfs /sys", "in a container: hand it in (docker: -v /sys:/sys)"].map(str::to_owned);
        let blind = [Some(Finding::stop("/sys", what, mend)), hugepages(host, bare), memlock(host, bare)];
        return blind.into_iter().flatten().collect();
    }
    let rules = [
        iommu(host, bare),
        interrupts(host, bare),
        no_iommu(host, bare),
        vfio_pci(host),
        iommu_driver(host, route),
        nodes(host, route),
        hugepages(host, bare),
        Some(pages(host)),
        memlock(host, bare),
        cores(host),
    ];
    rules.into_iter().flatten().collect()
}

/// What is so for this device alone, opened with these options.
pub fn device(host: &Host, device: &Device, options: &VfioOptions) -> Vec<Finding> {
    let route = options.route;
    if device.bridge {
        let what = "it leads to another bus: there is nothing to drive, and vfio-pci takes none";
        return vec![Finding::stop("bridge", what, [])];
    }
    let mut findings = vec![driver(device)];
    findings.extend(group(host, device, route));
    findings.extend(own_node(host, device, route));
    findings.extend(in_use(device));
    findings.extend(virtual_function::rule(host, device, options.vf_token));
    findings.extend(device.group.as_ref().and_then(direct));
    findings.extend(device.small_bars.iter().map(|bar| small_bar(host, device, bar)));
    findings.extend(numa(host, device));
    findings.extend(known::rules(device));
    findings
}

const REBOOT: &str = "and reboot";

/// How an argument gets onto the kernel's command line.
fn kernel_argument(argument: &str) -> String {
    format!(
        "grubby --update-kernel=ALL --args='{argument}'    (or, without grubby: {argument} into GRUB_CMDLINE_LINUX of \
         /etc/default/grub, and update-grub), {REBOOT}"
    )
}

fn iommu(host: &Host, bare: bool) -> Option<Finding> {
    const CHECK: &str = "IOMMU";
    if host.groups > 0 {
        let by = if host.iommus.is_empty() { String::new() } else { format!(" ({})", host.iommus.join(", ")) };
        return Some(Finding::ok(CHECK, format!("on{by}, {} groups of devices", host.groups)));
    }
    if bare {
        let what = "there is none: the device can reach all memory, and a bug can overwrite any of it";
        return Some(Finding::warn(CHECK, what, []));
    }
    let off = host.command_line.split_whitespace().find(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        name.ends_with("iommu") && value.split(',').any(|v| v == "off")
    });
    let virtual_machine = "in a virtual machine: give it a virtual IOMMU (QEMU: -device intel-iommu,intremap=on with \
                           kernel-irqchip=split; -device virtio-iommu-pci)";
    let without = "where nothing of worth is in this machine's memory: \
                   echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, and name the device BDF,via=no-iommu";
    let (what, mut mend) = match (&host.tables[..], off) {
        (_, Some(word)) => (
            format!("off: the kernel was started with {word}"),
            vec![format!(
                "take {word} off the kernel's command line (grubby --update-kernel=ALL --remove-args='{word}'), {REBOOT}"
            )],
        ),
        (tables, None) if tables.contains(&"DMAR") => (
            "off: the firmware offers VT-d (its DMAR table is there), and the kernel makes no use of it".to_owned(),
            vec![kernel_argument("intel_iommu=on")],
        ),
        ([table, ..], None) => (
            format!("off: the firmware tells of one (its {table} table is there), and the kernel makes no use of it"),
            vec!["dmesg | grep -i -e iommu -e amd-vi -e smmu    (says why)".to_owned()],
        ),
        ([], None) => (
            "none: no device is in an IOMMU group, and the firmware tells of none (no DMAR, IVRS or IORT table)"
                .to_owned(),
            vec!["switch it on in the firmware's setup (VT-d, AMD-Vi, SMMU)".to_owned(), virtual_machine.to_owned()],
        ),
    };
    // VFIO without the parameter was built without it.
    if host.no_iommu.is_some() || host.vfio_pci != Module::Here {
        mend.push(without.to_owned());
    }
    Some(Finding::stop(CHECK, what, mend))
}

/// Whether interrupts are remapped, as far as the chips of those in use tell; and whether VFIO looks.
fn interrupts(host: &Host, bare: bool) -> Option<Finding> {
    const CHECK: &str = "interrupts";
    if bare || host.groups == 0 {
        return None;
    }
    let remapped = host.chips.iter().find(|chip| chip.starts_with("IR-") || chip.starts_with("ITS-"));
    let plain = host.chips.iter().find(|chip| chip.starts_with("PCI-MSI"));
    let ignoring = host.unsafe_interrupts.iter().filter(|(_, flag)| *flag == Some(true));
    let ignoring: Vec<&str> = ignoring.map(|(module, _)| *module).collect();
    let setting = match host.unsafe_interrupts.iter().any(|(_, flag)| flag.is_some()) {
        _ if !ignoring.is_empty() => format!("{}.allow_unsafe_interrupts=Y", ignoring.join(" and ")),
        true => "allow_unsafe_interrupts=N".to_owned(),
        false => "allow_unsafe_interrupts cannot be read before its module is loaded".to_owned(),
    };
    let unset = |module: &&str| format!("echo N > /sys/module/{module}/parameters/allow_unsafe_interrupts");
    let unset: Vec<String> = ignoring.iter().map(unset).collect();
    let remap = "switch interrupt remapping on: in the firmware's setup (VT-d or AMD-Vi with interrupt remapping), and without \
                 intremap=off and nointremap on the kernel's command line";
    Some(match (remapped, plain) {
        (Some(chip), _) if ignoring.is_empty() => Finding::ok(CHECK, format!("remapped ({chip}), {setting}")),
        (Some(chip), _) => {
            let what =
                format!("remapped ({chip}), but {setting}: VFIO takes devices whose interrupts are not isolated too");
            Finding::warn(CHECK, what, unset)
        }
        (None, Some(chip)) if ignoring.is_empty() => {
            let module = if host.has_own_nodes() { "iommufd" } else { "vfio_iommu_type1" };
            let mend = [
                remap.to_owned(),
                format!(
                    "where you trust the device: modprobe {module}; echo Y > /sys/module/{module}/parameters/allow_unsafe_interrupts"
                ),
            ];
            Finding::stop(CHECK, format!("not remapped ({chip}), {setting}: VFIO refuses every device"), mend)
        }
        (None, Some(chip)) => {
            let what = format!(
                "not remapped ({chip}), {setting}: a device can raise any interrupt of the machine, so the MSI-X table is left out of mappings"
            );
            Finding::warn(CHECK, what, [&[remap.to_owned()], &unset[..]].concat())
        }
        (None, None) if !ignoring.is_empty() => {
            Finding::warn(CHECK, format!("{setting}: VFIO takes devices whose interrupts are not isolated too"), unset)
        }
        // No chip of a message interrupt says what it does, and nothing is out of the ordinary.
        (None, None) => return None,
    })
}

fn no_iommu(host: &Host, bare: bool) -> Option<Finding> {
    const CHECK: &str = "no-IOMMU";
    let switch = |to| vec![format!("echo {to} > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode")];
    Some(match (host.no_iommu, bare) {
        (Some(true), true) => Finding::ok(CHECK, "on, as it was asked for"),
        (Some(true), false) => {
            let what = "on: devices behind no IOMMU can be opened as BDF,via=no-iommu, and then overwrite all memory";
            Finding::warn(CHECK, what, switch(0))
        }
        (Some(false), true) => Finding::stop(CHECK, "off (enable_unsafe_noiommu_mode=N)", switch(1)),
        (None, true) => {
            let what = "not offered: vfio is not loaded, or this kernel was built without CONFIG_VFIO_NOIOMMU";
            Finding::stop(CHECK, what, ["modprobe vfio enable_unsafe_noiommu_mode=1".to_owned()])
        }
        (Some(false), false) => Finding::ok(CHECK, "off"),
        (None, false) => return None,
    })
}

fn vfio_pci(host: &Host) -> Option<Finding> {
    module("vfio-pci", "vfio-pci", host.vfio_pci)
}

/// Only a container needs it.
fn iommu_driver(host: &Host, route: Route) -> Option<Finding> {
    let (name, state) = host.iommu_driver;
    let needed = route == Route::Group || route == Route::Auto && !host.has_own_nodes();
    if needed { module("IOMMU driver", name, state) } else { None }
}

fn module(check: &'static str, name: &str, state: Module) -> Option<Finding> {
    let load = [format!("modprobe {name}")];
    Some(match state {
        Module::Here => Finding::ok(check, format!("{name} is loaded")),
        Module::Available => Finding::stop(check, format!("{name} is not loaded"), load),
        Module::Unknown => {
            Finding::stop(check, format!("{name} is not loaded, and this kernel's modules are not to be seen here"), load)
        }
        Module::Absent => Finding::stop(
            check,
            format!("this kernel has no {name}"),
            ["install the package with the rest of its modules (linux-modules-extra-…), or a kernel that is no cloud's".to_owned()],
        ),
    })
}

/// The nodes that no device has for itself.
fn nodes(host: &Host, route: Route) -> Option<Finding> {
    let own = route == Route::Node || route == Route::Auto && host.has_own_nodes();
    let (check, path, node) =
        if own { ("iommufd", "/dev/iommu", host.iommufd) } else { ("container", "/dev/vfio/vfio", host.container) };
    match node {
        Node::Free => Some(Finding::ok(check, format!("{path} can be opened"))),
        Node::Denied => Some(Finding::stop(
            check,
            format!("{path} may not be opened by this user"),
            [format!("chmod a+rw {path}    (it gives nobody a device)"), "or run as root".to_owned()],
        )),
        // Without the module there is none, and that is told.
        Node::Missing if host.vfio_pci != Module::Here => None,
        Node::Missing if own => Some(Finding::stop(check, "there is no /dev/iommu", ["modprobe iommufd".to_owned()])),
        Node::Missing => Some(Finding::stop(
            check,
            format!("vfio-pci is loaded, and there is no {path} here"),
            ["in a container: hand it in (docker: --device /dev/vfio)".to_owned()],
        )),
    }
}

/// The hugepages that memory for devices can be made of: up to 1 GiB ([`wholebar::PageSize`]).
const LARGEST: u64 = 1 << 30;

fn hugepages(host: &Host, bare: bool) -> Option<Finding> {
    const CHECK: &str = "hugepages";
    let Some(all) = &host.hugepages else {
        let what = match host.default_hugepages {
            Some((size, total, free)) => format!(
                "/sys does not show them here; of the default size, {}, /proc/meminfo counts {free} free of {total}",
                output::bytes(size)
            ),
            None => "they are not to be seen here: neither /sys nor /proc/meminfo tells of them".to_owned(),
        };
        return Some(Finding::warn(CHECK, what, []));
    };
    let mut sizes: Vec<u64> = all.iter().map(|h| h.size).collect();
    sizes.dedup();
    let size = |size: &u64| {
        let of = || all.iter().filter(|h| h.size == *size);
        let (total, free): (u64, u64) = (of().map(|h| h.total).sum(), of().map(|h| h.free).sum());
        let nodes: Vec<String> = of().map(|h| format!("node {}: {}", h.node, h.free)).collect();
        let nodes = if nodes.len() > 1 { format!(" ({})", nodes.join(", ")) } else { String::new() };
        match total {
            0 => format!("{}: none", output::bytes(*size)),
            _ => format!("{}: {free} free of {total}{nodes}", output::bytes(*size)),
        }
    };
    let what = sizes.iter().map(size).collect::<Vec<_>>().join(", ");
    if all.iter().any(|h| h.free > 0 && h.size <= LARGEST) {
        return Some(Finding::ok(CHECK, what));
    }
    let mut nodes: Vec<u32> = all.iter().map(|h| h.node).collect();
    nodes.sort();
    nodes.dedup();
    let mend: Vec<String> = nodes.into_iter().flat_map(|node| set_aside(all, node)).collect();
    Some(match (sizes.is_empty(), bare) {
        (true, false) => Finding::warn(CHECK, "this kernel has none: DMA memory is made of plain pages", []),
        (true, true) => {
            Finding::stop(CHECK, "this kernel has none, and without an IOMMU plain pages won't do: they move", [])
        }
        (false, false) => Finding::warn(CHECK, format!("{what}: DMA memory is made of plain pages"), mend),
        (false, true) => {
            Finding::stop(CHECK, format!("{what}, and without an IOMMU plain pages won't do: they move"), mend)
        }
    })
}

/// How 1 GiB of a node becomes hugepages, or half of what is available there if that is less; in the smallest size that saves an IOMMU something.
fn set_aside(all: &[Hugepages], node: u32) -> Vec<String> {
    /// Bytes. Smaller ones (64 KiB, of arm64) are set aside where there are no others.
    const SAVING: u64 = 1 << 20;
    const WANTED: u64 = 1 << 30;
    let usable = all.iter().filter(|h| h.node == node && (1..=LARGEST).contains(&h.size));
    let Some(one) = usable.min_by_key(|h| (h.size < SAVING, h.size)) else {
        return vec![format!(
            "node {node} has none of up to {}, of which memory for devices can be made: {}",
            output::bytes(LARGEST),
            kernel_argument("hugepagesz=2M")
        )];
    };
    let count = one.available.map_or(WANTED, |bytes| WANTED.min(bytes / 2)) / one.size;
    let size = output::bytes(one.size);
    if count == 0 {
        let available = output::bytes(one.available.unwrap_or(0));
        return vec![format!("node {node} has {available} of memory available: too little to set {size} of it aside")];
    }
    // What is written is how many there are to be, with those that somebody has.
    let total = one.total.saturating_add(count);
    let mut mend = vec![format!("echo {total} > {}    ({} more)", one.file, output::bytes(count * one.size))];
    if one.size >= 256 << 20 {
        let argument = format!("hugepagesz={}M hugepages={total}", one.size >> 20);
        mend.push(format!(
            "where less is found, since {size} in one piece are rare later: {}",
            kernel_argument(&argument)
        ));
    }
    mend
}

/// What this host's pages mean to a device's memory and BARs. None of it stops anything.
fn pages(host: &Host) -> Finding {
    let page = host.page.bytes();
    let mut what = format!(
        "of {}: 1 GiB of plain memory is {} of them to pin, and a ring of 2 KiB that has pages of its own pins {}",
        output::bytes(page),
        output::count((1 << 30) / page),
        output::bytes(page.max(2 << 10))
    );
    if let Some(maps) = host.dma_maps {
        what += &format!("; {} maps of memory at most (an arena is one, whatever its pages)", output::count(maps));
    }
    if page > 4096 {
        what += "; registers that share a page with an MSI-X table are reached by system calls, where the BAR is not mapped whole";
    }
    Finding::ok("pages", what + ". `wholebar pages` measures what they cost a controller")
}

fn memlock(host: &Host, bare: bool) -> Option<Finding> {
    const CHECK: &str = "memlock";
    /// Bytes: what the pools of a program with a few queues take.
    const MODEST: u64 = 64 << 20;
    if bare {
        return None;
    }
    if host.locks_all {
        return Some(Finding::ok(CHECK, "this process may lock any amount of memory (CAP_IPC_LOCK)"));
    }
    let what = match host.memlock? {
        u64::MAX => return Some(Finding::ok(CHECK, "unlimited")),
        bytes => format!("{} of memory can be locked: all that a device reaches is", output::bytes(bytes)),
    };
    if host.memlock >= Some(MODEST) {
        return Some(Finding::ok(CHECK, what));
    }
    let mend = [
        "ulimit -l unlimited    (root, or where the hard limit allows)".to_owned(),
        "LimitMEMLOCK=infinity in a systemd unit; --ulimit memlock=-1 of a container".to_owned(),
    ];
    Some(Finding::warn(CHECK, what, mend))
}

fn cores(host: &Host) -> Option<Finding> {
    Some(match host.isolated.as_str() {
        "" => Finding::ok(
            "cores",
            "none is isolated: pollers share theirs with whatever else runs (isolcpus=, nohz_full=)",
        ),
        list => Finding::ok("cores", format!("{list} are isolated: good for pollers")),
    })
}

fn driver(device: &Device) -> Finding {
    const CHECK: &str = "driver";
    let (used, bind) = bind(device, &[device.address]);
    match &device.driver {
        Some(driver) if is_vfio(driver) => Finding::ok(CHECK, format!("{driver} has it")),
        Some(driver) => Finding::stop(CHECK, format!("{driver} has it{used}"), [bind]),
        None => Finding::stop(CHECK, format!("no driver has it{used}"), [bind]),
    }
}

/// How functions are bound, and what the system uses them for: `wholebar bind` refuses that.
fn bind(device: &Device, functions: &[Address]) -> (String, String) {
    let names: Vec<String> = functions.iter().map(Address::to_string).collect();
    let command = format!("wholebar bind {}", names.join(" "));
    let uses: Vec<&str> = device.uses.iter().filter(|(a, _)| functions.contains(a)).map(|(_, used)| &**used).collect();
    match &uses[..] {
        [] => (String::new(), command),
        uses => (
            format!(", and the system uses it: {}", uses.join("; ")),
            format!("end that use, then: {command}    (--force takes it all the same, and what is on it will fail)"),
        ),
    }
}

fn group(host: &Host, device: &Device, route: Route) -> Option<Finding> {
    const CHECK: &str = "group";
    let bound = device.driver.as_deref().is_some_and(is_vfio);
    let Some(group) = &device.group else {
        // That there is no IOMMU is told; and without one, VFIO makes the group when it gets the device.
        let told = host.groups == 0 || route == Route::NoIommu;
        return (!told).then(|| {
            let what = "it is in no IOMMU group: no IOMMU is responsible for it";
            Finding::stop(CHECK, what, ["dmesg | grep -i iommu    (says which devices have one)".to_owned()])
        });
    };
    if group.no_iommu && route != Route::NoIommu {
        let what = format!("{} is no IOMMU's: VFIO made it where there is none", group.number);
        return Some(Finding::stop(
            CHECK,
            what,
            [format!("name it {},via=no-iommu, if you mean that", device.address)],
        ));
    }
    if !group.obstacles.is_empty() {
        let who: Vec<String> = group.obstacles.iter().map(|(a, driver)| format!("{driver} has {a}")).collect();
        let all: Vec<Address> = group.obstacles.iter().map(|(a, _)| *a).collect();
        let (used, bind) = bind(device, &all);
        let what = format!("{} is not VFIO's alone: {}{used}", group.number, who.join(", "));
        return Some(Finding::stop(CHECK, what, [bind]));
    }
    // Its own driver is in the way of the node, and that is told.
    let path = format!("/dev/vfio/{}{}", if group.no_iommu { "noiommu-" } else { "" }, group.number);
    let needed = bound && !uses_own_node(host, device, route);
    match group.node {
        Node::Denied if needed => {
            let mend = [format!("chown $USER {path}"), "or run as root".to_owned()];
            return Some(Finding::stop(CHECK, format!("{path} may not be opened by this user"), mend));
        }
        Node::Missing if needed => {
            let mend = ["in a container: hand it in (docker: --device /dev/vfio)".to_owned()];
            return Some(Finding::stop(CHECK, format!("there is no {path} here"), mend));
        }
        _ => {}
    }
    let with = |(address, driver): &(_, Option<String>)| match driver {
        Some(driver) => format!("{address} ({driver})"),
        None => format!("{address} (no driver)"),
    };
    Some(Finding::ok(
        CHECK,
        match &group.others[..] {
            [] => format!("{}, and it is alone in it", group.number),
            others => format!("{}, with {}", group.number, others.iter().map(with).collect::<Vec<_>>().join(", ")),
        },
    ))
}

/// As the framework chooses.
fn uses_own_node(host: &Host, device: &Device, route: Route) -> bool {
    let has = host.has_own_nodes() && device.own_node.as_ref().is_some_and(|(_, node)| *node != Node::Missing);
    route == Route::Node || route == Route::Auto && has
}

fn own_node(host: &Host, device: &Device, route: Route) -> Option<Finding> {
    const CHECK: &str = "node";
    if !device.driver.as_deref().is_some_and(is_vfio) || !uses_own_node(host, device, route) {
        return None;
    }
    let Some((name, node)) = &device.own_node else {
        let what = "this kernel gives it no node of its own (CONFIG_VFIO_DEVICE_CDEV)";
        return Some(Finding::stop(CHECK, what, [format!("name it {},via=group", device.address)]));
    };
    let path = format!("/dev/vfio/devices/{name}");
    Some(match node {
        Node::Free => Finding::ok(CHECK, format!("{path} can be opened")),
        Node::Denied => Finding::stop(
            CHECK,
            format!("{path} may not be opened by this user"),
            [format!("chown $USER {path}"), "or run as root".to_owned()],
        ),
        Node::Missing => {
            Finding::stop(CHECK, format!("there is no {path}"), [format!("name it {},via=group", device.address)])
        }
    })
}

fn in_use(device: &Device) -> Option<Finding> {
    let first = device.openers.first()?;
    let pid = first.split_whitespace().nth(1).unwrap_or_default();
    let what = format!("{} has it, or its IOMMU group, open", device.openers.join(", "));
    Some(Finding::stop("in use", what, [format!("kill {pid}    (or wait until it has ended)")]))
}

fn direct(group: &Group) -> Option<Finding> {
    let first = group.direct.first()?;
    let what = format!(
        "the firmware wants its devices to keep reaching {:#x} to {:#x} (RMRR or IVMD): the kernel may refuse to attach it",
        first.start(),
        first.end()
    );
    let mend = [
        "look for a setting of the firmware that lets go of it (USB legacy support, shared memory of a management controller)",
    ];
    Some(Finding::warn("firmware", what, mend.map(str::to_owned)))
}

/// vfio-pci maps a BAR that is smaller than a page only where nothing else is in that page (`vfio_pci_probe_mmaps`).
fn small_bar(host: &Host, device: &Device, small: &SmallBar) -> Finding {
    const CHECK: &str = "BARs";
    let (start, page) = (*small.range.start(), host.page);
    let what = format!("BAR{} ({} at {start:#x})", small.bar, output::bytes(small.range.end() - start + 1));
    let mut reasons = Vec::new();
    if page.floor(start) != start {
        reasons.push(format!("does not begin a {page} page"));
    }
    if !small.neighbours.is_empty() {
        let who = |(address, bar): &(_, usize)| match *address == device.address {
            true => format!("BAR{bar}"),
            false => format!("BAR{bar} of {address}"),
        };
        let who: Vec<String> = small.neighbours.iter().map(who).collect();
        reasons.push(format!("shares its {page} page with {}", who.join(", ")));
    }
    if reasons.is_empty() {
        return Finding::ok(CHECK, format!("{what} has its {page} page to itself, so it can be mapped"));
    }
    // Documentation/admin-guide/kernel-parameters.txt: the order is that of the alignment in bytes.
    let order = page.bytes().trailing_zeros();
    let (vendor, id) = device.ids.unwrap_or_default();
    let mend = kernel_argument(&format!("pci=resource_alignment={order}@pci:{vendor:04x}:{id:04x}"));
    let why = reasons.join(" and ");
    Finding::warn(CHECK, format!("{what} {why}: it cannot be mapped, and each access is a system call"), [mend])
}

fn numa(host: &Host, device: &Device) -> Option<Finding> {
    const CHECK: &str = "NUMA";
    if host.nodes == 1 {
        return None;
    }
    let Some(node) = device.numa_node else {
        return Some(Finding::ok(CHECK, format!("its node is not known, of {}", host.nodes)));
    };
    let cores = device.cores.as_ref().map_or(String::new(), |list| format!(", near cores {list}"));
    let what = format!("node {node}{cores}");
    let all = host.hugepages.as_deref().unwrap_or_default();
    let free = |on: bool| all.iter().any(|h| (h.node == node) == on && h.free > 0 && h.size <= LARGEST);
    match (free(true), free(false)) {
        (false, true) => Some(Finding::warn(CHECK, format!("{what}, where no hugepage is free"), set_aside(all, node))),
        _ => Some(Finding::ok(CHECK, what)),
    }
}
