import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain, pairwise

import jupytext
import nbformat
import pytest
import yaml
from conftest import ROOT
from jupytext.config import find_jupytext_configuration_file, load_jupytext_config
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from ts_helpers.book.run import chapters

STRAYS = ["README.md", "untitled.md", "my notes [1].md", "a: b.md", "100% $x #1.ipynb", ".DS_Store"]
# of text: code cells, of which their captions are text, other code, and what is quoted
NO_PROSE = re.compile(r'^```\{code-cell.*?\n(---\n.*?^---\n)?.*?^```$|^```\w.*?^```$|`[^`\n]*`|"[^"\n]*"', re.M | re.S)
AMERICAN = (
    r"\w{3,}iz(e[drs]?|ing|ations?)|\w+yz(e[drs]?|ing)|\w*(behavi|col|fav|flav|harb|hon|neighb)or\w*|(cent|fib|lit)er(s|ed)?"
    r"|(label|level|model|signal|travel)(ed|ing)|gray\w*|artifacts?|(ana|cata|dia)logs?|judgment|defense"
)
FIGURATIVE = r"hears?|heard|news|climb\w*|nudg\w+|ladders?|peace|roughness|rulers?|watch\w*"
FAKES = {
    "python": "exit 0",
    "df": "echo; echo - - - 99999999",
    "jupyter-book": """out=.
while [ $# -gt 0 ]; do if [ "$1" = --path-output ]; then out=$2; fi; shift; done
if [ -e edited ]; then sleep 0.05 && touch edited && mv edited results; fi
mkdir -p "$out/_build/html" && echo new > "$out/_build/html/index.html" && test ! -e broken""",
}


def files_in_git(pattern):
    return subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True).stdout.split()


def make(root, target="_build/html/.complete", *settings):
    env = os.environ | {"PATH": f"{root / '.venv' / 'bin'}:{os.environ['PATH']}", "MAKEFLAGS": ""}
    return subprocess.run(["make", target, *settings], cwd=root, env=env, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path, request):
    """A checkout, called as the test says, whose pages are built by a fake; those of before are there."""
    root = tmp_path / getattr(request, "param", "checkout")
    for name in ("notebooks/doe2020", "results/doe2020", "ts_helpers/engine", "_build/html", ".venv/bin"):
        (root / name).mkdir(parents=True)
    for name, text in FAKES.items():
        (root / ".venv" / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (root / ".venv" / "bin" / name).chmod(0o755)
    shutil.copytree(ROOT / "tools", root / "tools")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "hashes.txt"):
        shutil.copy(ROOT / name, root)
    (root / "_build" / "html" / "index.html").write_text("old\n")
    return root


def test_toc_lists_every_chapter():
    assert sorted(f"notebooks/{name}.md" for name in chapters()) == files_in_git("notebooks/*.md")


def test_no_executed_notebook_is_in_git():
    assert files_in_git("*.ipynb") == []


def test_chapter_saved_in_jupyterlab_is_the_same_chapter_with_its_front_matter():
    for source in [ROOT / "notebooks" / f"{name}.md" for name in chapters()]:
        config, text = load_jupytext_config(source), source.read_text()
        opened = jupytext.reads(text, "md", config=config)
        saved = jupytext.writes(nbformat.reads(nbformat.writes(opened), as_version=4), "md", config=config)
        again = jupytext.reads(saved, "md", config=config)
        assert again.metadata == opened.metadata
        assert again.metadata.myst.html_meta.description
        assert [c | {"id": ""} for c in again.cells] == [c | {"id": ""} for c in opened.cells]
    assert find_jupytext_configuration_file(source) == str(ROOT / "notebooks" / "jupytext.toml")  # below Lab's root


def test_pages_of_before_stay_until_the_new_ones_are_whole(checkout):
    page = checkout / "_build" / "html" / "index.html"
    (checkout / "broken").touch()
    assert make(checkout).returncode == 2
    assert page.read_text() == "old\n"
    (checkout / "broken").unlink()
    assert make(checkout).returncode == 0
    assert page.read_text() == "new\n"
    assert not (checkout / "_build" / "new").exists()


def test_text_that_is_edited_while_pages_are_built_makes_them_out_of_date(checkout):
    page = checkout / "_build" / "html" / "index.html"
    (checkout / "edited").touch()  # the fake edits it as it builds
    for _ in range(2):
        page.write_text("old\n")
        assert make(checkout).returncode == 0
        assert page.read_text() == "new\n"


@pytest.mark.parametrize("checkout", ["plain", "Bücher 100% #1 'b' (c) [d]*"], indirect=True)
def test_no_name_of_a_file_or_of_the_checkout_stops_make_and_pages_are_built_when_any_is_newer(checkout):
    for folder in ("notebooks", "notebooks/doe2020", "results", "ts_helpers/engine"):
        for name in STRAYS:
            (checkout / folder / name).touch()
    page = checkout / "_build" / "html" / "index.html"
    for newer in (None, checkout / "results" / "doe2020" / "a b.nc"):
        if newer:
            newer.touch()
        assert make(checkout).returncode == 0
        assert page.read_text() == "new\n"
        page.write_text("still\n")
        assert make(checkout).returncode == 0
        assert page.read_text() == "still\n"


def test_clean_removes_what_was_built_and_nothing_else(checkout):
    shutil.copytree(ROOT / "ts_helpers", checkout / "ts_helpers", dirs_exist_ok=True)
    (checkout / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    record = "_build/records/doe2020/leak"
    built = [
        f"{record}/results.nc",
        "_build/records/doe2020/.leak.claims.json",
        "_build/html/index.html",
        "_build/smoke/a.ipynb",
        "_build/whole/a.pdf",
        "book/static/vendor/a.js",
    ]
    own = [f"{record}/plot.png", "notebooks/Untitled.ipynb", "notebooks/doe2020/mine.md", "_build/notes.txt"]
    kept = ["_build/checkpoints/book/doe2020/leak/a.pt", "_build/data/text8.zip", ".venv/.book"]
    for name in (*built, *own, *kept):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    assert make(checkout, "clean").returncode == 0
    assert [name for name in (*built, *own, *kept) if (checkout / name).exists()] == [*own, *kept]


def test_moved_checkout_is_told_that_its_venv_is_of_another_place_before_anything_is_removed(checkout):
    assert make(checkout, ".venv/.test").returncode == 0
    moved = checkout.rename(checkout.with_name("moved"))
    done = make(moved, "readme")
    assert done.returncode == 2
    assert f"was moved or copied from {checkout}, which .venv has in it: remove .venv\n" in done.stderr
    assert (moved / "_build" / "html" / "index.html").read_text() == "old\n"
    (moved / ".venv" / ".book").unlink()
    assert make(moved, ".venv/.book").returncode == 0
    assert (moved / ".venv" / ".book").read_text() == f"{moved}\n"


def test_glossary_points_from_every_word_to_where_it_is_explained():
    blocks = re.findall(r"```\{glossary\}\n(.*?)```", (ROOT / "book" / "glossary.md").read_text(), re.S)
    entries = [entry for block in blocks for entry in block.strip().split("\n\n")]
    assert len(entries) > 40
    for entry in entries:
        words, _, meaning = entry.partition("\n  ")
        assert "\n" not in meaning, words
        assert re.search(r"\{(ref|eq)\}`|\]\(", meaning), words


def test_prose_has_british_spelling_and_the_words_of_the_field():
    wrong = re.compile(rf"(?<![-/\w])({AMERICAN}|{FIGURATIVE})(?![-/\w])", re.I)
    texts = {file: (ROOT / file).read_text() for file in [*files_in_git("*.md"), "book/claims.yml"]}
    prose = {file: NO_PROSE.sub(lambda found: found[1] or "", text) for file, text in texts.items()}
    assert [(file, found[0]) for file, text in prose.items() for found in wrong.finditer(text)] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 80


def test_ci_runs_every_test_and_builds_the_book_and_leaves_the_long_ones_to_the_weekly_workflow():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if re.match("make|test", line)]
    assert lines == ["make test", "make check", "make book", "test -s _build/html/index.html"]
    weekly = (ROOT / ".github" / "workflows" / "weekly.yml").read_text()
    assert re.search(r"schedule:.*cron:.*- run: make determinism\n.*- run: make test-slurm\n", weekly, re.S)
    files = [file.with_suffix(".json") for file in sorted((ROOT / "results").rglob("*.paper.nc"))]
    short = [made["notebook"] for file in files if (made := json.loads(file.read_bytes()))["seconds"] < 3600]
    assert re.findall(r"^ {10}- (.*)$", weekly, re.M) == short
    targets = re.findall(r'^([\w-]+):|pytest .*-m "([^"]*)"', (ROOT / "Makefile").read_text(), re.M)
    marked = {before[0]: words for before, (_, words) in pairwise(targets) if words}
    own = {"check": "book and not weekly", "determinism": "weekly", "test-slurm": "slurm"}
    assert marked == own | {"test": "(not book or canary) and not slurm"}


def test_environment_pyproject_constraints_and_hashes_agree():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = asked["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    wanted = [Requirement(line) for line in [*asked["build-system"]["requires"], *project["dependencies"], *extras]]
    constraints = (ROOT / "constraints.txt").read_text()
    pins = {}
    for pin in map(Requirement, re.findall(r"^[^#].*", constraints, re.M)):
        (exactly,) = pin.specifier
        assert exactly.operator == "=="
        pins.setdefault(pin.name, []).append(exactly.version)
    for each in wanted:
        versions = pins[canonicalize_name(each.name)]
        assert list(each.specifier.filter(versions)) == versions, each

    hashes = re.sub(r"( \\\n {4}--hash=sha256:[0-9a-f]{64})+", " hashed", (ROOT / "hashes.txt").read_text())
    assert hashes == re.sub(r"^[^#].*", r"\g<0> hashed", constraints, flags=re.M)

    ranges = {each.name: each.specifier for each in wanted} | {"python": SpecifierSet(project["requires-python"])}
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    for name, says in (re.match(r"([\w-]+)(.*)", line).groups() for line in conda if isinstance(line, str)):
        if name == "python":
            assert says.removeprefix("=") in ranges[name]
        elif name not in ("make", "pip"):
            assert SpecifierSet(says) == ranges[{"pytorch-cpu": "torch"}.get(name, name)], name


def test_set_up_takes_no_file_but_by_its_hash():
    text = (ROOT / "tools" / "install.sh").read_text()
    fetching = [line for line in re.findall(r"pip install (.*)", text) if "--dry-run" not in line]
    assert [line for line in fetching if "--require-hashes " not in line] == ["--no-deps --no-build-isolation -e ."]


def test_python_said_to_make_is_that_of_venv_or_refused(checkout):
    (checkout / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho Python 3.0.0\n")
    for stamp in (".book", ".test"):
        (checkout / ".venv" / stamp).write_text(f"{checkout}\n")
    done = make(checkout, ".venv/.test")
    assert (done.returncode, done.stderr) == (0, "")
    done = make(checkout, ".venv/.test", f"PYTHON={sys.executable}")
    assert done.returncode == 2
    assert f"'{sys.executable}' is Python {platform.python_version()}, .venv has Python 3.0.0" in done.stderr


@pytest.mark.parametrize(("python", "folder", "message"), [
    ("nosuchpython", "plain", "no 'nosuchpython' here"), ("false", "plain", "is needed"),
    *(("python3", f"a {sign} b", f"{sign} b' has one of") for sign in ':{}"`$\\'),
])  # fmt: skip
def test_missing_prerequisite_is_one_clear_line(tmp_path, python, folder, message):
    (tmp_path / folder).mkdir()
    words = ["sh", ROOT / "tools" / "preflight.sh", python]
    done = subprocess.run(words, cwd=tmp_path / folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
