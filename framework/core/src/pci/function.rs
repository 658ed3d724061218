//! A PCI function as a whole: its presence, and its reset. How a backend resets it is up to the backend ([`PciDevice`]).

use super::{CONFIG, PciDevice, config};
use crate::{Error, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where revision and class code are in configuration space, 4 bytes together (PCI Express Base 6.0, 7.5.1.1.5 and 7.5.1.1.6).
pub(crate) const CLASS: u64 = 0x08;
/// What they read where no function is: a bus answers all ones for nobody (2.3.2). No class code is that (base class FFh has no others).
pub(crate) const NOBODY: [u8; 4] = [0xff; 4];
/// How long a function may take to answer after a reset (6.6.1: 1 s, and some are late).
const RETURN: Duration = Duration::from_secs(2);
/// How often it is asked at least: who got no core for two seconds knows nothing of the function.
const ASKED: u32 = 100;

/// The opening of a device by its driver, which lasts as long as this value.
///
/// A backend with a peer bounds the time that all of the peer's answers take together meanwhile.
pub struct Opening(Arc<dyn PciDevice>);

impl Opening {
    /// Begins it.
    pub fn of(device: Arc<dyn PciDevice>) -> Self {
        device.opening(true);
        Self(device)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening(false);
    }
}

/// Returns whether nothing answers for the function on its bus.
///
/// A function that is not there writes nothing. A mapped register cannot show this: it still reads as it did when a vfio-user peer is dead.
///
/// The call reads revision and class code, not the ids: the kernel's VFIO answers for vendor and device id itself, whatever is there.
///
/// # Errors
/// [`Error::Access`] where the register cannot be read; [`Error::Gone`] once the backend has given the device up, which says nothing about the bus.
pub fn is_absent(device: &dyn PciDevice) -> Result<bool> {
    let mut class = [0; 4];
    device.read(CONFIG, CLASS, &mut class)?;
    Ok(class == NOBODY)
}

/// Checks that the function is there: one read of configuration space.
///
/// # Errors
/// [`Error::Gone`] where it [is absent](is_absent); [`Error::Access`] where the register cannot be read.
pub fn check(device: &dyn PciDevice) -> Result<()> {
    if is_absent(device)? { Err(gone(device, "its configuration space reads all ones")) } else { Ok(()) }
}

/// Resets the function, waits until it answers again, and enables its memory BARs.
///
/// Linux: `pcie_flr` and `pci_dev_wait`.
///
/// Whether bus mastering is on afterwards depends on the backend: call [`config::enable_bus_master`]. While the function does not answer, the reset
/// is taken for the cause, and not a removal.
///
/// # Errors
/// [`Error::Gone`] where the function does not answer within 2 s; [`Error::Access`] where configuration space cannot be reached; what
/// [`PciDevice::reset`] returns.
pub fn reset(device: &dyn PciDevice) -> Result<()> {
    device.reset()?;
    wait_for_return(device, "a function level reset")
}

/// Resets all that is in the function's slot, or on its bus, waits until this function answers again, and enables its memory BARs.
///
/// Linux: `pci_reset_bus`.
///
/// # Errors
/// Those of [`reset`], and [`Error::NoSlotReset`].
pub fn reset_slot(device: &dyn PciDevice) -> Result<()> {
    device.reset_slot()?;
    wait_for_return(device, "a reset of its slot")
}

fn wait_for_return(device: &dyn PciDevice, reset: &str) -> Result<()> {
    let (start, mut asked) = (Instant::now(), 0);
    while is_absent(device)? {
        asked += 1;
        if asked >= ASKED && start.elapsed() >= RETURN {
            return Err(gone(device, &format!("it did not come back from {reset}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    config::enable_memory(device, true)
}

fn gone(device: &dyn PciDevice, why: &str) -> Error {
    Error::Gone { device: device.name().to_owned(), why: why.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::model::{Host, InProcess, Model, ModelRegion, Refused, Shape};
    use crate::{PageSize, Work};

    /// A function whose ids somebody else answers for, as the kernel's VFIO does.
    pub(crate) struct Slot {
        /// How many times more it is asked before it answers.
        away: u32,
        /// How long it is away after a reset.
        late: u32,
        command: [u8; 2],
    }

    impl Slot {
        pub(crate) fn start(away: u32, late: u32) -> std::sync::Arc<InProcess> {
            InProcess::new(Self { away, late, command: [0; 2] }).unwrap()
        }
    }

    impl Model for Slot {
        fn shape(&self) -> Shape {
            let mut regions = vec![ModelRegion::default(); 8];
            regions[CONFIG as usize].size = 256;
            Shape { name: "slot".to_owned(), page: PageSize::host(), regions, irqs: Vec::new(), msix: None }
        }

        fn read(&mut self, _: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
            let here = self.away == 0;
            match offset {
                0 => buf.copy_from_slice(&[0x36, 0x1b, 0x10, 0x00][..buf.len()]),
                4 if here => buf.copy_from_slice(&self.command),
                CLASS if here => buf.copy_from_slice(&[0x02, 0x02, 0x08, 0x01]),
                _ => {
                    self.away = self.away.saturating_sub(1);
                    buf.fill(0xff);
                }
            }
            Ok(())
        }

        fn write(&mut self, _: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
            if offset == 4 {
                self.command.copy_from_slice(buf);
            }
            Ok(())
        }

        fn reset(&mut self) {
            (self.away, self.command) = (self.late, [0; 2]);
        }

        fn poll(&mut self, _: &mut Host<'_>) -> Work {
            Work::Idle
        }
    }

    fn vendor(device: &dyn PciDevice) -> [u8; 2] {
        let mut id = [0; 2];
        device.read(CONFIG, 0, &mut id).unwrap();
        id
    }

    #[test]
    fn who_is_gone_is_known_by_what_nobody_answers_for() {
        let (here, gone) = (Slot::start(0, 0), Slot::start(u32::MAX, 0));
        assert!(!is_absent(here.as_ref()).unwrap() && is_absent(gone.as_ref()).unwrap());
        check(here.as_ref()).unwrap();
        assert_eq!(
            check(gone.as_ref()).unwrap_err().to_string(),
            "slot is gone: its configuration space reads all ones"
        );
        assert_eq!(vendor(gone.as_ref()), [0x36, 0x1b], "its ids tell nothing");
    }

    #[test]
    fn a_reset_waits_for_the_function() {
        let slow = Slot::start(0, 5);
        reset(slow.as_ref()).unwrap();
        let mut command = [0; 2];
        slow.read(CONFIG, 4, &mut command).unwrap();
        assert_eq!(command, [2, 0], "its memory answers");
        let lost = Slot::start(0, u32::MAX);
        let error = reset(lost.as_ref()).unwrap_err();
        assert_eq!(error.to_string(), "slot is gone: it did not come back from a function level reset");
    }
}
