"""Signals to recall and to predict: the memory and hierarchy tasks of Quax et al. (2020), without their networks."""

import math

import torch
from torch import Generator, Tensor

from ts_helpers._check import at_least, within

LAG, WINDOW, CUTOFF = 0.1, 0.25, 20.0  # seconds, seconds, Hz


def recall(n_back: int, n_sequences: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Windows of low-passed noise, and the same noise 100 ms earlier, which is ``n_back`` steps, 4 or more.

    White noise with no power above 20 Hz and variance 1, in windows of 250 ms; only the step, ``100 / n_back`` ms,
    differs with ``n_back``, below 4 of which it is too long for 20 Hz. x and y are (time, sequences, 1), ``2.5 n_back``
    steps (rounded down): the signal, and that of ``n_back`` steps before, NaN where there is none. Predicting 0 scores
    a mean squared error of 1, as do linear guesses from x.
    Source: Quax, D'Asaro & van Gerven (2020), "Testing memory capacity". Their filter is open; ours is ideal, with an
    autocorrelation of about ``sin(40 pi t) / (40 pi t)``: a lag of 100 ms is uncorrelated with the present.
    """
    at_least(4, n_back=n_back)
    at_least(1, n_back=n_back, n_sequences=n_sequences, generator=generator)
    duration = 2.0  # of the periodic signal a window is cut from, seconds
    frequencies = (torch.arange(round(CUTOFF * duration), dtype=torch.float64) + 0.5) / duration
    times = torch.arange(int(n_back * WINDOW / LAG), dtype=torch.float64) * LAG / n_back
    phases = 2 * math.pi * torch.rand(len(frequencies), n_sequences, generator=generator, dtype=torch.float64)
    amplitudes = torch.sqrt(-2 * torch.log(torch.rand(phases.shape, generator=generator, dtype=torch.float64)))
    waves = amplitudes * torch.cos(2 * math.pi * frequencies[:, None] * times[:, None, None] + phases)
    x = (waves.sum(1) / math.sqrt(len(frequencies))).unsqueeze(-1).float()
    return x, torch.cat([torch.full_like(x[:n_back], math.nan), x[:-n_back]])


def two_waves(n_steps: int, n_sequences: int, dt: float = 0.01, *, generator: Generator) -> tuple[Tensor, Tensor]:
    r"""A fast and a slow wave, and the same one step later; ``dt``, seconds, is in (0, 0.05), to tell 10 Hz from less.

    .. math:: x(t) = \tfrac12 \big( \sin(2 \pi \, 10 \, t + \phi_1) + \sin(2 \pi \, 2 \, t + \phi_2) \big)

    Source: Quax, D'Asaro & van Gerven (2020), "A hierarchy of time scales". Step, length and phases, drawn for each
    sequence, are open there. x and y are (time, sequences, 1). Predicting 0 scores a mean squared error of 1/4;
    repeating x scores ``(1 - cos(20 pi dt) + 1 - cos(4 pi dt)) / 4``, 0.05 for 10 ms.
    """
    at_least(1, n_steps=n_steps, n_sequences=n_sequences, generator=generator)
    within("(0, 0.05)", dt=dt)
    phases = 2 * math.pi * torch.rand(2, n_sequences, generator=generator)
    times = dt * torch.arange(n_steps + 1)[:, None]
    signal = (torch.sin(20 * math.pi * times + phases[0]) + torch.sin(4 * math.pi * times + phases[1])) / 2
    return signal[:-1, :, None], signal[1:, :, None]
