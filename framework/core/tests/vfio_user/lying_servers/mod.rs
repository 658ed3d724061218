//! Our client with servers that lie: each lie has its error, none a hang, and afterwards the device is gone.

mod unusual;

use crate::LONG;
use crate::raw::{self, ERROR, Message, REPLY, file, longs, word, words};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Arena, ArenaOptions};
use wholebar_core::pci::{CONFIG, Irq, IrqAction, Opening, PciDevice, Prot, RegionCap};
use wholebar_core::vfio_user::{Options, VfioUser};
use wholebar_core::{Error, PageSize, Result};

const SIZE: u64 = 0x10_0000;

/// What a server does instead of answering honestly.
type Lie = fn(&Message) -> Answer;

/// What a server sends for one command.
enum Answer {
    Message(Message),
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
    /// These bytes, then the end.
    Last(Vec<u8>),
    Nothing,
    /// Several, in order.
    All(Vec<Answer>),
    /// The same for ever.
    Always(fn() -> Message),
}

/// What an honest server answers: one region of a megabyte with one area to map, and twenty vectors of MSI-X.
fn honest(ask: &Message) -> Message {
    let mut fds = Vec::new();
    let payload = match ask.command {
        raw::VERSION => [&[0; 4], &b"{\"capabilities\":{\"max_msg_fds\":8}}\0"[..]].concat(),
        raw::GET_INFO => words(&[16, 3, 9, 5]),
        raw::GET_REGION_INFO if word(&ask.payload, 2) == 0 => {
            fds.push(file(SIZE));
            region(0, 0xf, &[&sparse(0, 0x1_0000, 0x1_0000)])
        }
        raw::GET_REGION_INFO if word(&ask.payload, 2) == CONFIG => {
            [words(&[32, 3, CONFIG, 0]), longs(&[4096, 0])].concat()
        }
        raw::GET_REGION_INFO => [words(&[32, 0, word(&ask.payload, 2), 0]), longs(&[0, 0])].concat(),
        raw::GET_IRQ_INFO => {
            let index = word(&ask.payload, 2);
            words(&[16, 1, index, if index == Irq::Msix.index() { 20 } else { 0 }])
        }
        raw::REGION_READ => [&ask.payload[..16], &vec![0xa5; word(&ask.payload, 3) as usize]].concat(),
        raw::REGION_WRITE => ask.payload[..16].to_vec(),
        raw::DMA_UNMAP => ask.payload.clone(),
        _ => Vec::new(),
    };
    Message { id: ask.id, command: ask.command, flags: REPLY, payload, fds, ..Message::default() }
}

/// A region of [`SIZE`] bytes with capabilities.
fn region(index: u32, flags: u32, caps: &[&[u8]]) -> Vec<u8> {
    let caps = caps.concat();
    let cap_offset = if caps.is_empty() { 0 } else { 32 };
    let argsz = 32 + caps.len() as u32;
    [words(&[argsz, flags, index, cap_offset]), longs(&[SIZE, 0]), caps].concat()
}

/// A sparse capability (id 1, version 1) of one area.
fn sparse(next: u32, offset: u64, size: u64) -> Vec<u8> {
    [words(&[1 | 1 << 16, next, 1, 0]), longs(&[offset, size])].concat()
}

/// The same of several.
fn areas(areas: &[(u64, u64)]) -> Vec<u8> {
    let list: Vec<u8> = areas.iter().flat_map(|(offset, size)| longs(&[*offset, *size])).collect();
    region(0, 0xf, &[&words(&[1 | 1 << 16, 0, areas.len() as u32, 0]), &list])
}

/// What there is room for: where that isn't all, the fixed part.
fn cut(ask: &Message, mut region: Vec<u8>) -> Vec<u8> {
    if word(&ask.payload, 0) < region.len() as u32 {
        region.truncate(32);
    }
    region
}

/// So many areas of a byte.
fn areas_of(count: u64) -> Vec<u8> {
    areas(&(0..count).map(|i| (i, 1)).collect::<Vec<_>>())
}

/// The answer to a version, with one capability.
fn capable(capability: &str) -> Vec<u8> {
    format!("\0\0\0\0{{\"capabilities\":{{{capability}}}}}\0").into_bytes()
}

/// How long a server has that says nothing, where it is meant not to.
const SHORT: Duration = Duration::from_millis(500);

/// A connection to a server that answers by `lie` where that has something to say, and honestly else.
fn connect(lie: impl Fn(&Message) -> Option<Answer> + Send + 'static) -> (Result<Arc<VfioUser>>, JoinHandle<()>) {
    connect_for(LONG, lie)
}

/// The same, where each answer has so long.
fn connect_for(
    timeout: Duration,
    lie: impl Fn(&Message) -> Option<Answer> + Send + 'static,
) -> (Result<Arc<VfioUser>>, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        while let Some(ask) = raw::receive(&theirs) {
            let answer = lie(&ask).unwrap_or_else(|| Answer::Message(honest(&ask)));
            if !say(&theirs, answer) {
                break;
            }
        }
    });
    (VfioUser::from_stream(ours, "vfio-user:test", Options::of(timeout)), server)
}

fn say(stream: &UnixStream, answer: Answer) -> bool {
    match answer {
        Answer::Message(m) => raw::send(stream, &m.bytes(), &m.fds),
        Answer::Bytes(bytes) => raw::send(stream, &bytes, &[]),
        Answer::Last(bytes) => {
            raw::send(stream, &bytes, &[]);
            false
        }
        Answer::Nothing => true,
        Answer::All(all) => all.into_iter().all(|a| say(stream, a)),
        Answer::Always(message) => {
            while raw::send(stream, &message().bytes(), &[]) {}
            false
        }
    }
}

/// A device whose server answers `command` as told.
fn lying(command: u16, lie: impl Fn(&Message) -> Answer + Send + 'static) -> (Result<Arc<VfioUser>>, JoinHandle<()>) {
    connect(when(command, lie))
}

/// A lie about one command.
fn when(command: u16, lie: impl Fn(&Message) -> Answer) -> impl Fn(&Message) -> Option<Answer> {
    move |ask| (ask.command == command).then(|| lie(ask))
}

/// Uses a command that connecting doesn't.
fn provoke(device: &VfioUser, command: u16) -> Result<()> {
    let event = EventFd::new().unwrap();
    match command {
        raw::REGION_READ => device.read(CONFIG, 0, &mut [0; 64]),
        raw::REGION_WRITE => device.write(0, 0x10, &[0; 4]),
        raw::SET_IRQS => device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&[Some(event.as_fd())])),
        raw::RESET => device.reset(),
        raw::DMA_MAP => {
            let arena = Arena::new(1, ArenaOptions::default()).unwrap();
            device.dma().attach(arena).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// What a lie about `command` comes to. It is an error that says so, and the last word; where nothing comes at all, after a short time.
fn caught(command: u16, lie: Lie, timeout: Duration) -> String {
    let (device, server) = connect_for(timeout, when(command, lie));
    let error = match device {
        Err(error) => error,
        Ok(device) => {
            let error = provoke(&device, command).expect_err("the lie was believed");
            for call in [raw::REGION_READ, raw::REGION_WRITE, raw::SET_IRQS, raw::DMA_MAP, raw::RESET] {
                let later = provoke(&device, call).unwrap_err();
                assert!(matches!(&later, Error::Gone { .. }), "{later:?}");
            }
            error
        }
    };
    server.join().unwrap();
    assert!(matches!(error, Error::Peer { .. }), "{error:?}");
    error.to_string()
}

/// An honest answer, changed.
fn changed(ask: &Message, change: impl FnOnce(&mut Message)) -> Answer {
    let mut answer = honest(ask);
    change(&mut answer);
    Answer::Message(answer)
}

fn garbage(_: &Message) -> Answer {
    Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n".to_vec())
}

fn half(ask: &Message) -> Answer {
    let mut bytes = honest(ask).bytes();
    bytes.truncate(10);
    Answer::Last(bytes)
}

fn half_a_payload(ask: &Message) -> Answer {
    let mut bytes = honest(ask).bytes();
    bytes.truncate(bytes.len() - 1);
    Answer::Last(bytes)
}

#[test]
fn every_lie_about_any_command_ends_in_its_error() {
    let silent: [(Lie, &str); 2] = [
        (|_| Answer::Nothing, "no reply within 500ms"),
        // The size is a lie, so what follows is taken for the rest.
        (|ask| changed(ask, |m| m.size = Some(16 + m.payload.len() as u32 + 1)), "no reply within"),
    ];
    let lies: [(Lie, &str); 10] = [
        (|_| Answer::Last(Vec::new()), "the connection was closed"),
        (garbage, "is it a vfio-user server?"),
        (half, "closed after 10 of 16 bytes"),
        (|ask| changed(ask, |m| m.id ^= 1), "the reply is to"),
        (|ask| changed(ask, |m| m.command = 99), "the reply is to command 99"),
        (|ask| changed(ask, |m| m.flags = 2), "neither command nor reply"),
        (|ask| changed(ask, |m| m.size = Some(15)), "a message of 15 bytes was announced"),
        (|ask| changed(ask, |m| m.size = Some(u32::MAX)), "a message of 4294967295 bytes was announced"),
        (|ask| changed(ask, |m| m.payload.resize(100_000, 0)), "the reply has 100000 bytes"),
        (|ask| changed(ask, |m| (0..17).for_each(|_| m.fds.push(file(1)))), "file descriptors came with the reply"),
    ];
    let commands = [
        raw::VERSION,
        raw::GET_INFO,
        raw::GET_REGION_INFO,
        raw::GET_IRQ_INFO,
        raw::REGION_READ,
        raw::REGION_WRITE,
        raw::SET_IRQS,
        raw::DMA_MAP,
        raw::RESET,
    ];
    // At once, since some of it is waiting.
    std::thread::scope(|all| {
        for command in commands {
            all.spawn(move || {
                let all = silent.map(|lie| (SHORT, lie)).into_iter().chain(lies.map(|lie| (LONG, lie)));
                for (i, (timeout, (lie, expected))) in all.enumerate() {
                    let error = caught(command, lie, timeout);
                    assert!(error.contains(expected), "lie {i} about command {command}: {error}");
                }
            });
        }
    });
}

#[test]
fn replies_that_make_no_sense_end_in_their_error() {
    use raw::{GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, REGION_READ, REGION_WRITE, VERSION};
    fn with(ask: &Message, payload: Vec<u8>) -> Answer {
        changed(ask, |m| m.payload = payload)
    }
    let lies: &[(u16, Lie, &str)] = &[
        (VERSION, |ask| with(ask, vec![0; 3]), "too short"),
        (VERSION, |ask| with(ask, vec![1, 0, 0, 0]), "version 1.0, not 0.1"),
        (VERSION, |ask| with(ask, vec![0, 0, 2, 0]), "version 0.2, not 0.1"),
        (VERSION, |ask| with(ask, b"\0\0\0\0{}".to_vec()), "does not end in a NUL"),
        (VERSION, |ask| with(ask, b"\0\0\0\0{\"capabilities\":7}\0".to_vec()), "its JSON is bad"),
        (VERSION, half_a_payload, "the connection was closed after"),
        (GET_INFO, |ask| with(ask, words(&[16, 3, 9])), "too short"),
        (GET_INFO, |ask| with(ask, words(&[16, 1, 9, 5])), "no PCI device"),
        (GET_INFO, |ask| with(ask, words(&[16, 3, u32::MAX, 5])), "4294967295 regions"),
        (GET_INFO, |ask| with(ask, words(&[16, 3, 65, 5])), "65 regions"),
        (GET_INFO, |ask| with(ask, words(&[16, 3, 9, 65])), "65 kinds of interrupt"),
        (VERSION, |ask| with(ask, capable("\"pgsizes\":1099511627776")), "in pages of 0x10000000000 bytes and more"),
        // A byte more each time.
        (
            GET_REGION_INFO,
            |ask| with(ask, [words(&[word(&ask.payload, 0) + 1, 7, 0, 0]), longs(&[SIZE, 0])].concat()),
            "takes 514 bytes to describe, and took 513 before",
        ),
        (GET_REGION_INFO, |ask| with(ask, areas(&[(0, 0x2000), (0x4000, 0x1000), (0x1000, 0x1000)])), "overlap"),
        (GET_REGION_INFO, |ask| with(ask, areas(&[(0, SIZE), (0, SIZE)])), "overlap"),
        (GET_REGION_INFO, |ask| with(ask, cut(ask, areas_of(257))), "more than 256 of them"),
        (
            GET_REGION_INFO,
            |ask| with(ask, region(0, 0xf, &[&sparse(64, 0, 4096), &sparse(0, 4096, 4096)])),
            "areas twice",
        ),
        (GET_REGION_INFO, |ask| with(ask, words(&[32, 0, 0])), "too short"),
        (GET_REGION_INFO, |ask| with(ask, region(7, 0, &[])), "about another region"),
        (GET_REGION_INFO, |ask| with(ask, [words(&[31, 0, 0, 0]), longs(&[0, 0])].concat()), "31 bytes to describe"),
        (GET_REGION_INFO, |ask| with(ask, [words(&[1 << 20, 0, 0, 0]), longs(&[0, 0])].concat()), "1048576 bytes"),
        (GET_REGION_INFO, |ask| with(ask, [words(&[32, 8, 0, 16]), longs(&[0, 0])].concat()), "at 0x10 does not lie"),
        (GET_REGION_INFO, |ask| with(ask, [words(&[32, 8, 0, 32]), longs(&[0, 0])].concat()), "at 0x20 is cut off"),
        (GET_REGION_INFO, |ask| with(ask, region(0, 0xf, &[&sparse(32, 0, 4096)])), "at 0x20 does not lie behind"),
        (GET_REGION_INFO, |ask| with(ask, region(0, 0xf, &[&sparse(0, SIZE, 1)])), "can be mapped, they say"),
        (GET_REGION_INFO, |ask| with(ask, region(0, 0xf, &[&sparse(0, u64::MAX, 2)])), "can be mapped, they say"),
        (GET_REGION_INFO, |ask| changed(ask, |m| m.fds.clear()), "no file came with it"),
        (GET_REGION_INFO, |ask| changed(ask, |m| m.fds.push(file(1))), "2 file descriptors came"),
        (GET_IRQ_INFO, |ask| with(ask, words(&[16, 1, 9, 0])), "another kind of interrupt"),
        (REGION_READ, |ask| changed(ask, |m| m.payload.truncate(15)), "too short"),
        (REGION_READ, |ask| changed(ask, |m| m.payload[0] ^= 1), "about another access"),
        (REGION_READ, |ask| changed(ask, |m| m.payload[12] += 1), "about another access"),
        (REGION_READ, |ask| changed(ask, |m| m.payload.truncate(20)), "about another access"),
        (REGION_WRITE, |ask| changed(ask, |m| m.payload[8] ^= 1), "about another access"),
    ];
    for (command, lie, expected) in lies {
        let error = caught(*command, *lie, LONG);
        assert!(error.contains(expected), "command {command}, expected {expected:?}: {error}");
    }
}

#[test]
fn a_refusal_is_an_error_and_the_device_goes_on() {
    for (errno, kind) in [(libc::EINVAL, Some(libc::EINVAL)), (0, None), (i32::MIN, None)] {
        for command in [raw::REGION_READ, raw::REGION_WRITE, raw::SET_IRQS, raw::DMA_MAP, raw::RESET] {
            let (device, server) = lying(command, move |ask| {
                let (flags, error) = (REPLY | ERROR, errno as u32);
                changed(ask, |m| *m = Message { flags, error, id: m.id, command: m.command, ..Message::default() })
            });
            let device = device.unwrap();
            for _ in 0..2 {
                let (Error::Access { cause: source, .. } | Error::Io { cause: source, .. }) =
                    provoke(&device, command).unwrap_err()
                else {
                    panic!("command {command}")
                };
                assert_eq!(source.raw_os_error(), kind);
            }
            drop(device);
            server.join().unwrap();
        }
    }
}

/// As libvfio-user's: its error replies have a payload.
#[test]
fn a_refusal_may_have_a_payload_of_any_length() {
    for len in [1, 16, 4096, 1 << 20] {
        for command in [raw::REGION_READ, raw::REGION_WRITE, raw::SET_IRQS, raw::DMA_MAP, raw::RESET] {
            let (device, server) = lying(command, move |ask| {
                changed(ask, |m| (m.flags, m.error, m.payload) = (REPLY | ERROR, libc::EINVAL as u32, vec![7; len]))
            });
            let device = device.unwrap();
            for _ in 0..2 {
                let error = provoke(&device, command).unwrap_err();
                assert!(matches!(error, Error::Access { .. } | Error::Io { .. }), "{error:?}");
                assert!(error.to_string().contains("Invalid argument"), "{error}");
            }
            assert!(device.irq_info(Irq::Msix).is_ok());
            drop(device);
            server.join().unwrap();
        }
    }
    // What may be refused while a device is opened.
    for command in [raw::GET_REGION_INFO, raw::GET_IRQ_INFO] {
        let (device, server) = lying(command, |ask| {
            changed(ask, |m| (m.flags, m.error, m.fds) = (REPLY | ERROR, libc::EINVAL as u32, Vec::new()))
        });
        assert_eq!(device.unwrap().region(0).unwrap().size, if command == raw::GET_IRQ_INFO { SIZE } else { 0 });
        server.join().unwrap();
    }
}

#[test]
fn opening_has_a_limit_of_its_own() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Silent at some point, where each answer could take minutes.
    let server = std::thread::spawn(move || {
        while let Some(ask) = raw::receive(&theirs) {
            if ask.command != raw::GET_IRQ_INFO {
                say(&theirs, Answer::Message(honest(&ask)));
            }
        }
    });
    let options = Options { timeout: 60 * LONG, open_timeout: SHORT };
    let error = VfioUser::from_stream(ours, "vfio-user:test", options).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Peer { .. }), "{error:?}");
    assert!(error.to_string().contains("no reply within the 500ms that opening it may take in all"), "{error}");
    server.join().unwrap();
}

#[test]
fn what_a_driver_asks_while_it_opens_the_device_has_a_limit_too() {
    let options = Options { timeout: 60 * LONG, open_timeout: Duration::from_secs(2) };
    let device = (0..100).find_map(|_| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            while let Some(ask) = raw::receive(&theirs) {
                if (ask.command, word(&ask.payload, 0)) != (raw::REGION_READ, 64) {
                    say(&theirs, Answer::Message(honest(&ask)));
                }
            }
        });
        // On a busy machine it may be late where it is honest.
        Some((VfioUser::from_stream(ours, "vfio-user:test", options).ok()?, server))
    });
    let (device, server) = device.expect("a server that is honest at first, and in time");
    let seam: Arc<dyn PciDevice> = device.clone();
    let opening = Opening::of(seam.clone());
    let error = device.read(CONFIG, 64, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("no reply within the 2s that opening it may take in all"), "{error}");
    drop((opening, seam, device));
    server.join().unwrap();
}
