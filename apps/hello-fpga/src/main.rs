//! `hello-fpga`.
fn main() {}
