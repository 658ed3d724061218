//! NVMe through the kernel's VFIO, in a guest: the bodies that models pass, on a controller that nobody here wrote. `cargo xtask vm test GUEST` runs them.

use anyhow::{Context, Result, ensure};
use std::time::Instant;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::block::{BlockQueue, Status};
use wholebar::pci::{IRQ_INTX, Verdict};
use wholebar_nvme::{Options, QueueOptions, Service};
use wholebar_tests::Rig;
use wholebar_tests::guest::{SOON, kernel, kernel_ways};
use wholebar_tests::nvme::{self, Bench};

fn policy(policy: MapPolicy) -> Options {
    // A page that holds table and doorbells, whatever the guest's.
    let page = (policy == MapPolicy::Carved).then(|| PageSize::K64.max(PageSize::host()));
    Options { policy, page, ..Options::default() }
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
/// A line is a level: a completion that is polled at once may drop it before a CPU has looked who raised it, and rightly nobody is
/// told. So what raises it here waits on a queue of its own until the line was heard.
#[test]
#[ignore = "wants a guest"]
fn a_line_wakes_the_slow_path_again_and_again() -> Result<()> {
    let options = Options { interrupts: Some(IRQ_INTX), service: Service::Manual, ..Options::default() };
    let bench = Bench::open(&kernel(&kernel_ways()[0])?, options, 4, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions { interrupt: Some(0), ..QueueOptions::default() })?;
    let line = bench.nvme.interrupts().context("QEMU's NVMe has a line")?.vector(0)?;
    // What opening it raised.
    line.take();
    bench.nvme.service()?;
    for round in 0..5 {
        ensure!(queue.submit(bench.read(round, 4096)?).is_ok(), "an empty queue has room");
        queue.ring();
        ensure!(line.wait(Some(SOON))? > 0, "round {round}: the line is silent");
        let (mut status, began) = (None, Instant::now());
        while queue.poll(1, &mut |done| status = Some(done.status)) == 0 {
            ensure!(began.elapsed() < SOON, "round {round}: the line woke us, but nothing was done");
            std::thread::yield_now();
        }
        ensure!(status == Some(Status::Ok), "round {round}: {status:?}");
        bench.nvme.service()?;
    }
    let vector = QueueOptions { interrupt: Some(1), ..QueueOptions::default() };
    ensure!(bench.nvme.queue(vector).is_err(), "a line has no vector 1");
    Ok(())
}

/// The point of it all: with isolated interrupts doorbells are stores even where they share the page of the MSI-X table, and a
/// carved plan pays a system call for each.
#[test]
#[ignore = "wants a guest"]
fn whole_rings_by_stores_and_carved_by_system_calls() -> Result<()> {
    let rung = |chosen| -> Result<_> {
        let rig = kernel(&kernel_ways()[0])?;
        let bench = Bench::open(&rig, policy(chosen), 4, 4096)?;
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
