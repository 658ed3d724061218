//! Programs that move packets, watched by others while they run.

use assert_cmd::Command;
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::Value;
use std::fs::File;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

const WHOLEBAR: &str = env!("CARGO_BIN_EXE_wholebar");

fn stat(line: &str) -> Output {
    let mut command = Command::new(WHOLEBAR);
    command.args(["net", "stat"]).args(line.split_whitespace()).timeout(Duration::from_secs(60)).output().unwrap()
}

fn counter(snapshot: &Value, queue: &str, name: &str) -> u64 {
    let queues = snapshot["ports"][0]["queues"].as_array().unwrap();
    queues.iter().find(|q| q["queue"] == queue).unwrap()["counters"][name].as_u64().unwrap()
}

#[test]
fn a_run_is_watched_captured_and_made_worse_and_every_packet_is_accounted_for() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("s"), dir.path().join("all.pcapng"));
    let mut run = std::process::Command::new(WHOLEBAR)
        .args(
            "net fwd sim:virtio-net --mode txonly --time 4 --json --faults drop=0.1,duplicate=0.1,reorder=0.1"
                .split(' '),
        )
        .args(["--stats-socket".as_ref(), socket.as_os_str(), "--capture".as_ref(), file.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let path = socket.to_str().unwrap();
    let mut snapshot = Value::Null;
    while snapshot["ports"].is_null() || counter(&snapshot, "rx0", "packets") == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "no packets are seen: {snapshot}");
        assert!(run.try_wait().unwrap().is_none(), "it ended early");
        let output = stat(&format!("{path} --json"));
        if output.status.success() {
            snapshot = serde_json::from_slice(&output.stdout).unwrap();
        }
    }
    assert_eq!(snapshot["process"], run.id());
    assert!(counter(&snapshot, "tx0", "dropped_faults") > 0);

    let table = String::from_utf8(stat(path).stdout).unwrap();
    assert!(table.contains("rx0") && table.contains("dropped faults") && table.contains("pool"), "{table}");
    // It watches until there is nothing to watch any more.
    let watched = stat(&format!("{path} --watch 0.2 --json"));
    assert!(watched.status.success() || String::from_utf8_lossy(&watched.stderr).contains("no such socket"));
    let lines: Vec<Value> =
        String::from_utf8(watched.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sent: Vec<_> = lines.iter().map(|line| counter(line, "tx0", "packets")).collect();
    assert!(sent.len() > 2 && sent.is_sorted() && sent[0] < sent[sent.len() - 1], "{sent:?}");

    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("all.pcapng: "), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
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
    assert!(!socket.exists() && !stat(path).status.success());
}

/// What was done to packets on their way is what the receiver finds.
#[test]
fn faults_are_found_by_who_receives() {
    let port = "sim:virtio-net,wire=pair:f,full=wait";
    let line = format!("net gen {port} --to {port} --rate 20k --count 5000 --tolerate --json");
    let mut command = Command::new(WHOLEBAR);
    command.args(line.split(' ')).args(["--faults", "drop=0.02,duplicate=0.05,reorder=0.02,by=4,seed=11"]);
    let output = command.timeout(Duration::from_secs(120)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
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
