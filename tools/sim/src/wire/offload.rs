//! What a card does to packets on behalf of a driver: completes checksums, and cuts TCP segments (VIRTIO 1.2, 5.1.6.2).

use super::frame::{Frame, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Offload};
use wholebar_core::mem::L4;
use wholebar_core::net::gso;

/// What the receiver of a packet can do itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Accepts {
    pub(crate) csum: bool,
    pub(crate) tso4: bool,
    pub(crate) tso6: bool,
    pub(crate) ecn: bool,
}

impl Accepts {
    /// Whether the receiver takes a packet as its header says that it is.
    pub(crate) fn takes(self, o: &Offload) -> bool {
        let ecn = o.gso_type & GSO_ECN == 0 || self.ecn;
        match o.gso_type & !GSO_ECN {
            GSO_TCPV4 => self.csum && self.tso4 && ecn,
            GSO_TCPV6 => self.csum && self.tso6 && ecn,
            _ => self.csum || o.flags & NEEDS_CSUM == 0,
        }
    }
}

/// A packet that can't be what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// What is to be done to a packet for its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Nothing (more).
    Fits,
    /// It is to be cut into segments.
    Cut,
}

/// Whether a header makes sense for its packet: what is looked at later is inside.
pub(crate) fn check(o: &Offload, len: usize) -> Result<(), Malformed> {
    let needs = o.flags & NEEDS_CSUM != 0;
    let inside = usize::from(o.csum_start) + usize::from(o.csum_offset) + 2 <= len;
    let kind = o.gso_type & !GSO_ECN;
    let gso = match kind {
        GSO_NONE => o.gso_type & GSO_ECN == 0,
        GSO_TCPV4 | GSO_TCPV6 => needs && o.gso_size > 0,
        _ => false,
    };
    if gso && (!needs || inside) { Ok(()) } else { Err(Malformed) }
}

/// Does what the receiver can't, but for cutting.
pub(crate) fn fit(frame: &mut Frame, accepts: Accepts) -> Result<Fit, Malformed> {
    let o = frame.offload();
    if o.flags & NEEDS_CSUM == 0 && o.gso_type == GSO_NONE {
        return Ok(Fit::Fits);
    }
    check(&o, frame.len())?;
    if accepts.takes(&o) {
        return Ok(Fit::Fits);
    }
    if o.gso_type != GSO_NONE {
        return Ok(Fit::Cut);
    }
    gso::complete(frame.packet_mut(), o.csum_start.into(), o.csum_offset.into()).ok_or(Malformed)?;
    frame.set_offload(&Offload::default());
    Ok(Fit::Fits)
}

/// Cuts a packet into segments of its `gso_size`, each complete. `each` gets room for one, of the length it says.
pub(crate) fn cut<E>(
    packet: &[u8],
    o: &Offload,
    mut each: impl FnMut(usize, &mut dyn FnMut(&mut [u8])) -> Result<(), E>,
) -> Result<Result<(), E>, Malformed> {
    let v6 = match o.gso_type & !GSO_ECN {
        GSO_TCPV4 => false,
        GSO_TCPV6 => true,
        _ => return Err(Malformed),
    };
    // The transport header is where the checksum starts.
    let headers = gso::Headers::of(packet, v6, L4::Tcp, Some(o.csum_start.into())).filter(|_| o.csum_offset == 16);
    let headers = headers.ok_or(Malformed)?;
    let size = usize::from(o.gso_size);
    let (head, payload) = packet.split_at(headers.len());
    let count = payload.len().div_ceil(size).max(1);
    for i in 0..count {
        let part = &payload[(i * size).min(payload.len())..((i + 1) * size).min(payload.len())];
        let done = each(head.len() + part.len(), &mut |out| {
            out[..head.len()].copy_from_slice(head);
            out[head.len()..].copy_from_slice(part);
            headers.complete(out, i, i * size, i + 1 == count);
        });
        if done.is_err() {
            return Ok(done);
        }
    }
    Ok(Ok(()))
}
