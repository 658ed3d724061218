//! Two vmxnet3 on one wire through the kernel's VFIO, in a guest: QEMU's device was written by nobody here. `cargo xtask vm test GUEST kernel_vmxnet3` runs
//! them.
//!
//! QEMU's device spreads no packets, and hubs carry no offloads: what it would check or merge of what it receives is not to be seen here.
// guests: x86_64 x86_64-iommufd ppc64le-64k
// machine: --nic vmxnet3,hub=3 --nic vmxnet3,hub=3 --nic virtio-net,hub=3 --bind nic

use anyhow::{Context, Result, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use std::fs;
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::{Access, BarOptions, BarPlan, MapPolicy, plan_of};
use wholebar::control_plane::DeviceEvent;
use wholebar::mem::{Buf, Checked, L4, Offload, Pool};
use wholebar::net::{Burst, Event, Mac, Offloads, Port, PortConfig, Rss};
use wholebar::reactor::Armed;
use wholebar::vmxnet3::{Options, Service};
use wholebar_tests::guest::SOON;
use wholebar_tests::vmxnet3::{BUFFERS, Station, pair, patient};
use wholebar_tests::wire::{CHAFF, number as number_of, numbered, receive, send, silence, stream};

fn offloads(offloads: Offloads) -> PortConfig {
    PortConfig { offloads, ..PortConfig::default() }
}

/// Lengths of all kinds that an Ethernet frame has.
fn len(number: u64) -> usize {
    60 + (number * 37 % 1455) as usize
}

#[test]
#[ignore = "wants a guest"]
fn both_directions_in_order_and_counted() -> Result<()> {
    for policy in [MapPolicy::Auto, MapPolicy::Carved, MapPolicy::Trapped] {
        let count = if policy == MapPolicy::Trapped { 300 } else { 3000 };
        let page = (policy == MapPolicy::Carved).then(|| PageSize::K64.max(PageSize::host()));
        let options = Options { policy, page, ..patient() };
        let (a, b) = pair(PortConfig::default(), PortConfig::default(), &options)?;
        {
            let ((mut rx_a, mut tx_a), (mut rx_b, mut tx_b)) = (a.queues()?, b.queues()?);
            let (to_a, to_b) = (a.port.mac(), b.port.mac());
            stream((to_a, &a.pool, &mut tx_a), (to_b, &mut rx_b), 0..count, len)?;
            stream((to_b, &b.pool, &mut tx_b), (to_a, &mut rx_a), 0..count, len)?;
            let (rung, direct) = (tx_a.doorbells(), is_direct(a.port.bar().plan()));
            println!("{policy:?}: {count} packets sent, doorbells: {rung:?}; for buffers: {:?}", rx_a.doorbells());
            ensure!((rung.direct > 0) == direct && (rung.trapped > 0) != direct, "{policy:?}: {rung:?}");
            ensure!(direct == (policy != MapPolicy::Trapped && may_be_mapped()), "{:?}", a.port.bar().plan());
        }
        let bytes: u64 = (0..count).map(|n| len(n) as u64).sum();
        for (from, to) in [(&a, &b), (&b, &a)] {
            for (what, right) in [("packets", count), ("bytes", bytes)] {
                let device = format!("device_unicast_{what}");
                let sent = [from.statistic("tx0", what), from.statistic("tx0", &device)];
                let came = [to.statistic("rx0", what), to.statistic("rx0", &device)];
                ensure!((sent, came) == ([right; 2], [right; 2]), "{policy:?}: {sent:?} {what} sent, {came:?} came");
            }
            ensure!(to.port.statistics().iter().all(|s| !s.name.starts_with("dropped") || s.value == 0));
        }
        for Station { port, pool, .. } in [a, b] {
            ensure!(port.quarantined() == 0);
            drop(port);
            ensure!(pool.available() == BUFFERS, "buffers were lost");
        }
    }
    Ok(())
}

fn is_direct(plan: &BarPlan) -> bool {
    plan.spans.iter().all(|span| span.access == Access::Direct)
}

/// Where pages are larger than its BARs, which have 4 KiB, some of them share a page, which the kernel gives to nobody.
fn may_be_mapped() -> bool {
    PageSize::host() == PageSize::K4
}

#[test]
#[ignore = "wants a guest"]
fn its_table_is_in_bar2_and_its_registers_are_mapped_alike_under_every_plan() -> Result<()> {
    let a = Station::open(0, PortConfig::default(), patient())?;
    let plan = |bar, policy| plan_of(a.port.device().as_ref(), bar, BarOptions { policy, ..BarOptions::default() });
    for policy in [MapPolicy::Auto, MapPolicy::Whole, MapPolicy::Carved] {
        for bar in [0, 1] {
            let plan = plan(bar, policy)?;
            ensure!(is_direct(&plan) == may_be_mapped(), "{plan:?}");
        }
        let layout = plan(2, policy)?.layout;
        ensure!(layout.table == Some(0..25 * 16) && layout.pba.is_some_and(|pba| pba.start == 0x1000));
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn queues_that_send_are_several_and_queues_that_receive_may_be() -> Result<()> {
    let several = PortConfig { rx_queues: 4, tx_queues: 8, rss: Some(Rss::evenly(4, 128)), ..PortConfig::default() };
    let (a, b) = pair(several.clone(), several, &patient())?;
    let mut rx = (0..4).map(|n| Ok(b.port.rx(n, &b.pool)?)).collect::<Result<Vec<_>>>()?;
    b.port.set_rss(&Rss::evenly(2, 32)).map_err(anyhow::Error::msg)?;
    for number in 0..64 {
        let mut tx = a.port.tx(number as u16 % 8)?;
        let mut buf = a.pool.get().context("a buffer")?;
        numbered(&mut buf, b.port.mac(), a.port.mac(), number, 100);
        send(&mut tx, [buf])?;
        ensure!(number_of(receive(&mut rx[0])?.bytes())? == number);
    }
    for n in 0..8 {
        ensure!(a.statistic(&format!("tx{n}"), "device_unicast_packets") == 8);
    }
    Ok(())
}

/// A UDP packet in a buffer.
fn udp(station: &Station, to: Mac, payload: &[u8]) -> Result<Buf> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(station.port.mac().0, to.0);
    builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut bytes, payload)?;
    let mut buf = station.pool.get().context("a buffer")?;
    buf.copy_from(&bytes);
    Ok(buf)
}

#[test]
#[ignore = "wants a guest"]
fn vlan_tags_are_put_in_taken_off_and_filtered() -> Result<()> {
    let insert = Offloads { vlan_insert: true, ..Offloads::NONE };
    let strip = Offloads { vlan_strip: true, vlan_filter: true, ..Offloads::NONE };
    for stripped in [true, false] {
        let b = if stripped { strip } else { Offloads { vlan_strip: false, ..strip } };
        let (a, b) = pair(offloads(insert), offloads(b), &patient())?;
        let ((mut tx, mut rx), to) = ((a.port.tx(0)?, b.port.rx(0, &b.pool)?), b.port.mac());
        let tagged = |number, tag| {
            let mut buf = a.pool.get().context("a buffer")?;
            numbered(&mut buf, to, a.port.mac(), number, 100);
            buf.set_vlan(tag);
            anyhow::Ok(buf)
        };
        b.port.set_vlan(100, true).map_err(anyhow::Error::msg)?;
        // Priority 3, VLAN 100; one that nobody asked for; none; the tag again.
        for (number, tag, comes) in
            [(0, Some(0x6064), true), (1, Some(200), false), (2, None, true), (3, Some(0x6064), true)]
        {
            send(&mut tx, [tagged(number, tag)?])?;
            if !comes {
                silence(&mut rx)?;
                continue;
            }
            let packet = receive(&mut rx)?;
            let mut bytes = packet.bytes().to_vec();
            ensure!(packet.vlan() == tag.filter(|_| stripped), "{number}: {:x?}", packet.vlan());
            if let Some(tag) = tag.filter(|_| !stripped) {
                let tag = tag.to_be_bytes();
                let taken: Vec<u8> = bytes.drain(12..16).collect();
                ensure!(taken == [0x81, 0, tag[0], tag[1]], "{taken:x?}");
            }
            ensure!((number, bytes.len()) == (number_of(&bytes)?, 100));
        }
        b.port.set_vlan(100, false).map_err(anyhow::Error::msg)?;
        send(&mut tx, [tagged(4, Some(100))?])?;
        silence(&mut rx)?;
        // Who listens to all hears all.
        b.port.set_promiscuous(true).map_err(anyhow::Error::msg)?;
        send(&mut tx, [tagged(5, Some(200))?])?;
        receive(&mut rx)?;
    }
    Ok(())
}

/// The sum of a packet's pseudo header: addresses, length, protocol; folded.
fn pseudo(bytes: &[u8], l3_len: usize, protocol: u32) -> [u8; 2] {
    let addresses = if l3_len == 40 { &bytes[22..54] } else { &bytes[26..34] };
    let words = addresses.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w)));
    let total: u32 = words.sum::<u32>() + (bytes.len() - 14 - l3_len) as u32 + protocol;
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) as u16 + (folded >> 16) as u16).to_be_bytes()
}

#[test]
#[ignore = "wants a guest"]
fn checksums_are_filled_in() -> Result<()> {
    let fill = Offloads { tx_l3_checksum: true, tx_l4_checksum: true, ..Offloads::NONE };
    let check = Offloads { rx_checksum: true, ..Offloads::NONE };
    let (a, b) = pair(offloads(fill), offloads(check), &patient())?;
    ensure!(!a.port.granted().tx_l3_checksum && b.port.granted().rx_checksum);
    let ((mut tx, mut rx), to) = ((a.port.tx(0)?, b.port.rx(0, &b.pool)?), b.port.mac());
    for l4 in [L4::Udp, L4::Tcp] {
        for ipv6 in [false, true] {
            let (mut bytes, payload) = (Vec::new(), [0x5a; 333]);
            let builder = PacketBuilder::ethernet2(a.port.mac().0, to.0);
            let builder = match ipv6 {
                false => builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
                true => builder.ipv6([0xfd; 16], [0xfc; 16], 64),
            };
            match l4 {
                L4::Udp => builder.udp(1111, 2222).write(&mut bytes, &payload)?,
                L4::Tcp => builder.tcp(1111, 2222, 99, 1000).write(&mut bytes, &payload)?,
            }
            let right = bytes.clone();
            let l3_len = if ipv6 { 40 } else { 20 };
            let sum = 14 + l3_len + if l4 == L4::Tcp { 16 } else { 6 };
            let partial = pseudo(&bytes, l3_len, if l4 == L4::Tcp { 6 } else { 17 });
            bytes[sum..sum + 2].copy_from_slice(&partial);
            let offload = Offload { l2_len: 14, l3_len: l3_len as u16, ipv6, l4: Some(l4), ..Offload::default() };
            for filled in [true, false] {
                let mut buf = a.pool.get().context("a buffer")?;
                buf.copy_from(&bytes);
                buf.set_offload(filled.then_some(offload));
                send(&mut tx, [buf])?;
                let packet = receive(&mut rx)?;
                let what = format!("{l4:?} over IPv{}, filled: {filled}", if ipv6 { 6 } else { 4 });
                ensure!((packet.bytes() == right) == filled, "{what}");
                ensure!(packet.checked() == (Checked::Unknown, Checked::Unknown), "{what}: {:?}", packet.checked());
                let parsed = SlicedPacket::from_ethernet(packet.bytes())?;
                ensure!(matches!(parsed.transport, Some(TransportSlice::Udp(_) | TransportSlice::Tcp(_))), "{what}");
            }
        }
    }
    for offload in [
        Offload { l2_len: 14, l3_len: 20, l4_len: 20, segment: 1000, ..Offload::default() },
        Offload { l2_len: 14, l3_len: 20, l3: true, ..Offload::default() },
    ] {
        let mut buf = udp(&a, to, &[1; 64])?;
        buf.set_offload(Some(offload));
        send(&mut tx, [buf])?;
        silence(&mut rx)?;
    }
    ensure!(a.statistic("tx0", "dropped_offload") == 2, "neither was granted");
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn large_packets_are_cut_into_segments() -> Result<()> {
    let cut = Offloads { tso: true, tx_l4_checksum: true, gather: true, ..Offloads::NONE };
    let (a, b) = pair(offloads(cut), PortConfig::default(), &patient())?;
    let ((mut tx, mut rx), to) = ((a.port.tx(0)?, b.port.rx(0, &b.pool)?), b.port.mac());
    for (ipv6, bytes) in [(false, 20_000), (true, 20_000), (false, 1001), (true, 40_000)] {
        let payload: Vec<u8> = (0..bytes).map(|i: u32| (i % 251) as u8).collect();
        let mut whole = Vec::new();
        let builder = PacketBuilder::ethernet2(a.port.mac().0, to.0);
        let builder = match ipv6 {
            false => builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            true => builder.ipv6([0xfd; 16], [0xfc; 16], 64),
        };
        builder.tcp(1111, 2222, 99, 1000).psh().ack(7).write(&mut whole, &payload)?;
        let l3_len: u16 = if ipv6 { 40 } else { 20 };
        let mut packet: Option<Buf> = None;
        for chunk in whole.chunks(2000) {
            let mut buf = a.pool.get().context("a buffer")?;
            buf.copy_from(chunk);
            match &mut packet {
                Some(packet) => packet.append(buf),
                None => packet = Some(buf),
            }
        }
        let mut packet = packet.context("a packet")?;
        let tso =
            Offload { l2_len: 14, l3_len, l4_len: 20, ipv6, l4: Some(L4::Tcp), segment: 1000, ..Offload::default() };
        packet.set_offload(Some(tso));
        send(&mut tx, [packet])?;
        let (mut came, mut segments) = (Vec::<u8>::new(), 0);
        while came.len() < payload.len() {
            let packet = receive(&mut rx).with_context(|| format!("after {} of {bytes} bytes", came.len()))?;
            let parsed = SlicedPacket::from_ethernet(packet.bytes())?;
            let (ip, transport) = (parsed.net.context("IP")?, parsed.transport.context("a transport")?);
            let TransportSlice::Tcp(tcp) = transport else { anyhow::bail!("{transport:?}") };
            let sum = match ip {
                etherparse::NetSlice::Ipv4(ip) => {
                    let header = ip.header().to_header();
                    ensure!(header.header_checksum == header.calc_header_checksum(), "IPv4's checksum");
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())?
                }
                etherparse::NetSlice::Ipv6(ip) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())?
                }
                other => anyhow::bail!("{other:?}"),
            };
            ensure!(sum == tcp.checksum(), "TCP's checksum of segment {segments}");
            ensure!(tcp.sequence_number() as usize == 99 + came.len(), "segment {segments} is not in order");
            came.extend(tcp.payload());
            segments += 1;
        }
        ensure!(came == payload && segments == bytes.div_ceil(1000), "{segments} segments");
    }
    ensure!(a.statistic("tx0", "device_tso_packets") == 4);
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn jumbo_frames_come_in_parts() -> Result<()> {
    let wanted = Offloads { scatter: true, gather: true, ..Offloads::NONE };
    let jumbo = PortConfig { mtu: Some(9000), ..offloads(wanted) };
    let (a, b) = pair(jumbo.clone(), jumbo, &patient())?;
    let ((mut tx, mut rx), to) = ((a.port.tx(0)?, b.port.rx(0, &b.pool)?), b.port.mac());
    let big = Pool::new(a.pool.arena().clone(), 1, 16384, 64)?;
    for (number, len) in [60, 1514, 2048, 2049, 4096, 9013, 9014, 9018].into_iter().cycle().take(1000).enumerate() {
        let mut buf = big.get().context("a buffer")?;
        numbered(&mut buf, to, a.port.mac(), number as u64, len);
        let bytes = buf.bytes().to_vec();
        drop(buf);
        // In buffers of other sizes than they are received in.
        let mut packet: Option<Buf> = None;
        for chunk in bytes.chunks(1500) {
            let mut buf = a.pool.get().context("a buffer")?;
            buf.copy_from(chunk);
            match &mut packet {
                Some(packet) => packet.append(buf),
                None => packet = Some(buf),
            }
        }
        send(&mut tx, packet)?;
        let came = receive(&mut rx)?;
        let all = came.segments().map(Buf::bytes).collect::<Vec<_>>().concat();
        ensure!(came.segments().count() == len.div_ceil(2048), "{came:?}");
        ensure!(all == bytes && number_of(&all)? == number as u64);
    }
    // One byte more than a packet may have is not sent.
    let mut packet = a.pool.get_len(2000).context("a buffer")?;
    (0..4)
        .try_for_each(|i| a.pool.get_len(if i < 3 { 2000 } else { 1019 }).map(|buf| packet.append(buf)))
        .context("buffers")?;
    send(&mut tx, [packet])?;
    silence(&mut rx)?;
    ensure!(a.statistic("tx0", "dropped_length") == 1);
    // Who asked for one buffer a packet drops what the device cut off.
    drop((tx, rx, b));
    let b = Station::open(1, PortConfig::default(), patient())?;
    b.wait_link(true)?;
    let (mut rx, mut tx) = (b.port.rx(0, &b.pool)?, a.port.tx(0)?);
    let mut packet = a.pool.get_len(2000).context("a buffer")?;
    numbered(&mut packet, to, a.port.mac(), 0, 2000);
    packet.append(a.pool.get_len(1000).context("a buffer")?);
    send(&mut tx, [packet])?;
    silence(&mut rx)?;
    ensure!(b.statistic("rx0", "dropped_malformed") == 1);
    drop((rx, tx, a.port, b.port));
    ensure!((a.pool.available(), b.pool.available()) == (BUFFERS, BUFFERS), "buffers were lost");
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn frames_for_others_are_not_received_unless_asked_for() -> Result<()> {
    let (a, b) = pair(PortConfig::default(), PortConfig::default(), &patient())?;
    let (mut tx, mut rx) = (a.port.tx(0)?, b.port.rx(0, &b.pool)?);
    let mut next = 0;
    let mut hears = |to: Mac, comes: bool| {
        let mut buf = a.pool.get().context("a buffer")?;
        next += 1;
        numbered(&mut buf, to, a.port.mac(), next, 60);
        send(&mut tx, [buf])?;
        if !comes {
            return silence(&mut rx).with_context(|| format!("for {to}"));
        }
        let packet = receive(&mut rx).with_context(|| format!("for {to}"))?;
        ensure!(number_of(packet.bytes())? == next, "for {to}");
        Ok(())
    };
    let own = b.port.mac();
    let (other, group, second) =
        (Mac([2, 0, 0, 0, 0, 9]), Mac([1, 0, 0x5e, 0, 0, 0xfb]), Mac([1, 0, 0x5e, 0, 0x34, 0x12]));
    let failed = anyhow::Error::msg;
    hears(own, true)?;
    hears(Mac::BROADCAST, true)?;
    hears(other, false)?;
    hears(group, false)?;
    ensure!(b.port.set_filters(&[other, group]).is_err_and(|e| e.to_string().contains("be promiscuous")));
    b.port.set_filters(&[group]).map_err(failed)?;
    hears(group, true)?;
    hears(second, false)?;
    let many: Vec<_> = (0..200).map(|i| Mac([1, 0, 0x5e, 1, 1, i])).chain([second]).collect();
    b.port.set_filters(&many).map_err(failed)?;
    hears(second, true)?;
    hears(many[3], true)?;
    hears(group, false)?;
    b.port.set_filters(&[]).map_err(failed)?;
    hears(second, false)?;
    b.port.set_all_multicast(true).map_err(failed)?;
    hears(group, true)?;
    hears(other, false)?;
    b.port.set_all_multicast(false).map_err(failed)?;
    b.port.set_promiscuous(true).map_err(failed)?;
    hears(other, true)?;
    hears(group, true)?;
    b.port.set_promiscuous(false).map_err(failed)?;
    b.port.set_mac(other).map_err(failed)?;
    hears(own, false)?;
    hears(other, true)?;
    ensure!(b.port.set_mac(group).is_err() && b.port.set_filters(&[Mac::default()]).is_err());
    Ok(())
}

/// Traffic goes on, lossy while it lasts; afterwards everything works as before, and no buffer is missing.
#[test]
#[ignore = "wants a guest"]
fn resets_under_traffic() -> Result<()> {
    let wanted = Offloads { vlan_strip: true, vlan_insert: true, ..Offloads::NONE };
    let (a, b) = pair(offloads(wanted), offloads(wanted), &patient())?;
    let own = Mac([2, 0, 0, 0, 0, 0xb]);
    b.port.set_mac(own).map_err(anyhow::Error::msg)?;
    let ((mut rx_a, mut tx), (mut rx, mut tx_b)) = (a.queues()?, b.queues()?);
    for round in 0..3 {
        stream((a.port.mac(), &a.pool, &mut tx), (own, &mut rx), 0..200, len)?;
        let reset = [&b, &a][round % 2];
        reset.port.request_reset();
        let (mut out, mut came, began, mut done) = (Burst::new(8), Burst::new(8), Instant::now(), false);
        while !done {
            for _ in 0..out.room() {
                let Some(mut buf) = a.pool.get() else { break };
                numbered(&mut buf, own, a.port.mac(), CHAFF, 60);
                let _ = out.push(buf);
            }
            tx.tx(&mut out);
            rx.rx(&mut came);
            // Those that have nothing to do have to be polled too.
            rx_a.rx(&mut came);
            tx_b.reclaim();
            came.give_back();
            for event in reset.port.events().try_iter() {
                match event {
                    Event::Device(DeviceEvent::Reset { lost, .. }) => {
                        ensure!(lost.is_empty(), "queues {lost:?} were lost");
                        done = true;
                    }
                    other => anyhow::bail!("{other:?}"),
                }
            }
            ensure!(began.elapsed() < SOON, "the reset did not end: {:?}, {:?}", tx.state(), rx.state());
        }
        out.give_back();
        while {
            rx.rx(&mut came);
            !came.is_empty()
        } {
            came.give_back();
        }
    }
    // What was set before is set after.
    stream((a.port.mac(), &a.pool, &mut tx), (own, &mut rx), 0..200, len)?;
    ensure!(a.port.quarantined() + b.port.quarantined() == 0);
    drop((rx, tx, rx_a, tx_b, a.port, b.port));
    ensure!((a.pool.available(), b.pool.available()) == (BUFFERS, BUFFERS), "buffers were lost");
    Ok(())
}

/// Each frame must wake the sleeper, or be found by the look before: a lost wake-up is a frame that does not come.
#[test]
#[ignore = "wants a guest"]
fn an_idle_core_is_woken() -> Result<()> {
    let sleeper = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let (a, b) = pair(PortConfig::default(), sleeper, &patient())?;
    let (mut tx, mut rx) = (a.port.tx(0)?, b.port.rx(0, &b.pool)?);
    let wakeup = rx.wakeup().context("it has an interrupt")?;
    let (mut burst, mut slept) = (Burst::new(4), 0);
    for number in 0..100 {
        ensure!(rx.arm() == Armed::Yes);
        ensure!(rx.rx(&mut burst) == 0);
        if number % 2 == 0 {
            // Nothing comes, so nothing wakes.
            slept += u32::from(wakeup.wait(Some(Duration::from_millis(5)))?.is_none());
        }
        let mut buf = a.pool.get().context("a buffer")?;
        numbered(&mut buf, b.port.mac(), a.port.mac(), number, 60);
        send(&mut tx, [buf])?;
        ensure!(wakeup.wait(Some(SOON))?.is_some(), "frame {number} woke nobody");
        rx.disarm();
        ensure!(rx.rx(&mut burst) == 1, "frame {number} is not there");
        burst.give_back();
    }
    ensure!(slept > 40, "it was woken for nothing: it slept {slept} times of 50");
    Ok(())
}

/// The wire is unplugged, and plugged in again: by interrupt, before anybody looks.
#[test]
#[ignore = "wants a guest"]
fn the_link_goes_and_comes_back_by_interrupt() -> Result<()> {
    let a = Station::open(0, PortConfig::default(), Options { service: Service::Manual, ..patient() })?;
    a.port.service()?;
    ensure!(a.port.events().try_iter().any(|event| matches!(event, Event::Link(link) if link.up)));
    let until = |up: bool| {
        let began = Instant::now();
        loop {
            let woken = a.port.wakeup().wait(Some(SOON))?;
            ensure!(woken.is_some(), "no interrupt came for link {up}; it is {}", a.port.link());
            a.port.service()?;
            if a.port.events().try_iter().any(|event| matches!(event, Event::Link(link) if link.up == up)) {
                return Ok(());
            }
            ensure!(began.elapsed() < SOON, "interrupts, but no change: {}", a.port.link());
        }
    };
    ensure!(a.port.link().to_string() == "up, 1000 Mb/s, full duplex", "{}", a.port.link());
    for _ in 0..3 {
        fs::write("/dev/monitor", format!("set_link {} off\n", a.name))?;
        until(false)?;
        ensure!(!a.port.link().up);
        fs::write("/dev/monitor", format!("set_link {} on\n", a.name))?;
        until(true)?;
    }
    ensure!(a.statistic("", "link_changes") == 7);
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn what_cannot_be_had_is_refused() -> Result<()> {
    let plain = PortConfig::default;
    for (config, why) in [
        (PortConfig { rx_queues: 17, ..plain() }, "17 queues that receive"),
        (PortConfig { tx_descriptors: Some(8192), ..plain() }, "8192 descriptors"),
        (PortConfig { mtu: Some(9001), ..plain() }, "from 68 to 9000 bytes"),
    ] {
        let error = Station::open(0, config, patient()).err().context("it was not refused")?;
        ensure!(error.to_string().contains(why), "{error}");
    }
    let a = Station::open(0, PortConfig { mtu: Some(9000), ..plain() }, patient())?;
    let error = a.port.rx(0, &a.pool).err().context("buffers are too small")?;
    ensure!(error.to_string().contains("9146") && error.to_string().contains("scattering"), "{error}");
    let tx = a.port.tx(0)?;
    ensure!(a.port.tx(0).is_err_and(|e| e.to_string().contains("in use")) && a.port.tx(1).is_err());
    drop(tx);
    a.port.tx(0)?;
    Ok(())
}
