"""Compiled kernels: small networks of adaptive recurrent units with their read-out, eight at a time.

What is said of vectors and of products with them is in `vectors`. Networks too large or too few to gain by it go one by
one, as in `kernels`.
"""

import numba
import numpy as np

from ts_helpers.engine import kernels
from ts_helpers.engine.kernels import ALONE, COMPILE, activate, add_product, slope_of
from ts_helpers.engine.vectors import FAST, LANES, each, gathered, product, products, scatter, turned

FEWEST = 3  # networks; less go faster one by one
LARGEST = 128  # units of a network; beyond, BLAS is faster
NEAR = 2**16  # numbers of a few steps, which a core's second cache holds beside the weights


def _leak(builder, arrays, own):  # type: ignore[no-untyped-def]
    """Drive and current to what the current is pulled by, and to the next current."""
    (drive, current), (alpha, bias) = arrays, own
    pull = builder.fadd(builder.fsub(drive, current, flags=FAST), bias, flags=FAST)
    return [pull, builder.fadd(current, builder.fmul(alpha, pull, flags=FAST), flags=FAST)], []


def _follow(builder, arrays, own):  # type: ignore[no-untyped-def]
    """f(current) and rate to the next rate."""
    (active, rate), (alpha,) = arrays, own
    pull = builder.fsub(active, rate, flags=FAST)
    return [builder.fadd(rate, builder.fmul(alpha, pull, flags=FAST), flags=FAST)], []


def _back(builder, arrays, own):  # type: ignore[no-untyped-def]
    """The gradients of rate and current a step back, and of the drive; and what both leak rates get."""
    (g_r, g, active, before, slope, pull), (alpha_s, alpha_r) = arrays, own

    def times(x, y):  # type: ignore[no-untyped-def]
        return builder.fmul(x, y, flags=FAST)

    leaked = times(alpha_r, g_r)
    moved_r = times(g_r, builder.fsub(active, before, flags=FAST))
    g = builder.fadd(g, times(slope, leaked), flags=FAST)
    p = times(alpha_s, g)
    moved = times(g, pull)
    return [builder.fsub(g_r, leaked, flags=FAST), builder.fsub(g, p, flags=FAST), p], [moved, moved_r, p]


_leak_all, _follow_all, _back_all = each(_leak, 2, 2, 0), each(_follow, 2, 1, 0), each(_back, 6, 3, 3)


@numba.njit(**COMPILE)
def _forward_lanes(f, n, x, U, W, b, alpha_s, alpha_r, I0, r0, V, c, y, flat):  # type: ignore[no-untyped-def]
    """Set y of a few networks, unless it has no steps, and flat: pull, f(I) and rates, of as many steps as it holds."""
    time, batch, features = x.shape[1:]
    units, outputs = W.shape[1], V.shape[1]
    size = units * batch * LANES
    slots = len(flat) // (3 * size)
    xs, Us, Ws, Vs, bs = gathered(x, n), gathered(U, n), gathered(W, n), gathered(V, n), gathered(b, n)
    a, a_r = gathered(alpha_s, n), gathered(alpha_r, n)
    current, rates = turned(gathered(I0, n), batch, units), turned(gathered(r0, n), batch, units)
    room, ys = np.empty(size, x.dtype), np.empty((y.shape[1] * batch, outputs * LANES), x.dtype)
    ys[:] = gathered(c, n)
    read = ys.ravel()
    for t in range(time):
        start = 3 * (t % slots) * size
        pull, active = flat[start : start + size], flat[start + size : start + 2 * size]
        after = flat[start + 2 * size : start + 3 * size]
        heard = xs[t * batch * features * LANES :]
        product(pull, batch, 1, Us, features, 1, heard, 1, features, units, batch, features, True)
        product(pull, batch, 1, Ws, units, 1, rates, batch, 1, units, batch, units, False)
        _leak_all((pull, current, pull, current, a, bs), units, batch)
        activate(f, current, active, room)
        _follow_all((active, rates, after, a_r), units, batch)
        rates = after
        if y.shape[1]:
            said = read[t * batch * outputs * LANES :]
            product(said, 1, outputs, Vs, units, 1, rates, batch, 1, outputs, batch, units, False)
    if y.shape[1]:
        scatter(read, y, n)


@numba.njit(**COMPILE)
def _backward_lanes(  # type: ignore[no-untyped-def]
    f, n, grad, x, U, W, alpha_s, alpha_r, r0, V, flat, dx, dU, dW, db, dalpha_s, dalpha_r, dI, dr, dV, dc
):
    """Set the gradients of a few networks, given that of y, and flat of all steps."""
    time, batch, features = x.shape[1:]
    units, outputs = W.shape[1], V.shape[1]
    size = units * batch * LANES
    xs, ys, Us, Ws, Vs = gathered(x, n), gathered(grad, n), gathered(U, n), gathered(W, n), gathered(V, n)
    a, a_r, first = gathered(alpha_s, n), gathered(alpha_r, n), turned(gathered(r0, n), batch, units)
    dxs = np.empty(dx[0].size * LANES, x.dtype)
    dUs, dWs, dVs = np.zeros_like(Us), np.zeros_like(Ws), np.zeros_like(Vs)
    g, g_r = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
    moved, moved_r, pushed = np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
    slope, vectors, steps = np.empty(size, x.dtype), 3 * units * batch, max(1, NEAR // (3 * size))
    last = time
    for t in range(time - 1, -1, -1):
        start = 3 * t * size
        pull, active, after = flat[start:], flat[start + size : start + 2 * size], flat[start + 2 * size :]
        before = flat[start - size :] if t else first
        heard, said = xs[t * batch * features * LANES :], ys[t * batch * outputs * LANES :]
        product(g_r, batch, 1, Vs, 1, units, said, 1, outputs, units, batch, outputs, False)
        slope_of(f, active, slope)
        _back_all((g_r, g, active, before, slope, pull, g_r, g, pull, a, a_r, moved, moved_r, pushed), units, batch)
        p = pull  # from here on
        product(g_r, batch, 1, Ws, 1, units, p, batch, 1, units, batch, units, False)
        if last - t == steps or t <= 1:  # what the weights get, of several steps at once: sums stay in registers
            n_steps, apart = last - t, batch * outputs
            products(
                dVs, units, 1, said, 1, outputs, after, 1, batch, outputs, units, batch, n_steps, apart, vectors, False
            )
            apart = batch * features
            products(
                dUs,
                features,
                1,
                p,
                batch,
                1,
                heard,
                features,
                1,
                units,
                features,
                batch,
                n_steps,
                vectors,
                apart,
                False,
            )
            products(
                dWs, units, 1, p, batch, 1, before, 1, batch, units, units, batch, n_steps, vectors, vectors, False
            )
            last = t
        if dx.shape[3]:
            into = dxs[t * batch * features * LANES :]
            product(into, 1, features, Us, 1, features, p, batch, 1, features, batch, units, True)
    one, offset = np.ones(LANES, x.dtype), np.zeros(outputs * LANES, x.dtype)
    product(offset, 1, 1, ys, 1, outputs, one, 0, 0, outputs, 1, time * batch, False)
    scatter(dxs, dx, n)
    scatter(dUs, dU, n)
    scatter(dWs, dW, n)
    scatter(pushed, db, n)
    scatter(moved, dalpha_s, n)
    scatter(moved_r, dalpha_r, n)
    scatter(turned(g, units, batch), dI, n)
    scatter(turned(g_r, units, batch), dr, n)
    scatter(dVs, dV, n)
    scatter(offset, dc, n)


@numba.njit(**COMPILE, cache=True)
def forward(f, x, U, W, b, alpha_s, alpha_r, I0, r0, V, c, y):  # type: ignore[no-untyped-def]
    """Set y (networks, time, batch, outputs)."""
    networks, time, batch, _ = x.shape
    units, outputs = W.shape[1], V.shape[1]
    together = networks if units <= LARGEST and networks >= FEWEST else 0
    flat = np.empty(6 * units * batch * LANES if together else 0, x.dtype)
    for n in range(0, together, LANES):
        _forward_lanes(f, n, x, U, W, b, alpha_s, alpha_r, I0, r0, V, c, y, flat)
    states, rows = np.empty((2, 1, time, batch, units), x.dtype), max(1, ALONE // (units * outputs))
    rates = states[1].reshape(time * batch, units)
    for n in range(together, networks):
        one, steps = slice(n, n + 1), alpha_s[n : n + 1].reshape(1, 1, units)
        kernels.forward(
            f, x[one], U[one], W[one], b[one], steps, alpha_r[one], I0[one], r0[one], states[0], states[1]
        )  # fmt: skip
        out = y[n].reshape(time * batch, outputs)
        for i in range(0, time * batch, rows):
            np.dot(rates[i : i + rows], V[n].T, out[i : i + rows])
        out += c[n]


@numba.njit(**COMPILE, cache=True)
def backward(  # type: ignore[no-untyped-def]
    f, grad, x, U, W, b, alpha_s, alpha_r, I0, r0, V, dx, dU, dW, db, dalpha_s, dalpha_r, dI, dr, dV, dc
):
    """Set the gradients, all 0 before, given that of y.

    The steps are made once more: that costs less than to write them to memory and to read them again.
    """
    networks, time, batch, _ = x.shape
    units, outputs = W.shape[1], V.shape[1]
    together = networks if units <= LARGEST and networks >= FEWEST else 0
    flat = np.empty(3 * time * units * batch * LANES if together else 0, x.dtype)
    none = np.empty((0, 0, 0, 0), x.dtype)
    for n in range(0, together, LANES):
        _forward_lanes(f, n, x, U, W, b, alpha_s, alpha_r, I0, r0, V, dc, none, flat)
        _backward_lanes(
            f, n, grad, x, U, W, alpha_s, alpha_r, r0, V, flat, dx, dU, dW, db, dalpha_s, dalpha_r, dI, dr, dV, dc
        )
    states, rows = np.empty((2, 1, time, batch, units), x.dtype), max(1, ALONE // (units * outputs))
    rates, through = states[1].reshape(time * batch, units), np.empty((1, time, batch, units), x.dtype)
    into, nothing = through.reshape(time * batch, units), np.empty((1, 0, batch, units), x.dtype)
    for n in range(together, networks):
        one = slice(n, n + 1)
        steps, dsteps = alpha_s[one].reshape(1, 1, units), dalpha_s[one].reshape(1, 1, units)
        kernels.forward(
            f, x[one], U[one], W[one], b[one], steps, alpha_r[one], I0[one], r0[one], states[0], states[1]
        )  # fmt: skip
        given = grad[n].reshape(time * batch, outputs)
        for i in range(0, time * batch, rows):
            np.dot(given[i : i + rows], V[n], into[i : i + rows])
        add_product(given, rates, dV[n])
        dc[n] = given.sum(0)
        kernels.backward(
            f, nothing, through, x[one], U[one], W[one], steps, alpha_r[one], I0[one], r0[one], states[0], states[1],
            dx[one], dU[one], dW[one], db[one], dsteps, dalpha_r[one], dI[one], dr[one],
        )  # fmt: skip
