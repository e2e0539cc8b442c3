#!/bin/sh
# Brings promtool, which judges the alert rules: from Debian's package prometheus, unpacked and not installed, so that no
# Prometheus begins to run. prepare.sh FOLDER leaves FOLDER/promtool. May be run again: what is there is kept.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
[ -x "$1/promtool" ] && exit 0
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
[ -n "$(apt-cache search --names-only '^prometheus$')" ] || apt-get -q update >/dev/null
apt-get -q download prometheus >/dev/null
dpkg-deb -x prometheus_*.deb unpacked
mv unpacked/usr/bin/promtool "$out/promtool"
