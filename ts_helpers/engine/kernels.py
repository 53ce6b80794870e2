"""Compiled kernels: the steps of leaky and of adaptive recurrent units, and their gradients, one network at a time."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.extending import overload

# numba keeps what it has compiled by the file it stands in, and would not see that a file it draws on has changed
if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    _TEXTS = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    _DIGEST = hashlib.sha256(b"".join(text for text in _TEXTS if b"numba" in text)).hexdigest()[:16]
    numba.config.CACHE_DIR = str(Path(__file__).parents[2] / "_build" / "compiled" / _DIGEST)  # type: ignore[attr-defined]

COMPILE: Any = dict(
    fastmath={"contract", "reassoc", "nsz", "arcp"},  # sums may be reordered; NaN and infinity stay what they are
    error_model="numpy",  # no test before every division: it would keep loops from being vectorised
    nogil=True,
)
ALONE = 200_000  # multiplications that BLAS makes on one thread; a larger product would start threads of its own
TANH, SIGMOID, RELU, IDENTITY = range(4)


@numba.njit(**COMPILE, cache=True)
def forward(f, x, U, W, b, alpha, alpha_r, h0, r0, currents, rates):  # type: ignore[no-untyped-def]
    """Set currents and rates (networks, time, batch, units); units without rates hear f of each other's currents."""
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
                activate(f, h, active, room)
                np.dot(d, Wt, z)
            new, driven = currents[n, t].ravel(), drive[t * batch : (t + 1) * batch].ravel()
            for j in range(h.size):
                new[j] = h[j] + rate[j] * (heard[j] + driven[j] + bias[j] - h[j])
            h = new
            if two:
                activate(f, h, active, room)
                before, after = r.ravel(), rates[n, t].ravel()
                for j in range(h.size):
                    after[j] = before[j] + rate_r[j] * (active[j] - before[j])
                r = rates[n, t]


@numba.njit(**COMPILE, cache=True)
def backward(  # type: ignore[no-untyped-def]
    f, grad, grad_r, x, U, W, alpha, alpha_r, h0, r0, currents, rates, dx, dU, dW, db, dalpha, dalpha_r, dh, dr
):
    """Set the gradients, all 0 before, given those of currents and rates, either of which may have no steps."""
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
                activate(f, new, active, room)
                slope_of(f, active, slope)
                for j in range(g.size):
                    moved_r[j] += g_r[j] * (active[j] - before[j])
                for j in range(g.size):
                    g[j] += rate_r[j] * slope[j] * g_r[j]
            else:
                activate(f, h, active, room)
                slope_of(f, active, slope)
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
            add_product(p[:batch], r0[n], dW[n])
            add_product(p[batch:], rates[n, : time - 1].reshape((time - 1) * batch, units), dW[n])
        else:
            add_product(p, d, dW[n])
        db[n] = pushes.sum(0)
        if features:
            add_product(p, x[n].reshape(time * batch, features), dU[n])
        if dx.shape[3]:
            rows, flat = max(1, ALONE // (units * features)), dx[n].reshape(time * batch, features)
            for i in range(0, time * batch, rows):
                np.dot(p[i : i + rows], U[n], flat[i : i + rows])


@numba.njit(**COMPILE)
def add_product(p, d, total):  # type: ignore[no-untyped-def]
    """Add p^T d to total, so many rows at a time that BLAS stays on one thread."""
    rows, part = max(1, ALONE // total.size), np.empty_like(total)
    for i in range(0, len(p), rows):
        np.dot(p[i : i + rows].T, d[i : i + rows], part)
        for j in range(len(total)):
            for k in range(total.shape[1]):
                total[j, k] += part[j, k]


@numba.njit(**COMPILE)
def slope_of(f, d, s):  # type: ignore[no-untyped-def]
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
def activate(f, h, d, e):  # type: ignore[no-untyped-def]
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
_HALF, _LEAST, _WHOLE = np.float32(0.5), np.float32(-126), np.float32(1.5 * 2**23)  # whole numbers from there on
_BIAS, _SHIFT = np.int32(127 - int(_WHOLE.view(np.int32))), np.int32(23)


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
            e[j] = k + _WHOLE
            d[j] = c0 + f * (c1 + f * (c2 + f * (c3 + f * (c4 + f * (c5 + f * (c6 + f * c7))))))
        for j in range(h.size):  # the last bits of e are k: make them the exponent of a number 2 ** k
            bits[j] = (bits[j] + _BIAS) << _SHIFT
        for j in range(h.size):
            d[j] *= e[j]

    def double(h, c, d, e):  # type: ignore[no-untyped-def]
        for j in range(h.size):
            d[j] = math.exp(-c * abs(h[j]))

    return single if h.dtype == numba.float32 else double
