//! The same bodies over vhost-user: the driver on our front end, which speaks to our back end, which drives the model.

use anyhow::{Context, Result};
use wholebar::sim::virtio::blk::{self, BlkParams};
use wholebar::virtio::Options;
use wholebar_tests::{Rig, over_vhost_user, virtio};

fn disks(params: &str, body: impl Fn(&Rig, Options) -> Result<()>) -> Result<()> {
    for packed in [false, true] {
        let rig = over_vhost_user(blk::model(BlkParams::parse(params)?)?)?;
        body(&rig, Options { packed, ..virtio::patient() }).with_context(|| format!("{params}, packed {packed}"))?;
    }
    Ok(())
}

#[test]
fn data_comes_back() -> Result<()> {
    disks("size=16M,queues=2", virtio::data_comes_back)
}

#[test]
fn other_requests() -> Result<()> {
    disks("size=16M", virtio::other_requests)
}

#[test]
fn requests_survive_resets() -> Result<()> {
    disks("size=16M", virtio::requests_survive_resets)
}
