# Two functions in one IOMMU group, the kernel's driver has one of them: the doctor names it, and the command that mends it.
# guests: x86_64
# machine: --nvme 64M,multifunction=on --nvme 64M,bus=port1,addr=0.1 --bind 0000:01:00.0
. /wholebar/commands
one=${WHOLEBAR_NVME%%,*} two=${WHOLEBAR_NVME##*,}
[ "$(readlink -f /sys/bus/pci/devices/$one/iommu_group)" = "$(readlink -f /sys/bus/pci/devices/$two/iommu_group)" ] || fail "two groups"
wholebar doctor $one >/tmp/out 2>&1 || fail "a function without a driver is no obstacle"
modprobe nvme
wholebar doctor $one >/tmp/out 2>&1 && fail "not viable, and nothing said"
cat /tmp/out
grep -q "stops it  group  *.* is not VFIO's alone: nvme has $two" /tmp/out && grep -q -- "-> wholebar bind $two" /tmp/out || fail "who is in the way"
wholebar nvme identify $one >/tmp/out 2>&1 && fail "it opens even so"
grep -q "wholebar bind $two" /tmp/out || fail "the error does not say what mends it"
wholebar bind $two || exit 1
wholebar doctor $one >/tmp/out 2>&1 || fail "mended, and it does not open"
cat /tmp/out
