//! The names of vhost-user back ends: `vhost-user:/run/x.sock`, perhaps followed by parameters.

use super::seconds;
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

/// A path and the parameters behind it. A path may have commas of its own: what is no parameter belongs to it.
pub(super) fn parse(text: &str) -> Result<Name<'_>, OpenError> {
    let (mut path, mut options, mut back_end) = (text, Options::default(), false);
    while let Some((before, last)) = path.rsplit_once(',') {
        let (key, value) = last.split_once('=').unwrap_or((last, ""));
        let bad = |key, expected| OpenError::Value { key, value: value.to_owned(), expected };
        match key {
            "server" if key == last => options.server = true,
            "back-end" if key == last => back_end = true,
            "net" if key == last => options.device_type = Some(DeviceType::Net),
            "blk" if key == last => options.device_type = Some(DeviceType::Blk),
            "timeout" => options = options.with_timeout(seconds("timeout", value, false)?),
            "reconnect" => options.reconnect = seconds("reconnect", value, true)?,
            "mac" => {
                let mac: Mac = value.parse().map_err(|_| bad("mac", "an address such as 02:00:00:00:00:01"))?;
                let station = Some(mac).filter(|mac| mac.is_unicast());
                options.mac = Some(station.ok_or_else(|| bad("mac", "the address of one station"))?.0);
            }
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| *mtu >= LEAST_MTU);
                options.mtu = Some(mtu.ok_or_else(|| bad("mtu", "bytes, from 68 to 65535"))?);
            }
            _ => break,
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
        return Err(OpenError::Parameter { target: "a vhost-user back end's port", key: key.to_owned(), known: HAS });
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
            "vhost-user:/run/x,y=1",
            "vhost-user:x,y,server,net,mac=02:00:00:00:00:01,mtu=9000,timeout=0.5,reconnect=0",
            "vhost-user:x,blk,reconnect=60",
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        #[cfg(feature = "sim")]
        for text in ["vhost-user:x,back-end", "vhost-user:/run/x,y,back-end,server,mac=02:00:00:00:00:01"] {
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
        assert!(error("vhost-user:").contains("names no device"));
        assert!(error("vhost-user:,net").contains("names no device"));
    }

    #[test]
    fn a_back_end_that_is_not_there_says_so() {
        let error = crate::open("vhost-user:/nowhere/x.sock,net").err().unwrap().to_string();
        assert!(error.starts_with("vhost-user:/nowhere/x.sock cannot be opened: there is no such socket"), "{error}");
    }
}
