"""Eight numbers in a register, `Lanes`: the type that compiled loops calculate with; no recurrence, no torch.

A product of a 10 x 10 with a 10 x 20 matrix is too small for any library to be fast at it. Eight of them, of eight
networks, fill the processor's registers: each number of a loop below is eight, one of each network, side by side. An
array of Lanes is a flat NumPy array, eight numbers after the other; where its rows and columns begin, the caller says,
counted in Lanes. numba would not keep the sums of a product in registers by itself, so `product` is written in LLVM's
instructions, as are those that the type has.
"""

import hashlib
import math
import operator
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

# numba keeps what it has compiled by the file it stands in, and would not see that a file it draws on has changed
if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    _MADE_OF = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    _MADE_OF.append(f"{numba.__version__} {llvmlite.__version__}".encode())
    _KEY = hashlib.sha256(b"".join(_MADE_OF)).hexdigest()[:16]
    numba.config.CACHE_DIR = str(Path(__file__).parents[2] / "_build" / "compiled" / _KEY)  # type: ignore[attr-defined]

COMPILE: Any = dict(error_model="numpy", nogil=True)
LANES = 8
ROWS = 4 if get_host_cpu_features().get("avx512vl") else 2  # of a block: 32 registers hold its sums, or 16
FUSED = ("contract",)  # a product and a sum may be one instruction


class Lanes(types.Type):
    """Eight numbers of a type; +, -, * and / act on each, and a plain number stands for eight."""

    def __init__(self, number: Any):
        self.number = number
        super().__init__(f"Lanes({number})")


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Any):
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.number).get_value_type(), LANES))


def _as_lanes(context, builder, kind, value, lanes):  # type: ignore[no-untyped-def]
    if isinstance(kind, Lanes):
        return value
    vector, value = context.get_value_type(lanes), context.cast(builder, value, kind, lanes.number)
    first = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, vector(ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def _define(operation: Any, instruction: str) -> None:
    @type_callable(operation)
    def _(context):  # type: ignore[no-untyped-def]
        return lambda *kinds: next((kind for kind in kinds if isinstance(kind, Lanes)), None)

    def lower(context, builder, signature, values):  # type: ignore[no-untyped-def]
        pairs = zip(signature.args, values, strict=True)
        both = [_as_lanes(context, builder, kind, value, signature.return_type) for kind, value in pairs]
        return getattr(builder, instruction)(*both, flags=FUSED)

    for kinds in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(operation, *kinds)(lower)


for _symbol, _instruction in ("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv"):
    _define(getattr(operator, _symbol), _instruction)


def _memory(context, builder, kind, array):  # type: ignore[no-untyped-def]
    """Return where the Lanes of an array begin, and what their numbers are aligned to."""
    data = context.make_array(kind)(context, builder, array).data
    align = context.get_abi_sizeof(data.type.pointee)
    return builder.bitcast(data, ir.VectorType(data.type.pointee, LANES).as_pointer()), align


@intrinsic
def load(context, array, i):  # type: ignore[no-untyped-def]
    """Return number i, counted in Lanes, of an array of Lanes."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        lanes, align = _memory(context, builder, array, values[0])
        return builder.load(builder.gep(lanes, [values[1]]), align=align)

    return Lanes(array.dtype)(array, i), generate


@intrinsic
def store(context, array, i, lanes):  # type: ignore[no-untyped-def]
    """Set it."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        there, align = _memory(context, builder, array, values[0])
        builder.store(values[2], builder.gep(there, [values[1]]), align=align)
        return context.get_dummy_value()

    return types.void(array, i, lanes), generate


def _places(context, builder, array, values):  # type: ignore[no-untyped-def]
    """Return where number i of eight networks from n on is in an array (networks, numbers), or again of the last."""
    array, (_, n, i, *_) = context.make_array(array)(context, builder, values[0]), values
    (networks, size), one = cgutils.unpack_tuple(builder, array.shape), n.type(1)
    for k in range(LANES):
        lane, last = builder.add(n, n.type(k)), builder.sub(networks, one)
        lane = builder.select(builder.icmp_signed("<", lane, last), lane, last)
        yield builder.gep(array.data, [builder.add(i, builder.mul(size, lane))])


@intrinsic
def gather(context, array, n, i):  # type: ignore[no-untyped-def]
    """Return number i of eight networks, from n on, of an array (networks, numbers); of the last for those beyond."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        lanes = context.get_value_type(signature.return_type)(ir.Undefined)
        for k, place in enumerate(_places(context, builder, array, values)):
            lanes = builder.insert_element(lanes, builder.load(place), ir.IntType(32)(k))
        return lanes

    return Lanes(array.dtype)(array, n, i), generate


@intrinsic
def scatter(context, array, n, i, lanes):  # type: ignore[no-untyped-def]
    """Set them."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        for k, place in enumerate(_places(context, builder, array, values)):
            builder.store(builder.extract_element(values[3], ir.IntType(32)(k)), place)
        return context.get_dummy_value()

    return types.void(array, n, i, lanes), generate


@intrinsic
def where_negative(context, h, a, b):  # type: ignore[no-untyped-def]
    """Return a where h < 0, else b."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        below = builder.fcmp_ordered("<", values[0], ir.Constant(values[0].type, [0.0] * LANES))
        chosen = (_as_lanes(context, builder, kind, v, h) for kind, v in zip((a, b), values[1:], strict=True))
        return builder.select(below, *chosen)

    return h(h, a, b), generate


@intrinsic
def exp_of_negative(context, h):  # type: ignore[no-untyped-def]
    """Return exp(-|h|).

    It is 2 ** y = 2 ** k 2 ** f with whole k and |f| <= 1/2; of 2 ** f the Taylor series, to a relative error of 5e-9
    in single precision, 2e-17 in double.
    """
    bits, least, terms, mantissa = (32, -126, 8, 23) if h.number == types.float32 else (64, -1022, 14, 52)

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        kind, whole = values[0].type, ir.VectorType(ir.IntType(bits), LANES)

        def call(name, value):  # type: ignore[no-untyped-def]
            function = ir.FunctionType(kind, [kind])
            name = f"llvm.{name}.v{LANES}f{bits}"
            return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [value])

        def number(value, kind=kind):  # type: ignore[no-untyped-def]
            return ir.Constant(kind, [value] * LANES)

        y = builder.fmul(call("fabs", values[0]), number(-1 / math.log(2)))
        y = builder.select(builder.fcmp_ordered("<", y, number(float(least))), number(float(least)), y)  # NaN stays
        k = call("rint", y)
        f, total = builder.fsub(y, k), number(0.0)
        for n in reversed(range(terms)):
            total = builder.fmul(total, f, flags=FUSED)
            total = builder.fadd(total, number(math.log(2) ** n / math.factorial(n)), flags=FUSED)
        exponent = builder.add(builder.fptosi(k, whole), number(1 - least, whole))
        power = builder.bitcast(builder.shl(exponent, number(mantissa, whole)), kind)
        return builder.fmul(total, power)

    return h(h), generate


@numba.njit(**COMPILE)
def tanh(h):  # type: ignore[no-untyped-def]
    """Return the hyperbolic tangent."""
    e = exp_of_negative(2 * h)
    size = (1 - e) / (1 + e)
    small = h - h * h * h * (1 / 3)  # to 2 h^5 / 15
    return where_negative(h * h - 1e-6, small, where_negative(h, -1 * size, size))


@numba.njit(**COMPILE)
def sigmoid(h):  # type: ignore[no-untyped-def]
    """Return the logistic function."""
    e = exp_of_negative(h)
    return where_negative(h, e, 1) / (1 + e)


def _block(columns: int) -> Any:
    """Return an instruction for a block of `ROWS` x columns of a `product`, its sums in registers.

    Beyond the last row or column that one stands in, which is calculated again and written over itself.
    """

    @intrinsic
    def block(context, out, to, a, left, b, right, sizes, steps, fresh):  # type: ignore[no-untyped-def]
        signature = types.void(out, to, a, left, b, right, sizes, steps, fresh)

        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            def at(pointer, start, *strides):  # type: ignore[no-untyped-def]
                for stride, k in strides:
                    start = builder.add(start, builder.mul(stride, k))
                return builder.gep(pointer, [start])

            def up_to(n, size):  # type: ignore[no-untyped-def]
                last, ks = builder.sub(size, size.type(1)), map(size.type, range(n))
                return [builder.select(builder.icmp_signed("<", last, k), last, k) for k in ks]

            (out, align), (a, _), (b, _) = (_memory(context, builder, signature.args[k], values[k]) for k in (0, 2, 4))
            (o, po), (i, pa, sa), (j, sb, cb), (rows, below, depth), (steps, ua, ub) = (
                cgutils.unpack_tuple(builder, values[k]) for k in (1, 3, 5, 6, 7)
            )
            ps, cs, zero = up_to(ROWS, rows), up_to(columns, below), ir.Constant(out.type.pointee, None)
            places = [at(out, builder.add(o, c), (po, p)) for p in ps for c in cs]
            lefts, rights = [at(a, i, (pa, p)) for p in ps], [at(b, j, (cb, c)) for c in cs]
            sums = [cgutils.alloca_once_value(builder, zero) for _ in places]
            with builder.if_then(builder.not_(builder.trunc(values[8], ir.IntType(1)))):
                for place, total in zip(places, sums, strict=True):
                    builder.store(builder.load(place, align=align), total)
            with cgutils.for_range(builder, steps) as step, cgutils.for_range(builder, depth) as loop:
                u, s = step.index, loop.index
                left = [builder.load(at(p, builder.mul(ua, u), (sa, s)), align=align) for p in lefts]
                right = [builder.load(at(c, builder.mul(ub, u), (sb, s)), align=align) for c in rights]
                for k, total in enumerate(sums):
                    product = builder.fmul(left[k // columns], right[k % columns], flags=FUSED)
                    builder.store(builder.fadd(builder.load(total), product, flags=FUSED), total)
            for place, total in zip(places, sums, strict=True):
                builder.store(builder.load(total), place, align=align)
            return context.get_dummy_value()

        return signature, generate

    return block


_wide, _narrow, ONCE = _block(5), _block(4), (1, 0, 0)


@numba.njit(**COMPILE)
def product(out, to, a, left, b, right, sizes, steps, fresh):  # type: ignore[no-untyped-def]
    """Add to out[o + po p + c], or set it to, if fresh, a sum over s < depth and u < steps, for p < rows, c < columns.

    It is that of a[i + pa p + sa s + ua u] b[j + sb s + cb c + ub u], with to = (o, po), left = (i, pa, sa), right =
    (j, sb, cb), sizes = (rows, columns, depth), and steps with ua and ub, or `ONCE`.
    """
    (o, po), (i, pa, sa), (j, sb, cb), (rows, columns, depth) = to, left, right, sizes
    for p in range(0, rows, ROWS):
        c, first = 0, (i + p * pa, pa, sa)
        while c < columns:
            here, then, rest = (o + p * po + c, po), (j + c * cb, sb, cb), (rows - p, columns - c, depth)
            if 4 * ((columns - c + 4) // 5) < columns - c:  # as many blocks of five as of four: five are wanted
                _wide(out, here, a, first, b, then, rest, steps, fresh)
                c += 5
            else:
                _narrow(out, here, a, first, b, then, rest, steps, fresh)
                c += 4


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """Compile, or find compiled, what is in this context, and say so if it took time."""
    kept, start = Path(numba.config.CACHE_DIR) / what, time.perf_counter()  # type: ignore[attr-defined]
    if new := not kept.exists():
        print(f"compiling {what}, once ...", end=" ", file=sys.stderr, flush=True)
    yield
    if new:
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
        kept.touch()
