//! Copies all files of an ext4 file system on a disk to a directory, by `ext4-view`, a crate that knows nothing of disks: ext4_view TARGET DIRECTORY

use anyhow::{Context, Result};
use ext4_view::{Ext4, Ext4Read, PathBuf};
use std::error::Error;
use std::fs;
use std::path::Path;
use wholebar::block::{self, DiskConfig};
use wholebar::blocking::{Config, Disk};

/// A disk, as the file system wants to have it.
struct Image(Disk);

impl Ext4Read for Image {
    fn read(&mut self, start: u64, bytes: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.read_exact_at(bytes, start)?)
    }
}

fn copy(ext4: &Ext4, from: &PathBuf, to: &Path) -> Result<u64> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut files = 0;
    for entry in ext4.read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.as_str().context("a name is not UTF-8")?;
        let to = to.join(name);
        if matches!(name, "." | "..") {
            continue;
        } else if entry.metadata()?.is_dir() {
            files += copy(ext4, &entry.path(), &to)?;
        } else {
            fs::write(&to, ext4.read(&entry.path())?).with_context(|| format!("cannot write {}", to.display()))?;
            files += 1;
        }
    }
    Ok(files)
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [target, directory] = &arguments[..] else { anyhow::bail!("ext4_view TARGET DIRECTORY") };
    let config = Config { unaligned: true, ..Config::default() };
    let disk = Disk::open(block::open_target(target, &DiskConfig::default())?, &config)?;
    let ext4 = Ext4::load(Box::new(Image(disk)))?;
    println!("{target}: {} files", copy(&ext4, &PathBuf::new("/"), Path::new(directory))?);
    Ok(())
}
