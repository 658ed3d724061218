//! Kernels: Debian's, or where Debian has none of the kind, one built from Debian's source.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::build::root;
use super::debian::{self, run};
use super::guest::{Cpu, Guest};

/// A kernel on disk.
pub struct Kernel {
    pub image: PathBuf,
    /// `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

impl Kernel {
    /// As `uname -r` says in the guest.
    pub fn release(&self) -> String {
        self.modules.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Where a guest's kernel comes from.
pub enum Source {
    /// Debian's package that depends on the newest kernel of this kind.
    Package(&'static str),
    /// Debian's kernel source, with this file of `tools/vm`.
    Configuration(&'static str),
}

/// A guest's kernel, from the cache after the first time.
pub fn kernel(guest: Guest) -> Result<Kernel> {
    let cpu = guest.cpu();
    let place = match guest.kernel() {
        Source::Package(name) => debian::unpacked(&format!("{name}:{}", cpu.debian))?,
        Source::Configuration(file) => built(cpu, &root().join("tools/vm").join(file))?,
    };
    Ok(Kernel { image: only(&place.join("boot"), "vmlinu")?, modules: only(&place.join("usr/lib/modules"), "")? })
}

/// Builds a kernel, unless the cache has one of this very configuration.
fn built(cpu: &Cpu, configuration: &Path) -> Result<PathBuf> {
    let wanted = fs::read(configuration).with_context(|| format!("reading {}", configuration.display()))?;
    let name = configuration.file_stem().context("a configuration without a name")?;
    let kernels = debian::cache()?.join("kernels");
    fs::create_dir_all(&kernels)?;
    let place = kernels.join(name);
    let lock = fs::File::create(kernels.join("lock"))?;
    lock.lock().context("locking the kernel cache")?;
    let of_this_kind = |directory: &Path| fs::read(directory.join("fragment")).is_ok_and(|used| used == wanted);
    if of_this_kind(&place) {
        return Ok(place);
    }

    let cross = format!("{}-linux-gnu-", cpu.name);
    let compiler = format!("{cross}gcc");
    let compiler_package = format!("gcc-{}", cross.trim_end_matches('-').replace('_', "-"));
    debian::provide(&[
        ("make", "make"),
        (&compiler, &compiler_package),
        ("flex", "flex"),
        ("bison", "bison"),
        ("bc", "bc"),
        ("xz", "xz-utils"),
        ("/usr/include/libelf.h", "libelf-dev"),
    ])?;
    // A build that was interrupted goes on where it was.
    let build = place.with_extension("build");
    if !of_this_kind(&build) {
        let package = debian::unpacked("linux-source-6.12:amd64")?;
        remove(&build)?;
        let work = tempfile::tempdir_in(&kernels)?;
        eprintln!("vm: unpacking the kernel's source");
        let archive = only(&package.join("usr/src"), "linux-source")?;
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(work.path()))?;
        fs::write(work.path().join("fragment"), &wanted)?;
        fs::rename(work.path(), &build)?;
    }
    let source = only(&build, "linux-source")?;

    let make = |targets: &[&str]| {
        let mut make = Command::new("make");
        make.arg("-C").arg(&source).args([&format!("ARCH={}", cpu.kernel), &format!("CROSS_COMPILE={cross}")]);
        make.args(["KBUILD_BUILD_HOST=wholebar", "KBUILD_BUILD_USER=wholebar"]).args(targets);
        make
    };
    run(make(&["allnoconfig"]).env("KCONFIG_ALLCONFIG", configuration))?;
    check_configuration(&wanted, &fs::read_to_string(source.join(".config"))?)?;
    let jobs = format!("-j{}", std::thread::available_parallelism().map_or(1, |count| count.get()));
    compile(make(&[&jobs, cpu.image, "modules"]))?;

    let result = build.join("root");
    remove(&result)?;
    fs::create_dir_all(result.join("boot"))?;
    let modules = format!("INSTALL_MOD_PATH={}", result.join("usr").display());
    // DEPMOD: the guest's list of dependencies is our own.
    run(&mut make(&[&modules, "INSTALL_MOD_STRIP=1", "DEPMOD=true", "modules_install"]))?;
    let image = [source.join(cpu.image), source.join(format!("arch/{}/boot/{}", cpu.kernel, cpu.image))];
    let image = image.into_iter().find(|path| path.exists()).context("the build left no kernel image")?;
    fs::copy(image, result.join("boot/vmlinux"))?;
    fs::write(result.join("fragment"), wanted)?;
    remove(&place)?;
    fs::rename(&result, &place)?;
    remove(&build)?;
    Ok(place)
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
}

/// Settings that the kernel's own rules did not let through are errors: better here than as a missing device.
fn check_configuration(wanted: &[u8], got: &str) -> Result<()> {
    let wanted = String::from_utf8_lossy(wanted);
    let settings = wanted.lines().filter(|line| line.starts_with("CONFIG_"));
    let got: Vec<&str> = got.lines().collect();
    let lost: Vec<&str> = settings
        .filter(|setting| match setting.strip_suffix("=n") {
            Some(name) => got.iter().any(|line| line.starts_with(&format!("{name}="))),
            None => !got.contains(setting),
        })
        .collect();
    if !lost.is_empty() {
        bail!("the kernel's configuration does not take {}", lost.join(", "));
    }
    Ok(())
}

/// Runs make, and says now and then how far it is.
fn compile(mut make: Command) -> Result<()> {
    eprintln!("vm: compiling a kernel: 10 to 30 minutes on two cores, this once");
    let mut child = make.stdout(Stdio::piped()).spawn().with_context(|| format!("running {make:?}"))?;
    let mut steps = 0;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            line.context("reading what make says")?;
            steps += 1;
            if steps % 200 == 0 {
                eprintln!("vm: {steps} steps of about 2000");
            }
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{make:?} failed ({status})");
    }
    Ok(())
}

/// The one entry of a folder whose name begins so.
fn only(directory: &Path, beginning: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("looking into {}", directory.display()))?;
    let mut paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
    let found = paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)));
    found.with_context(|| format!("{} holds no {beginning}*", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_was_not_taken_is_named() {
        let wanted = b"# a comment\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=n\nCONFIG_D=n\n";
        assert!(check_configuration(wanted, "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n").is_ok());
        let error = check_configuration(wanted, "CONFIG_A=y\nCONFIG_B=y\nCONFIG_D=y\n").unwrap_err();
        assert_eq!(error.to_string(), "the kernel's configuration does not take CONFIG_B=m, CONFIG_D=n");
    }
}
