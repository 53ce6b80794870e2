"""Compiled recurrences, known by their equations, and `compiled`, the one door to them, which `cells.unroll` opens.

No cell, no dial and no training. What runs eight networks at a time is in `kernels`, what eight numbers are in `lanes`.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ts_helpers.engine import kernels
from ts_helpers.engine.kernels import GATED, IDENTITY, RELU, SIGMOID, TANH
from ts_helpers.engine.lanes import LANES, compiling

FUNCTIONS: dict[Any, int] = {None: IDENTITY, torch.tanh: TANH, torch.sigmoid: SIGMOID, torch.relu: RELU, F.relu: RELU}
TYPES: dict[torch.dtype, Any] = {torch.float32: numba.float32, torch.float64: numba.float64}
LARGEST = 160  # units of a network; beyond, a few networks are faster in a loop over steps
HISTORY, NEAR = 2**21, 2**18  # bytes that steps may leave behind before they go back, and between sums over several


def compiled(x: Tensor, read_out: tuple[Tensor, Tensor] | None, part: slice, family: str, *given: Any) -> Tensor | None:
    r"""Make all steps of a stack of networks under `torch.func.vmap` in one call.

    ==========  ==========================================  ===================================================
    family      given                                       equation
    ==========  ==========================================  ===================================================
    ``aru``     f, layers, I, r, U, W, b, alpha_s, alpha_r  I += alpha_s (W r + U x + b - I);
                                                            r += alpha_r (f(I) - r); a = r
    ``gated``   h, U, W, b, U_g, W_g, b_g                   h += sigmoid(W_g h + U_g x + b_g) (tanh(W h + U x + b)
                                                            - h); a = h
    ==========  ==========================================  ===================================================

    Args:
        x: (time, batch, input), of one network.
        read_out: V (features, units) and c (features,), or None.
        part: what the cell's state is of I and r side by side.
        family: see above.
        given: f None for the identity; sizes of layers that step one after the other, each of which receives the new
            r of those before it, () for all at once; states (batch, units), weights as of `torch.nn.RNNCell`, leak
            rates (units,).

    Returns:
        V a + c after each step, (time, batch, features), or without a read-out the states, (time, batch, state). None
        where nothing compiled applies: a network that is not in a stack, one of more than `LARGEST` units, another f,
        no sequence, another device than a CPU, other numbers than float32 or float64.

    Raises:
        ValueError: x, states or read-out do not fit the weights.
    """
    gated = family == "gated"
    f, layers, *tensors = (None, (), *given) if gated else given
    states, (U, W, b, *rest) = tensors[: 1 if gated else 2], tensors[1 if gated else 2 :]
    units, batch = len(W), x.shape[1]
    V, c = read_out or (torch.eye(units, dtype=W.dtype, device=W.device), torch.zeros_like(b))
    fitting = [("x", x, (len(x), batch, U.shape[1])), ("V", V, (*V.shape[:1], units)), ("c", c, V.shape[:1])]
    for name, tensor, shape in [*fitting, *(("state", state, (batch, units)) for state in states)]:
        if tensor.shape != shape or (tensor.dtype, tensor.device) != (W.dtype, W.device):
            rule = f"have shape {tuple(shape)} and be {W.dtype} on {W.device} for these weights"
            raise ValueError(f"{name} must {rule}, got {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}")
    known = gated or f in FUNCTIONS
    if not (known and batch and units <= LARGEST and x.device.type == "cpu" and x.dtype in TYPES):
        return None
    rows = [torch.cat([W, U, b[:, None]], 1)]
    if gated:
        U_g, W_g, b_g = rest
        rows.append(torch.cat([W_g, U_g, b_g[:, None]], 1).expand(units, -1))
    rows.append(torch.cat([F.pad(V, (0, U.shape[1])), c[:, None]], 1))
    leaks = W.new_empty(0) if gated else torch.cat(rest)
    how = _How(GATED if gated else FUNCTIONS[f], tuple(layers) or (units,), len(V), not (gated or read_out))
    try:
        y, currents, _ = _Steps.apply(how, x, torch.cat(rows), leaks, torch.stack(states))
    except _Alone:
        return None
    return torch.cat([currents, y], -1)[..., part] if how.currents else y


class _Alone(Exception):
    """There is no stack."""


class _How(NamedTuple):
    """What decides on the steps besides tensors."""

    f: int
    layers: tuple[int, ...]
    outputs: int
    currents: bool  # are given back

    def shape(self, x: Tensor, M: Tensor) -> tuple[int, ...]:
        """Return the shape that kernels are told, the last number the steps of a segment."""
        (_, steps, batch, features), (_, rows, columns) = x.shape, M.shape
        left = (3 * columns + rows) * batch * LANES * x.element_size()
        units = columns - features - 1
        return steps, batch, features, units, self.outputs, rows, max(1, min(steps, HISTORY // left))

    def parts(self, rows: int, columns: int) -> np.ndarray:
        """Return the parts by which a network runs; see `kernels`."""
        if len(self.layers) == 1:
            return np.array([[0, rows, 0, columns, 0, 0, self.layers[0]]])
        parts = [[rows - self.outputs, rows, 0, columns, 0, 0, 0]]
        for first, end in pairwise((0, *accumulate(self.layers))):
            parts += [[first, end, 0, first, 1, 0, 0]] * (first > 0) + [[first, end, first, columns, 0, first, end]]
        return np.array(parts)

    def equations(self, x: Tensor, M: Tensor, leaks: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and currents by operations that can be differentiated again: the engine knows no cell."""
        units, made, currents = state.shape[-1], [], []
        I, a = state[..., 0, :, :], state[..., -1, :, :]
        one = torch.ones_like(a[..., :1])
        f = {code: function for function, code in FUNCTIONS.items()}.get(self.f) or (lambda drive: drive)
        for x_t in x.unbind(-3):
            for k in map(slice, *zip(*pairwise((0, *accumulate(self.layers))), strict=True)):
                received = torch.cat([a, x_t, one], -1)
                drive, before = received @ M[..., k, :].mT, a[..., k]
                if self.f == GATED:
                    gate = torch.sigmoid(received @ M[..., units : 2 * units, :].mT)
                    a = before + gate * (torch.tanh(drive) - before)
                    continue
                alpha_s, alpha_r = leaks[..., None, k], leaks[..., None, units:][..., k]
                new = I[..., k] + alpha_s * (drive - I[..., k])
                after = before + alpha_r * (f(new) - before)
                I = torch.cat([I[..., : k.start], new, I[..., k.stop :]], -1)
                a = torch.cat([a[..., : k.start], after, a[..., k.stop :]], -1)
            made.append(a)
            currents.append(I)
        V = M[..., M.shape[-2] - self.outputs :, :]
        y = torch.stack(made, -3) @ V[..., None, :, :units].mT + V[..., None, None, :, -1]
        return y, torch.stack(currents, -3) if self.currents else _none(y)


class _Stacked(torch.autograd.Function):
    """A function of a stack of networks, which come first in every tensor."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:  # type: ignore[override]
        """Make the mapped dimension that of the networks, or let it join them."""

        def ahead(x: Tensor, dim: int | None) -> Tensor:
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        pairs = zip(inputs, in_dims, strict=True)
        given = [ahead(x, dim) if isinstance(x, Tensor) else x for x, dim in pairs]
        joins = next(x for x in given if isinstance(x, Tensor)).ndim == 5  # networks, time, batch, features are 4
        if joins:
            given = [x.flatten(0, 1) if isinstance(x, Tensor) else x for x in given]
        made = cls.apply(*given)
        return tuple(x.unflatten(0, (info.batch_size, -1)) if joins else x for x in made), (0,) * len(made)


class _Steps(_Stacked):
    """The outputs of networks, their currents if asked for, and their states before each segment of steps."""

    @staticmethod
    def forward(how: _How, x: Tensor, M: Tensor, leaks: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return these."""
        if x.ndim == 3:
            raise _Alone
        r, networks = _share(x), len(x)
        parts = _apart(x, r), M.repeat_interleave(r, 0), leaks.repeat_interleave(r, 0), _apart(state, r)
        shape, like = how.shape(parts[0], M), parts[0]
        y = x.new_empty(*like.shape[:3], how.outputs)
        currents = x.new_empty(*like.shape[:3], state.shape[-1]) if how.currents else _none(y)
        marks = x.new_empty(len(like), -(-x.shape[1] // shape[-1]) * parts[-1][0].numel())
        _run(kernels.forward, how, parts[1], shape, *parts, y, currents, marks)
        y, marks = _together(y, networks), marks.unflatten(0, (networks, r))
        currents = _together(currents, networks) if how.currents else _none(y)
        if not math.isfinite(x.sum()):  # kernels make outputs beside the drives that follow: 0 times infinity is NaN
            y, currents = how.equations(x, M, leaks, state)
        return y, currents, marks

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        ctx.how, *tensors = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors, output[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_I: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""
        for_x = ctx.needs_input_grad[1]
        dx, *others = _StepsBack.apply(ctx.how, for_x, grad, grad_I, *ctx.saved_tensors)
        return None, dx if for_x else None, *others


class _StepsBack(_Stacked):
    """The gradients of `_Steps`; their own are those of the equations."""

    @staticmethod
    def forward(how: _How, for_x: bool, grad: Tensor, grad_I: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x (empty unless asked for), M, leaks and state."""
        x, M, leaks, state, marks = tensors
        r, networks = _share(x), len(x)
        x, state, grad = (_apart(t, r) for t in (x, state, grad))
        grad_I = _apart(grad_I, r) if how.currents else _none(grad)
        given = M.repeat_interleave(r, 0), leaks.repeat_interleave(r, 0), marks.flatten(0, 1)
        dx, dM, dleaks, dstate = (x.new_empty(t.shape) for t in (x, *given[:2], state))
        dx = dx if for_x else x.new_empty(len(x), 0)
        near = max(1, NEAR // (sum(M.shape[1:]) * x.shape[2] * LANES * x.element_size()))
        _run(kernels.backward, how, given[0], how.shape(x, M), near, grad, grad_I, x, *given, dx, dM, dleaks, dstate)
        sums = (t.unflatten(0, (networks, r)).sum(1) for t in (dM, dleaks))
        return _together(dx, networks) if for_x else dx[:networks], *sums, _together(dstate, networks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what a second derivative needs."""
        ctx.how, ctx.for_x, *tensors, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs."""

        def once(grad: Tensor, grad_I: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(ctx.how.equations, *tensors)[1]((grad, grad_I))

        given = grads if ctx.for_x else (torch.zeros_like(ctx.saved_tensors[2]), *grads[1:])
        return None, None, *torch.func.vjp(once, *ctx.saved_tensors)[1](given), None


def _share(x: Tensor) -> int:
    """Return in how many parts the sequences of x (networks, time, batch, ...) fill the lanes that are left over."""
    cuts = [r for r in (1, 2, 4, 8) if x.shape[2] % r == 0 and x.shape[2] >= 4 * r]
    lanes = {r: LANES * -(-len(x) * r // LANES) / r for r in cuts}
    return next((r for r, n in lanes.items() if n <= 1.1 * min(lanes.values())), 1)


def _apart(x: Tensor, r: int) -> Tensor:
    """Return (networks, time, batch, ...), or the like, with r times as many networks and as much less of a batch."""
    return x.unflatten(2, (r, x.shape[2] // r)).movedim(2, 1).flatten(0, 1)


def _together(x: Tensor, networks: int) -> Tensor:
    """Return it as it was."""
    return x.unflatten(0, (networks, len(x) // networks)).movedim(1, 2).flatten(2, 3)


def _none(like: Tensor) -> Tensor:
    """Return no numbers of so many networks as there are."""
    return like[..., :0].flatten(-3)


def _run(kernel: Any, how: _How, M: Tensor, shape: tuple[int, ...], *given: Any) -> None:
    """Run a kernel, a share of the networks in each of as many threads as torch has."""
    ready(M.dtype)
    arrays = [g.detach().contiguous().flatten(1).numpy() if isinstance(g, Tensor) else g for g in given]
    parts, groups = how.parts(*M.shape[1:]), -(-len(M) // LANES)
    shares = min(groups, torch.get_num_threads())

    def run(k: int) -> None:
        part = slice(groups * k // shares * LANES, groups * (k + 1) // shares * LANES)
        kernel(how.f, parts, shape, *(a[part] if isinstance(a, np.ndarray) else a for a in arrays))

    if shares < 2:
        run(0)
        return
    with ThreadPoolExecutor(shares) as pool:  # a new one: threads that last would not be there after a fork
        list(pool.map(run, range(shares)))


@cache
def ready(dtype: torch.dtype) -> None:
    """Compile both kernels for a type of number, or find them compiled."""
    number, whole = TYPES[dtype][:, ::1], numba.int64
    first = (whole, whole[:, ::1], numba.types.UniTuple(whole, 7))
    with compiling(f"recurrences for {dtype}"):
        kernels.forward.compile((*first, *[number] * 7))
        kernels.backward.compile((*first, whole, *[number] * 10))
