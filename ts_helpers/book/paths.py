"""Where things lie, and how one folder takes the place of another. Imports nothing heavy: the runner starts fast."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
CLAIMS = ROOT / "book" / "claims.yml"
PACKAGES = ("torch", "numba", "numpy", "scipy", "xarray", "matplotlib")  # their versions can change results


def record_folder(notebook: str) -> Path:
    """Where the record of a notebook lies: below ``$TS_RECORDS`` if that is set, else ``_build/records``."""
    return Path(os.environ.get("TS_RECORDS") or ROOT / "_build" / "records") / notebook


def kept_files(notebook: str) -> tuple[Path, Path]:
    """Where the results and the provenance of a notebook's paper-scale run are kept."""
    folder, _, name = notebook.rpartition("/")
    return RESULTS / folder / f"{name}.paper.nc", RESULTS / folder / f"{name}.paper.json"


def checkpoint_folder(notebook: str, scale: str) -> Path:
    """Where a notebook keeps the state of a long training at a scale, so that the next run can go on from there."""
    return ROOT / "_build" / "checkpoints" / scale / notebook


def data_folder() -> Path:
    """Where data that were downloaded are kept, so that they are only once."""
    return ROOT / "_build" / "data"


def replace_folder(made: Path, target: Path) -> None:
    """Put the folder ``made`` in the place of ``target``.

    Two renames: whoever is killed between them finds no ``target``, never a mixture of both.
    """
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    made.rename(target)
    shutil.rmtree(old, ignore_errors=True)
