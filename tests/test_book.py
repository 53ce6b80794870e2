"""Chapters as they run, at smoke scale, and the built pages in headless Chromium; the Makefile says which are when."""

import asyncio
import gzip
import json
import re
import shutil
import threading
from contextlib import contextmanager
from html import unescape
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from conftest import BOUNDS, CANARY, ROOT, execute, run
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, StaticFileHandler

from ts_helpers.book.claims import read_claims
from ts_helpers.book.paths import RECORD
from ts_helpers.book.records import load
from ts_helpers.book.run import Job, chapters

pytestmark = pytest.mark.book
CHAPTERS = chapters()
QUICK = [CANARY, "quax2020/hierarchy", "tallec2018/adding"]  # an online learner, the engine, a stack of networks
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
PAGES = [*(f"{file.removesuffix('.ipynb')}.html" for file in PAGES), "search.html", "genindex.html"]
SLIDERS = [f"notebooks/{name}.html" for name in CHAPTERS if "figures.slider(" in Job(name).source.read_text()]
PLAIN = ["book/intro.html", "book/verdicts.html", "search.html"]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LOOKS = [(400, "light"), (1400, "dark"), (400, "dark"), (1400, "light")]


def with_canary(names):
    """Parameters, of which the canary's is marked."""
    own = (CANARY, f"notebooks/{CANARY}.html")
    return [pytest.param(name, marks=[pytest.mark.canary] if name in own else []) for name in names]


@pytest.mark.parametrize("name", with_canary(CHAPTERS))
def test_chapter_runs_shows_no_warning_and_leaves_a_record(runs, name):
    record = load(runs / name)
    assert record.provenance["scale"] == "smoke"
    assert set(record.findings) == {claim.id for claim in read_claims().values() if claim.chapter == name}
    assert {finding.verdict for finding in record.findings.values()} <= {"inconclusive"}
    notebook = nbformat.read(runs / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    shown = [o.text for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert not [text for text in shown if "Warning" in text]


def test_papermill_alone_runs_a_chapter(runs, tmp_path):
    words = ["papermill", str(runs / f"{CANARY}.ipynb"), str(tmp_path / "by-hand.ipynb"), "-p", "scale", "smoke"]
    done = run(ROOT, *words, "-p", "n_runs", "3", TS_RECORDS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / CANARY).results.sizes["run"] == 3


@pytest.mark.parametrize("names", [QUICK, pytest.param(CHAPTERS, marks=pytest.mark.weekly)], ids=["quick", "all"])
def test_same_seed_gives_the_same_records_bit_for_bit_and_another_seed_does_not(runs, tmp_path, names):
    for seed in (0, 1):
        execute(names, tmp_path / str(seed), seed)
    for name in names:
        first, again, other = (folder / name for folder in (runs, tmp_path / "0", tmp_path / "1"))
        for file in RECORD[:2]:
            assert (first / file).read_bytes() == (again / file).read_bytes(), name
        assert (first / "results.nc").read_bytes() != (other / "results.nc").read_bytes(), name


READY = """
const done = arguments[0];
(async () => {
  while (document.readyState !== "complete") await new Promise(r => setTimeout(r, 50));
  setTimeout(done, 300);
})();
"""
# times in s until the page was there; what moved meanwhile; then all that a reader who scrolls to its end is sent
MEASURED = """
const done = arguments[0], sum = (list, name) => list.reduce((total, entry) => total + entry[name], 0);
const seen = type => new Promise(answer => {
  new PerformanceObserver(list => answer(list.getEntries())).observe({ type, buffered: true });
  setTimeout(answer, 200, []);
});
(async () => {
  const paint = (await seen("largest-contentful-paint")).at(-1)?.startTime / 1000, shifts = await seen("layout-shift");
  const [page] = performance.getEntriesByType("navigation");
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
  const files = [page, ...performance.getEntriesByType("resource")];
  done({ kB: sum(files, "encodedBodySize") / 1000, requests: files.length, paint, load: page.loadEventEnd / 1000,
         shift: sum(shifts, "value") });
})();
"""
# of paragraphs, not in tables; a line is where text ends at one height, but for formulas and code
READ = """
let words = 0, sentences = 0, long = 0;
for (const p of document.querySelectorAll("article p")) {
  if (p.closest("table")) continue;
  const heights = new Set(), range = document.createRange(), nodes = document.createTreeWalker(p, NodeFilter.SHOW_TEXT);
  let text = "";
  while (nodes.nextNode()) {
    const around = nodes.currentNode.parentElement;
    if (around.closest(".math, .headerlink")) continue;
    text += nodes.currentNode.data;
    range.selectNodeContents(nodes.currentNode);
    if (!around.closest("code")) for (const box of range.getClientRects()) heights.add(Math.round(box.bottom));
  }
  words += text.trim().split(/\\s+/).length + p.querySelectorAll(".math").length;
  sentences += text.trim().split(/[.!?][)"”]?\\s+(?=[("“]?\\p{Lu})/u).length;
  long += heights.size > 6;
}
return { words, minutes: words / 200, "words/sentence": words / (sentences || 1), "long paragraphs": long };
"""
OPENED = """
const still = document.createElement("style");
still.textContent = "* { transition: none !important; animation: none !important; }";
document.head.append(still);
document.querySelectorAll("article details").forEach(d => { d.open = true; });
scrollTo(0, 0);
window.define = undefined;
"""
AXE = """
const done = arguments[1];
axe.run(document, {runOnly: arguments[0], resultTypes: ["violations"]}).then(r => done(r.violations.map(v =>
  v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0, 120)).join(' | '))));
"""
UNREAD = "return [...document.querySelectorAll('.math')].filter(m => !m.querySelector('math')).map(m => m.textContent)"
UNSAID = """
const said = image => image.alt.trim() && !/\\.(png|svg)$/.test(image.alt)
  && (!image.closest(".cell, figure") || image.closest("figure")?.querySelector("figcaption")?.innerText.trim());
return [...document.images].filter(image => !said(image)).map(image => image.outerHTML);
"""
FAILED = "return performance.getEntriesByType('resource').filter(e => e.responseStatus >= 400).map(e => e.name)"
WIDTHS = "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
DARK = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c < 60)"


@pytest.fixture(scope="module")
def address(site):
    """Where the pages are served, text gzipped as on the web."""
    files = [("/(.*)", StaticFileHandler, {"path": site})]
    server = Application(files, compress_response=True, log_function=lambda _: None)
    sockets = bind_sockets(0, "127.0.0.1")

    async def serve():
        HTTPServer(server).add_sockets(sockets)
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    return f"http://127.0.0.1:{sockets[0].getsockname()[1]}/"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    for flag in f"{flags} --disable-component-update --disable-sync --disable-dev-shm-usage".split():
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")  # what asks for the network fails
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
    driver.set_script_timeout(60)
    driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    yield driver
    driver.quit()


def look(browser, width, scheme):
    """Take another width and scheme; the theme waits for 300 ms until it believes that a width will stay."""
    before = browser.execute_script("return innerWidth")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_async_script("setTimeout(arguments[1], arguments[0])", 50 if width == before else 500)


@contextmanager
def phone(browser):
    """A slow line and a slow processor, those of Lighthouse."""
    browser.set_network_conditions(latency=150, throughput=1_600_000 / 8)
    browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 4})
    yield
    browser.execute_cdp_cmd("Emulation.setCPUThrottlingRate", {"rate": 1})
    browser.delete_network_conditions()


def visit(browser, url):
    look(browser, *LOOKS[0])
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(url)
    browser.execute_async_script(READY)


def assert_no_error_and_no_network(browser, address):
    """Of all that the page did since `visit`, or since the last call."""
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    ours = ("data", "blob", "chrome", "file")
    assert [url for url in asked if urlsplit(url).scheme not in ours and not url.startswith(address)] == []
    assert [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []


def shown(slider):
    """Size, value as seen and as read out, and text of the one figure shown."""
    output, handle = (slider.find_element(By.TAG_NAME, name) for name in ("output", "input"))
    (frame,) = (f for f in slider.find_elements(By.CSS_SELECTOR, "[role=img]") if f.is_displayed())
    assert output.text == handle.get_attribute("aria-valuetext") == frame.get_attribute("data-value")
    return slider.size, output.text, frame.get_attribute("aria-label")


def assert_sliders_move_by_keyboard(browser):
    sliders = browser.find_elements(By.CSS_SELECTOR, ".slider")
    assert sliders
    start = [shown(slider) for slider in sliders]
    for i, slider in enumerate(sliders):
        assert len(gzip.compress(slider.get_attribute("outerHTML").encode())) < 75_000
        handle = slider.find_element(By.CSS_SELECTOR, "input[type=range]")
        assert handle.accessible_name
        at_end = handle.get_attribute("value") == handle.get_attribute("max")
        there, back = (Keys.ARROW_LEFT, Keys.ARROW_RIGHT) if at_end else (Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
        handle.send_keys(there)
        moved = shown(slider)
        assert [a == b for a, b in zip(moved, start[i], strict=True)] == [True, False, False]  # the page stays in place
        assert [shown(each) for each in sliders] == [*start[:i], moved, *start[i + 1 :]]
        handle.send_keys(back)
        assert shown(slider) == start[i]


@pytest.mark.parametrize("page", with_canary(PAGES))
def test_page_is_light_works_offline_on_any_screen_and_for_every_reader(browser, address, page, record_property):
    with phone(browser):
        visit(browser, address + page)
        row = {"page": page, **browser.execute_async_script(MEASURED)}
    assert_no_error_and_no_network(browser, address)
    assert browser.execute_script(FAILED) == []
    assert browser.execute_script(UNREAD) == []
    assert browser.execute_script(UNSAID) == []
    if page.startswith("notebooks/"):
        assert browser.execute_script("return document.images.length") >= 2
    if page in SLIDERS:
        assert_sliders_move_by_keyboard(browser)
    browser.execute_script(OPENED + (ROOT / "_build" / "axe" / "axe.min.js").read_text())
    wrong = []
    for width, scheme in LOOKS if page in PLAIN else LOOKS[:2]:  # what all pages share is seen in each on those
        look(browser, width, scheme)
        wanted = scheme == "dark"  # the theme turns when it is told, which may take a busy machine a while
        WebDriverWait(browser, 10).until(lambda b, wanted=wanted: b.execute_script(DARK) == wanted)
        if width == 400:
            wide, there = browser.execute_script(WIDTHS)
            assert wide <= there, "scrolls sideways on a phone"
        wrong += [(width, scheme, each) for each in browser.execute_async_script(AXE, RULES)]
        if width == 1400:
            row |= browser.execute_script(READ)
    assert_no_error_and_no_network(browser, address)
    row["axe"] = len(wrong)
    record_property("page", row)
    assert wrong == []
    assert {name: row[name] for name, most in BOUNDS.items() if row[name] > most} == {}


def test_every_link_within_the_book_leads_somewhere(site):
    texts = {file: file.read_text() for file in site.rglob("*.html")}
    ids = {file: set(re.findall(r' id="([^"]+)"', text)) for file, text in texts.items()}
    broken = []
    for file, text in texts.items():
        for link in map(unescape, re.findall(r'<a [^>]*href="([^":]+)"', text)):
            path, _, anchor = unquote(link).partition("#")
            to = (file.parent / path).resolve() if path else file
            if not to.is_file() or (anchor and anchor not in ids.get(to, [])):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.parametrize("page", with_canary([*SLIDERS, *PLAIN]))
def test_page_works_from_a_file(browser, address, site, page):
    visit(browser, (site / page).as_uri())
    if page in SLIDERS:
        assert_sliders_move_by_keyboard(browser)
    assert_no_error_and_no_network(browser, address)


@pytest.mark.parametrize("way", ["http", "file"])
def test_search_finds_claims_symbols_and_functions(browser, address, site, way):
    of = {"C3": "claim, in Verdicts", "alpha_s": "symbol, in Notation", "unroll": "Python function, in API"}
    for words, what in of.items():
        visit(browser, f"{address if way == 'http' else site.as_uri() + '/'}search.html?q={words}")
        WebDriverWait(browser, 10).until(lambda b, what=what: what in b.find_element(By.ID, "search-results").text)


def claims_shown(browser):
    """Verdicts by id of the claims whose rows are not hidden; rows of quantities must be the same claims'."""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('article tbody tr')].filter(row => row.checkVisibility())"
        ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    rows = [row for row in rows if len(row) > 3]  # not of the table of what changed, which is no claim's
    claims = {row[0]: row[2] for row in rows if len(row) == 6}
    assert {row[0] for row in rows} == set(claims)
    return claims


@pytest.mark.parametrize("way", ["http", "file"])
def test_verdicts_are_filtered_by_keyboard_and_by_address(browser, address, site, way):
    url = f"{address if way == 'http' else site.as_uri() + '/'}book/verdicts.html"
    visit(browser, url)
    everything = claims_shown(browser)
    assert set(everything) == set(read_claims())
    browser.find_element(By.NAME, "paper").send_keys("B")
    assert claims_shown(browser) == {name: word for name, word in everything.items() if name[0] == "B"}
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
    assert_no_error_and_no_network(browser, address)


@pytest.fixture
def without_javascript(browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    yield
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_verdicts_are_all_there_without_javascript(browser, site, without_javascript):
    browser.get((site / "book" / "verdicts.html").as_uri())
    rows = browser.find_elements(By.CSS_SELECTOR, "article tbody tr:not([hidden]):has(td:first-child span[id])")
    assert len(rows) == len(read_claims())
    assert browser.find_elements(By.CSS_SELECTOR, "#verdict-filters *") == []


@pytest.mark.canary
def test_slider_shows_its_start_without_javascript(browser, site, without_javascript):
    browser.get((site / "notebooks" / f"{CANARY}.html").as_uri())
    assert shown(browser.find_element(By.CSS_SELECTOR, ".slider"))[1] == "2"
