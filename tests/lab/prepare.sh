#!/bin/sh
# Fills a folder with what the lab boots: prepare.sh FOLDER (Debian 12 or newer, amd64; root only to install packages).
#
#   FOLDER/www/vmlinuz      Debian's stock kernel: Xen PV capable, so one kernel serves both boots
#   FOLDER/www/initrd.gz    the mini installer: busybox, sfdisk, mke2fs, modules, installer-init.sh
#   FOLDER/www/rootfs.cpio  second initrd: /rootfs.tar.gz, the system that the mini installer unpacks
#   FOLDER/xen/             xen-utils, unpacked and not installed: only its pygrub is wanted
#
# May be run again: what is there and newer than these scripts is kept.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1/www"
out=$(cd "$1" && pwd)
work=$out/work

# Programs first: a machine that has them needs neither root nor the archive's index.
. "$here/parts.sh"
wants qemu-system-x86_64 qemu-system-x86
wants /usr/lib/ipxe/qemu/pxe-e1000.rom ipxe-qemu
wants /usr/share/seabios/bios-256k.bin seabios
wants busybox busybox-static
wants dnsmasq dnsmasq-base
wants mke2fs e2fsprogs
wants sfdisk fdisk
wants ip iproute2
wants setpriv util-linux
wants depmod kmod
wants cpio cpio
wants /usr/bin/python3 python3
# The tests of PV readiness set the script beside the pygrub that is unpacked here.
wants dash dash
wants xz xz-utils
wants lz4 lz4
wants zstd zstd
wants shellcheck shellcheck
install_wanted
if ! ldd "$(command -v busybox)" 2>&1 | grep -q 'not a dynamic'; then
    say "busybox must be the static one: apt-get install busybox-static" >&2
    exit 1
fi

mkdir -p "$work"
if ! [ -x "$out/xen/bin/pygrub" ]; then
    rm -rf "$out/xen" "$work/xen"
    unpack xen-utils-4.17 "$work/xen"
    unpack libxenmisc4.17 "$work/xen"
    mkdir -p "$out/xen/bin" "$out/xen/lib"
    cp -a "$work/xen/usr/lib/xen-4.17/lib/." "$out/xen/lib/"
    cp -a "$work/xen/usr/lib/xen-4.17/bin/pygrub" "$out/xen/bin/pygrub"
    rm -rf "$work/xen"
fi

if ! [ -e "$work/kernel/release" ]; then
    rm -rf "$work/kernel"
    [ -n "$(apt-cache search --names-only '^linux-image-amd64$')" ] || apt-get -q update >/dev/null
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || { say "the archive has no linux-image-amd64" >&2; exit 1; }
    unpack "$package" "$work/kernel"
    release=${package#linux-image-}
    [ -d "$work/kernel/lib/modules" ] || { mkdir -p "$work/kernel/lib"; ln -s ../usr/lib/modules "$work/kernel/lib/modules"; }
    depmod -b "$work/kernel" "$release"
    echo "$release" >"$work/kernel/release"
fi
release=$(cat "$work/kernel/release")

stale=no
for product in "$out/www/vmlinuz" "$out/www/initrd.gz" "$out/www/rootfs.cpio"; do
    for source in "$here"/*.sh; do
        [ "$product" -nt "$source" ] || stale=yes
    done
done
if [ "$stale" = no ]; then
    say "$out is complete"
    exit 0
fi

# The modules of both boots, in an order in which insmod takes them: emulated NICs and IDE for the firmware's
# boot, virtio for the PV one, and Xen's own front ends, so that the same disk boots on a real Xen too.
modules="crc32c_generic ext4 sd_mod ata_piix ata_generic e1000 8139cp virtio_pci virtio_net virtio_blk xen-blkfront xen-netfront"
say "building the target system"
base_tree "$work/boot-initrd"
copy_modules "$work/boot-initrd" "$modules"
install -m 755 "$here/boot-init.sh" "$work/boot-initrd/init"

base_tree "$work/rootfs"
mkdir -p "$work/rootfs/boot" "$work/rootfs/etc/bootflip"
for applet in init mount umount swapon hostname udhcpc wget ip cat sleep poweroff reboot getty login; do
    ln -s ../bin/busybox "$work/rootfs/sbin/$applet"
done
install -m 755 "$here/target-start.sh" "$work/rootfs/sbin/target-start"
install -m 755 "$here/target-booted.sh" "$work/rootfs/sbin/target-booted"
cp "$here/target-inittab" "$work/rootfs/etc/inittab"
echo 'root::0:0:root:/root:/bin/sh' >"$work/rootfs/etc/passwd"
cp "$work/kernel/boot/vmlinuz-$release" "$work/rootfs/boot/vmlinuz"
archive "$work/boot-initrd" | gzip -9 >"$work/rootfs/boot/initrd.img"
rm -rf "$work/payload"
mkdir "$work/payload"
# The kernel and the initrd are compressed already: packing them again only costs the emulated processor.
tar -C "$work/rootfs" --owner=0 --group=0 -cf "$work/payload/rootfs.tar" .
archive "$work/payload" >"$out/www/rootfs.cpio"

say "building the mini installer"
base_tree "$work/installer"
copy_modules "$work/installer" "$modules"
for program in sfdisk mke2fs mkswap blkid; do copy_program "$program" "$work/installer"; done
install -m 755 "$here/installer-init.sh" "$work/installer/init"
archive "$work/installer" | gzip -9 >"$out/www/initrd.gz"
cp "$work/kernel/boot/vmlinuz-$release" "$out/www/vmlinuz"
rm -rf "$work/installer" "$work/boot-initrd" "$work/rootfs" "$work/payload"
say "$out is complete: kernel $release, $(du -ch "$out"/www/* | tail -n 1 | cut -f 1) to boot from"
