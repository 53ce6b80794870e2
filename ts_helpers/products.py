"""Products of small matrices, in registers.

A library packs its operands anew at each call, and starts threads of its own for the larger ones.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic

from ts_helpers.kernels import COMPILE

VECTOR = 64 if get_host_cpu_features().get("avx512f") else 32  # bytes, of one register or of two half as wide
ROWS, VECTORS = (8, 3) if VECTOR == 64 else (4, 2)  # sums that fit into 32 registers or 16, and what they are made of


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


def _strip(rows: int) -> Any:
    """Return what calls `_sums` of so many rows and of one, two or three vectors, as its first argument says."""
    one, two, three = (_sums(rows, vectors) for vectors in (1, 2, 3))

    @numba.njit(**COMPILE)
    def add(vectors, out, o, so, a, i, si, ss, b, j, sb, n):  # type: ignore[no-untyped-def]
        if vectors == 3:
            three(out, o, so, a, i, si, ss, b, j, sb, n)
        elif vectors == 2:
            two(out, o, so, a, i, si, ss, b, j, sb, n)
        else:
            one(out, o, so, a, i, si, ss, b, j, sb, n)

    return add


_rows, _four, _one = _strip(ROWS), _strip(4), _strip(1)


@numba.njit(**COMPILE)
def add_product(out, a, si, ss, b, rows, n, columns):  # type: ignore[no-untyped-def]
    """out[i, j] += sum over s < n of a[i si + s ss] b[s, j], for i < rows and the columns j, whole vectors of them."""
    so, sb, lanes = out.shape[1], b.shape[1], VECTOR // out.itemsize
    for j in range(0, columns, VECTORS * lanes):
        i, vectors = 0, min(VECTORS, (columns - j) // lanes)
        while i + ROWS <= rows:
            _rows(vectors, out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            i += ROWS
        if i + 4 <= rows:
            _four(vectors, out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            i += 4
        while i < rows:
            _one(vectors, out, i * so + j, so, a, i * si, si, ss, b, j, sb, n)
            i += 1


@numba.njit(**COMPILE)
def padded(columns, like):  # type: ignore[no-untyped-def]
    """Return columns, or as many more as make whole vectors."""
    lanes = VECTOR // like.itemsize
    return -(-columns // lanes) * lanes


@numba.njit(**COMPILE)
def zeros(layers, rows, columns, like):  # type: ignore[no-untyped-def]
    """Return zeros that start where a vector should: across two lines of the cache each would cost twice."""
    size, lanes = layers * rows * columns, VECTOR // like.itemsize
    flat = np.zeros(size + lanes, like.dtype)
    first = -(flat.ctypes.data // like.itemsize) % lanes
    return flat[first : first + size].reshape(layers, rows, columns)


@numba.njit(**COMPILE)
def copy(source, out):  # type: ignore[no-untyped-def]
    """Copy the columns that both matrices have."""
    for i in range(len(out)):
        for j in range(min(source.shape[1], out.shape[1])):
            out[i, j] = source[i, j]
