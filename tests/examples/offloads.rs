//! Checksums, and TCP that is not cut yet, through whatever lies between two of our virtio drivers: `tests/vhost.sh` has DPDK's testpmd there.
//!
//! ```sh
//! cargo run --release -p wholebar-tests --example offloads -- checksums vhost-user:/run/a.sock,net vhost-user:/run/b.sock,net split
//! ```
//!
//! What is sent to the first comes from the second. `checksums`: who receives takes only what could have been on a wire. `segments`: who receives takes TCP that is
//! not cut yet, in several buffers, and every packet is compared with what was sent. Rings are `split` or `packed`.

use anyhow::{Context, Result, bail};
use wholebar_tests::{Rig, offloads, virtio};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, from, to, rings] = &args[..] else {
        bail!("what, two devices and split or packed are wanted: {args:?}")
    };
    let packed = match rings.as_str() {
        "split" => false,
        "packed" => true,
        other => bail!("there are split and packed rings, and {other:?} is neither"),
    };
    let open = |target: &String| -> Result<Rig> {
        let device = wholebar::open(target).with_context(|| format!("{target} cannot be opened"))?;
        Ok(Rig::of(device, "the other end"))
    };
    let (rigs, options) = ([open(from)?, open(to)?], wholebar::virtio::Options { packed, ..virtio::patient() });
    let packets = match what.as_str() {
        "checksums" => offloads::checksums_are_filled_in(&rigs, &options)?,
        "segments" => offloads::segments_are_passed_on(&rigs, &options)?,
        other => bail!("there are checksums and segments, and {other:?} is neither"),
    };
    println!("{packets}");
    Ok(())
}
