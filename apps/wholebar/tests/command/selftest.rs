//! `wholebar selftest`, on models, as people use it.

use crate::common::{assert_fits, fails, run, stdout};
use serde_json::Value;

#[test]
fn people_get_a_list_and_programs_json() {
    let out = stdout("selftest sim:nvme,size=16M --scratch 100..5000 --removal");
    assert_fits(&out);
    for says in
        ["passed    scratch: every other command", "left out  function: MSI\n", " passed, 0 failed, ", "of emulation"]
    {
        assert!(out.contains(says), "{says}: {out}");
    }
    let out = stdout("selftest sim:fpga --json -");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["schema"].as_str(), report["verdict"].as_str()), (Some("wholebar.selftest/1"), Some("passed")));
    assert!(report["checks"].as_array().unwrap().iter().all(|check| check["verdict"] != "failed"), "{out}");
}

#[test]
fn what_fails_is_told_and_ends_with_1() {
    let (code, out, error) = run("selftest sim:nvme,size=16M,faults=id:1/50");
    assert_eq!(code, Some(1), "{out}{error}");
    assert!(out.contains("FAILED    disk: opens, and reads block by block"), "{out}");
    assert!(error.contains("1 check failed"), "{error}");
}

#[test]
fn wrong_usage_is_said() {
    for (line, says) in [
        ("selftest", "<TARGET>"),
        ("selftest sim:nvme --scratch 5..5", "of which the second is the larger"),
        ("selftest sim:nvme --scratch 5", "as in 1000..20000"),
        ("selftest sim:nvme --namespace 2", "--scratch"),
        ("selftest kernel:/dev/null", "kernel:/dev/null"),
        ("selftest nothing", "nothing"),
    ] {
        fails(line, 2, &[says]);
    }
}
