//! Network interfaces as [`Port`]s, through the kernel. There are none yet: [`open`] says so.

use crate::{Error, Result};
use std::fmt;
use wholebar_core::net::{Port, PortConfig};

/// A network interface, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The interface's name: `eth0`.
    pub interface: String,
}

impl Target {
    /// Parses what stands behind `kernel:` and has no slash in it.
    ///
    /// # Errors
    /// [`Error::Target`] where that is nothing.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" => Err(Error::Target { text: text.to_owned() }),
            _ => Ok(Self { interface: text.to_owned() }),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.interface)
    }
}

/// Opens an interface as a port.
///
/// # Errors
/// [`Error::NotBuiltIn`].
pub fn open(target: &Target, _: &PortConfig) -> Result<Box<dyn Port>> {
    Err(Error::NotBuiltIn { target: target.to_string(), what: "ports through the kernel" })
}
