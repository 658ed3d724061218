//! libwholebar: the framework for C, as a shared and a static library.
//!
//! What a C program sees is `include/wholebar.h`, which is made from the comments here; the rules at its top are the contract that each `SAFETY` comment
//! names by number. A handle is a boxed value, and a buffer is its own handle. This crate does *not* add anything to what the Rust crates do: each function is a
//! check of its arguments, one call, and an error made into a number and a sentence.
//!
//! | file | what it is |
//! |---|---|
//! | `handle.rs` | pointers of C made into references |
//! | `error.rs` | panics and errors made into numbers and sentences |
//! | `device.rs`, `memory.rs` | devices by name; arenas, pools, buffers |
//! | `disk.rs`, `queue.rs` | storage |
//! | `port.rs`, `packets.rs` | packets |
//! | `event.rs` | what happens to both |
#![allow(non_camel_case_types, reason = "types have the names that C sees")]
#![allow(unreachable_pub, reason = "what is public is the shared library's")]

mod device;
mod disk;
mod error;
mod event;
mod handle;
mod memory;
mod packets;
mod port;
mod queue;
#[cfg(all(test, feature = "nvme", feature = "virtio", feature = "vfio-user", feature = "sim"))]
mod tests;
