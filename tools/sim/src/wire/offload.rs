//! What a card does to packets on behalf of a driver: completes checksums, and cuts TCP segments (VIRTIO 1.2, 5.1.6.2).

use super::frame::{Frame, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Offload};

/// What the receiver of a packet can do itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Accepts {
    pub(crate) csum: bool,
    pub(crate) tso4: bool,
    pub(crate) tso6: bool,
    pub(crate) ecn: bool,
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
    let ecn = o.gso_type & GSO_ECN == 0 || accepts.ecn;
    let taken = match o.gso_type & !GSO_ECN {
        GSO_TCPV4 => accepts.csum && accepts.tso4 && ecn,
        GSO_TCPV6 => accepts.csum && accepts.tso6 && ecn,
        _ => accepts.csum,
    };
    if taken {
        return Ok(Fit::Fits);
    }
    if o.gso_type != GSO_NONE {
        return Ok(Fit::Cut);
    }
    complete(frame.packet_mut(), o.csum_start.into(), o.csum_offset.into())?;
    frame.set_offload(&Offload::default());
    Ok(Fit::Fits)
}

/// Completes a checksum: the field holds the pseudo header's sum.
fn complete(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let sum = finish(add(0, packet.get(start..).ok_or(Malformed)?));
    // A UDP checksum of zero would mean that there is none (RFC 768); its field is at 6.
    let sum = if sum == 0 && offset == 6 { 0xffff } else { sum };
    let field = packet.get_mut(start + offset..start + offset + 2).ok_or(Malformed)?;
    field.copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// Where the headers of a TCP packet are.
struct Headers {
    ip: usize,
    tcp: usize,
    payload: usize,
    v6: bool,
}

/// Finds them. The transport header is where the checksum starts.
fn headers(packet: &[u8], o: &Offload) -> Result<Headers, Malformed> {
    let half = |at: usize| packet.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(Malformed);
    let mut ip = 14;
    // VLAN tags: 802.1Q and 802.1ad.
    while matches!(half(ip - 2)?, 0x8100 | 0x88a8) {
        ip += 4;
    }
    let v6 = match (half(ip - 2)?, o.gso_type & !GSO_ECN) {
        (0x0800, GSO_TCPV4) => false,
        (0x86dd, GSO_TCPV6) => true,
        _ => return Err(Malformed),
    };
    let tcp = usize::from(o.csum_start);
    let shortest = ip + if v6 { 40 } else { 20 };
    let words = usize::from(packet.get(tcp + 12).ok_or(Malformed)? >> 4);
    let payload = tcp + 4 * words;
    let fits = tcp >= shortest && words >= 5 && payload <= packet.len() && o.csum_offset == 16;
    // IPv4: the header's own length says where it ends.
    let fits = fits && (v6 || ip + 4 * usize::from(packet[ip] & 15) == tcp);
    if fits { Ok(Headers { ip, tcp, payload, v6 }) } else { Err(Malformed) }
}

/// Cuts a packet into segments of its `gso_size`, each complete. `each` gets room for one, of the length it says.
pub(crate) fn cut<E>(
    packet: &[u8],
    o: &Offload,
    mut each: impl FnMut(usize, &mut dyn FnMut(&mut [u8])) -> Result<(), E>,
) -> Result<Result<(), E>, Malformed> {
    let h = headers(packet, o)?;
    let size = usize::from(o.gso_size);
    let (head, payload) = packet.split_at(h.payload);
    let count = payload.len().div_ceil(size).max(1);
    for i in 0..count {
        let part = &payload[(i * size).min(payload.len())..((i + 1) * size).min(payload.len())];
        let done = each(head.len() + part.len(), &mut |out| {
            out[..head.len()].copy_from_slice(head);
            out[head.len()..].copy_from_slice(part);
            segment(out, &h, i, i * size, i + 1 == count);
        });
        if done.is_err() {
            return Ok(done);
        }
    }
    Ok(Ok(()))
}

/// Makes the headers of segment `i` right, which starts `skipped` bytes into the payload.
fn segment(out: &mut [u8], h: &Headers, i: usize, skipped: usize, last: bool) {
    const FLAGS: usize = 13;
    let (ip, tcp) = (h.ip, h.tcp);
    if h.v6 {
        let len = (out.len() - ip - 40) as u16;
        out[ip + 4..ip + 6].copy_from_slice(&len.to_be_bytes());
    } else {
        let len = (out.len() - ip) as u16;
        out[ip + 2..ip + 4].copy_from_slice(&len.to_be_bytes());
        let id = u16::from_be_bytes([out[ip + 4], out[ip + 5]]).wrapping_add(i as u16);
        out[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
        out[ip + 10..ip + 12].fill(0);
        let sum = finish(add(0, &out[ip..tcp]));
        out[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let seq = u32::from_be_bytes([out[tcp + 4], out[tcp + 5], out[tcp + 6], out[tcp + 7]]).wrapping_add(skipped as u32);
    out[tcp + 4..tcp + 8].copy_from_slice(&seq.to_be_bytes());
    if !last {
        // FIN and PSH belong to the last segment.
        out[tcp + FLAGS] &= !0x09;
    }
    if i > 0 {
        // CWR belongs to the first (RFC 3168).
        out[tcp + FLAGS] &= !0x80;
    }
    out[tcp + 16..tcp + 18].fill(0);
    let addresses = if h.v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    // The pseudo header: addresses, protocol, length.
    let pseudo = add(6 + (out.len() - tcp) as u64, &out[addresses]);
    let sum = finish(add(pseudo, &out[tcp..]));
    out[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Adds 16-bit words to a ones' complement sum.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(sum, |sum, w| sum + u64::from(u32::from_be_bytes(*w)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum into a checksum.
fn finish(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
