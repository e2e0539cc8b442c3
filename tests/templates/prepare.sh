#!/bin/sh
# Brings what the tests of the templates read rendered files with: PyYAML and pykickstart, into target/python, and
# Debian's debconf-set-selections, which every Debian has. May be run again; needs no root.
set -eu
cd "$(dirname "$0")/../.."
into=target/python
if PYTHONPATH="$into" python3 -c 'import yaml, pykickstart' 2>/dev/null; then exit 0; fi
echo "prepare: PyYAML and pykickstart into $into"
if ! python3 -m pip --version >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get -q update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
        python3 python3-pip >/dev/null
fi
python3 -m pip -q install --disable-pip-version-check --root-user-action=ignore --upgrade --target "$into" \
    PyYAML==6.0.3 pykickstart==3.78
