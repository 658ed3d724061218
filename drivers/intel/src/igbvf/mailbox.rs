//! A virtual function's side of the mailbox (8.14): requests and their answers. Every wait ends.

use super::regs;
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::igb::message::{self, Request, WORDS};
use std::time::{Duration, Instant};
use wholebar_core::net::Mac;

/// How long the physical function's driver may take to answer, or to be back after a reset: it may be a process that has just no core.
const PATIENCE: Duration = Duration::from_secs(30);
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

    /// Waits until `is` holds of what it says.
    fn wait(&mut self, what: &'static str, is: impl Fn(u32) -> bool) -> Result<u32> {
        let began = Instant::now();
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
        self.wait("its physical function to be there", |says| says & regs::RESETTING == 0)?;
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
            Request::Address(_) => "that address",
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
        loop {
            let what = "its physical function to answer: what drives that has to serve it (`wholebar vf serve`, or Linux's igb)";
            let says =
                self.wait(what, |says| says & (regs::OTHER_WRITTEN | regs::RESETTING | regs::RESET_DONE) != 0)?;
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
