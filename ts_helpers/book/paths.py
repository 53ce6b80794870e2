"""Where files lie, what the book made of them, and the one digest; nothing that is slow to import."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from platform import python_version

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
CLAIMS = ROOT / "book" / "claims.yml"
PACKAGES = ("torch", "numba", "numpy", "scipy", "xarray", "matplotlib")  # their versions can change results
RECORD = ("results.nc", "claims.json", "provenance.json")  # the last has the digests of the others


def record_folder(notebook: str) -> Path:
    """Where the record of a notebook lies: below ``$TS_RECORDS`` if that is set, else ``_build/records``."""
    return Path(os.environ.get("TS_RECORDS") or ROOT / "_build" / "records") / notebook


def archive_files(notebook: str) -> tuple[Path, Path]:
    """Where the results and the provenance of a notebook's paper-scale run are archived."""
    return RESULTS / f"{notebook}.paper.nc", RESULTS / f"{notebook}.paper.json"


def checkpoint_folder(notebook: str, scale: str) -> Path:
    """Where a notebook keeps a long training's state, to go on from: below ``$TS_CHECKPOINTS``, or in ``_build``."""
    return Path(os.environ.get("TS_CHECKPOINTS") or ROOT / "_build" / "checkpoints") / scale / notebook


def versions() -> dict[str, str]:
    """Return the version of each package that can change results, and of Python."""
    return {name: version(name) for name in PACKAGES} | {"python": python_version()}


def digest(*parts: str | Path) -> str:
    """Return the SHA-256 of a text or of a file's bytes; of several, that of their digests."""
    each = [hashlib.sha256(p.read_bytes() if isinstance(p, Path) else p.encode()).hexdigest() for p in parts]
    return each[0] if len(each) == 1 else digest(" ".join(each))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time do this to a folder, where its file system can lock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_digests(provenance: Path) -> dict[str, str]:
    """Return the digests in a provenance, by the names of its files; none if there is none, or it is not the book's."""
    try:
        return {name: str(each) for name, each in json.loads(provenance.read_bytes())["sha256"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def intact(record: Path) -> str:
    """Return the digest of a record that is as the book made it, of nothing else: ""."""
    made = read_digests(record / RECORD[2])
    same = all((record / name).is_file() and digest(record / name) == each for name, each in made.items())
    return digest(record / RECORD[2]) if made and same else ""


def in_the_way(record: Path) -> Path | None:
    """Return what a record in this folder would overwrite though the book did not make it, or it was changed since."""
    made, hidden = record / RECORD[2], record.with_name(f".{record.name}.{RECORD[2]}")
    if record.exists() and not record.is_dir():
        return record
    if not made.exists() and hidden.exists():  # the writing of a record was cut short: what is there is of the book
        return None
    known = read_digests(made).values()
    if made.exists() and not known:
        return made
    files = (record / name for name in RECORD[:2])
    return next((file for file in files if file.exists() and not (file.is_file() and digest(file) in known)), None)


def remove_checkpoints(names: Iterable[str], folder: Path) -> None:
    """Remove these of a folder, what was left where one was killed as it wrote them, and the folder if it is empty."""
    for own in (folder / name for name in names):
        for file in (own, *own.parent.glob(f".{own.stem}.*.pt")):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
