//! `wholebar barmap` on text and on a system's `/sys`, and `wholebar msix`, as people use them and as they get them wrong.

use crate::common::{assert_fits, wholebar};
use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const DUMP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/barmap/tests/dumps/talos2.txt");

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Fails with `code`, says so on standard error, and nothing on standard output.
fn fails(command: &mut Command, code: i32, says: &[&str]) {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(output.stdout.is_empty() && error.starts_with("error: "), "{error}");
    for text in says {
        assert!(error.contains(text), "{error}\ndoes not say {text:?}");
    }
}

#[test]
fn a_machine_from_text() {
    let table = stdout(&mut wholebar(&format!("barmap --lspci {DUMP}")));
    for says in [
        "function              BAR  4 KiB   16 KiB  64 KiB\n",
        "\n0031:01:00.0          0    alike   HOT     HOT     Samsung Electronics Co Ltd",
        "The policy auto, the default, is whole:\nPOWER's host bridges isolate",
        "12 functions without MSI-X are left out",
        "A kernel with 4 KiB pages cures",
        "--details",
    ] {
        assert!(table.contains(says), "{table}\ndoes not say {says:?}");
    }
    let text = stdout(&mut wholebar(&format!("barmap --lspci {DUMP} --details")));
    for says in [
        "0031:01:00.0  Non-Volatile memory controller: Samsung Electronics Co Ltd Device",
        "64 KiB  whole    |BBB",
        "        carved   |XXX",
        "64 KiB: doorbells from 0x1000 on share a 64 KiB page with the MSI-X table at\n      0x3000: carved",
        "12 functions without MSI-X are left out",
        "X  trapped, hot registers too",
    ] {
        assert!(text.contains(says), "{text}\ndoes not say {says:?}");
    }
    assert!(!text.contains('\x1b'), "no colours into a pipe");
    // The same from standard input; one function alone; as JSON.
    let dump = fs::read(DUMP).unwrap();
    assert_eq!(stdout(wholebar("barmap --lspci -").write_stdin(dump.clone())), table);
    let one =
        stdout(wholebar("barmap --lspci - 0031:01:00.0 --page-size 64k --policy carved").write_stdin(dump.clone()));
    assert!(one.contains("carved   |XXX") && !one.contains("whole    |") && !one.contains("0004:01:00.0"), "{one}");
    let json: Value = serde_json::from_str(&stdout(wholebar("barmap --lspci - --json").write_stdin(dump))).unwrap();
    assert_eq!((&json["schema"], &json["source"]), (&"wholebar.barmap/3".into(), &"lspci".into()));
    let functions = json["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 16);
    let nvme = functions.iter().find(|function| function["name"] == "0031:01:00.0").unwrap();
    assert_eq!((&nvme["msix"]["vectors"], &nvme["hot"]["family"]), (&33.into(), &"NVMe".into()));
    let page = &nvme["bars"][0]["pages"][2];
    assert_eq!((&page["page_size"], &page["verdict"]), (&65536.into(), &"carved traps hot registers".into()));
    assert_eq!(page["plans"][1]["strip"][0]["kind"], "trapped-hot");
}

#[test]
fn text_that_is_of_no_use() {
    let half = fs::read(DUMP).unwrap();
    let half = &half[..half.len() / 2];
    for (text, says) in [
        (&b""[..], &["standard input", "empty", "lspci -vv"][..]),
        (b"\x7fELF\0\0\0", &["not text", "lspci -vv"]),
        (b"just words\n", &["no PCI function", "lspci -vv"]),
        (
            b"00:00.0 Host bridge: Intel Corporation\n01:00.0 Ethernet controller: Intel Corporation\n",
            &["2 PCI function", "lspci -vv"],
        ),
        (b"Slot:\t00:00.0\nClass:\tHost bridge\n", &["-m", "lspci -vv"]),
    ] {
        fails(wholebar("barmap --lspci -").write_stdin(text), 1, says);
    }
    // Half a dump is of use: what is there is shown, what isn't is not claimed.
    let text = stdout(wholebar("barmap --lspci - --all").write_stdin(half));
    assert!(text.contains("0000:00:00.0") && !text.contains("0031:01:00.0"), "{text}");
    fails(
        wholebar("barmap --lspci - 3b:00.0").write_stdin(fs::read(DUMP).unwrap()),
        1,
        &["0000:3b:00.0", "16 functions"],
    );
    fails(&mut wholebar(&format!("barmap --lspci {DUMP} bla")), 2, &["bla", "0000:01:00.0"]);
    fails(&mut wholebar("barmap --lspci /no/such/file"), 1, &["/no/such/file", "No such file"]);
    fails(&mut wholebar("barmap"), 2, &["TARGET"]);
    fails(&mut wholebar(&format!("barmap --lspci {DUMP} --sysfs")), 2, &["--sysfs"]);
    fails(&mut wholebar("barmap ffff:1f:1f.7"), 1, &["ffff:1f:1f.7", "no such PCI function"]);
}

#[test]
fn hidden_capabilities_are_told_of() {
    let text = "01:00.0 Ethernet controller: x\n\tControl: I/O+\n\tStatus: Cap+\n\tRegion 0: Memory at f0000000 (64-bit, prefetchable) [size=16K]\n\tCapabilities: <access denied>\n\n";
    let text = stdout(wholebar("barmap --lspci -").write_stdin(text));
    assert!(text.contains("run it as root") && text.contains("nothing can be planned"), "{text}");
}

/// A system with one function, bound to a driver that isn't VFIO's; `bytes` of its configuration space can be read.
fn system(root: &Path, bytes: usize) {
    let function = root.join("sys/bus/pci/devices/0000:01:00.0");
    let driver = root.join("sys/bus/pci/drivers/nvme");
    fs::create_dir_all(&function).unwrap();
    fs::create_dir_all(&driver).unwrap();
    symlink(&driver, function.join("driver")).unwrap();
    let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
    let bar = "0x00000000fe600000 0x00000000fe603fff 0x0000000000140204\n";
    fs::write(function.join("resource"), format!("{bar}{}", none.repeat(12))).unwrap();
    for (file, text) in [("vendor", "0x144d\n"), ("device", "0xa808\n"), ("class", "0x010802\n")] {
        fs::write(function.join(file), text).unwrap();
    }
    let mut config = [0; 256];
    config[..4].copy_from_slice(&[0x4d, 0x14, 0x08, 0xa8]);
    (config[6], config[0x34]) = (0x10, 0xb0);
    config[0xb0..0xbc].copy_from_slice(&[0x11, 0, 32, 0x80, 0, 0x30, 0, 0, 0, 0x20, 0, 0]);
    fs::write(function.join("config"), &config[..bytes]).unwrap();
}

#[test]
fn a_system_without_binding_or_root() {
    let dir = tempfile::tempdir().unwrap();
    system(dir.path(), 256);
    let line = format!("barmap --sysfs={} 01:00.0", dir.path().display());
    let text = stdout(&mut wholebar(&line));
    for says in ["(nvme)", "33 vectors, enabled", "doorbells from 0x1000 on share a 64 KiB page"] {
        assert!(text.contains(says), "{text}\ndoes not say {says:?}");
    }
    fs::remove_dir_all(dir.path().join("sys")).unwrap();
    system(dir.path(), 64);
    let text = stdout(&mut wholebar(&line));
    for says in ["MSI-X: unknown: 64 bytes", "could not be read: that takes", "16 KiB of memory, at 0xfe600000"] {
        assert!(text.contains(says), "{text}\ndoes not say {says:?}");
    }
    fails(&mut wholebar("barmap --sysfs=/no/such/system"), 1, &["no PCI functions under /no/such/system"]);
}

#[test]
fn who_serves_a_vector() {
    let json: Value = serde_json::from_str(&stdout(&mut wholebar("msix sim:nvme,queues=3 --enable 2 --json"))).unwrap();
    assert_eq!(json["schema"], "wholebar.msix/2");
    let vectors = json["vectors"].as_array().unwrap();
    assert!(vectors[0]["eventfd"].is_u64() && vectors[1]["eventfd"].is_u64() && vectors[2]["eventfd"].is_null());
    assert_ne!(vectors[0]["eventfd"], vectors[1]["eventfd"]);
    assert_eq!((&json["enabled"], json["findings"].as_array().unwrap().len()), (&Value::Bool(true), 0));
    assert!(stdout(&mut wholebar("msix sim:nvme")).contains("MSI-X vectors, not enabled;"));
    fails(&mut wholebar("msix ffff:1f:1f.7"), 1, &["ffff:1f:1f.7"]);
}

/// No line is wider than a terminal of 80 columns, whatever is shown of whatever text; and JSON is whole.
#[test]
fn lines_of_80_columns() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/barmap/tests");
    let (mut texts, mut lines) = (0, 0);
    for folder in ["dumps", "cases"] {
        for entry in fs::read_dir(tests.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            texts += 1;
            for options in [
                "",
                "--details",
                "--all --details",
                "--details --host-page 64k --policy trapped",
                "--all --page-size 2M",
            ] {
                let text = stdout(wholebar(&format!("barmap {options} --lspci")).arg(&path));
                for line in text.lines() {
                    assert!(line.chars().count() <= 80, "{}: {line:?}", path.display());
                    lines += 1;
                }
            }
        }
    }
    assert!(texts >= 24 && lines > 5000, "{texts} texts, {lines} lines");
    // Whatever stands in a text.
    let long = "x".repeat(300);
    let text = format!(
        "01:00.0 Ethernet controller: {long} {long}\n\tControl: I/O-\n\tStatus: Cap+\n\tRegion 0: Memory at f0004000 (64-bit, prefetchable) [size=16K]\n\tCapabilities: [50] MSI-X: Enable- Count=9 Masked-\n\t\tVector table: BAR=0 offset=00002000\n\t\tPBA: BAR=0 offset=00003000\n\tKernel driver in use: {long}\n!!! {long}\n"
    );
    let path = format!("02:00.0{}", "/00.0".repeat(40));
    let text = format!("{text}\n{}", text.replace("01:00.0", &path));
    for options in ["", "--details"] {
        let text = stdout(wholebar(&format!("barmap {options} --lspci -")).write_stdin(text.clone()));
        assert_fits(&text);
        assert!(text.contains("HOT") || text.contains("some"), "{text}");
    }
}

/// The words of the table, and where a host's own page size decides.
#[test]
fn which_pages_the_host_has() {
    let case = |name: &str| format!("{}/../../tools/barmap/tests/cases/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    // Two drives of 16 KiB, one after the other from f7000000 on: in one 64 KiB page, and each in a 16 KiB page of its own.
    let text = stdout(&mut wholebar(&format!("barmap --lspci {}", case("08-ansi"))));
    for says in [
        "\n0000:01:00.0 +1       0    alike   HOT     NONE    Example NVMe\n",
        "HOT REGISTERS THAT CANNOT BE MAPPED: 0000:01:00.0 BAR0 on a host with 64 KiB\npages: doorbells at 0x1000.\n",
        "doorbells at 0x1000 too:\n      0000:02:00.0 BAR0 would be in its 64 KiB page",
        "A kernel with 4 KiB pages cures",
    ] {
        assert!(text.contains(says), "{text}\ndoes not say {says:?}");
    }
    // On a host with 4 KiB pages nothing is said of where another host would place them.
    let text = stdout(&mut wholebar(&format!("barmap --lspci {} --host-page 4k", case("08-ansi"))));
    assert!(text.contains("0    alike   HOT     HOT*    Example NVMe") && !text.contains("CANNOT BE MAPPED"), "{text}");
    let text = stdout(&mut wholebar(&format!("barmap --lspci {} --host-page 64k 02:00.0", case("08-ansi"))));
    assert!(text.contains("nothing of it can be mapped at 0xf7004000, doorbells at 0x1000 too"), "{text}");
    // A path, where there is no address.
    let text = stdout(&mut wholebar(&format!("barmap --lspci {} 0000:00:1c.0/00.0", case("01-path-P"))));
    assert!(text.contains("on which bus it is isn't in the"), "{text}");
    fails(&mut wholebar("barmap sim:nvme --host-page 64k"), 2, &["--host-page", "--lspci"]);
}

/// Functions that are alike are shown once, and counted.
#[test]
fn many_that_are_alike() {
    let one = |bus: usize| {
        format!(
            "{bus:02x}:00.0 Non-Volatile memory controller: Example (prog-if 02 [NVM Express])\n\tStatus: Cap+\n\tRegion 0: Memory at {:08x} (64-bit, non-prefetchable) [size=64K]\n\tCapabilities: [b0] MSI-X: Enable+ Count=33 Masked-\n\t\tVector table: BAR=0 offset=00003000\n\t\tPBA: BAR=0 offset=00002000\n\n",
            0x8000_0000u64 + 0x1_0000 * bus as u64
        )
    };
    let text: String = (1..=200).map(one).collect();
    let shown = stdout(wholebar("barmap --lspci -").write_stdin(text.clone()));
    assert!(shown.contains("\n0000:01:00.0 +199     0    alike   HOT     HOT     Example\n"), "{shown}");
    assert_eq!(shown.matches("BAR0  64 KiB of memory").count(), 1, "{shown}");
    let json: Value = serde_json::from_str(&stdout(wholebar("barmap --lspci - --json").write_stdin(text))).unwrap();
    assert_eq!(json["functions"].as_array().unwrap().len(), 200);
}
