"""The dashboard in Chromium, driven by tests/it/browser.rs, which made the scene and says by the environment where it is.

Looks at every page at two widths and in both themes, with axe; attacks the pages by every way that a stranger has;
does what an operator does, by keyboard where that matters; measures; keeps screenshots. Ends with 1 when something is
wrong, and prints each thing that is.
"""

import json
import os
import pathlib
import re
import socket
import struct
import sys
import time
import urllib.request

from playwright.sync_api import sync_playwright

BASE = os.environ["DASHBOARD"]
SHOTS = pathlib.Path(os.environ["SCREENSHOTS"])
AXE = pathlib.Path(os.environ["AXE"]).read_text()
PAYLOADS = [
    "<img src=x onerror=\"window.pwned='{0}'\">",
    "</pre></td><script>window.pwned='{0}'</script>",
    "\"><svg onload=\"window.pwned='{0}'\">",
]
wrong = []


def check(holds, what):
    print(("ok    " if holds else "WRONG ") + what, flush=True)
    if not holds:
        wrong.append(what)


def fetch(url, body=None, headers=None):
    request = urllib.request.Request(url, data=body, headers=headers or {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


# -- attacks ---------------------------------------------------------------------------------------------------------


def attack():
    """What a hostile guest can say: report bodies, syslog lines, TFTP names. VM names are in the scene already."""
    boot, mac = os.environ["BOOT"], os.environ["HOSTILE_MAC"]
    script = fetch(f"{boot}/b/{mac}")
    answer = fetch(re.search(r"bootflip\.answer=(\S+)", script)[1])
    report = re.search(r"REPORT_URL='?([^'\s]+)", answer)[1]
    for number, payload in enumerate(PAYLOADS):
        body = payload.format("report").encode()
        fetch(f"{report.rstrip('/')}/own-{number}", body, {"content-type": "text/plain"})
    log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host, port = os.environ["SYSLOG"].split(":")
    for payload in PAYLOADS:
        log.sendto(b"<11>evil: " + payload.format("syslog").encode(), (host, int(port)))
    tftp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for payload in PAYLOADS:
        name = payload.format("tftp").replace("/", "-").encode()
        tftp.sendto(struct.pack("!H", 1) + name + b"\0octet\0", ("127.0.0.1", int(os.environ["TFTP_PORT"])))
    time.sleep(2)


# -- pages -----------------------------------------------------------------------------------------------------------


class Watch:
    """A page whose errors are noted."""

    def __init__(self, context, name):
        self.page = context.new_page()
        self.name = name
        self.may_lose_stream = False
        self.page.on("pageerror", lambda error: wrong.append(f"{name}: script error {error}"))
        self.page.on("console", self.console)
        self.page.on("dialog", self.dialog)

    def console(self, message):
        # The server's own refusals are told by the browser too.
        if self.may_lose_stream and message.text == "[object Event]":
            return  # htmx tells of the stream's end
        if message.type in ("error", "warning") and "the server responded with a status of 4" not in message.text:
            wrong.append(f"{self.name}: console says {message.text}")
            print("WRONG", wrong[-1], flush=True)

    def dialog(self, dialog):
        wrong.append(f"{self.name}: a dialog opened: {dialog.message}")
        dialog.dismiss()


def log_in(context, token, name):
    watch = Watch(context, name)
    page = watch.page
    page.goto(BASE + "/")
    check("/login" in page.url, f"{name}: who is not logged in comes to the login page")
    page.fill("#token", "bft_wrong")
    page.press("#token", "Enter")
    page.wait_for_selector("[role=alert]:visible")
    page.fill("#token", token)
    page.click("button.main")
    page.wait_for_selector("h1:text('Fleet')")
    cookies = [cookie for cookie in context.cookies() if cookie["httpOnly"] and cookie["sameSite"] == "Strict"]
    check(len(cookies) == 1, f"{name}: the session cookie is HttpOnly and SameSite=Strict")
    return watch


def machine(page, name):
    """The address of a machine's page, by its name."""
    page.goto(f"{BASE}/?q={name}")
    link = page.locator("td.name a").filter(has_text=re.compile(f"^{name}$")).first
    return link.get_attribute("href")


def axe(page, name):
    # axe is put in by the driver, past the page's own policy; contexts with bypass_csp allow that.
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    for violation in found["violations"]:
        nodes = [node["target"] for node in violation["nodes"][:3]]
        print(f"      axe {violation['impact']}: {violation['id']} {nodes}", flush=True)
    check(not serious, f"{name}: axe has no serious findings ({len(found['violations'])} lesser)")


def narrow(page, name):
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    check(width[0] <= width[1], f"{name}: nothing to scroll sideways ({width[0]} of {width[1]} px)")


def shot(page, name, full=False):
    page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=full)


def every_page(context, watch, pages, suffix):
    page = watch.page
    for name, address in pages.items():
        page.goto(BASE + address)
        page.wait_for_load_state("load")
        page.wait_for_timeout(150)
        axe(page, f"{name} {suffix}")
        narrow(page, f"{name} {suffix}")
        check(page.evaluate("window.pwned") is None, f"{name} {suffix}: no payload ran")


def harmless(browser, token, pages):
    """With the policy on and off: escaping alone must do, and the policy must have nothing to stop."""
    for bypass in (False, True):
        context = browser.new_context(bypass_csp=bypass)
        context.add_init_script(
            "window.stopped = []; document.addEventListener('securitypolicyviolation', e => window.stopped.push(e.violatedDirective + ' ' + e.blockedURI));"
        )
        watch = log_in(context, token, f"harmless (policy {'off' if bypass else 'on'})")
        page = watch.page
        for name, address in pages.items():
            page.goto(BASE + address)
            page.wait_for_timeout(1500 if name in ("machine", "hostile machine", "hostile job") else 200)
            ran, stopped = page.evaluate("[window.pwned, window.stopped]")
            check(ran is None, f"{watch.name}: no payload ran on {name}")
            check(stopped == [], f"{watch.name}: the policy stopped nothing on {name} {stopped}")
        page.goto(BASE + pages["hostile machine"])
        text = page.inner_text("body")
        for kind in ("report", "syslog", "tftp"):
            check(f"window.pwned='{kind}'" in text, f"{watch.name}: the {kind} payload stands there as text")
        page.goto(BASE + "/?q=pwned")
        check(page.locator("tbody tr").count() == 4, f"{watch.name}: hostile names stand there as text")
        context.close()


# -- what people do --------------------------------------------------------------------------------------------------


def operate(watch):
    page = watch.page
    page.goto(BASE + "/?q=idle-0001")
    page.keyboard.press("Tab")
    check(page.evaluate("document.activeElement.className") == "skip", "keyboard: the first stop skips to the content")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    check(page.evaluate("document.activeElement.id") == "q", "keyboard: / goes to the filter")
    page.locator("input[name=vm]").first.focus()
    page.keyboard.press("Space")
    check(page.inner_text("#chosen") == "1 VM selected", "keyboard: space selects, and the bar says how many")
    page.select_option("#bulk select[name=profile]", "mini")
    page.check("#bulk input[name=reinstall]")
    page.locator("#bulk button.main").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:text('Plan')")
    check("Nothing has been changed" in page.inner_text("main"), "the plan says that nothing has been changed")
    check("ready" in page.inner_text("table"), "the plan says that the VM is ready")
    shot(page, "plan")
    page.click("form[action='/orders'] button.main")
    page.wait_for_selector("h1:text('ordered')")
    page.click("td.why a:text('its job')")
    page.wait_for_selector("h1:text('Job of')")
    page.click("summary:text('Cancel')")
    page.click("button:text('Cancel the job')")
    # The page is told by events alone.
    page.wait_for_selector("#live .badge:text('Cancelled')", timeout=60_000)
    check(True, "a job is ordered by its plan, and cancelled; the page follows by itself")


def look_on(browser, token):
    context = browser.new_context()
    watch = log_in(context, token, "reader")
    page = watch.page
    check(page.locator("input[name=vm]").count() == 0, "reader: there is nothing to select")
    status = page.evaluate("fetch('/plan', {method: 'POST', body: new URLSearchParams({vm: 'x'})}).then(a => a.status)")
    check(status == 403, f"reader: a plan is refused ({status})")
    other = Watch(context, "reader's other page")
    other.page.goto(BASE + "/")
    watch.may_lose_stream = other.may_lose_stream = True
    page.click("button:text('Log out')")
    page.wait_for_selector("#token")
    other.page.wait_for_selector("#token")
    check("/login" in other.page.url, "reader: another open page of the session ends with it")
    page.goto(BASE + "/")
    check("/login" in page.url, "reader: logged out")
    context.close()


def reads_well(watch, addresses):
    """What a person with a stuck machine must find at once."""
    page = watch.page
    page.goto(BASE + addresses["silent"])
    text = page.inner_text("#live")
    for words in ("Booting", "Next step:", "no DHCP packet", "PXE-E51"):
        check(words in text, f"the silent machine's page says \"{words}\"")
    page.goto(BASE + addresses["fails"])
    text = page.inner_text("#live")
    for words in ("Failed", "installer-failed", "Next step:", "Reported \"failed\""):
        check(words in text, f"the failed machine's page says \"{words}\"")
    page.goto(BASE + addresses["changed"])
    page.click("a:text('the whole job')")
    text = page.inner_text("main")
    for words in ("NeedsOperator", "settings-changed", "Restore: write the saved settings", "domain_type", "xe vm-param-set"):
        check(words in text, f"the job that waits says \"{words}\"")
    shot(page, "job-waits", full=True)
    page.goto(BASE + "/?q=run-2")
    text = page.inner_text("table")
    check("left" in text or "any moment now" in text, "a running machine has a time left, learnt from those that went well")
    page.goto(BASE + "/")
    first = page.inner_text("tbody tr >> nth=0")
    check("changed" in first and "NeedsOperator" in first, "who needs somebody stands first")
    with page.expect_download() as download:
        page.goto(BASE + addresses["silent"])
        page.click("a:text('Download as JSON')")
    log = json.loads(pathlib.Path(download.value.path()).read_text())
    check(log["findings"][0]["kind"] == "no-dhcp", "the download has the finding")


# -- figures ---------------------------------------------------------------------------------------------------------


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def paint(browser, cookies, rows):
    """First paint in a fresh context: an empty cache."""
    figures = []
    for _ in range(5):
        context = browser.new_context()
        context.add_cookies(cookies)
        page = context.new_page()
        page.goto(f"{BASE}/?rows={rows}")
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        figures.append(page.evaluate("""() => {
            const [page] = performance.getEntriesByType('navigation');
            return {paint: performance.getEntriesByName('first-contentful-paint')[0].startTime, first_byte: page.responseStart,
                    last_byte: page.responseEnd, loaded: page.loadEventEnd, bytes: page.transferSize,
                    rows: document.querySelectorAll('tbody tr').length};
        }"""))
        context.close()
    figures.sort(key=lambda figure: figure["paint"])
    middle = figures[2]
    print(f"      first paint with {middle['rows']} rows: {json.dumps({k: round(v) for k, v in middle.items()})}", flush=True)
    return middle


def updates(browser, cookies, rows, seconds=30):
    """What open pages cost while some fifty jobs run: messages, bytes, time of the browser and of the server."""
    pid = os.environ["SERVER_PID"]
    begun = cpu(pid)
    time.sleep(seconds)
    alone = cpu(pid) - begun
    context = browser.new_context()
    context.add_cookies(cookies)
    page = context.new_page()
    page.goto(f"{BASE}/?rows={rows}")
    page.evaluate("""() => {
        window.told = {messages: 0, bytes: 0, milliseconds: 0};
        let begun = 0;
        document.addEventListener('htmx:sseBeforeMessage', e => { begun = performance.now(); });
        document.addEventListener('htmx:sseMessage', e => {
            window.told.messages += 1; window.told.bytes += e.detail.data.length;
            window.told.milliseconds += performance.now() - begun;
        });
    }""")
    client = context.new_cdp_session(page)
    client.send("Performance.enable")
    read = lambda: {m["name"]: m["value"] for m in client.send("Performance.getMetrics")["metrics"]}
    before, begun = read(), cpu(pid)
    page.wait_for_timeout(seconds * 1000)
    after, with_page = read(), cpu(pid) - begun
    told = page.evaluate("window.told")
    live = page.locator(".badge.live").count()
    figures = {
        "rows": rows, "seconds": seconds, "live jobs shown": live, **{k: round(v, 1) for k, v in told.items()},
        "browser task s": round(after["TaskDuration"] - before["TaskDuration"], 2),
        "browser script s": round(after["ScriptDuration"] - before["ScriptDuration"], 2),
        "browser layout s": round(after["LayoutDuration"] - before["LayoutDuration"], 2),
        "server cpu s without a page": round(alone, 2), "server cpu s with it": round(with_page, 2),
    }
    print(f"      updates: {json.dumps(figures)}", flush=True)
    check(told["messages"] > 0, "the open fleet was told of changes")
    context.close()
    return figures


def screenshots(browser, token, addresses):
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = context.new_page()
    page.goto(BASE + "/login")
    shot(page, "login")
    context.close()
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": 1360, "height": 900}, color_scheme=scheme)
        watch = log_in(context, token, f"screenshots {scheme}")
        page = watch.page
        end = "" if scheme == "light" else "-dark"
        for name in ("fleet", "machine", "job", "pool", "leases", "transfers"):
            page.goto(BASE + addresses[name])
            page.wait_for_timeout(400)
            shot(page, name + end)
        context.close()
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True)
    watch = log_in(context, token, "phone")
    for name, address in {"phone": "/", "phone-machine": addresses["machine"]}.items():
        watch.page.goto(BASE + address)
        watch.page.wait_for_timeout(400)
        shot(watch.page, name)
    context.close()


def main():
    SHOTS.mkdir(parents=True, exist_ok=True)
    attack()
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox of its own; the only pages are our own.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        print("      Chromium", browser.version, flush=True)
        context = browser.new_context(bypass_csp=True, viewport={"width": 1360, "height": 900})
        operator = log_in(context, os.environ["OPERATOR"], "operator")
        page = operator.page
        addresses = {"fleet": "/", "jobs": "/jobs", "pools": "/pools", "pool": "/pools/main", "leases": "/leases", "transfers": "/transfers"}
        for name in ("silent", "fails", "changed", "run-20"):
            addresses[name] = machine(page, name)
        addresses["machine"] = addresses["silent"]
        addresses["hostile machine"] = machine(page, "hostile")
        addresses["hostile job"] = "/jobs/" + os.environ["HOSTILE_JOB"]
        page.goto(BASE + addresses["fails"])
        addresses["job"] = page.locator("a:text('the whole job')").get_attribute("href")
        cookies = context.cookies()
        # The figures first: while the fifty are at their work.
        paint(browser, cookies, 100)
        paint(browser, cookies, 1000)
        updates(browser, cookies, 100)
        updates(browser, cookies, 1000)
        screenshots(browser, os.environ["OPERATOR"], addresses)
        reads_well(operator, addresses)
        every_page(context, operator, addresses, "wide")
        page.emulate_media(color_scheme="dark")
        every_page(context, operator, addresses, "dark")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 390, "height": 844})
        every_page(context, operator, addresses, "phone")
        page.set_viewport_size({"width": 1360, "height": 900})
        page.context.clear_cookies()
        page.goto(BASE + "/login")
        axe(page, "login")
        harmless(browser, os.environ["OPERATOR"], addresses)
        look_on(browser, os.environ["READER"])
        context = browser.new_context()
        operate(log_in(context, os.environ["OPERATOR"], "operating"))
        browser.close()
    print(f"{len(wrong)} wrong", flush=True)
    for what in wrong:
        print("WRONG", what, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
