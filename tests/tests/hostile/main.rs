//! Hostile sessions by seed: clients that lie to each kind of served model, and servers that lie to our client and its drivers.
//!
//! ```sh
//! WHOLEBAR_HOSTILE_SESSIONS=10000 WHOLEBAR_HOSTILE_SEED=7 cargo test -p wholebar-tests --test hostile clients::nvme -- --nocapture
//! ```
//!
//! A few run with every `cargo test`; the variables ask for as many of each kind, and for others; the name of a test is a kind. What is asserted is
//! counted: that the server lives and serves the next client, that nobody panics, that descriptors and mappings come back, and that no turn of a
//! server takes [`LONGEST_TURN`] of its thread's CPU time, which is the same on a machine with other work to do. Wall time is printed, beside the
//! deadline that was asked for, and only a limit that nothing but a hang exceeds is one.
#![cfg(not(miri))]

#[path = "../../framework/core/tests/vfio_user/raw.rs"]
#[allow(dead_code, reason = "others use the rest")]
mod raw;

use fastrand::Rng;
use raw::{ERROR, Message, NO_REPLY, REPLY, longs, words};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wholebar::Work;
use wholebar::bar::{Bar, BarOptions};
use wholebar::block::{Data, Op, Request};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::model::Model;
use wholebar::net::{Port, PortConfig};
use wholebar::nvme::Nvme;
use wholebar::pci::{CONFIG, PciDevice};
use wholebar::sim::fpga::Fpga;
use wholebar::sim::virtio::{blk, net};
use wholebar::sim::{ModelParams, Target, nvme};
use wholebar::vfio_user::{Options, Server, VfioUser};

/// A test for each kind, one after the other: they count what this process holds.
macro_rules! of_each_kind {
    ($module:ident, $work:path) => {
        mod $module {
            of_each_kind!($work; nvme "sim:nvme,size=16M");
            of_each_kind!($work; net "sim:virtio-net");
            of_each_kind!($work; net_packed "sim:virtio-net,ring=packed");
            of_each_kind!($work; blk "sim:virtio-blk,size=16M");
            of_each_kind!($work; fpga "sim:fpga");
        }
    };
    ($work:path; $name:ident $kind:literal) => {
        #[test]
        fn $name() {
            let _alone = super::ALONE.lock().unwrap_or_else(|e| e.into_inner());
            $work($kind);
        }
    };
}

of_each_kind!(clients, super::clients_that_lie_take_nothing_with_them);
of_each_kind!(servers, super::servers_that_lie_get_errors);

static ALONE: Mutex<()> = Mutex::new(());

/// CPU time of one turn of a server: the model's, or one message.
const LONGEST_TURN: Duration = Duration::from_millis(50);
/// How often a session is repeated whose turn took longer. A host that takes the core away from a guest is seen in the guest's CPU time, too: that does
/// not happen again in the same session, what the session does does.
const TRIES: usize = 3;
/// Nothing but a hang takes as long.
const HANG: Duration = Duration::from_secs(180);

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect(variable))
}

fn sessions(usual: u64) -> u64 {
    number("WHOLEBAR_HOSTILE_SESSIONS", usual)
}

fn seed() -> u64 {
    number("WHOLEBAR_HOSTILE_SEED", 2026)
}

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

// A server in a process of its own: this program again.

const SERVE: &str = "WHOLEBAR_HOSTILE_SERVE";

/// Serves a model until its standard input ends. When a client goes it says how long the longest turn was since the one before.
struct Serve<'a>(&'a str);

impl WithModel for Serve<'_> {
    type Out = ();

    fn with<M: Model + 'static>(self, model: M) {
        let mut server = Server::bind(self.0, model).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            asked.store(true, Ordering::Relaxed);
        });
        println!("listening");
        let (mut longest, mut idle) = (Duration::ZERO, 0u32);
        while !stop.load(Ordering::Relaxed) {
            let (was_connected, began) = (server.is_connected(), cpu_time());
            let work = server.poll();
            longest = longest.max(cpu_time() - began);
            match work {
                Work::Busy => idle = 0,
                Work::Idle => idle = idle.saturating_add(1),
            }
            if was_connected && !server.is_connected() {
                println!("{TURN}{}", std::mem::take(&mut longest).as_micros());
            }
            if idle > 1000 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

/// What a server says of the turns it took for a client: microseconds follow.
const TURN: &str = "longest turn: ";

/// Of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// What a child does, and nothing where this is not one.
#[test]
fn serve_in_a_process_of_its_own() {
    if let Ok(what) = std::env::var(SERVE) {
        let (model, socket) = what.split_once(' ').unwrap();
        with_model(model, Serve(socket));
    }
}

struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    out: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn new(model: &str, socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve_in_a_process_of_its_own", "--exact", "--nocapture", "--test-threads=1"])
            .env(SERVE, format!("{model} {}", socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut new = Self { out: BufReader::new(child.stdout.take().unwrap()), stdin, child };
        new.line("listening");
        new
    }

    /// Waits for a line that has this in it.
    fn line(&mut self, what: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it ended before it said {what:?}");
            if line.contains(what) {
                return line.trim().to_owned();
            }
        }
    }

    /// The longest turn it took for the client that is gone: waits for that.
    fn turn(&mut self) -> Duration {
        let line = self.line(TURN);
        let (_, micros) = line.split_once(TURN).unwrap();
        Duration::from_micros(micros.parse().unwrap())
    }

    /// Descriptors, mappings, and KiB of memory.
    fn holds(&self) -> [u64; 3] {
        holds(&self.child.id().to_string())
    }
}

/// The same of any process.
fn holds(process: &str) -> [u64; 3] {
    let proc = Path::new("/proc").join(process);
    let fds = fs::read_dir(proc.join("fd")).unwrap().count() as u64;
    let maps = fs::read_to_string(proc.join("maps")).unwrap().lines().count() as u64;
    let status = fs::read_to_string(proc.join("status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    [fds, maps, rss.split_whitespace().next().unwrap().parse().unwrap()]
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// A client that lies.

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

fn clients_that_lie_take_nothing_with_them(kind: &str) {
    let (sessions, seeds) = (sessions(30), seed());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut server = Process::new(kind, &socket);
    let (mut first, mut most, mut longest, mut slowest) = (None, [0; 3], (Duration::ZERO, 0), (Duration::ZERO, 0));
    for n in 0..sessions {
        let seed = seeds.wrapping_add(n);
        let mut session = || {
            lie_to(kind, &socket, seed);
            let ended = Instant::now();
            let probe = is_served(&socket);
            slowest = slowest.max((ended.elapsed(), seed));
            assert!(server.child.try_wait().unwrap().is_none(), "{kind}, seed {seed}: it ended");
            let holds = server.holds();
            drop(probe);
            (0..3).for_each(|i| most[i] = most[i].max(holds[i]));
            // Of the memory that allocators keep, some is kept only once it was needed.
            let first = *first.get_or_insert(holds);
            assert_eq!(holds[0], first[0], "{kind}, seed {seed}: descriptors");
            assert!(holds[1] <= first[1] + 24, "{kind}, seed {seed}: {} mappings, {} at first", holds[1], first[1]);
            // The liar's, and that of who came then.
            server.turn().max(server.turn())
        };
        let mut turn = session();
        for _ in 1..TRIES {
            if turn >= LONGEST_TURN {
                eprintln!("{kind}, seed {seed}: a turn of {turn:?}, once more");
                turn = turn.min(session());
            }
        }
        assert!(turn < LONGEST_TURN, "{kind}, seed {seed}: a turn of {turn:?}, each of {TRIES} times");
        longest = longest.max((turn, seed));
    }
    drop(server.stdin.take());
    assert!(server.child.wait().unwrap().success());
    let [fds, maps, rss] = most;
    report(
        &format!("{sessions} clients that lie to {kind}, from seed {seeds}"),
        &[
            ("descriptors", fds.to_string(), "the most".to_owned()),
            ("mappings", maps.to_string(), "the most".to_owned()),
            ("memory", format!("{} MiB", rss >> 10), "the most".to_owned()),
            ("longest turn", millis(longest.0), format!("seed {}, of {} asked for", longest.1, millis(LONGEST_TURN))),
            ("next served", millis(slowest.0), format!("the longest, seed {}", slowest.1)),
        ],
    );
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// All at once: other tests print, too.
fn report(title: &str, rows: &[(&str, String, String)]) {
    let rows: String = rows.iter().map(|(what, value, note)| format!("  {what:<14}{value:>12}  {note}\n")).collect();
    eprint!("{title}\n{rows}");
}

// A server that lies: an honest one behind somebody who changes what it says.

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

/// Uses a device until something is an error.
fn use_it(kind: &str, device: Arc<VfioUser>) -> anyhow::Result<()> {
    let (soon, plain) =
        (Duration::from_millis(300), ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() });
    let arena = Arena::new(1 << 20, plain)?;
    let pool = Pool::new(arena.clone(), 64, 2048, 64)?;
    if kind.contains("nvme") {
        let options =
            wholebar::nvme::Options { timeout: soon, admin_timeout: soon, stop_timeout: soon, ..Default::default() };
        let nvme = Nvme::open(device, options)?;
        nvme.attach(arena)?;
        let mut queue = nvme.queue(wholebar::nvme::QueueOptions::default())?;
        for lba in 0..8 {
            let Some(buf) = pool.get_len(512) else { break };
            let deadline = Some(Instant::now() + soon);
            let request = Request { tag: lba, nsid: 1, op: Op::Read { lba }, data: Data::One(buf), deadline };
            let _ = queue.submit(request);
        }
        queue.ring();
        let until = Instant::now() + soon;
        while Instant::now() < until && queue.poll_each(8, |_| ()) == 0 {}
    } else if kind.contains("virtio") {
        let options = wholebar::virtio::Options {
            timeout: soon,
            admin_timeout: soon,
            stop_timeout: soon,
            packed: kind.contains("packed"),
            ..Default::default()
        };
        if kind.contains("net") {
            let port = wholebar::virtio::Net::open(device, &PortConfig::default(), options)?;
            port.attach(arena).map_err(|e| anyhow::anyhow!(e))?;
            let _ = (port.rx_queue(0, &pool), port.tx_queue(0));
        } else {
            let disk = wholebar::virtio::Blk::open(device, &Default::default(), options)?;
            disk.attach(arena)?;
        }
    } else {
        let seam: Arc<dyn PciDevice> = device;
        let bar = Bar::of(seam.clone(), 0, BarOptions::default())?;
        let _mapping = seam.dma().attach(arena)?;
        for at in (0..bar.size()).step_by(512) {
            let _ = bar.read::<u32>(at);
        }
        bar.doorbell::<u32>(0x3040)?.ring(1);
        seam.reset()?;
    }
    Ok(())
}

/// How long opening may take, as asked for.
const OPENING: Duration = Duration::from_secs(2);

/// One connection; how long our side took to open it, and in all.
fn lied_to(kind: &str, seed: u64) -> [Duration; 2] {
    let ((ours, front), (back, theirs)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    for stream in [&front, &back] {
        stream.set_write_timeout(Some(HANG)).unwrap();
    }
    std::thread::scope(|all| {
        all.spawn(|| with_model(kind, Behind(theirs)));
        let (front, back) = (&front, &back);
        let ends = move || {
            let _ = [front, back].map(|stream| stream.shutdown(std::net::Shutdown::Both));
        };
        all.spawn(move || {
            while let Some(ask) = raw::receive(front) {
                if !raw::send(back, &ask.bytes(), &ask.fds) {
                    break;
                }
            }
            ends();
        });
        all.spawn(move || {
            let mut rng = Rng::with_seed(seed);
            // Honest at first, or few devices would ever be open.
            let mut honest = rng.usize(..200);
            while let Some(reply) = raw::receive(back) {
                let goes_on = match honest.checked_sub(1) {
                    Some(left) => {
                        honest = left;
                        raw::send(front, &reply.bytes(), &reply.fds)
                    }
                    None => change(&mut rng, front, reply),
                };
                if !goes_on {
                    break;
                }
            }
            ends();
        });
        let began = Instant::now();
        let options = Options { timeout: Duration::from_millis(300), open_timeout: OPENING };
        let device = VfioUser::from_stream(ours, "vfio-user:liar", options);
        let opened = began.elapsed();
        if let Ok(device) = device {
            let _ = use_it(kind, device);
        }
        [opened, began.elapsed()]
    })
}

/// The memory files of arenas that are open. What a device may still write, since no stop and no reset of it succeeded, is kept for good.
fn arenas() -> u64 {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().contains("wholebar-arena")).count() as u64
}

/// The most of them in one session: the program's, the driver's own, and the rings of its queues.
const ARENAS: u64 = 4;

fn servers_that_lie_get_errors(kind: &str) {
    let (sessions, seeds) = (sessions(5), seed());
    // What is made once, and kept.
    lied_to(kind, 0);
    let (first, mut kept) = (holds("self"), arenas());
    let others = first[0] - kept;
    let (mut most, mut opened, mut ended) = (first, (Duration::ZERO, 0), (Duration::ZERO, 0));
    for n in 0..sessions {
        let seed = seeds.wrapping_add(n);
        let [opening, all] = lied_to(kind, seed);
        assert!(all < HANG, "{kind}, seed {seed}: {all:?}");
        opened = opened.max((opening, seed));
        ended = ended.max((all, seed));
        let (holds, arenas) = (holds("self"), arenas());
        assert_eq!(holds[0] - arenas, others, "{kind}, seed {seed}: descriptors but for arenas");
        assert!(arenas <= kept + ARENAS, "{kind}, seed {seed}: {arenas} arenas are left, {kept} before");
        kept = arenas;
        (0..3).for_each(|i| most[i] = most[i].max(holds[i]));
    }
    report(
        &format!("{sessions} servers of {kind} that lie, from seed {seeds}"),
        &[
            ("descriptors", others.to_string(), "always, but for arenas".to_owned()),
            ("arenas kept", kept.to_string(), "in the end: their devices could not be stopped".to_owned()),
            ("mappings", most[1].to_string(), format!("the most; {} at first", first[1])),
            ("memory", format!("{} MiB", most[2] >> 10), format!("the most; {} MiB at first", first[2] >> 10)),
            ("opened", millis(opened.0), format!("the longest, seed {}, of {} asked for", opened.1, millis(OPENING))),
            ("ended", millis(ended.0), format!("the longest with its use, seed {}", ended.1)),
        ],
    );
}
