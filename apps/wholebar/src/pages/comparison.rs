//! Reports of several hosts side by side, and what keeps them from being compared.

use super::report::Pages;
use crate::mapped::Bar;
use crate::output;
use crate::report::Run;
use serde::Serialize;

/// Reports, side by side.
#[derive(Serialize)]
pub struct Comparison {
    schema: &'static str,
    version: &'static str,
    /// What makes them incomparable, where they are compared anyway.
    pub differences: Vec<String>,
    /// What it comes to.
    pub summary: String,
    /// The hosts, in the order they were named.
    pub hosts: Vec<Named>,
}

/// A report with a name.
#[derive(Serialize)]
pub struct Named {
    /// What it is called here.
    pub name: String,
    /// The report.
    pub report: Pages,
}

/// What is shown of each host.
pub const POLICIES: [&str; 3] = ["whole", "carved", "trapped"];

/// Why reports are not of the same thing.
fn differences(hosts: &[Named]) -> Vec<String> {
    let mut all = Vec::new();
    let Some((first, rest)) = hosts.split_first() else { return all };
    for other in rest {
        let (a, b) = (&first.report, &other.report);
        let mut differ = |what: &str, x: String, y: String| {
            if x != y {
                all.push(format!("{what}: {} has {x}, {} has {y}", first.name, other.name));
            }
        };
        let (x, y) = (&a.device, &b.device);
        differ("what stands behind the figures", x.origin.name().to_owned(), y.origin.name().to_owned());
        differ("the device", device(a), device(b));
        differ("its firmware", x.firmware.clone(), y.firmware.clone());
        differ("its BARs", bars(a), bars(b));
        differ("what was done", loads(a), loads(b));
    }
    all
}

/// Which device it is; of a model, all it was told to be but the page size.
fn device(report: &Pages) -> String {
    let found = &report.device;
    let subsystem = found.subsystem.as_deref().map_or(String::new(), |ids| format!(" (subsystem {ids})"));
    let model = match report.target.strip_prefix("sim:") {
        Some(model) => {
            let parts: Vec<_> = model.split(',').filter(|part| !part.starts_with("page=")).collect();
            format!(", sim:{}", parts.join(","))
        }
        None => String::new(),
    };
    format!("{} {}{subsystem}{model}", found.ids, found.model)
}

fn bars(report: &Pages) -> String {
    let range = |range: &Option<std::ops::Range<u64>>| range.as_ref().map_or("none".to_owned(), |r| format!("{r:#x?}"));
    let bar =
        |bar: &Bar| format!("BAR{} of {:#x} (table {}, PBA {})", bar.bar, bar.size, range(&bar.table), range(&bar.pba));
    report.device.bars.iter().map(bar).collect::<Vec<_>>().join(", ")
}

fn loads(report: &Pages) -> String {
    let mut loads: Vec<_> =
        report.runs.iter().map(|r| (r.queue_depth, r.batch, r.workload.as_ref(), r.block_size)).collect();
    loads.sort_unstable();
    loads.dedup();
    let load =
        |(depth, batch, what, bytes): &(usize, usize, &str, u64)| format!("{what} of {bytes} at {depth}/{batch}");
    loads.iter().map(load).collect::<Vec<_>>().join(" ")
}

/// A sentence a host.
fn summary(hosts: &[Named]) -> String {
    let host = |Named { name, report }: &Named| {
        let pages = output::bytes(report.host_pages());
        let Some(whole) = report.run("whole", 1, 1) else { return format!("{name}: nothing at queue depth 1.") };
        if !report.is_trusted() {
            return format!(
                "{name} ({pages} pages): no run had its cores to itself, so that none of its figures can be trusted."
            );
        }
        let ratio = |policy| match report.run(policy, 1, 1) {
            Some(run) => format!("{policy} {} ({})", output::rate(run.iops), run.ratio(whole)),
            None => format!("{policy} not measured"),
        };
        format!(
            "{name} ({pages} pages): whole {} reads/s at queue depth 1, {}, {}.",
            output::rate(whole.iops),
            ratio("carved"),
            ratio("trapped")
        )
    };
    hosts.iter().map(host).collect::<Vec<_>>().join(" ")
}

impl Comparison {
    /// Of these hosts.
    pub fn of(hosts: Vec<Named>) -> Self {
        let (schema, version) = ("wholebar.pages-comparison/1", env!("CARGO_PKG_VERSION"));
        Self { schema, version, differences: differences(&hosts), summary: summary(&hosts), hosts }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.differences.is_empty() {
            text += "NOT COMPARABLE, and compared anyway:\n";
            text.extend(self.differences.iter().map(|difference| output::wrapped(&format!("  {difference}"), 4)));
            text.push('\n');
        }
        for host in &self.hosts {
            text += &format!("{}\n{}", host.name, output::pairs(facts(&host.report)));
        }
        text += "\nOne access of a register, medians\n\n";
        text += &output::table(Self::REGISTERS, self.register_rows());
        text += "\nRandom reads a second, and their ratio to whole\n\n";
        text += &output::table(Self::RATES, self.rate_rows());
        text += "\n";
        text += &output::paragraph(&self.summary);
        for (origin, why) in self.origins() {
            text += &output::paragraph(&format!("{origin}: {why}"));
        }
        text
    }

    /// What stands behind the figures, where it is software: each once.
    pub fn origins(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for Named { report, .. } in &self.hosts {
            let device = &report.device;
            if let Some(caveat) = device.origin.caveat() {
                let line = (device.origin.name().to_owned(), format!("{caveat} ({})", device.origin_why));
                if !all.contains(&line) {
                    all.push(line);
                }
            }
        }
        all
    }

    /// Titles of [`register_rows`](Self::register_rows).
    pub const REGISTERS: [&'static str; 5] = ["host", ">write", ">trapped", ">read", ">trapped"];

    /// What an access costs on each host: by a store or a load, and trapped.
    pub fn register_rows(&self) -> Vec<Vec<String>> {
        let kinds = [("write", "direct"), ("write", "trapped"), ("read", "direct"), ("read", "trapped")];
        let row = |Named { name, report }: &Named| {
            let cell =
                |(what, how)| report.access(what, how).map_or("-".to_owned(), |access| output::time(access.ns.p50));
            [name.clone()].into_iter().chain(kinds.map(cell)).collect()
        };
        self.hosts.iter().map(row).collect()
    }

    /// Titles of [`rate_rows`](Self::rate_rows).
    pub const RATES: [&'static str; 6] = [">depth", ">batch", "host", ">whole", ">carved", ">trapped"];

    /// Rates of each load on each host.
    pub fn rate_rows(&self) -> Vec<Vec<String>> {
        let runs = self.hosts.iter().flat_map(|host| &host.report.runs);
        let mut loads: Vec<_> = runs.map(|run| (run.queue_depth, run.batch)).collect();
        loads.sort_unstable();
        loads.dedup();
        let cell = |run: Option<&Run>, whole: Option<&Run>, ratio: bool| match (run, whole) {
            (Some(run), Some(whole)) if ratio => format!("{} {:>4}", output::rate(run.iops), run.ratio(whole)),
            (Some(run), _) => output::rate(run.iops),
            (None, _) => "-".to_owned(),
        };
        let row = |(depth, batch), Named { name, report }: &Named| {
            let whole = report.run("whole", depth, batch);
            let cells = POLICIES.map(|policy| cell(report.run(policy, depth, batch), whole, policy != "whole"));
            [depth.to_string(), batch.to_string(), name.clone()].into_iter().chain(cells).collect()
        };
        loads.iter().flat_map(|load| self.hosts.iter().map(|host| row(*load, host))).collect()
    }
}

/// What a host and its device are.
fn facts(report: &Pages) -> [(&'static str, String); 5] {
    let Pages { host, device, .. } = report;
    [
        ("pages", output::bytes(report.host_pages())),
        ("kernel", host.kernel.clone()),
        ("CPU", format!("{}, {}", host.arch, host.cpu)),
        ("device", format!("{} ({})", device.model, device.origin.name())),
        ("BAR0", format!("{} by default", device.auto)),
    ]
}
