//! Packets of a port as trips: what it sends comes back to it, by a wire that loops or a peer that reflects.

use super::Trip;
use std::sync::Arc;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::Pool;
use wholebar_core::net::{Burst, Mac, RxQueue, TxQueue};
use wholebar_core::reactor::Armed;

/// For local experiments (IEEE 802, 9.2.4).
const ETHERTYPE: [u8; 2] = 0x88b5u16.to_be_bytes();
/// Where the stamp is: behind the Ethernet header.
const STAMP: usize = 14;
/// Bytes of a packet: the least that Ethernet has, without its check sequence.
const LEN: u32 = 60;

/// Packets by two queues of a port.
pub struct Packets {
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    pool: Pool,
    header: [u8; STAMP],
    out: Burst,
    back: Burst,
}

impl Packets {
    /// Packets in buffers of `pool`, from the port's address to itself.
    pub fn new(rx: Box<dyn RxQueue>, tx: Box<dyn TxQueue>, pool: Pool, mac: Mac) -> Self {
        let mut header = [0; STAMP];
        header[..6].copy_from_slice(&mac.0);
        header[6..12].copy_from_slice(&mac.0);
        header[12..].copy_from_slice(&ETHERTYPE);
        Self { rx, tx, pool, header, out: Burst::new(64), back: Burst::new(64) }
    }
}

impl Trip for Packets {
    fn send(&mut self, stamp: u64) -> bool {
        if self.out.room() == 0 {
            return false;
        }
        let Some(mut packet) = self.pool.get_len(LEN) else { return false };
        let bytes = packet.bytes_mut();
        bytes.fill(0);
        bytes[..STAMP].copy_from_slice(&self.header);
        bytes[STAMP..STAMP + 8].copy_from_slice(&stamp.to_le_bytes());
        self.out.push(packet).is_ok()
    }

    fn ring(&mut self) {
        self.tx.tx(&mut self.out);
    }

    fn poll(&mut self, back: &mut dyn FnMut(Option<u64>)) {
        if !self.out.is_empty() {
            self.tx.tx(&mut self.out);
        }
        if self.rx.rx(&mut self.back) == 0 {
            return;
        }
        for packet in self.back.iter() {
            // Others' packets are nobody's trip.
            if let Some((header, rest)) = packet.bytes().split_first_chunk::<STAMP>()
                && header[12..] == ETHERTYPE
                && let Some((stamp, _)) = rest.split_first_chunk::<8>()
            {
                back(Some(u64::from_le_bytes(*stamp)));
            }
        }
        self.back.give_back();
        self.tx.reclaim();
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.rx.wakeup()
    }

    fn arm(&mut self) -> Armed {
        // No interrupt comes when there is room for what is to be sent.
        if self.out.is_empty() { self.rx.arm() } else { Armed::No }
    }

    fn disarm(&mut self) {
        self.rx.disarm();
    }
}
