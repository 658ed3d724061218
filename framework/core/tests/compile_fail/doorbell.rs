//! A doorbell is one queue's: it is not copied, not made by hand, and not rung by two threads.

use wholebar_core::bar::{Bar, Doorbell};

fn copy<T: Clone>(_: T) {}

pub fn copies(doorbell: Doorbell<u32>) {
    copy(doorbell); //~ E0277: the trait bound `Doorbell<u32>: Clone` is not satisfied
}

pub fn unchecked(bar: Bar) -> Doorbell<u32> {
    Doorbell::new(bar, 0x2000) //~ E0624: associated function `new` is private
}

pub fn shared(doorbell: &Doorbell<u32>) {
    doorbell.ring(1); //~ E0596: cannot borrow `*doorbell` as mutable, as it is behind a `&` reference
}
