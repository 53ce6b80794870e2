r"""All steps of leaky units in one call, with their own backward pass, compiled.

A loop of small tensor operations spends most of its time between them and in memory. Here the steps of one network
run in its processor's nearest cache, one network after the other.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

COMPILE: Any = dict(
    fastmath={"contract", "reassoc", "nsz", "arcp"},  # sums may be reordered; NaN and infinity stay what they are
    error_model="numpy",  # no test before every division: it would keep loops from being vectorised
    nogil=True,
)
ALONE = 200_000  # multiplications that BLAS makes on one thread; a larger product would start threads of its own

TANH, SIGMOID, RELU, IDENTITY = range(4)
_COMPILED: dict[Callable[[Tensor], Tensor], int] = {
    torch.tanh: TANH, torch.sigmoid: SIGMOID, torch.relu: RELU, torch.nn.functional.relu: RELU,
}  # fmt: skip


def identity(h: Tensor) -> Tensor:
    """Return h: the activation of a linear unit."""
    return h


_COMPILED[identity] = IDENTITY


def applies_to(x: Tensor, f: Callable[[Tensor], Tensor] = torch.tanh) -> bool:
    """True where a compiled recurrence can take the place of a loop: on a CPU, as float32 or float64, for a known f."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and f in _COMPILED


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
    _check(x, U=U, W=W, b=b, alpha=alpha, h=h)
    steps = alpha if alpha.ndim == 2 else alpha[None]
    none = x.new_empty(0), x.new_empty(len(h), 0)
    return _apply(TANH, x, U, W, b, steps, none[0], h, none[1])[0]


def aru_recurrence(
    x: Tensor,
    U: Tensor,
    W: Tensor,
    b: Tensor,
    alpha_s: Tensor,
    alpha_r: Tensor,
    I: Tensor,  # noqa: E741
    r: Tensor,
    f: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> tuple[Tensor, Tensor]:
    r"""Step adaptive recurrent units through a sequence, on a CPU.

    .. math::
        I_t &= (1 - \alpha_s) \odot I_{t-1} + \alpha_s \odot ( W r_{t-1} + U x_t + b ) \\
        r_t &= (1 - \alpha_r) \odot r_{t-1} + \alpha_r \odot f(I_t)

    As `leaky_recurrence` otherwise.

    Args:
        x: (time, batch, input), float32 or float64.
        U: weights from the input, (units, input).
        W: recurrent weights, (units, units).
        b: bias, (units,).
        alpha_s: leak rates of the current, (units,).
        alpha_r: leak rates of the firing rate, (units,).
        I: current before the first step, (batch, units).
        r: firing rate before the first step, (batch, units).
        f: `torch.tanh`, `torch.sigmoid`, `torch.relu` or `identity`.

    Returns:
        Currents and firing rates after each step, both (time, batch, units).

    Raises:
        ValueError: shapes do not fit, or f is another function.
    """
    if f not in _COMPILED:
        raise ValueError(f"f must be torch.tanh, torch.sigmoid, torch.relu or recurrence.identity, got {f!r}")
    _check(x, U=U, W=W, b=b, alpha_s=alpha_s, alpha_r=alpha_r, I=I, r=r)
    return _apply(_COMPILED[f], x, U, W, b, alpha_s[None], alpha_r, I, r)


def _check(x: Tensor, **others: Tensor) -> None:
    """Refuse shapes and types that do not fit."""
    (time, batch, features), units = x.shape, len(others["W"])
    fitting: dict[str, list[tuple[int, ...]]] = {
        "U": [(units, features)], "W": [(units, units)], "alpha": [(units,), (time, units)],
        "h": [(batch, units)], "I": [(batch, units)], "r": [(batch, units)],
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


class _Recurrence(torch.autograd.Function):
    """Both recurrences of a stack of networks, which come first in every tensor; without rates it is the leaky one."""

    @staticmethod
    def forward(
        f: int, x: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor, alpha_r: Tensor, h: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the currents and rates after each step."""
        currents, rates = x.new_empty(*x.shape[:3], h.shape[-1]), x.new_empty(*x.shape[:3], r.shape[-1])
        _share_out(_forward, f, x, U, W, b, alpha, alpha_r, h, r, currents, rates)
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
        return _fold(_Recurrence, info, in_dims, inputs)


class _RecurrenceBackward(torch.autograd.Function):
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
        _share_out(_backward, f, grad, grad_r, x, U, W, alpha, alpha_r, h, r, currents, rates, *made)
        return tuple(made)

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

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Map over networks."""
        return _fold(_RecurrenceBackward, info, in_dims, inputs)


def _fold(function: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> Any:
    """Rule of `torch.func.vmap` for both functions: the mapped dimension joins that of the networks."""
    folded = [
        x
        if not isinstance(x, Tensor)
        else (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(inputs, in_dims, strict=True)
    ]
    output = function.apply(*folded)
    return tuple(o.unflatten(0, (info.batch_size, -1)) for o in output), (0,) * len(output)


_POOL = ThreadPoolExecutor(os.cpu_count())


def _share_out(kernel: Any, f: int, *tensors: Tensor) -> None:
    """Run a kernel on a stack of networks, a share of it in each of torch's threads."""
    arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
    shares = min(len(arrays[0]), torch.get_num_threads())
    if shares < 2:
        kernel(f, *arrays)
        return
    parts = zip(*(np.array_split(array, shares) for array in arrays), strict=True)
    for done in [_POOL.submit(kernel, f, *part) for part in parts]:
        done.result()


@numba.njit(**COMPILE, cache=True)
def _forward(f, x, U, W, b, alpha, alpha_r, h0, r0, currents, rates):  # type: ignore[no-untyped-def]
    networks, time, batch, features = x.shape
    units, two = W.shape[1], alpha_r.shape[1] > 0
    a, c = np.zeros((batch, units), x.dtype), np.zeros((batch, units), x.dtype)
    d, z, biases = np.empty_like(a), np.empty_like(a), np.empty_like(a)
    rate, rate_r, active, heard, bias = a.ravel(), c.ravel(), d.ravel(), z.ravel(), biases.ravel()
    drive, room = np.zeros((time * batch, units), x.dtype), np.empty(batch * units, x.dtype)
    rows = max(1, ALONE // max(1, units * features))
    for n in range(networks):
        Ut, Wt, xs = U[n].T.copy(), W[n].T.copy(), x[n].reshape(time * batch, features)
        if features:
            for i in range(0, time * batch, rows):
                np.dot(xs[i : i + rows], Ut, drive[i : i + rows])
        h, r = h0[n].ravel(), r0[n]
        biases[:] = b[n]
        if two:
            c[:] = alpha_r[n]
        for t in range(time):
            if t < alpha.shape[1]:
                a[:] = alpha[n, t]
            if two:
                np.dot(r, Wt, z)
            else:
                _activate(f, h, active, room)
                np.dot(d, Wt, z)
            new, driven = currents[n, t].ravel(), drive[t * batch : (t + 1) * batch].ravel()
            for j in range(h.size):
                new[j] = h[j] + rate[j] * (heard[j] + driven[j] + bias[j] - h[j])
            h = new
            if two:
                _activate(f, h, active, room)
                before, after = r.ravel(), rates[n, t].ravel()
                for j in range(h.size):
                    after[j] = before[j] + rate_r[j] * (active[j] - before[j])
                r = rates[n, t]


@numba.njit(**COMPILE, cache=True)
def _backward(  # type: ignore[no-untyped-def]
    f, grad, grad_r, x, U, W, alpha, alpha_r, h0, r0, currents, rates, dx, dU, dW, db, dalpha, dalpha_r, dh, dr
):
    networks, time, batch, units = currents.shape
    features, two = x.shape[3], alpha_r.shape[1] > 0
    a, c = np.zeros((batch, units), x.dtype), np.zeros((batch, units), x.dtype)
    s, q = np.empty_like(a), np.empty_like(a)
    sums, sums_r, pushes = np.empty_like(a), np.empty_like(a), np.empty_like(a)
    pushed = pushes.ravel()
    rate, rate_r, slope, back, moved, moved_r = a.ravel(), c.ravel(), s.ravel(), q.ravel(), sums.ravel(), sums_r.ravel()
    p, d = np.empty((time * batch, units), x.dtype), np.empty((time * batch, units), x.dtype)
    room = np.empty(batch * units, x.dtype)
    for n in range(networks):
        g, g_r = dh[n].ravel(), dr[n].ravel()
        moved[:] = 0
        moved_r[:] = 0
        pushed[:] = 0
        if two:
            c[:] = alpha_r[n]
        for t in range(time - 1, -1, -1):
            if t < alpha.shape[1] or t == time - 1:
                a[:] = alpha[n, min(t, alpha.shape[1] - 1)]
            here = slice(t * batch, (t + 1) * batch)
            h = currents[n, t - 1].ravel() if t else h0[n].ravel()
            new, active, through = currents[n, t].ravel(), d[here].ravel(), p[here].ravel()
            if grad.shape[1]:
                grad_t = grad[n, t].ravel()
                for j in range(g.size):
                    g[j] += grad_t[j]
            if two:
                if grad_r.shape[1]:
                    grad_t = grad_r[n, t].ravel()
                    for j in range(g.size):
                        g_r[j] += grad_t[j]
                before = rates[n, t - 1].ravel() if t else r0[n].ravel()
                _activate(f, new, active, room)
                _slope(f, active, slope)
                for j in range(g.size):
                    moved_r[j] += g_r[j] * (active[j] - before[j])
                for j in range(g.size):
                    g[j] += rate_r[j] * slope[j] * g_r[j]
            else:
                _activate(f, h, active, room)
                _slope(f, active, slope)
            for j in range(g.size):  # a loop for each array that is written to: only such ones are vectorised
                through[j] = rate[j] * g[j]
            for j in range(g.size):
                pushed[j] += through[j]
            for j in range(g.size):
                moved[j] += g[j] * (new[j] - h[j])
            np.dot(p[here], W[n], q)
            if two:
                for j in range(g.size):
                    g_r[j] += back[j] - rate_r[j] * g_r[j]
                for j in range(g.size):
                    g[j] -= through[j]
            else:
                for j in range(g.size):
                    g[j] += slope[j] * back[j] - through[j]
            if t < alpha.shape[1]:
                for j in range(units):
                    if a[0, j] != 0:
                        dalpha[n, t, j] = sums[:, j].sum() / a[0, j]
                moved[:] = 0
        if two:
            dalpha_r[n] = sums_r.sum(0)
            _add_product(p[:batch], r0[n], dW[n])
            _add_product(p[batch:], rates[n, : time - 1].reshape((time - 1) * batch, units), dW[n])
        else:
            _add_product(p, d, dW[n])
        db[n] = pushes.sum(0)
        if features:
            _add_product(p, x[n].reshape(time * batch, features), dU[n])
        if dx.shape[3]:
            rows, flat = max(1, ALONE // (units * features)), dx[n].reshape(time * batch, features)
            for i in range(0, time * batch, rows):
                np.dot(p[i : i + rows], U[n], flat[i : i + rows])


@numba.njit(**COMPILE)
def _add_product(p, d, total):  # type: ignore[no-untyped-def]
    """Add p^T d to total, so many rows at a time that BLAS stays on one thread."""
    rows, part = max(1, ALONE // total.size), np.empty_like(total)
    for i in range(0, len(p), rows):
        np.dot(p[i : i + rows].T, d[i : i + rows], part)
        for j in range(len(total)):
            for k in range(total.shape[1]):
                total[j, k] += part[j, k]


@numba.njit(**COMPILE)
def _slope(f, d, s):  # type: ignore[no-untyped-def]
    """Set s to the derivative of f where it takes the value d."""
    one = d.dtype.type(1)
    if f == TANH:
        for j in range(d.size):
            s[j] = one - d[j] * d[j]
    elif f == SIGMOID:
        for j in range(d.size):
            s[j] = d[j] * (one - d[j])
    elif f == RELU:
        for j in range(d.size):
            s[j] = 0 if d[j] <= 0 else 1
    else:
        s[:] = one


@numba.njit(**COMPILE)
def _activate(f, h, d, e):  # type: ignore[no-untyped-def]
    """Set d to f(h), both one-dimensional; e is room for as many numbers."""
    one = h.dtype.type(1)
    if f == TANH:
        _decay(h, h.dtype.type(2), d, e)
        for j in range(h.size):
            value = (one - d[j]) / (one + d[j])
            d[j] = -value if h[j] < 0 else value
    elif f == SIGMOID:
        _decay(h, one, d, e)
        for j in range(h.size):
            d[j] = (d[j] if h[j] < 0 else one) / (one + d[j])
    elif f == RELU:
        for j in range(h.size):
            d[j] = 0 if h[j] <= 0 else h[j]  # NaN stays
    else:
        d[:] = h


def _decay(h: np.ndarray, c: float, d: np.ndarray, e: np.ndarray) -> None:
    """Set d to exp(-c |h|); e is room for as many numbers."""


# float32: 2 ** y = 2 ** k 2 ** f with whole k, and 2 ** f by its Taylor series, |f| <= 1/2, relative error 5e-9; the
# compiler can vectorise these loops, as it could not a call of exp
_PER_E = np.float32(-1 / math.log(2))
_TAYLOR = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
_HALF, _LEAST, _BIAS, _SHIFT = np.float32(0.5), np.float32(-126), np.int32(127), np.int32(23)


@overload(_decay, jit_options=COMPILE)
def _decay_of(h, c, d, e):  # type: ignore[no-untyped-def]
    c0, c1, c2, c3, c4, c5, c6, c7 = _TAYLOR

    def single(h, c, d, e):  # type: ignore[no-untyped-def]
        bits = e.view(np.int32)
        for j in range(h.size):
            y = _PER_E * c * abs(h[j])
            y = _LEAST if y < _LEAST else y  # NaN stays
            k = np.floor(y + _HALF)
            f = y - k
            bits[j] = (np.int32(k) + _BIAS) << _SHIFT
            d[j] = c0 + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * (c5 + f * (c6 + f * c7))))))
        for j in range(h.size):
            d[j] *= e[j]

    def double(h, c, d, e):  # type: ignore[no-untyped-def]
        for j in range(h.size):
            d[j] = math.exp(-c * abs(h[j]))

    return single if h.dtype == numba.float32 else double
