#!/usr/bin/env bash
# vhost-user against the peers that Debian has: tests/vhost.sh [PART...], of blk, net, offloads, again, wrong (our driver), back (our model) and port (our port); without one, all.
# (QEMU over our back end: qemu.sh, and with a guest vhost_guest.sh.)
# WHOLEBAR is the program to test, where that is set; OFFLOADS is the example of that name.
#   blk    qemu-storage-daemon's disk: an ext4 image is read and written through it
#   net    testpmd's vhost: packets from one of our ports to the other, through it
#   offloads  testpmd's vhost: checksums that we leave to it, and TCP that is not cut yet, from one of our ports to the other
#   again  testpmd's vhost is killed while it receives from us, and started again: KILLS times, 5 if that is not set
#   wrong  peers that aren't there, are of another type, or say nothing: a named error each
#   back   testpmd's virtio_user over our virtio-net: what it sends comes back, byte for byte
#   port   testpmd's virtio_user at both ports of a switch of ours: TCP that it leaves to be cut is passed on to who takes that, and cut for who doesn't
# No root and no hugepages. What can't be done here is said in a line that begins with LEFT OUT.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/sbin:/usr/sbin
parts=${*:-blk net offloads again wrong back port}
wholebar=${WHOLEBAR:-}
if [ -z "$wholebar" ]; then
  cargo build -q --release --bin wholebar
  wholebar=${CARGO_TARGET_DIR:-target}/release/wholebar
fi

work=$(mktemp -d)
jobs=()
pmd_memory="--no-huge -m 256"
. tests/testpmd
cleanup() {
  killed
  for job in "${jobs[@]}"; do kill -KILL "$job" 2>/dev/null || true; done
  wait
  rm -rf "$work"
}
trap cleanup EXIT
fail() { # why; with what all said last
  echo "FAILED: $*" >&2
  for log in "$work"/*.log; do echo "--- ${log##*/}" >&2; tail -n 40 "$log" >&2; done
  exit 1
}
left_out() { echo "LEFT OUT: vhost.sh, $*"; }
needs() { # part, Debian's package, programs
  local part=$1 package=$2 tool; shift 2
  for tool; do command -v "$tool" >/dev/null || { left_out "$part: needs $tool (Debian: $package)"; return 1; }; done
}
start() { # name, command: in the background
  local name=$1; shift
  "$@" >"$work/$name.log" 2>&1 &
  jobs+=($!)
}
stop() { # signal; the last that was started, which is to end well
  local job=${jobs[-1]} code=0
  kill "-$1" "$job"
  ended "$job" || fail "what was to end by SIG$1 does not within a minute"
  unset 'jobs[-1]'
  wait "$job" || code=$?
  [ $code = 0 ] || fail "what was to end by SIG$1 ended with $code"
}
run() { # what it is, command: to work, within two minutes
  local what=$1; shift
  timeout 120 "$@" >"$work/ran.log" 2>&1 || fail "$what"
}
sum() { sha256sum "$1" | cut -d' ' -f1; }
same() { [ "$(sum "$1")" = "$(sum "$2")" ]; }
field() { # file of JSON, name: the first value of that name, a number
  grep -m 1 "\"$2\":" "$1" | tr -dc 0-9
}

images() { # two file systems that differ
  local name n
  [ -e "$work/two.img" ] && return
  for name in one two; do
    mkdir "$work/$name"
    for n in $(seq 50); do head -c $((n * 797)) /dev/urandom >"$work/$name/$n"; done
    truncate -s 16M "$work/$name.img"
    mkfs.ext4 -q -F -d "$work/$name" "$work/$name.img"
  done
}

blk() {
  needs blk "qemu-utils e2fsprogs" qemu-storage-daemon mkfs.ext4 e2fsck || return 0
  images
  local disk=vhost-user:$work/blk.sock,blk queues
  for queues in 1 2; do
    cp "$work/one.img" "$work/disk.img"
    start storage qemu-storage-daemon --blockdev "driver=file,node-name=disk,filename=$work/disk.img,locking=off" \
      --export "type=vhost-user-blk,id=export,addr.type=unix,addr.path=$work/blk.sock,node-name=disk,writable=on,num-queues=$queues"
    wait_for "qemu-storage-daemon" [ -S "$work/blk.sock" ]
    run "reading" "$wholebar" blk read "$disk" --bytes 16M --out "$work/read.img"
    same "$work/read.img" "$work/one.img" || fail "what was read is not what is there"
    run "writing" "$wholebar" blk write "$disk" --in "$work/two.img"
    run "reading again" "$wholebar" blk read "$disk" --bytes 16M --out "$work/read.img"
    same "$work/read.img" "$work/two.img" || fail "what was read is not what was written"
    stop TERM
    same "$work/disk.img" "$work/two.img" || fail "the image is not what was written"
    run "e2fsck" e2fsck -fn "$work/disk.img"
    echo "qemu-storage-daemon, $queues of its queues: 16 MiB of ext4 read and written, by sha256 and e2fsck as they should be"
  done
}

# Our two ports are on one thread, testpmd is on the other CPU. It waits for room where it forwards to, and counts what it drops where none comes.
net() {
  needs net dpdk-dev dpdk-testpmd || return 0
  local layout case queues sizes to out=$work/net.json packets=50000
  # What is longer than a buffer comes in several.
  local long="64-9018 --mtu 9000 --offloads scatter --buffer 2048"
  for layout in split packed; do for case in "1 64-1518" "2 64-1518" "1 $long"; do
    read -r queues sizes <<<"$case"
    testpmd net 0 --vdev "net_vhost0,iface=$work/a.sock,queues=$queues" --vdev "net_vhost1,iface=$work/b.sock,queues=$queues" \
      -- --rxq=$queues --txq=$queues
    forward net
    # shellcheck disable=SC2046,SC2086
    run "net gen, $layout rings" "$wholebar" net gen "vhost-user:$work/a.sock,net" --to "vhost-user:$work/b.sock,net" --rate max --count $packets \
      --cores "$last_cpu" --queues $queues --flows 16 --size $sizes $([ $layout = packed ] || echo --split) --tolerate --json --stats 0
    sed -n '/^{/,$p' "$work/ran.log" >"$out"
    end net
    to="sent $(field "$out" packets), testpmd received $(counted net 0 RX-packets), sent $(counted net 1 TX-packets), dropped $(counted net 1 TX-dropped)"
    [ "$(field "$out" corrupt)" = 0 ] && [ "$(field "$out" foreign)" = 0 ] && [ "$(field "$out" duplicate)" = 0 ] &&
      [ "$(counted net 0 RX-packets)" = $packets ] && [ $(($(counted net 1 TX-packets) + $(counted net 1 TX-dropped))) = $packets ] &&
      [ "$(field "$out" lost)" = "$(counted net 1 TX-dropped)" ] || { cat "$out" >&2; fail "packets are not accounted for: $to"; }
    echo "testpmd's vhost, $layout rings, $queues each way, frames of ${sizes%% *}: $to; all that came as it was sent"
    rm -f "$work/a.sock" "$work/b.sock"
  done; done
}

# Checksums: testpmd forwards as it receives, and its vhost fills in those of which our virtio headers say that they remain to be.
# Segments: its csum forwarding says which packets it was told not to be cut yet (RX_LRO; the size that it prints is its own), and makes new headers. To have such packets passed on it has to be told to
# have them cut, though it says that vhost can't.
offloads() {
  needs offloads dpdk-dev dpdk-testpmd || return 0
  local layout what order packets example=${OFFLOADS:-}
  if [ -z "$example" ]; then
    cargo build -q --release -p wholebar-tests --example offloads
    example=${CARGO_TARGET_DIR:-target}/release/examples/offloads
  fi
  for layout in split packed; do for what in checksums segments; do
    testpmd offloads 0 --vdev "net_vhost0,iface=$work/a.sock,tso=1" --vdev "net_vhost1,iface=$work/b.sock,tso=1" --
    if [ $what = segments ]; then
      for order in "set fwd csum" "csum mac-swap off 1" "set verbose 1" "port stop 1" "tso set 1448 1" "port start 1" start; do say offloads "$order"; done
      wait_for "testpmd offloads" grep -q ' packet forwarding .*- ports=' "$work/offloads.log"
    else
      forward offloads
    fi
    run "$what, $layout rings" "$example" $what "vhost-user:$work/a.sock,net" "vhost-user:$work/b.sock,net" $layout
    end offloads
    packets=$(cat "$work/ran.log")
    [ "$(counted offloads 0 RX-packets)" = "$packets" ] && [ "$(counted offloads 1 TX-packets)" = "$packets" ] ||
      fail "$packets packets were sent and came, and testpmd received $(counted offloads 0 RX-packets) and sent $(counted offloads 1 TX-packets)"
    [ $what = checksums ] || [ "$(grep -c 'flags=.*RX_LRO' "$work/offloads.log")" = "$packets" ] || fail "testpmd was not told that all are to be cut"
    echo "testpmd's vhost, $layout rings, $what: $packets packets, on both sides; all came as they were sent"
    rm -f "$work/a.sock" "$work/b.sock"
  done; done
}

again() {
  needs again dpdk-dev dpdk-testpmd || return 0
  local n vhost=(--vdev "net_vhost0,iface=$work/a.sock" -- --forward-mode=rxonly)
  testpmd again 0 "${vhost[@]}"
  say again start
  wait_for "testpmd" [ -S "$work/a.sock" ]
  start fwd "$wholebar" net fwd "vhost-user:$work/a.sock,net,reconnect=60" --mode txonly --cores "$last_cpu" --stats 0 --json
  for n in $(seq "${KILLS:-5}"); do
    wait_for "a packet before its end number $n" has again 0 RX-packets 1000
    die again
    rm -f "$work/a.sock"
    testpmd again 0 "${vhost[@]}"
    say again start
  done
  wait_for "a packet in the end" has again 0 RX-packets 1000
  stop INT
  end again
  sed -n '/^{/,$p' "$work/fwd.log" >"$work/again.json"
  [ "$(field "$work/again.json" made)" = "$(grep -m 1 '"home":' "$work/again.json" | tr -dc 0-9)" ] || fail "not all buffers came home"
  echo "testpmd's vhost killed ${KILLS:-5} times while we send: packets go on each time, and every buffer is home"
}

refused() { # what the error says, command
  local said=$1 code=0; shift
  timeout 120 "$@" >"$work/ran.log" 2>&1 || code=$?
  [ $code = 1 ] && grep -q "$said" "$work/ran.log" || fail "exit code $code, where 1 and \"$said\" were to come, of: $*"
  echo "  $(grep -m 1 "$said" "$work/ran.log")"
}
wrong() {
  needs wrong netcat-openbsd nc || return 0
  echo "what is refused:"
  refused "there is no such socket" "$wholebar" net sink "vhost-user:$work/nobody.sock,net"
  # A disk, where a network device is asked for.
  start disk "$wholebar" sim serve virtio-blk --vhost-user --socket "$work/disk.sock" size=1M
  wait_for "our model" [ -S "$work/disk.sock" ]
  refused "that is a disk, and a network device is wanted" "$wholebar" net sink "vhost-user:$work/disk.sock,net"
  stop INT
  # It takes connections, and never answers.
  start silent nc -lU "$work/silent.sock"
  wait_for "nc" [ -S "$work/silent.sock" ]
  refused "no reply within 1s" "$wholebar" net sink "vhost-user:$work/silent.sock,net,timeout=1"
}

back() {
  needs back "dpdk-dev tcpdump" dpdk-testpmd tcpdump || return 0
  local layout queues way server queue files packets=5000
  # Each queue has a flow of its own, which comes back by the queue that sent it: as many on each as went out there.
  for queue in 0 1; do
    run "making packets" "$wholebar" net gen "sim:virtio-net,wire=pcap:$work/made.pcapng" --dst-mac 02:00:00:00:00:01 --rate max --count $packets \
      --size 64-1518 --seed "$queue" --stats 0
    tcpdump -r "$work/made.pcapng" -w "$work/in.$queue.pcap" 2>"$work/tcpdump.log"
  done
  bytes() { # of captures: a packet a line, sorted
    for capture; do tcpdump -ntxxr "$capture" 2>"$work/tcpdump.log"; done |
      awk '/^\t0x0000:/ && line { print line; line = "" } /^\t0x/ { line = line substr($0, 10) } END { print line }' | sort
  }
  for layout in split packed; do for queues in 1 2; do for way in listens connects; do
    server=0
    [ $way = listens ] || server=1
    start model "$wholebar" sim serve virtio-net --vhost-user --socket "$work/net.sock" $([ $way = listens ] || echo --connect) \
      wire=loop full=wait queues=$queues mac=02:00:00:00:00:01
    [ $way = connects ] || wait_for "our model" [ -S "$work/net.sock" ]
    # A file for each queue: its packets go in by the one port, out by the other, and what comes back there goes into another file.
    files=
    for ((queue = 0; queue < queues; queue++)); do files+=,rx_pcap=$work/in.$queue.pcap,tx_pcap=$work/out.$queue.pcap; done
    testpmd back 0 --vdev "net_pcap0$files" \
      --vdev "net_virtio_user0,path=$work/net.sock,server=$server,queues=$queues,packed_vq=$([ $layout = packed ] && echo 1 || echo 0),mac=02:00:00:00:00:01" \
      -- --rxq=$queues --txq=$queues
    forward back
    wait_for "each packet" has back 0 TX-packets $((queues * packets))
    end back
    stop INT
    # shellcheck disable=SC2046
    bytes $(for ((queue = 0; queue < queues; queue++)); do echo "$work/in.$queue.pcap"; done) >"$work/in.bytes"
    bytes "$work"/out.*.pcap >"$work/out.bytes"
    [ "$(wc -l <"$work/in.bytes")" = $((queues * packets)) ] || fail "not all packets were made"
    cmp "$work/in.bytes" "$work/out.bytes" || fail "what came back is not what was sent"
    echo "testpmd's virtio_user, $layout rings, $queues each way, our model $way: $((queues * packets)) packets came back, byte for byte"
    rm -f "$work/net.sock" "$work"/out.*
  done; done; done
}

little() { # bytes, numbers: so many bytes of each, the lowest first
  local bytes=$1 number n out=; shift
  for number; do for ((n = 0; n < bytes; n++)); do out+=$(printf '\\x%02x' $((number >> 8 * n & 255))); done; done
  # shellcheck disable=SC2059
  printf "$out"
}
big() { # the same, the highest first
  local bytes=$1 number n out=; shift
  for number; do for ((n = bytes - 1; n >= 0; n--)); do out+=$(printf '\\x%02x' $((number >> 8 * n & 255))); done; done
  # shellcheck disable=SC2059
  printf "$out"
}
capture() { # which takes no packet yet (pcap-savefile(5))
  little 4 0xa1b2c3d4
  little 2 2 4
  little 4 0 0 262144 1
}
tcp() { # version of IP, where its payload begins in $work/payload, and how many bytes of it: a packet of a capture, without checksums
  local version=$1 from=$2 len=$3 head=$(($1 == 4 ? 54 : 74))
  little 4 0 0 $((head + len)) $((head + len))
  big 6 0x020000000001 0x020000000002
  if [ "$version" = 4 ]; then
    big 2 0x0800 0x4500 $((40 + len)) $((from & 0xffff)) 0 0x4006 0
    big 4 0x0a000001 0x0a000002
  else
    big 2 0x86dd 0x6000 0 $((20 + len)) 0x0640
    big 4 0xfd000000 0 0 1 0xfd000000 0 0 2
  fi
  big 2 80 81
  big 4 "$from" 0
  big 2 0x5010 0xffff 0 0
  head -c $((from + len)) "$work/payload" | tail -c "$len"
}
payload() { # capture: what TCP carries there, in hexadecimal digits
  tcpdump -ntxxr "$1" 2>"$work/tcpdump.log" |
    awk '/^\t0x0000:/ && line { print line; line = "" } /^\t0x/ { line = line substr($0, 10) } END { print line }' |
    tr -d ' ' | awk '{ printf "%s", substr($0, substr($0, 25, 4) == "86dd" ? 149 : 109) }'
}
# testpmd has TCP cut by its virtio_user, which leaves that to our port. At the other port is another, which takes TCP that is not cut (lro), or does not.
port() {
  needs port "dpdk-dev tcpdump" dpdk-testpmd tcpdump || return 0
  local layout lro version len order from=0 packets=0 segments=0 expected forwarding
  head -c 64K /dev/urandom >"$work/payload"
  capture >"$work/none.pcap"
  capture >"$work/in.pcap"
  for len in 1000 1448 1449 3000 8000; do for version in 4 6; do
    tcp $version $from $len >>"$work/in.pcap"
    ((from += len, packets += 1, segments += (len + 1447) / 1448))
  done; done
  head -c $from "$work/payload" | od -An -v -tx1 | tr -d ' \n' >"$work/payload.hex"
  for layout in split packed; do for lro in off on; do
    start fwd "$wholebar" net fwd "vhost-user:$work/a.sock,back-end,server" "vhost-user:$work/b.sock,back-end,server" --offloads tso \
      --cores "$last_cpu" --stats 0 --json
    wait_for "our ports" [ -S "$work/b.sock" ]
    testpmd out 0 --vdev "net_virtio_user0,path=$work/b.sock,packed_vq=$([ $layout = packed ] && echo 1 || echo 0)" \
      --vdev "net_pcap0,rx_pcap=$work/none.pcap,tx_pcap=$work/out.pcap" -- --disable-device-start
    forwarding=io
    [ $lro = off ] || forwarding=csum
    # Uncut TCP leaves its checksum out (VIRTIO 1.2, 5.1.3.1): DPDK has to be told.
    for order in "port config 0 rx_offload tcp_lro $lro" "port config 0 rx_offload tcp_cksum $lro" "port start all" "set fwd $forwarding" "csum mac-swap off 1" "set verbose 1" start; do say out "$order"; done
    wait_for "testpmd out" grep -q ' packet forwarding .*- ports=' "$work/out.log"
    # Buffers that hold a packet each, or a part: of one in several, DPDK's packed rings say that its header is to be written.
    testpmd in 0 --vdev "net_pcap0,rx_pcap=$work/in.pcap,tx_pcap=$work/back.pcap" \
      --vdev "net_virtio_user0,path=$work/a.sock,packed_vq=$([ $layout = packed ] && echo 1 || echo 0)" -- --disable-device-start $([ $lro = on ] || echo --mbuf-size=10240)
    for order in "csum set tcp hw 1" "tso set 1448 1" "port start all" "set fwd csum" "csum mac-swap off 1" start; do say in "$order"; done
    expected=$segments
    [ $lro = off ] || expected=$packets
    wait_for "all that comes of $packets packets" has out 1 TX-packets $expected
    end in
    end out
    stop INT
    [ "$(counted in 1 TX-packets)" = $packets ] && [ "$(counted out 0 RX-packets)" = $expected ] ||
      fail "testpmd sent $(counted in 1 TX-packets) of $packets packets, and received $(counted out 0 RX-packets) of $expected"
    payload "$work/out.pcap" | cmp - "$work/payload.hex" || fail "what came is not what was sent"
    [ "$(tcpdump -vvnr "$work/out.pcap" 2>"$work/tcpdump.log" | grep -c '(correct)')" = $expected ] || fail "not all checksums are right"
    [ $lro = off ] || [ "$(grep -c 'flags=.*RX_LRO' "$work/out.log")" = 6 ] || fail "testpmd was not told that three packets of each IP are to be cut"
    echo "a port of ours, $layout rings: $packets packets of testpmd's virtio_user to be cut came as $expected, by tcpdump as they should be"
    rm -f "$work"/[ab].sock "$work/out.pcap" "$work/back.pcap"
  done; done
}

last_cpu=$(grep -oP 'Cpus_allowed_list:\s*\K.*' /proc/self/status | tr , - | awk -F- '{ print $NF }')
for part in $parts; do
  case $part in blk | net | offloads | again | wrong | back | port) $part ;; *) echo "$0: no part is named $part" >&2; exit 2 ;; esac
done
echo "in ${SECONDS} s"
