#!/bin/sh
# Foreign XenAPI clients against `bootflip simulate`, each with a result line: the official XenAPI package (Python),
# Xen Orchestra's xen-api (npm), Ansible's xenserver modules. Needs target/debug/bootflip, Python 3, Node.js and
# npm; what it fetches (pinned) stays in target/foreign. Where that cannot be had, the client is skipped and listed.
set -u
cd "$(dirname "$0")/../.." || exit 1
here=$PWD/tests/foreign
work=$PWD/target/foreign
program=$PWD/target/debug/bootflip
ansible_wheel=ansible==11.13.0 # its community.general is 10.7.6
mkdir -p "$work"

pid=""
failed=0
end_pool() {
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    fi
    pid=""
}
trap end_pool EXIT
trap 'exit 130' INT TERM

fail() {
    echo "FAIL $*"
    failed=1
}
skip() {
    echo "SKIP foreign $*"
    if [ "${BOOTFLIP_NO_SKIP:-0}" = 1 ]; then
        failed=1
    fi
}

# package COMMAND...: whether the command works, after an attempt to install the package where that is allowed.
package() {
    name=$1
    shift
    "$@" >/dev/null 2>&1 && return 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "installing $name"
    apt-get -q update >/dev/null 2>&1
    apt-get -qy install "$name" >/dev/null 2>&1
    "$@" >/dev/null 2>&1
}

# Each fetches once; a marker that equals the list of versions says that it is complete.
fetch_python() {
    cmp -s "$here/requirements.txt" "$work/venv/fetched" && return 0
    package python3-venv python3 -c 'import ensurepip, venv' || return 1
    rm -rf "$work/venv"
    python3 -m venv "$work/venv" &&
        "$work/venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt" &&
        cp "$here/requirements.txt" "$work/venv/fetched"
}
fetch_npm() {
    cmp -s "$here/package-lock.json" "$work/node/fetched" && return 0
    package nodejs node --version && package npm npm --version || return 1
    rm -rf "$work/node"
    mkdir -p "$work/node" && cp "$here/package.json" "$here/package-lock.json" "$here/xo.mjs" "$work/node/" &&
        (cd "$work/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) &&
        cp "$here/package-lock.json" "$work/node/fetched"
}
# Of the large wheel only the collection is kept.
fetch_ansible() {
    [ "$(cat "$work/collections/fetched" 2>/dev/null)" = "$ansible_wheel" ] && return 0
    rm -rf "$work/collections" "$work/wheel"
    "$work/venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$work/wheel" "$ansible_wheel" &&
        "$work/venv/bin/python" - "$work" <<'PYTHON' &&
import glob, sys, zipfile
[wheel] = glob.glob(sys.argv[1] + "/wheel/ansible-*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.startswith("ansible_collections/community/general/"):
            archive.extract(name, sys.argv[1] + "/collections")
PYTHON
        rm -r "$work/wheel" && echo "$ansible_wheel" >"$work/collections/fetched"
}

# start_pool RELEASE [--https]: sets url, user, password, control.
start_pool() {
    log=$work/pool.log
    : >"$log" # the shell in the background would empty it too late
    "$program" simulate --release "$@" --vms 5 --control 0 >>"$log" 2>&1 &
    pid=$!
    tries=0
    until grep -q '^For a configuration' "$log"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 200 ] || ! kill -0 "$pid" 2>/dev/null; then
            cat "$log"
            return 1
        fi
        sleep 0.1
    done
    said() { awk -v word="$1" '$1 == word { print $2; exit }' "$log"; }
    url=$(said url) user=$(said user) password=$(said password) control=$(said control)
}

# client NAME COMMAND...: its own line when it passes, its whole output when not.
client() {
    name=$1
    shift
    if "$@" >"$work/client.log" 2>&1 && grep '^PASS ' "$work/client.log"; then
        return
    fi
    cat "$work/client.log"
    fail "$name"
}
ansible() {
    timeout 300 env ANSIBLE_HOME="$work/ansible" ANSIBLE_COLLECTIONS_PATH="$work/collections" ANSIBLE_LOCALHOST_WARNING=False \
        ANSIBLE_INVENTORY_UNPARSED_WARNING=False ANSIBLE_NOCOLOR=1 LC_ALL=C.UTF-8 \
        "$work/venv/bin/ansible-playbook" -i localhost, "$here/powerstate.yml" \
        -e "ansible_python_interpreter=$work/venv/bin/python python=$work/venv/bin/python" \
        -e "url=$url user=$user password=$password vm=vm-005" &&
        echo "PASS Ansible ($ansible_wheel, community.general): vm-005 looked at, flipped, powered on and off, restored"
}

[ -x "$program" ] || { echo "target/debug/bootflip is missing: run make build"; exit 1; }
python="" npm="" collection=""
if fetch_python; then python=1; else skip "XenAPI and Ansible: cannot have a venv with their packages"; fi
if fetch_npm; then npm=1; else skip "xen-api: cannot have Node.js, npm and the package"; fi
if [ -n "$python" ]; then
    if fetch_ansible; then collection=1; else skip "Ansible: cannot fetch community.general"; fi
fi
[ -n "$npm" ] && cp "$here/xo.mjs" "$work/node/"

for scene in "5.6" "6.0" "6.2" "7.2" "8.2" "8.2 --https" "8.3 --https"; do
    echo "-- release $scene"
    # shellcheck disable=SC2086 # the scene is a release and its options
    start_pool $scene || { fail "simulate --release $scene"; end_pool; continue; }
    before=$work/before.json
    python3 "$here/judge.py" "$control" >"$before" || fail "the control API"
    if [ -n "$python" ]; then
        client XenAPI timeout 300 "$work/venv/bin/python" "$here/xenapi_client.py" "$url" "$user" "$password" vm-001
    fi
    # xen-api reads snapshots in its events, which 5.6 does not send.
    if [ -n "$npm" ] && [ "$scene" != 5.6 ]; then
        client "xen-api xml-rpc" timeout 300 node "$work/node/xo.mjs" "$url" "$user" "$password" vm-002 xml-rpc
        case $scene in
        6.*) ;; # no JSON-RPC
        *)
            client "xen-api json-rpc" timeout 300 node "$work/node/xo.mjs" "$url" "$user" "$password" vm-003 json-rpc
            client "xen-api auto" timeout 300 node "$work/node/xo.mjs" "$url" "$user" "$password" vm-004 auto
            ;;
        esac
    fi
    case $scene in
    6.2 | "8.2 --https") [ -n "$collection" ] && client Ansible ansible ;;
    esac
    if [ -n "$python$npm" ]; then
        client judge timeout 300 python3 "$here/judge.py" "$control" "$before"
    fi
    end_pool
done
exit "$failed"
