//! Packets that tell their number and their bytes: what they are, and what they must be when they come.

use wholebar::mem::Buf;
use wholebar::net::Mac;

/// The type of frames for local experiments (IEEE 802, 9.2.4), which nobody else answers.
pub const ETHERTYPE: [u8; 2] = 0x88b5u16.to_be_bytes();

/// Returns an Ethernet frame of `len` bytes, at least 22, to `to`, whose content tells its number.
pub fn frame(to: Mac, len: usize, number: u64) -> Vec<u8> {
    let mut frame = [&to.0[..], &[2, 0, 0, 0, 0, 1], &ETHERTYPE].concat();
    frame.extend(number.to_le_bytes());
    let mut word = number ^ 0x9e37_79b9_7f4a_7c15;
    while frame.len() < len {
        word = word.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(17) ^ frame.len() as u64;
        frame.push(word as u8);
    }
    frame
}

/// Returns the number of a frame that [`frame`] made; `None` for others.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let number = bytes.get(14..22)?.try_into().ok()?;
    (bytes[12..14] == ETHERTYPE).then(|| u64::from_le_bytes(number))
}

/// Returns the bytes of a packet, in however many buffers it is.
pub fn bytes(packet: &Buf) -> Vec<u8> {
    packet.segments().flat_map(|b| b.bytes().to_vec()).collect()
}
