//! The function's queues: how the back end learns of them and stops them, whom it interrupts, and the control queue, which it does not have.

use super::function::FrontEnd;
use super::kind::ring;
use super::options::DeviceType;
use super::registers::NO_VECTOR;
use crate::irq::EventFd;
use crate::vhost_user::wire::{Request, VringAddr, VringState};
use crate::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::IntoBytes;

impl FrontEnd {
    /// The back end may use memory and queues from here on.
    pub fn start(&mut self) -> Result<()> {
        if !self.config_space.bus_master() {
            self.fail("DRIVER_OK comes before bus mastering");
            return Ok(());
        }
        self.send_memory()?;
        self.share_inflight()?;
        for index in 0..self.function.queues {
            if self.registers.queues[usize::from(index)].enabled {
                self.start_queue(index)?;
            }
        }
        self.watch();
        Ok(())
    }

    fn start_queue(&mut self, index: u16) -> Result<()> {
        let queue = self.registers.queues[usize::from(index)].clone();
        let base = self.base(index);
        let number = u64::from(index);
        let state = |num| VringState { index: index.into(), num };
        let addr = VringAddr {
            index: index.into(),
            flags: 0,
            descriptor: queue.desc,
            used: queue.device,
            available: queue.driver,
            log: 0,
        };
        let call = self.call_of(index)?;
        let kick = match self.kicks[usize::from(index)].get() {
            Some(kick) => self.dup(kick.as_fd())?,
            None => {
                let kick = EventFd::new()?;
                self.dup(self.kicks[usize::from(index)].get_or_init(|| kick).as_fd())?
            }
        };
        let failure = self.dup(self.failure.as_fd())?;
        let enabled = self.in_use(index);
        let extended = self.said.extended;
        self.tell(|peer| {
            peer.set(Request::SET_VRING_NUM, state(queue.size.into()).as_bytes(), Vec::new())?;
            peer.set(Request::SET_VRING_BASE, state(base).as_bytes(), Vec::new())?;
            peer.set(Request::SET_VRING_ADDR, addr.as_bytes(), Vec::new())?;
            peer.set(Request::SET_VRING_CALL, number.as_bytes(), vec![call])?;
            peer.set(Request::SET_VRING_ERR, number.as_bytes(), vec![failure])?;
            peer.set(Request::SET_VRING_KICK, number.as_bytes(), vec![kick])?;
            if extended {
                peer.set(Request::SET_VRING_ENABLE, state(enabled.into()).as_bytes(), Vec::new())?;
            }
            Ok(())
        })?;
        self.started[usize::from(index)] = self.peer.is_some();
        Ok(())
    }

    /// Whether the back end is to use a queue: of a network device's, the pairs that the driver asked for.
    fn in_use(&self, index: u16) -> bool {
        self.function.device_type != DeviceType::Net || index / 2 < self.pairs
    }

    /// Stops all queues: when this returns, the back end does not reach memory by them.
    pub fn stop(&mut self) -> Result<()> {
        for index in 0..self.started.len() {
            if !std::mem::take(&mut self.started[index]) {
                continue;
            }
            let state = VringState { index: index as u32, num: 0 };
            let stopped = self.tell(|peer| {
                let base: VringState = peer.get(Request::GET_VRING_BASE, state.as_bytes())?;
                match base.index == state.index {
                    true => Ok(()),
                    false => Err(peer
                        .broke(
                            Some(Request::GET_VRING_BASE),
                            format!("the reply is about queue {}, not {index}", base.index),
                        )
                        .into()),
                }
            })?;
            if stopped.is_none() {
                self.started.fill(false);
            }
        }
        Ok(())
    }

    /// The queue behind those of the back end, where there is one: it is notified by [`run_control`](Self::run_control).
    pub fn control_queue(&self) -> Option<u16> {
        self.function.control.then_some(self.function.queues)
    }

    /// Takes the commands of the control queue.
    pub fn run_control(&mut self) -> Result<()> {
        let Some(queue) = self.control_queue().and_then(|index| self.registers.queues.get(usize::from(index)).cloned())
        else {
            return Ok(());
        };
        if !self.registers.is_running() || !queue.enabled {
            return Ok(());
        }
        let packed = self.registers.features & ring::PACKED != 0;
        // Its commands change the device, but not the memory.
        let (mut control, memory) = (self.control, std::mem::take(&mut self.memory));
        let ran = control.run(&queue, packed, &memory, |command| match command {
            // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET (5.1.6.5.5).
            [4, 0, low, high, ..] => self.set_pairs(u16::from_le_bytes([*low, *high])).map_err(Stopped::Core),
            _ => Ok(false),
        });
        (self.control, self.memory) = (control, memory);
        if self.peer.is_none() {
            self.memory.forget_sent();
        }
        match ran {
            Ok(()) => self.signal(queue.vector),
            Err(Stopped::Core(error)) => return Err(error),
            Err(Stopped::Driver(why)) => self.fail(&why),
        }
        Ok(())
    }

    /// How many pairs the driver uses (5.1.6.5.6): false where there are not so many.
    fn set_pairs(&mut self, pairs: u16) -> Result<bool> {
        if pairs == 0 || pairs > self.function.queues / 2 {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.pairs, pairs);
        for index in 2 * before.min(pairs)..2 * before.max(pairs) {
            if self.started[usize::from(index)] && self.said.extended {
                let state = VringState { index: index.into(), num: self.in_use(index).into() };
                self.tell(|peer| peer.set(Request::SET_VRING_ENABLE, state.as_bytes(), Vec::new()))?;
            }
        }
        Ok(true)
    }

    /// Connects vectors to eventfds, from `first` on.
    pub fn set_vectors(&mut self, first: u32, fds: Vec<Option<OwnedFd>>) -> Result<()> {
        let range = first..first + fds.len() as u32;
        for (vector, fd) in (first as usize..).zip(fds) {
            self.vectors[vector] = fd;
        }
        for index in 0..self.function.queues {
            if range.contains(&self.registers.queues[usize::from(index)].vector.into()) {
                self.call_changed(index)?;
            }
        }
        Ok(())
    }

    /// Signals a vector by ourselves.
    pub fn signal(&self, vector: u16) {
        if let Some(Some(fd)) = self.vectors.get(usize::from(vector)) {
            self.signaller.signal(fd.as_fd());
        }
    }

    /// A queue's interrupt goes elsewhere.
    pub fn call_changed(&mut self, index: u16) -> Result<()> {
        if !self.started.get(usize::from(index)).is_some_and(|started| *started) {
            return Ok(());
        }
        let call = self.call_of(index)?;
        self.tell(|peer| peer.set(Request::SET_VRING_CALL, u64::from(index).as_bytes(), vec![call])).map(|_| ())
    }

    fn call_of(&self, index: u16) -> Result<OwnedFd> {
        let vector = self.registers.queues[usize::from(index)].vector;
        let fd = self.vectors.get(usize::from(vector)).filter(|_| vector != NO_VECTOR).and_then(Option::as_ref);
        self.dup(fd.map_or(self.spare.as_fd(), |fd| fd.as_fd()))
    }

    pub(super) fn dup(&self, fd: BorrowedFd<'_>) -> Result<OwnedFd> {
        fd.try_clone_to_owned().map_err(|cause| self.local("duplicating an eventfd", cause))
    }
}

/// Why the control queue was not served to its end.
enum Stopped {
    /// The driver broke a rule.
    Driver(String),
    Core(Error),
}

impl From<String> for Stopped {
    fn from(why: String) -> Self {
        Self::Driver(why)
    }
}
