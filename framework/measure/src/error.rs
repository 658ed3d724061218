//! What can go wrong before anything is measured. What the system said is a part of the sentence, in `cause`.

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The framework refused something: a core that a thread cannot be pinned to.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
    /// A job has too few units for its queues.
    #[error("{units} blocks of the asked size are too few for {queues} queues of depth {depth}")]
    TooFewUnits {
        /// Units of the job.
        units: u64,
        /// Queues that share them.
        queues: u64,
        /// Commands in flight in each queue.
        depth: usize,
    },
    /// What is to be verified cannot be remembered.
    #[error("what each of {units} commands wrote cannot be remembered, to verify it (use fewer units): {cause}")]
    Ledger {
        /// Units of each queue.
        units: u64,
        /// What stands against it.
        cause: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {cause}")]
    Thread {
        /// The system's error.
        cause: String,
    },
    /// A thread that measured has panicked.
    #[error("a worker thread panicked")]
    Panicked,
    /// Frames are too small for what is in them.
    #[error("frames of {size} bytes have no room for headers and a sequence mark: {least} is the least")]
    FrameSize {
        /// Bytes of the smallest, its check sequence included.
        size: usize,
        /// Bytes that it takes.
        least: usize,
    },
    /// Packets of a flow are to be made that the template does not have.
    #[error("there is no flow {flow}: the template has {flows} of them, from 0 on")]
    NoSuchFlow {
        /// The flow.
        flow: u16,
        /// How many there are.
        flows: usize,
    },
    /// Packets have no headers.
    #[error("headers of packets cannot be built: {cause}")]
    Headers {
        /// What stands against it.
        cause: String,
    },
}
