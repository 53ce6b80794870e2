"""Execute the book's notebooks: text in, executed notebook and record out, only what is out of date; no pages here."""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, cached_property, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import jupytext
import nbformat
import papermill
from nbformat import NotebookNode

from ts_helpers.book.claims import read_claims
from ts_helpers.book.inline import expand
from ts_helpers.book.parameters import SCALES, Parameter, read_parameters, read_value
from ts_helpers.book.paths import NOTEBOOKS, PACKAGES, RESULTS, ROOT, digest

ARROW = re.compile(r"-+> +\d+ (.*)")  # what IPython has before the line that failed


class Job:
    """One notebook, the parameters it is to run with, and where what comes out lies: in the book or below ``out``."""

    def __init__(self, name: str, parameters: dict[str, Any] | None = None, out: Path | None = None):
        self.name, self.parameters = name, dict(parameters or {})
        self.source = NOTEBOOKS / f"{name}.md"
        self.executed = (out or NOTEBOOKS) / f"{name}.ipynb"
        self.partial = self.executed.with_name(f".{self.executed.stem}.partial.ipynb")  # until it has succeeded
        self.records = out or ROOT / "_build" / "records"

    @cached_property
    def notebook(self) -> NotebookNode:
        """The source as a notebook."""
        return jupytext.read(self.source)

    @cached_property
    def declared(self) -> dict[str, Parameter]:
        """What the notebook's parameters cell declares; ValueError if there is not exactly one such cell."""
        cells = [c.source for c in self.notebook.cells if "parameters" in c.metadata.get("tags", [])]
        if len(cells) != 1:
            raise ValueError(f"there must be exactly one cell tagged parameters, there are {len(cells)}")
        return read_parameters(cells[0])

    def check_parameters(self) -> None:
        """Raise a ValueError that names what would be valid; make paths absolute, for the kernel."""
        try:
            declared = self.declared
            for name, value in self.parameters.items():
                if name not in declared:
                    raise ValueError(f"no parameter is called {name!r}; there are {', '.join(declared)}")
                declared[name].check(value)
                if declared[name].is_path and value:
                    self.parameters[name] = str(Path(value).resolve())
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
                todo += [file.read_text() for file in new]
        except SyntaxError:  # a magic, or a mistake: let every helper count
            found = {*(ROOT / "ts_helpers").rglob("*.py")}
        return sorted(found)

    @cached_property
    def fingerprint(self) -> str:
        """One digest of all that decides the outputs: text, helpers, claims, versions, parameters, archived runs."""
        parameters = {name: p.default for name, p in self.declared.items()} | self.parameters
        claims = [repr(claim) for claim in read_claims().values() if claim.chapter == self.name]
        own = [Path(value) for name, value in self.parameters.items() if self.declared[name].is_path and value]
        files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for at in own for f in (at, *sorted(at.glob("*")))]
        archived = sorted((RESULTS / self.name).parent.glob("*.paper.*"))  # a chapter may draw on its paper's others
        text = json.dumps([parameters, claims, [version(name) for name in PACKAGES], files], sort_keys=True)
        read = [self.source, *self.helpers, *archived]
        return digest(text, *[part for path in read for part in (path.relative_to(ROOT).as_posix(), path)])

    @cached_property
    def last(self) -> dict[str, Any]:
        """What the last successful run left of itself: inputs, outputs, scale, seconds; or nothing."""
        try:
            notebook = nbformat.read(self.executed, as_version=4)
        except (OSError, ValueError, nbformat.reader.NotJSONError):
            return {}
        made = dict(notebook.metadata.get("ts", {}))
        return made | {"untouched": made.get("outputs") == self.outputs(notebook)} if made else {}

    def outputs(self, notebook: NotebookNode) -> str:
        """Return a digest of what the reader would see, and of the record's files."""
        seen = json.dumps([(c.source, c.get("outputs")) for c in notebook.cells], sort_keys=True)
        return digest(seen, *[part for f in sorted((self.records / self.name).glob("*")) for part in (f.name, f)])

    @property
    def ran(self) -> str:
        """How long the last run took, and at which scale."""
        return "last run {seconds:g} s at scale {scale}".format(**self.last) if self.last else "not run yet"

    def is_current(self) -> bool:
        """True if the executed notebook and its record are what these inputs gave, untouched since."""
        if self.parameters.get("hours") is not None or not self.last:  # whoever asks for hours wants to train on
            return False
        return self.last["untouched"] and self.last["inputs"] == self.fingerprint


@cache
def imported(source: str) -> set[str]:
    """Return the modules of ``ts_helpers`` that a source may import, packages too."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names]
    parts = [name.split(".") for name in names if name.partition(".")[0] == "ts_helpers"]
    return {".".join(part[: i + 1]) for part in parts for i in range(len(part))}


def execute(job: Job) -> str:
    """Run one notebook in this process's own kernel; return what went wrong, or nothing: ""."""
    start = time.perf_counter()
    job.executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ["TS_RECORDS"] = str(job.records)
    # papermill shows what it sets: only what differs from the page's own cell
    changed = {name: value for name, value in job.parameters.items() if value != job.declared[name].default}
    try:
        bar = dict(desc=job.name, unit="cell", leave=False, disable=None)  # only on a terminal
        before, tell = f"            {job.name}  ", partial(print, file=sys.stderr, flush=True)
        log = SimpleNamespace(write=lambda s: tell(indent(s.rstrip("\n"), before, bool)), flush=sys.stderr.flush)
        where: dict[str, Any] = dict(kernel_name="python3", cwd=job.source.parent, progress_bar=bar, stderr_file=log)
        notebook = papermill.execute_notebook(expand(job.notebook), job.partial, parameters=changed, **where)
        for part in (notebook, *notebook.cells):  # timings, which differ between equal runs, and this machine's paths
            for key in ("papermill", "execution"):
                part.metadata.pop(key, None)
        scale, seconds = job.parameters.get("scale", job.declared["scale"].default), time.perf_counter() - start
        made = dict(inputs=job.fingerprint, outputs=job.outputs(notebook), scale=scale, seconds=round(seconds, 1))
        notebook.metadata["ts"] = made
        nbformat.write(notebook, job.partial)
        os.replace(job.partial, job.executed)
        print(f"executed    {job.name}  {seconds:.1f} s", flush=True)
        return ""
    except papermill.PapermillExecutionError as error:
        text = f"code cell {error.exec_count}: {error.ename}: {error.evalue}\n{''.join(error.traceback)}"
        problem, *lines = re.sub(r"\x1b\[[0-9;]*m", "", text).split("\n")
        return problem + next((f"\n            in {at[1]}" for line in lines if (at := ARROW.match(line))), "")
    except Exception as error:  # a dead kernel, a full disk: the other notebooks go on
        return f"{type(error).__name__}: {error}"


def execute_all(jobs: list[Job], workers: int) -> int:
    """Run notebooks in processes of their own; return how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as profile:
        # a reader's own IPython profile must not change the results; nor need ipykernel log
        config = Path(profile, "profile_default", "ipython_kernel_config.py")
        config.parent.mkdir()
        config.write_text("c = get_config()\nc.IPKernelApp.log_level = 50\n")
        os.environ |= {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),  # absolute
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # glibc gives large arrays back to the system at once, and has their pages made anew a step later
            **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**30)),
            "IPYTHONDIR": profile,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        if any(ROOT / "ts_helpers" / "cells.py" in job.helpers for job in jobs):  # once, not in each worker
            subprocess.run([sys.executable, "-m", "ts_helpers.engine"])  # what fails here fails in a notebook by name
        # processes, not threads: papermill changes the working directory of its whole process
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(execute, job): job for job in jobs}
            for done in as_completed(running):
                try:
                    problem = done.result()
                except BrokenProcessPool:
                    problem = "its process was killed (out of memory?)"
                if problem:
                    failed += 1
                    text = f"FAILED      {running[done].name}, {problem}\n            see {running[done].partial}"
                    print(text, file=sys.stderr, flush=True)
    return failed


def find(names: list[str]) -> list[str]:
    """Return the names of the notebooks meant, all if none is; ValueError if one is unknown, naming those there are."""
    files = [f.relative_to(NOTEBOOKS).with_suffix("").as_posix() for f in sorted(NOTEBOOKS.rglob("*.md"))]
    known = [name for name in files if "/." not in f"/{name}"]
    found = []
    for name in names:
        path = Path(name).resolve()
        stem = path.relative_to(NOTEBOOKS).with_suffix("").as_posix() if path.is_relative_to(NOTEBOOKS) else name
        if stem not in known:
            raise ValueError(f"no notebook {name!r}; there are {', '.join(known)}")
        found.append(stem)
    return list(dict.fromkeys(found)) or known


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if a notebook failed or is out of date, 2 if refused, 130 if interrupted."""
    said = "Execute the book's notebooks; those whose inputs have not changed are skipped."
    parser = argparse.ArgumentParser(prog="python -m ts_helpers.run", description=said)
    add = parser.add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="matsuki2018/oscillator or its file; default: all")
    add("--scale", choices=SCALES, help="the same as -p scale S; default: book")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given", help="set a parameter")
    add("--out", type=Path, metavar="DIR", help="put notebooks and records there, not in the book")
    add("--jobs", type=int, default=1, metavar="N", help="notebooks at a time; default: 1")
    add("--archive", action="store_true", help="put results below results/, for the book to show; scale paper only")
    add("--check", action="store_true", help="only say what is out of date; exit 1 if anything is")
    add("--list", action="store_true", help="list notebooks, parameters and last run times")
    options = parser.parse_args(argv)
    parameters = {name: read_value(value) for name, value in options.given}
    parameters |= {"scale": options.scale} if options.scale else {}
    if options.archive and parameters.get("scale") != "paper":
        parser.error(f"--archive needs --scale paper, got {parameters.get('scale', 'book')}")
    if options.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {options.jobs}")
    if options.out and options.out.exists() and not options.out.is_dir():
        parser.error(f"--out must be a folder, got the file {options.out}")
    try:
        jobs = [Job(name, parameters, options.out and options.out.resolve()) for name in find(options.notebooks)]
        for job in jobs:
            job.check_parameters()
        if options.list:
            for job in jobs:
                lines = [f"  {p.name:<12} {p.default!r:<8} {p.rule}; {p.meaning}" for p in job.declared.values()]
                print(f"{job.name}  ({job.ran})", *lines, "", sep="\n")
            return 0
    except ValueError as error:
        parser.error(str(error))
    todo = [job for job in jobs if not job.is_current()]
    for job in jobs:
        word = "up to date " if job not in todo else "OUT OF DATE" if options.check else "to run     "
        print(f"{word} {job.name}" + f", {job.ran}" * (job in todo), flush=True)
    if options.check:
        return int(bool(todo))
    try:
        failed = execute_all(todo, min(options.jobs, len(todo))) if todo else 0
    except KeyboardInterrupt:
        print("interrupted: what had finished stays, the rest is as it was", file=sys.stderr)
        return 130
    if options.archive and not failed:
        from ts_helpers.book.records import archive  # here: it needs xarray, which the rest starts without

        for job in jobs:
            print(f"archived    {archive(job.records / job.name).relative_to(ROOT)}")
    return int(failed > 0)
