#!/usr/bin/env bash
# The crates as they would be published, in a project outside of this repository: they are packaged and unpacked, and the programs of tests/packaged are
# built on them alone and run. Nothing is fetched: versions are those of Cargo.lock, and what is built has been downloaded for the workspace.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

packages=(wholebar wholebar-core wholebar-capture wholebar-statistics wholebar-igb wholebar-nvme wholebar-virtio wholebar-sim)
cargo package --quiet --no-verify --allow-dirty --offline --target-dir "$work" "${packages[@]/#/--package=}"
mkdir -p "$work/src/bin"
cat >"$work/Cargo.toml" <<'TOML'
[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[dependencies]
wholebar = { version = "*", features = ["capture", "faults", "sim", "statistics"] }

[patch.crates-io]
TOML
for package in "${packages[@]}"; do
  tar -xzf "$work/package/$package"-[0-9]*.crate -C "$work"
  echo "$package = { path = \"$(cd "$work/$package"-[0-9]* && pwd)\" }" >>"$work/Cargo.toml"
done
cp Cargo.lock "$work"
cp tests/packaged/*.rs "$work/src/bin"

cd "$work"
cargo build --quiet --offline --target-dir "$target/packaged"
"$target/packaged/debug/read_block" sim:nvme,size=64M | tee read
grep -q ': .*, [1-9][0-9]* bytes$' read
