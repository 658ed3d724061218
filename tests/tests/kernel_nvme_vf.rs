//! QEMU's NVMe controller with two virtual functions, through the kernel's VFIO, in a guest: queues and interrupts are given to the controllers of virtual
//! functions by Virtualization Management, and all of them do I/O at the same time. `cargo xtask vm test x86_64 kernel_nvme_vf` runs it.
// guests: x86_64
// machine: --nvme 64M,sriov_max_vfs=2,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=16,msix_qsize=17 --nvme-subsys nqn=vf --bind all --append vfio_pci.enable_sriov=1

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar::block::{Data, Op, QueueState, Status};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::nvme::{FlexibleResource, Nvme, Options, QueueOptions, SecondaryController};
use wholebar::pci::{Address, PciDevice};
use wholebar::vfio::{Vfio, VfioOptions};
use wholebar_tests::guest::{SOON, function, functions};
use wholebar_tests::nvme::{fill, holds, patient, request, run};

fn with_token(text: &str) -> Result<VfioOptions> {
    Ok(VfioOptions { vf_token: Some(text.parse()?), ..VfioOptions::default() })
}

const TOKEN: &str = "2ab74924-c335-45f4-9b16-8569e5b08258";
const WRONG: &str = "2ab74924-c335-45f4-9b16-8569e5b08259";

/// Virtual functions, which go when this does.
struct Made(Address);

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = fs::write(format!("/sys/bus/pci/devices/{}/sriov_numvfs", self.0), "0") {
            eprintln!("the virtual functions stay: {error}");
        }
    }
}

fn options() -> Options {
    Options { io_queues: 1, ..patient() }
}

/// Writes and reads back blocks from `first` on, again and again, with data of its own, until it is told to stop; how often.
fn work(nvme: &Nvme, first: u64, seed: u64, stop: &AtomicBool, rounds: &AtomicU64) -> Result<()> {
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    nvme.attach(arena.clone())?;
    let pool = Pool::new(arena, 4, 4096, 4096)?;
    let namespace = nvme.namespaces().first().cloned().context("a namespace")?;
    let (nsid, block) = (namespace.nsid, namespace.block_size);
    let mut queue = nvme.queue(QueueOptions::default())?;
    for round in 0.. {
        let lba = first + round % 32 * 8;
        let mut buf = pool.get_len(4096).context("a buffer")?;
        fill(&mut buf, lba, block, seed + round);
        let data = run(&mut queue, request(nsid, Op::Write { lba }, Data::One(buf)))?.data;
        let done = run(&mut queue, request(nsid, Op::Read { lba }, data))?;
        let right = done.data.bufs().iter().all(|b| holds(b, lba, block, seed + round));
        ensure!(done.status == Status::Ok && right, "block {lba}, round {round}: {:?}", done.status);
        rounds.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn virtual_functions_do_io_while_the_physical_one_does() -> Result<()> {
    let address = functions()?[0];
    let device: Arc<dyn PciDevice> = Vfio::open(address, &with_token(TOKEN)?)?;
    // What the primary controller has itself it gives up, from the next reset of its function on.
    let primary = Nvme::open(device.clone(), options())?;
    let before = primary.primary_capabilities()?;
    ensure!((before.queues.flexible_total, before.interrupts.flexible_total) == (8, 4), "{before:?}");
    ensure!(before.movable == (true, true) && before.id == primary.identify().id, "{before:?}");
    primary.allocate_flexible(FlexibleResource::Queues, 0)?;
    primary.allocate_flexible(FlexibleResource::Interrupts, 0)?;
    primary.shutdown()?;
    device.reset()?;

    function(address)?.set_virtual_functions(2).context("making two virtual functions")?;
    let _made = Made(address);
    let mut found = Vec::new();
    for one in function(address)?.virtual_functions() {
        let began = Instant::now();
        while one.driver().as_deref() != Some("vfio-pci") {
            ensure!(began.elapsed() < SOON, "{:?} has {}", one.driver(), one.address());
        }
        found.push(one.address());
    }
    for (what, way) in [("no token", VfioOptions::default()), ("a wrong one", with_token(WRONG)?)] {
        let error = Vfio::open(found[0], &way).err().with_context(|| format!("{what}: it was opened"))?.to_string();
        ensure!(error.contains("share a VF token"), "{error}");
    }

    let primary = Nvme::open(device, options())?;
    let caps = primary.primary_capabilities()?;
    ensure!((caps.queues.flexible_primary, caps.interrupts.flexible_primary) == (0, 0), "{caps:?}");
    let all = primary.secondary_controllers(0)?;
    ensure!(all.len() == 2 && all.iter().all(|s| !s.online && s.primary == caps.id), "{all:?}");
    ensure!(primary.secondary_controllers(all[1].id)?.len() == 1, "from the second on there is one");
    // Without what it takes to work, none goes online.
    let refused = primary.set_secondary_online(all[0].id, true).err().context("it has no queues")?.to_string();
    println!("{refused}");
    for secondary in &all {
        primary.assign_flexible(secondary.id, FlexibleResource::Queues, 3)?;
        primary.assign_flexible(secondary.id, FlexibleResource::Interrupts, 2)?;
        primary.set_secondary_online(secondary.id, true)?;
    }
    let online = primary.secondary_controllers(0)?;
    let is = |s: &SecondaryController| (s.online, s.queues, s.interrupts) == (true, 3, 2);
    ensure!(online.iter().all(is), "{online:?}");
    ensure!(primary.primary_capabilities()?.queues.flexible_assigned == 6);

    let open = |address| -> Result<Nvme> { Ok(Nvme::open(Vfio::open(address, &with_token(TOKEN)?)?, options())?) };
    let (one, two) = (open(found[0])?, open(found[1])?);
    ensure!(
        [one.identify().id, two.identify().id] == [online[0].id, online[1].id],
        "each is the controller of the list"
    );
    let stop = AtomicBool::new(false);
    let rounds = [const { AtomicU64::new(0) }; 3];
    std::thread::scope(|scope| -> Result<()> {
        let busy: Vec<_> = [&primary, &one, &two]
            .into_iter()
            .zip(&rounds)
            .enumerate()
            .map(|(i, (nvme, rounds))| {
                let (stop, first) = (&stop, 1000 * i as u64);
                scope.spawn(move || work(nvme, first, 1_000_000 * i as u64, stop, rounds))
            })
            .collect();
        let began = Instant::now();
        let enough = || rounds.iter().all(|rounds| rounds.load(Ordering::Relaxed) >= 300);
        while !enough() && began.elapsed() < SOON && !busy.iter().any(|thread| thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = enough();
        stop.store(true, Ordering::Relaxed);
        for thread in busy {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        ensure!(done, "{rounds:?} rounds in {SOON:?}");
        Ok(())
    })?;

    // One that goes offline under its queue ends what it does, by name.
    let mut queue = two.queue(QueueOptions::default())?;
    primary.set_secondary_online(online[1].id, false)?;
    let began = Instant::now();
    let end = loop {
        queue.poll_each(8, |_| ());
        match queue.state() {
            QueueState::Running | QueueState::Resetting => {}
            end => break format!("{end:?}"),
        }
        if began.elapsed() > SOON {
            bail!("it does not end: {:?}", queue.state());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    println!("offline: {end}");
    ensure!(two.check().is_err() && one.check().is_ok());
    Ok(())
}
