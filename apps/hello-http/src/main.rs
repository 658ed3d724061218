//! A web server without the kernel's network stack: the program to copy for TCP. A port, smoltcp over its queues, and one thread that polls.
//!
//! It serves one file, or as many bytes as it is told, at `/`, and closes each connection after its answer. It does *not* read ahead: a file that has to
//! come from a disk holds up everybody.

mod http;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use clap::Parser;
use http::{Answer, Content};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Event, Offloads, Port, PortConfig, RxQueue, TxQueue};
use wholebar::smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use wholebar::smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use wholebar::smoltcp::time::{Duration, Instant};
use wholebar::smoltcp::wire::{EthernetAddress, IpCidr};
use wholebar::smoltcp::{Device, HEADROOM};

const EXAMPLES: &str = "Examples:
  hello-http 0000:01:00.0 --address 10.0.0.2/24 --file image.iso
  hello-http sim:virtio-net,wire=tap:t0 --address 10.0.0.2/24
     and: ip addr add 10.0.0.1/24 dev t0; ip link set t0 up
          curl -o file http://10.0.0.2/";

/// A web server with no kernel network stack, over any network card that wholebar has a driver for. Ctrl-C ends it.
#[derive(Parser)]
#[command(after_help = EXAMPLES, max_term_width = 80)]
struct Args {
    /// The card: a PCI address, vfio-user:PATH, or sim:virtio-net,wire=tap:NAME
    target: String,
    /// Its address and the length of its network's prefix; IPv4 or IPv6
    #[arg(long, value_parser = |text: &str| text.parse::<IpCidr>().map_err(|()| "it looks like 10.0.0.2/24"))]
    address: IpCidr,
    /// The file that is served
    #[arg(long, conflicts_with = "size")]
    file: Option<std::path::PathBuf>,
    /// How many bytes are made up and served where there is no file: 500, 64K, 1G
    #[arg(long, default_value = "1G", value_parser = size)]
    size: u64,
}

fn size(text: &str) -> Result<u64, &'static str> {
    let units = [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)];
    let (number, unit) = units.iter().find_map(|(name, n)| Some((text.strip_suffix(name)?, *n))).unwrap_or((text, 1));
    number.parse().ok().and_then(|n: u64| n.checked_mul(unit)).ok_or("a size looks like 500, 64K, 100M or 1G")
}

/// Connections at once; who comes when there are as many is refused.
const CLIENTS: usize = 32;
/// What a connection has in flight at most: at a round trip of 10 ms, 100 MB/s.
const SEND: usize = 1 << 20;
const RECEIVE: usize = 1 << 14;
/// A connection on which nothing moves for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A socket: one that listens, or a connection.
struct Client {
    socket: SocketHandle,
    request: Vec<u8>,
    answer: Option<Answer>,
    /// Where it was when it was last seen to move, and when that was.
    place: (State, usize, usize),
    moved: Instant,
}

impl Client {
    fn serve(&mut self, socket: &mut Socket, content: &Content, now: Instant) -> Result<()> {
        let place = (socket.state(), socket.send_queue(), self.request.len());
        if place != self.place || socket.is_listening() {
            (self.place, self.moved) = (place, now);
        } else if now - self.moved > PATIENCE {
            socket.abort();
        }
        // Closed by this side, it would wait for late packets for 10 seconds; others need it.
        if !socket.is_open() || socket.state() == State::TimeWait {
            socket.abort();
            (self.request, self.answer) = (Vec::new(), None);
            return socket.listen(80).context("listening");
        }
        if self.answer.is_none() && socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), self.request.extend_from_slice(bytes)))?;
            self.answer = Answer::to(&self.request, content.len);
        } else if self.answer.is_none() && socket.state() == State::CloseWait {
            // It asked for nothing.
            socket.close();
        }
        while let Some(Answer { head, offset, end }) = &mut self.answer
            && socket.can_send()
        {
            if !head.is_empty() {
                let sent = socket.send_slice(head)?;
                head.drain(..sent);
            } else if offset == end {
                socket.close();
            } else {
                // Straight into the socket's buffer.
                let read = socket.send(|room| {
                    let most = room.len().min((*end - *offset).try_into().unwrap_or(usize::MAX));
                    let read = content.read(*offset, &mut room[..most]).unwrap_or(0);
                    (read, read)
                })?;
                *offset += read as u64;
                if read == 0 {
                    // What was promised is not there any more, and the client is to know that.
                    socket.abort();
                }
            }
        }
        Ok(())
    }
}

/// What `port` has its queues for: serves until it is told to stop.
fn serve(port: &dyn Port, queues: Queues, address: IpCidr, content: &Content, stop: &AtomicBool) -> Result<()> {
    let Queues { rx, tx, pool } = queues;
    let mut device = Device::new(port, rx, tx, &pool)?;
    let mut config = Config::new(EthernetAddress(port.mac().0).into());
    config.random_seed = RandomState::new().hash_one(0);
    let mut interface = Interface::new(config, &mut device, Instant::now());
    interface.update_ip_addrs(|all| all.extend([address]));
    let mut sockets = SocketSet::new(Vec::new());
    let mut client = |_| {
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        let socket = sockets.add(Socket::new(buffer(RECEIVE), buffer(SEND)));
        Client { socket, request: Vec::new(), answer: None, place: (State::Closed, 0, 0), moved: Instant::ZERO }
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(&mut client).collect();
    for turn in 0u64.. {
        let now = Instant::now();
        let moved = interface.poll(now, &mut device, &mut sockets) == PollResult::SocketStateChanged;
        if moved || turn.is_multiple_of(1024) {
            for client in &mut clients {
                client.serve(sockets.get_mut(client.socket), content, now)?;
            }
        }
        if turn.is_multiple_of(1024) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            for event in port.events().try_iter() {
                match event {
                    Event::Ended { why } => bail!("the port ended: {why}"),
                    Event::UnbindRequest => bail!("the kernel wants the device back"),
                    event => eprintln!("{event:?}"),
                }
            }
        }
        if !moved {
            // Where other threads share the core.
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// A port's queues, and what is sent is in.
struct Queues {
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    pool: Pool,
}

/// The device, its driver, its queues. Buffers for what is received hold a packet; those for what is sent 64 KiB, which a card cuts that can.
fn open(target: &str, address: IpCidr) -> Result<(Box<dyn Port>, Queues)> {
    let offloads = Offloads { tx_l4_checksum: true, tso: true, ..Offloads::NONE };
    let config = PortConfig { headroom: HEADROOM, offloads, ..PortConfig::default() };
    let port = net::open(&wholebar::open(target)?, &config)?;
    if matches!(address, IpCidr::Ipv6(_)) {
        port.set_all_multicast(true)?;
    }
    let packet = (u32::from(port.mtu()) + 18).next_multiple_of(1024).max(2048);
    let [small, large] = [packet, 1 << 16].map(|bytes| bytes + u32::from(HEADROOM));
    let arena = Arena::new(1024 * u64::from(small) + 512 * u64::from(large), ArenaOptions::default())?;
    port.attach(&arena)?;
    let (rx_pool, pool) = (Pool::new(&arena, 1024, small, 64)?, Pool::new(&arena, 512, large, 64)?);
    let (rx, tx) = (port.rx_queue(0, &rx_pool)?, port.tx_queue(0)?);
    println!("{}: {}, MTU {}, link {}; offloads: {}", port.name(), port.mac(), port.mtu(), port.link(), port.granted());
    Ok((port, Queues { rx, tx, pool }))
}

fn run(args: &Args) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let content = match &args.file {
        None => Content { file: None, len: args.size },
        Some(path) => {
            let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
            let len = file.metadata()?.len();
            Content { file: Some(file), len }
        }
    };
    let (port, queues) = open(&args.target, args.address)?;
    println!("{} bytes at http://{}/", content.len, args.address.address());
    serve(port.as_ref(), queues, args.address, &content, &stop)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hello-http: {error:#}");
            let usage = error.downcast_ref().is_some_and(wholebar::OpenError::is_name);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
