//! A packet into the buffers that a driver receives in: one, or as many as it takes (5.1.6.3, 5.1.6.4). The network model's packets go this way, and
//! those of a port whose queues are a front end's rings.

use crate::virtio::queue::{Ahead, Broken, Chain, Part, Pass, scatter};
use wholebar_core::model::Host;

/// Where in a header it says how many buffers there are (5.1.6.1).
const BUFFERS: u64 = 10;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Done,
    NoBuffer,
    TooLong,
}

/// Scratch: the buffers that one packet is spread over.
#[derive(Default)]
pub(super) struct Merge {
    parts: Vec<Part>,
    chains: Vec<Chain>,
    /// What each chain holds, and all of them.
    sizes: Vec<usize>,
    held: usize,
}

/// Puts one packet of `len` bytes, which come in pieces and begin with a header of `header` bytes that says that there is one buffer, into the next buffer, or
/// into as many as it takes.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a ring's pass, and a packet")]
pub(super) fn put<'p, T: Pass>(
    pass: &mut T,
    host: &Host<'_>,
    ahead: &mut Ahead,
    merge: &mut Merge,
    pieces: impl Iterator<Item = &'p [u8]>,
    len: usize,
    header: usize,
    mergeable: bool,
) -> Result<Put, Broken> {
    let place = ahead.place();
    let Some((chain, parts)) = ahead.next(pass, host)? else { return Ok(Put::NoBuffer) };
    if let [part] = parts
        && part.writable
        && part.len as usize >= len
    {
        part.write(host, pieces)?;
        pass.used(chain, len as u32);
        return Ok(Put::Done);
    }
    merge.start(chain, parts, header)?;
    put_merged(pass, host, ahead, place, merge, pieces, len, mergeable)
}

/// The same for one that needs more than the buffer in `merge`, or one in several parts; `place` is where that was.
#[inline(never)]
#[allow(clippy::too_many_arguments, reason = "those of `put`, and where it began")]
fn put_merged<'p, T: Pass>(
    pass: &mut T,
    host: &Host<'_>,
    ahead: &mut Ahead,
    place: usize,
    merge: &mut Merge,
    pieces: impl Iterator<Item = &'p [u8]>,
    len: usize,
    mergeable: bool,
) -> Result<Put, Broken> {
    if !merge.fill(pass, host, ahead, place, len, mergeable)? {
        return Ok(if mergeable { Put::NoBuffer } else { Put::TooLong });
    }
    let mut at = 0;
    for bytes in pieces {
        scatter(host, &merge.parts, at, bytes)?;
        at += bytes.len() as u64;
    }
    let buffers = merge.chains.len() as u16;
    scatter(host, &merge.parts, BUFFERS, &buffers.to_le_bytes())?;
    merge.use_up(pass, len);
    Ok(Put::Done)
}

impl Merge {
    /// Begins with a chain, which holds a header of `header` bytes at least.
    fn start(&mut self, chain: Chain, parts: &[Part], header: usize) -> Result<(), Broken> {
        if size(parts)? < header {
            return Err("a receive buffer is shorter than the header".into());
        }
        self.parts.clear();
        self.chains.clear();
        self.sizes.clear();
        self.held = 0;
        self.add(chain, parts)
    }

    fn add(&mut self, chain: Chain, parts: &[Part]) -> Result<(), Broken> {
        self.parts.extend_from_slice(parts);
        self.chains.push(chain);
        let size = size(parts)?;
        self.sizes.push(size);
        self.held += size;
        Ok(())
    }

    /// Takes further chains until there is room for `len` bytes; whether there is. Else all are given back, the first of which was at `place`.
    fn fill<T: Pass>(
        &mut self,
        pass: &mut T,
        host: &Host<'_>,
        ahead: &mut Ahead,
        place: usize,
        len: usize,
        mergeable: bool,
    ) -> Result<bool, Broken> {
        while self.held < len {
            let next = if mergeable { ahead.next(pass, host)? } else { None };
            let Some((chain, parts)) = next else {
                ahead.back(pass, place, &self.chains);
                return Ok(false);
            };
            self.add(chain, parts)?;
        }
        Ok(true)
    }

    /// Marks the chains as used, with `len` bytes in all of them.
    fn use_up<T: Pass>(&self, pass: &mut T, len: usize) {
        let mut left = len;
        for (chain, size) in self.chains.iter().zip(&self.sizes) {
            // All but the last are filled (5.1.6.4.1).
            let len = left.min(*size);
            pass.used(*chain, len as u32);
            left -= len;
        }
    }
}

/// How much a receive chain holds: all of it must be there to be written.
fn size(parts: &[Part]) -> Result<usize, Broken> {
    if parts.iter().any(|p| !p.writable) {
        return Err("a receive buffer is not to be written".into());
    }
    Ok(parts.iter().map(|p| p.len as usize).sum())
}
