//! vhost-user: front ends that lie to served models, and back ends that lie to our front end.

use super::{HANG, OPENING, Protocol, serve, use_it, with_a_liar_between};
use fastrand::Rng;
use raw::{Message, NEED_REPLY, REPLY, longs, words};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use wholebar::Work;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{Burst, PortConfig};
use wholebar::sim::virtio::{Virtio, blk, net};
use wholebar::sim::{ModelParams, Target};
use wholebar::vhost_user::{DeviceType, Options, Server, VhostUser};

#[path = "../../../framework/core/tests/vhost_user_client/raw.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod raw;

pub const PROTOCOL: Protocol =
    Protocol { name: "vhost-user", serve: serve_model, lie: lie_to, is_served, while_it_waits: 0, lied_to };

/// The same protocol, at the other end of which is a port: what it receives it sends back.
pub const PORT: Protocol = Protocol { name: "vhost-user-port", serve: serve_port, while_it_waits: 2, ..PROTOCOL };

fn model(name: &str) -> Virtio {
    match Target::parse(name).unwrap().params {
        ModelParams::VirtioBlk(params) => blk::model(params).unwrap(),
        ModelParams::VirtioNet(params) => net::model(params).unwrap().0,
        _ => panic!("{name} is no virtio device"),
    }
}

fn serve_model(name: &str, socket: &Path) {
    let mut server = Server::bind(socket, model(name)).unwrap();
    serve(|| server.poll());
}

fn serve_port(_: &str, socket: &Path) {
    let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
    let port =
        wholebar::net::open_target(&format!("vhost-user:{},back-end,server", socket.display()), &config).unwrap();
    let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default()).unwrap(), 256, 2048, 64).unwrap();
    let mut queues = [0, 1].map(|i| (port.rx_queue(i, &pool).unwrap(), port.tx_queue(i).unwrap(), Burst::new(32)));
    serve(|| {
        let mut work = Work::Idle;
        for (rx, tx, burst) in &mut queues {
            if rx.rx(burst) + tx.tx(burst) > 0 {
                work = Work::Busy;
            }
            // What it has no buffer for is dropped.
            burst.give_back();
        }
        work
    });
    drop(queues);
    assert_eq!(pool.available(), pool.capacity(), "each buffer is home");
}

// Front ends that lie.

const SET_CONFIG: u32 = 25;
/// Header flags: the version of the protocol.
const VERSION: u32 = 1;

/// Memory that was shared: where it is for the device, its size, and its file.
type Region = (u64, u64, OwnedFd);

/// Where the device's addresses are for the front end.
const USER: u64 = 1 << 46;

/// One front end, and what it did so far.
struct Liar {
    rng: Rng,
    stream: UnixStream,
    net: bool,
    /// It lies once in so many times.
    honesty: u32,
    packed: bool,
    /// Queues that the device has.
    queues: u32,
    memory: Vec<Region>,
    /// How often memory was made: each has a place of its own.
    places: u64,
    /// Those that were sent to be waited for.
    kicks: Vec<OwnedFd>,
    /// No answer came: it waits for no further one.
    deaf: bool,
}

impl Liar {
    fn say(&mut self, request: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) -> bool {
        let flags = VERSION | if self.rng.u8(..8) > 0 { NEED_REPLY } else { 0 };
        let said = raw::send(&self.stream, &Message { request, flags, payload, fds, size: None });
        // It does not always look for an answer.
        if self.rng.u8(..8) > 0 && !self.deaf && flags & NEED_REPLY != 0 {
            self.deaf = raw::receive(&self.stream).is_none();
        }
        said
    }

    /// What is to be known to begin with.
    fn ask(&mut self, request: u32) -> u64 {
        let asked = raw::send(&self.stream, &Message { request, flags: VERSION, ..Message::default() });
        let answer = raw::receive(&self.stream).filter(|_| asked);
        self.deaf |= answer.is_none();
        answer.and_then(|answer| answer.payload.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }

    fn lies(&mut self) -> bool {
        self.rng.u32(..self.honesty) == 0
    }

    /// A number that may mean something: an address of the device's that is shared, a small one, an end, or anything.
    fn value(&mut self) -> u64 {
        match self.rng.u8(..8) {
            0..5 if !self.memory.is_empty() => {
                let (at, size, _) = &self.memory[self.rng.usize(..self.memory.len())];
                at.wrapping_add([0, 64, 4096, size / 2, size.wrapping_sub(1), *size][self.rng.usize(..6)])
            }
            0..6 => self.rng.u64(..256),
            6 => u64::MAX - self.rng.u64(..3),
            _ => self.rng.u64(..),
        }
    }

    /// Memory, and what is said of it: where it is for the device, its size, where it is for the front end, and where in its file.
    fn region(&mut self) -> (Region, Vec<u8>) {
        let fd = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
        let sizes = if self.lies() { [0, 4096, 65536, 1 << 40] } else { [1 << 20, 1 << 20, 64 << 20, 1 << 30] };
        let size = sizes[self.rng.usize(..4)];
        ftruncate(&fd, size).unwrap();
        self.places += 1;
        let at = self.places << 32;
        let mut said = [at, size, at | USER, 0];
        if self.lies() {
            said[self.rng.usize(..4)] = self.value();
        }
        ((at, size, fd), longs(&said))
    }

    fn share(&mut self) -> bool {
        if !self.memory.is_empty() && self.memory.len() < 8 || self.lies() {
            let (region, said) = self.region();
            let fd = region.2.try_clone().unwrap();
            self.memory.push(region);
            return self.say(raw::ADD_MEM_REG, [longs(&[0]), said].concat(), vec![fd]);
        }
        let most = if self.lies() { 10 } else { 4 };
        let (new, said): (Vec<_>, Vec<_>) = (0..self.rng.usize(1..most)).map(|_| self.region()).unzip();
        let fds: Vec<_> = new.iter().map(|region| region.2.try_clone().unwrap()).collect();
        let count = if self.lies() { self.rng.u32(..) } else { fds.len() as u32 };
        self.memory = new;
        self.say(raw::SET_MEM_TABLE, [words(&[count, 0]), said.concat()].concat(), fds)
    }

    fn event(&mut self) -> OwnedFd {
        if self.lies() {
            return if self.rng.bool() { self.region().0.2 } else { UnixStream::pair().unwrap().0.into() };
        }
        let kind = if self.rng.bool() { EventfdFlags::NONBLOCK } else { EventfdFlags::empty() };
        let fd = eventfd(0, kind).unwrap();
        if self.rng.u8(..8) == 0 {
            // Full: whoever writes to it waits.
            let _ = rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes());
        }
        fd
    }

    /// Descriptors of one request: address within the memory, length, whether the device writes.
    fn request(&mut self, ring: u32, file: &OwnedFd) -> Vec<(u64, u32, bool)> {
        if self.net {
            return vec![if ring.is_multiple_of(2) { (0x20000, 4096, true) } else { (0x20000, 100, false) }];
        }
        // Read, write, flush, get the identifier, discard, write zeroes.
        let kind = [0, 1, 4, 8, 11, 13][self.rng.usize(..6)];
        let header = [words(&[if self.lies() { self.rng.u32(..) } else { kind }, 0]), longs(&[self.rng.u64(..64)])];
        let _ = rustix::io::pwrite(file, &header.concat(), 0x10000);
        vec![(0x10000, 16, false), (0x20000, 4096, matches!(kind, 0 | 8)), (0x30000, 1, true)]
    }

    /// A ring in memory that is shared, with requests in it that a driver might have put there, but for their numbers.
    fn ring(&mut self) -> bool {
        if self.memory.is_empty() {
            return self.share();
        }
        let place = self.rng.usize(..self.memory.len());
        let (at, file) = (self.memory[place].0, self.memory[place].2.try_clone().unwrap());
        let ring = if self.lies() { self.rng.u32(..) } else { self.rng.u32(..self.queues.max(1)) };
        let size = if self.lies() { self.rng.u32(..) } else { 1 << self.rng.u32(2..9) };
        let (mut descriptors, mut heads) = (Vec::new(), Vec::new());
        while descriptors.len() < size.min(48) as usize {
            let chain = self.request(ring, &file);
            if descriptors.len() + chain.len() > size as usize {
                break;
            }
            heads.extend((descriptors.len() as u16).to_le_bytes());
            for (i, (offset, len, writes)) in chain.iter().enumerate() {
                let address = if self.lies() { self.value() } else { at + offset };
                let len = if self.lies() { [0, 1, 1 << 20, u32::MAX][self.rng.usize(..4)] } else { *len };
                let mut flags = u16::from(i + 1 < chain.len()) | u16::from(*writes) << 1;
                if self.lies() {
                    flags ^= 1 << self.rng.u32(..3);
                }
                let next = if self.lies() { self.rng.u16(..) } else { descriptors.len() as u16 + 1 };
                // Of the first lap, where the ring is packed: available.
                let ends = if self.packed { [next, flags | 1 << 7] } else { [flags, next] };
                descriptors.push([address.to_le_bytes().to_vec(), len.to_le_bytes().to_vec(), {
                    ends.iter().flat_map(|word| word.to_le_bytes()).collect()
                }]);
            }
        }
        let _ = rustix::io::pwrite(&file, &descriptors.concat().concat(), 0);
        let index = if self.lies() { self.rng.u16(..) } else { (heads.len() / 2) as u16 };
        let _ = rustix::io::pwrite(&file, &[&[0; 2][..], &index.to_le_bytes(), &heads].concat(), 0x4000);
        let _ = rustix::io::pwrite(&file, &[0; 4], 0x8000);
        let mut areas = [at | USER, (at + 0x8000) | USER, (at + 0x4000) | USER, 0];
        if self.lies() {
            areas[self.rng.usize(..4)] = self.value();
        }
        let base = match self.lies() {
            true => self.rng.u32(..),
            false => u32::from(self.packed) * 0x8000_8000,
        };
        let (call, kick) = (self.event(), self.event());
        self.kicks.push(kick.try_clone().unwrap());
        self.say(raw::GET_VRING_BASE, words(&[ring, 0]), vec![])
            && self.say(raw::SET_VRING_NUM, words(&[ring, size]), vec![])
            && self.say(raw::SET_VRING_BASE, words(&[ring, base]), vec![])
            && self.say(raw::SET_VRING_ADDR, [words(&[ring, 0]), longs(&areas)].concat(), vec![])
            && self.say(raw::SET_VRING_CALL, longs(&[ring.into()]), vec![call])
            && self.say(raw::SET_VRING_KICK, longs(&[ring.into()]), vec![kick])
            && self.say(raw::SET_VRING_ENABLE, words(&[ring, 1]), vec![])
            && self.kick()
    }

    fn kick(&mut self) -> bool {
        if let Some(kick) = self.kicks.last() {
            let mut ready = [rustix::event::PollFd::new(kick, rustix::event::PollFlags::OUT)];
            // Where it is full, it is readable anyway.
            if rustix::event::poll(&mut ready, Some(&Default::default())) == Ok(1) {
                let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
            }
        }
        true
    }

    fn act(&mut self) -> bool {
        if self.lies() {
            return self.misbehave();
        }
        let ring = self.rng.u32(..self.queues.max(1));
        match self.rng.u8(..16) {
            0..5 => self.ring(),
            5..7 => self.share(),
            7..10 => self.kick(),
            10 => self.say(raw::GET_VRING_BASE, words(&[ring, 0]), vec![]),
            11 => {
                let on = self.rng.u32(..2);
                self.say(raw::SET_VRING_ENABLE, words(&[ring, on]), vec![])
            }
            12 => match self.rng.bool() {
                true => self.say(raw::RESET_DEVICE, vec![], vec![]),
                false => self.say(raw::GET_CONFIG, [words(&[0, 8, 0]), vec![0; 8]].concat(), vec![]),
            },
            13 if !self.net => {
                let (queues, entries) = (self.rng.u32(1..=self.queues.max(1)), self.rng.u32(1..257));
                self.say(raw::GET_INFLIGHT_FD, [longs(&[0, 0]), words(&[queues | entries << 16, 0])].concat(), vec![])
            }
            14 => {
                let fd = if self.lies() { self.event() } else { UnixStream::pair().unwrap().0.into() };
                self.say(raw::SET_BACKEND_REQ_FD, vec![], vec![fd])
            }
            _ => {
                let features = self.features();
                self.say(raw::SET_FEATURES, longs(&[features]), vec![])
            }
        }
    }

    /// A ring as large as can be, each entry of which is a chain of all descriptors behind it, which hold next to nothing.
    fn crowded(&mut self, ring: u32) -> bool {
        let Some((at, _, file)) = self.memory.iter().find(|(_, size, _)| *size >= 1 << 20) else { return self.share() };
        let (at, file) = (*at, file.try_clone().unwrap());
        let (size, writes) = ([1u32 << 15, 1 << 8][self.rng.usize(..2)], ring.is_multiple_of(2));
        let len = self.rng.u32(..2);
        let descriptors: Vec<u8> = (0..size)
            .flat_map(|i| {
                let len = if i == 0 { 16 } else { len };
                let flags = u32::from(i + 1 < size) | u32::from(writes) << 1;
                let ends = if self.packed { i | (flags | 1 << 7) << 16 } else { flags | (i + 1) << 16 };
                [longs(&[at + 0xf_0000]), words(&[len, ends])].concat()
            })
            .collect();
        let heads: Vec<u8> = (0..size).flat_map(|i| (i as u16).to_le_bytes()).collect();
        let available = [&[0; 2][..], &(size as u16).to_le_bytes(), &heads].concat();
        for (bytes, place) in [(&descriptors, 0), (&available, 0x8_0000), (&vec![0; 4], 0xa_0000)] {
            let _ = rustix::io::pwrite(&file, bytes, place);
        }
        let areas = [at, at + 0xa_0000, at + 0x8_0000].map(|area| area | USER);
        let (call, kick) = (self.event(), self.event());
        self.kicks.push(kick.try_clone().unwrap());
        self.say(raw::GET_VRING_BASE, words(&[ring, 0]), vec![])
            && self.say(raw::SET_VRING_NUM, words(&[ring, size]), vec![])
            && self.say(raw::SET_VRING_BASE, words(&[ring, u32::from(self.packed) * 0x8000_8000]), vec![])
            && self.say(raw::SET_VRING_ADDR, [words(&[ring, 0]), longs(&areas), longs(&[0])].concat(), vec![])
            && self.say(raw::SET_VRING_CALL, longs(&[ring.into()]), vec![call])
            && self.say(raw::SET_VRING_KICK, longs(&[ring.into()]), vec![kick])
            && self.say(raw::SET_VRING_ENABLE, words(&[ring, 1]), vec![])
            && self.kick()
    }

    /// What no driver does.
    fn misbehave(&mut self) -> bool {
        let ring = self.rng.u32(..5);
        match self.rng.u8(..14) {
            12 | 13 => self.crowded(ring),
            // Memory is taken away under whoever works with it, or grows.
            0..3 => {
                if !self.memory.is_empty() {
                    let at = self.rng.usize(..self.memory.len());
                    let _ = ftruncate(&self.memory[at].2, [0, 4096, 1 << 20, 1 << 31][self.rng.usize(..4)]);
                }
                true
            }
            3 if !self.memory.is_empty() => {
                let at = self.rng.usize(..self.memory.len());
                let (at, size, _) = self.memory.swap_remove(at);
                self.say(raw::REM_MEM_REG, longs(&[0, at, size, at | USER, 0]), vec![])
            }
            4 => self.say(raw::SET_VRING_ENABLE, words(&[ring, 2]), vec![]),
            5 => {
                let (offset, size) = (self.rng.u32(..300), [0, 1, 4, 256, u32::MAX][self.rng.usize(..5)]);
                let bytes = vec![7; size.min(256) as usize];
                let request = if self.rng.bool() { raw::GET_CONFIG } else { SET_CONFIG };
                self.say(request, [words(&[offset, size, 0]), bytes].concat(), vec![])
            }
            6 => {
                let (size, offset, numbers) = (self.value(), self.value(), self.rng.u32(..));
                let fd = self.region().0.2;
                self.say(raw::SET_INFLIGHT_FD, [longs(&[size, offset]), words(&[numbers, 0])].concat(), vec![fd])
            }
            7 => {
                let features = self.features() ^ 1 << self.rng.u32(..64);
                self.say(raw::SET_FEATURES, longs(&[features]), vec![])
            }
            // Many at once, of which no answer is taken.
            8 => (0..self.rng.u32(..400)).all(|_| {
                raw::send(&self.stream, &Message { request: raw::GET_FEATURES, flags: VERSION, ..Message::default() })
            }),
            9 => {
                let fds = (0..self.rng.usize(..200)).map(|_| eventfd(0, EventfdFlags::empty()).unwrap()).collect();
                self.say(raw::SET_OWNER, vec![], fds)
            }
            10 => {
                let bytes: Vec<u8> = (0..self.rng.usize(..200)).map(|_| self.rng.u8(..)).collect();
                std::io::Write::write_all(&mut &self.stream, &bytes).is_ok()
            }
            _ => {
                let (request, flags) = (self.rng.u32(..46), self.rng.u32(..64));
                let payload = vec![self.rng.u8(..); self.rng.usize(..80)];
                let size = self.rng.bool().then(|| [0, 1, 4096, u32::MAX][self.rng.usize(..4)]);
                let fds = (0..self.rng.usize(..3)).map(|_| self.event()).collect();
                raw::send(&self.stream, &Message { request, flags, payload, fds, size })
            }
        }
    }

    /// VERSION_1, the protocol's features, and the layout of its rings.
    fn features(&self) -> u64 {
        1 << 32 | 1 << 30 | u64::from(self.packed) << 34
    }
}

fn is_served(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    assert!(raw::send(&stream, &Message { request: raw::GET_FEATURES, flags: VERSION, ..Message::default() }));
    let reply = raw::receive(&stream).expect("the back end does not answer");
    assert_eq!((reply.request, reply.flags, reply.payload.len()), (raw::GET_FEATURES, REPLY, 8));
    stream
}

fn lie_to(kind: &str, socket: &Path, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let stream = UnixStream::connect(socket).unwrap();
    // It never waits long itself, for what may not come.
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let (actions, honesty, packed) = (rng.usize(1..60), 4 << rng.u32(..6), rng.bool());
    let mut liar = Liar {
        rng,
        stream,
        net: kind.contains("net"),
        honesty,
        packed,
        queues: 0,
        memory: Vec::new(),
        places: 0,
        kicks: Vec::new(),
        deaf: false,
    };
    if !liar.lies() {
        // Pairs of queues, answers to all, requests of the back end's, configuration, what is in flight, single regions.
        let wanted = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 15;
        let offered = liar.ask(raw::GET_PROTOCOL_FEATURES);
        let payload = longs(&[offered & wanted]);
        let agreed = Message { request: raw::SET_PROTOCOL_FEATURES, flags: VERSION, payload, ..Message::default() };
        raw::send(&liar.stream, &agreed);
        liar.queues = liar.ask(raw::GET_QUEUE_NUM) as u32 * if liar.net { 2 } else { 1 };
        liar.packed &= liar.ask(raw::GET_FEATURES) >> 34 & 1 != 0;
        let features = liar.features();
        liar.say(raw::SET_FEATURES, longs(&[features]), vec![]);
    }
    let _ = (0..actions).all(|_| liar.act());
}

// Back ends that lie.

/// Changes a message, at times; false where the connection is to end.
fn change(rng: &mut Rng, to: &UnixStream, mut message: Message) -> bool {
    let mut times = 1;
    match rng.u8(..64) {
        0 => {
            if let Some(at) = message.payload.len().checked_sub(1).map(|last| rng.usize(..=last)) {
                message.payload[at] ^= 1 << rng.u8(..8);
            }
        }
        1 => message.payload.truncate(rng.usize(..=message.payload.len())),
        2 => message.payload.resize(message.payload.len() + rng.usize(..5000), 0xa5),
        3 => message.request = rng.u32(..46),
        4 => message.flags = rng.u32(..64),
        // An acknowledgement: it did not work.
        5 => message.payload = longs(&[rng.u64(..3)]),
        6 => times = 2,
        7 => times = 0,
        8 => message.size = Some(rng.u32(..)),
        9 => message.size = Some(rng.u32(..64)),
        10 => (0..rng.usize(..30)).for_each(|_| message.fds.push(memfd_create("liar", MemfdFlags::CLOEXEC).unwrap())),
        11 => message.fds.clear(),
        12 => {
            let ask = Message {
                request: rng.u32(..46),
                flags: rng.u32(..16),
                payload: longs(&[0, 64]),
                ..Message::default()
            };
            if !raw::send(to, &ask) {
                return false;
            }
        }
        13 => (0..message.payload.len().min(64)).for_each(|i| message.payload[i] = rng.u8(..)),
        14 => return false,
        _ => {}
    }
    (0..times).all(|_| raw::send(to, &message))
}

fn lied_to(kind: &str, seed: u64) -> [Duration; 2] {
    let serve = |stream| Server::from_stream(stream, model(kind)).unwrap().run(&AtomicBool::new(false)).unwrap();
    with_a_liar_between(seed, serve, (raw::receive, raw::send), change, |stream| {
        let began = Instant::now();
        let device_type = Some(if kind.contains("net") { DeviceType::Net } else { DeviceType::Blk });
        let timeout = Duration::from_millis(300);
        let options =
            Options { device_type, timeout, open_timeout: OPENING, reconnect: Duration::ZERO, ..Options::default() };
        let device = VhostUser::from_stream(stream, "vhost-user:liar", options);
        let opened = began.elapsed();
        if let Ok(device) = device {
            let _ = use_it(kind, device);
        }
        [opened, began.elapsed()]
    })
}
