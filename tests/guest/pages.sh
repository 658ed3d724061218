# `wholebar pages` measures a controller behind the kernel's VFIO, knows that QEMU emulates it, and leaves it as it was found: when it ends, and when it is interrupted.
set -e
device=${WHOLEBAR_NVME%%,*}
config() { od -An -v -tx1 -N 256 /sys/bus/pci/devices/$device/config; }
# The kernel itself leaves memory decoded behind the first one who opens it.
wholebar nvme identify $device >/dev/null
before=$(config)
wholebar pages $device --quick --runtime 4 --json /tmp/report
grep -q '"origin": "emulated"' /tmp/report
grep -q '"interrupted": false' /tmp/report
[ "$(config)" = "$before" ]
# At the registers first, then at the reads, and before anything.
for seconds in 0 1 6; do
	wholebar pages $device --runtime 300 --json /tmp/report & pages=$!
	# Not before it would know: until then a script's child ignores it.
	until grep -qi '^SigCgt:.*[2367abef]$' /proc/$pages/status; do sleep 0.1; done
	sleep $seconds.3
	kill -INT $pages
	wait $pages
	[ "$(config)" = "$before" ]
	wholebar nvme identify $device >/dev/null
done
grep -q '"interrupted": true' /tmp/report
