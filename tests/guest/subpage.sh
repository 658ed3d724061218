# Two BARs of 16 KiB in one page of 64: the kernel lets neither be mapped. The device opens even so and works by trapped accesses, and it is said why.
# guests: ppc64le-64k
# machine: --nvme 64M --nvme 64M,bus=pci.1.0,addr=2
# core: ppc64le-64k
fail() { echo "$*"; exit 1; }
names=$(echo $WHOLEBAR_NVME | tr , ' ')
# 0x0000200080004000 is in page 0x000020008000.
pages=$(for name in $names; do head -n 1 /sys/bus/pci/devices/$name/resource | cut -c 1-14; done | sort -u | wc -l)
[ $pages = 1 ] || fail "the two BARs are in $pages pages"
for name in $names; do
	wholebar barmap $name || exit 1
	wholebar nvme perf $name --rw mixed --verify --span 16M --time 2 --warmup 0 >/tmp/perf || exit 1
	cat /tmp/perf
	wholebar doctor $name >/tmp/doctor
	cat /tmp/doctor
	grep -q 'pci=resource_alignment=16@pci:1b36:0010' /tmp/doctor || fail "doctor does not name what mends it"
	grep -qE '^ *doorbells +0 direct, [1-9]' /tmp/perf && grep -qE '^ *errors +0$' /tmp/perf || fail "$name is not driven by trapped accesses alone"
done
