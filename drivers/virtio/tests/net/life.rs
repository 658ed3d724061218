//! What happens to a device in its life: broken rules, resets, links, commands, several queues, sleep.

use super::*;

#[test]
fn a_device_that_breaks_the_rules_is_reset_and_goes_on() {
    let mut bench = bench(0, Offloads::NONE);
    type Lie = fn(&mut device::State, &wholebar_core::model::Host<'_>);
    let lies: [(&str, Lie); 6] = [
        ("used index", |s, h| s.use_buffer(h, 0, 0, 64, 65)),
        ("used index behind", |s, h| s.use_buffer(h, 0, 0, 64, 0xffff)),
        ("identifier", |s, h| s.use_buffer(h, 0, 64, 64, 1)),
        ("large identifier", |s, h| s.use_buffer(h, 0, 0x10000, 64, 1)),
        ("length", |s, h| s.use_buffer(h, 0, 0, 2048, 1)),
        ("twice", |s, h| {
            s.use_buffer(h, 0, 3, 64, 1);
            s.use_buffer(h, 0, 3, 64, 1);
        }),
    ];
    let in_flight = bench.packet(60, 64);
    for (i, (what, lie)) in lies.into_iter().enumerate() {
        let mut burst = Burst::new(1);
        burst.push(bench.packet(60, 64)).unwrap();
        bench.tx.tx(&mut burst);
        bench.rig.run(move |state, host| lie(state, host));
        drop(bench.receive());
        assert_ne!(bench.rx.state(), QueueState::Running, "{what} was believed");
        bench.ride_out(i as u64 + 1);
        // What was in flight is counted, and it works again.
        assert_eq!(bench.count("tx0", "dropped_reset"), i as u64 + 1);
        bench.arrive(PLAIN, &[9; 64], &[]);
        assert_eq!(bench.receive()[0].bytes(), [9; 64]);
        // It is told once queues run again, and may be told later than they are seen to.
        let event = bench.port.events().recv_timeout(LONG).unwrap();
        assert!(
            matches!(&event, Event::Device(DeviceEvent::Reset { lost, .. }) if lost.is_empty()),
            "{what}: {event:?}"
        );
    }
    // The same of a queue that sends.
    bench.rig.run(|state, host| state.use_buffer(host, 1, 5, 0, 1));
    bench.tx.reclaim();
    bench.ride_out(7);
    assert!(bench.send(in_flight).is_some());
    bench.close();
}

#[test]
fn a_reset_waits_for_queues_and_a_needed_one_is_made() {
    let mut bench = bench(STATUS, Offloads::NONE);
    // DEVICE_NEEDS_RESET, seen by the health check.
    bench.rig.state().status |= 64;
    bench.ride_out(1);
    // Dropped queues take part by themselves, and can be had again.
    let Bench { port, pool, rx, tx, rig } = bench;
    drop((rx, tx));
    port.reset().unwrap();
    let (rx, tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
    let mut bench = Bench { port, pool, rx, tx, rig };
    assert_eq!(bench.count("", "resets"), 2);
    bench.arrive(PLAIN, &[1; 60], &[]);
    assert_eq!(bench.receive().len(), 1);
    bench.close();
}

#[test]
fn links_go_down_and_up() {
    let bench = bench(STATUS | CTRL, Offloads::NONE);
    let told = |bench: &Bench, up: bool| {
        bench.rig.state().spec.config[6] = up.into();
        bench.rig.state().generation += 1;
        let event = bench.port.events().recv_timeout(LONG).unwrap();
        assert!(matches!(event, Event::Link(link) if link.up == up), "{event:?}");
        assert_eq!(bench.port.link().up, up);
    };
    told(&bench, false);
    told(&bench, true);
    assert_eq!(bench.count("", "link_changes"), 2);
    // An announcement is asked for, told, and acknowledged.
    bench.rig.state().spec.config[6] = 3;
    assert_eq!(bench.port.events().recv_timeout(LONG).unwrap(), Event::Announce);
    bench.rig.state().spec.config[6] = 1;
    bench.rig.until("an acknowledgement", |state| state.commands.contains(&vec![3, 0]));
    bench.close();
}

#[test]
fn commands_are_as_the_standard_has_them() {
    let offloads = Offloads { vlan_filter: true, ..Offloads::NONE };
    let config = PortConfig { offloads, promiscuous: true, ..PortConfig::default() };
    let bench = bench_with(spec(STATUS | CTRL), config);
    let commands = || std::mem::take(&mut bench.rig.state().commands);
    assert_eq!(commands(), [vec![0, 0, 1], vec![0, 1, 0]]);
    bench.port.set_promiscuous(false).unwrap();
    assert_eq!(commands(), [vec![0, 0, 0], vec![0, 1, 0]]);
    bench.port.set_vlan(0x123, true).unwrap();
    bench.port.set_vlan(7, true).unwrap();
    bench.port.set_vlan(7, false).unwrap();
    assert_eq!(commands(), [vec![2, 0, 0x23, 1], vec![2, 0, 7, 0], vec![2, 1, 7, 0]]);
    bench.port.set_mac("02:00:00:00:00:09".parse().unwrap()).unwrap();
    assert_eq!((commands(), bench.port.mac().0[5]), (vec![vec![1, 1, 2, 0, 0, 0, 0, 9]], 9));
    bench.port.set_filters(&[Mac([2, 0, 0, 0, 0, 1]), Mac([1, 0, 0x5e, 0, 0, 1])]).unwrap();
    assert_eq!(commands(), [vec![1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1]]);
    bench.rig.state().answer = 1;
    assert!(bench.port.set_all_multicast(true).unwrap_err().to_string().contains("refused"));
    bench.rig.state().answer = 0;
    commands();
    // After a reset the device is told everything again.
    let Bench { port, pool, rx, tx, rig } = bench;
    drop((rx, tx));
    port.reset().unwrap();
    let again = std::mem::take(&mut rig.state().commands);
    let filters = vec![1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1];
    let mac = vec![1, 1, 2, 0, 0, 0, 0, 9];
    assert_eq!(again, [vec![0, 0, 0], vec![0, 1, 1], filters, mac, vec![2, 0, 0x23, 1]]);
    drop(port);
    assert_eq!(pool.available(), 192);
}

/// VIRTIO 1.3, 5.1.6.5.9: all queues that receive, or one by its virtqueue; packets, then microseconds.
#[test]
fn interrupts_are_coalesced_where_that_is_offered() {
    let (vq, all) = (1 << 52, 1 << 53);
    let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let set = |packets, micros| Coalescing { events: packets, time: Duration::from_micros(micros) };
    let bench = bench_with(spec(STATUS | CTRL | vq | all), config.clone());
    let commands = || std::mem::take(&mut bench.rig.state().commands);
    commands();
    bench.port.set_coalescing(None, set(64, 0x1234)).unwrap();
    bench.port.set_coalescing(Some(0), set(8, 50)).unwrap();
    let told = [vec![6, 1, 64, 0, 0, 0, 0x34, 0x12, 0, 0], vec![6, 2, 0, 0, 0, 0, 8, 0, 0, 0, 50, 0, 0, 0]];
    assert_eq!(commands(), told);
    assert!(matches!(bench.port.set_coalescing(Some(1), set(8, 50)), Err(Error::Unavailable { .. })));
    assert!(matches!(bench.port.set_coalescing(None, set(8, 1 << 32)), Err(Error::Unavailable { .. })));
    // What is refused is not told again after a reset; what was taken is.
    bench.rig.state().answer = 1;
    assert!(matches!(bench.port.set_coalescing(Some(0), set(9, 9)), Err(Error::Refused { .. })));
    bench.rig.state().answer = 0;
    commands();
    let Bench { port, rx, tx, rig, .. } = bench;
    drop((rx, tx));
    port.reset().unwrap();
    let again: Vec<_> = std::mem::take(&mut rig.state().commands).into_iter().filter(|c| c[0] == 6).collect();
    assert_eq!(again, told);
    // Of all queues: none is told anything else any more.
    port.set_coalescing(None, Coalescing::default()).unwrap();
    rig.state().commands.clear();
    port.reset().unwrap();
    let again: Vec<_> = std::mem::take(&mut rig.state().commands).into_iter().filter(|c| c[0] == 6).collect();
    assert_eq!(again, [[6, 1, 0, 0, 0, 0, 0, 0, 0, 0]]);
    drop(port);
    // Without interrupts there is nothing to coalesce.
    for (features, config) in [(CTRL | all, PortConfig::default()), (CTRL, config)] {
        let bench = bench_with(spec(features), config);
        assert!(matches!(bench.port.set_coalescing(None, set(1, 1)), Err(Error::Unavailable { .. })));
        bench.close();
    }
}

#[test]
fn packets_are_spread_over_pairs() {
    let mut spec = spec(CTRL | MQ | RSS);
    (spec.queues, spec.control) = (9, Some(8));
    (spec.config[8], spec.config[17], spec.config[18], spec.config[20]) = (4, 40, 128, 0x3f);
    let rss = Rss::evenly(2, 4);
    let config = PortConfig { rx_queues: 2, tx_queues: 2, rss: Some(rss.clone()), ..PortConfig::default() };
    let rig = rig(spec.clone());
    let port = Net::open(rig.device.clone(), &config, patient()).unwrap();
    assert_eq!((port.limits().rx_queues, port.limits().rss_table), (4, 128));
    let expected = [&[4, 1, 0x3f, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 40][..], &Rss::KEY].concat();
    assert_eq!(rig.state().commands[0], expected);
    assert!(rig.state().queues[..4].iter().all(|q| q.enabled) && !rig.state().queues[4].enabled);
    for bad in [
        Rss { table: vec![0, 1, 2, 0], ..rss.clone() },
        Rss { table: vec![0; 3], ..rss.clone() },
        Rss { table: vec![0; 256], ..rss.clone() },
        Rss { key: vec![0; 41], ..rss.clone() },
    ] {
        assert!(port.set_rss(&bad).is_err(), "{bad:?}");
    }
    port.set_rss(&Rss { table: vec![1; 2], ..rss }).unwrap();
    drop(port);
    // Without a table of one's own, the device has its way.
    let other = device::rig(spec);
    let port = Net::open(other.device.clone(), &PortConfig { rss: None, ..config }, patient()).unwrap();
    assert_eq!(other.state().commands[0], [4, 0, 2, 0]);
    drop(port);
}

#[test]
fn idle_queues_are_woken() {
    let config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let mut bench = bench_with(spec(0), config);
    assert_eq!(bench.rig.state().queues.iter().map(|q| q.vector).collect::<Vec<_>>(), [1, 0xffff, 0xffff]);
    let wakeup = bench.rx.wakeup().unwrap();
    assert_eq!(bench.rx.arm(), wholebar_core::reactor::Armed::Yes);
    assert!(bench.receive().is_empty());
    bench.rig.run(|state, host| {
        state.receive(host, 0, &[0; 72], &[]);
        host.interrupt(1);
    });
    assert!(wakeup.wait(Some(LONG)).unwrap().is_some());
    bench.rx.disarm();
    assert_eq!(bench.receive().len(), 1);
    bench.close();
}
