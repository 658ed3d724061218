//! The server on one end of a wire between two models, and smoltcp as its client on the other.

use super::*;
use sha2::{Digest, Sha256};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clock};
use wholebar::net::{Faults, Faulty};
use wholebar::smoltcp::iface::SocketHandle;
use wholebar::smoltcp::phy::ChecksumCapabilities;
use wholebar::smoltcp::socket::icmp;
use wholebar::smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress};

/// It would have hung by then.
const LIMIT: Duration = Duration::from_secs(300);

struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    fn start(target: &str, file: Option<File>, len: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (address, its) = ("10.0.0.2/24".parse().unwrap(), stop.clone());
        let port = open(target, address).unwrap();
        let thread =
            std::thread::spawn(move || serve(port.as_ref(), address, &Content { file, len }, &its).context("serving"));
        Self { stop, thread: Some(thread) }
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Server {
    /// A test that failed does not leave it running.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Client {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    next_port: u16,
    _port: Box<dyn Port>,
}

/// A request, and what came of it.
struct Get<'a> {
    request: &'a [u8],
    /// After so many bytes of the answer the connection is reset.
    at_most: usize,
    socket: SocketHandle,
    sent: usize,
    answer: Vec<u8>,
}

impl Client {
    fn new(target: &str, offloads: Offloads, faults: Option<&str>) -> Self {
        let port = net::open(wholebar::open(target).unwrap(), &PortConfig { offloads, ..Default::default() }).unwrap();
        let arena = Arena::new(8 << 20, ArenaOptions::default()).unwrap();
        port.attach(arena.clone()).unwrap();
        let pool = Pool::new(arena, 2048, 2048 + u32::from(HEADROOM), 64).unwrap();
        let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
        if let Some(faults) = faults {
            let faults: Faults = faults.parse().unwrap();
            (rx, tx) = (
                Box::new(Faulty::new(rx, faults, pool.cache(8))),
                Box::new(Faulty::new(tx, Faults { seed: faults.seed + 1, ..faults }, pool.cache(8))),
            );
        }
        let mut device = Device::new(port.as_ref(), rx, tx, &pool).unwrap();
        let mut config = Config::new(EthernetAddress(port.mac().0).into());
        config.random_seed = 1;
        let mut interface = Interface::new(config, &mut device, Instant::now());
        interface.update_ip_addrs(|all| all.extend(["10.0.0.1/24".parse::<IpCidr>().unwrap()]));
        Self { device, interface, sockets: SocketSet::new(Vec::new()), next_port: 49152, _port: port }
    }

    fn poll(&mut self, began: Clock) {
        assert!(began.elapsed() < LIMIT, "it hangs");
        if self.interface.poll(Instant::now(), &mut self.device, &mut self.sockets) == PollResult::None {
            std::thread::yield_now();
        }
    }

    /// All these requests at once, each on a connection of its own, until the last is closed.
    fn get_all(&mut self, requests: &[&[u8]], at_most: usize) -> Vec<Vec<u8>> {
        let mut gets = Vec::new();
        for request in requests {
            let buffer = || SocketBuffer::new(vec![0; 1 << 18]);
            let mut socket = Socket::new(buffer(), buffer());
            self.next_port += 1;
            let server = (IpAddress::v4(10, 0, 0, 2), http::PORT);
            socket.connect(self.interface.context(), server, self.next_port).unwrap();
            gets.push(Get { request, at_most, socket: self.sockets.add(socket), sent: 0, answer: Vec::new() });
        }
        let began = Clock::now();
        while gets.iter().any(|get| self.sockets.get::<Socket>(get.socket).is_open()) {
            self.poll(began);
            for Get { request, at_most, socket, sent, answer } in &mut gets {
                let socket = self.sockets.get_mut::<Socket>(*socket);
                if socket.can_send() && *sent < request.len() {
                    *sent += socket.send_slice(&request[*sent..]).unwrap();
                }
                while socket.can_recv() {
                    socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
                }
                if answer.len() >= *at_most {
                    socket.abort();
                } else if !socket.may_recv() && socket.is_active() && *sent == request.len() {
                    socket.close();
                }
            }
        }
        // What was aborted has a packet to send.
        self.poll(began);
        gets.iter().for_each(|get| _ = self.sockets.remove(get.socket));
        gets.into_iter().map(|get| get.answer).collect()
    }

    fn get(&mut self, request: &[u8]) -> Vec<u8> {
        self.get_all(&[request], usize::MAX).remove(0)
    }
}

fn status(answer: &[u8]) -> &str {
    std::str::from_utf8(answer).unwrap().split("\r\n").next().unwrap()
}

/// What is behind the header.
fn body(answer: &[u8]) -> &[u8] {
    assert!(
        answer.starts_with(b"HTTP/1.1 200 OK\r\n"),
        "{:?}",
        String::from_utf8_lossy(&answer[..answer.len().min(99)])
    );
    &answer[answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4..]
}

fn made_up(len: u64) -> Vec<u8> {
    let mut all = vec![0; len as usize];
    assert_eq!(Content { file: None, len }.read(0, &mut all).unwrap(), all.len());
    all
}

const ROOT: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_file_comes_whole_whatever_devices_do_for_it() {
    let content = made_up(3 << 20 | 12345);
    let path = std::env::temp_dir().join(format!("hello-http-{}", std::process::id()));
    std::fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // Large receive: packets come in several buffers, with checksums that remain to be filled in.
    let large = Offloads { rx_checksum: true, lro: true, scatter: true, ..Offloads::NONE };
    let checks = Offloads { rx_checksum: true, tx_l4_checksum: true, ..Offloads::NONE };
    for (name, server, offloads) in [
        ("plain", ",offloads=0", Offloads::NONE),
        ("cut", "", Offloads::NONE),
        ("checks", "", checks),
        ("large", "", large),
    ] {
        let wire = format!("sim:virtio-net,wire=pair:http-{name}");
        let server = Server::start(&format!("{wire}{server}"), Some(file.try_clone().unwrap()), content.len() as u64);
        let mut client = Client::new(&wire, offloads, None);
        let answer = client.get(ROOT);
        assert_eq!(Sha256::digest(body(&answer)), Sha256::digest(&content), "{name}");
        server.stop();
    }
}

#[test]
fn many_are_served_at_once_and_some_go_in_the_middle() {
    let server = Server::start("sim:virtio-net,wire=pair:http-many", None, 1 << 18);
    let mut client = Client::new("sim:virtio-net,wire=pair:http-many", Offloads::NONE, None);
    let expected = made_up(1 << 18);
    for answer in client.get_all(&[ROOT; 12], usize::MAX) {
        assert!(body(&answer) == expected);
    }
    // More than there are connections: each is free again when its client is gone.
    for _ in 0..3 {
        assert!(client.get_all(&[ROOT; 16], 100_000).iter().all(|answer| answer.len() >= 100_000));
    }
    assert!(body(&client.get(ROOT)) == expected);
    // More than there are at once: who is refused is so without an answer, and the others have all of theirs.
    let answers = client.get_all(&[ROOT; CONNECTIONS + 8], usize::MAX);
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| !answer.is_empty());
    assert!(served.len() >= CONNECTIONS && served.iter().all(|answer| body(answer) == expected), "{}", refused.len());
    server.stop();
}

#[test]
fn requests_are_answered_as_they_deserve() {
    let server = Server::start("sim:virtio-net,wire=pair:http-requests", None, 1000);
    let mut client = Client::new("sim:virtio-net,wire=pair:http-requests", Offloads::NONE, None);
    let long = [b"GET / HTTP/1.1\r\nX: ", &[b'x'; 9000][..]].concat();
    let whole = [&long[..], b"\r\n\r\n"].concat();
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    for (request, expected) in [
        (&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0\0\0"[..], "HTTP/1.1 400 Bad Request"),
        (b"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (b"GET /other HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 Method Not Allowed"),
        (b"DELETE /other HTTP/1.0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (&long, "HTTP/1.1 431 Request Header Fields Too Large"),
        (&whole, "HTTP/1.1 431 Request Header Fields Too Large"),
        (many.as_bytes(), "HTTP/1.1 431 Request Header Fields Too Large"),
    ] {
        assert_eq!(status(&client.get(request)), expected, "{:?}", String::from_utf8_lossy(request));
    }
    assert!(body(&client.get(b"GET /?query HTTP/1.0\r\n\r\n")) == made_up(1000));
    let head = client.get(b"HEAD / HTTP/1.1\r\n\r\n");
    assert!(body(&head).is_empty() && head.ends_with(b"\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"));
    // One that is closed before it asked has no answer.
    let mut half = client.get_all(&[b"GET / HT"], 0);
    assert!(half.remove(0).is_empty());
    server.stop();
}

#[test]
fn pings_are_answered() {
    let server = Server::start("sim:virtio-net,wire=pair:http-ping", None, 0);
    let mut client = Client::new("sim:virtio-net,wire=pair:http-ping", Offloads::NONE, None);
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let socket = client.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let checksum = ChecksumCapabilities::default();
    let ping = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: b"wholebar" };
    let icmp = client.sockets.get_mut::<icmp::Socket>(socket);
    icmp.bind(icmp::Endpoint::Ident(7)).unwrap();
    let out = icmp.send(ping.buffer_len(), IpAddress::v4(10, 0, 0, 2)).unwrap();
    ping.emit(&mut Icmpv4Packet::new_unchecked(out), &checksum);
    let began = Clock::now();
    while !client.sockets.get::<icmp::Socket>(socket).can_recv() {
        client.poll(began);
    }
    let (answer, from) = client.sockets.get_mut::<icmp::Socket>(socket).recv().unwrap();
    let answer = Icmpv4Repr::parse(&Icmpv4Packet::new_checked(answer).unwrap(), &checksum).unwrap();
    assert_eq!(answer, Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data: b"wholebar" });
    assert_eq!(from, IpAddress::v4(10, 0, 0, 2));
    server.stop();
}

#[test]
fn what_a_wire_does_wrong_is_made_good() {
    let len = 1 << 20;
    for faults in ["drop=0.01,seed=7", "drop=0.005,duplicate=0.01,reorder=0.01,by=4,seed=3"] {
        let server = Server::start("sim:virtio-net,wire=pair:http-faults", None, len);
        let mut client = Client::new("sim:virtio-net,wire=pair:http-faults", Offloads::NONE, Some(faults));
        let answer = client.get(ROOT);
        assert_eq!(Sha256::digest(body(&answer)), Sha256::digest(made_up(len)), "{faults}");
        server.stop();
    }
}
