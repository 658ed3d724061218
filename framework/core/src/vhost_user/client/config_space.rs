//! The configuration space of a virtio PCI function, as the front end presents it (VIRTIO 1.2, 4.1; PCI Express Base 6.0, 7.5.1).
//!
//! A type 0 header with MSI-X and the capabilities that say where the registers are. The alternative access by configuration space
//! (`VIRTIO_PCI_CAP_PCI_CFG`, 4.1.4.9) is not there: it is for firmware.

use std::ops::Range;

/// Bytes: conventional and extended space.
pub const SIZE: u64 = 4096;
/// BAR0: common configuration, ISR and device configuration, a page each.
pub const BAR0_SIZE: u64 = 16 << 10;
pub const COMMON: Range<u64> = 0..0x40;
pub const ISR: u64 = 0x1000;
pub const DEVICE: Range<u64> = 0x2000..0x2100;
/// BAR2: a notification address a queue.
pub const NOTIFY_BAR: u32 = 2;
pub const NOTIFY_STRIDE: u64 = 4;
pub const NOTIFY_SIZE: u64 = 4096;
/// BAR4: the MSI-X table, then the PBA.
pub const MSIX_BAR: u32 = 4;
pub const PBA: u64 = 0x4000;
pub const MSIX_SIZE: u64 = 32 << 10;

const COMMAND: usize = 0x04;
const BUS_MASTER: u8 = 4;
const MSIX_CAP: usize = 0x40;
const FIRST_VENDOR_CAP: usize = 0x50;
/// MSI-X message control, upper byte: enable and function mask can be written (7.7.2.2).
const MSIX_CONTROL: usize = MSIX_CAP + 3;

/// `cfg_type` (4.1.4).
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;

/// A configuration space. What can be written of it is the command register and MSI-X's control.
pub struct ConfigSpace {
    bytes: Vec<u8>,
    initial: Vec<u8>,
}

impl ConfigSpace {
    /// Of a device of type `id` (chapter 5) and a class code, with so many queues and vectors, at least one of each.
    pub fn new(id: u16, class: u32, queues: u16, vectors: u16) -> Self {
        let mut bytes = vec![0; SIZE as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &0x1af4u16.to_le_bytes());
        put(0x02, &(0x1040 + id).to_le_bytes());
        // Memory space on; a capability list is there.
        put(COMMAND, &[2, 0, 0x10, 0]);
        put(0x08, &(class << 8 | 1).to_le_bytes());
        for bar in [0, NOTIFY_BAR, MSIX_BAR] {
            // 64-bit memory (7.5.1.2.1).
            put(0x10 + 4 * bar as usize, &4u32.to_le_bytes());
        }
        put(0x2c, &0x1af4u16.to_le_bytes());
        put(0x2e, &(0x1040 + id).to_le_bytes());
        put(0x34, &[MSIX_CAP as u8]);
        put(MSIX_CAP, &[0x11, FIRST_VENDOR_CAP as u8]);
        put(MSIX_CAP + 2, &(vectors - 1).to_le_bytes());
        put(MSIX_CAP + 4, &MSIX_BAR.to_le_bytes());
        put(MSIX_CAP + 8, &(PBA as u32 | MSIX_BAR).to_le_bytes());
        let notify = 0..u64::from(queues) * NOTIFY_STRIDE;
        let structures = [
            (CAP_COMMON, 0, COMMON),
            (CAP_NOTIFY, NOTIFY_BAR as u8, notify),
            (CAP_ISR, 0, ISR..ISR + 1),
            (CAP_DEVICE, 0, DEVICE),
        ];
        let mut at = FIRST_VENDOR_CAP;
        for (kind, bar, range) in structures {
            let multiplier = kind == CAP_NOTIFY;
            let len = if multiplier { 20 } else { 16 };
            let next = if kind == CAP_DEVICE { 0 } else { at as u8 + len };
            put(at, &[0x09, next, len, kind, bar]);
            put(at + 8, &(range.start as u32).to_le_bytes());
            put(at + 12, &((range.end - range.start) as u32).to_le_bytes());
            if multiplier {
                put(at + 16, &(NOTIFY_STRIDE as u32).to_le_bytes());
            }
            at += usize::from(len);
        }
        Self { initial: bytes.clone(), bytes }
    }

    /// Whether DMA is allowed (command register, bit 2).
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & BUS_MASTER != 0
    }

    /// Reads; `None` outside.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        buf.copy_from_slice(self.bytes.get(start..start.checked_add(buf.len())?)?);
        Some(())
    }

    /// Writes what can be written; `None` outside.
    pub fn write(&mut self, offset: u64, buf: &[u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.bytes.get_mut(start..start.checked_add(buf.len())?)?;
        for ((at, byte), new) in (start..).zip(bytes).zip(buf) {
            let mask = match at {
                // Memory space, bus master; interrupt disable.
                COMMAND => 0x06,
                5 => 0x04,
                MSIX_CONTROL => 0xc0,
                _ => 0,
            };
            *byte = *byte & !mask | new & mask;
        }
        Some(())
    }

    /// As it was at first.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.initial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Config;
    use crate::pci::config::CapabilityId;

    #[test]
    fn capabilities_lead_to_the_registers_and_little_can_be_written() {
        let mut space = ConfigSpace::new(2, 0x010000, 300, 301);
        let mut bytes = vec![0; SIZE as usize];
        space.read(0, &mut bytes).unwrap();
        let config = Config::from_bytes("test", bytes).unwrap();
        assert_eq!((config.vendor(), config.device()), (0x1af4, 0x1042));
        let msix = config.msix().unwrap().unwrap();
        assert_eq!((u32::from(msix.table_bar), msix.table().end, msix.pba().start), (MSIX_BAR, 301 * 16, PBA));
        assert!(msix.table().end <= PBA && msix.pba().end <= MSIX_SIZE);
        let caps: Vec<_> =
            config.capabilities().filter(|cap| cap.id == CapabilityId::Pci(9)).map(|cap| cap.offset).collect();
        let kinds: Vec<_> = caps.iter().map(|at| (config.u8(at + 3).unwrap(), config.u32(at + 12).unwrap())).collect();
        assert_eq!(kinds, [(1, 0x40), (2, 1200), (3, 1), (4, 0x100)]);
        assert!(space.write(0, &[0xff; 64]).is_some() && space.bus_master());
        let mut id = [0; 4];
        space.read(0, &mut id).unwrap();
        assert_eq!(id, [0xf4, 0x1a, 0x42, 0x10]);
        space.reset();
        assert!(!space.bus_master());
        assert!(space.read(SIZE - 3, &mut id).is_none() && space.read(u64::MAX, &mut id).is_none());
        assert!(space.write(SIZE - 3, &id).is_none());
    }
}
