#!/bin/sh
# The installed system's start: everything that /etc/fstab names, the name, the network.
export PATH=/sbin:/bin
mount -o remount,rw /
mount /boot
swapon -a
hostname -F /etc/hostname
for path in /sys/class/net/*; do
    read -r kind <"$path/type"
    [ "$kind" = 1 ] || continue
    ip link set "${path##*/}" up
    udhcpc -i "${path##*/}" -f -n -q -t 10 -T 2 -s /sbin/lease && break
done
