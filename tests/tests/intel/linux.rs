//! One of Intel's devices by wholebar, and another of the family by Linux's own driver at the other end of the wire, in a guest.

use anyhow::{Context, Result, ensure};
use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use std::process::Command;
use std::time::Instant;
use wholebar::intel::{Controller, Rx, Tx};
use wholebar::mem::{Buf, Checked};
use wholebar::net::{Burst, Mac, Offloads, Port, PortConfig};
use wholebar::pci::Address;
use wholebar_tests::guest::{SOON, function};
use wholebar_tests::intel::{BUFFERS, Station, family, patient};

const LINUX: [u8; 4] = [10, 77, 0, 1];
const OURS: [u8; 4] = [10, 77, 0, 2];

/// The second device, which Linux's driver has while this is there.
struct Interface {
    name: String,
    device: Address,
}

impl Interface {
    fn take<F: Controller>() -> Result<Self> {
        let device = function(family::<F>()?.get(1).context("the guest has too few of these devices")?.0)?;
        run("modprobe", &[F::NAME])?;
        device.bind(F::NAME)?;
        let name = device.interfaces().into_iter().next().context("it has no interface")?;
        run("ip", &["link", "set", &name, "mtu", "9000", "up"])?;
        run("ip", &["address", "add", "10.77.0.1/24", "dev", &name])?;
        Ok(Self { name, device: device.address() })
    }

    fn mac(&self) -> Result<Mac> {
        Ok(std::fs::read_to_string(format!("/sys/class/net/{}/address", self.name))?.trim().parse()?)
    }

    /// Waits until it has a carrier.
    fn ready(&self) -> Result<()> {
        let began = Instant::now();
        while std::fs::read_to_string(format!("/sys/class/net/{}/carrier", self.name)).unwrap_or_default().trim() != "1"
        {
            ensure!(began.elapsed() < SOON, "{} has no carrier", self.name);
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let back = function(self.device).and_then(|device| Ok(device.bind("vfio-pci")?));
        if let Err(error) = back {
            eprintln!("the device is not VFIO's again: {error:#}");
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| format!("running {program}"))?;
    ensure!(status.success(), "{program} {arguments:?}: {status}");
    Ok(())
}

/// Answers ARP requests and echo requests, in place; whether the packet is an answer now.
fn answer(packet: &mut Buf, mac: Mac) -> bool {
    let bytes = packet.bytes_mut();
    if bytes.len() < 42 {
        return false;
    }
    let is_arp = bytes[12..14] == [8, 6] && bytes[20..22] == [0, 1] && bytes[38..42] == OURS;
    let is_echo = bytes[12..15] == [8, 0, 0x45] && bytes[23] == 1 && bytes[34] == 8 && bytes[30..34] == OURS;
    if is_arp {
        bytes[21] = 2;
        // Who asked is who is told.
        bytes.copy_within(22..32, 32);
        bytes[22..28].copy_from_slice(&mac.0);
        bytes[28..32].copy_from_slice(&OURS);
    } else if is_echo {
        bytes[26..34].rotate_left(4);
        bytes[34] = 0;
        // The checksum changes by what the type did (RFC 1624).
        let sum = u32::from(u16::from_be_bytes([bytes[36], bytes[37]])) + 0x0800;
        bytes[36..38].copy_from_slice(&((sum + (sum >> 16)) as u16).to_be_bytes());
    } else {
        return false;
    }
    bytes[..12].rotate_left(6);
    bytes[6..12].copy_from_slice(&mac.0);
    true
}

/// Answers until the command has ended.
fn answer_while<F: Controller>(
    mut command: Command,
    station: &Station<F>,
    rx: &mut Rx<F>,
    tx: &mut Tx<F>,
) -> Result<bool> {
    let (mut child, mut burst, mac) = (command.spawn()?, Burst::new(32), station.nic.mac());
    loop {
        rx.rx(&mut burst);
        ensure!(burst.iter().all(|packet| packet.checked().0 != Checked::Bad && packet.checked().1 != Checked::Bad));
        burst.retain(|packet| answer(packet, mac));
        tx.tx(&mut burst);
        burst.give_back();
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
    }
}

fn ping(size: &str) -> Command {
    let mut ping = Command::new("ping");
    ping.args(["-q", "-c", "3", "-W", "60", "-s", size, "10.77.0.2"]);
    ping
}

pub fn is_answered_and_answers<F: Controller>() -> Result<()> {
    let interface = Interface::take::<F>()?;
    let offloads = Offloads { rx_checksum: true, scatter: true, gather: true, ..Offloads::NONE };
    let config = PortConfig { mtu: Some(9000), offloads, ..PortConfig::default() };
    let station = Station::<F>::open(0, config, patient())?;
    station.wait_link(true)?;
    let (mut rx, mut tx) = station.queues()?;
    interface.ready()?;
    for size in ["56", "1472", "8000"] {
        ensure!(answer_while(ping(size), &station, &mut rx, &mut tx)?, "ping of {size} bytes");
    }
    // Down and up again: what Linux does to its end is nothing to ours but silence.
    run("ip", &["link", "set", &interface.name, "down"])?;
    run("ip", &["link", "set", &interface.name, "up"])?;
    interface.ready()?;
    ensure!(answer_while(ping("56"), &station, &mut rx, &mut tx)?, "ping after the interface was down");

    // The other way round.
    let (payload, mut bytes) = ([0xa5; 1000], Vec::new());
    let builder = PacketBuilder::ethernet2(station.nic.mac().0, interface.mac()?.0).ipv4(OURS, LINUX, 64);
    builder.icmpv4_echo_request(7, 9).write(&mut bytes, &payload)?;
    let mut request = station.pool.get().context("a buffer")?;
    request.copy_from(&bytes);
    let (mut burst, began, mut answered) = (Burst::new(32), Instant::now(), false);
    let _ = burst.push(request);
    ensure!(tx.tx(&mut burst) == 1);
    while !answered {
        ensure!(began.elapsed() < SOON, "Linux did not answer");
        rx.rx(&mut burst);
        for packet in burst.iter() {
            let parsed = SlicedPacket::from_ethernet(packet.bytes())?;
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) = (parsed.net, parsed.transport) else {
                continue;
            };
            if let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() {
                ensure!((ip.header().source(), echo.id, echo.seq) == (LINUX, 7, 9) && icmp.payload() == payload);
                answered = true;
            }
        }
        // It may ask for our address first.
        burst.retain(|packet| answer(packet, station.nic.mac()));
        tx.tx(&mut burst);
        burst.give_back();
    }
    drop((rx, tx));
    ensure!((station.pool.available(), station.nic.quarantined()) == (BUFFERS, 0), "buffers were lost");
    Ok(())
}
