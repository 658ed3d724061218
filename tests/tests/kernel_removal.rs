//! A device whose machine's owner asks for it back, in the midst of reads: in a guest, which loses an NVMe device. `cargo xtask vm test GUEST` runs it.
// guests: x86_64
// machine: --nvme 64M --nvme 64M --nic igb --nic igb --nic virtio-net,hub=1 --nic virtio-net,hub=1 --bind all --qemu -global --qemu ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs;
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, Status};
use wholebar::vfio::sysfs::Sysfs;
use wholebar::vfio::{Vfio, VfioOptions};
use wholebar_nvme::{Event, Options, QueueOptions};
use wholebar_tests::Rig;
use wholebar_tests::guest::{functions, open_files_and_maps};
use wholebar_tests::nvme::{self, Bench};

/// From the owner's wish until Linux has the device no more. PCI Express's native hotplug takes five seconds of it, for second thoughts.
const BOUND: Duration = Duration::from_secs(120);

/// Reads until the device is asked for, which `ask` has begun after some reads; then only waits for what is in flight. When `ask` was called.
fn read_until_it_is_asked_for(bench: &Bench, ask: impl FnOnce() -> Result<()>) -> Result<Instant> {
    const DEPTH: usize = 16;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let (mut ask, mut began, mut asked_for) = (Some(ask), Instant::now(), false);
    let (mut reads, mut failed) = (0, None);
    while !asked_for || queue.in_flight() > 0 {
        if !asked_for {
            while queue.in_flight() < DEPTH {
                queue.submit(bench.read(0, 4096)?).map_err(|rejected| anyhow!("{}", rejected.why))?;
            }
            queue.ring();
            asked_for = match bench.nvme.events().try_recv() {
                Ok(Event::UnbindRequest) => true,
                Ok(other) => bail!("{other:?}"),
                Err(_) => false,
            };
        }
        queue.poll(DEPTH, &mut |done| match done.status {
            Status::Ok => reads += 1,
            other => failed = Some(other),
        });
        ensure!(failed.is_none(), "{failed:?} after {reads} reads");
        ensure!(
            began.elapsed() < BOUND,
            "after {reads} reads, asked for: {asked_for}, {} in flight",
            queue.in_flight()
        );
        if reads > 1000
            && let Some(ask) = ask.take()
        {
            began = Instant::now();
            ask()?;
        }
    }
    ensure!(ask.is_none(), "it was asked for before anybody did so");
    println!("{reads} reads; asked for, and idle, after {:?}", began.elapsed());
    Ok(began)
}

#[test]
#[ignore = "wants a guest"]
fn a_device_is_asked_for_under_load() -> Result<()> {
    let found = functions()?;
    let [leaves, stays] = found[..] else { bail!("this machine has {found:?}") };
    let open = |address| -> Result<Rig> { Ok(Rig::over(Vfio::open(address, &VfioOptions::default())?)) };
    let before = open_files_and_maps()?;
    let began = {
        let bench = Bench::open(&open(leaves)?, Options::default(), 16, 4096)?;
        let began = read_until_it_is_asked_for(&bench, || Ok(fs::write("/dev/monitor", "device_del nvme0\n")?))?;
        ensure!(Sysfs::default().function(leaves).is_some(), "it is ours until we give it back");
        bench.nvme.smart().context("it works until we give it back")?;
        began
    };
    while Sysfs::default().function(leaves).is_some() {
        ensure!(began.elapsed() < BOUND, "{leaves} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("gone after {:?}", began.elapsed());
    let after = open_files_and_maps()?;
    ensure!(before == after, "(descriptors, maps) were {before:?}, and are {after:?}");
    let error = open(leaves).err().context("it is gone")?.to_string();
    ensure!(error.contains("no such PCI function"), "{error}");
    nvme::data_comes_back(&open(stays)?, Options::default())
}
