//! Whether a device's interrupts are isolated: no system call answers that, so facts are weighed, and shown. Pure.
//!
//! It is *not* what `VFIO_REGION_INFO_CAP_MSIX_MAPPABLE` says: that capability promises only that the table's pages can be mapped.
//! The kernel itself refuses to attach a device whose interrupts are not isolated, unless `allow_unsafe_interrupts` tells it not to;
//! so an attach that worked while that was off is the proof.

use crate::pci::{Isolation, Verdict};

/// By what a device was attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attached {
    /// A type1 container.
    Type1,
    /// An iommufd.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code, reason = "Linux has none there")
    )]
    Iommufd,
    /// An sPAPR container.
    Tce,
    /// Nothing: no-IOMMU.
    Nothing,
}

impl Attached {
    /// The module whose `allow_unsafe_interrupts` decides.
    pub(super) fn module(self) -> Option<&'static str> {
        match self {
            Self::Type1 => Some("vfio_iommu_type1"),
            Self::Iommufd => Some("iommufd"),
            Self::Tce | Self::Nothing => None,
        }
    }
}

/// The facts: how it was attached, the kernel's version, and `allow_unsafe_interrupts` before and after, where that can be read.
pub(super) fn weigh(attached: Attached, kernel: Option<&str>, before: Option<bool>, after: Option<bool>) -> Isolation {
    let kernel = kernel.unwrap_or("of an unknown version");
    let of = |verdict, evidence: String| Isolation { verdict, evidence: vec![evidence] };
    let module = match attached {
        Attached::Nothing => {
            return of(
                Verdict::NotIsolated,
                format!("no-IOMMU: nothing is between the device and memory (Linux {kernel})"),
            );
        }
        Attached::Tce => {
            let why = "an sPAPR container isolates the interrupts of its partitionable endpoint";
            return of(Verdict::Isolated, format!("{why} (Linux {kernel})"));
        }
        Attached::Type1 => "vfio_iommu_type1",
        Attached::Iommufd => "iommufd",
    };
    let parameter = format!("{module}.allow_unsafe_interrupts");
    match (before, after) {
        // Before may be unknown: attaching loads the module.
        (None | Some(false), Some(false)) => {
            let scope = if checks_the_platform_alone(kernel) { "a platform" } else { "a device" };
            of(
                Verdict::Isolated,
                format!(
                    "Linux {kernel} attached it with {parameter}=N, which it refuses {scope} that does not remap interrupts"
                ),
            )
        }
        (Some(true), _) | (_, Some(true)) => {
            of(Verdict::Unknown, format!("{parameter}=Y, so that Linux {kernel} attached it without looking"))
        }
        (_, None) => of(Verdict::Unknown, format!("{parameter} cannot be read here (Linux {kernel})")),
    }
}

/// Before 6.3 the check was for the platform as a whole.
fn checks_the_platform_alone(kernel: &str) -> bool {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (6, 3),
        _ => false,
    }
}

/// Looks at the interrupt chips that deliver the device's vectors, once some are enabled: where nothing else is known, they decide.
pub(super) fn corroborate(mut isolation: Isolation, chips: &[(u32, Option<String>)]) -> Isolation {
    if isolation.verdict != Verdict::Unknown {
        return isolation;
    }
    let named: Vec<(u32, &str)> = chips.iter().filter_map(|(irq, chip)| Some((*irq, chip.as_deref()?))).collect();
    if let Some((irq, chip)) = named.iter().find(|(_, chip)| chip.starts_with("PCI-MSI")) {
        isolation.verdict = Verdict::NotIsolated;
        isolation.evidence.push(format!("interrupt {irq} goes through {chip}, which remaps nothing"));
    } else if let Some((irq, chip)) = named.first()
        && named.iter().all(|(_, chip)| remaps(chip))
    {
        isolation.verdict = Verdict::Isolated;
        isolation.evidence.push(format!("interrupt {irq} goes through {chip}, which remaps it"));
    } else {
        isolation.evidence.push("no interrupt chip says anything of it".to_owned());
    }
    isolation
}

/// x86 with interrupt remapping; arm64 with an ITS, which looks interrupts up by who sent them.
fn remaps(chip: &str) -> bool {
    chip.starts_with("IR-") || chip.starts_with("ITS-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Attached::*;
    use Verdict::*;

    #[test]
    fn the_table() {
        let (y, n) = (Some(true), Some(false));
        for (attached, before, after, verdict) in [
            (Nothing, None, None, NotIsolated),
            (Tce, None, None, Isolated),
            (Type1, n, n, Isolated),
            (Type1, None, n, Isolated),
            (Type1, y, n, Unknown),
            (Type1, n, y, Unknown),
            (Type1, y, y, Unknown),
            (Type1, n, None, Unknown),
            (Iommufd, n, n, Isolated),
            (Iommufd, y, y, Unknown),
            (Iommufd, None, None, Unknown),
        ] {
            let isolation = weigh(attached, Some("6.12.95+deb12-amd64"), before, after);
            assert_eq!(isolation.verdict, verdict, "{attached:?} {before:?} {after:?}");
            assert!(isolation.evidence.len() == 1 && isolation.evidence[0].contains("6.12.95+deb12-amd64"));
        }
        assert_eq!((Type1.module(), Iommufd.module(), Tce.module()), (Some("vfio_iommu_type1"), Some("iommufd"), None));
    }

    #[test]
    fn older_kernels_look_at_the_platform() {
        for (kernel, older) in
            [("5.10.0-1", true), ("6.2.16", true), ("6.3.0", false), ("6.12.1+deb", false), ("odd", false)]
        {
            let evidence = weigh(Type1, Some(kernel), Some(false), Some(false)).evidence.remove(0);
            assert_eq!(evidence.contains("platform"), older, "{evidence}");
        }
    }

    #[test]
    fn chips_decide_what_is_unknown() {
        let unknown = || weigh(Type1, None, Some(true), Some(true));
        let chips =
            |names: &[Option<&str>]| -> Vec<_> { (30..).zip(names.iter().map(|n| n.map(str::to_owned))).collect() };
        for (names, verdict) in [
            (&[Some("IR-PCI-MSIX-0000:01:00.0"), None][..], Isolated),
            (&[Some("ITS-PCI-MSIX-0000:01:00.0")], Isolated),
            (&[Some("PCI-MSIX-0000:01:00.0")], NotIsolated),
            (&[Some("IR-PCI-MSI"), Some("PCI-MSI")], NotIsolated),
            (&[Some("GICv2m-PCI-MSIX")], Unknown),
            (&[Some("IR-PCI-MSI"), Some("XIVE-MSI")], Unknown),
            (&[None], Unknown),
            (&[], Unknown),
        ] {
            let isolation = corroborate(unknown(), &chips(names));
            assert_eq!(isolation.verdict, verdict, "{names:?}");
            assert_eq!(isolation.evidence.len(), 2);
        }
        let sure = weigh(Type1, None, Some(false), Some(false));
        assert_eq!(corroborate(sure.clone(), &chips(&[Some("PCI-MSI")])), sure, "what is proven stays");
    }
}
