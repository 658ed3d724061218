//! The memory under a buffer's plain bytes is not to be had a second time: neither as a file nor as another mapping.

use std::fs::File;
use std::os::fd::BorrowedFd;
use wholebar_core::mem::{Arena, Mapping};
use wholebar_core::model::Pages;
use wholebar_core::pci::Prot;

pub fn file(arena: &Arena) -> File {
    let fd = arena.fd(); //~ E0133: call to unsafe function `Arena::fd` is unsafe and requires unsafe function or block
    fd.unwrap().try_clone_to_owned().unwrap().into()
}

pub fn again(fd: BorrowedFd<'_>) {
    let _ = Mapping::of_fd(fd, 0, 4096, Prot::ReadWrite); //~ E0624: associated function `of_fd` is private
}

pub fn registers(pages: &Pages) {
    let _ = pages.fd(); //~ E0624: method `fd` is private
}

pub fn words(memory: &Mapping) {
    let _ = memory.u32(0); //~ E0624: method `u32` is private
    let _ = memory.u64(0); //~ E0624: method `u64` is private
}
