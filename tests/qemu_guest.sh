#!/usr/bin/env bash
# A Linux guest of QEMU's over vfio-user: tests/qemu_guest.sh [plain|iommu...]; without one, both: without an IOMMU, and behind a virtual one, with which QEMU
# maps memory page by page.
# Its NVMe controller, its virtio disk and its two network cards are models of `wholebar sim serve`. What is done in the guest is in guest_over_vfio_user: it boots,
# boots again in the same QEMU, and in another QEMU that connects to the same servers; then both disks' images have the same bytes.
# QEMU has the vfio-user client since 10.1. This one is of Debian trixie's backports, unpacked with its libraries into a cache, never installed.
# Ends with 3 where that QEMU can't be had or run here. No root and no hugepages. WHOLEBAR is the program to test, where that is set.
set -euo pipefail
cd "$(dirname "$0")/.."
kinds=${*:-plain iommu}
for kind in $kinds; do
  case $kind in plain | iommu) ;; *) echo "$kind: there are plain and iommu" >&2; exit 2 ;; esac
done
. tests/debian
unpacked qemu qemu-system-x86 trixie trixie-backports
wholebar=${WHOLEBAR:-}
if [ -z "$wholebar" ]; then
  cargo build -q --release --bin wholebar
  wholebar=${CARGO_TARGET_DIR:-target}/release/wholebar
fi
work=$(mktemp -d)
servers=()
trap 'for server in "${servers[@]}"; do kill -KILL $server 2>/dev/null || true; done; rm -rf "$work"' EXIT
fail() {
  echo "FAILED: $*" >&2
  tail -n 20 "$work"/*.log >&2
  exit 1
}

# What `xtask vm` runs by its name.
mkdir "$work/bin"
lib=$root/usr/lib/x86_64-linux-gnu
cat >"$work/bin/qemu-system-x86_64" <<QEMU
#!/bin/sh
export QEMU_MODULE_DIR='$lib/qemu'
exec $(loaded qemu-system-x86_64) -L '$root/usr/share/qemu' -L '$root/usr/share/seabios' "\$@"
QEMU
chmod +x "$work/bin/qemu-system-x86_64"
"$work/bin/qemu-system-x86_64" --version | head -n 1

serve() { # model, and what else "sim serve" is told
  "$wholebar" sim serve "$@" >>"$work/$1.log" 2>&1 &
  servers+=($!)
}
sockets=(nvme blk a b)
listening() { for name in "${sockets[@]}"; do [ -S "$work/$name.sock" ] || return; done; }
start() {
  for disk in nvme blk; do
    truncate -s 0 "$work/$disk.img"
    truncate -s 64M "$work/$disk.img"
  done
  serve nvme --socket "$work/nvme.sock" "file=$work/nvme.img"
  serve virtio-blk --socket "$work/blk.sock" "file=$work/blk.img"
  serve virtio-net --socket "$work/a.sock" --socket "$work/b.sock" wire=pair:x
  for _ in $(seq 600); do listening && return; sleep 0.1; done
  fail "the models are not served"
}
end() { # of the servers, as they should
  for server in "${servers[@]}"; do kill -INT $server; wait $server || fail "a server ended with $?"; done
  servers=()
}
guest() { # plain or iommu, the numbers of its boots
  local qemu=() iommu=(--no-iommu) part
  [ "$1" = plain ] || iommu=()
  # Where the guest asks for a reset it boots again: `xtask vm` alone has QEMU end then.
  for part in -action reboot=reset -machine memory-backend=ram -object memory-backend-memfd,id=ram,size=512M,share=on; do
    qemu+=("--qemu=$part")
  done
  for part in "${sockets[@]}"; do
    qemu+=(--qemu=-device "--qemu={\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"$work/$part.sock\"}}")
  done
  PATH=$work/bin:$PATH cargo xtask vm run x86_64 --build '' "${iommu[@]}" --memory 512 --nvme 1M --bind none --limit 1200 \
    --file tests/guest_over_vfio_user "${qemu[@]}" -- env "BOOTS=$2" sh guest_over_vfio_user
}

for kind in $kinds; do
  echo "$kind"
  start
  guest $kind "1 2" || fail "the guest, $kind"
  guest $kind 3 || fail "the guest in another QEMU, $kind"
  end
  cmp -n $((16 << 20)) "$work/nvme.img" "$work/blk.img" || fail "the disks' images differ"
done
echo "done"
