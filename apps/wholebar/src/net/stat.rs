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
    let mut rows = Vec::new();
    for port in &now.ports {
        for (i, queue) in port.queues.iter().enumerate() {
            let count = |name: &str| queue.counters.get(name).copied();
            let old = before.and_then(|b| b.ports.iter().find(|p| p.name == port.name));
            let old = old.and_then(|p| p.queues.iter().find(|q| q.queue == queue.queue)).map(|q| &q.counters);
            let rate = |of: &dyn Fn(&Counters) -> Option<u64>| {
                let (now, old) = (of(&queue.counters)?, of(old?)?);
                Some(now.saturating_sub(old) as f64 / seconds)
            };
            let shown = |rate: Option<f64>| rate.map_or_else(String::new, output::rate);
            let of = |name: &'static str| move |counters: &Counters| counters.get(name).copied();
            let mut row = vec![
                if i == 0 { port.name.clone() } else { String::new() },
                queue.queue.clone(),
                count("packets").map_or_else(String::new, output::count),
                count("bytes").map_or_else(String::new, output::count),
                dropped(&queue.counters).map_or_else(String::new, output::count),
            ];
            if before.is_some() {
                let gigabits = rate(&of("bytes")).map_or_else(String::new, |bytes| format!("{:.3}", bytes * 8e-9));
                row.extend([shown(rate(&of("packets"))), gigabits, shown(rate(&dropped))]);
            }
            row.push(others(&queue.counters));
            rows.push(row);
        }
    }
    let mut columns = vec!["port", "queue", ">packets", ">bytes", ">dropped"];
    if before.is_some() {
        columns.extend([">pps", ">Gb/s", ">drops/s"]);
    }
    columns.push("other counts, and drops by cause");
    let uptime = now.nanoseconds as f64 / 1e9;
    let mut text = format!("{}, process {}, counting for {uptime:.1} s\n\n", now.program, now.process);
    text += &output::table(columns, rows);
    let links = now.ports.iter().map(|port| {
        let speed = port.link_mbps.map_or_else(String::new, |speed| format!("{speed} Mb/s"));
        let link = if port.link_up { "up" } else { "down" };
        vec![port.name.clone(), link.to_owned(), speed, port.mac.clone(), port.mtu.to_string()]
    });
    text += "\n";
    text += &output::table(["port", "link", ">speed", "address", ">MTU"], links);
    let pools = now.pools.iter().map(|pool| {
        let out = pool.capacity.saturating_sub(pool.available);
        vec![pool.name.clone(), pool.capacity.to_string(), pool.available.to_string(), out.to_string()]
    });
    text += "\n";
    text += &output::table(["pool", ">buffers", ">home", ">out"], pools);
    text
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
             port  queue  packets    bytes  dropped  other counts, and drops by cause\n\
             a     rx0      1,000  125,000    1,000  armed 5, dropped x 1,000\n\
             \x20                                       resets 1\n\n\
             port  link      speed  address             MTU\n\
             a     up    1000 Mb/s  02:00:00:00:00:01  1500\n\n\
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
            line.split_whitespace().collect::<Vec<_>>()[2..10],
            ["5,000,000", "625,000,000", "5,000,000", "2.50", "M", "2.500", "2.50", "M"]
        );
        // Another process under the same name.
        let other = text(&snapshot(8, 3_000_000_000, 10), Some(&before));
        assert!(!other.contains("pps"), "{other}");
    }
}
