//! A doorbell is one queue's: it is not copied, not made by hand, and not rung by two threads.

use wholebar::bar::{Bar, Doorbell};

fn copy<T: Clone>(_: T) {}

fn copies(doorbell: Doorbell<u32>) {
    copy(doorbell);
}

fn unchecked(bar: Bar) -> Doorbell<u32> {
    Doorbell::new(bar, 0x2000)
}

fn shared(doorbell: &Doorbell<u32>) {
    doorbell.ring(1);
}

fn main() {}
