//! Statistics for other processes: what ports, queues and pools of a program have come to, read while it runs.
//!
//! A program that owns ports [serves](Figures::serve) its [`Figures`] on a Unix socket, over HTTP, so that what people have can read it:
//!
//! ```sh
//! curl --unix-socket /run/fwd.sock http://localhost/json       # a `Snapshot`
//! curl --unix-socket /run/fwd.sock http://localhost/metrics    # OpenMetrics text, as Prometheus reads it
//! ```
//!
//! Queues write their counters in any case; whoever reads them is a thread of its own. A packet costs nothing more for it.
//!
//! ```no_run
//! use std::path::Path;
//! use wholebar_statistics::Figures;
//! # use std::sync::Arc;
//! # use wholebar_core::{mem::Pool, net::Port};
//! # fn example(port: Arc<dyn Port>, pool: &Pool) -> wholebar_statistics::Result<()> {
//!
//! let server = Figures::new("my program").port("0", port).pool("0", pool).serve(Path::new("/run/my.sock"))?;
//! // ... the program does its work; at its end the socket goes:
//! drop(server);
//! # Ok(()) }
//! ```

mod client;
mod error;
mod openmetrics;
mod server;

pub use error::{Error, Result};
pub use server::StatisticsServer;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use wholebar_core::mem::Pool;
use wholebar_core::net::{Port, Statistic};

/// Where a program's statistics come from.
pub struct Figures {
    program: String,
    began: Instant,
    ports: Vec<Source>,
    pools: Vec<(String, Pool)>,
}

struct Source {
    name: String,
    port: Arc<dyn Port>,
    also: Vec<Box<dyn Fn() -> Vec<Statistic> + Send>>,
}

impl Figures {
    /// Nothing yet, of a program that a person calls `program`.
    pub fn new(program: impl Into<String>) -> Self {
        Self { program: program.into(), began: Instant::now(), ports: Vec::new(), pools: Vec::new() }
    }

    /// With a port. One that has the name of another gets its number behind it.
    #[must_use]
    pub fn port(mut self, name: impl Into<String>, port: Arc<dyn Port>) -> Self {
        let name = unique(name.into(), self.ports.len(), self.ports.iter().map(|source| &source.name));
        self.ports.push(Source { name, port, also: Vec::new() });
        self
    }

    /// With more that is counted of the port given last: by queues around its own, or by who uses it.
    #[must_use]
    pub fn also(mut self, statistics: impl Fn() -> Vec<Statistic> + Send + 'static) -> Self {
        if let Some(source) = self.ports.last_mut() {
            source.also.push(Box::new(statistics));
        }
        self
    }

    /// With a pool. It is kept while these figures are.
    #[must_use]
    pub fn pool(mut self, name: impl Into<String>, pool: &Pool) -> Self {
        let name = unique(name.into(), self.pools.len(), self.pools.iter().map(|(name, _)| name));
        self.pools.push((name, pool.clone()));
        self
    }

    /// What all have come to.
    pub fn snapshot(&self) -> Snapshot {
        let ports = self.ports.iter().map(|source| {
            let mut queues: Vec<QueueSnapshot> = Vec::new();
            for Statistic { queue, name, value } in
                source.port.statistics().into_iter().chain(source.also.iter().flat_map(|more| more()))
            {
                let at = queues.iter().position(|q| q.queue == queue).unwrap_or_else(|| {
                    queues.push(QueueSnapshot { queue: queue.into_owned(), counters: BTreeMap::new() });
                    queues.len() - 1
                });
                queues[at].counters.insert(name.into_owned(), value);
            }
            let link = source.port.link();
            PortSnapshot {
                name: source.name.clone(),
                mac: source.port.mac().to_string(),
                mtu: source.port.mtu(),
                link_up: link.up,
                link_mbps: link.speed,
                queues,
            }
        });
        let pools = self.pools.iter().map(|(name, pool)| PoolSnapshot {
            name: name.clone(),
            capacity: pool.capacity(),
            available: pool.available(),
        });
        Snapshot {
            format: FORMAT.to_owned(),
            program: self.program.clone(),
            process: std::process::id(),
            nanoseconds: self.began.elapsed().as_nanos() as u64,
            ports: ports.collect(),
            pools: pools.collect(),
        }
    }
}

fn unique<'a>(name: String, number: usize, mut others: impl Iterator<Item = &'a String>) -> String {
    if others.any(|other| *other == name) { format!("{name}#{number}") } else { name }
}

/// What a snapshot's JSON says that it is.
const FORMAT: &str = "wholebar.statistics/1";

/// What a program's ports, queues and pools had come to at one moment. Counters of different queues may be some packets apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    format: String,
    /// What the program calls itself.
    pub program: String,
    /// Its process id.
    pub process: u32,
    /// When that was, since the program began to count.
    pub nanoseconds: u64,
    /// Its ports.
    pub ports: Vec<PortSnapshot>,
    /// Its pools.
    pub pools: Vec<PoolSnapshot>,
}

/// A port in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSnapshot {
    /// What the program calls it; no other has that name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// The largest packet, in bytes, without link-layer header.
    pub mtu: u16,
    /// Whether its link is there.
    pub link_up: bool,
    /// In Mb/s, where that is known.
    pub link_mbps: Option<u32>,
    /// Its queues, and what is counted for none of them, under the name of nothing.
    pub queues: Vec<QueueSnapshot>,
}

/// A queue in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSnapshot {
    /// `rx0`, `tx3`; nothing for the device's own.
    pub queue: String,
    /// What it counts.
    pub counters: BTreeMap<String, u64>,
}

/// A pool in a [`Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSnapshot {
    /// What the program calls it; no other has that name.
    pub name: String,
    /// Buffers that there are.
    pub capacity: u32,
    /// Buffers that are home: not in a queue, a cache, or somebody's hands.
    pub available: u32,
}

#[cfg(test)]
mod strict;
#[cfg(all(test, not(miri)))]
mod tests;
