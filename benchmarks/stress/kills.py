"""Kill, starve and confuse runs of one notebook, in copies of the project, and look at what is left of them.

Undisturbed runs say what is right: whatever happened, a record is theirs byte for byte, or it is not there.
"""

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import psutil

from ts_helpers.book.paths import RECORD, ROOT
from ts_helpers.book.records import load

NAME, NOTES = "stress/training", "notes.txt"  # the notebook; a reader's own file beside its record
CLOCK = """import os, time
real, start = time.time, time.time()
time.time = lambda: real() - 86_400 * (real() - start >= float(os.environ["STRESS_BACK"]))
"""
PARTS = {"ipykernel": "kernel", "spawn_main": "worker", "ts_helpers.run": "runner"}  # by a word of their command
SLACK = 0.5  # seconds that a step and the writing of a checkpoint may take on a busy machine
OLDER: list[Callable[[dict[str, Any]], Any]] = [  # provenance that may lie in the place of a new one
    lambda made: {"notebook": NAME, "scale": "book", "sha256": made["sha256"]},
    lambda made: {key: value for key, value in made.items() if key != "sha256"},
    lambda made: made | {"sha256": dict.fromkeys(made["sha256"], "0" * 64)},
    lambda made: [],
]
Outcome = tuple[int, list[str]]  # how often it was tried, and what went wrong


class Run:
    """A run that was started, and all its processes, also those that lost their parent."""

    numbers = itertools.count()

    def __init__(self, root: Path, words: list[str], **env: str):
        self.mark, self.log = f"{root} {next(self.numbers)}", root / "log"
        env |= {"STRESS_RUN": self.mark, "STRESS_STEPS": str(root / "steps"), "PYTHONPATH": str(root)}
        env |= {"TMPDIR": str(root), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "ts_helpers.run", NAME, *words]
        with self.log.open("w") as log:
            where = dict(cwd=root, env=os.environ | env, stdout=log, stderr=log, start_new_session=True)
            self.process = subprocess.Popen(words, **where)

    def alive(self) -> dict[str, psutil.Process]:
        """Return the processes that are alive, by what they are."""
        found = {}
        for process in psutil.process_iter(["environ", "cmdline", "status"]):
            of, words = process.info, " ".join(process.info["cmdline"] or ())
            if (of["environ"] or {}).get("STRESS_RUN") == self.mark and of["status"] != psutil.STATUS_ZOMBIE:
                found[next((part for word, part in PARTS.items() if word in words), words)] = process
        return found

    def kill(self, who: str, how: int) -> bool:
        """Send a signal to one process, the runner's group, or all as when power fails; return whether it was there."""
        there = self.alive()
        try:
            if who == "group":
                os.killpg(self.process.pid, how)
            for process in there.values() if who == "all" else [there[who]] if who != "group" else []:
                process.send_signal(how)
        except (KeyError, ProcessLookupError, psutil.NoSuchProcess):
            return False
        return bool(there)

    def end(self, within: float) -> list[str]:
        """Wait until all processes are gone; return which are not, and end them."""
        until = time.monotonic() + within
        while self.process.poll() is None or self.alive():
            if time.monotonic() > until:
                there = self.alive()
                for process in there.values():
                    process.kill()
                self.process.wait()
                return [f"after {within:.0f} s there was still {', '.join(there)}"]
            time.sleep(0.1)
        return []

    def refused(self, *codes: int, said: str = "") -> list[str]:
        """Return what is wrong with how it ended: another exit code, a traceback, or not these words."""
        code, log = self.process.returncode, self.log.read_text()
        wrong = code not in codes or (code in (1, 2) and (said not in log or "Traceback" in log))
        return [f"exits {code}: {log[-500:]}"] * wrong


class Case:
    """A copy of the project in which the notebook runs, into the book or below ``out``, and what has to come of it."""

    def __init__(self, root: Path, parameters: dict[str, Any], out: Path | None = None):
        self.root, self.parameters, self.out = root, parameters, out
        self.executed = (out or root / "notebooks") / f"{NAME}.ipynb"
        self.record = (out or root / "_build" / "records") / NAME
        self.right: dict[int, dict[str, Any]] = {}  # by seed: what an undisturbed run leaves
        self.length, self.notes = 0.0, True  # seconds that it takes; whether a reader's own file lies by the record

    @classmethod
    def made(cls, root: Path, **parameters: Any) -> "Case":
        """Make the project that others are copied from; its own two runs, undisturbed, are what is right."""
        shutil.copytree(ROOT / "ts_helpers", root / "ts_helpers")
        for source, target in (
            (Path(__file__).with_name("training.md"), root / "notebooks" / f"{NAME}.md"),
            (ROOT / "book" / "claims.yml", root / "book" / "claims.yml"),
        ):
            target.parent.mkdir(parents=True)
            shutil.copy(source, target)
        case = cls(root, parameters)
        for seed in (0, 1):
            start, run = time.monotonic(), case.start(seed)
            if run.process.wait():
                raise RuntimeError(f"an undisturbed run failed:\n{run.log.read_text()}")
            case.length = time.monotonic() - start
            case.right[seed] = {name: (case.record / name).read_bytes() for name in RECORD[:2]} | {
                "shown": case.shown()
            }
        (case.record / NOTES).write_text("mine")
        (root / "steps").unlink()
        return case

    def copy(self, root: Path, apart: bool) -> "Case":
        """Return a copy of the project and of its last run, to go on in the book or apart from it, with ``--out``."""
        shutil.copytree(self.root, root)
        new = Case(root, self.parameters, root / "out" if apart else None)
        if apart:
            shutil.copytree(self.record, new.record)
            shutil.copy(self.executed, new.executed)
        new.right, new.length = self.right, self.length
        return new

    def start(self, seed: int, **env: str) -> Run:
        """Start a run."""
        given = [("seed", seed), *self.parameters.items()]
        words = [str(word) for each in given for word in ("-p", *each)]
        return Run(self.root, words + (["--out", str(self.out)] if self.out else []), **env)

    def shown(self) -> list[str]:
        """Return what the executed notebook shows."""
        notebook = nbformat.read(self.executed, as_version=4)
        return [output.get("text") for cell in notebook.cells for output in cell.get("outputs", [])]

    def look(self, seed: int | None = None) -> list[str]:
        """Return what is wrong with what lies there now; with a seed its run is to be there as a whole."""
        wrong, of = [], self.right if seed is None else {seed: self.right[seed]}
        try:
            if seed is not None or (self.record / RECORD[2]).exists():
                made = of[load(self.record).provenance["seed"]]
                if any((self.record / name).read_bytes() != made[name] for name in RECORD[:2]):
                    wrong.append("the record is another's")
        except Exception as error:
            wrong.append(f"the record is not whole, or another's: {error!r}")
        try:
            if (seed is not None or self.executed.exists()) and self.shown() not in [m["shown"] for m in of.values()]:
                wrong.append(f"the executed notebook shows {self.shown()}")
        except Exception as error:
            wrong.append(f"the executed notebook is not whole: {error!r}")
        if self.notes and not (self.record / NOTES).exists():
            wrong.append("a file of the reader's own is gone")
        return wrong + [f"damaged: {file.name}" for file in self.root.rglob("*.damaged")]

    def over(self, seed: int) -> None:
        """Note that a training has come to its end; the next of that seed begins anew."""
        with (self.root / "steps").open("a") as steps:
            steps.write(f"0 {seed} -1 0\n")

    def finish(self, seed: int, **env: str) -> list[str]:
        """Run to the end, undisturbed; return what is wrong with it."""
        run = self.start(seed, **env)
        wrong = run.end(60 + 3 * self.length) + run.refused(0)
        self.over(seed)
        return [f"seed {seed}: {each}" for each in wrong + self.look(seed)]


def lost(steps: str, interval: float) -> list[str]:
    """Return which runs began more than an interval behind the one before, by the steps that they wrote down.

    A line has process, seed, step and time: first of a batch that `fit` only looks at, then of each that it trains on;
    step -1 says that the training of that seed is over.
    """
    wrong, last, seen = [], dict[str, tuple[str, dict[int, float]]](), set[str]()
    for line in steps.splitlines():
        who, seed, number, clock = line.split()
        step, (before, taken) = int(number), last.get(seed, (who, {}))
        if step < 0:
            last.pop(seed, None)
        elif who not in seen:
            seen.add(who)
        else:
            behind = max(taken.values()) - taken.get(step, -math.inf) if before != who and step <= max(taken) else 0.0
            if behind > interval + SLACK:
                wrong.append(
                    f"seed {seed}: {max(taken)} steps were taken, then it began at {step}, {behind:.1f} s behind"
                )
            last[seed] = who, {step: float(clock)} | (taken if before == who else {})
    return wrong


def kills(case: Case, number: int, times: int, how: signal.Signals = signal.SIGKILL) -> Outcome:
    """Kill runs at random moments; then let one of the other seed pass; then resume the last one to its end."""
    chance, seed, hits, wrong = random.Random(number), 0, 0, list[str]()
    while hits < times:
        run = case.start(seed)
        try:
            run.process.wait(chance.uniform(0, case.length))
        except subprocess.TimeoutExpired:
            ways = [part for part in run.alive() if part in PARTS.values()] + ["group", "all"]
            who = chance.choice(ways) if how == signal.SIGKILL else "runner"
            hit = run.kill(who, how)
            goes_on = who in ("kernel", "worker")  # the runner itself, and says so
            found = run.end(15 if goes_on or not hit else 5) + run.refused(0, *([1] if goes_on else [-how, 128 + how]))
            wrong += [f"{number}.{hits}, {how.name} to {who}: {each}" for each in found + case.look()]
            hits += hit
        if not case.look(seed):  # this one is whole, there is nothing to run any more
            case.over(seed)
            seed = 1 - seed
    wrong += [f"{number}, at the end: {each}" for each in case.finish(1 - seed) + case.finish(seed)]
    return hits, wrong + [
        f"{number}, {each}" for each in lost((case.root / "steps").read_text(), case.parameters["interval"])
    ]


def twice(case: Case, number: int) -> Outcome:
    """Run both seeds at once into one folder, then one of them alone."""
    runs = []
    for seed in (0, 1):
        runs.append(case.start(seed))
        time.sleep(random.Random(number).uniform(0, 1))
    wrong = [each for run in runs for each in run.end(60 + 3 * case.length) + run.refused(0, 2)] + case.look()
    if all(run.process.returncode for run in runs):
        wrong.append("neither came to its end")
    return 1, [f"{number}: {each}" for each in wrong + case.finish(number % 2)]


def clock(case: Case, number: int) -> Outcome:
    """Set the clock back a day between two runs, or during one."""
    (case.root / "sitecustomize.py").write_text(CLOCK)
    back = 0.0 if number % 2 else random.Random(number).uniform(0, case.length / 2)
    wrong = case.finish(0, STRESS_BACK=str(back))
    seconds = load(case.record).provenance["seconds"]
    return 1, wrong + [f"after {back:.1f} s of a process: it took {seconds} s"] * (not 0 < seconds < 3600)


def older(case: Case, number: int) -> Outcome:
    """Find a record of an older schema, or what is none, in the place of a new one: it makes way or is refused."""
    file = case.record / RECORD[2]
    file.write_text(json.dumps(OLDER[number](json.loads(file.read_text()))))
    before, run = {path: path.read_bytes() for path in case.record.iterdir()}, case.start(0)
    wrong = run.end(60 + case.length) + run.refused(0, 2, said=case.record.name)
    if run.process.returncode == 0:
        return 1, wrong + case.look(0)
    return 1, wrong + ["refused, and changed"] * (before != {path: path.read_bytes() for path in case.record.iterdir()})


def full(case: Case, number: int, step: int) -> Outcome:
    """Fill the disk: a small one of its own grows by some pages until a run fits; then nothing may be written there."""
    case.notes, wrong = False, list[str]()  # the small disk lies over what was there
    mount = ["mount", "-t", "tmpfs", "none", str(case.out), "-o"]
    if subprocess.run([*mount, "size=4k"], stderr=subprocess.DEVNULL).returncode:
        print("disk full, and read-only output: left out, since only root may mount a small disk")
        return 0, []
    try:
        for tried in itertools.count(1):
            pages = 1 + step * (tried - 1)
            subprocess.run([*mount, f"remount,size={4 * pages}k"], check=True)
            run = case.start(0)
            found = run.end(60 + case.length) + run.refused(0, 1, 2, said="No space left")
            done = run.process.returncode == 0 or pages > 60
            wrong += [f"{pages} pages: {each}" for each in found + case.look(0 if done else None)]
            if done:
                break
        subprocess.run([*mount, "remount,ro"], check=True)
        run = case.start(1)
        wrong += [f"read-only: {each}" for each in run.end(60) + run.refused(2) + case.look(0)]
    finally:
        subprocess.run(["umount", "--lazy", str(case.out)], check=True)
    return tried, wrong


def tasks(folder: Path, quick: bool) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Yield what there is to try, by name, each in a copy of its own below a folder."""
    short = Case.made(folder / "short", n_steps=60, interval=0.1)
    long = Case.made(folder / "long", n_steps=600 if quick else 1500, interval=2.0)
    plan: list[tuple[str, Case, Callable[..., Outcome], int, tuple[Any, ...]]] = [
        ("disk full, and at last read-only", short, full, 1, (5 if quick else 1,)),
        ("`kill -9`, trainings with checkpoints", long, kills, 1 if quick else 5, (2 if quick else 4,)),
        ("`kill -9`, short runs", short, kills, 2 if quick else 20, (3 if quick else 15,)),
        ("SIGTERM, short runs", short, kills, 1 if quick else 2, (3 if quick else 10, signal.SIGTERM)),
        ("two runs of one notebook at once", short, twice, 1 if quick else 10, ()),
        ("clock set back", short, clock, 2 if quick else 6, ()),
        ("older record in the place of a new one", short, older, len(OLDER), ()),
    ]
    for kind, (what, case, task, times, how) in enumerate(plan):
        for number in range(times):
            yield what, partial(task, case.copy(folder / f"{kind}-{number}", number % 2 == 0), number, *how)
