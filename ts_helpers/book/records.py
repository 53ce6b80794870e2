"""Results that carry how they were made: folders of records, and the archive below ``results/``; nothing is judged."""

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from ts_helpers.book.claims import Finding, Measured
from ts_helpers.book.paths import PACKAGES, ROOT, archive_files, digest, record_folder

FILES = ("results.nc", "claims.json", "provenance.json")
PART = ("only", "only_run", "hours")  # parameters that say which part of a run is made now, and no more


@dataclass
class Record:
    """What is read back of a run: results, provenance, its findings, and those of the archived paper-scale run."""

    results: xr.Dataset
    provenance: dict[str, Any]
    findings: dict[str, Finding] = field(default_factory=dict)
    archived: dict[str, Finding] = field(default_factory=dict)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The provenance of each part that was archived by itself, or of the whole."""
        return self.provenance.get("parts", [self.provenance])

    def line(self) -> str:
        """Return where the results come from, for a reader."""

        def either(*values: Any) -> str:
            return " or ".join(dict.fromkeys(map(str, values)))

        of = [part["settings"] for part in self.parts]
        names = dict.fromkeys(name for settings in of for name in settings if name not in PART)
        shown = {name: either(*(settings.get(name) for settings in of)) for name in names}
        settings = ", ".join(f"{name} = {value}" for name, value in shown.items() if value != "None")
        seed, device = (either(*(part[name] for part in self.parts)) for name in ("seed", "device"))
        commit = either(*(part["commit"][:7] for part in self.parts))
        scale, hours = self.provenance["scale"], self.provenance["seconds"] / 3600
        return f"Recorded at scale {scale}: {settings}, seed {seed}, commit {commit}, {device}, {hours:.1f} hours."


def save(made: dict[str, Any], results: xr.Dataset, findings: Sequence[Finding], archived: Sequence[Finding]) -> Path:
    """Write a record, with findings of this run and of the archived one, as a whole or not at all; return its folder.

    ``made`` says how, but for commit and versions. ValueError: a variable lacks ``long_name``, a number ``units``.
    """
    for name, variable in results.variables.items():
        if "long_name" not in variable.attrs or ("units" not in variable.attrs and variable.dtype.kind in "fi"):
            raise ValueError(f"every variable needs long_name, and every number units, got {name!r} without")
    target = record_folder(made["notebook"])
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        (new := Path(folder, "new")).mkdir()
        results.to_netcdf(new / "results.nc", engine="h5netcdf")
        lists = {"findings": [*map(asdict, findings)], "kept_findings": [*map(asdict, archived)]}
        _write_json(new / "claims.json", lists)
        of_code = dict(commit=_git("rev-parse --verify HEAD") or "unknown", dirty=bool(_git("status --porcelain -uno")))
        packages = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
        digests = {name: digest(new / name) for name in FILES[:2]}
        _write_json(new / "provenance.json", made | of_code | {"packages": packages, "sha256": digests})
        if target.exists():  # whoever is killed between two renames finds no record, never a mixture of both
            target.rename(Path(folder, "old"))
        new.rename(target)
    return target


def load(path: Path) -> Record:
    """Read the record in a folder, whole; ValueError if there is none, or it is truncated, changed or not ours."""
    if missing := [name for name in FILES if not (path / name).is_file()]:
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
    """Read the archived paper-scale results of a notebook, if any; ValueError if the two files are no pair."""
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


def archive(*records: Path) -> Path:
    """Put results and provenance of a paper-scale record below ``results/``, where git keeps them.

    Records of parts, single arms run with ``-p only`` or single runs of them with ``-p only_run``, are joined along
    ``arm`` and ``seed`` with what is archived; each replaces the same part, an arm with all its runs any part of it.
    ValueError: a record is damaged, of another scale or notebook, one of several whole runs, a part without the
    coordinates that it is joined along, or a single run of other settings than its arm's but for ``n_seeds``.
    """
    made = [load(path) for path in records]
    first = made[0].provenance
    for record, path in zip(made, records, strict=True):
        of, (only, run) = record.provenance, _part(record.provenance)
        if (of["notebook"], of["scale"]) != (first["notebook"], "paper"):
            got = f"{path} of {of['notebook']} at scale {of['scale']}"
            raise ValueError(f"records must be of one notebook at scale paper, got {got}")
        if only is run is None:
            if len(made) == 1:
                return _put(path / "results.nc", first)
            raise ValueError(f"several records must be parts, run with -p only or -p only_run, got {path}")
        for along in ["arm"] if run is None else ["arm", "seed"]:
            if along not in record.results.coords:
                raise ValueError(f"a part of a run must have the coordinate {along} to be joined along, got {path}")
    old = archived(first["notebook"])
    parts, arms = (old.parts, _arms(old.results)) if old else ([], {})
    for record in made:
        only, run = _part(record.provenance)
        if run is None:
            parts = [part for part in parts if _part(part)[0] != only]
            arms |= _arms(record.results)
        else:
            others = [_unlike(p, record.provenance) for p in parts if only is None or _part(p)[0] in (only, None)]
            if names := sorted(set().union(*others)):
                how = f"{', '.join(names)}; run it with those, or all runs of the arm with the new ones"
                raise ValueError(f"a single run must have the settings archived of its arm, got others: {how}")
            parts = [part for part in parts if _part(part) != (only, run)]
            join: dict[str, Any] = dict(data_vars="minimal", coords="minimal", compat="equals", join="outer")
            for arm, new in _arms(record.results).items():
                before = [arms[arm].drop_sel(seed=[run], errors="ignore")] if arm in arms else []
                arms[arm] = xr.concat([*before, new], "seed", **join).sortby("seed")
        parts = [*parts, record.provenance]
    joined = xr.concat(arms.values(), "arm", data_vars="all", join="outer", combine_attrs="drop_conflicts")
    shared = {which: first[which] | dict.fromkeys(PART) for which in ("parameters", "settings")}
    shared["seconds"] = round(sum(part["seconds"] for part in parts), 1)
    shared["parts"] = sorted(parts, key=lambda part: repr(_part(part)))
    with tempfile.TemporaryDirectory() as folder:
        joined.to_netcdf(results := Path(folder, "results.nc"), engine="h5netcdf")
        return _put(results, first | shared)


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


def _arms(results: xr.Dataset) -> dict[Any, xr.Dataset]:
    """Return each arm, its runs numbered, its coordinates of text as objects: joined as they are, they would be cut."""
    texts = {name: each.astype(object) for name, each in results.coords.items() if each.dtype.kind in "UT"}
    results = results.drop_encoding().assign_coords(texts)
    if "seed" in results.dims and "seed" not in results.coords:
        numbers = range(results.sizes["seed"])
        results = results.assign_coords(seed=("seed", numbers, {"units": "1", "long_name": "index of the run"}))
    return {arm: results.sel(arm=[arm]) for arm in results.arm.values}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _git(words: str) -> str:
    """Return what git says of the project, or nothing where there is no git."""
    return subprocess.run(f"git {words}", shell=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    print(archive(*map(Path, sys.argv[1:])))
