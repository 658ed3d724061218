//! Two of Intel's devices of one family on one wire through the kernel's VFIO, in a guest: the same for each family. QEMU's devices were written by nobody
//! here.

/// All of these over a family, a test each.
macro_rules! tests {
    ($family:ty) => {
        $crate::intel::tests! { $family:
            both_directions_in_order_and_counted
            its_table_is_in_bar3_and_its_registers_are_direct_under_every_plan
            flows_are_spread_over_two_queues_by_their_hash
            vlan_tags_are_put_in_taken_off_and_filtered
            checksums_are_filled_in_and_checked
            jumbo_frames_come_in_parts
            frames_for_others_are_not_received_unless_asked_for
            large_packets_are_cut_into_segments
            resets_under_traffic
            an_idle_core_is_woken
            the_link_goes_and_comes_back_by_interrupt
            what_cannot_be_had_is_refused
        }
    };
    ($family:ty: $($name:ident)*) => {
        $(
            #[test]
            #[ignore = "wants a guest"]
            fn $name() -> anyhow::Result<()> {
                $crate::intel::$name::<$family>()
            }
        )*
    };
}
pub(crate) use tests;

mod segments;

use anyhow::{Context, Result, ensure};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use segments::Large;
use std::fs;
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::{Access, BarOptions, MapPolicy, plan_of};
use wholebar::control_plane::DeviceEvent;
use wholebar::intel::{Controller, Options, Service};
use wholebar::mem::{Buf, Checked, L4, Offload};
use wholebar::net::{Burst, Event, Mac, Offloads, Port, PortConfig, Rss};
use wholebar::reactor::Armed;
use wholebar_tests::guest::SOON;
use wholebar_tests::intel::{
    BUFFERS, CHAFF, Station, family, number as number_of, numbered, pair, patient, receive, send, silence, stream,
};

fn offloads(offloads: Offloads) -> PortConfig {
    PortConfig { offloads, ..PortConfig::default() }
}

/// Lengths of all kinds that an Ethernet frame has.
fn len(number: u64) -> usize {
    60 + (number * 37 % 1455) as usize
}

pub fn both_directions_in_order_and_counted<F: Controller>() -> Result<()> {
    for policy in [MapPolicy::Auto, MapPolicy::Carved, MapPolicy::Trapped] {
        let count = if policy == MapPolicy::Trapped { 300 } else { 3000 };
        let page = (policy == MapPolicy::Carved).then(|| PageSize::K64.max(PageSize::host()));
        let options = Options { policy, page, ..patient() };
        let (a, b) = pair::<F>(PortConfig::default(), PortConfig::default(), &options)?;
        {
            let ((mut rx_a, mut tx_a), (mut rx_b, mut tx_b)) = (a.queues()?, b.queues()?);
            stream((&a, &mut tx_a), (&b, &mut rx_b), 0..count, len)?;
            stream((&b, &mut tx_b), (&a, &mut rx_a), 0..count, len)?;
            let rung = tx_a.doorbells();
            let trapped = policy == MapPolicy::Trapped;
            ensure!((rung.trapped > 0) == trapped && (rung.direct > 0) != trapped, "{policy:?}: {rung:?}");
        }
        let bytes: u64 = (0..count).map(|n| len(n) as u64).sum();
        for (from, to) in [(&a, &b), (&b, &a)] {
            let sent = [from.statistic("tx0", "packets"), from.statistic("", "tx_packets")];
            let came = [to.statistic("rx0", "packets"), to.statistic("", "rx_packets")];
            ensure!((sent, came) == ([count; 2], [count; 2]), "{policy:?}: {sent:?} sent, {came:?} came");
            // The device counts the frame's checksum too.
            let counted = [from.statistic("", "tx_bytes"), to.statistic("", "rx_bytes")];
            ensure!(counted == [bytes + 4 * count; 2], "{policy:?}: {counted:?} of {bytes} bytes");
            ensure!([from.statistic("tx0", "bytes"), to.statistic("rx0", "bytes")] == [bytes; 2]);
            ensure!(to.nic.statistics().iter().all(|s| !s.name.starts_with("dropped") || s.value == 0));
            ensure!((from.pool.available(), from.nic.quarantined()) == (BUFFERS, 0), "buffers were lost");
        }
    }
    Ok(())
}

pub fn its_table_is_in_bar3_and_its_registers_are_direct_under_every_plan<F: Controller>() -> Result<()> {
    let a = Station::<F>::open(0, PortConfig::default(), patient())?;
    for policy in [MapPolicy::Auto, MapPolicy::Whole, MapPolicy::Carved] {
        let registers = plan_of(a.nic.device().as_ref(), 0, BarOptions { policy, ..BarOptions::default() })?;
        ensure!(registers.spans.iter().all(|span| span.access == Access::Direct), "{registers:?}");
        ensure!(
            plan_of(a.nic.device().as_ref(), 3, BarOptions { policy, ..BarOptions::default() })?.layout.table.is_some()
        );
    }
    Ok(())
}

/// A UDP or TCP packet in a buffer.
fn packet<F: Controller>(station: &Station<F>, to: Mac, l4: L4, ports: (u16, u16), payload: &[u8]) -> Result<Buf> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(station.nic.mac().0, to.0).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    match l4 {
        L4::Udp => builder.udp(ports.0, ports.1).write(&mut bytes, payload)?,
        L4::Tcp => builder.tcp(ports.0, ports.1, 7, 1000).write(&mut bytes, payload)?,
    }
    let mut buf = station.pool.get().context("a buffer")?;
    buf.copy_from(&bytes);
    Ok(buf)
}

pub fn flows_are_spread_over_two_queues_by_their_hash<F: Controller>() -> Result<()> {
    let wanted = Offloads { rss_hash: true, ..Offloads::NONE };
    let two = PortConfig { rx_queues: 2, ..offloads(wanted) };
    let (a, b) = pair::<F>(PortConfig::default(), two, &patient())?;
    let (mut queues, mut tx) = ([b.nic.rx(0, &b.pool)?, b.nic.rx(1, &b.pool)?], a.nic.tx(0)?);
    let hashes_udp = F::NAME == "igb";
    // Evenly, and then all of it to the second.
    for rss in [Rss::evenly(2, 128), Rss { table: vec![1], ..Rss::evenly(2, 1) }] {
        b.nic.set_rss(&rss).map_err(anyhow::Error::msg)?;
        let mut came = [0, 0];
        for port in 0..64u16 {
            let l4 = if port % 4 == 0 { L4::Udp } else { L4::Tcp };
            send(&mut tx, [packet(&a, b.nic.mac(), l4, (1000 + port, 2000), &[7; 32])?])?;
            let mut input = vec![10, 0, 0, 1, 10, 0, 0, 2];
            if l4 == L4::Tcp || hashes_udp {
                input.extend([(1000 + port).to_be_bytes(), 2000u16.to_be_bytes()].concat());
            }
            let hash = rss.hash(&input);
            let queue = usize::from(rss.table[hash as usize % rss.table.len()]);
            let packet = receive(&mut queues[queue]).with_context(|| format!("from port {}", 1000 + port))?;
            ensure!(packet.hash() == Some(hash), "{:x?} instead of {hash:x}", packet.hash());
            came[queue] += 1;
        }
        ensure!(if rss.table.len() == 1 { came == [0, 64] } else { came[0] > 8 && came[1] > 8 }, "{came:?}");
    }
    Ok(())
}

pub fn vlan_tags_are_put_in_taken_off_and_filtered<F: Controller>() -> Result<()> {
    // The 82574 does not do one without the other.
    let insert = Offloads { vlan_insert: true, vlan_strip: true, ..Offloads::NONE };
    let strip = Offloads { vlan_strip: true, vlan_filter: true, ..Offloads::NONE };
    for stripped in [true, false] {
        let b = if stripped { strip } else { Offloads { vlan_strip: false, ..strip } };
        let (a, b) = pair::<F>(offloads(insert), offloads(b), &patient())?;
        let ((mut tx, mut rx), to) = ((a.nic.tx(0)?, b.nic.rx(0, &b.pool)?), b.nic.mac());
        let tagged = |number, tag| {
            let mut buf = a.pool.get().context("a buffer")?;
            numbered(&mut buf, to, a.nic.mac(), number, 100);
            buf.set_vlan(tag);
            anyhow::Ok(buf)
        };
        b.nic.set_vlan(100, true).map_err(anyhow::Error::msg)?;
        // Priority 3, VLAN 100; one that nobody asked for; none; the tag again, from the context that the device has.
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
        b.nic.set_vlan(100, false).map_err(anyhow::Error::msg)?;
        send(&mut tx, [tagged(4, Some(100))?])?;
        silence(&mut rx)?;
        // Who listens to all hears all.
        b.nic.set_promiscuous(true).map_err(anyhow::Error::msg)?;
        send(&mut tx, [tagged(5, Some(200))?])?;
        receive(&mut rx)?;
    }
    Ok(())
}

pub fn checksums_are_filled_in_and_checked<F: Controller>() -> Result<()> {
    let fill = Offloads { tx_l3_checksum: true, tx_l4_checksum: true, ..Offloads::NONE };
    let check = Offloads { rx_checksum: true, ..Offloads::NONE };
    let (a, b) = pair::<F>(offloads(fill), offloads(check), &patient())?;
    let ((mut tx, mut rx), to) = ((a.nic.tx(0)?, b.nic.rx(0, &b.pool)?), b.nic.mac());
    for l4 in [L4::Udp, L4::Tcp] {
        for ipv6 in [false, true] {
            let (mut bytes, payload) = (Vec::new(), [0x5a; 333]);
            let builder = PacketBuilder::ethernet2(a.nic.mac().0, to.0);
            let builder = match ipv6 {
                false => builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
                true => builder.ipv6([0xfd; 16], [0xfc; 16], 64),
            };
            match l4 {
                L4::Udp => builder.udp(1111, 2222).write(&mut bytes, &payload)?,
                L4::Tcp => builder.tcp(1111, 2222, 99, 1000).write(&mut bytes, &payload)?,
            }
            let right = bytes.clone();
            let l3_len: u16 = if ipv6 { 40 } else { 20 };
            let sum = 14 + usize::from(l3_len) + if l4 == L4::Tcp { 16 } else { 6 };
            if !ipv6 {
                bytes[24..26].fill(0);
            }
            // The sum of the pseudo header: addresses, length, protocol.
            let l4_len = (bytes.len() - 14 - usize::from(l3_len)) as u32;
            let addresses = if ipv6 { &bytes[22..54] } else { &bytes[26..34] };
            let words = addresses.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w)));
            let total: u32 = words.sum::<u32>() + l4_len + if l4 == L4::Tcp { 6 } else { 17 };
            let folded = (total & 0xffff) + (total >> 16);
            bytes[sum..sum + 2].copy_from_slice(&((folded & 0xffff) as u16 + (folded >> 16) as u16).to_be_bytes());
            let offload = Offload { l2_len: 14, l3_len, ipv6, l3: !ipv6, l4: Some(l4), ..Offload::default() };
            for filled in [true, false] {
                let mut buf = a.pool.get().context("a buffer")?;
                buf.copy_from(&bytes);
                buf.set_offload(filled.then_some(offload));
                send(&mut tx, [buf])?;
                let packet = receive(&mut rx)?;
                let what = format!("{l4:?} over IPv{}, filled: {filled}", if ipv6 { 6 } else { 4 });
                let verdict = if filled { Checked::Good } else { Checked::Bad };
                let l3 = if ipv6 { Checked::Unknown } else { verdict };
                ensure!(packet.checked() == (l3, verdict), "{what}: {:?}", packet.checked());
                ensure!((packet.bytes() == right) == filled, "{what}");
                let parsed = SlicedPacket::from_ethernet(packet.bytes())?;
                ensure!(matches!(parsed.transport, Some(TransportSlice::Udp(_) | TransportSlice::Tcp(_))), "{what}");
            }
        }
    }
    let mut buf = packet(&a, to, L4::Tcp, (1, 2), &[1; 64])?;
    buf.set_offload(Some(Offload { l2_len: 14, l3_len: 20, l4_len: 20, segment: 60, ..Offload::default() }));
    send(&mut tx, [buf])?;
    silence(&mut rx)?;
    ensure!(a.statistic("tx0", "dropped_offload") == 1, "segmentation was not asked for");
    Ok(())
}

pub fn jumbo_frames_come_in_parts<F: Controller>() -> Result<()> {
    let wanted = Offloads { scatter: true, gather: true, ..Offloads::NONE };
    let jumbo = PortConfig { mtu: Some(9000), ..offloads(wanted) };
    let (a, b) = pair::<F>(jumbo.clone(), jumbo, &patient())?;
    let ((mut tx, mut rx), to) = ((a.nic.tx(0)?, b.nic.rx(0, &b.pool)?), b.nic.mac());
    let whole = |number, len| {
        let big = wholebar::mem::Pool::new(a.pool.arena().clone(), 1, 16384, 64)?;
        let mut buf = big.get().context("a buffer")?;
        numbered(&mut buf, to, a.nic.mac(), number, len);
        let bytes = buf.bytes().to_vec();
        drop(buf);
        anyhow::Ok(bytes)
    };
    for (number, len) in [60, 1514, 2048, 2049, 4096, 9013, 9014, 9018].into_iter().enumerate() {
        let bytes = whole(number as u64, len)?;
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
    drop((rx, tx));
    ensure!((a.pool.available(), b.pool.available()) == (BUFFERS, BUFFERS), "buffers were lost");
    Ok(())
}

pub fn frames_for_others_are_not_received_unless_asked_for<F: Controller>() -> Result<()> {
    let (a, b) = pair::<F>(PortConfig::default(), PortConfig::default(), &patient())?;
    let (mut tx, mut rx) = (a.nic.tx(0)?, b.nic.rx(0, &b.pool)?);
    let mut next = 0;
    let mut hears = |to: Mac, comes: bool| {
        let mut buf = a.pool.get().context("a buffer")?;
        next += 1;
        numbered(&mut buf, to, a.nic.mac(), next, 60);
        send(&mut tx, [buf])?;
        if !comes {
            return silence(&mut rx).with_context(|| format!("for {to}"));
        }
        let packet = receive(&mut rx).with_context(|| format!("for {to}"))?;
        ensure!(number_of(packet.bytes())? == next, "for {to}");
        Ok(())
    };
    let own = b.nic.mac();
    let (other, group, second) =
        (Mac([2, 0, 0, 0, 0, 9]), Mac([1, 0, 0x5e, 0, 0, 0xfb]), Mac([1, 0, 0x5e, 0, 0x34, 0x12]));
    let failed = anyhow::Error::msg;
    hears(own, true)?;
    hears(Mac::BROADCAST, true)?;
    hears(other, false)?;
    hears(group, false)?;
    b.nic.set_filters(&[other, group]).map_err(failed)?;
    hears(other, true)?;
    hears(group, true)?;
    hears(second, false)?;
    // More groups than are compared exactly: the last ones go by their hash.
    let many: Vec<_> = (0..30).map(|i| Mac([1, 0, 0x5e, 1, 1, i])).chain([second]).collect();
    b.nic.set_filters(&many).map_err(failed)?;
    hears(second, true)?;
    hears(many[3], true)?;
    hears(other, false)?;
    b.nic.set_filters(&[]).map_err(failed)?;
    hears(second, false)?;
    b.nic.set_all_multicast(true).map_err(failed)?;
    hears(group, true)?;
    hears(other, false)?;
    b.nic.set_all_multicast(false).map_err(failed)?;
    b.nic.set_promiscuous(true).map_err(failed)?;
    hears(other, true)?;
    hears(group, true)?;
    b.nic.set_promiscuous(false).map_err(failed)?;
    b.nic.set_mac(other).map_err(failed)?;
    hears(own, false)?;
    hears(other, true)?;
    ensure!(b.nic.set_mac(group).is_err() && b.nic.set_filters(&[Mac::default()]).is_err());
    Ok(())
}

/// One packet of 30 KiB goes out, and segments of it come in: each with its own headers and checksums, which the other end finds right.
pub fn large_packets_are_cut_into_segments<F: Controller>() -> Result<()> {
    let cut = Offloads { tso: true, gather: true, ..Offloads::NONE };
    let check = Offloads { rx_checksum: true, ..Offloads::NONE };
    let (a, b) = pair::<F>(offloads(cut), offloads(check), &patient())?;
    let ((mut tx, mut rx), to) = ((a.nic.tx(0)?, b.nic.rx(0, &b.pool)?), b.nic.mac());
    ensure!(a.nic.granted().tso);
    let payload: Vec<u8> = (0..30_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    for ipv6 in [false, true] {
        for (segment, len) in [(1440, payload.len()), (536, 5000), (1440, 100), (1000, 1000)] {
            let large = Large { from: a.nic.mac(), to, ipv6, segment, payload: &payload[..len] };
            send(&mut tx, [large.packet(&a.pool)?])?;
            large.came(|| receive(&mut rx))?;
        }
    }
    silence(&mut rx)?;
    ensure!(a.statistic("tx0", "packets") == 8 && a.statistic("tx0", "dropped_offload") == 0);
    drop((rx, tx));
    ensure!((a.pool.available(), b.pool.available()) == (BUFFERS, BUFFERS), "buffers were lost");
    Ok(())
}

/// Traffic goes on, lossy while it lasts; afterwards everything works as before, and no buffer is missing.
pub fn resets_under_traffic<F: Controller>() -> Result<()> {
    let wanted = Offloads { vlan_strip: true, vlan_insert: true, ..Offloads::NONE };
    let (a, b) = pair::<F>(offloads(wanted), offloads(wanted), &patient())?;
    let own = Mac([2, 0, 0, 0, 0, 0xb]);
    b.nic.set_mac(own).map_err(anyhow::Error::msg)?;
    let ((mut rx_a, mut tx), (mut rx, mut tx_b)) = (a.queues()?, b.queues()?);
    for round in 0..3 {
        stream((&a, &mut tx), (&b, &mut rx), 0..200, len)?;
        let reset = [&b, &a][round % 2];
        reset.nic.request_reset();
        let (mut out, mut came, began, mut done) = (Burst::new(8), Burst::new(8), Instant::now(), [false; 2]);
        while done != [true; 2] {
            for _ in 0..out.room() {
                let Some(mut buf) = a.pool.get() else { break };
                numbered(&mut buf, own, a.nic.mac(), CHAFF, 60);
                let _ = out.push(buf);
            }
            tx.tx(&mut out);
            rx.rx(&mut came);
            // Those that have nothing to do have to be polled too.
            rx_a.rx(&mut came);
            tx_b.reclaim();
            came.give_back();
            for event in reset.nic.events().try_iter() {
                match event {
                    Event::Device(DeviceEvent::Reset { lost, .. }) => {
                        ensure!(lost.is_empty(), "queues {lost:?} were lost");
                        done[0] = true;
                    }
                    Event::Link(link) => done[1] = done[0] && link.up,
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
    stream((&a, &mut tx), (&b, &mut rx), 0..200, len)?;
    drop((rx, tx, rx_a, tx_b));
    ensure!((a.pool.available(), b.pool.available()) == (BUFFERS, BUFFERS), "buffers were lost");
    ensure!(a.nic.quarantined() + b.nic.quarantined() == 0);
    Ok(())
}

/// Each frame must wake the sleeper, or be found by the look before: a lost wake-up is a frame that does not come.
pub fn an_idle_core_is_woken<F: Controller>() -> Result<()> {
    let sleeper = PortConfig { rx_interrupts: true, ..PortConfig::default() };
    let (a, b) = pair::<F>(PortConfig::default(), sleeper, &patient())?;
    let (mut tx, mut rx) = (a.nic.tx(0)?, b.nic.rx(0, &b.pool)?);
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
        numbered(&mut buf, b.nic.mac(), a.nic.mac(), number, 60);
        send(&mut tx, [buf])?;
        ensure!(wakeup.wait(Some(SOON))?.is_some(), "frame {number} woke nobody");
        rx.disarm();
        ensure!(rx.rx(&mut burst) == 1, "frame {number} is not there");
        burst.give_back();
    }
    // QEMU's e1000e sends each message once more when the time has passed in which it sends no other.
    ensure!(slept > 40 || F::NAME == "e1000e", "it was woken for nothing: it slept {slept} times of 50");
    Ok(())
}

/// The wire is unplugged, and plugged in again: by interrupt, before anybody looks.
pub fn the_link_goes_and_comes_back_by_interrupt<F: Controller>() -> Result<()> {
    let name = family::<F>()?.swap_remove(0).1;
    let manual = Options { service: Service::Manual, ..patient() };
    let a = Station::<F>::open(0, PortConfig::default(), manual)?;
    let until = |up: bool| {
        let began = Instant::now();
        loop {
            let woken = a.nic.wakeup().wait(Some(SOON))?;
            ensure!(woken.is_some(), "no interrupt came for link {up}; it is {}", a.nic.link());
            a.nic.service()?;
            if a.nic.events().try_iter().any(|event| matches!(event, Event::Link(link) if link.up == up)) {
                return Ok(());
            }
            ensure!(began.elapsed() < SOON, "interrupts, but no change: {}", a.nic.link());
        }
    };
    until(true)?;
    ensure!(a.nic.link().to_string() == "up, 1000 Mb/s, full duplex", "{}", a.nic.link());
    for _ in 0..3 {
        fs::write("/dev/monitor", format!("set_link {name} off\n"))?;
        until(false)?;
        ensure!(!a.nic.link().up);
        fs::write("/dev/monitor", format!("set_link {name} on\n"))?;
        until(true)?;
    }
    Ok(())
}

pub fn what_cannot_be_had_is_refused<F: Controller>() -> Result<()> {
    let plain = PortConfig::default;
    for (config, why) in [
        (PortConfig { rx_queues: F::LIMITS.rx_queues + 1, ..plain() }, "queues that receive"),
        (PortConfig { tx_queues: 0, ..plain() }, "0 queues that send"),
        (PortConfig { rx_descriptors: Some(100), ..plain() }, "100 descriptors"),
        (PortConfig { tx_descriptors: Some(8192), ..plain() }, "8192 descriptors"),
        (PortConfig { mtu: Some(F::LIMITS.mtu + 1), ..plain() }, &format!("from 68 to {} bytes", F::LIMITS.mtu)),
        (PortConfig { rss: Some(Rss { table: vec![0, 1], ..Rss::evenly(2, 2) }), ..plain() }, "queue 1 of 1"),
    ] {
        let error = Station::<F>::open(0, config, patient()).err().context("it was not refused")?;
        ensure!(error.to_string().contains(why), "{error}");
    }
    let a = Station::<F>::open(0, PortConfig { mtu: Some(9000), ..plain() }, patient())?;
    let error = a.nic.rx(0, &a.pool).err().context("buffers are too small")?;
    ensure!(error.to_string().contains("9344") && error.to_string().contains("scattering"), "{error}");
    let tx = a.nic.tx(0)?;
    ensure!(a.nic.tx(0).is_err_and(|e| e.to_string().contains("in use")) && a.nic.tx(1).is_err());
    drop(tx);
    a.nic.tx(0)?;
    Ok(())
}
