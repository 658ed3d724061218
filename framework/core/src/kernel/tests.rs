//! Packet sockets on the loopback interface of a network namespace of the test's own: what is sent there comes back. Where that may not be had, the tests
//! say so.

use super::xdp::{XdpOptions, XdpSocket};
use super::*;
use crate::mem::{Arena, ArenaOptions, Pool};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The index of the loopback interface in every namespace.
const LO: u32 = 1;

/// Runs `test` in a network namespace of its own, whose loopback interface is up; says so where that is not to be had.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let body = || {
        // SAFETY: the thread is a fresh one, and has no socket open yet.
        let new = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
        if let Err(e) = new {
            return eprintln!("left out: a network namespace cannot be had here: {e}");
        }
        // RTM_NEWLINK, NLM_F_REQUEST and NLM_F_ACK; struct ifinfomsg: the index, IFF_UP, and that this is what changes.
        let mut request = [0; 32];
        request[..4].copy_from_slice(&32u32.to_ne_bytes());
        request[4..6].copy_from_slice(&16u16.to_ne_bytes());
        request[6..8].copy_from_slice(&5u16.to_ne_bytes());
        request[20..24].copy_from_slice(&LO.to_ne_bytes());
        request[24..28].copy_from_slice(&1u32.to_ne_bytes());
        request[28..].copy_from_slice(&1u32.to_ne_bytes());
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        send(&socket, &request, SendFlags::empty()).unwrap();
        let mut answer = [0; 256];
        recv(&socket, &mut answer[..], RecvFlags::DONTWAIT).unwrap();
        assert_eq!(answer[16..20], [0; 4], "the loopback interface does not come up");
        test();
    };
    std::thread::spawn(body).join().unwrap();
}

/// Waits for a packet, as either kind of ring is asked for it.
fn next<F>(peek: impl Fn() -> Option<Result<F, Malformed>>) -> F {
    let start = Instant::now();
    loop {
        match peek() {
            Some(frame) => return frame.unwrap(),
            None => assert!(start.elapsed() < Duration::from_secs(60), "no packet came"),
        }
        std::thread::yield_now();
    }
}

fn pool() -> Pool {
    let arena = Arena::new(1 << 20, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap();
    Pool::new(arena, 128, 2048, 64).unwrap()
}

#[test]
fn what_a_packet_socket_sends_comes_into_the_ring() {
    in_namespace(|| {
        let (socket, mut ring) = PacketSocket::receiver(LO, 1).unwrap();
        let (sender, pool) = (PacketSocket::sender(LO).unwrap(), pool());
        let sizes = |i: usize| 60 + (i * 37) % 1400;
        let mut sent = 0;
        // More than there are slots, several times over.
        let all = 10 * ring.slots() as usize;
        while sent < all {
            // A packet in one buffer, and in two.
            let packets: Vec<_> = (sent..all.min(sent + 5))
                .map(|i| {
                    let mut bytes: Vec<u8> = (0..sizes(i)).map(|b| (b * 7 + i) as u8).collect();
                    // Not IP's, which would look into it.
                    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
                    let (head, tail) = bytes.split_at(if i % 2 == 0 { bytes.len() } else { 33 });
                    let mut first = pool.get().unwrap();
                    first.copy_from(head);
                    if !tail.is_empty() {
                        let mut second = pool.get().unwrap();
                        second.copy_from(tail);
                        first.append(second);
                    }
                    first
                })
                .collect();
            let taken = sender.send(&packets).unwrap();
            assert!((1..=packets.len()).contains(&taken));
            for (packet, i) in packets.iter().zip(sent..).take(taken) {
                let frame = next(|| ring.peek());
                let expected: Vec<u8> = packet.segments().flat_map(|buf| buf.bytes().to_vec()).collect();
                assert_eq!((frame.len as usize, frame.captured as usize, frame.vlan), (sizes(i), sizes(i), None));
                assert_eq!(frame.header, NetHeader::default());
                assert!(frame.time > 1_600_000_000_000_000_000);
                let mut bytes = vec![0; sizes(i)];
                assert!(ring.copy(&frame, 0, &mut bytes));
                assert_eq!(bytes, expected);
                assert!(ring.copy(&frame, 10, &mut bytes[..1]) && bytes[0] == expected[10]);
                assert!(!ring.copy(&frame, 1, &mut bytes) && !ring.copy(&frame, u32::MAX, &mut bytes[..1]));
                ring.release();
            }
            sent += taken;
        }
        assert_eq!(socket.statistics().unwrap(), PacketStatistics { packets: all as u32, dropped: 0 });
        assert_eq!(socket.statistics().unwrap(), PacketStatistics::default(), "they are counted once");
        // What has no room is dropped, and counted.
        let mut packet = pool.get_len(60).unwrap();
        packet.bytes_mut().fill(0xff);
        let packets = [packet];
        for _ in 0..ring.slots() + 5 {
            sender.send(&packets).unwrap();
        }
        let start = Instant::now();
        let (mut came, mut dropped) = (0, 0);
        while came < ring.slots() + 5 {
            let more = socket.statistics().unwrap();
            (came, dropped) = (came + more.packets, dropped + more.dropped);
            assert!(start.elapsed() < Duration::from_secs(60), "{came} came");
        }
        assert_eq!((came, dropped), (ring.slots() + 5, 5));
    });
}

#[test]
fn what_the_kernel_says_of_a_slot_is_checked() {
    in_namespace(|| {
        let (_socket, mut ring) = PacketSocket::receiver(LO, 1).unwrap();
        assert!(!ring.is_ready() && ring.peek().is_none());
        // As the kernel would write it: length, bytes in the ring, where they begin.
        let good = (1000u32, 1000u32, 76u16);
        for ((len, captured, begins), sound) in [
            (good, true),
            ((0, 0, 76), true),
            ((66_000, 65_716, 76), true),
            ((66_000, 65_717, 76), false),
            ((u32::MAX, u32::MAX, 76), false),
            ((u32::MAX, u32::MAX - 10, u16::MAX), false),
            ((999, 1000, 76), false),
            ((1000, 1000, 61), false),
            ((1000, 1000, 0), false),
        ] {
            let at = ring.slot();
            ring.mapping.u32(at + 4).unwrap().store(len, Ordering::Relaxed);
            ring.mapping.u32(at + 8).unwrap().store(captured, Ordering::Relaxed);
            ring.mapping.u16(at + 12).unwrap().store(begins, Ordering::Relaxed);
            ring.mapping.u32(at).unwrap().store(1, Ordering::Release);
            match ring.peek().unwrap() {
                Ok(frame) => assert!(sound && ring.copy(&frame, 0, &mut vec![0; captured as usize])),
                Err(Malformed) => assert!(!sound, "{len} {captured} {begins}"),
            }
            ring.release();
        }
    });
}

#[test]
fn what_cannot_be_sent_says_why() {
    in_namespace(|| {
        let (sender, pool) = (PacketSocket::sender(LO).unwrap(), pool());
        assert_eq!(sender.send(&[]).unwrap(), 0);
        // In more buffers than are taken; too short for an Ethernet header.
        let mut long = pool.get_len(20).unwrap();
        (0..SEND_SEGMENTS).for_each(|_| long.append(pool.get_len(1).unwrap()));
        let code = |packet| sender.send(&[packet]).unwrap_err().raw_os_error().unwrap();
        assert_eq!(code(long), libc::EMSGSIZE);
        assert_eq!(code(pool.get_len(5).unwrap()), libc::EINVAL);
        // The first of several: those before it are sent.
        let packets = [pool.get_len(60).unwrap(), pool.get_len(5).unwrap(), pool.get_len(60).unwrap()];
        assert_eq!(sender.send(&packets).unwrap(), 1);
        assert!(matches!(PacketSocket::sender(999_999), Err(crate::Error::Io { .. })));
    });
}

#[test]
fn sockets_share_what_comes() {
    in_namespace(|| {
        let (first, one) = PacketSocket::receiver(LO, 1).unwrap();
        let group = first.join(None).unwrap();
        let (second, other) = PacketSocket::receiver(LO, 1).unwrap();
        assert_eq!(second.join(Some(group)).unwrap(), group);
        let (sender, pool) = (PacketSocket::sender(LO).unwrap(), pool());
        let mut packet = pool.get_len(60).unwrap();
        packet.bytes_mut().fill(0xff);
        sender.send(&[packet]).unwrap();
        let start = Instant::now();
        while !one.is_ready() && !other.is_ready() {
            assert!(start.elapsed() < Duration::from_secs(60), "no packet came");
        }
        assert!(one.is_ready() != other.is_ready(), "each packet goes to one of them");
        for (membership, on) in [
            (Membership::Promiscuous, true),
            (Membership::AllMulticast, true),
            (Membership::Address([1, 0, 0x5e, 0, 0, 1]), true),
            (Membership::Address([1, 0, 0x5e, 0, 0, 1]), false),
            (Membership::Promiscuous, false),
        ] {
            first.set_membership(membership, on).unwrap();
        }
    });
}

#[test]
fn what_an_xdp_socket_sends_comes_back_to_it() {
    in_namespace(|| {
        let program = match XdpProgram::attach(LO, 1) {
            Ok(program) => program,
            // What is not there, and what may not be had.
            Err(crate::Error::Io { cause, .. }) if matches!(cause.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                return eprintln!("left out: XDP programs cannot be had here: {cause}");
            }
            Err(error) => panic!("{error}"),
        };
        assert!(XdpProgram::attach(LO, 1).is_err(), "it has one already");
        let options = XdpOptions { rx_descriptors: 8, tx_descriptors: 8, zero_copy: false };
        assert!(XdpSocket::open(&program, LO, 1, options).is_err(), "there is no such queue");
        let (socket, mut rx, mut tx) = XdpSocket::open(&program, LO, 0, options).unwrap();
        assert!(XdpSocket::open(&program, LO, 0, options).is_err(), "the queue is in use");
        assert!(!socket.is_zero_copy() && rx.peek().is_none() && (tx.room(), tx.in_flight()) == (8, 0));
        let pool = pool();
        // Several times round the rings, in one buffer and in two.
        for i in 0..50usize {
            let bytes: Vec<u8> = (0..60 + i * 7).map(|b| (b * 3 + i) as u8).collect();
            let (head, tail) = bytes.split_at(20 + i);
            let mut packet = pool.get().unwrap();
            packet.copy_from(head);
            let mut rest = pool.get().unwrap();
            rest.copy_from(tail);
            packet.append(rest);
            assert!(tx.post(&packet));
            tx.ring().unwrap();
            let frame = next(|| rx.peek());
            let mut came = vec![0; bytes.len()];
            assert!(frame.len as usize == bytes.len() && rx.copy(&frame, &mut came) && came == bytes);
            assert!(!rx.copy(&frame, &mut vec![0; bytes.len() + 1]));
            rx.release();
            rx.publish();
            let start = Instant::now();
            while tx.in_flight() > 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "a packet is not given back");
                tx.reclaim();
            }
        }
        // What makes no sense is refused; what has no room is dropped, and counted.
        let (mut long, empty) = (pool.get_len(2048).unwrap(), pool.get().unwrap());
        long.append(pool.get_len(2048).unwrap());
        assert!(!tx.post(&long) && !tx.post(&empty));
        rx.release();
        let sender = PacketSocket::sender(LO).unwrap();
        let mut packet = pool.get_len(60).unwrap();
        packet.bytes_mut().fill(0xff);
        for _ in 0..11 {
            sender.send(std::slice::from_ref(&packet)).unwrap();
        }
        let start = Instant::now();
        while socket.counts().unwrap().dropped < 3 {
            assert!(start.elapsed() < Duration::from_secs(60), "no packet was dropped");
        }
        assert_eq!(socket.counts().unwrap(), xdp::XdpCounts { dropped: 3, invalid: 0 });
        // Without the program, packets are the kernel's again.
        drop(program);
        assert!(XdpProgram::attach(LO, 1).is_ok());
    });
}

#[test]
fn a_sleeper_is_woken_by_the_next_packet() {
    in_namespace(|| {
        let (_socket, mut ring) = PacketSocket::receiver(LO, 1).unwrap();
        let (sender, pool, mut wakeup) = (PacketSocket::sender(LO).unwrap(), pool(), Wakeup::new().unwrap());
        let eventfd = wakeup.eventfd().clone();
        let mut packet = pool.get_len(60).unwrap();
        packet.bytes_mut().fill(0xff);
        let packets = [packet];
        let long = Some(Duration::from_secs(60));
        for _ in 0..100 {
            // Asked for twice it comes once.
            assert!(wakeup.arm(ring.as_fd()) && wakeup.arm(ring.as_fd()) && eventfd.take() == 0);
            sender.send(&packets).unwrap();
            assert_eq!(eventfd.wait(long).unwrap(), Some(1));
            assert!(ring.is_ready());
            // A packet that is there already wakes at once.
            assert!(wakeup.arm(ring.as_fd()));
            assert_eq!(eventfd.wait(long).unwrap(), Some(1));
            ring.release();
        }
    });
}
