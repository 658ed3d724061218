//! The virtio models against VIRTIO 1.2, by hand through raw rings.

mod blk;
mod control;
mod faults;
mod net;
mod offload;
mod pci;
mod rig;
mod wires;
