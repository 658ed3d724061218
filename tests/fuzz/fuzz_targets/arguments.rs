//! What people write on command lines, and any text instead: it is understood or refused, nothing panics, and what is written again is understood
//! as the same.
#![no_main]

#[path = "../../../apps/wholebar/src/args.rs"]
#[allow(dead_code)]
mod args;

use args::{Cores, Size};
use libfuzzer_sys::fuzz_target;
use std::fmt::Display;
use std::str::FromStr;
use wholebar::measure::net::rate::{Rate, RateLimiter};
use wholebar::measure::net::sizes::Sizes;
use wholebar::net::{Faults, Mac};
use wholebar::pci::Address;
use wholebar::sim::nvme::NvmeParams;
use wholebar::sim::virtio::blk::BlkParams;
use wholebar::sim::virtio::net::NetParams;
use wholebar::vfio::VfToken;

/// Text that is understood is so again when it is written.
fn again<T: FromStr + Display + PartialEq>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    let written = value.to_string();
    assert!(written.parse().is_ok_and(|same: T| same == value), "{text:?} is written as {written:?}");
    Some(value)
}

fuzz_target!(|input: (u8, &str)| {
    let (which, text) = input;
    match which % 12 {
        0 => {
            if let Some(Mac(octets)) = again::<Mac>(text) {
                assert_eq!(text.len(), 17);
                assert!(octets.iter().all(|octet| text.to_ascii_lowercase().contains(&format!("{octet:02x}"))));
            }
        }
        1 => {
            if let Some(sizes) = again::<Sizes>(text) {
                let (least, most) = sizes.ends();
                assert!(least <= most && most <= usize::from(u16::MAX));
            }
        }
        2 => {
            if let Some(Cores(cores)) = again::<Cores>(text) {
                assert!(!cores.is_empty());
            }
        }
        3 => {
            if let Ok(rate) = text.parse::<Rate>() {
                let _ = rate.to_string();
                for share in [1, 7] {
                    let mut limiter = RateLimiter::new(rate, share);
                    limiter.start(5);
                }
            }
        }
        4 => {
            if let Ok(Size(bytes)) = text.parse() {
                assert!(
                    text.starts_with(|c: char| c.is_ascii_digit())
                        && (bytes == 0 || text.len() < 40 || text.starts_with('0'))
                );
            }
        }
        5 => {
            if let Ok(time) = args::seconds(text) {
                assert!(time.as_secs_f64() <= 1e6);
            }
        }
        6 => {
            if let Ok(page) = args::page(text) {
                assert!(page.bytes().is_power_of_two());
            }
        }
        7 => {
            if let Some(faults) = again::<Faults>(text) {
                for share in [faults.drop, faults.duplicate, faults.corrupt, faults.truncate, faults.reorder] {
                    assert!((0.0..=1.0).contains(&share));
                }
            }
        }
        8 => _ = again::<Address>(text),
        9 => _ = text.parse::<VfToken>(),
        10 => _ = NetParams::parse(text),
        _ => _ = (BlkParams::parse(text), NvmeParams::parse(text)),
    }
});
