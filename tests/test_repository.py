import re
import subprocess
from itertools import pairwise

import pytest
import yaml
from conftest import ROOT

from ts_helpers.book.run import find


def test_toc_lists_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    chapters = [f"notebooks/{name}.ipynb" for name in find([])]
    assert sorted(f for f in files if f.startswith("notebooks/")) == chapters
    assert len(chapters) >= 2


def test_no_executed_notebook_is_in_git():
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout == ""


def test_glossary_points_from_every_word_to_where_it_is_explained():
    blocks = re.findall(r"```\{glossary\}\n(.*?)```", (ROOT / "book" / "glossary.md").read_text(), re.S)
    entries = [entry for block in blocks for entry in block.strip().split("\n\n")]
    assert len(entries) > 40
    for entry in entries:
        words, _, meaning = entry.partition("\n  ")
        assert "\n" not in meaning, words
        assert re.search(r"\{(ref|eq)\}`|\]\(", meaning), words


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 80


def test_ci_runs_every_test_and_builds_the_book_and_leaves_the_long_ones_to_the_weekly_workflow():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if re.match("make|test", line)]
    assert lines == ["make test", "make check", "make book", "test -s _build/html/index.html"]
    weekly = (ROOT / ".github" / "workflows" / "weekly.yml").read_text()
    assert re.search(r"schedule:.*cron:.*- run: make determinism\n", weekly, re.S)
    targets = re.findall(r'^(\w+):|pytest .*-m "([^"]*)"', (ROOT / "Makefile").read_text(), re.M)
    marked = {before[0]: words for before, (_, words) in pairwise(targets) if words}
    assert marked == {"test": "not book or canary", "check": "book and not weekly", "determinism": "weekly"}


def test_constraints_pin_every_dependency_exactly():
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    project = (ROOT / "pyproject.toml").read_text()
    block = project[project.index("dependencies = [") : project.index("[tool.setuptools]")]
    names = re.findall(r'"([a-zA-Z][\w-]+?)(?:[<>=].*?)?"', block)
    assert len(names) > 20
    for name in names:
        assert re.search(rf"^{name.lower().replace('_', '-')}==\d", pins, re.M), name


@pytest.mark.parametrize(("python", "message"), [("nosuchpython", "no 'nosuchpython' here"), ("false", "is needed")])
def test_missing_prerequisite_is_one_clear_line(python, message):
    done = subprocess.run(["sh", "tools/preflight.sh", python], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
