"""What networks with known time constants make of smoothed noise: the teacher tasks of Quax et al. (2020)."""

import torch
from scipy.signal import savgol_filter
from torch import Tensor


def smoothed_noise(
    n_steps: int,
    n_sequences: int,
    features: int,
    *,
    window: int = 7,
    order: int = 3,
    generator: torch.Generator,
) -> Tensor:
    """White noise, uniform in (0, 1), smoothed along time by a Savitzky-Golay filter.

    Source: Quax, D'Asaro & van Gerven (2020), "Simulations". Window and order of the filter are open there.

    Args:
        n_steps: length of a sequence.
        n_sequences: how many.
        features: independent signals in each.
        window: steps that a polynomial is fitted to, odd.
        order: of the polynomial.
        generator: draws the noise.

    Returns:
        x: (time, sequences, features), with mean 1/2; a few values lie outside (0, 1).

    Raises:
        ValueError: a size is below 1, the window is even or longer than the sequence, or the order not below the
            window.
    """
    if min(n_sequences, features) < 1:
        raise ValueError(f"n_sequences and features must be 1 or more, got {n_sequences=}, {features=}")
    if window % 2 == 0 or not order < window <= n_steps:
        raise ValueError(
            f"window must be odd, above the order and at most n_steps, got {window=}, {order=}, {n_steps=}"
        )
    noise = torch.rand(n_steps, n_sequences, features, generator=generator)
    return torch.as_tensor(savgol_filter(noise.numpy(), window, order, axis=0))


def truncated_gaussian(n: int, mean: float, sd: float, *, generator: torch.Generator) -> Tensor:
    """Draw from a Gaussian cut to (0, 1), by rejection.

    Source: Quax, D'Asaro & van Gerven (2020), "Learning individual time constants": mean 0.5, sd 0.1 to 0.3.

    Args:
        n: how many.
        mean: of the Gaussian before it is cut, in (0, 1).
        sd: its standard deviation before it is cut; cut, it is smaller (0.10, 0.19 and 0.24 for 0.1, 0.2 and 0.3
            around 0.5).
        generator: draws.

    Returns:
        (n,), each in (0, 1).

    Raises:
        ValueError: n is below 1, the mean outside (0, 1), or sd not positive.
    """
    if n < 1 or not 0 < mean < 1 or not sd > 0:
        raise ValueError(f"n must be 1 or more, mean in (0, 1) and sd positive, got {n=}, {mean=}, {sd=}")
    kept = torch.empty(0)
    while len(kept) < n:
        drawn = mean + sd * torch.randn(4 * n, generator=generator)
        kept = torch.cat([kept, drawn[(drawn > 0) & (drawn < 1)]])
    return kept[:n]
