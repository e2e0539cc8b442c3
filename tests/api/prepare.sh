#!/bin/sh
# Brings schemathesis (PyPI, pinned) into target/api/venv. May be run again; as root it installs Debian's python3-venv.
set -eu
cd "$(dirname "$0")/../.."
work=target/api
if cmp -s tests/api/requirements.txt "$work/venv/fetched"; then exit 0; fi
mkdir -p "$work"
if ! python3 -c 'import ensurepip, venv' 2>/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get -q update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
        python3 python3-venv >/dev/null
fi
echo "prepare: schemathesis into $work/venv"
rm -rf "$work/venv"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check -r tests/api/requirements.txt
cp tests/api/requirements.txt "$work/venv/fetched"
