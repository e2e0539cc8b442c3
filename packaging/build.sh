#!/bin/sh
# Makes the Debian package: build.sh [PROFILE [REVISION [FILE]]], by default of the profile release, revision 1, below
# target/debian (where cargo-deb clears away earlier ones). Prints its path.
# What it holds beside the binary (manual pages, completions, the list of what is built in) is made here by the binary.
set -eu
cd "$(dirname "$0")/.."
profile=${1:-release}
revision=${2:-1}
output=${3:-target/debian/}
folder=$profile
[ "$profile" = dev ] && folder=debug

packaging/tools.sh deb
export PATH="$PWD/target/tools/bin:$PATH"
cargo build --quiet --locked --profile "$profile" --bin bootflip
binary=target/$folder/bootflip
rm -rf target/package
mkdir -p target/package/man
"$binary" man target/package/man
"$binary" completions bash >target/package/bootflip.bash
"$binary" completions zsh >target/package/_bootflip
"$binary" completions fish >target/package/bootflip.fish
# An SBOM of what is built in, and of nothing that only tests use.
cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --target x86_64-unknown-linux-gnu \
    --override-filename bootflip.cdx
# Where it was built is nobody's business.
sed "s|$PWD|.|g" bootflip.cdx.json >target/package/bootflip.cdx.json
rm bootflip.cdx.json
mkdir -p target/debian "$(dirname "$output")"
fast=""
[ "$profile" = release ] || fast=--fast
# shellcheck disable=SC2086
cargo deb --quiet --locked --no-build $fast --profile "$profile" --deb-revision "$revision" --output "$output"
