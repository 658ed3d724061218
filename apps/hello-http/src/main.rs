//! A web server without the kernel's network stack: the program to copy for TCP. A port, smoltcp over its queues, and one thread that polls.
//!
//! It serves one file, or as many bytes as it is told, at `/`, and closes each connection after its answer: that is http.rs. It does *not* read ahead: a
//! file that has to come from a disk holds up everybody.

mod http;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use clap::Parser;
use http::{Connection, Content};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar::control_plane::DeviceEvent;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Event, Offloads, Port, PortConfig};
use wholebar::smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use wholebar::smoltcp::socket::tcp::{Socket, SocketBuffer};
use wholebar::smoltcp::time::Instant;
use wholebar::smoltcp::wire::{EthernetAddress, IpCidr};
use wholebar::smoltcp::{Device, HEADROOM};

const EXAMPLES: &str = "Examples:
  hello-http 0000:01:00.0 --address 10.0.0.2/24 --file image.iso
  hello-http vhost-user:/run/x.sock,net --address 10.0.0.2/24
  hello-http sim:virtio-net,wire=tap:t0 --address 10.0.0.2/24
     and: ip addr add 10.0.0.1/24 dev t0; ip link set t0 up
          curl -o file http://10.0.0.2/";

/// A web server with no kernel network stack, over any network card that wholebar has a driver for. Ctrl-C ends it.
#[derive(Parser)]
#[command(after_help = EXAMPLES, max_term_width = 80)]
struct Args {
    /// The card: a PCI address, vfio-user:PATH, vhost-user:PATH, or sim:virtio-net,wire=tap:NAME
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
const CONNECTIONS: usize = 32;
/// What a connection has in flight at most: at a round trip of 10 ms, 400 MB/s. Memory is taken as it is used.
const SEND: usize = 4 << 20;
const RECEIVE: usize = 1 << 14;

/// The device by its name, and its driver. Where it can fill in checksums and cut segments, smoltcp leaves that to it.
fn open(target: &str, address: IpCidr) -> Result<Box<dyn Port>> {
    let offloads = Offloads { tx_l4_checksum: true, tso: true, ..Offloads::NONE };
    let config = PortConfig { headroom: HEADROOM, offloads, ..PortConfig::default() };
    let port = net::open_target(target, &config)?;
    if matches!(address, IpCidr::Ipv6(_)) {
        // Who looks for an address of IPv6 asks a group.
        port.set_all_multicast(true)?;
    }
    Ok(port)
}

/// Serves until it is told to stop.
fn serve(port: &dyn Port, address: IpCidr, content: &Content, stop: &AtomicBool) -> Result<()> {
    // Buffers: for what is received they hold a packet; for what is sent 64 KiB, of which the card makes packets.
    let packet = (u32::from(port.mtu()) + 18).next_multiple_of(1024).max(2048);
    let [small, large] = [packet, 1 << 16].map(|bytes| bytes + u32::from(HEADROOM));
    let arena = Arena::new(1024 * u64::from(small) + 512 * u64::from(large), ArenaOptions::default())?;
    port.attach(arena.clone())?;
    let (rx_pool, tx_pool) = (Pool::new(arena.clone(), 1024, small, 64)?, Pool::new(arena, 512, large, 64)?);
    let mut device = Device::new(port, port.rx_queue(0, &rx_pool)?, port.tx_queue(0)?, &tx_pool)?;

    // smoltcp: an interface with an address, and sockets.
    let mut config = Config::new(EthernetAddress(port.mac().0).into());
    config.random_seed = RandomState::new().hash_one(0);
    let mut interface = Interface::new(config, &mut device, Instant::now());
    interface.update_ip_addrs(|all| all.extend([address]));
    let mut sockets = SocketSet::new(Vec::new());
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let buffer = |bytes| SocketBuffer::new(vec![0; bytes]);
        connections.push((sockets.add(Socket::new(buffer(RECEIVE), buffer(SEND))), Connection::default()));
    }

    // The loop: packets both ways, then what sockets are to do with them.
    for iteration in 0u64.. {
        let now = Instant::now();
        let idle = interface.poll(now, &mut device, &mut sockets) == PollResult::None;
        let at_times = iteration.is_multiple_of(1024);
        if !idle || at_times {
            for (socket, connection) in &mut connections {
                connection.serve(sockets.get_mut(*socket), content, now)?;
            }
        }
        if at_times {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            for event in port.events().try_iter() {
                match event {
                    Event::Device(DeviceEvent::Ended { why }) => bail!("the port ended: {why}"),
                    Event::Device(DeviceEvent::UnbindRequest) => bail!("the kernel wants the device back"),
                    event => _ = writeln!(io::stderr(), "{event:?}"),
                }
            }
        }
        if idle {
            // Others may need the core: a model, or whoever it is that asks.
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn run(args: &Args) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone())?;
    let mut content = Content { file: None, len: args.size };
    if let Some(path) = &args.file {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        content = Content { len: file.metadata()?.len(), file: Some(file) };
    }
    let port = open(&args.target, args.address)?;
    println!("{}: {}, MTU {}, link {}; does {}", port.name(), port.mac(), port.mtu(), port.link(), port.granted());
    println!("{} bytes at http://{}/", content.len, args.address.address());
    serve(port.as_ref(), args.address, &content, &stop)
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "hello-http: {error:#}");
            let usage = error.downcast_ref().is_some_and(wholebar::OpenError::is_name);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}
