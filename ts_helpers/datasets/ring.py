"""Three neurons in a ring that keep each other oscillating: the teacher of Matsuki & Shibata (2018), no student."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ts_helpers._check import as_tensor, at_least, instance, within
from ts_helpers.cells import CTRNNCell, unroll
from ts_helpers.timescales import LogTau


def ring_weights(w_s: float = 2.0, w_p: float = 3.0, w_n: float = -4.0) -> Tensor:
    """Return the teacher's weights, (3, 3) with ``W[j, i]`` from neuron i to neuron j.

    Source: Matsuki & Shibata (2018), Table 3: from itself ``w_s``, anti-clockwise (1, 2, 3, 1) ``w_p``, else ``w_n``.
    """
    within("[-1e6, 1e6]", w_s=w_s, w_p=w_p, w_n=w_n)
    following = torch.eye(3).roll(1, dims=0)  # row j has its one at i = j - 1: the neuron before j
    return w_s * torch.eye(3) + w_p * following + w_n * following.T


def ring_teacher(tau: float | Sequence[float] | Tensor = (2.0, 5.0, 10.0), dt: float = 0.01) -> CTRNNCell:
    """Return the teacher, in double precision, with no input; ``tau``, in the unit of ``dt``, is above ``dt / 2``.

    Source: Matsuki & Shibata (2018), Section 3.1, Table 3.
    """
    teacher = CTRNNCell(0, 3, 0.5, LogTau(dt), generator=torch.Generator()).double()
    teacher.alpha = float(dt) / as_tensor("tau", tau, dtype=torch.float64)
    with torch.no_grad():
        teacher.W.copy_(ring_weights())
    return teacher.requires_grad_(False)


def ring_oscillation(n_steps: int, teacher: CTRNNCell) -> Tensor:
    """Return the outputs of the teacher's neurons, (time, start, 3), from u = 1 at one neuron and 0 at the others.

    Source: Matsuki & Shibata (2018), Section 3.1, which does not say which neuron starts; the first step is that after
    the start. Guessing each output's mean scores R^2 = 0; another period drifts out of phase, below 0.
    """
    at_least(1, n_steps=n_steps)
    instance(CTRNNCell, "a teacher", teacher=teacher)
    starts = torch.eye(3, dtype=torch.float64)
    return torch.tanh(unroll(teacher, starts.new_zeros(n_steps, 3, 0), starts))
