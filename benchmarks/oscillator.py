"""What stacking networks saves: one step of OnlineLearner for a stack, against the same networks one at a time.

Prints, for growing stacks, the time of a step a network relative to a stack of one, median and range over
repetitions taken in turn.
"""

import statistics
import time

import torch

from ts_helpers.datasets.oscillator import ring_oscillation, ring_teacher
from ts_helpers.online import OnlineLearner

STEPS, REPETITIONS, STACKS = 500, 5, (1, 10, 100, 1000)


def seconds(networks: int, desired: torch.Tensor) -> float:
    """Return the seconds of a step a network, learning weights and time constants."""
    one = torch.ones(3, networks, dtype=torch.float64)
    W = torch.zeros(3, 3, networks, dtype=torch.float64)
    learner = OnlineLearner(W, 0.1 * one, 0.1 * one, eta_w=0.1, eta_tau=0.01, eta_u=0.01)
    start = time.perf_counter()
    for d in desired.unbind(0):
        learner.step(d[:, None])
    return (time.perf_counter() - start) / len(desired) / networks


def main() -> None:
    """Measure every stack in turn, several times, and print ratios."""
    torch.set_num_threads(1)
    desired = ring_oscillation(STEPS, ring_teacher())[:, 0]
    with torch.inference_mode():
        seconds(1, desired)
        times = {n: [] for n in STACKS}
        for _ in range(REPETITIONS):
            for n in STACKS:
                times[n].append(seconds(n, desired))
    print(f"{'networks':>8}  {'us/step/network':>15}  {'against one at a time':>22}")
    for n in STACKS:
        ratios = [alone / stacked for alone, stacked in zip(times[1], times[n], strict=True)]
        spread = f"{statistics.median(ratios):.1f} x  [{min(ratios):.1f}, {max(ratios):.1f}]"
        print(f"{n:>8}  {1e6 * statistics.median(times[n]):>15.2f}  {spread:>22}")


if __name__ == "__main__":
    main()
