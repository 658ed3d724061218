//! Ports by the names of their targets, whichever driver they need; each with a pool of buffers, and all of them let into the arena these
//! lie in, so that a packet that one received another can send.

use super::idle::Idle;
use crate::args::{self, Policy, Usage};
use crate::host;
use crate::origin::Origin;
use crate::output;
use crate::target::{self, AnyTarget};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wholebar::PageSize;
use wholebar::drivers::Mapping;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Offloads, Port, PortConfig, Rss, RxQueue, Statistic, TxQueue};
use wholebar::virtio;

/// How ports are opened: arguments that all commands have.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Ports")]
pub struct PortArgs {
    /// Queues that receive, and as many that send, of each port
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub queues: u16,
    /// Descriptors of a queue that receives, a power of two [default: what suits the device]
    #[arg(long, value_name = "N", value_parser = power_of_two)]
    pub rx_descriptors: Option<u16>,
    /// Descriptors of a queue that sends, a power of two [default: what suits the device]
    #[arg(long, value_name = "N", value_parser = power_of_two)]
    pub tx_descriptors: Option<u16>,
    /// The largest packet, in bytes, without its Ethernet header [default: 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,
    /// What devices are to do themselves, separated by commas; what is not there is done without
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum)]
    pub offloads: Vec<Offload>,
    /// Spread what is received over the queues by the hash that is known as RSS, rather than in the device's own way
    #[arg(long)]
    pub rss: bool,
    /// Receive what is sent to anybody [default: on, where the device has that]
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    pub promiscuous: Option<bool>,
    /// Buffers of each port's pool [default: enough for full queues]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pool: Option<u32>,
    /// Bytes of a buffer [default: a packet and its headroom; with large receive, pieces of 4 KiB]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub buffer: Option<u32>,
    /// Split rings on virtio devices, packed ones or not
    #[arg(long)]
    pub split: bool,
    /// How much of the BARs to map
    #[arg(long, value_enum, default_value = "auto")]
    pub policy: Policy,
    /// Map as on a host with pages of this size
    #[arg(long, value_name = "SIZE", value_parser = args::page)]
    pub page: Option<PageSize>,
}

/// An offload by name: a field of [`Offloads`], or some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Offload {
    /// Checksums, received and sent
    Checksum,
    /// TCP segmentation and large receive, and the checksums they need
    Tso,
    /// VLAN tags taken off and put in
    Vlan,
    /// Only packets of VLANs that were named
    VlanFilter,
    /// Hashes of received packets
    RssHash,
    /// Packets in several buffers
    Scatter,
    /// All there is but VLAN filters
    All,
}

fn power_of_two(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n.is_power_of_two() => Ok(n),
        _ => Err("a ring has a power of two of descriptors, up to 32768".to_owned()),
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

/// Bytes in front of received packets. Virtio's header goes there when they are sent on.
pub const HEADROOM: u16 = 128;
/// An Ethernet header with two VLAN tags.
const LINK_HEADER: u32 = 22;
/// The MTU where nobody says.
const MTU: u16 = 1500;
/// Descriptors of a queue where nobody says, or fewer: for the size of pools.
const DESCRIPTORS: u32 = 512;
/// What a lane may hold besides: bursts, caches.
const IN_HAND: u32 = 512;
/// What caches of a queue and its lane may keep to themselves, two batches each: the driver's and the lane's of 32, and that of faults of 8; and a
/// packet to move.
const IN_CACHES: u64 = 2 * 32 + 2 * 32 + 2 * 8 + 1;

impl PortArgs {
    fn offloads(&self) -> Offloads {
        let mut all = Offloads::NONE;
        for offload in &self.offloads {
            let is = |these: &[Offload]| *offload == Offload::All || these.contains(offload);
            let sums = is(&[Offload::Checksum, Offload::Tso]);
            all.rx_checksum |= sums;
            all.tx_l3_checksum |= is(&[Offload::Checksum]);
            all.tx_l4_checksum |= sums;
            all.tso |= is(&[Offload::Tso]);
            all.lro |= is(&[Offload::Tso]);
            all.vlan_strip |= is(&[Offload::Vlan]);
            all.vlan_insert |= is(&[Offload::Vlan]);
            all.vlan_filter |= *offload == Offload::VlanFilter;
            all.rss_hash |= is(&[Offload::RssHash]);
            all.scatter |= is(&[Offload::Scatter, Offload::Tso]);
            all.gather |= is(&[Offload::Scatter, Offload::Tso]);
            all.timestamps |= *offload == Offload::All;
        }
        all
    }

    /// As drivers understand it.
    pub fn config(&self, rx_interrupts: bool) -> PortConfig {
        PortConfig {
            rx_queues: self.queues,
            tx_queues: self.queues,
            rx_descriptors: self.rx_descriptors,
            tx_descriptors: self.tx_descriptors,
            mtu: self.mtu,
            offloads: self.offloads(),
            rss: self.rss.then(|| Rss::evenly(self.queues, 128)),
            promiscuous: self.promiscuous != Some(false),
            headroom: HEADROOM,
            rx_interrupts,
        }
    }

    /// Whether the pool has a buffer to move packets in where queues that receive and caches have all that they may have: else nobody would.
    ///
    /// # Errors
    /// [`Usage`], with what is needed.
    fn check_pool(&self) -> Result<()> {
        let (queues, ring) = (u64::from(self.queues), self.rx_descriptors.map_or(DESCRIPTORS, u32::from));
        let least = queues * (u64::from(ring) + IN_CACHES);
        match self.pool {
            Some(pool) if u64::from(pool) < least => bail!(Usage(format!(
                "--pool {pool} is too small: {least} buffers are the least here, for each of {queues} queue{} that receive{} may hold {ring}, and \
                 caches {IN_CACHES} more; with fewer --rx-descriptors, fewer will do",
                if queues == 1 { "" } else { "s" },
                if queues == 1 { "s" } else { "" },
            ))),
            _ => Ok(()),
        }
    }

    /// Buffers of a pool, and bytes of each.
    fn buffers(&self) -> (u32, u32) {
        let descriptors = |asked: Option<u16>| asked.map_or(DESCRIPTORS, u32::from);
        let each = descriptors(self.rx_descriptors) + descriptors(self.tx_descriptors) + IN_HAND;
        // A packet is in one, unless it is one of large receive. Some devices fill buffers in steps of 1 KiB; virtio's want to have room for packets of the
        // usual MTU, whatever theirs is (VIRTIO 1.2, 5.1.6.3.1).
        let packet = u32::from(self.mtu.unwrap_or(MTU).max(MTU)) + LINK_HEADER;
        let packet = if self.offloads().lro { packet.max(4096) } else { packet };
        let count = self.pool.unwrap_or(u32::from(self.queues) * each);
        (count, self.buffer.unwrap_or(u32::from(HEADROOM) + packet.next_multiple_of(1024)))
    }
}

/// A port that was opened by its target's name.
pub struct OpenPort {
    /// The port. Others may hold it too, until [`close`].
    pub port: Arc<dyn Port>,
    /// Its buffers.
    pub pool: Pool,
    /// Which of the command's ports it is, from 0.
    pub number: usize,
    /// What it was asked for by: others may have been, too.
    pub target: String,
    /// What it is made of.
    pub origin: Origin,
    /// What others count of it.
    pub more: More,
    device: AnyTarget,
}

/// What is counted of a port besides by itself: by queues around its own.
#[derive(Clone, Default)]
pub struct More(Arc<Mutex<Vec<Counted>>>);
type Counted = Box<dyn Fn() -> Vec<Statistic> + Send>;

impl More {
    /// One more that counts.
    pub fn add(&self, counted: impl Fn() -> Vec<Statistic> + Send + 'static) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).push(Box::new(counted));
    }

    /// What all of them have come to.
    pub fn statistics(&self) -> Vec<Statistic> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).iter().flat_map(|counted| counted()).collect()
    }
}

/// Counters by their names, of a queue.
pub fn named(queue: &str, counters: impl Iterator<Item = (&'static str, u64)>) -> Vec<Statistic> {
    counters.map(|(name, value)| Statistic { queue: queue.to_owned().into(), name: name.into(), value }).collect()
}

/// Opens ports: all of them can send buffers of each other's pools. Models get a core that is none of `cores`, if there is one.
///
/// # Errors
/// [`Usage`] for a name that makes no sense, and a pool that is too small; what drivers say.
pub fn open(targets: &[String], args: &PortArgs, idle: Idle, cores: &[usize]) -> Result<Vec<OpenPort>> {
    args.check_pool()?;
    let config = args.config(idle != Idle::Poll);
    let (count, size) = args.buffers();
    let packed = !args.split;
    let drivers = net::drivers().with(net::virtio(move |options| virtio::Options { packed, ..options }));
    let mapping = Mapping { policy: args.policy.into(), page: args.page };
    let opened = targets
        .iter()
        .map(|name| {
            let device = target::open_any(name, cores, None, None)?;
            // What nobody asked for may be missing: promiscuous mode, and interrupts of an idle core that may poll as well.
            let mut modest = Vec::new();
            if args.promiscuous.is_none() {
                modest.push(PortConfig { promiscuous: false, ..config.clone() });
            }
            if idle == Idle::Hybrid {
                let polled: Vec<_> = std::iter::once(&config).chain(&modest).cloned().collect();
                modest.extend(polled.into_iter().map(|config| PortConfig { rx_interrupts: false, ..config }));
            }
            let open = |config| device.open(&drivers, config, mapping);
            let opened = open(&config).or_else(|error| modest.iter().find_map(|c| open(c).ok()).ok_or(error));
            let port: Arc<dyn Port> = opened.with_context(|| format!("{name} cannot be opened"))?.into();
            Ok((name, device, port))
        })
        .collect::<Result<Vec<_>>>()?;

    let each = u64::from(count) * u64::from(size).next_multiple_of(64);
    let (all, free) = (each * targets.len() as u64, host::free_memory());
    if all > free {
        bail!(
            "{count} buffers of {size} bytes for each of {} ports do not fit into memory, of which {} are free: use fewer, or smaller ones",
            targets.len(),
            output::bytes(free)
        );
    }
    let arena = Arena::new(all.next_multiple_of(PageSize::host().bytes()), ArenaOptions::default())?;
    let ports = opened.into_iter().enumerate().map(|(number, (name, device, port))| {
        port.attach(arena.clone())?;
        let missing = config.offloads.without(port.granted());
        if missing != Offloads::NONE {
            output::note(format!("port {number}: {name} has no {missing}"));
        }
        let pool = Pool::new(arena.clone(), count, size, 64)?;
        let origin = device.origin();
        Ok(OpenPort { port, pool, number, target: name.clone(), origin, more: More::default(), device })
    });
    ports.collect()
}

impl OpenPort {
    /// Whether a model in this process has no core to itself: who polls should yield now and then.
    pub fn shares_cores(&self) -> bool {
        self.device.shares_cores()
    }

    /// A queue that receives into the port's own buffers.
    pub fn rx(&self, queue: u16) -> Result<Box<dyn RxQueue>> {
        Ok(self.port.rx_queue(queue, &self.pool)?)
    }

    /// A queue that sends.
    pub fn tx(&self, queue: u16) -> Result<Box<dyn TxQueue>> {
        Ok(self.port.tx_queue(queue)?)
    }

    /// Everything that is counted: by the port, and by queues around its own.
    pub fn statistics(&self) -> Vec<Statistic> {
        let mut all = self.port.statistics();
        all.append(&mut self.more.statistics());
        all
    }

    /// What these come to.
    pub fn totals(&self) -> Totals {
        Totals::of(&self.statistics())
    }

    /// Tells [`totals`](Self::totals) elsewhere. It holds the port.
    pub fn teller(&self) -> impl Fn() -> Totals + Send + use<> {
        let (port, more) = (self.port.clone(), self.more.clone());
        move || {
            let mut all = port.statistics();
            all.append(&mut more.statistics());
            Totals::of(&all)
        }
    }

    /// What it is, for reports.
    pub fn facts(&self) -> Facts {
        let port = &self.port;
        Facts {
            port: self.number,
            target: self.target.clone(),
            driver: port.driver(),
            device: self.origin,
            mac: port.mac().to_string(),
            mtu: port.mtu(),
            queues: port.queues().0,
            offloads: port.granted().to_string(),
            link: port.link().to_string(),
        }
    }

    /// The same for people, in two lines.
    pub fn line(&self) -> String {
        let (port, queues) = (&self.port, self.port.queues().0);
        let pairs = if queues == 1 { "pair" } else { "pairs" };
        let what = format!("  {}, MTU {}, {queues} {pairs} of queues, link {}", port.mac(), port.mtu(), port.link());
        format!("port {}: {} ({})\n{}", self.number, self.target, port.driver(), output::wrapped(&what, 4).trim_end())
    }
}

/// What a port is.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Which of the command's ports it is, from 0.
    pub port: usize,
    target: String,
    driver: &'static str,
    device: Origin,
    mac: String,
    mtu: u16,
    queues: u16,
    offloads: String,
    link: String,
}

impl Facts {
    /// Whether it is a model, or emulated: its figures are not of hardware.
    pub fn is_software(&self) -> bool {
        !matches!(self.device, Origin::Hardware | Origin::Kernel)
    }
}

/// What a port received, sent, and dropped by cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Packets that queues handed to the program.
    pub rx_packets: u64,
    /// Their bytes, without frame checksums.
    pub rx_bytes: u64,
    /// Packets that queues gave to the device.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Packets that queues took and never gave to the device.
    pub tx_refused: u64,
    /// Copies that queues sent of packets, where they were asked to.
    pub duplicated: u64,
    /// Packets dropped, by cause, wherever that was: causes that are not 0.
    pub drops: BTreeMap<String, u64>,
}

/// What devices and models count as lost. What queues dropped has names that say so.
const LOST: [&str; 13] = [
    "wire_lost",
    "tx_malformed",
    "tx_no_carrier",
    "tx_dropped",
    "rx_no_buffer",
    "rx_filtered",
    "rx_too_long",
    "rx_malformed",
    "rx_no_driver",
    "rx_missed",
    "crc_errors",
    "alignment_errors",
    "rx_length_errors",
];
/// Copies that faults made.
pub const DUPLICATED: &str = "faults_duplicated";
/// What a queue that sends drops after it was given to the device.
const TOO_LATE: &str = "dropped_reset";

impl Totals {
    fn of(statistics: &[Statistic]) -> Self {
        let mut totals = Self::default();
        for Statistic { queue, name, value } in statistics {
            let way = &queue[..queue.len().min(2)];
            match (way, name.as_ref()) {
                ("rx", "packets") => totals.rx_packets += value,
                ("rx", "bytes") => totals.rx_bytes += value,
                ("tx", "packets") => totals.tx_packets += value,
                ("tx", "bytes") => totals.tx_bytes += value,
                ("tx", DUPLICATED) => totals.duplicated += value,
                _ => {}
            }
            let cause = match name.strip_prefix("dropped_") {
                Some(cause) => {
                    totals.tx_refused += if way == "tx" && name != TOO_LATE { *value } else { 0 };
                    format!("{way}_{cause}")
                }
                None if LOST.contains(&name.as_ref()) => name.to_string(),
                None => continue,
            };
            if *value > 0 {
                *totals.drops.entry(cause).or_default() += value;
            }
        }
        totals
    }

    /// Packets dropped, whatever the cause.
    pub fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }

    /// Causes and counts, in words.
    pub fn causes(&self) -> String {
        let causes: Vec<_> = self.drops.iter().map(|(cause, n)| format!("{cause} {}", output::count(*n))).collect();
        causes.join(", ")
    }
}

/// How often it is looked whether links have come up, and the time in between: five seconds, not counting any in which this process stands still.
const LINK_POLLS: u32 = 2500;
const LINK_INTERVAL: Duration = Duration::from_millis(2);

/// Waits until all links are up, for a while. Those that are not then are told, and waited for no longer.
pub fn wait_for_links(ports: &[OpenPort], interrupted: &AtomicBool) {
    let down = || ports.iter().filter(|port| !port.port.link().up);
    for _ in 0..LINK_POLLS {
        if down().next().is_none() || interrupted.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(LINK_INTERVAL);
    }
    for port in down() {
        output::note(format!("port {}: the link is down", port.number));
    }
}

/// What a pool had when its port was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Buffers {
    /// Buffers it was made with.
    pub made: u32,
    /// Those that are home.
    pub home: u32,
}

/// Closes ports whose queues were all dropped, and tells what became of their buffers: all should be home.
pub fn close(ports: Vec<OpenPort>) -> Vec<Buffers> {
    // All ports first: one may hold buffers of another's pool.
    let close = |OpenPort { port, pool, device, .. }: OpenPort| {
        drop(port);
        (pool, device)
    };
    let pools: Vec<_> = ports.into_iter().map(close).collect();
    pools.iter().map(|(pool, _)| Buffers { made: pool.capacity(), home: pool.available() }).collect()
}

/// Refuses a target that names one device, and is named twice. Two models of one name are two devices.
///
/// # Errors
/// [`Usage`].
pub fn check_targets(targets: &[String]) -> Result<()> {
    for (i, target) in targets.iter().enumerate() {
        if !target.starts_with("sim:") && targets[..i].contains(target) {
            bail!(Usage(format!("{target} is named twice: a device can be opened once")));
        }
    }
    Ok(())
}
