//! A mapped page shows nothing of itself: the MSI-X table may be in it.

use wholebar_core::pci::RegionMapping;

pub fn word(page: &RegionMapping) {
    page.u32(0); //~ E0599: no method named `u32` found for reference `&RegionMapping` in the current scope
}

pub fn bytes(page: &RegionMapping) {
    page.write(0, &[0; 16]); //~ E0599: no method named `write` found for reference `&RegionMapping` in the current scope
}

pub fn pointer(page: &RegionMapping) {
    page.base(); //~ E0624: method `base` is private
}

pub fn inside(page: RegionMapping) {
    page.memory; //~ E0616: field `memory` of struct `RegionMapping` is private
}
