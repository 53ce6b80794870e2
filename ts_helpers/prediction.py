"""A network that predicts the next value of a sequence, and goes on by itself when fed its own predictions."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ts_helpers.cells import MTRNNCell, unroll


class NextStep(nn.Module):
    r"""An `MTRNNCell` with a linear read-out of its lowest layer and a learnable initial state for each sequence.

    .. math:: \hat x_{t+1} = V d^0_t + c

    Source: Benureau & Tani (2018), Section 2. The learnable initial states, one per sequence and layer and 0 at
    the start, are from their code; without them a network could not tell which sequence to generate.

    Args:
        cell: the recurrent layers.
        features: values to predict at each step.
        n_sequences: sequences to be learned.
        generator: draws V and c, uniform within ``1 / sqrt(units of the lowest layer)`` of 0.

    Raises:
        ValueError: ``features`` or ``n_sequences`` is below 1.
    """

    def __init__(self, cell: MTRNNCell, features: int, n_sequences: int, *, generator: torch.Generator):
        super().__init__()
        if features < 1 or n_sequences < 1:
            raise ValueError(f"features and n_sequences must be 1 or more, got {features=}, {n_sequences=}")
        self.cell = cell
        n = cell.layers[0]
        self.V = nn.Parameter((2 * torch.rand(features, n, generator=generator) - 1) / n**0.5)
        self.c = nn.Parameter((2 * torch.rand(features, generator=generator) - 1) / n**0.5)
        self.h0 = nn.Parameter(torch.zeros(n_sequences, sum(cell.layers)))

    def read_out(self, h: Tensor) -> Tensor:
        """Map states (..., all layers) to predictions (..., features)."""
        return nn.functional.linear(torch.tanh(h[..., : self.cell.layers[0]]), self.V, self.c)

    def forward(self, x: Tensor) -> Tensor:
        """Predict in open loop: map x (time, sequences, features) to what comes one step later, same shape."""
        V = nn.functional.pad(self.V, (0, sum(self.cell.layers[1:])))
        return unroll(self.cell, x, self.h0, read_out=(V, self.c))

    def generate(self, x: Tensor, n_steps: int) -> Tensor:
        """Predict in closed loop: hear the first value x (sequences, features), then each own prediction.

        Returns:
            (n_steps, sequences, features): what follows x.
        """
        h, outputs = self.h0, []
        with parametrize.cached():
            for _ in range(n_steps):
                h = self.cell(x, h)
                x = self.read_out(h)
                outputs.append(x)
        return torch.stack(outputs)


def closed_loop_error(generated: Tensor, x: Tensor, against: Literal["aligned", "one step off"] = "aligned") -> Tensor:
    """Return the squared error of a generated sequence, summed over steps and features, averaged over sequences.

    "one step off" is the error that the code of Benureau & Tani (2018) takes: it holds the first value and the
    predictions against the sequence without its first value, each prediction against the value after the one it was
    to predict. A perfect reproduction then scores the sum of squared steps of the data.

    Args:
        generated: (time - 1, sequences, features), from `NextStep.generate`.
        x: (time, sequences, features), the sequences to reproduce.

    Raises:
        ValueError: shapes do not fit, or an unknown ``against``.
    """
    if generated.shape != x[1:].shape:
        raise ValueError(f"generated must have shape {tuple(x[1:].shape)}, one step less than x, got {generated.shape}")
    if against == "one step off":
        generated = torch.cat([x[:1], generated[:-1]])
    elif against != "aligned":
        raise ValueError(f"against must be 'aligned' or 'one step off', got {against!r}")
    return ((generated - x[1:]) ** 2).sum((0, 2)).mean()
