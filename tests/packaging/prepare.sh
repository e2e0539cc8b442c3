#!/bin/sh
# What the tests of the Debian package need: a small Debian with systemd, as a tar, and systemd-nspawn to boot it
# (Debian 12 or newer, root). prepare.sh FOLDER leaves FOLDER/base.tar. May be run again: what is there is kept.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
need=""
command -v mmdebstrap >/dev/null || need="$need mmdebstrap"
command -v systemd-nspawn >/dev/null || need="$need systemd-container"
if [ -n "$need" ]; then
    echo "prepare: installing:$need"
    apt="apt-get -q -y -o DPkg::Lock::Timeout=300"
    $apt update >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $apt install --no-install-recommends $need >/dev/null
fi
if ! [ -e "$1/base.tar" ]; then
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "prepare: a Debian $suite"
    mmdebstrap --quiet --variant=minbase --include=systemd,dbus,adduser,curl,ca-certificates "$suite" "$1/half.tar"
    mv "$1/half.tar" "$1/base.tar"
fi
