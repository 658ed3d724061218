# Submission queues and lists in QEMU's controller memory buffer: what is written is read, with stores to the buffer's BAR and with a system call for each word.
# guests: x86_64
# machine: --nvme 64M,cmb_size_mb=4
name=${WHOLEBAR_NVME%%,*}
fail() { echo "FAIL: $*"; cat /tmp/out; exit 1; }
works() { "$@" >/tmp/out 2>&1 || fail "$* does not work"; cat /tmp/out; }
says() { grep -qF -- "$1" /tmp/out || fail "it does not say: $1"; }

works wholebar nvme identify $name
says "4 MiB in BAR2"
for policy in whole trapped; do
	# Transfers of 64 KiB have lists.
	for size in 512 64k; do
		works wholebar nvme perf $name --cmb --policy $policy --rw mixed --rwmixread 50 --verify --bs $size --qd 16 --time 2
	done
done
# And without, on the same controller.
works wholebar nvme perf $name --rw mixed --verify --bs 64k --qd 16 --time 2
echo "QEMU fetched entries and lists from its own memory"
