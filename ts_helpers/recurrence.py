r"""All steps of a leaky recurrence in one call, with its own backward pass, compiled.

A loop of small tensor operations spends most of its time between them and in memory. Here the steps of one network
run in its processor's nearest cache, one network after the other.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

FAST = {"contract", "reassoc", "nsz", "arcp"}  # sums may be reordered; NaN and infinity stay what they are


def leaky_recurrence(x: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor, h: Tensor) -> Tensor:
    r"""Step leaky units through a sequence, on a CPU.

    .. math:: h_t = (1 - \alpha_t) \odot h_{t-1} + \alpha_t \odot \big( W \tanh(h_{t-1}) + U x_t + b \big)

    The same as stepping in a loop, many times faster. `torch.func.vmap` over it runs a stack of networks, shared out
    over torch's threads. It can be differentiated once; with respect to an alpha that is exactly 0, where the unit
    rests, the derivative is given as 0.

    Args:
        x: (time, batch, input), float32 or float64.
        U: weights from the input, (units, input).
        W: recurrent weights, (units, units), ``W[j, i]`` from unit i to j.
        b: bias, (units,).
        alpha: leak rates, (units,), or (time, units) where they change with time.
        h: (batch, units) before the first step.

    Returns:
        The states after each step, (time, batch, units).

    Raises:
        ValueError: shapes do not fit.
    """
    (time, batch, features), units = x.shape, len(W)
    fitting: dict[str, tuple[Tensor, list[tuple[int, ...]]]] = {
        "U": (U, [(units, features)]), "W": (W, [(units, units)]), "b": (b, [(units,)]),
        "alpha": (alpha, [(units,), (time, units)]), "h": (h, [(batch, units)]),
    }  # fmt: skip
    for name, (tensor, shapes) in fitting.items():
        if tuple(tensor.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must have shape {wanted} for {tuple(x.shape)=}, got {tuple(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"{name} must have the type of x, {x.dtype}, got {tensor.dtype}")
    steps = alpha if alpha.ndim == 2 else alpha[None]
    return _Leaky.apply(*(tensor[None] for tensor in (x, U, W, b, steps, h))).squeeze(0)


def applies_to(x: Tensor) -> bool:
    """True where `leaky_recurrence` can take the place of a loop over the input x: on a CPU, as float32 or float64."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


class _Leaky(torch.autograd.Function):
    """`leaky_recurrence` of a stack of networks, which come first in every tensor."""

    @staticmethod
    def forward(x: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor, h: Tensor) -> Tensor:
        """Return the states after each step."""
        states = x.new_empty(*x.shape[:3], W.shape[1])
        _share_out(_forward, x, U, W, b, alpha, h, states)
        return states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the backward pass needs."""
        x, U, W, _, alpha, h = inputs
        ctx.save_for_backward(x, U, W, alpha, h, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the inputs."""
        return _LeakyBackward.apply(grads[0], *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        """Map over networks."""
        return _fold(_Leaky, info, in_dims, inputs)


class _LeakyBackward(torch.autograd.Function):
    r"""The gradients of `_Leaky`, carried back through time.

    .. math:: g_{t-1} = \partial E / \partial h_{t-1} + (1 - \alpha_t) g_t + (1 - d_{t-1}^2) W^T (\alpha_t g_t)
    """

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, U: Tensor, W: Tensor, alpha: Tensor, h: Tensor, states: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of x, U, W, b, alpha and h, given those of the states."""
        made = [torch.zeros_like(like, memory_format=torch.contiguous_format) for like in (x, U, W, W[:, 0], alpha, h)]
        _share_out(_backward, grad, x, U, W, alpha, h, states, *made)
        return tuple(made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep nothing: there is no second derivative."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("leaky_recurrence can be differentiated once only; step the cell in a loop instead")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        """Map over networks."""
        return _fold(_LeakyBackward, info, in_dims, inputs)


def _fold(function: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Tensor, ...]) -> Any:
    """Rule of `torch.func.vmap` for both functions: the mapped dimension joins that of the networks."""
    folded = [
        (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(inputs, in_dims, strict=True)
    ]
    output = function.apply(*folded)
    if isinstance(output, Tensor):
        return output.unflatten(0, (info.batch_size, -1)), 0
    return tuple(o.unflatten(0, (info.batch_size, -1)) for o in output), (0,) * len(output)


_POOL = ThreadPoolExecutor(os.cpu_count())


def _share_out(kernel: Any, *tensors: Tensor) -> None:
    """Run a kernel on a stack of networks, a share of it in each of torch's threads."""
    arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
    shares = min(len(arrays[0]), torch.get_num_threads())
    if shares < 2:
        kernel(*arrays)
        return
    parts = zip(*(np.array_split(array, shares) for array in arrays), strict=True)
    for done in [_POOL.submit(kernel, *part) for part in parts]:
        done.result()


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def _forward(x, U, W, b, alpha, h0, states):  # type: ignore[no-untyped-def]
    networks, time, batch, features = x.shape
    units = W.shape[1]
    a, d, z = (np.empty((batch, units), x.dtype), np.empty((batch, units), x.dtype), np.empty((batch, units), x.dtype))
    rate, active, drive = a.ravel(), d.ravel(), z.ravel()
    for n in range(networks):
        Ut, Wt = U[n].T.copy(), W[n].T.copy()
        h = h0[n].ravel()
        for t in range(time):
            if t < alpha.shape[1]:
                a[:] = alpha[n, t]
            _tanh(h, active)
            np.dot(d, Wt, z)
            for k in range(batch):
                for j in range(units):
                    z[k, j] += b[n, j]
                for f in range(features):
                    for j in range(units):
                        z[k, j] += x[n, t, k, f] * Ut[f, j]
            new = states[n, t].ravel()
            for j in range(h.size):
                new[j] = h[j] + rate[j] * (drive[j] - h[j])
            h = new


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def _backward(grad, x, U, W, alpha, h0, states, dx, dU, dW, db, dalpha, dh):  # type: ignore[no-untyped-def]
    networks, time, batch, units = grad.shape
    features = x.shape[3]
    a = np.empty((batch, units), grad.dtype)
    d, p, q, sums = np.empty_like(a), np.empty_like(a), np.empty_like(a), np.empty_like(a)
    rate, active, through, back, moved = a.ravel(), d.ravel(), p.ravel(), q.ravel(), sums.ravel()
    one = a.dtype.type(1)
    for n in range(networks):
        dUt = np.zeros((features, units), grad.dtype)
        g = dh[n].ravel()
        moved[:] = 0
        for t in range(time - 1, -1, -1):
            if t < alpha.shape[1] or t == time - 1:
                a[:] = alpha[n, min(t, alpha.shape[1] - 1)]
            h = states[n, t - 1].ravel() if t else h0[n].ravel()
            new, grad_t = states[n, t].ravel(), grad[n, t].ravel()
            _tanh(h, active)
            for j in range(g.size):
                g[j] += grad_t[j]
                through[j] = rate[j] * g[j]
            for j in range(g.size):
                moved[j] += g[j] * (new[j] - h[j])
            for k in range(batch):
                for j in range(units):
                    db[n, j] += p[k, j]
                for f in range(features):
                    for j in range(units):
                        dUt[f, j] += x[n, t, k, f] * p[k, j]
            _add_outer(dW[n], p, d)
            for k in range(batch):
                for f in range(features):
                    dx[n, t, k, f] = (p[k] * U[n, :, f]).sum()
            np.dot(p, W[n], q)
            for j in range(g.size):
                g[j] += (one - active[j] * active[j]) * back[j] - through[j]
            if t < alpha.shape[1]:
                for j in range(units):
                    if a[0, j] != 0:
                        dalpha[n, t, j] = sums[:, j].sum() / a[0, j]
                moved[:] = 0
        dU[n] = dUt.T


@numba.njit(fastmath=FAST, nogil=True, cache=True)
def _add_outer(dW, p, d):  # type: ignore[no-untyped-def]
    """Add p^T d to dW, four rows at a time; too small a product for a threaded one."""
    batch, units = p.shape
    fours = batch // 4 * 4
    for j in range(units):
        for k in range(0, fours, 4):
            c0, c1, c2, c3 = p[k, j], p[k + 1, j], p[k + 2, j], p[k + 3, j]
            for i in range(units):
                dW[j, i] += c0 * d[k, i] + c1 * d[k + 1, i] + c2 * d[k + 2, i] + c3 * d[k + 3, i]
        for k in range(fours, batch):
            c0 = p[k, j]
            for i in range(units):
                dW[j, i] += c0 * d[k, i]


def _tanh(h: np.ndarray, d: np.ndarray) -> None:
    """Set d to tanh(h), both one-dimensional."""


# float32: 2 ** f by its Taylor series, |f| <= 1/2, relative error 5e-9; loops the compiler can vectorise
_PER_E = np.float32(-2 / math.log(2))
_TAYLOR = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
_ONE, _HALF, _LEAST = np.float32(1), np.float32(0.5), np.float32(-60)


@overload(_tanh, jit_options={"fastmath": FAST})
def _tanh_of(h, d):  # type: ignore[no-untyped-def]
    c0, c1, c2, c3, c4, c5, c6, c7 = _TAYLOR

    def single(h, d):  # type: ignore[no-untyped-def]
        power = np.empty(h.size, np.float32)
        bits = power.view(np.int32)
        for j in range(h.size):  # exp(-2 |h|) = 2 ** (k + f)
            y = max(_PER_E * abs(h[j]), _LEAST)
            k = np.floor(y + _HALF)
            f = y - k
            bits[j] = (np.int32(k) + 127) << 23
            d[j] = c0 + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * (c5 + f * (c6 + f * c7))))))
        for j in range(h.size):
            e = d[j] * power[j]
            d[j] = math.copysign((_ONE - e) / (_ONE + e), h[j])

    def double(h, d):  # type: ignore[no-untyped-def]
        for j in range(h.size):
            d[j] = math.tanh(h[j])

    return single if h.dtype == numba.float32 else double
