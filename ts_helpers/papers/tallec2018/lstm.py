"""An LSTM with a read-out: torch's own cell, weights drawn from a generator; where its gates start is set elsewhere."""

import torch
from torch import Tensor, nn

from ts_helpers._check import at_least


class LSTMNetwork(nn.Module):
    """Reads a sequence, with an output at every step.

    Args:
        input_size: features.
        hidden_size: units.
        output_size: scores.
        generator: draws all weights and biases within ``1 / sqrt(hidden_size)`` of 0,
            as torch does. Where gates start is set afterwards, by
            `timescales.set_gate_bias_` or `timescales.chrono_init_`, on ``lstm``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        generator: torch.Generator,
    ):
        super().__init__()
        at_least(1, input_size=input_size, hidden_size=hidden_size, generator=generator)
        at_least(1, output_size=output_size)
        self.lstm = nn.LSTM(input_size, hidden_size)
        self.read_out = nn.Linear(hidden_size, output_size)
        width = hidden_size**-0.5
        for p in self.parameters():
            nn.init.uniform_(p, -width, width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (time, batch, input_size) to scores (time, batch, output_size)."""
        return self.read_out(self.lstm(x)[0])
