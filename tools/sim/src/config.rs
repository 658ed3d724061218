//! A model's configuration space: the bytes, and which of their bits can be written.
//!
//! A type 0 header (PCI Express Base 6.0, 7.5.1) with the capabilities that a driver of today looks at: power management, PCI Express (with
//! function-level reset) and MSI-X. What is written to the command register counts: without Bus Master Enable a model does
//! no DMA and signals no interrupt, as the specification has it.

use wholebar_core::model::{MsixPlace, Refused};

/// Bytes: conventional and extended space.
pub(crate) const SIZE: u64 = 4096;

/// The vendor id of these models: one that nobody is listed under, chosen so that no driver takes a model for someone's product.
pub const VENDOR: u16 = 0xfff0;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const PM: usize = 0x40;
const PCIE: usize = 0x60;
const MSIX: usize = 0xa0;

/// What a function is.
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Base class, subclass, programming interface: `0x010802`.
    pub(crate) class: u32,
    /// 64-bit memory BARs: index (0, 2 or 4) and size.
    pub(crate) bars: Vec<(u8, u64)>,
    pub(crate) msix: MsixPlace,
}

/// A configuration space.
pub(crate) struct Config {
    bytes: Box<[u8; SIZE as usize]>,
    writable: Box<[u8; SIZE as usize]>,
    initial: Box<[u8; SIZE as usize]>,
}

impl Config {
    pub(crate) fn new(identity: &Identity) -> Self {
        let zeroes = || Box::new([0; SIZE as usize]);
        let mut c = Self { bytes: zeroes(), writable: zeroes(), initial: zeroes() };
        c.put(0x00, &identity.vendor.to_le_bytes());
        c.put(0x02, &identity.device.to_le_bytes());
        // Memory space on, as the kernel's VFIO leaves it; bus mastering is the driver's to switch on.
        c.put(COMMAND, &2u16.to_le_bytes());
        // Memory space, bus master, interrupt disable.
        c.mask(COMMAND, &0x0406u16.to_le_bytes());
        // There is a capability list.
        c.put(STATUS, &0x0010u16.to_le_bytes());
        c.put(0x08, &(identity.class << 8 | 1).to_le_bytes());
        c.put(0x2c, &VENDOR.to_le_bytes());
        c.put(0x2e, &identity.device.to_le_bytes());
        for &(index, size) in &identity.bars {
            let at = BAR0 + 4 * usize::from(index);
            // 64-bit memory, not prefetchable (7.5.1.2.1).
            c.put(at, &4u32.to_le_bytes());
            c.mask(at, &(!(size - 1)).to_le_bytes());
        }
        c.put(CAPABILITIES, &[PM as u8]);
        // Power management (7.5.2), version 3, D0 and D3hot.
        c.put(PM, &[0x01, PCIE as u8, 0x03, 0x00]);
        c.mask(PM + 4, &[0x03]);
        // PCI Express (7.5.3), version 2, endpoint.
        c.put(PCIE, &[0x10, MSIX as u8, 0x02, 0x00]);
        // Device capabilities: 256-byte payload, role-based errors, function-level reset.
        c.put(PCIE + 4, &(1u32 | 1 << 15 | 1 << 28).to_le_bytes());
        c.mask(PCIE + 8, &0x70efu16.to_le_bytes());
        // Link capabilities and status: 8 GT/s, 4 lanes.
        c.put(PCIE + 0x0c, &0x0043u32.to_le_bytes());
        c.put(PCIE + 0x12, &0x0043u16.to_le_bytes());
        // Link capabilities 2 (7.5.3.18): all speeds up to it, a bit each; link control 2: it is the target.
        c.put(PCIE + 0x2c, &0x0eu32.to_le_bytes());
        c.put(PCIE + 0x30, &0x0003u16.to_le_bytes());
        // MSI-X (7.7.2): table size less one, then where table and PBA are.
        let m = &identity.msix;
        c.put(MSIX, &[0x11, 0x00]);
        c.put(MSIX + 2, &(m.vectors as u16).wrapping_sub(1).to_le_bytes());
        // Function mask and enable.
        c.mask(MSIX + 2, &0xc000u16.to_le_bytes());
        c.put(MSIX + 4, &(m.table_offset as u32 | u32::from(m.table_bar)).to_le_bytes());
        c.put(MSIX + 8, &(m.pba_offset as u32 | u32::from(m.pba_bar)).to_le_bytes());
        c.initial.copy_from_slice(&*c.bytes);
        c
    }

    /// Adds a vendor-specific capability (7.9.4) at `at`, behind those there are: id and link go before `body`.
    pub(crate) fn add_vendor_capability(&mut self, at: u8, body: &[u8]) {
        let mut last = CAPABILITIES;
        while self.bytes[last] != 0 {
            last = usize::from(self.bytes[last]) + 1;
        }
        self.put(last, &[at]);
        self.put(usize::from(at), &[0x09, 0x00]);
        self.put(usize::from(at) + 2, body);
        self.initial.copy_from_slice(&*self.bytes);
    }

    /// Lets `len` bytes at `at` be written.
    pub(crate) fn open(&mut self, at: usize, len: usize) {
        self.writable[at..at + len].fill(0xff);
    }

    /// The bytes at `at`.
    pub(crate) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes[at..].first_chunk().copied().unwrap_or([0xff; N])
    }

    /// Whether DMA and interrupts are allowed (command register, bit 2).
    #[inline]
    pub(crate) fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & 4 != 0
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let end = offset as usize + buf.len();
        buf.copy_from_slice(self.bytes.get(offset as usize..end).ok_or(Refused(libc::EINVAL))?);
        Ok(())
    }

    /// Writes the bits that can be written. Returns whether a function-level reset was asked for.
    pub(crate) fn write(&mut self, offset: u64, buf: &[u8]) -> Result<bool, Refused> {
        let start = offset as usize;
        let range = start..start + buf.len();
        let bytes = self.bytes.get_mut(range.clone()).ok_or(Refused(libc::EINVAL))?;
        for ((byte, mask), new) in bytes.iter_mut().zip(&self.writable[range.clone()]).zip(buf) {
            *byte = *byte & !mask | new & mask;
        }
        // Device control, bit 15: initiate function-level reset; it reads as 0.
        let flr = range.contains(&(PCIE + 9)) && buf[PCIE + 9 - start] & 0x80 != 0;
        Ok(flr)
    }

    /// As it was at first, but for where the BARs are: VFIO keeps those across a reset.
    pub(crate) fn reset(&mut self) {
        let bars = BAR0..BAR0 + 24;
        self.bytes[..bars.start].copy_from_slice(&self.initial[..bars.start]);
        self.bytes[bars.end..].copy_from_slice(&self.initial[bars.end..]);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn mask(&mut self, at: usize, bytes: &[u8]) {
        self.writable[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
