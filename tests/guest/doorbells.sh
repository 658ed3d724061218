# Where doorbells share their page with the MSI-X table, as with 16 and 64 KiB pages: whole rings them by stores alone, carved by system calls alone. With
# 4 KiB pages the table has a page of its own, and nobody needs to trap a doorbell.
# core: x86_64 ppc64le-4k ppc64le-64k
name=${WHOLEBAR_NVME%%,*}
perf() { # policy, what its doorbells must look like
	wholebar nvme perf $name --policy $1 --shadow-doorbells never --rw mixed --verify --span 16M --time 2 --warmup 0 >/tmp/perf || exit 1
	cat /tmp/perf
	grep -qE "^ *doorbells +$2;" /tmp/perf && grep -qE "^ *errors +0$" /tmp/perf || { echo "$1: its doorbells are not $2"; exit 1; }
}
stores='[1-9][0-9,.]*( [kM])? direct, 0 trapped'
calls='0 direct, [1-9][0-9,.]*( [kM])? trapped'
echo "The CPU is emulated: none of these times is a hardware's."
perf whole "$stores"
case $GUEST in
*-4k | x86_64*) perf carved "$stores" ;;
*) perf carved "$calls" ;;
esac
perf trapped "$calls"

# The entries of enabled vectors, which the kernel hides from reads: they hold an address, and are not masked.
wholebar msix $name --enable 2 >/tmp/msix || exit 1
cat /tmp/msix
for vector in 0 1; do
	grep -qE "^ *$vector +0x[0-9a-f]*[1-9a-f][0-9a-f]* +0x[0-9a-f]{8} +- " /tmp/msix || { echo "vector $vector is not there"; exit 1; }
done
! grep -q 0xffffffff /tmp/msix
