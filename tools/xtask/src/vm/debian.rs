//! Debian's packages: unpacked into a cache outside the tree (kernels, busybox, programs for guests), or installed (QEMU).
//!
//! What guests have comes from trixie whatever this machine runs, through an apt state of our own: its package lists, keys and status know
//! nothing of the system's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

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

/// Where trixie's package `name` ("busybox-static:ppc64el") lies unpacked. A package that only depends on the one meant, as
/// "linux-image-arm64" does on the newest kernel's, stands for that one. Fetched once; delete the folder to have it anew.
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
    let exact = apt.kernel_behind(name)?;
    eprintln!("vm: fetching Debian's {exact}");
    let work = tempfile::tempdir_in(&packages)?;
    apt.download(&exact, work.path())?;
    let package = fs::read_dir(work.path())?.filter_map(|entry| entry.ok()).map(|entry| entry.path()).next();
    let package = package.with_context(|| format!("apt-get download {exact} left no file"))?;
    let root = work.path().join("root");
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    fs::rename(&root, &place)?;
    Ok(place)
}

/// Programs for guests, and the packages that they and their libraries are in.
const PROGRAMS: &[(&str, &[&str])] =
    &[("iperf3", &["iperf3", "libiperf0", "libsctp1", "libssl3t64", "libzstd1", "zlib1g", "libgcc-s1", "libc6"])];

/// A program of trixie's, and the libraries of its packages: each file's name, and where it lies.
pub fn program(name: &str, architecture: &str) -> Result<Vec<(String, PathBuf)>> {
    let Some((_, packages)) = PROGRAMS.iter().find(|(program, _)| *program == name) else {
        let known: Vec<_> = PROGRAMS.iter().map(|(program, _)| *program).collect();
        bail!("{name} is not among the programs that guests can have: {}", known.join(", "));
    };
    let mut files = Vec::new();
    for package in *packages {
        let root = unpacked(&format!("{package}:{architecture}"))?;
        let program = root.join("usr/bin").join(name);
        if program.is_file() {
            files.push((name.to_owned(), program));
        }
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
        fs::write(directory.join("sources.list"), format!("deb [signed-by={KEYRING}] {MIRROR} trixie main\n"))?;
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
        patiently(|| run(Command::new("apt-get").env("APT_CONFIG", &draft).args(["-qq", "update"])))?;
        fs::rename(&draft, &self.configuration)?;
        Ok(())
    }

    /// The package that `name` depends on, where both are kernels; else `name`.
    fn kernel_behind(&self, name: &str) -> Result<String> {
        if !name.starts_with("linux-image-") {
            return Ok(name.to_string());
        }
        let output = run(Command::new("apt-cache").env("APT_CONFIG", &self.configuration).args(["depends", name]))?;
        let architecture = name.rsplit(':').next().unwrap_or_default();
        let kernel = output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|package| package.starts_with("linux-image-"));
        let kernel = kernel.with_context(|| format!("trixie's {name} depends on no kernel"))?;
        let kernel = kernel.split(':').next().unwrap_or_default();
        Ok(format!("{kernel}:{architecture}"))
    }

    fn download(&self, name: &str, into: &Path) -> Result<()> {
        let fetch = || {
            run(Command::new("apt-get")
                .env("APT_CONFIG", &self.configuration)
                .args(["-qq", "download", name])
                .current_dir(into))
        };
        if fetch().is_err() {
            // Lists fetched long ago name versions that the archive no longer has.
            let directory = self.configuration.parent().context("apt.conf has no folder")?;
            self.update(directory)?;
            patiently(fetch)?;
        }
        Ok(())
    }
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
        text += &format!("\ndeb [signed-by={KEYRING}] {MIRROR} bookworm-backports main\n");
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
