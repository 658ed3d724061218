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
    /// Descriptors that were read, but for those of `singles`.
    read: usize,
}

/// Descriptors after which a pass finds no further chain, as many as the largest ring has: what is left is for the next pass. A ring can name as many chains as it has
/// entries, each of as many descriptors, and all of them empty.
const MOST: usize = 32_768;

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
        (self.at, self.read) = (0, 0);
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
        if self.read >= MOST {
            return Ok(None);
        }
        let Some(chain) = pass.next(host, &mut self.parts)? else { return Ok(None) };
        self.read += self.parts.len();
        Ok(Some((chain, &self.parts)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::net::{NetParams, model};
    use wholebar_core::model::ModelFunction;

    /// A queue whose chains never end, each of so many descriptors of no bytes.
    struct Endless(usize);

    impl Pass for Endless {
        fn next(&mut self, _: &Host<'_>, parts: &mut Vec<Part>) -> Result<Option<Chain>, Broken> {
            parts.clear();
            parts.resize(self.0, Part { address: 0, len: 0, writable: true });
            Ok(Some(Chain { id: 0, entries: 1 }))
        }

        fn singles(&mut self, _: usize, _: &mut Vec<(Chain, Part)>) {}
        fn put_back(&mut self, _: impl DoubleEndedIterator<Item = Chain>) {}
        fn used(&mut self, _: Chain, _: u32) {}
        fn used_unwritten(&mut self, _: Chain) {}
        fn finish(self, _: bool) -> bool {
            false
        }
    }

    #[test]
    fn a_pass_ends_whatever_chains_there_are() {
        let mut function = ModelFunction::new(model(NetParams::default()).unwrap().0);
        function.with(|_, host| {
            for (each, chains) in [(1, MOST), (1000, 33), (MOST, 1)] {
                let (mut ahead, mut pass) = (Ahead::default(), Endless(each));
                for _ in 0..2 {
                    ahead.clear();
                    ahead.prefetch(&mut pass, host, 32);
                    let mut count = 0;
                    while ahead.next(&mut pass, host).unwrap().is_some() {
                        count += 1;
                    }
                    assert_eq!(count, chains, "chains of {each}");
                }
            }
        });
    }
}
