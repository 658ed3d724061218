//! Programs that move packets, watched by others while they run.

use assert_cmd::Command;
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

const WHOLEBAR: &str = env!("CARGO_BIN_EXE_wholebar");
const PATIENCE: Duration = Duration::from_secs(120);

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
        .args("net fwd sim:virtio-net --mode txonly --json --faults drop=0.1,duplicate=0.1,reorder=0.1".split(' '))
        .args(["--stats-socket".as_ref(), socket.as_os_str(), "--capture".as_ref(), file.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let path = socket.to_str().unwrap();
    let mut snapshot = Value::Null;
    let all = [("rx0", "packets"), ("tx0", "dropped_faults"), ("tx0", "faults_duplicated")];
    while snapshot["ports"].is_null() || all.iter().any(|(queue, name)| counter(&snapshot, queue, name) == 0) {
        assert!(began.elapsed() < PATIENCE, "no packets are seen: {snapshot}");
        assert!(run.try_wait().unwrap().is_none(), "it ended early");
        let output = stat(&format!("{path} --json"));
        if output.status.success() {
            snapshot = serde_json::from_slice(&output.stdout).unwrap();
        }
    }
    assert_eq!(snapshot["process"], run.id());

    let table = String::from_utf8(stat(path).stdout).unwrap();
    assert!(table.contains("rx0") && table.contains("dropped faults") && table.contains("pool"), "{table}");
    // It watches until there is nothing to watch any more.
    let mut watching = std::process::Command::new(WHOLEBAR);
    watching.args(["net", "stat", path, "--watch", "0.05", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watching = watching.spawn().unwrap();
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut sent = lines.map(|line| counter(&serde_json::from_str(&line.unwrap()).unwrap(), "tx0", "packets"));
    let mut counts = vec![sent.next().unwrap()];
    while counts.len() < 3 || counts.last() == counts.first() {
        counts.push(sent.next().unwrap());
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&run), rustix::process::Signal::INT).unwrap();
    counts.extend(sent);
    assert!(counts.is_sorted(), "{counts:?}");
    let watched = watching.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&watched.stderr);
    // Where it looks just then, it finds nobody there.
    assert!(watched.status.success() || said.contains("no such socket") || said.contains(path), "{said}");

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
    let line = format!("net gen {port} --to {port} --rate max --count 5000 --tolerate --json");
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
