//! Hostile sessions by seed: clients that lie to each kind of served model, and servers that lie to our client and its drivers.
//!
//! ```sh
//! WHOLEBAR_HOSTILE_SESSIONS=10000 WHOLEBAR_HOSTILE_SEED=7 cargo test -p wholebar-tests --test hostile clients::nvme -- --nocapture
//! ```
//!
//! A few run with every `cargo test`; the variables ask for as many of each kind, and for others; the name of a test is a kind. What is asserted is
//! counted: that the server lives and serves the next client, that nobody panics, that descriptors and mappings come back, and that no poll of a
//! server takes [`LONGEST_POLL`] of its thread's CPU time, which is the same on a machine with other work to do. Wall time is printed, beside the
//! deadline that was asked for, and only a limit that nothing but a hang exceeds is one.
#![cfg(not(miri))]

mod vfio_user;
mod vhost_user;

use fastrand::Rng;
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wholebar::Work;
use wholebar::bar::{Bar, BarOptions};
use wholebar::block::{BlockQueue, Data, Op, Request};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{Port, PortConfig};
use wholebar::nvme::Nvme;
use wholebar::pci::PciDevice;

/// A test for each kind, one after the other: they count what this process holds.
macro_rules! of_each_kind {
    ($module:ident, $work:path) => {
        mod $module {
            of_each_kind!($work, vfio_user; nvme "sim:nvme,size=16M");
            of_each_kind!($work, vfio_user; net "sim:virtio-net");
            of_each_kind!($work, vfio_user; net_packed "sim:virtio-net,ring=packed");
            of_each_kind!($work, vfio_user; blk "sim:virtio-blk,size=16M");
            of_each_kind!($work, vfio_user; fpga "sim:fpga");
            of_each_kind!($work, vhost_user; vhost_net "sim:virtio-net");
            of_each_kind!($work, vhost_user; vhost_net_packed "sim:virtio-net,ring=packed");
            of_each_kind!($work, vhost_user; vhost_blk "sim:virtio-blk,size=16M");
        }
    };
    ($work:path, $protocol:ident; $name:ident $model:literal) => {
        #[test]
        fn $name() {
            let _alone = super::ALONE.lock().unwrap_or_else(|e| e.into_inner());
            $work(&super::$protocol::PROTOCOL, $model);
        }
    };
}

of_each_kind!(clients, super::clients_that_lie_take_nothing_with_them);
of_each_kind!(servers, super::servers_that_lie_get_errors);

/// Front ends that lie to a port whose queues are their rings.
mod front_ends {
    #[test]
    fn vhost_port() {
        let _alone = super::ALONE.lock().unwrap_or_else(|e| e.into_inner());
        super::clients_that_lie_take_nothing_with_them(&super::vhost_user::PORT, "net");
    }
}

/// A protocol, with those who lie in it.
struct Protocol {
    name: &'static str,
    /// Serves a model on a socket: [`serve`].
    serve: fn(model: &str, socket: &Path),
    /// One client that lies, from its connection to its end.
    lie: fn(model: &str, socket: &Path, seed: u64),
    /// What a client that behaves gets: whether somebody serves.
    is_served: fn(socket: &Path) -> UnixStream,
    /// Descriptors that a server has only while it waits for a client.
    while_it_waits: u64,
    /// One connection to a server that lies; how long our side took to open it, and in all.
    lied_to: fn(model: &str, seed: u64) -> [Duration; 2],
}

static ALONE: Mutex<()> = Mutex::new(());

/// CPU time of one poll of a server: the model's, or one message.
const LONGEST_POLL: Duration = Duration::from_millis(50);
/// How often a session is repeated with a poll that took longer. A host that takes the core away from a guest is seen in the guest's CPU time, too: that does
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

// A server in a process of its own: this program again.

const SERVE: &str = "WHOLEBAR_HOSTILE_SERVE";

/// Serves until standard input ends. For each byte that comes there it says how long the longest poll was since the one before.
fn serve(mut poll: impl FnMut() -> Work) {
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let input = (stop.clone(), asked.clone());
    std::thread::spawn(move || {
        while std::io::stdin().read(&mut [0]).is_ok_and(|n| n > 0) {
            input.1.store(true, Ordering::Relaxed);
        }
        input.0.store(true, Ordering::Relaxed);
    });
    println!("listening");
    let (mut longest, mut idle) = (Duration::ZERO, 0u32);
    while !stop.load(Ordering::Relaxed) {
        let began = cpu_time();
        let work = poll();
        longest = longest.max(cpu_time() - began);
        match work {
            Work::Busy => idle = 0,
            Work::Idle => idle = idle.saturating_add(1),
        }
        if asked.swap(false, Ordering::Relaxed) {
            println!("{POLL}{}", std::mem::take(&mut longest).as_micros());
        }
        if idle > 1000 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// What a server says of its polls for a client: microseconds follow.
const POLL: &str = "longest poll: ";

/// Of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// What a child does, and nothing where this is not one.
#[test]
fn serve_in_a_process_of_its_own() {
    if let Ok(what) = std::env::var(SERVE) {
        let mut what = what.splitn(3, ' ');
        let [name, model, socket] = std::array::from_fn(|_| what.next().unwrap());
        let protocols = [vfio_user::PROTOCOL, vhost_user::PROTOCOL, vhost_user::PORT];
        let protocol = protocols.iter().find(|protocol| protocol.name == name).unwrap();
        (protocol.serve)(model, Path::new(socket));
    }
}

struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    out: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn new(protocol: &Protocol, model: &str, socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve_in_a_process_of_its_own", "--exact", "--nocapture", "--test-threads=1"])
            .env(SERVE, format!("{} {model} {}", protocol.name, socket.display()))
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

    /// The longest poll it took since this was asked last.
    fn poll(&mut self) -> Duration {
        self.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        let line = self.line(POLL);
        let (_, micros) = line.split_once(POLL).unwrap();
        Duration::from_micros(micros.parse().unwrap())
    }

    /// What its descriptors are.
    fn descriptors(&self) -> Vec<String> {
        let links = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let links = links.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect()
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

fn clients_that_lie_take_nothing_with_them(protocol: &Protocol, kind: &str) {
    let (sessions, seeds) = (sessions(30), seed());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut server = Process::new(protocol, kind, &socket);
    let (mut first, mut most, mut longest, mut slowest) = (None, [0; 3], (Duration::ZERO, 0), (Duration::ZERO, 0));
    for n in 0..sessions {
        let seed = seeds.wrapping_add(n);
        let mut session = || {
            (protocol.lie)(kind, &socket, seed);
            let ended = Instant::now();
            let probe = (protocol.is_served)(&socket);
            slowest = slowest.max((ended.elapsed(), seed));
            assert!(server.child.try_wait().unwrap().is_none(), "{kind}, seed {seed}: it ended");
            let holds = server.holds();
            (0..3).for_each(|i| most[i] = most[i].max(holds[i]));
            // Of the memory that allocators keep, some is kept only once it was needed.
            let first = *first.get_or_insert(holds);
            assert!(
                holds[0].abs_diff(first[0]) <= protocol.while_it_waits,
                "{kind}, seed {seed}: {} descriptors, {} at first: {:?}",
                holds[0],
                first[0],
                server.descriptors()
            );
            assert!(holds[1] <= first[1] + 24, "{kind}, seed {seed}: {} mappings, {} at first", holds[1], first[1]);
            // Who came then is served, so the liar is gone.
            let longest = server.poll();
            drop(probe);
            longest
        };
        let mut poll = session();
        for _ in 1..TRIES {
            if poll >= LONGEST_POLL {
                eprintln!("{kind}, seed {seed}: a poll of {poll:?}, once more");
                poll = poll.min(session());
            }
        }
        assert!(poll < LONGEST_POLL, "{kind}, seed {seed}: a poll of {poll:?}, each of {TRIES} times");
        longest = longest.max((poll, seed));
    }
    drop(server.stdin.take());
    assert!(server.child.wait().unwrap().success());
    let [fds, maps, rss] = most;
    report(
        &format!("{sessions} clients that lie to {kind} by {}, from seed {seeds}", protocol.name),
        &[
            ("descriptors", fds.to_string(), "the most".to_owned()),
            ("mappings", maps.to_string(), "the most".to_owned()),
            ("memory", format!("{} MiB", rss >> 10), "the most".to_owned()),
            ("longest poll", millis(longest.0), format!("seed {}, of {} asked for", longest.1, millis(LONGEST_POLL))),
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

// Servers that lie.

/// How long opening may take, as asked for.
const OPENING: Duration = Duration::from_secs(2);

/// Uses a device until something is an error.
fn use_it(kind: &str, device: Arc<dyn PciDevice>) -> anyhow::Result<()> {
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
        read(&mut queue, &pool, soon);
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
            read(&mut disk.queue()?, &pool, soon);
        }
    } else {
        let bar = Bar::of(device.clone(), 0, BarOptions::default())?;
        let _mapping = device.dma().attach(arena)?;
        for at in (0..bar.size()).step_by(512) {
            let _ = bar.read::<u32>(at);
        }
        bar.doorbell::<u32>(0x3040)?.ring(1);
        device.reset()?;
    }
    Ok(())
}

/// Reads something, and waits for some of it.
fn read(queue: &mut impl BlockQueue, pool: &Pool, soon: Duration) {
    let until = Instant::now() + soon;
    for lba in 0..8 {
        let Some(buf) = pool.get_len(512) else { break };
        let request = Request { tag: lba, nsid: 1, op: Op::Read { lba }, data: Data::One(buf), deadline: Some(until) };
        let _ = queue.submit(request);
    }
    queue.ring();
    while Instant::now() < until && queue.poll(8, &mut |_| ()) == 0 {}
}

type Receive<M> = fn(&UnixStream) -> Option<M>;
type SendTo<M> = fn(&UnixStream, &M) -> bool;

/// One connection: an honest server at its one end, our side at the other, and in between somebody who changes, at times, what the server says.
fn with_a_liar_between<M>(
    seed: u64,
    serve: impl FnOnce(UnixStream) + Send,
    (receive, send): (Receive<M>, SendTo<M>),
    change: fn(&mut Rng, &UnixStream, M) -> bool,
    ours: impl FnOnce(UnixStream) -> [Duration; 2],
) -> [Duration; 2] {
    let ((near, front), (back, far)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    for stream in [&front, &back] {
        stream.set_write_timeout(Some(HANG)).unwrap();
    }
    std::thread::scope(|all| {
        all.spawn(|| serve(far));
        let (front, back) = (&front, &back);
        let ends = move || {
            let _ = [front, back].map(|stream| stream.shutdown(std::net::Shutdown::Both));
        };
        all.spawn(move || {
            while receive(front).is_some_and(|ask| send(back, &ask)) {}
            ends();
        });
        all.spawn(move || {
            let mut rng = Rng::with_seed(seed);
            // Honest at first, or few devices would ever be open.
            let mut honest = rng.usize(..200);
            while let Some(reply) = receive(back) {
                let goes_on = match honest.checked_sub(1) {
                    Some(left) => {
                        honest = left;
                        send(front, &reply)
                    }
                    None => change(&mut rng, front, reply),
                };
                if !goes_on {
                    break;
                }
            }
            ends();
        });
        ours(near)
    })
}

/// The memory files of arenas that are open. What a device may still write, since no stop and no reset of it succeeded, is kept for good.
fn arenas() -> u64 {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().contains("wholebar-arena")).count() as u64
}

/// The most of them in one session: the program's, the driver's own, and the rings of its queues.
const ARENAS: u64 = 4;

fn servers_that_lie_get_errors(protocol: &Protocol, kind: &str) {
    let (sessions, seeds) = (sessions(5), seed());
    // What is made once, and kept.
    (protocol.lied_to)(kind, 0);
    let (first, mut kept) = (holds("self"), arenas());
    let others = first[0] - kept;
    let (mut most, mut opened, mut ended) = (first, (Duration::ZERO, 0), (Duration::ZERO, 0));
    for n in 0..sessions {
        let seed = seeds.wrapping_add(n);
        let [opening, all] = (protocol.lied_to)(kind, seed);
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
        &format!("{sessions} servers of {kind} that lie by {}, from seed {seeds}", protocol.name),
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
