"""Data that the chapters draw, read or download, one small module a family; no network and no training is here.

An argument that is out of the range its docstring gives, or a size below 1, is refused with a ValueError.
"""

from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "_build" / "data"  # where downloads are kept, so that they are only once


def at_least(least: int, **sizes: int) -> None:
    """Raise a ValueError if any of the sizes is below the least."""
    if min(sizes.values()) < least:
        got = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"{' and '.join(sizes)} must be {least} or more, got {got}")
