#!/bin/sh
# Fills a folder with what Debian's own installer needs: prepare.sh FOLDER (Debian 12 or newer, amd64; root).
#
#   FOLDER/www/linux, initrd.gz   the installer, unmodified, of the package debian-installer-13-netboot-amd64
#   FOLDER/mirror/debian/         a package mirror of one installation: dists/trixie, pool/
#   FOLDER/key                    the mirror's own key, base64, for the answer file
#   FOLDER/xen/                   pygrub, unpacked and not installed
#   FOLDER/rebuilt                the udebs that the archive lacks and this script rebuilt, with their source
#
# May be run again: a complete folder that is newer than these scripts is kept.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1/work" "$1/www"
out=$(cd "$1" && pwd)
work=$out/work
suite=trixie
installer=debian-installer-13-netboot-amd64
# Besides what the archive calls required: a system that boots, has a network, and takes what the preseed asks for.
# debconf-i18n: without Text::Iconv, debconf's passthrough frontend dies and base-installer cannot install a thing.
system="apt debian-archive-keyring init systemd-sysv udev kmod ifupdown dhcpcd-base iproute2 netbase procps cpio
    adduser gpgv tasksel debconf-i18n sensible-utils
    linux-image-cloud-amd64 initramfs-tools busybox zstd grub-pc openssh-server wget"

say() { echo "prepare: $*"; }
give_up() { say "$*" >&2; exit 1; }

if [ -e "$out/complete" ] && [ "$out/complete" -nt "$here/prepare.sh" ] && [ "$out/complete" -nt "$here/mirror.py" ]; then
    say "$out is complete"
    exit 0
fi
rm -f "$out/complete"

need=""
wants() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || need="$need $2"
}
wants qemu-system-x86_64 qemu-system-x86
wants dnsmasq dnsmasq-base
wants debugfs e2fsprogs
wants sfdisk fdisk
wants ip iproute2
wants setpriv util-linux
wants depmod kmod
wants python3 python3
wants gpg gnupg
wants cpio cpio
wants xz xz-utils
wants debootstrap debootstrap
[ -e /usr/lib/ipxe/qemu/pxe-e1000.rom ] || need="$need ipxe-qemu"
[ -e /usr/share/seabios/bios-256k.bin ] || need="$need seabios"
if [ -n "$need" ]; then
    say "installing:$need"
    apt-get -q update >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $need >/dev/null
fi

# An apt of its own beside the machine's: another release, nothing installed, the same archive.
machine_apt() { # FORMAT
    apt-get indextargets --format "$1" "Created-By: Packages" "Origin: Debian" "Label: Debian" | sort -u | head -n 1
}
archive=$(machine_apt '$(REPO_URI)')
if [ -z "$archive" ]; then
    apt-get -q update >/dev/null
    archive=$(machine_apt '$(REPO_URI)')
fi
[ -n "$archive" ] || give_up "this machine's apt knows no archive of Debian"
archive=${archive%/}
apt=$work/apt
mkdir -p "$apt/etc/apt.conf.d" "$apt/etc/preferences.d" "$apt/state/lists/partial" "$apt/cache/archives/partial"
: >"$apt/state/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main" >"$apt/etc/sources.list"
cat >"$apt/apt.conf" <<CONF
Dir "$apt";
Dir::Etc "$apt/etc";
Dir::State "$apt/state";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
other_apt() { APT_CONFIG="$apt/apt.conf" "$@"; }

# Fetches a package of the other release and unpacks it into a folder.
unpack() { # PACKAGE FOLDER
    rm -rf "$2"
    mkdir -p "$2" "$work/fetched"
    (cd "$work/fetched" && other_apt apt-get -q download "$1" >/dev/null) || give_up "cannot download $1"
    dpkg-deb -R "$work/fetched/$1"_*.deb "$2"
    rm -f "$work/fetched/$1"_*.deb
}

say "reading the archive's index"
other_apt apt-get -q update >/dev/null || give_up "cannot read the index of $suite"
# The index of udebs: apt would refuse it, as some mirrors keep an older one than their Release names. What it lists
# is checked by SHA-256.
other_apt /usr/lib/apt/apt-helper download-file "$archive/dists/$suite/main/debian-installer/binary-amd64/Packages.xz" \
    "$work/udebs.xz" >/dev/null 2>&1 || give_up "cannot read the index of udebs"
xz -dc "$work/udebs.xz" >"$work/udebs"

if ! [ -x "$out/xen/bin/pygrub" ]; then
    say "unpacking pygrub"
    rm -rf "$out/xen" "$work/xen"
    mkdir -p "$work/xen" "$out/xen/bin" "$out/xen/lib"
    for package in xen-utils-4.17 libxenmisc4.17; do
        (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$package" >/dev/null) || give_up "cannot download $package"
        dpkg -x "$work/$package"_*.deb "$work/xen"
        rm -f "$work/$package"_*.deb
    done
    cp -a "$work/xen/usr/lib/xen-4.17/lib/." "$out/xen/lib/"
    cp -a "$work/xen/usr/lib/xen-4.17/bin/pygrub" "$out/xen/bin/pygrub"
    rm -rf "$work/xen"
fi

say "unpacking the installer"
unpack "$installer" "$work/installer"
images=$work/installer/usr/lib/debian-installer/images/13/amd64/text/debian-installer/amd64
cp "$images/linux" "$out/www/linux"
cp "$images/initrd.gz" "$out/www/initrd.gz"
sed -n 's/^Version: //p' "$work/installer/DEBIAN/control" >"$out/www/version"
rm -rf "$work/installer" "$work/initrd"
mkdir "$work/initrd"
gzip -dc "$out/www/initrd.gz" | (cd "$work/initrd" && cpio -idm --quiet --no-absolute-filenames 2>/dev/null || true)
release=$(ls "$work/initrd/usr/lib/modules")
[ -n "$release" ] || give_up "the installer's initrd has no modules"

# The udebs that the archive does not serve, made from the .debs of the same build (kernel modules: the same ABI).
rm -rf "$work/built"
mkdir -p "$work/built"
: >"$out/rebuilt"
describe() { # FOLDER VERSION DEPENDS PROVIDES SOURCE-PACKAGES
    name=$(basename "$1")
    mkdir -p "$1/DEBIAN"
    cat >"$1/DEBIAN/control" <<CONTROL
Package: $name
Version: $2
Architecture: amd64
Maintainer: bootflip lab <root@localhost>
Section: debian-installer
Priority: standard
CONTROL
    [ -z "$3" ] || echo "Depends: $3" >>"$1/DEBIAN/control"
    [ -z "$4" ] || echo "Provides: $4" >>"$1/DEBIAN/control"
    case $name in *-modules-*) echo "Kernel-Version: $release" >>"$1/DEBIAN/control" ;; esac
    echo "Description: rebuilt from $5 for a lab" >>"$1/DEBIAN/control"
    echo "$name $2 from $5" >>"$out/rebuilt"
}
version_of() { sed -n 's/^Version: //p' "$1/DEBIAN/control"; }

say "rebuilding udebs: file systems"
libraries=usr/lib/x86_64-linux-gnu
udeb=$work/built/e2fsprogs-udeb
unpack e2fsprogs "$work/from"
version=$(version_of "$work/from")
mkdir -p "$udeb/usr/sbin" "$udeb/$libraries" "$udeb/etc"
for program in e2fsck mke2fs tune2fs resize2fs; do cp "$work/from/usr/sbin/$program" "$udeb/usr/sbin/"; done
for type in 2 3 4; do
    ln -s mke2fs "$udeb/usr/sbin/mkfs.ext$type"
    ln -s e2fsck "$udeb/usr/sbin/fsck.ext$type"
done
cp "$work/from/etc/mke2fs.conf" "$udeb/etc/"
for package in libext2fs2t64 libcom-err2; do
    unpack "$package" "$work/from"
    for library in libext2fs.so.2 libe2p.so.2 libcom_err.so.2; do
        found=$(find "$work/from" -name "$library*" -type f | head -n 1)
        [ -z "$found" ] || cp "$found" "$udeb/$libraries/$library"
    done
done
describe "$udeb" "$version" "libblkid1-udeb, libc6-udeb, libuuid1-udeb" "" "e2fsprogs, libext2fs2t64, libcom-err2 $version"

udeb=$work/built/ntfs-3g-udeb
unpack ntfs-3g "$work/from"
version=$(version_of "$work/from")
mkdir -p "$udeb/usr/bin" "$udeb/usr/sbin" "$udeb/$libraries"
cp "$work/from/usr/sbin/ntfsresize" "$udeb/usr/sbin/"
cp "$work/from/usr/bin/ntfs-3g" "$udeb/usr/bin/"
unpack libntfs-3g89t64 "$work/from"
library=$(find "$work/from" -name 'libntfs-3g.so.*' -type f)
cp "$library" "$udeb/$libraries/libntfs-3g.so.89"
describe "$udeb" "$version" "libc6-udeb, fuse3-udeb" "" "ntfs-3g, libntfs-3g89t64 $version"

say "rebuilding udebs: modules of $release"
unpack "linux-image-$release" "$work/kernel"
version=$(version_of "$work/kernel")
[ -d "$work/kernel/lib/modules" ] || { mkdir -p "$work/kernel/lib"; ln -s ../usr/lib/modules "$work/kernel/lib/modules"; }
depmod -b "$work/kernel" "$release"
modules() { # UDEB DEPENDS PROVIDES MODULE...
    udeb=$work/built/$1-$release-di
    depends=""
    for other in $2; do depends="$depends, $other-$release-di"; done
    provides=$3
    shift 3
    mkdir -p "$udeb/usr"
    for module in "$@"; do
        modprobe -d "$work/kernel" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
    done | sort -u | sed "s|.*/modules/$release/||" | while read -r file; do
        # Not twice: neither what the initrd has nor what another of these has.
        [ ! -e "$work/initrd/usr/lib/modules/$release/$file" ] || continue
        [ -z "$(find "$work/built" -path "*/modules/$release/$file")" ] || continue
        mkdir -p "$udeb/usr/lib/modules/$release/$(dirname "$file")"
        cp "$work/kernel/lib/modules/$release/$file" "$udeb/usr/lib/modules/$release/$file"
    done
    describe "$udeb" "$version" "kernel-image-$release-di$depends" "$provides" "linux-image-$release $version"
}
modules ext4-modules "" "ext2-modules, ext3-modules, ext4-modules" ext4
modules ata-modules scsi-core-modules ata-modules libata
modules pata-modules ata-modules pata-modules ata_generic pata_acpi
modules sata-modules "scsi-core-modules ata-modules" sata-modules ata_piix ahci
modules scsi-modules "scsi-core-modules ata-modules" scsi-modules virtio_blk virtio_scsi xen-blkfront
modules loop-modules "" loop-modules loop
rm -rf "$work/kernel" "$work/from"

say "fetching the mirror's packages"
mirror=$out/mirror/debian
rm -rf "$out/mirror"
mkdir -p "$mirror/pool" "$mirror/dists/$suite/main/binary-amd64" "$mirror/dists/$suite/main/debian-installer/binary-amd64"
ln -s "$suite" "$mirror/dists/stable"
required=$(awk '/^Package:/ { p = $2 } /^Priority: required/ { print p }' "$apt"/state/lists/*_Packages | sort -u)
# shellcheck disable=SC2086
other_apt apt-get -q -y --download-only install $required $system >"$work/apt.log" 2>&1 ||
    { tail -n 5 "$work/apt.log" >&2; give_up "cannot fetch the packages"; }
for deb in "$apt"/cache/archives/*.deb; do
    # Without the epoch's %3a, which clients ask for in more than one way.
    mv "$deb" "$mirror/pool/$(basename "$deb" | sed 's/_[0-9]*%3a/_/')"
done
python3 "$here/mirror.py" udebs "$work/udebs" "$work/initrd/var/lib/dpkg/status" "$work"/built/* >"$work/wanted"
while read -r path sum; do
    other_apt /usr/lib/apt/apt-helper download-file "$archive/$path" "$mirror/pool/$(basename "$path")" "SHA256:$sum" \
        >/dev/null 2>"$work/apt.log" || { tail -n 3 "$work/apt.log" >&2; give_up "cannot fetch $path"; }
done <"$work/wanted"
for udeb in "$work"/built/*; do
    dpkg-deb --root-owner-group -Zxz -b "$udeb" "$mirror/pool/$(basename "$udeb")_amd64.udeb" >/dev/null
done

say "signing the mirror"
packages=$mirror/dists/$suite/main/binary-amd64/Packages
python3 "$here/mirror.py" debs "$apt/state/lists" "$mirror/pool" >"$packages"
gzip -9nk "$packages"
xz -k "$packages"
# The installer asks this one whether the mirror has its architecture.
printf '%s\n' "Archive: $suite" "Origin: bootflip lab" "Label: bootflip lab" "Component: main" "Architecture: amd64" \
    >"$(dirname "$packages")/Release"
packages=$mirror/dists/$suite/main/debian-installer/binary-amd64/Packages
python3 "$here/mirror.py" packages "$mirror/pool" "$work/udebs" >"$packages"
gzip -9nk "$packages"
export GNUPGHOME="$work/gpg"
rm -rf "$GNUPGHOME"
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-generate-key 'bootflip lab <root@localhost>' rsa3072 sign never 2>/dev/null
dists=$mirror/dists/$suite
python3 "$here/mirror.py" release "$mirror" "$suite" >"$dists/Release"
gpg --batch --quiet --armor --detach-sign --output "$dists/Release.gpg" "$dists/Release"
gpg --batch --quiet --clearsign --output "$dists/InRelease" "$dists/Release"
gpg --batch --quiet --export >"$work/key.gpg"
gpgconf --kill gpg-agent 2>/dev/null || true
base64 -w 0 "$work/key.gpg" >"$out/key"

# The mirror is tried before any installation: the installer's own debootstrap on this machine, then apt in what it made.
say "trying the mirror with debootstrap and apt"
rm -rf "$work/tried" "$work/debootstrap"
dpkg-deb -x "$mirror"/pool/debootstrap-udeb_*_all.udeb "$work/debootstrap"
DEBOOTSTRAP_DIR=$work/debootstrap/usr/share/debootstrap \
    sh "$work/debootstrap/usr/sbin/debootstrap" --resolve-deps --components=main --keyring="$work/key.gpg" "$suite" "$work/tried" "file://$mirror" \
    >"$work/debootstrap.log" 2>&1 || { tail -n 20 "$work/debootstrap.log" >&2; give_up "debootstrap does not like the mirror"; }
cp "$work/key.gpg" "$work/tried/etc/apt/trusted.gpg.d/lab.gpg"
echo "deb file:/mnt $suite main" >"$work/tried/etc/apt/sources.list"
# shellcheck disable=SC2016
unshare -m sh -ec 'mount --bind "$1" "$2/mnt"; shift; root=$1; shift
    chroot "$root" apt-get -q update
    chroot "$root" apt-get -q -s install "$@"' try "$mirror" "$work/tried" $system >"$work/apt.log" 2>&1 ||
    { tail -n 20 "$work/apt.log" >&2; give_up "apt does not like the mirror"; }
rm -rf "$work/tried" "$work/debootstrap" "$work/initrd" "$work/built" "$work/fetched" "$apt/cache" "$GNUPGHOME"
: >"$out/complete"
say "$out is complete: $installer $(cat "$out/www/version"), $(find "$mirror/pool" -type f | wc -l) packages, $(du -sh "$mirror" | cut -f 1)"
