//! What is known of devices by their ids: quirks of NVMe controllers, errata of network cards.

use super::facts::Device;
use super::finding::Finding;
use wholebar::intel::errata;
use wholebar::nvme::Quirk;

/// What is known of a device of this kind.
pub fn rules(device: &Device) -> impl Iterator<Item = Finding> {
    quirks(device).into_iter().chain(errata(device))
}

/// What is known of a controller of this kind, which the driver heeds.
fn quirks(device: &Device) -> Option<Finding> {
    let (vendor, id) = device.ids?;
    let known: Vec<_> = Quirk::of(vendor, id).map(|(quirk, _)| quirk.to_string()).collect();
    (!known.is_empty()).then(|| Finding::ok("quirks", format!("known of its kind, and heeded: {}", known.join("; "))))
}

/// What is known to be wrong with a card of this kind: what the driver sees to, and what whoever has it has to know.
fn errata(device: &Device) -> Option<Finding> {
    let (vendor, id) = device.ids?;
    let known = errata::of(vendor, id);
    let advised = known.iter().filter_map(|erratum| Some(format!("{}: {}", erratum.what, erratum.advice?)));
    let heeded = known.iter().filter(|erratum| erratum.advice.is_none()).map(|erratum| erratum.what.to_owned());
    let (advised, heeded): (Vec<_>, Vec<_>) = (advised.collect(), heeded.collect());
    let of = |what: &str, all: &[String]| (!all.is_empty()).then(|| format!("{what}: {}", all.join("; ")));
    let said: Vec<_> = of("to know", &advised).into_iter().chain(of("known, and heeded", &heeded)).collect();
    (!said.is_empty()).then(|| Finding::ok("errata", said.join(". ")))
}
