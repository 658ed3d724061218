//! A disk whose back end is started again goes on where it was ("Inflight I/O tracking"): its driver sees nothing of that but the time it takes.
//!
//! The rings are in this process's memory, and so is the record of what the back end has in flight, which only back ends read. Whoever connects next is given both.

use super::function::FrontEnd;
use super::kind::ring;
use super::link::meet;
use super::peer::Failed;
use crate::Result;
use crate::patience::later;
use crate::vhost_user::wire::{self, Request, protocol};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;
use zerocopy::IntoBytes;

/// The record of what is in flight.
pub struct Inflight {
    said: wire::Inflight,
    fd: OwnedFd,
}

impl FrontEnd {
    /// Gives the back end the record of what is in flight: one that it makes now, where there is none since the last reset.
    pub(super) fn share_inflight(&mut self) -> Result<()> {
        if self.said.protocol & protocol::INFLIGHT_SHMFD == 0 {
            return Ok(());
        }
        if self.inflight.is_none() {
            let sizes = self.registers.queues.iter().filter(|queue| queue.enabled).map(|queue| queue.size);
            let (num_queues, queue_size) = (self.function.queues, sizes.max().unwrap_or(0));
            let asked = wire::Inflight { num_queues, queue_size, ..wire::Inflight::default() };
            let request = Request::GET_INFLIGHT_FD;
            let got = self.tell(|peer| {
                let mut frame = peer.ask(request, asked.as_bytes(), 1)?;
                let said = wire::exactly::<wire::Inflight>(&frame.payload).filter(|said| said.mmap_size > 0);
                match (said, frame.fds.pop()) {
                    (Some(said), Some(fd)) => Ok(Inflight { said, fd }),
                    _ => {
                        let what = format!("the reply has {} bytes, and no memory in it", frame.payload.len());
                        Err(peer.broke(Some(request), what).into())
                    }
                }
            })?;
            self.inflight = got;
        }
        let Some(Inflight { said, fd }) = &self.inflight else { return Ok(()) };
        let (said, fd) = (*said, self.dup(fd.as_fd())?);
        self.tell(|peer| peer.set(Request::SET_INFLIGHT_FD, said.as_bytes(), vec![fd])).map(|_| ())
    }

    /// The back end went away: whether its queues wait for another one, rather than for a reset.
    pub(super) fn waits_for_another(&mut self) -> bool {
        let waits = self.registers.is_running() && self.inflight.is_some();
        self.resume_by = waits.then(|| later(self.options.reconnect));
        waits
    }

    /// Goes on with another back end, where one is there by now. It waits for none.
    pub(super) fn resume(&mut self) {
        // A driver that gave up meanwhile begins anew.
        let Some(deadline) = self.resume_by.filter(|_| self.registers.is_running()) else { return };
        // One that closes the connection is about to end, or not ready yet.
        let met = match self.link.again(Instant::now()).map(|stream| meet(stream, &self.patience, &self.options)) {
            Some(Ok(met)) => met,
            Some(Err(Failed::Lost(lost))) if !lost.closed => return self.gone = Some(lost.what),
            Some(Err(Failed::Refused { request, what })) => {
                return self.gone = Some(format!("{request} was refused: {what}"));
            }
            Some(Err(Failed::Lost(_))) | None => {
                if deadline <= Instant::now() {
                    self.gone = Some(self.not_back());
                }
                return;
            }
        };
        self.resume_by = None;
        if let Err(error) = self.renew(met).and_then(|()| self.go_on()) {
            self.fail(&format!("another back end came, which does not go on with the queues: {error}"));
        }
    }

    /// The back end gets all that the driver said to the one before.
    fn go_on(&mut self) -> Result<()> {
        if !self.agree()? {
            self.fail("another back end came, which lacks features that were agreed on");
            return Ok(());
        }
        self.start()?;
        if self.said.protocol & protocol::STATUS != 0 {
            let status = u64::from(self.registers.status);
            self.tell(|peer| peer.set(Request::SET_STATUS, status.as_bytes(), Vec::new()))?;
        }
        // Notifications and interrupts may have been lost with the one before.
        for (queue, kick) in self.registers.queues.iter().zip(self.kicks.iter()).filter(|(queue, _)| queue.enabled) {
            if let Some(kick) = kick.get() {
                self.signaller.signal(kick.as_fd());
            }
            self.signal(queue.vector);
        }
        Ok(())
    }

    /// Where a queue begins: a split ring that another back end had, at its used index.
    pub(super) fn base(&self, index: u16) -> u32 {
        let queue = &self.registers.queues[usize::from(index)];
        if self.registers.features & ring::PACKED != 0 {
            return ring::PACKED_START;
        }
        let mut used = [0; 2];
        // 2.7.8: behind the flags. A ring that begins anew is zeroed.
        let known = self.inflight.is_some() && self.memory.read(queue.device.wrapping_add(2), &mut used);
        if known { u16::from_le_bytes(used).into() } else { 0 }
    }
}
