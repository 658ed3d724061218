# vhost-user's two sides against each other in memory of this guest's pages: disks, network cards, and a switch of two ports.
# guests: ppc64le-64k
# runs: vhost_user vhost_user_port
vhost_user && vhost_user_port
