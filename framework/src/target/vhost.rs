//! The names of vhost-user back ends: `vhost-user:/run/x.sock`, perhaps followed by parameters.

use super::{is_socket_name, last_parameter, no_parameter, seconds};
use crate::OpenError;
use std::fmt;
use std::path::Path;
use wholebar_core::net::Mac;
use wholebar_core::vhost_user::{DeviceType, Options};
#[cfg(feature = "sim")]
use wholebar_sim::virtio::net::back_end::BackEnd;

/// The least MTU: what every IPv4 host takes (RFC 791).
const LEAST_MTU: u16 = 68;

/// A name, taken apart.
pub(super) struct Name<'a> {
    pub(super) path: &'a str,
    pub(super) options: Options,
    /// The back end is here: it is a front end that is to be at the other end.
    pub(super) back_end: bool,
}

/// The parameters, for messages.
const HAS: &str = "server, back-end, net, blk, mac=ADDRESS, mtu=BYTES, timeout=SECONDS and reconnect=SECONDS \
                   (and a comma of its path's own only where a file has that name)";

/// A path and the parameters behind it.
pub(super) fn parse(text: &str) -> Result<Name<'_>, OpenError> {
    let (mut path, mut options, mut back_end) = (text, Options::default(), false);
    while let Some((before, key, value)) = last_parameter(path) {
        let given = value.unwrap_or("");
        let bad = |key, expected| OpenError::Value { key, value: given.to_owned(), expected };
        match (key, value) {
            ("server", None) => options.server = true,
            ("back-end", None) => back_end = true,
            ("net", None) => options.device_type = Some(DeviceType::Net),
            ("blk", None) => options.device_type = Some(DeviceType::Blk),
            ("timeout", _) => options = options.with_timeout(seconds("timeout", given, false)?),
            ("reconnect", _) => options.reconnect = seconds("reconnect", given, true)?,
            ("mac", _) => {
                let mac: Mac = given.parse().map_err(|_| bad("mac", "an address such as 02:00:00:00:00:01"))?;
                let station = Some(mac).filter(|mac| mac.is_unicast());
                options.mac = Some(station.ok_or_else(|| bad("mac", "the address of one station"))?.0);
            }
            ("mtu", _) => {
                let mtu = given.parse().ok().filter(|mtu| *mtu >= LEAST_MTU);
                options.mtu = Some(mtu.ok_or_else(|| bad("mtu", "bytes, from 68 to 65535"))?);
            }
            _ if is_socket_name(path) => break,
            _ => return Err(no_parameter("a vhost-user target", key, HAS)),
        }
        path = before;
    }
    Ok(Name { path, options, back_end })
}

/// A back end of these options, few of which one has.
#[cfg(feature = "sim")]
pub(super) fn back_end(path: &str, options: &Options) -> Result<BackEnd, OpenError> {
    let usual = Options::default();
    let others = [
        ("blk", options.device_type == Some(DeviceType::Blk)),
        ("mtu", options.mtu.is_some()),
        ("timeout", options.timeout != usual.timeout),
        ("reconnect", options.reconnect != usual.reconnect),
    ];
    if let Some((key, _)) = others.into_iter().find(|(_, given)| *given) {
        const HAS: &str = "server and mac=";
        return Err(no_parameter("a vhost-user back end's port", key, HAS));
    }
    Ok(BackEnd { path: path.into(), server: options.server, mac: options.mac })
}

/// Shows a name as [`parse`] reads it.
pub(super) fn show(path: &Path, options: &Options, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "vhost-user:{}", path.display())?;
    let usual = Options::default();
    if options.server {
        f.write_str(",server")?;
    }
    match options.device_type {
        Some(DeviceType::Net) => f.write_str(",net")?,
        Some(DeviceType::Blk) => f.write_str(",blk")?,
        None => {}
    }
    if let Some(mac) = options.mac {
        write!(f, ",mac={}", Mac(mac))?;
    }
    if let Some(mtu) = options.mtu {
        write!(f, ",mtu={mtu}")?;
    }
    if options.timeout != usual.timeout {
        write!(f, ",timeout={}", options.timeout.as_secs_f64())?;
    }
    if options.reconnect != usual.reconnect {
        write!(f, ",reconnect={}", options.reconnect.as_secs_f64())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::Target;

    #[test]
    fn names_are_understood_and_shown_as_they_were() {
        for text in [
            "vhost-user:/run/x.sock",
            "vhost-user:/run/x,y=1/s",
            "vhost-user:x,y/z,server,net,mac=02:00:00:00:00:01,mtu=9000,timeout=0.5,reconnect=0",
            "vhost-user:x,blk,reconnect=60",
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        #[cfg(feature = "sim")]
        for text in ["vhost-user:x,back-end", "vhost-user:/run/x,y/z,back-end,server,mac=02:00:00:00:00:01"] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.to_string(), target.is_pci()), (text.to_owned(), false));
        }
        let error = |text: &str| Target::parse(text).unwrap_err().to_string();
        #[cfg(feature = "sim")]
        for (key, text) in [("blk", "blk"), ("mtu", "mtu=9000"), ("timeout", "timeout=1"), ("reconnect", "reconnect=1")]
        {
            let error = error(&format!("vhost-user:x,back-end,{text}"));
            assert_eq!(error, format!("a vhost-user back end's port has no parameter {key:?}; it has server and mac="));
        }
        #[cfg(not(feature = "sim"))]
        assert!(error("vhost-user:x,back-end").contains("the feature \"sim\""));
        assert!(error("vhost-user:x,mtu=67").starts_with("mtu=67: expected bytes"));
        assert!(error("vhost-user:x,mac=01:00:00:00:00:01").contains("one station"));
        assert!(error("vhost-user:x,mac=me,net").contains("an address"));
        assert!(error("vhost-user:x,timeout=0").contains("seconds"));
        // Misspelt, wherever it stands; but a file that is there may have any name.
        for (key, text) in [("nett", "x,nett"), ("nett", "x,server,nett,mtu=9000"), ("net", "x,net=1"), ("", "x,")] {
            let error = error(&format!("vhost-user:{text}"));
            assert!(
                error.starts_with(&format!("a vhost-user target has no parameter {key:?}; it has server,")),
                "{error}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x,nett");
        std::fs::write(&path, "").unwrap();
        let text = format!("vhost-user:{},net", path.display());
        assert_eq!(Target::parse(&text).unwrap().to_string(), text);
        assert!(error("vhost-user:").contains("names no device"));
        assert!(error("vhost-user:,net").contains("names no device"));
    }

    #[test]
    fn a_back_end_that_is_not_there_says_so() {
        let error = crate::open("vhost-user:/nowhere/x.sock,net").err().unwrap().to_string();
        assert!(error.starts_with("vhost-user:/nowhere/x.sock cannot be opened: there is no such socket"), "{error}");
    }
}
