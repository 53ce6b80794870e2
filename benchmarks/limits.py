"""What a step cannot do without: its matrix products alone, and its traffic between memory and processor alone."""

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch.nn import functional as F
from workloads import Workload

from ts_helpers.engine.lanes import LANES, ONCE, product

NEAR = 100_000  # numbers of eight networks that stay in a near cache


@numba.njit(cache=True)
def _by_blas(a, b, out, times):  # type: ignore[no-untyped-def]
    for _ in range(times):
        np.dot(a, b, out)


@numba.njit(cache=True)
def _by_eights(a, b, out, m, k, n, times):  # type: ignore[no-untyped-def]
    """Products (m, k) (k, n) of eight networks, as `ts_helpers.engine.lanes` makes them."""
    for _ in range(times):
        product(out, (0, n), a, (0, k, 1), b, (0, n, 1), (m, n, k), ONCE, True)


def _ways(m: int, k: int, n: int, times: int) -> dict[str, Callable[[], Any]]:
    """Return ways to make a product (m, k) (k, n) so many times, a multiple of eight; operands stay where they are."""
    draw = np.random.default_rng(0).standard_normal
    a, b, out = draw((m, k), np.float32), draw((k, n), np.float32), np.empty((m, n), np.float32)
    ways: dict[str, Callable[[], Any]] = {"NumPy's BLAS": lambda: _by_blas(a, b, out, times)}
    if k * (m + n) < NEAR:
        less, more = sorted((m, n))  # a matrix or its transpose: long rows are faster
        vectors = [draw(size * LANES, np.float32) for size in (less * k, k * more, m * n)]
        ways["eight at a time"] = lambda: _by_eights(*vectors, less, k, more, times // LANES)
    if torch.backends.mkldnn.is_available():
        packed, weights = (torch.from_numpy(array).contiguous().to_mkldnn() for array in (a, b.T))
        ways["oneDNN"] = lambda: [F.linear(packed, weights) for _ in range(times)]
    return ways


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


class Products:
    """All products of forward and backward, each by the fastest way that was found for it; ``by`` names them."""

    def __init__(self, work: Workload):
        self.networks = LANES * -(-work.networks // LANES)
        wide, rows = work.gates * work.units, work.steps * work.batch
        products = [  # rows, sum, columns, times
            (work.batch, work.units, wide, work.steps),  # forward: what units receive of each other
            (work.batch, wide, work.units, work.steps),  # backward: and its way back
            (wide, rows, work.units, 1),  # gradient of W
            (rows, work.features, wide, 1),  # input
            (wide, rows, work.features, 1),  # gradient of U
            (rows, work.units, work.outputs, 1),  # read-out
            (rows, work.outputs, work.units, 1),  # its way back
            (work.outputs, rows, work.units, 1),  # gradient of V
        ]
        self.ways, self.by = [], []
        for *sizes, times in products:
            once = _ways(*sizes, times * LANES)
            seconds = {name: min(_seconds(way) for _ in range(2)) for name, way in once.items()}
            self.by.append(min(seconds, key=seconds.__getitem__))
            self.ways.append(_ways(*sizes, times * self.networks)[self.by[-1]])

    def train(self, steps: int) -> float:
        """Make the products of so many steps; see `ways`."""
        with torch.inference_mode():
            return sum(_seconds(way) for way in self.ways * steps)


@numba.njit(cache=True, fastmath=True)
def _traffic(p, m, v, grad, data, kept):  # type: ignore[no-untyped-def]
    """Read and write what a step must, network by network; what is kept from forward to backward, in one place."""
    total = p.dtype.type(0)
    for n in range(len(p)):
        for _ in range(2):  # forward, backward
            for j in range(data.shape[1]):
                total += data[n, j]
        for j in range(len(kept)):
            kept[j] = total
        for j in range(len(kept)):
            total += kept[j]
        for j in range(p.shape[1]):
            grad[n, j] = total
        for j in range(p.shape[1]):  # Adam
            m[n, j] += grad[n, j]
            v[n, j] += grad[n, j]
            p[n, j] += m[n, j] + v[n, j]
    return total


class Traffic:
    """The bytes of a step: data and kept states written and read once, parameters, gradients and Adam's memory."""

    def __init__(self, work: Workload):
        self.networks = work.networks
        numbers = sum(p.numel() for p in work.make(work, 0).parameters())
        given = sum(tensor.numel() for tensor in work.data(work))
        kept = work.steps * work.batch * work.units * work.states
        self.arrays = [np.zeros((work.networks, numbers), np.float32) for _ in range(4)]
        self.arrays += [np.zeros((work.networks, given), np.float32), np.zeros(kept, np.float32)]

    def train(self, steps: int) -> float:
        """Move the bytes of so many steps; see `ways`."""
        return sum(_seconds(lambda: _traffic(*self.arrays)) for _ in range(steps))
