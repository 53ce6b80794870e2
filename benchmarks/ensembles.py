"""What training together saves: networks of Benureau & Tani (2018), 3 x 25 units, five sequences of 100 steps.

The same work four ways: one network at a time, stepped in a loop; the same under vmap; one at a time with the
compiled recurrence; the ensemble as the chapters train it. Prints the time of an epoch a network, and ratios within
each repetition.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ts_helpers import cells, ensembles, mtrnn
from ts_helpers.datasets.sines import sums_of_sines

REPETITIONS, EPOCHS = (
    5,
    {"loop, one": 5, "loop, vmap of 20": 4, "compiled, one": 40, "ensemble of 5": 40, "ensemble of 20": 20},
)


@contextmanager
def stepping() -> Iterator[None]:
    """Let `unroll` step every cell in a loop."""
    applies = cells.applies_to
    cells.applies_to = lambda *words: False
    try:
        yield
    finally:
        cells.applies_to = applies


def networks(n: int) -> list[torch.nn.Module]:
    """Return n networks that learn from time constants of 8."""
    return [mtrnn.network(mtrnn.SETTINGS["learn 8"], mtrnn.Choices(), 5, 1, seed=(0, i)) for i in range(n)]


def alone(epochs: int, x: torch.Tensor) -> float:
    """Return the seconds of an epoch of one network, with torch's own Adam."""
    (net,) = networks(1)
    raw = dict(net.named_parameters())[mtrnn.ALPHA]
    rest = [p for p in net.parameters() if p is not raw]
    adam = torch.optim.Adam([{"params": rest, "lr": mtrnn.LR}, {"params": [raw], "lr": 10 * mtrnn.LR}])
    start = time.perf_counter()
    for _ in range(epochs):
        adam.zero_grad()
        mtrnn.mean_loss(net, x).backward()
        adam.step()
    return (time.perf_counter() - start) / epochs


def together(n: int, epochs: int, x: torch.Tensor) -> float:
    """Return the seconds of an epoch a network, of n trained at once."""
    nets, data = networks(n), [x.expand(n, *x.shape)]
    history = ensembles.train(nets, mtrnn.mean_loss, data, epochs=epochs, lr=mtrnn.LR, factors={mtrnn.ALPHA: 10.0})
    return history.seconds / epochs / n


def main() -> None:
    """Measure every way in turn, several times, and print ratios."""
    torch.set_num_threads(1)
    x = sums_of_sines()

    def measure() -> dict[str, float]:
        with stepping():
            times = {"loop, one": alone(EPOCHS["loop, one"], x)}
            times["loop, vmap of 20"] = together(20, EPOCHS["loop, vmap of 20"], x)
        times["compiled, one"] = alone(EPOCHS["compiled, one"], x)
        for n in (5, 20):
            times[f"ensemble of {n}"] = together(n, EPOCHS[f"ensemble of {n}"], x)
        return times

    measure()  # compiles
    runs = [measure() for _ in range(REPETITIONS)]
    print(f"{'':<18}{'ms/epoch/network':>18}{'against loop, one':>24}{'against vmap':>24}")
    for way in EPOCHS:
        line = f"{way:<18}{1000 * statistics.median(run[way] for run in runs):>18.2f}"
        for other in ("loop, one", "loop, vmap of 20"):
            ratios = [run[other] / run[way] for run in runs]
            line += f"{f'{statistics.median(ratios):.1f} x  [{min(ratios):.1f}, {max(ratios):.1f}]':>24}"
        print(line)


if __name__ == "__main__":
    main()
