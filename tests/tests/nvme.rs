//! NVMe over every backend, under every policy.

use anyhow::{Context, Result};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::nvme::{Options, ShadowDoorbells};
use wholebar_tests::{Rig, nvme, rigs};

/// Whole and trapped for the device's page, and carved for a page that holds the doorbells too.
fn policies() -> [Options; 3] {
    let policy = |policy, page| Options { policy, page, ..nvme::patient() };
    [
        policy(MapPolicy::Whole, None),
        policy(MapPolicy::Carved, Some(PageSize::K64.max(PageSize::host()))),
        policy(MapPolicy::Trapped, None),
    ]
}

fn everywhere(params: &str, body: impl Fn(&Rig, Options) -> Result<()>) -> Result<()> {
    for options in policies() {
        for rig in rigs(params)? {
            let what = format!("{} {params} {:?}", rig.name, options.policy);
            body(&rig, options.clone()).with_context(|| what)?;
        }
    }
    Ok(())
}

#[test]
fn data_comes_back() -> Result<()> {
    everywhere("size=16M", nvme::data_comes_back)
}

#[test]
fn data_comes_back_in_blocks_of_4096() -> Result<()> {
    everywhere("size=16M,block=4096,mdts=3,noiob=16", nvme::data_comes_back)
}

#[test]
fn data_comes_back_by_sgls() -> Result<()> {
    everywhere("size=16M,sgl=1", nvme::data_comes_back)
}

#[test]
fn data_comes_back_through_shadow_doorbells() -> Result<()> {
    everywhere("size=16M,shadow=1", |rig, options| {
        nvme::data_comes_back(rig, Options { shadow_doorbells: ShadowDoorbells::Always, ..options })
    })
}

#[test]
fn data_comes_back_with_the_table_in_a_bar_of_its_own() -> Result<()> {
    everywhere("size=16M,msix=own,dstrd=2", nvme::data_comes_back)
}

#[test]
fn other_commands() -> Result<()> {
    everywhere("size=16M,spare=16M", nvme::other_commands)
}

#[test]
fn one_doorbell_a_batch() -> Result<()> {
    everywhere("size=16M,backing=null", nvme::one_doorbell_a_batch)
}

#[test]
fn data_survives_resets() -> Result<()> {
    everywhere("size=16M", |rig, options| nvme::data_survives_resets(rig, options, 5))
}

#[test]
fn events_come() -> Result<()> {
    everywhere("size=16M", nvme::events_come)
}
