//! Back ends that go away: waited for, gone on with, or gone by name.

use super::*;

#[test]
fn a_back_end_that_dies_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let listener = UnixListener::bind(&path).unwrap();
    let opening = {
        let path = path.clone();
        std::thread::spawn(move || VhostUser::connect(path, options()).unwrap())
    };
    let first = BackEnd::on(listener.accept().unwrap().0, net());
    let device = opening.join().unwrap();
    let arena = arena();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    let queues = [(0, mapping.iova().0, 0xffff)];
    let changed = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&[Some(changed.as_fd())])).unwrap();
    start(&device, VERSION_1, &queues).unwrap();
    first.die();
    // An event, and a device that needs a reset.
    assert!(changed.wait(Some(LONG)).unwrap().is_some(), "before anybody asks");
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15 | 64);
    assert_eq!(changed.take(), 1);
    // It is notified meanwhile, memory comes and goes.
    device.write(2, 0, &[0, 0]).unwrap();
    let other = device.dma().attach(self::arena()).unwrap();
    drop(other);
    let again = std::thread::spawn(move || {
        // One that ends at once, then one that stays.
        drop(listener.accept().unwrap());
        BackEnd::on(listener.accept().unwrap().0, net())
    });
    start(&device, VERSION_1, &queues).unwrap();
    let second = again.join().unwrap();
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15);
    let told = second.told();
    assert_eq!(requests(&told)[5..8], [SET_FEATURES, SET_MEM_TABLE, SET_VRING_NUM]);
    // The same place in memory, and the notification that came meanwhile.
    assert_eq!((told[6].word(0), told[6].long(1)), (1, mapping.iova().0));
    let kick = told.iter().find(|message| message.request == SET_VRING_KICK).unwrap();
    let mut count = [0; 8];
    rustix::io::read(&kick.fds[0], &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    drop(mapping);
    assert_eq!(device.dma().mapped(), 0);
}

#[test]
fn a_back_end_that_does_not_come_back_is_gone_by_name() {
    let (back_end, stream) = BackEnd::new(net());
    let device = VhostUser::from_stream(stream, "test", options()).unwrap();
    let mapping = device.dma().attach(arena()).unwrap();
    start(&device, VERSION_1, &[(0, mapping.iova().0, 0xffff)]).unwrap();
    back_end.die();
    // A connection that somebody else made is not made again.
    let error = device.get::<1>(STATUS).unwrap_err();
    assert!(matches!(&error, Error::Gone { why, .. } if why.contains("the connection was closed")), "{error}");
    drop(mapping);
    assert_eq!(device.dma().mapped(), 0, "who closed the connection has let go of the memory");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let soon = Duration::from_millis(50);
    let served = Options { server: true, reconnect: soon, ..options() };
    let opening = {
        let path = path.clone();
        std::thread::spawn(move || VhostUser::connect(path, served))
    };
    let stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => std::thread::yield_now(),
        }
    };
    let back_end = BackEnd::on(stream, net());
    let device = opening.join().unwrap().unwrap();
    start(&device, VERSION_1, &[(0, 0x20_0000, 0xffff)]).unwrap();
    back_end.die();
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15 | 64);
    device.set::<1>(STATUS, 0).unwrap();
    let error = device.set::<1>(STATUS, 1).unwrap_err();
    assert!(matches!(&error, Error::Gone { why, .. } if why.contains("did not come back within 50ms")), "{error}");
    let nobody = VhostUser::connect(dir.path().join("y"), Options { server: true, open_timeout: soon, ..options() });
    let said = nobody.err().unwrap().to_string();
    assert!(said.contains("no back end connected to it"), "{said}");
}

/// Bytes of the record that it has.
const RECORD: u64 = 4096;

/// A disk that records what it has in flight.
fn recorded() -> Script {
    let lie: fn(&Message) -> Option<Answer> = |ask| {
        (ask.request == GET_INFLIGHT_FD).then(|| {
            let payload = [longs(&[RECORD, 0]), words(&[ask.word(4), 0])].concat();
            Answer::Message(Message { fds: vec![file()], ..Message::reply(GET_INFLIGHT_FD, payload) })
        })
    };
    Script { protocol: DISK | ACK | INFLIGHT, lie, ..disk() }
}

/// A disk's queues go on with the next back end, which gets the record of what is in flight, and where split rings were.
#[test]
fn queues_whose_buffers_are_recorded_go_on_with_another_back_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let listener = UnixListener::bind(&path).unwrap();
    let opening = std::thread::spawn({
        let path = path.clone();
        move || VhostUser::connect(path, options()).unwrap()
    });
    let first = BackEnd::on(listener.accept().unwrap().0, recorded());
    let device = opening.join().unwrap();
    let arena = arena();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    let chunk = arena.alloc(0x4000, 4096).unwrap();
    let call = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 1, IrqAction::Fds(&[Some(call.as_fd())])).unwrap();
    start(&device, VERSION_1, &[(0, mapping.iova().0 + chunk.offset(), 1)]).unwrap();
    let told = first.told();
    let of = |told: &[Message], request| told.iter().position(|message| message.request == request).unwrap();
    let (asked, given) = (&told[of(&told, GET_INFLIGHT_FD)], &told[of(&told, SET_INFLIGHT_FD)]);
    assert_eq!(asked.word(4), 1 | 64 << 16, "one queue of 64 entries");
    assert_eq!((given.long(0), given.long(1), given.fds.len()), (RECORD, 0, 1));
    assert!(of(&told, SET_INFLIGHT_FD) < of(&told, SET_VRING_NUM));
    assert_eq!(told[of(&told, SET_VRING_BASE)].word(1), 0);
    // It has used 7 buffers, and dies. Nobody needs a reset, and nobody listens yet.
    chunk.write(0x2002, &7u16.to_le_bytes()).unwrap();
    first.die();
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15);
    let second = std::thread::spawn(move || BackEnd::on(listener.accept().unwrap().0, recorded()));
    let began = std::time::Instant::now();
    while !second.is_finished() {
        assert!(began.elapsed() < LONG, "nobody came");
        assert_eq!(device.get::<1>(STATUS).unwrap(), 15);
    }
    let second = second.join().unwrap();
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15);
    let told = second.told();
    let same = |message: &Message| rustix::fs::fstat(&message.fds[0]).unwrap().st_ino;
    assert_eq!(same(&told[of(&told, SET_INFLIGHT_FD)]), same(given));
    assert!(!requests(&told).contains(&GET_INFLIGHT_FD));
    assert_eq!(told[of(&told, SET_VRING_BASE)].word(1), 7);
    assert_eq!(call.wait(Some(LONG)).unwrap(), Some(1), "an interrupt may have been lost");
    let mut kicks = [0; 8];
    rustix::io::read(&told[of(&told, SET_VRING_KICK)].fds[0], &mut kicks).unwrap();
    assert_eq!(u64::from_ne_bytes(kicks), 1, "and a notification");
    // A reset ends what is in flight, and its record.
    device.set::<1>(STATUS, 0).unwrap();
    start(&device, VERSION_1, &[(0, mapping.iova().0 + chunk.offset(), 1)]).unwrap();
    assert!(requests(&second.told()).contains(&GET_INFLIGHT_FD));
}

#[test]
fn queues_that_nobody_goes_on_with_are_gone_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let listener = UnixListener::bind(&path).unwrap();
    let soon = Options { reconnect: Duration::from_millis(50), ..options() };
    let opening = std::thread::spawn(move || VhostUser::connect(path, soon).unwrap());
    let back_end = BackEnd::on(listener.accept().unwrap().0, recorded());
    let device = opening.join().unwrap();
    start(&device, VERSION_1, &[(0, 0x20_0000, 0xffff)]).unwrap();
    drop(listener);
    back_end.die();
    let began = std::time::Instant::now();
    let error = loop {
        match device.get::<1>(STATUS) {
            Ok(status) => assert!(status == 15 && began.elapsed() < LONG, "{status}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Gone { why, .. } if why.contains("did not come back within 50ms")), "{error}");
}
