#!/bin/sh
# Installs what the tests of the boot services run against: real DHCP and TFTP clients, relays, other servers
# (Debian 12 or newer, root). Nothing is started: the packages' services stay off, and what was there stays as it is.
#
# May be run again: a machine that has the programs needs neither root nor the archive's index.
set -eu

need=""
wants() { # PROGRAM-OR-FILE PACKAGE
    if ! command -v "$1" >/dev/null && ! [ -e "$1" ]; then need="$need $2"; fi
}
# DHCP clients
wants busybox busybox-static
wants dhclient isc-dhcp-client
wants dhcpcd dhcpcd-base
wants nmap nmap
wants perfdhcp kea-admin
wants /usr/lib/systemd/systemd-networkd systemd
# DHCP relays and servers beside ours
wants dhcrelay isc-dhcp-relay
wants dnsmasq dnsmasq-base
wants dhcpd isc-dhcp-server
wants kea-dhcp4 kea-dhcp4-server
# firmware
wants qemu-system-x86_64 qemu-system-x86
wants /usr/lib/ipxe/qemu/pxe-e1000.rom ipxe-qemu
wants /usr/lib/u-boot/qemu-x86/u-boot.rom u-boot-qemu
wants /usr/lib/ipxe/ipxe.lkrn ipxe
wants /usr/lib/PXELINUX/pxelinux.0 pxelinux
wants /usr/lib/syslinux/modules/bios/ldlinux.c32 syslinux-common
# HTTP and TFTP clients
wants curl curl
wants atftp atftp
wants /usr/bin/tftp tftp-hpa
wants wget wget
# what images are taken from
wants xorriso xorriso
wants ip iproute2
wants unshare util-linux
[ -n "$need" ] || exit 0

echo "prepare: installing:$need"
# A service that a package brings must not answer on this machine's networks: none is started while they are
# installed, and none at the next boot.
policy=/usr/sbin/policy-rc.d
if ! [ -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt="apt-get -q -y -o DPkg::Lock::Timeout=300"
$apt update >/dev/null
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $apt install --no-install-recommends $need >/dev/null
for service in isc-dhcp-relay isc-dhcp-relay6 isc-dhcp-server isc-dhcp-server6 kea-dhcp4-server dhcpcd; do
    if [ -e "/lib/systemd/system/$service.service" ] || [ -e "/etc/init.d/$service" ]; then
        systemctl disable "$service" >/dev/null 2>&1 || update-rc.d "$service" disable >/dev/null 2>&1 || true
    fi
done
