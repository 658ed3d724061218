#!/usr/bin/env bash
# The licences of all packages that the workspace is built from, as their manifests have them: each must be one of those below. What is new is for a
# person to judge. It knows nothing of advisories: `cargo deny check advisories` has those.
set -euo pipefail
cd "$(dirname "$0")/.."

# As manifests write them, by what they come to.
permissive='MIT OR Apache-2.0
Apache-2.0 OR MIT
MIT/Apache-2.0
Apache-2.0/MIT
Apache-2.0 / MIT
MIT
Apache-2.0
Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT
Apache-2.0 OR BSD-3-Clause
BSD-3-Clause
BSD-2-Clause OR Apache-2.0 OR MIT
(Apache-2.0 OR MIT) AND BSD-3-Clause
(MIT OR Apache-2.0) AND Unicode-3.0
MIT OR Zlib OR Apache-2.0
Zlib
0BSD
0BSD OR MIT OR Apache-2.0
Unlicense OR MIT
Unlicense/MIT'
# Tools that build something, and are no part of it.
tools='cbindgen MPL-2.0'

cargo tree --workspace --all-features --locked -e normal,build,dev --prefix none --no-dedupe --format '{p};{l}' |
  sed 's/ v[^;]*;/ /; s/ (\*)$//' | grep . | sort -u | {
  count=0 wrong=0
  while read -r name licence; do
    count=$((count + 1))
    grep -qxF -- "$licence" <<<"$permissive" && continue
    grep -qxF -- "$name $licence" <<<"$tools" && continue
    echo "$name: \"${licence:-no licence}\" is not among the accepted licences"
    wrong=$((wrong + 1))
  done
  echo "$count packages, $wrong with a licence that nobody has accepted"
  [ "$count" -gt 100 ] && [ "$wrong" = 0 ]
}
