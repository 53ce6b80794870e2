"""Results that carry how they were made: a record's folder, written and read whole, and the archive below ``results/``.

What the findings in a record mean is in `claims`.
"""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from ts_helpers.book.claims import Finding, Measured
from ts_helpers.book.paths import PACKAGES, ROOT, archive_files, digest, record_folder, replace_folder

FILES = ("results.nc", "claims.json", "provenance.json")
PART = ("only", "only_run", "hours")  # parameters that say which part of a run is made now, and no more


@dataclass
class Record:
    """What is read back of a run: results, provenance, its findings, and those of the archived paper-scale run."""

    results: xr.Dataset
    provenance: dict[str, Any]
    findings: dict[str, Finding] = field(default_factory=dict)
    archived: dict[str, Finding] = field(default_factory=dict)

    def line(self) -> str:
        """Return where the results come from, for a reader."""
        parts = self.provenance.get("parts", [self.provenance])

        def each(name: str, of: Sequence[dict[str, Any]] = parts) -> str:
            return " or ".join(dict.fromkeys(str(part.get(name)) for part in of))

        of = [part["settings"] for part in parts]
        shown = {name: each(name, of) for name in dict.fromkeys(n for part in of for n in part) if name not in PART}
        settings = ", ".join(f"{name} = {value}" for name, value in shown.items() if value != "None")
        commit = each("commit", [{"commit": part["commit"][:7]} for part in parts])
        return (
            f"Recorded at scale {self.provenance['scale']}: {settings}, seed {each('seed')}, commit {commit}, "
            f"{each('device')}, {self.provenance['seconds'] / 3600:.1f} hours."
        )


@dataclass
class Recorder:
    """Keeps the time of a notebook's run, and saves what came of it.

    Args:
        notebook: its name, ``<paper>/<idea>``.
        scale, seed, device: as the notebook resolved them.
        parameters: every other parameter of the notebook as given, None where the scale decided.
        settings: the same, as the scale resolved them.
        trained: seconds that all trainings took, those of an earlier, interrupted run included; these count where they
            are more than this run has taken.
    """

    notebook: str
    scale: str
    seed: int
    device: str
    parameters: dict[str, Any]
    settings: dict[str, Any]
    trained: float = 0.0
    start: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.perf_counter)

    def save(self, results: xr.Dataset, findings: Sequence[Finding], archived: Sequence[Finding] = ()) -> Path:
        """Write results and findings, of this run and of the archived one, as a whole or not at all; return the folder.

        Raises:
            ValueError: a variable has no ``long_name``, or a number no ``units``; records are for others to read.
        """
        for name, variable in results.variables.items():
            if "long_name" not in variable.attrs or ("units" not in variable.attrs and variable.dtype.kind in "fi"):
                raise ValueError(f"every variable needs long_name, and every number units, got {name!r} without")
        target = record_folder(self.notebook)
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            results.to_netcdf(made / "results.nc", engine="h5netcdf")
            lists = {"findings": [*map(asdict, findings)], "kept_findings": [*map(asdict, archived)]}
            _write_json(made / "claims.json", lists)
            digests = {name: digest(made / name) for name in FILES[:2]}
            _write_json(made / "provenance.json", self._provenance() | {"sha256": digests})
            replace_folder(made, target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return target

    def _provenance(self) -> dict[str, Any]:
        return {
            "notebook": self.notebook,
            "scale": self.scale,
            "seed": self.seed,
            "parameters": self.parameters,
            "settings": self.settings,
            "commit": _git("rev-parse", "HEAD") or "unknown",
            "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
            "packages": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "device": torch.cuda.get_device_name() if self.device.startswith("cuda") else platform.machine() + " CPU",
            "threads": torch.get_num_threads(),
            "start": self.start.isoformat(timespec="seconds"),
            "seconds": round(max(self.trained, time.perf_counter() - self.clock), 1),
        }


def load(path: Path) -> Record:
    """Read the record in a folder, whole.

    Raises:
        ValueError: the folder has no record, or one that is truncated, changed or not ours.
    """
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise ValueError(f"{path} is not a record: it has no {', '.join(missing)}")
    try:
        provenance = json.loads((path / "provenance.json").read_text())
        digests = provenance["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path / 'provenance.json'} is truncated, or was not written by this project") from None
    for name in FILES[:2]:
        if digests.get(name) != digest(path / name):
            raise ValueError(f"{path / name} is truncated, or not the file its provenance.json was written for")
    read = json.loads((path / "claims.json").read_text())
    found = [
        {e["claim"]: Finding(**e | {"measured": tuple(Measured(**m) for m in e["measured"])}) for e in read[which]}
        for which in ("findings", "kept_findings")
    ]
    return Record(xr.load_dataset(path / "results.nc", engine="h5netcdf"), provenance, *found)


def archived(notebook: str) -> Record | None:
    """Read the archived paper-scale results of a notebook; None if there are none.

    Raises:
        ValueError: one of the two files is missing, or they do not belong together.
    """
    results, made = archive_files(notebook)
    if not results.exists() and not made.exists():
        return None
    try:
        provenance = json.loads(made.read_text())
        whole = provenance["sha256"]["results.nc"] == digest(results)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{results} and {made.name} do not belong together, or one is damaged")
    return Record(xr.load_dataset(results, engine="h5netcdf"), provenance)


kept = archived  # until no chapter uses the old name


def archive(*records: Path) -> Path:
    """Put results and provenance of a paper-scale record below ``results/``, where git keeps them.

    Records of parts, single arms run with ``-p only`` or single runs of them with ``-p only_run``, are joined along
    ``arm`` and ``seed`` with those archived already. What is archived of the same part makes way for the new one, and
    what is archived of an arm for a new record of all its runs.

    Raises:
        ValueError: a record is damaged, or not at paper scale; or they are of different notebooks, or several of them
            whole runs, or of parts without the coordinates that they are joined along; or a single run has other
            settings than what is archived of its arm, but for how many runs there are.
    """
    made = [load(path) for path in records]
    first = made[0].provenance
    for record, path in zip(made, records, strict=True):
        of, (only, run) = record.provenance, _part(record.provenance)
        if (of["notebook"], of["scale"]) != (first["notebook"], "paper"):
            raise ValueError(
                f"records must be of one notebook at scale paper, got {path} of {of['notebook']} at scale {of['scale']}"
            )
        if (only, run) == (None, None):
            if len(made) == 1:
                return _put(path / "results.nc", first)
            raise ValueError(f"several records must be parts, run with -p only or -p only_run, got {path}")
        for along in ["arm"] if run is None else ["arm", "seed"]:
            if along not in record.results.coords:
                raise ValueError(f"a part of a run must have the coordinate {along} to be joined along, got {path}")
    old = archived(first["notebook"])
    parts = {_part(part): part for part in (old.provenance.get("parts", [old.provenance]) if old else [])}
    arms = {arm: _to_be_joined(old.results.sel(arm=[arm])) for arm in old.results.arm.values} if old else {}
    for record in made:
        only, run = _part(record.provenance)
        before = [part for (arm, _), part in parts.items() if only is None or arm in (only, None)]
        if run is None:
            parts = {key: part for key, part in parts.items() if only is not None and key[0] != only}
        elif others := sorted({name for part in before for name in _unlike(part, record.provenance)}):
            raise ValueError(
                f"a single run must have the settings of what is archived of its arm, to be joined with it, got "
                f"others: {', '.join(others)}; run it with those, or all runs of the arm with the new ones"
            )
        parts[only, run] = record.provenance
        for arm in record.results.arm.values:
            new = _to_be_joined(record.results.sel(arm=[arm]))
            if run is not None and arm in arms:
                runs = [arms[arm].drop_sel(seed=[run], errors="ignore"), new]
                new = xr.concat(runs, "seed", data_vars="minimal", coords="minimal", compat="equals", join="outer")
            arms[arm] = new.sortby("seed") if run is not None else new
    joined = xr.concat(arms.values(), "arm", data_vars="all", join="outer", combine_attrs="drop_conflicts")
    shared = {which: first[which] | dict.fromkeys(PART) for which in ("parameters", "settings")} | {
        "seconds": round(sum(part["seconds"] for part in parts.values()), 1),
        "parts": [parts[key] for key in sorted(parts, key=repr)],
    }
    with tempfile.TemporaryDirectory() as folder:
        joined.to_netcdf(Path(folder) / "results.nc", engine="h5netcdf")
        return _put(Path(folder) / "results.nc", first | shared)


def _put(results: Path, made: dict[str, Any]) -> Path:
    nc, provenance = archive_files(made["notebook"])
    nc.parent.mkdir(parents=True, exist_ok=True)
    provenance.unlink(missing_ok=True)  # first: whoever is killed here leaves no pair that could be taken for whole
    shutil.copyfile(results, nc)
    _write_json(provenance, made | {"sha256": {"results.nc": digest(nc)}})
    return nc


def _part(provenance: dict[str, Any]) -> tuple[int | None, int | None]:
    """Return which arm and which run of a notebook were made; None for all of them."""
    return provenance["settings"].get("only"), provenance["settings"].get("only_run")


def _unlike(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Name the settings that keep two parts from one whole; how many runs it has makes no difference to any of them."""
    mine, its = (made["settings"] | {"seed": made["seed"]} for made in (one, other))
    return {name for name in mine | its if mine.get(name) != its.get(name)} - {*PART, "n_seeds"}


def _to_be_joined(results: xr.Dataset) -> xr.Dataset:
    """Number the runs, and keep coordinates of text as objects: joined as they are, they would be cut in width."""
    texts = [name for name, variable in results.coords.items() if variable.dtype.kind in "UT"]
    results = results.drop_encoding().assign_coords({name: results[name].astype(object) for name in texts})
    if "seed" in results.dims and "seed" not in results.coords:
        numbers = range(results.sizes["seed"])
        results = results.assign_coords(seed=("seed", numbers, {"units": "1", "long_name": "index of the run"}))
    return results


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _git(*words: str) -> str:
    """Return what git says of the project, or nothing where there is no git."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    print(archive(*map(Path, sys.argv[1:])))
