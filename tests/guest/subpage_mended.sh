# As subpage.sh, with the kernel told to give each BAR pages of its own: both are mapped, whole, and no access is trapped.
# guests: ppc64le-64k
# machine: --nvme 64M --nvme 64M,bus=pci.1.0,addr=2 --append pci=resource_alignment=16@pci:1b36:0010
for name in $(echo $WHOLEBAR_NVME | tr , ' '); do
	wholebar nvme perf $name --rw mixed --verify --span 16M --time 2 --warmup 0 >/tmp/perf || exit 1
	cat /tmp/perf
	wholebar doctor $name >/tmp/doctor || { cat /tmp/doctor; exit 1; }
	! grep resource_alignment /tmp/doctor || exit 1
	grep -qE '^ *doorbells +[1-9].* direct, 0 trapped' /tmp/perf && grep -qE '^ *errors +0$' /tmp/perf || exit 1
done
