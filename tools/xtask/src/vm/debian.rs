//! Debian's packages: unpacked into a cache outside the tree (kernels, busybox), or installed (QEMU).
//!
//! Kernels and busybox come from trixie whatever this machine runs, through an apt state of our own: its package lists, keys and status know
//! nothing of the system's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
Acquire::Languages "none";
"#
        );
        let draft = directory.join("apt.conf.draft");
        fs::write(&draft, text)?;
        run(Command::new("apt-get").env("APT_CONFIG", &draft).args(["-qq", "update"]))?;
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
            fetch()?;
        }
        Ok(())
    }
}

/// Makes `program` available: nothing to do if it is there; else, as root, installs `packages`. On bookworm they come from its backports, since the QEMU of bookworm
/// itself has no igb and an older sPAPR.
pub fn program(program: &str, packages: &[&str]) -> Result<()> {
    if on_path(program) {
        return Ok(());
    }
    let names = packages.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!(
            "{program} is not installed, and only root can install it: apt-get install {names} (on bookworm: -t bookworm-backports)"
        );
    }
    eprintln!("vm: installing {names}");
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let bookworm = system.lines().any(|line| line == "VERSION_CODENAME=bookworm");
    let work = tempfile::tempdir()?;
    let sources = work.path().join("sources.list");
    let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    if bookworm {
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
        run(command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "-qqy"]).args(arguments))
    };
    apt(&["update"])?;
    let release: &[&str] = if bookworm { &["-t", "bookworm-backports"] } else { &[] };
    apt(&[&["install", "--no-install-recommends"], release, packages].concat())?;
    if !on_path(program) {
        bail!("{names} installed, yet there is no {program}");
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
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
