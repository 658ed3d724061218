#!/usr/bin/env bash
# A Linux guest of QEMU's over vhost-user: tests/vhost_guest.sh [split|packed...]; without one, both.
# Its two network cards are front ends of `wholebar net fwd ...,back-end ...,back-end`, its disk is one of `wholebar sim serve virtio-blk --vhost-user`. What is done
# in the guest is in guest_over_vhost_user; at its second boot the switch takes TCP that is not cut yet (--offloads tso), and back ends are killed meanwhile
# and started again.
# No root and no hugepages. WHOLEBAR is the program to test, where that is set.
set -euo pipefail
cd "$(dirname "$0")/.."
kinds=${*:-split packed}
wholebar=${WHOLEBAR:-}
if [ -z "$wholebar" ]; then
  cargo build -q --release --bin wholebar
  wholebar=${CARGO_TARGET_DIR:-target}/release/wholebar
fi
marked="they were killed and are back"
work=$(mktemp -d)
jobs=()
killed() { # without a word
  for job in "${jobs[@]}"; do kill -KILL "$job" 2>/dev/null || true; wait "$job" 2>/dev/null || true; done
  jobs=()
}
trap 'killed; rm -rf "$work"' EXIT
fail() {
  echo "FAILED: $*" >&2
  tail -n 20 "$work"/*.log >&2
  exit 1
}
back_ends() { # options of the switch
  rm -f "$work"/*.sock
  "$wholebar" net fwd "vhost-user:$work/a.sock,back-end,server" "vhost-user:$work/b.sock,back-end,server" --stats 0 "$@" >>"$work/fwd.log" 2>&1 &
  jobs+=($!)
  "$wholebar" sim serve virtio-blk --vhost-user --socket "$work/disk.sock" "file=$work/disk.img" >>"$work/serve.log" 2>&1 &
  jobs+=($!)
  for _ in $(seq 600); do
    [ -S "$work/a.sock" ] && [ -S "$work/b.sock" ] && [ -S "$work/disk.sock" ] && return
    sleep 0.1
  done
  fail "the back ends do not listen"
}
mark() { # text, at the beginning of the disk's last sector
  printf '%s' "$1" | dd of="$work/disk.img" bs=512 seek=$(((128 << 20) / 512 - 1)) conv=notrunc status=none
}
uncut=(--offloads tso)
again() { # once the guest says so: all are killed, and started again
  while read -r line; do
    echo "  $line"
    if [ "$line" = "kill them" ]; then
      sleep 1
      killed
      back_ends "${uncut[@]}"
      mark "$marked"
    fi
  done
}
end() { # of the back ends, as they should
  for job in "${jobs[@]}"; do kill -INT "$job"; wait "$job" || fail "a back end ended with $?"; done
  jobs=()
}
guest() { # split or packed, whether TCP leaves it uncut, what the disk is marked by
  local qemu=() part packed=off
  [ "$1" = split ] || packed=on
  for part in -machine memory-backend=ram -object memory-backend-memfd,id=ram,size=512M,share=on \
    -chardev "socket,id=disk,path=$work/disk.sock,reconnect-ms=100" -device "vhost-user-blk-pci,chardev=disk,packed=$packed,disable-legacy=on" \
    -chardev "socket,id=a,path=$work/a.sock,reconnect-ms=100" -netdev vhost-user,id=a,chardev=a \
    -device "virtio-net-pci,netdev=a,packed=$packed,disable-legacy=on,romfile=,mac=02:00:00:00:00:0a" \
    -chardev "socket,id=b,path=$work/b.sock,reconnect-ms=100" -netdev vhost-user,id=b,chardev=b \
    -device "virtio-net-pci,netdev=b,packed=$packed,disable-legacy=on,romfile=,mac=02:00:00:00:00:0b"; do
    qemu+=("--qemu=$part")
  done
  cargo xtask vm run x86_64 --build '' --no-iommu --cpus 1 --memory 512 --nvme 1M --bind none --limit 1200 --file tests/guest_over_vhost_user \
    "${qemu[@]}" -- env "RINGS=$1" "UNCUT=$2" "MARKED=$3" sh guest_over_vhost_user
}

for kind in $kinds; do
  case $kind in split | packed) ;; *) echo "$kind: there are split and packed" >&2; exit 2 ;; esac
  echo "$kind rings"
  truncate -s 0 "$work/disk.img"
  truncate -s 128M "$work/disk.img"
  back_ends
  guest $kind no "" || fail "the first boot, $kind"
  end
  back_ends "${uncut[@]}"
  # In this shell, which has the back ends' numbers.
  mkfifo "$work/said"
  guest $kind yes "$marked" >"$work/said" & boot=$!
  again <"$work/said"
  wait $boot || fail "the second boot, $kind"
  rm "$work/said"
  end
done
echo "done"
