//! vmxnet3 devices of a guest, by the driver: stations on one wire.

use crate::guest::{SOON, nics_of};
use anyhow::{Context, Result};
use std::time::Instant;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{Event, Port, PortConfig};
use wholebar::vfio::{Vfio, VfioOptions};
use wholebar::vmxnet3::{Options, Rx, Tx, Vmxnet3};

/// VMware's vendor.
pub const VMWARE: u16 = 0x15ad;
/// Buffers of a station.
pub const BUFFERS: u32 = 3000;

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    Options { stop_timeout: SOON, ..Options::default() }
}

/// A device, and memory for its packets.
pub struct Station {
    /// The device.
    pub port: Vmxnet3,
    /// Buffers of 2048 bytes and the headroom.
    pub pool: Pool,
    /// QEMU's name of it.
    pub name: String,
}

impl Station {
    /// The guest's device `nth`.
    ///
    /// # Errors
    /// That the guest has no such device; that VFIO, the driver or memory refuses it.
    pub fn open(nth: usize, config: PortConfig, options: Options) -> Result<Self> {
        let (address, name) = nics_of(VMWARE)?.into_iter().nth(nth).context("the guest has too few vmxnet3")?;
        let headroom = config.headroom;
        let port = Vmxnet3::open(Vfio::open(address, &VfioOptions::default())?, config, options)?;
        let arena = Arena::new(16 << 20, ArenaOptions::default())?;
        port.attach(arena.clone())?;
        // None crosses a page: QEMU's device drops what it is to send from a buffer that is in two pieces behind the IOMMU.
        let pool = Pool::new(arena, BUFFERS, 2048 + u32::from(headroom), 4096)?;
        Ok(Self { port, pool, name })
    }

    /// Waits until an event says that the link is so.
    ///
    /// # Errors
    /// That none does.
    pub fn wait_link(&self, up: bool) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let event = self.port.events().recv_deadline(deadline).context("waiting for the link to change")?;
            if matches!(event, Event::Link(link) if link.up == up) {
                return Ok(());
            }
        }
    }

    /// A counter, of a queue, or (without a name) of the device.
    pub fn statistic(&self, queue: &str, name: &str) -> u64 {
        let all = self.port.statistics();
        all.iter().find(|s| s.queue == queue && s.name == name).map_or(0, |s| s.value)
    }

    /// Its first queues.
    ///
    /// # Errors
    /// That the port has no such queue, or it is in use.
    pub fn queues(&self) -> Result<(Rx, Tx)> {
        Ok((self.port.rx(0, &self.pool)?, self.port.tx(0)?))
    }
}

/// Two stations whose links are up.
///
/// # Errors
/// The driver's own, where the device does not come up or an operation fails.
pub fn pair(a: PortConfig, b: PortConfig, options: &Options) -> Result<(Station, Station)> {
    let (a, b) = (Station::open(0, a, options.clone())?, Station::open(1, b, options.clone())?);
    a.wait_link(true)?;
    b.wait_link(true)?;
    Ok((a, b))
}
