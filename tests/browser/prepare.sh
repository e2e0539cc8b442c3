#!/bin/sh
# Brings what the tests of the dashboard need: Debian's Chromium (as root, by apt), Playwright for Python and axe-core
# into target/browser. Playwright's own browsers are not downloaded. May be run again. Ends with 1 where it cannot be had.
set -eu
cd "$(dirname "$0")/../.."
here=$PWD/tests/browser
into=$PWD/target/browser
mkdir -p "$into"
apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "prepare: installing $*"
    apt-get -q update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" >/dev/null
}
command -v chromium >/dev/null || apt chromium fonts-dejavu-core
python3 -c 'import ensurepip, venv' 2>/dev/null || apt python3 python3-venv
command -v npm >/dev/null || apt nodejs npm
if ! cmp -s "$here/requirements.txt" "$into/venv/fetched"; then
    rm -rf "$into/venv"
    python3 -m venv "$into/venv"
    "$into/venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$into/venv/fetched"
fi
if ! cmp -s "$here/package-lock.json" "$into/node/fetched"; then
    rm -rf "$into/node"
    mkdir -p "$into/node"
    cp "$here/package.json" "$here/package-lock.json" "$into/node/"
    (cd "$into/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp "$here/package-lock.json" "$into/node/fetched"
fi
