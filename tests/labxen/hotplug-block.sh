#!/bin/busybox sh
# /etc/xen/scripts/block of the lab's dom0: tells the block back end which device it serves. Debian's own script does
# the same after looks for sharing and loops, with hundreds of forks, each a tenth of a second in an emulated dom0.
[ "$1" = add ] || exit 0
device=$(xenstore-read "$XENBUS_PATH/params")
numbers=$(busybox stat -L -c %t:%T "$device") && [ -b "$device" ] || {
    xenstore-write "$XENBUS_PATH/hotplug-error" "no device $device" "$XENBUS_PATH/hotplug-status" error
    exit 1
}
exec xenstore-write "$XENBUS_PATH/physical-device" "$numbers" "$XENBUS_PATH/hotplug-status" connected
