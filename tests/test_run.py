"""The command line, on a tiny project of its own; but for what kills it, in this process."""

import concurrent.futures
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from ts_helpers.book import run

HEADER = """---
jupytext: {text_representation: {extension: .md, format_name: myst, format_version: 0.13}}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# A leak

```{code-cell} ipython3
:tags: [parameters]

scale = "book"  # one of smoke, book, paper; size
tau = 2.0       # float in (0, 100]; time constant, steps
mine = None     # folder; of your own
hours = None    # float in [0, inf); hours of training
```

```{code-cell} ipython3
"""
LEAK = """import json, os
from pathlib import Path
from ts_helpers.papers.doe2020 import leaks
record = Path(os.environ["TS_RECORDS"]) / "doe2020" / "leak"
record.mkdir(parents=True, exist_ok=True)
(record / "results.json").write_text(json.dumps(leaks.double(tau)))
print("tau is", leaks.double(tau), "mine is", mine)
"""
SLOW = "import time; time.sleep(60)"


def add(root, name, code):
    path = root / "notebooks" / "doe2020" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}{code}\n```\n")


def tree(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if "__pycache__" not in p.parts)


HELPERS = {
    "papers/doe2020/leaks": "from ts_helpers.arithmetic import times\n\ndef double(x):\n    return times(2, x)\n",
    "arithmetic": "def times(a, b):\n    return a * b\n",
} | dict.fromkeys(("__init__", "papers/__init__", "papers/doe2020/__init__", "other"), "")


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """A project with one quick notebook, doe2020/leak, which has run, and helpers that it uses."""
    root = tmp_path_factory.mktemp("once")
    for name, code in HELPERS.items():
        file = root / "ts_helpers" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    add(root, "leak", LEAK)
    with pytest.MonkeyPatch.context() as patch:
        at(root, patch)
        assert run.main([]) == 0
    return root


class Here(concurrent.futures.Executor):
    """Runs notebooks in this process: another would look for them in the book."""

    def __init__(self, workers, mp_context):
        pass

    def submit(self, function, *words):
        done = concurrent.futures.Future()
        done.set_result(function(*words))
        return done


def at(root, patch):
    patch.chdir(root)
    patch.setattr(os, "environ", os.environ.copy() | {"PYTHONPATH": ""})
    for name, path in (("ROOT", root), ("NOTEBOOKS", root / "notebooks"), ("RESULTS", root / "results")):
        patch.setattr(run, name, path)
    patch.setattr(run, "ProcessPoolExecutor", Here)


@pytest.fixture
def project(once, tmp_path, monkeypatch) -> Path:
    """A copy of that project, in which `run.main` runs."""
    root = shutil.copytree(once, tmp_path / "copy")
    at(root, monkeypatch)
    return root


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("doe2020/nosuch", "no notebook 'doe2020/nosuch'; there are doe2020/leak"),
        ("-p nosuch 1", "doe2020/leak: no parameter is called 'nosuch'; there are scale, tau, mine, hours"),
        ("-p tau fast", "doe2020/leak: tau must be float in (0, 100], got 'fast'"),
        ("-p tau 0", "tau must be float in (0, 100], got 0"),
        ("-p scale huge", "scale must be one of smoke, book, paper, got 'huge'"),
        ("--scale huge", "invalid choice: 'huge'"),
        ("--archive", "--archive needs --scale paper, got book"),
        ("--scale smoke --archive", "--archive needs --scale paper, got smoke"),
        ("--jobs 0", "--jobs must be 1 or more, got 0"),
        ("--out notebooks/doe2020/leak.md", "--out must be a folder"),
        ("-p tau", "expected 2 arguments"),
    ],
)
def test_wrong_call_is_refused_by_name_before_anything_runs(project, words, message, capsys):
    before = tree(project)
    with pytest.raises(SystemExit) as refused:
        run.main(words.split())
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert tree(project) == before


def test_notebook_without_parameters_is_refused(project, capsys):
    bare = project / "notebooks/doe2020/leak.md"
    bare.write_text(bare.read_text().replace(":tags: [parameters]\n", ""))
    with pytest.raises(SystemExit):
        run.main(["--list"])
    assert "doe2020/leak: there must be exactly one cell tagged parameters, there are 0" in capsys.readouterr().err


def test_executed_notebook_and_record_are_whole_and_name_no_path_of_this_machine(once):
    text = (once / "notebooks/doe2020/leak.ipynb").read_text()
    assert "tau is 4.0" in text
    assert "injected-parameters" not in text
    assert str(once) not in text
    assert (once / "_build/records/doe2020/leak/results.json").read_text() == "4.0"


EXECUTED, RECORD = "notebooks/doe2020/leak.ipynb", "_build/records/doe2020/leak/results.json"


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("notebooks/doe2020/leak.md", "A leak", "The leak", True),
        ("ts_helpers/papers/doe2020/leaks.py", "(2, x)", "(x, 2)", True),  # a module that it takes from a package
        ("ts_helpers/papers/doe2020/__init__.py", "", "#", True),
        ("ts_helpers/arithmetic.py", "a * b", "b * a", True),  # what that one imports
        ("ts_helpers/other.py", "", "# the notebook does not import this", False),
        (EXECUTED, "tau is 4.0", "tau is 5.0", True),
        (EXECUTED, "{", "not a notebook any more", True),
        (RECORD, "4.0", "5.0", True),
        ("results/doe2020/other.paper.json", "", "{}", True),  # recorded runs of its paper
        ("results/roe2021/leak.paper.json", "", "{}", False),
    ],
)
def test_notebook_is_out_of_date_exactly_when_what_it_depends_on_has_changed(project, file, old, new, stale):
    assert run.main(["--check"]) == run.main(["--check", "--scale", "book"]) == 0
    path = project / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.read_text().replace(old, new, 1) if path.exists() else new)
    assert run.main(["--check"]) == stale


def test_notebook_is_out_of_date_when_a_claim_of_its_own_has_changed(project, monkeypatch):
    claims = run.read_claims()
    for chapter, stale in (("doe2020/other", 0), ("doe2020/leak", 1)):
        one = type(claims["C2"])(**vars(claims["C2"]) | {"chapter": chapter})
        monkeypatch.setattr(run, "read_claims", lambda one=one: {"C2": one})
        assert run.main(["--check"]) == stale


def test_helpers_that_cannot_be_told_all_count(project):
    for name, code, files in (
        ("magic", "%magic", sorted((project / "ts_helpers").rglob("*.py"))),
        ("no", "import os", []),
    ):
        add(project, name, code)
        assert run.Job(f"doe2020/{name}").helpers == files


def test_other_parameters_run_it_anew_and_out_keeps_that_run_apart(project, capsys):
    (project / "data").mkdir()
    words = ["doe2020/leak", "-p", "tau", "9", "-p", "mine", "data", "--out", "runs/nine"]
    assert run.main(["--check", *words[:3], "9"]) == 1
    assert run.main(words) == 0
    assert (project / "runs/nine/doe2020/leak/results.json").read_text() == "18"
    made = nbformat.read(project / "runs/nine/doe2020/leak.ipynb", as_version=4)
    shown = [o.text for c in made.cells for o in c.get("outputs", [])]
    assert shown == [f"tau is 18 mine is {project / 'data'}\n"]  # a path is handed on whole
    assert (project / RECORD).read_text() == "4.0"
    assert run.main(["--check"]) == run.main(["--check", *words]) == 0
    (project / "data" / "new").write_text("")
    assert run.main(["--check", *words]) == 1
    assert run.main(["--check", "-p", "hours", "0"]) == 1  # there is always more to train


def test_list_shows_parameters_and_the_last_run(project, capsys):
    add(project, "new", "1")
    assert run.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert " s at scale book)" in shown.split("doe2020/new")[0]
    assert "doe2020/new  (not run yet)" in shown
    assert "float in (0, 100]; time constant, steps" in shown


def test_failing_notebook_keeps_its_copy_and_the_others_go_on(project, capsys):
    add(project, "broken", "before = 1\n```\n\nOf {eval}`before / 0`\n\n```{code-cell} ipython3\n1")
    add(project, "quick", "1")
    assert run.main([]) == 1
    shown = capsys.readouterr()
    assert "FAILED      doe2020/broken, code cell 3: ZeroDivisionError: division by zero" in shown.err
    assert 'in glue("eval-0", f"""{before / 0}""", display=False)' in shown.err
    assert "up to date  doe2020/leak" in shown.out
    assert "executed    doe2020/quick" in shown.out
    partial = nbformat.read(project / "notebooks/doe2020/.broken.partial.ipynb", as_version=4)
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in partial.cells)
    assert not (project / "notebooks/doe2020/broken.ipynb").exists()


@pytest.mark.parametrize("imported", ["cells", "fit", "papers.doe2020.leaks"])
def test_kernels_are_compiled_once_where_a_notebook_that_runs_needs_them(project, monkeypatch, imported):
    calls = []
    monkeypatch.setattr(run, "execute", lambda job: "")
    monkeypatch.setattr(run.subprocess, "run", lambda words: calls.append(words[1:]))
    add(project, "new", f"import ts_helpers.{imported}")
    add(project, "newer", f"import ts_helpers.{imported}")
    for name in ("cells", "fit"):
        (project / f"ts_helpers/{name}.py").write_text("")
    assert run.main([]) == 0
    assert calls == ([["-m", "ts_helpers.engine"]] if imported == "cells" else [])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_leaves_nothing_half_written(tmp_path, how):
    shutil.copytree(ROOT / "ts_helpers" / "book", tmp_path / "ts_helpers" / "book")
    for name in ("ts_helpers/__init__.py", "ts_helpers/run.py", "book/claims.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    add(tmp_path, "slow", SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "ts_helpers.run"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        start_new_session=True, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    partial = tmp_path / "notebooks/doe2020/.slow.partial.ipynb"
    until = time.monotonic() + 60
    while not (partial.exists() and "time.sleep" in partial.read_text()):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, how)
    process.wait(timeout=60)
    assert not (tmp_path / "notebooks/doe2020/slow.ipynb").exists()
    assert not list((tmp_path / "_build").rglob("slow*"))
