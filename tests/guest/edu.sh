# A driver of one's own, on QEMU's edu device: registers, DMA within 28 bits, an interrupt by MSI and by a line, resets, and the device given back when the
# kernel wants it. (QEMU's registers have the byte order of the CPU that QEMU calls the guest's, so POWER is not for this device.)
# guests: x86_64
# machine: --device edu --bind other --bind nvme
# core: x86_64
name=$WHOLEBAR_OTHER
pci=/sys/bus/pci
fail() { echo "FAIL: $*"; cat /tmp/edu; kill -9 $driver 2>/dev/null; exit 1; }
soon() { # a command that is to work within 100 s
	end=$(($(date +%s) + 100))
	while [ $(date +%s) -lt $end ]; do "$@" && return; sleep 0.1; done
	fail "in 100 s this did not work: $*"
}
shown_twice() { [ "$(grep -c 'went there and back' /tmp/edu)" = 2 ] || ! kill -0 $driver 2>/dev/null; }
try() { # kind of interrupt, its name in /proc/interrupts, argument
	hello-edu $name $3 stay >/tmp/edu 2>&1 & driver=$!
	soon shown_twice
	grep -q "which interrupts by $1" /tmp/edu || fail "not by $1"
	[ "$(grep -c '10! is 3628800' /tmp/edu)" = 2 ] && grep -q "it was reset" /tmp/edu || fail "it does not do what it should"
	at=$(sed -n 's/.* of memory are at \(0x[0-9a-f]*\) .*/\1/p' /tmp/edu)
	[ $((at)) -gt 0 ] && [ $((at + (1 << 20))) -le $((1 << 28)) ] || fail "its memory is beyond 28 bits, at $at"
	raised=$(grep "$2.*$name" /proc/interrupts | awk '{ print $2 + $3 }')
	[ "${raised:-0}" -ge 6 ] || fail "three interrupts each time make six, not ${raised:-none}"
	echo "$raised interrupts by $1"
}

try MSI vfio-msi
# This returns once the device was given back.
echo $name >$pci/drivers/vfio-pci/unbind
wait $driver || fail "it did not end well when the kernel wanted the device back"
[ ! -e $pci/devices/$name/driver ] || fail "it is bound still"
echo $name >$pci/drivers/vfio-pci/bind

try INTx vfio-intx intx
echo 1 >$pci/devices/$name/remove
wait $driver || fail "it did not end well when the device was removed"
[ ! -e $pci/devices/$name ] || fail "it is there still"
echo 1 >$pci/rescan

# Others of this boot find the device as it was.
[ "$(basename "$(readlink $pci/devices/$name/driver)")" = vfio-pci ] || {
	echo vfio-pci >$pci/devices/$name/driver_override
	echo $name >$pci/drivers_probe
}
hello-edu $name >/tmp/edu 2>&1 || fail "it does not work once more"
hello-edu ${WHOLEBAR_NVME%%,*} >/tmp/edu 2>&1 && fail "any device will do"
grep -q "is no edu device" /tmp/edu || fail "not told"
