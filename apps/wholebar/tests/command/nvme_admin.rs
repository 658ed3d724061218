//! `wholebar nvme`, the admin side: what is asked of a controller and done to it, on models in the command's own process and on one that is served and
//! keeps what was done.

use crate::common::{Running, fails, json, on_one_line, patient, stdout, wait_for_socket, wholebar};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// What a command reports for people, which fits a terminal.
fn table(line: &str) -> String {
    let text = stdout(line);
    // But for names of the controller's, which are as long as they are.
    let fits = |line: &str| line.chars().count() <= 80 || line.contains("nqn.");
    assert!(text.lines().all(fits), "{line}\n{text}");
    text
}

/// A model that is served, and its target.
fn serve(dir: &Path, params: &str) -> (Running, String) {
    let socket = dir.join("nvme");
    (Running::serve("nvme", &socket, params), patient(&socket))
}

#[test]
fn raw_commands() {
    let text = table("nvme admin-passthru sim:nvme,serial=RAW --opcode 0x06 --cdw10 1 --read --data-len 64");
    assert!(text.starts_with("result: 0x00000000\n000000  ") && text.contains("RAW"), "{text}");
    let report = json("nvme admin-passthru sim:nvme -O 0x0a --cdw10 0x07 --json");
    assert_eq!((report["result"].as_u64(), &report["data"]), (Some(0), &Value::Null));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
    fs::write(path("block"), [7; 512]).unwrap();
    let target = format!("sim:nvme,file={}", path("disk"));
    stdout(&format!("nvme io-passthru {target} -O 1 -n 1 --cdw10 3 -w -l 512 -i {} --force", path("block")));
    stdout(&format!("nvme io-passthru {target} -O 2 -n 1 --cdw10 3 -r -l 512 --out {}", path("back")));
    assert_eq!(fs::read(path("back")).unwrap(), [7; 512]);
    assert_eq!(fs::read(path("disk")).unwrap()[3 * 512..][..512], [7; 512]);

    fails("nvme admin-passthru sim:nvme -O 1", 1, &["Create I/O Submission Queue (opcode 01h)", "not sent"]);
    fails("nvme admin-passthru sim:nvme -O 0x7c", 1, &["Doorbell Buffer Config", "not sent"]);
    fails("nvme admin-passthru sim:nvme -O 6 -w -l 64", 1, &["comes from the controller"]);
    fails("nvme admin-passthru sim:nvme -O 6 -r -l 1M", 1, &["1048576 bytes of data are more than the 131072"]);
    fails("nvme admin-passthru sim:nvme -O 6 -l 64", 2, &["--read or --write"]);
    fails("nvme admin-passthru sim:nvme -O 6 -r", 2, &["--data-len"]);
    fails("nvme admin-passthru sim:nvme -O 0x106", 2, &["8 bits"]);
    fails("nvme admin-passthru sim:nvme -O 0x0a --cdw10 0x7f", 1, &["Invalid Field in Command"]);
    fails("nvme io-passthru sim:nvme -O 2 -n 9 -r -l 512", 1, &["Invalid Namespace or Format"]);
    fails("nvme io-passthru sim:nvme -O 1 -n 1 -w -l 512", 2, &["no terminal", "--force"]);
}

#[test]
fn lists_and_logs_and_features() {
    assert!(table("nvme id-ctrl sim:nvme,serial=AB").contains("AB"));
    let identity = json("nvme id-ctrl sim:nvme,serial=AB --json");
    assert_eq!((identity["sn"].as_str(), identity["mdts"].as_u64()), (Some("AB"), Some(5)));
    assert!(table("nvme id-ns sim:nvme,size=1M").contains("ms:0 lbads:9 rp:0 (in use)"));
    assert_eq!(json("nvme id-ns sim:nvme,size=1M,ns=2 -n 2 --json")["nsze"], 2048);
    fails("nvme id-ns sim:nvme -n 4", 1, &["Invalid Namespace"]);
    assert_eq!(json("nvme list-ns sim:nvme,ns=3 --json")["nsid_list"].as_array().unwrap().len(), 3);
    assert!(table("nvme list-ctrl sim:nvme,spare=1M").contains("this one"));

    for (log, says) in [
        ("supported", "sanitize"),
        ("error", "no errors"),
        ("fw", "runs"),
        ("changed-ns", "no namespace has changed"),
        ("effects", "Format NVM"),
        ("self-test", "no self-test runs"),
        ("feature-effects", "temp-thresh"),
        ("sanitize", "never sanitized"),
        ("smart", "000000  "),
        ("0x13", "mi-effects"),
    ] {
        let text = table(&format!("nvme get-log sim:nvme --log-id {log}"));
        assert!(text.contains(says), "{text}");
    }
    let log = json("nvme get-log sim:nvme --log-id effects --json");
    assert!(log["decoded"].as_array().unwrap().iter().any(|e| e["name"] == "Copy" && e["admin"] == false));
    assert_eq!(log["bytes"].as_str().unwrap().len(), 2 * 4096);
    assert_eq!(wholebar("nvme get-log sim:nvme -i smart -l 100 --out -").output().unwrap().stdout.len(), 100);
    fails("nvme get-log sim:nvme --log-id nonsense", 2, &["nonsense"]);
    fails("nvme get-log sim:nvme --log-id 0xd0", 1, &["Invalid Log Page"]);
    fails("nvme get-log sim:nvme --log-id smart --lpo 3", 2, &["multiple of 4"]);
    fails("nvme get-log sim:nvme --log-id smart --log-len 0", 2, &["--log-len"]);

    let all = table("nvme get-feature sim:nvme");
    assert!(all.contains("temp-thresh") && all.contains("volatile write cache on"), "{all}");
    assert_eq!(json("nvme get-feature sim:nvme -f temp-thresh --json")["meaning"], "70 C");
    assert!(stdout("nvme set-feature sim:nvme -f temp-thresh --value 353").contains("is set"));
    fails("nvme set-feature sim:nvme -f host-mem-buf --value 1", 1, &["Host Memory Buffer", "not sent"]);
    fails("nvme get-feature sim:nvme -f 0x7f", 1, &["Invalid Field"]);
    fails("nvme get-feature sim:nvme -f warp", 2, &["warp"]);

    // An error, and the log of it: of one life of the controller.
    let dir = tempfile::tempdir().unwrap();
    let (_served, target) = serve(dir.path(), "size=1M");
    fails(&format!("nvme get-log {} --log-id 0xd0", target), 1, &["Invalid Log Page"]);
    let log = json(&format!("nvme error-log {} --json", target));
    assert!(log["log"].as_array().unwrap().iter().any(|e| e["status"].as_str().unwrap().contains("Invalid Log Page")));
    assert!(table(&format!("nvme error-log {}", target)).contains("Invalid Log Page"));
}

#[test]
fn what_destroys_asks_first() {
    // Standard input is no terminal here.
    for line in [
        "nvme format sim:nvme -n 1",
        "nvme sanitize sim:nvme --sanact start-block-erase",
        "nvme fw-download sim:nvme --fw /dev/null",
        "nvme fw-commit sim:nvme --slot 1",
        "nvme security-send sim:nvme --file /dev/null",
        "nvme delete-ns sim:nvme,spare=1M -n 1",
        "nvme detach-ns sim:nvme,spare=1M -n 1",
        "nvme admin-passthru sim:nvme -O 0x80 -n 1",
        "nvme admin-passthru sim:nvme -O 0x84 --cdw10 2",
        "nvme admin-passthru sim:nvme -O 0xc0",
    ] {
        fails(line, 2, &["no terminal to ask", "--force"]);
    }
    fails("nvme format sim:nvme --force", 2, &["--namespace-id"]);
    fails("nvme format sim:nvme -n 3 --force", 1, &["no active namespace 3"]);
    fails("nvme format sim:nvme -n 1 --lbaf 9 --force", 1, &["Invalid Format"]);
    fails("nvme format sim:nvme -n 1 --block-size 1000 --force", 1, &["1000", "512, 4096"]);
    fails("nvme format sim:nvme -n 1 --pi 1 --force", 1, &["Invalid Format"]);
    // What is done, and has a consequence.
    let metadata = "nvme format sim:nvme,size=1M,ms=8 -n 1 --force --lbaf";
    for (format, said) in [("2", "8 bytes of metadata now"), ("2 --pi 1", ""), ("0", "")] {
        let output = wholebar(&format!("{metadata} {format}")).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.contains(said) && error.is_empty() == said.is_empty(), "{error}");
    }
    fails("nvme delete-ns sim:nvme -n 1 --force", 1, &["no Namespace Management"]);
    fails("nvme create-ns sim:nvme,spare=1M --nsze 4096", 1, &["Insufficient Capacity"]);
    fails("nvme create-ns sim:nvme,spare=1M", 2, &["--nsze"]);
    fails("nvme attach-ns sim:nvme,spare=1M -n 1", 1, &["Already Attached"]);
    fails("nvme attach-ns sim:nvme,spare=1M -n 1 -c 5", 1, &["Controller List Invalid"]);
}

#[test]
fn a_disk_is_formatted_sanitized_and_tested() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (_served, target) = serve(dir.path(), "size=1M ns=2");
    fs::write(path("data"), [9; 4096]).unwrap();
    for nsid in [1, 2] {
        stdout(&format!("nvme write {target} --nsid {nsid} --in {}", path("data")));
    }
    let blocks = |nsid: u32| {
        stdout(&format!("nvme read {target} --nsid {nsid} --bytes 4096 --out {}", path("back")));
        fs::read(path("back")).unwrap()
    };
    // What is refused loses nothing.
    fails(&format!("nvme format {target} -n 1 --lbaf 7 --force"), 1, &["Invalid Format"]);
    fails(&format!("nvme format {target} -n 1"), 2, &["--force"]);
    assert!(blocks(1) == [9; 4096]);
    let formatted = json(&format!("nvme format {target} -n 1 --block-size 4096 --force --json"));
    assert_eq!(
        (formatted["namespaces"][0]["block_size"].as_u64(), formatted["namespaces"][0]["lbaf"].as_u64()),
        (Some(4096), Some(1))
    );
    assert!(blocks(1) == [0; 4096] && blocks(2) == [9; 4096]);
    assert!(table(&format!("nvme sanitize {target} --sanact start-crypto-erase --wait --force")).contains("completed"));
    assert!(blocks(2) == [0; 4096]);
    assert!(table(&format!("nvme sanitize-log {target}")).contains("completed"));
    let report = json(&format!("nvme self-test {target} --json"));
    assert_eq!(report["log"]["results"][0]["outcome"], "completed without error");
    stdout(&format!("nvme self-test {target} -s extended --no-wait"));
    // It outlives the resets by which the next commands open the controller.
    assert!(table(&format!("nvme self-test-log {target}")).contains("a self-test runs (extended): 50 %"));
    assert!(table(&format!("nvme self-test-log {target}")).contains("completed without error"));
}

#[test]
fn firmware_is_replaced_and_protocols_are_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (_served, target) = serve(dir.path(), "size=1M");
    fs::write(path("image"), [b"FW-9.9  ".as_slice(), &[1; 200_000]].concat()).unwrap();
    fails(&format!("nvme fw-download {target} --fw {} --xfer 1000 --force", path("image")), 2, &["multiples of 4096"]);
    fails(&format!("nvme fw-download {target} --fw {} --slot 1 --force", path("image")), 1, &["Invalid Firmware Slot"]);
    fails(&format!("nvme fw-commit {target} --slot 3 --force"), 1, &["no firmware in slot 3"]);
    let download = format!("nvme fw-download {target} --fw {} --slot 2 --force", path("image"));
    assert!(table(&download).contains("done"));
    assert!(table(&format!("nvme fw-log {target}")).contains("FW-9.9"));
    let commit = table(&format!("nvme fw-commit {target} --slot 2 --force"));
    assert!(commit.contains("done"), "{commit}");
    assert_eq!(json(&format!("nvme fw-log {target} --json"))["log"]["active"], 2);
    assert_eq!(json(&format!("nvme id-ctrl {target} --json"))["fr"], "FW-9.9");

    fs::write(path("packet"), b"hello").unwrap();
    stdout(&format!("nvme security-send {target} -p 0xf0 -s 7 --file {} --force", path("packet")));
    let back = json(&format!("nvme security-recv {target} -p 0xf0 -s 7 --size 5 --json"));
    assert_eq!(back["data"], "68656c6c6f");
    fails(&format!("nvme security-recv {target} -p 0xf0 -s 7 --size 1M"), 1, &["131072"]);
    fails(&format!("nvme security-recv {target} -p 9"), 1, &["Invalid Field"]);
}

#[test]
fn namespaces_are_created_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, target) = serve(dir.path(), "size=1M spare=8M");
    let created = json(&format!("nvme create-ns {target} --nsze 1024 --block-size 4096 --json"));
    assert_eq!(created["nsid"], 2);
    assert!(table(&format!("nvme list-ns {target} --all")).contains("not attached to this controller"));
    assert!(stdout(&format!("nvme attach-ns {target} -n 2")).contains("attached"));
    assert_eq!(json(&format!("nvme id-ns {target} -n 2 --json"))["nsze"], 1024);
    assert_eq!(json(&format!("nvme list-ctrl {target} -n 2 --json"))["ctrl_list"][0], 0);
    stdout(&format!("nvme detach-ns {target} -n 2 --force"));
    fails(&format!("nvme id-ns {target} -n 2"), 1, &["no active namespace 2"]);
    assert_eq!(json(&format!("nvme id-ns {target} -n 2 --force --json"))["nsze"], 1024);
    stdout(&format!("nvme delete-ns {target} -n 2 --force"));
    assert_eq!(json(&format!("nvme list-ns {target} --all --json"))["nsid_list"].as_array().unwrap().len(), 1);
}

#[test]
fn zones() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (_served, target) = serve(dir.path(), "size=16M zoned=1 zone_size=1M zone_cap=512k max_open=2 zasl=2");
    let identity = json(&format!("nvme identify {target} --json"));
    assert_eq!(identity["namespaces"][0]["zones"]["size"], 2048);
    assert!(stdout(&format!("nvme identify {target}")).contains("zones of 2,048 blocks; 2 can be open"));

    // More than one append has.
    let data: Vec<u8> = (0..40960u32).map(|i| (i / 7) as u8).collect();
    fs::write(path("data"), &data).unwrap();
    let report = json(&format!("nvme zns append {target} --zslba 2048 --data {} --json", path("data")));
    let lbas: Vec<_> = report["appends"].as_array().unwrap().iter().map(|a| a["lba"].as_u64().unwrap()).collect();
    assert_eq!(lbas, [2048, 2080, 2112]);
    stdout(&format!("nvme read {target} --lba 2048 --bytes {} --out {}", data.len(), path("back")));
    assert!(fs::read(path("back")).unwrap() == data);

    let zones = |more: &str| json(&format!("nvme zns report {target} --json {more}"));
    let report = zones("--start-lba 0x803 --descs 2");
    let (list, first) = (&report["zone_list"], &report["zone_list"][0]);
    assert_eq!((report["nr_zones"].as_u64(), list.as_array().unwrap().len()), (Some(2), 2));
    assert_eq!((&first["slba"], &first["wp"], &first["cap"]), (&2048.into(), &2128.into(), &1024.into()));
    assert_eq!(first["state"], "IMP_OPENED");
    assert!(table("nvme zns report-zones sim:nvme,size=256M,zoned=1").contains("EMPTY"));
    assert_eq!(zones("--state imp-opened")["nr_zones"], 1);
    assert_eq!(zones("-S 2")["nr_zones"], 1);

    stdout(&format!("nvme zns close {target} --start-lba 2048"));
    stdout(&format!("nvme zns open {target} --start-lba 0"));
    stdout(&format!("nvme zns open-zone {target} -s 4096"));
    fails(&format!("nvme zns open {target} -s 6144"), 1, &["Too Many Open Zones"]);
    fails(&format!("nvme zns close {target} -s 6144"), 1, &["Invalid Zone State Transition"]);
    fails(&format!("nvme write {target} --lba 2048 --in {}", path("data")), 1, &["Zone Invalid Write"]);
    assert_eq!(json(&format!("nvme zns finish {target} -s 2048 --json"))["state"], "full");
    fails(&format!("nvme zns append {target} -s 2048 -d {}", path("data")), 1, &["Zone Is Full"]);
    fails(&format!("nvme zns append {target} -s 2049 -d {}", path("data")), 1, &["no zone begins"]);
    // What is refused loses nothing.
    fails(&format!("nvme zns reset {target} -s 2048"), 2, &["no terminal to ask", "--force"]);
    fails(&format!("nvme zns offline {target} -s 2048 --force"), 1, &["Invalid Zone State Transition"]);
    stdout(&format!("nvme read {target} --lba 2048 --bytes {} --out {}", data.len(), path("back")));
    assert!(fs::read(path("back")).unwrap() == data);
    assert!(stdout(&format!("nvme zns reset {target} --select-all --force")).contains("empty"));
    assert_eq!(zones("--state empty")["nr_zones"], 16);
    stdout(&format!("nvme read {target} --lba 2048 --bytes 4096 --out {}", path("back")));
    assert_eq!(fs::read(path("back")).unwrap(), [0; 4096]);

    fails("nvme zns report sim:nvme", 1, &["no zoned namespace 1"]);
    fails("nvme zns open sim:nvme -s 0", 1, &["has no zones"]);
    fails("nvme zns open sim:nvme,zoned=1", 2, &["--start-lba"]);
    fails("nvme zns open sim:nvme,zoned=1 -s 0 -a", 2, &["--select-all"]);
    fails("nvme zns report sim:nvme,zoned=1 --extended", 1, &["no descriptor extensions"]);
    fs::write(path("odd"), [0; 100]).unwrap();
    fails(&format!("nvme zns append sim:nvme,zoned=1 -d {}", path("odd")), 1, &["whole blocks of 512"]);
}

#[test]
fn protection_information() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (_served, target) = serve(dir.path(), "size=1M ms=8");
    fs::write(path("data"), [9; 4096]).unwrap();
    fails("nvme read sim:nvme,ms=8 --blocks 1 --out -", 1, &["8 bytes of metadata"]);
    for (pi, ms) in [(1, 0), (2, 1), (3, 0)] {
        stdout(&format!("nvme format {target} -n 1 --lbaf 2 --pi {pi} --ms {ms} --force"));
        assert_eq!(json(&format!("nvme identify {target} --json"))["namespaces"][0]["protection"], pi);
        assert!(table(&format!("nvme identify {target}")).contains(&format!("protection information of type {pi}")));
        stdout(&format!("nvme write {target} --lba 8 --in {}", path("data")));
        stdout(&format!("nvme read {target} --lba 8 --bytes 4096 --out {}", path("back")));
        assert_eq!(fs::read(path("back")).unwrap(), [9; 4096]);
    }
    // A tag of a block that nobody has written is all ones; where a bit of it flips, the block is checked, and wrong.
    let flipped = "sim:nvme,size=1M,ms=8,pi=1,faults=apptag:@1";
    fails(&format!("nvme read {flipped} --blocks 1 --out -"), 1, &["End-to-end Guard Check Error", "block 0"]);
}

#[test]
fn data_placement() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, target) = serve(dir.path(), "size=16M fdp=1 fdp_nruh=4 fdp_runs=1M streams=8");
    let data = dir.path().join("data");
    fs::write(&data, vec![5; 65536]).unwrap();
    assert!(table(&format!("nvme fdp configs {target}")).contains("4 initially, 0 always"));
    assert!(table(&format!("nvme fdp usage {target}")).contains("hosts"));
    assert!(table(&format!("nvme fdp feature {target}")).contains("by configuration 0"));
    assert!(table(&format!("nvme fdp status {target}")).contains("4 placements"));
    stdout(&format!("nvme write {target} --in {} --dir-type 2 --dir-spec 3", data.display()));
    assert_eq!(json(&format!("nvme fdp stats {target} --json"))["hbmw"], 65536);
    let status = json(&format!("nvme fdp status {target} --json"));
    let left: Vec<_> = status["ruhss"].as_array().unwrap().iter().map(|u| u["ruamw"].as_u64().unwrap()).collect();
    assert_eq!(left, [2048, 2048, 2048, 2048 - 128]);
    let events = table(&format!("nvme fdp set-events {target} --placement-handle 3 --event-types 0 --enable"));
    assert!(events.contains("yes       Reclaim Unit Not Fully Written"), "{events}");
    stdout(&format!("nvme fdp update {target} --pids 3,1"));
    assert!(table(&format!("nvme fdp events {target} --host-events")).contains("Not Fully Written"));
    let event = &json(&format!("nvme fdp events {target} --host-events --json"))["events"][0];
    assert_eq!((&event["type"], &event["pid"], &event["nsid"]), (&0.into(), &3.into(), &1.into()));

    // Streams last until the controller is enabled anew, which each command does.
    assert!(table(&format!("nvme dir-receive {target}")).contains("data placement"));
    assert!(table(&format!("nvme dir-receive {target} -D 1 -O 1")).contains("streams at most     8"));
    stdout(&format!("nvme dir-send {target} -D 0 -O 1 --target-dir 1 --endir 1"));
    assert_eq!(json(&format!("nvme dir-receive {target} -D 1 -O 3 -r 2 --json"))["decoded"]["allocated"], 2);
    fails(&format!("nvme write {target} --in {} --dir-type 1 --dir-spec 1", data.display()), 1, &["Invalid Field"]);

    fails(&format!("nvme fdp update {target} --pids 4"), 1, &["refused I/O Management Send", "Invalid Field"]);
    fails(&format!("nvme fdp update {target}"), 2, &["--pids"]);
    fails(&format!("nvme fdp feature {target} --disable"), 1, &["Command Sequence Error"]);
    fails("nvme fdp stats sim:nvme", 1, &["no flexible data placement"]);
    fails("nvme dir-receive sim:nvme", 1, &["no directives"]);
    fails("nvme write sim:nvme --in x --dir-type 2", 2, &["--dir-spec"]);
}

#[test]
fn reservations() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, target) = serve(dir.path(), "size=16M subsys=a");
    let host = "--hostid 5a1d3b2e-7c94-4a6f-8e10-d2f3c4b5a697";
    let data = dir.path().join("data");
    fs::write(&data, vec![5; 512]).unwrap();
    fails(&format!("nvme resv acquire {target} --crkey 7 {host}"), 1, &["Reservation Conflict"]);
    stdout(&format!("nvme resv register {target} --nrkey 0x1234 {host}"));
    stdout(&format!("nvme resv acquire {target} --crkey 0x1234 --rtype 1 {host}"));
    let report = json(&format!("nvme resv report {target} {host} --json"));
    assert_eq!((&report["rtype"], &report["regctl"]), (&1.into(), &1.into()));
    let registrant = &report["regctls"][0];
    assert_eq!((&registrant["rkey"], &registrant["rcsts"]), (&0x1234.into(), &1.into()));
    assert_eq!(registrant["hostid"], "5a1d3b2e7c944a6f8e10d2f3c4b5a697");
    assert!(table(&format!("nvme resv report {target} {host}")).contains("Write Exclusive, generation 1"));
    // Another host, which is none of its.
    fails(&format!("nvme write {target} --in {}", data.display()), 1, &["Reservation Conflict"]);
    stdout(&format!("nvme resv release {target} --crkey 0x1234 --rtype 1 {host}"));
    stdout(&format!("nvme write {target} --in {}", data.display()));
    fails(&format!("nvme resv register {target} {host}"), 2, &["--nrkey"]);
    fails(&format!("nvme resv report {target} --hostid 12"), 2, &["no UUID"]);
    fails("nvme resv report sim:nvme", 1, &["no reservations"]);
}

/// Two controllers of one subsystem, a host on each: one sees what the other does.
#[test]
fn a_host_is_told_what_another_does_to_its_reservation() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = ["a", "b"].map(|name| dir.path().join(name));
    let other = format!("--socket {} size=16M subsys=told", sockets[1].display());
    let _served = Running::serve("nvme", &sockets[0], &other);
    let [a, b] = sockets.each_ref().map(|socket| patient(socket));
    wait_for_socket(&sockets[1]);
    let hosts = ["1", "2"].map(|digit| format!("--hostid {digit}a1d3b2e-7c94-4a6f-8e10-d2f3c4b5a697"));
    stdout(&format!("nvme resv register {a} --nrkey 1 {}", hosts[0]));
    stdout(&format!("nvme resv register {b} --nrkey 2 {}", hosts[1]));
    stdout(&format!("nvme resv acquire {a} --crkey 1 --rtype 2 {}", hosts[0]));
    let mut watching = Running::start(&format!("nvme resv notifications {a} --count 1 --json {}", hosts[0]));
    let mut line = String::new();
    BufReader::new(watching.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("tells what happens"), "{line}");
    stdout(&format!("nvme resv acquire {b} --crkey 2 --prkey 1 --racqa 1 --rtype 2 {}", hosts[1]));
    let (code, text) = watching.finish();
    let told: Value = serde_json::from_str(&text).unwrap();
    let members = (&told["change"], &told["nsid"]);
    assert_eq!((code, members), (Some(0), (&"Registration Preempted".into(), &1.into())));
    let none = stdout(&format!("nvme resv notifications {a} --time 0 {}", hosts[0]));
    assert_eq!(none, "");
    fails("nvme resv notifications sim:nvme --time 0", 1, &["no reservations"]);
}

#[test]
fn a_controller_says_what_is_known_of_its_kind() {
    let text = table("nvme identify sim:nvme,size=16M,quirk=descriptors,cmb=1M");
    assert!(text.contains("namespace descriptors are not asked for"), "{text}");
    assert!(text.contains("1 MiB in BAR2: submission queues, completion queues, lists"), "{text}");
    let report = json("nvme identify sim:nvme,size=16M,cmb=1M --json");
    assert_eq!((&report["quirks"], &report["memory_buffer"]["size"]), (&Value::Array(Vec::new()), &(1 << 20).into()));
    let text = table("nvme identify sim:nvme,size=16M,hmb=64M,hmb_min=1M --host-memory-buffer 16M");
    assert!(text.contains("64 MiB preferred, 1 MiB at least; it has 16 MiB"), "{text}");
    let text = table("nvme identify sim:nvme,size=16M,hmb=64M");
    assert!(text.contains("64 MiB preferred, 4 KiB at least; it has none"), "{text}");
    let report = json("nvme identify sim:nvme,hmb=1M,hmb_min=512k --host-memory-buffer 1M --json");
    let members = ["preferred", "minimum", "given"].map(|member| report["host_memory_buffer"][member].as_u64());
    assert_eq!(members, [Some(1 << 20), Some(512 << 10), Some(1 << 20)]);
    assert!(json("nvme identify sim:nvme --json")["host_memory_buffer"].is_null());
    fails("nvme identify sim:nvme,hmb=4097", 2, &["multiples of 4096"]);
    fails("nvme identify sim:nvme,hmb=1M,hmb_min=2M", 2, &["above hmb="]);
    stdout("nvme perf sim:nvme,size=16M,hmb=1M --host-memory-buffer 1M --rw mixed --verify --qd 4 --time 0.1 --json");
    let text = table("nvme identify sim:nvme,size=16M,quirk=entries128");
    assert!(text.contains("submission entries have 128 bytes") && text.contains("sharing identifiers"), "{text}");
    stdout("nvme perf sim:nvme,size=16M,quirk=entries128 --rw mixed --verify --qd 8 --time 0.1 --json");
    fails("nvme identify sim:nvme,quirk=x", 2, &["quirk"]);
    stdout("nvme perf sim:nvme,size=16M,cmb=1M --cmb --bs 16k --qd 4 --time 0.1 --json");
}

#[test]
fn persistent_memory_is_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let (_served, target) = serve(dir.path(), "size=16M pmr=64k");
    assert!(table(&format!("nvme identify {target}")).contains("64 KiB in BAR4"));
    let [data, back] = ["data", "back"].map(|name| dir.path().join(name));
    fs::write(&data, b"what lasts").unwrap();
    let (data, back) = (data.display(), back.display());
    fails(&format!("nvme pmr write {target} --in {data} --offset 4k"), 2, &["--force"]);
    let done = stdout(&format!("nvme pmr write {target} --in {data} --offset 4k --force"));
    assert!(on_one_line(&done).contains("10 B stored from byte 4096 on"), "{done}");
    // Another program finds it, after this one has closed the controller.
    let text = stdout(&format!("nvme pmr read {target} --offset 4k --len 10 --hex"));
    assert!(text.contains("what lasts"), "{text}");
    stdout(&format!("nvme pmr read {target} --out {back}"));
    let all = fs::read(dir.path().join("back")).unwrap();
    assert_eq!((all.len(), &all[4096..4106]), (64 << 10, &b"what lasts"[..]));
    let report = json(&format!("nvme pmr status {target} --json"));
    assert_eq!((&report["size"], &report["health"]), (&(64 << 10).into(), &"normal".into()));
    assert!(table(&format!("nvme pmr status {target}")).contains("BAR4"));
    fails(&format!("nvme pmr read {target} --offset 64k --len 1"), 1, &["persistent memory region"]);
    fails(&format!("nvme pmr read {target} --len 1T"), 1, &["more than its"]);
    fails(&format!("nvme pmr write {target} --in {data} --offset 65530 --force"), 1, &["persistent memory region"]);
    fails("nvme pmr status sim:nvme", 1, &["no persistent memory region"]);
    fails("nvme pmr status sim:nvme,pmr=4k,pmr_state=failed", 1, &["error 01h"]);
    fails("nvme pmr read sim:nvme,pmr=4k,pmr_state=restore", 1, &["lost", "--force"]);
    stdout("nvme pmr read sim:nvme,pmr=4k,pmr_state=restore --force --len 8");
    fails(&format!("nvme pmr write sim:nvme,pmr=4k,pmr_state=readonly --in {data} --force"), 1, &["only be read"]);
    fails("nvme pmr status sim:nvme,pmr=5000", 2, &["power of two"]);
    fails("nvme pmr status sim:nvme,pmr=4k,msix=own", 2, &["BAR4"]);
}
