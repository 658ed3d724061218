# Every device of the guest by `wholebar selftest`: disks with blocks to write to; all of them asked back by the kernel in the end.
# guests: x86_64 ppc64le-64k
# machine: --nvme 64M --blk 64M --nic igb --nic virtio-net,hub=1 --bind all
for name in $(echo "$WHOLEBAR_NVME,$WHOLEBAR_BLK" | tr , ' '); do
	wholebar selftest $name --scratch 1000..20000 --removal || exit 1
done
for name in $(echo "$WHOLEBAR_NIC" | tr , ' '); do
	wholebar selftest $name --removal || exit 1
done
