//! What QEMU's virtio-net has only where a TAP interface is behind it: pairs of queues, RSS, checksums and TCP segments. Two of them through the kernel's
//! VFIO, in a guest; between them a bridge of Linux's. `cargo xtask vm test x86_64 kernel_virtio_tap` runs them.
// guests: x86_64
// machine: --nic virtio-net,wire=tap,packed=on,in_order=on,mq=on,rss=on,hash=on --nic virtio-net,wire=tap,packed=on,in_order=on,mq=on,rss=on,hash=on --bind nic

use anyhow::Result;
use wholebar_tests::guest::{on_a_wire, rings};
use wholebar_tests::{offloads, virtio};

#[test]
#[ignore = "wants a guest"]
fn flows_are_spread() -> Result<()> {
    on_a_wire(&rings(), virtio::flows_are_spread)
}

#[test]
#[ignore = "wants a guest"]
fn offloads_are_done() -> Result<()> {
    on_a_wire(&rings(), offloads::offloads_are_done)
}

#[test]
#[ignore = "wants a guest"]
fn packets_cross() -> Result<()> {
    on_a_wire(&rings(), |rigs, options| virtio::packets_cross(rigs, options, 500))
}
