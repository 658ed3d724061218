//! The guide: from a first program to drivers of one's own. Its code is compiled and run as tests.
//!
//! 1. [First program](first_program): open a device, read a block.
//! 2. [Memory](memory): arenas, pools, buffers, and who owns them.
//! 3. [Queues](queues): submit, ring, poll; batches and doorbells.
//! 4. [Faces](faces): disks for code that blocks.
//! 5. [Packets](packets): ports, bursts, forwarding, offloads.
//! 6. [TCP/IP](tcp): smoltcp over a port's queues.
//! 7. [A driver of your own](driver), step by step.
//! 8. [Page sizes and isolation](pages): what is mapped of a BAR, and what it costs where it isn't.
//! 9. [Resets and removal](resets): what happens when a device goes.
//! 10. [Deploying](deploying): rights, containers, hugepages, cores.
//! 11. [DPDK and SPDK](dpdk_and_spdk), term by term.
//! 12. [Idle cores](idle): what polling and sleeping cost, and interrupts that are held back.
#![cfg_attr(feature = "async", doc = "13. [Futures](asynchronous): tasks that share a queue, under any executor.")]

#[doc = include_str!("first_program.md")]
pub mod first_program {}
#[doc = include_str!("memory.md")]
pub mod memory {}
#[doc = include_str!("queues.md")]
pub mod queues {}
#[doc = include_str!("faces.md")]
pub mod faces {}
#[doc = include_str!("packets.md")]
pub mod packets {}
#[doc = include_str!("tcp.md")]
pub mod tcp {}
#[doc = include_str!("driver.md")]
pub mod driver {}
#[doc = include_str!("pages.md")]
pub mod pages {}
#[doc = include_str!("resets.md")]
pub mod resets {}
#[doc = include_str!("deploying.md")]
pub mod deploying {}
#[doc = include_str!("dpdk_and_spdk.md")]
pub mod dpdk_and_spdk {}
#[doc = include_str!("idle.md")]
pub mod idle {}
#[cfg(feature = "async")]
#[doc = include_str!("asynchronous.md")]
pub mod asynchronous {}
