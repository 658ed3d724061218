//! Which thread does the slow path's work: the same choice with every driver.

/// Which thread does the slow path's work: events, health checks, resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// A thread of the driver's, which sleeps until an interrupt or a queue wakes it.
    #[default]
    Thread,
    /// The program's, which calls the `service` of what it opened several times a second.
    Manual,
}
