#!/bin/busybox sh
# The mini installer: /init of the initrd that is booted from the network.
#
# It knows only its kernel arguments: `url=` (or `bootflip.answer=`) names the answer file, `BOOTIF=` may name the
# NIC. The answer file has KEY=VALUE lines, values bare or in single quotes:
#   REPORT_URL   stages are posted to REPORT_URL/STAGE
#   BOOTED_URL   the installed system posts here
#   HOSTNAME     of the installed system
#   DISK         sda or /dev/sda, or a number; DISK_POSITION (else the number in DISK): which of the disks here,
#                from 0; DISK_SIZE: its size in bytes. What is seen here must agree, or nothing is written.
#   ROOT_ARCHIVE URL of the tar of the system to unpack; without it, /rootfs.tar of the second initrd
# It ends in a power-off, whatever happens.
export PATH=/bin:/sbin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox --install -s /bin
exec </dev/console >/dev/console 2>&1

REPORT_URL=
BOOTED_URL=
HOSTNAME=
DISK=
DISK_POSITION=
DISK_SIZE=
ROOT_ARCHIVE=

off() {
    sync
    poweroff -f
    sleep 60
}

fail() {
    echo "installer: $*"
    [ -z "$REPORT_URL" ] || post "$REPORT_URL/failed" "$*"
    off
}

stage() { # STAGE PERCENT
    echo "installer: $1"
    post "$REPORT_URL/$1" "percent=$2" || fail "the server does not take the report $1"
}

argument() { # NAME
    for word in $(cat /proc/cmdline); do
        case $word in "$1="*) echo "${word#*=}" ;; esac
    done | tail -n 1
}

network() {
    wanted=$(argument BOOTIF | tr 'A-Z-' 'a-z:')
    for path in /sys/class/net/*; do
        [ "$(cat "$path/type")" = 1 ] || continue
        [ -z "$wanted" ] || [ "01:$(cat "$path/address")" = "$wanted" ] || continue
        nic=${path##*/}
        ip link set "$nic" up
        udhcpc -i "$nic" -f -n -q -t 10 -T 2 -s /sbin/lease && return 0
    done
    return 1
}

answers() { # FILE
    while read -r line || [ -n "$line" ]; do
        value=${line#*=}
        case $value in \'*\') value=${value#?}; value=${value%?} ;; esac
        case $line in
        REPORT_URL=*) REPORT_URL=${value%/} ;;
        BOOTED_URL=*) BOOTED_URL=$value ;;
        HOSTNAME=*) HOSTNAME=$value ;;
        DISK=*) DISK=$value ;;
        DISK_POSITION=*) DISK_POSITION=$value ;;
        ROOT_ARCHIVE=*) ROOT_ARCHIVE=$value ;;
        DISK_SIZE=*) DISK_SIZE=$value ;;
        esac
    done <"$1"
}

# The disks in the order of the bus, which is that of the VBDs. Not by name: the kernel probes them side by side,
# and with two IDE disks the second was seen as sda in one of three runs.
disks() {
    for path in /sys/block/sd* /sys/block/vd* /sys/block/xvd*; do
        [ ! -e "$path" ] || readlink -f "$path"
    done | sort | sed 's|.*/||'
}

# Sets `disk` to the disk that the answers name, and `wrong` to what speaks against it.
look_for_disk() {
    case ${DISK_POSITION:-$DISK} in
    *[!0-9]*) disk=${DISK#/dev/} ;;
    ?*) disk=$(disks | sed -n "$((${DISK_POSITION:-$DISK} + 1))p") ;;
    "") fail "the answer file names no disk" ;;
    esac
    wrong="there is no disk ${DISK_POSITION:-$DISK} here, only: $(disks | tr '\n' ' ')"
    [ -n "$disk" ] && [ -b "/dev/$disk" ] || return 1
    size=$(($(cat "/sys/block/$disk/size") * 512))
    wrong="disk $disk has $size bytes and not $DISK_SIZE"
    [ -z "$DISK_SIZE" ] || [ "$DISK_SIZE" = "$size" ]
}

# Modules are in, but the kernel looks at the disks in its own time.
choose_disk() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        look_for_disk && return
        sleep 1
    done
    fail "$wrong"
}

# /boot on a small first partition without journal, 64bit or checksums: what every release's pygrub can read.
partition() {
    /sbin/sfdisk -q "/dev/$disk" <<-TABLE || fail "sfdisk failed on $disk"
	label: dos
	size=64MiB, type=83, bootable
	size=64MiB, type=82
	type=83
	TABLE
    mdev -s 2>/dev/null
    [ -b "/dev/${disk}3" ] || fail "the kernel does not see the new partitions of $disk"
    /sbin/mke2fs -q -F -t ext2 -O ^64bit,^metadata_csum "/dev/${disk}1" || fail "mke2fs failed on ${disk}1"
    /sbin/mkswap "/dev/${disk}2" >/dev/null || fail "mkswap failed on ${disk}2"
    /sbin/mke2fs -q -F -t ext4 -O ^64bit,^metadata_csum "/dev/${disk}3" || fail "mke2fs failed on ${disk}3"
}

uuid_of() { # PARTITION
    /sbin/blkid -p -s UUID -o value "/dev/$disk$1"
}

unpack() {
    mkdir -p /target
    mount -t ext4 "/dev/${disk}3" /target && mkdir /target/boot && mount -t ext2 "/dev/${disk}1" /target/boot ||
        fail "cannot mount the new file systems"
    if [ -n "$ROOT_ARCHIVE" ]; then
        wget -q -O - "$ROOT_ARCHIVE" | tar -x -C /target
    else
        tar -xf /rootfs.tar -C /target && rm /rootfs.tar
    fi
    [ -x /target/sbin/target-start ] || fail "cannot unpack the system"
}

# The disk is sda here and xvda or vda under PV: nothing names it but UUIDs.
configure() {
    root=$(uuid_of 3)
    cat >/target/etc/fstab <<-TABLE
	UUID=$root / ext4 defaults 0 1
	UUID=$(uuid_of 1) /boot ext2 defaults 0 2
	UUID=$(uuid_of 2) none swap sw 0 0
	TABLE
    echo "${HOSTNAME:-localhost}" >/target/etc/hostname
    # Not tty0: where there is no hvc0, it and not ttyS0 would become /dev/console.
    arguments="root=UUID=$root ro console=ttyS0 console=hvc0"
    mkdir -p /target/boot/grub
    # grub.cfg for pygrub from Xen 4.2 on, menu.lst for the older ones, which look for nothing else.
    cat >/target/boot/grub/grub.cfg <<-CONFIG
	set default=0
	set timeout=1
	menuentry 'Lab system' {
	    linux /vmlinuz $arguments
	    initrd /initrd.img
	}
	CONFIG
    cat >/target/boot/grub/menu.lst <<-CONFIG
	default 0
	timeout 1
	title Lab system
	root (hd0,0)
	kernel /vmlinuz $arguments
	initrd /initrd.img
	CONFIG
    (umask 077 && echo "$BOOTED_URL" >/target/etc/bootflip/booted-url)
}

while read -r module; do insmod "/lib/modules/$module"; done </lib/modules/order
answer_url=$(argument url)
[ -n "$answer_url" ] || answer_url=$(argument bootflip.answer)
[ -n "$answer_url" ] || fail "the kernel arguments name no answer file"
network || fail "no DHCP answer on any NIC"
tries=0
until timeout 20 wget -q -O /answers "$answer_url"; do
    tries=$((tries + 1))
    [ "$tries" -lt 30 ] || fail "cannot fetch the answer file"
    sleep 2
done
answers /answers
[ -n "$REPORT_URL" ] && [ -n "$BOOTED_URL" ] || fail "the answer file lacks REPORT_URL or BOOTED_URL"
stage started 5
choose_disk
partition
stage partitioned 20
unpack
stage base 70
configure
stage late 90
umount /target/boot && umount /target || fail "cannot unmount the new system"
sync
stage done 100
off
