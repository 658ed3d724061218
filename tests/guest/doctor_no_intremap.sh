# Interrupts that are not remapped: the doctor says so before the kernel refuses the device, and what it takes to have it even so.
# guests: x86_64
# machine: --no-intremap
. /wholebar/commands
name=${WHOLEBAR_NVME%%,*}
wholebar doctor $name >/tmp/out 2>&1 && fail "nothing stops it"
cat /tmp/out
grep -q 'stops it  interrupts  *not remapped (PCI-MSI' /tmp/out || fail "no verdict on interrupts"
# Nothing else is in the way: the kernel agrees.
[ "$(grep -c 'stops it' /tmp/out)" = 1 ] || fail "something else stops it"
wholebar nvme identify $name >/tmp/out 2>&1 && fail "the kernel takes it"
echo Y >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
wholebar doctor $name >/tmp/out 2>&1 || fail "it does not open"
cat /tmp/out
grep -q 'warning  *interrupts  *not remapped' /tmp/out && grep -q 'ok  *opened' /tmp/out || fail "no warning"
# Other scripts share this boot.
echo N >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
