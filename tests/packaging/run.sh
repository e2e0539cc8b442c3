#!/bin/sh
# The Debian package on a Debian of its own, with systemd as its first process (in namespaces; no network but its own
# loopback): installed, started, upgraded under a job that is under way, hung, removed, purged. inside.sh is what runs
# there; its transcript goes to FOLDER/transcript and stdout. Root.
#
#   run.sh [FOLDER [FIRST SECOND]]
#
# FOLDER is target/packaging where nothing is said. FIRST and SECOND are the packages, such as a released one and the next;
# without them two revisions are built, from the profile dev unless PROFILE says otherwise.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-target/packaging}
profile=${PROFILE:-dev}
# The longest that the whole may take, in seconds.
limit=420
[ "$(id -u)" = 0 ] || { echo "SKIP packaging: needs root"; exit 0; }

tests/packaging/prepare.sh "$out"
first=${2:-$out/first.deb}
second=${3:-$out/second.deb}
if [ $# -lt 3 ]; then
    packaging/build.sh "$profile" 1 "$first"
    packaging/build.sh "$profile" 2 "$second"
fi
folder=$profile
[ "$profile" = dev ] && folder=debug

rm -rf "$out/root"
mkdir -p "$out/root"
tar -C "$out/root" -xf "$out/base.tar"
root=$out/root
mkdir -p "$root/test"
cp "$first" "$root/test/first.deb"
cp "$second" "$root/test/second.deb"
# The simulated pool is a program of its own here: it must live through what happens to the package's.
cp "target/$folder/bootflip" "$root/test/simulator"
cp tests/packaging/inside.sh "$root/test/"
cat >"$root/etc/systemd/system/packaging-test.service" <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/test/inside.sh >/test/transcript 2>&1; echo \$? >/test/code; systemctl --no-block poweroff'
TimeoutStartSec=${limit}s
UNIT
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -s ../packaging-test.service "$root/etc/systemd/system/graphical.target.wants/"

# A /run of its own: nspawn keeps its marks there, and in a container /run may be no tmpfs.
timeout --kill-after=20 $((limit + 60)) unshare --mount sh -c '
    mount -t tmpfs tmpfs /run
    exec systemd-nspawn --quiet --directory="$1" --boot --private-network --register=no --keep-unit \
        --kill-signal=SIGRTMIN+3' sh "$root" </dev/null >"$out/boot.log" 2>&1 || true
cat "$root/test/transcript" 2>/dev/null || cat "$out/boot.log"
cp "$root/test/transcript" "$out/transcript" 2>/dev/null || true
code=$(cat "$root/test/code" 2>/dev/null || echo none)
rm -rf "$root"
[ "$code" = 0 ] || { echo "packaging: FAILED (inside: $code; $out/boot.log)"; exit 1; }
echo "packaging: passed"
