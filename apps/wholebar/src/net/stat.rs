//! `wholebar net stat`: what the ports of another process have come to, by the socket that it serves its statistics on.

use crate::args;
use crate::output;
use crate::signal;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::statistics::Snapshot;

/// Show statistics of a program that moves packets, while it runs
///
/// The program makes the socket: `wholebar net fwd ... --stats-socket PATH`, or any that uses the framework for it. Others can read it, too:
/// it speaks HTTP, and has JSON under /json and OpenMetrics text under /metrics.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar net stat /run/fwd.sock
  wholebar net stat /run/fwd.sock --watch 1
  wholebar net stat /run/fwd.sock --json
  curl --unix-socket /run/fwd.sock http://localhost/metrics")]
pub struct Args {
    /// The program's socket
    #[arg(value_name = "PATH")]
    socket: PathBuf,
    /// Look again and again, every so often, and show rates
    #[arg(long, value_name = "SECONDS", value_parser = interval)]
    watch: Option<Duration>,
    /// Write JSON; with --watch a line each time
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    args::seconds(text).and_then(|time| match time {
        time if time < Duration::from_millis(10) => Err("the shortest is 0.01".to_owned()),
        time => Ok(time),
    })
}

/// How long a program has to answer.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(args: Args) -> Result<()> {
    let mut last = Snapshot::read(&args.socket, PATIENCE)?;
    let Some(every) = args.watch else {
        return if args.json { output::print_json(&last) } else { output::print(text(&last, None)) };
    };
    let interrupted = signal::interrupted()?;
    let mut next = Instant::now() + every;
    if args.json {
        output::print(serde_json::to_string(&last)? + "\n")?;
    }
    while wait(next, &interrupted) {
        next += every;
        if !args.socket.exists() {
            output::note("the program has ended");
            return Ok(());
        }
        let now = Snapshot::read(&args.socket, PATIENCE)?;
        if args.json {
            output::print(serde_json::to_string(&now)? + "\n")?;
        } else {
            output::print(text(&now, Some(&last)) + "\n")?;
        }
        last = now;
    }
    Ok(())
}

/// Waits; false where somebody doesn't want to any more.
fn wait(until: Instant, interrupted: &AtomicBool) -> bool {
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return false;
        }
        match until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return true,
            left => std::thread::sleep(left.min(Duration::from_millis(50))),
        }
    }
}

/// Ports and pools for people: with rates, where there is something to compare with.
fn text(now: &Snapshot, before: Option<&Snapshot>) -> String {
    // Another process that took the name over has counted from 0.
    let before = before.filter(|b| b.process == now.process && b.nanoseconds < now.nanoseconds);
    let seconds = before.map_or(1.0, |b| (now.nanoseconds - b.nanoseconds) as f64 / 1e9);
    let uptime = now.nanoseconds as f64 / 1e9;
    let mut text = format!("{}, process {}, counting for {uptime:.1} s\n", now.program, now.process);
    for port in &now.ports {
        let link = if port.link_up { "up" } else { "down" };
        let speed = port.link_mbps.map_or_else(String::new, |speed| format!(", {speed} Mb/s"));
        text += "\n";
        text += &output::wrapped(&format!("{}: link {link}{speed}, {}, MTU {}", port.name, port.mac, port.mtu), 2);
        let old = before.and_then(|b| b.ports.iter().find(|p| p.name == port.name));
        // Queues have packets; the port itself and a model have other counts.
        let (queues, rest): (Vec<_>, Vec<_>) = port.queues.iter().partition(|q| q.counters.contains_key("packets"));
        let rows = queues.iter().map(|queue| {
            let old = old.and_then(|p| p.queues.iter().find(|q| q.queue == queue.queue)).map(|q| &q.counters);
            row(&queue.queue, &queue.counters, before.map(|_| (old, seconds)))
        });
        let mut columns = vec!["  queue", ">packets", ">bytes", ">dropped"];
        if before.is_some() {
            columns.extend([">pps", ">Gb/s", ">drops/s"]);
        }
        text += &output::table(columns, rows);
        for queue in queues.into_iter().chain(rest) {
            let (name, others) = (&queue.queue, others(&queue.counters));
            let name = if name.is_empty() { String::new() } else { format!("{name}: ") };
            if !others.is_empty() {
                text += &output::wrapped(&format!("  {name}{others}"), 4);
            }
        }
    }
    let pools = now.pools.iter().map(|pool| {
        let out = pool.capacity.saturating_sub(pool.available);
        vec![pool.name.clone(), pool.capacity.to_string(), pool.available.to_string(), out.to_string()]
    });
    text += "\n";
    text += &output::table(["pool", ">buffers", ">home", ">out"], pools);
    text
}

/// A queue's line; `before`: with rates, by what it had counted so many seconds ago, where it was there.
fn row(name: &str, now: &Counters, before: Option<(Option<&Counters>, f64)>) -> Vec<String> {
    let count = |of: Option<u64>| of.map_or_else(String::new, output::count);
    let (packets, bytes) =
        (|counters: &Counters| counters.get("packets").copied(), |counters: &Counters| counters.get("bytes").copied());
    let mut row = vec![format!("  {name}"), count(packets(now)), count(bytes(now)), count(dropped(now))];
    if let Some((old, seconds)) = before {
        let rate = |of: &dyn Fn(&Counters) -> Option<u64>| Some(of(now)?.saturating_sub(of(old?)?) as f64 / seconds);
        let shown = |rate: Option<f64>| rate.map_or_else(String::new, output::rate);
        let gigabits = rate(&bytes).map_or_else(String::new, |bytes| format!("{:.3}", bytes * 8e-9));
        row.extend([shown(rate(&packets)), gigabits, shown(rate(&dropped))]);
    }
    row
}

type Counters = BTreeMap<String, u64>;

/// All that a queue dropped; `None` of what is no queue.
fn dropped(counters: &Counters) -> Option<u64> {
    let mut drops = counters.iter().filter(|(name, _)| name.starts_with("dropped_")).peekable();
    drops.peek()?;
    Some(drops.map(|(_, n)| n).sum())
}

/// Counters that have no column and are not 0.
fn others(counters: &Counters) -> String {
    let shown = ["packets", "bytes"];
    let all = counters.iter().filter(|(name, n)| **n > 0 && !shown.contains(&name.as_str()));
    let all: Vec<_> = all.map(|(name, n)| format!("{} {}", name.replace('_', " "), output::count(*n))).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(process: u32, nanoseconds: u64, packets: u64) -> Snapshot {
        let json = format!(
            r#"{{"format":"wholebar.statistics/1","program":"fwd","process":{process},"nanoseconds":{nanoseconds},
            "ports":[{{"name":"a","mac":"02:00:00:00:00:01","mtu":1500,"link_up":true,"link_mbps":1000,"queues":[
              {{"queue":"rx0","counters":{{"packets":{packets},"bytes":{},"dropped_x":{packets},"armed":5,"bursts":0}}}},
              {{"queue":"","counters":{{"resets":1}}}}]}}],
            "pools":[{{"name":"a","capacity":8,"available":5}}]}}"#,
            packets * 125
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn tables_are_what_was_counted() {
        let text = text(&snapshot(7, 2_500_000_000, 1_000), None);
        assert_eq!(
            text,
            "fwd, process 7, counting for 2.5 s\n\n\
             a: link up, 1000 Mb/s, 02:00:00:00:00:01, MTU 1500\n\
             \x20 queue  packets    bytes  dropped\n\
             \x20 rx0      1,000  125,000    1,000\n\
             \x20 rx0: armed 5, dropped x 1,000\n\
             \x20 resets 1\n\n\
             pool  buffers  home  out\n\
             a           8     5    3\n"
        );
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let before = snapshot(7, 1_000_000_000, 1_000);
        let later = text(&snapshot(7, 3_000_000_000, 5_000_000), Some(&before));
        let line = later.lines().find(|line| line.contains("rx0")).unwrap();
        // 4,999,000 packets of 125 bytes in 2 s.
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>()[1..],
            ["5,000,000", "625,000,000", "5,000,000", "2.50", "M", "2.500", "2.50", "M"]
        );
        // Another process under the same name.
        let other = text(&snapshot(8, 3_000_000_000, 10), Some(&before));
        assert!(!other.contains("pps"), "{other}");
    }
}
