"""Compile all kernels ahead, in two processes, one a type of number: ``python -m ts_helpers.engine``; nothing else."""

import subprocess
import sys
import time

import torch
from torch import Tensor

from ts_helpers.engine import compiled, gated_kernels, kernels, lanes

# families that have kernels of their own; the other type in another order, lest both write one entry of the cache
ORDERS = {"float32": ("leaky", "aru", "rnn"), "float64": ("rnn", "leaky", "aru")}


def make(family: str, dtype: torch.dtype) -> None:
    """Take a step of one unit, forward and backward."""

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype, requires_grad=True)

    adaptive, weights = family == "aru", [ones(1, 1), ones(1, 1), ones(1), ones(1)]
    given = [None, *weights, ones(1)] if adaptive else weights
    read_out = (ones(1, 1), ones(1)) if adaptive else None
    made = compiled(ones(1, 1, 1), ones(1, 1 + adaptive), family, *given, read_out=read_out)
    assert made is not None
    made.sum().backward()


if __name__ == "__main__":
    start, (first, *others) = time.perf_counter(), sys.argv[1:] or ORDERS
    running = [subprocess.Popen([sys.executable, "-m", "ts_helpers.engine", name]) for name in others]
    for family in ORDERS[first]:
        make(family, getattr(torch, first))
    if any(process.wait() for process in running):
        sys.exit("ts_helpers.engine: a kernel was not compiled")
    if running:
        found = [f for room in (kernels, lanes, gated_kernels) for f in (room.forward, room.backward)]
        new = "compiled" if any(f.stats.cache_misses for f in found) else "were there"
        print(f"{len(found)} kernels, each for {' and '.join(ORDERS)}, {new}: {time.perf_counter() - start:.0f} s")
