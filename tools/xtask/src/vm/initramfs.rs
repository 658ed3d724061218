//! A guest's initial file system: busybox, kernel modules, our init, what the command needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::cpio::Archive;
use super::debian;
use super::guest::Guest;
use super::modules::{Modules, canonical, modules_dep};

const INIT: &[u8] = include_bytes!("../../../vm/init");

/// A part of it.
const BIND: &[u8] = include_bytes!("../../../vm/bind");

/// In every guest: output through virtio serial ports, and VFIO.
const NEEDED: &[&str] = &["virtio_pci", "virtio_console", "vfio-pci"];

/// Where the kernel has them, for the command to load: the devices' own drivers, and a file system.
const AT_HAND: &[&str] = &[
    "nvme",
    "virtio_net",
    "virtio_blk",
    "igb",
    "igbvf",
    "e1000e",
    "vmxnet3",
    "8021q",
    "tun",
    "ext4",
    "crc32c_generic",
    "loop",
];

/// Runs a program with its own libraries, wherever they lie.
const DYNAMIC: &str =
    "#!/bin/sh\nhere=/wholebar/debian\nexec $here/ld[-6]*.so.* --library-path $here $here/${0##*/} \"$@\"\n";

/// What the guest does before the command, and what it holds.
#[derive(Debug, Clone, Args)]
pub struct Inside {
    /// Devices for vfio-pci: nvme, nic, blk, other, all (but bridges, and what else is the machine's own), none, or a PCI address. The others have no driver until
    /// one is loaded. Where a device that is named by its address cannot be given, the command is not run (125)
    #[arg(long, value_name = "DEVICE", default_value = "nvme", value_parser = device)]
    pub bind: Vec<String>,
    /// Kernel modules to load, of those that the guest has: nvme, virtio_net, virtio_blk, igb, e1000e, vmxnet3, ext4
    #[arg(long, value_name = "NAME")]
    pub load: Vec<String>,
    /// Huge pages of the default size to reserve
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub hugepages: u32,
    /// A program of Debian's to have in the PATH: iperf3
    #[arg(long, value_name = "NAME")]
    pub debian: Vec<String>,
    /// A file to put into the guest, at /root/NAME or at the place named
    #[arg(long, value_name = "PATH[=PLACE]")]
    pub file: Vec<String>,
}

/// Files for the guest: the place, without the leading slash, and the file.
pub type Payload = Vec<(String, PathBuf)>;

/// What init runs.
pub enum Task<'a> {
    /// A shell on the console.
    Shell,
    Command {
        words: &'a [String],
        token: &'a str,
    },
}

/// What an initial file system is made of.
pub struct Contents<'a> {
    pub guest: Guest,
    /// `lib/modules/RELEASE` of the kernel.
    pub modules: &'a Path,
    pub busybox: &'a Path,
    pub payload: &'a [(String, PathBuf)],
    pub inside: &'a Inside,
    pub task: &'a Task<'a>,
}

/// The archive.
pub fn archive(contents: &Contents) -> Result<Vec<u8>> {
    let Contents { guest, modules, busybox, payload, inside, task } = contents;
    let mut tree = Tree::default();
    for directory in ["proc", "sys", "dev", "tmp", "run", "root"] {
        tree.directory(directory);
    }
    tree.file("bin/busybox", 0o755, &read(busybox)?);
    tree.archive.symlink("bin/sh", "busybox");
    tree.file("init", 0o755, INIT);
    tree.file("etc/bind", 0o644, BIND);

    let release = modules.file_name().and_then(|name| name.to_str()).context("a kernel's modules lie in no folder")?;
    let kernel = Modules::read(modules)?;
    let mut wanted = [NEEDED, &[guest.cpu().iommu_module]].concat();
    wanted.extend(AT_HAND.iter().filter(|name| kernel.has(name)));
    let load: Vec<&str> = inside.load.iter().map(String::as_str).collect();
    let chosen = kernel.choose(&[&wanted[..], &load].concat())?;
    for (name, module) in &chosen {
        tree.file(&format!("lib/modules/{release}/{name}.ko"), 0o644, &module.object);
    }
    tree.file(&format!("lib/modules/{release}/modules.dep"), 0o644, modules_dep(&chosen).as_bytes());

    let files = inside.file.iter().map(|file| place(file)).collect::<Result<Payload>>()?;
    for (place, path) in payload.iter().chain(&files) {
        let mode = fs::metadata(path).map(|file| file.permissions().mode() & 0o777).unwrap_or(0o644);
        tree.file(place, mode, &read(path)?);
    }

    for name in &inside.debian {
        for (name, path) in debian::program(name, guest.cpu().debian)? {
            tree.file(&format!("wholebar/debian/{name}"), 0o755, &read(&path)?);
        }
        tree.file(&format!("wholebar/bin/{name}"), 0o755, DYNAMIC.as_bytes());
    }

    let mut load = [NEEDED, &[guest.cpu().iommu_module], &load].concat();
    load.retain(|name| chosen.contains_key(&canonical(name)));
    let (shell, token) = match task {
        Task::Shell => ("yes", ""),
        Task::Command { words, token } => {
            tree.file("etc/command", 0o644, command(words).as_bytes());
            ("no", *token)
        }
    };
    let bind = quoted(&inside.bind.join(" "));
    let hugepages = inside.hugepages;
    let settings = format!(
        "GUEST={guest}\nmodules={}\nbind={bind}\nhugepages={hugepages}\nshell={shell}\ntoken={token}\n",
        quoted(&load.join(" "))
    );
    tree.file("etc/guest", 0o644, settings.as_bytes());
    Ok(tree.archive.finish())
}

/// An archive whose directories come by themselves.
#[derive(Default)]
struct Tree {
    archive: Archive,
    directories: BTreeSet<String>,
}

impl Tree {
    fn directory(&mut self, path: &str) {
        if self.directories.insert(path.to_string()) {
            self.parents(path);
            self.archive.directory(path);
        }
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parents(path);
        self.archive.file(path, mode, content);
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// A device of `--bind`: its kind, or its address as Linux writes it.
fn device(text: &str) -> Result<String, String> {
    if ["nvme", "nic", "blk", "other", "all", "none"].contains(&text) {
        return Ok(text.to_owned());
    }
    let address = match text.matches(':').count() {
        1 => format!("0000:{text}"),
        _ => text.to_owned(),
    }
    .to_lowercase();
    let hex = |part: &str, digits: usize| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = address.split([':', '.']).collect();
    match &parts[..] {
        [segment, bus, slot, function]
            if hex(segment, 4)
                && hex(bus, 2)
                && hex(slot, 2)
                && hex(function, 1)
                && address == format!("{segment}:{bus}:{slot}.{function}") =>
        {
            Ok(address)
        }
        _ => Err("it is neither nvme, nic, blk, other, all or none, nor a PCI address like 0000:01:00.0".to_owned()),
    }
}

/// Where `--file` puts a file.
fn place(file: &str) -> Result<(String, PathBuf)> {
    let (path, place) = match file.split_once('=') {
        Some((path, place)) => (path, place.trim_start_matches('/').to_string()),
        None => {
            let name = Path::new(file).file_name().and_then(|name| name.to_str());
            (file, format!("root/{}", name.with_context(|| format!("{file} names no file"))?))
        }
    };
    if place.is_empty() || place.split('/').any(|part| part.is_empty() || part == "..") {
        bail!("{file}: a file cannot be put at {place:?}");
    }
    Ok((place, path.into()))
}

/// A shell script that becomes the command.
fn command(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("exec {}\n", words.join(" "))
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_gives_the_command_the_words_it_was_given() {
        let words = ["printf", "<%s>", "it's", "$HOME `x`", "", "a\nb", "*", r"\"].map(String::from);
        let output = Command::new("sh").arg("-c").arg(command(&words)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "<it's><$HOME `x`><><a\nb><*><\\>");
    }

    #[test]
    fn devices_are_kinds_or_addresses() {
        for (text, device_) in [
            ("nvme", "nvme"),
            ("other", "other"),
            ("all", "all"),
            ("0001:00:01.0", "0001:00:01.0"),
            ("00:1F.2", "0000:00:1f.2"),
        ] {
            assert_eq!(device(text).as_deref(), Ok(device_));
        }
        for wrong in [
            "",
            "nvm",
            "nvme0",
            "00:02",
            "00.02:0",
            "0000:00:02.0.0",
            "0000:00:02",
            "00:2.0",
            "0:00:02.0",
            "0000:00:0g.0",
        ] {
            assert!(device(wrong).is_err(), "{wrong:?}");
        }
    }

    /// What `bind` gives to vfio-pci, what it says, and whether the command is to be run; in a machine of Q35's chipset and a device of each kind.
    fn given(words: &str) -> (Vec<String>, String, String) {
        let root = tempfile::tempdir().unwrap();
        let pci = root.path().join("pci");
        for (name, class, driver) in [
            ("0000:00:00.0", "0x060000", ""),
            ("0000:00:02.0", "0x078000", "virtio-pci"),
            ("0000:00:03.0", "0x060400", "pcieport"),
            ("0000:00:1f.0", "0x060100", ""),
            ("0000:00:1f.2", "0x010601", ""),
            ("0000:01:00.0", "0x010802", "vfio-pci"),
            ("0000:02:00.0", "0x020000", "vfio-pci"),
            ("0000:03:00.0", "0x00ff00", "vfio-pci"),
            // One that vfio-pci does not take.
            ("0000:04:00.0", "0x010000", ""),
        ] {
            let function = pci.join("devices").join(name);
            fs::create_dir_all(&function).unwrap();
            fs::write(function.join("class"), format!("{class}\n")).unwrap();
            if !driver.is_empty() {
                let driver = pci.join("drivers").join(driver);
                fs::create_dir_all(&driver).unwrap();
                std::os::unix::fs::symlink(driver, function.join("driver")).unwrap();
            }
        }
        let script = ". \"$0\" && echo $ready $WHOLEBAR_NVME $WHOLEBAR_NIC $WHOLEBAR_BLK $WHOLEBAR_OTHER";
        let said = root.path().join("said");
        let mut shell = Command::new("sh");
        shell.args(["-c", script, concat!(env!("CARGO_MANIFEST_DIR"), "/../vm/bind")]);
        let output = shell.env("pci", &pci).env("said", &said).env("bind", words).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let overridden = |name: &String| pci.join("devices").join(name).join("driver_override").exists();
        let names = fs::read_dir(pci.join("devices")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(overridden).collect();
        names.sort();
        (
            names,
            fs::read_to_string(said).unwrap_or_default(),
            String::from_utf8(output.stdout).unwrap().trim_end().to_owned(),
        )
    }

    #[test]
    fn whatever_is_asked_for_is_given_or_refused_in_words() {
        const NAMES: &str = "0000:01:00.0 0000:02:00.0 0000:04:00.0 0000:03:00.0";
        for (words, given_, says, ready) in [
            ("none", &[][..], "", "yes"),
            ("nvme nic", &["0000:01:00.0", "0000:02:00.0"], "", "yes"),
            ("0000:03:00.0", &["0000:03:00.0"], "", "yes"),
            ("other", &["0000:03:00.0"], "", "yes"),
            // The chipset is not meant by all, and can be named.
            (
                "all",
                &["0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"],
                "init: 0000:04:00.0: vfio-pci did not take it (class 0x010000)",
                "yes",
            ),
            ("nvme 0000:04:00.0", &["0000:01:00.0", "0000:04:00.0"], "init: 0000:04:00.0: vfio-pci did not take", "no"),
            ("0000:00:1f.2", &["0000:00:1f.2"], "init: 0000:00:1f.2: vfio-pci did not take it (class 0x010601)", "no"),
            ("0000:00:02.0", &[], "init: 0000:00:02.0: the guest's own console", "no"),
            ("0000:00:03.0", &[], "init: 0000:00:03.0: a bridge", "no"),
            (
                "0000:09:00.0 nvme",
                &["0000:01:00.0"],
                "init: 0000:09:00.0: no such PCI function; there are 0000:00:00.0 0000:00:02.0",
                "no",
            ),
        ] {
            let (names, said, answer) = given(words);
            assert_eq!(
                (names.iter().map(String::as_str).collect::<Vec<_>>(), answer),
                (given_.to_vec(), format!("{ready} {NAMES}")),
                "{words}"
            );
            assert_eq!(said.lines().count(), usize::from(!says.is_empty()), "{words}: {said}");
            assert!(said.starts_with(says), "{words}: {said}");
        }
    }

    #[test]
    fn files_go_home_or_where_they_are_told() {
        assert_eq!(place("/a/b.img").unwrap(), ("root/b.img".into(), "/a/b.img".into()));
        assert_eq!(place("b=/etc/c").unwrap(), ("etc/c".into(), "b".into()));
        for wrong in ["..", "a=", "a=/../b", "a=b//c", "a=b/"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
