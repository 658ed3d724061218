//! `wholebar blk` on disks of both drivers: on models in its own process and served by another one; and what a person can get wrong.

use crate::common::{
    Running, WORK_FAILED, WRONG_USAGE, assert_fits, content, fails, json, patient, perf, run, stdout, wholebar,
};
use serde_json::Value;
use std::fs;

#[test]
fn what_a_disk_is() {
    let info = json("blk info sim:virtio-blk,size=1M,block=4096 --json");
    assert_eq!((&info["schema"], &info["driver"]), (&"wholebar.blk-info/1".into(), &"virtio".into()));
    let namespace = &info["namespaces"][0];
    assert_eq!(
        (&namespace["nsid"], &namespace["blocks"], &namespace["bytes"]),
        (&1.into(), &256.into(), &(1 << 20).into())
    );
    let info = json("blk info sim:nvme,ns=2,block=512+4096 --json");
    assert_eq!((&info["driver"], info["namespaces"].as_array().unwrap().len()), (&"nvme".into(), 2));
    assert_eq!(info["namespaces"][1]["block_size"], 4096);
    for target in ["sim:virtio-blk,size=1M", "sim:nvme,ns=2"] {
        let text = stdout(&format!("blk info {target}"));
        assert!(
            text.contains("Namespace 1") && text.contains("of 512 bytes") && text.contains("write, flush"),
            "{text}"
        );
        assert_fits(&text);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), [0; 4096]).unwrap();
    let text = stdout(&format!("blk info sim:virtio-blk,ro=1,file={}", dir.path().join("disk").display()));
    assert!(!text.contains("write,"), "{text}");
}

#[test]
fn a_file_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let image = content((2 << 20) + 512);
    fs::write(path("in"), &image).unwrap();
    for model in ["virtio-blk", "nvme"] {
        fs::write(path("disk"), vec![0xff; 4 << 20]).unwrap();
        let target = format!("sim:{model},file={}", path("disk"));
        stdout(&format!("blk write {target} --in {} --offset 1M", path("in")));
        let disk = fs::read(path("disk")).unwrap();
        assert!(disk[1 << 20..][..image.len()] == image, "{model}");
        assert!(disk[..1 << 20].iter().chain(&disk[(3 << 20) + 512..]).all(|b| *b == 0xff), "{model}");
        let done = json(&format!("blk read {target} --lba 2048 --bytes {} --json --out {}", image.len(), path("out")));
        assert_eq!((&done["bytes"], &done["lba"]), (&image.len().into(), &2048.into()));
        assert!(fs::read(path("out")).unwrap() == image, "{model}");
        stdout(&format!("blk read {target} --out {} --qd 1", path("all")));
        assert!(fs::read(path("all")).unwrap() == disk, "{model}");
        wholebar(&format!("blk write {target} --in - --pad --lba 3")).write_stdin([7; 100]).assert().success();
        let disk = fs::read(path("disk")).unwrap();
        assert!(disk[3 * 512..][..100] == [7; 100] && disk[3 * 512 + 100..4 * 512].iter().all(|b| *b == 0), "{model}");
    }
}

#[test]
fn a_disk_of_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let image = content(1 << 20);
    fs::write(path("disk"), &image).unwrap();
    let socket = dir.path().join("socket");
    let _served = Running::serve("virtio-blk", &socket, &format!("file={}", path("disk")));
    let target = patient(&socket);
    stdout(&format!("blk read {target} --out {}", path("out")));
    assert!(fs::read(path("out")).unwrap() == image);
    let report = json(&format!("blk perf {target} --qd 4 --time 0.1 --warmup 0 --json"));
    assert_eq!((&report["device"], &report["runs"][0]["errors"]), (&"emulated".into(), &0.into()));
}

#[test]
fn perf_measures_disks_of_any_driver() {
    for (target, more, trapped) in [
        ("sim:virtio-blk,size=16M", "--policy whole", false),
        ("sim:virtio-blk,size=16M,queues=2", "--policy trapped --queues 2", true),
        ("sim:virtio-blk,size=16M", "--rw mixed --verify --span 1M", false),
        ("sim:nvme,size=16M", "--policy trapped --rw randwrite --verify --bs 8k", true),
        ("sim:nvme,size=16M,ns=2", "--nsid 2 --rw write --entries 64", false),
    ] {
        let line = format!("blk perf {target} --qd 8 --warmup 0.02 {more}");
        let report = perf(&line);
        assert_eq!((&report["schema"], &report["device"]), (&"wholebar.perf/1".into(), &"model".into()));
        let run = &report["runs"][0];
        assert!(run["iops"].as_f64().unwrap() > 0.0 && run["errors"] == 0, "{line}\n{run}");
        assert_eq!(run["doorbells"]["trapped"].as_u64().unwrap() > 0, trapped, "{line}\n{run}");
        assert_eq!(run["doorbells"]["direct"].as_u64().unwrap() > 0, !trapped, "{line}\n{run}");
        assert_eq!(run["read_back"].as_u64().unwrap_or(0) > 0, more.contains("--verify"), "{line}\n{run}");
        assert!(run["latency_ns"]["p50"].as_u64() <= run["latency_ns"]["p99.9"].as_u64());
    }
    let text = stdout("blk perf sim:virtio-blk --time 0.1 --warmup 0 --histogram");
    assert!(text.contains("IOPS") && text.contains("doorbells") && text.contains("p99.9"), "{text}");
    assert_fits(&text);
}

/// Queues that hold less than is asked for are said so of, and lose nothing.
#[test]
fn small_queues_are_told_of() {
    let (_, text, error) = run("blk perf sim:virtio-blk,size=16M --entries 4 --qd 32 --time 0.1 --warmup 0 --json");
    assert!(error.contains("queues hold fewer than 32 commands of this size"), "{error}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["runs"][0]["errors"], 0, "{report}");
    let (_, _, error) = run("blk perf sim:virtio-blk,size=16M --qd 4 --time 0.1 --warmup 0 --json");
    assert!(!error.contains("queues hold"), "{error}");
}

#[test]
fn what_a_person_can_get_wrong() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("short"), [7; 1000]).unwrap();
    fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    for (line, code, says) in [
        ("blk", WRONG_USAGE, &["perf"][..]),
        ("blk info", WRONG_USAGE, &["TARGET"]),
        ("blk info bla", WRONG_USAGE, &["bla", "sim:nvme"]),
        ("blk info sim:virtio-blk,bla=1", WRONG_USAGE, &["bla", "queues"]),
        ("blk info sim:virtio-net", WORK_FAILED, &["no storage driver is for that", "nvme", "virtio"]),
        ("blk perf sim:fpga", WORK_FAILED, &["no storage driver is for that"]),
        ("blk info ffff:1f:1f.7", WORK_FAILED, &["ffff:1f:1f.7", "no such PCI function"]),
        ("blk read sim:virtio-blk", WRONG_USAGE, &["--out"]),
        ("blk read sim:virtio-blk --out DIR/no/file --bytes 4k", WORK_FAILED, &["no/file", "No such file"]),
        ("blk read sim:virtio-blk --out - --nsid 2", WORK_FAILED, &["namespace 2", "it has: 1"]),
        ("blk read sim:virtio-blk --out - --bytes 100", WORK_FAILED, &["100", "512"]),
        ("blk read sim:virtio-blk --out - --blocks 0", WRONG_USAGE, &["0 blocks"]),
        ("blk read sim:virtio-blk --out - --json", WRONG_USAGE, &["--json"]),
        ("blk read sim:virtio-blk,size=1M --out - --lba 2048", WORK_FAILED, &["block 2048 is past the end"]),
        (
            "blk read sim:virtio-blk,size=1M --out - --lba 2047 --blocks 2",
            WORK_FAILED,
            &["1024 bytes from block 2047 on"],
        ),
        ("blk write sim:virtio-blk --in DIR/missing", WORK_FAILED, &["missing", "No such file"]),
        ("blk write sim:virtio-blk --in DIR/short", WORK_FAILED, &["1000 bytes", "512", "--pad"]),
        ("blk write sim:virtio-blk,size=512k --in DIR/disk", WORK_FAILED, &["1048576 bytes", "524288"]),
        ("blk write sim:virtio-blk,file=DIR/disk,ro=1 --in DIR/disk", WORK_FAILED, &["namespace 1", "read-only"]),
        ("blk perf sim:virtio-blk,file=DIR/disk,ro=1 --rw mixed", WORK_FAILED, &["namespace 1", "read-only"]),
        ("blk write sim:nvme,file=DIR/disk,ro=1 --in DIR/disk", WORK_FAILED, &["namespace 1", "read-only"]),
        ("blk perf sim:virtio-blk --qd 0", WRONG_USAGE, &["--qd", "0"]),
        ("blk perf sim:virtio-blk --bs 1000", WORK_FAILED, &["1000", "512"]),
        ("blk perf sim:virtio-blk,size=1M --bs 2M", WORK_FAILED, &["1048576"]),
        ("blk perf sim:virtio-blk --entries 3", WRONG_USAGE, &["--entries", "power of two"]),
        ("blk perf sim:virtio-blk --queues 3", WORK_FAILED, &["3 queues are asked for", "has 1"]),
        ("blk perf sim:virtio-blk --cores 99", WORK_FAILED, &["core 99"]),
        ("blk perf sim:virtio-blk --rwmixread 50", WRONG_USAGE, &["--rw mixed"]),
    ] {
        fails(&line.replace("DIR", dir.path().to_str().unwrap()), code, says);
    }
}

#[test]
fn help_has_examples() {
    for command in ["info", "read", "write", "perf"] {
        let text = stdout(&format!("blk {command} --help"));
        assert!(text.contains(&format!("Examples:\n  wholebar blk {command} ")), "{text}");
    }
}
