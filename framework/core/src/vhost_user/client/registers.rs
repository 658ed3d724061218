//! The common configuration of a virtio PCI function (VIRTIO 1.2, 4.1.4.3): what the driver wrote, and what follows from a write.
//!
//! Registers alone: it does *not* know of a back end. What a write asks for is returned as an [`Action`].

/// Device status (2.1).
pub mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// VIRTIO_MSI_NO_VECTOR (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// A queue, as the driver set it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub size: u16,
    pub vector: u16,
    pub enabled: bool,
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
}

/// What a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Device status is to become this; 0 is a reset.
    Status(u8),
    /// This queue has another vector.
    Vector(u16),
}

/// The registers.
pub struct Registers {
    /// What is offered.
    pub offered: u64,
    /// What the driver took.
    pub features: u64,
    pub status: u8,
    pub isr: u8,
    pub generation: u8,
    pub config_vector: u16,
    pub queues: Vec<Queue>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    vectors: u16,
    /// The largest queue.
    largest: u16,
}

/// The half of a 64-bit register that bits of `select` name.
fn half(value: u64, select: u32) -> u64 {
    match select {
        0 => value & 0xffff_ffff,
        1 => value >> 32,
        _ => 0,
    }
}

fn set_half(register: &mut u64, high: bool, value: u32) {
    *register = match high {
        false => *register & !0xffff_ffff | u64::from(value),
        true => *register & 0xffff_ffff | u64::from(value) << 32,
    };
}

impl Registers {
    pub fn new(offered: u64, queues: u16, vectors: u16, largest: u16) -> Self {
        let mut new = Self {
            offered,
            features: 0,
            status: 0,
            isr: 0,
            generation: 0,
            config_vector: NO_VECTOR,
            queues: Vec::new(),
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            vectors,
            largest,
        };
        new.queues = vec![new.unset(); queues.into()];
        new
    }

    fn unset(&self) -> Queue {
        Queue { size: self.largest, vector: NO_VECTOR, enabled: false, desc: 0, driver: 0, device: 0 }
    }

    /// What the driver set up is gone (2.4).
    pub fn reset(&mut self) {
        let (generation, queues) = (self.generation, self.queues.len() as u16);
        *self = Self { generation, ..Self::new(self.offered, queues, self.vectors, self.largest) };
    }

    /// Whether the driver said DRIVER_OK, and no reset is asked for.
    pub fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// Reads; `None` for what is no register of that width.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Option<()> {
        let none = Queue { size: 0, ..self.unset() };
        let queue = self.queues.get(usize::from(self.queue_select)).unwrap_or(&none);
        let (value, width) = match offset {
            0x00 => (self.device_feature_select.into(), 4),
            0x04 => (half(self.offered, self.device_feature_select), 4),
            0x08 => (self.driver_feature_select.into(), 4),
            0x0c => (half(self.features, self.driver_feature_select), 4),
            0x10 => (self.config_vector.into(), 2),
            0x12 => (self.queues.len() as u64, 2),
            0x14 => (self.status.into(), 1),
            0x15 => (self.generation.into(), 1),
            0x16 => (self.queue_select.into(), 2),
            0x18 => (queue.size.into(), 2),
            0x1a => (queue.vector.into(), 2),
            0x1c => (queue.enabled.into(), 2),
            // Where it is notified: each queue has an address.
            0x1e => (self.queue_select.into(), 2),
            0x20 => (half(queue.desc, 0), 4),
            0x24 => (half(queue.desc, 1), 4),
            0x28 => (half(queue.driver, 0), 4),
            0x2c => (half(queue.driver, 1), 4),
            0x30 => (half(queue.device, 0), 4),
            0x34 => (half(queue.device, 1), 4),
            // queue_notify_data and queue_reset are not offered.
            0x38 | 0x3a => (0, 2),
            _ => return None,
        };
        if buf.len() != width {
            return None;
        }
        buf.copy_from_slice(&value.to_le_bytes()[..width]);
        Some(())
    }

    /// Writes; `None` for what is no register of that width. Read-only registers keep their values.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Option<Option<Action>> {
        let width = match offset {
            0x00 | 0x04 | 0x08 | 0x0c | 0x20 | 0x24 | 0x28 | 0x2c | 0x30 | 0x34 => 4,
            0x14 | 0x15 => 1,
            0x10 | 0x12 | 0x16 | 0x18 | 0x1a | 0x1c | 0x1e | 0x38 | 0x3a => 2,
            _ => return None,
        };
        if bytes.len() != width {
            return None;
        }
        let mut value = [0; 4];
        value[..width].copy_from_slice(bytes);
        let value = u32::from_le_bytes(value);
        // A vector that there isn't reads back as none (4.1.5.1.2.1).
        let vector = if value < self.vectors.into() { value as u16 } else { NO_VECTOR };
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            // Features cannot be changed once they are agreed on (3.1.1).
            0x0c if self.status & status::FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                set_half(&mut self.features, self.driver_feature_select == 1, value);
            }
            0x10 => self.config_vector = vector,
            0x14 => return Some(Some(Action::Status(value as u8))),
            0x16 => self.queue_select = value as u16,
            _ => return Some(self.write_queue(offset, value, vector)),
        }
        Some(None)
    }

    /// Writes to what the selected queue has.
    fn write_queue(&mut self, offset: u64, value: u32, vector: u16) -> Option<Action> {
        let (index, ready, largest) = (self.queue_select, self.status & status::FEATURES_OK != 0, self.largest);
        let queue = self.queues.get_mut(usize::from(index))?;
        if offset == 0x1a {
            queue.vector = vector;
            return Some(Action::Vector(index));
        }
        // The rest is the driver's until the queue is enabled.
        if queue.enabled {
            return None;
        }
        match offset {
            0x18 if (1..=u32::from(largest)).contains(&value) => queue.size = value as u16,
            0x1c => queue.enabled = value == 1 && ready,
            0x20 | 0x24 => set_half(&mut queue.desc, offset == 0x24, value),
            0x28 | 0x2c => set_half(&mut queue.driver, offset == 0x2c, value),
            0x30 | 0x34 => set_half(&mut queue.device, offset == 0x34, value),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(registers: &Registers, offset: u64, width: usize) -> u64 {
        let mut value = [0; 8];
        registers.read(offset, &mut value[..width]).unwrap();
        u64::from_le_bytes(value)
    }

    #[test]
    fn registers_are_as_wide_as_they_are_and_keep_what_is_theirs() {
        let mut r = Registers::new(1 << 32 | 5, 2, 3, 256);
        assert_eq!((read(&r, 0x04, 4), read(&r, 0x12, 2), read(&r, 0x18, 2)), (5, 2, 256));
        r.write(0x00, &1u32.to_le_bytes()).unwrap();
        assert_eq!(read(&r, 0x04, 4), 1);
        for (offset, width) in [(0x00, 2), (0x14, 2), (0x16, 4), (0x20, 8), (0x3c, 4), (0x01, 1)] {
            assert!(
                r.read(offset, &mut vec![0; width]).is_none() && r.write(offset, &vec![0; width]).is_none(),
                "{offset:#x}"
            );
        }
        r.write(0x08, &1u32.to_le_bytes()).unwrap();
        r.write(0x0c, &1u32.to_le_bytes()).unwrap();
        assert_eq!(r.features, 1 << 32);
        assert_eq!(r.write(0x14, &[15]), Some(Some(Action::Status(15))));
        // A queue is enabled once features are agreed on, and is not changed any more then.
        r.write(0x1c, &1u16.to_le_bytes()).unwrap();
        assert!(!r.queues[0].enabled);
        r.status = status::FEATURES_OK;
        r.write(0x0c, &0u32.to_le_bytes()).unwrap();
        assert_eq!(r.features, 1 << 32);
        r.write(0x18, &512u16.to_le_bytes()).unwrap();
        r.write(0x24, &7u32.to_le_bytes()).unwrap();
        r.write(0x1c, &1u16.to_le_bytes()).unwrap();
        r.write(0x18, &16u16.to_le_bytes()).unwrap();
        assert_eq!(
            r.queues[0],
            Queue { enabled: true, desc: 7 << 32, size: 256, vector: NO_VECTOR, driver: 0, device: 0 }
        );
        assert_eq!(r.write(0x1a, &2u16.to_le_bytes()), Some(Some(Action::Vector(0))));
        r.write(0x10, &3u16.to_le_bytes()).unwrap();
        assert_eq!((r.queues[0].vector, r.config_vector), (2, NO_VECTOR));
        // No such queue: it has no size, and writes go nowhere.
        r.write(0x16, &2u16.to_le_bytes()).unwrap();
        assert_eq!((read(&r, 0x18, 2), r.write(0x1a, &[0, 0])), (0, Some(None)));
        r.reset();
        assert_eq!((r.status, r.features, r.queues[0].enabled, r.queues[0].size), (0, 0, false, 256));
    }
}
