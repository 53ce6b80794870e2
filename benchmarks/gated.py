"""What compiling gated units saves: networks of Tallec & Ollivier (2018), 64 units, 32 sequences of 500 steps.

Forward and backward pass, for each of their three cells: one network stepped in a loop; eight stepped in a loop under
vmap; one compiled; eight compiled. Beside them what the matrix products alone cost in the library's hands. Prints the
processor's time a network, and ratios within each repetition.
"""

import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from ts_helpers import gated
from ts_helpers.cells import unroll
from ts_helpers.timescales import Gate

REPETITIONS, TOGETHER = 5, 8
TIME, BATCH, FEATURES, UNITS = 500, 32, 11, 64
CELLS: dict[str, Callable[[torch.Generator], gated.RNNCell]] = {
    "plain": lambda generator: gated.RNNCell(FEATURES, UNITS, generator=generator),
    "leaky": lambda generator: gated.LeakyCell(FEATURES, UNITS, torch.full((UNITS,), 0.1), Gate(), generator=generator),
    "gated": lambda generator: gated.GatedCell(FEATURES, UNITS, generator=generator),
}


class Unrolled(torch.nn.Module):
    """A loss of the states of a cell."""

    def __init__(self, cell: gated.RNNCell):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """Map x (time, batch, input) to a number."""
        return unroll(self.cell, x).square().mean()


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the processor's time of one of several calls."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def ways(kind: str, x: Tensor) -> dict[str, float]:
    """Return the seconds a network of every way to take the gradient."""
    networks = [Unrolled(CELLS[kind](torch.Generator().manual_seed(seed))) for seed in range(TOGETHER)]
    parameters, buffers = stack_module_state(networks)

    def alone() -> None:
        networks[0](x).backward()

    def together() -> None:
        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return functional_call(networks[0], (parameters, buffers), (x,))

        vmap(grad(loss))(parameters, buffers)

    made = {"compiled, one": seconds(alone, 5), "compiled, 8": seconds(together) / TOGETHER}
    applies, gated.applies_to = gated.applies_to, lambda *words: False  # every cell steps in a loop
    try:
        return made | {"loop, one": seconds(alone), "loop, vmap of 8": seconds(together) / TOGETHER}
    finally:
        gated.applies_to = applies


@numba.njit
def products(h, x, p, W, U, out, back, for_W, for_U):  # type: ignore[no-untyped-def]
    """Make the products of a forward and a backward pass."""
    for _ in range(TIME):
        np.dot(h, W.T, out)
        np.dot(x, U.T, out)
        np.dot(p, W, back)
        np.dot(p.T, h, for_W)
        np.dot(p.T, x, for_U)


def products_alone(rows: int) -> float:
    """Return the seconds that the products of a network with so many rows of weights take."""
    draw = np.random.default_rng(0).standard_normal
    shapes = [(BATCH, UNITS), (BATCH, FEATURES), (BATCH, rows), (rows, UNITS), (rows, FEATURES), (BATCH, rows)]
    shapes += [(BATCH, UNITS), (rows, UNITS), (rows, FEATURES)]
    arrays = [draw(shape).astype(np.float32) for shape in shapes]
    products(*arrays)
    return seconds(lambda: products(*arrays), 5)


def main() -> None:
    """Measure every way in turn, several times, and print ratios."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(FEATURES)[torch.randint(FEATURES, (TIME, BATCH), generator=generator)]
    for kind in CELLS:
        rows = 2 * UNITS if kind == "gated" else UNITS
        runs = [{"products alone": products_alone(rows), **ways(kind, x)} for _ in range(REPETITIONS + 1)][
            1:
        ]  # compiles
        print(f"{kind:<18}{'ms/network':>12}{'against loop, one':>24}{'against vmap':>24}{'against products':>24}")
        for way in runs[0]:
            line = f"  {way:<16}{1000 * statistics.median(run[way] for run in runs):>12.2f}"
            for other in ("loop, one", "loop, vmap of 8", "products alone"):
                ratios = [run[other] / run[way] for run in runs]
                line += f"{f'{statistics.median(ratios):.1f} x  [{min(ratios):.1f}, {max(ratios):.1f}]':>24}"
            print(line)


if __name__ == "__main__":
    main()
