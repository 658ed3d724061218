# A platform that does not remap interrupts: the kernel refuses, and we say what to do; who does that gets carved BARs, or whole ones loudly.
# guests: x86_64 x86_64-iommufd
# machine: --no-intremap
device=$WHOLEBAR_NVME
case $GUEST in *-iommufd) routes="group node" ;; *) routes=group ;; esac
for route in $routes; do
	case $route in node) module=iommufd ;; *) module=vfio_iommu_type1 ;; esac
	parameter=/sys/module/$module/parameters/allow_unsafe_interrupts
	if wholebar nvme identify $device,via=$route 2>/tmp/error; then
		echo "$route: it opens"
		exit 1
	fi
	cat /tmp/error
	grep -q "does not remap interrupts.*intremap=off.*echo 1 > $parameter" /tmp/error || exit 1

	echo 1 >$parameter
	vfio_probe $device $route >/tmp/probe || exit 1
	grep "interrupts: NotIsolated: $module.allow_unsafe_interrupts=Y.*; interrupt [0-9]* goes through PCI-MSIX.*, which remaps nothing" /tmp/probe || exit 1
	grep "BAR0: Carved: interrupts are not isolated: " /tmp/probe || exit 1
	wholebar nvme perf $device,via=$route --page 64k --time 1 | grep "doorbells *0 direct, [1-9]" || exit 1
	wholebar nvme perf $device,via=$route --page 64k --policy whole --time 1 2>&1 | tee /tmp/whole | grep "doorbells *[1-9].* direct, 0 trapped" || exit 1
	grep "WARN the MSI-X table is mapped, as asked, though a stray write" /tmp/whole || exit 1
	echo 0 >$parameter
done
