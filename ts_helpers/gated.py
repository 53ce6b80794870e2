r"""Three cells, each the one before with more command of time: plain, leaky and gated.

A plain unit takes over its candidate at each step. Time stretched by a factor makes it a leaky unit; time warped at
will makes the leak a gate, which depends on what the network hears.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ts_helpers import gated_kernels
from ts_helpers.recurrence import Once, applies_to, check, fold, share_out
from ts_helpers.timescales import Dial, set_dial


class RNNCell(nn.Module):
    r"""Units that take over what they hear.

    .. math:: h_t = \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eq. 2, where the new state is :math:`h_{t+1}`. The text gives no initial weights;
    these are those of `torch.nn.RNN`.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        generator: draws U, W and b, uniform within ``1 / sqrt(hidden_size)`` of 0.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int, *, generator: torch.Generator):
        super().__init__()
        if input_size < 1 or hidden_size < 1:
            raise ValueError(f"sizes must be 1 or more, got {input_size=}, {hidden_size=}")
        self.U, self.W, self.b = _draw(hidden_size, input_size, hidden_size, generator)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        return torch.tanh(F.linear(x, self.U, self.b) + F.linear(h, self.W))

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, hidden) for an input x (batch, input)."""
        return x.new_zeros(len(x), len(self.W))

    def applies_to(self, x: Tensor) -> bool:
        """True where `sequence` can take the place of a loop."""
        return applies_to(x)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return _leaky(x, self.U, self.W, self.b, torch.ones_like(self.b), h)


class LeakyCell(RNNCell):
    r"""Units that take over a part of what they hear.

    .. math:: h_t = (1 - \alpha) \odot h_{t-1} + \alpha \odot \tanh(U x_t + W h_{t-1} + b)

    The units of `cells.LeakyCell` have their tanh elsewhere: they hear each other through it.

    Source: Tallec & Ollivier (2018), Eq. 5, which has one alpha; their experiments have one a unit (Section 3).

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        alpha: initial leak rate: a number, shared by all units, or a tensor (hidden,), one a unit.
        dial: where alpha comes from, see `ts_helpers.timescales`.
        generator: draws the weights, see `RNNCell`.

    Raises:
        ValueError: a size is below 1, alpha has another shape or lies outside the dial's limits.
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
        super().__init__(input_size, hidden_size, generator=generator)
        value = torch.as_tensor(alpha, dtype=torch.get_default_dtype())
        if value.shape not in ((), (hidden_size,)):
            raise ValueError(f"alpha must be a number or one for each of {hidden_size} units, got {tuple(value.shape)}")
        self.alpha = nn.Parameter(value.clone())
        set_dial(self, "alpha", dial)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        return (1 - self.alpha) * h + self.alpha * super().forward(x, h)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return _leaky(x, self.U, self.W, self.b, self.alpha.expand_as(self.b), h)


class GatedCell(RNNCell):
    r"""Units whose leak is a gate, opened and closed by what the network hears.

    .. math::
        g_t &= \sigma(U_g x_t + W_g h_{t-1} + b_g) \\
        h_t &= (1 - g_t) \odot h_{t-1} + g_t \odot \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eqs. 9 and 10, one gate a unit, as in their experiments; ``shared`` makes it
    Eq. 8. The gates' bias, drawn as the other weights are, is what their Section 2 sets by the range of time scales.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        shared: one gate for all units, in the place of one a unit.
        generator: draws the weights and then the gates' weights, see `RNNCell`.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int, *, shared: bool = False, generator: torch.Generator):
        super().__init__(input_size, hidden_size, generator=generator)
        self.U_g, self.W_g, self.b_g = _draw(1 if shared else hidden_size, input_size, hidden_size, generator)

    def gate(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the gates (..., gates) for inputs x (..., input) and the states h (..., hidden) before."""
        return torch.sigmoid(F.linear(x, self.U_g, self.b_g) + F.linear(h, self.W_g))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        g = self.gate(x, h)
        return (1 - g) * h + g * super().forward(x, h)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return gated_recurrence(x, self.U, self.W, self.b, self.U_g, self.W_g, self.b_g, h)


def _draw(rows: int, input_size: int, hidden_size: int, generator: torch.Generator) -> list[nn.Parameter]:
    """Return weights from the input and from the units, and a bias, for so many units or gates."""
    shapes, width = ((rows, input_size), (rows, hidden_size), (rows,)), hidden_size**-0.5
    return [nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * width) for shape in shapes]


def gated_recurrence(
    x: Tensor, U: Tensor, W: Tensor, b: Tensor, U_g: Tensor, W_g: Tensor, b_g: Tensor, h: Tensor
) -> Tensor:
    r"""Step gated units through a sequence, on a CPU.

    .. math::
        g_t &= \sigma(U_g x_t + W_g h_{t-1} + b_g) \\
        h_t &= (1 - g_t) \odot h_{t-1} + g_t \odot \tanh(U x_t + W h_{t-1} + b)

    The same as stepping in a loop, sooner. `torch.func.vmap` over it runs a stack of networks, shared out over torch's
    threads. It can be differentiated once.

    Args:
        x: (time, batch, input), float32 or float64.
        U: weights from the input, (units, input).
        W: recurrent weights, (units, units).
        b: bias, (units,).
        U_g: weights of the gates from the input, (gates, input); as many gates as units, or one for all.
        W_g: weights of the gates from the units, (gates, units).
        b_g: bias of the gates, (gates,).
        h: (batch, units) before the first step.

    Returns:
        The states after each step, (time, batch, units).

    Raises:
        ValueError: shapes or types do not fit.
    """
    check(x, U=U, W=W, b=b, b_g=b_g, U_g=U_g, W_g=W_g, h=h)
    gates = _joined(U_g, W_g, b_g).expand(len(W), -1)
    return _apply(x, torch.cat([_joined(U, W, b), gates]), x.new_empty(0), h)


def _leaky(x: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor, h: Tensor) -> Tensor:
    """Step units with leak rates alpha (units,) through a sequence, see `LeakyCell`."""
    check(x, U=U, W=W, b=b, alpha=alpha, h=h)
    return _apply(x, _joined(U, W, b), alpha, h)


def _joined(U: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return one matrix for all that a unit hears: the units, the input and the constant 1."""
    return torch.cat([W, U, b[:, None]], 1)


def _apply(*tensors: Tensor) -> Tensor:
    """Run one network as a stack of one."""
    (states,) = _Gated.apply(*(tensor[None] for tensor in tensors))
    return states[0]


class _Gated(torch.autograd.Function):
    """The recurrence of a stack of networks, which come first in every tensor; without leak rates it has gates."""

    @staticmethod
    def forward(x: Tensor, weights: Tensor, alpha: Tensor, h: Tensor) -> tuple[Tensor]:
        """Return the states after each step."""
        states = x.new_empty(*x.shape[:3], h.shape[-1])
        share_out(gated_kernels.forward, x, weights, alpha, h, states, at_once=1)
        return (states,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor]) -> None:
        """Keep what the backward pass needs."""
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        for_x = ctx.needs_input_grad[0]
        dx, *others = _GatedBackward.apply(for_x, *grads, *ctx.saved_tensors)
        return dx if for_x else None, *others

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return fold(_Gated, info, in_dims, inputs)


class _GatedBackward(Once):
    r"""The gradients of `_Gated`, carried back through time.

    With the candidate :math:`c_t`, and with :math:`p_t` and :math:`q_t`, the gradients of what goes into tanh and gate:

    .. math::
        p_t &= g_t (1 - c_t^2) \, \partial E / \partial h_t, \qquad
        q_t = g_t (1 - g_t) (c_t - h_{t-1}) \, \partial E / \partial h_t \\
        \partial E / \partial h_{t-1} &= (1 - g_t) \, \partial E / \partial h_t + W^T p_t + W_g^T q_t + \dots
    """

    @staticmethod
    def forward(
        for_x: bool, grad: Tensor, x: Tensor, weights: Tensor, alpha: Tensor, h: Tensor, states: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of x (empty unless asked for), weights, alpha and h."""
        likes = (x if for_x else x[..., :0], weights, alpha, h)
        made = [torch.zeros_like(like, memory_format=torch.contiguous_format) for like in likes]
        share_out(gated_kernels.backward, grad, x, weights, alpha, h, states, *made, at_once=1)
        return tuple(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return fold(_GatedBackward, info, in_dims, inputs)
