//! What only a kernel can do to a device, and to those who share it: in a guest, on its NVMe devices, which are written to. `cargo xtask vm test GUEST`
//! runs them. With one CPU: QEMU, which emulates two on two threads, was seen to hang or abort (`iotlb_to_section`) when one of them mapped BARs again and
//! again while the other ran.
// machine: --qemu -smp --qemu 1

use anyhow::{Context, Result, bail, ensure};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wholebar::bar::{BarOptions, MapPolicy, MsixTable, plan_of};
use wholebar::block::{BlockQueue, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::mem::{Arena, ArenaOptions, Iova, Source};
use wholebar::nvme::{Event, Nvme, Options, QueueOptions};
use wholebar::pci::{Irq, IrqAction, PciDevice, Verdict, config};
use wholebar::vfio::sysfs::Sysfs;
use wholebar::vfio::{Descriptors, Vfio, VfioOptions};
use wholebar_tests::guest::{
    SOON, first, function, functions, kernel, kernel_ways, open_files_and_maps, poll_until_it_ends,
};
use wholebar_tests::nvme::{Bench, holds, run};
use wholebar_tests::{Rig, nvme};

#[test]
#[ignore = "wants a guest"]
fn the_table_is_seen_through_the_mapping_alone() -> Result<()> {
    let rig = first()?;
    let nvme = Nvme::open(rig.device.clone(), Options { policy: MapPolicy::Whole, ..nvme::patient() })?;
    let table = MsixTable::of(rig.device.clone())?.context("QEMU's NVMe has MSI-X")?;
    let entry = table.entry(0)?;
    ensure!(entry.mapped && !entry.is_masked() && entry.address != 0, "vector 0 is enabled: {entry:x?}");
    let mut word = [0; 4];
    rig.device.read(0, table.capability().table().start, &mut word)?;
    ensure!(word == [0xff; 4], "the kernel hides the table from reads: {word:x?}");
    // It is dropped: the entry is as before.
    rig.device.write(0, table.capability().table().start, &[0; 4])?;
    ensure!(table.entry(0)? == entry, "the kernel drops writes to the table");
    drop(nvme);
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn vectors_wake_a_sleeping_core() -> Result<()> {
    let bench = Bench::open(&first()?, nvme::patient(), 4, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions { interrupt: Some(1), ..QueueOptions::default() })?;
    let wake = bench.nvme.interrupts().context("QEMU's NVMe has MSI-X")?.vector(1)?;
    for i in 0..3 {
        ensure!(queue.submit(bench.read(i, 4096)?).is_ok(), "an empty queue has room");
        queue.ring();
        ensure!(wake.wait(Some(SOON))?.is_some(), "no interrupt");
        let (mut done, began) = (0, Instant::now());
        while done == 0 {
            done = queue.poll(1, &mut |_| ());
            ensure!(began.elapsed() < SOON, "an interrupt without a completion");
        }
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn isolation_is_shown_with_its_evidence() -> Result<()> {
    let rig = first()?;
    let isolation = rig.device.isolation();
    println!("{:?}: {}", isolation.verdict, isolation.evidence.join("; "));
    let kernel = Sysfs::default().kernel().context("a kernel has a version")?;
    ensure!(isolation.evidence.iter().any(|e| e.contains(&kernel)), "{isolation:?}");
    ensure!(isolation.verdict == Verdict::Isolated, "this guest remaps interrupts: {isolation:?}");
    let plan = plan_of(rig.device.as_ref(), 0, BarOptions::default())?;
    ensure!(plan.policy == MapPolicy::Whole && plan.why.contains(&isolation.evidence[0]), "{plan:?}");
    Ok(())
}

/// Does something to the device while it is under load, and says how that ended.
fn poll_while(bench: &Bench, what: impl FnOnce(&dyn PciDevice) -> wholebar::Result<()> + Send) -> Result<String> {
    let device = bench.nvme.device().as_ref();
    std::thread::scope(|scope| {
        let behind = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            what(device)
        });
        let end = poll_until_it_ends(bench);
        behind.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        end
    })
}

/// For faults that are found by commands that time out. Before them a guest may stand still for that long: a command that is late is aborted then, and the
/// abort answered; the controller is reset only if that happens twice in a row.
fn not_so_patient(policy: MapPolicy) -> Options {
    Options { policy, timeout: Duration::from_secs(5), admin_timeout: Duration::from_secs(10), ..nvme::patient() }
}

#[test]
#[ignore = "wants a guest"]
fn memory_switched_off_behind_the_driver_ends_in_an_error() -> Result<()> {
    for policy in [MapPolicy::Whole, MapPolicy::Trapped] {
        let rig = first()?;
        let bench = Bench::open(&rig, not_so_patient(policy), 16, 4096)?;
        let end =
            poll_while(&bench, |device| config::enable_memory(device, false)).with_context(|| format!("{policy:?}"))?;
        println!("{policy:?}: {end}");
        if policy == MapPolicy::Trapped {
            // A trapped access fails while memory is off, and works when a reset has switched it on.
            ensure!(end.starts_with("reset"), "{end}");
            bench.nvme.smart()?;
        } else {
            let later = bench.nvme.smart().err().context("every later call says so")?.to_string();
            println!("{policy:?}: {later}");
            ensure!(end == "Gone" && later.contains("gone"), "{end}, {later}");
            let error = rig.device.read(0, 0, &mut [0; 4]).err().context("so does the device")?;
            ensure!(matches!(error, wholebar::Error::Gone { .. }), "{error}");
        }
    }
    // And the next one who opens it finds it as it should be.
    nvme::data_comes_back(&first()?, nvme::patient())
}

#[test]
#[ignore = "wants a guest"]
fn an_unbind_request_comes_while_polling() -> Result<()> {
    let name = functions()?.remove(0);
    let bench = Bench::open(&first()?, nvme::patient(), 16, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let function = function(name)?;
    // Unbinding waits until the device is given back.
    let unbinding = function.path().join("driver/unbind");
    let unbind = std::thread::spawn(move || std::fs::write(unbinding, name.to_string()));
    let began = Instant::now();
    let mut reads = 0;
    while bench.nvme.events().try_recv().ok() != Some(Event::Device(DeviceEvent::UnbindRequest)) {
        ensure!(
            run(&mut queue, bench.read(reads % 64, 4096)?)?.status == Status::Ok,
            "it works until it is given back"
        );
        reads += 1;
        ensure!(began.elapsed() < SOON, "no request");
    }
    println!("{reads} reads until the request came");
    drop((queue, bench));
    unbind.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    ensure!(function.driver().is_none(), "{:?} has it", function.driver());
    let error = first().err().context("nobody has it")?.to_string();
    function.bind("vfio-pci")?;
    ensure!(error.contains("no driver has it") && error.contains("bind"), "{error}");
    nvme::data_comes_back(&first()?, nvme::patient())
}

/// What the kernel tells of an AER report, raised in software.
#[test]
#[ignore = "wants a guest"]
fn an_error_of_the_function_resets_it() -> Result<()> {
    let rig = first()?;
    ensure!(rig.device.irq_info(Irq::Err)?.count == 1, "the kernel offers to tell of errors");
    let bench = Bench::open(&rig, nvme::patient(), 16, 4096)?;
    let end = poll_while(&bench, |device| device.set_irqs(Irq::Err, 0, IrqAction::Trigger(1)))?;
    ensure!(end.starts_with("reset: the kernel reports an error"), "{end}");
    bench.nvme.smart()?;
    drop(bench);
    nvme::data_comes_back(&rig, nvme::patient())
}

/// Someone else resets the function while commands are in flight: they time out, and the driver brings it up again.
#[test]
#[ignore = "wants a guest"]
fn a_reset_behind_the_driver_is_recovered_from() -> Result<()> {
    let rig = first()?;
    let bench = Bench::open(&rig, not_so_patient(MapPolicy::Auto), 16, 4096)?;
    let end = poll_while(&bench, |device| device.reset())?;
    println!("{end}");
    ensure!(end.starts_with("reset: "), "{end}");
    bench.nvme.smart()?;
    drop(bench);
    nvme::data_comes_back(&rig, nvme::patient())
}

/// The application lets go of its arena while the controller writes to it: it stays mapped until the queue is done with it.
#[test]
#[ignore = "wants a guest"]
fn memory_in_use_stays_mapped() -> Result<()> {
    let rig = first()?;
    let space = rig.device.dma();
    let bench = Bench::open(&rig, nvme::patient(), 4, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let block = bench.ns.block_size;
    ensure!(run(&mut queue, bench.write(40, 4096, 7)?)?.status == Status::Ok, "written");
    let before = space.mapped();
    ensure!(queue.submit(bench.read(40, 4096)?).is_ok(), "an empty queue has room");
    queue.ring();
    // All that the application has.
    drop(bench);
    ensure!(space.mapped() == before, "{} maps of {before} while a command is in flight", space.mapped());
    let (mut intact, began) = (None, Instant::now());
    while intact.is_none() {
        queue.poll(1, &mut |c| intact = Some(c.data.bufs().iter().all(|b| holds(b, 40, block, 7))));
        ensure!(began.elapsed() < SOON, "no completion");
    }
    ensure!(intact == Some(true), "what was read is not what was written");
    drop(queue);
    ensure!(space.mapped() == 0, "{} maps are left", space.mapped());
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn hugepages_that_are_used_up_are_named() -> Result<()> {
    let reserve = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(reserve)?;
    std::fs::write(reserve, "2")?;
    let done = use_two_hugepages_up();
    std::fs::write(reserve, before.trim())?;
    done
}

fn use_two_hugepages_up() -> Result<()> {
    let rig = first()?;
    let huge = ArenaOptions { hugepages: Some(true), numa_node: None };
    let one = Arena::new(1, huge)?;
    ensure!(one.source() == Source::HugeFile, "{:?}", one.source());
    let mapping = rig.device.dma().attach(one.clone())?;
    let error = Arena::new(2 * one.len(), huge).err().context("one is left")?.to_string();
    println!("{error}");
    ensure!(error.contains("1 free of") && error.contains("nr_hugepages"), "{error}");
    let plain = Arena::new(2 * one.len(), ArenaOptions::default())?;
    ensure!(plain.source() == Source::File, "plain pages will do: {:?}", plain.source());
    drop((mapping, one, plain));
    // Given back, it can be had again.
    let again = Arena::new(1, huge)?;
    rig.device.dma().attach(again)?;
    Ok(())
}

/// Addresses outside of the windows are refused before the kernel sees them; where the windows are small, they run out.
#[test]
#[ignore = "wants a guest"]
fn device_addresses_run_out() -> Result<()> {
    const PIECE: u64 = 256 << 20;
    let plain = ArenaOptions { hugepages: Some(false), numa_node: None };
    for way in kernel_ways() {
        let space = kernel(&way)?.device.dma();
        let windows = space.windows();
        let small = Arena::new(1, plain)?;
        let mut outside: Vec<u64> = windows.iter().filter_map(|w| w.range.end().checked_add(1)).collect();
        outside.retain(|at| windows.iter().all(|w| !w.range.contains(at)));
        ensure!(!outside.is_empty(), "no IOMMU maps all there is: {windows:x?}");
        for at in outside {
            let error = space.attach_at(small.clone(), Iova(at)).err().context("it is outside")?;
            println!("{:?}: {error}", way.route);
            ensure!(matches!(error, wholebar::Error::Ledger { .. }), "{error}");
        }
        let bytes: u128 = windows.iter().map(|w| u128::from(w.range.end() - w.range.start()) + 1).sum();
        if bytes > 1 << 30 {
            println!("{:?}: the windows are larger than this guest's memory", way.route);
            continue;
        }
        let mut maps = Vec::new();
        let error = loop {
            match space.attach(Arena::new(PIECE, plain)?) {
                Ok(map) => maps.push(map),
                Err(error) => break error,
            }
            ensure!(maps.len() as u128 * u128::from(PIECE) <= bytes, "more than there is");
        };
        println!("{:?} {:?}: after {} maps: {error}", way.route, way.iommu, maps.len());
        ensure!(matches!(error, wholebar::Error::NoIova { .. }), "{error}");
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn descriptors_can_be_handed_in() -> Result<()> {
    let name = functions()?.remove(0);
    let open = |path: &str| -> Result<std::os::fd::OwnedFd> {
        Ok(std::fs::File::options().read(true).write(true).open(path).with_context(|| path.to_owned())?.into())
    };
    let group = function(name)?.group().context("it is in a group")?;
    let descriptors =
        Descriptors::Group { container: open("/dev/vfio/vfio")?, group: open(&format!("/dev/vfio/{group}"))? };
    let device = Vfio::over(name, descriptors, &VfioOptions::default())?;
    nvme::data_comes_back(&Rig::over(device), nvme::patient())?;
    if let Some(node) = function(name)?.vfio_device()
        && let Ok(device) = open(&format!("/dev/vfio/devices/{node}"))
    {
        let descriptors = Descriptors::Node { iommufd: open("/dev/iommu")?, device };
        let device = Vfio::over(name, descriptors, &VfioOptions::default())?;
        nvme::data_comes_back(&Rig::over(device), nvme::patient())?;
    }
    let wrong = Descriptors::Group { container: open("/dev/null")?, group: open("/dev/null")? };
    let error = Vfio::over(name, wrong, &VfioOptions::default()).err().context("not VFIO's")?.to_string();
    ensure!(error.contains("no VFIO container"), "{error}");
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn a_hundred_rounds_leave_nothing_behind() -> Result<()> {
    let round = |way: &VfioOptions| -> Result<()> {
        let rig = kernel(way)?;
        let arena = Arena::new(1 << 20, ArenaOptions::default())?;
        let mapping = rig.device.dma().attach(arena)?;
        let nvme = Nvme::open(rig.device.clone(), nvme::patient())?;
        ensure!(nvme.queue(QueueOptions::default())?.in_flight() == 0, "a new queue is empty");
        drop((mapping, nvme));
        Ok(())
    };
    let ways = kernel_ways();
    ways.iter().try_for_each(round)?;
    let before = open_files_and_maps()?;
    let rounds = if cfg!(target_arch = "powerpc64") { 20 } else { 100 };
    for (i, way) in (0..rounds).zip(ways.iter().cycle()) {
        round(way).with_context(|| format!("round {i}"))?;
    }
    let after = open_files_and_maps()?;
    ensure!(before == after, "(descriptors, maps) were {before:?}, and are {after:?}");
    Ok(())
}

/// Runs [`body`] in another process, which is killed when this is dropped.
struct Other(Child);

impl Other {
    fn start(body: &str) -> Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(["--ignored", "--exact", "--nocapture", "body_in_another_process"])
            .env("WHOLEBAR_TEST_BODY", body)
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    /// Waits until it says `ready`.
    fn wait_until_ready(&mut self) -> Result<()> {
        use std::io::BufRead;
        let out = self.0.stdout.as_mut().context("its output is a pipe")?;
        for line in std::io::BufReader::new(out).lines() {
            if line? == "ready" {
                return Ok(());
            }
        }
        bail!("it ended: {}", self.0.wait()?)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "is run by others, in a process of its own"]
fn body_in_another_process() -> Result<()> {
    match std::env::var("WHOLEBAR_TEST_BODY").as_deref() {
        Ok("hold") => {
            let _held = first()?;
            println!("\nready");
            std::thread::sleep(SOON);
        }
        Ok("load") => {
            let bench = Bench::open(&first()?, nvme::patient(), 64, 4096)?;
            println!("\nready");
            poll_until_it_ends(&bench)?;
        }
        _ => {}
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn another_process_has_it_until_it_is_killed() -> Result<()> {
    let mut other = Other::start("hold")?;
    other.wait_until_ready()?;
    let error = first().err().context("the other one has it")?.to_string();
    println!("{error}");
    ensure!(error.contains("another process"), "{error}");
    drop(other);
    for _ in 0..3 {
        let mut other = Other::start("load")?;
        other.wait_until_ready()?;
        std::thread::sleep(Duration::from_millis(100));
        drop(other);
        first().context("it can be opened at once")?;
    }
    nvme::data_comes_back(&first()?, nvme::patient())
}

#[test]
#[ignore = "wants a guest"]
fn too_little_locked_memory_is_named() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let rig = first()?;
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    let before = getrlimit(Resource::Memlock);
    // Of this thread alone: who has it may lock what it likes.
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets)?;
    setrlimit(Resource::Memlock, Rlimit { current: Some(64 << 10), maximum: before.maximum })?;
    let refused = rig.device.dma().attach(arena.clone()).err();
    setrlimit(Resource::Memlock, before)?;
    let error = refused.context("64 KiB may be locked")?.to_string();
    println!("{error}");
    ensure!(error.contains("RLIMIT_MEMLOCK") && error.contains("ulimit -l"), "{error}");
    rig.device.dma().attach(arena)?;
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn the_last_map_is_named() -> Result<()> {
    let limit = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    let Ok(before) = std::fs::read_to_string(limit) else {
        println!("skipped: sPAPR has no such limit");
        return Ok(());
    };
    std::fs::write(limit, "3")?;
    // A container's; an iommufd has none.
    let rig = kernel(&kernel_ways()[0]);
    std::fs::write(limit, before)?;
    let space = rig?.device.dma();
    let arenas: Vec<_> = (0..4).map(|_| Arena::new(4096, ArenaOptions::default())).collect::<Result<_, _>>()?;
    let maps: Vec<_> = arenas.iter().map(|arena| space.attach(arena.clone())).collect();
    ensure!(maps[..3].iter().all(|m| m.is_ok()), "three are allowed");
    let error = maps[3].as_ref().err().context("and no more")?.to_string();
    println!("{error}");
    ensure!(error.contains("3 maps"), "{error}");
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn vectors_are_as_many_as_there_are() -> Result<()> {
    let device = first()?.device;
    let info = device.irq_info(Irq::Msix)?;
    let irqs = wholebar::irq::Interrupts::new(device.clone(), Irq::Msix, u32::MAX)?;
    ensure!(irqs.count() == info.count, "{} of {}", irqs.count(), info.count);
    // Out of order: where the kernel adds them one at a time, there are gaps.
    for vector in [info.count - 1, 0, 3] {
        let fd = irqs.vector(vector)?;
        irqs.trigger(vector)?;
        ensure!(fd.wait(Some(SOON))?.is_some(), "vector {vector} is silent");
    }
    device.reset()?;
    irqs.restore()?;
    irqs.trigger(3)?;
    ensure!(irqs.vector(3)?.wait(Some(SOON))?.is_some(), "vector 3 is silent after a reset");
    ensure!(irqs.vector(info.count).is_err(), "there is no vector {}", info.count);
    Ok(())
}
