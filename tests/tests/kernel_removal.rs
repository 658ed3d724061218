//! Devices that leave in the midst of reads: asked for by the machine's owner, or without a word. In a guest, which loses an NVMe device.
//! `cargo xtask vm test x86_64 kernel_removal` runs them.
// guests: x86_64 x86_64-iommufd
// machine: --nvme 64M --nvme 64M --nic igb --nic igb --nic virtio-net,hub=1 --nic virtio-net,hub=1 --nic vmxnet3,hub=3 --nic vmxnet3,hub=3 --bind all --qemu -global --qemu ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off
// core: x86_64

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, QueueState, Reject, Rejected, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::nvme::{Event, Options, QueueOptions};
use wholebar::pci::{Address, function as pci_function};
use wholebar::vfio::sysfs::Sysfs;
use wholebar_tests::guest::{SOON, function, functions, open_files_and_maps, over};
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
                Ok(Event::Device(DeviceEvent::UnbindRequest)) => true,
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
    let before = open_files_and_maps()?;
    let began = {
        let bench = Bench::open(&over(leaves)?, Options::default(), 16, 4096)?;
        let began = read_until_it_is_asked_for(&bench, || Ok(fs::write("/dev/monitor", "device_del nvme0\n")?))?;
        ensure!(Sysfs::default().function(leaves).is_some(), "it is ours until we give it back");
        bench.nvme.smart().context("it works until we give it back")?;
        began
    };
    linux_has_it_no_more(leaves, began)?;
    nothing_is_left(before)?;
    nvme::data_comes_back(&over(stays)?, Options::default())
}

fn linux_has_it_no_more(address: Address, since: Instant) -> Result<()> {
    while Sysfs::default().function(address).is_some() {
        ensure!(since.elapsed() < BOUND, "{address} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("gone after {:?}", since.elapsed());
    let error = over(address).err().context("it is gone")?.to_string();
    ensure!(error.contains("no such PCI function"), "{error}");
    Ok(())
}

fn nothing_is_left(before: (usize, usize)) -> Result<()> {
    let after = open_files_and_maps()?;
    ensure!(before == after, "(descriptors, maps) were {before:?}, and are {after:?}");
    Ok(())
}

/// The slot that a device is in: its control register, in the port above it (PCI Express Base 6.0, 7.5.3.10).
struct Slot {
    config: File,
    control: u64,
}

impl Slot {
    /// Power Controller Control: the slot has no power.
    const POWER_OFF: u16 = 1 << 10;
    /// Power Indicator Control, and its "on": without power and indicator, QEMU takes the device out for good.
    const INDICATOR: u16 = 3 << 8;
    const INDICATOR_ON: u16 = 1 << 8;

    fn of(address: Address) -> Result<Self> {
        let device = fs::canonicalize(function(address)?.path())?;
        let port = device.parent().context("a function is on a bus")?;
        let config = File::options().read(true).write(true).open(port.join("config"))?;
        let byte = |at: u8| -> Result<u8> {
            let mut byte = [0];
            config.read_exact_at(&mut byte, at.into())?;
            Ok(byte[0])
        };
        let mut at = byte(0x34)?;
        while byte(at)? != 0x10 {
            at = byte(at + 1)?;
            ensure!(at >= 0x40, "{} has no PCI Express capability", port.display());
        }
        Ok(Self { config, control: u64::from(at) + 0x18 })
    }

    fn control(&self) -> Result<u16> {
        let mut word = [0; 2];
        self.config.read_exact_at(&mut word, self.control)?;
        Ok(u16::from_le_bytes(word))
    }

    fn set_control(&self, word: u16) -> Result<()> {
        Ok(self.config.write_all_at(&word.to_le_bytes(), self.control)?)
    }

    /// Nobody hears of it; the device answers nothing, and has forgotten all when it has power again.
    fn cut_power(&self) -> Result<()> {
        self.set_control(self.control()? & !Self::INDICATOR | Self::INDICATOR_ON | Self::POWER_OFF)
    }

    fn restore_power(&self) -> Result<()> {
        self.set_control(self.control()? & !Self::POWER_OFF)
    }
}

/// Or the kernel would wait minutes for the device when it is closed, and let nobody reach the port meanwhile.
impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.restore_power();
    }
}

/// Reads until the queue says that the device is gone, which `vanish` makes it after some reads. Each of them has ended then.
fn read_until_it_is_gone(bench: &Bench, vanish: impl FnOnce() -> Result<()>) -> Result<()> {
    const DEPTH: usize = 16;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let (mut vanish, mut began) = (Some(vanish), Instant::now());
    let (mut taken, mut ok, mut gone, mut other) = (0, 0, 0, None);
    while queue.state() != QueueState::Gone || queue.in_flight() > 0 {
        while queue.in_flight() < DEPTH {
            match queue.submit(bench.read(0, 4096)?) {
                Ok(()) => taken += 1,
                Err(Rejected { why: Reject::Resetting | Reject::Gone, .. }) => break,
                Err(rejected) => bail!("{}", rejected.why),
            }
        }
        if ok > 1000
            && let Some(vanish) = vanish.take()
        {
            // Some have been posted that the device is told of when it is no more.
            began = Instant::now();
            vanish()?;
        }
        queue.ring();
        queue.poll(DEPTH, &mut |done| match done.status {
            Status::Ok => ok += 1,
            Status::Gone => gone += 1,
            status => other = Some(status),
        });
        ensure!(other.is_none(), "{other:?} after {ok} reads");
        ensure!(began.elapsed() < SOON, "after {ok} reads: {:?}, {} in flight", queue.state(), queue.in_flight());
    }
    println!("{ok} reads and {gone} that found it gone, after {:?}", began.elapsed());
    ensure!(
        vanish.is_none() && gone > 0 && ok + gone == taken,
        "{taken} were taken, {ok} ended well, {gone} found it gone"
    );
    Ok(())
}

/// Whoever asks is told that it is gone, and nothing is lost.
fn all_calls_say_gone(bench: &Bench) -> Result<()> {
    let event = bench.nvme.events().recv_timeout(SOON)?;
    let Event::Device(DeviceEvent::Ended { why }) = event else { bail!("{event:?}") };
    println!("{why}");
    let errors = [
        bench.nvme.check().err(),
        bench.nvme.smart().err(),
        bench.nvme.reset().err(),
        bench.nvme.queue(QueueOptions::default()).err(),
    ];
    ensure!(
        errors.iter().all(|e| matches!(e, Some(wholebar::nvme::Error::Core(wholebar::Error::Gone { .. })))),
        "{errors:?}"
    );
    ensure!(pci_function::is_absent(bench.nvme.device().as_ref())?, "its configuration space still answers");
    ensure!(bench.nvme.quarantined() == 0 && bench.pool.available() == bench.pool.capacity(), "a buffer is lost");
    Ok(())
}

/// A device vanishes without a word. It can be opened and used again when it is back.
#[test]
#[ignore = "wants a guest"]
fn power_fails_under_load() -> Result<()> {
    let address = functions()?.pop().context("a guest has devices")?;
    let before = open_files_and_maps()?;
    let began = {
        let bench = Bench::open(&over(address)?, nvme::patient(), 16, 4096)?;
        // Dropped before what is closed.
        let slot = Slot::of(address)?;
        read_until_it_is_gone(&bench, || slot.cut_power())?;
        all_calls_say_gone(&bench)?;
        slot.restore_power()?;
        // That it is there again changes nothing for who has lost it.
        ensure!(
            matches!(bench.nvme.smart(), Err(wholebar::nvme::Error::Core(wholebar::Error::Gone { .. }))),
            "it is back"
        );
        Instant::now()
    };
    println!("closed after {:?}", began.elapsed());
    nothing_is_left(before)?;
    nvme::data_comes_back(&over(address)?, nvme::patient())
}
