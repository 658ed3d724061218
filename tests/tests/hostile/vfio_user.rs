//! vfio-user: clients that lie to served models, and servers that lie to our client.

use super::{HANG, OPENING, Protocol, serve, use_it, with_a_liar_between};
use fastrand::Rng;
use raw::{ERROR, Message, NO_REPLY, REPLY, longs, words};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use wholebar::model::Model;
use wholebar::pci::CONFIG;
use wholebar::sim::fpga::Fpga;
use wholebar::sim::virtio::{blk, net};
use wholebar::sim::{ModelParams, Target, nvme};
use wholebar::vfio_user::{Options, Server, VfioUser};

#[path = "../../../framework/core/tests/vfio_user/raw.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod raw;

pub const PROTOCOL: Protocol = Protocol {
    name: "vfio-user",
    serve: |model, socket| with_model(model, Serve(socket)),
    lie: lie_to,
    is_served,
    while_it_waits: 0,
    lied_to,
};

/// Does something with the model of this name.
trait WithModel {
    type Out;
    fn with<M: Model + 'static>(self, model: M) -> Self::Out;
}

fn with_model<W: WithModel>(name: &str, work: W) -> W::Out {
    match Target::parse(name).unwrap().params {
        ModelParams::Nvme(params) => work.with(nvme::Nvme::new(params).unwrap()),
        ModelParams::Fpga => work.with(Fpga::new().unwrap()),
        ModelParams::VirtioBlk(params) => work.with(blk::model(params).unwrap()),
        ModelParams::VirtioNet(params) => work.with(net::model(params).unwrap().0),
    }
}

/// Serves on a socket.
struct Serve<'a>(&'a Path);

impl WithModel for Serve<'_> {
    type Out = ();

    fn with<M: Model + 'static>(self, model: M) {
        let mut server = Server::bind(self.0, model).unwrap();
        serve(|| server.poll());
    }
}

/// One client, and what it did so far.
struct Liar {
    rng: Rng,
    stream: UnixStream,
    /// Files that were mapped, by address: their size.
    memory: Vec<(u64, u64, OwnedFd)>,
    eventfds: Vec<OwnedFd>,
    /// No answer came: it waits for no further one.
    deaf: bool,
}

impl Liar {
    fn say(&self, message: &Message) -> bool {
        raw::send(&self.stream, &message.bytes(), &message.fds)
    }

    /// An answer, if one comes. It does not always look.
    fn hear(&mut self) {
        if self.rng.u8(..8) > 0 && !self.deaf {
            self.deaf = raw::receive(&self.stream).is_none();
        }
    }

    fn file(&mut self) -> (u64, OwnedFd) {
        let fd = memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap();
        let size = [0, 1, 4096, 65536, 1 << 20, 64 << 20, 1 << 30, 1 << 40][self.rng.usize(..8)];
        ftruncate(&fd, size).unwrap();
        (size, fd)
    }

    /// A number that may mean something: an address that is mapped, a small one, an end, or anything.
    fn value(&mut self) -> u64 {
        match self.rng.u8(..8) {
            0..4 if !self.memory.is_empty() => {
                let (iova, size, _) = &self.memory[self.rng.usize(..self.memory.len())];
                iova.wrapping_add([0, 64, 4096, size / 2, size.wrapping_sub(1), *size][self.rng.usize(..6)])
            }
            0..5 => self.rng.u64(..256),
            5 => 1 << self.rng.u8(..64),
            6 => u64::MAX - self.rng.u64(..3),
            _ => self.rng.u64(..),
        }
    }

    fn write(&mut self, region: u32, offset: u64, bytes: u32, value: u64) -> bool {
        let data = value.to_le_bytes();
        let payload = [longs(&[offset]), words(&[region, bytes]), data[..bytes.min(8) as usize].to_vec()].concat();
        let flags = if self.rng.bool() { NO_REPLY } else { 0 };
        let said = self.say(&Message { flags, ..Message::command(raw::REGION_WRITE, payload) });
        if flags == 0 {
            self.hear();
        }
        said
    }

    fn map(&mut self) -> bool {
        let (size, fd) = self.file();
        let len = if self.rng.u8(..8) == 0 { self.value() } else { size };
        let iova = self.rng.u64(..64) << 32;
        let offset = if self.rng.u8(..8) == 0 { self.value() } else { 0 };
        let flags = if self.rng.u8(..8) == 0 { self.rng.u32(..) } else { self.rng.u32(1..4) };
        let mut map = Message::command(raw::DMA_MAP, [words(&[32, flags]), longs(&[offset, iova, len])].concat());
        if self.rng.u8(..16) > 0 {
            map = map.with(&fd);
        }
        let said = self.say(&map);
        self.hear();
        // What a queue would have in it: addresses, lengths, small numbers.
        for place in 0..64 {
            let word = self.value();
            if size >= 1 << 16 {
                let _ = rustix::io::pwrite(&fd, &word.to_le_bytes(), place * 8 + 4096 * self.rng.u64(..8));
            }
        }
        self.memory.push((iova, size, fd));
        said
    }

    fn irqs(&mut self) -> bool {
        let count = self.rng.u32(..5);
        let mut set = [20, 4 | 1 << 5, self.rng.u32(..6), self.rng.u32(..3), count];
        if self.rng.u8(..4) == 0 {
            set[self.rng.usize(1..5)] = self.rng.u32(..);
        }
        let mut message = Message::command(raw::SET_IRQS, words(&set));
        for _ in 0..count {
            let kind = if self.rng.bool() { EventfdFlags::NONBLOCK } else { EventfdFlags::empty() };
            let fd = match self.rng.u8(..8) {
                0 => self.file().1,
                1 => UnixStream::pair().unwrap().0.into(),
                _ => eventfd(0, kind).unwrap(),
            };
            if self.rng.u8(..4) == 0 && kind.is_empty() {
                // Full: whoever writes to it waits. (To a file, the same eight bytes are nothing special.)
                let _ = rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes());
            }
            message = message.with(&fd);
            self.eventfds.push(fd);
        }
        let said = self.say(&message);
        self.hear();
        said
    }

    /// Brings a device up as its driver would, on memory of this client's, and rings.
    fn drive(&mut self, kind: &str) -> bool {
        if self.memory.is_empty() {
            return self.map();
        }
        let steps: Vec<(u32, u64, u32, u64)> = if kind.contains("nvme") {
            let [asq, acq] = [self.value(), self.value()];
            let mut steps =
                vec![(0, 0x24, 4, 0x003f_003f), (0, 0x28, 8, asq), (0, 0x30, 8, acq), (0, 0x14, 4, 0x0046_0001)];
            (0..8).for_each(|_| steps.push((0, 0x1000 + 4 * self.rng.u64(..8), 4, self.rng.u64(..64))));
            steps
        } else if kind.contains("virtio") {
            let mut steps = vec![(0, 0x14, 1, 0), (0, 0x14, 1, 1), (0, 0x14, 1, 3)];
            for half in 0..2 {
                steps.extend([
                    (0, 0x08, 4, half),
                    (0, 0x0c, 4, if self.rng.bool() { self.rng.u64(..) & 0xffff_ffff } else { half }),
                ]);
            }
            steps.push((0, 0x14, 1, 11));
            for queue in 0..3 {
                let [desc, driver, device] = [self.value(), self.value(), self.value()];
                let size = 1 << self.rng.u64(..9);
                steps.extend([(0, 0x16, 2, queue), (0, 0x18, 2, size), (0, 0x20, 8, desc), (0, 0x28, 8, driver)]);
                steps.extend([(0, 0x30, 8, device), (0, 0x1c, 2, 1)]);
            }
            steps.push((0, 0x14, 1, 15));
            (0..8).for_each(|_| steps.push((2, 4 * self.rng.u64(..8), 2, self.rng.u64(..4))));
            steps
        } else {
            let base = self.value();
            let mut steps = vec![(0, 0x3008, 8, base), (0, 0x3010, 4, 1 << self.rng.u64(..12)), (0, 0x3014, 4, 1)];
            (0..4).for_each(|_| steps.push((0, 0x3040, 4, self.rng.u64(..300))));
            steps
        };
        steps.into_iter().all(|(region, offset, bytes, value)| self.write(region, offset, bytes, value))
    }

    fn act(&mut self, kind: &str) -> bool {
        match self.rng.u8(..32) {
            0..6 => self.drive(kind),
            6..11 => self.map(),
            11..14 => {
                let (address, size) = match self.memory.is_empty() {
                    true => (self.value(), self.value()),
                    false => {
                        let (iova, size, _) = &self.memory[self.rng.usize(..self.memory.len())];
                        (*iova, *size)
                    }
                };
                let flags = if self.rng.u8(..8) == 0 { self.rng.u32(..4) } else { 0 };
                let unmap = Message::command(raw::DMA_UNMAP, [words(&[24, flags]), longs(&[address, size])].concat());
                let said = self.say(&unmap);
                self.hear();
                said
            }
            14..17 => self.irqs(),
            // Memory is taken away under whoever works with it, or grows.
            17..19 => {
                if !self.memory.is_empty() {
                    let at = self.rng.usize(..self.memory.len());
                    let _ = ftruncate(&self.memory[at].2, [0, 4096, 1 << 20, 1 << 31][self.rng.usize(..4)]);
                }
                true
            }
            19..22 => {
                let (region, offset) = (self.rng.u32(..10), self.rng.u64(..0x5000));
                let (bytes, value) = ([1, 2, 4, 8, 3, 16][self.rng.usize(..6)], self.value());
                self.write(region, offset, bytes, value)
            }
            22..24 => {
                let (region, offset) = (self.rng.u32(..10), self.rng.u64(..0x5000));
                let bytes = [1, 2, 4, 8, 4096, u32::MAX][self.rng.usize(..6)];
                let read = Message::command(raw::REGION_READ, [longs(&[offset]), words(&[region, bytes])].concat());
                let said = self.say(&read);
                self.hear();
                said
            }
            24..26 => {
                let command = [raw::GET_INFO, raw::GET_REGION_INFO, raw::GET_IRQ_INFO, raw::RESET, raw::VERSION];
                let command = command[self.rng.usize(..5)];
                let fields: Vec<u32> =
                    (0..8).map(|_| if self.rng.bool() { self.rng.u32(..64) } else { self.rng.u32(..) }).collect();
                let fields = words(&fields[..self.rng.usize(..9)]);
                let said = self.say(&Message::command(command, fields));
                self.hear();
                said
            }
            // Many at once, of which no answer is taken.
            26..28 => (0..self.rng.u32(..400))
                .all(|_| self.say(&Message::command(raw::REGION_READ, [longs(&[0]), words(&[CONFIG, 4096])].concat()))),
            28 => {
                let fd = eventfd(0, EventfdFlags::empty()).unwrap();
                let many = (0..self.rng.usize(..200))
                    .fold(Message::command(raw::GET_INFO, words(&[16, 0, 0, 0])), |m, _| m.with(&fd));
                self.say(&many)
            }
            29 => {
                let size = [0, 15, 16, 17, 4096, u32::MAX][self.rng.usize(..6)];
                let (id, command, flags) = (self.rng.u16(..), self.rng.u16(..16), self.rng.u32(..64));
                let rest = Message::command(command, vec![7; self.rng.usize(..64)]);
                self.say(&Message { id, flags, size: Some(size), ..rest })
            }
            30 => {
                let bytes: Vec<u8> = (0..self.rng.usize(..200)).map(|_| self.rng.u8(..)).collect();
                raw::send(&self.stream, &bytes, &[])
            }
            _ => self.stream.shutdown(std::net::Shutdown::Write).is_ok(),
        }
    }
}

/// What a client that behaves gets: whether somebody serves.
fn is_served(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    for command in [Message::command(raw::VERSION, vec![0; 4]), Message::command(raw::GET_INFO, words(&[16, 0, 0, 0]))]
    {
        assert!(raw::send(&stream, &command.bytes(), &[]));
        let reply = raw::receive(&stream).expect("the server does not answer");
        assert_eq!((reply.command, reply.flags), (command.command, REPLY));
    }
    stream
}

fn lie_to(kind: &str, socket: &Path, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let stream = UnixStream::connect(socket).unwrap();
    // It never waits long itself, for what may not come.
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let actions = rng.usize(1..60);
    let polite = rng.u8(..16) > 0;
    let mut liar = Liar { rng, stream, memory: Vec::new(), eventfds: Vec::new(), deaf: false };
    if polite {
        liar.say(&Message::command(raw::VERSION, vec![0; 4]));
        let _ = raw::receive(&liar.stream);
    }
    let _ = (0..actions).all(|_| liar.act(kind));
}

/// The honest server behind the one that lies.
struct Behind(UnixStream);

impl WithModel for Behind {
    type Out = ();

    fn with<M: Model + 'static>(self, model: M) {
        Server::from_stream(self.0, model).run(&AtomicBool::new(false)).unwrap();
    }
}

/// Changes a message, at times; false where the connection is to end.
fn change(rng: &mut Rng, to: &UnixStream, mut message: Message) -> bool {
    let mut times = 1;
    match rng.u8(..96) {
        0 => {
            if let Some(at) = message.payload.len().checked_sub(1).map(|last| rng.usize(..=last)) {
                message.payload[at] ^= 1 << rng.u8(..8);
            }
        }
        1 => message.payload.truncate(rng.usize(..=message.payload.len())),
        2 => message.payload.resize(message.payload.len() + rng.usize(..5000), 0xa5),
        3 => message.id ^= rng.u16(..4),
        4 => message.command = rng.u16(..16),
        5 => message.flags = rng.u32(..64),
        6 => (message.flags, message.error) = (REPLY | ERROR, rng.u32(..200)),
        7 => (message.flags, message.error, message.payload) = (REPLY | ERROR, 22, Vec::new()),
        8 => times = 2,
        9 => times = 0,
        10 => message.size = Some(rng.u32(..)),
        11 => message.size = Some(rng.u32(..64)),
        12 => (0..rng.usize(..30)).for_each(|_| message.fds.push(raw::file(4096))),
        13 if !message.fds.is_empty() => message.fds = vec![raw::file(rng.u64(..3) * 4096)],
        14 if !message.fds.is_empty() => message.fds = vec![UnixStream::pair().unwrap().0.into()],
        15 => {
            let ask = Message { flags: rng.u32(..2) * NO_REPLY, ..Message::command(rng.u16(..20), longs(&[0, 64])) };
            if !raw::send(to, &ask.bytes(), &[]) {
                return false;
            }
        }
        16 => (0..message.payload.len().min(64)).for_each(|i| message.payload[i] = rng.u8(..)),
        17 => return false,
        _ => {}
    }
    (0..times).all(|_| raw::send(to, &message.bytes(), &message.fds))
}

fn lied_to(kind: &str, seed: u64) -> [Duration; 2] {
    let send = |stream: &UnixStream, message: &Message| raw::send(stream, &message.bytes(), &message.fds);
    with_a_liar_between(
        seed,
        |stream| with_model(kind, Behind(stream)),
        (raw::receive, send),
        change,
        |stream| {
            let began = Instant::now();
            let options = Options { timeout: Duration::from_millis(300), open_timeout: OPENING };
            let device = VfioUser::from_stream(stream, "vfio-user:liar", options);
            let opened = began.elapsed();
            if let Ok(device) = device {
                let _ = use_it(kind, device);
            }
            [opened, began.elapsed()]
        },
    )
}
