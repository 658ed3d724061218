//! What safe code must not even compile to: a way past the guards of the MSI-X table, or around the ownership of a doorbell.
//!
//! The `.stderr` files say for which reason each line fails. After an update of the compiler they may read differently:
//! `TRYBUILD=overwrite cargo test -p wholebar --test compile_fail`, and read the difference.

#[test]
#[cfg_attr(miri, ignore = "runs the compiler")]
fn compile_fail() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/compile_fail/*.rs");
}
