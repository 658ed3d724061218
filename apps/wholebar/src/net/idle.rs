//! `--idle`: what a core does that finds nothing to do.

use wholebar::reactor::Policy;

/// What a core does that finds nothing to do: a [`Policy`] by name. Those that sleep do so by interrupts of queues that receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Idle {
    /// Poll on, and burn the core
    Poll,
    /// Poll while pauses are short, sleep where they are long; where a device has no interrupts, poll
    Hybrid,
    /// Sleep at once until a packet comes
    Sleep,
}

impl From<Idle> for Policy {
    fn from(idle: Idle) -> Self {
        match idle {
            Idle::Poll => Self::Poll,
            Idle::Hybrid => Self::Hybrid,
            Idle::Sleep => Self::Sleep,
        }
    }
}
