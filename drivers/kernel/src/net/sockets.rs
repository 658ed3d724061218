//! The sockets behind a port's queues, parked while nobody has these, and what the kernel counts of them.

use super::target::Target;
use std::sync::{Arc, Mutex, MutexGuard};
use wholebar_core::kernel::xdp::{XdpOptions, XdpRx, XdpSocket, XdpTx};
use wholebar_core::kernel::{PacketRing, PacketSocket, XdpProgram};
use wholebar_core::net::{Count, PortConfig, RxCounters, TxCounters};

/// Packets that fit into a queue's ring where nobody says; 64 KiB of the kernel's memory each.
const DESCRIPTORS: u16 = 256;
/// The same of an AF_XDP socket, which has 4 KiB for each.
const XDP_DESCRIPTORS: u16 = 1024;

/// A socket's receiving half, while no queue has it.
pub(super) struct RxSlot {
    pub ring: Mutex<Option<RxRing>>,
    counted: Counted,
    pub counters: Arc<RxCounters>,
}

pub(super) enum RxRing {
    Packet(PacketRing),
    Xdp(XdpRx),
}

/// What has the kernel's counters of a socket.
enum Counted {
    /// Packets that came, and of these those dropped, as far as the kernel was asked.
    Packet(Arc<PacketSocket>, Mutex<(u64, u64)>),
    Xdp(Arc<XdpSocket>),
}

/// A socket's sending half, while no queue has it.
pub(super) struct TxSlot {
    pub ring: Mutex<Option<TxRing>>,
    pub counters: Arc<TxCounters>,
    /// Packets that the kernel refused for good.
    pub refused: Arc<Count>,
    /// Packets that it took, and dropped.
    pub lost: Arc<Count>,
}

pub(super) enum TxRing {
    Packet(Arc<PacketSocket>),
    Xdp(XdpTx),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl RxSlot {
    fn new(ring: RxRing, counted: Counted) -> Self {
        Self { ring: Mutex::new(Some(ring)), counted, counters: Arc::default() }
    }

    pub fn put_back(&self, ring: RxRing) {
        *lock(&self.ring) = Some(ring);
    }

    /// What the kernel has counted by now, since the port was opened.
    pub fn counted(&self) -> Vec<(&'static str, u64)> {
        let (counts, error) = match &self.counted {
            Counted::Packet(socket, all) => {
                let (mut all, more) = (lock(all), socket.statistics());
                if let Ok(more) = &more {
                    *all = (all.0 + u64::from(more.packets), all.1 + u64::from(more.dropped));
                }
                (vec![("rx_frames", all.0), ("rx_missed", all.1)], more.err())
            }
            Counted::Xdp(socket) => {
                let (counts, error) = socket.counts().map_or_else(|e| (Default::default(), Some(e)), |c| (c, None));
                (vec![("rx_missed", counts.dropped), ("invalid_descriptors", counts.invalid)], error)
            }
        };
        if let Some(error) = error {
            tracing::debug!(%error, "the kernel's counters could not be read");
        }
        counts
    }
}

impl TxSlot {
    fn new(ring: TxRing) -> Self {
        Self { ring: Mutex::new(Some(ring)), counters: Arc::default(), refused: Arc::default(), lost: Arc::default() }
    }

    pub fn put_back(&self, ring: TxRing) {
        *lock(&self.ring) = Some(ring);
    }
}

/// The sockets of a port's queues.
pub(super) struct Sockets {
    pub rx: Vec<RxSlot>,
    pub tx: Vec<TxSlot>,
    /// What has an interface's packets go to AF_XDP sockets.
    _program: Option<XdpProgram>,
    /// What the path is called.
    pub driver: &'static str,
}

impl Sockets {
    /// Packet sockets, which share what comes.
    pub fn packet(interface: u32, config: &PortConfig) -> wholebar_core::Result<Self> {
        let (mut rx, mut sockets, mut group) = (Vec::new(), Vec::new(), None);
        for _ in 0..config.rx_queues {
            let slots = config.rx_descriptors.unwrap_or(DESCRIPTORS);
            let (socket, ring) = PacketSocket::receiver(interface, slots.into())?;
            if config.rx_queues > 1 {
                group = Some(socket.join(group)?);
            }
            sockets.push((socket, ring));
        }
        for (socket, mut ring) in sockets {
            // Before the last of them had joined, a packet came to several.
            if config.rx_queues > 1 {
                for _ in 0..ring.slots() {
                    if ring.is_ready() {
                        ring.release();
                    }
                }
                let _ = socket.statistics();
            }
            rx.push(RxSlot::new(RxRing::Packet(ring), Counted::Packet(socket, Mutex::default())));
        }
        let tx = (0..config.tx_queues).map(|_| Ok(TxSlot::new(TxRing::Packet(PacketSocket::sender(interface)?))));
        Ok(Self { rx, tx: tx.collect::<wholebar_core::Result<_>>()?, _program: None, driver: "af_packet" })
    }

    /// AF_XDP sockets, one for each queue of the interface.
    pub fn xdp(interface: u32, target: &Target, config: &PortConfig) -> wholebar_core::Result<Self> {
        let queues = config.rx_queues.max(config.tx_queues);
        let program = XdpProgram::attach(interface, u32::from(target.queue) + u32::from(queues))?;
        let (mut rx, mut tx, mut driver) = (Vec::new(), Vec::new(), "af_xdp, copy");
        for index in 0..queues {
            let options = XdpOptions {
                rx_descriptors: config.rx_descriptors.unwrap_or(XDP_DESCRIPTORS).into(),
                tx_descriptors: config.tx_descriptors.unwrap_or(XDP_DESCRIPTORS).into(),
                zero_copy: target.zerocopy,
            };
            let queue = u32::from(target.queue) + u32::from(index);
            let (socket, receiver, sender) = XdpSocket::open(&program, interface, queue, options)?;
            if socket.is_zero_copy() {
                driver = "af_xdp, zero copy";
            }
            // The half that was not asked for stays as it is.
            rx.push(RxSlot::new(RxRing::Xdp(receiver), Counted::Xdp(socket)));
            tx.push(TxSlot::new(TxRing::Xdp(sender)));
        }
        Ok(Self { rx, tx, _program: Some(program), driver })
    }
}
