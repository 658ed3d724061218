# Linux's igbvf on virtual functions that `wholebar vf serve` serves, with each other and with our igbvf, by the switch of QEMU's 82576: address, link, ping, TCP,
# long frames, VLANs, another address, and a physical function that is served again. Then our igbvf on a function that Linux's igb serves.
# guests: x86_64
# machine: --nic igb --bind all --append vfio_pci.enable_sriov=1
# programs: iperf3
. /wholebar/commands
card=$WHOLEBAR_NIC
soon() { # a command that is to work within 100 s
	end=$(($(date +%s) + 100))
	while [ $(date +%s) -lt $end ]; do "$@" >/tmp/soon 2>&1 && return; sleep 0.1; done
	dmesg | tail -n 20; cat /tmp/serve /tmp/http 2>/dev/null
	fail "in 100 s this did not work: $*: $(cat /tmp/soon)"
}
give() { # function, driver
	echo $1 >/sys/bus/pci/devices/$1/driver/unbind
	echo $2 >/sys/bus/pci/devices/$1/driver_override
	echo $1 >/sys/bus/pci/drivers_probe
}
nth() { basename "$(readlink /sys/bus/pci/devices/$card/virtfn$1)"; }
interface() { ls /sys/bus/pci/devices/$1/net; }
# Namespaces, by a process in each.
unshare -n sleep 3000 & a=$!
unshare -n sleep 3000 & b=$!
at() { local where=$1; shift; nsenter -t $where -n "$@"; }
apart() { [ "$(readlink /proc/$1/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
soon apart $a
soon apart $b
up() { # function, namespace, address: its interface is $eth then
	soon interface $1
	eth=$(interface $1)
	ip link set $eth netns $2 || fail "$eth stays where it is"
	at $2 ip link set $eth mtu 9000
	at $2 ip address add $3/24 dev $eth
	at $2 ip link set $eth up
	soon carrier $2 $eth
}
pings() { # namespace, address, more
	local where=$1 address=$2; shift 2
	soon at $where ping -q -c 1 -W 5 "$@" $address
	for number in 1 2 3 4 5; do at $where ping -q -c 1 -W 60 "$@" $address >/tmp/out || fail "ping $number of $address, $*"; done
}
# In a namespace there is no file of /sys for its interfaces.
carrier() { at $1 ip link show $2 | grep -q LOWER_UP; }
mac() { at $1 ip link show $2 | sed -n 's|.*link/ether \([^ ]*\).*|\1|p'; }
listens() { at $b cat /proc/net/tcp /proc/net/tcp6 | grep -q ":1451 .* 0A "; }
# A file by TCP from our igbvf, which has no other way than its own.
fetches() { # namespace, our function
	hello-http $2 --address 10.9.0.3/24 --file /tmp/sent >/tmp/http 2>&1 & http=$!
	pings $1 10.9.0.3 -s 1400
	rm -f /tmp/came
	at $1 wget -q -O /tmp/came http://10.9.0.3/ || { cat /tmp/http; fail "nothing can be fetched"; }
	same /tmp/sent /tmp/came
	kill -INT $http
	wait $http || { cat /tmp/http; fail "our function ends with $?"; }
}
serve() {
	wholebar vf serve $card >/tmp/serve 2>&1 & serve=$!
	soon grep -q "are served" /tmp/serve
}

modprobe igb && modprobe igbvf && modprobe 8021q || exit 1
# In hugepages no packet crosses a page: QEMU's 82576 drops, without a word, what it is to send from a buffer that is in two pieces behind the IOMMU.
echo 32 >/proc/sys/vm/nr_hugepages
head -c 1048576 /dev/urandom >/tmp/sent
works wholebar vf create $card 2
one=$(nth 0) two=$(nth 1)
named=$(grep -o "$two,token=[-0-9a-f]*" /tmp/out) || fail "it tells no token"
serve

# Linux's driver in both of them.
give $one igbvf
give $two igbvf
up $one $a 10.9.0.1; eth_a=$eth
up $two $b 10.9.0.2; eth_b=$eth
dmesg | grep -q "PF still" && fail "igbvf was not served"
[ "$(mac $a $eth_a)" != "$(mac $b $eth_b)" ] || fail "both have $(mac $a $eth_a)"
pings $a 10.9.0.2
pings $b 10.9.0.1 -s 8000
for way in "" -R; do
	command -v iperf3 >/dev/null || { echo "no iperf3 here"; break; }
	at $b iperf3 -s -1 >/tmp/server 2>&1 & server=$!
	soon listens
	at $a iperf3 -c 10.9.0.2 -n 4M $way >/tmp/client 2>&1 || { cat /tmp/client /tmp/server; fail "iperf3 $way"; }
	grep -E 'sender|receiver' /tmp/client
	wait $server
done
echo "igbvf with igbvf: done"

# Another address; that of the other function it does not get.
at $a ip link set $eth_a address 02:00:00:00:77:01 || fail "it does not take another address"
at $b ip neigh flush dev $eth_b
pings $b 10.9.0.1
at $a ip link set $eth_a address $(mac $b $eth_b) 2>/dev/null && fail "it takes the other's address"
pings $b 10.9.0.1

# VLANs: as many as are its share, of which VLAN 0 is one; the other function's are left.
took=""
for id in $(seq 2 20); do at $a ip link add link $eth_a name v$id type vlan id $id 2>/tmp/out && took="$took $id"; done
echo "VLANs of the first:$took"
[ "$took" = " 2 3 4 5 6 7 8 9 10" ] || { dmesg | tail; fail "there are others"; }
at $b ip link add link $eth_b name v5 type vlan id 5 && at $b ip link add link $eth_b name v30 type vlan id 30 || fail "none is left for the second"
at $a ip address add 10.5.0.1/24 dev v5 && at $a ip link set v5 up
at $b ip address add 10.5.0.2/24 dev v5 && at $b ip link set v5 up
pings $a 10.5.0.2
for id in $took; do at $a ip link delete v$id; done
echo "addresses and VLANs: done"

# Whoever had the physical function open has gone, and the kernel has reset it, its virtual functions included: their drivers begin anew. Ours in the second.
kill -INT $serve
wait $serve || { cat /tmp/serve; fail "vf serve ends with $?"; }
at $a ping -q -c 1 -W 1 10.9.0.2 >/dev/null && fail "there is a switch that nobody has set up"
serve
give $one igbvf
give $two vfio-pci
up $one $a 10.9.0.1
fetches $a $named
echo "igbvf with ours: done"
kill -INT $serve
wait $serve
give $one vfio-pci
works wholebar vf destroy $card

# Linux's igb serves.
works wholebar unbind $card
soon interface $card
pf=$(interface $card)
ip address add 10.9.0.9/24 dev $pf
ip link set $pf up
soon grep -q 1 /sys/class/net/$pf/carrier
works wholebar vf create $card 2 --bind
one=$(nth 0) two=$(nth 1)
give $one igbvf
up $one $a 10.9.0.1
pings $a 10.9.0.9
fetches $a $two
echo "ours, served by Linux's igb, with igbvf: done"
give $one vfio-pci
works wholebar vf destroy $card
give $card vfio-pci
kill $a $b
echo 0 >/proc/sys/vm/nr_hugepages
