//! A BAR shows no mapping, no pointer, and nothing unguarded.

use wholebar::bar::{Bar, Window};

fn mapping(bar: &Bar) {
    &bar.shared;
}

fn unguarded(bar: &Bar) {
    let _: u32 = bar.load(0x2000).unwrap();
}

fn window(bar: Bar) -> Window {
    Window { bar, range: 0x2000..0x3000 }
}

fn main() {}
