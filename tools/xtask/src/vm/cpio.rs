//! Writes a cpio archive in the "newc" format, the one that Linux unpacks as its initial file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source).

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

/// An archive under construction. Parents must be added before what they hold; paths are relative to the root.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// A regular file, with `mode` of permissions alone.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, FILE | mode, content);
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let inode = self.entries;
        self.entries += 1;
        // The size field has 8 hexadecimal digits: 4 GiB is more than any guest here has memory.
        let size = content.len() as u32;
        let name_size = path.len() as u32 + 1;
        let [owner, group, modified, device, check] = [0; 5];
        let links = 1;
        self.bytes.extend_from_slice(b"070701");
        for field in
            [inode, mode, owner, group, links, modified, size, device, device, device, device, name_size, check]
        {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_byte_for_byte() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        let header = "070701\
            00000000\
            000081ed\
            00000000\
            00000000\
            00000001\
            00000000\
            00000005\
            00000000\
            00000000\
            00000000\
            00000000\
            00000005\
            00000000";
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..124], b"init\0\0hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn inodes_differ_so_that_nothing_becomes_a_hard_link() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.symlink("bin/sh", "busybox");
        let bytes = archive.finish();
        assert!(bytes.starts_with(b"07070100000000"));
        let second = 110 + "bin\0".len() + 2;
        assert!(bytes[second..].starts_with(b"07070100000001"));
    }
}
