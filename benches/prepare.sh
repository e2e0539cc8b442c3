#!/bin/sh
# Fills a folder with the servers that `make bench` measures beside bootflip: prepare.sh FOLDER (Debian 12 or newer;
# root only to install libraries and programs that are no daemons).
#
#   FOLDER/peers/PACKAGE   tftpd-hpa, atftpd, kea-dhcp4-server, kea-admin (perfdhcp) and nginx, unpacked and not
#                          installed: two of them exclude each other, and an installed one would run as a daemon from
#                          then on
#
# dnsmasq comes from dnsmasq-base, which has no daemon. May be run again: what is there is kept.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
peers=$out/peers

say() { echo "prepare: $*"; }

servers="tftpd-hpa atftpd kea-common kea-dhcp4-server kea-admin nginx"

updated=no
update() {
    [ "$updated" = yes ] || apt-get -q update >/dev/null
    updated=yes
}

# What those need of libraries, by their own word; the first of alternatives.
libraries() {
    # shellcheck disable=SC2086
    apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances $servers |
        sed -n 's/^ *Depends: \(lib[^<> ]*\|zlib1g\)$/\1/p' | sort -u
}

missing() { # PACKAGE...
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || echo "$package"
    done
}

if ! [ -e "$out/complete" ]; then
    update
    # shellcheck disable=SC2046
    need=$(missing dnsmasq-base iproute2 util-linux $(libraries))
    if [ -n "$need" ]; then
        say "installing (libraries and programs, no daemon):" $need
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $need >/dev/null
    fi
    work=$out/download
    rm -rf "$peers" "$work"
    mkdir -p "$work"
    # apt-get downloads as another user where it can.
    chmod 777 "$work"
    for package in $servers; do
        say "downloading $package, to be unpacked below $peers"
        (cd "$work" && apt-get -q download "$package" >/dev/null 2>&1) || { say "cannot download $package" >&2; exit 1; }
        mkdir -p "$peers/$package"
        dpkg -x "$work/$package"_*.deb "$peers/$package"
    done
    rm -rf "$work"
    : >"$out/complete"
fi

for program in tftpd-hpa/usr/sbin/in.tftpd atftpd/usr/sbin/atftpd kea-dhcp4-server/usr/sbin/kea-dhcp4 \
    kea-admin/usr/sbin/perfdhcp nginx/usr/sbin/nginx; do
    [ -x "$peers/$program" ] || { say "$peers/$program is missing; remove $out and try again" >&2; exit 1; }
done
command -v dnsmasq >/dev/null || { say "dnsmasq is missing; remove $out and try again" >&2; exit 1; }
say "$out has the servers to compare with"
