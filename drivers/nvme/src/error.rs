//! The driver's errors: each a sentence with its facts.

use crate::status::StatusCode;
use std::time::Duration;

/// An error of this driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The framework's error: the device, its registers, memory or interrupts. It is also that of a device that is gone, or has ended.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
    /// The controller is none for this driver.
    #[error("{device} is not a controller for this driver: {why}")]
    Unfit {
        /// The device.
        device: String,
        /// What it lacks.
        why: String,
    },
    /// The controller reports a fatal status (CSTS.CFS).
    #[error("{device} reports a fatal error (CSTS is {csts:#x}) {when}: it has to be reset")]
    Fatal {
        /// The device.
        device: String,
        /// The value of CSTS.
        csts: u32,
        /// What was going on.
        when: &'static str,
    },
    /// The controller refused an admin command.
    #[error("{device} refused {command}: {status}")]
    Refused {
        /// The device.
        device: String,
        /// What the standard calls it.
        command: &'static str,
        /// What came back.
        status: StatusCode,
    },
    /// A command is not sent: the controller could be made to write where it must not, or the command contradicts itself. Nothing has happened.
    #[error("{device}: {command} is not sent: {why}")]
    NotSent {
        /// The device.
        device: String,
        /// What the standard calls it, with its opcode.
        command: String,
        /// Why.
        why: &'static str,
    },
    /// A command has more data than one can have. Nothing has happened.
    #[error("{device}: {command} is not sent: {len} bytes of data are more than the {max} of one command")]
    TooMuchData {
        /// The device.
        device: String,
        /// What the standard calls it, with its opcode.
        command: String,
        /// Bytes.
        len: usize,
        /// Bytes at most.
        max: u32,
    },
    /// A command gives a namespace other blocks, and I/O queues exist whose requests may be in the old ones. Nothing has happened.
    #[error(
        "{device}: {command} is not sent: it gives a namespace blocks of another size, and {queues} I/O queues may still use the old one: drop them first"
    )]
    QueuesExist {
        /// The device.
        device: String,
        /// What the standard calls it.
        command: &'static str,
        /// How many there are.
        queues: usize,
    },
    /// A queue executes one command at a time ([`Queue::execute`](crate::Queue::execute)), and has others in flight.
    #[error("{device}: queue {qid} has {in_flight} commands in flight: poll until they are complete")]
    QueueBusy {
        /// The device.
        device: String,
        /// The queue.
        qid: u16,
        /// How many.
        in_flight: usize,
    },
    /// A command was given up: it took longer than it may, or the controller was reset.
    #[error("{device}: {command} was given up: it took too long, or the controller was reset")]
    GivenUp {
        /// The device.
        device: String,
        /// What the standard calls it.
        command: &'static str,
    },
    /// What is asked for cannot be asked of this controller. Nothing has happened.
    #[error("{device}: {why}")]
    NotOffered {
        /// The device.
        device: String,
        /// What it lacks, or which value is out of its range.
        why: String,
    },
    /// The persistent memory region cannot be used as was asked.
    #[error("{device}: its persistent memory: {why}")]
    PersistentMemory {
        /// The device.
        device: String,
        /// What is the matter.
        why: String,
    },
    /// The controller did not complete an admin command in time.
    #[error("{device} did not complete {command} within {waited:?}: it will be reset")]
    Unanswered {
        /// The device.
        device: String,
        /// What the standard calls it.
        command: &'static str,
        /// How long it was given.
        waited: Duration,
    },
    /// A queue holds something that the controller may not write there.
    #[error("{device}: {fault}; it will be reset")]
    Broken {
        /// The device.
        device: String,
        /// What was found.
        fault: Fault,
    },
    /// The controller's identity makes no sense.
    #[error("{device}: {what}")]
    Nonsense {
        /// The device.
        device: String,
        /// What.
        what: String,
    },
    /// All I/O queues are in use.
    #[error("{device} has {granted} I/O queues, and all are in use: drop one, or open it with `io_queues` above that")]
    NoQueueLeft {
        /// The device.
        device: String,
        /// How many it was opened with.
        granted: u16,
    },
    /// A queue cannot raise this interrupt.
    #[error("{device}: a queue cannot raise interrupt {vector}: it has {count}, of which 0 is the admin queue's")]
    Vector {
        /// The device.
        device: String,
        /// The vector asked for.
        vector: u16,
        /// How many there are.
        count: u32,
    },
    /// A queue cannot have this number of entries.
    #[error("{device}: a queue of {asked} entries cannot be had: it must be a power of two from 2 to {max}")]
    Entries {
        /// The device.
        device: String,
        /// What was asked for.
        asked: u32,
        /// The controller's limit.
        max: u32,
    },
    /// DMA memory is not aligned to the controller's page size.
    #[error("{device}: a queue at {iova:#x} is not aligned to the controller's pages of {page} bytes")]
    Misaligned {
        /// The device.
        device: String,
        /// Where it is.
        iova: u64,
        /// The page size, in bytes.
        page: u64,
    },
    /// The controller is being reset.
    #[error("{device} is being reset: try again")]
    Resetting {
        /// The device.
        device: String,
    },
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of the controller's: something in a completion queue that it may not write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A completion for a command that is not in flight: never posted, or completed already.
    #[error("completion queue {qid} holds command {cid}, which is not in flight")]
    UnknownCommand {
        /// The queue.
        qid: u16,
        /// The command identifier.
        cid: u16,
    },
    /// A completion for a command that the controller has not fetched: an earlier one's, once more; or the controller does not tell how far it
    /// fetched. That it has to: SQHD says which entries were consumed when the completion was made (NVM Express Base 2.0, 3.3.3.2). Without it
    /// nothing tells the first completion of a command from a second one of the command that had its identifier before, whose buffers would be given
    /// back too early.
    #[error(
        "completion queue {qid} holds command {cid}, and says by SQHD {head} that the controller has not fetched that command: either this is an earlier \
         command's completion once more, or the controller does not move SQHD past what it fetched, which the specification demands \
         (NVM Express Base 2.0, 3.3.3.2)"
    )]
    TooEarly {
        /// The queue.
        qid: u16,
        /// The command identifier.
        cid: u16,
        /// The submission queue's head, as the controller told it last.
        head: u16,
    },
    /// A head that is beyond what was announced, or outside of the queue.
    #[error("completion queue {qid} says that submission queue's head is {head}, where it can be from {from} to {to}")]
    Head {
        /// The queue.
        qid: u16,
        /// The head.
        head: u16,
        /// The last head that was told.
        from: u16,
        /// The last tail that was announced.
        to: u16,
    },
    /// A completion of another submission queue.
    #[error("completion queue {qid} holds a completion of submission queue {sqid}, which does not complete there")]
    ForeignQueue {
        /// The queue.
        qid: u16,
        /// The submission queue.
        sqid: u16,
    },
}
