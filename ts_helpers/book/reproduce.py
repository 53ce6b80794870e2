"""Execute again what made a record, at the commit that made it, and say what came out otherwise."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import xarray as xr

from ts_helpers.book.paths import RESULTS, ROOT
from ts_helpers.book.records import archived, as_json, load

ANSWERS = RESULTS / "reproduced.json"
TOLERANCE = 1e-5  # of a variable's largest value


def reproduce(path: Path, keep: bool = False) -> tuple[str, str]:
    """Run all parts of a record again; return what differs, in words, and under which circumstances.

    A record is its folder, or a file below ``results/``. Code and packages are those of each part's commit or, if git
    lacks it, these. ``keep`` notes the answer for *How to rerun*. ValueError: no record; CalledProcessError: it fails.
    """
    start = time.perf_counter()
    name = "" if path.is_dir() else path.resolve().relative_to(RESULTS).as_posix().removesuffix(".paper.nc")
    if not (record := archived(name) if name else load(path)):
        raise ValueError(f"a record must be its folder, or one of results/*/*.paper.nc, got {path}")
    made, differs, how = record.provenance, dict[str, tuple[float, str]](), dict[str, None]()
    for commit, parts in groupby(record.parts, lambda part: part["commit"]):
        with tempfile.TemporaryDirectory() as folder:
            root, code, out = (Path(folder, name) for name in ("code", "code.tar", "out"))
            git = ["git", "archive", "--output", code, commit or "none"]
            if known := subprocess.run(git, cwd=ROOT, capture_output=True).returncode == 0:
                shutil.unpack_archive(code, root, filter="data")
                subprocess.run(["make", ".venv/.book", f"PYTHON={sys.executable}"], cwd=root, check=True)
            which = f"commit {commit[:7]}" if known else f"this code, as git has no commit {commit}"
            python, root = (root / ".venv/bin/python", root) if known else (sys.executable, ROOT)
            for part in parts:
                given = part["parameters"] | {"scale": part["scale"], "seed": part["seed"]}
                words = [word for key, value in given.items() if value is not None for word in ("-p", key, str(value))]
                run = [python, "-m", "ts_helpers.run", made["notebook"], *words, "--out", out]
                subprocess.run(run, cwd=root, check=True)
                again, now = (ran := load(out / made["notebook"])).results, ran.provenance["packages"]
                if (after := part["seed"] - made["seed"]) and "seed" in record.results.coords:  # numbered on
                    again = again.assign_coords(seed=np.arange(n := again.sizes["seed"]) + n * after)
                again = again[part.get("variables", [*again.variables])].sel(part.get("sel", {}))
                differs |= compare(record.results, again)
                others = sorted(made["packages"].items() - now.items())
                how[which + ", changed" * bool(part["dirty"])] = None
                how |= {f"{key} {now.get(key)}, not {was}": None for key, was in others}
    answer = words_for(differs), "; ".join(how)
    if keep:
        told = json.loads(ANSWERS.read_bytes()) if ANSWERS.exists() else {}
        told[f"{made['notebook']}, {made['scale']}"] = [*answer, round(time.perf_counter() - start)]
        ANSWERS.write_bytes(as_json(dict(sorted(told.items()))))
    return answer


def compare(recorded: xr.Dataset, again: xr.Dataset) -> dict[str, tuple[float, str]]:
    """Return by how much of its largest value, inf for NaN or text, each variable differs that does, and where."""
    differs = {str(name): (np.inf, "all: not in the record") for name in again.variables if name not in recorded}
    short = {dim: recorded.sizes.get(dim, n) - n for dim, n in again.sizes.items() if dim not in again.coords}
    again = again.pad({dim: (0, n) for dim, n in short.items() if n > 0})  # NaN, as in a record with longer parts
    for name in map(str, again.variables.keys() - differs.keys()):
        one, other = recorded.reindex_like(again)[name], again[name]
        same = (one.values == other.values) | ((one != one) & (other != other)).values
        if same.all():
            continue
        away = np.full(same.shape, np.inf)
        if other.dtype.kind in "fiub":
            away = np.abs(one.values.astype(float) - other.values) / np.nanmax(np.abs(one.values))
        away = np.where(same, 0, np.nan_to_num(away, nan=np.inf))
        place = zip(other.dims, np.unravel_index(away.argmax(), away.shape), strict=True)
        where = ", ".join(f"{dim} = {other[dim].values[i] if dim in other.coords else i}" for dim, i in place)
        differs[name] = float(away.max()), where
    return differs


def words_for(differs: dict[str, tuple[float, str]]) -> str:
    """Say identical, equal within tolerance, or different and where."""
    if not differs:
        return "identical"
    worst = max(much for much, _ in differs.values())
    if worst <= TOLERANCE:
        return f"equal within {TOLERANCE:g}: {', '.join(sorted(differs))} differ by {worst:.1g} at most"
    return "different: " + "; ".join(f"{name} by {much:.1g} at {at}" for name, (much, at) in sorted(differs.items()))
