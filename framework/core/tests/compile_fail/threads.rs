//! What one queue owns is not shared, and what is trusted for memory is not anybody's to implement.

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use wholebar_core::bar::{Doorbell, Width};
use wholebar_core::mem::{DmaRing, Shared};
use wholebar_core::ring::spsc;

fn shared<T: Sync>() {}

pub fn threads() {
    shared::<Doorbell<u32>>(); //~ E0277: `NonNull<u8>` cannot be shared between threads safely
    let _ = spsc::<Rc<u8>>(8); //~ E0277: `Rc<u8>` cannot be sent between threads safely
}

pub struct Plain(pub u32);

impl Shared for Plain { //~ E0200: the trait `wholebar_core::mem::Shared` requires an `unsafe impl` declaration
    fn words(_: &mut dyn FnMut(u64, u8)) {}
    fn clear(&self) {}
}

pub fn ring(_: &DmaRing<(AtomicU64, u64)>) {} //~ E0277: the trait bound `(AtomicU64, u64): wholebar_core::mem::Shared` is not satisfied

#[derive(Clone, Copy, PartialEq)]
pub struct Wide(u64);

impl From<Wide> for u64 {
    fn from(wide: Wide) -> Self {
        wide.0
    }
}

impl fmt::LowerHex for Wide {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Width for Wide { //~ E0277: the trait bound `Wide: wholebar_core::cell::sealed::Sealed` is not satisfied
    const BYTES: u64 = 1;
    type Bytes = [u8; 8];
    fn to_le(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
    fn from_le(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
    unsafe fn load(_: *const u8, _: bool) -> Self {
        Self(0)
    }
    unsafe fn store(self, _: *mut u8, _: bool) {}
}
