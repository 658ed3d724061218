#!/usr/bin/env bash
# The crates as they would be published, in a project outside of this repository: they are packaged and unpacked, and the programs of tests/packaged are
# built on them alone and run. Nothing is fetched: versions are those of Cargo.lock, and what is built has been downloaded for the workspace.
set -euo pipefail
cd "$(dirname "$0")/.."
# As the tests have built it: with examples, dependencies have the features that tests want.
cargo build --quiet --workspace --bins --examples
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

packages=(wholebar wholebar-core wholebar-capture wholebar-measure wholebar-statistics wholebar-intel wholebar-kernel wholebar-nvme wholebar-virtio wholebar-sim)
cargo package --quiet --no-verify --allow-dirty --offline --target-dir "$work" "${packages[@]/#/--package=}"
mkdir -p "$work/src/bin"
cat >"$work/Cargo.toml" <<'TOML'
[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[dependencies]
wholebar = { version = "*", features = ["capture", "faults", "measure", "sim", "statistics"] }

# As the workspace has them, and where it has them: of what it has built already only that is built which has other features here.
[profile.dev]
debug = "line-tables-only"

[profile.dev.package."*"]
debug = false

[patch.crates-io]
TOML
for package in "${packages[@]}"; do
  tar -xzf "$work/package/$package"-[0-9]*.crate -C "$work"
  echo "$package = { path = \"$(cd "$work/$package"-[0-9]* && pwd)\" }" >>"$work/Cargo.toml"
done
cp Cargo.lock "$work"
cp tests/packaged/*.rs "$work/src/bin"

cd "$work"
cargo build --quiet --offline --target-dir "$target"
read_block() { "$target/debug/read_block" "$1" | tee read; grep -q ': .*, [1-9][0-9]* bytes$' read; }
read_block sim:nvme,size=64M
"$target/debug/wholebar" sim serve nvme --socket "$work/socket" --size 64M 2>served &
trap 'kill $!; wait; rm -rf "$work"' EXIT
until grep -q "listens on" served; do kill -0 $!; sleep 0.1; done
read_block "vfio-user:$work/socket"
"$target/debug/forward" sim:virtio-net sim:virtio-net | tee forwarded
grep -q '^[0-9]* packets were passed on$' forwarded
