# Where table and PBA have pages of their own, these are mapped read-only: who writes there dies, and the device can be opened again at once.
# core: x86_64 ppc64le-4k ppc64le-64k
name=${WHOLEBAR_NVME%%,*}
vfio_scribble $name
code=$?
echo "exit code $code"
case $GUEST in
# Table and doorbells share the page: there is nothing to protect.
*-64k | *-16k) [ $code = 0 ] || exit 1 ;;
# SIGSEGV.
*) [ $code = 139 ] || exit 1 ;;
esac
vfio_probe $name
