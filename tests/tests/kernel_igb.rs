//! Two 82576 on one wire. `cargo xtask vm test x86_64 kernel_igb` runs them.
// guests: x86_64 x86_64-iommufd
// machine: --nic igb --nic igb --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --blk 64M,packed=on,in_order=on,num-queues=2 --bind nic --bind blk
// core: x86_64

mod intel;

intel::tests!(wholebar::intel::igb::I82576);

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use wholebar::intel::igb::I82576;
use wholebar::mem::Buf;
use wholebar::net::{Mac, Port, PortConfig};
use wholebar_tests::intel::{Station, numbered, pair, patient, receive, send};

/// A Sync message of the precision time protocol, version 2 (IEEE 1588, 13.3; annex F): as much of it as a device looks at.
fn sync(station: &Station<I82576>, to: Mac) -> Result<Buf> {
    let mut bytes = [0; 60];
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&station.nic.mac().0);
    bytes[12..18].copy_from_slice(&[0x88, 0xf7, 0, 2, 0, 44]);
    let mut buf = station.pool.get().context("a buffer")?;
    buf.copy_from(&bytes);
    buf.set_timesync(true);
    Ok(buf)
}

/// QEMU's device stamps what is a Sync message by its own clock, one at a time.
#[test]
#[ignore = "wants a guest"]
fn packets_are_stamped_with_when_they_came_and_went() -> Result<()> {
    let (a, b) = pair::<I82576>(PortConfig::default(), PortConfig::default(), &patient())?;
    let ((mut tx, mut rx), to) = ((a.nic.tx(0)?, b.nic.rx(0, &b.pool)?), b.nic.mac());
    ensure!(a.nic.timesync_read_time().is_err(), "its clock was not started");
    // Nobody has asked for stamps yet.
    send(&mut tx, [sync(&a, to)?])?;
    ensure!(receive(&mut rx)?.timestamp().is_none());
    a.nic.timesync_enable()?;
    b.nic.timesync_enable()?;
    let times = || anyhow::Ok((a.nic.timesync_read_time()?, b.nic.timesync_read_time()?));
    for round in 0..5 {
        let before = times()?;
        send(&mut tx, [sync(&a, to)?])?;
        let came = receive(&mut rx)?.timestamp().map(Duration::from_nanos).context("it was not stamped")?;
        let went = a.nic.timesync_read_tx_timestamp()?.context("the time at which it was sent was not kept")?;
        let after = times()?;
        ensure!((before.0..=after.0).contains(&went), "{round}: sent at {went:?}, and it was {before:?} to {after:?}");
        ensure!((before.1..=after.1).contains(&came), "{round}: came at {came:?}, and it was {before:?} to {after:?}");
        ensure!(a.nic.timesync_read_tx_timestamp()?.is_none(), "{round}: it was asked for already");
        // What is no such message has no stamp, and takes none from the next.
        let mut other = a.pool.get().context("a buffer")?;
        numbered(&mut other, to, a.nic.mac(), round, 60);
        send(&mut tx, [other])?;
        ensure!(receive(&mut rx)?.timestamp().is_none() && a.nic.timesync_read_tx_timestamp()?.is_none());
    }
    // Set, and moved.
    const HOUR: Duration = Duration::from_secs(3600);
    b.nic.timesync_write_time(100 * HOUR)?;
    b.nic.timesync_adjust_time(-(HOUR.as_nanos() as i64))?;
    let now = b.nic.timesync_read_time()?;
    ensure!(now >= 99 * HOUR && now < 100 * HOUR, "{now:?}");
    // Half as fast again, against the system's clock, which is read on both sides of each look.
    b.nic.timesync_adjust_freq(500_000_000)?;
    let look = || anyhow::Ok((Instant::now(), b.nic.timesync_read_time()?, Instant::now()));
    let first = look()?;
    std::thread::sleep(Duration::from_millis(500));
    let last = look()?;
    let passed = (last.1 - first.1).as_secs_f64();
    let (least, most) = ((last.0 - first.2).as_secs_f64(), (last.2 - first.0).as_secs_f64());
    ensure!((1.25 * least..1.75 * most).contains(&passed), "{passed} s of {least} to {most} s");
    b.nic.timesync_adjust_freq(0)?;
    // It outlives a reset, which takes the device's clock back to where it began.
    let before = b.nic.timesync_read_time()?;
    drop(rx);
    b.nic.reset()?;
    let after = b.nic.timesync_read_time()?;
    ensure!(after >= before && after < before + HOUR, "{before:?}, {after:?}");
    b.wait_link(true)?;
    let mut rx = b.nic.rx(0, &b.pool)?;
    send(&mut tx, [sync(&a, to)?])?;
    let came = receive(&mut rx)?.timestamp().map(Duration::from_nanos).context("it was not stamped after the reset")?;
    ensure!((after..=b.nic.timesync_read_time()?).contains(&came), "{came:?}");
    b.nic.timesync_disable()?;
    send(&mut tx, [sync(&a, to)?])?;
    ensure!(receive(&mut rx)?.timestamp().is_none(), "it was stamped, and nobody asked for it");
    Ok(())
}
