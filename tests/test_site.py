"""The built pages, in headless Chromium, as a reader meets them: no network, wide and narrow, light and dark."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import yaml
from conftest import ROOT
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from ts_helpers.book.claims import read_claims
from ts_helpers.book.run import Job, find

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
FILES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
PAGES = [f"{file.removesuffix('.ipynb')}.html" for file in FILES]
SLIDERS = [f"notebooks/{name}.html" for name in find([]) if "figures.slider(" in Job(name).source.read_text()]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
READY = """
const done = arguments[0];
(async () => {
  while (document.readyState !== "complete") await new Promise(r => setTimeout(r, 50));
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const views = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length;
  while (document.querySelectorAll("[role=slider]").length < views) await new Promise(r => setTimeout(r, 50));
  setTimeout(done, 300);
})();
"""


OPENED = """
const still = document.createElement("style");
still.textContent = "* { transition: none !important; animation: none !important; }";
document.head.append(still);
document.querySelectorAll("article details").forEach(d => { d.open = true; });
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # whatever asks for the network fails
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


def visit(browser, url, width=1400, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(url)
    browser.execute_async_script(READY)


def asked_for(browser):
    """URLs the page has requested since `visit`."""
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("page", [*PAGES, "search.html", "genindex.html"])
@pytest.mark.parametrize("way", ["http", "file"])
def test_page_needs_no_network_and_logs_no_error(browser, address, site, page, way):
    visit(browser, address + page if way == "http" else (site / page).as_uri())
    errors = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    outside = [
        url for url in asked_for(browser)
        if urlsplit(url).scheme not in ("data", "blob", "chrome", "file") and not url.startswith(address)
    ]  # fmt: skip
    assert errors == []
    assert outside == []
    if way == "http":
        status = "return performance.getEntriesByType('resource').filter(e => e.responseStatus >= 400).map(e => e.name)"
        assert browser.execute_script(status) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_image_has_a_text_alternative(browser, address, page):
    visit(browser, address + page)
    alts = browser.execute_script("return [...document.images].map(i => i.alt)")
    assert all(alt.strip() and not alt.endswith((".png", ".svg")) for alt in alts)
    assert len(alts) >= (2 if page.startswith("notebooks/") else 0)


@pytest.mark.parametrize("page", PAGES)
def test_page_does_not_scroll_sideways_on_a_phone(browser, address, page):
    visit(browser, address + page, width=400)
    widths = browser.execute_script("const d = document.documentElement; return [d.scrollWidth, d.clientWidth]")
    assert widths[0] <= widths[1]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")])
def test_page_is_accessible(browser, address, page, width, scheme):
    visit(browser, address + page, width, scheme)
    dark = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c < 60)"
    assert browser.execute_script(dark) == (scheme == "dark")
    browser.execute_script(OPENED)
    browser.execute_script("window.define = undefined;" + (ROOT / "_build" / "axe" / "axe.min.js").read_text())
    found = browser.execute_async_script(
        "const done = arguments[1]; axe.run(document, {runOnly: arguments[0]}).then(r => done(r.violations.map(v =>"
        " v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 120)).join(' | '))));",
        RULES,
    )
    assert found == []


@pytest.mark.parametrize("page", SLIDERS)
@pytest.mark.parametrize("way", ["http", "file"])
def test_slider_moves_by_keyboard_without_a_kernel(browser, address, site, page, way):
    visit(browser, address + page if way == "http" else (site / page).as_uri())
    handles = browser.find_elements(By.CSS_SELECTOR, "[role=slider]")
    assert handles
    for handle in handles:
        assert handle.get_attribute("aria-label")
        box = handle.find_element(By.XPATH, "ancestor::*[contains(@class, 'widget-vbox')][1]")
        before = box.find_element(By.TAG_NAME, "img").get_attribute("alt")
        handle.send_keys(Keys.ARROW_RIGHT)
        after = box.find_element(By.TAG_NAME, "img").get_attribute("alt")
        assert before != after
        handle.send_keys(Keys.ARROW_LEFT)
        assert box.find_element(By.TAG_NAME, "img").get_attribute("alt") == before


def claims_shown(browser):
    """Ids and verdicts of the claims whose rows are not hidden; those of quantities must be the same claims'."""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('article tbody tr')].filter(row => row.checkVisibility())"
        ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    claims = {row[0]: row[2] for row in rows if len(row) == 6}
    assert {row[0] for row in rows} == set(claims)
    return claims


@pytest.mark.parametrize("way", ["http", "file"])
def test_verdicts_are_filtered_by_keyboard_and_by_address(browser, address, site, way):
    page = "book/verdicts.html"
    url = address + page if way == "http" else (site / page).as_uri()
    visit(browser, url)
    everything = claims_shown(browser)
    assert set(everything) == set(read_claims())
    browser.find_element(By.NAME, "paper").send_keys("B")
    assert claims_shown(browser) == {name: word for name, word in everything.items() if name.startswith("B")}
    browser.find_element(By.NAME, "verdict").send_keys("inconclusive")
    both = claims_shown(browser)
    assert both == {n: word for n, word in everything.items() if n[0] == "B" and word.startswith("inconclusive")}
    assert both
    status = browser.find_element(By.CSS_SELECTOR, "#verdict-filters [aria-live=polite]")
    assert status.text == f"{len(both)} of {len(everything)} claims shown"
    assert browser.current_url == f"{url}#paper=B&verdict=inconclusive"
    visit(browser, "about:blank")
    visit(browser, f"{url}#paper=B&verdict=inconclusive")
    assert claims_shown(browser) == both
    browser.execute_script("location.hash = 'A2'")
    WebDriverWait(browser, 5).until(lambda _: claims_shown(browser) == everything)
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def test_verdicts_are_all_there_without_javascript(browser, site):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get((site / "book" / "verdicts.html").as_uri())
        rows = browser.find_elements(By.CSS_SELECTOR, "article tbody tr:not([hidden]):has(td:first-child span[id])")
        assert len(rows) == len(read_claims())
        assert browser.find_elements(By.CSS_SELECTOR, "#verdict-filters *") == []
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
