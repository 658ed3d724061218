//! The program, as a person runs it.

use assert_cmd::Command;

fn hello_fpga(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::cargo_bin("hello-fpga").unwrap().args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn copies_and_verifies() {
    let (code, out, err) = hello_fpga(&[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("test interrupt: vector 2, cleared, pending 0x0"), "{out}");
    assert!(out.contains("64 copies of 4096 bytes, verified; doorbells: 1 direct, 0 trapped"), "{out}");
}

#[test]
fn says_what_is_wrong() {
    let (code, help, _) = hello_fpga(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(help.starts_with("usage: hello-fpga [TARGET]"), "{help}");
    let (code, _, err) = hello_fpga(&["one", "two"]);
    assert_eq!((code, err), (Some(2), help));
    let (code, _, err) = hello_fpga(&["sim:toaster"]);
    assert_eq!(
        (code, err.as_str()),
        (Some(2), "hello-fpga: there is no model \"toaster\": there are nvme, fpga, virtio-net and virtio-blk\n")
    );
    let (code, _, err) = hello_fpga(&["sim:nvme,msix=own"]);
    assert_eq!(code, Some(1));
    assert_eq!(err, "hello-fpga: sim:nvme,msix=own is fff0:0001, and this driver is for fff0:0002\n");
}
