# One program forwards between two ports of different drivers, and names neither: QEMU's 82576 and its virtio-net. `net fwd` joins the other ends of the two wires.
# guests: x86_64
# machine: --nic igb --nic igb --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --nic virtio-net,hub=1,packed=on,in_order=on,host_mtu=9000 --blk 64M,packed=on,in_order=on,num-queues=2 --bind nic --bind blk
# core: x86_64
fail() { echo "FAIL: $*"; cat /tmp/fwd /tmp/forward; kill -9 $fwd $forward 2>/dev/null; exit 1; }
soon() { # a command that is to work within 100 s
	end=$(($(date +%s) + 100))
	while [ $(date +%s) -lt $end ]; do "$@" && return; sleep 0.1; done
	fail "in 100 s this did not work: $*"
}
# Behind four lines of two ports comes one a second of what it does.
runs() { [ $(wc -l </tmp/fwd) -gt 4 ]; }
ended() { ! kill -0 $forward 2>/dev/null; }
# In hugepages no packet crosses a page: QEMU's 82576 drops, without a word, what it is to send from a buffer that is in two pieces behind the IOMMU.
echo 32 >/proc/sys/vm/nr_hugepages
set -- $(echo $WHOLEBAR_NIC | tr , ' ')
: >/tmp/forward
wholebar net fwd $2 $4 --stats 1 >/tmp/fwd 2>&1 & fwd=$!
soon runs
forward $1 $3 >/tmp/forward 2>&1 & forward=$!
soon ended
wait $forward || fail "it did not end well"
grep -q 'driver igb$' /tmp/forward && grep -q 'driver virtio$' /tmp/forward || fail "other drivers than igb and virtio"
grep '^[0-9]* packets were passed on$' /tmp/forward || fail "not told"
kill -INT $fwd
wait $fwd
echo 0 >/proc/sys/vm/nr_hugepages
