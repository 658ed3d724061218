//! Intel's devices of a guest, by the driver: stations on one wire, and numbered frames between them.

use crate::guest::{SOON, nics_that};
use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;
use std::time::{Duration, Instant};
use wholebar::intel::{Controller, Nic, Options, Rx, Tx};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::net::{Burst, Event, Mac, Port, PortConfig};
use wholebar::pci::Address;
use wholebar::vfio::{Vfio, VfioOptions};

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    Options { stop_timeout: SOON, ..Options::default() }
}

/// Buffers of a station.
pub const BUFFERS: u32 = 3000;
/// For experiments (IEEE 802), so that nobody else answers.
const TYPE: [u8; 2] = [0x88, 0xb5];
/// Frames under way at most: fewer than a queue has descriptors.
const WINDOW: u64 = 128;
/// Frames from this number on are no part of a stream: what was sent during a reset may come any time later.
pub const CHAFF: u64 = 1 << 63;

/// The guest's devices of a family, each with QEMU's name of it.
///
/// # Errors
/// That this is no guest of `cargo xtask vm`.
pub fn family<F: Controller>() -> Result<Vec<(Address, String)>> {
    nics_that(|found| found.vendor().zip(found.device()).is_some_and(|ids| F::IDS.contains(&ids)))
}

/// A device, and memory for its packets.
pub struct Station<F: Controller> {
    /// The device.
    pub nic: Nic<F>,
    /// Buffers of 2048 bytes and the headroom.
    pub pool: Pool,
}

impl<F: Controller> Station<F> {
    /// The guest's device `nth` of the family.
    ///
    /// # Errors
    /// What the kernel or the driver says.
    pub fn open(nth: usize, config: PortConfig, options: Options) -> Result<Self> {
        let address = family::<F>()?.get(nth).context("the guest has too few of these devices")?.0;
        let headroom = config.headroom;
        let nic = Nic::open(Vfio::open(address, &VfioOptions::default())?, config, options)?;
        let arena = Arena::new(16 << 20, ArenaOptions::default())?;
        nic.attach(arena.clone())?;
        // None crosses a page: QEMU's devices drop, without a word, what they are to send from a buffer that is in two pieces behind the IOMMU.
        let pool = Pool::new(arena, BUFFERS, 2048 + u32::from(headroom), 4096)?;
        Ok(Self { nic, pool })
    }

    /// Waits until an event says that the link is so.
    ///
    /// # Errors
    /// That none does.
    pub fn wait_link(&self, up: bool) -> Result<()> {
        self.wait_event("the link to change", |event| matches!(event, Event::Link(link) if link.up == up)).map(drop)
    }

    /// Waits for an event; those before it are passed over.
    ///
    /// # Errors
    /// That it does not come.
    pub fn wait_event(&self, what: &str, is: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + SOON;
        loop {
            let event = self.nic.events().recv_deadline(deadline).with_context(|| format!("waiting for {what}"))?;
            if is(&event) {
                return Ok(event);
            }
        }
    }

    /// A counter, of a queue, or (without a name) of the device.
    pub fn statistic(&self, queue: &str, name: &str) -> u64 {
        let all = self.nic.statistics();
        all.iter().find(|s| s.queue == queue && s.name == name).map_or(0, |s| s.value)
    }

    /// Its first queues.
    ///
    /// # Errors
    /// The driver's own, where the device does not come up or an operation fails.
    pub fn queues(&self) -> Result<(Rx<F>, Tx<F>)> {
        Ok((self.nic.rx(0, &self.pool)?, self.nic.tx(0)?))
    }
}

/// Two stations whose links are up.
///
/// # Errors
/// The driver's own, where the device does not come up or an operation fails.
pub fn pair<F: Controller>(a: PortConfig, b: PortConfig, options: &Options) -> Result<(Station<F>, Station<F>)> {
    let (a, b) = (Station::open(0, a, options.clone())?, Station::open(1, b, options.clone())?);
    a.wait_link(true)?;
    b.wait_link(true)?;
    Ok((a, b))
}

/// A frame that has a number, and bytes that tell it; at least 22 bytes.
pub fn numbered(buf: &mut Buf, to: Mac, from: Mac, number: u64, len: usize) {
    buf.set_len(len as u32);
    let bytes = buf.bytes_mut();
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&from.0);
    bytes[12..14].copy_from_slice(&TYPE);
    bytes[14..22].copy_from_slice(&number.to_be_bytes());
    for (i, byte) in bytes[22..].iter_mut().enumerate() {
        *byte = pattern(number, i);
    }
}

/// The number of such a frame, if nothing in it is wrong.
///
/// # Errors
/// What is wrong.
pub fn number(bytes: &[u8]) -> Result<u64> {
    ensure!(bytes.len() >= 22 && bytes[12..14] == TYPE, "this is no frame of ours: {bytes:02x?}");
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[14..22]);
    let number = u64::from_be_bytes(number);
    let wrong = bytes[22..].iter().enumerate().position(|(i, byte)| *byte != pattern(number, i));
    ensure!(wrong.is_none(), "frame {number} of {} bytes is wrong at {wrong:?}", bytes.len());
    Ok(number)
}

fn pattern(number: u64, i: usize) -> u8 {
    (number as u8).wrapping_mul(31).wrapping_add(i as u8).wrapping_add((i >> 8) as u8)
}

/// Sends numbered frames of `len(number)` bytes from one to the other; all of them come, in order, as they were. [`CHAFF`] that comes is passed over.
///
/// # Errors
/// What did not come, or not as it was.
pub fn stream<F: Controller>(
    (from, tx): (&Station<F>, &mut Tx<F>),
    (to, rx): (&Station<F>, &mut Rx<F>),
    numbers: Range<u64>,
    len: impl Fn(u64) -> usize,
) -> Result<()> {
    let (us, them) = (from.nic.mac(), to.nic.mac());
    let (mut out, mut came) = (Burst::new(32), Burst::new(32));
    let (mut next, mut expected, began) = (numbers.start, numbers.start, Instant::now());
    while expected < numbers.end {
        while next < numbers.end && next - expected < WINDOW && out.room() > 0 {
            let Some(mut buf) = from.pool.get() else { break };
            numbered(&mut buf, them, us, next, len(next));
            out.push(buf).ok().context("there is room")?;
            next += 1;
        }
        tx.tx(&mut out);
        rx.rx(&mut came);
        for packet in came.take(32) {
            let got = number(packet.bytes())?;
            if got >= CHAFF {
                continue;
            }
            ensure!(got == expected, "frame {got} came instead of {expected}");
            ensure!(packet.len() as usize == len(got), "frame {got} has {} bytes", packet.len());
            expected += 1;
        }
        ensure!(began.elapsed() < SOON, "frame {expected} did not come: {:?}, {:?}", tx.state(), rx.state());
    }
    while tx.in_flight() > 0 {
        tx.reclaim();
        ensure!(began.elapsed() < SOON, "{} frames are not known to be sent", tx.in_flight());
    }
    Ok(())
}

/// Sends packets, all of them.
///
/// # Errors
/// That there was no room for them.
pub fn send<F: Controller>(tx: &mut Tx<F>, packets: impl IntoIterator<Item = Buf>) -> Result<()> {
    let began = Instant::now();
    for packet in packets {
        let mut burst = Burst::new(1);
        burst.push(packet).ok().context("there is room")?;
        while tx.tx(&mut burst) == 0 {
            ensure!(began.elapsed() < SOON, "no room to send: {:?}", tx.state());
        }
    }
    Ok(())
}

/// The next packet that comes.
///
/// # Errors
/// That none does.
pub fn receive<F: Controller>(rx: &mut Rx<F>) -> Result<Buf> {
    let (began, mut burst) = (Instant::now(), Burst::new(1));
    while began.elapsed() < SOON {
        rx.rx(&mut burst);
        if let Some(packet) = burst.pop() {
            return Ok(packet);
        }
    }
    bail!("nothing came: {:?}", rx.state())
}

/// That nothing comes for a while.
///
/// # Errors
/// What came.
pub fn silence<F: Controller>(rx: &mut Rx<F>) -> Result<()> {
    let (began, mut burst) = (Instant::now(), Burst::new(1));
    while began.elapsed() < Duration::from_millis(100) {
        rx.rx(&mut burst);
        if let Some(packet) = burst.pop() {
            bail!("this came: {:02x?}", &packet.bytes()[..packet.bytes().len().min(64)]);
        }
    }
    Ok(())
}
