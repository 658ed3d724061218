//! No loss that isn't counted: on both kinds of ring, in this process and through a socket; on wires that lose packets, with buffers running
//! out, and through faults. The example of the same name does it as often as one likes.

use anyhow::{Context, Result, ensure};
use wholebar::virtio::Options;
use wholebar_tests::accounting::{Account, account};
use wholebar_tests::virtio::patient;
use wholebar_tests::{net_behind_socket, on_thread};

const COUNT: u64 = 10_000;

fn everywhere(
    name: &str,
    params: &str,
    faults: Option<&str>,
    (count, pause): (u64, u64),
    check: impl Fn(&Account) -> Result<()>,
) -> Result<()> {
    let faults = faults.map(str::parse).transpose()?;
    for (way, packed, socket) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
        let params = format!("wire=pair:{name}-{way},{params}");
        let rig = || match socket {
            false => on_thread(&format!("sim:virtio-net,{params}")),
            true => net_behind_socket(&params),
        };
        let options = Options { packed, ..patient() };
        let account = account(&[rig()?, rig()?], &options, faults, count, pause).with_context(|| params.clone())?;
        ensure!(account.sent == count, "{params}: {account:?}");
        check(&account).with_context(|| format!("{params}, packed: {packed}: {account:?}"))?;
    }
    Ok(())
}

fn was_dropped(account: &Account, cause: &str) -> Result<()> {
    let n = account.dropped.get(cause).copied().unwrap_or(0);
    ensure!(n > 0, "none was dropped by {cause}");
    Ok(())
}

#[test]
fn nothing_is_lost_where_nothing_can_be() -> Result<()> {
    everywhere("all", "full=wait", None, (COUNT, 0), |account| {
        ensure!(account.received == COUNT && account.dropped.is_empty());
        Ok(())
    })
}

#[test]
fn what_wires_lose_and_what_found_no_buffer_is_counted() -> Result<()> {
    // Rings of 8 have not enough for 64 packets that nobody takes, and are slow.
    everywhere("some", "full=drop,loss=1/50,entries=8", None, (COUNT, 64), |account| {
        was_dropped(account, "wire_lost")?;
        was_dropped(account, "rx_no_buffer")
    })
}

#[test]
fn what_faults_do_is_counted() -> Result<()> {
    let faults = "drop=0.02,duplicate=0.02,corrupt=0.02,truncate=0.02,reorder=0.05,by=16,seed=5";
    everywhere("faults", "full=wait", Some(faults), (COUNT, 0), |account| {
        ensure!(account.duplicated > COUNT / 50, "few were duplicated");
        // A broken address is somebody else's, and a short packet no packet.
        was_dropped(account, "rx_filtered")?;
        was_dropped(account, "faults")
    })
}
