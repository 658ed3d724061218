#!/usr/bin/env bash
# `cargo test --workspace` on a minimal machine: tests/minimal.sh [ARGUMENTS OF CARGO TEST]
# The smallest system that Debian makes (debootstrap --variant=minbase), a C compiler and this machine's Rust, in namespaces of its own: without /sys,
# network and HOME, and with sources that cannot be written. The tests run there as root, then as a user (USERS). They share what cargo has built in
# target/, and write to a layer above it that goes with the namespaces. COLD=1 shows that building needs no more either: it does not share.
# Needs root, debootstrap, and the crates in cargo's cache. The system comes from where this machine's apt has its own (SUITE: trixie), and is kept in
# target/minimal: remove that to have it anew.
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD system=$PWD/target/minimal/${SUITE:-trixie}

outside() {
  if ! unshare --mount --pid --fork --net mount -t tmpfs none /mnt; then
    echo "LEFT OUT: minimal.sh: no namespaces to be had here"
    exit
  fi
  cargo test --workspace --no-run
  if [ ! -d "$system" ]; then
    local codename mirror
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(SITE)' "Identifier: Packages" "Origin: Debian" "Codename: $codename" | head -n 1)
    mkdir -p "$system.part"
    debootstrap --variant=minbase --include=gcc,libc6-dev "${system##*/}" "$system.part" "${mirror:?apt knows no mirror of Debian}" >"$system.log" || {
      tail "$system.log"
      exit 1
    }
    mv "$system.part" "$system"
  fi
  RUST=$(rustc --print sysroot) CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} \
    exec unshare --mount --pid --fork --kill-child --net "$repo/tests/minimal.sh" inside "$@"
}

# A folder, where it is outside, with what is written to it in memory.
layered() { # folder
  local scratch=/mnt/layers$1
  mkdir -p "$scratch/upper" "$scratch/work" "$root$1"
  mount -t overlay overlay -o "metacopy=on,lowerdir=$1,upperdir=$scratch/upper,workdir=$scratch/work" "$root$1"
}

inside() {
  mount -t tmpfs none /mnt
  root=/mnt/root
  mkdir -p /mnt/layers/system/{upper,work} $root
  mount -t overlay overlay -o "lowerdir=$system,upperdir=/mnt/layers/system/upper,workdir=/mnt/layers/system/work" $root
  mount -t proc proc $root/proc
  mount -t tmpfs none $root/dev
  for node in null zero full random urandom tty; do
    touch $root/dev/$node
    mount --bind /dev/$node $root/dev/$node
  done
  ln -s /proc/self/fd $root/dev/fd
  mkdir -m 1777 $root/dev/shm
  # Those who may not read the folders on the way may go through them here.
  for folder in "$RUST" "$repo"; do
    mkdir -p "$root$folder"
    mount --bind "$folder" "$root$folder"
    mount -o remount,bind,ro "$root$folder"
  done
  layered "$CARGO_HOME"
  if [ "${COLD-}" ]; then mount -t tmpfs none "$root$repo/target"; else layered "$repo/target"; fi
  for folder in "$RUST" "$repo" "$CARGO_HOME"; do
    while [ "$folder" != / ]; do folder=$(dirname "$folder"); chmod a+x "$root$folder"; done
  done

  local failed=
  for user in ${USERS:-0 1000}; do
    echo; echo "--- cargo test --workspace $* as user $user"
    chown -R $user:$user "$root$repo/target" "$root$CARGO_HOME"
    chroot --userspec=$user:$user $root env -i PATH="$RUST/bin:/usr/bin:/bin" CARGO_HOME="$CARGO_HOME" CARGO_NET_OFFLINE=true \
      CARGO_TERM_COLOR=never CARGO_INCREMENTAL="${CARGO_INCREMENTAL-}" sh -c 'cd "$0" && exec cargo test --workspace "$@"' "$repo" "$@" ||
      failed+=" $user"
  done
  [ -z "$failed" ] || { echo "failed as user$failed"; exit 1; }
}

if [ "${1-}" = inside ]; then "$@"; else outside "$@"; fi
