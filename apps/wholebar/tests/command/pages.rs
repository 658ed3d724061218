//! `wholebar pages` and its reports, as people use them, on models.

use crate::common::{assert_fits, catches_interrupts, command, interrupt, on_one_line, run_in, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const MODEL: &str = "sim:nvme,size=16M,block=4096,backing=null";

fn works(dir: &Path, line: &str) -> String {
    let (code, out, error) = run_in(dir, line);
    assert_eq!(code, Some(0), "{line}\n{error}");
    out
}

fn fails(dir: &Path, line: &str, says: &[&str]) {
    let (code, out, error) = run_in(dir, line);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{line}\n{error}");
    for text in says {
        assert!(error.contains(text), "{line}\n{error}\ndoes not say {text:?}");
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Whether a page needs nothing but itself.
fn assert_self_contained(html: &str) {
    let html = html.replace("http://www.w3.org/2000/svg", "");
    for part in ["http:", "https:", "<script", "src=", "href=", "url(", "@import"] {
        assert!(!html.contains(part), "{part} in\n{html}");
    }
    assert!(html.contains("prefers-color-scheme:dark") && html.ends_with("</html>"), "{html}");
}

#[test]
fn reports_of_4_and_64_kib_pages_and_their_comparison() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = works(dir, &format!("pages {MODEL} --quick --runtime 1 --json small.json --html small.html"));
    for says in ["One access of a register", "a model in this process"] {
        assert!(on_one_line(&text).contains(says), "{text}");
    }
    assert_fits(&text);
    works(dir, &format!("pages {MODEL},page=64k --quick --runtime 1 --json large.json"));
    let (small, large) = (read(&dir.join("small.json")), read(&dir.join("large.json")));

    for (report, plans) in [(&small, 5), (&large, 3)] {
        assert_eq!((&report["schema"], &report["device"]["origin"]), (&json!("wholebar.pages/1"), &json!("model")));
        let runs = report["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 9 * plans);
        for run in runs {
            // The table is in the second 8 KiB of the BAR, the doorbells in the first.
            let direct = run["policy"] == "whole" || (run["policy"] == "carved" && run["page_size"] == 4096);
            let count = |how: &str| run["doorbells"][how].as_u64().unwrap();
            let rung = count("direct") + count("trapped");
            assert_eq!(count(if direct { "direct" } else { "trapped" }), rung, "{run}");
            assert_eq!((run["rounds"].as_array().unwrap().len(), &run["errors"]), (5, &json!(0)), "{run}");
        }
        assert!(runs.iter().all(|run| run["iops"].as_f64().unwrap() > 0.0), "{runs:?}");
        let costs = report["registers"]["accesses"].as_array().unwrap();
        let p50 = |i: usize| costs[i]["ns"]["p50"].as_f64().unwrap();
        let pinned = report["memory"]["pinned"][0]["pinned"].as_array().unwrap();
        assert_eq!(pinned, &[12 << 10, 32 << 10, 128 << 10].map(|bytes| json!(bytes)), "of a queue pair");
        assert!(report["memory"]["backings"].as_array().unwrap().iter().all(|b| b["read_ns"].as_f64().unwrap() > 0.0));
        assert!(costs.len() == 4 && p50(0) < p50(1) && p50(2) < p50(3), "{costs:?}");
    }
    for crossover in small["crossovers"].as_array().unwrap() {
        let plan = crossover["plan"].as_str().unwrap();
        assert!(["carved, 16 KiB", "carved, 64 KiB", "trapped"].contains(&plan), "{crossover}");
    }
    let html = fs::read_to_string(dir.join("small.html")).unwrap();
    assert_self_contained(&html);
    for part in ["queue depth, commands", "reads/s", "MSI-X table", "carved, 16 KiB", "model"] {
        assert!(html.contains(part), "{part}");
    }
    // Where no run had its cores, nothing is compared.
    let trusted = !small["summary"].as_str().unwrap().starts_with("None of these figures can be trusted");
    assert_eq!(html.contains("% of whole"), trusted, "{}", small["summary"]);

    let text = works(dir, "pages compare small.json large.json --json both.json --html both.html --svg both.svg");
    assert!(text.contains("small (4 KiB pages)") && text.contains("large (64 KiB pages)"), "{text}");
    assert_fits(&text);
    let both = read(&dir.join("both.json"));
    assert_eq!(both["schema"], "wholebar.pages-comparison/1");
    // What was read is what was written.
    assert_eq!((&both["hosts"][0]["report"], &both["hosts"][1]["report"]), (&small, &large));
    assert_self_contained(&fs::read_to_string(dir.join("both.html")).unwrap());
    let svg = fs::read_to_string(dir.join("both.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("var(--look0)") && svg.contains("reads/s"), "{svg}");

    refusals(dir, &small);
}

/// What cannot be compared, made from a report that can.
fn refusals(dir: &Path, report: &Value) {
    let write = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut changed = report.clone();
        change(&mut changed);
        fs::write(dir.join(name), changed.to_string()).unwrap();
    };
    write("hardware", &|r| r["device"]["origin"] = json!("hardware"));
    write("other", &|r| r["device"]["ids"] = json!("144d:a808"));
    write("bar", &|r| r["device"]["bars"][0]["table"]["start"] = json!(0x3000));
    write("load", &|r| r["runs"].as_array_mut().unwrap().retain(|run| run["queue_depth"] != 8));
    write("target", &|r| r["target"] = json!("sim:nvme,size=16M,block=4096,backing=ram"));
    write("bench", &|r| r["schema"] = json!("wholebar.bench/1"));
    write("none", &|r| drop(r.as_object_mut().unwrap().remove("schema")));
    write("part", &|r| drop(r.as_object_mut().unwrap().remove("host")));
    write("wrong", &|r| r["runs"][0]["iops"] = json!(-1.0));
    write("kind", &|r| r["runs"] = json!("many"));
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("binary"), [0x7f, b'E', b'L', b'F', 0xff]).unwrap();
    fs::write(dir.join("half"), &report.to_string()[..1000]).unwrap();
    for (name, says) in [
        ("hardware", &["--anyway", "model", "hardware"][..]),
        ("other", &["--anyway", "the device", "144d:a808"]),
        ("bar", &["--anyway", "BARs", "0x3000"]),
        ("load", &["--anyway", "what was done"]),
        ("target", &["--anyway", "backing=ram"]),
        ("bench", &["wholebar.bench/1", "wholebar.pages/1"]),
        ("none", &["no schema"]),
        ("part", &["host"]),
        ("wrong", &["no measurement"]),
        ("kind", &["no whole report"]),
        ("empty", &["is empty"]),
        ("binary", &["not JSON"]),
        ("half", &["not JSON"]),
        ("missing", &["missing", "No such file"]),
        (".", &["directory"]),
    ] {
        fails(dir, &format!("pages compare small.json {name}"), says);
    }
    let text = works(dir, "pages compare small.json other --anyway --html anyway.html");
    assert!(text.contains("NOT COMPARABLE"), "{text}");
    assert!(fs::read_to_string(dir.join("anyway.html")).unwrap().contains("Not comparable"));
}

#[test]
fn an_interruption_gives_back_what_was_measured() {
    // Register accesses take the first 40 seconds, and each kind of them two at a time. A busy machine may let this test see nothing of that, or all.
    for seconds in [3, 10, 20, 30] {
        let mut pages = command(&format!("pages {MODEL} --runtime 400 --json -"));
        let mut child = pages.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_until(&mut child, "it can be interrupted", catches_interrupts);
        std::thread::sleep(Duration::from_secs(seconds));
        interrupt(&child);
        let report: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
        assert_eq!((child.wait().unwrap().code(), &report["interrupted"]), (Some(0), &json!(true)));
        let accesses = report["registers"]["accesses"].as_array().unwrap();
        if !accesses.is_empty() && report["runs"] == json!([]) {
            return;
        }
    }
    panic!("it is never interrupted in between");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fails(dir.path(), "pages sim:fpga", &["sim:fpga", "no NVMe controller", "010802"]);
    fails(dir.path(), &format!("pages {MODEL} --nsid 9"), &["namespace 9"]);
    fails(dir.path(), "pages vfio-user:missing", &["missing", "No such file"]);
    fails(dir.path(), "pages ffff:1f:1f.7", &["no such PCI function"]);
}
