#!/usr/bin/env bash
# passt, the network of virtual machines without root, as the back end of our virtio driver by vhost-user: tests/passt.sh [HELLO-HTTP]
# In a network namespace which reaches nobody else, hello-http, whose TCP is smoltcp's, serves a file over passt's rings; curl has it by a port that passt forwards.
# What came is by sha256 what was sent.
# passt speaks vhost-user since the end of 2024. This one is of Debian trixie, unpacked with its libraries into a cache, never installed.
# Needs root. What it makes has names of its own, and goes away in the end. Ends with 3 where that passt can't be had or run here.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin
. tests/debian
unpacked passt passt trixie
for tool in ip curl sha256sum; do
  command -v $tool >/dev/null || { echo "$0: needs $tool (Debian: iproute2 curl)" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] && [ -e /dev/net/tun ] || { echo "$0: needs root, and TAP (modprobe tun)" >&2; exit 2; }
# shellcheck disable=SC2207
passt=($(loaded passt))
"${passt[@]}" --help 2>&1 | grep -- --vhost-user >/dev/null || cannot "this passt does not speak vhost-user"
hello_http=${1-}
if [ -z "$hello_http" ]; then
  cargo build -q --release --bin hello-http
  hello_http=${CARGO_TARGET_DIR:-target}/release/hello-http
fi

work=$(mktemp -d)
host=wb-host-$$
jobs=()
cleanup() {
  for job in "${jobs[@]}"; do kill "$job" 2>/dev/null || true; done
  wait
  ip netns del $host 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "FAILED: $*" >&2
  for log in "$work"/*.log; do echo "--- ${log##*/}" >&2; tail -n 20 "$log" >&2; done
  exit 1
}
wait_for() { # what, command: until it works, a minute at most
  local what=$1; shift
  for _ in $(seq 1200); do if "$@" >/dev/null 2>&1; then return; fi; sleep 0.05; done
  fail "$what did not come"
}
start() { # name, command: in the background
  local name=$1; shift
  "$@" >"$work/$name.log" 2>&1 &
  jobs+=($!)
}
stop() { # what it is: the last that was started, which is to end well
  local job=${jobs[-1]} code=0
  unset 'jobs[-1]'
  kill -INT "$job" 2>/dev/null || true
  wait "$job" || code=$?
  [ $code = 0 ] || fail "$1 ended with $code"
}
same() { [ "$(sha256sum <"$1")" = "$(sha256sum <"$2")" ]; }

# An interface with an address and a default route, which passt has its guest's from.
ip netns add $host
ip -n $host link set lo up
ip -n $host tuntap add out mode tap
ip -n $host addr add 10.79.0.2/24 dev out
ip -n $host link set out up
ip -n $host route add default via 10.79.0.1
head -c 64M /dev/urandom >"$work/file"

start passt ip netns exec $host "${passt[@]}" --foreground --one-off --vhost-user --socket "$work/passt.sock" -4 -t 8080:80
wait_for "passt" [ -S "$work/passt.sock" ]
start hello-http "$hello_http" "vhost-user:$work/passt.sock,net" --address 10.79.0.2/24 --file "$work/file"
wait_for "hello-http" grep -q http:// "$work/hello-http.log"
# A connection that comes before there are buffers is one that passt gives up after ten seconds: then curl tries again.
ip netns exec $host curl -sS --max-time 300 --connect-timeout 60 --retry 10 --retry-all-errors -o "$work/came" http://127.0.0.1:8080/ || fail "curl"
same "$work/file" "$work/came" || fail "what curl has is not what hello-http serves"
stop hello-http
# passt ends with its front end: with an error, since the memory of queues that were stopped is taken from it before the connection is.
timeout 60 tail -f --pid="${jobs[-1]}" /dev/null || fail "passt does not end with its front end"
unset 'jobs[-1]'
echo "hello-http over passt: 64 MiB, by sha256 as they should be"
