//! What a person can get wrong: each ends with a clear error on standard error, nothing on standard output, and exit code 1 or 2.

use crate::common::{self, WORK_FAILED, WRONG_USAGE, wholebar};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Runs `line`, with `DIR` in it replaced, and checks exit code and error text.
fn fails(dir: &Path, line: &str, code: i32, says: &[&str]) {
    common::fails(&line.replace("DIR", dir.to_str().unwrap()), code, &[&["error: "], says].concat());
}

fn all(cases: &[(&str, i32, &[&str])]) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("short"), [7; 1000]).unwrap();
    fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    for (line, code, says) in cases {
        fails(dir.path(), line, *code, says);
    }
}

#[test]
fn targets() {
    all(&[
        ("nvme identify", WRONG_USAGE, &["TARGET"]),
        ("nvme identify bla", WRONG_USAGE, &["bla", "sim:nvme"]),
        ("nvme identify sim:bla", WRONG_USAGE, &["bla", "nvme"]),
        ("nvme identify sim:nvme,bla=1", WRONG_USAGE, &["bla", "size"]),
        ("nvme identify sim:nvme,size=x", WRONG_USAGE, &["size=x"]),
        ("nvme identify sim:nvme,file=DIR/missing", WORK_FAILED, &["missing", "No such file"]),
        ("nvme identify sim:nvme,file=DIR/short,size=1M", WORK_FAILED, &["short", "1000"]),
        ("nvme identify ffff:1f:1f.7", WORK_FAILED, &["ffff:1f:1f.7", "no such PCI function"]),
        ("nvme identify vfio-user:DIR/missing", WORK_FAILED, &["missing", "No such file"]),
        ("nvme identify vfio-user:DIR/disk", WORK_FAILED, &["disk"]),
        ("nvme identify vfio-user:DIR/missing,timout=1", WRONG_USAGE, &["\"timout\"", "timeout="]),
        ("blk info vhost-user:DIR/missing,nett", WRONG_USAGE, &["\"nett\"", "net, blk"]),
        ("barmap sim:bla", WRONG_USAGE, &["bla"]),
        ("msix vfio-user:DIR/missing", WORK_FAILED, &["missing"]),
        ("barmap sim:nvme --page-size 5k", WRONG_USAGE, &["5120", "power of two"]),
        ("barmap sim:nvme --policy some", WRONG_USAGE, &["some", "carved"]),
    ]);
}

#[test]
fn functions() {
    all(&[
        ("doctor bla", WRONG_USAGE, &["bla"]),
        ("doctor sim:nvme", WRONG_USAGE, &["sim:nvme is no PCI function"]),
        ("doctor 0000:01:00.0,via=magic", WRONG_USAGE, &["via=magic"]),
        ("doctor ffff:1f:1f.7", WORK_FAILED, &["no such PCI function", "wholebar devices"]),
        ("bind", WRONG_USAGE, &["BDF"]),
        ("bind bla", WRONG_USAGE, &["bla"]),
        ("bind ffff:1f:1f.7", WORK_FAILED, &["no such PCI function", "wholebar devices"]),
        ("unbind", WRONG_USAGE, &["BDF"]),
        ("unbind ffff:1f:1f.7 bla", WRONG_USAGE, &["bla"]),
        ("unbind ffff:1f:1f.7", WORK_FAILED, &["no such PCI function"]),
    ]);
}

#[test]
fn measurements() {
    all(&[
        ("nvme perf sim:nvme --qd 0", WRONG_USAGE, &["--qd", "0"]),
        ("nvme perf sim:nvme --qd 5000", WORK_FAILED, &["5000", "1023"]),
        ("nvme perf sim:nvme --back-off 11", WRONG_USAGE, &["--back-off", "11", "0..=10"]),
        ("nvme perf sim:nvme --qd 4 --batch 5", WRONG_USAGE, &["--batch 5", "4 commands"]),
        ("blk perf sim:virtio-blk --batch 33", WRONG_USAGE, &["--batch 33", "32 commands"]),
        ("msix sim:nvme --enable 18", WORK_FAILED, &["--enable 18", "17 MSI-X vectors"]),
        ("nvme perf sim:nvme,entries=64 --qd 64", WORK_FAILED, &["64", "63"]),
        ("nvme perf sim:nvme --bs 0", WRONG_USAGE, &["--bs"]),
        ("nvme perf sim:nvme --bs 1000", WORK_FAILED, &["1000", "512"]),
        ("nvme perf sim:nvme,block=4096 --bs 512", WORK_FAILED, &["512", "4096"]),
        ("nvme perf sim:nvme --bs x", WRONG_USAGE, &["x", "size"]),
        ("nvme perf sim:nvme,size=1M --bs 2M", WORK_FAILED, &["1048576"]),
        ("nvme perf sim:nvme,size=1M --offset 2M", WORK_FAILED, &["1048576"]),
        ("nvme perf sim:nvme --cores 99", WORK_FAILED, &["core 99", "0"]),
        ("nvme perf sim:nvme --cores 0,0", WRONG_USAGE, &["core 0 is named twice"]),
        ("nvme perf sim:nvme --cores a", WRONG_USAGE, &["list of cores"]),
        ("nvme perf sim:nvme --queues 17", WORK_FAILED, &["17", "16"]),
        ("nvme perf sim:nvme --rw bla", WRONG_USAGE, &["bla", "randread"]),
        ("nvme perf sim:nvme --rwmixread 50", WRONG_USAGE, &["--rw mixed"]),
        ("nvme perf sim:nvme --rw mixed --rwmixread 101", WRONG_USAGE, &["101"]),
        ("nvme perf sim:nvme --time x", WRONG_USAGE, &["seconds"]),
        ("nvme perf sim:nvme --time 0", WRONG_USAGE, &["no time"]),
        ("bench --seconds 0", WRONG_USAGE, &["no time"]),
        ("pages --runtime 0", WRONG_USAGE, &["no time"]),
        ("blk perf kernel:DIR/disk --policy trapped", WRONG_USAGE, &["no BARs", "--policy"]),
        ("nvme perf sim:nvme --nsid 2", WORK_FAILED, &["namespace 2", "1"]),
        ("nvme perf sim:nvme --page 4k --policy bla", WRONG_USAGE, &["bla"]),
        ("nvme perf sim:nvme,page=64k --page 4k", WORK_FAILED, &["4 KiB", "64 KiB"]),
        ("nvme perf sim:nvme,size=64k --verify --qd 32", WORK_FAILED, &["too few"]),
        ("nvme perf sim:nvme --bs 1G --qd 1000", WORK_FAILED, &["memory"]),
        ("bench --cores 99,0", WORK_FAILED, &["core 99"]),
        ("bench --cores 0,1,2", WRONG_USAGE, &["two cores"]),
        ("bench --seconds x", WRONG_USAGE, &["seconds"]),
        ("pages bla", WRONG_USAGE, &["bla", "sim:nvme"]),
        ("pages sim:nvme --cores 0,1,2", WRONG_USAGE, &["two cores"]),
        ("pages sim:nvme --runtime x", WRONG_USAGE, &["seconds"]),
        ("pages compare", WRONG_USAGE, &["REPORT.json"]),
        ("pages compare DIR/one", WRONG_USAGE, &["REPORT.json"]),
    ]);
}

#[test]
fn copies() {
    all(&[
        ("nvme read sim:nvme", WRONG_USAGE, &["--out"]),
        ("nvme read sim:nvme --out DIR/no/file --bytes 4k", WORK_FAILED, &["no/file", "No such file"]),
        ("nvme read sim:nvme --out DIR --bytes 4k", WORK_FAILED, &["directory"]),
        // What would be emptied before it is read.
        ("nvme read sim:nvme,file=DIR/disk --out DIR/disk", WRONG_USAGE, &["the file that is read"]),
        ("blk read kernel:DIR/disk --out DIR/disk", WRONG_USAGE, &["the file that is read"]),
        ("nvme read sim:nvme --out - --bytes 100", WORK_FAILED, &["100", "512"]),
        ("nvme read sim:nvme --out - --offset 100", WORK_FAILED, &["100", "512"]),
        ("nvme read sim:nvme --out - --blocks 0", WRONG_USAGE, &["0 blocks"]),
        ("nvme read sim:nvme --out - --json", WRONG_USAGE, &["--json"]),
        ("nvme read sim:nvme --out - --lba 0 --offset 0", WRONG_USAGE, &["--lba", "--offset"]),
        ("nvme read sim:nvme,size=1M --out - --lba 2048", WORK_FAILED, &["block 2048 is past the end", "2048 blocks"]),
        ("nvme read sim:nvme,size=1M --out - --lba 2047 --blocks 2", WORK_FAILED, &["1024 bytes from block 2047 on"]),
        ("nvme read sim:nvme --out - --nsid 7", WORK_FAILED, &["namespace 7"]),
        ("nvme read sim:nvme --out - --blocks 1 --qd 0", WRONG_USAGE, &["--qd"]),
        ("nvme write sim:nvme --in DIR/missing", WORK_FAILED, &["missing", "No such file"]),
        ("nvme write sim:nvme --in DIR", WORK_FAILED, &["directory"]),
        ("nvme write sim:nvme --in DIR/short", WORK_FAILED, &["1000 bytes", "512", "--pad"]),
        ("nvme write sim:nvme --in DIR/short --bytes 4k", WORK_FAILED, &["1000 bytes", "4096"]),
        ("nvme write sim:nvme,size=512k --in DIR/disk", WORK_FAILED, &["1048576 bytes", "524288"]),
        ("nvme write sim:nvme,file=DIR/disk,ro=1 --in DIR/disk", WORK_FAILED, &["read-only"]),
    ]);
}

#[test]
fn servers() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("taken")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for (line, code, says) in [
        ("sim", WRONG_USAGE, &["serve"][..]),
        ("sim serve nvme", WRONG_USAGE, &["--socket"]),
        ("sim serve bla --socket DIR/s", WRONG_USAGE, &["bla"]),
        ("sim serve nvme --socket DIR/s bla=1", WRONG_USAGE, &["bla"]),
        ("sim serve virtio-net --socket DIR/s wire=string", WRONG_USAGE, &["wire=string", "pair:NAME"]),
        ("sim serve virtio-net --socket DIR/s wire=tap:lo", WORK_FAILED, &["TAP interface lo"]),
        ("sim serve nvme --socket DIR/s --backing DIR/missing", WORK_FAILED, &["missing"]),
        ("sim serve nvme --socket DIR/s --backing DIR/file backing=null", WRONG_USAGE, &["--backing"]),
        ("sim serve nvme --socket DIR/s --core 99", WORK_FAILED, &["core 99"]),
        ("sim serve nvme --socket DIR/no/s", WORK_FAILED, &["no/s", "No such file"]),
        ("sim serve nvme --socket DIR/taken", WORK_FAILED, &["taken", "another server"]),
        ("sim serve nvme --socket DIR/file", WORK_FAILED, &["file", "not a socket"]),
    ] {
        if line == "sim" {
            // No command at all: the help, on standard error.
            wholebar("sim").assert().code(code);
            continue;
        }
        fails(dir.path(), line, code, says);
    }
    assert!(dir.path().join("taken").exists() && dir.path().join("file").exists());
}

#[test]
fn statistics_and_what_goes_around_queues() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("taken")).unwrap();
    drop(UnixListener::bind(dir.path().join("dead")).unwrap());
    fs::write(dir.path().join("file"), "").unwrap();
    for (line, code, says) in [
        ("net stat", WRONG_USAGE, &["PATH"][..]),
        ("net stat DIR/none", WORK_FAILED, &["none", "no such socket"]),
        ("net stat DIR/dead", WORK_FAILED, &["dead", "nobody listens there"]),
        ("net stat DIR/file", WORK_FAILED, &["file", "something that is not a socket is there"]),
        ("net stat DIR/none --watch 0", WRONG_USAGE, &["--watch", "0.01"]),
        ("net fwd sim:virtio-net --time 0 --stats-socket DIR/taken", WORK_FAILED, &["taken", "another server"]),
        ("net fwd sim:virtio-net --time 0 --stats-socket DIR/file", WORK_FAILED, &["file", "not a socket"]),
        ("net fwd sim:virtio-net --time 0 --capture DIR/no/file", WORK_FAILED, &["no/file cannot be written"]),
        ("net fwd sim:virtio-net --time 0 --faults drop=2", WRONG_USAGE, &["drop=2", "from 0 to 1"]),
    ] {
        fails(dir.path(), line, code, says);
    }
}
