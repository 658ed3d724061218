//! virtio devices of QEMU through the kernel's VFIO, in a guest: the bodies that our models pass, against devices that nobody here wrote.
//! `cargo xtask vm test GUEST kernel_virtio` runs them.
// guests: x86_64 x86_64-iommufd ppc64le-64k
// machine: --nic igb --nic igb --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --blk 64M,packed=on,in_order=on,num-queues=2 --bind nic --bind blk
// core: x86_64 ppc64le-64k

use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::control_plane::DeviceEvent;
use wholebar::net::{Burst, Event, Port, PortConfig};
use wholebar::reactor::Armed;
use wholebar::virtio::Options;
use wholebar_tests::Rig;
use wholebar_tests::guest::{SOON, VIRTIO, disks, nics_of, on_a_wire, over, rings};
use wholebar_tests::virtio::{self, End};

/// Every kind of ring, and every way of mapping; the least that is left.
fn ways() -> Vec<Options> {
    let policy = |policy, page| Options { policy, page, ..virtio::patient() };
    let mut ways = rings();
    ways.push(policy(MapPolicy::Carved, Some(PageSize::K64.max(PageSize::host()))));
    ways.push(Options { event_idx: false, packed: false, in_order: false, ..policy(MapPolicy::Trapped, None) });
    ways
}

fn on_a_disk(ways: &[Options], body: impl Fn(&Rig, Options) -> Result<()>) -> Result<()> {
    for options in ways {
        body(&over(disks()?[0])?, options.clone()).with_context(|| format!("{options:?}"))?;
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn packets_cross() -> Result<()> {
    on_a_wire(&ways(), |rigs, options| virtio::packets_cross(rigs, options, 500))
}

#[test]
#[ignore = "wants a guest"]
fn jumbo_frames_cross() -> Result<()> {
    on_a_wire(&rings(), virtio::jumbo_frames_cross)
}

#[test]
#[ignore = "wants a guest"]
fn filters_filter() -> Result<()> {
    on_a_wire(&rings()[..1], virtio::filters_filter)
}

#[test]
#[ignore = "wants a guest"]
fn packets_go_on_after_resets() -> Result<()> {
    on_a_wire(&rings(), |rigs, options| virtio::packets_go_on_after_resets(rigs, options, 4))
}

#[test]
#[ignore = "wants a guest"]
fn data_comes_back() -> Result<()> {
    on_a_disk(&ways(), virtio::data_comes_back)
}

#[test]
#[ignore = "wants a guest"]
fn other_requests() -> Result<()> {
    on_a_disk(&rings(), virtio::other_requests)
}

#[test]
#[ignore = "wants a guest"]
fn requests_survive_resets() -> Result<()> {
    on_a_disk(&rings()[..1], virtio::requests_survive_resets)
}

/// Each frame must wake the sleeper, or be found by the look before: a lost wake-up is a frame that does not come.
#[test]
#[ignore = "wants a guest"]
fn an_idle_core_is_woken() -> Result<()> {
    let sleeper = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    on_a_wire(&rings(), |rigs, options| {
        let mut a = End::open(&rigs[0], &PortConfig::default(), options.clone(), 768)?;
        let mut b = End::open(&rigs[1], &sleeper, options, 768)?;
        let wakeup = b.rx[0].wakeup().context("it has an interrupt")?;
        let (mut burst, mut slept, to) = (Burst::new(4), 0, b.port.mac());
        for number in 0..100 {
            ensure!(b.rx[0].arm() == Armed::Yes);
            ensure!(b.rx[0].rx(&mut burst) == 0);
            if number % 2 == 0 {
                // Nothing comes, so nothing wakes.
                slept += u32::from(wakeup.wait(Some(Duration::from_millis(5)))?.is_none());
            }
            let packet = a.packet(&virtio::frame(to, 60, number))?;
            a.send(0, packet)?;
            ensure!(wakeup.wait(Some(SOON))?.is_some(), "frame {number} woke nobody");
            b.rx[0].disarm();
            ensure!(b.rx[0].rx(&mut burst) == 1, "frame {number} is not there");
            burst.give_back();
        }
        ensure!(slept > 40, "it was woken for nothing: it slept {slept} times of 50");
        a.close()?;
        b.close()
    })
}

/// How often vector 0 of a function has interrupted.
fn interrupts(function: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let line = text.lines().find(|line| line.contains("vfio-msix[0]") && line.contains(function));
    let line = line.with_context(|| format!("nobody waits for {function}:\n{text}"))?;
    Ok(line.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok()).sum())
}

/// The wire is unplugged and plugged in again, under traffic: each is told, by interrupt, and packets go on.
///
/// QEMU 10.0 loses count of a packed ring's descriptors when it drops packets because the link is down, and says that it has to be reset: so it is,
/// which is told too. With buffers in order it never gives back those that it dropped: that is not tried.
#[test]
#[ignore = "wants a guest"]
fn the_link_goes_and_comes_back() -> Result<()> {
    let out_of_order: Vec<_> = rings().into_iter().filter(|options| !options.in_order).collect();
    on_a_wire(&out_of_order, |rigs, options| {
        let packed = options.packed;
        let mut a = End::open(&rigs[0], &PortConfig::default(), options.clone(), 768)?;
        let mut b = End::open(&rigs[1], &PortConfig::default(), options, 768)?;
        let (address, name) = nics_of(VIRTIO)?.swap_remove(0);
        let (address, to) = (address.to_string(), b.port.mac());
        let (mut out, mut got, mut number) = (Burst::new(8), Burst::new(32), 0);
        for up in [false, true, false, true] {
            let before = interrupts(&address)?;
            fs::write("/dev/monitor", format!("set_link {name} {}\n", if up { "on" } else { "off" }))?;
            let (began, mut told, mut came) = (Instant::now(), false, 0);
            while !told || (up && came < 100) {
                while out.room() > 0
                    && let Ok(packet) = a.packet(&virtio::frame(to, 60, number))
                {
                    let _ = out.push(packet);
                    number += 1;
                }
                a.tx[0].tx(&mut out);
                a.rx[0].rx(&mut got);
                b.tx[0].reclaim();
                b.rx[0].rx(&mut got);
                came += if told { got.len() } else { 0 };
                got.give_back();
                for event in a.port.events().try_iter() {
                    match event {
                        Event::Link(link) => told |= link.up == up,
                        Event::Device(DeviceEvent::Reset { lost, .. }) if packed => {
                            ensure!(lost.is_empty(), "queues {lost:?} were lost")
                        }
                        other => anyhow::bail!("{other:?} for {up}"),
                    }
                }
                ensure!(began.elapsed() < SOON, "told of link {up}: {told}; {came} packets, {}", a.port.link());
            }
            ensure!(a.port.link().up == up && b.port.link().up);
            // The slow path looks by itself now and then, and may have been sooner. A device that has to be reset, or is just being so, interrupts for nothing.
            while !packed && interrupts(&address)? == before {
                ensure!(began.elapsed() < SOON, "it was seen, and no interrupt came");
            }
        }
        ensure!(packed || a.count("resets") == 0, "it was reset");
        out.give_back();
        a.close()?;
        b.close()
    })
}
