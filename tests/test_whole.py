"""The whole book as one file: a PDF of the built pages, or a zip of them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import whole
import yaml
from conftest import CANARY, ROOT


def part(site, root, wanted):
    """Make of the site's pages a book that has only these."""
    (root / "_build" / "whole").mkdir(parents=True)
    (root / "_build" / "html").symlink_to(site)
    for name in ("CITATION.cff", "_config.yml"):
        shutil.copy(ROOT / name, root)
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    for each in toc["parts"]:
        each["chapters"] = [chapter for chapter in each["chapters"] if wanted(chapter["file"].removesuffix(".ipynb"))]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc | {"parts": [each for each in toc["parts"] if each["chapters"]]}))
    return root


@pytest.mark.book
def test_every_link_within_the_whole_leads_somewhere(site, tmp_path):
    text = whole.whole(part(site, tmp_path, lambda name: (site / f"{name}.html").exists()), {})
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r' href="#([^"]*)"', text)) <= set(ids)
    assert not [
        name for name in re.findall(r' src="(.*?)"', text) if not (tmp_path / "_build" / "whole" / name).exists()
    ]


@pytest.mark.book
@pytest.mark.canary
def test_pdf_has_contents_that_know_its_sheets(site, tmp_path):
    made = tmp_path / "_build" / "whole" / "a.pdf"
    whole.pdf(part(site, tmp_path, lambda name: name.endswith(CANARY)), made)
    printed, text = made.read_bytes(), made.with_name("whole.html").read_text()
    first, second = map(int, re.findall(r'<li><a href="#page-.*?<span>(\d+)</span>', text))
    assert 3 == first < second < len(re.findall(rb"/Type /Page\n", printed))
    assert set(re.findall(rb"/MediaBox \[0 0 (\d+).* (\d+).*\]", printed)) == {(b"594", b"841")}  # A4
    assert b"/Outlines" in printed
    assert b"file:" not in printed


def test_zip_has_the_pages_is_the_same_for_the_same_and_needs_pages(tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    pages, made = tmp_path / "_build" / "html", tmp_path / "_build" / "whole" / "learnable-time-scales.zip"
    (pages / "book").mkdir(parents=True)
    (pages / "index.html").write_text("index")
    (pages / "book" / "intro.html").write_text("intro")

    def run(kind, **environment):
        words = [sys.executable, tmp_path / "tools" / "whole.py", kind]
        return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)

    assert run("zip").stderr == "there are no pages in _build/html: make book\n"
    (pages / ".complete").touch()
    assert run("zip").returncode == 0
    before = made.read_bytes()
    os.utime(pages / "index.html", (0, 0))
    assert run("zip").returncode == 0
    assert made.read_bytes() == before
    with zipfile.ZipFile(made) as packed:
        there = {name.removeprefix("learnable-time-scales/"): packed.read(name).decode() for name in packed.namelist()}
    assert there == {"book/intro.html": "intro", "index.html": "index"}
    assert (
        run("pdf", PATH="").stderr == "chromium and chromedriver are needed on the PATH: sh tools/ensure_chromium.sh\n"
    )
    assert [path.name for path in made.parent.iterdir()] == [made.name]
