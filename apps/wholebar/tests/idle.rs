//! `wholebar idle`, on models, as people use it. Nothing is said of how long anything takes.

use assert_cmd::Command;
use serde_json::Value;
use std::time::Duration;

fn wholebar(line: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wholebar"));
    let output = command.args(line.split_whitespace()).timeout(Duration::from_secs(300)).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn report(line: &str) -> Value {
    let (code, out, error) = wholebar(line);
    assert_eq!(code, Some(0), "{line}\n{error}");
    serde_json::from_str(&out).unwrap()
}

/// Each row has what it offers, nothing is lost, and only those that may sleep do.
fn check(report: &Value) {
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((report["schema"].as_str(), runs.len()), (Some("wholebar.idle/1"), 18));
    for run in runs {
        let number = |name: &str| run[name].as_u64().unwrap();
        assert_eq!(number("begun"), number("back") + number("lost") + number("failed"), "{run}");
        assert_eq!(number("failed"), 0, "{run}");
        assert_eq!(number("back") == 0, run["offered"] == 0.0, "{run}");
        assert!(run["policy"] != "poll" || number("slept") == 0, "{run}");
        assert!(run["policy"] != "sleep" || run["offered"] != 0.0 || number("slept") > 0, "{run}");
    }
}

#[test]
fn a_disk_s_rows_are_complete() {
    for target in ["sim:nvme,backing=null", "sim:virtio-blk,size=16M", "sim:nvme,backing=null,page=64k --model-rests"] {
        check(&report(&format!("idle {target} --quick --json -")));
    }
}

#[test]
fn a_port_s_rows_are_complete() {
    check(&report("idle sim:virtio-net --quick --json -"));
}

#[test]
fn people_get_a_table() {
    let (code, out, error) = wholebar("idle sim:virtio-net --seconds 0.05 --model-rests");
    assert_eq!(code, Some(0), "{error}");
    for says in ["hybrid", "sleeps/s", "An eventfd alone takes", "may wait for a sixteenth"] {
        assert!(out.split_whitespace().collect::<Vec<_>>().join(" ").contains(says), "{out}");
    }
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let fails = |line: &str, code, says: &str| {
        let (was, out, error) = wholebar(line);
        assert_eq!((was, out.as_str()), (Some(code), ""), "{line}\n{error}");
        assert!(error.contains(says), "{line}\n{error}");
    };
    fails("idle sim:nvme --depth 0", 2, "--depth");
    fails("idle sim:toaster", 2, "toaster");
    fails("idle sim:fpga --quick", 1, "storage");
    fails("bench --only idle --html x.html", 2, "--html");
}
