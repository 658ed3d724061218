//! A TAP interface as a wire: the kernel's network stack is at the other end.

use super::Frame;
use super::frame::HEADER;
use crate::{Error, Result};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use wholebar_core::tap::Tap;

/// A TAP interface, and a frame that any packet fits in.
pub(super) struct TapEnd {
    tap: Tap,
    landing: Frame,
    /// The interface is gone: said once.
    gone: bool,
}

impl TapEnd {
    pub(super) fn open(name: &str) -> Result<Self> {
        let tap = Tap::open(name).map_err(|source| {
            let hint = match source.kind() {
                ErrorKind::PermissionDenied => {
                    " (it takes CAP_NET_ADMIN, or an interface made for you: ip tuntap add NAME mode tap user YOU)"
                }
                ErrorKind::Unsupported => " (make it without: ip tuntap add NAME mode tap)",
                ErrorKind::ResourceBusy => " (another process has it)",
                ErrorKind::NotFound => " (there is no /dev/net/tun: modprobe tun)",
                ErrorKind::InvalidInput => {
                    " (a name has 1 to 15 plain characters, and is no other kind of interface's)"
                }
                _ => "",
            };
            Error::Tap { name: name.to_owned(), cause: source, hint }
        })?;
        Ok(Self { tap, landing: Frame::longest(), gone: false })
    }

    /// Hands packets to the kernel; returns how many it did not take.
    pub(super) fn send(&mut self, frames: &mut [Frame]) -> u64 {
        let mut lost = 0;
        for frame in frames {
            match self.tap.write(frame.with_header(HEADER)) {
                Ok(true) => {}
                Ok(false) => lost += 1,
                Err(error) => {
                    lost += 1;
                    self.failed(&error);
                }
            }
        }
        lost
    }

    /// The next packet from the kernel, swapped into `frame`.
    pub(super) fn receive(&mut self, frame: &mut Frame) -> bool {
        self.landing.resize(super::LONGEST);
        match self.tap.read(self.landing.with_header(HEADER)) {
            Ok(Some(n)) if n > HEADER => {
                self.landing.resize(n - HEADER);
                if !frame.copy(&self.landing) {
                    std::mem::swap(frame, &mut self.landing);
                }
                true
            }
            Ok(_) => false,
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    /// Whether the interface refused packets: its descriptor says nothing any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    #[cold]
    fn failed(&mut self, error: &std::io::Error) {
        if !self.gone {
            tracing::warn!(interface = self.tap.name(), %error, "the TAP interface refuses packets");
            self.gone = true;
        }
    }
}
