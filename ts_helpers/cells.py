"""One step of each cell of the book, and `unroll`, which makes a sequence of them."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ts_helpers.timescales import Dial, set_dial


class Cell(Protocol):
    """What `unroll` needs of a cell."""

    def __call__(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and a state (batch, hidden) to the next state."""

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the state before the first step, for an input x (batch, input)."""


class LeakyCell(nn.Module):
    r"""Continuous-time neurons, each with its own time constant, stepped by forward Euler.

    .. math::
        u_t = (1 - \alpha) \odot u_{t-1} + \alpha \odot \big( W \tanh(u_{t-1}) + U x_t \big),
        \qquad \alpha = \Delta t / \tau

    The output of a neuron is ``tanh(u)``.

    Source: Matsuki & Shibata (2018), Eqs. 1-3. Departure: they have no input; with ``input_size = 0`` neither
    has the cell.

    Args:
        input_size: features of ``x_t``; 0 for a network that only listens to itself.
        hidden_size: neurons.
        alpha: initial leak rate, one number or one a neuron.
        dial: where alpha comes from, see `ts_helpers.timescales`.
        generator: draws the weights, normal with standard deviation ``1 / sqrt(fan-in)``.

    Raises:
        ValueError: a size is negative or no neuron is asked for; alpha lies outside the dial's limits.
    """

    alpha: Any  # reads as a Tensor; a number can be assigned too

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: float | Tensor,
        dial: Dial,
        *,
        generator: torch.Generator,
    ):
        super().__init__()
        if input_size < 0 or hidden_size < 1:
            raise ValueError(f"sizes must be input >= 0 and hidden >= 1, got {input_size=}, {hidden_size=}")
        self.U = nn.Parameter(torch.randn(hidden_size, input_size, generator=generator) / max(input_size, 1) ** 0.5)
        self.W = nn.Parameter(torch.randn(hidden_size, hidden_size, generator=generator) / hidden_size**0.5)
        self.alpha = nn.Parameter(torch.full((hidden_size,), 0.5))
        set_dial(self, "alpha", dial)
        self.alpha = alpha

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Map x (batch, input) and u (batch, hidden) to the next u."""
        drive = F.linear(torch.tanh(u), self.W) + F.linear(x, self.U)
        return (1 - self.alpha) * u + self.alpha * drive

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, hidden) for an input x (batch, input)."""
        return x.new_zeros(len(x), len(self.W))


def unroll(cell: Cell, x: Tensor, state: Tensor | None = None) -> Tensor:
    """Step a cell through a sequence.

    Args:
        cell: a module with ``forward(x, state) -> state`` and ``initial_state(x)``.
        x: (time, batch, input).
        state: (batch, hidden) before the first step; zeros if not given.

    Returns:
        The states after each step, (time, batch, hidden).

    Raises:
        ValueError: ``x`` has not three dimensions, or no time step.
    """
    if x.ndim != 3 or len(x) == 0:
        raise ValueError(f"x must have shape (time >= 1, batch, input), got {tuple(x.shape)}")
    states = []
    with parametrize.cached():  # a dial is turned once a sequence, not once a step
        if state is None:
            state = cell.initial_state(x[0])
        for x_t in x.unbind(0):  # x[t] would cost O(time^2) in the backward pass
            state = cell(x_t, state)
            states.append(state)
    return torch.stack(states)
