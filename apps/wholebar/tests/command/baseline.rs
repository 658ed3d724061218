//! `--baseline` of commands that move packets, and of `bench`: one verdict, over ten rounds of both. Nothing is said of which is faster.

use crate::common::{on_one_line, run, stdout};
use serde_json::Value;

/// Both have ten rounds, and where five of them moved something, the ratio lies in its interval.
fn check(report: &Value) {
    assert_eq!(report["schema"], "wholebar.net-baseline/1");
    let rates = ["target_run", "baseline_run"].map(|run| report[run]["rounds"].as_array().unwrap());
    assert_eq!(rates.map(Vec::len), [10, 10]);
    let moved = |rate: &Value| rate.as_f64().unwrap() > 0.0;
    let both = rates[0].iter().zip(rates[1]).filter(|(a, b)| moved(a) && moved(b)).count();
    assert_eq!(report["ratio"].is_null(), both < 5, "{report}");
    if both < 5 {
        return;
    }
    let [low, median, high] = ["low", "median", "high"].map(|key| report["ratio"][key].as_f64().unwrap());
    assert!(0.0 < low && low <= median && median <= high, "{report}");
}

#[test]
fn packets_of_two_pairs_of_ports_are_compared() {
    let (this, other) = ("sim:virtio-net,wire=pair:a", "sim:virtio-net,wire=pair:b");
    let line =
        format!("net gen {this} --to {this} --rate 10k --time 0.5 --tolerate --baseline {other} --baseline {other}");
    let report: Value = serde_json::from_str(&stdout(&format!("{line} --json"))).unwrap();
    check(&report);
    let text = on_one_line(&stdout(&line));
    assert!(text.contains("verdict: ") && text.contains("10 rounds"), "{text}");
    let line = "net fwd sim:virtio-net --mode txonly --time 0.5 --baseline sim:virtio-net --json";
    check(&serde_json::from_str(&stdout(line)).unwrap());
}

#[test]
fn reads_of_the_model_are_compared_at_each_depth() {
    let reports: Value =
        serde_json::from_str(&stdout("bench --seconds 1 --baseline sim:virtio-blk,size=16M --json -")).unwrap();
    let depths: Vec<_> = reports.as_array().unwrap().iter().map(|report| &report["runs"][0]["queue_depth"]).collect();
    assert_eq!(depths, [1, 32, 128]);
    assert!(reports.as_array().unwrap().iter().all(|report| report["baseline"]["target"] == "sim:virtio-blk,size=16M"));
}

#[test]
fn what_cannot_be_compared_is_stdout() {
    for (line, code, says) in [
        ("net fwd sim:virtio-net --mode rxonly --baseline sim:virtio-net", 2, "--time"),
        ("net fwd sim:virtio-net sim:virtio-net --time 1 --baseline sim:virtio-net", 2, "once for each port"),
        ("net fwd sim:virtio-net --time 1 --baseline sim:virtio-net --capture x.pcapng", 2, "--capture"),
        ("bench --only packets --baseline sim:virtio-blk", 2, "--only"),
        ("bench --seconds 0.3 --baseline kernel:./none", 1, "No such file"),
    ] {
        let (was, out, error) = run(line);
        assert_eq!((was, out.as_str()), (Some(code), ""), "{line}\n{error}");
        assert!(error.contains(says), "{line}\n{error}");
    }
}
