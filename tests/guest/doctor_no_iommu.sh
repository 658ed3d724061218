# No IOMMU: the doctor says so, bind refuses; and where the kernel offers no-IOMMU, what it takes to use it.
# guests: x86_64 x86_64-iommufd
# machine: --no-iommu --bind none
. /wholebar/commands
name=${WHOLEBAR_NVME%%,*}
modprobe nvme
wholebar doctor $name >/tmp/out 2>&1 && fail "nothing stops it"
cat /tmp/out
grep -q 'stops it  IOMMU' /tmp/out || fail "no verdict on the IOMMU"
wholebar bind $name >/tmp/out 2>&1 && fail "bound without an IOMMU"
grep -q 'nothing was changed' /tmp/out && [ "$(basename "$(readlink /sys/bus/pci/devices/$name/driver)")" = nvme ] || fail "changed"
mode=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode
if [ ! -e $mode ]; then
	wholebar doctor $name,via=no-iommu >/tmp/out 2>&1 && fail "this kernel has no such thing"
	grep -q 'CONFIG_VFIO_NOIOMMU' /tmp/out || fail "not told"
	exit 0
fi
echo Y >$mode
echo 64 >/proc/sys/vm/nr_hugepages
wholebar bind $name || exit 1
wholebar doctor $name,via=no-iommu >/tmp/out 2>&1 || fail "it does not open"
cat /tmp/out
grep -q 'warning  *IOMMU' /tmp/out && grep -q 'ok  *opened' /tmp/out || fail "no warning"
wholebar doctor $name >/tmp/out 2>&1 && fail "it was not asked for"
grep -q "via=no-iommu" /tmp/out || fail "how to ask for it is not said"
echo 0 >/proc/sys/vm/nr_hugepages
wholebar doctor $name,via=no-iommu >/tmp/out 2>&1 && fail "no hugepages"
grep -q 'stops it  hugepages' /tmp/out || fail "no verdict on hugepages"
wholebar unbind $name || exit 1
