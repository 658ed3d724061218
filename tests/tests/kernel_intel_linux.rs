//! Intel's devices by wholebar, and the same by Linux's own drivers at the other end of the wire. `cargo xtask vm test x86_64 kernel_intel_linux` runs them.
// guests: x86_64 x86_64-iommufd
// machine: --nic igb --nic igb --nic e1000e,hub=1 --nic e1000e,hub=1 --bind nic

#[path = "intel/linux.rs"]
mod linux;

use anyhow::Result;
use wholebar::intel::e1000e::I82574;
use wholebar::intel::igb::I82576;

#[test]
#[ignore = "wants a guest"]
fn igb_and_linux() -> Result<()> {
    linux::is_answered_and_answers::<I82576>()
}

#[test]
#[ignore = "wants a guest"]
fn e1000e_and_linux() -> Result<()> {
    linux::is_answered_and_answers::<I82574>()
}
