//! **wholebar** is a framework for userspace, polled-mode PCI drivers. This crate is all that an application depends on.
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "nvme"))] {
//! use wholebar::block::{self, Data, DiskConfig, Op, Request};
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A device by its name; 0000:01:00.0 and vfio-user:/run/nvme.sock are others. A disk of it, by the driver that it needs.
//! let disk = block::open(wholebar::open("sim:nvme,size=64M")?, &DiskConfig::default())?;
//! let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
//! // Memory that the device is let into, and buffers in it.
//! let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//! disk.attach(arena.clone())?;
//! let pool = Pool::new(arena, 4, ns.block_size, ns.block_size)?;
//! // A queue, for one thread: post, ring, poll. The buffer belongs to the command until it completes.
//! let mut queue = disk.queue()?;
//! let data = Data::One(pool.get_len(ns.block_size).ok_or("no buffer is left")?);
//! queue.submit(Request { tag: 0, nsid: ns.nsid, op: Op::Read { lba: 0 }, data, deadline: None })?;
//! queue.ring();
//! while queue.poll(1, &mut |done| println!("{:?}: {} bytes", done.status, done.data.len())) == 0 {}
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```
//!
//! What can be opened, and by which driver, is a matter of features:
//!
//! | feature | what it adds | by default |
//! |---|---|---|
//! | `nvme` | `nvme`: a driver for NVMe controllers | yes |
//! | `virtio` | `virtio`: a driver for virtio network and block devices | yes |
//! | `intel` | `intel`: drivers for Intel's Gigabit Ethernet controllers: the 82576 (`igb`), its virtual functions (`igbvf`), the 82574 (`e1000e`) | yes |
//! | `vmxnet3` | `vmxnet3`: a driver for VMware's vmxnet3 | yes |
//! | `vfio-user` | `vfio_user`: devices over Unix sockets, whose targets begin with `vfio-user:` | yes |
//! | `vhost-user` | `vhost_user`: virtio devices that other processes serve, whose targets begin with `vhost-user:` | yes |
//! | `kernel` | `kernel`: disks and ports through the kernel, whose targets begin with `kernel:` | no |
//! | `sim` | `sim`: device models in this process, whose targets begin with `sim:` | no |
//! | `faults` | `net::Faulty`: queues that do to packets what wires do | no |
//! | `async` | `asynchronous`: futures over queues of disks, for any executor | no |
//! | `capture` | `capture`: packets of any queue in pcapng files | no |
//! | `measure` | `measure`: what benchmarks measure with: latencies, rates, sequence marks, loads | no |
//! | `statistics` | `statistics`: what ports, queues and pools count, for other processes | no |
//! | `smoltcp` | `smoltcp`: TCP/IP in this process, over a port's queues | no |
//!
//! [`blocking`] has disks for code that blocks: `read_at`, `Read`, `Write`, `Seek`.
//!
//! The `guide`, a module of this crate where `sim` is on, leads from the first program to drivers of your own. All else (BARs, memory, queues,
//! the reactor, the backends) is the core, under the names of [`wholebar_core`].

#[cfg(feature = "async")]
pub mod asynchronous;
pub mod block;
pub mod blocking;
pub mod drivers;
mod error;
#[cfg(all(feature = "nvme", feature = "sim", feature = "virtio"))]
pub mod guide;
pub mod net;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
mod target;

pub use error::OpenError;
pub use target::{OpenOptions, Opened, Target, open};
pub use wholebar_core::*;

#[cfg(feature = "capture")]
pub use wholebar_capture as capture;
#[cfg(feature = "intel")]
pub use wholebar_intel as intel;
#[cfg(feature = "kernel")]
pub use wholebar_kernel as kernel;
#[cfg(feature = "measure")]
pub use wholebar_measure as measure;
#[cfg(feature = "nvme")]
pub use wholebar_nvme as nvme;
#[cfg(feature = "sim")]
pub use wholebar_sim as sim;
#[cfg(feature = "statistics")]
pub use wholebar_statistics as statistics;
#[cfg(feature = "virtio")]
pub use wholebar_virtio as virtio;
#[cfg(feature = "vmxnet3")]
pub use wholebar_vmxnet3 as vmxnet3;
