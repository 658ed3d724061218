# Without an IOMMU: only by name and loudly, with physical addresses, and not without hugepages.
# guests: x86_64-iommufd
# machine: --no-iommu --append vfio.enable_unsafe_noiommu_mode=1 --append hugepages=256
# runs: kernel
device=$WHOLEBAR_NVME
if wholebar nvme identify $device 2>/tmp/error; then
	echo "it opens without being told that there is no IOMMU"
	exit 1
fi
cat /tmp/error
grep -q "there is no IOMMU for it.*say $device,via=no-iommu" /tmp/error || exit 1

wholebar nvme identify $device,via=no-iommu 2>/tmp/error | grep "QEMU NVMe" || exit 1
grep "WARN no IOMMU: this device can reach all of memory" /tmp/error || exit 1
vfio_probe $device no-iommu | grep -e "interrupts: NotIsolated: no-IOMMU" -e "BAR0: Carved" || exit 1

# The bodies that pass through an IOMMU, but for the one whose arena is larger than a hugepage: it works only where hugepages happen to lie in a row.
kernel --include-ignored --test-threads 1 --skip data_comes_back || exit 1
wholebar nvme perf $device,via=no-iommu --rw mixed --verify --time 1 | grep "errors *0" || exit 1

echo 0 >/proc/sys/vm/nr_hugepages
if wholebar nvme identify $device,via=no-iommu 2>/tmp/error; then
	echo "it opens without hugepages"
	exit 1
fi
cat /tmp/error
grep -q "not made of hugepages.*nr_hugepages" /tmp/error || exit 1
