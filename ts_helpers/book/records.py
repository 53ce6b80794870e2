"""Results that carry how they were made: folders of records, and the archive below ``results/``; nothing is judged."""

import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from ts_helpers.book import paths
from ts_helpers.book.claims import Finding, Measured
from ts_helpers.book.paths import RECORD, ROOT, archive_files, digest, in_the_way, locked, record_folder

PART = ("only", "only_run", "hours")  # parameters that say which part was made; the last two of old records
MADE = {"notebook", "scale", "seed", "device", "start", "threads", "seconds"}  # what a provenance has; later ones more
MADE |= {"commit", "dirty", "parameters", "settings", "packages", "sha256"}


@dataclass
class Record:
    """What is read back of a run: results, provenance, its findings, and those of the archived paper-scale run."""

    results: xr.Dataset
    provenance: dict[str, Any]
    findings: dict[str, Finding] = field(default_factory=dict)
    archived: dict[str, Finding] = field(default_factory=dict)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The provenance of the whole, or of each part; ``variables`` and labels (``sel``) if it gave not all."""
        return self.provenance.get("parts", [self.provenance])

    def line(self) -> str:
        """Return where the results come from, for a reader."""

        def either(*values: Any) -> str:
            return " or ".join(dict.fromkeys(map(str, values)))

        of = [part["settings"] for part in [self.provenance, *self.parts] if "variables" not in part]
        names = dict.fromkeys(name for settings in of for name in settings if name not in PART)
        shown = {name: either(*(settings[name] for settings in of if name in settings)) for name in names}
        settings = "; ".join(f"{name} = {value.strip('[]')}" for name, value in shown.items() if value != "None")
        seed, device = (either(*(part[name] for part in self.parts)) for name in ("seed", "device"))
        commit = either(*((part["commit"] or "unknown")[:7] for part in self.parts))
        scale, hours = self.provenance["scale"], self.provenance["seconds"] / 3600
        return f"Recorded at scale {scale}: {settings}; seed {seed}, commit {commit}, {device}, {hours:.1f} hours."


def folder_to_write(notebook: str) -> Path:
    """Return the folder of a notebook's record; ValueError if what the book did not make would have to make way."""
    folder = record_folder(notebook)
    if found := in_the_way(folder):
        how = "it is not of the book, or not as the book made it; move it away, or delete it"
        raise ValueError(f"{found} is in the way of the record of {notebook}: {how}")
    return folder


def git_state(notebook: str) -> dict[str, Any]:
    """Return the commit of the project, and whether code or notebook differ from it; None: nobody can tell."""
    own = "ls-files", "--others", "ts_helpers/*.py", f":(literal)notebooks/{notebook}.md"
    changed = [_git("status", "--porcelain", "-uno"), _git(*own)]
    by_hand = "TS_NOTEBOOK" not in os.environ  # then cells may be edited, and not yet saved
    dirty = None if None in changed else any(changed) or (None if by_hand else False)
    return dict(commit=_git("rev-parse", "--verify", "HEAD"), dirty=dirty)


def data_digests(parameters: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return, for each parameter that names a file or a folder, the digests of the file or of those in the folder."""
    own = {name: Path(each) for name, each in parameters.items() if each and isinstance(each, str)}
    files = {name: sorted(at.iterdir()) if at.is_dir() else [at] for name, at in own.items() if at.exists()}
    read = {name: [file for file in of if file.is_file() and os.access(file, os.R_OK)] for name, of in files.items()}
    return {name: {file.name: digest(file) for file in of} for name, of in read.items()}


def save(made: dict[str, Any], results: xr.Dataset, findings: Sequence[Finding], archived: Sequence[Finding]) -> Path:
    """Write a record, with findings of this run and of the archived one, as a whole or not at all; return its folder.

    ``made`` says how, but for versions. What else lies in the folder stays. Killed at any moment, it leaves a record
    whole or none: one that has no provenance. ValueError: see `folder_to_write`, or a label is missing.
    """
    _check_labels(results)
    results.to_netcdf(netcdf := io.BytesIO(), engine="h5netcdf")  # in memory: of a full disk HDF5 tells at length
    lists = {"findings": [*map(asdict, findings)], "kept_findings": [*map(asdict, archived)]}
    content = {"results.nc": netcdf.getvalue(), "claims.json": as_json(lists)}
    digests = {name: hashlib.sha256(each).hexdigest() for name, each in content.items()}
    content["provenance.json"] = as_json(made | {"packages": paths.versions(), "sha256": digests})
    (parent := record_folder(made["notebook"]).parent).mkdir(parents=True, exist_ok=True)
    with locked(parent):
        folder = folder_to_write(made["notebook"])
        provenance, parts = folder / RECORD[2], {name: parent / f".{folder.name}.{name}" for name in RECORD}
        if not provenance.exists():  # one that was killed has left them
            for name in RECORD[:2]:
                (folder / name).unlink(missing_ok=True)
        try:
            for name, part in parts.items():
                part.write_bytes(content[name])
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise
        folder.mkdir(exist_ok=True)
        provenance.unlink(missing_ok=True)
        for name, part in parts.items():
            part.replace(folder / name)
    return folder


def load(path: Path) -> Record:
    """Read the record in a folder, whole; ValueError if there is none, or it is truncated, changed or not ours."""
    if missing := [name for name in RECORD if not (path / name).is_file()]:
        raise ValueError(f"{path} is not a record: it has no {', '.join(missing)}")
    provenance = _provenance(path / "provenance.json")
    for name in RECORD[:2]:
        if provenance["sha256"].get(name) != digest(path / name):
            raise ValueError(f"{path / name} is truncated, or not the file its provenance.json was written for")
    with _ours(path / "claims.json"):
        lists = json.loads((path / "claims.json").read_text())
        found = [{each["claim"]: _finding(each) for each in lists[which]} for which in ("findings", "kept_findings")]
    return Record(_results(path / "results.nc"), provenance, *found)


def archived(notebook: str) -> Record | None:
    """Read the archived paper-scale results of a notebook, if any; ValueError if the two files are no pair."""
    results, made = archive_files(notebook)
    if not results.exists() and not made.exists():
        return None
    if not results.is_file() or paths.read_digests(made).get(RECORD[0]) != digest(results):
        raise ValueError(f"{results} and {made.name} do not belong together, or one is damaged")
    return Record(_results(results), _provenance(made))


def put(results: Path, made: dict[str, Any]) -> Path:
    """Make results and how they were made the archived ones of their notebook; return the first of the two files."""
    nc, provenance = archive_files(made["notebook"])
    nc.parent.mkdir(parents=True, exist_ok=True)
    provenance.unlink(missing_ok=True)  # first: whoever is killed here leaves no pair that could be taken for whole
    shutil.copyfile(results, nc)
    made = {name: each for name, each in made.items() if name != "checkpoints"}
    provenance.write_bytes(as_json(made | {"sha256": {"results.nc": digest(nc)}}))
    return nc


def as_json(content: Any) -> bytes:
    """Return a content as it stands in a record; TypeError or ValueError if JSON has no word for it."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


@contextmanager
def _ours(path: Path) -> Iterator[None]:
    """Make of whatever is wrong with what a file holds a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is truncated, or was not written by this project: {error}") from None


def _finding(entry: dict[str, Any]) -> Finding:
    return Finding(**entry | {"measured": tuple(Measured(**each) for each in entry["measured"])})


def _provenance(path: Path) -> dict[str, Any]:
    with _ours(path):
        made: dict[str, Any] = json.loads(path.read_text())
        for each in [made, *made.get("parts", [])]:
            if missing := sorted(MADE - each.keys()):
                raise ValueError(f"it has no {', '.join(missing)}")
            if each["notebook"].startswith("/") or ".." in each["notebook"]:
                raise ValueError(f"notebook must be a name below notebooks/, got {each['notebook']!r}")
    return made


def _results(path: Path) -> xr.Dataset:
    with _ours(path):
        return xr.load_dataset(path, engine="h5netcdf")


def _check_labels(results: xr.Dataset) -> None:
    for name, variable in results.variables.items():
        if "long_name" not in variable.attrs or ("units" not in variable.attrs and variable.dtype.kind in "fi"):
            raise ValueError(f"every variable needs long_name, and every number units, got {name!r} without")


def _git(*words: str) -> str | None:
    """Return what git says of the project; None where there is none, or only that of a folder around it."""
    own = [f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", "--no-optional-locks"]
    with suppress(OSError, subprocess.CalledProcessError):
        how: dict[str, Any] = dict(cwd=ROOT, capture_output=True, check=True, text=True, errors="replace")
        return subprocess.run(["git", *own, *words], **how).stdout.strip()
    return None
