#!/bin/sh
# Fills a folder with a real Xen for the lab: prepare.sh FOLDER LAB (Debian 12 or newer, amd64; root).
#
#   LAB                     the lab's own folder; tests/lab/prepare.sh fills it first: kernel, installer, target system
#   FOLDER/lab              a link to LAB
#   FOLDER/boot/xen         the hypervisor of Debian 12 (Xen 4.17), unpacked: QEMU's multiboot loader takes no gzip
#   FOLDER/boot/vmlinux     dom0's kernel, the same as the guests', as ELF: Xen's loader in QEMU takes nothing else here
#   FOLDER/boot/initrd.img  loads dom0's modules and mounts its root
#   FOLDER/dom0.img         dom0's root file system: Debian's xl, pygrub, xenstored, xenconsoled, device model, sshd
#   FOLDER/before.img       a guest's disk with a system that runs as PV: what the VM was before it is installed anew
#   FOLDER/ssh/             a key pair for dom0's root, and the host key to expect
#
# May be run again: what is there and newer than these scripts is kept.
set -eu

lab_scripts=$(cd "$(dirname "$0")/../lab" && pwd)
own=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 2 ] || { echo "usage: $0 FOLDER LAB" >&2; exit 2; }
"$lab_scripts/prepare.sh" "$2"
lab=$(cd "$2" && pwd)
mkdir -p "$1/boot" "$1/work"
out=$(cd "$1" && pwd)
# The kernel and its modules are the lab's; only new things are made in this folder's own workshop.
here=$lab_scripts
work=$lab/work
shop=$out/work
. "$lab_scripts/parts.sh"
release=$(cat "$work/kernel/release")

stale=no
for product in "$out/boot/xen" "$out/boot/vmlinux" "$out/boot/initrd.img" "$out/dom0.img" "$out/before.img" "$out/ssh/known_hosts"; do
    for source in "$own"/* "$lab_scripts/boot-init.sh" "$lab_scripts/parts.sh" "$lab/www/rootfs.cpio"; do
        [ "$product" -nt "$source" ] || stale=yes
    done
done
if [ "$stale" = no ]; then
    say "$out is complete"
    exit 0
fi

wants mmdebstrap mmdebstrap
wants ssh-keygen openssh-client
wants ssh openssh-client
wants xz xz-utils
wants /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
install_wanted
ln -sfn "$lab" "$out/lab"

# Debian's packages as they are: unpacked, never configured, since dom0 runs no service manager. Kept between runs.
packages="xen-hypervisor-4.17-amd64 xen-utils-4.17 xen-utils-common qemu-system-xen seabios ipxe-qemu openssh-server
    iproute2 bash coreutils util-linux sed grep mawk busybox-static"
packages=$(echo $packages | tr ' ' ,)
if [ "$(cat "$shop/packages" 2>/dev/null)" != "$packages" ]; then
    say "downloading dom0's packages"
    rm -rf "$shop/dom0" "$shop/packages"
    mmdebstrap --quiet --variant=extract --include="$packages" bookworm "$shop/dom0" ||
        { say "cannot download dom0's packages" >&2; exit 1; }
    # One tree, as Debian's own installer makes it.
    for folder in bin sbin lib lib64; do
        mkdir -p "$shop/dom0/usr/$folder"
        [ -L "$shop/dom0/$folder" ] || cp -a "$shop/dom0/$folder/." "$shop/dom0/usr/$folder/"
        rm -rf "${shop:?}/dom0/$folder"
        ln -s "usr/$folder" "$shop/dom0/$folder"
    done
    rm -rf "$shop/dom0/usr/share/doc" "$shop/dom0/usr/share/man" "$shop/dom0/usr/share/locale" \
        "$shop/dom0/usr/share/perl" "$shop/dom0/usr/lib/x86_64-linux-gnu/perl" "$shop/dom0/usr/share/i18n"
    echo "$packages" >"$shop/packages"
fi

say "building dom0"
gzip -dc "$shop"/dom0/boot/xen-4.17-amd64.gz >"$out/boot/xen"
# The boot protocol's header (Documentation/x86/boot.rst) tells where the packed ELF kernel lies in the image.
python3 - "$work/kernel/boot/vmlinuz-$release" >"$shop/vmlinux.packed" <<'PYTHON'
import struct, sys
image = open(sys.argv[1], "rb").read()
setup = (image[0x1F1] or 4) + 1
offset, length = struct.unpack_from("<II", image, 0x248)
start = setup * 512 + offset
sys.stdout.buffer.write(image[start:start + length])
PYTHON
# The last four bytes are the unpacked size and no part of the xz stream, which xz says and tells by its exit code.
xz -dc --single-stream "$shop/vmlinux.packed" >"$out/boot/vmlinux"
rm "$shop/vmlinux.packed"

base_tree "$shop/initrd"
copy_modules "$shop/initrd" "crc32c_generic ext4 virtio_pci virtio_blk virtio_net 9p 9pnet_virtio bridge tun xenfs
    xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xen-blkback xen-netback"
install -m 755 "$lab_scripts/boot-init.sh" "$shop/initrd/init"
archive "$shop/initrd" | gzip -1 >"$out/boot/initrd.img"
rm -rf "$shop/initrd"

# The host key is new with each dom0, so nothing that is worth a secret is kept in this folder.
rm -rf "$out/ssh"
mkdir -m 700 "$out/ssh"
ssh-keygen -q -t ed25519 -N '' -C lab -f "$out/ssh/id"
ssh-keygen -q -t ed25519 -N '' -C dom0 -f "$shop/host_key"
echo "dom0 $(cut -d ' ' -f 1,2 "$shop/host_key.pub")" >"$out/ssh/known_hosts"

root=$shop/root
rm -rf "$root"
cp -a "$shop/dom0" "$root"
rm -rf "$root/boot"
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp" "$root/mnt" "$root/consoles" \
    "$root/root/.ssh" "$root/var/lib/xen" "$root/var/log/xen" "$root/var/lib/xenstored" "$root/etc/ssh"
# What Debian's packages would get from others (coreutils' kin, mount, kmod) comes from busybox.
"$root/usr/bin/busybox" --list-full | while read -r applet; do
    applet=usr/${applet#usr/}
    [ -e "$root/$applet" ] || [ -L "$root/$applet" ] || ln -s /usr/bin/busybox "$root/$applet"
done
ln -sf bash "$root/usr/bin/sh"
rm -rf "$root/var/run" "$root/var/lock"
ln -s /run "$root/var/run"
ln -s /run/lock "$root/var/lock"
cat >"$root/etc/passwd" <<'USERS'
root:x:0:0:root:/root:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
USERS
printf 'root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n' >"$root/etc/shadow"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
echo dom0 >"$root/etc/hostname"
install -m 600 "$shop/host_key" "$root/etc/ssh/host_key"
install -m 600 "$out/ssh/id.pub" "$root/root/.ssh/authorized_keys"
rm "$shop/host_key" "$shop/host_key.pub"
cat >"$root/etc/ssh/sshd_config" <<'SSHD'
HostKey /etc/ssh/host_key
PasswordAuthentication no
UsePAM no
UseDNS no
MaxSessions 50
SetEnv PATH=/usr/lib/xen-4.17/bin:/usr/sbin:/usr/bin
SSHD
install -m 755 "$own/hotplug-block.sh" "$root/etc/xen/scripts/block"
install -m 755 "$own/hotplug-vif.sh" "$root/etc/xen/scripts/vif-bridge"
rm -f "$root/usr/sbin/init"
install -m 755 "$own/dom0-init.sh" "$root/usr/sbin/init"
# boot-init.sh finds the root by this.
echo 6d0a3c1e-d002-4c17-8e00-0000000000d0 >"$shop/root.uuid"
rm -f "$out/dom0.img"
mke2fs -q -t ext4 -O ^has_journal -U "$(cat "$shop/root.uuid")" -d "$root" "$out/dom0.img" 500m
rm -rf "$root"

say "building the guest's disk as it was before"
old=$shop/old
rm -rf "$old"
mkdir "$old"
(cd "$shop" && cpio --quiet -id rootfs.tar <"$lab/www/rootfs.cpio")
tar -xf "$shop/rootfs.tar" -C "$old"
rm "$shop/rootfs.tar"
mkdir -p "$old/boot/grub"
mv "$old/boot" "$shop/old-boot"
mkdir "$old/boot"
uuid=6d0a3c1e-d002-4c17-8e00-0000000000
cat >"$old/etc/fstab" <<TABLE
UUID=${uuid}03 / ext4 defaults 0 1
UUID=${uuid}01 /boot ext2 defaults 0 2
TABLE
echo before >"$old/etc/hostname"
cat >"$shop/old-boot/grub/grub.cfg" <<CONFIG
set default=0
menuentry 'The system before' {
    linux /vmlinuz root=UUID=${uuid}03 ro console=hvc0
    initrd /initrd.img
}
CONFIG
rm -f "$out/before.img"
truncate -s 600M "$out/before.img"
printf 'label: dos\nstart=2048, size=131072, type=83, bootable\nstart=133120, type=83\n' | sfdisk -q "$out/before.img"
mke2fs -q -F -t ext2 -O ^64bit,^metadata_csum -U "${uuid}01" -d "$shop/old-boot" -E offset=1048576 "$out/before.img" 64m
mke2fs -q -F -t ext4 -O ^64bit,^metadata_csum -U "${uuid}03" -d "$old" -E offset=68157440 "$out/before.img" 530m
rm -rf "$old" "$shop/old-boot"
touch "$out"/boot/* "$out/ssh/known_hosts"
say "$out is complete: Xen 4.17, dom0 $(du -h "$out/dom0.img" | cut -f 1)"
