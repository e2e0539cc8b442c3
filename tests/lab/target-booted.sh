#!/bin/sh
# Tells the server, once, that the new system runs, and as what; then the token is forgotten.
export PATH=/sbin:/bin
[ -s /etc/bootflip/booted-url ] || exit 0
read -r url </etc/bootflip/booted-url
kind=none
[ ! -r /sys/hypervisor/guest_type ] || read -r kind </sys/hypervisor/guest_type
root=unknown
while read -r device where _; do [ "$where" != / ] || root=$device; done </proc/mounts
read -r name </etc/hostname
if post "$url" "guest_type=$kind root=$root hostname=$name"; then
    busybox rm -f /etc/bootflip/booted-url
    busybox sync
    echo "target: the booted report was taken: guest_type=$kind root=$root hostname=$name" >/dev/console
fi
