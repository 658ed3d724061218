//! A BAR shows no mapping, no pointer, and nothing unguarded.

use wholebar_core::bar::Bar;

pub fn mapping(bar: &Bar) {
    let _ = &bar.shared; //~ E0616: field `shared` of struct `Bar` is private
}

pub fn unguarded(bar: &Bar) {
    let _: u32 = bar.load(0x2000).unwrap(); //~ E0624: method `load` is private
}
