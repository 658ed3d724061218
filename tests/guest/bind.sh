# wholebar bind and unbind: what the system uses is refused, everything else goes to vfio-pci and back to the driver that had it. wholebar doctor and
# devices on the way.
# guests: x86_64 ppc64le-4k ppc64le-64k
# machine: --nvme 64M --nvme 64M --nic igb --nic virtio-net --bind none
. /wholebar/commands
# A command fails (exit code 1), and says all of these.
refused() { # words of the command -- texts
	local command=
	while [ "$1" != -- ]; do command="$command $1"; shift; done
	shift
	$command >/tmp/out 2>&1 && fail "$command is not refused"
	for text in "$@"; do grep -qF -- "$text" /tmp/out || fail "$command does not say: $text"; done
	echo "refused as it should be:$command: $(grep -m 1 -F -- "$1" /tmp/out)"
}
driver() { basename "$(readlink /sys/bus/pci/devices/$1/driver)"; }
has() { [ "$(driver $2)" = $1 ] || fail "$2 is with $(driver $2), not with $1"; }
# The disk of a controller, which with native multipath is its subsystem's: nvme1n1 for nvme1c0n1.
disk() {
	for try in $(seq 1000); do
		name=$(ls /sys/bus/pci/devices/$1/nvme/*/ 2>/dev/null | grep -m 1 '^nvme.*n1$' | sed 's/c[0-9]*n/n/')
		[ "$name" ] && [ -b /dev/$name ] && echo $name && return
		sleep 0.1
	done
}
interface() {
	for try in $(seq 1000); do
		ls /sys/bus/pci/devices/$1/net /sys/bus/pci/devices/$1/virtio*/net 2>/dev/null | grep -m 1 eth && return
		sleep 0.1
	done
}

modprobe nvme && modprobe igb && modprobe virtio_net && modprobe crc32c_generic && modprobe ext4 || exit 1
one=${WHOLEBAR_NVME%%,*} two=${WHOLEBAR_NVME##*,}
card=${WHOLEBAR_NIC%%,*} other=${WHOLEBAR_NIC##*,}
one_disk=$(disk $one) two_disk=$(disk $two)
works wholebar devices
for name in $one $two $card $other; do grep "^$name" /tmp/out | grep -q 'no: driver' || fail "devices does not say who has $name"; done
refused wholebar doctor $one -- "nvme has it" "wholebar bind $one" "driver in the way"

# Disks: swap, and a file system on a partition.
mkswap /dev/$one_disk >/dev/null && swapon /dev/$one_disk || fail "no swap"
refused wholebar bind $one -- "$one_disk is swap" "nothing was changed"
mke2fs -F /dev/$two_disk >/dev/null && mkdir -p /mnt && mount -t ext4 /dev/$two_disk /mnt || fail "no file system"
refused wholebar bind $two -- "$two_disk is mounted at /mnt"
# One is refused: none is bound.
swapoff /dev/$one_disk
refused wholebar bind $one $two -- "$two: $two_disk is mounted"
has nvme $one
# Another process's mount: seen by the kernel alone.
unshare -m sh -c 'umount /mnt; mount -t ext4 /dev/'$two_disk' /tmp && >/run/mounted && exec sleep 1000' & holder=$!
for try in $(seq 1000); do [ -e /run/mounted ] && break; sleep 0.1; done
umount /mnt
refused wholebar bind $two -- "somebody has $two_disk or a part of it for itself alone"
kill $holder; wait $holder 2>/dev/null

works wholebar bind $one
has vfio-pci $one
works wholebar bind $one
grep -q 'has it already' /tmp/out || fail "bound twice"
works wholebar doctor $one
grep -q 'ok  *opened' /tmp/out || fail "not opened"
works wholebar nvme identify $one >/dev/null
works wholebar devices --driver vfio-pci
[ "$(grep -c ' yes ' /tmp/out)" = 1 ] || fail "one function opens"

# A process has it open.
wholebar nvme perf $one --time 1000 >/dev/null 2>&1 & user=$!
for try in $(seq 1000); do ls -l /proc/$user/fd 2>/dev/null | grep -q /dev/vfio/ && break; sleep 0.1; done
refused wholebar unbind $one -- "process $user (wholebar)"
refused wholebar doctor $one -- "process $user (wholebar) has it" "kill $user" "in use in the way"
has vfio-pci $one
kill -9 $user; wait $user 2>/dev/null

works wholebar unbind $one
has nvme $one
works wholebar unbind $one
grep -q 'nvme has it already' /tmp/out || fail "given back twice"
disk $one >/dev/null
cat /sys/bus/pci/devices/$one/driver_override | grep -q null || fail "an override is left"

# Both at once, as JSON.
works wholebar bind $one $two --json
[ "$(grep -c '"after": "vfio-pci"' /tmp/out)" = 2 ] || fail "not both"
works wholebar unbind $one $two --json
[ "$(grep -c '"after": "nvme"' /tmp/out)" = 2 ] || fail "not both"

# Network cards: addresses, routes, also those of IPv6; a card that is up, and no more, is free.
for name in $card $other; do
	eth=$(interface $name) native=$(driver $name)
	ip link set $eth up
	ip addr add 10.1.0.1/24 dev $eth
	refused wholebar bind $name -- "$eth has the address 10.1.0.1" "$eth carries the IPv4 route to 10.1.0.0/24"
	ip route add default via 10.1.0.9 dev $eth
	refused wholebar bind $name -- "everywhere (the default route)"
	ip addr flush dev $eth
	if ip -6 addr add 2001:db8::1/64 dev $eth 2>/dev/null; then
		refused wholebar bind $name -- "2001:db8::1" "$eth carries the IPv6 route to 2001:db8::/64"
	fi
	ip addr add 10.1.0.1/24 dev $eth
	works wholebar bind $name --force
	has vfio-pci $name
	works wholebar doctor $name
	works wholebar unbind $name
	has $native $name
	eth=$(interface $name)
	ip link set $eth up
	works wholebar bind $name
	has vfio-pci $name
	works wholebar unbind $name
	has $native $name
done

# No root: devices works, doctor says what is missing, bind refuses and changes nothing.
echo 'nobody:x:65534:65534::/:/bin/sh' >/etc/passwd
as_nobody() { su nobody -c "PATH=$PATH $*"; }
works wholebar bind $one
works as_nobody wholebar devices
grep "^$one" /tmp/out | grep -q 'no: group' || fail "opens without rights"
refused as_nobody wholebar doctor $one -- "may not be opened by this user" 'chown $USER /dev/vfio/'
refused as_nobody wholebar bind $two -- "run as root"
refused as_nobody wholebar unbind $one -- "run as root"
has nvme $two
has vfio-pci $one
works wholebar unbind $one
