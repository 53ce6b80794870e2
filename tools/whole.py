"""Make one file of the built pages, in _build/whole.

    whole.py pdf|zip

"pdf": the pages as one, with contents, which Chromium prints. "zip": the pages as they are, to unpack and read offline.
"""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from posixpath import dirname, join, normpath

import yaml

NAME = "learnable-time-scales"
COMMIT = """export GIT_DIR=.git; git log -1 --format="commit $(git describe --always --dirty --exclude '*') of %cs" """
PRINT = dict(preferCSSPageSize=True, printBackground=True, generateDocumentOutline=True, generateTaggedPDF=True)


def placed(text: str, file: str, names: dict[str, str], site: str) -> str:
    """Return HTML of a page as part of the whole: ids begin with the page's name, headings are a level lower."""

    def moved(found: re.Match) -> str:
        kind, to = found.groups()
        if kind in (' id="', "url(#"):
            return f"{kind}{names[file]}-{to}"
        if re.match("[a-z]+:", to):
            return found[0]
        path, _, place = to.partition("#")
        path = normpath(join(dirname(file), path)) if path else file
        if path in names:
            return f"{kind}#{names[path]}{place and f'-{place}'}"
        return f"{kind}{'../html/' if 'src' in kind else site}{path}"

    text = re.sub(r'<script.*?</script>| loading="lazy"', "", text, flags=re.S)
    text = re.sub(r'<span class="[npw]">([^<]*)</span>', r"\1", text)  # code without a colour: a seventh of the PDF
    text = re.sub(r"(?<=<h)\d|(?<=</h)\d", lambda found: str(int(found[0]) + 1), text)
    return re.sub("<[^/][^>]*>", lambda tag: re.sub(r'( id="| href="| src="|url\(#)([^")]*)', moved, tag[0]), text)


def whole(root: Path, sheets: dict[str, int]) -> str:
    """Return a project's built pages as one, for a folder beside theirs; ``sheets``: where each begins in print."""
    about, config, toc = (yaml.safe_load((root / f).read_text()) for f in ("CITATION.cff", "_config.yml", "_toc.yml"))
    site, parts = config["html"]["baseurl"], [{"caption": "", "chapters": [{"file": toc["root"]}]}, *toc["parts"]]
    files = [each["file"].removesuffix(".ipynb") + ".html" for part in parts for each in part["chapters"]]
    names = {file: f"page-{i}" for i, file in enumerate(files)}
    listed, running, bodies = "", "", ""
    for part in parts:
        heading = f"<h1>{part['caption']}</h1>" if part["caption"] else ""
        listed += f"<li>{part['caption']}</li>"
        for _ in part["chapters"]:
            file = files.pop(0)
            name, text = names[file], (root / "_build" / "html" / file).read_text()
            title = re.search("<title>(.*?) &#8212;", text)[1]
            listed += f'<li><a href="#{name}">{title}</a><span>{sheets.get(name, "")}</span></li>'
            running += f"@page {name} {{ @top-right {{ content: {json.dumps(html.unescape(title))} }} }}"
            body = placed(re.search("<article.*?>(.*)</article>", text, re.S)[1], file, names, site)
            bodies += f'<article id="{name}" style="page: {name}">{heading}{body}</article>'
            heading = ""
    links = re.findall('<link [^>]*rel="stylesheet"[^>]*>', text)
    styles = "".join(re.sub('href="[./]*', 'href="../html/', link) for link in links)
    last = subprocess.run(COMMIT, shell=True, cwd=root, capture_output=True, text=True).stdout
    return f"""<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<title>{about["title"]}</title>{styles}<style>{running}</style></head><body class="whole"><header>
<p class="title">{about["title"]}</p><p>{", ".join(each["name"] for each in about["authors"])}</p>
<p>{about["abstract"]}</p><p>Version {about["version"]}<br>{last}</p><p>Code: MIT. Text and figures: CC BY 4.0.</p>
<p><a href="{site}">{site}</a></p></header><nav><h2>Contents</h2><ul>{listed}</ul></nav>{bodies}</body></html>"""


def pdf(root: Path, made: Path) -> None:
    """Print the whole, twice: the contents need to know on which sheets the pages begin."""
    from selenium import webdriver

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        sys.exit("chromium and chromedriver are needed on the PATH: sh tools/ensure_chromium.sh")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.timeouts = {"pageLoad": 1_200_000, "script": 1_200_000}
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chromium.command_executor.client_config.timeout = 1200  # s; a minute, but on a busy machine
    page, printed = made.with_name("whole.html"), b""
    try:
        for _ in range(2):
            order = {found: i for i, found in enumerate(re.findall(rb"(\d+) 0 obj\n<</Type /Page\n", printed), 1)}
            starts = re.findall(rb"/(page-\d+) \[(\d+) 0 R", printed)
            page.write_text(whole(root, {name.decode(): order[sheet] for name, sheet in starts}))
            chromium.get(page.as_uri())
            chromium.execute_async_script("document.fonts.ready.then(arguments[0])")
            printed = base64.b64decode(chromium.execute_cdp_cmd("Page.printToPDF", PRINT)["data"])
    finally:
        chromium.quit()
    made.write_bytes(printed)


def pack(root: Path, made: Path) -> None:
    """Zip the pages; the same pages give the same bytes."""
    pages = root / "_build" / "html"
    with zipfile.ZipFile(made, "w") as packed:
        for path in sorted(path for path in pages.rglob("[!.]*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{NAME}/{path.relative_to(pages).as_posix()}")  # of 1980
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)


def main() -> None:
    """Make the file beside the one of before, which it replaces once it is whole."""
    kinds, root = {"pdf": pdf, "zip": pack}, Path(__file__).resolve().parents[1]
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    if not (root / "_build" / "html" / ".complete").exists():
        sys.exit("there are no pages in _build/html: make book")
    made = root / "_build" / "whole" / f"{NAME}.{sys.argv[1]}"
    made.parent.mkdir(parents=True, exist_ok=True)
    kinds[sys.argv[1]](root, partial := made.with_name(f".{made.name}"))
    partial.replace(made)
    print(f"{made}: {made.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
