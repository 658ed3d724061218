//! What virtual functions are about, and their physical ones: the VF token, who serves them, how large their BARs are.

use super::facts::{Device, Host};
use super::finding::Finding;
use super::role::Role;
use crate::output;
use wholebar::vfio::VfToken;
use wholebar::vfio::sysfs::is_vfio;

/// What a function's role means for who opens it, with a VF token or without.
pub fn rule(host: &Host, device: &Device, token: Option<VfToken>) -> Option<Finding> {
    const CHECK: &str = "SR-IOV";
    let address = device.address;
    let vfio = |driver: &Option<String>| driver.as_deref().is_some_and(is_vfio);
    let without = || vec![format!("name it {address}, without a token")];
    Some(match device.role.as_ref()? {
        Role::Virtual { physical, driver, opens_as } if vfio(driver) => {
            let what =
                format!("a virtual function of {physical}, which {} has too", driver.as_deref().unwrap_or_default());
            match (token, opens_as) {
                (Some(_), _) => Finding::ok(CHECK, format!("{what}, and it is named with a VF token")),
                (None, Some(name)) => Finding::stop(
                    CHECK,
                    format!("{what}: it opens with that one's VF token only"),
                    [format!("name it {name}")],
                ),
                (None, None) => {
                    let mend = format!(
                        "name it {address},token=UUID, with the UUID that {physical} was opened with; `wholebar vf list` shows root the one that \
                         `wholebar vf create` made"
                    );
                    Finding::stop(CHECK, format!("{what}: it opens with that one's VF token only"), [mend])
                }
            }
        }
        Role::Virtual { physical, driver, .. } => {
            let who = driver.as_deref().unwrap_or("no driver");
            let what = format!("a virtual function of {physical}, which {who} has and serves it");
            match token {
                Some(_) => Finding::stop(CHECK, format!("{what}: the kernel refuses a VF token here"), without()),
                None => Finding::ok(CHECK, format!("{what}: it needs no VF token")),
            }
        }
        Role::Physical { open, .. } if vfio(&device.driver) && token.is_none() && !open.is_empty() => {
            let who: Vec<String> = open.iter().map(|(function, opener)| format!("{opener} has {function}")).collect();
            let what =
                format!("its virtual functions are open ({}): it opens with their VF token only", who.join(", "));
            Finding::stop(
                CHECK,
                what,
                [format!("name it {address},token=UUID (wholebar vf list {address} shows root which)")],
            )
        }
        Role::Physical { total, functions, bars, .. } => {
            let bar = |(index, bytes): &(u8, Option<u64>)| match bytes {
                Some(bytes) => format!("BAR{index} of {}", output::bytes(*bytes)),
                None => format!("BAR{index}"),
            };
            let bars: Vec<String> = bars.iter().map(bar).collect();
            // Linux's sriov_init sets System Page Size (PCI Express Base 6.0, 9.3.3.12) to its own.
            let bars = match &bars[..] {
                [] => String::new(),
                bars => format!(
                    "; each of them has {}, on pages of its own (System Page Size {})",
                    bars.join(", "),
                    host.page
                ),
            };
            Finding::ok(CHECK, format!("{} of {total} virtual functions{bars}", functions.len()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::super::tests::{Tree, function};
    use super::*;
    use wholebar::PageSize;

    const PHYSICAL: &str = "0000:02:00.0";
    const VIRTUAL: &str = "0000:02:10.0";
    const TOKEN: &str = "2ab74924-c335-45f4-9b16-8569e5b08258";

    fn machine(driver: &str) -> Tree {
        let all = [
            "0x00000000fe600000 0x00000000fe61ffff 0x0000000000040200\n",
            &"0x0000000000000000 0x0000000000000000 0x0000000000000000\n".repeat(6),
            // Seven virtual functions' BAR0, on pages of 64 KiB.
            "0x00000000fe700000 0x00000000fe76ffff 0x000000000014220c",
        ]
        .concat();
        Tree::healthy()
            .function(PHYSICAL, driver, Some(1))
            .function(VIRTUAL, "vfio-pci", Some(2))
            .put_device(PHYSICAL, "resource", &all)
            .sriov(PHYSICAL, 7, &[VIRTUAL])
    }

    fn say(tree: &Tree, address: &str, token: Option<&str>) -> (Verdict, String) {
        let host = tree.host(PageSize::K64);
        let device = Device::read(&tree.sysfs, &host, &function(&tree.sysfs, address));
        let found = rule(&host, &device, token.map(|text| text.parse().unwrap())).unwrap();
        (found.verdict, format!("{} -> {}", found.evidence, found.mend.join(" -> ")))
    }

    fn expect((verdict, text): (Verdict, String), wanted: Verdict, parts: &[&str]) {
        assert_eq!(verdict, wanted, "{text}");
        for part in parts {
            assert!(text.contains(part), "{text}\ndoes not say {part:?}");
        }
    }

    #[test]
    fn a_virtual_function_wants_the_token_where_vfio_has_its_physical_one() {
        let kernels = machine("igb");
        expect(say(&kernels, VIRTUAL, None), Verdict::Ok, &["0000:02:00.0, which igb has", "needs no VF token"]);
        expect(say(&kernels, VIRTUAL, Some(TOKEN)), Verdict::Stop, &["refuses a VF token", "name it 0000:02:10.0"]);
        let ours = machine("vfio-pci");
        expect(say(&ours, VIRTUAL, None), Verdict::Stop, &["vfio-pci has too", "0000:02:10.0,token=UUID"]);
        expect(say(&ours, VIRTUAL, Some(TOKEN)), Verdict::Ok, &["named with a VF token"]);
        let known = ours.put("run/wholebar/vf-token/0000:02:00.0", TOKEN);
        expect(say(&known, VIRTUAL, None), Verdict::Stop, &[&format!("name it 0000:02:10.0,token={TOKEN}")]);
    }

    #[test]
    fn a_physical_function_wants_it_while_virtual_ones_are_open() {
        let tree = machine("vfio-pci");
        let what =
            "1 of 7 virtual functions; each of them has BAR0 of 64 KiB, on pages of its own (System Page Size 64 KiB)";
        expect(say(&tree, PHYSICAL, None), Verdict::Ok, &[what]);
        let open = tree.put("proc/77/comm", "testpmd").link("proc/77/fd/9", "/dev/vfio/2");
        expect(say(&open, PHYSICAL, None), Verdict::Stop, &["process 77 (testpmd) has 0000:02:10.0", ",token=UUID"]);
        expect(say(&open, PHYSICAL, Some(TOKEN)), Verdict::Ok, &["1 of 7"]);
        let other = open.function("0000:03:00.0", "", None);
        assert!(Role::read(&other.sysfs, &function(&other.sysfs, "0000:03:00.0")).is_none());
    }
}
