//! Little-endian fields of what a controller wrote; what lies outside of it reads as 0.

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(crate) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(array(bytes, at))
}

/// Text, without what pads it; what isn't printable ASCII becomes a question mark.
pub(crate) fn text(bytes: &[u8], at: usize, len: usize) -> String {
    let field = bytes.get(at..at.saturating_add(len)).unwrap_or(&[]);
    let text: String = field.iter().map(|b| if matches!(b, b' '..=b'~') { char::from(*b) } else { '?' }).collect();
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    text[..end].trim().to_owned()
}
