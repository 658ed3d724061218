//! A virtual function's side of the mailbox (8.14): requests and their answers. Every wait ends.

use super::regs;
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::igb::message::{self, Request, WORDS};
use std::time::{Duration, Instant};
use wholebar_core::net::Mac;

/// How long the physical function's driver may take to answer, or to be back after a reset: it may be a process that has just no core.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(30) };
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(100);

/// What reading it clears.
const CLEARED_BY_READING: u32 = regs::OTHER_WRITTEN | regs::OTHER_READ | regs::RESET_DONE;

/// The mailbox, and what it said that reading it has cleared.
pub struct Mailbox<'a> {
    hw: &'a Hardware,
    said: u32,
}

impl<'a> Mailbox<'a> {
    pub fn of(hw: &'a Hardware) -> Self {
        Self { hw, said: 0 }
    }

    /// What it says, and has said since the last exchange began.
    fn status(&mut self) -> Result<u32> {
        let now = self.hw.read(regs::MAILBOX)?;
        if now == crate::regs::GONE {
            return Err(self.hw.gone("its mailbox reads as all ones"));
        }
        self.said = self.said & CLEARED_BY_READING | now;
        Ok(self.said)
    }

    /// Waits until `is` holds of what it says, for what began then.
    fn wait(&mut self, what: &'static str, began: Instant, is: impl Fn(u32) -> bool) -> Result<u32> {
        loop {
            let over = began.elapsed() >= PATIENCE;
            let says = self.status()?;
            if is(says) {
                return Ok(says);
            }
            if over {
                return Err(Error::Unserved { device: self.hw.name(), what, waited: PATIENCE });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Begins anew, when the physical function is there; the address that it gives.
    pub fn begin(&mut self) -> Result<Mac> {
        let there = |says| says & regs::RESETTING == 0;
        self.wait("its physical function to be there", Instant::now(), there)?;
        let words = self.exchange(&Request::Reset)?;
        let mac = message::address_of(&words);
        match words[0] & message::DONE != 0 && mac.is_unicast() {
            true => Ok(mac),
            false => Err(Error::Denied { device: self.hw.name(), what: "an address" }),
        }
    }

    /// Asks for something.
    pub fn ask(&mut self, request: &Request) -> Result<()> {
        let what = match request {
            Request::Reset => "to begin anew",
            Request::Address(_) | Request::OneAddress => "that address",
            Request::Groups(_) => "those groups",
            Request::Vlan { .. } => "that VLAN",
            Request::Longest(_) => "frames of that size",
        };
        let words = self.exchange(request)?;
        match words[0] {
            first if first & message::CLEAR_TO_SEND == 0 => Err(Error::PhysicalReset { device: self.hw.name() }),
            first if first & message::DONE == 0 => Err(Error::Denied { device: self.hw.name(), what }),
            _ => Ok(()),
        }
    }

    /// Sends a request; its answer.
    fn exchange(&mut self, request: &Request) -> Result<[u32; WORDS]> {
        let words = request.words();
        self.take()?;
        if *request != Request::Reset && self.said & (regs::RESETTING | regs::RESET_DONE) != 0 {
            self.hw.write(regs::MAILBOX, 0)?;
            return Err(Error::PhysicalReset { device: self.hw.name() });
        }
        for (i, word) in words.iter().enumerate() {
            self.hw.write(regs::MEMORY + 4 * i as u64, *word)?;
        }
        self.said = 0;
        self.hw.write(regs::MAILBOX, regs::WRITTEN)?;
        let what =
            "its physical function to answer: what drives that has to serve it (`wholebar vf serve`, or Linux's igb)";
        let began = Instant::now();
        loop {
            let says =
                self.wait(what, began, |says| says & (regs::OTHER_WRITTEN | regs::RESETTING | regs::RESET_DONE) != 0)?;
            if says & (regs::RESETTING | regs::RESET_DONE) != 0 {
                return Err(Error::PhysicalReset { device: self.hw.name() });
            }
            self.said &= !regs::OTHER_WRITTEN;
            let answer = self.read()?;
            // Else it is a word of its own, which came in between.
            if Request::kind(answer[0]) == Request::kind(words[0])
                && answer[0] & (message::DONE | message::REFUSED) != 0
            {
                return Ok(answer);
            }
            // One that goes on saying something else does not answer, either.
            if began.elapsed() >= PATIENCE {
                return Err(Error::Unserved { device: self.hw.name(), what, waited: PATIENCE });
            }
        }
    }

    /// Has this side have the mailbox.
    fn take(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            self.hw.write(regs::MAILBOX, regs::TAKEN)?;
            if self.status()? & regs::TAKEN != 0 {
                return Ok(());
            }
            if began.elapsed() >= PATIENCE {
                let what = "its physical function to leave the mailbox";
                return Err(Error::Unserved { device: self.hw.name(), what, waited: PATIENCE });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What the other side has written.
    fn read(&mut self) -> Result<[u32; WORDS]> {
        self.take()?;
        let mut words = [0; WORDS];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self.hw.read(regs::MEMORY + 4 * i as u64)?;
        }
        self.hw.write(regs::MAILBOX, regs::READ)?;
        Ok(words)
    }

    /// Looks whether the physical function was reset, or says something by itself.
    ///
    /// # Errors
    /// [`Error::PhysicalReset`] where it was reset, or does not know this function any more: it has to begin anew.
    pub fn check_for_reset(&mut self) -> Result<()> {
        let says = self.status()?;
        let anew = says & (regs::RESETTING | regs::RESET_DONE) != 0
            || says & regs::OTHER_WRITTEN != 0 && self.read()?[0] & message::CLEAR_TO_SEND == 0;
        if anew { Err(Error::PhysicalReset { device: self.hw.name() }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use crate::igbvf::I82576Vf;
    use wholebar_core::PageSize;
    use wholebar_core::Work;
    use wholebar_core::model::{Host, InProcess, Model, ModelRegion, Refused, Shape};

    /// The other side of a mailbox: whatever is asked, it says the same, again and again.
    struct Says {
        words: [u32; WORDS],
        taken: u32,
    }

    impl Model for Says {
        fn shape(&self) -> Shape {
            let mut regions = vec![ModelRegion::default(); 8];
            (regions[0].size, regions[7].size) = (regs::SIZE, 64);
            Shape { name: "says".to_owned(), page: PageSize::host(), regions, irqs: Vec::new(), msix: None }
        }

        fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
            buf.fill(0);
            let word = match (region, offset) {
                (7, 0) => 0x10ca_8086,
                (0, regs::MAILBOX) => regs::OTHER_WRITTEN | self.taken,
                (0, at) if (regs::MEMORY..regs::MEMORY + 4 * WORDS as u64).contains(&at) => {
                    self.words[(at - regs::MEMORY) as usize / 4]
                }
                _ => 0,
            };
            buf.iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
            Ok(())
        }

        fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
            if (region, offset) == (0, regs::MAILBOX) {
                self.taken = u32::from(buf[0]) & regs::TAKEN;
            }
            Ok(())
        }

        fn reset(&mut self) {}

        fn poll(&mut self, _: &mut Host<'_>) -> Work {
            Work::Idle
        }
    }

    fn hardware(first: u32) -> Hardware {
        let words = std::array::from_fn(|i| if i == 0 { first } else { 0x0012_5452 });
        let device = InProcess::new(Says { words, taken: 0 }).unwrap();
        Hardware::open::<I82576Vf>(device, &Options::default()).unwrap()
    }

    #[test]
    fn an_answer_is_taken_and_a_refusal_told() {
        let asked = Request::Longest(1522);
        let done = hardware(message::answer(asked.words()[0], true, None)[0]);
        assert!(Mailbox::of(&done).ask(&asked).is_ok());
        let refused = hardware(message::answer(asked.words()[0], false, None)[0]);
        assert!(matches!(Mailbox::of(&refused).ask(&asked), Err(Error::Denied { .. })));
        assert!(matches!(Mailbox::of(&refused).begin(), Err(Error::Unserved { .. })), "it is of another request");
    }

    /// A driver of the physical function that talks all the time, and never of what was asked.
    #[test]
    fn one_that_says_something_else_for_ever_is_not_heard_for_ever() {
        let hw = hardware(message::CONTROL | message::CLEAR_TO_SEND);
        let asked = Mailbox::of(&hw).ask(&Request::Vlan { vlan: 7, on: true });
        assert!(matches!(asked, Err(Error::Unserved { .. })), "{asked:?}");
        assert!(matches!(Mailbox::of(&hw).begin(), Err(Error::Unserved { .. })));
    }
}
