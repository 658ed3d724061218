//! A port whose queues are a front end's rings: our driver at both ends of a switch, whatever it is asked for, and front ends that come and go.

use anyhow::{Context, Result, ensure};
use std::time::Instant;
use wholebar::net::{Event, Offloads, Port, PortConfig};
use wholebar::virtio::Options;
use wholebar_tests::accounting::account;
use wholebar_tests::storage::PATIENCE;
use wholebar_tests::switch::Switch;
use wholebar_tests::virtio::{End, bytes, frame, patient};
use wholebar_tests::{Rig, offloads, virtio};

fn switched(queues: u16, body: impl Fn(&[Rig; 2], Options) -> Result<()>) -> Result<()> {
    for packed in [false, true] {
        let options = Options { packed, ..patient() };
        body(&Switch::rigs(queues)?, options).with_context(|| format!("packed {packed}"))?;
    }
    Ok(())
}

#[test]
fn packets_cross() -> Result<()> {
    switched(1, |rigs, options| virtio::packets_cross(rigs, options, 2_000))
}

#[test]
fn jumbo_frames_cross() -> Result<()> {
    switched(1, virtio::jumbo_frames_cross)
}

#[test]
fn packets_go_on_after_resets() -> Result<()> {
    switched(1, |rigs, options| virtio::packets_go_on_after_resets(rigs, options, 4))
}

#[test]
fn nothing_is_lost_that_is_not_counted() -> Result<()> {
    const COUNT: u64 = 10_000;
    switched(1, |rigs, options| {
        let account = account(rigs, &options, None, COUNT, 0)?;
        ensure!(account.received == COUNT && account.dropped.is_empty(), "{account:?}");
        Ok(())
    })?;
    let faults = "drop=0.02,duplicate=0.02,truncate=0.02,reorder=0.05,by=16,seed=5".parse()?;
    switched(1, |rigs, options| {
        let account = account(rigs, &options, Some(faults), COUNT, 0)?;
        ensure!(account.sent == COUNT && account.duplicated > COUNT / 50, "{account:?}");
        Ok(())
    })
}

/// Ports that have offloads.
fn with_offloads(offloads: Offloads) -> Result<[Rig; 2]> {
    Switch::of(&PortConfig { offloads, ..PortConfig::default() })?.ends()
}

/// What a front end leaves to its port is passed on to another that takes it so, and done for one that doesn't, whose ring may be shorter than what comes of it.
#[test]
fn offloads_are_done() -> Result<()> {
    for packed in [false, true] {
        let options = Options { packed, ..patient() };
        let all = Offloads { gather: true, ..OFFLOADS };
        offloads::offloads_are_done(&with_offloads(all)?, options.clone())
            .with_context(|| format!("packed {packed}"))?;
        offloads::segments_are_cut(&with_offloads(all)?, &options, Some(8))
            .with_context(|| format!("packed {packed}"))?;
    }
    Ok(())
}

/// What a program leaves to a device, and takes undone.
const OFFLOADS: Offloads =
    Offloads { rx_checksum: true, tx_l4_checksum: true, tso: true, lro: true, scatter: true, ..Offloads::NONE };

/// A front end is offered what the port was asked for, and no more.
#[test]
fn offloads_are_offered_as_they_are_asked_for() -> Result<()> {
    let checksums = Offloads { rx_checksum: true, tx_l4_checksum: true, ..Offloads::NONE };
    for (asked, offered) in [
        // The front end has mergeable buffers whatever the port does.
        (Offloads::NONE, Offloads { scatter: true, ..Offloads::NONE }),
        (checksums, Offloads { scatter: true, ..checksums }),
        // What is received here is sent there.
        (
            Offloads { lro: true, ..Offloads::NONE },
            Offloads { scatter: true, tx_l4_checksum: true, tso: true, ..Offloads::NONE },
        ),
        (
            Offloads { tso: true, ..Offloads::NONE },
            Offloads { scatter: true, rx_checksum: true, lro: true, ..Offloads::NONE },
        ),
        (OFFLOADS, OFFLOADS),
    ] {
        let [rig, _far] = with_offloads(asked)?;
        let end = End::open(&rig, &PortConfig { offloads: OFFLOADS, ..PortConfig::default() }, patient(), 768)?;
        let granted = Offloads { gather: false, ..end.port.granted() };
        ensure!(granted == offered, "asked for {asked}, and a front end is granted {granted}");
        end.close()?;
    }
    Ok(())
}

/// Buffers have room for the headers, and a pool for one packet.
#[test]
fn pools_without_room_are_refused() -> Result<()> {
    use wholebar::mem::{Arena, ArenaOptions, Pool};
    let dir = tempfile::tempdir()?;
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    let lro = Offloads { rx_checksum: true, lro: true, ..Offloads::NONE };
    let scatter = Offloads { scatter: true, ..Offloads::NONE };
    for (number, (offloads, buffers, size, why)) in [
        (Offloads::NONE, 64, 1024, Some("buffers of 1024 bytes are too small")),
        (Offloads::NONE, 1, 2048, None),
        (scatter, 64, 256, Some("buffers of 256 bytes are too small")),
        (scatter, 1, 1024, Some("one packet may take 2")),
        (scatter, 2, 1024, None),
        (lro, 32, 2048, Some("one packet may take 33")),
        (lro, 33, 2048, None),
    ]
    .into_iter()
    .enumerate()
    {
        let target = format!("vhost-user:{},back-end,server", dir.path().join(number.to_string()).display());
        let port = wholebar::net::open_target(&target, &PortConfig { offloads, ..PortConfig::default() })?;
        let queue = port.rx_queue(0, &Pool::new(arena.clone(), buffers, size, 64)?);
        let told = queue.err().map(|error| error.to_string());
        ensure!(told.is_some() == why.is_some(), "{offloads}, {buffers} of {size}: {told:?}");
        ensure!(
            why.is_none_or(|why| told.as_ref().is_some_and(|told| told.contains(why))),
            "{told:?}, and not {why:?}"
        );
    }
    Ok(())
}

/// What a front end sends by a queue comes by the queue of that number, and leaves for it.
#[test]
fn queues_go_to_queues() -> Result<()> {
    switched(2, |rigs, options| {
        let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
        let open = |rig| End::open(rig, &config, options.clone(), 1024);
        let (mut a, mut b) = (open(&rigs[0])?, open(&rigs[1])?);
        let to = b.port.mac();
        for number in 0..200 {
            let queue = (number / 3 % 2) as usize;
            let wire = frame(to, 60 + number as usize, number);
            a.send(queue, a.packet(&wire)?)?;
            let (came_by, packet) = b.receive()?;
            ensure!(came_by == queue && bytes(&packet) == wire, "packet {number} came by queue {came_by}");
        }
        a.close()?;
        b.close()
    })
}

/// Links of back ends tell whether a driver is there. What is sent to nobody is counted, and the next front end begins anew.
#[test]
fn front_ends_come_and_go() -> Result<()> {
    let switch = Switch::start(1)?;
    let far = &switch.ports[1];
    let count = || far.statistics().iter().filter(|s| s.name == "dropped_no_carrier").map(|s| s.value).sum::<u64>();
    let link = |up: bool| -> Result<()> {
        let told = far.events().recv_timeout(PATIENCE)?;
        ensure!(matches!(told, Event::Link(link) if link.up == up), "{told:?} came, and the link is {up}");
        ensure!(far.link().up == up);
        Ok(())
    };
    let here = switch.front_end(0)?;
    let open = |rig: &Rig, packed| End::open(rig, &PortConfig::default(), Options { packed, ..patient() }, 768);
    let mut a = open(&here, true)?;
    ensure!(!far.link().up);
    for packed in [false, true, false] {
        let before = count();
        let wire = frame(a.port.mac(), 60, 1);
        a.send(0, a.packet(&wire)?)?;
        let began = Instant::now();
        while count() == before {
            ensure!(began.elapsed() < PATIENCE, "what is sent to nobody is not counted");
            std::thread::yield_now();
        }
        let there = switch.front_end(1)?;
        let mut b = open(&there, packed)?;
        link(true)?;
        for number in 0..300 {
            let wire = frame(b.port.mac(), 100 + number as usize, number);
            a.send(0, a.packet(&wire)?)?;
            let (_, packet) = b.receive()?;
            ensure!(bytes(&packet) == wire, "packet {number}");
        }
        b.close()?;
        drop(there);
        link(false)?;
    }
    a.close()
}

/// A queue about to sleep asks to be kicked, and is woken by what then comes.
#[test]
fn who_sleeps_is_woken() -> Result<()> {
    use wholebar::mem::{Arena, ArenaOptions, Pool};
    use wholebar::net::{self, Burst};
    use wholebar::reactor::Armed;
    for packed in [false, true] {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x.sock");
        let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
        let port = net::open_target(&format!("vhost-user:{},back-end,server", path.display()), &config)?;
        let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default())?, 256, 2048, 64)?;
        let mut rx = port.rx_queue(0, &pool)?;
        let wakeup = rx.wakeup().context("a queue with interrupts has an eventfd")?;
        let timeout = wholebar::vhost_user::Options::default().with_timeout(PATIENCE);
        let rig = Rig::of(wholebar::vhost_user::VhostUser::connect(&path, timeout)?, "vhost-user");
        let mut end = End::open(&rig, &PortConfig::default(), Options { packed, ..patient() }, 768)?;
        let mut burst = Burst::new(32);
        for number in 0..50 {
            // Not while the port's own thread hears the front end.
            let began = Instant::now();
            while rx.arm() != Armed::Yes {
                ensure!(began.elapsed() < PATIENCE, "it may never sleep");
                ensure!(rx.rx(&mut burst) == 0, "nothing was sent");
            }
            ensure!(rx.rx(&mut burst) == 0, "nothing was sent");
            wakeup.take();
            let wire = frame(end.port.mac(), 60, number);
            end.send(0, end.packet(&wire)?)?;
            let began = Instant::now();
            while rx.rx(&mut burst) == 0 {
                ensure!(wakeup.wait(Some(PATIENCE))?.is_some(), "packet {number} woke nobody, packed {packed}");
                ensure!(began.elapsed() < PATIENCE, "packet {number} does not come");
            }
            rx.disarm();
            let packet = burst.pop().context("a packet")?;
            ensure!(bytes(&packet) == wire && burst.is_empty(), "packet {number}");
            // Without being asked to, nobody kicks: the queue is looked at once more.
            ensure!(rx.rx(&mut burst) == 0);
            // What comes then, without a kick, is seen by who is about to sleep, whoever has the port when it is polled next.
            end.send(0, end.packet(&wire)?)?;
            ensure!(rx.arm() == Armed::No, "packet {number} is there, and it may sleep, packed {packed}");
            let began = Instant::now();
            while rx.rx(&mut burst) == 0 {
                ensure!(began.elapsed() < PATIENCE, "packet {number} does not come");
            }
            burst.pop().context("a packet")?;
        }
        end.close()?;
    }
    Ok(())
}
