# Every device opens: regions, plans, isolation, interrupts, DMA. On sPAPR by both of its container types.
# core: x86_64 ppc64le-4k ppc64le-64k
for name in $(echo "$WHOLEBAR_NVME,$WHOLEBAR_NIC" | tr , ' '); do
	case $GUEST in ppc64le-*) kinds="tce2 tce1" ;; *) kinds=type1 ;; esac
	for kind in $kinds; do
		vfio_probe $name $kind || exit 1
	done
done
