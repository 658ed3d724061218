# Data real to others: a file system that the kernel's own nvme driver wrote is read through wholebar after rebinding, and the reverse. Hundreds of
# files, every sum equal.
# guests: x86_64 ppc64le-4k ppc64le-64k aarch64-4k aarch64-16k
name=${WHOLEBAR_NVME%%,*}
mib=16
fail() { echo "$*"; exit 1; }
give() { # driver
	local device=/sys/bus/pci/devices/$name
	echo $name >$device/driver/unbind
	echo $1 >$device/driver_override
	echo $name >/sys/bus/pci/drivers_probe
	[ "$(basename "$(readlink $device/driver)")" = $1 ] || fail "$1 did not take $name"
}
# The block device, once the kernel has made it.
disk() {
	for try in $(seq 1000); do
		ls /dev/nvme*n1 2>/dev/null && return
		sleep 0.1
	done
}
make() { # file or device, name: a file system with 400 files; their sums in NAME.sums
	mke2fs -F -b 4096 $1 $((mib << 10)) >/dev/null || fail "no file system on $1"
	# busybox makes ext2 of it; extents make that ext4: bit 6 of s_feature_incompat, at byte 96 of the superblock.
	printf '\102' | dd of=$1 bs=1 seek=$((1024 + 96)) conv=notrunc 2>/dev/null
	mount -t ext4 $1 /mnt || fail "$1 does not mount"
	for i in $(seq 400); do
		mkdir -p /mnt/$((i % 20))
		head -c $((i * 97)) /dev/urandom >/mnt/$((i % 20))/$i
	done
	(cd /mnt && find . -type f | sort | xargs sha256sum) >$2.sums
	umount /mnt
}
check() { # file or device, name: all files are as they were made
	mount -t ext4 -o ro $1 /mnt || fail "$1 does not mount"
	(cd /mnt && sha256sum -c) <$2.sums >$2.checked || fail "$2: $(grep -v ': OK' $2.checked)"
	umount /mnt
	[ "$(grep -c ': OK' $2.checked)" = 400 ] || fail "$2: $(wc -l <$2.checked) files"
}
sum() { head -c $((mib << 20)) $1 | sha256sum | cut -d " " -f 1; }

cd /tmp
mkdir -p /mnt
modprobe crc32c_generic && modprobe ext4 && modprobe loop && modprobe nvme || exit 1
give nvme
disk=$(disk)
make $disk one
blockdev --flushbufs $disk
one=$(sum $disk)
give vfio-pci
wholebar nvme read $name --bytes ${mib}M --out one.img || exit 1
[ "$(sum one.img)" = "$one" ] || fail "what wholebar read is not what the kernel wrote"
check one.img one
echo "read through wholebar: the 400 files that the kernel wrote, sha256 of all ${mib} MiB $one"

truncate -s ${mib}M two.img
make two.img two
two=$(sum two.img)
[ "$two" != "$one" ] || fail "both are the same"
wholebar nvme write $name --in two.img || exit 1
give nvme
disk=$(disk)
[ "$(sum $disk)" = "$two" ] || fail "what the kernel reads is not what wholebar wrote"
check $disk two
echo "read through the kernel: the 400 files that wholebar wrote, sha256 of all ${mib} MiB $two"
give vfio-pci
wholebar nvme identify $name >/dev/null
