//! Models that one process serves and others use, and what happens when either end goes away.

use crate::common::{
    PATIENCE, Running, catches_interrupts, command, content, interrupt, json, patient, signal, stdout, wait_for_socket,
    wait_until,
};
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How many connections a socket's server has, or is going to take (unix(7), /proc/net/unix; 3 is SS_CONNECTED). The name there is the one that the
/// socket was made under, which begins as the file's.
fn connections(socket: &Path) -> usize {
    let all = fs::read_to_string("/proc/net/unix").unwrap();
    let is = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.get(5) == Some(&"03") && words.get(7).is_some_and(|name| name.starts_with(socket.to_str().unwrap()))
    };
    all.lines().filter(is).count()
}

#[test]
fn a_served_model_is_read_and_written_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let image = content(2 << 20);
    fs::write(path("in"), &image).unwrap();
    fs::write(path("disk"), vec![0; 4 << 20]).unwrap();
    let server = Running::serve("nvme", &dir.path().join("s"), &format!("--backing {} block=4096", path("disk")));
    let target = patient(&dir.path().join("s"));
    stdout(&format!("nvme write {target} --in {}", path("in")));
    stdout(&format!("nvme read {target} --bytes 2M --out {}", path("out")));
    assert!(fs::read(path("out")).unwrap() == image);
    let map = json(&format!("barmap {target} --json"));
    assert_eq!(map["functions"][0]["bars"][0]["auto"]["policy"], "whole");
    let line = format!("nvme perf {target} --time 0.2 --warmup 0 --rw mixed --verify --span 1M --qd 8 --json");
    let report = json(&line);
    assert_eq!((&report["device"], &report["runs"][0]["errors"]), (&"emulated".into(), &0.into()));
    // A client that dies takes nothing with it.
    let mut client = command(&format!("nvme perf {target} --time 600"));
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let socket = dir.path().join("s");
    wait_until(&mut client, "connected and at work", |process| catches_interrupts(process) && connections(&socket) > 0);
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(json(&format!("nvme identify {target} --json"))["namespaces"][0]["blocks"], 1024);
    assert_eq!(server.end(), Some(0));
    assert!(!dir.path().join("s").exists(), "the socket is removed");
    assert!(fs::read(path("disk")).unwrap().len() == 4 << 20);
}

#[test]
fn both_ends_of_a_pair_are_served_by_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let server = Running::serve("virtio-net", &a, &format!("--socket {} wire=pair:x", b.display()));
    for socket in [&a, &b] {
        wait_for_socket(socket);
        let bars = json(&format!("barmap {} --json", patient(socket)));
        assert!(bars.to_string().contains("16384"), "{bars}");
    }
    assert_eq!(server.end(), Some(0));
    assert!(!a.exists() && !b.exists());
}

#[test]
fn a_server_that_is_killed_ends_its_clients_soon() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Running::serve("nvme", &socket, "backing=null");
    let mut client = command(&format!("nvme perf --time 600 --qd 8 {}", patient(&socket)));
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(&mut client, "connected and at work", |process| catches_interrupts(process) && connections(&socket) > 0);
    drop(server);
    let killed = Instant::now();
    let output = client.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("error: ") && error.contains("closed"), "{error}");
    assert!(killed.elapsed() < PATIENCE, "{:?}", killed.elapsed());
    let _server = Running::serve("nvme", &socket, "");
    stdout(&format!("nvme identify {}", patient(&socket)));
}

/// A server that is stopped for longer than messages have by themselves is waited for as long as commands are.
#[test]
fn a_server_that_is_stopped_for_a_while_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Running::serve("nvme", &socket, "backing=null");
    let mut client = command(&format!("nvme perf --time 600 --timeout 600 vfio-user:{}", socket.display()));
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(&mut client, "connected and at work", |process| catches_interrupts(process) && connections(&socket) > 0);
    signal(&server.0, Signal::STOP);
    // A message has 5 seconds where nobody says otherwise.
    std::thread::sleep(Duration::from_secs(7));
    assert!(client.try_wait().unwrap().is_none(), "it did not wait");
    signal(&server.0, Signal::CONT);
    interrupt(&client);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_socket_that_a_dead_server_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    drop(Running::serve("nvme", &socket, ""));
    assert!(socket.exists(), "killed, so it could not remove it");
    let server = Running::serve("nvme", &socket, "");
    stdout(&format!("nvme identify {}", patient(&socket)));
    assert_eq!(server.end(), Some(0));
}
