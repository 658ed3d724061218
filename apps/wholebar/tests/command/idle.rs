//! `wholebar idle`, on models, as people use it. Nothing is said of how long anything takes.

use crate::common::{assert_fits, fails, json, on_one_line, stdout};
use serde_json::Value;

/// Each row accounts for what it began, where nothing is offered nothing is begun, and only those that may sleep do.
fn check(report: &Value) {
    let runs = report["runs"].as_array().unwrap();
    assert_eq!((report["schema"].as_str(), runs.len()), (Some("wholebar.idle/2"), 18));
    assert!(runs.iter().any(|run| run["back"] != 0), "{report}");
    let pause = wholebar::cores::Pause::of_this_cpu();
    assert_eq!(report["pause"], if pause.is_timed() { Value::from(pause.to_string()) } else { Value::Null });
    for run in runs {
        let number = |name: &str| run[name].as_u64().unwrap();
        assert_eq!(number("begun"), number("back") + number("lost") + number("failed"), "{run}");
        assert_eq!(number("failed"), 0, "{run}");
        assert!(run["offered"] != 0.0 || number("begun") == 0, "{run}");
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
    for says in ["hybrid", "sleeps", "how long one alone takes", "may wait for a sixteenth"] {
        assert!(on_one_line(&out).contains(says), "{out}");
    }
    assert_fits(&out);
}

#[test]
fn coalescing_is_set_and_reported() {
    let held = |line: &str| json(&format!("idle {line} --seconds 0.01 --json -"))["coalescing"].clone();
    assert_eq!(held("sim:nvme"), serde_json::json!({ "microseconds": 0, "events": 1 }));
    assert_eq!(held("sim:nvme --coalesce-usecs 150"), serde_json::json!({ "microseconds": 200, "events": 256 }));
    let some = "--coalesce-usecs 50 --coalesce-events 8";
    assert_eq!(held(&format!("sim:virtio-net {some}")), serde_json::json!({ "microseconds": 50, "events": 8 }));
    assert_eq!(held("sim:virtio-blk"), Value::Null);
}

#[test]
fn a_file_is_read_through_the_kernel_and_a_page_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, page) = (dir.path().join("disk"), dir.path().join("idle.html"));
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let line = format!("idle kernel:{} --quick --json - --html {}", disk.display(), page.display());
    // Where io_uring may be had.
    let allowed = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if allowed.is_ok_and(|text| text.trim() == "0") {
        let report = json(&line);
        check(&report);
        assert_eq!(report["device"], "kernel");
        assert_eq!(std::fs::read_to_string(&page).unwrap().matches("<svg").count(), 2);
    }
    stdout(&format!("bench --only idle --seconds 0.5 --html {}", page.display()));
    assert_eq!(std::fs::read_to_string(&page).unwrap().matches("<svg").count(), 4);
}

#[test]
fn what_cannot_be_measured_is_said() {
    fails("idle sim:nvme --depth 0", 2, &["--depth"]);
    fails("idle sim:toaster", 2, &["toaster"]);
    fails("idle sim:fpga --quick", 1, &["storage"]);
    fails("idle sim:nvme --coalesce-usecs 1000000 --quick", 1, &["25500 us at most"]);
    fails("idle sim:virtio-blk --coalesce-usecs 50 --quick", 1, &["cannot be coalesced"]);
    fails("idle sim:nvme --coalesce-events 5", 2, &["--coalesce-usecs"]);
}
