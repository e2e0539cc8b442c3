#!/bin/sh
# schemathesis against a running server and the document that it serves: whatever the document allows must not be a
# server's error, every answer must be as the document says, and what it forbids must be refused. /events has no end and
# is left to tests/it/api/events.rs, who may do what to tests/it/api/matrix.rs.
#   tests/api/run.sh [EXAMPLES]      requests for each operation and phase; default 100
set -u
cd "$(dirname "$0")/../.." || exit 1
program=${BOOTFLIP:-$PWD/target/debug/bootflip}
work=$PWD/target/api
examples=${1:-100}
[ -x "$program" ] || { echo "$program is missing: run make build"; exit 1; }
if ! tests/api/prepare.sh; then
    echo "SKIP schemathesis: cannot have a venv with it"
    [ "${BOOTFLIP_NO_SKIP:-0}" = 1 ] && exit 1
    exit 0
fi

site=$(mktemp -d)
pool="" server=""
# shellcheck disable=SC2317 # the trap calls it
finish() {
    for pid in $server $pool; do
        kill "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    rm -rf "$site"
}
trap finish EXIT
trap 'exit 130' INT TERM

# wait_for COMMAND...: until it works, for a minute at most.
wait_for() {
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -gt 600 ] && return 1
        sleep 0.1
    done
}

"$program" simulate --release 8.2 --vms 5 >"$site/pool.log" 2>&1 &
pool=$!
wait_for grep -q '^For a configuration' "$site/pool.log" || { cat "$site/pool.log"; exit 1; }
said() { awk -v word="$1" '$1 == word { print $2; exit }' "$site/pool.log"; }
(umask 077 && said password >"$site/password")
cat >"$site/bootflip.toml" <<TOML
[server]
name = "schemathesis"
state_dir = "state"
[pool.main]
url = "$(said url)"
plain_http = true
user = "$(said user)"
password_file = "password"
[admin]
socket = "admin.sock"
listen = "127.0.0.1:0"
[profile.ext]
completion = "halt"
evidence = "none"
accept_weak = true
TOML
"$program" serve -c "$site/bootflip.toml" >"$site/serve.log" 2>&1 &
server=$!
token() { "$program" token add "$1" --scope "$2" -c "$site/bootflip.toml" 2>/dev/null; }
wait_for "$program" jobs -c "$site/bootflip.toml" || { cat "$site/serve.log"; exit 1; }
wait_for grep -q 'pool read' "$site/serve.log" || { cat "$site/serve.log"; exit 1; }
admin=$(token admin admin)
address=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["remote"]["address"])' "$site/state/bound.json")
# Something to look at and to operate.
"$program" deploy vm-001 vm-002 -p ext --reinstall --yes -c "$site/bootflip.toml" >/dev/null 2>&1

# run OPTION...: it learns the names of tokens, and must not revoke its own.
run() {
    "$work/venv/bin/schemathesis" --config-file tests/api/schemathesis.toml run docs/openapi.json --url "http://$address" \
        --header "Authorization: Bearer $admin" --checks all --exclude-checks ignored_auth --max-examples "$examples" \
        --seed 6 --request-timeout 30 --generation-database none --no-color "$@"
}
code=0
run --exclude-path /api/v1/events --exclude-operation-id revoke || code=1
run --include-operation-id revoke || code=1
kill -0 "$server" 2>/dev/null || { echo "the server has ended"; code=1; }
if grep -aE 'panicked|ERROR' "$site/serve.log"; then
    code=1
fi
cp "$site/serve.log" "$work/serve.log"
exit "$code"
