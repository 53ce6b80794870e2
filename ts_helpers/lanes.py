"""Compiled kernels: small networks of adaptive recurrent units with their read-out, eight at a time.

A product of a 10 x 10 with a 10 x 20 matrix is too small for any library to be fast at it. Eight of them, from eight
networks, fill the registers: every number below is a vector of eight, one of each network, and an array is a list of
such vectors. What is left over, and networks too large to gain by it, go one by one.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ts_helpers import kernels
from ts_helpers.kernels import ALONE, COMPILE, activate, add_product, slope_of

LANES = 8  # networks at a time
LARGEST = 40  # units of a network; beyond, BLAS is faster


def _sums(width: int) -> Any:
    """Return an instruction that adds ``width`` sums of products of vectors to an array, holding them in registers."""

    @intrinsic
    def add(context, out, o, so, a, i, si, b, j, sj, sb, n):  # type: ignore[no-untyped-def]
        signature = types.void(out, o, so, a, i, si, b, j, sj, sb, n)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            out, o, so, a, i, si, b, j, sj, sb, n = arguments
            align = context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype))

            def vectors(which, array):  # type: ignore[no-untyped-def]
                data = context.make_array(signature.args[which])(context, builder, array).data
                return builder.bitcast(data, ir.VectorType(data.type.pointee, LANES).as_pointer())

            out, a, b = vectors(0, out), vectors(3, a), vectors(6, b)

            def at(start, stride, k):  # type: ignore[no-untyped-def]
                return builder.add(start, builder.mul(stride, ir.Constant(stride.type, k)))

            def load(array, k):  # type: ignore[no-untyped-def]
                return builder.load(builder.gep(array, [k]), align=align)

            sums = [cgutils.alloca_once_value(builder, load(out, at(o, so, c))) for c in range(width)]
            with cgutils.for_range(builder, n) as loop:
                left = load(a, builder.add(i, builder.mul(si, loop.index)))
                first = builder.add(j, builder.mul(sj, loop.index))
                for c, total in enumerate(sums):
                    product = builder.fmul(left, load(b, at(first, sb, c)), flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for c, total in enumerate(sums):
                builder.store(builder.load(total), builder.gep(out, [at(o, so, c)]), align=align)
            return context.get_dummy_value()

        return signature, generate

    return add


_sums_8, _sums_4, _sums_2, _sums_1 = (_sums(width) for width in (8, 4, 2, 1))


@numba.njit(**COMPILE)
def _add_sums(out, o, so, a, i, si, b, j, sj, sb, n, width):  # type: ignore[no-untyped-def]
    """out[o + so c] += sum over s < n of a[i + si s] b[j + sj s + sb c], for c < width; in vectors."""
    c = 0
    while c + 8 <= width:
        _sums_8(out, o + c * so, so, a, i, si, b, j + c * sb, sj, sb, n)
        c += 8
    if c + 4 <= width:
        _sums_4(out, o + c * so, so, a, i, si, b, j + c * sb, sj, sb, n)
        c += 4
    if c + 2 <= width:
        _sums_2(out, o + c * so, so, a, i, si, b, j + c * sb, sj, sb, n)
        c += 2
    if c < width:
        _sums_1(out, o + c * so, so, a, i, si, b, j + c * sb, sj, sb, n)


@numba.njit(**COMPILE)
def _gather(array, n):  # type: ignore[no-untyped-def]
    """Return the numbers of eight networks from n on as vectors."""
    flat = array.reshape(len(array), -1)
    out = np.empty(flat.shape[1] * LANES, array.dtype)
    for k in range(LANES):
        for s in range(flat.shape[1]):
            out[s * LANES + k] = flat[n + k, s]
    return out


@numba.njit(**COMPILE)
def _scatter(vectors, array, n):  # type: ignore[no-untyped-def]
    """Put vectors where `_gather` found them."""
    flat = array.reshape(len(array), -1)
    for k in range(LANES):
        for s in range(flat.shape[1]):
            flat[n + k, s] = vectors[s * LANES + k]


@numba.njit(**COMPILE)
def _gather_step(array, n, out):  # type: ignore[no-untyped-def]
    """Set vectors (features, batch) to a step (networks, batch, features)."""
    batch, features = array.shape[1:]
    for k in range(LANES):
        for i in range(batch):
            for f in range(features):
                out[(f * batch + i) * LANES + k] = array[n + k, i, f]


@numba.njit(**COMPILE)
def _scatter_step(vectors, array, n):  # type: ignore[no-untyped-def]
    """Put vectors where `_gather_step` found them."""
    batch, features = array.shape[1:]
    for k in range(LANES):
        for i in range(batch):
            for f in range(features):
                array[n + k, i, f] = vectors[(f * batch + i) * LANES + k]


@numba.njit(**COMPILE)
def _over_batch(array, n, batch):  # type: ignore[no-untyped-def]
    """Return (networks, units) as vectors (units, batch), the same for the whole batch."""
    units = array.shape[1]
    out = np.empty((units, batch, LANES), array.dtype)
    for k in range(LANES):
        for j in range(units):
            out[j, :, k] = array[n + k, j]
    return out.ravel()


@numba.njit(**COMPILE)
def _sum_batch(vectors, batch, array, n):  # type: ignore[no-untyped-def]
    """Set (networks, units) to the sums of vectors (units, batch) over the batch."""
    units = array.shape[1]
    each = vectors.reshape(units, batch, LANES)
    for j in range(units):
        for k in range(LANES):
            array[n + k, j] = each[j, :, k].sum()


@numba.njit(**COMPILE)
def _forward_eight(f, n, x, U, W, b, alpha_s, alpha_r, I0, r0, V, c, y, flat):  # type: ignore[no-untyped-def]
    """Set y of eight networks, unless it has no steps, and flat: pull, f(I) and rates of each step."""
    time, batch, features = x.shape[1:]
    units, outputs = W.shape[1], V.shape[1]
    size = units * batch * LANES
    Us, Ws, Vs = _gather(U, n), _gather(W, n), _gather(V, n)
    bias, offset = _over_batch(b, n, batch), _over_batch(c, n, batch)
    a, a_r = _over_batch(alpha_s, n, batch), _over_batch(alpha_r, n, batch)
    xs, ys = np.empty(features * batch * LANES, x.dtype), np.empty(outputs * batch * LANES, x.dtype)
    current, rates = np.empty(size, x.dtype), np.empty(size, x.dtype)
    z, room = np.empty(size, x.dtype), np.empty(size, x.dtype)
    _gather_step(I0, n, current)
    _gather_step(r0, n, rates)
    for t in range(time):
        _gather_step(x[:, t], n, xs)
        z[:] = bias
        for j in range(units):
            _add_sums(z, j * batch, 1, Ws, j * units, 1, rates, 0, batch, 1, units, batch)
            _add_sums(z, j * batch, 1, Us, j * features, 1, xs, 0, batch, 1, features, batch)
        start = 3 * t * size
        pull, active, after = flat[start : start + size], flat[start + size :], flat[start + 2 * size :]
        for j in range(size):
            pull[j] = z[j] - current[j]
        for j in range(size):
            current[j] += a[j] * pull[j]
        activate(f, current, active[:size], room)
        for j in range(size):
            after[j] = rates[j] + a_r[j] * (active[j] - rates[j])
        rates[:] = after[:size]
        if y.shape[1]:
            ys[:] = offset
            for o in range(outputs):
                _add_sums(ys, o * batch, 1, Vs, o * units, 1, rates, 0, batch, 1, units, batch)
            _scatter_step(ys, y[:, t], n)


@numba.njit(**COMPILE)
def _backward_eight(  # type: ignore[no-untyped-def]
    f, n, grad, x, U, W, alpha_s, alpha_r, r0, V, flat, dx, dU, dW, db, dalpha_s, dalpha_r, dI, dr, dV, dc
):
    time, batch, features = x.shape[1:]
    units, outputs = W.shape[1], V.shape[1]
    size = units * batch * LANES
    Us, Ws, Vs = _gather(U, n), _gather(W, n), _gather(V, n)
    a, a_r = _over_batch(alpha_s, n, batch), _over_batch(alpha_r, n, batch)
    xs, ys = np.empty(features * batch * LANES, x.dtype), np.empty(outputs * batch * LANES, x.dtype)
    dUs, dWs, dVs = np.zeros_like(Us), np.zeros_like(Ws), np.zeros_like(Vs)
    g, g_r = np.zeros(size, x.dtype), np.zeros(size, x.dtype)
    moved, moved_r, pushed = np.zeros(size, x.dtype), np.zeros(size, x.dtype), np.zeros(size, x.dtype)
    p, slope, first = np.empty(size, x.dtype), np.empty(size, x.dtype), np.empty(size, x.dtype)
    offset = np.zeros_like(ys)
    _gather_step(r0, n, first)
    for t in range(time - 1, -1, -1):
        start = 3 * t * size
        pull, active, after = (
            flat[start : start + size],
            flat[start + size : start + 2 * size],
            flat[start + 2 * size :],
        )
        before = flat[start - size :] if t else first
        _gather_step(x[:, t], n, xs)
        _gather_step(grad[:, t], n, ys)
        for j in range(ys.size):
            offset[j] += ys[j]
        for o in range(outputs):
            _add_sums(dVs, o * units, 1, ys, o * batch, 1, after, 0, 1, batch, batch, units)
        for i in range(units):
            _add_sums(g_r, i * batch, 1, Vs, i, units, ys, 0, batch, 1, outputs, batch)
        slope_of(f, active, slope)
        for j in range(size):  # a loop for each array that is written to: only such ones are vectorised
            moved_r[j] += g_r[j] * (active[j] - before[j])
        for j in range(size):
            g[j] += a_r[j] * slope[j] * g_r[j]
        for j in range(size):
            p[j] = a[j] * g[j]
        for j in range(size):
            pushed[j] += p[j]
        for j in range(size):
            moved[j] += g[j] * pull[j]
        for j in range(size):
            g_r[j] -= a_r[j] * g_r[j]
        for j in range(size):
            g[j] -= p[j]
        for j in range(units):
            _add_sums(g_r, j * batch, 1, Ws, j, units, p, 0, batch, 1, units, batch)
            _add_sums(dWs, j * units, 1, p, j * batch, 1, before, 0, 1, batch, batch, units)
            _add_sums(dUs, j * features, 1, p, j * batch, 1, xs, 0, 1, batch, batch, features)
        if dx.shape[3]:
            xs[:] = 0
            for i in range(features):
                _add_sums(xs, i * batch, 1, Us, i, features, p, 0, batch, 1, units, batch)
            _scatter_step(xs, dx[:, t], n)
    _scatter(dUs, dU, n)
    _scatter(dWs, dW, n)
    _scatter(dVs, dV, n)
    _sum_batch(offset, batch, dc, n)
    _sum_batch(pushed, batch, db, n)
    _sum_batch(moved, batch, dalpha_s, n)
    _sum_batch(moved_r, batch, dalpha_r, n)
    _scatter_step(g, dI, n)
    _scatter_step(g_r, dr, n)


@numba.njit(**COMPILE, cache=True)
def forward(f, x, U, W, b, alpha_s, alpha_r, I0, r0, V, c, y):  # type: ignore[no-untyped-def]
    """Set y (networks, time, batch, outputs)."""
    networks, time, batch, _ = x.shape
    units, outputs = W.shape[1], V.shape[1]
    eights = networks // LANES * LANES if units <= LARGEST else 0
    flat = np.empty(3 * time * units * batch * LANES if eights else 0, x.dtype)
    for n in range(0, eights, LANES):
        _forward_eight(f, n, x, U, W, b, alpha_s, alpha_r, I0, r0, V, c, y, flat)
    states, rows = np.empty((2, 1, time, batch, units), x.dtype), max(1, ALONE // (units * outputs))
    rates = states[1].reshape(time * batch, units)
    for n in range(eights, networks):
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
    eights = networks // LANES * LANES if units <= LARGEST else 0
    flat = np.empty(3 * time * units * batch * LANES if eights else 0, x.dtype)
    none = np.empty((0, 0, 0, 0), x.dtype)
    for n in range(0, eights, LANES):
        _forward_eight(f, n, x, U, W, b, alpha_s, alpha_r, I0, r0, V, dc, none, flat)
        _backward_eight(
            f, n, grad, x, U, W, alpha_s, alpha_r, r0, V, flat, dx, dU, dW, db, dalpha_s, dalpha_r, dI, dr, dV, dc
        )
    states, rows = np.empty((2, 1, time, batch, units), x.dtype), max(1, ALONE // (units * outputs))
    rates, through = states[1].reshape(time * batch, units), np.empty((1, time, batch, units), x.dtype)
    into, nothing = through.reshape(time * batch, units), np.empty((1, 0, batch, units), x.dtype)
    for n in range(eights, networks):
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
