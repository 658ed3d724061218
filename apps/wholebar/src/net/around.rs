//! What goes around the queues of ports, and who may read what they count: a trace, a tap into a file, faults, a socket.

use super::port::{DUPLICATED, OpenPort, named};
use crate::output;
use anyhow::Result;
use std::path::PathBuf;
use std::sync::Arc;
use wholebar::capture::{Capture, CaptureCounters, Direction};
use wholebar::net::{Faults, Faulty, RxQueue, Traced, TxQueue};
use wholebar::statistics::{Figures, StatisticsServer};

/// How a command can be watched.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Watching")]
pub struct WatchArgs {
    /// Serve statistics on a Unix socket: for `wholebar net stat PATH`, and for curl and Prometheus (/json, /metrics)
    #[arg(long, value_name = "PATH")]
    stats_socket: Option<PathBuf>,
    /// Tell of each burst that a queue moves, and of its changes of state, on standard error
    #[arg(long)]
    trace: bool,
}

/// The same, where packets can be watched, too, and made worse.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Watching")]
pub struct AroundArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// Write what is received and sent to a file, as pcapng with nanoseconds; what it is too slow for is counted
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Do to packets that are sent what wires do: drop=0.01,duplicate=1/50,corrupt=0.01,truncate=0.01,reorder=0.1,by=8,seed=7
    #[arg(long, value_name = "LIST")]
    faults: Option<Faults>,
}

/// All of that, at work.
pub struct Around {
    watch: WatchArgs,
    server: Option<StatisticsServer>,
    capture: Option<(PathBuf, Capture)>,
    taps: Vec<Arc<CaptureCounters>>,
    faults: Option<Faults>,
}

/// Packets that can wait for the file.
const WAITING: u32 = 8192;
/// Buffers that copies of packets are taken from the pool by.
const COPIES: u32 = 8;

impl WatchArgs {
    /// Makes the socket, which serves until it is dropped: before the ports are closed.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn serve(&self, ports: &[OpenPort]) -> Result<Option<StatisticsServer>> {
        let serve = |path: &PathBuf| {
            let mut figures = Figures::new("wholebar net");
            for port in ports {
                let more = port.more.clone();
                figures = figures.port(&port.target, port.port.clone()).also(move || more.statistics());
                figures = figures.pool(&port.target, &port.pool);
            }
            figures.serve(path)
        };
        Ok(self.stats_socket.as_ref().map(serve).transpose()?)
    }

    /// Whether queues are to tell of what they do.
    pub fn is_traced(&self) -> bool {
        self.trace
    }

    /// A queue of `port` that receives, traced where that was asked for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn rx(&self, port: &OpenPort, queue: u16) -> Result<Box<dyn RxQueue>> {
        let rx = port.rx(queue)?;
        Ok(if self.trace { Box::new(Traced::new(rx, format!("port {} rx{queue}", port.number))) } else { rx })
    }

    /// The same of one that sends.
    ///
    /// # Errors
    /// What the driver says.
    pub fn tx(&self, port: &OpenPort, queue: u16) -> Result<Box<dyn TxQueue>> {
        let tx = port.tx(queue)?;
        Ok(if self.trace { Box::new(Traced::new(tx, format!("port {} tx{queue}", port.number))) } else { tx })
    }
}

impl AroundArgs {
    /// Makes the file and the socket.
    ///
    /// # Errors
    /// Which of them cannot be made.
    pub fn begin(&self, ports: &[OpenPort]) -> Result<Around> {
        let capture = self.capture.as_ref().map(|path| anyhow::Ok((path.clone(), Capture::create(path, WAITING)?)));
        let (capture, server) = (capture.transpose()?, self.watch.serve(ports)?);
        Ok(Around { watch: self.watch.clone(), server, capture, taps: Vec::new(), faults: self.faults })
    }

    /// Whether queues are to tell of what they do.
    pub fn is_traced(&self) -> bool {
        self.watch.is_traced()
    }
}

impl Around {
    /// A queue of `port` that receives, and what goes around it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn rx(&mut self, port: &OpenPort, queue: u16) -> Result<Box<dyn RxQueue>> {
        let rx = self.watch.rx(port, queue)?;
        let Some((_, capture)) = &self.capture else { return Ok(rx) };
        let name = format!("rx{queue}");
        let tapped = capture.tap(rx, format!("port {} {name}", port.number), Direction::In)?;
        self.tapped(port, name, tapped.counters().clone());
        Ok(Box::new(tapped))
    }

    /// A queue of `port` that sends, and what goes around it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn tx(&mut self, port: &OpenPort, queue: u16) -> Result<Box<dyn TxQueue>> {
        let mut tx = self.watch.tx(port, queue)?;
        let name = format!("tx{queue}");
        if let Some((_, capture)) = &self.capture {
            let tapped = capture.tap(tx, format!("port {} {name}", port.number), Direction::Out)?;
            self.tapped(port, name.clone(), tapped.counters().clone());
            tx = Box::new(tapped);
        }
        let Some(faults) = self.faults else { return Ok(tx) };
        // Each queue has chances of its own.
        let seed = faults.seed.wrapping_add((port.number as u64) << 32 | u64::from(queue));
        let faulty = Faulty::new(tx, Faults { seed, ..faults }, port.pool.cache(COPIES));
        let counters = faulty.counters().clone();
        let counted = move || {
            let c = &counters;
            let all = [
                ("dropped_faults", &c.dropped),
                ("dropped_abandoned", &c.abandoned),
                (DUPLICATED, &c.duplicated),
                ("faults_no_buffers", &c.no_buffers),
                ("faults_corrupted", &c.corrupted),
                ("faults_truncated", &c.truncated),
                ("faults_reordered", &c.reordered),
            ];
            named(&name, all.into_iter().map(|(name, count)| (name, count.get())))
        };
        port.more.add(counted);
        Ok(Box::new(faulty))
    }

    fn tapped(&mut self, port: &OpenPort, queue: String, counters: Arc<CaptureCounters>) {
        self.taps.push(counters.clone());
        let counted = move || {
            let all = [("captured", counters.captured.get()), ("capture_missed", counters.missed.get())];
            named(&queue, all.into_iter())
        };
        port.more.add(counted);
    }

    /// Closes the socket, and the file; says what is in that. Before the ports are closed, after their queues.
    ///
    /// # Errors
    /// Where the file could not be written to its end.
    pub fn finish(self) -> Result<()> {
        let Self { server, capture, taps, .. } = self;
        drop(server);
        let Some((path, capture)) = capture else { return Ok(()) };
        let written = capture.finish()?;
        let missed: u64 = taps.iter().map(|counters| counters.missed.get()).sum();
        let (written, missed) = (output::count(written), output::count(missed));
        output::note(format!("{}: {written} packets, and {missed} missed", path.display()));
        Ok(())
    }
}
