"""An LSTM with a read-out: torch's own cell, with weights drawn from a generator."""

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ts_helpers import lstm_kernels


class LSTMNetwork(nn.Module):
    """Reads a sequence, and answers at every step.

    Args:
        input_size: features.
        hidden_size: units.
        output_size: scores.
        generator: draws all weights and biases within ``1 / sqrt(hidden_size)`` of 0, as torch does. Where gates
            start is set afterwards, by `chrono.set_gate_bias_` or `chrono.chrono_init_`, on ``lstm``.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, *, generator: torch.Generator):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size)
        self.read_out = nn.Linear(hidden_size, output_size)
        for p in self.parameters():
            nn.init.uniform_(p, -(hidden_size**-0.5), hidden_size**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (time, batch, input_size) to scores (time, batch, output_size)."""
        return self.read_out(lstm_states(self.lstm, x))


def lstm_states(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Return the states (time, batch, units) of one layer that starts at 0, compiled where that is possible.

    It is for single or double precision on a CPU, unless gradients for x are wanted; else torch's own.
    """
    if x.device.type != "cpu" or x.requires_grad:
        return lstm(x)[0]
    W_hh, W_ih, b_ih, b_hh = lstm.weight_hh_l0, lstm.weight_ih_l0, lstm.bias_ih_l0, lstm.bias_hh_l0
    weights = torch.cat([W_hh, W_ih, torch.add(b_ih, b_hh)[:, None]], 1)  # type: ignore[list-item,arg-type]
    return _LSTM.apply(x, weights, torch.is_grad_enabled())


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, grad: bool) -> Tensor:
        units = len(weights) // 4
        x = x.contiguous()
        states = _room(*x.shape[:2], units, like=x)
        lanes = 64 // x.element_size()
        kept = _room(len(x) if grad else 2, 5, x.shape[1], -(-units // lanes) * lanes, like=x)
        lstm_kernels.forward(x.numpy(), weights.detach().numpy(), kept.numpy(), states.numpy())
        if grad:
            ctx.save_for_backward(x, weights, kept, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        x, weights, kept, states = ctx.saved_tensors
        made = torch.zeros_like(weights)
        lstm_kernels.backward(
            grad.contiguous().numpy(),
            x.numpy(),
            weights.detach().numpy(),
            kept.numpy(),
            states.detach().numpy(),
            made.numpy(),
        )
        return None, made, None


_FREE: list[np.ndarray] = []


def _room(*shape: int, like: Tensor) -> Tensor:
    size = math.prod(shape) * like.element_size()
    _FREE.sort(key=len)
    k = next((k for k, pages in enumerate(_FREE) if len(pages) >= size), -1)
    pages = _FREE.pop(k) if _FREE else np.empty(0, np.uint8)
    if len(pages) < size:
        pages = torch.empty(size, dtype=torch.uint8).numpy()
    part = pages[:size]
    weakref.finalize(part, _FREE.append, pages)
    return torch.from_numpy(part).view(like.dtype).view(shape)
