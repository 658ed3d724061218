//! Two 82576 on one wire. `cargo xtask vm test x86_64 kernel_igb` runs them.
// guests: x86_64 x86_64-iommufd
// machine: --nic igb --nic igb --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --blk 64M,packed=on,in_order=on,num-queues=2 --bind nic --bind blk
// core: x86_64

mod intel;

intel::tests!(wholebar::intel::igb::I82576);
