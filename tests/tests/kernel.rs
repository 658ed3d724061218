//! NVMe through the kernel's VFIO, in a guest: the bodies that models pass, on a controller that nobody here wrote. `cargo xtask vm test GUEST` runs them.
// core: x86_64 ppc64le-4k ppc64le-64k

use anyhow::{Context, Result, ensure};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::nvme::{Event, Nvme, Options, QueueOptions, Service, ShadowDoorbells};
use wholebar::pci::{Irq, Verdict};
use wholebar_tests::Rig;
use wholebar_tests::guest::{SOON, kernel, kernel_ways};
use wholebar_tests::nvme::{self, Bench};

fn policy(policy: MapPolicy) -> Options {
    // A page that holds table and doorbells, whatever the guest's.
    let page = (policy == MapPolicy::Carved).then(|| PageSize::K64.max(PageSize::host()));
    Options { policy, page, ..nvme::patient() }
}

/// In every way, under every policy. A device has one user at a time, so they take turns.
fn everywhere(body: impl Fn(&Rig, Options) -> Result<()>) -> Result<()> {
    for way in kernel_ways() {
        for chosen in [MapPolicy::Auto, MapPolicy::Carved, MapPolicy::Trapped] {
            let what = || format!("{:?} {:?} {chosen:?}", way.route, way.iommu);
            let rig = kernel(&way).with_context(what)?;
            body(&rig, policy(chosen)).with_context(what)?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn data_comes_back() -> Result<()> {
    everywhere(nvme::data_comes_back)
}

#[test]
#[ignore = "wants a guest"]
fn other_commands() -> Result<()> {
    everywhere(nvme::other_commands)
}

#[test]
#[ignore = "wants a guest"]
fn one_doorbell_a_batch() -> Result<()> {
    everywhere(nvme::one_doorbell_a_batch)
}

#[test]
#[ignore = "wants a guest"]
fn data_survives_resets() -> Result<()> {
    everywhere(|rig, options| nvme::data_survives_resets(rig, options, 3))
}

#[test]
#[ignore = "wants a guest"]
fn events_come() -> Result<()> {
    everywhere(nvme::events_come)
}

/// Where a device has no messages, its line has to do. The kernel masks that at each signal, until the slow path has served the controller.
///
/// A line is a level: a completion that is polled at once can drop it before a CPU has looked who raised it, and then rightly
/// nobody is told. An event holds it until it is served: here a doorbell of a queue that isn't there, which the controller reports.
#[test]
#[ignore = "wants a guest"]
fn a_line_wakes_the_slow_path_again_and_again() -> Result<()> {
    const NOBODYS_DOORBELL: u64 = 0x1000 + 2 * 60 * 4;
    let options = Options { interrupts: Some(Irq::Intx), service: Service::Manual, ..nvme::patient() };
    let nvme = Nvme::open(kernel(&kernel_ways()[0])?.device, options)?;
    let line = nvme.interrupts().context("QEMU's NVMe has a line")?.vector(0)?;
    // What opening it raised.
    line.take();
    nvme.service()?;
    for round in 0..5 {
        nvme.device().write(0, NOBODYS_DOORBELL, &1u32.to_le_bytes())?;
        loop {
            ensure!(line.wait(Some(SOON))?.is_some(), "round {round}: the line is silent");
            nvme.service()?;
            if nvme.events().try_iter().any(|event| matches!(event, Event::Driver(_))) {
                break;
            }
        }
    }
    for vector in [0, 1] {
        let taken = QueueOptions { interrupt: Some(vector), ..QueueOptions::default() };
        ensure!(nvme.queue(taken).is_err(), "a line has no vector for queues, and none is {vector}");
    }
    Ok(())
}

/// The point of it all: with isolated interrupts doorbells are stores even where they share the page of the MSI-X table, and a
/// carved plan pays a system call for each.
#[test]
#[ignore = "wants a guest"]
fn whole_rings_by_stores_and_carved_by_system_calls() -> Result<()> {
    let rung = |chosen| -> Result<_> {
        let rig = kernel(&kernel_ways()[0])?;
        let options = Options { shadow_doorbells: ShadowDoorbells::Never, ..policy(chosen) };
        let bench = Bench::open(&rig, options, 4, 4096)?;
        let mut queue = bench.nvme.queue(QueueOptions::default())?;
        for lba in 0..10 {
            nvme::run(&mut queue, bench.read(lba, 4096)?)?;
        }
        Ok(queue.doorbells())
    };
    // Where nothing isolates interrupts, whole must be asked for.
    let isolated = kernel(&kernel_ways()[0])?.device.isolation().verdict == Verdict::Isolated;
    let whole = rung(if isolated { MapPolicy::Auto } else { MapPolicy::Whole })?;
    ensure!(whole.direct > 0 && whole.trapped == 0, "whole: {whole:?}");
    let carved = rung(MapPolicy::Carved)?;
    ensure!(carved.trapped > 0 && carved.direct == 0, "carved: {carved:?}");
    Ok(())
}
