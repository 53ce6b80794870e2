"""Numbers of eight networks as one vector, and the few things that kernels do with arrays of such vectors.

A product of a 10 x 10 with a 10 x 20 matrix is too small for any library to be fast at it. Eight of them, from eight
networks, fill the processor's registers. So an array here is a flat list of vectors of `LANES` numbers, one of each
network; what its rows and columns are, the caller says with strides, counted in vectors. The instructions are written
as LLVM's, for numba's loops would not keep their sums in registers.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ts_helpers.engine.kernels import COMPILE

LANES = 8  # networks at a time
FAST = ("contract",)  # a product and a sum may be one instruction


def _vectors(context, builder, kind, array):  # type: ignore[no-untyped-def]
    """Return the numbers of an array as a pointer to vectors, and what each is aligned to."""
    data = context.make_array(kind)(context, builder, array).data
    pointer = builder.bitcast(data, ir.VectorType(data.type.pointee, LANES).as_pointer())
    return pointer, context.get_abi_sizeof(context.get_value_type(kind.dtype))


def _block(rows: int, columns: int) -> Any:
    """Return an instruction that makes a block of a product of matrices of vectors, held in registers."""

    @intrinsic
    def block(context, out, o, po, so, a, i, pa, sa, b, j, sb, cb, depth, outer, ua, ub, fresh):  # type: ignore[no-untyped-def]
        signature = types.void(out, o, po, so, a, i, pa, sa, b, j, sb, cb, depth, outer, ua, ub, fresh)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            out, o, po, so, a, i, pa, sa, b, j, sb, cb, depth, outer, ua, ub, fresh = arguments
            (out, align), (a, _), (b, _) = (
                _vectors(context, builder, signature.args[k], arguments[k]) for k in (0, 4, 8)
            )

            def at(start, *strides):  # type: ignore[no-untyped-def]
                for stride, k in strides:
                    start = builder.add(start, builder.mul(stride, ir.Constant(stride.type, k)))
                return start

            def load(array, k):  # type: ignore[no-untyped-def]
                return builder.load(builder.gep(array, [k]), align=align)

            places = [(p, c) for p in range(rows) for c in range(columns)]
            zero = ir.Constant(out.type.pointee, None)
            sums = {place: cgutils.alloca_once_value(builder, zero) for place in places}
            with builder.if_then(builder.not_(builder.trunc(fresh, ir.IntType(1)))):
                for p, c in places:
                    builder.store(load(out, at(o, (po, p), (so, c))), sums[p, c])
            with cgutils.for_range(builder, outer) as turn, cgutils.for_range(builder, depth) as loop:
                i_s, j_s = (
                    builder.add(builder.add(x, builder.mul(u, turn.index)), builder.mul(s, loop.index))
                    for x, u, s in ((i, ua, sa), (j, ub, sb))
                )
                lefts = [load(a, at(i_s, (pa, p))) for p in range(rows)]
                rights = [load(b, at(j_s, (cb, c))) for c in range(columns)]
                for p, c in places:
                    product = builder.fmul(lefts[p], rights[c], flags=FAST)
                    builder.store(builder.fadd(builder.load(sums[p, c]), product, flags=FAST), sums[p, c])
            for p, c in places:
                builder.store(builder.load(sums[p, c]), builder.gep(out, [at(o, (po, p), (so, c))]), align=align)
            return context.get_dummy_value()

        return signature, generate

    return block


_2x5, _2x2, _2x1, _1x5, _1x2, _1x1 = (_block(rows, columns) for rows in (2, 1) for columns in (5, 2, 1))


@numba.njit(**COMPILE)
def product(out, po, so, a, pa, sa, b, sb, cb, rows, columns, depth, fresh):  # type: ignore[no-untyped-def]
    """out[po p + so c] (+)= sum over s < depth of a[pa p + sa s] b[sb s + cb c]; fresh: what was there goes."""
    products(out, po, so, a, pa, sa, b, sb, cb, rows, columns, depth, 1, 0, 0, fresh)


@numba.njit(**COMPILE)
def products(out, po, so, a, pa, sa, b, sb, cb, rows, columns, depth, outer, ua, ub, fresh):  # type: ignore[no-untyped-def]
    """The sum of as many products as outer says, of arrays that begin ua and ub vectors further each time."""
    p = 0
    while p < rows:
        c = 0
        if p + 2 <= rows:
            while c + 5 <= columns:
                _2x5(out, p * po + c * so, po, so, a, p * pa, pa, sa, b, c * cb, sb, cb, depth, outer, ua, ub, fresh)
                c += 5
            while c + 2 <= columns:
                _2x2(out, p * po + c * so, po, so, a, p * pa, pa, sa, b, c * cb, sb, cb, depth, outer, ua, ub, fresh)
                c += 2
            if c < columns:
                _2x1(out, p * po + c * so, po, so, a, p * pa, pa, sa, b, c * cb, sb, cb, depth, outer, ua, ub, fresh)
            p += 2
        else:
            while c + 5 <= columns:
                _1x5(out, p * po + c * so, po, so, a, p * pa, pa, sa, b, c * cb, sb, cb, depth, outer, ua, ub, fresh)
                c += 5
            while c + 2 <= columns:
                _1x2(out, p * po + c * so, po, so, a, p * pa, pa, sa, b, c * cb, sb, cb, depth, outer, ua, ub, fresh)
                c += 2
            if c < columns:
                _1x1(out, p * po + c * so, po, so, a, p * pa, pa, sa, b, c * cb, sb, cb, depth, outer, ua, ub, fresh)
            p += 1


def each(function: Any, ins: int, outs: int, sums: int) -> Any:
    """Return an instruction for all units and all of the batch at once.

    Args:
        function: of a builder with ``fadd``, ``fsub`` and ``fmul``, of vectors (units, batch) and of vectors (units,);
            returns what goes to (units, batch), and what is added up over the batch to (units,).
        ins: how many arrays (units, batch) it takes, the first of those that are handed over.
        outs: how many it gives, the next.
        sums: how many arrays (units,) it adds to, the last; what lies between is taken, (units,).
    """

    @intrinsic
    def instruction(context, arrays, units, batch):  # type: ignore[no-untyped-def]
        signature = types.void(arrays, units, batch)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            kinds, (arrays, units, batch) = signature.args[0], arguments
            pointers = []
            for k, kind in enumerate(kinds):
                pointer, align = _vectors(context, builder, kind, builder.extract_value(arrays, k))
                pointers.append(pointer)
            before, after, own = pointers[:ins], pointers[ins : ins + outs], pointers[ins + outs :]
            taken, totals = own[: len(own) - sums], own[len(own) - sums :]

            def load(pointer, k):  # type: ignore[no-untyped-def]
                return builder.load(builder.gep(pointer, [k]), align=align)

            with cgutils.for_range(builder, units) as unit:
                of_unit = [load(pointer, unit.index) for pointer in taken]
                added = [cgutils.alloca_once(builder, pointer.type.pointee) for pointer in totals]
                for pointer, total in zip(totals, added, strict=True):
                    builder.store(load(pointer, unit.index), total)
                start = builder.mul(unit.index, batch)
                with cgutils.for_range(builder, batch) as one:
                    here = builder.add(start, one.index)
                    made, adds = function(builder, [load(pointer, here) for pointer in before], of_unit)
                    for pointer, value in zip(after, made, strict=True):
                        builder.store(value, builder.gep(pointer, [here]), align=align)
                    for total, value in zip(added, adds, strict=True):
                        builder.store(builder.fadd(builder.load(total), value, flags=FAST), total)
                for pointer, total in zip(totals, added, strict=True):
                    builder.store(builder.load(total), builder.gep(pointer, [unit.index]), align=align)
            return context.get_dummy_value()

        return signature, generate

    return instruction


@intrinsic
def _turn(context, rows, start, stride, last, columns, first, back):  # type: ignore[no-untyped-def]
    """Turn a block of `LANES` rows of numbers, the last of them again beyond it, into as many vectors; or back."""
    signature = types.void(rows, start, stride, last, columns, first, back)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        rows, start, stride, last, columns, first, back = arguments
        (columns, align) = _vectors(context, builder, signature.args[4], columns)
        data = context.make_array(signature.args[0])(context, builder, rows).data
        index = ir.IntType(32)

        def row(k):  # type: ignore[no-untyped-def]
            k = ir.Constant(last.type, k)
            k = builder.select(builder.icmp_signed("<", k, last), k, last)
            place = builder.gep(data, [builder.add(start, builder.mul(stride, k))])
            return builder.bitcast(place, columns.type)

        def column(k):  # type: ignore[no-untyped-def]
            return builder.gep(columns, [builder.add(first, ir.Constant(first.type, k))])

        def move(sources, targets):  # type: ignore[no-untyped-def]
            vectors = [builder.load(source, align=align) for source in sources]
            halves = [[half + n // 2 + LANES * (n % 2) for n in range(LANES)] for half in (0, LANES // 2)]
            masks = [ir.Constant(ir.VectorType(index, LANES), half) for half in halves]
            for _ in range(LANES.bit_length() - 1):  # rows shuffled into one another, as two halves of a pack of cards
                pairs = zip(vectors[: LANES // 2], vectors[LANES // 2 :], strict=True)
                vectors = [builder.shuffle_vector(one, other, mask) for one, other in pairs for mask in masks]
            for vector, target in zip(vectors, targets, strict=True):
                builder.store(vector, target, align=align)

        with builder.if_else(builder.trunc(back, ir.IntType(1))) as (then, otherwise):
            with then:
                move([column(k) for k in range(LANES)], [row(k) for k in range(LANES)])
            with otherwise:
                move([row(k) for k in range(LANES)], [column(k) for k in range(LANES)])
        return context.get_dummy_value()

    return signature, generate


@numba.njit(**COMPILE)
def _move(array, n, vectors, back):  # type: ignore[no-untyped-def]
    """Set vectors to the numbers of `LANES` networks from n on, the last one again where there are less; or back."""
    flat, size = array.ravel(), array[0].size
    last, m = len(array) - 1 - n, 0
    while m + LANES <= size:
        _turn(flat, n * size + m, size, last, vectors, m, back)
        m += LANES
    for k in range(LANES):
        row = (n + min(k, last)) * size
        for i in range(m, size):
            if back:
                flat[row + i] = vectors[i * LANES + k]
            else:
                vectors[i * LANES + k] = flat[row + i]


@numba.njit(**COMPILE)
def gathered(array, n):  # type: ignore[no-untyped-def]
    """Return the numbers of eight networks from n on as vectors; where there are less, the last one stands in."""
    vectors = np.empty(array[0].size * LANES, array.dtype)
    _move(array, n, vectors, False)
    return vectors


@numba.njit(**COMPILE)
def scatter(vectors, array, n):  # type: ignore[no-untyped-def]
    """Put vectors where `gathered` found them."""
    _move(array, n, vectors, True)


@numba.njit(**COMPILE)
def turned(vectors, rows, columns):  # type: ignore[no-untyped-def]
    """Return vectors (rows, columns) as (columns, rows)."""
    out = np.empty((columns, rows, LANES), vectors.dtype)
    out[:] = vectors.reshape(rows, columns, LANES).transpose(1, 0, 2)
    return out.ravel()
