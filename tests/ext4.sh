#!/usr/bin/env bash
# A real file system through the drivers: an ext4 image made by mkfs.ext4 is served over vfio-user by one process, and read and written by another:
# as blocks by the command, and file by file by ext4-view, over the blocking face of a disk.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in mkfs.ext4 e2fsck debugfs sha256sum; do
  PATH=$PATH:/sbin:/usr/sbin command -v $tool >/dev/null || { echo "$0: needs $tool (Debian: e2fsprogs)" >&2; exit 2; }
done
PATH=$PATH:/sbin:/usr/sbin
cargo build -q --release --bin wholebar
# As the tests have built it.
cargo build -q --example ext4_view
wholebar=${CARGO_TARGET_DIR:-target}/release/wholebar
ext4_view=${CARGO_TARGET_DIR:-target}/debug/examples/ext4_view
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; rm -rf "$work"' EXIT

serve() { # model image
  rm -f "$work/disk.sock"
  "$wholebar" sim serve "$1" --socket "$work/disk.sock" "file=$2" &
  server=$!
  for _ in $(seq 600); do [ -S "$work/disk.sock" ] && return; sleep 0.1; done
  echo "the server did not come up" >&2; exit 1
}
stop() { kill $server; wait $server || true; server=; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

echo "making two file systems of a few hundred files each"
for which in one two; do
  mkdir -p "$work/$which"
  for i in $(seq 400); do
    mkdir -p "$work/$which/$((i % 20))"
    head -c $((i * 97)) /dev/urandom >"$work/$which/$((i % 20))/$i"
  done
  truncate -s 64M "$work/$which.img"
  mkfs.ext4 -q -F -d "$work/$which" "$work/$which.img"
done
cp "$work/one.img" "$work/disk.img"

echo "reading one back through the driver"
serve nvme "$work/disk.img"
"$wholebar" nvme read "vfio-user:$work/disk.sock" --bytes 64M --out "$work/read.img"
[ "$(sum "$work/read.img")" = "$(sum "$work/one.img")" ] || { echo "what was read is not what was served" >&2; exit 1; }
e2fsck -fn "$work/read.img" >/dev/null

echo "mounting it on the disk"
mount() { # target
  rm -rf "$work/out"
  "$ext4_view" "$1" "$work/out"
  rm -rf "$work/out/lost+found"
  diff -r "$work/one" "$work/out"
}
mount "vfio-user:$work/disk.sock"
mount "sim:nvme,file=$work/one.img,ro=1"
stop
serve virtio-blk "$work/disk.img"
mount "vfio-user:$work/disk.sock"
stop

echo "writing the other through the driver"
serve nvme "$work/disk.img"
"$wholebar" nvme write "vfio-user:$work/disk.sock" --in "$work/two.img"
stop
[ "$(sum "$work/disk.img")" = "$(sum "$work/two.img")" ] || { echo "what is on the disk is not what was written" >&2; exit 1; }
e2fsck -fn "$work/disk.img"
rm -rf "$work/out"
mkdir "$work/out"
debugfs -R "rdump / $work/out" "$work/disk.img" >/dev/null 2>&1
rm -rf "$work/out/lost+found" "$work/two/lost+found"
diff -r "$work/two" "$work/out"
echo "both images came through whole: 400 files each, sha256 equal, e2fsck clean; ext4-view mounted one on three disks"
