# Namespaces with protection information and with zones, as QEMU has them: written by us and read by the kernel's own driver, and the other way round. The
# kernel checks guards and reference tags itself where metadata has a buffer of its own, and leaves it to the controller where it is interleaved.
# guests: x86_64
# machine: --nvme 64M --nvme-ns 64M,ms=8,pi=1 --nvme-ns 64M,ms=8,pi=1,mset=1 --nvme-ns 64M,ms=8,pi=2 --nvme-ns 64M,zoned=on,zoned.zone_size=4M,zoned.max_open=4,zoned.max_active=6
name=${WHOLEBAR_NVME%%,*}
fail() { echo "FAIL: $*"; cat /tmp/out; exit 1; }
works() { "$@" >/tmp/out 2>&1 || fail "$* does not work"; cat /tmp/out; }
says() { grep -qF -- "$1" /tmp/out || fail "it does not say: $1"; }
refused() { # exit code, text, words of the command
	local code=$1 text=$2; shift 2
	"$@" >/tmp/out 2>&1 </dev/null; [ $? = $code ] || fail "$* does not end with $code"
	says "$text"
}
same() { cmp $1 $2 || { echo "FAIL: $1 is not $2"; exit 1; }; }
protected="2 3 4" zoned=5

works wholebar nvme identify $name
says "protection information of type 1"
says "protection information of type 2"
says "zones of 8,192 blocks; 4 can be open, 6 active"

# Ours: the controller makes protection information, and checks it as it is read.
for n in $protected; do
	head -c 1048576 /dev/urandom >/tmp/ours$n
	works wholebar nvme write $name --nsid $n --lba 100 --in /tmp/ours$n
	works wholebar nvme read $name --nsid $n --lba 100 --bytes 1048576 --out /tmp/back
	same /tmp/ours$n /tmp/back
	# What nobody wrote can be read.
	works wholebar nvme read $name --nsid $n --lba 10000 --blocks 256 --out /tmp/back
done

# Zones: appended to, and refused by name.
head -c 262144 /dev/urandom >/tmp/zone
works wholebar nvme zns append $name -n $zoned --zslba 8192 --data /tmp/zone
says "appended at 8192"
works wholebar nvme zns append $name -n $zoned --zslba 8192 --data /tmp/zone
says "appended at 8704"
works wholebar nvme read $name --nsid $zoned --lba 8704 --bytes 262144 --out /tmp/back
same /tmp/zone /tmp/back
refused 1 "Zone Invalid Write" wholebar nvme write $name --nsid $zoned --lba 8192 --in /tmp/zone
works wholebar nvme zns report $name -n $zoned --start-lba 8192 --descs 1
says 9216
works wholebar nvme zns open $name -n $zoned --start-lba 16384
works wholebar nvme zns finish $name -n $zoned --start-lba 16384
refused 1 "Zone Is Full" wholebar nvme zns append $name -n $zoned --zslba 16384 --data /tmp/zone
refused 1 "Invalid Zone State Transition" wholebar nvme zns close $name -n $zoned --start-lba 16384
works wholebar nvme zns report $name -n $zoned --state full
says "1 zones"
refused 2 "no terminal" wholebar nvme zns reset $name -n $zoned --start-lba 16384
works wholebar nvme zns reset $name -n $zoned --start-lba 16384 --force
works wholebar nvme zns report $name -n $zoned --state full
says "0 zones"

# The kernel's.
works wholebar unbind $name
modprobe nvme
for try in $(seq 600); do [ -b /dev/nvme0n$zoned ] && break; sleep 0.1; done
[ -b /dev/nvme0n$zoned ] || { dmesg | tail -20; fail "the kernel has no zoned disk"; }
for n in $protected; do
	dd if=/dev/nvme0n$n of=/tmp/back bs=51200 skip=1 count=20 2>/dev/null || { dmesg | tail; fail "the kernel cannot read namespace $n"; }
	head -c 1024000 /tmp/ours$n >/tmp/want
	same /tmp/want /tmp/back
	head -c 1048576 /dev/urandom >/tmp/theirs$n
	dd if=/tmp/theirs$n of=/dev/nvme0n$n bs=1M seek=4 conv=fsync 2>/dev/null || { dmesg | tail; fail "the kernel cannot write namespace $n"; }
done
echo "integrity, by the kernel: $(cat /sys/block/nvme0n2/integrity/format)"
[ "$(cat /sys/block/nvme0n$zoned/queue/zoned)" = host-managed ] || fail "the kernel sees no zones"
dd if=/dev/nvme0n$zoned of=/tmp/back bs=262144 skip=17 count=1 2>/dev/null
same /tmp/zone /tmp/back
# At the write pointer, which is where we left it.
dd if=/tmp/zone of=/dev/nvme0n$zoned bs=262144 seek=18 oflag=direct 2>/tmp/out || { dmesg | tail; fail "the kernel cannot write a zone"; }
dmesg | grep -iE "protection|guard|integrity|I/O error" && fail "the kernel complains"

# Back to us: what it wrote is right, by the controller's check.
works wholebar bind $name
for n in $protected; do
	works wholebar nvme read $name --nsid $n --lba 8192 --bytes 1048576 --out /tmp/back
	same /tmp/theirs$n /tmp/back
done
works wholebar nvme read $name --nsid $zoned --lba 9216 --bytes 262144 --out /tmp/back
same /tmp/zone /tmp/back
works wholebar nvme zns report $name -n $zoned --start-lba 8192 --descs 1
says 9728
echo "protection information and zones: ours read by the kernel, the kernel's by us"
