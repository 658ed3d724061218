//! Faults: a seeded policy that says, command by command, what a model is to do wrong. It knows of no device; a model asks it, and does it.
//!
//! Written as `faults=drop:1/1000+vanish:@5000,seed=7`: each kind with a rate (so many of so many commands, at random) or a place (`@N`: the Nth
//! command, once). The same seed and the same commands give the same faults.

use crate::Result;
use crate::params::Given;
use crate::wire::Share;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A command is done, and its completion is never posted.
    Drop,
    /// A completion is posted twice.
    Duplicate,
    /// A completion bears an id that is not its command's.
    WrongId,
    /// A completion is posted with the phase of the lap before: the host never sees it, nor any behind it.
    WrongPhase,
    /// A completion tells of a submission queue head outside of the queue.
    BadHead,
    /// A completion tells of a submission queue head of 0, as from a controller that does not move it.
    StillHead,
    /// A command is done, and completed, late.
    Delay,
    /// A completion bears a status that has nothing to do with its command.
    Corrupt,
    /// A command's data goes to an address that was never mapped.
    WildDma,
    /// A command finds that its namespace was detached; the controller tells that namespaces changed.
    Detach,
    /// Every namespace that was detached is there again as a command comes; the controller tells that.
    Attach,
    /// The controller fails for good, until it is reset.
    Fatal,
    /// A reset never ends, nor does what shuts a controller down; only a function-level reset ends that. Counted in these, not in commands.
    Hang,
    /// The device is gone: all registers read as all ones.
    Vanish,
    /// A bit of the first block of a command has flipped, where it is kept.
    FlipData,
    /// The same, of the guard in its protection information.
    FlipGuard,
    /// The same, of its application tag.
    FlipApplicationTag,
    /// The same, of its reference tag.
    FlipReferenceTag,
    /// The zone of a command's first block can only be read from now on.
    ZoneReadOnly,
    /// It can be neither read nor written from now on.
    ZoneOffline,
}

impl Fault {
    /// Every kind, with its name.
    pub const ALL: [(&'static str, Self); 20] = [
        ("drop", Self::Drop),
        ("dup", Self::Duplicate),
        ("id", Self::WrongId),
        ("phase", Self::WrongPhase),
        ("head", Self::BadHead),
        ("sqhd", Self::StillHead),
        ("delay", Self::Delay),
        ("corrupt", Self::Corrupt),
        ("dma", Self::WildDma),
        ("detach", Self::Detach),
        ("attach", Self::Attach),
        ("fatal", Self::Fatal),
        ("hang", Self::Hang),
        ("vanish", Self::Vanish),
        ("data", Self::FlipData),
        ("guard", Self::FlipGuard),
        ("apptag", Self::FlipApplicationTag),
        ("reftag", Self::FlipReferenceTag),
        ("zonero", Self::ZoneReadOnly),
        ("zoneoff", Self::ZoneOffline),
    ];
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So many of so many, at random.
    Rate(u32, u32),
    /// The Nth, once.
    At(u64),
}

/// Which commands are struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// I/O commands.
    #[default]
    Io,
    /// Admin commands.
    Admin,
    /// Both.
    All,
}

/// What is to go wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan {
    /// Each kind with its time; the first that strikes a command is the only one.
    pub faults: Vec<(Fault, When)>,
    /// What chance is made of.
    pub seed: u64,
    /// How late a delayed command is.
    pub delay: Duration,
    /// Which commands are struck.
    pub scope: Scope,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self { faults: Vec::new(), seed: 1, delay: Duration::from_millis(20), scope: Scope::default() }
    }
}

impl FaultPlan {
    /// The plan at work, if there is anything to it.
    pub(crate) fn start(&self) -> Option<Box<Faults>> {
        (!self.faults.is_empty()).then(|| Box::new(Faults::new(self.clone())))
    }

    /// Takes a parameter that is the plan's.
    pub(crate) fn set(&mut self, given: &Given<'_>) -> Result<()> {
        match given.key {
            "faults" => {
                let faults = given.value.split('+').map(|part| fault(part).ok_or_else(|| given.bad()));
                self.faults = faults.collect::<Result<_>>()?;
            }
            "seed" => self.seed = given.number(0..=u64::MAX)?,
            "delay" => self.delay = Duration::from_millis(given.number(0..=60_000)?),
            "strike" => {
                self.scope = match given.value {
                    "io" => Scope::Io,
                    "admin" => Scope::Admin,
                    "all" => Scope::All,
                    _ => return Err(given.bad()),
                };
            }
            _ => return Err(given.bad()),
        }
        Ok(())
    }
}

fn fault(text: &str) -> Option<(Fault, When)> {
    let (name, when) = text.split_once(':')?;
    let (_, fault) = Fault::ALL.into_iter().find(|(n, _)| *n == name)?;
    let when = match when.strip_prefix('@') {
        Some(n) => When::At(n.parse().ok().filter(|n| *n > 0)?),
        None => {
            let (n, of) = when.split_once('/')?;
            let (n, of) = (n.parse().ok()?, of.parse().ok()?);
            (n <= of && of > 0).then_some(When::Rate(n, of))?
        }
    };
    Some((fault, when))
}

/// How often each kind struck; shared, so that it can be read while the model runs.
#[derive(Debug, Default)]
pub struct FaultCounts([AtomicU64; Fault::ALL.len()]);

impl FaultCounts {
    /// How often `fault` struck.
    pub fn count(&self, fault: Fault) -> u64 {
        self.0[fault as usize].load(Ordering::Relaxed)
    }

    /// How often anything did.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }
}

/// Chance that can be repeated: SplitMix64 needs no more.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number.
    pub(crate) fn random(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One below `end`, which isn't 0.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        (self.random() % u64::from(end)) as u32
    }

    /// Whether it strikes, at this rate.
    pub(crate) fn strikes(&mut self, rate: Option<Share>) -> bool {
        rate.is_some_and(|Share(n, of)| self.below(of) < n)
    }
}

/// A plan being carried out.
pub(crate) struct Faults {
    plan: FaultPlan,
    commands: u64,
    resets: u64,
    chance: Chance,
    fault_counts: Arc<FaultCounts>,
}

impl Faults {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        Self { commands: 0, resets: 0, chance: Chance::new(plan.seed), fault_counts: Arc::default(), plan }
    }

    pub(crate) fn fault_counts(&self) -> Arc<FaultCounts> {
        self.fault_counts.clone()
    }

    /// How late a delayed command is.
    pub(crate) fn delay(&self) -> Duration {
        self.plan.delay
    }

    /// Whether a command is struck, and by what.
    pub(crate) fn strike(&mut self, admin: bool) -> Option<Fault> {
        let asked = match self.plan.scope {
            Scope::Io => !admin,
            Scope::Admin => admin,
            Scope::All => true,
        };
        if !asked {
            return None;
        }
        self.commands += 1;
        self.choose(self.commands, |fault| fault != Fault::Hang)
    }

    /// Whether this reset, or this end of one, or this shutdown never ends.
    pub(crate) fn hangs(&mut self) -> bool {
        self.resets += 1;
        self.choose(self.resets, |fault| fault == Fault::Hang).is_some()
    }

    /// A number by chance.
    pub(crate) fn random(&mut self) -> u64 {
        self.chance.random()
    }

    fn choose(&mut self, count: u64, asked: impl Fn(Fault) -> bool) -> Option<Fault> {
        for i in 0..self.plan.faults.len() {
            let (fault, when) = self.plan.faults[i];
            let now = match when {
                When::At(n) => n == count,
                When::Rate(n, of) => asked(fault) && self.chance.strikes(Some(Share(n, of))),
            };
            if now && asked(fault) {
                self.fault_counts.0[fault as usize].fetch_add(1, Ordering::Relaxed);
                return Some(fault);
            }
        }
        None
    }
}
