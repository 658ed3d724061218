//! Back ends that lie, say no, or say nothing: each has its error, in a bounded time.

use super::*;

#[test]
fn features_that_were_not_offered_or_are_refused_are_not_agreed_on() {
    let lie: fn(&Message) -> Option<Answer> = |ask| {
        (ask.request == SET_FEATURES && ask.long(0) & PACKED != 0)
            .then(|| Answer::Message(Message::reply(SET_FEATURES, longs(&[1]))))
    };
    let (back_end, device) = open(Script { lie, ..net() });
    back_end.told();
    for (features, told) in [(MRG_RXBUF, 0), (VERSION_1 | 1 << 28, 0), (VERSION_1 | PACKED, 1), (VERSION_1, 1)] {
        device.set::<1>(STATUS, 0).unwrap();
        device.set::<1>(STATUS, 3).unwrap();
        for half in 0..2 {
            device.set::<4>(0x08, half).unwrap();
            device.set::<4>(0x0c, features >> (32 * half) & 0xffff_ffff).unwrap();
        }
        device.set::<1>(STATUS, 11).unwrap();
        let agreed = features == VERSION_1;
        assert_eq!(
            (device.get::<1>(STATUS).unwrap(), back_end.told().len()),
            (if agreed { 11 } else { 3 }, told),
            "{features:#x}"
        );
    }
    // Without features there is no DRIVER_OK.
    device.set::<1>(STATUS, 0).unwrap();
    device.set::<1>(STATUS, 7).unwrap();
    assert_eq!(device.get::<1>(STATUS).unwrap(), 3 | 64);
}

#[test]
fn each_lie_has_its_error() {
    macro_rules! lie {
        ($request:expr, $change:expr) => {
            |ask: &Message| {
                (ask.request == $request).then(|| {
                    let mut message = net().answer(ask).unwrap_or_else(|| Message::reply(ask.request, longs(&[0])));
                    let change: fn(&mut Message) = $change;
                    change(&mut message);
                    Answer::Message(message)
                })
            }
        };
    }
    type Lie = fn(&Message) -> Option<Answer>;
    let lies: [(Lie, &str); 14] = [
        (lie!(GET_FEATURES, |m| m.payload.truncate(4)), "GET_FEATURES: the reply has 4 bytes, and 8 are expected"),
        (lie!(GET_FEATURES, |m| m.payload.push(0)), "the reply has 9 bytes"),
        (lie!(GET_FEATURES, |m| m.payload.clear()), "the reply has 0 bytes"),
        (lie!(GET_FEATURES, |m| m.size = Some(4097)), "a message of 4109 bytes was announced"),
        (lie!(GET_FEATURES, |m| m.size = Some(u32::MAX)), "is it a vhost-user back end?"),
        (lie!(GET_FEATURES, |m| m.request = GET_QUEUE_NUM), "the reply is to GET_QUEUE_NUM"),
        (lie!(GET_FEATURES, |m| m.flags = 1), "the reply has flags 0x1, and 0x5 are expected"),
        (lie!(GET_FEATURES, |m| m.flags = 2 | 1 << 2), "the reply has flags 0x6"),
        (lie!(GET_FEATURES, |m| m.fds = vec![file()]), "1 file descriptors came with the reply, and 0 may"),
        (lie!(GET_FEATURES, |m| m.fds = (0..40).map(|_| file()).collect()), "40 file descriptors"),
        (lie!(GET_FEATURES, |m| m.payload = longs(&[MRG_RXBUF])), "VIRTIO_F_VERSION_1 is not among them"),
        (lie!(GET_FEATURES, |m| m.payload = longs(&[VERSION_1])), "say it by `,net` or `,blk`"),
        (lie!(GET_QUEUE_NUM, |m| m.payload = longs(&[0])), "no queues"),
        (
            |ask| (ask.request == GET_PROTOCOL_FEATURES).then_some(Answer::Close),
            "GET_PROTOCOL_FEATURES: the connection was closed",
        ),
    ];
    for (lie, expected) in lies {
        let said = failure(Script { lie, ..net() }, options());
        assert!(said.starts_with("test: ") && said.contains(expected), "{said:?} is not about {expected:?}");
    }
    let disks: [(Lie, &str); 4] = [
        (lie!(GET_CONFIG, |m| m.payload.clear()), "GET_CONFIG was refused: it does not give 60 bytes"),
        (lie!(GET_CONFIG, |m| m.payload = vec![0; 72]), "0 bytes of configuration at 0"),
        (lie!(GET_CONFIG, |m| m.payload = [words(&[0, 8, 0]), vec![0; 8]].concat()), "the reply has 8 bytes at 0"),
        (
            lie!(GET_CONFIG, |m| m.payload = [words(&[200, 60, 0]), vec![0; 60]].concat()),
            "60 bytes of configuration at 200",
        ),
    ];
    for (lie, expected) in disks {
        let said = failure(Script { lie, ..disk() }, options());
        assert!(said.contains(expected), "{said:?} is not about {expected:?}");
    }
    let blk = Options { device_type: Some(DeviceType::Blk), ..options() };
    assert!(failure(net(), blk).contains("that is a network device, and a disk is wanted"));
    let said = failure(disk(), Options { device_type: Some(DeviceType::Net), ..options() });
    assert!(said.contains("that is a disk, and a network device is wanted"));
    let said = failure(Script { features: VERSION_1 | PROTOCOL_FEATURES, ..net() }, blk);
    assert!(said.contains("no device configuration"), "{said}");
}

#[test]
fn silence_ends_in_a_bounded_time() {
    let soon = Duration::from_millis(50);
    let options = Options { timeout: soon, ..options() };
    let said = failure(Script { lie: |_| Some(Answer::Nothing), ..net() }, options);
    assert!(said.contains("GET_FEATURES: no reply within 50ms"), "{said}");
    // All answers together, where each alone comes in time.
    let options = Options { timeout: LONG, open_timeout: soon, ..options };
    let said =
        failure(Script { lie: |ask| (ask.request == GET_QUEUE_NUM).then_some(Answer::Nothing), ..net() }, options);
    assert!(said.contains("GET_QUEUE_NUM: no reply within the 50ms that opening it may take in all"), "{said}");
    // And later, at a queue's stop: the device is gone, and its memory is not taken back.
    let (_back_end, stream) =
        BackEnd::new(Script { lie: |ask| (ask.request == GET_VRING_BASE).then_some(Answer::Nothing), ..net() });
    let device =
        VhostUser::from_stream(stream, "test", Options { timeout: soon, open_timeout: LONG, ..options }).unwrap();
    let arena = arena();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    start(&device, VERSION_1, &[(0, mapping.iova().0, 0xffff)]).unwrap();
    let error = device.set::<1>(STATUS, 0).unwrap_err();
    assert!(matches!(&error, Error::Peer { command, .. } if command == "GET_VRING_BASE"), "{error}");
    assert!(matches!(device.get::<1>(STATUS), Err(Error::Gone { .. })));
    assert!(matches!(device.read(CONFIG, 8, &mut [0; 4]), Err(Error::Gone { .. })));
    drop(mapping);
    assert_eq!(device.dma().mapped(), 1);
}

#[test]
fn what_nobody_asked_for_ends_it() {
    let (back_end, device) = open(net());
    assert!(send(&back_end.stream, &Message::reply(GET_FEATURES, longs(&[0]))));
    let error = device.get::<1>(STATUS).unwrap_err();
    assert!(matches!(&error, Error::Gone { why, .. } if why.contains("which nobody asked for")), "{error}");
}
