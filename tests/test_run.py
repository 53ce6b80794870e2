"""The runner, on a small project of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, run

HEADER = """---
jupytext: {text_representation: {extension: .md, format_name: myst, format_version: 0.13}}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
PARAMETERS = """
```{code-cell} ipython3
:tags: [parameters]

scale = "book"  # one of smoke, book, paper; size
tau = 2.0       # float in (0, 100]; time constant, steps
```
"""
LEAK = (
    "\n# A leak\n"
    + PARAMETERS
    + """
```{code-cell} ipython3
import json, os
from pathlib import Path
from ts_helpers.extra import double
record = Path(os.environ["TS_RECORDS"]) / "doe2020" / "leak"
record.mkdir(parents=True)
(record / "results.json").write_text(json.dumps(double(tau)))
print("tau is", double(tau))
```
"""
)
BROKEN = (
    PARAMETERS
    + """
```{code-cell} ipython3
before = 1
```

```{code-cell} ipython3
1 / 0
```
"""
)
SLOW = BROKEN.replace("1 / 0", "import time; time.sleep(60)")


@pytest.fixture
def small(tmp_path) -> Path:
    """A project with one quick notebook, doe2020/leak, and a helper module it uses."""
    shutil.copytree(ROOT / "ts_helpers", tmp_path / "ts_helpers", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ts_helpers" / "extra.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.yml").write_text("{}\n")
    add(tmp_path, "leak", LEAK)
    return tmp_path


def add(root, name, text):
    path = root / "notebooks" / "doe2020" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + text)


def tree(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if "__pycache__" not in p.parts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["doe2020/nosuch"], "no notebook 'doe2020/nosuch'; there are doe2020/leak"),
        (["-p", "nosuch", "1"], "doe2020/leak has no parameter 'nosuch'; it has scale, tau"),
        (["-p", "tau", "fast"], "tau must be float in (0, 100], got 'fast'"),
        (["-p", "tau", "0"], "tau must be float in (0, 100], got 0"),
        (["-p", "scale", "huge"], "scale must be one of smoke, book, paper, got 'huge'"),
        (["--scale", "huge"], "invalid choice: 'huge'"),
        (["--keep"], "--keep needs --scale paper, got book"),
        (["--scale", "smoke", "--keep"], "--keep needs --scale paper, got smoke"),
        (["--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["--out", "book/claims.yml"], "--out must be a folder"),
        (["-p", "tau"], "expected 2 arguments"),
    ],
)
def test_wrong_call_is_refused_by_name_before_anything_runs(small, words, message):
    before = tree(small)
    done = run(small, "ts_helpers.run", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert tree(small) == before


def test_notebook_runs_once_and_again_only_when_something_changed(small):
    executed, record = small / "notebooks/doe2020/leak.ipynb", small / "_build/records/doe2020/leak/results.json"

    def ran(*words):
        done = run(small, "ts_helpers.run", *words)
        assert done.returncode == 0, done.stderr
        return "executed    doe2020/leak" in done.stdout

    assert ran()
    assert record.read_text() == "4.0"
    assert "tau is 4.0" in executed.read_text()
    assert str(small) not in executed.read_text()  # no path of this machine in what the book publishes
    assert not ran()
    assert not ran("--scale", "book")  # the default, spelled out
    assert "injected-parameters" not in executed.read_text()
    assert ran("-p", "tau", "3")
    assert "injected-parameters" in executed.read_text()
    assert record.read_text() == "6"
    assert ran()

    (small / "ts_helpers" / "online.py").write_text("# the notebook does not import this\n")
    assert not ran()
    (small / "ts_helpers" / "extra.py").write_text("def double(x):\n    return x + x\n")
    assert ran()

    add(small, "leak", LEAK.replace("A leak", "The leak"))
    assert run(small, "ts_helpers.run", "--check").returncode == 1
    assert ran()
    assert run(small, "ts_helpers.run", "--check").returncode == 0

    executed.write_text(executed.read_text().replace("tau is 4.0", "tau is 5.0"))
    assert ran()
    record.write_text("5.0")
    assert ran()
    executed.write_text("{")  # not a notebook any more
    assert ran()


def test_folder_is_handed_on_whole_and_what_changes_in_it_runs_the_notebook_again(small):
    line = "\nmine = None      # folder; of your own\n```"
    add(
        small, "leak", LEAK.replace("steps\n```", "steps" + line, 1).replace('"tau is", double(tau)', '"mine is", mine')
    )
    (small / "data").mkdir()
    words = ("ts_helpers.run", "-p", "mine", "data")
    done = run(small, *words)
    assert done.returncode == 0, done.stderr
    made = nbformat.read(small / "notebooks" / "doe2020" / "leak.ipynb", as_version=4)
    assert f"mine is {small / 'data'}\n" in [o.text for c in made.cells for o in c.get("outputs", [])]
    assert run(small, *words).stdout.startswith("up to date")
    (small / "data" / "new").write_text("")
    assert run(small, *words, "--check").returncode == 1


def test_notebook_that_is_to_train_for_some_hours_runs_whenever_it_is_asked_to(small):
    line = "\nhours = None    # float in [0, inf); hours of training"
    add(small, "leak", LEAK.replace("steps\n```", f"steps{line}\n```", 1))
    for words, runs in ((["-p", "hours", "0"], True), (["-p", "hours", "0"], True), ([], True), ([], False)):
        done = run(small, "ts_helpers.run", *words)
        assert done.returncode == 0, done.stderr
        assert ("executed    doe2020/leak" in done.stdout) is runs


def test_list_shows_parameters_and_the_last_run(small):
    before = run(small, "ts_helpers.run", "--list").stdout
    assert "doe2020/leak  (not run yet)" in before
    assert "float in (0, 100]; time constant, steps" in before
    run(small, "ts_helpers.run", "--scale", "smoke")
    assert " s at scale smoke)" in run(small, "ts_helpers.run", "--list").stdout


def test_failing_notebook_keeps_its_copy_and_the_others_go_on(small):
    add(small, "broken", BROKEN)
    done = run(small, "ts_helpers.run", "--jobs", "2")
    assert done.returncode == 1
    assert "FAILED      doe2020/broken, code cell 3: ZeroDivisionError: division by zero" in done.stderr
    assert "executed    doe2020/leak" in done.stdout
    partial = nbformat.read(small / "notebooks/doe2020/.broken.partial.ipynb", as_version=4)
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in partial.cells)
    assert not (small / "notebooks/doe2020/broken.ipynb").exists()


def test_out_keeps_a_run_apart_from_the_book(small):
    done = run(small, "ts_helpers.run", "doe2020/leak", "-p", "tau", "9", "--out", "runs/nine")
    assert done.returncode == 0, done.stderr
    assert (small / "runs/nine/doe2020/leak/results.json").read_text() == "18"
    assert (small / "runs/nine/doe2020/leak.ipynb").exists()
    assert not (small / "notebooks/doe2020/leak.ipynb").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_leaves_nothing_half_written(small, how):
    add(small, "slow", SLOW)
    words = [sys.executable, "-m", "ts_helpers.run", "doe2020/slow"]
    env = os.environ | {"PYTHONPATH": str(small)}
    process = subprocess.Popen(
        words, cwd=small, env=env, start_new_session=True, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    partial = small / "notebooks/doe2020/.slow.partial.ipynb"
    for _ in range(300):
        if partial.exists() and "time.sleep" in partial.read_text():
            break
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, how)
    process.wait(timeout=60)
    assert not (small / "notebooks/doe2020/slow.ipynb").exists()
    assert not (small / "_build/records/doe2020/slow").exists()
    add(small, "slow", SLOW.replace("sleep(60)", "sleep(0)"))
    assert run(small, "ts_helpers.run", "doe2020/slow").returncode == 0
    assert not partial.exists()


def test_notebook_without_parameters_is_refused(small):
    add(small, "bare", "\n```{code-cell} ipython3\n1 + 1\n```\n")
    done = run(small, "ts_helpers.run", "doe2020/bare", "-p", "tau", "1")
    assert done.returncode == 2
    assert "doe2020/bare must have exactly one cell tagged parameters, it has 0" in done.stderr


def test_papermill_alone_runs_an_executed_notebook(small):
    run(small, "ts_helpers.run")
    executed = "notebooks/doe2020/leak.ipynb"
    done = run(small, "papermill", executed, "mine.ipynb", "-p", "tau", "7", TS_RECORDS=str(small / "mine"))
    assert done.returncode == 0, done.stderr
    assert "tau is 14" in (small / "mine.ipynb").read_text()
