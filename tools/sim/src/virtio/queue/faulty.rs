//! A pass over a queue in which what was used goes wrong, as a seeded plan says: see [`faults`](crate::faults).

use super::{Broken, Chain, Part, Pass};
use crate::faults::{Fault, Faults};
use wholebar_core::model::Host;

/// What goes wrong with buffers that a virtio device used; the rest of the kinds mean nothing there.
pub(in super::super) const KINDS: [Fault; 7] =
    [Fault::Drop, Fault::Duplicate, Fault::WrongId, Fault::Corrupt, Fault::Fatal, Fault::Hang, Fault::Vanish];

/// A pass, and what goes wrong with it.
pub(in super::super) struct Faulty<'f, T> {
    pass: T,
    faults: &'f mut Faults,
    end: &'f mut Option<Fault>,
}

impl<'f, T: Pass> Faulty<'f, T> {
    /// `end` becomes what ends the device, if something does.
    pub(in super::super) fn new(pass: T, faults: &'f mut Faults, end: &'f mut Option<Fault>) -> Self {
        Self { pass, faults, end }
    }
}

impl<T: Pass> Pass for Faulty<'_, T> {
    fn next(&mut self, host: &Host<'_>, parts: &mut Vec<Part>) -> Result<Option<Chain>, Broken> {
        if self.end.is_some() { Ok(None) } else { self.pass.next(host, parts) }
    }

    fn singles(&mut self, most: usize, out: &mut Vec<(Chain, Part)>) {
        if self.end.is_none() {
            self.pass.singles(most, out);
        }
    }

    fn put_back(&mut self, chains: impl DoubleEndedIterator<Item = Chain>) {
        self.pass.put_back(chains);
    }

    fn used(&mut self, chain: Chain, len: u32) {
        // What was taken ahead of the end.
        if self.end.is_some() {
            return;
        }
        let fault = self.faults.strike(false);
        let chance = self.faults.random();
        match fault {
            Some(Fault::Drop) => {}
            Some(Fault::Duplicate) => {
                self.pass.used(chain, len);
                self.pass.used(chain, len);
            }
            Some(Fault::WrongId) => {
                self.pass.used(Chain { id: chain.id ^ ((chance % 0xffff) as u16 + 1), ..chain }, len)
            }
            Some(Fault::Corrupt) => self.pass.used(chain, chance as u32),
            Some(fault @ (Fault::Fatal | Fault::Vanish)) => *self.end = Some(fault),
            _ => self.pass.used(chain, len),
        }
    }

    fn used_unwritten(&mut self, chain: Chain) {
        // One by one, in whatever order was agreed on: each can be struck.
        self.used(chain, 0);
    }

    fn finish(self, asked: bool) -> bool {
        self.pass.finish(asked)
    }
}
