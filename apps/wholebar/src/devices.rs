//! `wholebar devices`: the PCI functions of this machine, and whether they can be opened; and what else can be.

use crate::doctor;
use crate::names::Names;
use crate::output;
use anyhow::Result;
use serde::Serialize;
use wholebar::sim::MODELS;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{Route, VfioOptions};

/// List the PCI functions of this machine, who has them, and whether they can be opened; and the models
///
/// Needs no root: whether a function can be opened is said of whoever asks. `wholebar doctor BDF` says why one cannot, and what mends it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar devices
  wholebar devices --class network
  wholebar devices --class 0108              NVMe and other flash, by the number
  wholebar devices --driver vfio-pci --json")]
pub struct Args {
    /// Only functions of this class: the first digits of its number, or a part of its name
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Only functions that this driver has; none: those that no driver has
    #[arg(long, value_name = "NAME")]
    driver: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Functions of a class, whoever has them.
    pub fn of_class(class: &str, json: bool) -> Self {
        Self { class: Some(class.to_owned()), driver: None, json }
    }
}

/// What `--json` writes.
#[derive(Serialize)]
struct List<'a> {
    schema: &'static str,
    functions: Vec<Entry>,
    models: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    target: String,
    what: &'a str,
}

/// A function; `null` for what cannot be read, or isn't there.
#[derive(Serialize)]
struct Entry {
    address: String,
    vendor: Option<u16>,
    device: Option<u16>,
    name: Option<String>,
    class: Option<u32>,
    class_name: Option<String>,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    can_open: bool,
    /// What is in the way: the checks of `wholebar doctor`.
    stopped_by: Vec<&'static str>,
    /// Those of them that are not in the way of all.
    #[serde(skip)]
    own_stops: Vec<&'static str>,
    #[serde(skip)]
    base_class: Option<String>,
}

pub fn run(args: Args) -> Result<()> {
    let (sysfs, names) = (Sysfs::default(), Names::load());
    let all = sysfs.functions();
    let host = doctor::this_machine(&sysfs);
    let everywhere = doctor::stops(&doctor::machine(&host, Route::Auto));
    let entry = |f: &Function| {
        let own = doctor::stops(&doctor::function(&sysfs, &host, f, &VfioOptions::default(), None));
        Entry::of(f, &names, &everywhere, own)
    };
    let functions: Vec<Entry> = all.iter().map(entry).filter(|entry| entry.is_wanted(&args)).collect();
    if args.json {
        let models = MODELS.iter().map(|(name, what)| Model { target: format!("sim:{name}"), what }).collect();
        return output::print_json(&List { schema: "wholebar.devices/1", functions, models });
    }
    let mut text = if !functions.is_empty() {
        table(&functions, output::terminal_width())
    } else if !host.sees_sysfs {
        output::paragraph("/sys is not to be seen here, and with it the PCI functions: mount -t sysfs sysfs /sys")
    } else if all.is_empty() {
        "There are no PCI functions under /sys/bus/pci/devices here.\n".to_owned()
    } else {
        let asked = [("class", &args.class), ("driver", &args.driver)];
        let asked: Vec<_> = asked.iter().filter_map(|(what, of)| Some(format!("{what} {}", of.as_ref()?))).collect();
        let (all, asked) = (all.len(), asked.join(" and "));
        output::paragraph(&format!("Of {all} PCI functions none has {asked}: `wholebar devices` lists them."))
    };
    let unread: Vec<&str> =
        functions.iter().filter(|f| f.vendor.is_none() || f.class.is_none()).map(|f| f.address.as_str()).collect();
    if !unread.is_empty() {
        let what = format!("vendor, device or class could not be read of {}", unread.join(", "));
        text += &format!("\n{}", output::paragraph(&what));
    }
    if !functions.is_empty() && !everywhere.is_empty() {
        let what = format!("On this machine none can be opened ({}): wholebar doctor says why", everywhere.join(", "));
        text += &format!("\n{}", output::paragraph(&what));
    } else if functions.iter().any(|f| !f.can_open) {
        text += "\nWhy one cannot be opened, and what mends it: wholebar doctor BDF\n";
    }
    if args.class.is_none() && args.driver.is_none() {
        text += "\nWithout hardware:\n";
        let models = MODELS.iter().map(|(name, what)| (format!("sim:{name}"), *what));
        let socket = "any vfio-user server: wholebar sim serve MODEL --socket /run/x.sock";
        let back_end = "a vhost-user back end's virtio device: wholebar sim serve MODEL --vhost-user --socket /run/x.sock, qemu-storage-daemon, DPDK's vhost";
        let others = [
            ("vfio-user:/run/x.sock", socket),
            ("vhost-user:/run/x.sock", back_end),
            ("kernel:/dev/nvme0n1", "any block device or file, through the kernel (io_uring)"),
            ("kernel:eth0", "any network interface, through the kernel (packet sockets)"),
        ];
        let all = models.chain(others.map(|(name, what)| (name.to_owned(), what)));
        text += &output::pairs(all.map(|(name, what)| (name, what.to_owned())));
    }
    output::print(text)
}

impl Entry {
    fn of(function: &Function, names: &Names, everywhere: &[&'static str], own_stops: Vec<&'static str>) -> Self {
        let (vendor, device, class) = (function.vendor(), function.device(), function.class());
        let stopped_by = [everywhere, &own_stops].concat();
        let (base_class, class_name) = class.map_or((None, None), |class| names.class(class));
        Self {
            address: function.address().to_string(),
            vendor,
            device,
            name: vendor.zip(device).map(|(vendor, device)| names.device(vendor, device)),
            class,
            class_name: class_name.or(base_class).map(str::to_owned),
            driver: function.driver(),
            iommu_group: function.group(),
            numa_node: function.numa_node(),
            can_open: stopped_by.is_empty(),
            stopped_by,
            own_stops,
            base_class: base_class.map(str::to_owned),
        }
    }

    fn is_wanted(&self, args: &Args) -> bool {
        let driver = match args.driver.as_deref() {
            None => true,
            Some("none") => self.driver.is_none(),
            wanted => self.driver.as_deref() == wanted,
        };
        driver && args.class.as_ref().is_none_or(|class| self.is_of_class(&class.to_lowercase()))
    }

    /// Whether its class is `wanted`, which is in lower case.
    fn is_of_class(&self, wanted: &str) -> bool {
        let named = [&self.class_name, &self.base_class].into_iter().flatten();
        let digits = wanted.strip_prefix("0x").unwrap_or(wanted);
        let numbered = self.class.is_some_and(|class| format!("{class:06x}").starts_with(digits));
        // "ca" is a number, and a part of "communication".
        let is_number = digits.len() >= 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if is_number { numbered } else { named.map(|n| n.to_lowercase()).any(|name| name.contains(wanted)) }
    }
}

/// A line each; where a terminal has no room for that, what comes last goes on below.
fn table(functions: &[Entry], width: Option<usize>) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let rows = functions.iter().map(|f| {
        vec![
            f.address.clone(),
            text(&f.driver),
            number(f.iommu_group),
            number(f.numa_node),
            match &f.own_stops[..] {
                [] if f.can_open => "yes".to_owned(),
                [] => "no".to_owned(),
                stops => format!("no: {}", stops.join(", ")),
            },
            match (&f.name, &f.class_name) {
                (Some(name), Some(class)) => format!("{name} ({class})"),
                (name, class) => text(&name.clone().or_else(|| class.clone())),
            },
        ]
    });
    const TITLES: [&str; 6] = ["BDF", "driver", ">group", ">node", "opens", "name (class)"];
    let mut rows: Vec<Vec<String>> = rows.collect();
    if let Some(width) = width {
        output::wrap_last(&TITLES, &mut rows, width);
    }
    output::table(TITLES, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::tests::{Tree, function};

    #[test]
    fn a_terminal_of_80_columns_has_room() {
        let tree =
            Tree::new().function("0000:01:00.0", "nvme", Some(31)).put_device("0000:01:00.0", "class", "0x010802");
        let mut entry = Entry::of(&function(&tree.sysfs, "0000:01:00.0"), &Names::load(), &[], vec!["driver"]);
        entry.name = Some("Advanced Micro Devices, Inc. [AMD] Starship/Matisse Root Complex".to_owned());
        let (wide, narrow) = (table(std::slice::from_ref(&entry), None), table(&[entry], Some(80)));
        assert_eq!(wide.lines().count(), 2, "a line each, to be searched:\n{wide}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
        let words = |text: &str| {
            let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(words(&narrow), words(&wide), "nothing is left out");
    }

    #[test]
    fn classes_are_asked_for_by_number_and_by_name() {
        let tree =
            Tree::new().function("0000:01:00.0", "nvme", Some(3)).put_device("0000:01:00.0", "class", "0x010802");
        let entry = Entry::of(&function(&tree.sysfs, "0000:01:00.0"), &Names::load(), &[], Vec::new());
        for (class, wanted) in [
            ("01", true),
            ("0108", true),
            ("0x010802", true),
            ("0106", false),
            ("02", false),
            ("storage", true),
            ("non-volatile", true),
            ("network", false),
            // Hex digits, and in no name.
            ("ca", false),
        ] {
            assert_eq!(entry.is_of_class(class), wanted, "{class}");
        }
        let args = |driver: Option<&str>| Args { class: None, driver: driver.map(str::to_owned), json: false };
        for (driver, wanted) in [(None, true), (Some("nvme"), true), (Some("none"), false), (Some("vfio-pci"), false)] {
            assert_eq!(entry.is_wanted(&args(driver)), wanted, "{driver:?}");
        }
    }
}
