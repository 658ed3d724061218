//! Kernel modules for a guest: those wanted and those they need, found in an unpacked kernel package.
//!
//! What a module needs is read from the module itself (`depends=` in its `.modinfo` section), so that no depmod is needed; the guest's modprobe
//! gets a `modules.dep` made from it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lzma_rust2::XzReader;

/// A module's name, underscores for hyphens, as the kernel shows it.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules of one kernel.
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

/// Modules that a guest gets, by name.
pub type Chosen = BTreeMap<String, Module>;

pub struct Module {
    pub object: Vec<u8>,
    depends: Vec<String>,
}

impl Modules {
    /// Lists the modules under `directory` (`lib/modules/RELEASE`).
    pub fn read(directory: &Path) -> Result<Modules> {
        let mut files = BTreeMap::new();
        list(directory, &mut files).with_context(|| format!("listing the modules in {}", directory.display()))?;
        let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
        let builtin = builtin.lines().filter_map(module_name).collect();
        Ok(Modules { files, builtin })
    }

    /// `wanted`, and all they need. One that this kernel lacks is an error, unless it is built in.
    pub fn choose(&self, wanted: &[&str]) -> Result<Chosen> {
        let mut chosen = Chosen::new();
        let mut left: Vec<String> = wanted.iter().map(|name| canonical(name)).collect();
        while let Some(name) = left.pop() {
            if chosen.contains_key(&name) || self.builtin.contains(&name) {
                continue;
            }
            let Some(path) = self.files.get(&name) else { bail!("this kernel has no module {name}") };
            let object = object(path)?;
            let depends = depends(&object);
            left.extend(depends.iter().cloned());
            chosen.insert(name, Module { object, depends });
        }
        Ok(chosen)
    }

    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(&canonical(name)) || self.builtin.contains(&canonical(name))
    }
}

/// `modules.dep` for busybox's modprobe: each line lists all that a module needs, the first to load standing last.
pub fn modules_dep(chosen: &Chosen) -> String {
    let mut text = String::new();
    for name in chosen.keys() {
        let mut order = Vec::new();
        visit(chosen, name, &mut order);
        order.pop();
        let needs: Vec<String> = order.iter().rev().map(|need| format!(" {need}.ko")).collect();
        text += &format!("{name}.ko:{}\n", needs.concat());
    }
    text
}

/// Appends `name` to `order` after all that it needs.
fn visit(chosen: &Chosen, name: &str, order: &mut Vec<String>) {
    let Some(module) = chosen.get(name) else { return };
    if order.iter().any(|done| done == name) {
        return;
    }
    for need in &module.depends {
        visit(chosen, need, order);
    }
    order.push(name.to_string());
}

fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = path.to_str().and_then(module_name) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `vfio_pci` for `kernel/drivers/vfio/pci/vfio-pci.ko.xz`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(canonical(stem))
}

fn object(path: &Path) -> Result<Vec<u8>> {
    let file = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    match path.extension() == Some(OsStr::new("xz")) {
        true => undo_xz(&file).with_context(|| format!("decompressing {}", path.display())),
        false => Ok(file),
    }
}

fn undo_xz(file: &[u8]) -> io::Result<Vec<u8>> {
    let mut object = Vec::new();
    XzReader::new(file, true).read_to_end(&mut object)?;
    Ok(object)
}

/// What a module's `.modinfo` section says it needs: NUL-terminated `key=value` strings, one of them `depends=a,b`.
fn depends(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = object.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = object[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(directory: &Path, file: &str, depends: &str) {
        let object = format!("\x7fELF...\0license=GPL\0depends={depends}\0retpoline=Y\0");
        fs::write(directory.join(file), object).unwrap();
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("kernel/drivers/vfio");
        fs::create_dir_all(&deep).unwrap();
        module(&deep, "vfio-pci.ko", "vfio-pci-core");
        module(&deep, "vfio-pci-core.ko", "vfio,irqbypass");
        module(&deep, "vfio.ko", "");
        module(&deep, "irqbypass.ko", "");
        module(&deep, "unrelated.ko", "");
        fs::write(root.path().join("modules.builtin"), "kernel/drivers/virtio/virtio.ko\n").unwrap();
        root
    }

    #[test]
    fn needs_are_followed_and_listed_with_the_first_to_load_last() {
        let root = tree();
        let modules = Modules::read(root.path()).unwrap();
        let chosen = modules.choose(&["vfio-pci", "virtio"]).unwrap();
        assert_eq!(chosen.keys().collect::<Vec<_>>(), ["irqbypass", "vfio", "vfio_pci", "vfio_pci_core"]);
        let text = modules_dep(&chosen);
        assert!(text.contains("vfio_pci.ko: vfio_pci_core.ko irqbypass.ko vfio.ko\n"), "{text}");
        assert!(text.contains("vfio.ko:\n"), "{text}");
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        let root = tree();
        let modules = Modules::read(root.path()).unwrap();
        assert!(!modules.has("igb"));
        let error = modules.choose(&["igb"]).err().unwrap();
        assert_eq!(error.to_string(), "this kernel has no module igb");
    }

    /// What `xz --check=crc32 --lzma2=dict=1MiB` makes of a module, as the kernel's own `modules_install` calls it.
    const XZ: &[u8] = b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x02\x00\x21\x01\x10\x00\x00\x00\xa8\x70\x8e\x86\x01\x00\x28\
        \x7fELF...\0license=GPL\0depends=\0retpoline=Y\0\0\0\0\0\x07\xd4ao\x00\x01\x3d\x29\xf9\x65\xdc\x08\x90\x42\x99\x0d\
        \x01\0\0\0\0\x01YZ";

    #[test]
    fn xz_is_undone() {
        let root = tree();
        let path = root.path().join("kernel/drivers/vfio/vfio.ko");
        let object = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(path.with_extension("ko.xz"), XZ).unwrap();
        let chosen = Modules::read(root.path()).unwrap().choose(&["vfio"]).unwrap();
        assert_eq!(chosen["vfio"].object, object);
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_module() {
        for end in 0..XZ.len() {
            assert!(undo_xz(&XZ[..end]).is_err(), "{end} bytes");
        }
        // One byte of what it holds: its checksum is another then.
        let mut changed = XZ.to_vec();
        changed[40] ^= 1;
        assert!(undo_xz(&changed).is_err());
    }
}
