"""Where files lie, and the one digest; nothing that is slow to import."""

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
CLAIMS = ROOT / "book" / "claims.yml"
PACKAGES = ("torch", "numba", "numpy", "scipy", "xarray", "matplotlib")  # their versions can change results


def record_folder(notebook: str) -> Path:
    """Where the record of a notebook lies: below ``$TS_RECORDS`` if that is set, else ``_build/records``."""
    return Path(os.environ.get("TS_RECORDS") or ROOT / "_build" / "records") / notebook


def archive_files(notebook: str) -> tuple[Path, Path]:
    """Where the results and the provenance of a notebook's paper-scale run are archived."""
    return RESULTS / f"{notebook}.paper.nc", RESULTS / f"{notebook}.paper.json"


def checkpoint_folder(notebook: str, scale: str) -> Path:
    """Where a notebook keeps the state of a long training at a scale, so that the next run can go on from there."""
    return ROOT / "_build" / "checkpoints" / scale / notebook


def digest(*parts: str | Path) -> str:
    """Return the SHA-256 of a text or of a file's bytes; of several, that of their digests."""
    each = [hashlib.sha256(p.read_bytes() if isinstance(p, Path) else p.encode()).hexdigest() for p in parts]
    return each[0] if len(each) == 1 else digest(" ".join(each))
