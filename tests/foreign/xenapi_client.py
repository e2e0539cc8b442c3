"""The official XenAPI package against the simulated pool: log in, list, flip, start, hear of it, restore, log out.

    xenapi_client.py URL USER PASSWORD VM          the whole cycle
    xenapi_client.py URL USER PASSWORD VM flip     only the flip; what was there stays in the claim
    xenapi_client.py URL USER PASSWORD VM restore  puts back what the claim says
"""

import json
import sys
from importlib.metadata import version

import XenAPI

CLAIM = "bootflip:claim"
# Xapi writes these by itself when an HVM domain runs.
OF_XAPI = {"device-model", "timeoffset"}
# How long one event.from waits, in seconds; a float on the wire.
WAIT = 5.1


def fields(record):
    """The boot settings that the flip touches, as far as the release has them."""
    names = ["HVM_boot_policy", "HVM_boot_params", "domain_type", "PV_bootloader", "actions_after_reboot"]
    return {name: record[name] for name in names if name in record}


def flip(api, vm):
    saved = fields(api.VM.get_record(vm))
    api.VM.add_to_other_config(vm, CLAIM, json.dumps(saved))
    api.VM.set_actions_after_reboot(vm, "destroy")
    api.VM.set_HVM_boot_params(vm, {**saved["HVM_boot_params"], "order": "n"})
    if "domain_type" in saved:
        api.VM.set_domain_type(vm, "hvm")
    else:
        api.VM.set_HVM_boot_policy(vm, "BIOS order")
    now = api.VM.get_record(vm)
    assert now["HVM_boot_policy"] == "BIOS order", now
    assert now["HVM_boot_params"]["order"] == "n", now


def restore(api, vm):
    saved = json.loads(api.VM.get_other_config(vm)[CLAIM])
    if "domain_type" in saved:
        api.VM.set_domain_type(vm, saved["domain_type"])
    else:
        api.VM.set_HVM_boot_policy(vm, saved["HVM_boot_policy"])
    api.VM.set_HVM_boot_params(vm, saved["HVM_boot_params"])
    api.VM.set_actions_after_reboot(vm, saved["actions_after_reboot"])
    api.VM.remove_from_other_config(vm, CLAIM)
    assert fields(api.VM.get_record(vm)) == saved


class Events:
    """The pool's events: event.from, or event.next where that is all there is."""

    def __init__(self, api):
        self.api, self.token = api, ""
        try:
            self.read()
            self.kind = "event.from"
        except XenAPI.Failure as failure:
            assert failure.details[0] == "MESSAGE_METHOD_UNKNOWN", failure
            self.kind = "event.next"
            api.event.register(["vm", "task"])

    def read(self):
        batch = getattr(self.api.event, "from")(["VM", "task"], self.token, WAIT)
        assert {"events", "token", "valid_ref_counts"} <= batch.keys(), batch.keys()
        self.token = batch["token"]
        return batch["events"]

    def until(self, cls, ref, reached):
        """Waits for an event about this object after which `reached(record)` holds."""
        for _ in range(20):
            events = self.read() if self.kind == "event.from" else self.api.event.next()
            for event in events:
                if event["class"] != cls or event["ref"] != ref or event["operation"] == "del":
                    continue
                # XenServer 5.6 sends no snapshots.
                record = event.get("snapshot") or getattr(self.api, "VM" if cls == "vm" else cls).get_record(ref)
                if reached(record):
                    return record
        raise AssertionError(f"no event of {cls} {ref} came in time")


def refused(call, *words):
    try:
        call()
    except XenAPI.Failure as failure:
        assert tuple(failure.details[: len(words)]) == words, failure.details
        return
    raise AssertionError(f"not refused with {words}")


def cycle(session, name):
    api = session.xenapi
    (pool,) = api.pool.get_all()
    assert api.session.get_this_host(session.handle) == api.pool.get_master(pool)
    records = api.VM.get_all_records()
    guests = [r for r in records.values() if not (r["is_a_template"] or r["is_control_domain"])]
    (vm,) = api.VM.get_by_name_label(name)
    assert records[vm]["power_state"] == "Halted"
    assert api.VM.get_by_uuid(records[vm]["uuid"]) == vm
    assert int(records[vm]["memory_static_max"]) > 0
    refused(lambda: api.VM.get_by_uuid("nobody"), "UUID_INVALID", "VM", "nobody")

    events = Events(api)
    flip(api, vm)
    refused(lambda: api.VM.add_to_other_config(vm, CLAIM, "{}"), "MAP_DUPLICATE_KEY", "VM")
    task = api.Async.VM.start(vm, False, False)
    running = events.until("vm", vm, lambda record: record["power_state"] == "Running")
    status = api.task.get_status(task)
    assert status in ("success", "pending"), status
    metrics = api.VM_metrics.get_record(running["metrics"])
    if "current_domain_type" in metrics:
        assert metrics["current_domain_type"] == "hvm", metrics
    assert running["HVM_boot_policy"] == "BIOS order"
    assert api.host.get_record(api.VM.get_resident_on(vm))["enabled"] is True
    refused(lambda: api.VM.start(vm, False, False), "VM_BAD_POWER_STATE", vm, "halted", "running")
    api.VM.hard_shutdown(vm)
    events.until("vm", vm, lambda record: record["power_state"] == "Halted")
    restore(api, vm)
    changed = {k for k, v in api.VM.get_record(vm)["platform"].items() if records[vm]["platform"].get(k) != v}
    assert changed <= OF_XAPI, changed
    return len(guests), events.kind


def main():
    url, user, password, name, *only = sys.argv[1:]
    session = XenAPI.Session(url, ignore_ssl=url.startswith("https:"))
    session.xenapi.login_with_password(user, password)
    api = session.xenapi
    if only == ["flip"]:
        flip(api, api.VM.get_by_name_label(name)[0])
    elif only == ["restore"]:
        restore(api, api.VM.get_by_name_label(name)[0])
    else:
        guests, kind = cycle(session, name)
        handle = session.handle
    session.xenapi.session.logout()
    if not only:
        # The package would log in again by itself; without it, the session's end shows.
        answer = XenAPI.Session(url, ignore_ssl=url.startswith("https:")).VM.get_all(handle)
        assert answer == {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", handle]}, answer
        print(f"PASS XenAPI (Python) {version('XenAPI')}: {guests} VMs, {kind}, {name} flipped, started, restored")


main()
