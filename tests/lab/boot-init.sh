#!/bin/busybox sh
# /init of the installed system's initrd: loads the modules, mounts the root by UUID, hands over.
export PATH=/bin:/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
while read -r module; do busybox insmod "/lib/modules/$module"; done </lib/modules/order
root=
for word in $(busybox cat /proc/cmdline); do
    case $word in root=*) root=${word#root=} ;; esac
done
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    device=$(busybox findfs "$root" 2>/dev/null) && break
    busybox sleep 1
done
if [ -z "$device" ] || ! busybox mount -t ext4 "$device" /mnt; then
    echo "initrd: no root file system $root"
    busybox poweroff -f
fi
busybox mount --move /proc /mnt/proc
busybox mount --move /sys /mnt/sys
busybox mount --move /dev /mnt/dev
exec busybox switch_root /mnt /sbin/init
