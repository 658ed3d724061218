//! Devices that share an IOMMU group, a slot or an address space; virtual functions; interrupts one vector at a time, and by MSI: in a guest, on NVMe
//! devices, which are written to, and a NIC. `cargo xtask vm test GUEST` runs them.
//!
//! The ports are slow ones: at more than 5 GT/s Linux waits after a reset until a port's link is up, finds QEMU's down, and says ENOTTY.
// guests: x86_64 x86_64-iommufd
// machine: --nvme 64M --nvme 64M,multifunction=on --nvme 64M,bus=port2,addr=0.1 --nic igb --bind all --append vfio_pci.enable_sriov=1 --qemu -global --qemu pcie-root-port.x-speed=2_5

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use wholebar::block::{Data, Op, Status};
use wholebar::irq::Interrupts;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::nvme::{Nvme, QueueOptions};
use wholebar::pci::{Address, Config, Irq, PciDevice, config};
use wholebar::vfio::{Route, Vfio, VfioOptions};
use wholebar_tests::Rig;
use wholebar_tests::guest::{SOON, first, function, functions, kernel_ways};
use wholebar_tests::nvme::{self, holds, run};

/// One function in a group of its own, and two in another.
fn one_and_two() -> Result<[Address; 3]> {
    let found = functions()?;
    let [one, two, three] = found[..] else { bail!("this machine has {found:?}") };
    let group = |address| Ok::<_, anyhow::Error>(function(address)?.group());
    ensure!(group(one)? != group(two)? && group(two)? == group(three)?, "functions of one slot share a group");
    Ok([one, two, three])
}

/// Copies a block from one controller to another through one buffer, which is mapped for both.
fn copy(from: Arc<Vfio>, to: Arc<Vfio>) -> Result<()> {
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    let before = from.dma().mapped();
    let (from, to) = (Nvme::open(from, nvme::patient())?, Nvme::open(to, nvme::patient())?);
    from.attach(arena.clone())?;
    let mapped = from.device().dma().mapped();
    to.attach(arena.clone())?;
    ensure!(to.device().dma().mapped() == mapped && mapped > before, "it is mapped once");
    let pool = Pool::new(arena, 4, 4096, 4096)?;
    let block = from.namespaces()[0].block_size;
    let (mut source, mut sink) = (from.queue(QueueOptions::default())?, to.queue(QueueOptions::default())?);
    let mut buf = pool.get_len(4096).context("a buffer")?;
    nvme::fill(&mut buf, 8, block, 99);
    let (write, read) = (Op::Write { lba: 8 }, Op::Read { lba: 8 });
    let data = run(&mut source, nvme::request(1, write, Data::One(buf)))?.data;
    let data = run(&mut source, nvme::request(1, read, data))?.data;
    let data = run(&mut sink, nvme::request(1, write, data))?.data;
    let done = run(&mut sink, nvme::request(1, read, data))?;
    ensure!(done.status == Status::Ok && done.data.bufs().iter().all(|b| holds(b, 8, block, 99)), "{:?}", done.status);
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn groups_share_an_address_space_where_they_are_told_to() -> Result<()> {
    let [one, other, _] = one_and_two()?;
    for way in kernel_ways() {
        let first = Vfio::open(one, &way)?;
        let alone = Vfio::open(other, &way)?;
        ensure!(!first.dma().is_shared_with(&alone.dma()), "each group has an address space of its own");
        let share = VfioOptions { share: Some(first.dma()), ..way.clone() };
        let error = Vfio::open(other, &share).err().context("it is in another space")?.to_string();
        ensure!(error.contains("address space of its own"), "{error}");
        drop(alone);
        let second = Vfio::open(other, &share)?;
        ensure!(first.dma().is_shared_with(&second.dma()), "it is the same space");
        copy(first, second).with_context(|| format!("{:?}", way.route))?;
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn devices_of_one_group_share_an_address_space() -> Result<()> {
    let [_, two, three] = one_and_two()?;
    for way in kernel_ways() {
        let (first, second) = (Vfio::open(two, &way)?, Vfio::open(three, &way)?);
        ensure!(first.dma().is_shared_with(&second.dma()), "they cannot be told apart");
        copy(first.clone(), second.clone()).with_context(|| format!("{:?}", way.route))?;
        // One goes and comes again while the other one works on.
        let nvme = Nvme::open(second.clone(), nvme::patient())?;
        drop(first);
        nvme.smart()?;
        let first = Vfio::open(two, &way)?;
        nvme.smart()?;
        drop(nvme);
        copy(second, first).with_context(|| format!("{:?}", way.route))?;
    }
    Ok(())
}

/// Has Linux reset a function in no way of its own, until this is dropped: what is left is a reset of all that is on its slot.
struct NoFunctionReset(Vec<PathBuf>);

impl NoFunctionReset {
    fn of(addresses: &[Address]) -> Result<Self> {
        let mut was = Self(Vec::new());
        for address in addresses {
            let path = function(*address)?.path().join("reset_method");
            fs::write(&path, "\n").with_context(|| path.display().to_string())?;
            was.0.push(path);
        }
        Ok(was)
    }
}

impl Drop for NoFunctionReset {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = fs::write(path, "default") {
                println!("{}: {error}", path.display());
            }
        }
    }
}

/// A register of NVMe that a reset clears: Interrupt Mask Set (NVM Express Base 2.0, 3.1.4.4).
const INTMS: u64 = 0xc;

fn masked(device: &Vfio) -> Result<u32> {
    let mut value = [0; 4];
    device.read(0, INTMS, &mut value)?;
    Ok(u32::from_le_bytes(value))
}

#[test]
#[ignore = "wants a guest"]
fn where_a_function_cannot_be_reset_its_slot_is() -> Result<()> {
    let [one, two, three] = one_and_two()?;
    let _none = NoFunctionReset::of(&[one, two, three])?;
    for way in kernel_ways() {
        // Alone on its slot; then with another, which is reset too.
        for addresses in [&[one][..], &[two, three]] {
            let devices: Vec<_> = addresses.iter().map(|a| Vfio::open(*a, &way)).collect::<Result<_, _>>()?;
            for device in &devices {
                device.write(0, INTMS, &2u32.to_le_bytes())?;
                ensure!(masked(device)? == 2 && device.info().resettable, "{device:?}");
            }
            devices[0].reset().with_context(|| format!("{:?} {addresses:?}", way.route))?;
            for device in &devices {
                config::enable_memory(device.as_ref(), true)?;
                ensure!(masked(device)? == 0, "{device:?} was not reset");
            }
            nvme::data_comes_back(&Rig::over(devices[0].clone()), nvme::patient())?;
        }
    }
    Ok(())
}

/// Vectors that the kernel has allocated for a function.
fn allocated(address: Address) -> Result<usize> {
    Ok(function(address)?.message_interrupts().len())
}

#[test]
#[ignore = "wants a guest"]
fn vectors_are_added_one_at_a_time() -> Result<()> {
    let (rig, name) = (first()?, functions()?[0]);
    ensure!(rig.device.irq_info(Irq::Msix)?.resizable, "this kernel adds vectors one at a time (NORESIZE is clear)");
    let irqs = Interrupts::new(rig.device.clone(), Irq::Msix, u32::MAX)?;
    for (count, vector) in [0, 7, 3].into_iter().enumerate() {
        ensure!(allocated(name)? == count, "{} vectors are allocated, not {count}", allocated(name)?);
        let fd = irqs.vector(vector)?;
        irqs.trigger(vector)?;
        ensure!(fd.wait(Some(SOON))?.is_some(), "vector {vector} is silent");
    }
    drop(irqs);
    ensure!(allocated(name)? == 0, "{} vectors stay allocated", allocated(name)?);
    Ok(())
}

fn nic() -> Result<Address> {
    Ok(std::env::var("WHOLEBAR_NIC").context("a guest of `cargo xtask vm` with a NIC")?.parse()?)
}

#[test]
#[ignore = "wants a guest"]
fn msi_works_where_msix_is_not_in_use() -> Result<()> {
    let device = Vfio::open(nic()?, &VfioOptions::default())?;
    ensure!(device.irq_info(Irq::Msi)?.count == 1, "{:?}", device.irq_info(Irq::Msi)?);
    let msix = Interrupts::new(device.clone(), Irq::Msix, 2)?;
    let _vector = msix.vector(1)?;
    let both = Interrupts::new(device.clone(), Irq::Msi, 1).and_then(|irqs| irqs.vector(0).map(drop));
    println!("MSI beside MSI-X: {}", both.err().context("one kind at a time")?);
    drop(msix);
    let irqs = Interrupts::new(device.clone(), Irq::Msi, 1)?;
    let fd = irqs.vector(0)?;
    ensure!(allocated(nic()?)? == 1, "{} vectors are allocated", allocated(nic()?)?);
    irqs.trigger(0)?;
    ensure!(fd.wait(Some(SOON))?.is_some(), "its interrupt is silent");
    Ok(())
}

/// Virtual functions of a physical one that VFIO has too: nobody without its secret can open them.
#[test]
#[ignore = "wants a guest"]
fn virtual_functions_want_the_token() -> Result<()> {
    let token = |text: &str| -> Result<VfioOptions> {
        Ok(VfioOptions { vf_token: Some(text.parse()?), ..VfioOptions::default() })
    };
    let right = token("2ab74924-c335-45f4-9b16-8569e5b08258")?;
    let wrong = token("2ab74924-c335-45f4-9b16-8569e5b08259")?;
    let physical = Vfio::open(nic()?, &right)?;
    let count = function(nic()?)?.path().join("sriov_numvfs");
    fs::write(&count, "2").context("making two virtual functions")?;
    let done = virtual_function(&physical, &right, &wrong);
    fs::write(&count, "0").context("taking them away again")?;
    done
}

fn virtual_function(physical: &Vfio, right: &VfioOptions, wrong: &VfioOptions) -> Result<()> {
    let link = fs::read_link(function(physical.address())?.path().join("virtfn1"))?;
    let address: Address = link.file_name().and_then(|n| n.to_str()).context("an address")?.parse()?;
    let began = Instant::now();
    while function(address)?.driver().as_deref() != Some("vfio-pci") {
        ensure!(began.elapsed() < SOON, "{:?} has {address}", function(address)?.driver());
    }
    for (what, options) in [("none", &VfioOptions::default()), ("a wrong one", wrong)] {
        let route = VfioOptions { route: Route::Group, ..options.clone() };
        let error = Vfio::open(address, &route).err().context("it wants the token")?.to_string();
        println!("{what}: {error}");
        ensure!(error.contains("VF token"), "{error}");
    }
    let device = Vfio::open(address, right)?;
    let header = Config::of(device.as_ref())?;
    // A virtual function's own ids read all ones; the kernel shows those of its kind (82576 datasheet, 9.7: 10CAh).
    ensure!((header.vendor(), header.device()) == (0x8086, 0x10ca), "{:04x}:{:04x}", header.vendor(), header.device());
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    device.dma().attach(arena)?;
    let irqs = Interrupts::new(device.clone(), Irq::Msix, 1)?;
    let fd = irqs.vector(0)?;
    irqs.trigger(0)?;
    ensure!(fd.wait(Some(SOON))?.is_some(), "its vector is silent");
    device.reset()?;
    Ok(())
}
