//! The framework's errors: each a sentence with its facts: what was tried, what came back, what a person can do.
//!
//! What the system said is a part of that sentence. So it is a field (`cause`), not a `source()`: who prints a chain of errors would print it
//! twice. The errors of all crates here are so.

use std::io;
use std::time::Duration;

/// The framework's error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The size is no page size.
    #[error("{bytes} is not a page size: it must be a power of two from 4096 to 1 GiB")]
    PageSize {
        /// What was given.
        bytes: u64,
    },
    /// A size is not a power of two.
    #[error("{value} {what}: must be a power of two")]
    NotPowerOfTwo {
        /// What it is the size of.
        what: &'static str,
        /// What was given.
        value: u64,
    },
    /// An access is out of range.
    #[error("{len} bytes at {offset:#x} are not inside the {what} of {size:#x} bytes")]
    OutOfRange {
        /// What was accessed.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// How many there are.
        size: u64,
    },
    /// A register access is not aligned to its width.
    #[error("a {width}-byte access at {offset:#x} is not aligned to its width")]
    Unaligned {
        /// Where, in bytes.
        offset: u64,
        /// Bytes.
        width: u64,
    },
    /// A word of shared memory would have two widths: it is part of another word already.
    #[error(
        "a {width}-byte word at {offset:#x} overlaps one of another width: a word has one width, for all that look at it"
    )]
    WordWidth {
        /// Where, in bytes.
        offset: u64,
        /// Bytes.
        width: u64,
    },
    /// A device's configuration space makes no sense.
    #[error("{device}: bad configuration space: {why}")]
    Config {
        /// The device.
        device: String,
        /// What is wrong with it.
        why: String,
    },
    /// A BAR cannot be opened by this plan.
    #[error("{device}: the plan is not one for BAR{bar}: {why}")]
    Plan {
        /// The device.
        device: String,
        /// The BAR.
        bar: u8,
        /// What does not fit.
        why: String,
    },
    /// The slot of a device cannot be reset.
    #[error("{device}: its slot cannot be reset: {why}")]
    NoSlotReset {
        /// The device.
        device: String,
        /// What is in the way.
        why: String,
    },
    /// A port's link cannot be negotiated anew.
    #[error("{device}: its link cannot be negotiated anew: the device, or its driver, negotiates none")]
    NoNegotiation {
        /// The device.
        device: String,
    },
    /// Interrupts cannot be coalesced.
    #[error("{device}: its interrupts cannot be coalesced: the device, or its driver, has nothing for that")]
    NoCoalescing {
        /// The device.
        device: String,
    },
    /// Interrupts cannot be held back for so long.
    #[error("{device}: its interrupts can be held back for {} us at most", most.as_micros())]
    CoalescingTime {
        /// The device.
        device: String,
        /// The longest time that it takes.
        most: Duration,
    },
    /// The device has no such region.
    #[error("{device} has no region {region}")]
    NoSuchRegion {
        /// The device.
        device: String,
        /// The region's index.
        region: u32,
    },
    /// The device has no such interrupt.
    #[error("{device} has no {kind} interrupt {vector} (it has {count})")]
    NoSuchIrq {
        /// The device.
        device: String,
        /// The kind of interrupt.
        kind: crate::pci::Irq,
        /// The vector asked for.
        vector: u32,
        /// How many there are.
        count: u32,
    },
    /// A register did not reach the awaited value in time.
    #[error(
        "{device} did not {what} within {waited:?} (the register at {offset:#x} of BAR{bar} reads {value:#x}): reset the function, or power-cycle the device"
    )]
    NotReady {
        /// The device.
        device: String,
        /// What it was asked to do.
        what: &'static str,
        /// The BAR.
        bar: u8,
        /// The register, in bytes from the BAR's start.
        offset: u64,
        /// What it read last.
        value: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// This part of a BAR may not be touched: it holds the MSI-X table or the PBA.
    #[error("BAR{bar}: {len} bytes at {offset:#x} touch the MSI-X {what}, which only the read-only dump may see")]
    Guarded {
        /// The BAR.
        bar: u8,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// "table" or "PBA".
        what: &'static str,
    },
    /// This part of a region cannot be mapped.
    #[error("{device}: region {region} cannot be mapped at {offset:#x}, {len} bytes: {why}")]
    NotMappable {
        /// The device.
        device: String,
        /// The region's index.
        region: u32,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Why not.
        why: &'static str,
    },
    /// The device refused a region access.
    #[error("{device}: {op} of {len} bytes at {offset:#x} of region {region} failed: {cause}")]
    Access {
        /// The device.
        device: String,
        /// "read" or "write".
        op: &'static str,
        /// The region's index.
        region: u32,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// What came back.
        cause: io::Error,
    },
    /// A vfio-user server cannot be reached.
    #[error("{device} cannot be opened: {hint} ({cause})")]
    Connect {
        /// The device.
        device: String,
        /// What to look at.
        hint: &'static str,
        /// What came back.
        cause: io::Error,
    },
    /// A vfio-user server broke the protocol, did not answer, or went away. The connection is over: later calls say
    /// [`Gone`](Self::Gone).
    #[error("{device}: {command}: {what}")]
    Peer {
        /// The device.
        device: String,
        /// The message that was sent.
        command: String,
        /// What came of it.
        what: String,
    },
    /// The device is gone; every later call says so.
    #[error("{device} is gone: {why}")]
    Gone {
        /// The device.
        device: String,
        /// How that was seen.
        why: String,
    },
    /// The device failed for good, or was shut down; every later call says so.
    #[error("{device} can no longer be used: {why}")]
    Ended {
        /// The device.
        device: String,
        /// Why.
        why: String,
    },
    /// The device was reset again and again, and did nothing in between: it is not tried again.
    #[error("{device} was reset {resets} times in a row, and completed nothing in between")]
    ResetsInVain {
        /// The device.
        device: String,
        /// How often.
        resets: u32,
    },
    /// Queues were lost in a reset, since their owners did not poll them.
    #[error(
        "{device} was reset, but the owners of queues {queues:?} did not poll them for {waited:?}: those queues are lost, and their buffers quarantined"
    )]
    Unresponsive {
        /// The device.
        device: String,
        /// The queues.
        queues: Vec<u32>,
        /// How long they were given.
        waited: Duration,
    },
    /// The system refused a mapping.
    #[error("mapping {len} bytes at offset {offset:#x} failed: {cause}")]
    Mmap {
        /// Offset in the file, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// What came back.
        cause: io::Error,
    },
    /// The system has no memory of the kind.
    #[error("no {bytes} bytes of memory for devices: {step} failed: {cause}")]
    Memory {
        /// How many bytes.
        bytes: u64,
        /// The system call.
        step: &'static str,
        /// What came back.
        cause: io::Error,
    },
    /// Not enough hugepages are free.
    #[error(
        "{bytes} bytes of hugepages cannot be had: {found}; reserve some (echo COUNT > /sys/kernel/mm/hugepages/hugepages-SIZEkB/nr_hugepages), or do with plain pages"
    )]
    NoHugepages {
        /// How many bytes.
        bytes: u64,
        /// What there is, by size.
        found: String,
    },
    /// The machine has no such NUMA node.
    #[error("this machine has no NUMA node {node}: it has {nodes}")]
    NoSuchNode {
        /// The node asked for.
        node: u32,
        /// Those that there are, as ranges.
        nodes: String,
    },
    /// Memory to be adopted is not made of whole pages.
    #[error("{bytes} bytes at {at:#x} cannot be adopted: they are not whole pages of {page} bytes")]
    NotWholePages {
        /// How many bytes.
        bytes: u64,
        /// Where, in this process.
        at: u64,
        /// The host's page, in bytes.
        page: u64,
    },
    /// The arena has no room.
    #[error("no room for {len} bytes aligned to {align} in an arena of {size} bytes: make it larger")]
    ArenaFull {
        /// Bytes asked for.
        len: u64,
        /// Alignment asked for, in bytes.
        align: u64,
        /// The arena's size, in bytes.
        size: u64,
    },
    /// No device address is free for an arena.
    #[error(
        "no window of the device's address space has {len} free bytes at a multiple of {align} within the device's DMA mask of {bits} bits"
    )]
    NoIova {
        /// Bytes asked for.
        len: u64,
        /// What the address must be a multiple of.
        align: u64,
        /// How many bits of an address the device can use.
        bits: u32,
    },
    /// An arena is, or would be, at addresses that the device cannot use.
    #[error("{len} bytes at IOVA {iova:#x} are beyond the device's DMA mask of {bits} bits: {why}")]
    BeyondMask {
        /// The device address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// How many bits of an address the device can use.
        bits: u32,
        /// Why it is there, and what to do.
        why: &'static str,
    },
    /// An arena is not a multiple of the granularity of the device's addresses.
    #[error(
        "an arena of {len} bytes cannot be mapped: this device's addresses come in pages of {page}, so make it a multiple of that; one of hugepages of that size is"
    )]
    Granule {
        /// The arena's size, in bytes.
        len: u64,
        /// The smallest page.
        page: crate::PageSize,
    },
    /// A map would lie over another, or an unmap matches none.
    #[error("{op} of {len} bytes at IOVA {iova:#x}: {why}")]
    Ledger {
        /// "map" or "unmap".
        op: &'static str,
        /// The device address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An arena has no address at which a device without an IOMMU would find it.
    #[error("an arena of {len} bytes has no one physical address: {why}")]
    Physical {
        /// Bytes.
        len: u64,
        /// What is wrong with it.
        why: String,
    },
    /// An arena cannot be detached from a device, since it is in use.
    #[error(
        "an arena of {len} bytes stays attached to {device}: drop the queues that were given buffers of it, or have their rings there"
    )]
    StillAttached {
        /// The device.
        device: String,
        /// The arena's size, in bytes.
        len: u64,
    },
    /// The space can have no more maps.
    #[error("the device's address space can hold {limit} maps, and all are taken: use fewer, larger arenas")]
    TooManyMaps {
        /// How many there can be.
        limit: usize,
    },
    /// This process may not use the core.
    #[error(
        "core {core} cannot be used: this process may run on cores {allowed}, and the machine has cores {online} online"
    )]
    NoSuchCore {
        /// The core asked for.
        core: usize,
        /// Those that can be had, as ranges.
        allowed: String,
        /// Those that there are, as ranges.
        online: String,
    },
    /// A thread's work ended in a panic.
    #[error("the {what} panicked: {said}")]
    Panicked {
        /// Which thread.
        what: String,
        /// The panic's message.
        said: String,
    },
    /// The text is not the address of a PCI function.
    #[error("{text:?} is not the address of a PCI function: it looks like 0000:01:00.0")]
    Address {
        /// What was given.
        text: String,
    },
    /// The text is not a VF token.
    #[error("{text:?} is not a VF token: that is a UUID, like 2ab74924-c335-45f4-9b16-8569e5b08258")]
    VfToken {
        /// What was given.
        text: String,
    },
    /// A device cannot be opened through the kernel's VFIO.
    #[error("{device} cannot be opened: {why}: {advice}")]
    Open {
        /// The device.
        device: String,
        /// What was tried, and what came back.
        why: String,
        /// What a person can do.
        advice: String,
        /// What the system said, where it was the system.
        cause: Option<io::Error>,
    },
    /// The kernel refused to map memory for devices, or to unmap it.
    #[error("the kernel refused the {op} of {len} bytes at IOVA {iova:#x}: {cause}{advice}")]
    Dma {
        /// "map" or "unmap".
        op: &'static str,
        /// The device address.
        iova: u64,
        /// Bytes.
        len: u64,
        /// What came back.
        cause: io::Error,
        /// What a person can do, after a colon; or nothing.
        advice: String,
    },
    /// Another system call failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// What came back.
        cause: io::Error,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
