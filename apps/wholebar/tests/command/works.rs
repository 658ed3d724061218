//! The commands as people use them, on models in their own process.

use crate::common::{
    assert_fits, catches_interrupts, command, content, interrupt, json, on_one_line, perf, run, run_in, stdout,
    wait_until, wholebar,
};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn what_there_is_and_whether_it_can_be_opened() {
    let list = json("devices --json");
    assert_eq!(list["schema"], "wholebar.devices/1");
    assert!(list["models"].as_array().unwrap().iter().any(|model| model["target"] == "sim:nvme"));
    let functions = list["functions"].as_array().unwrap();
    let text = stdout("devices");
    for function in functions {
        assert!(text.contains(function["address"].as_str().unwrap()), "{text}");
        assert_eq!(function["can_open"], function["stopped_by"].as_array().unwrap().is_empty());
    }
    assert_eq!(json("devices --driver no-such-driver --json")["functions"], Value::Array(Vec::new()));
    if !list["functions"].as_array().unwrap().is_empty() {
        let text = on_one_line(&stdout("devices --class ffff --driver no-such-driver"));
        assert!(text.contains("none has class ffff and driver no-such-driver"), "{text}");
    }

    // Whatever this machine is like, exit code, JSON and text agree.
    let output = wholebar("doctor --json").output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], "wholebar.doctor/1");
    let findings = report["findings"].as_array().unwrap();
    let stopped = findings.iter().any(|finding| finding["verdict"] == "stops it");
    assert_eq!((report["can_open"].as_bool(), output.status.code()), (Some(!stopped), Some(i32::from(stopped))));
    let text = String::from_utf8(wholebar("doctor").output().unwrap().stdout).unwrap();
    assert_eq!(text.contains("stops it"), stopped, "{text}");
    assert_eq!(text.matches('\x1b').count(), 0, "colours are for terminals");
}

#[test]
fn every_command_explains_itself() {
    for command in [
        "",
        "devices",
        "doctor",
        "bind",
        "unbind",
        "bench",
        "pages",
        "pages compare",
        "nvme",
        "nvme identify",
        "nvme smart",
        "nvme read",
        "nvme write",
        "nvme perf",
        "nvme id-ctrl",
        "nvme id-ns",
        "nvme list-ns",
        "nvme list-ctrl",
        "nvme get-log",
        "nvme error-log",
        "nvme fw-log",
        "nvme get-feature",
        "nvme set-feature",
        "nvme create-ns",
        "nvme delete-ns",
        "nvme attach-ns",
        "nvme detach-ns",
        "nvme format",
        "nvme sanitize",
        "nvme sanitize-log",
        "nvme self-test",
        "nvme self-test-log",
        "nvme fw-download",
        "nvme fw-commit",
        "nvme security-send",
        "nvme security-recv",
        "nvme admin-passthru",
        "nvme io-passthru",
        "nvme zns report",
        "nvme zns append",
        "nvme zns open",
        "nvme zns close",
        "nvme zns finish",
        "nvme zns reset",
        "nvme zns offline",
        "sim",
        "sim serve",
        "barmap",
        "msix",
    ] {
        let help = stdout(&format!("{command} --help"));
        assert!(help.contains("Usage: wholebar"), "{command}");
        if !["nvme", "sim"].contains(&command) {
            assert!(help.contains("wholebar ") && (command.is_empty() || help.contains("Examples:")), "{command}");
        }
    }
}

#[test]
fn the_version_is_ours() {
    assert_eq!(stdout("--version"), format!("wholebar {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn identity_and_health() {
    // nvme-cli's names.
    assert!(json("nvme list --json")["functions"].is_array());
    assert_eq!(json("nvme smart-log sim:nvme --json"), json("nvme smart sim:nvme --json"));
    let identity = json("nvme identify sim:nvme,size=1M,ns=2,block=512+4096 --json");
    assert_eq!(identity["namespaces"][0]["blocks"], 2048);
    assert_eq!(identity["namespaces"][1]["blocks"], 256);
    let text = stdout("nvme identify sim:nvme,serial=ABC123");
    assert!(text.contains("ABC123"), "{text}");
    assert_eq!(json("nvme smart sim:nvme,temp=50 --json")["temperature"], 50 + 273);
    assert!(stdout("nvme smart sim:nvme,temp=50").contains("50 C"));
}

#[test]
fn bar_maps() {
    let text = stdout("barmap sim:nvme");
    assert!(!text.contains('\x1b'), "no colours into a pipe");
    assert!(text.contains("64 KiB  whole    |BBB") && text.contains("8 KiB trapped"), "{text}");
    assert_fits(&text);
    let maps = json("barmap sim:nvme --json");
    let pages = maps["functions"][0]["bars"][0]["pages"].as_array().unwrap();
    assert_eq!(pages.len(), 3);
    let trapped = |page: usize, policy: usize| pages[page]["plans"][policy]["trapped_register_bytes"].as_u64().unwrap();
    assert_eq!([trapped(0, 0), trapped(0, 1)], [0, 0]);
    assert_eq!([trapped(2, 0), trapped(2, 1)], [0, 8192]);
    assert_eq!((&pages[0]["verdict"], &pages[2]["verdict"]), (&"alike".into(), &"carved traps hot registers".into()));
    let one = json("barmap sim:nvme --page-size 64k --policy carved --json");
    assert_eq!(one["functions"][0]["bars"][0]["pages"][0]["plans"].as_array().unwrap().len(), 1);
}

#[test]
fn vectors() {
    let table = json("msix sim:nvme,queues=3 --json");
    assert_eq!(table["vectors"].as_array().unwrap().len(), 4);
    assert_eq!(table["vectors"][0]["mapped"], true);
    assert!(stdout("msix sim:nvme,queues=3 --all").contains("0x0000000000000000"));
}

#[test]
fn a_file_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let image = content((4 << 20) + 512);
    fs::write(path("in"), &image).unwrap();
    fs::write(path("disk"), vec![0xff; 8 << 20]).unwrap();
    let target = format!("sim:nvme,file={}", path("disk"));
    stdout(&format!("nvme write {target} --in {} --offset 1M", path("in")));
    let disk = fs::read(path("disk")).unwrap();
    assert!(disk[1 << 20..][..image.len()] == image);
    assert!(
        disk[..1 << 20].iter().chain(&disk[(5 << 20) + 512..]).all(|b| *b == 0xff),
        "only what was asked for is written"
    );
    stdout(&format!("nvme read {target} --lba 2048 --bytes {} --out {}", image.len(), path("out")));
    assert!(fs::read(path("out")).unwrap() == image);
    stdout(&format!("nvme read {target} --out {} --qd 1", path("all")));
    assert!(fs::read(path("all")).unwrap() == disk);
    let output = wholebar(&format!("nvme read {target} --offset 1M --blocks 3 --out -")).output().unwrap();
    assert!(output.stdout == image[..1536]);
    assert_eq!(json(&format!("nvme write {target} --in {} --pad --bytes 512 --json", path("in")))["bytes"], 512);
}

#[test]
fn standard_input_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0xff; 1 << 20]).unwrap();
    let line = format!("nvme write sim:nvme,file={} --in - --lba 3", disk.display());
    wholebar(&line).write_stdin([7; 512]).assert().success();
    assert!(fs::read(&disk).unwrap()[3 * 512..][..512] == [7; 512]);
    wholebar(&line).write_stdin([7; 100]).assert().code(1);
    wholebar(&format!("{line} --pad")).write_stdin([8; 100]).assert().success();
    let written = fs::read(&disk).unwrap();
    assert!(written[3 * 512..][..100] == [8; 100] && written[3 * 512 + 100..4 * 512].iter().all(|b| *b == 0));
    wholebar(&format!("{line} --blocks 2")).write_stdin([7; 512]).assert().code(1);
}

#[test]
fn perf_measures_under_every_policy() {
    for (more, direct, trapped) in [
        ("--policy whole", true, false),
        ("--policy trapped", false, true),
        ("--policy carved", true, false),
        ("--policy carved --page 64k", false, true),
        ("--policy whole --page 64k", true, false),
    ] {
        let report = perf(&format!("nvme perf sim:nvme,size=16M --qd 8 --warmup 0.02 {more}"));
        assert_eq!((&report["schema"], &report["device"]), (&"wholebar.perf/1".into(), &"model".into()));
        let run = &report["runs"][0];
        assert!(run["iops"].as_f64().unwrap() > 0.0 && run["errors"] == 0, "{more}\n{run}");
        assert_eq!(run["doorbells"]["direct"].as_u64().unwrap() > 0, direct, "{more}\n{run}");
        assert_eq!(run["doorbells"]["trapped"].as_u64().unwrap() > 0, trapped, "{more}\n{run}");
        assert!(run["latency_ns"]["p50"].as_u64() <= run["latency_ns"]["p99.9"].as_u64());
    }
}

/// `perf` measures a model that looks all the time, as hardware does: one that rests would be late, and its thread without the core it is said to have.
#[test]
fn a_model_that_is_measured_does_not_rest() {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        return eprintln!("on one core, model and driver take turns: not tested");
    }
    // A command in flight, which the model answers 20 ms later: it has nothing to do for almost all of the time.
    let mut perf = command("nvme perf sim:nvme,size=1M,faults=delay:1/1 --qd 1 --warmup 0 --time 3600")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let tasks = format!("/proc/{}/task", perf.id());
    // Of the model's thread: how long it has run, and how often it slept.
    let model = || {
        let of_task = |task: fs::DirEntry| {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).ok();
            let status = read("status").filter(|_| read("comm").is_some_and(|name| name.trim() == "model"))?;
            let slept = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            let ran = read("schedstat")?.split_whitespace().next()?.parse::<u64>().ok()?;
            Some((Duration::from_nanos(ran), slept.trim().parse::<u64>().ok()?))
        };
        fs::read_dir(&tasks).ok()?.flatten().find_map(of_task)
    };
    let began = Instant::now();
    let mut before = None;
    let works = loop {
        let now = model();
        match (before, now) {
            // Far more than a thread runs that takes a nap a millisecond.
            (Some((ran, slept)), Some((now, still))) if still == slept => {
                if now - ran > Duration::from_millis(50) {
                    break true;
                }
            }
            _ => before = now,
        }
        if began.elapsed() > Duration::from_secs(120) {
            break false;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    perf.kill().unwrap();
    perf.wait().unwrap();
    assert!(works, "it rests");
}

#[test]
fn perf_verifies_all_workloads() {
    for (rw, block, more) in [
        ("randwrite", 512, "--bs 4k --qd 32 --queues 2"),
        ("write", 4096, "--bs 128k --qd 4"),
        ("mixed", 512, "--bs 512 --qd 16 --rwmixread 70"),
        ("mixed", 4096, "--bs 1M --qd 2 --span 8M"),
    ] {
        let line = format!("nvme perf sim:nvme,size=16M,block={block} --rw {rw} --verify --warmup 0 {more}");
        let run = &perf(&line)["runs"][0];
        assert_eq!(run["errors"], 0, "{line}\n{run}");
        assert!(run["read_back"].as_u64().unwrap() > 0, "{line}\n{run}");
    }
}

#[test]
fn perf_finds_data_that_are_not_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    // All of its 16 blocks, many times, however long that takes on a busy machine.
    let perf = |more: &str| {
        let line = format!("nvme perf sim:nvme,file={} --verify --span 64k --warmup 0 --qd 4 --json", disk.display());
        for time in ["0.3", "2", "10", "60"] {
            let output = wholebar(&format!("{line} {more} --time {time}")).output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}"));
            let run = &report["runs"][0];
            if run["reads"].as_u64().unwrap() + run["writes"].as_u64().unwrap() > 1000 {
                return (output.status.code(), error);
            }
        }
        panic!("it does next to nothing");
    };
    let fails = |says: &str| {
        let (code, error) = perf("");
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(says), "{error}");
    };
    let works = |more: &str| {
        let (code, error) = perf(more);
        assert_eq!(code, Some(0), "{error}");
    };
    fails("no pattern");
    works("--rw write");
    works("");
    let mut bytes = fs::read(&disk).unwrap();
    bytes[50_000] ^= 4;
    fs::write(&disk, &bytes).unwrap();
    fails("CRC");
    bytes[50_000] ^= 4;
    bytes.copy_within(0..512, 512);
    fs::write(&disk, &bytes).unwrap();
    fails("another LBA");
}

/// Queues smaller than the default depth are no reason to refuse, nor are requests of more commands than a queue holds.
#[test]
fn small_queues_and_large_requests_work() {
    let output = wholebar("nvme perf sim:nvme,entries=4 --time 0.1 --warmup 0 --json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("a queue of sim:nvme,entries=4 holds 3 commands"), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["runs"][0]["queue_depth"], &report["runs"][0]["errors"]), (&3.into(), &0.into()));
    stdout("nvme read sim:nvme,size=16M,noiob=256 --lba 3 --blocks 20000 --qd 1 --out /dev/null");
    stdout("nvme read sim:nvme,size=16M,entries=2,mdts=1 --out /dev/null");
    let report = json("nvme perf sim:nvme,size=16M,mdts=0,noiob=256 --bs 1m --qd 1 --time 0.1 --warmup 0 --json");
    assert_eq!(report["runs"][0]["errors"], 0);
}

/// Where doorbells cannot be mapped, those that the controller looks at by itself are used, and the report says so.
#[test]
fn shadow_doorbells_are_used_where_doorbells_are_trapped() {
    for (how, used) in [
        ("--policy trapped", true),
        ("--policy whole", false),
        ("--policy whole --shadow-doorbells always", true),
        ("--policy trapped --shadow-doorbells never", false),
    ] {
        let report = json(&format!("nvme perf sim:nvme,shadow=1,size=16M --time 0.1 --warmup 0 --json {how}"));
        let run = &report["runs"][0];
        assert_eq!(run["shadow_doorbells"].as_bool(), used.then_some(true), "{how}: {run}");
        assert_eq!(run["errors"], 0, "{how}");
    }
    let text = stdout("nvme perf sim:nvme,shadow=1,size=16M --time 0.1 --warmup 0 --policy trapped");
    assert!(text.contains("the controller looks at doorbells in memory"), "{text}");
}

/// What ends a run is said once, with its cause.
#[test]
fn what_ends_a_run_is_named() {
    let said = |line: &str| {
        let output = wholebar(line).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let error = said("nvme perf sim:nvme,size=16M,faults=detach:@500 --time 600");
    assert!(error.contains("error: the run ended early: namespace 1 is not there any more"), "{error}");
    assert!(error.contains("1 commands: Invalid Field in Command"), "{error}");
    let gone = "sim:nvme,size=16M,faults=vanish:@500 is gone: its ";
    let error = said("nvme perf sim:nvme,size=16M,faults=vanish:@500 --time 600");
    assert!(error.contains(&format!("error: the run ended early: {gone}")), "{error}");
    assert_eq!(error.matches("the device has ended").count(), 1, "{error}");
    let error = said("nvme read sim:nvme,size=16M,faults=vanish:@50 --out /dev/null");
    assert!(error.contains("error: sim:nvme,size=16M,faults=vanish:@50 is gone: its "), "{error}");
    let error = said("nvme perf sim:nvme,size=16M,faults=sqhd:1/1 --time 0.1 --warmup 0");
    assert!(error.contains("the device was reset") && error.contains("SQHD 0"), "{error}");
}

#[test]
fn perf_tells_it_in_80_columns() {
    let mut text = String::new();
    let parts = ["IOPS", "p99.99", "doorbells", "driver", "model", "read", "write", "share"];
    // On a machine that gives it no core there may be no write among its commands: it gets more time.
    for time in ["0.1", "1", "10", "60"] {
        text = stdout(&format!("nvme perf sim:nvme,size=16M --qd 4 --time {time} --warmup 0 --rw mixed --histogram"));
        assert_fits(&text);
        if parts.iter().all(|part| text.contains(part)) {
            return;
        }
    }
    panic!("one of {parts:?} is missing\n{text}");
}

#[test]
fn bench_reports_every_case_and_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let html = dir.path().join("report.html");
    let line = format!("bench --seconds 3 --backing ram --json {} --html {}", path.display(), html.display());
    let mut child = command(&line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    let began = Instant::now();
    let code = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0u64));
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        assert!(began.elapsed() < Duration::from_secs(600));
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(peak > 0 && peak < 256 << 10, "{peak} KiB");
    let one = on_one_line(&text);
    assert!(one.contains("system call") && one.contains("model"), "{text}");
    let html = fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(html.contains("carved, 64 KiB") && html.contains("queue depth, commands"), "{html}");
    let report: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!((&report["schema"], &report["device"]), (&"wholebar.bench/1".into(), &"model".into()));
    // Whether the machine was quiet is not for a test to say, but what follows from it is.
    let trusted = |run: &&Value| {
        let cpu = &run["cpu"];
        let shares = cpu["driver"].as_array().unwrap().iter().chain(std::iter::once(&cpu["model"]));
        shares.filter_map(Value::as_f64).all(|share| share >= 0.9)
    };
    let all = || report["runs"].as_array().unwrap().iter().chain(report["packets"]["runs"].as_array().unwrap());
    let trusted = all().filter(trusted).count();
    assert_eq!(
        (report["trusted_runs"].as_u64(), code),
        (Some(trusted as u64), Some(i32::from(trusted == 0))),
        "{text}"
    );
    assert_eq!(one.contains("BE TRUSTED"), trusted < 21, "{text}");
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}\n{text}"));
    assert!(at(">depth".trim_start_matches('>')) < at("MSI-X: "), "figures come before the map\n{text}");
    assert!(one.contains("carved, 64 KiB: mapped as on a host") && one.contains("which makes 0.5"), "{text}");
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 9);
    for run in runs {
        let (direct, trapped) =
            (run["doorbells"]["direct"].as_u64().unwrap(), run["doorbells"]["trapped"].as_u64().unwrap());
        assert_eq!(run["policy"] == "whole", direct > 0 && trapped == 0, "{run}");
        assert_eq!(run["policy"] != "whole", direct == 0 && trapped > 0, "{run}");
        assert!(run["iops"].as_f64().unwrap() > 0.0 && run["errors"] == 0, "{run}");
    }
    let packets = &report["packets"];
    assert_eq!((&packets["device"], &packets["size"]), (&"model".into(), &64.into()));
    let runs = packets["runs"].as_array().unwrap();
    // Two rings, three sizes of bursts, whole and trapped.
    assert_eq!(runs.len(), 12);
    assert!(runs.iter().all(|run| run["rounds"].as_array().unwrap().len() == 12), "{runs:?}");
    for run in runs {
        assert!(run["pps"].as_f64().unwrap() > 0.0, "{run}");
        let other = if run["policy"] == "whole" { "trapped" } else { "direct" };
        assert_eq!(run["doorbells"][other], 0, "{run}");
        let (pps, ns) = (run["pps"].as_f64().unwrap(), run["ns_per_packet"].as_f64().unwrap());
        assert!((pps * ns / 1e9 - 1.0).abs() < 0.01, "{run}");
    }
    // A device that looks anyway wants no doorbell: not each of them rang one.
    let rung = |how: &str| runs.iter().map(|run| run["doorbells"][how].as_u64().unwrap()).sum::<u64>();
    assert!(rung("direct") > 0 && rung("trapped") > 0, "{runs:?}");
    assert!(html.contains("packets of a burst") && on_one_line(&text).contains("64-byte packets"), "{text}");
    compares_stored_runs(dir.path(), &report);
}

/// What `bench compare` says of a report whose rounds are replaced: the same ones; such as are a tenth slower in one case; and of what it can't compare.
fn compares_stored_runs(dir: &Path, report: &Value) {
    let write = |name: &str, slower: f64, change: &dyn Fn(&mut Value)| {
        let mut report = report.clone();
        let cpu = serde_json::json!({"driver": [1.0], "model": 1.0});
        for (part, rate) in [("/runs", "iops"), ("/packets/runs", "pps")] {
            for (i, run) in report.pointer_mut(part).unwrap().as_array_mut().unwrap().iter_mut().enumerate() {
                let factor = if (part, i) == ("/packets/runs", 3) { slower } else { 1.0 };
                run["cpu"] = cpu.clone();
                run[rate] = (1e6 * factor).into();
                for (n, round) in run["rounds"].as_array_mut().unwrap().iter_mut().enumerate() {
                    *round = serde_json::json!({"cpu": cpu, "counts": true, rate: (1e6 + 1e3 * n as f64) * factor});
                }
            }
        }
        change(&mut report);
        fs::write(dir.join(name), report.to_string()).unwrap();
    };
    write("old", 1.0, &|_| ());
    write("new", 0.9, &|_| ());
    write("another", 1.0, &|report| report["host"]["cpu"] = "another".into());
    write("broken", 1.0, &|report| report["runs"][0]["iops"] = (-1.0).into());
    write("empty", 1.0, &|report| (report["runs"], report["packets"]) = (Value::Array(Vec::new()), Value::Null));
    let run = |line: &str| run_in(dir, line);
    let (code, out, _) = run("bench compare old old --fail-above 5 --json same.json");
    assert!(code == Some(0) && out.contains("21 cases: 0 faster, 0 slower, 21 the same"), "{out}");
    let same: Value = serde_json::from_slice(&fs::read(dir.join("same.json")).unwrap()).unwrap();
    assert_eq!((&same["schema"], &same["slower"]), (&"wholebar.bench-comparison/1".into(), &0.into()));
    let (code, out, error) = run("bench compare old new --fail-above 5");
    assert!(code == Some(1) && out.contains("SLOWER") && out.contains("1 slower, 20 the same"), "{out}");
    assert!(error.contains("slower by more than 5 %: packets, "), "{error}");
    assert_fits(&out);
    assert_eq!(run("bench compare old new --fail-above 15").0, Some(0));
    assert!(run("bench compare new old").1.contains("1 faster"));
    for (line, exit, says) in [
        ("bench compare old another", 1, "--anyway"),
        ("bench compare old broken", 1, "no measurement"),
        ("bench compare old empty", 1, "nothing in common"),
        ("bench compare old missing", 1, "No such file"),
        ("bench compare old new --fail-above x", 2, "percentage"),
        ("bench compare old", 2, "Usage"),
    ] {
        let (code, out, error) = run(line);
        assert!((code, out.as_str()) == (Some(exit), "") && error.contains(says), "{line}: {code:?}\n{out}{error}");
    }
}

#[test]
fn bench_measures_one_half_alone() {
    let of = |half: &str| -> Value {
        serde_json::from_str(&run(&format!("bench --seconds 1 --only {half} --json -")).1).unwrap()
    };
    let (storage, packets) = (of("storage"), of("packets"));
    assert_eq!((storage["runs"].as_array().map(Vec::len), storage.get("packets")), (Some(9), None));
    assert_eq!(
        (packets["runs"].as_array().map(Vec::len), packets["packets"]["runs"].as_array().map(Vec::len)),
        (Some(0), Some(12))
    );
}

#[test]
fn an_interrupt_ends_a_run_with_what_was_measured() {
    // On a busy machine nothing may have been measured until then: it gets more time.
    for seconds in [0, 1, 4, 16, 60] {
        let mut perf = command("nvme perf sim:nvme,size=16M --time 600 --warmup 0 --json");
        let mut child = perf.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        wait_until(&mut child, "it can be interrupted", catches_interrupts);
        std::thread::sleep(Duration::from_secs(seconds));
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let report: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
        assert_eq!(report["runs"][0]["cut_short"], "interrupted");
        if report["runs"][0]["reads"].as_u64().unwrap() > 0 {
            return;
        }
    }
    panic!("it never measures anything");
}
