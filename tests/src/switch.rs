//! A switch between front ends: two ports whose queues are front ends' rings, and a thread that forwards between them.

use crate::{Rig, Served, storage};
use anyhow::{Context, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Burst, Port, PortConfig, RxQueue, TxQueue};
use wholebar::vhost_user::{Options, VhostUser};

/// Buffers of a port, and bytes of each: for the largest packets that a test sends.
const BUFFERS: u32 = 512;
const SIZE: u32 = 10 << 10;

/// A switch of two ports, `a.sock` and `b.sock` in a folder.
pub struct Switch {
    dir: tempfile::TempDir,
    /// Its ports.
    pub ports: [Arc<dyn Port>; 2],
    served: Served,
}

impl Switch {
    /// Starts one whose ports have so many queues each way: what comes by a queue leaves by the queue of the same number.
    ///
    /// # Errors
    /// That a socket cannot be listened on, or a thread or a front end cannot be had.
    pub fn start(queues: u16) -> Result<Self> {
        let config = PortConfig { rx_queues: queues, tx_queues: queues, mtu: Some(9000), ..PortConfig::default() };
        Self::of(&config)
    }

    /// The same with ports of this configuration.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn of(config: &PortConfig) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let queues = config.rx_queues;
        let open = |name: &str| -> Result<Arc<dyn Port>> {
            let target = format!("vhost-user:{},back-end,server", dir.path().join(name).display());
            Ok(net::open_target(&target, config)?.into())
        };
        let ports = [open("a.sock")?, open("b.sock")?];
        let arena = Arena::new(2 * u64::from(BUFFERS) * u64::from(SIZE), ArenaOptions::default())?;
        let mut lanes = Vec::new();
        for [from, to] in [[&ports[0], &ports[1]], [&ports[1], &ports[0]]] {
            let pool = Pool::new(arena.clone(), BUFFERS, SIZE, 64)?;
            for queue in 0..queues {
                lanes.push((from.rx_queue(queue, &pool)?, to.tx_queue(queue)?, Burst::new(32)));
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let thread = std::thread::spawn(move || forward(lanes, &seen));
        Ok(Self { dir, ports, served: Served { stop, thread: Some(thread) } })
    }

    /// The folder of its sockets.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A front end at one of its ports.
    ///
    /// # Errors
    /// Where it can't connect.
    pub fn front_end(&self, port: usize) -> Result<Rig> {
        let path = self.dir().join(["a.sock", "b.sock"][port]);
        let device = VhostUser::connect(path, Options::default().with_timeout(storage::PATIENCE));
        let device = device.context("connecting to our own back end")?;
        Ok(Rig { far: Some(self.ports[port].clone()), ..Rig::of(device, "vhost-user, switched") })
    }

    /// Two front ends, with the switch between them.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`front_end`](Self::front_end).
    pub fn rigs(queues: u16) -> Result<[Rig; 2]> {
        Self::start(queues)?.ends()
    }

    /// The front ends at both of its ports, which keep it.
    ///
    /// # Errors
    /// As [`front_end`](Self::front_end).
    pub fn ends(self) -> Result<[Rig; 2]> {
        let (mut a, b) = (self.front_end(0)?, self.front_end(1)?);
        a.keep.push(Box::new((self.served, self.dir)));
        Ok([a, b])
    }
}

/// From one queue to another, and what is in between.
type Lane = (Box<dyn RxQueue>, Box<dyn TxQueue>, Burst);

fn forward(mut lanes: Vec<Lane>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut moved = 0;
        for (rx, tx, burst) in &mut lanes {
            // What there is no room for stays, and is sent first.
            moved += rx.rx(burst) + tx.tx(burst);
            if burst.is_empty() {
                tx.reclaim();
            }
        }
        if moved == 0 {
            std::thread::yield_now();
        }
    }
}
