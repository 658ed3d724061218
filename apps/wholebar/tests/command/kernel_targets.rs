//! `wholebar blk` through the kernel, on files: what it is, copies, figures, comparisons; and what a person can get wrong.

use crate::common::{WORK_FAILED, WRONG_USAGE, assert_fits, content, on_one_line, run_in};
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;

fn said(dir: &Path, line: &str) -> String {
    let (code, text, error) = run_in(dir, line);
    assert_eq!(code, Some(0), "{line}\n{error}");
    text
}

/// A directory with a disk of 8 MiB; `None`, with the reason told, where this process may have no rings.
fn disk() -> Option<tempfile::TempDir> {
    // Its file system is likely to have O_DIRECT.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    File::create(dir.path().join("disk")).unwrap().set_len(8 << 20).unwrap();
    let (code, _, error) = run_in(dir.path(), "blk info kernel:./disk");
    if code != Some(0) && error.contains("cannot be set up") {
        eprintln!("skipped: {error}");
        return None;
    }
    Some(dir)
}

#[test]
fn a_file_is_a_disk() {
    let Some(dir) = disk() else { return };
    let dir = dir.path();
    let info: Value = serde_json::from_str(&said(dir, "blk info kernel:./disk,cached --json")).unwrap();
    assert_eq!((&info["driver"], &info["namespaces"][0]["bytes"]), (&"io_uring, cached".into(), &(8 << 20).into()));
    let content = content(1_000_000);
    fs::write(dir.join("in"), &content).unwrap();
    said(dir, "blk write kernel:./disk --in ./in --pad --lba 8");
    let block = |disk: &Value| disk["namespaces"][0]["block_size"].as_u64().unwrap();
    let info: Value = serde_json::from_str(&said(dir, "blk info kernel:./disk --json")).unwrap();
    assert!(fs::read(dir.join("disk")).unwrap()[(block(&info) * 8) as usize..].starts_with(&content));
    said(dir, "blk read kernel:./disk,ro --out ./out");
    assert!(fs::read(dir.join("out")).unwrap() == fs::read(dir.join("disk")).unwrap());
    for more in ["--rw mixed --verify --span 1M", "--rw write --bs 64k --qd 2", "--queues 2 --qd 8"] {
        for way in ["", ",cached", ",sqpoll"] {
            let line = format!("blk perf kernel:./disk{way} --time 0.1 --warmup 0 --json {more}");
            let report: Value = serde_json::from_str(&said(dir, &line)).unwrap();
            let run = &report["runs"][0];
            assert_eq!((&report["device"], &run["errors"]), (&"kernel".into(), &0.into()), "{line}");
            assert!(run["reads"].as_u64().unwrap() + run["writes"].as_u64().unwrap() > 0, "{line}");
            assert!(way == ",sqpoll" || run["doorbells"]["direct"] == 0 && run["doorbells"]["trapped"] != 0, "{line}");
        }
    }
}

#[test]
fn two_disks_are_compared() {
    let Some(dir) = disk() else { return };
    let dir = dir.path();
    for (command, driver) in [("nvme perf sim:nvme", "nvme"), ("blk perf sim:virtio-blk", "virtio")] {
        let line = format!("{command},size=4M --baseline kernel:./disk --qd 8 --warmup 0");
        let text = said(dir, &format!("{line} --time 0.3"));
        for says in ["verdict: ", "baseline", "a model"] {
            assert!(on_one_line(&text).contains(says), "{driver}\n{text}");
        }
        assert_fits(&text);
        let report: Value = serde_json::from_str(&said(dir, &format!("{line} --time 0.3 --json"))).unwrap();
        let other = &report["baseline"];
        assert_eq!((&report["device"], &other["device"]), (&"model".into(), &"kernel".into()));
        let rounds = [&report["runs"][0], &other["run"]].map(|run| run["rounds"].as_array().unwrap());
        assert_eq!((rounds.map(Vec::len), &other["run"]["errors"]), ([10, 10], &0.into()));
        // How many of them count is for the machine to say. Five pairs that do, and moved something, make a ratio.
        let counts = |round: &Value| round["counts"] == true && round["iops"].as_f64().unwrap() > 0.0;
        let both = rounds[0].iter().zip(rounds[1]).filter(|(a, b)| counts(a) && counts(b)).count();
        assert_eq!(other["ratio"].is_null(), both < 5, "{report}");
        if both >= 5 {
            let [low, median, high] = ["low", "median", "high"].map(|key| other["ratio"][key].as_f64().unwrap());
            assert!(0.0 < low && low <= median && median <= high, "{other}");
        }
        // As much of each is touched: 4 MiB of either.
        assert_eq!(report["runs"][0]["block_size"], other["run"]["block_size"]);
    }
}

#[test]
fn what_is_wrong_is_told() {
    let Some(dir) = disk() else { return };
    let dir = dir.path();
    fs::write(dir.join("short"), "short").unwrap();
    for (line, code, texts) in [
        ("blk info kernel:", WRONG_USAGE, &["names nothing", "kernel:/dev/NAME"][..]),
        ("blk info kernel:eth0", WRONG_USAGE, &["network interface", "kernel:./eth0"]),
        ("blk info kernel:,cached", WRONG_USAGE, &["names nothing"]),
        ("nvme identify kernel:./disk", WRONG_USAGE, &["no PCI device", "PCI address"]),
        ("nvme perf kernel:./disk", WRONG_USAGE, &["no PCI device"]),
        ("msix kernel:./disk", WRONG_USAGE, &["no PCI device"]),
        ("net dump kernel:./disk -", WRONG_USAGE, &["is a disk", "kernel:eth0"]),
        ("blk info kernel:./", WORK_FAILED, &["is a directory"]),
        ("blk info kernel:./none", WORK_FAILED, &["No such file", "truncate"]),
        ("blk info kernel:/dev/null", WORK_FAILED, &["a character device"]),
        ("blk info kernel:./short", WORK_FAILED, &["has 5 bytes", "make it longer"]),
        ("blk info kernel:./disk,cached,iopoll", WORK_FAILED, &["O_DIRECT", "leave ,iopoll out"]),
        ("blk write kernel:./disk,ro --in ./disk", WORK_FAILED, &["read-only", "asked for (,ro)"]),
        ("blk perf kernel:./disk,ro --rw mixed --time 0.1", WORK_FAILED, &["read-only"]),
        ("blk perf kernel:./disk --bs 100 --time 0.1", WORK_FAILED, &["100", "byte blocks of namespace 1"]),
        ("blk perf kernel:./disk --entries 3", WRONG_USAGE, &["power of two"]),
        ("blk perf sim:nvme --baseline kernel:./none --time 0.1", WORK_FAILED, &["No such file"]),
        ("blk perf sim:nvme --baseline kernel:eth0 --time 0.1", WRONG_USAGE, &["network interface"]),
        ("blk perf sim:nvme --baseline sim:nvme --verify", WRONG_USAGE, &["--baseline", "--verify"]),
    ] {
        let (returned, text, error) = run_in(dir, line);
        assert_eq!((returned, text.as_str()), (Some(code), ""), "{line}\n{error}");
        for text in texts {
            assert!(error.contains(text), "{line}: {text:?} is missing\n{error}");
        }
    }
}
