//! What the program says where there is no such device: tests/guest/edu.sh runs it on one.

use assert_cmd::Command;

#[test]
fn says_what_is_wrong() {
    for (args, says) in [
        (&[][..], "usage: hello-edu ADDRESS [intx] [stay]"),
        (&["toaster"], "\"toaster\""),
        (&["ffff:ff:1f.7"], "ffff:ff:1f.7 cannot be opened"),
    ] {
        let output = Command::cargo_bin("hello-edu").unwrap().args(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
}

#[test]
fn explains_itself() {
    let output = Command::cargo_bin("hello-edu").unwrap().arg("--help").output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"usage: hello-edu"), "{output:?}");
}
