#!/usr/bin/env bash
# Network interfaces of the kernel as ports: tests/kernel.sh [WHOLEBAR]
# Three network namespaces, joined by pairs of virtual Ethernet interfaces: `net fwd kernel:… kernel:…` stands in the middle. Pings, files and iperf3 go both ways
# over IPv4, IPv6 and a VLAN, by packet sockets and by AF_XDP sockets; what it says that it received and sent is compared with the kernel's own counters. Then gen and sink over a pair, faults and a
# capture, and what is refused.
# Needs root. What it makes has names of its own, and goes away in the end, whatever that is.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin
. tests/sides
needs "iproute2 iputils-ping netcat-openbsd iperf3 tcpdump curl util-linux" ip ss nstat ping nc iperf3 tcpdump curl cmp awk setpriv
release "${1-}"

work=$(mktemp -d)
jobs=()
forwarder=
cleanup() {
  for job in "${jobs[@]}" $forwarder; do kill "$job" 2>/dev/null || true; done
  wait
  for side in a b m; do ip netns del "${net[$side]}" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "FAILED: $*" >&2
  if [ -n "$forwarder" ]; then kill -INT $forwarder || true; wait $forwarder || true; forwarder=; fi
  cat "$work"/*.out >&2
  exit 1
}
counter() { on "$1" cat "/sys/class/net/$2/statistics/$3"; } # namespace, interface, which

for side in a b m; do
  ip netns add "${net[$side]}"
  # Nothing is sent of the kernel's own accord.
  on $side sysctl -q net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.router_solicitations=0 net.ipv6.conf.default.accept_dad=0
done
# a's interface "wire", and b's, each with the other end in the middle.
ip -n "${net[m]}" link add probe type veth peer name eborp 2>/dev/null || { echo "LEFT OUT: $0: no virtual Ethernet interfaces here (veth)"; exit 0; }
ip -n "${net[m]}" link del probe
number=1 vlan=
for side in a b; do
  ip -n "${net[m]}" link add to_$side type veth peer name wire netns "${net[$side]}"
  ip -n "${net[m]}" link set to_$side addrgenmode none up
  on $side ip link set wire addrgenmode none up
  on $side ip addr add 10.80.0.$number/24 dev wire
  on $side ip addr add fd80::$number/64 dev wire nodad
  # Not every kernel has VLANs.
  if on $side ip link add link wire name wire.7 type vlan id 7 2>/dev/null; then
    on $side ip link set wire.7 addrgenmode none up
    on $side ip addr add 10.80.7.$number/24 dev wire.7
    vlan=10.80.7.2
  fi
  number=$((number + 1))
done
ip -n "${net[m]}" link add one type veth peer name other
for end in one other; do ip -n "${net[m]}" link set $end addrgenmode none up; done

start() { # what follows the interfaces' names, arguments of net fwd
  local mode=$1; shift
  rm -f "$work/socket"
  ip netns exec "${net[m]}" "$wholebar" net fwd "kernel:to_a$mode" "kernel:to_b$mode" --stats 0 --stats-socket "$work/socket" "$@" >"$work/fwd.out" 2>"$work/fwd.err.out" &
  forwarder=$!
  wait_for "the forwarder" test -S "$work/socket"
}
stop() { # expected exit code
  kill -INT $forwarder 2>/dev/null || true
  local code=0
  wait $forwarder || code=$?
  forwarder=
  [ $code = "${1-0}" ] || fail "net fwd ended with $code"
}
says() { # port, counter: what the forwarder says, all queues together
  curl -sS --max-time 10 --unix-socket "$work/socket" http://localhost/metrics |
    awk -v port="port=\"kernel:$1\"" -v name="wholebar_$2_total" 'index($1, name "{") == 1 && index($1, port) { n += $2 } END { print n + 0 }'
}
# What the kernel's counters are ahead of the forwarder's: what came before that was there. Read until nothing comes in between.
declare -A ahead=()
note_counters() {
  local end first
  for end in to_a to_b; do
    while
      first=$(says $end port_rx_frames)
      ahead[$end.rx]=$(($(counter m $end rx_packets) - first))
      ahead[$end.tx]=$(($(counter m $end tx_packets) - $(says $end tx_packets)))
      [ "$(says $end port_rx_frames)" != "$first" ]
    do :; done
  done
}
agree() { # interface: what the kernel and the forwarder say that came and went since then is the same
  [ $(($(counter m "$1" rx_packets) - $(says "$1" port_rx_frames))) = "${ahead[$1.rx]}" ] &&
    [ $(($(counter m "$1" tx_packets) - $(says "$1" tx_packets))) = "${ahead[$1.tx]}" ]
}

# Fewer pings at once than the ring has room for, however late the forwarder gets its core.
head -c $((2 << 20)) /dev/urandom >"$work/file"

echo "=== forwarding, by packet sockets"
start ""
note_counters
pings 100 a 10.80.0.2; pings 100 b fd80::1
file a b 10.80.0.2 "$work/file"; file b a fd80::1 "$work/file"
echo "  100 pings each over IPv4 and IPv6: none lost; 2 MiB by TCP over each: the same bytes"
if [ -n "$vlan" ]; then
  pings 100 a $vlan; file a b $vlan "$work/file"
  echo "  the same over a VLAN"
fi
speed 10.80.0.2 "a to b"
speed 10.80.0.2 "b to a" -R
speed fd80::2 "IPv6 a to b"
for end in to_a to_b; do wait_for "agreement with the kernel's counters of $end" agree $end; done
echo "  the kernel counted what the forwarder did: $(says to_a port_rx_frames) frames of a came, some of them cut in several; $(says to_b tx_packets) packets went to b"
[ "$(says to_b tx_packets)" -ge "$(($(says to_a port_rx_frames) - $(says to_a port_rx_missed)))" ] || fail "not all that came was sent"
on m ip link set to_b down
wait_for "an event" grep -q 'port 1: the link is down' "$work/fwd.err.out"
on m ip link set to_b up
wait_for "an event" grep -q 'port 1: the link is up' "$work/fwd.err.out"
pings 100 a 10.80.0.2
stop
grep -q '^received .* = ' "$work/fwd.out" || fail "packets are not accounted for"

xdp=,mode=xdp
on m "$wholebar" net dump kernel:to_a$xdp "$work/dump" --time 0.1 >"$work/xdp.out" 2>&1 || true
if grep -q 'built without it' "$work/xdp.out"; then
  echo "LEFT OUT: $0: AF_XDP sockets, which this kernel has not"
  xdp=
fi
if [ -n "$xdp" ]; then
  echo "=== forwarding, by AF_XDP sockets"
  start $xdp
  pings 100 a 10.80.0.2; pings 100 b fd80::1
  file a b 10.80.0.2 "$work/file"; file b a fd80::1 "$work/file"
  speed 10.80.0.2 "a to b"
  on m ip link show to_a | grep -q xdp || fail "no program is attached"
  kill -9 $forwarder
  wait $forwarder 2>/dev/null || true
  forwarder=
  wait_for "the program's end" sh -c "! ip -n ${net[m]} link show | grep -q xdp"
  echo "  pings and files as above; the program goes with the process"
fi

echo "=== a core that sleeps"
for mode in "" $xdp; do
  start "$mode" --idle --json
  on a ping -q -c 5 -i 0.2 -W 30 10.80.0.2 >"$work/ping.out" || fail "ping from a to b, which nobody wakes for"
  stop
  slept=$(awk '$1 == "\"slept\":" { gsub(",", "", $2); print $2 }' "$work/fwd.out")
  [ "${slept:-0}" -gt 0 ] || fail "it did not sleep"
done
echo "  pings wake it"

echo "=== several queues, faults and a capture"
start "" --queues 2 --faults drop=0.1,duplicate=0.1,reorder=0.1,seed=7 --capture "$work/capture"
on a ping -q -c 100 -i 0.002 -W 1 10.80.0.2 >"$work/ping.out" || true
stop
grep -q '^received .* = ' "$work/fwd.out" || fail "packets are not accounted for"
grep -q 'tx_faults' "$work/fwd.out" || fail "no fault was made"
written=$(sed -n 's/.*capture: \([0-9,]*\) packets, and 0 missed/\1/p' "$work/fwd.err.out" | tr -d ,)
[ "$(tcpdump -nr "$work/capture" 2>/dev/null | wc -l)" = "${written:-none}" ] || fail "tcpdump reads another number of packets than $written"
echo "  $written packets are in the capture"

echo "=== gen and sink"
field() { awk -v name="\"$1\":" '$1 == name { gsub(",", "", $2); print $2; exit }' "$work/gen.out"; }
for mode in "" $xdp; do for size in 64 1518; do
  sent=$(counter m one tx_packets)
  on m "$wholebar" net gen kernel:one "--to=kernel:other$mode" --rate max --size $size --time 1 --tolerate --json >"$work/gen.out" 2>"$work/gen.err.out" || fail "net gen"
  sent=$(($(counter m one tx_packets) - sent))
  mapfile -t packets < <(awk '$1 == "\"packets\":" { gsub(",", "", $2); print $2 }' "$work/gen.out")
  missed=$(field rx_missed)
  [ "${packets[0]}" = "$sent" ] || fail "the kernel sent $sent packets, gen made ${packets[0]}"
  [ $((packets[1] + ${missed:-0})) = "$sent" ] || fail "of $sent packets ${packets[1]} came, and ${missed:-0} were dropped"
  [ "$(field corrupt)" = 0 ] && [ "$(field reordered)" = 0 ] && [ "$(field foreign)" = 0 ] || fail "packets were changed"
  echo "  frames of $size bytes to other$mode: $sent sent, ${packets[1]} received, ${missed:-0} dropped by the ring"
done; done

echo "=== two ways through one pair, compared"
on m "$wholebar" net gen kernel:one --to=kernel:other --rate 5k --time 0.5 --tolerate --baseline kernel:other --baseline kernel:one >"$work/compared.out" || fail "net gen --baseline"
grep -q '^verdict: ' "$work/compared.out" || fail "there is no verdict"

echo "=== an interface that goes away"
ip netns exec "${net[m]}" "$wholebar" net fwd kernel:one kernel:other --stats 0 --stats-socket "$work/gone" >"$work/gone.out" 2>&1 &
forwarder=$!
wait_for "the forwarder" test -S "$work/gone"
ip -n "${net[m]}" link del one
wait_for "the forwarder's end" sh -c "! kill -0 $forwarder"
stop 1
grep -q 'was removed' "$work/gone.out" || fail "it does not say that the interface is gone"

echo "=== what is refused"
refused() { # exit code, words, command
  local expected=$1 words=$2 code=0; shift 2
  "$@" >"$work/refused.out" 2>&1 || code=$?
  [ $code = "$expected" ] || fail "$* ended with $code"
  tr '\n' ' ' <"$work/refused.out" | grep -q "$words" || fail "$* does not say: $words"
}
ip -n "${net[m]}" link add bridge type bridge
ip -n "${net[m]}" link add one type veth peer name other
ip -n "${net[m]}" link set one master bridge up
ip -n "${net[m]}" tuntap add routed mode tun
ip -n "${net[m]}" link set routed up
dump() { on "$1" "$wholebar" net dump "kernel:$2" "$work/dump" --count 1 --time 0.1; }
refused 1 'there is no network interface "nothing".* there are .*to_a' dump m nothing
refused 1 'other is down: .*ip link set other up' dump m other
refused 1 'lo is down' dump m lo
refused 1 'it has the addresses 10.80.0.1, fd80::1.*wire,force' dump a wire
refused 1 'it is a part of bridge' dump m one
refused 1 'routed is no Ethernet interface' dump m routed
refused 1 'CAP_NET_RAW' on m setpriv --bounding-set -net_raw "$wholebar" net dump kernel:to_a "$work/dump"
if [ -n "$xdp" ]; then
  refused 1 'CAP_BPF and CAP_NET_ADMIN' on m setpriv --bounding-set -bpf,-net_admin,-sys_admin "$wholebar" net dump kernel:to_a,mode=xdp "$work/dump"
  refused 1 'its driver has no zero copy' dump m to_a,mode=xdp,zerocopy
  refused 1 'there is no such queue' dump m to_a,mode=xdp,queue=5
fi
refused 1 'AF_XDP sockets have 3840 bytes' on m "$wholebar" net dump kernel:to_a,mode=xdp "$work/dump" --mtu 9000
refused 2 'a packet socket has no parameter "queue"' dump m to_a,queue=1
refused 2 'mode=fast: expected packet or xdp' dump m to_a,mode=fast
refused 1 'the interface.s is 1500' on m "$wholebar" net dump kernel:to_a "$work/dump" --mtu 9000
refused 2 'has no parameter "speed=1"; it has mode=packet' dump m to_a,speed=1
refused 2 'names nothing' dump m ,force
refused 2 'is no PCI device' "$wholebar" msix kernel:lo
dump a wire,force >"$work/forced.out" 2>&1 || fail "what is forced is refused"
dump m one,force >"$work/forced.out" 2>&1 || fail "what is forced is refused"
on a ip -d link show wire | grep -q 'promiscuity 0 ' || fail "the interface is still promiscuous"
echo "all as it should be"
