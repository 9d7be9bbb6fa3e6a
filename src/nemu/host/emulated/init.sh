#!/bin/busybox sh
# The emulated host's first steps, once, before its snapshot is taken.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
$bb modprobe -a virtio_pci virtio_blk virtio_console virtio_net virtio_rng virtio_scsi sd_mod erofs overlay loop
$bb modprobe -a kvm_amd tun vhost_net vhost_vsock vhost_scsi virtiofs
$bb mount -t tmpfs -o mode=755 tmpfs /upper
$bb mkdir -p /upper/data /upper/work
$bb mount -t erofs -o ro /dev/vda /lower
# No path of the user's may be impossible to make, so everything can be written over.
$bb mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new
for fs in proc sys dev; do $bb mount -o move /$fs /new/$fs; done
cd /new
$bb mkdir -p dev/pts dev/shm run tmp root
$bb mount -t devpts -o mode=620,ptmxmode=666 devpts dev/pts
$bb mount -t tmpfs -o mode=1777 tmpfs dev/shm
$bb mount -t tmpfs -o mode=755 tmpfs run
$bb mount -t tmpfs -o mode=1777 tmpfs tmp
$bb mount -t securityfs securityfs sys/kernel/security
$bb mount -t tracefs tracefs sys/kernel/tracing
$bb mount -t cgroup2 cgroup2 sys/fs/cgroup
# The addresses of QEMU's user networking, which answers DHCP with just these.
$bb ip link set lo up
$bb ip addr add 10.0.2.15/24 dev eth0
$bb ip link set eth0 up
$bb ip route add default via 10.0.2.2
$bb ip addr add fec0::15/64 dev eth0
$bb mknod -m 666 dev/net/tun c 10 200 2>/dev/null
exec $bb switch_root /new /usr/bin/python3.11 -I -X frozen_modules=on -c \
    'import sys; sys.path.insert(0, "/usr/lib/nemu-agent"); from nemu.host.emulated.agent import main; main()'
