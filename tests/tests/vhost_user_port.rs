//! A port whose queues are a front end's rings: our driver at both ends of a switch, whatever it is asked for, and front ends that come and go.

use anyhow::{Context, Result, ensure};
use std::time::Instant;
use wholebar::net::{Event, Port, PortConfig};
use wholebar::virtio::Options;
use wholebar_tests::accounting::account;
use wholebar_tests::storage::PATIENCE;
use wholebar_tests::switch::Switch;
use wholebar_tests::virtio::{End, bytes, frame, patient};
use wholebar_tests::{Rig, virtio};

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
