//! The virtio models against VIRTIO 1.2, by hand through raw rings.

mod blk;
mod net;
mod pci;
mod rig;
