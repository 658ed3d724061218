//! Virtio over every backend, on both kinds of ring, under every policy.

use anyhow::{Context, Result, ensure};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Burst, PortConfig};
use wholebar::sim::virtio::blk::{self, BlkParams};
use wholebar::virtio::Options;
use wholebar_tests::{Rig, behind_socket, net_behind_socket, offloads, on_thread, virtio};

/// Whole on packed rings and on split ones, in order and not; carved for a page that holds notifications and the table, and trapped.
fn ways() -> Vec<Options> {
    let policy = |policy, page, packed| Options { policy, page, packed, ..virtio::patient() };
    let whole = |packed| policy(MapPolicy::Whole, None, packed);
    vec![
        whole(true),
        whole(false),
        Options { in_order: false, event_idx: false, ..whole(true) },
        Options { in_order: false, event_idx: false, ..whole(false) },
        policy(MapPolicy::Carved, Some(PageSize::K64.max(PageSize::host())), true),
        policy(MapPolicy::Trapped, None, false),
    ]
}

fn everywhere(params: &str, body: impl Fn(&Rig, Options) -> Result<()>) -> Result<()> {
    for options in ways() {
        let rigs =
            [on_thread(&format!("sim:virtio-blk,{params}"))?, behind_socket(blk::model(BlkParams::parse(params)?)?)?];
        for rig in rigs {
            let what = format!("{} {params} {options:?}", rig.name);
            body(&rig, options.clone()).with_context(|| what)?;
        }
    }
    Ok(())
}

/// Two ports on one wire, of each kind.
fn on_wires(params: &str, body: impl Fn(&[Rig; 2], Options) -> Result<()>) -> Result<()> {
    static WIRES: AtomicU32 = AtomicU32::new(0);
    for (way, options) in ways().into_iter().enumerate() {
        // By a socket, one way each of mapping and of ring is enough: these take long on few cores.
        let sockets = if matches!(way, 0 | 5) { &[false, true][..] } else { &[false] };
        for socket in sockets {
            let wire = WIRES.fetch_add(1, Ordering::Relaxed);
            let params = format!("wire=pair:test-{wire},full=wait,{params}");
            let rig = || match socket {
                false => on_thread(&format!("sim:virtio-net,{params}")),
                true => net_behind_socket(&params),
            };
            let rigs = [rig()?, rig()?];
            let what = format!("{} {params} {options:?}", rigs[0].name);
            body(&rigs, options.clone()).with_context(|| what)?;
        }
    }
    Ok(())
}

#[test]
fn data_comes_back() -> Result<()> {
    everywhere("size=16M,queues=2", virtio::data_comes_back)
}

#[test]
fn data_comes_back_in_blocks_of_4096() -> Result<()> {
    everywhere("size=16M,block=4096,msix=own,stride=0", virtio::data_comes_back)
}

#[test]
fn other_requests() -> Result<()> {
    everywhere("size=16M", virtio::other_requests)
}

#[test]
fn requests_survive_resets() -> Result<()> {
    everywhere("size=16M", virtio::requests_survive_resets)
}

#[test]
fn packets_cross() -> Result<()> {
    on_wires("mtu=1500", |rigs, options| virtio::packets_cross(rigs, options, 2_000))
}

#[test]
fn packets_cross_in_small_rings_without_a_control_queue() -> Result<()> {
    on_wires("entries=8,control=0,offloads=0,mergeable=0", |rigs, options| virtio::packets_cross(rigs, options, 300))
}

#[test]
fn jumbo_frames_cross() -> Result<()> {
    on_wires("mtu=9000", virtio::jumbo_frames_cross)
}

#[test]
fn offloads_are_done() -> Result<()> {
    on_wires("", offloads::offloads_are_done)
}

#[test]
fn flows_are_spread() -> Result<()> {
    on_wires("queues=2", virtio::flows_are_spread)
}

#[test]
fn filters_filter() -> Result<()> {
    on_wires("", virtio::filters_filter)
}

#[test]
fn packets_go_on_after_resets() -> Result<()> {
    on_wires("", |rigs, options| virtio::packets_go_on_after_resets(rigs, options, 4))
}

/// What a model filtered is among its port's statistics: here, packets to another station, in front of one to the port.
#[test]
fn what_a_model_filtered_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let from = dir.path().join("in.pcap");
    let mut file = PcapWriter::new(File::create(&from)?)?;
    for to in [0x12, 0x12, 0x12, 0x11] {
        let packet = [&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, 0x78, 0x88, 0xb5][..], &[0; 46]].concat();
        file.write_packet(&PcapPacket::new(Duration::ZERO, 60, &packet))?;
    }
    drop(file);
    let model = "sim:virtio-net,mac=02:00:00:00:00:11,wire=pcap,full=wait";
    let device = wholebar::open(&format!("{model},replay={}", from.display()))?;
    let port = net::open(device, &PortConfig::default())?;
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    port.attach(arena.clone())?;
    let mut rx = port.rx_queue(0, &Pool::new(arena, 256, 2048, 64)?)?;
    let (mut burst, began) = (Burst::new(4), Instant::now());
    let told = || port.statistics().iter().find(|s| s.queue == "model" && s.name == "rx_filtered").map(|s| s.value);
    // The model counts at the end of a poll: the packet may come before.
    while burst.is_empty() || told() == Some(0) {
        rx.rx(&mut burst);
        ensure!(began.elapsed() < Duration::from_secs(60), "{} packets came, {:?} were filtered", burst.len(), told());
        std::thread::yield_now();
    }
    assert_eq!((burst.len(), told()), (1, Some(3)));
    Ok(())
}
