r"""Compiled kernels: all steps of eight networks, and their gradients; no torch.

Of a network the kernels see one matrix M, ``[W U b; V 0 c]``, or with gates ``[W U b; W_g U_g b_g; V 0 c]``. It is
multiplied with what units receive at a step, a column :math:`(a_{t-1}, x_t, 1)`, a being their activity: that gives
their drives, and the outputs of the step before. A network runs by parts, ``first row, end, first column, end, shift,
first unit, end``: the drives of these rows are made, or added to, from these columns of what is received at step
t + shift, then these units take their step. Arrays from outside are (networks, numbers); those of `Lanes` are flat, the
batch last. ``shape`` is time, batch, features, units, outputs, rows of M, and steps of a segment.
"""

import numba
import numpy as np

from ts_helpers.engine.lanes import (
    COMPILE,
    LANES,
    ONCE,
    gather,
    load,
    product,
    scatter,
    sigmoid,
    store,
    tanh,
    where_negative,
)

TANH, SIGMOID, RELU, IDENTITY, GATED = range(5)


@numba.njit(**COMPILE)
def _activation(f, h):  # type: ignore[no-untyped-def]
    if f == TANH:
        return tanh(h)
    if f == SIGMOID:
        return sigmoid(h)
    return where_negative(h, 0, h) if f == RELU else h


@numba.njit(**COMPILE)
def _slope(f, a):  # type: ignore[no-untyped-def]
    """Return the derivative of f where it takes the value a."""
    if f == TANH:
        return 1 - a * a
    if f == SIGMOID:
        return a * (1 - a)
    return where_negative(-1 * a, 1, 0) if f == RELU else 0 * a + 1


@numba.njit(**COMPILE)
def _take(array, n, first, rows, columns, out, o):  # type: ignore[no-untyped-def]
    """Set Lanes to numbers (rows, columns) of eight networks, turned to (columns, rows)."""
    for r in range(rows):
        for c in range(columns):
            store(out, o + c * rows + r, gather(array, n, first + r * columns + c))


@numba.njit(**COMPILE)
def _put(array, n, first, rows, columns, lanes, o):  # type: ignore[no-untyped-def]
    """Put them there again."""
    for r in range(rows):
        for c in range(columns):
            scatter(array, n, first + r * columns + c, load(lanes, o + c * rows + r))


@numba.njit(**COMPILE)
def _steps(f, parts, shape, first, count, rows, n, x, M, leaks, marks, room, y, currents):  # type: ignore[no-untyped-def]
    """Take so many steps from the marked state on; with all rows of M, set currents, and the outputs before each."""
    (_, batch, features, units, outputs, M_rows, span), (received, kept, drive, current) = shape, room
    columns, one, held = units + features + 1, units * batch, len(current) // LANES
    _take(marks, n, first // span * (held + one), held, 1, current, 0)
    _take(marks, n, first // span * (held + one) + held, one, 1, received, 0)
    for s in range(count):
        now, then, k = s * columns * batch, (s + 1) * columns * batch, 2 * s * one
        _take(x, n, (first + s) * batch * features, batch, features, received, now + one)
        for part in range(len(parts)):
            r0, r1, c0, c1, shift, u0, u1 = parts[part]
            left, right = (r0 * columns + c0, columns, 1), (now + (shift * columns + c0) * batch, batch, 1)
            size = (min(r1, rows) - r0, batch, c1 - c0)
            product(drive, (r0 * batch, batch), M, left, received, right, size, ONCE, c0 == 0)
            for u in range(u0, u1):
                if f == GATED:
                    for j in range(u * batch, (u + 1) * batch):
                        h, c, g = load(received, now + j), tanh(load(drive, j)), sigmoid(load(drive, one + j))
                        store(kept, k + j, c)
                        store(kept, k + one + j, g)
                        store(received, then + j, h + g * (c - h))
                else:
                    alpha_s, alpha_r = load(leaks, u), load(leaks, units + u)
                    for j in range(u * batch, (u + 1) * batch):
                        I, r = load(current, j), load(received, now + j)
                        pull = load(drive, j) - I
                        I = I + alpha_s * pull
                        a = _activation(f, I)
                        store(current, j, I)
                        store(kept, k + j, pull)
                        store(kept, k + one + j, a)
                        store(received, then + j, r + alpha_r * (a - r))
        if rows == M_rows and first + s > 0:
            _put(y, n, (first + s - 1) * batch * outputs, batch, outputs, drive, (rows - outputs) * batch)
        if currents.size > 0:
            _put(currents, n, (first + s) * one, batch, units, current, 0)


@numba.njit(**COMPILE)
def _steps_back(f, parts, shape, first, count, near, n, M, leaks, room, pushed, g, g_I, moved, dM, dx, grad_I):  # type: ignore[no-untyped-def]
    r"""Carry gradients back through so many steps: g of the activities, g_I of the currents, dM and those of leaks.

    With p, the gradient of the drives, and that of the outputs a step before below it in ``pushed``. For leaks

    .. math::
        g^I_t &\mathrel{+}= f'(I_t) \, \alpha_r g_t, \quad p_t = \alpha_s g^I_t, \quad g^I_{t-1} = g^I_t - p_t \\
        g_{t-1} &= (1 - \alpha_r) g_t + W^T p_t + V^T \partial E / \partial y_{t-1}

    and for a gate s with candidate c :math:`p_t = s (1 - c^2) g_t`, :math:`q_t = s (1 - s) (c - h_{t-1}) g_t`, and
    :math:`g_{t-1} = (1 - s) g_t + W^T p_t + W_g^T q_t + V^T \partial E / \partial y_{t-1}`.
    """
    (_, batch, features, units, _, rows, _), (received, kept, drive, _) = shape, room
    columns, one, wanted, done = units + features + 1, units * batch, len(g) // (batch * LANES), count
    for s in range(count - 1, -1, -1):
        now, p, k = s * columns * batch, s * rows * batch, 2 * s * one
        if grad_I.size > 0:
            _take(grad_I, n, (first + s) * one, batch, units, drive, 0)
            g_I += drive[: len(g_I)]
        for part in range(len(parts) - 1, -1, -1):
            r0, r1, c0, c1, _, u0, u1 = parts[part]
            for u in range(u0, u1):
                if f == GATED:
                    for j in range(u * batch, (u + 1) * batch):
                        h, c, gate = load(received, now + j), load(kept, k + j), load(kept, k + one + j)
                        through = gate * load(g, j)
                        store(pushed, p + j, (1 - c * c) * through)
                        store(pushed, p + one + j, (1 - gate) * (c - h) * through)
                        store(g, j, load(g, j) - through)
                else:
                    alpha_s, alpha_r = load(leaks, u), load(leaks, units + u)
                    moved_s, moved_r = load(moved, u), load(moved, units + u)
                    for j in range(u * batch, (u + 1) * batch):
                        a, g_r = load(kept, k + one + j), load(g, j)
                        own = load(g_I, j) + _slope(f, a) * (alpha_r * g_r)
                        moved_s = moved_s + own * load(kept, k + j)
                        moved_r = moved_r + g_r * (a - load(received, now + j))
                        store(pushed, p + j, alpha_s * own)
                        store(g_I, j, own - alpha_s * own)
                        store(g, j, g_r - alpha_r * g_r)
                    store(moved, u, moved_s)
                    store(moved, units + u, moved_r)
            left, right = (r0 * columns + c0, 1, columns), (p + r0 * batch, batch, 1)
            product(g, (c0 * batch, batch), M, left, pushed, right, (min(c1, wanted) - c0, batch, r1 - r0), ONCE, False)
        if wanted > units:
            _put(dx, n, (first + s) * batch * features, batch, features, g, one)
            g[one * LANES :] = 0
        if s == 0 or done - s == near:  # what M gets, of several steps at once: sums stay in registers
            for part in range(len(parts)):
                r0, r1, c0, c1, shift, _, _ = parts[part]
                left, right = (p + r0 * batch, batch, 1), (now + (shift * columns + c0) * batch, 1, batch)
                size, steps = (r1 - r0, c1 - c0, batch), (done - s, rows * batch, columns * batch)
                product(dM, (r0 * columns + c0, columns), pushed, left, received, right, size, steps, False)
            done = s


@numba.njit(**COMPILE)
def _room(shape, held, like):  # type: ignore[no-untyped-def]
    """Return Lanes for M and leaks, and those for what is received and kept at each step, drives, and any currents."""
    _, batch, features, units, _, rows, span = shape
    columns, one = units + features + 1, units * batch
    sizes = rows * columns, 2 * units, 2 * span * one, rows * batch, held - one
    M, leaks, kept, drive, current = [np.empty(size * LANES, like.dtype) for size in sizes]
    return M, leaks, (np.ones((span + 1) * columns * batch * LANES, like.dtype), kept, drive, current)


@numba.njit(**COMPILE, cache=True)
def forward(f, parts, shape, x, M, leaks, state, y, currents, marks):  # type: ignore[no-untyped-def]
    """Set outputs, currents unless empty, and marks: the state before each segment, (units, batch)."""
    time, batch, features, units, outputs, rows, span = shape
    columns, one, top, held = units + features + 1, units * batch, rows - outputs, state.shape[1]
    own, leaked, room = _room(shape, held, x)
    received, _, drive, current = room
    for n in range(0, len(M), LANES):
        _take(M, n, 0, rows * columns, 1, own, 0)
        _take(leaks, n, 0, leaks.shape[1], 1, leaked, 0)
        for k in range(0, held, one):
            _take(state, n, k, batch, units, drive, 0)
            _put(marks, n, k, one, 1, drive, 0)
        for first in range(0, time, span):
            count = min(time - first, span)
            _steps(f, parts, shape, first, count, rows, n, x, own, leaked, marks, room, y, currents)
            end = count * columns * batch
            if first + count < time:
                _put(marks, n, (first // span + 1) * held, held - one, 1, current, 0)
                _put(marks, n, (first // span + 2) * held - one, one, 1, received, end)
        size = (outputs, batch, columns)
        product(drive, (0, batch), own, (top * columns, columns, 1), received, (end, batch, 1), size, ONCE, True)
        _put(y, n, (time - 1) * batch * outputs, batch, outputs, drive, 0)


@numba.njit(**COMPILE, cache=True)
def backward(f, parts, shape, near, grad, grad_I, x, M, leaks, marks, dx, dM, dleaks, dstate):  # type: ignore[no-untyped-def]
    """Set the gradients, given those of outputs and currents; dx unless it is empty.

    The steps are made once more, segment by segment: that costs less than to write them to memory and to read them.
    """
    time, batch, features, units, outputs, rows, span = shape
    columns, one, top, held = units + features + 1, units * batch, rows - outputs, dstate.shape[1]
    own, leaked, room = _room(shape, held, x)
    dM_own, moved, pushed = np.empty_like(own), np.empty_like(leaked), np.empty(span * rows * batch * LANES, x.dtype)
    g, g_I = np.empty((units + features * (dx.size > 0)) * batch * LANES, x.dtype), np.empty(one * LANES, x.dtype)
    for n in range(0, len(M), LANES):
        _take(M, n, 0, rows * columns, 1, own, 0)
        _take(leaks, n, 0, leaks.shape[1], 1, leaked, 0)
        for array in (g, g_I, moved, dM_own):
            array[:] = 0
        for first in range((time - 1) // span * span, -1, -span):
            count = min(time - first, span)
            _steps(f, parts, shape, first, count, top, n, x, own, leaked, marks, room, x, x[:0])
            if first + count == time:  # the outputs of the last step
                _take(grad, n, (time - 1) * batch * outputs, batch, outputs, pushed, 0)
                left, size = (top * columns, 1, columns), (units, batch, outputs)
                product(g, (0, batch), own, left, pushed, (0, batch, 1), size, ONCE, True)
                right, size = (count * columns * batch, 1, batch), (outputs, columns, batch)
                product(dM_own, (top * columns, columns), pushed, (0, batch, 1), room[0], right, size, ONCE, True)
            for s in range(count):
                at = (s * rows + top) * batch
                if first + s > 0:
                    _take(grad, n, (first + s - 1) * batch * outputs, batch, outputs, pushed, at)
                else:
                    pushed[at * LANES : (at + outputs * batch) * LANES] = 0
            more = pushed, g, g_I, moved, dM_own, dx, grad_I
            _steps_back(f, parts, shape, first, count, near, n, own, leaked, room, *more)
        _put(dM, n, 0, rows * columns, 1, dM_own, 0)
        _put(dleaks, n, 0, leaks.shape[1], 1, moved, 0)
        if held > one:
            _put(dstate, n, 0, batch, units, g_I, 0)
        _put(dstate, n, held - one, batch, units, g, 0)
