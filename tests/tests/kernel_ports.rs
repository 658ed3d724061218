//! What happens to network devices in the midst of traffic, whichever driver has them: the wire is unplugged, the owner asks for the device back.
//! In a guest, which loses devices by it. `cargo xtask vm test x86_64 kernel_ports` runs them.
// guests: x86_64
// machine: --nvme 64M --nvme 64M --nic igb --nic igb --nic virtio-net,hub=1 --nic virtio-net,hub=1 --nic vmxnet3,hub=3 --nic vmxnet3,hub=3 --bind all --qemu -global --qemu ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off

use anyhow::{Context, Error, Result, bail, ensure};
use std::fs;
use std::time::{Duration, Instant};
use wholebar::control_plane::DeviceEvent;
use wholebar::intel::igb::Igb;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{Burst, Event, Mac, Port, PortConfig, RxQueue, TxQueue};
use wholebar::pci::Address;
use wholebar::vfio::sysfs::Sysfs;
use wholebar::vfio::{Vfio, VfioOptions};
use wholebar::virtio::Net;
use wholebar::vmxnet3::Vmxnet3;
use wholebar_tests::guest::{SOON, VIRTIO, nics_of, open_files_and_maps};
use wholebar_tests::intel::{self, numbered};
use wholebar_tests::virtio;
use wholebar_tests::vmxnet3::{self, VMWARE};

const INTEL: u16 = 0x8086;
const BUFFERS: u32 = 1024;

/// A port with its first queues.
struct Node {
    port: Box<dyn Port>,
    pool: Pool,
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
}

impl Node {
    fn open(address: Address, vendor: u16) -> Result<Self> {
        let device = Vfio::open(address, &VfioOptions::default())?;
        let config = PortConfig::default();
        let port: Box<dyn Port> = match vendor {
            INTEL => Box::new(Igb::open(device, config, intel::patient())?),
            VMWARE => Box::new(Vmxnet3::open(device, config, vmxnet3::patient())?),
            _ => Box::new(Net::open(device, &config, virtio::patient())?),
        };
        let arena = Arena::new(8 << 20, ArenaOptions::default())?;
        port.attach(arena.clone()).map_err(Error::msg)?;
        // None crosses a page, for the sake of QEMU's 82576.
        let pool = Pool::new(arena.clone(), BUFFERS, 2048 + 128, 4096)?;
        let (rx, tx) = (port.rx_queue(0, &pool).map_err(Error::msg)?, port.tx_queue(0).map_err(Error::msg)?);
        Ok(Self { port, pool, rx, tx })
    }

    /// Closes it: every buffer has to be home.
    fn close(self) -> Result<()> {
        let Self { port, pool, rx, tx } = self;
        drop((rx, tx, port));
        ensure!(pool.available() == BUFFERS, "{} of {BUFFERS} buffers are home", pool.available());
        Ok(())
    }
}

/// Sends from one to the other until `done` says so of what came and of what happened to the sender; both are polled.
fn traffic(from: &mut Node, to: &mut Node, mut done: impl FnMut(u64, Option<Event>) -> Result<bool>) -> Result<()> {
    let (us, them): (Mac, Mac) = (from.port.mac(), to.port.mac());
    let (mut out, mut got, mut number, mut came, began) = (Burst::new(16), Burst::new(32), 0, 0, Instant::now());
    loop {
        while out.room() > 0
            && let Some(mut buf) = from.pool.get()
        {
            numbered(&mut buf, them, us, number, 60);
            number += 1;
            let _ = out.push(buf);
        }
        from.tx.tx(&mut out);
        from.rx.rx(&mut got);
        to.tx.reclaim();
        came += to.rx.rx(&mut got) as u64;
        got.give_back();
        let event = from.port.events().try_recv().ok();
        if done(came, event)? {
            out.give_back();
            return Ok(());
        }
        ensure!(began.elapsed() < SOON, "it did not end: {came} came, {:?}, {}", from.tx.state(), from.port.link());
    }
}

/// Two ports that are wired to each other, and have exchanged packets.
fn pair(vendor: u16) -> Result<[(Node, Address, String); 2]> {
    let nics = nics_of(vendor)?;
    let [(one, one_name), (two, two_name)] = &nics[..] else { bail!("the guest has {nics:?}") };
    let (mut a, mut b) = (Node::open(*one, vendor)?, Node::open(*two, vendor)?);
    traffic(&mut a, &mut b, |came, _| Ok(came > 200)).context("at first")?;
    Ok([(a, *one, one_name.clone()), (b, *two, two_name.clone())])
}

/// How often a port's link changed, by its own count.
fn link_changes(port: &dyn Port) -> Result<u64> {
    let all = port.statistics();
    Ok(all.iter().find(|s| s.queue.is_empty() && s.name == "link_changes").context("it counts them")?.value)
}

/// Each change is told and counted, and packets go on as soon as the link is there again.
fn the_wire_is_unplugged_and_plugged_in_again(vendor: u16) -> Result<()> {
    let [(mut a, _, name), (mut b, ..)] = pair(vendor)?;
    let mut first = None;
    for (number, up) in (0..).zip([false, true, false, true]) {
        fs::write("/dev/monitor", format!("set_link {name} {}\n", if up { "on" } else { "off" }))?;
        let (mut told, mut before) = (false, 0);
        traffic(&mut a, &mut b, |came, event| {
            match event {
                Some(Event::Link(link)) if link.up == up => (told, before) = (true, came),
                Some(Event::Link(_)) | None => {}
                other => bail!("{other:?}"),
            }
            Ok(told && (!up || came > before + 200))
        })
        .with_context(|| format!("link {up}"))?;
        let changes = link_changes(&*a.port)?;
        let first = *first.get_or_insert(changes);
        ensure!(first > 0 && changes == first + number, "{changes} changes are counted after {number} and {first}");
    }
    a.close()?;
    b.close()
}

fn wait_until_gone(address: Address) -> Result<()> {
    let began = Instant::now();
    while Sysfs::default().function(address).is_some() {
        ensure!(began.elapsed() < SOON, "{address} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// It works until it is given back.
fn a_port_is_asked_for(vendor: u16) -> Result<()> {
    let before = open_files_and_maps()?;
    let [(mut a, address, name), (mut b, ..)] = pair(vendor)?;
    fs::write("/dev/monitor", format!("device_del {name}\n"))?;
    let mut asked = None;
    traffic(&mut a, &mut b, |came, event| {
        match event {
            Some(Event::Device(DeviceEvent::UnbindRequest)) => asked = asked.or(Some(came)),
            // That it is up may be told only when packets have crossed.
            Some(Event::Link(link)) if link.up => {}
            None => {}
            other => bail!("{other:?}"),
        }
        Ok(asked.is_some_and(|asked| came > asked + 200))
    })?;
    ensure!(Sysfs::default().function(address).is_some(), "it is ours until we give it back");
    a.close()?;
    wait_until_gone(address)?;
    b.close()?;
    let after = open_files_and_maps()?;
    ensure!(before == after, "(descriptors, maps) were {before:?}, and are {after:?}");
    Ok(())
}

// In alphabetical order: the last ones take the devices away.

#[test]
#[ignore = "wants a guest"]
fn a_wire_of_igb() -> Result<()> {
    the_wire_is_unplugged_and_plugged_in_again(INTEL)
}

#[test]
#[ignore = "wants a guest"]
fn a_wire_of_virtio() -> Result<()> {
    the_wire_is_unplugged_and_plugged_in_again(VIRTIO)
}

#[test]
#[ignore = "wants a guest"]
fn a_wire_of_vmxnet3() -> Result<()> {
    the_wire_is_unplugged_and_plugged_in_again(VMWARE)
}

#[test]
#[ignore = "wants a guest"]
fn removal_of_igb() -> Result<()> {
    a_port_is_asked_for(INTEL)
}

#[test]
#[ignore = "wants a guest"]
fn removal_of_virtio() -> Result<()> {
    a_port_is_asked_for(VIRTIO)
}

#[test]
#[ignore = "wants a guest"]
fn removal_of_vmxnet3() -> Result<()> {
    a_port_is_asked_for(VMWARE)
}
