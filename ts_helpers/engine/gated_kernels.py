"""Compiled kernels: the steps of units that a gate or a leak rate holds back, and their gradients.

One network goes after the other, and what a step of it needs stays in the processor's nearest caches. The products of
its small matrices are made here: a library packs its operands anew at each call, and starts threads of its own for the
larger ones.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic

from ts_helpers.engine.kernels import COMPILE, SIGMOID, TANH, activate

VECTOR = 64 if get_host_cpu_features().get("avx512f") else 32  # bytes, of one register or of two half as wide


def _sums(rows: int, vectors: int) -> Any:
    """Return an instruction that adds rows x vectors sums to an array, holding them in registers.

    ``out[o + so r + k] += sum over s < n of a[i + si r + ss s] b[j + sb s + k]``, for r < rows and for every k of so
    many vectors.
    """

    @intrinsic
    def add(context, out, o, so, a, i, si, ss, b, j, sb, n):  # type: ignore[no-untyped-def]
        signature = types.void(out, o, so, a, i, si, ss, b, j, sb, n)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            out, o, so, a, i, si, ss, b, j, sb, n = arguments
            number = context.get_value_type(signature.args[0].dtype)
            align = context.get_abi_sizeof(number)
            vector = ir.VectorType(number, VECTOR // align)
            first, every = ir.IntType(32)(0), ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
            out, a, b = (
                context.make_array(signature.args[which])(context, builder, array).data
                for which, array in ((0, out), (3, a), (7, b))
            )

            def place(array, start, stride, k, v=0):  # type: ignore[no-untyped-def]
                start = builder.add(start, builder.mul(stride, k))
                return builder.gep(array, [builder.add(start, start.type(v * vector.count))])

            def vector_at(*words):  # type: ignore[no-untyped-def]
                return builder.bitcast(place(*words), vector.as_pointer())

            tile = [(r, v) for r in range(rows) for v in range(vectors)]
            places = [vector_at(out, o, so, so.type(r), v) for r, v in tile]
            sums = [cgutils.alloca_once_value(builder, builder.load(where, align=align)) for where in places]
            with cgutils.for_range(builder, n) as loop:
                right = [builder.load(vector_at(b, j, sb, loop.index, v), align=align) for v in range(vectors)]
                start, left = builder.add(i, builder.mul(ss, loop.index)), []
                for r in range(rows):
                    one = builder.load(place(a, start, si, si.type(r)))
                    one = builder.insert_element(vector(ir.Undefined), one, first)
                    left.append(builder.shuffle_vector(one, vector(ir.Undefined), every))
                for (r, v), total in zip(tile, sums, strict=True):
                    product = builder.fmul(left[r], right[v], flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for where, total in zip(places, sums, strict=True):
                builder.store(builder.load(total), where, align=align)
            return context.get_dummy_value()

        return signature, generate

    return add


_sums_4_2, _sums_4_1, _sums_1_2, _sums_1_1 = (_sums(rows, vectors) for rows in (4, 1) for vectors in (2, 1))


@numba.njit(**COMPILE)
def _add_product(out, a, si, ss, b, rows, n, columns):  # type: ignore[no-untyped-def]
    """out[i, j] += sum over s < n of a[i si + s ss] b[s, j], for i < rows and the columns j, whole vectors of them."""
    so, sb, lanes = out.shape[1], b.shape[1], VECTOR // out.itemsize
    for j in range(0, columns, 2 * lanes):
        i, two = 0, j + 2 * lanes <= columns
        while i + 4 <= rows:
            if two:
                _sums_4_2(out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            else:
                _sums_4_1(out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            i += 4
        while i < rows:
            if two:
                _sums_1_2(out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            else:
                _sums_1_1(out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            i += 1


@numba.njit(**COMPILE)
def _padded(columns, like):  # type: ignore[no-untyped-def]
    """Return columns, or as many more as make whole vectors."""
    lanes = VECTOR // like.itemsize
    return -(-columns // lanes) * lanes


@numba.njit(**COMPILE)
def _zeros(layers, rows, columns, like):  # type: ignore[no-untyped-def]
    """Return zeros that start where a vector should: across two lines of the cache each would cost twice."""
    size, lanes = layers * rows * columns, VECTOR // like.itemsize
    flat = np.zeros(size + lanes, like.dtype)
    first = -(flat.ctypes.data // like.itemsize) % lanes
    return flat[first : first + size].reshape(layers, rows, columns)


@numba.njit(**COMPILE)
def _copy(source, out):  # type: ignore[no-untyped-def]
    """Copy the columns that both matrices have."""
    for i in range(len(out)):
        for j in range(min(source.shape[1], out.shape[1])):
            out[i, j] = source[i, j]


@numba.njit(**COMPILE)
def _take(weights, alpha, columns, gates):  # type: ignore[no-untyped-def]
    """Set columns to the transpose of each block of weights, and gates to the leak rates where there are any."""
    units = len(weights) // len(columns)
    for k in range(len(columns)):
        _copy(weights[k * units : (k + 1) * units].T, columns[k])
    for i in range(len(gates)):
        for j in range(len(alpha)):
            gates[i, j] = alpha[j]


@numba.njit(**COMPILE)
def _look(h, x, columns, z, drives, active, room):  # type: ignore[no-untyped-def]
    """Set active to the candidates and, where there are two drives, the gates of units at h with input x.

    z ends as what the units hear: their states, the input, and the constant 1 that stands there already.
    """
    units = columns.shape[1] - x.shape[1] - 1
    for i in range(len(z)):
        for j in range(units):
            z[i, j] = h[i, j]
        for j in range(x.shape[1]):
            z[i, units + j] = x[i, j]
    for k in range(len(drives)):
        drive = drives[k].ravel()
        for j in range(drive.size):
            drive[j] = 0
        _add_product(drives[k], z, z.shape[1], 1, columns[k], len(z), columns.shape[1], columns.shape[2])
        activate(SIGMOID if k else TANH, drive, active[k].ravel(), room)


@numba.njit(**COMPILE, cache=True)
def forward(x, weights, alpha, h0, states):  # type: ignore[no-untyped-def]
    """Set states (networks, time, batch, units).

    weights (networks, rows, units + features + 1) have a row for each unit and, where alpha (networks, units) has no
    units, another one for each gate; the last column is the bias.
    """
    networks, time, batch = x.shape[:3]
    units, heard, blocks = h0.shape[2], weights.shape[2], 1 if alpha.shape[1] else 2
    wide = _padded(units, x)
    z, h, columns = _zeros(1, batch, heard, x)[0], _zeros(1, batch, wide, x)[0], _zeros(blocks, heard, wide, x)
    drives, active, room = _zeros(blocks, batch, wide, x), _zeros(2, batch, wide, x), _zeros(1, batch, wide, x).ravel()
    state, candidate, gate = h.ravel(), active[0].ravel(), active[1].ravel()
    z[:, heard - 1] = 1
    for n in range(networks):
        _take(weights[n], alpha[n], columns, active[1])
        state[:] = 0
        _copy(h0[n], h)
        for t in range(time):
            _look(h, x[n, t], columns, z, drives, active, room)
            for j in range(state.size):
                state[j] += gate[j] * (candidate[j] - state[j])
            _copy(h, states[n, t])


@numba.njit(**COMPILE, cache=True)
def backward(grad, x, weights, alpha, h0, states, dx, dweights, dalpha, dh):  # type: ignore[no-untyped-def]
    """Set the gradients, all 0 before, given that of the states.

    Candidates and gates are made once more: that costs less than to write them to memory and to read them again.
    """
    networks, time, batch, features = x.shape
    units, heard, blocks = h0.shape[2], weights.shape[2], 1 if alpha.shape[1] else 2
    wide, wider, asked = _padded(units, x), _padded(heard, x), _padded(heard if dx.shape[3] else units, x)
    z, h, columns = _zeros(1, batch, wider, x)[0], _zeros(1, batch, wide, x)[0], _zeros(blocks, heard, wide, x)
    drives, active, room = _zeros(blocks, batch, wide, x), _zeros(2, batch, wide, x), _zeros(1, batch, wide, x).ravel()
    state, candidate, gate = h.ravel(), active[0].ravel(), active[1].ravel()
    z[:, heard - 1], one = 1, x.dtype.type(1)
    rows, sums = _zeros(blocks, units, wider, x), _zeros(blocks, units, wider, x)
    p, back, g = _zeros(2, batch, wide, x), _zeros(1, batch, wider, x)[0], _zeros(2, batch, wide, x)
    through, to_gate, push, pull = p[0].ravel(), p[1].ravel(), g[0].ravel(), g[1].ravel()
    for n in range(networks):
        _take(weights[n], alpha[n], columns, active[1])
        for k in range(blocks):
            _copy(weights[n, k * units : (k + 1) * units], rows[k])
        state[:] = 0
        push[:] = 0
        pull[:] = 0
        sums[:] = 0
        for t in range(time - 1, -1, -1):
            _copy(states[n, t - 1] if t else h0[n], h)
            _look(h, x[n, t], columns, z, drives, active, room)
            for i in range(batch):
                for j in range(units):
                    g[0, i, j] += grad[n, t, i, j]
            for j in range(push.size):
                through[j] = push[j] * gate[j] * (one - candidate[j] * candidate[j])
            if blocks == 2:
                for j in range(push.size):
                    to_gate[j] = push[j] * (candidate[j] - state[j]) * gate[j] * (one - gate[j])
            else:
                for j in range(push.size):
                    pull[j] += push[j] * (candidate[j] - state[j])
            for j in range(push.size):
                push[j] *= one - gate[j]
            back[:] = 0
            for k in range(blocks):
                _add_product(back, p[k], wide, 1, rows[k], batch, units, asked)
                _add_product(sums[k], p[k], 1, wide, z, units, batch, wider)
            for i in range(batch):
                for j in range(units):
                    g[0, i, j] += back[i, j]
            if dx.shape[3]:
                for i in range(batch):
                    for j in range(features):
                        dx[n, t, i, j] = back[i, units + j]
        for k in range(blocks):
            _copy(sums[k], dweights[n, k * units : (k + 1) * units])
        for j in range(alpha.shape[1]):
            dalpha[n, j] = g[1, :, j].sum()
        _copy(g[0], dh[n])
