# What the other tests take for granted: devices that VFIO has, each in a group of its own, and pages of the size in the guest's name.
# core: x86_64 ppc64le-4k ppc64le-64k
names=$(echo "$WHOLEBAR_NVME,$WHOLEBAR_NIC" | tr , ' ')
[ "$(echo $names | wc -w)" -ge 1 ] || { echo "no devices"; exit 1; }
for name in $names; do
	device=/sys/bus/pci/devices/$name
	driver=$(basename "$(readlink $device/driver)")
	group=$(basename "$(readlink $device/iommu_group)")
	# Bridges do not count: VFIO lets them be in a group with a driver of their own.
	members=$(cat $device/iommu_group/devices/*/class | grep -cv ^0x0604)
	echo "$name: driver $driver, IOMMU group $group of $members"
	[ "$driver" = vfio-pci ] && [ -c /dev/vfio/$group ] || exit 1
	[ "$members" = 1 ] || exit 1
done
case $GUEST in *-64k) pages=64 ;; *-16k) pages=16 ;; *) pages=4 ;; esac
grep -m 1 "KernelPageSize: *$pages kB" /proc/self/smaps
