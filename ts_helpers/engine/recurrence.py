"""All steps of leaky and of adaptive units in one call, with their own backward pass; how stacks and threads share it.

A loop of small tensor operations spends most of its time between them and in memory. Here the steps of one network
run in its processor's nearest cache, one network after the other. What runs there is in `kernels` and `lanes`.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ts_helpers.engine import kernels, lanes
from ts_helpers.engine.kernels import IDENTITY, RELU, SIGMOID, TANH

Activation = Callable[[Tensor], Tensor] | None
ACTIVATIONS: dict[Activation, int] = {
    torch.tanh: TANH, torch.sigmoid: SIGMOID, torch.relu: RELU, F.relu: RELU, None: IDENTITY,
}  # fmt: skip


def leaky_recurrence(x: Tensor, h: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    r"""Step leaky units through a sequence.

    .. math:: h_t = (1 - \alpha_t) \odot h_{t-1} + \alpha_t \odot \big( W \tanh(h_{t-1}) + U x_t + b \big)

    Where alpha is exactly 0 and the unit rests, the derivative with respect to it is given as 0.

    Args:
        x: (time, batch, input), float32 or float64.
        h: (batch, units) before the first step.
        U: weights from the input, (units, input).
        W: recurrent weights, (units, units), ``W[j, i]`` from unit i to j.
        b: bias, (units,).
        alpha: leak rates, (units,), or (time, units) where they change with time.

    Returns:
        The states after each step, (time, batch, units).

    Raises:
        ValueError: shapes or types do not fit.
    """
    check(x, U=U, W=W, b=b, alpha=alpha, h=h)
    steps = alpha if alpha.ndim == 2 else alpha[None]
    none = x.new_empty(0), x.new_empty(len(h), 0)
    return _apply(TANH, x, U, W, b, steps, none[0], h, none[1])[0]


def in_turn_recurrence(
    sizes: Sequence[int], x: Tensor, h: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor
) -> Tensor:
    """Step layers of leaky units, of such sizes, one after the other, each connected to those beside it at most.

    They are one leaky recurrence at half steps: layer k takes its step t at half step 2 t + k, when the layers beside
    it have taken theirs, and rests at every other.
    """
    steps, rest = len(x), len(sizes) - 1
    x = F.pad(torch.stack([x, torch.zeros_like(x)], 1).flatten(0, 1)[:-1], (0, 0, 0, 0, 0, rest))
    turn = torch.arange(len(x))[:, None] - torch.arange(len(sizes))
    moves = (turn >= 0) & (turn < 2 * steps) & (turn % 2 == 0)
    moves = moves.repeat_interleave(torch.tensor(sizes), 1, output_size=sum(sizes))
    halves = leaky_recurrence(x, h, U, W, b, alpha * moves).split(sizes, -1)
    return torch.cat([layer[k : k + 2 * steps : 2] for k, layer in enumerate(halves)], -1)


def aru_recurrence(
    f: Activation,
    x: Tensor,
    I: Tensor,  # noqa: E741
    r: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor,
    alpha_s: Tensor,
    alpha_r: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Step adaptive recurrent units through a sequence.

    .. math::
        I_t &= (1 - \alpha_s) \odot I_{t-1} + \alpha_s \odot ( W r_{t-1} + U x_t + b ) \\
        r_t &= (1 - \alpha_r) \odot r_{t-1} + \alpha_r \odot f(I_t)

    Arguments as of `leaky_recurrence`, currents I and rates r as h; returns both after each step.
    """
    check(x, U=U, W=W, b=b, alpha_s=alpha_s, alpha_r=alpha_r, I=I, r=r)
    return _apply(ACTIVATIONS[f], x, U, W, b, alpha_s[None], alpha_r, I, r)


def aru_network(
    f: Activation,
    x: Tensor,
    I: Tensor,  # noqa: E741
    r: Tensor,
    V: Tensor,
    c: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor,
    alpha_s: Tensor,
    alpha_r: Tensor,
) -> Tensor:
    """Step them so, and return V r + c, (time, batch, features), of the rates alone; see `lanes`."""
    check(x, U=U, W=W, b=b, alpha_s=alpha_s, alpha_r=alpha_r, I=I, r=r)
    if V.ndim != 2 or V.shape[1] != len(W) or c.shape != V.shape[:1]:
        raise ValueError(
            f"V and c must be (features, {len(W)}) and (features,), got {tuple(V.shape)}, {tuple(c.shape)}"
        )
    tensors = (x, U, W, b, alpha_s, alpha_r, I, r, V, c)
    (y,) = _Network.apply(ACTIVATIONS[f], *(tensor[None] for tensor in tensors))
    return y[0]


def check(x: Tensor, **others: Tensor) -> None:
    """Refuse shapes and types that do not fit."""
    (time, batch, features), units = x.shape, len(others["W"])
    gates = others["b_g"].numel() if "b_g" in others else units
    fitting: dict[str, list[tuple[int, ...]]] = {
        "U": [(units, features)], "W": [(units, units)], "alpha": [(units,), (time, units)],
        "h": [(batch, units)], "I": [(batch, units)], "r": [(batch, units)],
        "U_g": [(gates, features)], "W_g": [(gates, units)], "b_g": [(units,), (1,)],
    }  # fmt: skip
    for name, tensor in others.items():
        shapes = fitting.get(name, [(units,)])
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must have shape {wanted} for {tuple(x.shape)=}, got {tuple(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} must have the type of x, {x.dtype}, got {tensor.dtype}")


def _apply(f: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Run one network as a stack of one."""
    currents, rates = _Recurrence.apply(f, *(tensor[None] for tensor in tensors))
    return currents[0], rates[0]


class Once(torch.autograd.Function):
    """Base of the gradients, which have none of their own."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a compiled recurrence can be differentiated once only; step the cell in a loop instead")


class _Recurrence(torch.autograd.Function):
    """Both recurrences of a stack of networks, which come first in every tensor; without rates it is the leaky one."""

    @staticmethod
    def forward(
        f: int, x: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor, alpha_r: Tensor, h: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the currents and rates after each step."""
        currents, rates = x.new_empty(*x.shape[:3], h.shape[-1]), x.new_empty(*x.shape[:3], r.shape[-1])
        share_out(partial(kernels.forward, f), x, U, W, b, alpha, alpha_r, h, r, currents, rates)
        return currents, rates

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        ctx.f, x, U, W, _, *rest = inputs
        ctx.save_for_backward(x, U, W, *rest, *output)
        ctx.set_materialize_grads(False)  # who reads rates only has no gradient for the currents

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        x = ctx.saved_tensors[0]
        none = x.new_empty(len(x), 0, *x.shape[2:])
        given = [none if grad is None else grad for grad in grads]
        dx, *others = _RecurrenceBackward.apply(ctx.f, ctx.needs_input_grad[1], *given, *ctx.saved_tensors)
        return None, dx if ctx.needs_input_grad[1] else None, *others

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return fold(_Recurrence, info, in_dims, inputs)


class _RecurrenceBackward(Once):
    r"""The gradients of `_Recurrence`, carried back through time.

    With :math:`p_t = \alpha_s g^I_t`, which is also the gradient of the drive:

    .. math::
        g^r_t &= \partial E / \partial r_t + (1 - \alpha_r) g^r_{t+1} + W^T p_{t+1} \\
        g^I_t &= \partial E / \partial I_t + (1 - \alpha_s) g^I_{t+1} + \alpha_r f'(I_t) g^r_t
    """

    @staticmethod
    def forward(
        f: int,
        for_x: bool,
        grad: Tensor,
        grad_r: Tensor,
        x: Tensor,
        U: Tensor,
        W: Tensor,
        alpha: Tensor,
        alpha_r: Tensor,
        h: Tensor,
        r: Tensor,
        currents: Tensor,
        rates: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the gradients of x (empty unless asked for), U, W, b, both alphas, h and r."""
        likes = (x if for_x else x[..., :0], U, W, W[:, 0], alpha, alpha_r, h, r)
        made = [torch.zeros_like(like, memory_format=torch.contiguous_format) for like in likes]
        share_out(partial(kernels.backward, f), grad, grad_r, x, U, W, alpha, alpha_r, h, r, currents, rates, *made)
        return tuple(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return fold(_RecurrenceBackward, info, in_dims, inputs)


class _Network(torch.autograd.Function):
    """`aru_network` of a stack of networks, which come first in every tensor."""

    @staticmethod
    def forward(f: int, *tensors: Tensor) -> tuple[Tensor]:
        """Return the outputs."""
        x, V = tensors[0], tensors[-2]
        y = x.new_empty(*x.shape[:3], V.shape[1])
        share_out(partial(lanes.forward, f), *tensors, y)
        return (y,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        """Keep what the backward pass needs: the inputs alone, for it makes the steps once more."""
        ctx.f, *tensors, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        for_x = ctx.needs_input_grad[1]
        dx, *others = _NetworkBackward.apply(ctx.f, for_x, grads[0], *ctx.saved_tensors)
        return None, dx if for_x else None, *others

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return fold(_Network, info, in_dims, inputs)


class _NetworkBackward(Once):
    """The gradients of `_Network`; those of `_Recurrence`, and of its read-out."""

    @staticmethod
    def forward(f: int, for_x: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x (empty unless asked for), U, W, b, both alphas, h, r, V and c."""
        x, *rest, V = tensors[1:]
        made = [
            torch.zeros_like(like, memory_format=torch.contiguous_format)
            for like in (x if for_x else x[..., :0], *rest, V, V[:, :, 0])
        ]
        share_out(partial(lanes.backward, f), *tensors, *made)
        return tuple(made)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return fold(_NetworkBackward, info, in_dims, inputs)


def fold(function: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> Any:
    """Rule of `torch.func.vmap` for all of them: the mapped dimension joins that of the networks."""
    folded = [
        x
        if not isinstance(x, Tensor)
        else (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(inputs, in_dims, strict=True)
    ]
    output = function.apply(*folded)
    return tuple(o.unflatten(0, (info.batch_size, -1)) for o in output), (0,) * len(output)


_POOL = ThreadPoolExecutor(os.cpu_count())


def share_out(kernel: Callable[..., None], *tensors: Tensor, at_once: int = lanes.LANES) -> None:
    """Run a kernel on a stack of networks, a share of it, so many at once, in each of torch's threads."""
    arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
    groups = -(-len(arrays[0]) // at_once)
    shares = min(groups, torch.get_num_threads())
    if shares < 2:
        kernel(*arrays)
        return
    cuts = [at_once * (groups * k // shares) for k in range(1, shares)]
    parts = zip(*(np.split(array, cuts) for array in arrays), strict=True)
    for done in [_POOL.submit(kernel, *part) for part in parts]:
        done.result()
