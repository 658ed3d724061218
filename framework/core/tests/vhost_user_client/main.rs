//! The front end against back ends of a script: what a driver's register writes become, and what becomes of back ends that lie, are silent or die.

mod control;
mod lies;
mod lost;
#[allow(dead_code, reason = "the numbers are the protocol's")]
mod raw;

use raw::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Arena, ArenaOptions};
use wholebar_core::pci::{BAR0, CONFIG, DeviceKind, Irq, IrqAction, PciDevice, Prot};
use wholebar_core::vhost_user::{DeviceType, Options, VhostUser};
use wholebar_core::{Error, Result};

/// Only to end a hang.
const LONG: Duration = Duration::from_secs(60);

const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;
const MRG_RXBUF: u64 = 1 << 15;
const NET_MQ: u64 = 1 << 22;
const CTRL_VQ: u64 = 1 << 17;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const NET: u64 = VERSION_1 | PACKED | MRG_RXBUF | PROTOCOL_FEATURES;
/// MQ and REPLY_ACK.
const MQ_ACK: u64 = 1 | 1 << 3;
/// BACKEND_REQ, CONFIG, RESET_DEVICE and CONFIGURE_MEM_SLOTS.
const DISK: u64 = 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15;
/// REPLY_ACK.
const ACK: u64 = 1 << 3;
/// INFLIGHT_SHMFD.
const INFLIGHT: u64 = 1 << 12;
/// SEG_MAX, BLK_SIZE and FLUSH.
const BLK: u64 = VERSION_1 | PROTOCOL_FEATURES | 1 << 2 | 1 << 6 | 1 << 9;

/// What a back end is, and what it does instead of answering honestly.
#[derive(Clone)]
struct Script {
    features: u64,
    protocol: u64,
    queues: u64,
    lie: fn(&Message) -> Option<Answer>,
}

enum Answer {
    Message(Message),
    Nothing,
    /// It closes the connection.
    Close,
}

const HONEST: fn(&Message) -> Option<Answer> = |_| None;

/// A network back end of two pairs.
fn net() -> Script {
    Script { features: NET, protocol: MQ_ACK, queues: 2, lie: HONEST }
}

fn disk() -> Script {
    Script { features: BLK, protocol: DISK, queues: 1, lie: HONEST }
}

impl Script {
    fn answer(&self, ask: &Message) -> Option<Message> {
        let payload = match ask.request {
            GET_FEATURES => longs(&[self.features]),
            GET_PROTOCOL_FEATURES => longs(&[self.protocol]),
            GET_QUEUE_NUM => longs(&[self.queues]),
            GET_MAX_MEM_SLOTS => longs(&[32]),
            GET_VRING_BASE => words(&[ask.word(0), 0]),
            GET_CONFIG => {
                let mut payload = ask.payload.clone();
                // The capacity: 8 sectors.
                payload[12] = 8;
                payload
            }
            _ if ask.flags & NEED_REPLY != 0 => longs(&[0]),
            _ => return None,
        };
        Some(Message::reply(ask.request, payload))
    }

    /// Serves one connection; returns what came.
    fn serve(&self, stream: &UnixStream, seen: &Mutex<Vec<Message>>) {
        while let Some(ask) = receive(stream) {
            let answer = match (self.lie)(&ask) {
                None => self.answer(&ask),
                Some(Answer::Message(message)) => Some(message),
                Some(Answer::Nothing) => None,
                Some(Answer::Close) => {
                    seen.lock().unwrap().push(ask);
                    return;
                }
            };
            // Before it is answered: who has the answer finds the message here.
            seen.lock().unwrap().push(ask);
            if answer.is_some_and(|answer| !send(stream, &answer)) {
                return;
            }
        }
    }
}

/// A back end on a thread, and what it was told.
struct BackEnd {
    seen: Arc<Mutex<Vec<Message>>>,
    /// Its end of the connection: shut down, the back end is dead.
    stream: UnixStream,
    _thread: JoinHandle<()>,
}

impl BackEnd {
    fn new(script: Script) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Self::on(theirs, script), ours)
    }

    fn on(stream: UnixStream, script: Script) -> Self {
        let seen = Arc::<Mutex<Vec<Message>>>::default();
        let (own, log) = (stream.try_clone().unwrap(), seen.clone());
        let thread = std::thread::spawn(move || {
            script.serve(&own, &log);
            let _ = own.shutdown(std::net::Shutdown::Both);
        });
        Self { seen, stream, _thread: thread }
    }

    /// What it was told since it was asked last.
    fn told(&self) -> Vec<Message> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// The same, once a message of this kind is the last: without acknowledgements it may be under way still.
    fn told_until(&self, last: u32) -> Vec<Message> {
        let began = std::time::Instant::now();
        while self.seen.lock().unwrap().last().is_none_or(|message| message.request != last) {
            assert!(began.elapsed() < LONG, "no message {last} came");
            std::thread::yield_now();
        }
        self.told()
    }

    fn die(&self) {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn options() -> Options {
    Options { timeout: LONG, open_timeout: LONG, reconnect: LONG, mac: Some([2, 0, 0, 0, 0, 1]), ..Options::default() }
}

fn open(script: Script) -> (BackEnd, Arc<VhostUser>) {
    let (back_end, stream) = BackEnd::new(script);
    let device = VhostUser::from_stream(stream, "test", options()).unwrap();
    (back_end, device)
}

fn failure(script: Script, options: Options) -> String {
    let (_back_end, stream) = BackEnd::new(script);
    VhostUser::from_stream(stream, "test", options).err().expect("it was opened").to_string()
}

/// Registers of the common configuration.
trait Registers {
    fn get<const N: usize>(&self, at: u64) -> Result<u64>;
    fn set<const N: usize>(&self, at: u64, value: u64) -> Result<()>;
}

impl Registers for VhostUser {
    fn get<const N: usize>(&self, at: u64) -> Result<u64> {
        let mut value = [0; 8];
        self.read(BAR0, at, &mut value[..N])?;
        Ok(u64::from_le_bytes(value))
    }

    fn set<const N: usize>(&self, at: u64, value: u64) -> Result<()> {
        self.write(BAR0, at, &value.to_le_bytes()[..N])
    }
}

const STATUS: u64 = 0x14;

fn offered(device: &VhostUser) -> u64 {
    let half = |select: u64| {
        device.set::<4>(0, select).unwrap();
        device.get::<4>(4).unwrap()
    };
    half(0) | half(1) << 32
}

/// From reset to DRIVER_OK, with these queues at these addresses and their vectors.
fn start(device: &VhostUser, features: u64, queues: &[(u64, u64, u64)]) -> Result<()> {
    device.write(CONFIG, 4, &[6, 0])?;
    device.set::<1>(STATUS, 0)?;
    device.set::<1>(STATUS, 3)?;
    for half in 0..2 {
        device.set::<4>(0x08, half)?;
        device.set::<4>(0x0c, features >> (32 * half) & 0xffff_ffff)?;
    }
    device.set::<1>(STATUS, 11)?;
    assert_eq!(device.get::<1>(STATUS)?, 11);
    device.set::<2>(0x10, 0)?;
    for (index, address, vector) in queues {
        device.set::<2>(0x16, *index)?;
        device.set::<2>(0x18, 64)?;
        for (register, offset) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] {
            device.set::<4>(register, (address + offset) & 0xffff_ffff)?;
            device.set::<4>(register + 4, (address + offset) >> 32)?;
        }
        device.set::<2>(0x1a, *vector)?;
        device.set::<2>(0x1c, 1)?;
    }
    device.set::<1>(STATUS, 15)
}

fn arena() -> Arc<Arena> {
    Arena::new(64 << 10, ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() }).unwrap()
}

fn file() -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 4096).unwrap();
    fd
}

fn requests(messages: &[Message]) -> Vec<u32> {
    messages.iter().map(|message| message.request).collect()
}

#[test]
fn a_driver_s_writes_become_messages_in_their_order() {
    let (back_end, device) = open(net());
    assert_eq!((device.kind(), device.device_type()), (DeviceKind::VhostUser, DeviceType::Net));
    let begin = back_end.told();
    assert_eq!(
        requests(&begin),
        [SET_OWNER, GET_FEATURES, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM]
    );
    assert_eq!(
        (begin[3].long(0), begin[3].flags & NEED_REPLY),
        (MQ_ACK, 0),
        "there is no acknowledgement before it is agreed on"
    );
    // MAC, STATUS, CTRL_VQ and MQ are the front end's own.
    assert_eq!(offered(&device), VERSION_1 | PACKED | MRG_RXBUF | 1 << 5 | 1 << 16 | CTRL_VQ | NET_MQ);
    assert_eq!(device.get::<2>(0x12).unwrap(), 5);
    let mut config = [0; 10];
    device.read(BAR0, 0x2000, &mut config).unwrap();
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 2, 0]);

    let call = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 1, IrqAction::Fds(&[Some(call.as_fd())])).unwrap();
    let arena = arena();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    let iova = mapping.iova().0;
    assert!(back_end.told().is_empty(), "what no queue needs yet is sent with the first");
    start(&device, VERSION_1 | MRG_RXBUF | 1 << 5, &[(0, iova, 1), (1, iova + 0x4000, 0xffff)]).unwrap();
    let told = back_end.told();
    let queue = [
        SET_VRING_NUM,
        SET_VRING_BASE,
        SET_VRING_ADDR,
        SET_VRING_CALL,
        SET_VRING_ERR,
        SET_VRING_KICK,
        SET_VRING_ENABLE,
    ];
    assert_eq!(requests(&told), [&[SET_FEATURES, SET_MEM_TABLE][..], &queue, &queue].concat());
    // The MAC is not the back end's.
    assert_eq!(told[0].long(0), VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES);
    assert_eq!((told[1].word(0), told[1].fds.len()), (1, 1));
    assert_eq!([1, 2, 3, 4].map(|index| told[1].long(index)), [iova, arena.len(), iova, 0]);
    assert_eq!(told[2].payload, words(&[0, 64]));
    assert_eq!(told[3].payload, words(&[0, 0]));
    assert_eq!(told[4].payload, [words(&[0, 0]), longs(&[iova, iova + 0x2000, iova + 0x1000, 0])].concat());
    assert_eq!((told[5].long(0), told[5].fds.len()), (0, 1));
    assert_eq!((told[12].long(0), told[12].fds.len()), (1, 1), "a queue without a vector has something to signal, too");
    assert_eq!((told[14].long(0), told[14].fds.len()), (1, 1));
    assert_eq!(told[15].payload, words(&[1, 1]));
    assert!(told.iter().all(|message| message.flags == 1 | NEED_REPLY));

    // The memory is the arena's, the call the driver's eventfd, the kick the notification.
    let chunk = arena.alloc(64, 64).unwrap();
    chunk.write(0, b"a descriptor").unwrap();
    let mut bytes = [0; 12];
    rustix::io::pread(&told[1].fds[0], &mut bytes, chunk.offset()).unwrap();
    assert_eq!(&bytes, b"a descriptor");
    rustix::io::write(&told[5].fds[0], &1u64.to_ne_bytes()).unwrap();
    assert_eq!(call.wait(Some(LONG)).unwrap(), Some(1));
    device.write(2, 4, &1u16.to_le_bytes()).unwrap();
    let mut count = [0; 8];
    rustix::io::read(&told[14].fds[0], &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    // A descriptor that a back end made blocking, and filled, does not block a notification.
    rustix::fs::fcntl_setfl(&told[14].fds[0], rustix::fs::OFlags::empty()).unwrap();
    rustix::io::write(&told[14].fds[0], &(u64::MAX - 1).to_ne_bytes()).unwrap();
    device.write(2, 4, &1u16.to_le_bytes()).unwrap();

    // A vector that changes while the queue runs; memory that comes and goes.
    device.set_irqs(Irq::Msix, 1, IrqAction::Fds(&[None])).unwrap();
    let more = device.dma().attach(self::arena()).unwrap();
    let told = back_end.told();
    assert_eq!(requests(&told), [SET_VRING_CALL, SET_MEM_TABLE]);
    assert_eq!((told[0].fds.len(), told[1].word(0), told[1].fds.len()), (1, 2, 2));
    drop(more);
    device.set::<1>(STATUS, 0).unwrap();
    let told = back_end.told();
    assert_eq!(requests(&told), [SET_MEM_TABLE, GET_VRING_BASE, GET_VRING_BASE]);
    assert_eq!((told[0].word(0), told[2].payload.clone()), (1, words(&[1, 0])));
    drop(mapping);
    assert_eq!(back_end.told()[0].word(0), 0);
    assert_eq!(device.get::<1>(STATUS).unwrap(), 0);
}

#[test]
fn a_disk_has_its_configuration_slots_and_changes() {
    let (back_end, device) = open(disk());
    let begin = back_end.told();
    assert_eq!(requests(&begin)[4..], [GET_MAX_MEM_SLOTS, SET_BACKEND_REQ_FD, GET_CONFIG]);
    assert_eq!((device.device_type(), device.dma().maps_left()), (DeviceType::Blk, Some(32)));
    assert_eq!(device.get::<4>(0x2000).unwrap(), 8);
    let arena = arena();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    start(&device, VERSION_1, &[(0, mapping.iova().0, 0xffff)]).unwrap();
    let told = back_end.told_until(SET_VRING_ENABLE);
    assert_eq!(requests(&told)[..4], [SET_FEATURES, ADD_MEM_REG, GET_FEATURES, SET_VRING_NUM]);

    let changed = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&[Some(changed.as_fd())])).unwrap();
    // CONFIG_CHANGE_MSG, on the connection of its own; what it says then is the same, so nothing changes.
    let own = UnixStream::from(begin[5].fds[0].try_clone().unwrap());
    let change = Message { request: 2, flags: 1 | NEED_REPLY, ..Message::default() };
    assert!(send(&own, &change));
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15);
    let answer = receive(&own).unwrap();
    assert_eq!((answer.request, answer.flags, answer.long(0)), (2, REPLY, 0));
    assert_eq!(requests(&back_end.told()), [GET_CONFIG]);
    assert_eq!((changed.take(), device.get::<1>(0x15).unwrap()), (0, 0));
    // What is not known is answered so.
    assert!(send(
        &own,
        &Message { request: 3, flags: 1 | NEED_REPLY, payload: longs(&[0, 0, 0]), ..Message::default() }
    ));
    device.get::<1>(STATUS).unwrap();
    assert_eq!(receive(&own).unwrap().long(0), 1);
    drop(mapping);
    assert_eq!(requests(&back_end.told()), [REM_MEM_REG, GET_FEATURES]);
    device.reset().unwrap();
    assert_eq!(requests(&back_end.told()), [GET_VRING_BASE, RESET_DEVICE, GET_FEATURES]);
}

#[test]
fn a_changed_configuration_and_a_failed_queue_are_told() {
    static CAPACITY: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(8);
    let lie: fn(&Message) -> Option<Answer> = |ask| {
        (ask.request == GET_CONFIG).then(|| {
            let mut payload = ask.payload.clone();
            payload[12] = CAPACITY.load(std::sync::atomic::Ordering::SeqCst);
            Answer::Message(Message::reply(GET_CONFIG, payload))
        })
    };
    let (back_end, device) = open(Script { lie, ..disk() });
    let begin = back_end.told();
    let changed = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&[Some(changed.as_fd())])).unwrap();
    start(&device, VERSION_1, &[(0, 0x20_0000, 0xffff)]).unwrap();
    let told = back_end.told_until(SET_VRING_ENABLE);
    CAPACITY.store(16, std::sync::atomic::Ordering::SeqCst);
    let own = UnixStream::from(begin[5].fds[0].try_clone().unwrap());
    assert!(send(&own, &Message { request: 2, flags: 1, ..Message::default() }));
    assert_eq!(changed.wait(Some(LONG)).unwrap(), Some(1), "whoever is interrupted asks");
    device.get::<1>(STATUS).unwrap();
    assert!(changed.take() > 0);
    assert_eq!((device.get::<1>(0x15).unwrap(), device.get::<1>(0x1000).unwrap()), (1, 2));
    assert_eq!(device.get::<4>(0x2000).unwrap(), 16);
    let failure = told.iter().find(|message| message.request == SET_VRING_ERR).unwrap();
    rustix::io::write(&failure.fds[0], &1u64.to_ne_bytes()).unwrap();
    assert_eq!(device.get::<1>(STATUS).unwrap(), 15 | 64);
}

#[test]
fn what_is_no_register_is_refused() {
    let (_back_end, device) = open(net());
    for (at, len) in [(0x14, 4), (0x3c, 4), (0x00, 2)] {
        assert!(matches!(device.read(BAR0, at, &mut vec![0; len]), Err(Error::Access { .. })), "{at:#x}");
    }
    assert!(matches!(device.read(BAR0, u64::MAX, &mut [0; 4]), Err(Error::OutOfRange { .. })));
    assert!(matches!(device.write(CONFIG, 4094, &[0; 4]), Err(Error::OutOfRange { .. })));
    assert!(matches!(device.region(9), Err(Error::NoSuchRegion { .. })));
    assert!(matches!(device.map(2, 0..4096, Prot::ReadWrite), Err(Error::NotMappable { .. })));
    assert!(matches!(device.set_irqs(Irq::Msix, 6, IrqAction::Trigger(1)), Err(Error::NoSuchIrq { .. })));
    assert_eq!((device.irq_info(Irq::Msix).unwrap().count, device.irq_info(Irq::Intx).unwrap().count), (6, 0));
    // Notifications of queues that there aren't go nowhere.
    device.write(2, 4092, &[0, 0]).unwrap();
    let anonymous = Arena::adopt(wholebar_core::mem::Frame::zeroed(1)).unwrap();
    let error = device.dma().attach(anonymous).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("this memory has no file")));
}
