//! Chains that are taken some time before they are worked on: what they name is on its way to this core's cache meanwhile.

use super::{Broken, Chain, Part, Pass};
use wholebar_core::mem::Iova;
use wholebar_core::model::Host;

/// Scratch of a pass: chains of one descriptor that were taken, of which those from `at` on wait; and the buffers of another chain.
#[derive(Default)]
pub(in super::super) struct Ahead {
    singles: Vec<(Chain, Part)>,
    at: usize,
    parts: Vec<Part>,
}

impl Ahead {
    /// Takes up to `most` chains, as long as they are of one descriptor, and asks for the beginning of their memory.
    #[inline]
    pub(in super::super) fn prefetch<T: Pass>(&mut self, pass: &mut T, host: &Host<'_>, most: usize) {
        pass.singles(most, &mut self.singles);
        for (_, part) in &self.singles {
            host.prefetch(Iova(part.address), part.len.into(), part.writable);
        }
    }

    /// A pass begins.
    #[inline]
    pub(in super::super) fn clear(&mut self) {
        self.singles.clear();
        self.at = 0;
    }

    /// The next chain to work on, and its buffers.
    #[inline(always)]
    pub(in super::super) fn next<T: Pass>(
        &mut self,
        pass: &mut T,
        host: &Host<'_>,
    ) -> Result<Option<(Chain, &[Part])>, Broken> {
        if self.at == self.singles.len() {
            return self.other(pass, host);
        }
        let (chain, part) = &self.singles[self.at];
        self.at += 1;
        Ok(Some((*chain, std::slice::from_ref(part))))
    }

    #[inline(never)]
    fn other<T: Pass>(&mut self, pass: &mut T, host: &Host<'_>) -> Result<Option<(Chain, &[Part])>, Broken> {
        Ok(pass.next(host, &mut self.parts)?.map(|chain| (chain, &*self.parts)))
    }

    /// A place to go back to.
    #[inline]
    pub(in super::super) fn place(&self) -> usize {
        self.at
    }

    /// Goes back to a place; `chains` are those that were worked on since.
    pub(in super::super) fn back<T: Pass>(&mut self, pass: &mut T, place: usize, chains: &[Chain]) {
        pass.put_back(chains[self.at - place..].iter().copied());
        self.at = place;
    }

    /// Gives back what was taken and not worked on.
    #[inline]
    pub(in super::super) fn put_back<T: Pass>(&mut self, pass: &mut T) {
        if self.at < self.singles.len() {
            pass.put_back(self.singles[self.at..].iter().map(|(chain, _)| *chain));
        }
    }
}
