//! A device that was opened: what its configuration space and its backend say.

use crate::config::of_config;
use crate::{Bar, Function, Open, Place};
use wholebar_core::Result;
use wholebar_core::pci::config::BarKind;
use wholebar_core::pci::{Config, PciDevice};

impl Function {
    /// What a device says that was opened. Nothing is read but its configuration space and, of an NVMe controller, CAP: by message or system call,
    /// and only where its memory is decoded.
    ///
    /// # Errors
    /// [`wholebar_core::Error::Access`] where a register cannot be reached, and [`wholebar_core::Error::Config`] where the configuration space makes no sense.
    pub fn of_device(device: &dyn PciDevice) -> Result<Self> {
        let config = Config::of(device)?;
        let mut function = of_config(device.name(), &config);
        function.address = device.name().parse().ok();
        let registers = config.bars();
        let mut bars = Vec::new();
        for index in 0..6u8 {
            let region = device.region(index.into())?;
            if region.size == 0 {
                continue;
            }
            // A backend need not show the address, and may show none of the flags.
            let register = registers.iter().find(|register| register.index == index);
            let memory = BarKind::Memory { wide: false, prefetchable: false };
            let kind = register.map_or(memory, |register| register.kind);
            let place = Place { address: None, size: Some(region.size) };
            let disabled = matches!(kind, BarKind::Memory { .. }) && !config.memory_enabled();
            bars.push(Bar { index, kind, place, disabled, hidden: false, unplaced: None, region: Some(region) });
        }
        function.bars = bars;
        function.open = Some(Open { kind: device.kind(), page: device.page_size(), isolation: device.isolation() });
        if (function.ids.class, function.ids.interface) == (Some(0x0108), Some(2)) && config.memory_enabled() {
            // CAP.DSTRD, bits 35:32 (NVM Express Base 2.0, 3.1.3.1).
            let mut dword = [0; 4];
            if device.read(0, 4, &mut dword).is_ok() && dword != [0xff; 4] {
                function.doorbell_stride = Some(4 << (dword[0] & 0xf));
            }
        }
        Ok(function)
    }
}
