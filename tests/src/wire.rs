//! Numbered frames between two ports, whichever drivers have them: sent in a stream, one by one, or not at all.

use crate::guest::SOON;
use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;
use std::time::{Duration, Instant};
use wholebar::mem::{Buf, Pool};
use wholebar::net::{Burst, Mac, RxQueue, TxQueue};

/// For experiments (IEEE 802), so that nobody else answers.
const TYPE: [u8; 2] = [0x88, 0xb5];
/// Frames under way at most: fewer than a queue has descriptors.
const WINDOW: u64 = 128;
/// Frames from this number on are no part of a stream: what was sent during a reset may come any time later.
pub const CHAFF: u64 = 1 << 63;

/// A frame that has a number, and bytes that tell it; at least 22 bytes.
pub fn numbered(buf: &mut Buf, to: Mac, from: Mac, number: u64, len: usize) {
    buf.set_len(len as u32);
    let bytes = buf.bytes_mut();
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&from.0);
    bytes[12..14].copy_from_slice(&TYPE);
    bytes[14..22].copy_from_slice(&number.to_be_bytes());
    for (i, byte) in bytes[22..].iter_mut().enumerate() {
        *byte = pattern(number, i);
    }
}

/// The number of such a frame, if nothing in it is wrong.
///
/// # Errors
/// What is wrong.
pub fn number(bytes: &[u8]) -> Result<u64> {
    ensure!(bytes.len() >= 22 && bytes[12..14] == TYPE, "this is no frame of ours: {bytes:02x?}");
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[14..22]);
    let number = u64::from_be_bytes(number);
    let wrong = bytes[22..].iter().enumerate().position(|(i, byte)| *byte != pattern(number, i));
    ensure!(wrong.is_none(), "frame {number} of {} bytes is wrong at {wrong:?}", bytes.len());
    Ok(number)
}

fn pattern(number: u64, i: usize) -> u8 {
    (number as u8).wrapping_mul(31).wrapping_add(i as u8).wrapping_add((i >> 8) as u8)
}

/// Sends numbered frames of `len(number)` bytes from one station to another; all of them come, in order, as they were. [`CHAFF`] that comes is passed
/// over.
///
/// # Errors
/// What did not come, or not as it was.
pub fn stream(
    (us, pool, tx): (Mac, &Pool, &mut dyn TxQueue),
    (them, rx): (Mac, &mut dyn RxQueue),
    numbers: Range<u64>,
    len: impl Fn(u64) -> usize,
) -> Result<()> {
    let (mut out, mut came) = (Burst::new(32), Burst::new(32));
    let (mut next, mut expected, began) = (numbers.start, numbers.start, Instant::now());
    while expected < numbers.end {
        while next < numbers.end && next - expected < WINDOW && out.room() > 0 {
            let Some(mut buf) = pool.get() else { break };
            numbered(&mut buf, them, us, next, len(next));
            out.push(buf).ok().context("there is room")?;
            next += 1;
        }
        tx.tx(&mut out);
        rx.rx(&mut came);
        for packet in came.take(32) {
            let got = number(packet.bytes())?;
            if got >= CHAFF {
                continue;
            }
            ensure!(got == expected, "frame {got} came instead of {expected}");
            ensure!(packet.len() as usize == len(got), "frame {got} has {} bytes", packet.len());
            expected += 1;
        }
        ensure!(began.elapsed() < SOON, "frame {expected} did not come: {:?}, {:?}", tx.state(), rx.state());
    }
    while tx.in_flight() > 0 {
        tx.reclaim();
        ensure!(began.elapsed() < SOON, "{} frames are not known to be sent", tx.in_flight());
    }
    Ok(())
}

/// Sends packets, all of them.
///
/// # Errors
/// That there was no room for them.
pub fn send(tx: &mut dyn TxQueue, packets: impl IntoIterator<Item = Buf>) -> Result<()> {
    let began = Instant::now();
    for packet in packets {
        let mut burst = Burst::new(1);
        burst.push(packet).ok().context("there is room")?;
        while tx.tx(&mut burst) == 0 {
            ensure!(began.elapsed() < SOON, "no room to send: {:?}", tx.state());
        }
    }
    Ok(())
}

/// The next packet that comes.
///
/// # Errors
/// That none does.
pub fn receive(rx: &mut dyn RxQueue) -> Result<Buf> {
    let (began, mut burst) = (Instant::now(), Burst::new(1));
    while began.elapsed() < SOON {
        rx.rx(&mut burst);
        if let Some(packet) = burst.pop() {
            return Ok(packet);
        }
    }
    bail!("nothing came: {:?}", rx.state())
}

/// That nothing comes for a while.
///
/// # Errors
/// What came.
pub fn silence(rx: &mut dyn RxQueue) -> Result<()> {
    let (began, mut burst) = (Instant::now(), Burst::new(1));
    while began.elapsed() < Duration::from_millis(100) {
        rx.rx(&mut burst);
        if let Some(packet) = burst.pop() {
            bail!("this came: {:02x?}", &packet.bytes()[..packet.bytes().len().min(64)]);
        }
    }
    Ok(())
}
