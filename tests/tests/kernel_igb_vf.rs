//! QEMU's 82576 with two virtual functions, all three of them driven by wholebar through the kernel's VFIO, and packets between them by the device's own
//! switch, in a guest. `cargo xtask vm test x86_64 kernel_igb_vf` runs them.
// guests: x86_64
// machine: --nic igb --bind all --append vfio_pci.enable_sriov=1

#[path = "intel/segments.rs"]
mod segments;

use anyhow::{Context, Result, bail, ensure};
use segments::Large;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::control_plane::DeviceEvent;
use wholebar::intel::igb::IgbPf;
use wholebar::intel::igbvf::Igbvf;
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::net::{self, Burst, Event, Mac, Offloads, Port, PortConfig, QueueState, RxQueue, TxQueue};
use wholebar::pci::Address;
use wholebar::vfio::{Vfio, VfioOptions};
use wholebar_tests::guest::{SOON, function, nics};
use wholebar_tests::intel::{number, numbered, patient};

const TOKEN: &str = "2ab74924-c335-45f4-9b16-8569e5b08258";

fn with_token() -> Result<VfioOptions> {
    Ok(VfioOptions { vf_token: Some(TOKEN.parse()?), ..VfioOptions::default() })
}

/// Two virtual functions, for as long as this is there.
struct Functions {
    physical: Address,
    addresses: Vec<Address>,
}

impl Functions {
    /// Made while `_physical` is open, which knows the token.
    fn make(_physical: &Vfio, address: Address) -> Result<Self> {
        let physical = function(address)?;
        physical.set_virtual_functions(2).context("making two virtual functions")?;
        let mut made = Self { physical: address, addresses: Vec::new() };
        for one in physical.virtual_functions() {
            let began = Instant::now();
            while one.driver().as_deref() != Some("vfio-pci") {
                ensure!(began.elapsed() < SOON, "{:?} has {}", one.driver(), one.address());
            }
            made.addresses.push(one.address());
        }
        Ok(made)
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        let file = format!("/sys/bus/pci/devices/{}/sriov_numvfs", self.physical);
        if let Err(error) = fs::write(file, "0") {
            eprintln!("the virtual functions stay: {error}");
        }
    }
}

/// A port of either kind, its queues, and memory for its packets.
struct Station {
    port: Box<dyn Port>,
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    pool: Pool,
}

impl Station {
    fn over(port: Box<dyn Port>) -> Result<Self> {
        let arena = Arena::new(4 << 20, ArenaOptions::default())?;
        port.attach(arena.clone())?;
        // None crosses a page: QEMU's device drops, without a word, what it is to send from a buffer that is in two pieces behind the IOMMU.
        let pool = Pool::new(arena, 900, 2048 + 128, 4096)?;
        let (rx, tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
        Ok(Self { port, rx, tx, pool })
    }

    fn virtual_function(address: Address, config: &PortConfig) -> Result<Self> {
        let port = Igbvf::open(Vfio::open(address, &with_token()?)?, config.clone(), patient())?;
        Self::over(Box::new(port))
    }

    fn mac(&self) -> Mac {
        self.port.mac()
    }

    fn frame(&self, to: Mac, number: u64, len: usize) -> Result<Buf> {
        let mut buf = self.pool.get().context("a buffer")?;
        numbered(&mut buf, to, self.mac(), number, len);
        Ok(buf)
    }

    fn send(&mut self, packet: Buf) -> Result<()> {
        let (began, mut burst) = (Instant::now(), Burst::new(1));
        burst.push(packet).ok().context("there is room")?;
        while self.tx.tx(&mut burst) == 0 {
            ensure!(began.elapsed() < SOON, "no room to send: {:?}", self.tx.state());
        }
        Ok(())
    }

    /// The next frame of another's that comes: QEMU gives a sender what it sends to all.
    fn receive(&mut self) -> Result<Buf> {
        let began = Instant::now();
        while began.elapsed() < SOON {
            if let Some(packet) = self.poll() {
                return Ok(packet);
            }
        }
        bail!("nothing came: {:?}", self.rx.state())
    }

    fn poll(&mut self) -> Option<Buf> {
        let mut burst = Burst::new(1);
        self.rx.rx(&mut burst);
        let own = self.mac();
        burst.pop().filter(|packet| packet.bytes()[6..12] != own.0)
    }

    fn silence(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(200) {
            if let Some(packet) = self.poll() {
                bail!("this came: {:02x?}", &packet.bytes()[..packet.bytes().len().min(64)]);
            }
        }
        Ok(())
    }

    fn wait_event(&self, what: &str, is: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + SOON;
        loop {
            let event = self.port.events().recv_deadline(deadline).with_context(|| format!("waiting for {what}"))?;
            if is(&event) {
                return Ok(event);
            }
        }
    }
}

/// Where the physical function's port is among all.
const PHYSICAL: usize = 2;

/// The ports of both virtual functions, and behind them the physical function's: it goes last, since they are served by it.
fn stations(physical: &PortConfig, virtual_ones: &PortConfig) -> Result<(Functions, Vec<Station>)> {
    let address = nics()?[0];
    let device = Vfio::open(address, &with_token()?)?;
    let functions = Functions::make(&device, address)?;
    // As a program opens it that chooses nothing: its driver sees that it has virtual functions.
    let port = net::open(device, physical)?;
    ensure!(
        port.limits().rx_queues == 1,
        "it has a queue of its own, and not those of virtual functions: {:?}",
        port.limits()
    );
    let physical = Station::over(port)?;
    let mut all = Vec::new();
    for address in &functions.addresses {
        all.push(Station::virtual_function(*address, virtual_ones)?);
    }
    all.push(physical);
    for station in &all {
        station.wait_event("the link to be up", |event| matches!(event, Event::Link(link) if link.up))?;
    }
    Ok((functions, all))
}

#[test]
#[ignore = "wants a guest"]
fn all_of_them_exchange_packets() -> Result<()> {
    let (_functions, mut all) = stations(&PortConfig::default(), &PortConfig::default())?;
    let macs: Vec<Mac> = all.iter().map(Station::mac).collect();
    ensure!(macs[0] != macs[1] && macs[1] != macs[2] && macs[0] != macs[2], "{macs:?}");
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        let third = 3 - from - to;
        for n in 0..300u64 {
            let len = 60 + (n * 37 % 1455) as usize;
            let frame = all[from].frame(macs[to], n, len)?;
            all[from].send(frame)?;
            let came = all[to].receive().with_context(|| format!("frame {n} from {from} to {to}"))?;
            ensure!(
                (number(came.bytes())?, came.bytes().len()) == (n, len),
                "{from} to {to}: {:02x?}",
                &came.bytes()[..22]
            );
        }
        all[third].silence().with_context(|| format!("{third}, of what was from {from} to {to}"))?;
    }
    // To all.
    let frame = all[0].frame(Mac([0xff; 6]), 7, 100)?;
    all[0].send(frame)?;
    for other in [1, PHYSICAL] {
        let came = all[other].receive()?;
        ensure!(number(came.bytes())? == 7);
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn what_virtual_functions_ask_for_is_granted_or_denied() -> Result<()> {
    let filter = Offloads { vlan_filter: true, vlan_strip: true, vlan_insert: true, ..Offloads::NONE };
    let config = |mtu| PortConfig { offloads: filter, mtu: Some(mtu), ..PortConfig::default() };
    let (_functions, mut all) = stations(&config(1500), &config(1900))?;
    let macs: Vec<Mac> = all.iter().map(Station::mac).collect();
    let tell =
        |all: &mut [Station], (from, to): (usize, usize), mac: Mac, vlan: Option<u16>, comes: bool| -> Result<()> {
            let mut frame = all[from].frame(mac, 1, 100)?;
            frame.set_vlan(vlan);
            all[from].send(frame)?;
            if comes { all[to].receive().map(drop) } else { all[to].silence() }
        };
    // Addresses: another of its own, but nobody else's.
    let other = Mac([2, 0, 0, 0, 7, 7]);
    all[0].port.set_mac(other)?;
    tell(&mut all, (PHYSICAL, 0), other, None, true).context("its new address")?;
    tell(&mut all, (PHYSICAL, 0), macs[0], None, false).context("its old address")?;
    for taken in [macs[1], macs[PHYSICAL]] {
        let error = all[0].port.set_mac(taken).err().context("somebody has it")?.to_string();
        ensure!(error.contains("denied"), "{error}");
    }
    ensure!(all[0].mac() == other, "what was denied is not set: {}", all[0].mac());
    // Groups.
    let group = Mac([1, 0, 0x5e, 0, 0x34, 0x12]);
    tell(&mut all, (PHYSICAL, 1), group, None, false).context("a group that it is not in")?;
    all[1].port.set_filters(&[group])?;
    tell(&mut all, (PHYSICAL, 1), group, None, true).context("its group")?;
    tell(&mut all, (PHYSICAL, 0), group, None, false).context("another's group")?;
    ensure!(all[1].port.set_filters(&[other]).is_err() && all[1].port.set_promiscuous(true).is_err());
    // What came for the other one by now.
    while all[1].poll().is_some() {}
    // VLANs.
    tell(&mut all, (PHYSICAL, 0), other, Some(100), false).context("a VLAN that it is not in")?;
    all[0].port.set_vlan(100, true)?;
    tell(&mut all, (PHYSICAL, 0), other, Some(100), true).context("its VLAN")?;
    tell(&mut all, (PHYSICAL, 1), macs[1], Some(100), false).context("another's VLAN")?;
    all[0].port.set_vlan(100, false)?;
    tell(&mut all, (PHYSICAL, 0), other, Some(100), false).context("a VLAN that it has left")?;
    // Frames of other lengths: both virtual functions may have 1900 bytes, and the physical one may not.
    for (from, to, comes) in [(0, 1, true), (0, PHYSICAL, false)] {
        let frame = all[from].frame(macs[to], 9, 1900)?;
        all[from].send(frame)?;
        match comes {
            true => ensure!(all[to].receive()?.bytes().len() == 1900),
            false => all[to].silence().context("a frame that is too long")?,
        }
    }
    Ok(())
}

/// Each of the three cuts packets for each other one.
#[test]
#[ignore = "wants a guest"]
fn large_packets_are_cut_into_segments() -> Result<()> {
    let offloads = Offloads { tso: true, gather: true, rx_checksum: true, ..Offloads::NONE };
    let config = PortConfig { offloads, ..PortConfig::default() };
    let (_functions, mut all) = stations(&config, &config)?;
    ensure!(all.iter().all(|station| station.port.granted().tso));
    let payload: Vec<u8> = (0..30_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    for (from, to) in [(0, 1), (0, PHYSICAL), (PHYSICAL, 1)] {
        for ipv6 in [false, true] {
            for (segment, len) in [(1440, payload.len()), (536, 5000), (1440, 100)] {
                let (sender, receiver) = (all[from].mac(), all[to].mac());
                let large = Large { from: sender, to: receiver, ipv6, segment, payload: &payload[..len] };
                let packet = large.packet(&all[from].pool)?;
                all[from].send(packet)?;
                large.came(|| all[to].receive()).with_context(|| format!("from {from} to {to}"))?;
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn a_reset_of_the_physical_function_is_an_event_of_the_virtual_ones() -> Result<()> {
    let (_functions, mut all) = stations(&PortConfig::default(), &PortConfig::default())?;
    let physical = all.pop().context("three")?;
    let (two, mut one) = (all.pop().context("three")?, all.pop().context("three")?);
    // Its queues are gone: nobody polls them while it is reset.
    let Station { port: physical, rx, tx, .. } = physical;
    drop((rx, tx));
    let stop = Arc::new(AtomicBool::new(false));
    let (to, flag) = (two.mac(), stop.clone());
    // Traffic from one to the other, on a thread of its own; what came.
    let traffic = std::thread::spawn(move || -> Result<(Station, Station, u64)> {
        let (mut two, mut sent, mut came) = (two, 0, 0);
        while !flag.load(Ordering::Relaxed) {
            let mut burst = Burst::new(1);
            if let Some(mut buf) = one.pool.get() {
                numbered(&mut buf, to, one.mac(), sent, 200);
                burst.push(buf).ok().context("there is room")?;
                sent += one.tx.tx(&mut burst) as u64;
            }
            // Whose owner does not poll it is lost in a reset: the one that sends, too, where all buffers are under way.
            one.tx.reclaim();
            one.poll();
            two.tx.reclaim();
            while let Some(packet) = two.poll() {
                number(packet.bytes())?;
                came += 1;
            }
            for state in [one.rx.state(), one.tx.state(), two.rx.state(), two.tx.state()] {
                ensure!(matches!(state, QueueState::Running | QueueState::Resetting), "{state:?}");
            }
        }
        Ok((one, two, came))
    });
    std::thread::sleep(Duration::from_millis(300));
    physical.reset()?;
    // Long enough for both to notice, which they do at a fifth of a second's intervals, and to go on.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) && !traffic.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, Ordering::Relaxed);
    let (mut one, mut two, came) = traffic.join().map_err(|_| anyhow::anyhow!("the traffic's thread panicked"))??;
    ensure!(came > 0, "nothing came at all");
    for station in [&one, &two] {
        let event =
            station.wait_event("the reset", |event| matches!(event, Event::Device(DeviceEvent::Reset { .. })))?;
        let Event::Device(DeviceEvent::Reset { why, lost }) = event else { bail!("{event:?}") };
        ensure!(why.contains("physical function was reset") && lost.is_empty(), "{why}, {lost:?}");
    }
    // What was under way has ended; then there is traffic as before.
    while two.poll().is_some() {}
    let mark = 1 << 40;
    for n in mark..mark + 100 {
        let frame = one.frame(two.mac(), n, 100)?;
        one.send(frame)?;
        while number(two.receive()?.bytes())? != n {}
    }
    Ok(())
}

#[test]
#[ignore = "wants a guest"]
fn who_is_not_served_is_told() -> Result<()> {
    let address = nics()?[0];
    let device = Vfio::open(address, &with_token()?)?;
    let functions = Functions::make(&device, address)?;
    // Nobody drives the physical function.
    let open = || -> Result<_> {
        let device = Vfio::open(functions.addresses[0], &with_token()?)?;
        Ok(Igbvf::open(device, PortConfig::default(), patient()))
    };
    let error = open()?.err().context("it is not served")?.to_string();
    ensure!(error.contains("physical function"), "{error}");
    let physical = IgbPf::open(device, PortConfig::default(), patient())?;
    let served = open()??;
    ensure!(served.mac() != physical.mac());
    Ok(())
}
