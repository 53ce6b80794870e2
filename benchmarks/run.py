"""Every way to train the book's networks, side by side: what a step costs, and how that grows.

    python benchmarks/run.py [--quick] [--only PART] [--beside CHECKOUT] [--record]

It runs on one core with one thread. In each repetition every way takes its turn; ratios are taken within a repetition.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import memory
import numpy as np
import torch
from beside import Beside
from oscillator import RING_WAYS, Ring
from ways import WAYS, Absent
from workloads import WORKLOADS

from ts_helpers.book.paths import RESULTS, ROOT
from ts_helpers.fit import AT_ONCE, NUMBERS

ALONE = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),  # as the runner sets them for the chapters
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
RECORD = RESULTS / "engine" / "benchmark.paper.json"
PARTS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "oscillator": (Ring(), RING_WAYS),
    **{name: (work, WAYS) for name, work in WORKLOADS.items()},
}
SCALED = "landscape, 10 units"
SCALES = {
    "networks": (1, 8, 40, 200, 1000, 5000),
    "units": (5, 10, 20, 40, 80, 160),
    "steps": (10, 20, 40, 80, 160, 320),
    "batch": (5, 10, 20, 40, 80, 160),
}
SCALED_WAYS = ("plain vmap", "engine", "JAX", "products alone")
COMPILED = [name for name, (work, _) in PARTS.items() if getattr(work, "cell", "") != "lstm"]
GOALS: list[dict[str, Any]] = [  # the engine is to be so many times faster
    *({"workload": name, "against": "engine before", "ratio": 0.85} for name in COMPILED if name in WORKLOADS),
    *({"workload": name, "against": "JAX", "ratio": 1.0} for name in COMPILED),
    *({"workload": SCALED, "against": "JAX", "ratio": 3.0, "networks": n} for n in SCALES["networks"] if n >= 200),
]


def build(work: Any, ways: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the ways there are, and for each that there is not, why."""
    there, absent = {}, {name: "no such cell" for name in WAYS if name not in ways}
    for name, way in ways.items():
        try:
            there[name] = way(work)
        except Absent as reason:
            absent[name] = str(reason)
        except ImportError:
            absent[name] = "not installed"
    return there, absent


def prove(ways: Mapping[Hashable, Any]) -> None:
    """Refuse, by name, a way that does other work: loss and gradient of a network, before and after three steps."""
    found = {}
    for name, way in ways.items():
        if hasattr(way, "measure"):  # limits train nothing
            before = way.measure()
            way.train(3)
            found[name] = [*before, *way.measure()]
    for name, values in found.items():
        np.testing.assert_allclose(values, next(iter(found.values())), rtol=2e-3, err_msg=f"{name} does other work")


def repeat(ways: Mapping[Any, Any], repetitions: int, seconds: float) -> dict[Any, list[float]]:
    """Return for each way the seconds of a step of one network, in each repetition; a turn lasts ``seconds``."""
    steps = {name: max(1, round(seconds / max(way.train(1), 1e-9))) for name, way in ways.items()}
    times: dict[Any, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(repetitions):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(ways[name].train(steps[name]) / steps[name] / ways[name].networks)
    return times


def ratio(times: Sequence[float], over: Sequence[float]) -> tuple[float, float, float]:
    """Return median, least and largest of the ratios within repetitions."""
    ratios = [a / b for a, b in zip(times, over, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def compare(name: str, repetitions: int, seconds: float, beside: Path | None) -> dict[str, Any]:
    """Time every way of a workload, and the engine of a checkout, when it is proved that they do the same."""
    work, known = PARTS[name]
    ways, absent = build(work, known)
    by = getattr(ways["products alone"], "by", [])
    with Beside(beside, name, "engine") if beside and "engine" in ways else nullcontext() as before:
        if before:  # one right after the other
            ways |= {"engine": ways.pop("engine"), "engine before": before}
        else:
            absent["engine before"] = "not compared"
        prove(ways)
        times = repeat(ways, repetitions, seconds)
    return {"sizes": work.sizes(), "seconds": times, "absent": absent, "products by": by}


def scale(repetitions: int, seconds: float) -> dict[str, Any]:
    """Time some ways over growing sizes, all points of a size in turn."""
    found = {}
    for size, values in SCALES.items():
        base = replace(WORKLOADS[SCALED], networks=96)
        ways = {}
        for value in values:
            there, _ = build(replace(base, **{size: value}), {name: WAYS[name] for name in SCALED_WAYS})
            ways |= {(name, value): way for name, way in there.items()}
        times = repeat(ways, repetitions, seconds)
        names = dict.fromkeys(name for name, _ in times)
        found[size] = {"values": values, "seconds": {n: [times[n, value] for value in values] for n in names}}
    return found


def remember() -> dict[str, Any]:
    """Measure the peak memory of a step: of half a stack, a whole one, and more networks than one holds.

    A whole stack is as many networks as `fit` takes at once; of large networks, as many as are timed.
    """
    found: dict[str, Any] = {}
    for name, work in WORKLOADS.items():
        at_once = max(AT_ONCE, NUMBERS // work.sizes()["parameters"])
        kept = work.steps * work.batch * work.units * work.states
        n = at_once if at_once * kept < 50_000_000 else min(work.networks, at_once)
        found[name] = {"at once": at_once}
        for way in ("plain vmap", "engine"):
            with suppress(Absent):
                found[name][way] = memory.peaks(name, way, [n // 2, n])
    found[SCALED]["split"] = memory.peaks(SCALED, "engine", [found[SCALED]["at once"], SCALES["networks"][-1]])
    return found


def compiling(beside: Path | None) -> dict[str, Any]:
    """Time the first gradient of stacks and of one network, each where nothing is compiled; count Numba's functions."""
    found = {}
    rows = [(way, ROOT, SCALED, way) for way in ("engine", "JAX") if way == "engine" or find_spec("jax")]
    rows += [(f"one network, {name}", ROOT, name, "one network") for name in WORKLOADS]
    if beside:
        rows += [(f"{way} before", beside, SCALED, way) for way in ("engine", "one network")]
    for label, checkout, name, way in rows:
        with TemporaryDirectory() as cache, Beside(checkout, name, way, cache) as process:
            processor, clock = process.ask("measure")[1:]
            found[label] = dict(processor=processor, clock=clock, functions=len(list(Path(cache).rglob("*.nbc"))))
        print(f"{label:<34}{processor:>7.2f} s to the first gradient, {found[label]}", flush=True)
    return found


def machine() -> dict[str, Any]:
    """Return what the times hang on, beside the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "threads": 1}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute, as far as they are there."""
    found = {name: version(name) for name in ("torch", "numba", "numpy", "jax") if find_spec(name)}
    return {"python": platform.python_version()} | found


def git(*words: str, checkout: Path = ROOT) -> str:
    """Return what git says of a checkout, or nothing where there is no git."""
    done = subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True)
    return done.stdout.strip()


def table(found: dict[str, Any]) -> str:
    """Return the times of a workload, and how many times that of the engine they are."""
    seconds = found["seconds"]
    reference = next(name for name in ("engine", "torch.nn") if name in seconds)
    lines = [f"{'':<18}{'us/step/network':>16}  times {reference} [least, largest]"]
    for name, times in seconds.items():
        median, low, high = ratio(times, seconds[reference])
        lines.append(f"{name:<18}{1e6 * statistics.median(times):>16.1f}  {median:.2f} [{low:.2f}, {high:.2f}]")
    return "\n".join(lines + [f"{name:<18}{why:>16}" for name, why in found["absent"].items()])


def against_goals(workloads: Mapping[str, Any], scales: Mapping[str, Any]) -> str:
    """Return, for each goal that was measured, what was reached."""
    lines = []
    for goal in GOALS:
        with suppress(KeyError, ValueError):  # not measured
            n = goal.get("networks")
            of = scales["networks"] if n else workloads[goal["workload"]]
            at = of["values"].index(n) if n else slice(None)
            reached = ratio(of["seconds"][goal["against"]][at], of["seconds"]["engine"][at])
            line = "{workload}, over {against}: {ratio:g} wanted, {0:.2f} [{1:.2f}, {2:.2f}] ".format(*reached, **goal)
            line = f"{n} networks of the {line}" if n else line
            lines.append(line + ("reached" if reached[0] >= goal["ratio"] else "missed"))
    return "\n".join(lines)


def measure(wanted: Sequence[str], repetitions: int, seconds: float, beside: Path | None = None) -> dict[str, Any]:
    """Return all that was wanted, as it is written."""
    workloads: dict[str, Any] = {}
    for name in [name for name in PARTS if name in wanted]:
        workloads[name] = compare(name, repetitions, seconds, beside)
        print(f"\n{name}: {workloads[name]['sizes']}\n{table(workloads[name])}", flush=True)
    scales = scale(repetitions, seconds) if "scales" in wanted else {}
    print(f"\n{against_goals(workloads, scales)}", flush=True)
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "before": git("rev-parse", "HEAD", checkout=beside) if beside else "",
        "repetitions": repetitions,
        "seconds": seconds,
        "goals": GOALS,
        "workloads": workloads,
        "scales": scales,
        "memory": remember() if "memory" in wanted else {},
        "compile": compiling(beside) if "compile" in wanted else {},
    }


def alone() -> None:
    """Start again on one core with one thread, which libraries must know when they are loaded."""
    if all(os.environ.get(name) == value for name, value in ALONE.items()):
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALONE)


def main() -> None:
    """Run the command line."""
    parts = [*PARTS, "scales", "memory", "compile"]
    parser = argparse.ArgumentParser(description="Ways to train the book's networks, side by side.")
    parser.add_argument("--quick", action="store_true", help="short turns: shows that it runs, measures roughly")
    parser.add_argument("--only", choices=parts, action="append", metavar="PART", help=", ".join(parts))
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="of an older commit, whose engine takes turns")
    parser.add_argument("--record", action="store_true", help=f"put them where the book looks, {RECORD.name}")
    options = parser.parse_args()
    if options.record and (options.only or not options.beside):
        parser.error("--record takes all parts, and an older engine to stand beside")
    alone()
    torch.set_num_threads(1)
    found = measure(options.only or parts, *((5, 0.1) if options.quick else (11, 0.5)), options.beside)
    out = RECORD if options.record else ROOT / "_build" / "benchmark.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
