# Namespaces with protection information and with zones, as QEMU has them: written by us and read by the kernel's own driver, and the other way round. The
# kernel checks guards and reference tags itself where metadata has a buffer of its own, and leaves it to the controller where it is interleaved.
# guests: x86_64
# machine: --nvme 64M --nvme-ns 64M,ms=8,pi=1 --nvme-ns 64M,ms=8,pi=1,mset=1 --nvme-ns 64M,ms=8,pi=2 --nvme-ns 64M,zoned=on,zoned.zone_size=4M,zoned.max_open=4,zoned.max_active=6
name=${WHOLEBAR_NVME%%,*}
. /wholebar/commands
# The kernel numbers disks as it finds them.
disk() { for d in /sys/block/nvme0n*; do [ "$(cat $d/nsid)" = $1 ] && echo ${d##*/}; done; }
protected="2 3 4" zoned=5

works wholebar nvme identify $name
says "protection information of type 1"
says "protection information of type 2"
says "zones of 8,192 blocks; 4 can be open, 6 active"

# Ours: the controller makes protection information, and checks it as it is read. Multiples of 64 KiB: QEMU's takes blocks for unwritten where its file has
# a hole, and holes are larger than blocks.
for n in $protected; do
	head -c 1048576 /dev/urandom >/tmp/ours$n
	works wholebar nvme write $name --nsid $n --lba 128 --in /tmp/ours$n
	works wholebar nvme read $name --nsid $n --lba 128 --bytes 1048576 --out /tmp/back
	same /tmp/ours$n /tmp/back
	# What nobody wrote can be read.
	works wholebar nvme read $name --nsid $n --lba 10000 --blocks 256 --out /tmp/back
done

# Zones: appended to, and refused by name.
head -c 262144 /dev/urandom >/tmp/zone
works wholebar nvme zns append $name -n $zoned --zslba 8192 --data /tmp/zone
says "appended at 8192"
works wholebar nvme zns append $name -n $zoned --zslba 8192 --data /tmp/zone
says "appended at 8704"
works wholebar nvme read $name --nsid $zoned --lba 8704 --bytes 262144 --out /tmp/back
same /tmp/zone /tmp/back
refused 1 "Zone Invalid Write" wholebar nvme write $name --nsid $zoned --lba 8192 --in /tmp/zone
works wholebar nvme zns report $name -n $zoned --start-lba 8192 --descs 1
says 9216
works wholebar nvme zns open $name -n $zoned --start-lba 16384
works wholebar nvme zns finish $name -n $zoned --start-lba 16384
refused 1 "Zone Is Full" wholebar nvme zns append $name -n $zoned --zslba 16384 --data /tmp/zone
refused 1 "Invalid Zone State Transition" wholebar nvme zns close $name -n $zoned --start-lba 16384
works wholebar nvme zns report $name -n $zoned --state full
says "1 zones"
refused 2 "no terminal" wholebar nvme zns reset $name -n $zoned --start-lba 16384
works wholebar nvme zns reset $name -n $zoned --start-lba 16384 --force
works wholebar nvme zns report $name -n $zoned --state full
says "0 zones"

# The kernel's.
works wholebar unbind $name
modprobe nvme
for try in $(seq 600); do [ -b "/dev/$(disk $zoned)" ] && [ -b "/dev/$(disk 4)" ] && break; sleep 0.1; done
for n in $protected; do
	at=/dev/$(disk $n)
	dd if=$at of=/tmp/back bs=65536 skip=1 count=16 2>/tmp/out || { dmesg | tail; fail "the kernel cannot read $at"; }
	same /tmp/ours$n /tmp/back
	head -c 1048576 /dev/urandom >/tmp/theirs$n
	dd if=/tmp/theirs$n of=$at bs=1M seek=4 conv=fsync 2>/tmp/out || { dmesg | tail; fail "the kernel cannot write $at"; }
	echo "namespace $n is $at, of $(cat /sys/block/${at##*/}/size) sectors; integrity: $(cat /sys/block/${at##*/}/integrity/format)"
done
at=$(disk $zoned)
[ "$(cat /sys/block/$at/queue/zoned)" = host-managed ] || fail "the kernel sees no zones"
dd if=/dev/$at of=/tmp/back bs=262144 skip=17 count=1 2>/tmp/out
same /tmp/zone /tmp/back
# At the write pointer, which is where we left it.
dd if=/tmp/zone of=/dev/$at bs=262144 seek=18 oflag=direct 2>/tmp/out || { dmesg | tail; fail "the kernel cannot write a zone"; }
dmesg | grep -iE "protection error|I/O error" && fail "the kernel complains"

# Back to us: what it wrote is right, by the controller's check.
works wholebar bind $name
for n in $protected; do
	works wholebar nvme read $name --nsid $n --lba 8192 --bytes 1048576 --out /tmp/back
	same /tmp/theirs$n /tmp/back
done
works wholebar nvme read $name --nsid $zoned --lba 9216 --bytes 262144 --out /tmp/back
same /tmp/zone /tmp/back
works wholebar nvme zns report $name -n $zoned --start-lba 8192 --descs 1
says 9728
echo "protection information and zones: ours read by the kernel, the kernel's by us"
