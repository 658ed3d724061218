#!/usr/bin/env bash
# `hello-http`, whose TCP is smoltcp's over a port's queues, and the kernel's client: tests/http.sh [SIZE, by default 1G] [HELLO-HTTP]
# curl, in a network namespace of its own, is served through a TAP interface and a virtio-net model: SIZE bytes, by sha256 those that were to come, then eight
# at once, some that go in the middle, pings, and requests that make no sense.
# Beside it, in the same run: the same bytes by the kernel's own stack, whose server (sendfile, in another namespace) is behind the same TAP interface by
# one more, and a program that does nothing but pass packets between the two, whole: 64 KiB at once, as hello-http's too are.
# Needs root. What it makes has names of its own, and goes away in the end, whatever that is.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin
for tool in ip curl ping sha256sum awk; do
  command -v $tool >/dev/null || { echo "$0: needs $tool (Debian: iproute2 curl iputils-ping)" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] && [ -e /dev/net/tun ] || { echo "$0: needs root, and TAP (modprobe tun)" >&2; exit 2; }
size=${1:-1G}
target=${CARGO_TARGET_DIR:-target}
hello_http=${2-}
if [ -z "$hello_http" ]; then
  cargo build -q --release --bin hello-http
  hello_http=$target/release/hello-http
fi
cargo build -q --example kernel_http --example tap_bridge
examples=$target/debug/examples

work=$(mktemp -d)
client=wb-client-$$ server=wb-server-$$ tap=wbh$$ far=wbk$$
address=10.78.0.2
jobs=()
cleanup() {
  for job in "${jobs[@]}"; do kill "$job" 2>/dev/null || true; done
  wait
  for namespace in $client $server; do ip netns del $namespace 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "FAILED: $*" >&2; cat "$work"/*.out >&2; exit 1; }
wait_for() { # what, command
  local what=$1; shift
  for _ in $(seq 1200); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.05; done
  fail "$what did not come"
}
start() { # name, command: in the background, until `stop`
  local name=$1; shift
  "$@" >"$work/$name.out" 2>&1 &
  jobs+=($!)
}
stop() { # the last that was started, which is to end well
  local job=${jobs[-1]} code=0
  unset 'jobs[-1]'
  kill -INT "$job"
  wait "$job" || code=$?
  [ $code = 0 ] || fail "it ended with $code"
}
join() { # interface, namespace, address
  wait_for "interface $1" ip link show "$1"
  # The model's end stays where it is.
  ip link set "$1" netns "$2"
  ip -n "$2" addr add "$3/24" dev "$1"
  ip -n "$2" link set "$1" txqueuelen 20000 up
}
curl() { ip netns exec $client curl -sS --max-time 300 --connect-timeout 60 --retry 10 --retry-connrefused "$@"; }
sha() { sha256sum "$1" | cut -d' ' -f1; }
download() { # what it is
  local speed
  speed=$(curl -o "$work/came" -w '%{speed_download}' http://$address/) || fail "curl, from $1"
  [ "$(sha "$work/came")" = "$expected" ] || fail "what came from $1 is not what was sent"
  rm "$work/came"
  awk -v speed="$speed" -v what="$1" 'BEGIN { printf "%8.0f MB/s  %s\n", speed / 1e6, what }'
}
status() { # expected, arguments of curl
  local expected=$1 got; shift
  got=$(curl -o /dev/null -w '%{http_code}' "$@") || fail "curl, where $expected was to come"
  [ "$got" = "$expected" ] || fail "the answer is $got instead of $expected"
}

for namespace in $client $server; do ip netns add $namespace; done

start hello-http "$hello_http" sim:virtio-net,wire=tap:$tap --address $address/24 --size 16M
join $tap $client 10.78.0.1
ip netns exec $client ping -q -c 20 -i 0.01 -W 30 $address >"$work/ping.out" || fail "ping"
for n in 1 2 3 4 5 6 7 8; do curl -o "$work/$n" http://$address/ & clients[n]=$!; done
for n in 1 2 3 4 5 6 7 8; do wait "${clients[n]}" || fail "one of eight at once"; done
[ "$(for n in 1 2 3 4 5 6 7 8; do sha "$work/$n"; done | sort -u | wc -l)" = 1 ] || fail "eight at once had different files"
[ "$(stat -c %s "$work/8")" = $((16 << 20)) ] || fail "it is not 16 MiB long"
# More than there are connections, one after the other.
for n in $(seq 40); do curl http://$address/ 2>/dev/null | head -c 100000 >/dev/null || true; done
status 404 http://$address/nothing
status 405 -X DELETE http://$address/
status 431 -H "X: $(head -c 9000 /dev/zero | tr '\0' x)" http://$address/
status 400 --http0.9 -X 'b{d' http://$address/
status 200 -I http://$address/
stop
echo "20 pings, 8 at once, 40 that went in the middle, requests that make no sense: all as they should"

head -c "$(numfmt --from=iec "$size")" /dev/urandom >"$work/file"
expected=$(sha "$work/file")
echo "$size from each, by curl, which writes it to a file:"
start hello-http "$hello_http" sim:virtio-net,wire=tap:$tap --address $address/24 --file "$work/file"
join $tap $client 10.78.0.1
download "hello-http: smoltcp, a driver, a model of its card, its TAP interface"
stop

start bridge "$examples/tap_bridge" $tap $far
join $tap $client 10.78.0.1
join $far $server $address
start kernel ip netns exec $server "$examples/kernel_http" $address:80 "$work/file"
wait_for "the kernel's server" ip netns exec $client bash -c "exec 3<>/dev/tcp/$address/80"
download "the kernel's stack: sendfile, its TAP interface, a bridge of two"
echo "sha256 of both as it should be: $expected"
