"""The command line, on a tiny project of its own; but for what kills it, in this process."""

import concurrent.futures
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
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
LEAK = """import hashlib, json, os
from pathlib import Path
from ts_helpers.papers.doe2020 import leaks
at = {name: Path(os.environ[f"TS_{name}"]) / os.environ["TS_NOTEBOOK"] for name in ("RECORDS", "CHECKPOINTS")}
for folder in at.values():
    folder.mkdir(parents=True, exist_ok=True)
text = json.dumps(leaks.double(tau))
digests = {"results.nc": hashlib.sha256(text.encode()).hexdigest()}
(at["RECORDS"] / "results.nc").write_text(text)
(at["RECORDS"] / "provenance.json").write_text(json.dumps({"sha256": digests, "checkpoints": ["ab.pt"]}))
print("tau is", leaks.double(tau), "mine is", mine)
"""
SLOW = "import time; time.sleep(60)"


def add(root, name, code):
    path = root / "notebooks" / "doe2020" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}{code}\n```\n")
    with (root / "_toc.yml").open("a") as toc:
        toc.write(f"- file: notebooks/doe2020/{name}.ipynb\n")


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

    def __init__(self, workers, mp_context, initializer):
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


UNFIT = ["/dev/null", "/dev/null/below", "/proc/nosuch", "/" + "a" * 300]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("doe2020/nosuch", "no notebook 'doe2020/nosuch'; there are doe2020/leak"),
        ("-p nosuch 1", "doe2020/leak: no parameter is called 'nosuch'; there are scale, tau, mine, hours"),
        ("-p tau fast", "doe2020/leak: tau must be float in (0, 100], got 'fast'"),
        ("-p tau 0", "tau must be float in (0, 100], got 0.0"),
        ("-p mine 2018", "mine must be folder, got '2018'"),
        ("-p scale huge", "scale must be one of smoke, book, paper, got 'huge'"),
        ("--scale huge", "invalid choice: 'huge'"),
        ("--archive", "--archive needs --scale paper, got book"),
        ("--scale smoke --archive", "--archive needs --scale paper, got smoke"),
        ("--jobs 0", "--jobs must be 1 or more, got 0"),
        *((f"-p tau 3 --out {out}", f"--out must name a folder to write to, got {out}") for out in UNFIT),
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (":tags: [parameters]\n", "", "doe2020/leak: there must be exactly one cell tagged parameters, there are 0"),
        ("# A leak", "# A l\u00e4ck", "doe2020/leak: 'utf-8' codec can't decode byte 0xe4"),
        ("2.0  ", "(2.0", "doe2020/leak: the default of a parameter must be a literal, got 'tau = (2.0"),
        ("# float in (0, 100]; time", "# time", "a parameter must read 'name = literal  # rule; meaning', got 'tau = "),
        ("scale =", "size =", "doe2020/leak: there must be a parameter scale, there are size, tau, mine, hours"),
    ],
)
def test_notebook_that_cannot_run_is_refused_by_name_before_it_does(project, old, new, message, capsys):
    bad = project / "notebooks/doe2020/leak.md"
    bad.write_text(bad.read_text().replace(old, new, 1), "latin-1")
    with pytest.raises(SystemExit) as refused:
        run.main(["doe2020/leak"])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_book_is_what_the_toc_lists_and_another_notebook_is_found_by_name_or_file(project):
    leak = (project / "notebooks/doe2020/leak.md").read_text()
    (project / "notebooks/doe2020/my dos.md").write_text(leak, "utf-8-sig", newline="\r\n")
    leak = leak.replace(":tags: [parameters]", "---\ntags:\n  - parameters\n---")
    (project / "notebooks/yaml.md").write_text(leak)
    assert run.find([]) == ["doe2020/leak"]
    assert run.find(["doe2020/my dos", "notebooks/doe2020/my dos.md", "notebooks/yaml.ipynb"]) == [
        "doe2020/my dos",
        "yaml",
    ]
    assert run.main(["--list", "doe2020/my dos", "yaml"]) == 0


def test_helpers_without_their_book_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        run.main([])
    assert f"No such file or directory: '{tmp_path}/_toc.yml'" in capsys.readouterr().err


def test_executed_notebook_and_record_are_whole_and_name_no_path_of_this_machine(once):
    text = (once / "notebooks/doe2020/leak.ipynb").read_text()
    assert "tau is 4.0" in text
    assert "injected-parameters" not in text
    assert str(once) not in text
    assert (once / RECORD).read_text() == "4.0"


EXECUTED, RECORD = "notebooks/doe2020/leak.ipynb", "_build/records/doe2020/leak/results.nc"


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
        ("_build/records/doe2020/leak/plot.png", "", "a reader's own", False),
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


def test_notebook_that_is_edited_while_it_waits_is_out_of_date(project):
    add(project, "first", "with open('second.md', 'a') as file:\n    file.write('More.')")
    add(project, "second", "1")
    assert run.main(["doe2020/first", "doe2020/second"]) == 0
    assert run.main(["--check", "doe2020/second"]) == 1


def test_helpers_that_cannot_be_told_all_count(project):
    for name, code, files in (
        ("magic", "%magic", sorted((project / "ts_helpers").rglob("*.py"))),
        ("no", "import os", []),
    ):
        add(project, name, code)
        assert run.Job(f"doe2020/{name}").helpers == files


def contents(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (EXECUTED, "tau is 5.0"),
        *((EXECUTED, text) for text in ("null", "[1]", "{}", '{"metadata": {"ts": 3}}', "")),
        (RECORD, "5.0"),
        ("_build/records/doe2020/leak/provenance.json", "{}"),
        ("_build/records/doe2020/leak/claims.json", "{}"),
    ],
)
def test_what_the_book_did_not_make_is_in_the_way_before_anything_runs(project, file, text, capsys):
    path = project / file
    path.write_text(path.read_text().replace("tau is 4.0", text) if text.startswith("tau") else text)
    before = contents(project)
    words = ["-p", "tau", "3"] if file.endswith("claims.json") else []
    assert run.main(words) == 2
    assert f"in the way: {path}, not as the book made it" in capsys.readouterr().err
    assert contents(project) == before


def test_what_the_book_made_makes_way_with_its_record_or_without(project, capsys):
    (project / "results/doe2020/own.paper.folder").mkdir(parents=True)
    assert run.Job("doe2020/leak").blocked() == []
    assert run.main(["-p", "tau", "3"]) == 0
    shutil.rmtree(project / "_build")
    assert run.main(["--check"]) == 1
    assert run.main([]) == run.main(["--check"]) == 0
    made = nbformat.read(project / EXECUTED, as_version=4)
    made.cells[0].source = "A reader's own."
    nbformat.write(made, project / EXECUTED)
    assert run.main([]) == 2
    assert run.main(["--list"]) == 0
    assert "doe2020/leak  (not as the book made it)" in capsys.readouterr().out


def test_notebook_that_a_reader_saves_while_it_runs_stays(project, capsys):
    add(project, "edited", "open('edited.ipynb', 'w').write('mine')")
    assert run.main(["doe2020/edited"]) == 1
    assert "FAILED      doe2020/edited, in the way: " in capsys.readouterr().err
    assert (project / "notebooks/doe2020/edited.ipynb").read_text() == "mine"


def test_clean_removes_what_the_book_made_and_names_what_it_did_not(project, capsys):
    made = project / EXECUTED
    for name in ("copy", "edited"):  # a copy to another name is a reader's
        shutil.copy(made, made.with_name(f"{name}.ipynb"))
    made.with_name(".leak.7.partial.ipynb").write_text("{")
    (project / "notebooks/Untitled.ipynb").write_text("{}")
    made.with_name("leak.md").unlink()
    shutil.rmtree(project / "_build")
    run.clean()
    left = ["notebooks/Untitled.ipynb", "notebooks/doe2020/copy.ipynb", "notebooks/doe2020/edited.ipynb"]
    assert tree(project / "notebooks") == sorted(["doe2020", *(name.removeprefix("notebooks/") for name in left)])
    assert capsys.readouterr().out.splitlines() == [f"left: {project / n}, not as the book made it" for n in left]


def test_copy_under_another_name_leaves_a_record_of_its_own(project):
    shutil.copy(project / "notebooks/doe2020/leak.md", project / "notebooks/doe2020/copy.md")
    assert run.main(["doe2020/copy", "-p", "tau", "3"]) == 0
    assert (project / RECORD.replace("leak", "copy")).read_text() == "6.0"
    assert (project / RECORD).read_text() == "4.0"


def test_chapter_that_leaves_no_record_has_failed(project, capsys):
    add(project, "lost", "Chapter = print\nChapter('doe2020/leak')")
    assert run.main(["doe2020/lost"]) == 1
    assert f"it has a Chapter, and left no record in {project}/_build/records/doe2020/lost" in capsys.readouterr().err


def test_record_that_another_run_has_put_there_meanwhile_is_not_taken_for_its_own(project):
    """Of two at once."""
    theirs = "digests, 'parameters': {'tau': 7.0}"
    add(project, "other", LEAK.replace("digests,", f"{theirs},"))
    assert run.main(["doe2020/other"]) == 0
    assert run.main(["--check", "doe2020/other"]) == 1


def test_other_parameters_run_it_anew_and_out_keeps_that_run_apart(project, capsys):
    (project / "2018/more").mkdir(parents=True)
    words = ["doe2020/leak", "-p", "tau", "9", "-p", "mine", "2018", "--out", "runs/nine"]
    kept = project / "runs/nine/.checkpoints/book/doe2020/leak"
    for name in ("ab.pt", ".ab.77.pt", "of another seed.pt"):
        kept.mkdir(parents=True, exist_ok=True)
        (kept / name).touch()
    assert run.main(["--check", *words[:3], "9"]) == 1
    assert run.main(words) == 0
    assert (project / "runs/nine/doe2020/leak/results.nc").read_text() == "18.0"
    made = nbformat.read(project / "runs/nine/doe2020/leak.ipynb", as_version=4)
    shown = [o.text for c in made.cells for o in c.get("outputs", [])]
    assert shown == [f"tau is 18.0 mine is {project / '2018'}\n"]  # a path is handed on whole, and as it was given
    assert tree(kept) == ["of another seed.pt"]
    assert (project / RECORD).read_text() == "4.0"
    assert run.main(["--check"]) == run.main(["--check", *words]) == 0
    (project / "2018/more/new").write_text("")
    assert run.main(["--check", *words]) == 1
    assert run.main(["--check", "-p", "hours", "0"]) == 1  # there is always more to train


def test_folder_of_data_may_hold_anything(project):
    (project / "data").mkdir()
    (project / "data/nowhere").symlink_to("nosuch")
    with socket.socket(socket.AF_UNIX) as end:
        os.chdir(project / "data")  # its whole path may be too long for a socket
        end.bind("socket")
        assert run.main(["--check", "-p", "mine", "."]) == 1


def test_readers_kernels_and_start_up_change_nothing_and_paths_are_literal(project, monkeypatch):
    spec = {"argv": ["/nosuch/python", "{connection_file}"], "display_name": "Mine", "language": "python"}
    (project / "own/kernels/python3").mkdir(parents=True)
    (project / "own/kernels/python3/kernel.json").write_text(json.dumps(spec))
    (project / "start.py").write_text("import builtins; builtins.print = None")
    patch = {"JUPYTER_PATH": project / "own", "PYTHONSTARTUP": project / "start.py"}
    for name, value in patch.items():
        monkeypatch.setitem(os.environ, name, str(value))
    assert run.main(["--out", "a {b} {{c}} %s $HOME ~ \u00fc", "-p", "tau", "3"]) == 0
    assert (project / "a {b} {{c}} %s $HOME ~ \u00fc/doe2020/leak.ipynb").exists()


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


@pytest.mark.parametrize(("cores", "given", "threads"), [({0}, "", "1"), ({1, 3, 5}, "", "3"), ({0}, "5", "5")])
def test_as_many_threads_as_cores_that_may_be_used_unless_told(project, monkeypatch, cores, given, threads):
    monkeypatch.setattr(run, "execute", lambda job: "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ |= {"OMP_NUM_THREADS": given} if given else {}
    assert run.main(["-p", "tau", "3"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == threads


def test_what_took_longest_when_it_was_recorded_begins_first(project, monkeypatch):
    begun = []
    monkeypatch.setattr(run, "execute", lambda job: begun.append(job.name) or "")
    (project / "results/doe2020").mkdir(parents=True)
    for name, made in (("a", "{}"), ("b", '{"seconds": 7}'), ("c", '{"seconds": 70.5}'), ("d", "no record")):
        add(project, name, "1")
        (project / f"results/doe2020/{name}.paper.json").write_text(made)
    assert run.main([f"doe2020/{name}" for name in "abcd"]) == 0
    assert begun == [f"doe2020/{name}" for name in "cbad"]


def checkout(root, name, code):
    """A project that runs by itself, with one notebook."""
    shutil.copytree(ROOT / "ts_helpers" / "book", root / "ts_helpers" / "book")
    for file in ("ts_helpers/__init__.py", "ts_helpers/run.py", "book/claims.yml"):
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    add(root, name, code)


def wait_for(found, seconds=60):
    until = time.monotonic() + seconds
    while not (there := found()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return there


@pytest.mark.parametrize(
    ("how", "tell", "code"),
    [
        (signal.SIGKILL, os.killpg, -9),
        (signal.SIGKILL, os.kill, -9),
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGTERM, os.kill, 143),
    ],
)
def test_interrupted_run_ends_at_once_with_all_its_processes_and_leaves_nothing_half_written(tmp_path, how, tell, code):
    checkout(tmp_path, "slow", SLOW)
    add(tmp_path, "slower", SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "ts_helpers.run"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        start_new_session=True, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    partial = tmp_path / "notebooks/doe2020/.slow.partial.ipynb"
    wait_for(lambda: partial.exists() and "time.sleep" in partial.read_text())
    time.sleep(0.5)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 3  # worker, kernel, and what keeps account of them
    tell(process.pid, how)
    assert process.wait(timeout=5) == code
    assert psutil.wait_procs(started, timeout=5)[1] == []
    assert not list((tmp_path / "notebooks").rglob("[!.]*.ipynb"))
    assert not list((tmp_path / "notebooks").rglob("*slower*ipynb"))  # what waited has not begun
    assert not list((tmp_path / "_build").rglob("slow*"))


def test_checkout_that_cannot_be_written_to_runs_with_out(tmp_path):
    book, out = tmp_path / "book", tmp_path / "out"
    checkout(book, "leak", "import os; os.makedirs(os.environ['TS_CHECKPOINTS'])")
    folders = [book, *(path for path in book.rglob("*") if path.is_dir())]
    (book / "notebooks/mine.md").touch(0)
    for folder in folders:
        folder.chmod(0o555)
    how = dict(cwd=book, env=os.environ | {"PYTHONPATH": str(book)}, stderr=subprocess.PIPE, text=True)
    if os.geteuid() == 0:  # who may do all, unless its processes lack CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        how["preexec_fn"] = lambda: [ctypes.CDLL(None).prctl(24, each) for each in (1, 2)]
    words = [sys.executable, "-m", "ts_helpers.run", "doe2020/leak"]
    refused, done = (subprocess.run([*words, *more], **how) for more in ([], ["--out", out]))
    for folder in folders:
        folder.chmod(0o755)
    assert refused.returncode == 2
    assert f"--out must name a folder to write to, got {book}/notebooks/doe2020: Permission denied" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert tree(out) == [".checkpoints", "doe2020", "doe2020/leak.ipynb"]


def test_cost_is_noted_whatever_the_seed_and_held_against_the_run_of_the_same(project, capsys):
    (project / "results").mkdir()
    assert run.main(["--cost", "--archive"]) == 0
    assert "doe2020/leak, expected to take 0" in capsys.readouterr().out
    job = run.Job("doe2020/leak")
    seconds, _, failed = json.loads(job.cost.read_bytes())
    assert (failed, job.cost) == (0, run.Job("doe2020/leak", {"seed": "7"}).cost)
    assert run.main(["--cost", "--archive", "-p", "tau", "3"]) == 0  # it did not run
    assert json.loads((project / "results/costs.json").read_bytes()) == {"doe2020/leak": [seconds, job.last["seconds"]]}


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [("os._exit(1)", 1, "not known"), ("raise ValueError", 0, "or more: 1 cells failed in the rehearsal")],
)
def test_what_a_rehearsal_cannot_do_is_told_and_a_run_at_paper_scale_goes_on(project, capsys, code, status, told):
    add(project, "odd", f'import os\nif "TS_REHEARSE" in os.environ:\n    {code}\nprint(tau)')
    assert run.main(["doe2020/odd", "--scale", "paper", "--out", "runs"]) == 0
    assert told in capsys.readouterr().out
    assert run.main(["doe2020/odd", "--scale", "paper", "--cost"]) == status


def test_what_is_refused_is_not_rehearsed(project):
    with pytest.raises(SystemExit):
        run.main(["--scale", "paper", "--out", "/dev/null"])
    assert not (project / "_build" / "costs").exists()
