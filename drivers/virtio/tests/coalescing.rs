//! Interrupts that the bundled model coalesces (VIRTIO 1.3, 5.1.6.5.9): by packets, and by time.
#![cfg(not(miri))]

use std::time::{Duration, Instant};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::{Burst, Port, PortConfig, RxQueue, TxQueue};
use wholebar_virtio::{Coalescing, Net, Options};

const LONG: Duration = Duration::from_secs(600);

/// Sends packets to itself, and waits until they have come.
fn exchange(tx: &mut dyn TxQueue, rx: &mut dyn RxQueue, pool: &Pool, packets: usize) {
    let (mut out, mut came, began) = (Burst::new(8), Burst::new(8), Instant::now());
    for _ in 0..packets {
        let mut packet = pool.get().unwrap();
        packet.reserve(64);
        packet.set_len(64);
        packet.bytes_mut().fill(0xff);
        assert!(out.push(packet).is_ok());
    }
    let mut count = 0;
    while count < packets {
        tx.tx(&mut out);
        count += rx.rx(&mut came);
        came.give_back();
        assert!(began.elapsed() < LONG);
        std::thread::yield_now();
    }
}

#[test]
fn a_queue_wakes_after_packets_or_after_a_while() {
    for ring in ["split", "packed"] {
        for event in [0, 1] {
            let target = format!("sim:virtio-net,wire=loop,ring={ring},event={event}");
            let device = wholebar_sim::open(&target).unwrap().model;
            let config = PortConfig { rx_interrupts: true, promiscuous: true, ..PortConfig::default() };
            let timeouts = Options { timeout: LONG, admin_timeout: LONG, stop_timeout: LONG, ..Options::default() };
            let port = Net::open(device, &config, timeouts).unwrap();
            let arena = Arena::new(4 << 20, ArenaOptions::default()).unwrap();
            port.attach(arena.clone()).unwrap();
            let pool = Pool::new(arena.clone(), 512, 2048, 64).unwrap();
            let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
            let wakeup = rx.wakeup().unwrap();
            let hour = Duration::from_secs(3600);
            port.set_coalescing(None, Coalescing { events: 4, time: hour }).unwrap();
            rx.arm();
            exchange(tx.as_mut(), rx.as_mut(), &pool, 3);
            // Once the device has done a command, it is past the poll in which it would have interrupted.
            port.set_promiscuous(true).unwrap();
            assert_eq!(wakeup.take(), 0, "{target}: three packets of four");
            exchange(tx.as_mut(), rx.as_mut(), &pool, 1);
            assert!(wakeup.wait(Some(LONG)).unwrap().is_some(), "{target}");
            // By time, of this queue alone.
            let soon = Coalescing { events: u32::MAX, time: Duration::from_millis(1) };
            port.set_coalescing(Some(0), soon).unwrap();
            rx.arm();
            exchange(tx.as_mut(), rx.as_mut(), &pool, 1);
            assert!(wakeup.wait(Some(LONG)).unwrap().is_some(), "{target}");
            rx.disarm();
        }
    }
}
