# wholebar nvme, the admin side, on QEMU's controller: raw commands, log pages, features, a format; and what the kernel's own driver makes of the disk that
# was formatted.
# guests: x86_64
# machine: --nvme 64M
name=${WHOLEBAR_NVME%%,*}
. /wholebar/commands

# What QEMU says of itself, by three ways.
works wholebar nvme id-ctrl $name
says "QEMU NVMe Ctrl"
works wholebar nvme id-ctrl $name --out /tmp/id
works wholebar nvme admin-passthru $name --opcode 0x06 --cdw10 1 --read --data-len 4096 --out /tmp/raw
same /tmp/id /tmp/raw
works wholebar nvme id-ns $name
works wholebar nvme list-ns $name --all
says attached
works wholebar nvme list-ctrl $name
for log in error smart fw changed-ns effects; do works wholebar nvme get-log $name --log-id $log; done
works wholebar nvme fw-log $name
says runs
works wholebar nvme get-feature $name
says temp-thresh
works wholebar nvme set-feature $name -f temp-thresh --value 0x151
works wholebar nvme error-log $name
refused 1 "refused Get Log Page" wholebar nvme get-log $name --log-id 0xd0
refused 1 "not sent" wholebar nvme admin-passthru $name --opcode 5
refused 1 "no Device Self-test" wholebar nvme self-test $name

# Blocks by a command of our own, and by the driver.
head -c 4096 /dev/urandom >/tmp/data
works wholebar nvme io-passthru $name -O 1 -n 1 --cdw10 16 --cdw12 7 -w -l 4096 -i /tmp/data --force
works wholebar nvme read $name --lba 16 --blocks 8 --out /tmp/back
same /tmp/data /tmp/back
# Dwords that say more than there is data for: the rest of it is nowhere.
works wholebar nvme io-passthru $name -O 2 -n 1 --cdw10 16 --cdw12 127 -r -l 512 --out /tmp/short
head -c 512 /tmp/data >/tmp/first
same /tmp/first /tmp/short

# Formats: refused without a question's answer and of a kind that isn't there, with nothing lost; then done.
refused 2 "no terminal" wholebar nvme format $name -n 1 --block-size 4096
refused 1 "has no LBA format" wholebar nvme format $name -n 1 --block-size 1000 --force
refused 1 "Invalid" wholebar nvme format $name -n 1 --lbaf 63 --force
works wholebar nvme read $name --lba 16 --blocks 8 --out /tmp/back
same /tmp/data /tmp/back
works wholebar nvme format $name -n 1 --block-size 4096 --force
works wholebar nvme id-ns $name
works wholebar nvme read $name --lba 2 --blocks 1 --out /tmp/back
head -c 4096 /dev/zero >/tmp/zeros
same /tmp/zeros /tmp/back
works wholebar nvme write $name --lba 3 --in /tmp/data

# QEMU attaches all namespaces again whenever it is enabled, as the next command does: what a queue sees of it meanwhile, the tests show that open it once. It
# has no Namespace Management beside that.
works wholebar nvme detach-ns $name -n 1 --force
refused 1 "Already Attached" wholebar nvme attach-ns $name -n 1
works wholebar nvme list-ctrl $name -n 1
says "this one"
refused 1 "refused Namespace Management" wholebar nvme create-ns $name --nsze 100
works wholebar nvme read $name --lba 3 --blocks 1 --out /tmp/back
same /tmp/data /tmp/back

# The kernel's own driver sees those blocks, and finds the data.
works wholebar unbind $name
modprobe nvme
for try in $(seq 600); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
[ -b /dev/nvme0n1 ] || fail "the kernel has no disk"
size=$(cat /sys/block/nvme0n1/queue/logical_block_size)
[ "$size" = 4096 ] || fail "the kernel sees blocks of $size bytes"
dd if=/dev/nvme0n1 of=/tmp/back bs=4096 skip=3 count=1 2>/dev/null
same /tmp/data /tmp/back
# In use: mounted, as swap, or built on; then nothing is formatted.
mkswap /dev/nvme0n1 >/dev/null && swapon /dev/nvme0n1 || fail "no swap"
refused 1 "is swap" wholebar nvme format $name -n 1 --lbaf 0 --force
swapoff /dev/nvme0n1
echo "formatted by wholebar, read by the kernel"
