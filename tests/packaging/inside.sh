#!/bin/bash
# Runs inside the Debian that run.sh boots. Says what it does; ends with 1 at the first thing that is not as it should be.
set -u
cd /test || exit 1
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
control=http://127.0.0.1:9001
config=/etc/bootflip/bootflip.toml

say() { printf '\n## %s\n' "$*"; }
fail() {
    echo "FAILED: $*"
    systemctl status --no-pager --full bootflip 2>&1 | head -20
    journalctl --no-pager -u bootflip -n 40 2>&1
    exit 1
}
is() { # WHAT ACTUAL WANTED
    [ "$2" = "$3" ] || fail "$1 is \"$2\" and should be \"$3\""
    echo "ok: $1: $2"
}
holds() { # WHAT COMMAND...
    local what=$1
    shift
    "$@" >/dev/null 2>&1 || fail "$what"
    echo "ok: $what"
}
until_is() { # WHAT WANTED COMMAND...
    local what=$1 wanted=$2 now=""
    shift 2
    for _ in $(seq 300); do
        now=$("$@" 2>/dev/null) && [ "$now" = "$wanted" ] && { echo "ok: $what: $now"; return; }
        sleep 0.2
    done
    fail "$what is \"$now\" and should become \"$wanted\""
}
shown() { systemctl show -p "$1" --value bootflip; }
state_of() { bootflip jobs list | awk -v vm="$1" '$2 == vm { print $5 }' | tail -n 1; }
starts_of() { curl -sS "$control/calls?vm=$1&method=VM.start" | grep -o '"method"' | wc -l; }

say "dpkg -i: first installation"
dpkg -i first.deb || fail "the package does not install"
is "account" "$(id -nG bootflip)" bootflip
is "login shell" "$(getent passwd bootflip | cut -d: -f7)" /usr/sbin/nologin
is "/etc/bootflip" "$(stat -c '%U:%G %a' /etc/bootflip)" "root:bootflip 750"
is "/etc/bootflip/credentials" "$(stat -c '%U:%G %a' /etc/bootflip/credentials)" "root:root 700"
is "conffiles" "$(dpkg-query -W -f '${Conffiles}' bootflip | awk '{ print $1 }' | xargs)" /etc/default/bootflip
is "service" "$(systemctl is-enabled bootflip)" enabled
is "without a configuration it is" "$(systemctl is-active bootflip)" inactive
holds "manual page" test -e /usr/share/man/man1/bootflip-jobs-show.1.gz
holds "bash completion" grep -q jobs /usr/share/bash-completion/completions/bootflip
holds "SBOM" grep -q rusqlite /usr/share/doc/bootflip/bootflip.cdx.json
systemd-analyze security --no-pager bootflip | tail -n 1

say "a configuration, and the service"
systemd-run --quiet --unit=simulator /test/simulator simulate --vms 4 --port 9000 --control 9001
until_is "simulated pool" 200 curl -s -o /dev/null -w '%{http_code}' "$control/vms"
mkdir -p /srv/tftp
umask 027
cat >$config <<TOML
[server]
name = "packaged"
[pool.main]
url = "http://127.0.0.1:9000"
plain_http = true
user = "root"
[tftp]
listen = ["127.0.0.1:69"]
root = "/srv/tftp"
[log]
format = "journald"
[deadlines]
poll = "500ms"
[profile.ext]
completion = "halt"
evidence = "none"
accept_weak = true
min_install = "200ms"
TOML
chgrp bootflip $config
umask 077
# The account of simulated pools.
printf 'simulated\n' >/etc/bootflip/credentials/main
umask 022
systemctl start bootflip || fail "the service does not start"
is "service" "$(systemctl is-active bootflip)" active
pid=$(shown MainPID)
is "process of" "$(ps -o user= -p "$pid" 2>/dev/null || stat -c %U "/proc/$pid")" bootflip
is "capabilities" "$(awk '/^CapEff/ { print $2 }' "/proc/$pid/status")" 0000000000002400
is "bounding set" "$(awk '/^CapBnd/ { print $2 }' "/proc/$pid/status")" 0000000000002400
is "no new privileges" "$(awk '/^NoNewPrivs/ { print $2 }' "/proc/$pid/status")" 1
is "admin socket" "$(stat -c '%U:%G %a' /run/bootflip/admin.sock)" "bootflip:bootflip 660"
is "state" "$(stat -c '%U:%G %a' /var/lib/bootflip)" "bootflip:bootflip 700"
until_is "status" "no job under way" shown StatusText
holds "the account bootflip cannot read pools' passwords" bash -c '! runuser -u bootflip -- cat /etc/bootflip/credentials/main'
warnings=$(journalctl --no-pager -q -u bootflip -p warning -o cat)
[ -z "$warnings" ] || fail "the start warns: $warnings"

say "dpkg -i: an upgrade while a job is under way"
bootflip deploy vm-001 --profile ext --yes || fail "no job"
until_is "job" Booting state_of vm-001
echo '# an operator was here' >>/etc/default/bootflip
dpkg -i second.deb || fail "the upgrade fails"
is "version" "$(dpkg-query -W -f '${Version}' bootflip | sed 's/.*-//')" 2
is "service" "$(systemctl is-active bootflip)" active
[ "$(shown MainPID)" != "$pid" ] || fail "the service was not restarted"
pid=$(shown MainPID)
is "changed conffile" "$(tail -n 1 /etc/default/bootflip)" '# an operator was here'
is "job after the upgrade" "$(state_of vm-001)" Booting
until_is "status" "1 job under way" shown StatusText
# The start itself may have been left to the new server.
until_is "guest, told to be installed" '{"done":true}' curl -sS "$control/guest" -d '{"vm": "vm-001", "act": {"installed": true}}'
is "guest, told to switch off" "$(curl -sS "$control/guest" -d '{"vm": "vm-001", "act": "power-off"}')" '{"done":true}'
until_is "job" Succeeded state_of vm-001
is "starts (one HVM, one PV)" "$(starts_of vm-001)" 2
job=$(bootflip jobs list | awk '$2 == "vm-001" { print $1 }')
until_is "the journal knows the job's changes by field" 6 sh -c \
    "journalctl --no-pager -q JOB=$job VM=vm-001 -o cat | grep -c 'job advanced' | awk '{ print (\$1 >= 6) ? 6 : \$1 }'"

say "reload"
cp $config /test/good.toml
sed -i 's/min_install = "200ms"/min_install = "300ms"/' $config
systemctl reload bootflip || fail "no reload"
is "reload takes over" "$(bootflip reload --plan 2>&1)" "nothing differs"
echo 'nonsense = 1' >>$config
systemctl reload bootflip && fail "a mistake is taken over"
is "service" "$(systemctl is-active bootflip)" active
is "main process" "$(shown MainPID)" "$pid"
cp /test/good.toml $config

say "backup"
bootflip store backup /test/copy.db || fail "no backup"
bootflip store check /test/copy.db || fail "the copy is not whole"

say "a server that hangs"
mkdir -p /etc/systemd/system/bootflip.service.d
printf '[Service]\nWatchdogSec=3s\n' >/etc/systemd/system/bootflip.service.d/test.conf
systemctl daemon-reload
systemctl restart bootflip
pid=$(shown MainPID)
kill -STOP "$pid"
until_is "restarts by the watchdog" 1 shown NRestarts
until_is "service" active systemctl is-active bootflip
[ "$(shown MainPID)" != "$pid" ] || fail "the hung process is still there"

say "a configuration with a mistake"
cp $config /test/good.toml
echo 'nonsense = 1' >>$config
systemctl restart bootflip && fail "it starts with a mistake"
is "exit code" "$(shown ExecMainStatus)" 2
cp /test/good.toml $config
systemctl reset-failed bootflip
systemctl start bootflip || fail "it does not start again"

say "dpkg -r: removal while a job is under way"
bootflip deploy vm-002 --profile ext --yes || fail "no job"
until_is "job" Booting state_of vm-002
dpkg -r bootflip || fail "it cannot be removed"
is "service" "$(systemctl is-active bootflip)" inactive
holds "configuration stays" test -e $config
holds "database stays" test -e /var/lib/bootflip/bootflip.db

say "dpkg -i: it comes back, and the job goes on"
dpkg -i second.deb || fail "it does not install again"
systemctl start bootflip || fail "it does not start"
is "job" "$(state_of vm-002)" Booting
bootflip jobs cancel vm-002 || fail "no cancel"
until_is "job" Cancelled state_of vm-002

say "dpkg -P: purge"
dpkg -P bootflip || fail "it cannot be purged"
for path in /etc/bootflip /var/lib/bootflip /run/bootflip /etc/default/bootflip /usr/bin/bootflip /etc/systemd/system/bootflip.service.d; do
    [ ! -e $path ] || fail "$path is left"
done
getent passwd bootflip && fail "the account is left"
getent group bootflip && fail "the group is left"
left=$(dpkg-query -W -f '${Status}' bootflip 2>/dev/null)
[ -z "$left" ] || is "package" "$left" "unknown ok not-installed"
systemctl is-enabled bootflip 2>/dev/null && fail "the unit is left"
say "all as it should be"
