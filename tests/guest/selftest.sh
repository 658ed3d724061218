# Every device of the guest by `wholebar selftest`: disks with blocks to write to, a network card of each driver; all of them asked back by the kernel.
# The ports are slow ones: at more than 5 GT/s Linux waits after a reset of a slot until the port's link is up, finds QEMU's down, and says ENOTTY.
# guests: x86_64 ppc64le-64k
# machine: --nvme 64M --blk 64M --nic igb --nic e1000e --nic vmxnet3 --nic virtio-net --bind all --qemu -global --qemu pcie-root-port.x-speed=2_5
# core: x86_64
for name in $(echo "$WHOLEBAR_NVME,$WHOLEBAR_BLK" | tr , ' '); do
	wholebar selftest $name --scratch 1000..20000 --removal || exit 1
done
for name in $(echo "$WHOLEBAR_NIC" | tr , ' '); do
	wholebar selftest $name --removal || exit 1
done
