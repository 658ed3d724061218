# Protection information with 64-bit guards, as QEMU has it: what is written with the controller's check is read with it, and by the kernel's own driver.
# guests: x86_64
# machine: --nvme 64M --nvme-ns 64M,ms=16,pi=1,pif=2 --nvme-ns 64M,ms=16,pi=2,pif=2,mset=1
name=${WHOLEBAR_NVME%%,*}
fail() { echo "FAIL: $*"; cat /tmp/out; exit 1; }
works() { "$@" >/tmp/out 2>&1 || fail "$* does not work"; cat /tmp/out; }
says() { grep -qF -- "$1" /tmp/out || fail "it does not say: $1"; }
same() { cmp $1 $2 || { echo "FAIL: $1 is not $2"; exit 1; }; }

works wholebar nvme identify $name
says "protection information of type 1"
says "protection information of type 2"
grep -q "cannot be used" /tmp/out && fail "a namespace cannot be used"
for n in 2 3; do
	head -c 1048576 /dev/urandom >/tmp/ours$n
	works wholebar nvme write $name --nsid $n --lba 128 --in /tmp/ours$n
	works wholebar nvme read $name --nsid $n --lba 128 --bytes 1048576 --out /tmp/back
	same /tmp/ours$n /tmp/back
done
echo "guards of 64 bits were made and checked by QEMU"
