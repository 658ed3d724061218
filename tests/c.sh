#!/usr/bin/env bash
# The C library as a C program uses it: installed, found by pkg-config, linked shared and static, run, and run again under valgrind.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in cc pkg-config valgrind; do
  command -v $tool >/dev/null || { echo "$0: needs $tool (Debian: gcc pkg-config valgrind)" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As the tests have built it: alone, what it depends on would have other features.
framework/c/install "$work/prefix" --workspace --lib --examples
export PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig
lib=$work/prefix/lib
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -g -O1 -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wconversion -Werror"
[ "$(pkg-config --modversion wholebar)" = "$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)" ]

for name in hello_nvme l2fwd; do
  cc $flags -o "$work/$name" apps/hello-c/$name.c $(pkg-config --cflags --libs wholebar)
  cc $flags -o "$work/$name-static" apps/hello-c/$name.c $(pkg-config --cflags wholebar) \
    "$lib/libwholebar.a" $(pkg-config --static --libs-only-l wholebar | sed 's/-lwholebar//')
done
# The header alone is C and C++.
echo '#include <wholebar.h>' | cc -std=c99 -Wall -Wextra -Wpedantic -Werror -fsyntax-only $(pkg-config --cflags wholebar) -x c -
if echo 'int main() {}' | c++ -fsyntax-only -x c++ - 2>/dev/null; then
  echo '#include <wholebar.h>' | c++ -Wall -Wextra -Werror -fsyntax-only $(pkg-config --cflags wholebar) -x c++ -
fi
# Nothing but the header's functions is exported, and each of them is.
nm -D --defined-only "$lib/libwholebar.so" | awk '$2 == "T" { print $3 }' | sort >"$work/exported"
grep -v '^ *//' "$lib/../include/wholebar.h" | grep -o '\bwb_[a-z_]*(' | tr -d '(' | sort -u | diff - "$work/exported"

export LD_LIBRARY_PATH=$lib
"$work/hello_nvme" | tee "$work/out"
grep -q 'was written, read back and found equal' "$work/out"
"$work/hello_nvme-static"
"$work/l2fwd" | tee "$work/out"
[ "$(grep -o 'sent [0-9]*' "$work/out" | awk '{ n += $2 } END { print (n >= 10000) }')" = 1 ]
"$work/l2fwd-static"
code=0; "$work/hello_nvme" toaster 2>"$work/out" || code=$?
[ $code = 2 ] && grep -q '"toaster" names no device' "$work/out"

# valgrind runs one thread at a time: a fair turn for each, as models run on threads of their own.
checked() {
  valgrind -q --fair-sched=yes --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite "$@"
}
checked "$work/hello_nvme" sim:nvme,size=1M
checked "$work/l2fwd" 300
echo 'valgrind found nothing'
