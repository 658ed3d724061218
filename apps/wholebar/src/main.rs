//! The `wholebar` command.
fn main() {}
