//! What tests in a guest share: its devices, the ways to open them, and load until something ends it.

use crate::Rig;
use crate::nvme::Bench;
use crate::virtio::patient;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, QueueState, Reject};
use wholebar::control_plane::DeviceEvent;
use wholebar::nvme::{Event, QueueOptions};
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{IommuType, Route, Vfio, VfioOptions};
use wholebar::virtio::Options;

/// How long a test waits for what must come: what ends a hang, and nothing else, for a guest may stand still for seconds.
pub const SOON: Duration = Duration::from_secs(120);
/// Virtio's vendor.
pub const VIRTIO: u16 = 0x1af4;

/// The NVMe devices of a guest.
///
/// # Errors
/// That this is no guest of `cargo xtask vm`.
pub fn functions() -> Result<Vec<Address>> {
    named("WHOLEBAR_NVME")
}

/// The network devices of a guest.
///
/// # Errors
/// As [`functions`].
pub fn nics() -> Result<Vec<Address>> {
    named("WHOLEBAR_NIC")
}

/// Those of one vendor that are still there, each with QEMU's name of it.
///
/// # Errors
/// That this is no guest of `cargo xtask vm`.
pub fn nics_of(vendor: u16) -> Result<Vec<(Address, String)>> {
    nics_that(|function| function.vendor() == Some(vendor))
}

/// As [`nics_of`], of those that are so.
///
/// # Errors
/// As [`functions`].
pub fn nics_that(is: impl Fn(&Function) -> bool) -> Result<Vec<(Address, String)>> {
    let found = nics()?.into_iter().enumerate().filter_map(|(i, address)| Some((i, function(address).ok()?)));
    let found = found.filter(|(_, function)| is(function));
    Ok(found.map(|(i, function)| (function.address(), format!("nic{i}"))).collect())
}

/// The virtio block devices of a guest.
///
/// # Errors
/// As [`functions`].
pub fn disks() -> Result<Vec<Address>> {
    named("WHOLEBAR_BLK")
}

fn named(variable: &str) -> Result<Vec<Address>> {
    let devices = std::env::var(variable)
        .with_context(|| format!("no {variable} here: run this by `cargo xtask vm test GUEST`"))?;
    devices.split(',').map(|address| Ok(address.parse()?)).collect()
}

/// The first NVMe device of a guest, opened in one of the ways that its kernel offers: see [`kernel_ways`].
///
/// # Errors
/// What the kernel says; as [`functions`].
pub fn kernel(way: &VfioOptions) -> Result<Rig> {
    Ok(Rig::over(Vfio::open(functions()?[0], way)?))
}

/// The ways to open a device, of those that this kernel offers; without an IOMMU only where there is none.
pub fn kernel_ways() -> Vec<VfioOptions> {
    let container = |iommu| VfioOptions { route: Route::Group, iommu: Some(iommu), ..VfioOptions::default() };
    if cfg!(target_arch = "powerpc64") {
        return vec![container(IommuType::TceV2), container(IommuType::TceV1)];
    }
    if Path::new("/dev/vfio/noiommu-0").exists() {
        return vec![VfioOptions { route: Route::NoIommu, ..VfioOptions::default() }];
    }
    let mut ways = vec![container(IommuType::Type1v2)];
    if Path::new("/dev/vfio/devices").exists() {
        ways.push(VfioOptions { route: Route::Node, ..VfioOptions::default() });
    }
    ways
}

/// Runs a body on two virtio-net ports that are wired to each other, in each of some ways.
///
/// # Errors
/// What the body says; that the guest does not have two.
pub fn on_a_wire(ways: &[Options], body: impl Fn(&[Rig; 2], Options) -> Result<()>) -> Result<()> {
    let nics = nics_of(VIRTIO)?;
    let [(one, _), (two, _)] = nics[..] else { bail!("the guest has {nics:?}") };
    for options in ways {
        let began = Instant::now();
        body(&[over(one)?, over(two)?], options.clone()).with_context(|| format!("{options:?}"))?;
        let Options { packed, in_order, policy, .. } = options;
        println!("{:?}: packed {packed}, in order {in_order}, {policy:?}", began.elapsed());
    }
    Ok(())
}

/// Both kinds of virtio's rings, in order and not.
pub fn rings() -> Vec<Options> {
    let ring = |packed, in_order| Options { packed, in_order, ..patient() };
    vec![ring(true, true), ring(true, false), ring(false, true), ring(false, false)]
}

/// A device, opened as a program does that chooses nothing.
///
/// # Errors
/// What the kernel says.
pub fn over(address: Address) -> Result<Rig> {
    Ok(Rig::over(Vfio::open(address, &VfioOptions::default())?))
}

/// The first NVMe device, opened as a program does that chooses nothing.
///
/// # Errors
/// What the kernel says; as [`functions`].
pub fn first() -> Result<Rig> {
    kernel(&VfioOptions::default())
}

/// What Linux says of a function.
///
/// # Errors
/// That it isn't there.
pub fn function(address: Address) -> Result<Function> {
    Sysfs::default().function(address).with_context(|| format!("there is no {address}"))
}

/// Reads until the queue ends, and returns what it said then; or until the controller was reset and works again, or the kernel wants it back.
///
/// # Errors
/// That none of it came [soon](SOON), and what the driver says.
pub fn poll_until_it_ends(bench: &Bench) -> Result<String> {
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let began = Instant::now();
    loop {
        while let Ok(request) = bench.read(0, 4096) {
            if let Err(rejected) = queue.submit(request) {
                match rejected.why {
                    Reject::Full | Reject::Resetting => break,
                    why => return Ok(why.to_string()),
                }
            }
        }
        queue.ring();
        queue.poll(64, &mut |_| ());
        match queue.state() {
            QueueState::Running | QueueState::Resetting => {}
            // What was in flight is quarantined, so that there may be no buffer for another request.
            end => return Ok(format!("{end:?}")),
        }
        match bench.nvme.events().try_recv() {
            Ok(Event::Device(DeviceEvent::Reset { why, .. })) => return Ok(format!("reset: {why}")),
            Ok(Event::Device(DeviceEvent::UnbindRequest)) => return Ok("an unbind request".to_owned()),
            _ => {}
        }
        ensure!(began.elapsed() < SOON, "it did not end: {:?}", queue.state());
    }
}

/// The descriptors that this process has open, and its mappings of VFIO's files.
///
/// # Errors
/// What the system says.
pub fn open_files_and_maps() -> Result<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps")?.lines().filter(|l| l.contains("vfio")).count();
    Ok((std::fs::read_dir("/proc/self/fd")?.count(), maps))
}
