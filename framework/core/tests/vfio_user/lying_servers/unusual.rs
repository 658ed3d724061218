//! Servers that are unusual, and need not lie: larger pages, short transfers, commands and descriptors of their own, areas and files of all kinds.

use super::*;

#[test]
fn a_server_with_larger_pages_gets_whole_ones_or_a_sentence() {
    let (sender, maps) = std::sync::mpsc::channel();
    let (device, server) = connect(move |ask| match ask.command {
        raw::VERSION => Some(changed(ask, |m| m.payload = capable("\"pgsizes\":2097152"))),
        raw::DMA_MAP => {
            let long = |at: usize| u64::from_ne_bytes(ask.payload[at..at + 8].try_into().unwrap());
            sender.send((long(16), long(24))).unwrap();
            None
        }
        _ => None,
    });
    let device = device.unwrap();
    let plain = ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() };
    let error = device.dma().attach(Arena::new(3 << 16, plain).unwrap()).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Granule { .. }), "{error:?}");
    assert!(
        error.to_string().contains("an arena of 196608 bytes cannot be mapped") && error.to_string().contains("2 MiB"),
        "{error}"
    );
    let mapping = device.dma().attach(Arena::new(2 << 20, plain).unwrap()).unwrap();
    assert_eq!(maps.try_recv().unwrap(), (mapping.iova().0, 2 << 20));
    assert!(mapping.iova().0.is_multiple_of(2 << 20));
    drop((mapping, device));
    server.join().unwrap();
}

#[test]
fn a_short_transfer_is_an_error_and_the_device_goes_on() {
    let (device, server) = lying(raw::REGION_READ, |ask| {
        changed(ask, |m| {
            m.payload.truncate(16 + 60);
            m.payload[12] = 60;
        })
    });
    let device = device.unwrap();
    let error = device.read(CONFIG, 0, &mut [0; 64]).unwrap_err();
    assert!(error.to_string().contains("60 bytes were transferred"), "{error}");
    drop(device);
    server.join().unwrap();
}

#[test]
fn a_server_s_own_commands_are_declined_in_between() {
    let (device, server) = connect(|ask| {
        let asks = |flags| Message { flags, ..Message::command(raw::DMA_READ, longs(&[0x1000, 64])) };
        match (ask.command, ask.flags) {
            // Our answer to it.
            (raw::DMA_READ, REPLY..) => {
                assert_eq!((ask.id, ask.error), (7, libc::EOPNOTSUPP as u32));
                assert!(ask.payload.is_empty());
                Some(Answer::Nothing)
            }
            (raw::REGION_READ, _) => Some(Answer::All(vec![
                Answer::Message(asks(0)),
                Answer::Message(asks(raw::NO_REPLY)),
                Answer::Message(Message { command: 4711, ..asks(raw::NO_REPLY) }.with(file(1))),
                Answer::Message(honest(ask)),
            ])),
            _ => None,
        }
    });
    let device = device.unwrap();
    for _ in 0..3 {
        let mut bytes = [0; 64];
        device.read(CONFIG, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0xa5; 64]);
    }
    drop(device);
    server.join().unwrap();
}

#[test]
fn a_server_that_never_stops_asking_is_not_listened_to_for_ever() {
    let asks = || Message { flags: raw::NO_REPLY, ..Message::command(raw::DMA_READ, Vec::new()) };
    let device = (0..100).find_map(|_| {
        let (device, server) = connect_for(SHORT, when(raw::RESET, move |_| Answer::Always(asks)));
        // On a busy machine it may be late where it is honest.
        Some((device.ok()?, server))
    });
    let (device, server) = device.expect("a server that is honest at first, and in time");
    let error = device.reset().unwrap_err();
    assert!(error.to_string().contains("no reply within 500ms"), "{error}");
    server.join().unwrap();
}

#[test]
fn descriptors_that_nobody_asked_for_are_counted_and_closed() {
    let (device, server) = lying(raw::RESET, |ask| changed(ask, |m| (0..3).for_each(|_| m.fds.push(file(1)))));
    let device = device.unwrap();
    assert_eq!(device.stray_fds(), 0);
    device.reset().unwrap();
    device.reset().unwrap();
    assert_eq!(device.stray_fds(), 6);
    drop(device);
    server.join().unwrap();
}

#[test]
fn long_descriptions_are_asked_for_again() {
    // A hundred capabilities nobody knows, before the one that counts.
    let unknown = |i: u32| [words(&[77 | 1 << 16, 32 + (i + 1) * 16]), vec![0; 8]].concat();
    let chain: Vec<u8> = (0..100).flat_map(unknown).chain(sparse(0, 0, 0x4000)).collect();
    let (device, server) = lying(raw::GET_REGION_INFO, move |ask| {
        changed(ask, |m| {
            if word(&ask.payload, 2) == 0 {
                m.payload = region(0, 0xf, &[&chain]);
                if word(&ask.payload, 0) < m.payload.len() as u32 {
                    m.payload.truncate(32);
                    m.payload[4] = 7;
                    m.fds.clear();
                }
            }
        })
    });
    let device = device.unwrap();
    let info = device.region(0).unwrap();
    assert_eq!(info.sparse(), Some(&[0..0x4000][..]));
    assert_eq!(info.caps.iter().filter(|c| **c == RegionCap::Other(77)).count(), 100);
    drop(device);
    server.join().unwrap();
}

#[test]
fn a_region_that_is_refused_is_empty() {
    let (device, server) = lying(raw::GET_REGION_INFO, |ask| {
        changed(ask, |m| {
            if word(&ask.payload, 2) == 8 {
                (m.flags, m.error, m.payload) = (REPLY | ERROR, libc::EINVAL as u32, Vec::new());
            }
        })
    });
    assert_eq!(device.unwrap().region(8).unwrap().size, 0);
    server.join().unwrap();
}

#[test]
fn only_what_is_offered_and_there_is_mapped() {
    type Change = fn(&mut Message);
    let page = PageSize::host().bytes();
    let offered = 0x1_0000..0x2_0000;
    let cases: [(Change, _, Option<&str>); 8] = [
        (|_| (), offered.clone(), None),
        (|_| (), 0x1_0000..0x1_0000 + page, None),
        (|_| (), 0..page, Some("does not offer that part")),
        (|_| (), 0x1_0000..0x2_0001, Some("does not offer that part")),
        (|_| (), 0x1_0000..0x1_0000, Some("does not offer that part")),
        (|_| (), 0x1_0001..0x2_0000, Some("does not begin on a page")),
        (|m| m.fds = vec![file(0x1_ffff)], offered.clone(), Some("file is shorter than what it offers")),
        (|m| m.fds = vec![UnixStream::pair().unwrap().0.into()], offered, Some("not a file")),
    ];
    for (change, range, refusal) in cases {
        let (device, server) = lying(raw::GET_REGION_INFO, move |ask| {
            changed(ask, |m| {
                if word(&ask.payload, 2) == 0 {
                    change(m)
                }
            })
        });
        let device = device.unwrap();
        let mapped = device.map(0, range.clone(), Prot::ReadWrite);
        match refusal {
            None => assert_eq!(mapped.unwrap().len(), range.end - range.start),
            Some(why) => {
                let error = mapped.unwrap_err();
                assert!(matches!(error, Error::NotMappable { .. }) && error.to_string().contains(why), "{error}");
            }
        }
        drop(device);
        server.join().unwrap();
    }
}

#[test]
fn a_server_that_takes_its_file_away_is_gone_and_we_are_not() {
    let bells = file(SIZE);
    let ours = bells.try_clone().unwrap();
    let (device, server) = connect(move |ask| match (ask.command, word(&ask.payload, 2)) {
        (raw::GET_REGION_INFO, 0) => Some(changed(ask, |m| m.fds = vec![bells.try_clone().unwrap()])),
        // A configuration space that is plain: no capabilities.
        (raw::REGION_READ, CONFIG) => Some(changed(ask, |m| m.payload[16..].fill(0))),
        _ => None,
    });
    let device = device.unwrap();
    let seam: Arc<dyn PciDevice> = device.clone();
    let bar = Bar::of(seam.clone(), 0, BarOptions::default()).unwrap();
    let mut bell = bar.doorbell::<u32>(0x1_0000).unwrap();
    assert!(bell.is_direct());
    bell.ring(1);
    assert_eq!(bar.read::<u32>(0x1_0000).unwrap(), 1);
    rustix::fs::ftruncate(&ours, 0).unwrap();
    bell.ring(2);
    assert!(bar.failed());
    assert!(matches!(bar.read::<u32>(0x1_0004), Err(Error::Gone { .. })));
    let error = device.read(CONFIG, 0, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("took memory away that it had shared"), "{error}");
    assert!(matches!(device.reset(), Err(Error::Gone { .. })));
    drop((bell, bar, seam, device));
    server.join().unwrap();
}

#[test]
fn a_file_without_areas_is_the_whole_region() {
    let (device, server) = lying(raw::GET_REGION_INFO, |ask| {
        changed(ask, |m| {
            if word(&ask.payload, 2) == 0 {
                m.payload = region(0, 7, &[])
            }
        })
    });
    let device = device.unwrap();
    assert!(device.region(0).unwrap().mappable);
    assert_eq!(device.map(0, 0..SIZE, Prot::Read).unwrap().len(), SIZE);
    drop(device);
    server.join().unwrap();
}

/// libvfio-user kept the eventfds of ERR and REQ where it keeps that of vector 0, until late in 2025.
#[test]
fn vector_0_stays_its_own_where_a_server_has_one_place_for_it_and_for_notices() {
    let place = Arc::new(std::sync::Mutex::new(None));
    let server_s = place.clone();
    let (device, server) = connect(move |ask| {
        if ask.command == raw::GET_IRQ_INFO {
            return Some(changed(ask, |m| m.payload[12..16].copy_from_slice(&words(&[4]))));
        }
        // DATA_EVENTFD and ACTION_TRIGGER, from vector 0 on.
        if ask.command == raw::SET_IRQS && (word(&ask.payload, 1), word(&ask.payload, 3)) == (4 | 1 << 5, 0) {
            *server_s.lock().unwrap() = ask.fds.first().map(|fd| fd.try_clone().unwrap());
        }
        None
    });
    let device = device.unwrap();
    let (vector, notice) = (EventFd::new().unwrap(), EventFd::new().unwrap());
    let arm = |kind, fd: &EventFd| device.set_irqs(kind, 0, IrqAction::Fds(&[Some(fd.as_fd())])).unwrap();
    let raise = || {
        let place = place.lock().unwrap();
        rustix::io::write(place.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
        (vector.take(), notice.take())
    };
    for notices in [Irq::Err, Irq::Req] {
        arm(Irq::Msix, &vector);
        arm(notices, &notice);
        assert_eq!(raise(), (1, 0), "vectors first");
        device.set_irqs(Irq::Msix, 0, IrqAction::Disable).unwrap();
        arm(notices, &notice);
        arm(Irq::Msix, &vector);
        assert_eq!(raise(), (1, 0), "notices first");
        device.reset().unwrap();
        arm(notices, &notice);
        assert_eq!(raise(), (0, 1), "a vector that a reset took away does not come back by itself");
    }
    drop(device);
    server.join().unwrap();
}

#[test]
fn descriptors_are_sent_as_many_at_a_time_as_the_server_takes() {
    let (sender, batches) = std::sync::mpsc::channel();
    let (device, server) = connect(move |ask| {
        if ask.command == raw::SET_IRQS {
            let field = |i| word(&ask.payload, i);
            sender.send((field(3), field(4), ask.fds.len())).unwrap();
        }
        None
    });
    let device = device.unwrap();
    let event = EventFd::new().unwrap();
    let mut fds = [Some(event.as_fd()); 20];
    fds[9..12].fill(None);
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&fds)).unwrap();
    drop(device);
    server.join().unwrap();
    let batches: Vec<_> = batches.iter().collect();
    // Start, count, descriptors: it takes eight, and none where some are taken away.
    assert_eq!(batches, [(0, 8, 8), (8, 1, 1), (9, 3, 0), (12, 8, 8)]);
}
