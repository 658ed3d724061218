//! What the program says where it cannot do what it is asked.

use assert_cmd::Command;

#[test]
fn says_what_is_wrong() {
    let address = ["--address", "10.0.0.2/24"];
    for (args, code, says) in [
        (&["sim:virtio-net"][..], 2, "--address"),
        (&["toaster", address[0], address[1]], 2, "\"toaster\" names no device"),
        (&["sim:virtio-net", "--address", "10.0.0.2"], 2, "it looks like 10.0.0.2/24"),
        (&["sim:virtio-net", address[0], address[1], "--size", "1X"], 2, "a size looks like"),
        (&["sim:virtio-net", address[0], address[1], "--size", "99999999999G"], 2, "a size looks like"),
        (&["sim:virtio-net", address[0], address[1], "--file", "/nowhere"], 1, "opening /nowhere"),
        (&["ffff:ff:1f.7", address[0], address[1]], 1, "ffff:ff:1f.7 cannot be opened"),
    ] {
        let output = Command::cargo_bin("hello-http").unwrap().args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
}

#[test]
fn nobody_has_to_read_errors() {
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut wrong = std::process::Command::new(env!("CARGO_BIN_EXE_hello-http"));
    let status = wrong.args(["toaster", "--address", "10.0.0.2/24"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}
