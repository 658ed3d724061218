//! Where the system has no more of something: an error and exit code 1, never a panic, a signal or a full log.

use crate::common::{PATIENCE, WHOLEBAR, catches_interrupts, command, interrupt, wait_until};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

/// Runs it with a limit of the shell's. Without backtraces: the standard library waits for itself where memory runs out while it makes one.
fn limited(limit: &str, line: &str) -> Output {
    let line = format!("{limit}; exec {WHOLEBAR} {line}");
    Command::new("sh").args(["-c", &line]).env_remove("RUST_BACKTRACE").output().unwrap()
}

fn says(output: &Output) -> String {
    format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_cannot_be_written_to_standard_output_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let file = file.display();
    let full = |line: &str, text: &str| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command(line).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {}", says(&output));
        assert!(says(&output).contains(text), "{line}: {}", says(&output));
    };
    // A reader that went away is none.
    let unread = |line: &str| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(line).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{line}: {}", says(&output));
    };
    for line in [
        "--help",
        "--version",
        "nvme --help",
        "nvme perf --help",
        "help bench",
        "devices",
        "barmap sim:nvme --json",
        "msix sim:nvme",
        "nvme zns report sim:nvme,zoned=1,size=1M,zone_size=64k",
        "blk info sim:virtio-blk,size=1M",
        &format!("blk info kernel:{file}"),
        &format!("blk perf kernel:{file} --time 0.01 --warmup 0"),
    ] {
        full(line, "cannot write to standard output");
        unread(line);
    }
    // These write no text.
    unread(&format!("blk read kernel:{file} --out -"));
    unread("nvme read sim:nvme,size=1M --out -");
    unread("nvme get-log sim:nvme --log-id smart --out -");
    // These take their time, or write data.
    full("idle sim:nvme,size=1M,backing=null --quick", "cannot write to standard output");
    full(&format!("blk read kernel:{file} --out -"), "cannot write the output");
    full("net dump sim:virtio-net,wire=pair:a - --time 0.1", "cannot write -");
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(command("nonsense").stderr(full).output().unwrap().status.code(), Some(2));
}

#[test]
fn a_process_that_may_have_no_thread_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = |name: &str| dir.path().join(name).display().to_string();
    let (a, b) = (socket("a"), socket("b"));
    for line in [
        "nvme identify sim:nvme",
        "barmap sim:nvme",
        "bench --seconds 1",
        "net fwd sim:virtio-net sim:virtio-net --time 1",
        &format!("sim serve virtio-net --socket {a} --socket {b} wire=pair:x"),
    ] {
        // A stack for which there are no addresses.
        let output = command(line).env("RUST_MIN_STACK", (1u64 << 60).to_string()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {}", says(&output));
        assert!(says(&output).contains("thread") && !says(&output).contains("panicked"), "{line}: {}", says(&output));
    }
}

#[test]
fn memory_by_a_size_that_a_device_or_a_user_chose_is_refused_by_name() {
    let huge = "nvme perf sim:nvme,size=64T,backing=null --rw mixed --verify --span 64T --time 1";
    let output = command(huge).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", says(&output));
    assert!(says(&output).contains("--verify remembers each of 17179869184 commands"), "{}", says(&output));
    // So few that it would, of which the memory isn't there.
    let line = "nvme perf sim:nvme,size=1T,backing=null --rw mixed --verify --span 1T --time 1";
    let output = limited("ulimit -v 1000000", line);
    assert_eq!(output.status.code(), Some(1), "{}", says(&output));
    assert!(says(&output).contains("memory allocation failed"), "{}", says(&output));
    // A model that keeps in memory what is written refuses what it has none for.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("zeros");
    File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let output = limited("ulimit -v 330000", &format!("nvme write sim:nvme,size=1G --in {}", file.display()));
    assert_eq!(output.status.code(), Some(1), "{}", says(&output));
    assert!(says(&output).contains("Write Fault"), "{}", says(&output));
}

#[test]
fn a_file_larger_than_may_be_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let line = format!("nvme read sim:nvme,size=64M --lba 0 --blocks 1000 --out {}", out.display());
    let output = limited("ulimit -f 8", &line);
    assert_eq!(output.status.code(), Some(1), "{}", says(&output));
    assert!(says(&output).contains("File too large"), "{}", says(&output));
}

#[test]
fn memory_that_is_not_to_be_had_ends_it_in_order() {
    // What the loader needs, and what happens to it without, is the system's. From where the program itself begins to work, it's ours, but for what is small:
    // a string for which there is no memory ends any Rust program. Of that it has a mebibyte.
    let mut ended = [0; 2];
    for kib in (16..128).map(|n| n << 9) {
        if limited(&format!("ulimit -v {kib}"), "--version").status.success() {
            let output = limited(&format!("ulimit -v {}", kib + 1024), "barmap sim:nvme,size=1M");
            assert!(matches!(output.status.code(), Some(0 | 1)), "{kib} KiB: {}", says(&output));
            ended[usize::from(!output.status.success())] += 1;
        }
    }
    assert!(ended[0] > 0, "it never worked");
}

#[test]
fn a_server_without_descriptors_says_so_once_and_goes_on_when_there_are_some() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let log = dir.path().join("log");
    let mut server =
        command("sim serve fpga --socket").arg(&socket).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let lines = |what: &str| {
        let log = BufReader::new(File::open(&log).unwrap());
        log.lines().filter(|line| line.as_ref().unwrap().contains(what)).count()
    };
    wait_until(&mut server, "listening", |pid| catches_interrupts(pid) && lines("listens on") > 0);
    let pid = Pid::from_child(&server);
    let limit = |descriptors| {
        let limit = Rlimit { current: Some(descriptors), maximum: Some(1024) };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    };
    limit(3);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // VERSION 0.0 without capabilities: id 1, command 1, 20 bytes.
    let version: Vec<u8> = [0x0001_0001u32, 20, 0, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    std::io::Write::write_all(&mut client, &version).unwrap();
    let waits = "a client cannot be let in";
    while lines(waits) == 0 {
        assert!(server.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Many more looks of a server that spins; a few of one that doesn't.
    std::thread::sleep(std::time::Duration::from_millis(300));
    limit(1024);
    client.read_exact(&mut [0; 16]).unwrap();
    assert_eq!(lines(waits), 1);
    interrupt(&server);
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert!(!fs::exists(&socket).unwrap());
}

/// What measures, or moves data, ends in order however few descriptors there are.
#[test]
fn descriptors_that_are_not_to_be_had_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    File::create(&file).unwrap().set_len(1 << 20).unwrap();
    let file = file.display();
    for line in [
        "idle sim:nvme,size=1M,backing=null --quick",
        "nvme zns report sim:nvme,zoned=1,size=1M,zone_size=64k",
        &format!("blk perf kernel:{file} --time 0.01 --warmup 0"),
        &format!("blk perf sim:nvme,size=1M --baseline kernel:{file} --time 0.01 --warmup 0"),
        "net gen sim:virtio-net,wire=pair:a --to sim:virtio-net,wire=pair:a --rate 1k --time 0.1",
    ] {
        // So many are enough for the system's loader.
        for descriptors in (4..30).step_by(3) {
            let output = limited(&format!("ulimit -n {descriptors}"), line);
            match output.status.code() {
                Some(0) => break,
                Some(1) => assert!(!says(&output).contains("panicked"), "{line}: {}", says(&output)),
                _ => panic!("{line}, {descriptors} descriptors: {}", says(&output)),
            }
        }
    }
}
