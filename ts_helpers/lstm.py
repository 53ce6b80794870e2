"""An LSTM with a read-out: torch's own layer, with weights drawn from a generator, and compiled on a CPU."""

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ts_helpers import lstm_kernels
from ts_helpers.products import padded
from ts_helpers.recurrence import applies_to


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
    r"""Step a layer of LSTM units, which start at 0, through a sequence.

    .. math::
        (i_t, f_t, o_t) &= \sigma(U x_t + W h_{t-1} + b), \qquad g_t = \tanh(U_g x_t + W_g h_{t-1} + b_g) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t, \qquad h_t = o_t \odot \tanh(c_t)

    Source: Tallec & Ollivier (2018), Eqs. 11 to 15. Each bias is the sum of two, as torch has it.

    On a CPU, in float32 or float64, it is compiled, runs on one thread and can be differentiated once. Elsewhere, and
    where x needs a gradient, it is torch's own.

    Args:
        lstm: one layer in one direction, with biases, time first.
        x: (time, batch, input).

    Returns:
        h: the states after each step, (time, batch, units).
    """
    if x.requires_grad or not (_fits(lstm, x) and applies_to(x)):
        return lstm(x)[0]
    U, W, b, b_of_states = lstm.all_weights[0]
    return _LSTM.apply(x, torch.cat([W, U, (b + b_of_states)[:, None]], 1))


def _fits(lstm: nn.LSTM, x: Tensor) -> bool:
    """False for what torch's own layer refuses, and takes without a batch."""
    return x.ndim == 3 and x.numel() > 0 and x.shape[2] == lstm.input_size and x.dtype == lstm.weight_hh_l0.dtype


class _LSTM(torch.autograd.Function):
    r"""The steps of the layer, and the gradients of its weights, carried back through time.

    With :math:`k_t`, the gradient of the cell, and those of what goes into the gates, :math:`p^o_t` and the like:

    .. math::
        k_t &= f_{t+1} \odot k_{t+1} + (1 - \tanh^2 c_t) \odot o_t \odot \partial E / \partial h_t \\
        p^o_t &= o_t (1 - o_t) \tanh(c_t) \, \partial E / \partial h_t, \qquad p^g_t = (1 - g_t^2) \, i_t \, k_t \\
        p^i_t &= i_t (1 - i_t) \, g_t \, k_t, \qquad p^f_t = f_t (1 - f_t) \, c_{t-1} \, k_t
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        """Return the states after each step."""
        (time, batch, _), units = x.shape, len(weights) // 4
        x, states, wide = x.contiguous(), x.new_empty(time, batch, units), padded.py_func(units, x)
        if ctx.needs_input_grad[1]:
            kept = _kept(time, 5, batch, wide, like=x)
            ctx.save_for_backward(x, weights, kept, states)
        else:
            kept = x.new_empty(2, 5, batch, wide)
        lstm_kernels.forward(*(tensor.detach().numpy() for tensor in (x, weights, kept, states)))
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """Return the gradient of the weights."""
        tensors = grad.contiguous(), *ctx.saved_tensors, torch.zeros_like(ctx.saved_tensors[1])
        lstm_kernels.backward(*(tensor.detach().numpy() for tensor in tensors))
        return None, tensors[-1]


_FREE: list[np.ndarray] = []  # memory that was used before and is not in use


def _kept(*shape: int, like: Tensor) -> Tensor:
    """Return an uninitialised tensor, in memory used before where there is enough.

    A large piece of memory goes back to the system as soon as it is free, and comes anew page by page, each set to 0
    first: with a thousand steps that takes a third as long as all else.
    """
    size = math.prod(shape) * like.element_size()
    pages = _FREE.pop() if _FREE else np.empty(0, np.uint8)
    if len(pages) < size:
        pages = torch.empty(size, dtype=torch.uint8).numpy()
    part = pages[:size]
    weakref.finalize(part, _FREE.append, pages)
    return torch.from_numpy(part).view(like.dtype).view(shape)
