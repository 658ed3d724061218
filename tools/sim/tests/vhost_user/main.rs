//! Models behind a vhost-user socket, with a front end by hand: what works, and what is refused.
#![cfg(not(miri))]

mod back_end;
mod front;
mod inflight;
mod strict;

use front::*;
use rustix::fs::ftruncate;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar_core::vhost_user::Server;
use wholebar_sim::virtio::blk::{self, BlkParams};
use wholebar_sim::{Target, serve_vhost_user};

const RX: u64 = 0x0;
const TX: u64 = 0x1_0000;
const BUFFERS: u64 = 0x20_0000;

/// Sends a packet on the transmit ring, and has it come back on the receive ring, `n` times.
fn round_trips(front: &mut Front, rx: &mut Ring, tx: &mut Ring, n: u8) {
    for i in 0..n {
        let mut packet = [i; 76];
        packet[..12].fill(0);
        front.write(BUFFERS, &packet);
        rx.add(front, &[(BUFFERS + 0x1000, 2048, true)]);
        tx.add(front, &[(BUFFERS, 76, false)]);
        let mut len = None;
        assert!(front.until(|front| {
            len = rx.take(front, 1);
            len.is_some()
        }));
        assert_eq!(len, Some(76));
        assert_eq!(front.read::<64>(BUFFERS + 0x1000 + 12), [i; 64]);
        assert!(front.until(|front| tx.take(front, 1).is_some()));
    }
}

#[test]
fn packets_go_round_and_rings_go_on_where_they_were_stopped() {
    for features in [0, PACKED] {
        let mut front = Front::net("");
        front.begin(features, P_MQ);
        let mut rx = front.ring(0, RX, 8);
        let mut tx = front.ring(1, TX, 8);
        round_trips(&mut front, &mut rx, &mut tx, 5);
        assert!(count(&rx.call) > 0 && count(&tx.call) > 0);
        // Two more laps, of which each ring is stopped and started anew in between, the one by its base, the other by being disabled.
        for _ in 0..20 {
            let base = front.stop(0);
            let place = u32::from(rx.used);
            assert_eq!(base, if features == 0 { place } else { place | place << 16 });
            front.describe(0, &rx, base);
            assert!(front.enable(1, false) && front.enable(1, true));
            round_trips(&mut front, &mut rx, &mut tx, 1);
        }
        // Nothing is taken from a ring that is disabled, or stopped.
        assert!(front.enable(1, false));
        tx.add(&front, &[(BUFFERS, 76, false)]);
        assert_eq!(u64_of(&front.ask(GET_QUEUE_NUM, &[])), 1);
        (0..10_000).for_each(|_| front.step());
        assert_eq!(tx.take(&front, 1), None);
        assert!(front.enable(1, true));
        assert!(front.until(|front| tx.take(front, 1).is_some()));
    }
}

/// A front end whose back end died doesn't know how far that came; the used ring does. DPDK's says 0 then.
#[test]
fn a_split_ring_goes_on_from_its_used_index() {
    let mut front = Front::net("");
    front.begin(0, 0);
    let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
    round_trips(&mut front, &mut rx, &mut tx, 11);
    let mut again = Front::net("");
    again.memory = front.memory.try_clone().unwrap();
    drop(front);
    again.begin(0, 0);
    for (index, ring) in [(0, &rx), (1, &tx)] {
        again.describe(index, ring, 0);
        assert!(again.enable(index, true));
    }
    round_trips(&mut again, &mut rx, &mut tx, 11);
}

#[test]
fn pairs_are_in_use_as_their_rings_are_enabled() {
    for features in [NET_MQ, NET_MQ | PACKED] {
        let mut front = Front::net("queues=2");
        front.begin(features, P_MQ);
        assert_eq!(u64_of(&front.ask(GET_QUEUE_NUM, &[])), 2, "pairs");
        let mut rings: Vec<_> = (0..4).map(|i| front.ring(i, 0x1_0000 * u64::from(i), 8)).collect();
        // A flow is received on the pair that it was last sent on.
        let mut packet = [0; 76];
        packet[12 + 12..12 + 14].copy_from_slice(&[0x08, 0x00]);
        packet[12 + 14] = 0x45;
        front.write(BUFFERS, &packet);
        for (pair, other) in [(1, 0), (0, 1)] {
            rings[2 * pair].add(&front, &[(BUFFERS + 0x1000, 2048, true)]);
            rings[2 * pair + 1].add(&front, &[(BUFFERS, 76, false)]);
            assert!(front.until(|front| rings[2 * pair].take(front, 1).is_some()));
            assert_eq!(rings[2 * other].take(&front, 1), None);
        }
        // With the second pair off, what its flow was goes to the first.
        assert!(front.enable(2, false) && front.enable(3, false));
        let [rx0, tx0, ..] = &mut rings[..] else { unreachable!() };
        round_trips(&mut front, rx0, tx0, 3);
    }
}

#[test]
fn a_disk_is_read_and_written() {
    for features in [0, PACKED] {
        let mut front = Front::blk("size=1M,queues=2");
        front.begin(features, P_CONFIG | P_MQ);
        assert_eq!(u64_of(&front.ask(GET_QUEUE_NUM, &[])), 2);
        let config = front.ask(GET_CONFIG, &[words(&[0u32, 96, 0], 4), vec![0; 96]].concat());
        assert_eq!(config.len(), 12 + 96);
        assert_eq!(config[12..20], 2048u64.to_le_bytes());
        assert_eq!(config[12 + 60..], [0; 36], "what is behind its end");
        let mut ring = front.ring(0, RX, 16);
        for (kind, data) in [(1u32, 0xa5u8), (0, 0)] {
            front.write(BUFFERS, &[words(&[kind, 0], 4), words(&[3u64], 8)].concat());
            front.write(BUFFERS + 0x2000, &[0xff]);
            front.write(BUFFERS + 0x1000, &[data; 512]);
            ring.add(&front, &[(BUFFERS, 16, false), (BUFFERS + 0x1000, 512, kind == 0), (BUFFERS + 0x2000, 1, true)]);
            assert!(front.until(|front| ring.take(front, 3).is_some()));
            assert_eq!((front.read(BUFFERS + 0x2000), front.read(BUFFERS + 0x1000)), ([0], [0xa5; 512]));
        }
        assert_eq!(front.stop(0), if features == 0 { 2 } else { 0x8006_8006 });
    }
}

/// A disk's largest request was said before its queue had a size: Linux makes such requests, whatever the size.
#[test]
fn a_request_may_be_longer_than_its_queue() {
    for features in [0, PACKED] {
        let mut front = Front::blk("size=1M");
        front.begin(features | INDIRECT, 0);
        let mut ring = front.ring(0, RX, 16);
        front.write(BUFFERS, &[words(&[0u32, 0], 4), words(&[0u64], 8)].concat());
        front.write(BUFFERS + 0x2000, &[0xff]);
        // A header, the 254 segments that the device says it takes, and the status.
        let part = |i: u64| match i {
            0 => (BUFFERS, 16u32, 1u16),
            255 => (BUFFERS + 0x2000, 1, 2),
            _ => (BUFFERS + 0x4000 + 512 * i, 512, 3),
        };
        for i in 0..256 {
            let (at, len, flags) = part(i);
            let last = if features == 0 { [flags, i as u16 + 1] } else { [0, flags] };
            let desc = [words(&[GUEST + at], 8), words(&[len], 4), words(&last, 2)].concat();
            front.write(BUFFERS + 0x8_0000 + 16 * i, &desc);
        }
        ring.add_table(&front, BUFFERS + 0x8_0000, 16 * 256);
        assert!(front.until(|front| ring.take(front, 1).is_some()));
        assert_eq!(front.read(BUFFERS + 0x2000), [0]);
    }
}

#[test]
fn memory_comes_and_goes_in_slots() {
    let mut front = Front::net("");
    front.begin(0, 0);
    assert_eq!(u64_of(&front.ask(GET_MAX_MEM_SLOTS, &[])), 509);
    let slot = |at, size, offset| [vec![0; 8], region(at, size, offset)].concat();
    let more = file(MEMORY);
    // A second region at once behind the first, of another file: buffers may cross.
    assert!(front.acknowledged(ADD_MEM_REG, &slot(MEMORY, MEMORY, 0), &[more.as_fd()]));
    let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
    let mut packet = [7; 76];
    packet[..12].fill(0);
    front.write(BUFFERS, &packet);
    rx.add(&front, &[(MEMORY - 40, 2048, true)]);
    tx.add(&front, &[(BUFFERS, 76, false)]);
    assert!(front.until(|front| rx.take(front, 1).is_some()));
    assert_eq!(front.read::<28>(MEMORY - 28), [7; 28]);
    let mut rest = [0; 36];
    rustix::io::pread(&more, &mut rest, 0).unwrap();
    assert_eq!(rest, [7; 36]);
    // Over each other they can't be; what isn't there can't go; a descriptor with what goes is let go.
    assert!(!front.acknowledged(ADD_MEM_REG, &slot(2 * MEMORY - 4096, 8192, 0), &[more.as_fd()]));
    assert!(!front.acknowledged(REM_MEM_REG, &slot(MEMORY, 4096, 0), &[]));
    assert!(front.acknowledged(REM_MEM_REG, &slot(MEMORY, MEMORY, 99), &[more.as_fd()]));
    round_trips(&mut front, &mut rx, &mut tx, 3);
    // A table that has the rings elsewhere in the device's memory moves them.
    let moved = [words(&[GUEST + MEMORY, MEMORY, USER, 0], 8)];
    let memory = front.memory.try_clone().unwrap();
    assert!(front.acknowledged(SET_MEM_TABLE, &table(&moved), &[memory.as_fd()]));
    front.share();
    round_trips(&mut front, &mut rx, &mut tx, 3);
    // One without them has none of them run.
    assert!(!front.acknowledged(SET_MEM_TABLE, &table(&[]), &[]));
    let memory = front.memory.try_clone().unwrap();
    assert!(front.acknowledged(SET_MEM_TABLE, &table(&[region(0, MEMORY, 0)]), &[memory.as_fd()]));
    round_trips(&mut front, &mut rx, &mut tx, 3);
}

#[test]
fn rings_wait_for_driver_ok_where_status_is_agreed_on() {
    let mut front = Front::net("");
    front.begin(0, P_STATUS);
    let status = |front: &mut Front| u64_of(&front.ask(GET_STATUS, &[]));
    assert!(front.acknowledged(SET_STATUS, &11u64.to_ne_bytes(), &[]));
    assert_eq!(status(&mut front), 11, "features are accepted");
    let tx = Ring::new(&front, TX, 8);
    front.describe(1, &tx, 0);
    assert!(front.enable(1, true));
    assert_eq!(count(&tx.call), 0);
    assert!(front.acknowledged(SET_STATUS, &15u64.to_ne_bytes(), &[]));
    assert!(count(&tx.call) > 0);
    assert!(front.acknowledged(SET_STATUS, &0u64.to_ne_bytes(), &[]));
    assert_eq!(status(&mut front), 0);
    // What the device does not accept: without VERSION_1.
    assert!(front.acknowledged(SET_FEATURES, &PROTOCOL_FEATURES.to_ne_bytes(), &[]));
    assert!(front.acknowledged(SET_STATUS, &11u64.to_ne_bytes(), &[]));
    assert_eq!(status(&mut front), 3);
}

#[test]
fn a_broken_queue_is_told_of_in_every_way_that_there_is() {
    let mut front = Front::net("");
    front.begin(0, P_STATUS | P_CONFIG | P_BACKEND_REQ);
    let (channel, theirs) = UnixStream::pair().unwrap();
    assert!(front.acknowledged(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]));
    drop(theirs);
    assert!(front.acknowledged(SET_STATUS, &15u64.to_ne_bytes(), &[]));
    let err = event();
    assert!(front.acknowledged(SET_VRING_ERR, &1u64.to_ne_bytes(), &[err.as_fd()]));
    let mut tx = front.ring(1, TX, 8);
    // A link that comes is a change of configuration, too.
    while receive(&channel).is_some() {}
    tx.add(&front, &[(1 << 40, 76, false)]);
    assert!(front.until(|_| count(&err) == 1));
    let mut told = None;
    assert!(front.until(|_| {
        told = receive(&channel);
        told.is_some()
    }));
    assert_eq!(told, Some((2, 1, Vec::new())), "the device's configuration changed");
    assert_eq!(u64_of(&front.ask(GET_STATUS, &[])), 15 | 64);
    // After a reset it works again.
    assert!(front.acknowledged(SET_STATUS, &0u64.to_ne_bytes(), &[]));
    front.stop(1);
    assert!(front.acknowledged(SET_STATUS, &15u64.to_ne_bytes(), &[]));
    let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
    round_trips(&mut front, &mut rx, &mut tx, 3);
}

#[test]
fn a_reset_device_is_set_up_anew() {
    let mut front = Front::net("");
    front.begin(0, P_MQ);
    let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
    round_trips(&mut front, &mut rx, &mut tx, 3);
    assert!(front.acknowledged(RESET_DEVICE, &[], &[]));
    assert!(!front.acknowledged(SET_OWNER, &[], &[]), "it stays its owner's");
    front.agree(PACKED);
    let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
    round_trips(&mut front, &mut rx, &mut tx, 3);
}

/// With memory taken away, the front end is; and the next one is served.
#[test]
fn one_front_end_comes_after_another_whatever_the_last_did() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.sock");
    let mut front = Front::net("");
    let (model, port) = wholebar_sim::virtio::net::model(Default::default()).unwrap();
    front.server = Some(Server::bind(&path, model).unwrap());
    front.handle = Some(port.handle);
    for end in 0..4 {
        front.stream = UnixStream::connect(&path).unwrap();
        front.memory = file(MEMORY);
        front.step();
        let mut polls = 0;
        while !front.is_connected() {
            polls += 1;
            assert!(polls < 10_000_000);
            front.step();
        }
        front.begin(0, P_MQ);
        let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
        round_trips(&mut front, &mut rx, &mut tx, 3);
        match end {
            0 => drop(std::mem::replace(&mut front.stream, UnixStream::pair().unwrap().0)),
            // In the middle of a message, with something in the ring.
            1 => {
                tx.add(&front, &[(BUFFERS, 76, false)]);
                assert!(send(&front.stream, &message(SET_MEM_TABLE, VERSION, &[0; 40])[..20], &[]));
                drop(std::mem::replace(&mut front.stream, UnixStream::pair().unwrap().0));
            }
            2 => ftruncate(&front.memory, 0).unwrap(),
            _ => assert!(send(&front.stream, &[0xff; 12], &[])),
        }
        assert!(!front.until(|_| false), "it is sent away");
    }
}

#[test]
fn a_back_end_connects_to_one_front_end_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blk.sock");
    let mut front = Front::blk("size=1M");
    front.server = Some(Server::connect(&path, blk::model(BlkParams::parse("size=1M").unwrap()).unwrap()).unwrap());
    for _ in 0..2 {
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        while !front.is_connected() {
            front.step();
        }
        front.stream = listener.accept().unwrap().0;
        front.begin(0, P_MQ);
        front.ring(0, RX, 16);
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        drop(std::mem::replace(&mut front.stream, UnixStream::pair().unwrap().0));
        assert!(!front.until(|_| false));
    }
}

/// Messages without end, and nobody who reads the answers: the back end takes no more of them than it can answer, and goes on with its rings.
#[test]
fn a_flood_of_messages_holds_nobody() {
    let mut front = Front::net("");
    front.begin(0, P_MQ);
    let (mut rx, mut tx) = (front.ring(0, RX, 8), front.ring(1, TX, 8));
    let mut sent = 0;
    let mut stuck = 0;
    while stuck < 100_000 {
        stuck += 1;
        if send(&front.stream, &message(GET_FEATURES, VERSION, &[]), &[]) {
            (sent, stuck) = (sent + 1, 0);
        }
        front.step();
        assert!(sent < 1_000_000, "it takes all of them");
    }
    round_trips(&mut front, &mut rx, &mut tx, 3);
    for _ in 0..sent {
        assert!(front.until(|front| receive(&front.stream).is_some()));
    }
    assert_eq!(u64_of(&front.ask(GET_QUEUE_NUM, &[])), 1);
}

#[test]
fn a_model_is_served_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.sock");
    let stop = AtomicBool::new(false);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let params = Target::parse("sim:virtio-net").unwrap().params;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve_vhost_user(&params, &path, false, false, &stop, || ready.send(()).unwrap()));
        is_ready.recv().unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
        assert!(send(&stream, &message(GET_FEATURES, VERSION, &[]), &[]));
        let mut reply = [0; 20];
        std::io::Read::read_exact(&mut &stream, &mut reply).unwrap();
        assert_eq!(u64_of(&reply[12..]) & VERSION_1, VERSION_1);
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap().unwrap();
    });
    let nvme = Target::parse("sim:nvme").unwrap().params;
    let error = serve_vhost_user(&nvme, &path, false, false, &stop, || panic!("ready")).unwrap_err();
    assert_eq!(error.to_string(), "vhost-user serves virtio-net and virtio-blk alone");
}
