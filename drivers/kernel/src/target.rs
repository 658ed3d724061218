//! What targets name behind `kernel:`.

use crate::{Result, blk, net};
use std::fmt;

/// The name of a disk or a port that is reached through the kernel, parsed: what stands behind `kernel:`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A block device or a file, by its path: `/dev/nvme0n1`, `./disk.img`.
    Disk(blk::Target),
    /// A network interface: `eth0`.
    Port(net::Target),
}

impl Target {
    /// Parses a name. What has a slash in it is a path, of which the part behind the last slash may be followed by parameters; all else is an interface. It
    /// opens nothing.
    ///
    /// # Errors
    /// [`Error::Target`](crate::Error::Target) for a name of nothing; [`Error::Parameter`](crate::Error::Parameter) and [`Error::Value`](crate::Error::Value) for what follows it.
    pub fn parse(text: &str) -> Result<Self> {
        match text.contains('/') {
            true => Ok(Self::Disk(blk::Target::parse(text)?)),
            false => Ok(Self::Port(net::Target::parse(text)?)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(target) => target.fmt(f),
            Self::Port(target) => target.fmt(f),
        }
    }
}
