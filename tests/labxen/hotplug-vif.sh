#!/bin/busybox sh
# /etc/xen/scripts/vif-bridge of the lab's dom0: plugs a guest's NIC into the bridge. Few forks; see hotplug-block.sh.
case $1 in
online | add) ;;
*) exit 0 ;;
esac
case ${type_if:-vif} in
tap) exec ip link set "$INTERFACE" master xenbr0 up ;;
esac
ip link set "$vif" master xenbr0 up || {
    xenstore-write "$XENBUS_PATH/hotplug-error" "no bridge for $vif" "$XENBUS_PATH/hotplug-status" error
    exit 1
}
exec xenstore-write "$XENBUS_PATH/hotplug-status" connected
