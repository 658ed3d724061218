//! 4 KiB random reads of one queue on one core, under several plans: what `bench` and `pages` measure.

use super::{Controller, status_name};
use crate::args::{Cores, Usage};
use crate::output;
use crate::report::Run;
use crate::rounds::{self, Load, Plan};
use crate::storage::Storage;
use crate::target::Target;
use anyhow::{Result, bail};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wholebar::measure::block::{self, CutShort, Direction, Failure, Job, Order, Workload};
use wholebar::measure::cpu::hand_over;
use wholebar::measure::rounds::{Case, Rounds};
use wholebar::nvme::{Options, ShadowDoorbells};

/// Bytes of a read, or the namespace's block where that is larger.
const BYTES: u64 = 4096;

/// Reads of a namespace by the thread of one core.
pub struct Reads<'a> {
    /// The controller.
    pub target: &'a Target,
    /// The namespace.
    pub nsid: u32,
    /// The core.
    pub core: usize,
    /// That of the model's thread, where there is one.
    pub model_core: Option<usize>,
}

impl Reads<'_> {
    /// Measures them.
    ///
    /// # Errors
    /// What the controller says, and a run that ended early by itself.
    pub fn measure(&self, rounds: &Rounds<Plan, Load>, interrupted: &AtomicBool) -> Result<Vec<Case<Plan, Load, Run>>> {
        // What doorbells cost is what is measured: no shadows take their place.
        let shadow_doorbells = ShadowDoorbells::Never;
        let options = Options { io_queues: 1, shadow_doorbells, ..Options::default() };
        let most = Controller::open(self.target, options.clone())?.max_depth() as usize;
        let mut loads = rounds.loads.to_vec();
        loads.retain(|load| load.depth <= most);
        if loads.len() < rounds.loads.len() {
            output::note(format!(
                "{}: its queues hold {most} commands: depths above are left out",
                self.target.device.name()
            ));
        }
        rounds::measure(
            &Rounds { loads: &loads, ..*rounds },
            interrupted,
            |plan| Controller::open(self.target, Options { policy: plan.policy, page: plan.page, ..options.clone() }),
            |controller, load, time| self.run(controller, load, time, interrupted),
        )
    }

    fn run(&self, controller: &Controller, load: Load, time: Duration, interrupted: &AtomicBool) -> Result<Run> {
        let namespace = controller.namespace(self.nsid)?;
        let blocks = BYTES.div_ceil(u64::from(namespace.block_size));
        let warmup = time / 6;
        let job = Job {
            workload: Workload { order: Order::Random, direction: Direction::Read },
            nsid: self.nsid,
            block: namespace.block_size,
            blocks,
            first: 0,
            units: namespace.blocks / blocks,
            depth: load.depth,
            batch: load.batch,
            back_off: block::BACK_OFF,
            warmup,
            time: time - warmup,
            verify: false,
            seed: 1,
            shared_cores: self.target.shares_cores(),
            device: self.target.model_thread(),
        };
        let supplies = controller.supplies(&job, &[self.core], 1)?;
        let hand_over_ns = self.model_core.and_then(|core| hand_over(self.core, core));
        let outcome = block::run(&job, supplies, interrupted, |_| ())?;
        if let Some(CutShort::Failed(why)) = &outcome.cut_short {
            bail!("the run ended early: {why}");
        }
        for (failure, times) in &outcome.failures {
            if let Failure::Status(status) = failure {
                output::note(format!("{times} commands: {}", status_name(*status)));
            }
        }
        Ok(Run { hand_over_ns, ..Run::of(&job, &outcome, controller.mapped(), &[self.core], 1) })
    }
}

/// The driver's core, and the model's if there is another one.
///
/// # Errors
/// More than two cores, and those this process may not use.
pub fn cores(asked: Option<&Cores>) -> Result<(usize, Option<usize>)> {
    let cores = match asked {
        Some(Cores(cores)) if cores.len() > 2 => {
            bail!(Usage("--cores takes two cores: the driver's and the model's".to_owned()))
        }
        Some(Cores(cores)) => cores.clone(),
        None => wholebar::cores::allowed().to_vec(),
    };
    cores.iter().try_for_each(|core| wholebar::cores::check(*core))?;
    match cores[..] {
        [] => bail!("this process may run on no core"),
        [driver] => Ok((driver, None)),
        [driver, model, ..] => Ok((driver, Some(model))),
    }
}
