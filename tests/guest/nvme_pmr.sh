# QEMU's persistent memory region: what is written is read by another program, after the function was reset and had another driver, and at every offset.
# guests: x86_64
# machine: --nvme 64M,pmr=64K
name=${WHOLEBAR_NVME%%,*}
fail() { echo "FAIL: $*"; cat /tmp/out; exit 1; }
works() { "$@" >/tmp/out 2>&1 || fail "$* does not work"; cat /tmp/out; }
says() { grep -qF -- "$1" /tmp/out || fail "it does not say: $1"; }
same() { cmp $1 $2 || { echo "FAIL: $1 is not $2"; exit 1; }; }

works wholebar nvme identify $name
says "64 KiB in BAR4"
works wholebar nvme pmr status $name
says normal
head -c 65536 /dev/urandom >/tmp/whole
works wholebar nvme pmr write $name --in /tmp/whole --force
works wholebar nvme pmr read $name --out /tmp/back
same /tmp/whole /tmp/back
# A part, which begins and ends within words.
head -c 1001 /dev/urandom >/tmp/part
works wholebar nvme pmr write $name --in /tmp/part --offset 4099 --force
{ head -c 4099 /tmp/whole; cat /tmp/part; tail -c +5101 /tmp/whole; } >/tmp/wanted
echo 1 >/sys/bus/pci/devices/$name/reset || fail "the function was not reset"
works wholebar nvme pmr read $name --out /tmp/back
same /tmp/wanted /tmp/back
wholebar nvme pmr write $name --in /tmp/part --offset 65000 --force >/tmp/out 2>&1 && fail "it wrote beyond the end"
says "persistent memory region"
works wholebar nvme pmr read $name --out /tmp/back
same /tmp/wanted /tmp/back
# The disk is as it was.
works wholebar nvme perf $name --rw mixed --verify --bs 4k --qd 8 --time 1
echo "QEMU kept what was stored"
