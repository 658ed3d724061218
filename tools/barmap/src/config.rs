//! What the bytes of a configuration space say: identity, MSI-X, SR-IOV, virtio's notifications.

use crate::{Bar, Function, Ids, MsixFact, Notify, Place, Sriov};
use wholebar_core::pci::Config;
use wholebar_core::pci::config::{BarKind, CapabilityId};

/// The Vendor-Specific capability (PCI Express Base 6.0, 7.9.4), by which virtio tells where its structures are.
const VENDOR_SPECIFIC: CapabilityId = CapabilityId::Pci(0x09);
/// SR-IOV (9.3.3).
const SRIOV: CapabilityId = CapabilityId::Extended(0x10);
/// Who makes virtio devices (Virtual I/O Device 1.2, 4.1.2).
const VIRTIO: u16 = 0x1af4;
/// VIRTIO_PCI_CAP_NOTIFY_CFG (Virtual I/O Device 1.2, 4.1.4).
const NOTIFY: u8 = 2;

/// All but BARs, whose sizes configuration space doesn't have.
pub(crate) fn of_config(name: &str, config: &Config) -> Function {
    let class = config.class();
    let known = |id: u16| (id != 0xffff).then_some(id);
    let (msix, notes) = match msix(config) {
        Ok(msix) => (msix, Vec::new()),
        Err(why) => (MsixFact::Unknown(why.clone()), vec![why]),
    };
    Function {
        name: name.to_owned(),
        ids: Ids {
            vendor: known(config.vendor()),
            device: known(config.device()),
            class: Some(u16::from(class.base) << 8 | u16::from(class.sub)),
            interface: Some(class.interface),
        },
        msix,
        notify: notify(config),
        sriov: sriov(config),
        notes,
        ..Function::default()
    }
}

/// The MSI-X capability; `Unknown` where the list of capabilities leads out of what was read.
pub(crate) fn msix(config: &Config) -> Result<MsixFact, String> {
    match config.msix() {
        Ok(Some(msix)) => Ok(MsixFact::Present(msix)),
        Ok(None) if is_whole(config) => Ok(MsixFact::Absent),
        Ok(None) => {
            Ok(MsixFact::Unknown(format!("only {} bytes of its configuration space are there", config.bytes().len())))
        }
        Err(wholebar_core::Error::Config { why, .. }) => Err(why),
        Err(e) => Err(e.to_string()),
    }
}

/// Whether the list of capabilities ends inside of the bytes.
fn is_whole(config: &Config) -> bool {
    // STATUS bit 4: there is a list.
    config.bytes().len() >= 256 || config.status() & 1 << 4 == 0
}

fn notify(config: &Config) -> Option<Notify> {
    if config.vendor() != VIRTIO {
        return None;
    }
    let mut parts = config.capabilities().filter(|cap| cap.id == VENDOR_SPECIFIC);
    let at = parts.find(|cap| config.u8(cap.offset + 3) == Some(NOTIFY))?.offset;
    Some(Notify {
        bar: config.u8(at + 4)?,
        offset: config.u32(at + 8)?.into(),
        size: config.u32(at + 12)?.into(),
        multiplier: config.u32(at + 16)?,
    })
}

fn sriov(config: &Config) -> Option<Sriov> {
    let at = config.find(SRIOV)?.offset;
    let register = |i: u8| config.u32(at + 0x24 + 4 * u16::from(i));
    let (mut bars, mut index) = (Vec::new(), 0);
    while index < 6 {
        let low = register(index)?;
        let wide = low & 0b110 == 0b100 && index < 5;
        let high = if wide { u64::from(register(index + 1)?) << 32 } else { 0 };
        let address = high | u64::from(low & !0xf);
        if low != 0 && low != u32::MAX {
            let kind = BarKind::Memory { wide, prefetchable: low & 8 != 0 };
            let place = Place { address: Some(address).filter(|a| *a != 0), size: None };
            bars.push(Bar { index, kind, place, disabled: false, hidden: true, unplaced: None, region: None });
        }
        index += if wide { 2 } else { 1 };
    }
    Some(Sriov {
        total: config.u16(at + 0x0e)?,
        enabled: config.u16(at + 0x10)?,
        offset: config.u16(at + 0x14)?,
        stride: config.u16(at + 0x16)?,
        supported_pages: config.u32(at + 0x1c),
        bars,
    })
}
