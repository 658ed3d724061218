# Whether interrupts are isolated, where the platform remaps them: the kernel's word for it, then the interrupt chip's, then nobody's.
# guests: x86_64 x86_64-iommufd
# core: x86_64
device=$WHOLEBAR_NVME
case $GUEST in *-iommufd) routes="group node" ;; *) routes=group ;; esac
says() { # what it prints in this route
	out=$(vfio_probe $device $route 2>&1)
	echo "$out" | grep -q "$1" && return
	echo "$route: no \"$1\" in"
	echo "$out"
	exit 1
}
for route in $routes; do
	case $route in node) module=iommufd ;; *) module=vfio_iommu_type1 ;; esac
	parameter=/sys/module/$module/parameters/allow_unsafe_interrupts
	says "interrupts: Isolated: Linux .* attached it with $module.allow_unsafe_interrupts=N"
	says "BAR0: Whole: interrupts are isolated: Linux"

	# The kernel does not look any more, but it names the chip that delivers an enabled vector.
	echo 1 >$parameter
	says "interrupts: Isolated: $module.allow_unsafe_interrupts=Y.*; interrupt [0-9]* goes through IR-PCI-MSIX.*, which remaps it"
	says "BAR0: Whole: interrupts are isolated: "

	# Nor does it name the chip.
	mount -t tmpfs tmpfs /sys/kernel/irq
	says "interrupts: Unknown: $module.allow_unsafe_interrupts=Y.*; no interrupt chip says anything of it"
	says "BAR0: Carved: nothing says that interrupts are isolated: "
	wholebar nvme perf $device,via=$route --page 64k --time 1 | grep "doorbells *0 direct, [1-9]" || exit 1
	# Who asks for it gets it whole, and is told.
	wholebar nvme perf $device,via=$route --page 64k --policy whole --time 1 2>&1 | tee /tmp/whole | grep "doorbells *[1-9].* direct, 0 trapped" || exit 1
	grep "WARN the MSI-X table is mapped, as asked, though a stray write" /tmp/whole || exit 1
	umount /sys/kernel/irq
	echo 0 >$parameter
done
