"""All steps of plain, leaky and gated units in one call, with their own backward pass; it runs in `gated_kernels`."""

from typing import Any

import torch
from torch import Tensor

from ts_helpers.engine import gated_kernels
from ts_helpers.engine.recurrence import Once, check, fold, share_out


def gated_recurrence(
    x: Tensor, h: Tensor, U: Tensor, W: Tensor, b: Tensor, U_g: Tensor, W_g: Tensor, b_g: Tensor
) -> Tensor:
    r"""Step gated units through a sequence.

    .. math::
        g_t &= \sigma(U_g x_t + W_g h_{t-1} + b_g) \\
        h_t &= (1 - g_t) \odot h_{t-1} + g_t \odot \tanh(U x_t + W h_{t-1} + b)

    Args:
        x: (time, batch, input), float32 or float64.
        h: (batch, units) before the first step.
        U: weights from the input, (units, input).
        W: recurrent weights, (units, units).
        b: bias, (units,).
        U_g: weights of the gates from the input, (gates, input); as many gates as units, or one for all.
        W_g: weights of the gates from the units, (gates, units).
        b_g: bias of the gates, (gates,).

    Returns:
        The states after each step, (time, batch, units).

    Raises:
        ValueError: shapes or types do not fit.
    """
    check(x, U=U, W=W, b=b, b_g=b_g, U_g=U_g, W_g=W_g, h=h)
    gates = _joined(U_g, W_g, b_g).expand(len(W), -1)
    return _apply(x, torch.cat([_joined(U, W, b), gates]), x.new_empty(0), h)


def leaky_rnn_recurrence(x: Tensor, h: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Step units with leak rates alpha (units,) through a sequence, their tanh around the sum."""
    check(x, U=U, W=W, b=b, alpha=alpha, h=h)
    return _apply(x, _joined(U, W, b), alpha, h)


def _joined(U: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Return one matrix for all that a unit receives: the units, the input and the constant 1."""
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
