//! The same bodies over vhost-user: the driver on our front end, which speaks to our back end, which drives the model.

use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicU32, Ordering};
use wholebar::net::{Event, Port, PortConfig};
use wholebar::sim::virtio::blk::{self, BlkParams};
use wholebar::virtio::{Net, Options};
use wholebar_tests::storage::PATIENCE;
use wholebar_tests::{Rig, net_over_vhost_user, offloads, over_vhost_user, virtio};

fn disks(params: &str, body: impl Fn(&Rig, Options) -> Result<()>) -> Result<()> {
    for packed in [false, true] {
        let rig = over_vhost_user(blk::model(BlkParams::parse(params)?)?)?;
        body(&rig, Options { packed, ..virtio::patient() }).with_context(|| format!("{params}, packed {packed}"))?;
    }
    Ok(())
}

/// Two ports on one wire.
fn ports(params: &str, body: impl Fn(&[Rig; 2], Options) -> Result<()>) -> Result<()> {
    static WIRES: AtomicU32 = AtomicU32::new(0);
    for packed in [false, true] {
        let wire = WIRES.fetch_add(1, Ordering::Relaxed);
        let rig = || net_over_vhost_user(&format!("wire=pair:vhost-user-{wire},full=wait,{params}"));
        let rigs = [rig()?, rig()?];
        body(&rigs, Options { packed, ..virtio::patient() }).with_context(|| format!("{params}, packed {packed}"))?;
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

#[test]
fn packets_cross() -> Result<()> {
    ports("mtu=1500", |rigs, options| virtio::packets_cross(rigs, options, 2_000))
}

#[test]
fn jumbo_frames_cross() -> Result<()> {
    ports("mtu=9000", virtio::jumbo_frames_cross)
}

#[test]
fn offloads_are_done() -> Result<()> {
    ports("", offloads::offloads_are_done)
}

#[test]
fn packets_go_on_after_resets() -> Result<()> {
    ports("", |rigs, options| virtio::packets_go_on_after_resets(rigs, options, 4))
}

/// A link that goes and comes is told as it happens, while nobody asks.
#[test]
fn a_link_that_goes_and_comes_is_told() -> Result<()> {
    let rig = net_over_vhost_user("wire=loop")?;
    let handle = rig.net.as_ref().context("a network model has a handle")?;
    let net = Net::open(rig.device.clone(), &PortConfig::default(), virtio::patient())?;
    for up in [false, true, false] {
        handle.set_link(up);
        let told = net.events().recv_timeout(PATIENCE)?;
        ensure!(matches!(told, Event::Link(link) if link.up == up), "{told:?} came, and the link is {up}");
    }
    Ok(())
}
