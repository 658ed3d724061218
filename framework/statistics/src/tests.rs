//! A port that is none, served and read: by this crate's client, by hand, and by a strict reader of OpenMetrics.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wholebar_core::DriverError;
use wholebar_core::channel::{Receiver, unbounded};
use wholebar_core::mem::Arena;
use wholebar_core::net::{Event, Limits, Link, Mac, Offloads, Rss, RxQueue, TxCounters, TxQueue, testing};

/// Counts, and can nothing else.
struct Fake {
    events: Receiver<Event>,
    tx: Arc<TxCounters>,
}

impl Port for Fake {
    fn driver(&self) -> &'static str {
        "none"
    }

    fn name(&self) -> &str {
        "fake"
    }

    fn limits(&self) -> &Limits {
        const NONE: Limits =
            Limits { rx_queues: 0, tx_queues: 0, descriptors: 0, mtu: 0, offloads: Offloads::NONE, rss_table: 0 };
        &NONE
    }

    fn granted(&self) -> Offloads {
        Offloads::NONE
    }

    fn queues(&self) -> (u16, u16) {
        (0, 1)
    }

    fn mtu(&self) -> u16 {
        1500
    }

    fn mac(&self) -> Mac {
        Mac([2, 0, 0, 0, 0, 1])
    }

    fn set_mac(&self, _: Mac) -> Result<(), DriverError> {
        Ok(())
    }

    fn set_promiscuous(&self, _: bool) -> Result<(), DriverError> {
        Ok(())
    }

    fn set_all_multicast(&self, _: bool) -> Result<(), DriverError> {
        Ok(())
    }

    fn set_filters(&self, _: &[Mac]) -> Result<(), DriverError> {
        Ok(())
    }

    fn set_vlan(&self, _: u16, _: bool) -> Result<(), DriverError> {
        Ok(())
    }

    fn set_rss(&self, _: &Rss) -> Result<(), DriverError> {
        Ok(())
    }

    fn link(&self) -> Link {
        Link { up: true, speed: Some(1000), full_duplex: None }
    }

    fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    fn statistics(&self) -> Vec<Statistic> {
        let of = |queue: &'static str| {
            move |(name, value): (&'static str, u64)| Statistic { queue: queue.into(), name: name.into(), value }
        };
        self.tx.all().map(of("tx0")).chain([("resets", 3), ("odd name-", 4)].map(of(""))).collect()
    }

    fn attach(&self, _: Arc<Arena>) -> Result<(), DriverError> {
        Ok(())
    }
    fn detach(&self, _: &Arena) -> Result<(), DriverError> {
        Ok(())
    }

    fn rx_queue(&self, _: u16, _: &Pool) -> Result<Box<dyn RxQueue>, DriverError> {
        Err(wholebar_core::Error::Ended { device: "fake".to_owned(), why: "it has no queues".to_owned() }.into())
    }

    fn tx_queue(&self, _: u16) -> Result<Box<dyn TxQueue>, DriverError> {
        Err(wholebar_core::Error::Ended { device: "fake".to_owned(), why: "it has no queues".to_owned() }.into())
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(())
    }
}

const LONG: Duration = Duration::from_secs(600);

/// Two ports of the same awkward name, and a pool with a buffer out.
fn figures(tx: Arc<TxCounters>, pool: &Pool) -> Figures {
    let port = || Arc::new(Fake { events: unbounded().1, tx: tx.clone() });
    let dropped = || vec![Statistic { queue: "tx0".into(), name: "dropped_faults".into(), value: 9 }];
    Figures::new("a test").port("x\"\\\n", port()).also(dropped).port("x\"\\\n", port()).pool("p", pool)
}

struct Served {
    dir: tempfile::TempDir,
    server: Option<StatisticsServer>,
    tx: Arc<TxCounters>,
}

impl Served {
    fn new() -> Self {
        Self::with(LONG)
    }

    /// A server that gives each client so long.
    fn with(patience: Duration) -> Self {
        let (dir, tx) = (tempfile::tempdir().unwrap(), Arc::new(TxCounters::default()));
        let pool = testing::pool(4);
        let server = figures(tx.clone(), &pool).serve_with(&dir.path().join("s"), patience).unwrap();
        Self { dir, server: Some(server), tx }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // It may have answered, and gone, before all is written.
        let _ = stream.write_all(request);
        // What was left of the request may end it with an error, behind the answer.
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

#[test]
fn a_snapshot_is_what_was_counted() {
    let served = Served::new();
    served.tx.packets.add(7);
    served.tx.dropped_arena.add(2);
    let snapshot = Snapshot::read(&served.path(), LONG).unwrap();
    assert_eq!((snapshot.program.as_str(), snapshot.process), ("a test", std::process::id()));
    let [first, second] = &snapshot.ports[..] else { panic!("{snapshot:?}") };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("x\"\\\n", "x\"\\\n#1"));
    assert_eq!((first.link_up, first.link_mbps, first.mtu), (true, Some(1000), 1500));
    assert_eq!(first.queues.iter().map(|q| q.queue.as_str()).collect::<Vec<_>>(), ["tx0", ""]);
    let tx = &first.queues[0].counters;
    assert_eq!((tx["packets"], tx["dropped_arena"], tx["dropped_faults"]), (7, 2, 9));
    assert!(!second.queues[0].counters.contains_key("dropped_faults"));
    assert_eq!(first.queues[1].counters["resets"], 3);
    assert_eq!(snapshot.pools, [PoolSnapshot { name: "p".to_owned(), capacity: 4, available: 4 }]);
    served.tx.packets.add(1);
    let again = Snapshot::read(&served.path(), LONG).unwrap();
    assert!(again.nanoseconds > snapshot.nanoseconds && again.ports[0].queues[0].counters["packets"] == 8);
}

#[test]
fn a_strict_reader_of_openmetrics_understands_it() {
    let served = Served::new();
    served.tx.packets.add(7);
    served.tx.dropped_arena.add(2);
    let answer = served.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("application/openmetrics-text; version=1.0.0"));
    assert!(text.ends_with("\n# EOF\n") && text.contains("wholebar_tx_packets_total{"));
    let families = strict::read(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let value = |family: &str, labels: &[(&str, &str)]| {
        let family = families.get(family).unwrap_or_else(|| panic!("no {family} in\n{text}"));
        let wanted = labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        *family.samples.get(&wanted).unwrap_or_else(|| panic!("none of {wanted:?}\n{family:?}"))
    };
    let port = ("port", "x\"\\\n");
    assert_eq!(value("wholebar_tx_packets", &[port, ("queue", "tx0")]), 7.0);
    for (cause, count) in [("arena", 2.0), ("faults", 9.0), ("reset", 0.0)] {
        let dropped = value("wholebar_tx_dropped_packets", &[port, ("queue", "tx0"), ("cause", cause)]);
        assert_eq!(dropped, count, "{cause}");
    }
    assert_eq!(value("wholebar_port_odd_name_", &[port]), 4.0);
    assert_eq!(value("wholebar_pool_available_buffers", &[("pool", "p")]), 4.0);
    assert_eq!(
        (families["wholebar_tx_bytes"].unit.as_str(), families["wholebar_tx_bytes"].kind.as_str()),
        ("bytes", "counter")
    );
    assert_eq!(families["wholebar_tx_dropped_packets"].unit, "packets");
}

#[test]
fn bad_requests_are_answered_and_slow_clients_keep_nobody_waiting() {
    let served = Served::new();
    // More than there is room for, of three kinds: silent, half done, and done without taking the answer.
    let mut idle: Vec<_> = (0..40).map(|_| served.connect()).collect();
    // It may have been let go already.
    let _ = idle[1].write_all(b"GET /js");
    idle[39].write_all(b"GET /json HTTP/1.1\r\n\r\n").unwrap();
    for (request, status) in [
        (&b"GET /json HTTP/1.0\r\n\r\n"[..], "200 OK"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
        (b"GET /json?pretty HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
        (b"GET /other HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /json HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
        (b"\0\xff\r\n\r\n", "400 Bad Request"),
        (b"hello\r\n\r\n", "400 Bad Request"),
        (&b"GET /json HTTP/1.1\r\n".iter().copied().chain([b'a'; 9000]).collect::<Vec<_>>(), "431 Request"),
    ] {
        let answer = served.ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    let head = served.ask(b"HEAD /json HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"));
    // Those that were there first had to go.
    assert_eq!(idle[0].read_to_end(&mut Vec::new()).or_else(reset_is_an_end).unwrap(), 0);
    assert!(Snapshot::read(&served.path(), LONG).is_ok());
}

#[test]
fn clients_are_let_go_when_their_time_is_over() {
    let served = Served::with(Duration::from_millis(50));
    let mut clients = [served.connect(), served.connect()];
    // It may have been let go already.
    let _ = clients[1].write_all(b"GET /js");
    for mut client in clients {
        assert_eq!(client.read_to_end(&mut Vec::new()).or_else(reset_is_an_end).unwrap(), 0);
    }
}

/// Who closes without having read all that it was sent ends the connection with an error.
fn reset_is_an_end(error: std::io::Error) -> std::io::Result<usize> {
    if error.kind() == std::io::ErrorKind::ConnectionReset { Ok(0) } else { Err(error) }
}

#[test]
fn sockets_are_taken_over_from_the_dead_only_and_removed_in_the_end() {
    let mut served = Served::new();
    let (tx, pool) = (Arc::<TxCounters>::default(), testing::pool(1));
    let serve = |path: &Path| figures(tx.clone(), &pool).serve(path).map(drop).map_err(|error| error.to_string());
    let error = serve(&served.path()).unwrap_err();
    assert!(error.contains("another server listens there"), "{error}");
    served.server = None;
    assert!(!served.path().exists());
    drop(UnixListener::bind(served.path()).unwrap());
    assert!(served.path().exists());
    serve(&served.path()).unwrap();
    std::fs::write(served.path(), "mine").unwrap();
    let error = serve(&served.path()).unwrap_err();
    assert!(error.contains("not a socket") && served.path().exists(), "{error}");
    let error = serve(&served.dir.path().join("x".repeat(200))).unwrap_err();
    assert!(error.contains("cannot be served on") && error.contains("107 bytes"), "{error}");
    assert!(serve(Path::new("/no/such/folder/s")).is_err());
}

#[test]
fn answers_that_make_no_sense_are_said_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let read = |patience| Snapshot::read(&path, patience).unwrap_err().to_string();
    let error = read(LONG);
    assert!(error.contains("there is no such socket") && error.contains(path.to_str().unwrap()), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    for (answer, why) in [
        (&b""[..], "cut off, or is none"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "answers 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "cut off"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "makes no sense"),
        (b"HTTP/1.1 200 OK\r\n\r\n{\"format\":\"wholebar.statistics/9\",\"program\":\"\",\"process\":1,\"nanoseconds\":1,\"ports\":[],\"pools\":[]}", "statistics/9"),
    ] {
        let client = std::thread::scope(|scope| {
            let client = scope.spawn(|| read(LONG));
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            drop(stream);
            client.join().unwrap()
        });
        assert!(client.contains(why), "{client}");
    }
    // Nobody answers: the backlog takes it in.
    let error = read(Duration::from_millis(50));
    assert!(error.contains("no answer came in 0.05 s"), "{error}");
    drop(listener);
    let error = read(LONG);
    assert!(error.contains("nobody listens there"), "{error}");
}
