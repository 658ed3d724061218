#!/usr/bin/env bash
# Real packets through `net fwd`: two network namespaces, a TAP interface in each, and two virtio-net models between them. tests/namespaces.sh [WHOLEBAR]
# Ping, files and iperf3 go both ways over IPv4 and IPv6, without offloads and with them; what tcpdump sees on one side is compared with the other's.
# Needs root. What it makes has names of its own, and goes away in the end, whatever that is.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin
. tests/sides
needs "iproute2 iputils-ping netcat-openbsd iperf3 tcpdump" ip ss nstat ping nc iperf3 tcpdump cmp awk
[ -e /dev/net/tun ] || { echo "$0: needs TAP (modprobe tun)" >&2; exit 2; }
release "${1-}"
cargo build -q --example same_packets
same_packets=${CARGO_TARGET_DIR:-target}/debug/examples/same_packets

work=$(mktemp -d)
sides="a b"
declare -A tap mac
for side in $sides; do tap[$side]=wb$side$$; mac[$side]=02:00:00:00:00:0$side; done
jobs=()
forwarder=

cleanup() {
  for job in "${jobs[@]}" $forwarder; do kill "$job" 2>/dev/null || true; done
  wait
  for side in $sides; do ip netns del "${net[$side]}" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
fail() { # why; with what the forwarder counted
  echo "FAILED: $*" >&2
  if [ -n "$forwarder" ]; then kill -INT $forwarder || true; wait $forwarder || true; forwarder=; cat "$work/fwd" "$work/fwd.err" >&2; fi
  exit 1
}

# However late the forwarder gets its core, nothing is to be lost: models wait for buffers, interfaces have long queues, and who asks for an address
# asks for a minute.
start() { # arguments of net fwd
  "$wholebar" net fwd "sim:virtio-net,wire=tap:${tap[a]},full=wait" "sim:virtio-net,wire=tap:${tap[b]},full=wait" --stats 0 "$@" >"$work/fwd" 2>"$work/fwd.err" &
  forwarder=$!
  local number=1
  for side in $sides; do
    wait_for "interface ${tap[$side]}" ip link show "${tap[$side]}"
    # The model's end stays where it is.
    ip link set "${tap[$side]}" netns "${net[$side]}"
    # No packets of the kernel's own accord before there are addresses.
    on $side ip link set "${tap[$side]}" addrgenmode none
    on $side ip link set "${tap[$side]}" address "${mac[$side]}" txqueuelen 20000 up
    for ip in ipv4 ipv6; do
      on $side sh -c "cd /proc/sys/net/$ip/neigh/${tap[$side]} && echo 60 | tee mcast_solicit ucast_solicit && echo 16777216 >unres_qlen_bytes" >/dev/null
    done
    on $side ip addr add 10.77.0.$number/24 dev "${tap[$side]}"
    on $side ip addr add fd77::$number/64 dev "${tap[$side]}" nodad
    number=$((number + 1))
  done
}
stop() {
  kill -INT $forwarder
  local code=0
  wait $forwarder || code=$?
  forwarder=
  cat "$work/fwd.err" >&2
  [ $code = 0 ] || { cat "$work/fwd"; fail "net fwd ended with $code"; }
  sed -n '/^port  received/,$p' "$work/fwd"
  grep -q '^received .* = ' "$work/fwd" || fail "packets are not accounted for"
}

# The first and the last packets that are compared.
mark() { on a ping -q -c 1 -W 30 -p 77686f6c65626172 10.77.0.2 >/dev/null || fail "a marked ping was lost"; }

capture() {
  for side in $sides; do
    # The last run's says that it listens, too.
    rm -f "$work/$side.pcap" "$work/$side.tcpdump"
    ip netns exec "${net[$side]}" tcpdump -i "${tap[$side]}" -B 65536 -U -w "$work/$side.pcap" 2>"$work/$side.tcpdump" &
    jobs+=($!)
    wait_for "tcpdump in $side" grep -q 'listening on' "$work/$side.tcpdump"
  done
}
marks() { # side, packets: whether as many packets of marks are in its file, each with the pattern twice and again
  [ "$(LC_ALL=C grep -ao wholebarwholebar "$work/$1.pcap" | wc -l)" -ge $((2 * $2)) ]
}
captured() { # arguments of same_packets
  # They write as they capture, a second late at most, or later where they get no core: both marks and their answers should be there by then.
  for side in $sides; do for _ in $(seq 200); do if marks $side 4; then break; fi; sleep 0.1; done; done
  sleep 1.2
  for job in "${jobs[@]}"; do kill "$job"; done
  for job in "${jobs[@]}"; do wait "$job" || true; done
  jobs=()
  for side in $sides; do
    grep -q '^0 packets dropped by kernel' "$work/$side.tcpdump" || { cat "$work/$side.tcpdump"; fail "tcpdump was too slow"; }
  done
  "$same_packets" "$work/a.pcap" "${mac[a]}" "$work/b.pcap" "${mac[b]}" "$@" || fail "what one side sent is not what the other received"
}

for side in $sides; do ip netns add "${net[$side]}"; done
head -c $((4 << 20)) /dev/urandom >"$work/file"

run() { # what, how captures are compared, arguments of net fwd
  local what=$1 how=$2; shift 2
  echo "=== $what"
  start "$@"
  pings 200 a 10.77.0.2; pings 200 b 10.77.0.1; pings 200 a fd77::2
  echo "  200 pings each of a, of b, and over IPv6: none lost"
  capture
  mark
  file a b 10.77.0.2 "$work/file"
  file b a fd77::1 "$work/file"
  pings 200 b fd77::1
  mark
  captured $how
  echo "  4 MiB by TCP each way, IPv4 and IPv6: the same bytes"
  speed 10.77.0.2 "a to b"
  speed 10.77.0.2 "b to a" -R
  speed fd77::2 "IPv6 a to b"
  stop
}
run "without offloads: the models complete checksums and cut segments" cut
run "with checksum and TCP segmentation offloads: packets pass as they are" same --offloads tso
echo "all packets came through"
