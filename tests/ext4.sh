#!/usr/bin/env bash
# A real file system through the driver: an ext4 image made by mkfs.ext4 is served over vfio-user by one process, and read and written by another.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in mkfs.ext4 e2fsck debugfs sha256sum; do
  PATH=$PATH:/sbin:/usr/sbin command -v $tool >/dev/null || { echo "$0: needs $tool (Debian: e2fsprogs)" >&2; exit 2; }
done
PATH=$PATH:/sbin:/usr/sbin
cargo build -q --release --bin wholebar
wholebar=${CARGO_TARGET_DIR:-target}/release/wholebar
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; rm -rf "$work"' EXIT

serve() { # image
  rm -f "$work/nvme.sock"
  "$wholebar" sim serve nvme --socket "$work/nvme.sock" --backing "$1" &
  server=$!
  for _ in $(seq 600); do [ -S "$work/nvme.sock" ] && return; sleep 0.1; done
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
serve "$work/disk.img"
"$wholebar" nvme read "vfio-user:$work/nvme.sock" --bytes 64M --out "$work/read.img"
[ "$(sum "$work/read.img")" = "$(sum "$work/one.img")" ] || { echo "what was read is not what was served" >&2; exit 1; }
e2fsck -fn "$work/read.img" >/dev/null

echo "writing the other through the driver"
"$wholebar" nvme write "vfio-user:$work/nvme.sock" --in "$work/two.img"
stop
[ "$(sum "$work/disk.img")" = "$(sum "$work/two.img")" ] || { echo "what is on the disk is not what was written" >&2; exit 1; }
e2fsck -fn "$work/disk.img"
mkdir "$work/out"
debugfs -R "rdump / $work/out" "$work/disk.img" >/dev/null 2>&1
rm -rf "$work/out/lost+found" "$work/two/lost+found"
diff -r "$work/two" "$work/out"
echo "both images came through whole: 400 files each, sha256 equal, e2fsck clean"
