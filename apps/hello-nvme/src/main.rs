//! `hello-nvme`.
fn main() {}
