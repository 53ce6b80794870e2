"""Data that the chapters draw, read or download, one small module a family; no network and no training is here.

Arguments out of the range that a docstring gives, sizes below 1 and files that are not as asked raise a ValueError.
"""

from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "_build" / "data"  # where downloads are kept, so that they are only once
PATIENCE = 10.0  # with a host that does not answer, seconds


def at_least(least: int, **sizes: int) -> None:
    """Raise a ValueError if any of the sizes is below the least."""
    if min(sizes.values()) < least:
        got = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"{' and '.join(sizes)} must be {least} or more, got {got}")
