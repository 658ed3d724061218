//! The `wholebar` command as people run it, in one program, which is linked once: a module for each matter.

mod common;

mod baseline;
mod blk;
mod columns;
mod gen_sink;
mod idle;
mod kernel_targets;
mod limits;
mod maps;
mod net;
mod nvme_admin;
mod pages;
mod refused;
mod selftest;
mod served;
mod watching;
mod works;
mod wrong;
