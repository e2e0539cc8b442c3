"""The pool's own word on what the clients did, from its control API.

    judge.py CONTROL_URL            prints every VM's boot settings, for later
    judge.py CONTROL_URL BEFORE     compares with what it printed then, and counts sessions and starts
"""

import json
import sys
import urllib.request

# Xapi writes these by itself: in platform when an HVM domain runs, in other_config when one ends (to 6.0).
OF_XAPI = ("device-model", "timeoffset", "last_shutdown_", "last_start_")
SETTINGS = [
    "power_state", "domain_type", "HVM_boot_policy", "HVM_boot_params", "PV_bootloader", "PV_args",
    "actions_after_shutdown", "actions_after_reboot", "actions_after_crash", "other_config", "platform", "claimed",
]  # fmt: skip


def get(path):
    with urllib.request.urlopen(sys.argv[1] + path, timeout=30) as answer:
        return json.load(answer)


def settings(vm):
    kept = {name: vm[name] for name in SETTINGS}
    for name in ("platform", "other_config"):
        kept[name] = {key: value for key, value in vm[name].items() if not key.startswith(OF_XAPI)}
    return kept


def main():
    vms = get("/vms")
    now = {vm["name"]: settings(vm) for vm in vms}
    if len(sys.argv) == 2:
        print(json.dumps(now))
        return
    with open(sys.argv[2]) as file:
        before = json.load(file)
    different = [name for name in before if before[name] != now.get(name)]
    assert not different and before.keys() == now.keys(), f"not as before: {different}"
    calls = get("/calls")["calls"]
    count = lambda method: sum(call["method"] == method and call["outcome"] == "ok" for call in calls)
    logins, logouts = count("session.login_with_password"), count("session.logout")
    assert logins == logouts > 0, f"{logins} logins, {logouts} logouts"
    starts = sum(vm["hvm_starts"] for vm in vms)
    assert starts > 0 and not any(vm["pv_starts"] for vm in vms)
    print(f"PASS pool: {len(calls)} calls, {logins} sessions, all ended; {starts} HVM domains, every VM as before")


main()
