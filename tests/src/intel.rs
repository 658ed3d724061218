//! Intel's devices of a guest, by the driver: stations on one wire. The frames between them are [`wire`]'s.

pub use crate::wire::{CHAFF, number, numbered, receive, send, silence};

use crate::guest::{SOON, nics_that};
use crate::wire;
use anyhow::{Context, Result};
use std::ops::Range;
use std::time::Instant;
use wholebar::intel::{Controller, Nic, Options, Rx, Tx};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{Event, Port, PortConfig};
use wholebar::pci::Address;
use wholebar::vfio::{Vfio, VfioOptions};

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    Options { stop_timeout: SOON, ..Options::default() }
}

/// Buffers of a station.
pub const BUFFERS: u32 = 3000;
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
    /// That the guest has no such device; that VFIO, the driver or memory refuses it.
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
    wire::stream((from.nic.mac(), &from.pool, tx), (to.nic.mac(), rx), numbers, len)
}
