//! The names of disks behind `kernel:`: a path, perhaps followed by parameters.

use crate::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// A block device or a file, and how it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// Its path.
    pub path: PathBuf,
    /// Open it through the page cache, without `O_DIRECT`.
    pub cached: bool,
    /// Have a thread of the kernel's look for requests (`IORING_SETUP_SQPOLL`): doorbells are stores then, and a core is busy.
    pub sqpoll: bool,
    /// Have completions looked for, instead of by interrupts (`IORING_SETUP_IOPOLL`), where the device has queues for that.
    pub iopoll: bool,
    /// Do not write.
    pub read_only: bool,
    /// Write a block device although something uses it.
    pub force: bool,
}

impl Target {
    /// Parses a path with its parameters: `/dev/nvme0n1,sqpoll`. A path may have commas of its own: what is no parameter belongs to it.
    ///
    /// # Errors
    /// [`Error::Target`] where no path is left.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut path, mut target) = (text, Self::default());
        while let Some((before, last)) = path.rsplit_once(',') {
            match last {
                "cached" => target.cached = true,
                "sqpoll" => target.sqpoll = true,
                "iopoll" => target.iopoll = true,
                "ro" => target.read_only = true,
                "force" => target.force = true,
                _ => break,
            }
            path = before;
        }
        if path.is_empty() {
            return Err(Error::Target { text: text.to_owned() });
        }
        target.path = path.into();
        Ok(target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        let set = [
            (self.cached, "cached"),
            (self.sqpoll, "sqpoll"),
            (self.iopoll, "iopoll"),
            (self.read_only, "ro"),
            (self.force, "force"),
        ];
        set.into_iter().filter(|(set, _)| *set).try_for_each(|(_, name)| write!(f, ",{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_their_own_commas() {
        for (text, path) in [
            ("/dev/nvme0n1", "/dev/nvme0n1"),
            ("/a,b/c,d", "/a,b/c,d"),
            ("./x,cached,sqpoll,iopoll,ro,force", "./x"),
            ("./x,cached,y", "./x,cached,y"),
            ("./x,sqpoll=1", "./x,sqpoll=1"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.path.to_str().unwrap(), target.to_string().as_str()), (path, text));
        }
        assert!(matches!(Target::parse("/x,force"), Ok(Target { force: true, cached: false, .. })));
        assert!(matches!(Target::parse(",force"), Err(Error::Target { .. })));
    }
}
