"""Execute the book's notebooks: text in, executed notebook and record out, only what is out of date; no pages here."""

import argparse
import ast
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from copy import deepcopy
from functools import cache, cached_property, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from subprocess import CalledProcessError
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import jupytext
import nbformat
import papermill
import psutil
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from ts_helpers.book import paths
from ts_helpers.book.claims import read_claims
from ts_helpers.book.parameters import SCALES, Parameter, read_parameters
from ts_helpers.book.paths import NOTEBOOKS, RESULTS, ROOT, digest, in_the_way, intact, locked, versions

ARROW = re.compile(r"-+> +\d+ (.*)")  # what IPython has before the line that failed
BLOCKED = "in the way: {}, not as the book made it; move it, delete it, or choose an --out"
PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"  # KiB, but bytes on macOS
KERNEL, KERNEL_OPTIONS = "ts_helpers", ["--IPKernelApp.log_level=50", "--IPKernelApp.exec_PYTHONSTARTUP=False"]
ROLE = re.compile(r"\{eval\}`([^`]+)`")  # a number in prose: an expression, which is worked out where it stands


class Job:
    """One notebook, the parameters it is to run with, and where what comes out lies: in the book or below ``out``."""

    def __init__(self, name: str, given: dict[str, str] | None = None, out: Path | None = None):
        self.name, self.given = name, given or {}
        self.source = NOTEBOOKS / f"{name}.md"
        self.executed = (out or NOTEBOOKS) / f"{name}.ipynb"
        self.partial = self.executed.with_name(f".{self.executed.stem}.partial.ipynb")  # until it has succeeded
        self.records = out or ROOT / "_build" / "records"
        self.record = self.records / name
        self.checkpoints = out / ".checkpoints" if out else ROOT / "_build" / "checkpoints"

    @cached_property
    def notebook(self) -> NotebookNode:
        """The source as a notebook."""
        return jupytext.reads(self.source.read_text("utf-8"), fmt="md")

    @cached_property
    def declared(self) -> dict[str, Parameter]:
        """What the notebook's parameters cell declares; ValueError if there is not exactly one such cell."""
        cells = [c.source for c in self.notebook.cells if "parameters" in c.metadata.get("tags", [])]
        if len(cells) != 1:
            raise ValueError(f"there must be exactly one cell tagged parameters, there are {len(cells)}")
        declared = read_parameters(cells[0])
        if "scale" not in declared:
            raise ValueError(f"there must be a parameter scale, there are {', '.join(declared)}")
        return declared

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """All parameters, those given each read by its own rule; a ValueError names what would be valid."""
        try:
            own = {name: each.default for name, each in self.declared.items()}
            if unknown := [name for name in self.given if name not in own]:
                raise ValueError(f"no parameter is called {unknown[0]!r}; there are {', '.join(own)}")
            return own | {name: self.declared[name].read(text) for name, text in self.given.items()}
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    @cached_property
    def helpers(self) -> list[Path]:
        """The files of ``ts_helpers`` that the notebook imports, directly or through one another."""
        todo, found = [c.source for c in self.notebook.cells if c.cell_type == "code"], set[Path]()
        try:
            while todo:
                stems = [ROOT.joinpath(*name.split(".")) for name in imported(todo.pop())]
                files = {file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")}
                new = {file for file in files - found if file.is_file()}
                found |= new
                todo += [file.read_text("utf-8") for file in new]
        except SyntaxError:  # a magic, or a mistake: let every helper count
            found = {*(ROOT / "ts_helpers").rglob("*.py")}
        return sorted(found)

    @cached_property
    def fingerprint(self) -> str:
        """One digest of all that decides the outputs: text, helpers, claims, versions, parameters, archived runs."""
        claims = [repr(claim) for claim in read_claims().values() if claim.chapter == self.name]
        own = [Path(value) for name, value in self.parameters.items() if self.declared[name].is_path and value]
        data = [file for at in own for file in (at, *sorted(at.rglob("*"))) if os.path.isfile(file)]
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in data]
        others = (RESULTS / self.name).parent.glob("*.paper.*")  # a chapter may draw on its paper's
        text = json.dumps([self.parameters, claims, versions(), files], sort_keys=True)
        read = [self.source, *self.helpers, *sorted(filter(Path.is_file, others))]
        return digest(text, *[part for path in read for part in (path.relative_to(ROOT).as_posix(), path)])

    @cached_property
    def last(self) -> dict[str, Any]:
        """What the last successful run says of itself: inputs, record, scale, seconds; nothing if changed since."""
        try:
            notebook = nbformat.read(self.executed, as_version=4)
            made = dict(notebook.metadata["ts"])
            return made if made.pop("mark") == self.mark(notebook, made) else {}
        except Exception:  # whatever else a file of this name may hold
            return {}

    def mark(self, notebook: NotebookNode, made: dict[str, Any]) -> str:
        """Return what tells a notebook as the book made it from one changed since, or copied to another name."""
        seen = [(cell.source, cell.get("outputs")) for cell in notebook.cells]
        return digest(json.dumps([self.name, seen, made], sort_keys=True))

    @property
    def is_foreign(self) -> bool:
        """True if the executed notebook that is there now is not as the book made it."""
        vars(self).pop("last", None)
        return os.path.lexists(self.executed) and not self.last

    def blocked(self) -> list[Path]:
        """Return what is in the way: a run would replace it, and it is not as the book made it."""
        with locked(self.record.parent) if self.record.parent.is_dir() else nullcontext():
            record = in_the_way(self.record)
        return [self.executed] * self.is_foreign + ([record] if record else [])

    @property
    def ran(self) -> str:
        """How long the last run took, and at which scale; and what the next one will take, if that is known."""
        if self.last:
            return "last run {seconds:g} s at scale {scale}".format(**self.last) + self.expected
        return ("not as the book made it" if os.path.lexists(self.executed) else "not run yet") + self.expected

    @cached_property
    def cost(self) -> Path:
        """Where what it takes on this machine is noted, whichever the seed: seconds, MB, cells that failed."""
        others = Job(self.name, {name: text for name, text in self.given.items() if name != "seed"})
        return ROOT / "_build" / "costs" / f"{others.fingerprint[:16]}.json"

    @property
    def expected(self) -> str:
        """What a run will take, if it was rehearsed here, in words."""
        if not self.cost.exists():
            return ""
        seconds, megabytes, failed = json.loads(self.cost.read_bytes())
        told = f", expected to take {seconds / 60:.2g} min and {megabytes / 1000:.1f} GB"
        return told + f", or more: {failed} cells failed in the rehearsal" * bool(failed)

    def effort(self) -> float:
        """Return the seconds of the recorded run, 0 if there is none: what is long must not be left for the end."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            return float(json.loads((RESULTS / f"{self.name}.paper.json").read_bytes())["seconds"])
        return 0.0

    def is_current(self) -> bool:
        """True if the executed notebook and its record are what these inputs gave, untouched since."""
        inputs = self.fingerprint  # in any case: of the text as it was read, whatever is edited until its turn comes
        return bool(self.last) and self.last.get("record") == intact(self.record) and self.last["inputs"] == inputs


@cache
def imported(source: str) -> set[str]:
    """Return the modules of ``ts_helpers`` that a source may import, packages too."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
    parts = [name.split(".") for name in names if name.partition(".")[0] == "ts_helpers"]
    return {".".join(part[: i + 1]) for part in parts for i in range(len(part))}


def expand(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook with a cell before each text that asks for numbers, and their names in the text.

    ``{eval}`tau:.1f``` is what ``f"{tau:.1f}"`` makes of it. Sphinx, which runs nothing, finds it by its name in glue.
    What stands above the parameters is worked out at the end: there it tells what was found.
    """
    made, count, above, last = deepcopy(notebook), itertools.count(), True, list[NotebookNode]()
    made.cells = []
    for cell in deepcopy(notebook.cells):
        if cell.cell_type == "markdown" and (expressions := ROLE.findall(cell.source)):
            names = {f"eval-{next(count)}": expression for expression in expressions}
            lines = [f'glue("{name}", f"""{{{expression}}}""", display=False)' for name, expression in names.items()]
            source = "\n".join(["from myst_nb import glue", *lines])
            work = new_code_cell(source, id=next(iter(names)), metadata={"tags": ["remove-cell"]})
            (last if above else made.cells).append(work)
            for name in names:
                cell.source = ROLE.sub(f"{{glue:text}}`{name}`", cell.source, count=1)
        made.cells.append(cell)
        above = above and "parameters" not in cell.metadata.get("tags", [])
    made.cells += last
    return made


def execute(job: Job) -> str:
    """Run one notebook in this process's own kernel; return what went wrong, or nothing: ""."""
    start, inputs, before = time.perf_counter(), job.fingerprint, intact(job.record)
    found = job.executed.read_bytes() if job.executed.exists() else b""
    own = job.partial.with_name(f".{job.executed.stem}.{os.getpid()}.partial.ipynb")  # if two run it at once
    os.environ |= {"TS_RECORDS": str(job.records), "TS_CHECKPOINTS": str(job.checkpoints), "TS_NOTEBOOK": job.name}
    # papermill shows what it sets: only what differs from the page's own cell
    changed = {name: value for name, value in job.parameters.items() if value != job.declared[name].default}
    try:
        bar = dict(desc=job.name, unit="cell", leave=False, disable=None)  # only on a terminal
        ahead, tell = f"            {job.name}  ", partial(print, file=sys.stderr, flush=True)
        log = SimpleNamespace(write=lambda s: tell(indent(s.rstrip("\n"), ahead, bool)), flush=sys.stderr.flush)
        where: dict[str, Any] = dict(kernel_name=KERNEL, language="python", cwd=job.source.parent, stderr_file=log)
        path = re.sub("([{}])", r"\1\1", str(job.partial))  # papermill formats it
        notebook = papermill.execute_notebook(expand(job.notebook), path, changed, progress_bar=bar, **where)
        with locked(job.record.parent):
            record = intact(job.record)
            told = json.loads((job.record / paths.RECORD[2]).read_bytes()) if record else {}
        if record in ("", before) and any(re.search(r"\bChapter\(", cell.source) for cell in notebook.cells):
            return f"it has a Chapter, and left no record in {job.record}"
        for part in (notebook, *notebook.cells):  # timings, which differ between equal runs, and this machine's paths
            for key in ("papermill", "execution"):
                part.metadata.pop(key, None)
        scale, seconds = job.parameters["scale"], time.perf_counter() - start
        of = {name: told[name] for name in ("scale", "seed") if name in told} | told.get("parameters", {})
        if any(of.get(name, value) != value for name, value in job.parameters.items()):
            record = ""  # another run's, at the same time: whoever comes next runs it again
        made = dict(inputs=inputs, record=record, scale=scale, seconds=round(seconds, 1))
        notebook.metadata["ts"] = made | {"mark": job.mark(notebook, made)}
        nbformat.write(notebook, own)
        if job.is_foreign and job.executed.read_bytes() != found:  # changed while this ran
            return BLOCKED.format(job.executed)
        os.replace(own, job.executed)
        job.partial.unlink(missing_ok=True)
        if record:
            paths.remove_checkpoints(told.get("checkpoints", []), job.checkpoints / scale / job.name)
        print(f"executed    {job.name}  {seconds:.1f} s", flush=True)
        return ""
    except papermill.PapermillExecutionError as error:
        text = f"code cell {error.exec_count}: {error.ename}: {error.evalue}\n{''.join(error.traceback)}"
        problem, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")
        return problem + next((f"\n            in {at[1]}" for line in lines if (at := ARROW.match(line))), "")
    except Exception as error:  # a dead kernel, a full disk: the other notebooks go on
        return f"{type(error).__name__}: {error}"
    finally:
        own.unlink(missing_ok=True)


def rehearse(job: Job) -> str:
    """Note what a run will take here, from a few timed steps of each training by `fit`; return what went wrong, or "".

    Trainings that stop early are taken to go on to their end.
    """
    start = time.perf_counter()
    how: dict[str, Any] = dict(kernel_name=KERNEL, language="python", prepare_only=True, progress_bar=False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            notebook = papermill.execute_notebook(expand(job.notebook), None, job.parameters, **how)
            notebook.cells.append(new_code_cell(PEAK))
            (steps := Path(folder, "steps")).touch()
            os.environ |= dict.fromkeys(("TS_RECORDS", "TS_CHECKPOINTS"), folder)
            os.environ |= {"TS_NOTEBOOK": job.name, "TS_REHEARSE": str(steps)}
            at = {"metadata": {"path": str(job.source.parent)}}
            NotebookClient(notebook, timeout=None, allow_errors=True, kernel_name=KERNEL, resources=at).execute()
            outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
            failed = sum(output.output_type == "error" for output in outputs)
            megabytes = round(int(outputs[-1].text) / (2**20 if sys.platform == "darwin" else 2**10))
            seconds = time.perf_counter() - start + sum(map(float, steps.read_text().split()))
            job.cost.parent.mkdir(parents=True, exist_ok=True)
            made = job.cost.with_name(f".{job.cost.name}.{os.getpid()}")  # others of a sweep may note the same
            made.write_text(json.dumps([round(seconds, 1), megabytes, failed]))
            os.replace(made, job.cost)
        except Exception as error:  # a dead kernel, a full disk
            return f"{type(error).__name__}: {error}"
        finally:
            os.environ.pop("TS_REHEARSE", None)
    return ""


def foresee(jobs: list[Job], workers: int) -> int:
    """Say what runs will take, after a rehearsal of those that had none; return how many could not be rehearsed."""
    unknown = [job for job in jobs if not job.cost.exists()]
    print("".join(f"rehearsing  {job.name}\n" for job in unknown), end="", flush=True)
    failed = execute_all(unknown, min(workers, len(unknown)), rehearse) if unknown else 0
    print("".join(f"            {job.name}{job.expected or ', not known'}\n" for job in jobs), end="", flush=True)
    return failed


def kill_children() -> None:
    """End all processes that this one has started, and theirs."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def end_with_runner() -> None:
    """Let this worker and its kernel end with the runner, however that ends, and leave Ctrl-C to the runner."""

    def stop(*_: Any) -> None:
        kill_children()
        os._exit(128 + signal.SIGTERM)

    def wait() -> None:
        if runner := parent_process():
            runner.join()
            stop()

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=wait, daemon=True).start()


def execute_all(jobs: list[Job], workers: int, work: Callable[[Job], str] | None = None) -> int:
    """Run notebooks in processes of their own, by ``work`` in the place of `execute`; return how many failed."""
    failed = 0
    # those that this process may use, in a job on a cluster fewer than there are; macOS does not tell
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # a reader's own IPython profile and kernels must not change the results; nor need ipykernel log
        write_kernel_spec(f"{profile}/kernels/{KERNEL}", extra_arguments=KERNEL_OPTIONS)
        built = next(p for p in (ROOT / "_build" / "compiled", ROOT / "_build", ROOT) if p.exists())
        if not os.access(built, os.W_OK):
            os.environ.setdefault("NUMBA_CACHE_DIR", profile)
        os.environ |= {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),  # absolute
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # glibc gives large arrays back to the system at once, and has their pages made anew a step later
            **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30)),
            **dict.fromkeys(("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), profile),
            "JUPYTER_PATH": os.pathsep.join(filter(None, [profile, os.environ.get("JUPYTER_PATH")])),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        # processes, not threads: papermill changes the working directory of its whole process
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_runner) as pool:
            try:
                running = {pool.submit(work or execute, job): job for job in sorted(jobs, key=Job.effort, reverse=True)}
                for done in as_completed(running):
                    try:
                        problem = done.result()
                    except BrokenProcessPool:
                        problem = "its process was killed (out of memory?)"
                    if problem:
                        failed += 1
                        see = f"\n            see {running[done].partial}" * running[done].partial.exists()
                        print(f"FAILED      {running[done].name}, {problem}{see}", file=sys.stderr, flush=True)
            except BaseException:  # Ctrl-C, SIGTERM; what waits must not begin
                kill_children()
                raise
    return failed


def chapters() -> list[str]:
    """Return the names of the book's notebooks, those that ``_toc.yml`` lists; others may lie beside them."""
    return re.findall(r"""file: ["']?notebooks/(.+)\.ipynb""", (ROOT / "_toc.yml").read_text())


def find(names: list[str]) -> list[str]:
    """Return the names of the notebooks meant, the book's if none is; a ValueError names one that is unknown."""
    found = []
    for name in names:
        path = Path(os.path.realpath(name))
        stem = path.relative_to(NOTEBOOKS).as_posix() if path.is_relative_to(NOTEBOOKS) else name
        found.append(stem.removesuffix(".md").removesuffix(".ipynb"))
        if not (NOTEBOOKS / f"{found[-1]}.md").is_file():
            raise ValueError(f"no notebook {name!r}; there are {', '.join(chapters())}")
    return list(dict.fromkeys(found)) or chapters()


def clean() -> None:
    """Remove the executed notebooks that are as the book made them; name the others, which stay."""
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        name = path.relative_to(NOTEBOOKS).as_posix().removesuffix(".ipynb")
        if re.fullmatch(r"\..*\.partial\.ipynb", path.name) or Job(name).last:
            path.unlink()
        elif "/." not in f"/{name}":
            print(f"left: {path}, not as the book made it")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if a notebook failed or is out of date, 2 if refused."""
    said = "Execute the book's notebooks; those whose inputs have not changed are skipped."
    parser = argparse.ArgumentParser(prog="python -m ts_helpers.run", description=said)
    add = parser.add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="matsuki2018/oscillator or its file; default: all")
    add("--scale", choices=SCALES, help="the same as -p scale S; default: book")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given", help="set a parameter")
    add("--out", type=Path, metavar="DIR", help="put notebooks and records there, not in the book")
    add("--jobs", type=int, default=1, metavar="N", help="notebooks at a time; default: 1")
    add("--archive", action="store_true", help="put it below results/, for the book to show; of scale paper, or --cost")
    add("--reproduce", type=Path, metavar="RECORD", help="run again what made a record, and say what differs")
    add("--cost", action="store_true", help="say time and memory that runs will take here, from a few timed steps")
    add("--check", action="store_true", help="only say what is out of date; exit 1 if anything is")
    add("--list", action="store_true", help="list notebooks, parameters and last run times")
    options = parser.parse_args(argv)
    given = dict(options.given) | ({"scale": options.scale} if options.scale else {})
    if options.archive and not (options.cost or options.reproduce) and given.get("scale") != "paper":
        parser.error(f"--archive needs --scale paper, got {given.get('scale', 'book')}")
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {options.jobs}")
    try:
        if options.reproduce:
            from ts_helpers.book.reproduce import reproduce  # here: it needs xarray, which the rest starts without

            answer, how = reproduce(options.reproduce, options.archive)
            print(f"{options.reproduce}: {answer} ({how})")
            return int(answer.startswith("different"))
        out = options.out and Path(os.path.realpath(options.out))
        jobs = [Job(name, given, out) for name in find(options.notebooks)]
        for job in jobs:
            job.parameters  # noqa: B018  (refused now, before anything runs)
        if options.list:
            for job in jobs:
                lines = [f"  {p.name:<12} {p.default!r:<8} {p.rule}; {p.meaning}" for p in job.declared.values()]
                print(f"{job.name}  ({job.ran})", *lines, "", sep="\n")
            return 0
        if options.cost:
            failed = foresee(jobs, options.jobs)
            ran = [job for job in jobs if job.cost.exists() and job.is_current()] if options.archive else []
            if both := {job.name: [json.loads(job.cost.read_bytes())[0], job.last["seconds"]] for job in ran}:
                noted = RESULTS / "costs.json"
                before = json.loads(noted.read_bytes()) if noted.exists() else {}
                noted.write_text(json.dumps(before | both, indent=1) + "\n")
            return int(failed > 0)
        todo = [job for job in jobs if not job.is_current()]
    except (ValueError, OSError, CalledProcessError) as error:
        parser.error("--reproduce: " * bool(options.reproduce) + str(error))
    for job in jobs:
        word = "up to date " if job not in todo else "OUT OF DATE" if options.check else "to run     "
        print(f"{word} {job.name}" + f", {job.ran}" * (job in todo), flush=True)
    folder = options.out
    try:
        blocked = [path for job in todo for path in job.blocked()]
        print("".join(BLOCKED.format(path) + "\n" for path in blocked), end="", file=sys.stderr)
        if options.check or blocked:
            return int(bool(todo)) if options.check else 2
        for folder in dict.fromkeys(folder for job in todo for folder in (job.executed.parent, job.record.parent)):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        parser.error(f"--out must name a folder to write to, got {folder}: {error.strerror}")
    if given.get("scale") == "paper":
        foresee(todo, options.jobs)
    failed = execute_all(todo, min(options.jobs, len(todo))) if todo else 0
    if options.archive and not failed:
        from ts_helpers.book.records import load, put  # here: it needs xarray, which the rest starts without

        try:
            for job in jobs:
                put(job.record / paths.RECORD[0], load(job.record).provenance)
                print(f"archived    results/{job.name}.paper.nc")
        except (ValueError, OSError) as error:
            print(f"cannot archive: {error}", file=sys.stderr)
            return 1
    return int(failed > 0)
