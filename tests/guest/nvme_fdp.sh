# Flexible data placement, on QEMU's controller: configurations, placements and their reclaim units, statistics that agree with what was written, events;
# and what nvme-cli makes of it over the kernel's own driver.
# guests: x86_64
# programs: nvme
# machine: --nvme 64M --nvme-subsys fdp=on,fdp.runs=1M,fdp.nrg=2,fdp.nruh=5 --nvme-ns 64M,nsid=2,fdp.ruhs=1-4
name=${WHOLEBAR_NVME%%,*}
fail() { echo "FAIL: $*"; cat /tmp/out; exit 1; }
works() { "$@" >/tmp/out 2>&1 || fail "$* does not work"; cat /tmp/out; }
says() { grep -qF -- "$1" /tmp/out || fail "it does not say: $1"; }
refused() { # exit code, text, words of the command
	local code=$1 text=$2; shift 2
	"$@" >/tmp/out 2>&1 </dev/null; [ $? = $code ] || fail "$* does not end with $code"
	says "$text"
}
same() { cmp $1 $2 || { echo "FAIL: $1 is not $2"; exit 1; }; }
fdp() { local what=$1; shift; works wholebar nvme fdp $what $name "$@"; }
# Bytes that hosts wrote and the media was written; blocks that a placement has left.
written() { wholebar nvme fdp stats $name --json | tr -d ' \n' | sed 's/.*"hbmw":\([0-9]*\).*/\1/'; }
left() { wholebar nvme fdp status $name -n 2 | awk -v id=$1 '$1 == id { print $3 }'; }
is() { [ "$1" = "$2" ] || fail "it is $1, and not $2"; }

fdp configs
says "5 initially"
says "1 MiB"
fdp usage
fdp feature
says "by configuration 0"
works wholebar nvme dir-receive $name -n 2
says "data placement"
fdp status -n 2
says "8 placements"

# Of each handle, a placement in each group: the last handle's in the second one, and the one beside placement 1.
far=$(wholebar nvme fdp status $name -n 2 | awk 'END { print $1 }')
beside=$(wholebar nvme fdp status $name -n 2 | awk '$1 == 1 { getline; print $1 }')
before=$(written) unit=$(left 1)
is "$unit" 2048
head -c 65536 /dev/urandom >/tmp/data
works wholebar nvme write $name --nsid 2 --lba 128 --in /tmp/data --dir-type 2 --dir-spec 1
works wholebar nvme write $name --nsid 2 --lba 256 --in /tmp/data --dir-type 2 --dir-spec $far
works wholebar nvme write $name --nsid 2 --lba 384 --in /tmp/data
is $(($(written) - before)) 196608
is "$(left 1)" 1920
is "$(left $far)" 1920
is "$(left 0)" 1920
is "$(left $beside)" 2048
works wholebar nvme read $name --nsid 2 --lba 256 --bytes 65536 --out /tmp/back
same /tmp/data /tmp/back

# Units that are left before they are full, and placements that aren't there: recorded where that is wanted.
fdp set-events -n 2 --placement-handle 1
fdp set-events -n 2 --placement-handle 1 --event-types 0,3 --enable
fdp set-events -n 2 --placement-handle 0 --event-types 3 --enable
fdp update -n 2 --pids 1
is "$(left 1)" 2048
fdp events --host-events
says "Reclaim Unit Not Fully Written"
works wholebar nvme write $name --nsid 2 --lba 512 --in /tmp/data --dir-type 2 --dir-spec 9
refused 1 "Invalid Field in Command" wholebar nvme fdp update $name -n 2 --pids 9
refused 1 "refused" wholebar nvme fdp stats $name --endgrp-id 2
refused 1 "Command Sequence Error" wholebar nvme fdp feature $name --disable
total=$(written)
echo "data was placed by wholebar, and QEMU's statistics agree: $total bytes"

command -v nvme >/dev/null || { echo "there is no nvme-cli to ask"; exit 0; }
works wholebar unbind $name
modprobe nvme
# The kernel numbers disks as it finds them.
disk() { for d in /sys/block/nvme0n*; do [ "$(cat $d/nsid)" = 2 ] && echo /dev/${d##*/}; done; }
for try in $(seq 600); do [ -b "$(disk 2>/dev/null)" ] && break; sleep 0.1; done
works nvme id-ctrl /dev/nvme0
says "QEMU NVMe Ctrl"
works nvme list-ns /dev/nvme0
says "0x2"
works nvme fdp stats /dev/nvme0 --endgrp-id 1
says "$total"
works nvme fdp configs /dev/nvme0 --endgrp-id 1
works nvme fdp status $(disk)
works nvme get-log /dev/nvme0 --log-id 0x22 --lsi 1 --log-len 64
echo "nvme-cli agrees"
