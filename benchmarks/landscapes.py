"""What training together saves: networks of Quax et al. (2020), 10 units, 20 steps, minibatches of 20.

The same work four ways: one network at a time, stepped in a loop; a map of 196 stepped in a loop under vmap; one at a
time with the compiled recurrence; and the map as the chapters train it. Prints the time of a step of Adam a network,
and ratios within each repetition.
"""

import statistics
import time

import torch
from ensembles import stepping

from ts_helpers import aru

REPETITIONS, MAP = 5, 196
EPOCHS = {"loop, one": 1, "loop, vmap of 196": 1, "compiled, one": 3, "map of 196": 3}


def networks(n: int) -> list[aru.Network]:
    """Return n networks."""
    return [aru.network(0.5, 0.5, seed=(0, i)) for i in range(n)]


def alone(epochs: int, data: list[torch.Tensor]) -> float:
    """Return the seconds of a step of one network, with torch's own Adam."""
    (net,) = networks(1)
    adam = torch.optim.Adam(net.parameters(), lr=aru.LR)
    x, y = data[:2]
    start, steps = time.perf_counter(), 0
    for _ in range(epochs):
        for some in torch.randperm(x.shape[1]).split(aru.BATCH):
            adam.zero_grad()
            aru.loss(net, x[:, some], y[:, some]).backward()
            adam.step()
            steps += 1
    return (time.perf_counter() - start) / steps


def together(epochs: int, data: list[torch.Tensor]) -> float:
    """Return the seconds of a step a network, of a map trained at once."""
    steps = epochs * data[0].shape[1] // aru.BATCH
    history = aru.fit(networks(MAP), aru.for_each(data, MAP), True, epochs=epochs, order=0, every=epochs, name="map")
    return history.seconds / steps / MAP


def main() -> None:
    """Measure every way in turn, several times, and print ratios."""
    torch.set_num_threads(1)
    data = aru.teacher_data(aru.network(0.34, 0.68, seed=(1,)), seed=(2,))

    def measure() -> dict[str, float]:
        with stepping():
            times = {"loop, one": alone(EPOCHS["loop, one"], data)}
            times["loop, vmap of 196"] = together(EPOCHS["loop, vmap of 196"], data)
        times["compiled, one"] = alone(EPOCHS["compiled, one"], data)
        times["map of 196"] = together(EPOCHS["map of 196"], data)
        return times

    measure()  # compiles
    runs = [measure() for _ in range(REPETITIONS)]
    print(f"{'':<20}{'us/step/network':>18}{'against loop, one':>24}{'against vmap':>24}")
    for way in EPOCHS:
        line = f"{way:<20}{1e6 * statistics.median(run[way] for run in runs):>18.1f}"
        for other in ("loop, one", "loop, vmap of 196"):
            ratios = sorted(run[other] / run[way] for run in runs)
            line += f"{ratios[len(ratios) // 2]:>10.1f} [{ratios[0]:.1f}, {ratios[-1]:.1f}]".rjust(24)
        print(line)


if __name__ == "__main__":
    main()
