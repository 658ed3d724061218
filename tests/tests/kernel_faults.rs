//! What only a kernel can do to a device, and to those who share it: in a guest, on its NVMe devices, which are written to. `cargo xtask vm test GUEST`
//! runs them.

use anyhow::{Context, Result, bail, ensure};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar::bar::{BarOptions, MapPolicy, MsixTable, plan_of};
use wholebar::block::{BlockQueue, QueueState, Status};
use wholebar::mem::{Arena, ArenaOptions};
use wholebar::pci::{Address, IRQ_MSIX, PciDevice, Verdict, config};
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{Descriptors, Vfio, VfioOptions};
use wholebar_nvme::{Event, Nvme, Options, QueueOptions};
use wholebar_tests::nvme::{Bench, holds, run};
use wholebar_tests::{Rig, functions, kernel, nvme};

const SOON: Duration = Duration::from_secs(60);

fn first() -> Result<Rig> {
    kernel(&VfioOptions::default())
}

fn function(address: Address) -> Result<Function> {
    Sysfs::default().function(address).context("the function is there")
}

#[test]
#[ignore = "wants a guest"]
fn the_table_is_seen_through_the_mapping_alone() -> Result<()> {
    let rig = first()?;
    let nvme = Nvme::open(rig.device.clone(), Options { policy: MapPolicy::Whole, ..Options::default() })?;
    let table = MsixTable::of(&rig.device)?.context("QEMU's NVMe has MSI-X")?;
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
    let bench = Bench::open(&first()?, Options::default(), 4, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions { interrupt: Some(1), ..QueueOptions::default() })?;
    let wake = bench.nvme.interrupts().context("QEMU's NVMe has MSI-X")?.vector(1)?;
    for i in 0..3 {
        ensure!(queue.submit(bench.read(i, 4096)?).is_ok(), "an empty queue has room");
        queue.ring();
        ensure!(wake.wait(Some(SOON))? > 0, "no interrupt");
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

/// Reads until the queue ends, and returns what it said then; or until the controller was reset, and works again.
fn poll_until_it_ends(bench: &Bench) -> Result<String> {
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let began = Instant::now();
    loop {
        while let Ok(request) = bench.read(0, 4096) {
            if let Err(rejected) = queue.submit(request) {
                match rejected.why {
                    wholebar::block::Reject::Full | wholebar::block::Reject::Resetting => break,
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
        if let Ok(Event::Reset { why, .. }) = bench.nvme.events().try_recv() {
            return Ok(format!("reset: {why}"));
        }
        ensure!(began.elapsed() < SOON, "it did not end: {:?}", queue.state());
    }
}

#[test]
#[ignore = "wants a guest"]
fn memory_switched_off_behind_the_driver_ends_in_an_error() -> Result<()> {
    for policy in [MapPolicy::Whole, MapPolicy::Trapped] {
        let rig = first()?;
        let options = Options { policy, timeout: Duration::from_secs(1), ..Options::default() };
        let bench = Bench::open(&rig, options, 16, 4096)?;
        let device = rig.device.clone();
        let behind = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            config::enable_memory(device.as_ref(), false)
        });
        let end = poll_until_it_ends(&bench).with_context(|| format!("{policy:?}"))?;
        println!("{policy:?}: {end}");
        behind.join().map_err(|_| anyhow::anyhow!("a panic"))??;
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
    nvme::data_comes_back(&first()?, Options::default())
}

#[test]
#[ignore = "wants a guest"]
fn an_unbind_request_comes_while_polling() -> Result<()> {
    let name = functions()?.remove(0);
    let bench = Bench::open(&first()?, Options::default(), 16, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    // Unbinding waits until the device is given back.
    let unbinding = function(name)?.path().join("driver/unbind");
    let unbind = std::thread::spawn(move || std::fs::write(unbinding, name.to_string()));
    let began = Instant::now();
    let mut reads = 0;
    while bench.nvme.events().try_recv().ok() != Some(Event::UnbindRequest) {
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
    let function = function(name)?;
    ensure!(function.driver().is_none(), "{:?} has it", function.driver());
    let error = first().err().context("nobody has it")?.to_string();
    function.bind("vfio-pci")?;
    ensure!(error.contains("no driver has it") && error.contains("bind"), "{error}");
    nvme::data_comes_back(&first()?, Options::default())
}

#[test]
#[ignore = "wants a guest"]
fn two_devices_share_an_address_space() -> Result<()> {
    let names = functions()?;
    let [one, other, ..] = &names[..] else {
        println!("skipped: this machine has one function (--nvme 64M --nvme 64M for two)");
        return Ok(());
    };
    let first = Vfio::open(*one, &VfioOptions::default())?;
    let alone = Vfio::open(*other, &VfioOptions::default())?;
    ensure!(!Arc::ptr_eq(&first.dma(), &alone.dma()), "each group has an address space of its own");
    let share = || VfioOptions { share: Some(first.dma()), ..VfioOptions::default() };
    let error = Vfio::open(*other, &share()).err().context("it is in another space")?.to_string();
    ensure!(error.contains("address space of its own"), "{error}");
    drop(alone);
    let second = Vfio::open(*other, &share())?;
    ensure!(Arc::ptr_eq(&first.dma(), &second.dma()), "it is the same space");

    // One arena, mapped once: what one device reads, the other writes from the same buffer.
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    let devices = [first as Arc<dyn PciDevice>, second];
    let nvmes = devices.map(|device| Nvme::open(device, Options::default()));
    let [Ok(from), Ok(to)] = &nvmes else { bail!("{:?}", nvmes.map(|n| n.err())) };
    from.attach(&arena)?;
    to.attach(&arena)?;
    let pool = wholebar::mem::Pool::new(&arena, 4, 4096, 4096)?;
    let block = from.namespaces()[0].block_size;
    let (mut source, mut sink) = (from.queue(QueueOptions::default())?, to.queue(QueueOptions::default())?);
    let mut buf = pool.get_len(4096).context("a buffer")?;
    nvme::fill(&mut buf, 8, block, 99);
    let op = |write| if write { wholebar::block::Op::Write { lba: 8 } } else { wholebar::block::Op::Read { lba: 8 } };
    let data = run(&mut source, nvme::request(1, op(true), wholebar::block::Data::One(buf)))?.data;
    data.bufs().iter().for_each(|buf| assert_eq!(buf.len(), 4096));
    let data = run(&mut source, nvme::request(1, op(false), data))?.data;
    let data = run(&mut sink, nvme::request(1, op(true), data))?.data;
    let done = run(&mut sink, nvme::request(1, op(false), data))?;
    ensure!(done.status == Status::Ok && done.data.bufs().iter().all(|b| holds(b, 8, block, 99)), "{:?}", done.status);
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
    nvme::data_comes_back(&Rig::over(device), Options::default())?;
    if let Some(node) = function(name)?.vfio_device()
        && let Ok(device) = open(&format!("/dev/vfio/devices/{node}"))
    {
        let descriptors = Descriptors::Node { iommufd: open("/dev/iommu")?, device };
        let device = Vfio::over(name, descriptors, &VfioOptions::default())?;
        nvme::data_comes_back(&Rig::over(device), Options::default())?;
    }
    let wrong = Descriptors::Group { container: open("/dev/null")?, group: open("/dev/null")? };
    let error = Vfio::over(name, wrong, &VfioOptions::default()).err().context("not VFIO's")?.to_string();
    ensure!(error.contains("no VFIO container"), "{error}");
    Ok(())
}

fn open_files_and_maps() -> Result<(usize, usize)> {
    let maps = std::fs::read_to_string("/proc/self/maps")?.lines().filter(|l| l.contains("vfio")).count();
    Ok((std::fs::read_dir("/proc/self/fd")?.count(), maps))
}

#[test]
#[ignore = "wants a guest"]
fn a_hundred_rounds_leave_nothing_behind() -> Result<()> {
    let round = || -> Result<()> {
        let rig = first()?;
        let arena = Arena::new(1 << 20, ArenaOptions::default())?;
        let mapping = rig.device.dma().attach(&arena)?;
        let nvme = Nvme::open(rig.device.clone(), Options::default())?;
        ensure!(nvme.queue(QueueOptions::default())?.in_flight() == 0, "a new queue is empty");
        drop((mapping, nvme));
        Ok(())
    };
    round()?;
    let before = open_files_and_maps()?;
    let rounds = if cfg!(target_arch = "powerpc64") { 20 } else { 100 };
    for i in 0..rounds {
        round().with_context(|| format!("round {i}"))?;
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
            let bench = Bench::open(&first()?, Options::default(), 64, 4096)?;
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
    nvme::data_comes_back(&first()?, Options::default())
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
    let refused = rig.device.dma().attach(&arena).err();
    setrlimit(Resource::Memlock, before)?;
    let error = refused.context("64 KiB may be locked")?.to_string();
    println!("{error}");
    ensure!(error.contains("RLIMIT_MEMLOCK") && error.contains("ulimit -l"), "{error}");
    rig.device.dma().attach(&arena)?;
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
    let rig = first();
    std::fs::write(limit, before)?;
    let space = rig?.device.dma();
    let arenas: Vec<_> = (0..4).map(|_| Arena::new(4096, ArenaOptions::default())).collect::<Result<_, _>>()?;
    let maps: Vec<_> = arenas.iter().map(|arena| space.attach(arena)).collect();
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
    let info = device.irq_info(IRQ_MSIX)?;
    let irqs = wholebar::irq::Interrupts::new(device.clone(), IRQ_MSIX, u32::MAX)?;
    ensure!(irqs.count() == info.count, "{} of {}", irqs.count(), info.count);
    // Out of order: where the kernel adds them one at a time, there are gaps.
    for vector in [info.count - 1, 0, 3] {
        let fd = irqs.vector(vector)?;
        irqs.trigger(vector)?;
        ensure!(fd.wait(Some(SOON))? > 0, "vector {vector} is silent");
    }
    device.reset()?;
    irqs.restore()?;
    irqs.trigger(3)?;
    ensure!(irqs.vector(3)?.wait(Some(SOON))? > 0, "vector 3 is silent after a reset");
    ensure!(irqs.vector(info.count).is_err(), "there is no vector {}", info.count);
    Ok(())
}
