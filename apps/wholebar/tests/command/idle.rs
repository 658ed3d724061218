//! `wholebar idle`, on models, as people use it. Nothing is said of how long anything takes.

use crate::common::{assert_fits, fails, json, stdout};
use serde_json::Value;

/// Each row has what it offers, nothing is lost, and only those that may sleep do.
fn check(report: &Value) {
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((report["schema"].as_str(), runs.len()), (Some("wholebar.idle/1"), 18));
    // On a machine that gives a row no core, nothing of it comes back in time.
    assert!(runs.iter().any(|run| run["back"] != 0), "{report}");
    for run in runs {
        let number = |name: &str| run[name].as_u64().unwrap();
        assert_eq!(number("begun"), number("back") + number("lost") + number("failed"), "{run}");
        assert_eq!(number("failed"), 0, "{run}");
        assert!(number("back") == 0 || run["offered"] != 0.0, "{run}");
        assert!(run["policy"] != "poll" || number("slept") == 0, "{run}");
        assert!(run["policy"] != "sleep" || run["offered"] != 0.0 || number("slept") > 0, "{run}");
    }
}

#[test]
fn a_disk_s_rows_are_complete() {
    for target in ["sim:nvme,backing=null", "sim:virtio-blk,size=16M", "sim:nvme,backing=null,page=64k --model-rests"] {
        check(&json(&format!("idle {target} --quick --json -")));
    }
}

#[test]
fn a_port_s_rows_are_complete() {
    check(&json("idle sim:virtio-net --quick --json -"));
}

#[test]
fn people_get_a_table() {
    let out = stdout("idle sim:virtio-net --seconds 0.05 --model-rests");
    for says in ["hybrid", "sleeps/s", "An eventfd alone takes", "may wait for a sixteenth"] {
        assert!(out.split_whitespace().collect::<Vec<_>>().join(" ").contains(says), "{out}");
    }
    assert_fits(&out);
}

#[test]
fn what_cannot_be_measured_is_said() {
    fails("idle sim:nvme --depth 0", 2, &["--depth"]);
    fails("idle sim:toaster", 2, &["toaster"]);
    fails("idle sim:fpga --quick", 1, &["storage"]);
    fails("bench --only idle --html x.html", 2, &["--html"]);
}
