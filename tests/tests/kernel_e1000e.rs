//! Two 82574 on one wire. `cargo xtask vm test x86_64 kernel_e1000e` runs them.
// guests: x86_64 x86_64-iommufd ppc64le-64k
// machine: --nic igb --nic igb --nic e1000e,hub=1 --nic e1000e,hub=1 --bind nic

mod intel;

intel::tests!(wholebar::intel::e1000e::I82574);
