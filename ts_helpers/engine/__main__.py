"""Compile the recurrences of cells ahead, for both types of numbers: ``python -m ts_helpers.engine``; nothing else."""

from ts_helpers.engine import TYPES, ready

if __name__ == "__main__":
    for dtype in TYPES:
        ready(dtype)
