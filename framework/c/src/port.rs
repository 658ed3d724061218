//! Ports: how they are configured, what happens to them.

use crate::device::wb_device;
use crate::error::{Failure, entry};
use crate::event::{self, wb_event};
use crate::handle;
use crate::memory::{wb_arena, wb_pool};
use crate::packets::{wb_rx_queue, wb_tx_queue};
use std::ffi::{CString, c_char, c_int};
use wholebar::net::{self, Port, PortConfig};

/// A network device, opened. (DPDK: an ethdev.)
pub struct wb_port {
    port: Box<dyn Port>,
    name: CString,
    driver: CString,
}

/// How a port is opened: 0 is the default, so that `{0}` is that of all. (DPDK: rte_eth_conf.)
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct wb_port_config {
    /// Queues that receive. 0 is one.
    pub rx_queues: u16,
    /// Queues that send. 0 is one.
    pub tx_queues: u16,
    /// Descriptors of a queue that receives, a power of two. 0 is what suits the device.
    pub rx_descriptors: u16,
    /// Descriptors of a queue that sends, a power of two. 0 is what suits the device.
    pub tx_descriptors: u16,
    /// The largest packet, in bytes, without link-layer header. 0 is 1500, or what the device has if that is less.
    pub mtu: u16,
    /// Bytes left in front of received packets. 0 is 128.
    pub headroom: u16,
    /// Not 0: receives what is sent to anybody.
    pub promiscuous: u8,
}

/// What a port is and how it stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wb_port_info {
    /// Its station address.
    pub mac: [u8; 6],
    /// The largest packet, in bytes, without link-layer header.
    pub mtu: u16,
    /// Queues that receive, as it was opened.
    pub rx_queues: u16,
    /// Queues that send, as it was opened.
    pub tx_queues: u16,
    /// The link's speed in Mb/s; 0 where that is not known.
    pub link_speed: u32,
    /// The link is up.
    pub link_up: bool,
}

/// Opens a network device with the driver that is for it; `config` may be NULL. NULL where that fails: wb_errno is ENOTSUP where no driver is for the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_open(device: *const wb_device, config: *const wb_port_config) -> *mut wb_port {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let device = &unsafe { handle::get(device) }?.device;
        // SAFETY: rule 3: a structure of integers, or NULL.
        let config = settings(unsafe { handle::copy(config) }?.unwrap_or_default());
        Ok(given(net::open(device.clone(), &config)?))
    })
}

/// Opens a port by the name of any target: those of wb_device_open, which are opened with the driver that is for them, and `kernel:eth0`, an interface that stays the
/// kernel's, by packet sockets, or by AF_XDP (`,mode=xdp`). `config` may be NULL. NULL where that fails: wb_errno is EINVAL for a name that is wrong, or names no
/// port.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_open_target(target: *const c_char, config: *const wb_port_config) -> *mut wb_port {
    entry(|| {
        // SAFETY: rule 3: text.
        let target = unsafe { handle::text(target) }?;
        // SAFETY: rule 3: a structure of integers, or NULL.
        let config = settings(unsafe { handle::copy(config) }?.unwrap_or_default());
        Ok(given(net::open_target(target, &config)?))
    })
}

fn given(port: Box<dyn Port>) -> *mut wb_port {
    let (name, driver) = (handle::owned(port.name()), handle::owned(port.driver()));
    handle::give(wb_port { port, name, driver })
}

fn settings(config: wb_port_config) -> PortConfig {
    let some = |value| (value > 0).then_some(value);
    let usual = PortConfig::default();
    PortConfig {
        rx_queues: some(config.rx_queues).unwrap_or(usual.rx_queues),
        tx_queues: some(config.tx_queues).unwrap_or(usual.tx_queues),
        rx_descriptors: some(config.rx_descriptors),
        tx_descriptors: some(config.tx_descriptors),
        mtu: some(config.mtu),
        headroom: some(config.headroom).unwrap_or(usual.headroom),
        promiscuous: config.promiscuous != 0,
        ..usual
    }
}

/// Closes a port, once no queue of it is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_free(port: *mut wb_port) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(port) };
        Ok(())
    })
}

/// The device's name; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_name(port: *const wb_port) -> *const c_char {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(unsafe { handle::get(port) }?.name.as_ptr()))
}

/// The driver's name: `virtio`, `igb`, `igbvf`, `e1000e`, `vmxnet3`; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_driver(port: *const wb_port) -> *const c_char {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(unsafe { handle::get(port) }?.driver.as_ptr()))
}

/// Reads what it is and how it stands. May read a register, for the link. (DPDK: rte_eth_macaddr_get, rte_eth_link_get_nowait.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_info(port: *const wb_port, info: *mut wb_port_info) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let port = &unsafe { handle::get(port) }?.port;
        let (link, (rx_queues, tx_queues)) = (port.link(), port.queues());
        let found = wb_port_info {
            mac: port.mac().0,
            mtu: port.mtu(),
            rx_queues,
            tx_queues,
            link_speed: link.speed.unwrap_or(0),
            link_up: link.up,
        };
        // SAFETY: rule 3: a place to fill in.
        unsafe { handle::fill(info, found) }?;
        Ok(0)
    })
}

/// Whether what is sent to anybody is received, from now on. (DPDK: rte_eth_promiscuous_enable.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_set_promiscuous(port: *const wb_port, on: c_int) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        unsafe { handle::get(port) }?.port.set_promiscuous(on != 0)?;
        Ok(0)
    })
}

/// Lets the device into an arena, so that its queues can use buffers there; does nothing where it is in already. (DPDK: rte_dev_dma_map.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_attach(port: *const wb_port, arena: *const wb_arena) -> c_int {
    entry(|| {
        // SAFETY: rule 1: handles of these types, not freed.
        let (port, arena) = unsafe { (handle::get(port)?, handle::get(arena)?) };
        port.port.attach(arena.arena.clone())?;
        Ok(0)
    })
}

/// Receive queue `index`, from 0, which takes its buffers from `pool`, whose arena is attached; NULL where there is no such queue, it is in use, or the
/// buffers are too small for headroom and MTU. It keeps the port and the pool. (DPDK: rte_eth_rx_queue_setup.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_rx_queue(port: *const wb_port, index: u16, pool: *const wb_pool) -> *mut wb_rx_queue {
    entry(|| {
        // SAFETY: rule 1: handles of these types, not freed.
        let (port, pool) = unsafe { (handle::get(port)?, handle::get(pool)?) };
        Ok(handle::give(wb_rx_queue::new(port.port.rx_queue(index, &pool.pool)?)))
    })
}

/// Send queue `index`, from 0; NULL where there is no such queue, or it is in use. It keeps the port. (DPDK: rte_eth_tx_queue_setup.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_tx_queue(port: *const wb_port, index: u16) -> *mut wb_tx_queue {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(handle::give(wb_tx_queue::new(unsafe { handle::get(port) }?.port.tx_queue(index)?))))
}

/// Takes the oldest event that waits: returns 1 and fills it in, or 0 where none does. While 256 wait, further ones are dropped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_event(port: *const wb_port, event: *mut wb_event) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let port = &unsafe { handle::get(port) }?.port;
        if event.is_null() {
            return Err(Failure::of(libc::EINVAL, c"a place to fill in is NULL"));
        }
        let Ok(found) = port.events().try_recv() else { return Ok(0) };
        // SAFETY: rule 3: a place to fill in.
        unsafe { handle::fill(event, event::of_port(&found)) }?;
        Ok(1)
    })
}

/// Resets the device, and returns when its queues can go on: packets in flight are dropped and counted, their buffers go home. Each queue has to be polled on
/// another thread meanwhile: one that is not, within five seconds, is lost, and its buffers are never reused. (DPDK: rte_eth_dev_reset.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_port_reset(port: *const wb_port) -> c_int {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        unsafe { handle::get(port) }?.port.reset()?;
        Ok(0)
    })
}
