//! Debian's packages: unpacked into a cache outside the tree (kernels, busybox, programs for guests), or installed (QEMU).
//!
//! What guests have comes from trixie whatever this machine runs, through an apt state of our own: its package lists, keys and status know
//! nothing of the system's. The mirror is the system's. A mirror's index may list packages that its pool does not have (yet, or any more): then
//! the newest kernel that can be fetched is taken, and what cannot be had at all is an error of its own, [`Unavailable`].

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package that the mirror does not have, whatever its index says.
#[derive(Debug)]
pub struct Unavailable {
    package: String,
    /// Each that was tried, and what came back.
    tried: Vec<String>,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Unavailable { package, tried } = self;
        match &tried[..] {
            [] => write!(f, "trixie's index has no {package}"),
            tried => write!(f, "Debian's mirror has no {package}: {}", tried.join("; ")),
        }
    }
}

impl std::error::Error for Unavailable {}

/// `$XDG_CACHE_HOME/wholebar`, or `~/.cache/wholebar`.
pub fn cache() -> Result<PathBuf> {
    let directory = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache")
        }
    };
    let directory = directory.join("wholebar");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Where trixie's package `name` ("busybox-static:ppc64el") lies unpacked. A package that only depends on the newest kernel of a kind, as
/// "linux-image-arm64" does, stands for the newest of that kind that can be fetched. Fetched once; delete the folder to have it anew.
pub fn unpacked(name: &str) -> Result<PathBuf> {
    let packages = cache()?.join("packages");
    fs::create_dir_all(&packages)?;
    // Only one process fetches; the others wait, and find it done.
    let lock = fs::File::create(packages.join("lock"))?;
    lock.lock().context("locking the package cache")?;
    let place = packages.join(name.replace(':', "_"));
    if place.is_dir() {
        return Ok(place);
    }
    let apt = Apt::open(&packages.join("apt"))?;
    let work = tempfile::tempdir_in(&packages)?;
    apt.download(name, work.path())?;
    let package = fs::read_dir(work.path())?.filter_map(|entry| entry.ok()).map(|entry| entry.path()).next();
    let package = package.with_context(|| format!("apt-get download {name} left no file"))?;
    let root = work.path().join("root");
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    fs::rename(&root, &place)?;
    Ok(place)
}

/// Programs for guests, and the packages that they and their libraries are in.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("iperf3", &["iperf3", "libiperf0", "libsctp1", "libssl3t64", "libzstd1", "zlib1g", "libgcc-s1", "libc6"]),
    ("nvme", &["nvme-cli", "libnvme1t64", "libjson-c5", "libkeyutils1", "libssl3t64", "libzstd1", "zlib1g", "libc6"]),
];

/// A program of trixie's, and the libraries of its packages: each file's name, and where it lies.
pub fn program(name: &str, architecture: &str) -> Result<Vec<(String, PathBuf)>> {
    let Some((_, packages)) = PROGRAMS.iter().find(|(program, _)| *program == name) else {
        let known: Vec<_> = PROGRAMS.iter().map(|(program, _)| *program).collect();
        bail!("{name} is not among the programs that guests can have: {}", known.join(", "));
    };
    let mut files = Vec::new();
    for package in *packages {
        let root = unpacked(&format!("{package}:{architecture}"))?;
        let programs = ["usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(name));
        files.extend(programs.into_iter().find(|program| program.is_file()).map(|program| (name.to_owned(), program)));
        // One folder, named for the CPU.
        for folder in fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten() {
            for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.contains(".so.") && entry.path().is_file() {
                    files.push((name, entry.path()));
                }
            }
        }
    }
    Ok(files)
}

/// An apt state in a folder, with trixie as its only source.
struct Apt {
    configuration: PathBuf,
}

impl Apt {
    fn open(directory: &Path) -> Result<Apt> {
        if !Path::new(KEYRING).exists() {
            bail!(
                "{KEYRING} is not here: guests are made of Debian's packages, so this needs Debian or its apt, dpkg and debian-archive-keyring"
            );
        }
        let apt = Apt { configuration: directory.join("apt.conf") };
        if apt.configuration.exists() {
            return Ok(apt);
        }
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        fs::write(directory.join("status"), "")?;
        apt.update(directory)?;
        Ok(apt)
    }

    /// Writes the configuration last: its presence says that the lists are complete.
    fn update(&self, directory: &Path) -> Result<()> {
        eprintln!("vm: fetching Debian trixie's package lists");
        let at = directory.display();
        let text = format!(
            r#"Dir::Etc::sourcelist "{at}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{at}";
Dir::State::status "{at}/status";
Dir::Cache "{at}";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "arm64"; "ppc64el"; }};
APT::Sandbox::User "root";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
"#
        );
        let draft = directory.join("apt.conf.draft");
        fs::write(&draft, text)?;
        let mirror = mirror()?;
        fs::write(
            directory.join("sources.list"),
            format!("deb [signed-by={KEYRING} target=Packages] {mirror} trixie main\n"),
        )?;
        patiently(|| run(Command::new("apt-get").env("APT_CONFIG", &draft).args(["-qq", "update"])))?;
        fs::rename(&draft, &self.configuration)?;
        Ok(())
    }

    /// The packages that `name` may stand for, the best first.
    fn candidates(&self, name: &str) -> Result<Vec<String>> {
        let list =
            |arguments: &[&str]| run(Command::new("apt-cache").env("APT_CONFIG", &self.configuration).args(arguments));
        let (package, architecture) = name.split_once(':').unwrap_or((name, "amd64"));
        let names = match package.strip_prefix("linux-image-") {
            Some(flavour) => kernels(&list(&["pkgnames", "linux-image-"])?, flavour),
            None => vec![package.to_owned()],
        };
        Ok(names.into_iter().map(|name| format!("{name}:{architecture}")).collect())
    }

    /// Fetches the best of what `name` may stand for that the mirror has.
    fn download(&self, name: &str, into: &Path) -> Result<()> {
        let mut tried = Vec::new();
        // Lists fetched long ago name versions that the archive no longer has.
        for fresh in [false, true] {
            if fresh {
                let directory = self.configuration.parent().context("apt.conf has no folder")?;
                self.update(directory)?;
            }
            tried.clear();
            for package in self.candidates(name)? {
                eprintln!("vm: fetching Debian's {package}");
                let fetched = patiently(|| self.fetch(&package, into))?;
                let Err(absent) = fetched else { return Ok(()) };
                eprintln!("vm: {package} can't be fetched: {absent}");
                tried.push(absent);
            }
        }
        Err(Unavailable { package: name.to_owned(), tried }.into())
    }

    /// Fetches this one package. What apt says of a package that its mirror lacks is no error but an answer.
    fn fetch(&self, package: &str, into: &Path) -> Result<Result<(), String>> {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.configuration).args(["-qq", "download", package]).current_dir(into);
        match run(&mut command) {
            Ok(_) => Ok(Ok(())),
            Err(error) => match absence(&error.to_string()) {
                Some(absence) => Ok(Err(absence)),
                None => Err(error),
            },
        }
    }
}

/// The kernels of a flavour ("powerpc64le-64k") among packages, the newest first.
fn kernels(packages: &str, flavour: &str) -> Vec<String> {
    let version = |name: &str| -> Option<Vec<u64>> {
        let version = name.strip_prefix("linux-image-")?.strip_suffix(flavour)?.strip_suffix('-')?;
        // "6.12.107+deb13"; another hyphen begins another flavour, as in "6.12.107+deb13-rt-amd64".
        if version.contains('-') || !version.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        Some(version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect())
    };
    let mut kernels: Vec<_> = packages.lines().filter_map(|name| Some((version(name)?, name))).collect();
    kernels.sort();
    kernels.into_iter().rev().map(|(_, name)| name.to_owned()).collect()
}

/// The line of apt's messages that says that the mirror has no such file, or its index no such package.
fn absence(messages: &str) -> Option<String> {
    let absent = ["  404  Not Found", "File not found", "Unable to locate package", "Can't find a source to download"];
    let line = messages.lines().find(|line| absent.iter().any(|words| line.contains(words)))?;
    Some(line.trim_start_matches("E: ").to_owned())
}

/// Debian's mirror, as the system's apt is set up with it.
fn mirror() -> Result<String> {
    let targets = || {
        run(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ]))
    };
    if let Some(mirror) = main_archive(&targets()?) {
        return Ok(mirror);
    }
    // Whose archive a source is, is known when its lists have been fetched once.
    if rustix::process::geteuid().is_root() {
        patiently(|| run(Command::new("apt-get").args(["-qq", "update"])))?;
    }
    main_archive(&targets()?).context(
        "guests are made of Debian's packages, and this system's apt has no source of Debian's main archive, or has \
         not fetched its lists (apt-get update); `apt-get indextargets` shows what it has",
    )
}

/// The address of Debian's main archive, in lines of origin, label and address.
fn main_archive(targets: &str) -> Option<String> {
    let mut lines = targets.lines();
    lines.find_map(|line| line.strip_prefix("Debian Debian ").map(|mirror| mirror.trim_end_matches('/').to_owned()))
}

/// Makes programs available, each with the package that has it; a name with a slash is a file. Nothing to do if they are there; else, as root, installs them.
/// On bookworm QEMU comes from its backports, since the QEMU of bookworm itself is too old.
pub fn provide(needs: &[(&str, &str)]) -> Result<()> {
    let missing = || needs.iter().filter(|(file, _)| !present(file)).map(|(_, package)| *package).collect::<Vec<_>>();
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(" ");
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let bookworm = system.lines().any(|line| line == "VERSION_CODENAME=bookworm");
    let backports = bookworm && packages.iter().any(|name| name.starts_with("qemu-"));
    if !rustix::process::geteuid().is_root() {
        let release = if backports { " -t bookworm-backports" } else { "" };
        bail!("missing or too old, and only root can install it: apt-get install{release} {names}");
    }
    eprintln!("vm: installing {names}");
    let work = tempfile::tempdir()?;
    let sources = work.path().join("sources.list");
    let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    if backports {
        text += &format!("\ndeb [signed-by={KEYRING}] {} bookworm-backports main\n", mirror()?);
    }
    fs::write(&sources, text)?;
    fs::create_dir_all(work.path().join("lists/partial"))?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        for (option, place) in [("Dir::Etc::sourcelist", &sources), ("Dir::State::lists", &work.path().join("lists"))] {
            command.arg("-o").arg(format!("{option}={}", place.display()));
        }
        run(command
            .args([
                "-o",
                "APT::Sandbox::User=root",
                "-o",
                "Acquire::Retries=3",
                "-o",
                "DPkg::Lock::Timeout=300",
                "-qqy",
            ])
            .args(arguments))
    };
    let release: &[&str] = if backports { &["-t", "bookworm-backports"] } else { &[] };
    // What an earlier installation left half done, whose process was ended: apt refuses to go on before. Where another one runs, apt waits for it.
    let _ = run(Command::new("dpkg").args(["--configure", "-a"]));
    patiently(|| {
        apt(&["update"])?;
        apt(&[&["install", "--no-install-recommends"], release, &packages].concat())
    })?;
    let missing = missing();
    if !missing.is_empty() {
        bail!("{} is installed, yet missing or too old (QEMU 10 is needed)", missing.join(" "));
    }
    Ok(())
}

fn present(file: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = Path::new(file).exists() && file.contains('/')
        || std::env::split_paths(&path).any(|directory| directory.join(file).is_file());
    there && (!file.starts_with("qemu-") || qemu_is_new(file))
}

/// QEMU 10 is what all of this was tried with; before 8 there is no igb.
fn qemu_is_new(program: &str) -> bool {
    let version = run(Command::new(program).arg("--version")).unwrap_or_default();
    major_version(&version).is_some_and(|major| major >= 10)
}

/// 10 in "QEMU emulator version 10.0.2 (Debian ...)".
fn major_version(text: &str) -> Option<u32> {
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

/// Does what needs the network, and does it again after a while, and after a longer one, where it fails.
fn patiently<T>(f: impl Fn() -> Result<T>) -> Result<T> {
    for pause in [5, 20, 60].map(Duration::from_secs) {
        match f() {
            Ok(done) => return Ok(done),
            Err(error) => eprintln!("vm: {error:#}\nvm: trying again in {pause:?}"),
        }
        std::thread::sleep(pause);
    }
    f()
}

/// Runs a command to its end; its standard output. An error holds what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("running {shown}"))?;
    if !output.status.success() {
        bail!("{shown} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some(10));
        assert_eq!(major_version("QEMU emulator version 7.2.15\n"), Some(7));
        assert_eq!(major_version("what?"), None);
    }

    #[test]
    fn the_newest_kernel_of_a_flavour_comes_first() {
        let packages = "linux-image-6.12.9+deb13-amd64\nlinux-image-amd64\nlinux-image-6.12.107+deb13-rt-amd64\n\
            linux-image-6.12.107+deb13-amd64\nlinux-image-6.12.107+deb13-amd64-dbg\nlinux-image-6.2+deb13-arm64-16k\n";
        assert_eq!(kernels(packages, "amd64"), ["linux-image-6.12.107+deb13-amd64", "linux-image-6.12.9+deb13-amd64"]);
        assert_eq!(kernels(packages, "arm64-16k"), ["linux-image-6.2+deb13-arm64-16k"]);
        assert!(kernels(packages, "arm64").is_empty());
    }

    #[test]
    fn a_mirror_that_lacks_a_package_is_told_from_one_out_of_reach() {
        let lacks = "\"apt-get\" failed (exit status: 100):\nE: Failed to fetch http://mirror/a.deb  404  Not Found [IP: 192.0.2.1 80]";
        assert_eq!(absence(lacks).unwrap(), "Failed to fetch http://mirror/a.deb  404  Not Found [IP: 192.0.2.1 80]");
        assert!(absence("E: Failed to fetch http://mirror/a.deb  Could not connect to mirror:80").is_none());
    }

    #[test]
    fn the_mirror_is_of_the_main_archive() {
        let targets = "Someone Else http://a.example/x/\nDebian Debian-Security http://b.example/security/\n\
            Debian Debian http://c.example/debian/\nDebian Debian http://d.example/debian/\n";
        assert_eq!(main_archive(targets).unwrap(), "http://c.example/debian");
        assert_eq!(main_archive("$(ORIGIN) $(LABEL) http://a.example/debian/\n"), None);
    }

    #[test]
    fn presence() {
        assert!(present("sh"));
        assert!(present("/proc/self/exe"));
        assert!(!present("/no/such/file"));
        assert!(!present("no-such-program"));
    }

    #[test]
    fn a_command_that_fails_is_quoted_with_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("why"), "{error}");
    }
}
