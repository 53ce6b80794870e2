"""Short sequences, each a sum of sines, as Benureau & Tani (2018) have them, or a reader's own; no network.

`COMPONENTS` has (cycles in 100 steps, amplitude) of the sines of five sequences. The paper prints no numbers; these are
found by a random search for sums that fit what its authors' code gives away: 4 or 5 components, about 0.1 to 18 cycles,
values within [-1.9, 1.6], closed-loop errors of 42.1 of a constant mean and 8.24 of a perfect copy one step off, and of
each sequence's power the share above 10 cycles, `fast_share`: 0.22, 0.16, 0.71, 0.15, 0.08. Of some 30,000 drawn by
`random_components`, each within 0.02 of its share, and 90 million fives of them, these are nearest by their worst.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as short

import numpy as np
import torch
from torch import Generator, Tensor

from ts_helpers._check import at_least, plain_file

COMPONENTS = (
    ((0.8, 0.58), (3.5, 0.68), (7.5, 0.57), (14.9, 0.51)),
    ((0.3, 0.33), (1.0, 0.62), (2.2, 0.25), (3.9, 0.58), (11.1, 0.35)),
    ((0.1, 0.58), (0.7, 0.13), (1.0, 0.45), (12.9, 0.65)),
    ((0.5, 0.45), (0.8, 0.47), (3.2, 0.49), (15.3, 0.31)),
    ((0.2, 0.11), (0.9, 0.67), (1.3, 0.58), (17.6, 0.27)),
)
FORMER = (  # those of the book's first edition, which fit all of that but the shares
    ((0.7, 0.56), (2.0, 0.30), (9.9, 0.40), (17.7, 0.61)),
    ((0.1, 0.32), (0.2, 0.65), (1.0, 0.54), (2.2, 0.28), (8.8, 0.51)),
    ((0.4, 0.18), (1.0, 0.50), (4.1, 0.58), (12.2, 0.24)),
    ((0.9, 0.33), (1.5, 0.10), (2.1, 0.67), (3.5, 0.61), (8.1, 0.66)),
    ((0.1, 0.40), (1.1, 0.50), (1.8, 0.68), (5.3, 0.63), (16.9, 0.18)),
)
Components = Sequence[Sequence[tuple[float, float]]]


def sums_of_sines(components: Components = COMPONENTS, n_steps: int = 100) -> Tensor:
    r"""Sum sines of phase zero, without noise, so that the first value, 0, does not say which sequence it is.

    .. math:: x_t = \sum_i a_i \sin(2 \pi c_i t / 100), \qquad t = 0, 1, \dots

    Source: Benureau & Tani (2018), Section 2, see the module; x is (time, sequences, 1), 3 or more steps. Of the
    default ones, each one's mean scores a squared error of 42.1, summed over 100 steps; the value before, 8.24.
    """
    at_least(3, n_steps=n_steps)
    t = torch.arange(n_steps, dtype=torch.float64)
    try:
        each = [[float(a) * torch.sin(2 * math.pi * float(c) / 100 * t) for c, a in sines] for sines in components]
        x = torch.stack([torch.stack(waves).sum(0) for waves in each], 1)[:, :, None].to(torch.get_default_dtype())
        if not bool(x.isfinite().all()):
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError):
        rule = "components must name a sine or more each, by finite cycles and amplitude"
        raise ValueError(f"{rule}, got {short(components)}") from None
    return x


def random_components(n_sequences: int, *, generator: Generator) -> Components:
    """Draw components as those were drawn of which `COMPONENTS` are the fittest, to see what hangs on the five.

    Ours: 4 or 5 sines each, cycles log-uniform in [0.1, 18], 1.3 times the one below or more, amplitudes uniform in
    [0.1, 0.7]; redrawn if 100 steps leave [-1.95, 1.65], or their squares about the mean do not sum to 18 to 75.
    """
    at_least(1, n_sequences=n_sequences, generator=generator)
    low, high = math.log(0.1), math.log(18)
    found: list[list[tuple[float, float]]] = []
    while len(found) < n_sequences:
        n = int(torch.randint(4, 6, (), generator=generator))
        cycles = torch.exp(low + (high - low) * torch.rand(n, generator=generator)).sort().values
        amplitudes = 0.1 + 0.6 * torch.rand(n, generator=generator)
        sines = list(zip(cycles.tolist(), amplitudes.tolist(), strict=True))
        x = sums_of_sines([sines])[:, 0, 0]
        apart = bool((cycles[1:] >= 1.3 * cycles[:-1]).all())
        if apart and x.min() > -1.95 and x.max() < 1.65 and 18 < float(((x - x.mean()) ** 2).sum()) < 75:
            found.append(sines)
    return found


def fast_share(x: np.ndarray) -> np.ndarray:
    """Return the share of power above 10 cycles of x (100, sequences, ...), means removed, under a Hann window."""
    power = np.abs(np.fft.rfft(((x - x.mean(0)).T * np.hanning(len(x))).T, axis=0)) ** 2
    return power[11:].sum(0) / power.sum(0)


def load_sequences(path: str | Path) -> Tensor:
    """Read one's own ``.npy`` file of numbers (sequences, time >= 3, features) as x (time, sequences, features)."""
    try:
        with plain_file("path", path).open("rb") as file:
            x = np.load(file, allow_pickle=False)
    except TypeError:
        raise
    except Exception as error:  # anything, by what is in the file
        raise ValueError(f"cannot read sequences from {path}: {error}") from None
    if not isinstance(x, np.ndarray):
        raise ValueError(f"{path} must hold one array, as numpy.save writes it, got an archive of several")
    rule = f"sequences in {path} must"
    if x.ndim != 3 or x.shape[0] < 1 or x.shape[1] < 3 or x.shape[2] < 1:
        raise ValueError(f"{rule} have shape (sequences >= 1, time >= 3, features >= 1), got {x.shape}")
    with np.errstate(over="ignore"):  # of numbers longer than double ones
        numbers = x.astype(float) if x.dtype.kind in "fiu" else np.full(x.shape, np.nan)
    taken = torch.as_tensor(numbers.swapaxes(0, 1).copy(), dtype=torch.get_default_dtype())
    if wrong := taken.numel() - int(torch.isfinite(taken).sum()):
        raise ValueError(f"{rule} be finite numbers in {taken.dtype}, got {wrong} of {x.dtype} that are not")
    return taken
