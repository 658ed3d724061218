//! `wholebar nvme primary-ctrl-caps`, `list-secondary` and `virt-mgmt`, with nvme-cli's options.

use super::admin::{self, word};
use crate::output;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use wholebar::nvme::{FlexibleResource, ResourceCapabilities, SecondaryController};

/// Show the queues and interrupts that a primary controller has for virtual functions
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme primary-ctrl-caps 0000:01:00.0")]
pub struct CapabilitiesArgs {
    /// The physical function's NVMe controller
    target: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show the secondary controllers, those of virtual functions
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme list-secondary 0000:01:00.0
  wholebar nvme list-secondary 0000:01:00.0 --cntid 2 --num-entries 1 --json")]
pub struct ListArgs {
    /// The physical function's NVMe controller
    target: String,
    /// From this identifier on
    #[arg(short, long, value_name = "ID", value_parser = word, default_value = "0")]
    cntid: u16,
    /// So many at most
    #[arg(short, long, value_name = "N")]
    num_entries: Option<usize>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Move queues and interrupts to controllers of virtual functions, and have these go online
///
/// 1 is how many flexible ones the primary controller has itself, from its next reset as a function on; 8 gives a secondary controller some, while it is
/// offline; 9 has it go online, 7 offline. A reset of the physical function, which VFIO does each time somebody opens and closes it, has all secondary
/// controllers go offline: `wholebar vf serve` keeps them online.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme virt-mgmt 0000:01:00.0 --cntlid 0 --act 1 --rt vq --nr 0
  wholebar nvme virt-mgmt 0000:01:00.0 --cntlid 1 --act 8 --rt vq --nr 2 --act 8 --rt vi --nr 1 --act 9")]
pub struct ManagementArgs {
    /// The physical function's NVMe controller
    target: String,
    /// The controller that it is about
    #[arg(short, long, value_name = "ID", value_parser = word)]
    cntlid: u16,
    /// What to do: 1, 7, 8 or 9; several are done in order, by one opening of the function
    #[arg(short, long, value_name = "N", required = true, value_parser = clap::value_parser!(u8).range(1..=9))]
    act: Vec<u8>,
    /// The resource: queues (vq, 0) or interrupts (vi, 1), one for each 1 and 8
    #[arg(short, long, value_name = "TYPE")]
    rt: Vec<Resource>,
    /// How many of it, one for each 1 and 8
    #[arg(short, long, value_name = "N", value_parser = word)]
    nr: Vec<u16>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resource {
    /// Pairs of queues
    #[value(alias = "0")]
    Vq,
    /// Interrupt vectors
    #[value(alias = "1")]
    Vi,
}

impl From<Resource> for FlexibleResource {
    fn from(resource: Resource) -> Self {
        match resource {
            Resource::Vq => Self::Queues,
            Resource::Vi => Self::Interrupts,
        }
    }
}

/// A step of virt-mgmt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Allocate(Resource, u16),
    Assign(Resource, u16),
    Online(bool),
}

/// The steps that actions, resources and numbers come to.
fn steps(acts: &[u8], resources: &[Resource], numbers: &[u16]) -> Result<Vec<Step>> {
    let (mut resources, mut numbers) = (resources.iter(), numbers.iter());
    let mut steps = Vec::new();
    for act in acts {
        let mut next = || match (resources.next(), numbers.next()) {
            (Some(resource), Some(number)) => Ok((*resource, *number)),
            _ => bail!(crate::args::Usage(format!("--act {act} wants a resource and a number of it: --rt and --nr"))),
        };
        steps.push(match act {
            1 => next().map(|(resource, number)| Step::Allocate(resource, number))?,
            8 => next().map(|(resource, number)| Step::Assign(resource, number))?,
            7 => Step::Online(false),
            9 => Step::Online(true),
            _ => bail!(crate::args::Usage(format!("--act {act} is no action: there are 1, 7, 8 and 9"))),
        });
    }
    if resources.next().is_some() || numbers.next().is_some() {
        bail!(crate::args::Usage("there are more of --rt or --nr than actions that want one".to_owned()));
    }
    Ok(steps)
}

pub fn capabilities(args: CapabilitiesArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let caps = controller.nvme.primary_capabilities()?;
    let kinds = [("queues", caps.movable.0, caps.queues), ("interrupts", caps.movable.1, caps.interrupts)];
    if args.json {
        let kind = |(_, movable, r): (&str, bool, ResourceCapabilities)| {
            json!({"movable": movable, "flexible_total": r.flexible_total, "flexible_assigned": r.flexible_assigned,
                   "flexible_primary": r.flexible_primary, "private": r.private, "most": r.most, "granularity": r.granularity})
        };
        let [queues, interrupts] = kinds.map(kind);
        return output::print_json(&json!({"schema": "wholebar.primary-ctrl-caps/1", "target": args.target,
            "cntlid": caps.id, "portid": caps.port, "queues": queues, "interrupts": interrupts}));
    }
    let row = |(name, movable, r): (&str, bool, ResourceCapabilities)| {
        let numbers = [
            r.private.into(),
            r.flexible_primary.into(),
            r.flexible_assigned,
            r.flexible_total,
            r.most.into(),
            r.granularity.into(),
        ];
        let name = if movable { format!("  {name}") } else { format!("  {name} (fixed)") };
        std::iter::once(name).chain(numbers.map(|n: u32| n.to_string())).collect()
    };
    let titles = ["", ">private", ">flexible", ">assigned", ">in all", ">most of one", ">granularity"];
    output::print(format!("{}: controller {}\n{}", args.target, caps.id, output::table(titles, kinds.map(row))))
}

pub fn list(args: ListArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let mut all = controller.nvme.secondary_controllers(args.cntid)?;
    all.truncate(args.num_entries.unwrap_or(usize::MAX));
    if args.json {
        let list: Vec<_> = all.iter().map(entry).collect();
        let schema = "wholebar.list-secondary/1";
        return output::print_json(&json!({"schema": schema, "target": args.target, "secondary_controllers": list}));
    }
    output::print(format!("{}\n{}", args.target, table(&all)))
}

fn entry(s: &SecondaryController) -> Value {
    json!({"scid": s.id, "pcid": s.primary, "online": s.online, "vfn": s.virtual_function, "nvq": s.queues, "nvi": s.interrupts})
}

/// Secondary controllers, a line each.
pub fn table(all: &[SecondaryController]) -> String {
    let row = |s: &SecondaryController| {
        let state = if s.online { "online" } else { "offline" };
        let numbers = [s.id, s.primary, s.virtual_function].map(|n| n.to_string());
        numbers.into_iter().chain([state.to_owned(), s.queues.to_string(), s.interrupts.to_string()]).collect()
    };
    output::table([">controller", ">primary", ">VF", "state", ">queues", ">interrupts"], all.iter().map(row))
}

pub fn manage(args: ManagementArgs) -> Result<()> {
    let steps = steps(&args.act, &args.rt, &args.nr)?;
    let controller = admin::open(&args.target)?;
    let (nvme, id) = (&controller.nvme, args.cntlid);
    let own = controller.identity().id;
    let mut done = Vec::new();
    for step in steps {
        let changed = match step {
            Step::Allocate(..) if id != own => {
                bail!("--act 1 is of the primary controller, which is {own}, and not {id}")
            }
            Step::Allocate(resource, number) => Some(nvme.allocate_flexible(resource.into(), number)?),
            Step::Assign(resource, number) => Some(nvme.assign_flexible(id, resource.into(), number)?),
            Step::Online(on) => {
                nvme.set_secondary_online(id, on)?;
                None
            }
        };
        done.push((step, changed));
    }
    if args.json {
        let schema = "wholebar.virt-mgmt/1";
        let changed: Vec<_> = done.iter().map(|(_, changed)| json!({"nrm": changed})).collect();
        return output::print_json(&json!({"schema": schema, "target": args.target, "cntlid": id, "done": changed}));
    }
    let say = |(step, changed): &(Step, Option<u16>)| {
        let kind = |resource: Resource| if resource == Resource::Vq { "pairs of queues" } else { "interrupt vectors" };
        let changed = changed.map_or(String::new(), |n| format!(" ({n} changed)"));
        match step {
            Step::Allocate(resource, n) => {
                format!("from its next reset as a function on: {n} flexible {}{changed}\n", kind(*resource))
            }
            Step::Assign(resource, n) => format!("{n} {}{changed}\n", kind(*resource)),
            Step::Online(true) => "online\n".to_owned(),
            Step::Online(false) => "offline\n".to_owned(),
        }
    };
    output::print(done.iter().map(|step| format!("controller {id}: {}", say(step))).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_take_their_resources_in_order() {
        let all = steps(&[8, 8, 9, 7, 1], &[Resource::Vq, Resource::Vi, Resource::Vq], &[2, 1, 0]).unwrap();
        let expected = [
            Step::Assign(Resource::Vq, 2),
            Step::Assign(Resource::Vi, 1),
            Step::Online(true),
            Step::Online(false),
            Step::Allocate(Resource::Vq, 0),
        ];
        assert_eq!(all, expected);
        for (acts, resources, numbers) in [
            (&[8][..], &[][..], &[1][..]),
            (&[8], &[Resource::Vq], &[]),
            (&[9], &[Resource::Vq], &[]),
            (&[9], &[], &[1]),
            (&[2], &[], &[]),
        ] {
            assert!(steps(acts, resources, numbers).is_err(), "{acts:?} {resources:?} {numbers:?}");
        }
    }
}
