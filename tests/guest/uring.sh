# The kernel's own path to an NVMe drive beside wholebar's driver: what one wrote the other reads, by interrupts, with polled completions and with a polling
# thread of the kernel's, and by NVMe commands past its block layer; a drive that is mounted is not written; two drives of a kind are compared.
# guests: x86_64
# machine: --nvme 64M --nvme 64M
fail() { echo "FAIL: $*"; exit 1; }
mine=${WHOLEBAR_NVME%%,*}
theirs=${WHOLEBAR_NVME#*,}
give() { # driver
	local device=/sys/bus/pci/devices/$theirs
	echo $theirs >$device/driver/unbind
	echo $1 >$device/driver_override
	echo $theirs >/sys/bus/pci/drivers_probe
	[ "$(basename "$(readlink $device/driver)")" = $1 ] || fail "$1 did not take $theirs"
}
disk() { # the block device, once the kernel has made it
	for try in $(seq 1000); do
		ls /dev/nvme*n1 2>/dev/null && return
		sleep 0.1
	done
}
cd /tmp
head -c $((8 << 20)) /dev/urandom >one.img
head -c $((8 << 20)) /dev/urandom >two.img
wholebar nvme write $theirs --in one.img || fail "writing through VFIO"
modprobe nvme poll_queues=1 && modprobe crc32c_generic && modprobe ext4 || exit 1
give nvme
disk=$(disk)
wholebar blk info kernel:$disk
for way in "" ,cached ,sqpoll ,iopoll ,iopoll,sqpoll; do
	wholebar blk read kernel:$disk$way --bytes 8M --out read.img || fail "reading by kernel:$disk$way"
	cmp one.img read.img || fail "kernel:$disk$way reads something else"
	wholebar blk write kernel:$disk$way --in two.img || fail "writing by kernel:$disk$way"
	wholebar blk perf kernel:$disk$way --rw mixed --verify --span 1M --time 0.5 --warmup 0 || fail "perf by kernel:$disk$way"
	wholebar blk write kernel:$disk$way --in one.img || fail "writing by kernel:$disk$way again"
done
passthrough=/dev/ng${disk#/dev/nvme}
wholebar blk info kernel:$passthrough || fail "$passthrough is no disk"
for way in "" ,sqpoll; do
	wholebar blk read kernel:$passthrough$way --bytes 8M --out read.img || fail "reading by kernel:$passthrough$way"
	cmp one.img read.img || fail "kernel:$passthrough$way reads something else"
	wholebar blk write kernel:$passthrough$way --in two.img || fail "writing by kernel:$passthrough$way"
	wholebar blk perf kernel:$passthrough$way --rw mixed --verify --span 1M --time 0.5 --warmup 0 || fail "perf by kernel:$passthrough$way"
	wholebar blk perf kernel:$passthrough$way --bs 64k --qd 4 --time 0.5 --warmup 0 || fail "transfers of 64 KiB by kernel:$passthrough$way"
	wholebar blk write kernel:$passthrough$way --in one.img || fail "writing by kernel:$passthrough$way again"
done
wholebar blk info kernel:$passthrough,cached 2>refused && fail "the page cache is not in its way"
grep "leave ,cached" refused || fail "$(cat refused)"
wholebar blk perf kernel:$passthrough --baseline kernel:$disk,ro --qd 8 --time 1 --warmup 0 || fail "no comparison of both ways"
wholebar nvme perf $mine --baseline kernel:$disk --qd 8 --time 1 --warmup 0 || fail "no comparison"
mke2fs -F $disk >/dev/null
mkdir -p /mnt
mount -t ext2 $disk /mnt || mount -t ext4 $disk /mnt || fail "$disk does not mount"
wholebar blk write kernel:$disk --in one.img 2>refused && fail "a mounted drive was written"
grep "mounted" refused || fail "$(cat refused)"
wholebar blk read kernel:$disk --bytes 1M --out read.img || fail "a mounted drive is not read"
wholebar blk write kernel:$passthrough --in one.img 2>refused && fail "a mounted drive was written by commands"
grep "mounted" refused || fail "$(cat refused)"
umount /mnt
wholebar blk write kernel:$disk --in two.img || fail "writing what is not mounted any more"
give vfio-pci
wholebar nvme read $theirs --bytes 8M --out read.img || fail "reading through VFIO"
cmp two.img read.img || fail "VFIO reads something else"
