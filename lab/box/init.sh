#!/bin/busybox sh
# The first process of a box, from its initramfs: from here to the root file system on the second partition.
# What it cannot do without ends it, which the kernel takes for a reason to stop: the last line says what it was.
set -eu
B=/bin/busybox
$B mkdir -p /proc /sys /dev /root
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
while read -r module; do
    # Some are for processors that have an instruction, and there is another module that does the same (crc32c-intel).
    $B insmod "/modules/$module" 2>/dev/null || echo "init: $module is not for this machine"
done </modules/order
tries=0
until [ -b /dev/vda2 ]; do
    tries=$((tries + 1))
    [ $tries -le 100 ] || { echo "init: no /dev/vda2: the box needs a virtio disk"; exit 1; }
    $B usleep 100000
done
$B mount -t ext4 -o ro /dev/vda2 /root || { echo "init: /dev/vda2 cannot be mounted"; exit 1; }
for name in proc sys dev; do
    $B mount --move /$name /root/$name
done
exec $B switch_root /root /sbin/init
