//! The names of ports behind `kernel:`: an interface, perhaps followed by a parameter.

use crate::{Error, Result};
use std::fmt;

/// A network interface, and how it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// The interface's name: `eth0`.
    pub interface: String,
    /// Use it although the kernel uses it too: it has an address or a default route, or is a part of a bridge or a bond.
    pub force: bool,
}

impl Target {
    /// Parses what stands behind `kernel:` and has no slash in it: `eth0`, `eth0,force`.
    ///
    /// # Errors
    /// [`Error::Target`] where that names no interface; [`Error::Parameter`] for what follows it.
    pub fn parse(text: &str) -> Result<Self> {
        let (interface, parameters) = text.split_once(',').unwrap_or((text, ""));
        if interface.is_empty() {
            return Err(Error::Target { text: text.to_owned() });
        }
        let mut target = Self { interface: interface.to_owned(), force: false };
        for key in parameters.split(',').filter(|key| !key.is_empty()) {
            match key {
                "force" => target.force = true,
                _ => {
                    let target = "a network interface";
                    return Err(Error::Parameter { target, key: key.to_owned(), known: "force" });
                }
            }
        }
        Ok(target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.interface)?;
        if self.force { f.write_str(",force") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_and_shown_as_they_were() {
        for text in ["eth0", "eth0,force", "veth@if7"] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        assert!(Target::parse("eth0,force").unwrap().force && !Target::parse("eth0").unwrap().force);
        for text in ["", ",force"] {
            assert!(matches!(Target::parse(text), Err(Error::Target { .. })), "{text}");
        }
        for text in ["eth0,speed=1", "eth0,force=1", "eth0,force,x"] {
            assert!(matches!(Target::parse(text), Err(Error::Parameter { known: "force", .. })), "{text}");
        }
    }
}
