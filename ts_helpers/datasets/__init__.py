"""Data that the chapters draw, read or download, one small module a family; no network and no training is here.

Arguments out of the range that a docstring gives, sizes below 1 or of more than 2^28 numbers, and files that are not as
asked raise a ValueError; what is of another type, a TypeError.
"""

from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "_build" / "data"  # where downloads are kept, so that they are only once
PATIENCE = 10.0  # with a host that does not answer, seconds
