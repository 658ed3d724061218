//! A mapped page shows nothing of itself: the MSI-X table may be in it.

use wholebar::pci::RegionMapping;

fn word(page: &RegionMapping) {
    page.u32(0);
}

fn bytes(page: &RegionMapping) {
    page.write(0, &[0; 16]);
}

fn pointer(page: &RegionMapping) {
    page.base();
}

fn inside(page: RegionMapping) {
    page.memory;
}

fn main() {}
