//! Programs that move packets, watched by others while they run.

use crate::common::{PATIENCE, Running, assert_fits, json, on_one_line, run};
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Instant;

fn stat(line: &str) -> (Option<i32>, String, String) {
    run(&format!("net stat {line}"))
}

fn counter(snapshot: &Value, queue: &str, name: &str) -> u64 {
    let queues = snapshot["ports"][0]["queues"].as_array().unwrap();
    queues.iter().find(|q| q["queue"] == queue).unwrap()["counters"][name].as_u64().unwrap()
}

#[test]
fn a_run_is_watched_captured_and_made_worse_and_every_packet_is_accounted_for() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("s"), dir.path().join("all.pcapng"));
    let mut run = Running::start(&format!(
        "net fwd sim:virtio-net --mode txonly --json --faults drop=0.1,duplicate=0.1,reorder=0.1 --stats-socket {} --capture {}",
        socket.display(),
        file.display()
    ));
    let began = Instant::now();
    let path = socket.to_str().unwrap();
    let mut snapshot = Value::Null;
    let all = [("rx0", "packets"), ("tx0", "dropped_faults"), ("tx0", "faults_duplicated")];
    while snapshot["ports"].is_null() || all.iter().any(|(queue, name)| counter(&snapshot, queue, name) == 0) {
        assert!(began.elapsed() < PATIENCE, "no packets are seen: {snapshot}");
        assert!(run.0.try_wait().unwrap().is_none(), "it ended early");
        let (code, out, _) = stat(&format!("{path} --json"));
        if code == Some(0) {
            snapshot = serde_json::from_str(&out).unwrap();
        }
    }
    assert_eq!(snapshot["process"], run.0.id());

    let (_, table, _) = stat(path);
    for name in ["rx0", "dropped faults", "pool"] {
        assert!(on_one_line(&table).contains(name), "{table}");
    }
    assert_fits(&table);
    // It watches until there is nothing to watch any more.
    let mut watching = Running::start(&format!("net stat {path} --watch 0.05 --json"));
    let lines = BufReader::new(watching.0.stdout.take().unwrap()).lines();
    let mut sent = lines.map(|line| counter(&serde_json::from_str(&line.unwrap()).unwrap(), "tx0", "packets"));
    let mut counts = vec![sent.next().unwrap()];
    while counts.len() < 3 || counts.last() == counts.first() {
        counts.push(sent.next().unwrap());
    }
    run.interrupt();
    counts.extend(sent);
    assert!(counts.is_sorted(), "{counts:?}");
    let said = std::io::read_to_string(watching.0.stderr.take().unwrap()).unwrap();
    // Where it looks just then, it finds nobody there.
    assert!(watching.0.wait().unwrap().success() || said.contains("no such socket") || said.contains(path), "{said}");

    let said = std::io::read_to_string(run.0.stderr.take().unwrap()).unwrap();
    let (code, out) = run.finish();
    assert!(code == Some(0) && said.contains("all.pcapng: "), "{said}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let of = |name: &str| report["accounting"][name].as_u64().unwrap();
    assert!(of("duplicated") > 0 && of("refused") > 0);
    assert_eq!(
        of("received") + of("made") + of("duplicated"),
        of("sent") + of("kept") + of("refused") + of("left"),
        "{report}"
    );
    // Everything that queues moved, in two interfaces.
    let mut reader = PcapNgReader::new(File::open(&file).unwrap()).unwrap();
    let mut packets = [0; 2];
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            packets[packet.interface_id as usize] += 1;
            assert_eq!(packet.data.len(), 64);
        }
    }
    let missed: u64 =
        said.split("packets, and ").nth(1).unwrap().split(' ').next().unwrap().replace(',', "").parse().unwrap();
    assert_eq!(packets.iter().sum::<u64>() + missed, of("received") + of("sent"));
    assert!(!socket.exists() && stat(path).0 != Some(0));
}

/// What was done to packets on their way is what the receiver finds.
#[test]
fn faults_are_found_by_who_receives() {
    let port = "sim:virtio-net,wire=pair:f,full=wait";
    let line = format!("net gen {port} --to {port} --rate max --count 5000 --tolerate --json");
    let report = json(&format!("{line} --faults drop=0.02,duplicate=0.05,reorder=0.02,by=4,seed=11"));
    let received = &report["received"];
    let of = |name: &str| received[name].as_u64().unwrap();
    let ports = report["ports"].as_array().unwrap();
    let duplicated = ports[0]["duplicated"].as_u64().unwrap();
    assert_eq!(
        (of("lost"), of("uncounted")),
        (received["lost_by_cause"]["tx_faults"].as_u64().unwrap(), 0),
        "{report}"
    );
    assert_eq!((of("packets") + of("lost"), of("duplicate"), of("corrupt")), (5000, duplicated, 0), "{report}");
    assert!(of("lost") > 50 && duplicated > 125 && of("reordered") > 0, "{report}");
}
