//! Which interface is meant, and whether the kernel uses it for itself.

use super::error::Error;
use super::netlink::{self, Interface};
use super::target::Target;
use std::io;

/// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK`: what has Ethernet frames.
const ETHERNET: [u16; 2] = [1, 772];

/// The interface that a target names, where it can be used.
pub(super) fn find(target: &Target) -> Result<Interface, Error> {
    let name = &target.interface;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |cause: io::Error| Error::system(name, what, cause)
    };
    let all = netlink::interfaces().map_err(failed("asking the kernel for its interfaces"))?;
    let Some(found) = all.iter().find(|i| i.name == *name) else {
        let names: Vec<_> = all.iter().map(|i| i.name.as_str()).collect();
        return Err(Error::NoInterface { interface: name.clone(), known: names.join(", ") });
    };
    if !ETHERNET.contains(&found.kind) {
        return Err(Error::NotEthernet { interface: name.clone(), kind: found.kind });
    }
    if !found.up {
        return Err(Error::Down { interface: name.clone() });
    }
    if !target.force {
        let mut uses = Vec::new();
        if let Some(master) = found.master {
            let master = all.iter().find(|i| i.index == master).map_or("another interface", |i| i.name.as_str());
            uses.push(format!("it is a part of {master}"));
        }
        let addresses = netlink::addresses(found.index).map_err(failed("asking the kernel for addresses"))?;
        if !addresses.is_empty() {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let plural = if addresses.len() == 1 { "address" } else { "addresses" };
            uses.push(format!("it has the {plural} {}", addresses.join(", ")));
        }
        if netlink::has_default_route(found.index).map_err(failed("asking the kernel for routes"))? {
            uses.push("the default route goes through it".to_owned());
        }
        if !uses.is_empty() {
            return Err(Error::InUse { interface: name.clone(), uses: uses.join(", and ") });
        }
    }
    Ok(found.clone())
}
