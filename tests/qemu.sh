#!/usr/bin/env bash
# QEMU's own vfio-user client, without a guest: its firmware boots from served models by the NVMe and virtio-blk drivers that it has. A boot sector reads
# 64 sectors and writes them elsewhere by the BIOS, and says so on the serial port; the image is compared afterwards.
# QEMU has that client since 10.1. This one is of Debian trixie's backports, unpacked with its libraries into a cache, never installed.
# Ends with 3 where that QEMU can't be had or run here.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/debian
unpacked qemu qemu-system-x86 trixie trixie-backports

lib=$root/usr/lib/x86_64-linux-gnu
# shellcheck disable=SC2207
qemu=(env "QEMU_MODULE_DIR=$lib/qemu" $(loaded qemu-system-x86_64)
  -L "$root/usr/share/qemu" -L "$root/usr/share/seabios")
"${qemu[@]}" --version | head -n 1

cargo build -q --release --bin wholebar
wholebar=${CARGO_TARGET_DIR:-target}/release/wholebar
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; rm -rf "$work"' EXIT

# At 0x7c00, in real mode; the BIOS leaves the disk's number in DL.
boot_sector() {
  printf '\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c'         # ds = ss = 0, sp = 0x7c00
  printf '\xbe\x3c\x7c\xb4\x42\xcd\x13\x72\x15'         # read as the packet says, or go to "failed"
  printf '\xc7\x06\x44\x7c\x80\x00'                     # in the packet: sector 128
  printf '\xbe\x3c\x7c\xb8\x00\x43\xcd\x13\x72\x05'     # write, or go to "failed"
  printf '\xbe\x4c\x7c\xeb\x03\xbe\x5f\x7c'             # the one text, or the other
  printf '\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5' # each character to the serial port
  printf '\xb0\x10\xe6\xf4\xf4\xeb\xfd'                 # end QEMU: its exit status is 33
  printf '\x10\0\x40\0\0\0\0\x10\1\0\0\0\0\0\0\0'       # the packet: 64 sectors, to 1000:0000, sector 1
  printf 'read and written\r\n\0the disk failed\r\n\0'
}

boot() { # model, its parameters
  echo "booting from $1"
  truncate -s 0 "$work/disk.img"
  truncate -s 1M "$work/disk.img"
  boot_sector | dd of="$work/disk.img" conv=notrunc status=none
  printf '\x55\xaa' | dd of="$work/disk.img" bs=1 seek=510 conv=notrunc status=none
  head -c 32768 /dev/urandom | dd of="$work/disk.img" bs=512 seek=1 conv=notrunc status=none
  "$wholebar" sim serve "$@" "file=$work/disk.img" --socket "$work/model.sock" 2>"$work/served" &
  server=$!
  for _ in $(seq 600); do [ -S "$work/model.sock" ] && break; sleep 0.1; done
  local code=0
  timeout 300 "${qemu[@]}" -M q35,memory-backend=ram -accel tcg -m 128M \
    -object memory-backend-memfd,id=ram,size=128M,share=on -nodefaults -display none -no-reboot -serial "file:$work/serial" \
    -device isa-debug-exit,iobase=0xf4,iosize=4 \
    -device "{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"$work/model.sock\"}}" || code=$?
  kill $server; wait $server || true; server=
  cat "$work/serial"
  [ $code = 33 ] && grep -q 'read and written' "$work/serial" &&
    cmp <(dd if="$work/disk.img" bs=512 skip=1 count=64 status=none) <(dd if="$work/disk.img" bs=512 skip=128 count=64 status=none) ||
    { echo "QEMU ended with $code; of the model:" >&2; cat "$work/served" >&2; exit 1; }
}

boot nvme
boot virtio-blk
echo "both booted, and what was read was written"
