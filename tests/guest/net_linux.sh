# Linux's own driver at one end of the wire, in a network namespace of its own; at the other end wholebar, which forwards to a TAP of Linux's: ping, and TCP.
# guests: x86_64 ppc64le-64k
# machine: --nic igb --nic igb --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --blk 64M,packed=on,in_order=on,num-queues=2 --nic vmxnet3,hub=3 --nic vmxnet3,hub=3 --nic virtio-net,hub=3 --nic e1000e,hub=4 --nic e1000e,hub=4 --bind nic --bind blk
# programs: iperf3
fail() {
	echo "FAIL: $*"
	# What it counted, if it still can tell.
	kill -INT $fwd
	for second in $(seq 40); do kill -0 $fwd 2>/dev/null || break; sleep 1; done
	kill -9 $fwd $there; wait $fwd
	cat /tmp/fwd* 2>/dev/null
	give $theirs vfio-pci
	exit 1
}
soon() { # a command that is to work within 100 s
	end=$(($(date +%s) + 100))
	while [ $(date +%s) -lt $end ]; do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
	fail "in 100 s this did not work: $*"
}
give() { # function, driver
	echo $1 >/sys/bus/pci/devices/$1/driver/unbind
	echo $2 >/sys/bus/pci/devices/$1/driver_override
	echo $1 >/sys/bus/pci/drivers_probe
}
interface() { ls /sys/bus/pci/devices/$1/net /sys/bus/pci/devices/$1/virtio*/net 2>/dev/null | grep -m 1 eth; }
apart() { nsenter -t $there -n "$@"; }
listens() { apart cat /proc/net/tcp /proc/net/tcp6 | grep -q ":$1 .* 0A "; }

modprobe tun && modprobe igb && modprobe e1000e && modprobe virtio_net || exit 1
# In hugepages no packet crosses a page: QEMU's 82576 drops, without a word, what it is to send from a buffer that is in two pieces behind the IOMMU.
echo 32 >/proc/sys/vm/nr_hugepages
mkfifo /tmp/never
head -c 1048576 /dev/urandom >/tmp/sent
unshare -n sleep 1000 & there=$!
is_apart() { [ "$(readlink /proc/$there/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
# As soon as it is in a namespace of its own: before, it is in ours.
soon is_apart
try() { # what, our function, Linux's function and driver, options
	what=$1 ours=$2 theirs=$3
	give $theirs $4
	shift 4
	soon interface $theirs
	eth=$(interface $theirs)
	ip link set $eth netns $there || fail "$eth stays where it is"
	apart ip addr add 10.9.0.2/24 dev $eth
	apart ip link set $eth up
	wholebar net fwd $ours sim:virtio-net,wire=tap:t0 --stats 0 --json "$@" >/tmp/fwd.json 2>/tmp/fwd.log & fwd=$!
	soon ip addr add 10.9.0.1/24 dev t0
	ip link set t0 up
	soon ping -c 1 -W 5 10.9.0.2
	# One by one: busybox's ping waits for the last of several for two of the round trips before only.
	for number in $(seq 20); do
		ping -q -c 1 -W 60 -s 1400 10.9.0.2 >/tmp/ping || fail "$what: ping $number: $(cat /tmp/ping)"
	done
	# It ends when the file has come: with input that has ended it would say so, and the sender go.
	apart nc -l -p 9 <>/tmp/never >/tmp/came & nc=$!
	soon listens 0009
	nc 10.9.0.2 9 </tmp/sent || fail "$what: no connection"
	wait $nc
	cmp /tmp/sent /tmp/came || fail "$what: bytes came changed"
	for way in "" -R; do
		command -v iperf3 >/dev/null || { echo "$what: no iperf3 here"; break; }
		apart iperf3 -s -1 >/tmp/server 2>&1 & server=$!
		soon listens 1451
		iperf3 -c 10.9.0.2 -n 1M $way >/tmp/client 2>&1 || { cat /tmp/client /tmp/server; fail "$what: iperf3 $way"; }
		grep -E 'sender|receiver' /tmp/client
		wait $server
	done
	kill -INT $fwd
	wait $fwd || fail "$what: net fwd ends with $?"
	cat /tmp/fwd.log
	apart ip link set $eth down
	give $theirs vfio-pci
	echo "$what: done"
}
set -- $(echo $WHOLEBAR_NIC | tr , ' ')
[ $GUEST = ppc64le-64k ] || try igb $1 $2 igb
try "virtio-net, packed" $3 $4 virtio-pci
try "virtio-net, split" $4 $3 virtio-pci --split
# Linux has its driver for pages below 64 KiB only.
[ $GUEST = ppc64le-64k ] || { modprobe vmxnet3 && try vmxnet3 $5 $6 vmxnet3; }
try "vmxnet3 and virtio-net" $5 $7 virtio-pci
try e1000e $8 $9 e1000e
kill $there
echo 0 >/proc/sys/vm/nr_hugepages
