"""Smoothed noise and time constants for the teacher tasks of Quax et al. (2020); the teachers are in the chapters."""

import torch
from scipy.signal import savgol_filter
from torch import Generator, Tensor

from ts_helpers._check import at_least, within


def smoothed_noise(
    n_steps: int, n_sequences: int, features: int, *, window: int = 7, order: int = 3, generator: Generator
) -> Tensor:
    """White noise, uniform in (0, 1), smoothed along time by a Savitzky-Golay filter: x (time, sequences, features).

    Source: Quax, D'Asaro & van Gerven (2020), "Simulations". Open there: the order of its polynomials, and the window
    of steps they are fitted to, odd, above the order, no longer than the sequence. A few values leave (0, 1).
    """
    at_least(1, n_steps=n_steps, n_sequences=n_sequences, features=features, generator=generator)
    at_least(0, window=window, order=order)
    if window % 2 == 0 or not order < window <= n_steps:
        raise ValueError(f"window must be odd, above order and at most n_steps, got {window=}, {order=}, {n_steps=}")
    noise = torch.rand(n_steps, n_sequences, features, generator=generator)
    return torch.as_tensor(savgol_filter(noise.numpy(), window, order, axis=0))


def truncated_gaussian(n: int, mean: float, sd: float, *, generator: Generator) -> Tensor:
    """Draw (n,) numbers from a Gaussian with a mean in [0.001, 0.999] and sd in (0, 100], cut to (0, 1), by rejection.

    Source: Quax, D'Asaro & van Gerven (2020), "Learning individual time constants": mean 0.5, sd 0.1 to 0.3 before it
    is cut; cut, sd is 0.10, 0.19 and 0.24 for 0.1, 0.2 and 0.3.
    """
    at_least(1, n=n, generator=generator)
    within("[0.001, 0.999]", mean=mean)
    within("(0, 100]", sd=sd)
    kept = torch.empty(0)
    while len(kept) < n:
        drawn = mean + sd * torch.randn(4 * n, generator=generator)
        kept = torch.cat([kept, drawn[(drawn > 0) & (drawn < 1)]])
    return kept[:n]
