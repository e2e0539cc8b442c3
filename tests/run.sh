#!/bin/sh
# `make test`: each group with its time; skips are counted and printed last. With BOOTFLIP_NO_SKIP=1 a skip of what
# this machine could do is a failure. BOOTFLIP_FULL=1 adds what takes long.
set -u
cd "$(dirname "$0")/.." || exit 1

log=$(mktemp)
trap 'rm -f "$log" "$log.code"' EXIT
times=""
failed=""

group() { # NAME COMMAND...
    name=$1
    shift
    echo "== $name"
    begun=$(date +%s)
    # sh has no pipefail: the code goes through a file.
    { "$@" 2>&1; echo $? >"$log.code"; } | tee -a "$log"
    code=$(cat "$log.code")
    took=$(($(date +%s) - begun))
    times="$times$(printf '%6d s  %s' "$took" "$name")
"
    if [ "$code" != 0 ]; then
        failed="$failed $name"
        times="$times          (failed)
"
    fi
}

group format cargo fmt --check
group clippy cargo clippy --locked --all-targets -- -D warnings
group unit cargo test --locked --lib
if [ "$(id -u)" = 0 ] && [ -x tests/lab/prepare.sh ]; then
    group lab-files tests/lab/prepare.sh target/lab
fi
if [ "$(id -u)" = 0 ] && [ -x tests/net/prepare.sh ]; then
    group net-programs tests/net/prepare.sh
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    group metrics-programs tests/metrics/prepare.sh target/promtool
fi
if command -v python3 >/dev/null; then
    group template-programs tests/templates/prepare.sh
fi
if [ "${BOOTFLIP_FULL:-0}" = 1 ]; then
    group browser-programs tests/browser/prepare.sh
fi
# 2,000 walks here; the 10,000 of the acceptance criterion, and the tests marked as slow, in `make test-full`.
if [ "${BOOTFLIP_FULL:-0}" = 1 ]; then
    group it env BOOTFLIP_WALKS=10000 cargo test --locked --test it -- --nocapture --include-ignored
else
    group it env BOOTFLIP_WALKS=2000 cargo test --locked --test it -- --nocapture
fi
if [ "${BOOTFLIP_FULL:-0}" = 1 ]; then
    group demo-100 target/debug/bootflip demo --vms 100 --json
    for seed in 7 8 9 10; do
        group "demo-faults-$seed" target/debug/bootflip demo --faults --seed "$seed"
    done
    group foreign tests/foreign/run.sh
    group deny make deny
    group schemathesis tests/api/run.sh
    if [ "$(id -u)" = 0 ]; then
        group packaging tests/packaging/run.sh
        group lab target/debug/bootflip lab --dir target/lab --vms 2
        group lab-xen-files tests/labxen/prepare.sh target/lab-xen target/lab
        group lab-xen target/debug/bootflip lab-xen
        group lab-xen-faults target/debug/bootflip lab-xen --faults
    fi
fi

echo "== summary"
grep -a '^test result:' "$log"
printf '%s' "$times"
skips=$(grep -a '^SKIP ' "$log" | sort -u)
if [ -n "$skips" ]; then
    echo "$(printf '%s\n' "$skips" | wc -l) skipped:"
    printf '%s\n' "$skips"
else
    echo "0 skipped"
fi
if [ -n "$failed" ]; then
    echo "FAILED:$failed"
    exit 1
fi
