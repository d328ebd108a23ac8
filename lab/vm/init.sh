#!/bin/busybox sh
# The first process of the virtual machine, from its initramfs: from here to the host's files, and on to lab.vm.guest.
# Whatever fails ends it, which the kernel takes for a reason to stop (panic=-1): the last line says what it was.
set -eu
B=/bin/busybox
$B mkdir -p /proc /sys /dev /root /over /new
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $B insmod "/modules/$module" || { echo "init: the kernel does not take $module"; exit 1; }
done </modules/order

nine() { $B mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || { echo "init: no $1 by 9p"; exit 1; }; }

nine root /root ro,cache=loose
$B mount -t tmpfs -o mode=0755 over /over
$B mkdir /over/upper /over/work
$B mount -t overlay -o lowerdir=/root,upperdir=/over/upper,workdir=/over/work overlay /new ||
    { echo "init: no overlay"; exit 1; }

read -r release </modules/release
read -r share </modules/share
$B mount -t tmpfs -o mode=0755 run /new/run
$B mkdir -p "/new/lib/modules/$release" "/new$share"
$B mkdir /modules/own
nine modules /modules/own ro,cache=loose
# The kernel's own modules over what the host has of this very release: its headers, which no package of a kernel has.
$B mount -t overlay -o "lowerdir=/modules/own:/new/lib/modules/$release" modules "/new/lib/modules/$release" ||
    { echo "init: no overlay of modules"; exit 1; }
nine share "/new$share" rw,cache=none
for name in proc sys dev; do
    $B mount --move /$name /new/$name
done
set --
while read -r word; do
    set -- "$@" "$word"
done </modules/command
exec $B switch_root /new "$@"
