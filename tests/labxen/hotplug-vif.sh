#!/bin/busybox sh
# shellcheck shell=dash
# /etc/xen/scripts/vif-bridge of the lab's dom0: plugs a guest's NIC into the bridge. Few forks; see hotplug-block.sh.
# libxl calls `online type_if=vif` with $vif set for the PV NIC, and `add type_if=tap` with $INTERFACE set for the
# emulated one of an HVM guest.
case $1 in
online | add) ;;
*) exit 0 ;;
esac
[ "${2:-}" != type_if=tap ] || exec ip link set "${INTERFACE:?}" master xenbr0 up
ip link set "${vif:?}" master xenbr0 up || {
    xenstore-write "$XENBUS_PATH/hotplug-error" "no bridge for $vif" "$XENBUS_PATH/hotplug-status" error
    exit 1
}
exec xenstore-write "$XENBUS_PATH/hotplug-status" connected
