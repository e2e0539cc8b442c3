#!/bin/busybox sh
# What udhcpc calls: sets the address it was given. Never touches resolv.conf: the lab has no names.
case $1 in
bound | renew)
    busybox ip addr flush dev "$interface"
    busybox ip addr add "$ip/${mask:-24}" broadcast + dev "$interface"
    [ -z "${router:-}" ] || busybox ip route replace default via "${router%% *}" dev "$interface"
    ;;
deconfig) busybox ip link set "$interface" up ;;
esac
