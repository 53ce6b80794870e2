"""What several tests need: chapters that have run at smoke scale, and a book built of them."""

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ts_helpers.book.run import find

ROOT = Path(__file__).resolve().parents[1]
CANARY = "matsuki2018/gradient-of-tau"  # quick, with a claim, figures and a slider: the one chapter of `make test`
ELSEWHERE = ["ref.ref", "ref.term", "myst.xref_missing"]  # the canary's site lacks most pages that it points to

# of a page: its weight, gzipped, with images that wait; on a phone, s until its largest part, and all, is there, and
# what moves meanwhile; what axe finds; of prose, the words, and the paragraphs of more than six lines
COLUMNS = {"kB": 0, "requests": 0, "paint": 1, "load": 1, "shift": 3, "axe": 0}
COLUMNS |= {"words": 0, "minutes": 0, "words/sentence": 0, "long paragraphs": 0}  # and their decimals
BOUNDS = {"kB": 700, "requests": 40, "shift": 0.03, "axe": 0}
MEDIAN_KB = 350


def run(root: Path, module: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a module in a copy of the project, whose own ts_helpers is the one imported."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("TS_")} | {"PYTHONPATH": str(root)} | environment
    return subprocess.run([sys.executable, "-m", module, *words], cwd=root, env=env, capture_output=True, text=True)


def execute(names: list[str], out: Path, seed: int = 0) -> None:
    """Run chapters at smoke scale; here and not in a copy, where the engine's kernels would be compiled anew."""
    words = ["--scale", "smoke", "-p", "seed", str(seed), "--out", str(out), "--jobs", str(os.cpu_count())]
    done = run(ROOT, "ts_helpers.run", *names, *words)
    assert done.returncode == 0, done.stderr


@contextmanager
def one_at_a_time(folder: Path):
    """Let one of several processes go on, the workers of pytest or two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def chapters(request) -> list[str]:
    """The chapters that this session's tests are about: all, or the canary alone."""
    of_book = [item for item in request.session.items if item.get_closest_marker("book")]
    return [CANARY] if all(item.get_closest_marker("canary") for item in of_book) else find([])


@pytest.fixture(scope="session")
def runs(chapters) -> Path:
    """Those chapters at smoke scale, executed notebooks beside records; what is up to date stays from the last time."""
    out = ROOT / "_build" / "smoke"
    with one_at_a_time(out):
        execute(chapters, out)
    return out


@pytest.fixture(scope="session")
def site(runs, chapters, tmp_path_factory) -> Path:
    """Their pages, built in a copy of the project with every warning an error."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    html = root / "_build" / "html"
    with one_at_a_time(root):
        if not (html / ".complete").exists():
            build(root, runs, chapters)
            (html / ".complete").touch()
    return html


def build(root: Path, runs: Path, chapters: list[str]) -> None:
    """Build these chapters and the pages without experiments; of the canary alone, few."""
    assert (ROOT / "book" / "static" / "vendor" / "katex").is_dir(), "make fetches these: run make test"
    for name in ("book", "notebooks", "results", "ts_helpers"):
        ignored = shutil.ignore_patterns("*.ipynb", "__pycache__", ".*")
        shutil.copytree(ROOT / name, root / name, ignore=ignored, dirs_exist_ok=True)
    for name in chapters:
        shutil.copy(runs / f"{name}.ipynb", root / "notebooks" / f"{name}.ipynb")
        shutil.copytree(runs / name, root / "_build" / "records" / name, dirs_exist_ok=True)
    for name in ("_config.yml", "_toc.yml", "README.md"):
        shutil.copy(ROOT / name, root)
    strict = ["-W", "-n", "--keep-going"]
    if chapters == [CANARY]:
        files = [{"file": f"notebooks/{CANARY}.ipynb"}, {"file": "book/references"}]
        (root / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "book/intro", "chapters": files}))
        config = yaml.safe_load((ROOT / "_config.yml").read_text())
        config["sphinx"]["config"]["suppress_warnings"] = ELSEWHERE
        (root / "_config.yml").write_text(yaml.safe_dump(config))
        strict.remove("-n")
    for name in ("README.md", "untitled.md", "my notes: [1].md", "mine.ipynb", CANARY.partition("/")[0] + "/.DS_Store"):
        for folder in ("notebooks", "results", "_build/records"):  # a reader's own: the pages are built all the same
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_text("# Mine\n")
    made = run(root, "ts_helpers.book.pages")
    assert made.returncode == 0, made.stderr
    book = Path(sys.executable).with_name("jupyter-book")
    how = dict(cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    built = subprocess.run([book, "build", ".", "--all", *strict], **how)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]


def pytest_sessionfinish(session):
    """Print what was measured of each page, and keep it."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")  # the workers have none
    reports = [each for of in terminal.stats.values() for each in of] if terminal else []
    called = [each for each in reports if getattr(each, "when", "") == "call"]
    rows = [row for each in called for name, row in each.user_properties if name == "page"]
    if len(rows) > 1:
        table = pd.DataFrame(rows).set_index("page").sort_index()[[*COLUMNS]]
        table = pd.concat([table, table.agg(["median", "max"]), pd.DataFrame(BOUNDS, ["bound"])]).round(COLUMNS)
        text = table.to_string(float_format="{:g}".format, na_rep="")
        (ROOT / "_build" / "page_table.txt").write_text(text)
        terminal.write_line(f"\n{text}")
        if table.loc["median", "kB"] > MEDIAN_KB:
            terminal.write_line(f"half of the pages have more than {MEDIAN_KB} kB")
            session.exitstatus = 1
