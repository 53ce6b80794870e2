r"""Compiled kernels: all steps of eight networks, and their gradients; no torch.

Of a network the kernels see one matrix M, ``[W U b; V 0 c]``, or with gates ``[W U b; W_g U_g b_g; V 0 c]``. It is
multiplied with what units receive at a step, :math:`z_t = (a_{t-1}, x_t, 1)`, a being their activity: that gives their
drives, and the outputs of the step before. A network runs by parts, ``first row, end, first column, end, shift, first
unit, end``: the drives of these rows are made, or added to, from these columns of :math:`z_{t + \mathrm{shift}}`, then
these units take their step. All arrays are of `Lanes`, their last dimension the batch, and flat but for the first, the
groups of eight; ``shape`` is time, batch, features, units, outputs, rows of M, and steps of a segment.
"""

import numba
import numpy as np

from ts_helpers.engine.lanes import COMPILE, LANES, ONCE, load, product, sigmoid, store, tanh, where_negative

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
def _copy(out, o, array, i, size):  # type: ignore[no-untyped-def]
    """Copy so many Lanes."""
    out[o * LANES : (o + size) * LANES] = array[i * LANES : (i + size) * LANES]


@numba.njit(**COMPILE)
def _steps(f, parts, shape, first, count, rows, x, M, leaks, mark, z, kept, drive, current, y):  # type: ignore[no-untyped-def]
    """Take so many steps from the marked state on; with all rows of M, set the outputs of the step before each."""
    _, batch, features, units, outputs, M_rows, _ = shape
    columns, one = units + features + 1, units * batch
    held = len(mark) // LANES - one
    _copy(current, 0, mark, 0, held)
    _copy(z, 0, mark, held, one)
    for s in range(count):
        now, then, k = s * columns * batch, (s + 1) * columns * batch, 2 * s * one
        _copy(z, now + one, x, (first + s) * features * batch, features * batch)
        for part in range(len(parts)):
            r0, r1, c0, c1, shift, u0, u1 = parts[part]
            left, right = (r0 * columns + c0, columns, 1), (now + (shift * columns + c0) * batch, batch, 1)
            size = (min(r1, rows) - r0, batch, c1 - c0)
            product(drive, (r0 * batch, batch), M, left, z, right, size, ONCE, c0 == 0)
            for u in range(u0, u1):
                if f == GATED:
                    for j in range(u * batch, (u + 1) * batch):
                        h, c, g = load(z, now + j), tanh(load(drive, j)), sigmoid(load(drive, one + j))
                        store(kept, k + j, c)
                        store(kept, k + one + j, g)
                        store(z, then + j, h + g * (c - h))
                else:
                    alpha_s, alpha_r = load(leaks, u), load(leaks, units + u)
                    for j in range(u * batch, (u + 1) * batch):
                        I, r = load(current, j), load(z, now + j)  # noqa: E741
                        pull = load(drive, j) - I
                        I = I + alpha_s * pull  # noqa: E741
                        a = _activation(f, I)
                        store(current, j, I)
                        store(kept, k + j, pull)
                        store(kept, k + one + j, a)
                        store(z, then + j, r + alpha_r * (a - r))
        if rows == M_rows and first + s > 0:
            size = outputs * batch
            _copy(y, (first + s - 1) * size, drive, rows * batch - size, size)


@numba.njit(**COMPILE)
def _steps_back(f, parts, shape, count, near, M, leaks, z, kept, pushed, g, g_I, moved, dM, dx):  # type: ignore[no-untyped-def]
    r"""Carry gradients back through so many steps: g of the activities, g_I of the currents, dM and those of leaks.

    With p, the gradient of the drives, and that of the outputs a step before below it in ``pushed``. For leaks

    .. math::
        g^I_t &\mathrel{+}= f'(I_t) \, \alpha_r g_t, \quad p_t = \alpha_s g^I_t, \quad g^I_{t-1} = g^I_t - p_t \\
        g_{t-1} &= (1 - \alpha_r) g_t + W^T p_t + V^T \partial E / \partial y_{t-1}

    and for a gate g with candidate c :math:`p = g (1 - c^2) g_t` and :math:`q = g (1 - g) (c - h) g_t`.
    """
    _, batch, features, units, _, rows, _ = shape
    columns, one, wanted, done = units + features + 1, units * batch, len(g) // (batch * LANES), count
    for s in range(count - 1, -1, -1):
        now, p, k = s * columns * batch, s * rows * batch, 2 * s * one
        for part in range(len(parts) - 1, -1, -1):
            r0, r1, c0, c1, _, u0, u1 = parts[part]
            for u in range(u0, u1):
                if f == GATED:
                    for j in range(u * batch, (u + 1) * batch):
                        h, c, gate = load(z, now + j), load(kept, k + j), load(kept, k + one + j)
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
                        moved_r = moved_r + g_r * (a - load(z, now + j))
                        store(pushed, p + j, alpha_s * own)
                        store(g_I, j, own - alpha_s * own)
                        store(g, j, g_r - alpha_r * g_r)
                    store(moved, u, moved_s)
                    store(moved, units + u, moved_r)
            left, right = (r0 * columns + c0, 1, columns), (p + r0 * batch, batch, 1)
            product(g, (c0 * batch, batch), M, left, pushed, right, (min(c1, wanted) - c0, batch, r1 - r0), ONCE, False)
        if wanted > units:
            _copy(dx, s * features * batch, g, one, features * batch)
            g[one * LANES :] = 0
        if s == 0 or done - s == near:  # what M gets, of several steps at once: sums stay in registers
            for part in range(len(parts)):
                r0, r1, c0, c1, shift, _, _ = parts[part]
                left, right = (p + r0 * batch, batch, 1), (now + (shift * columns + c0) * batch, 1, batch)
                size, steps = (r1 - r0, c1 - c0, batch), (done - s, rows * batch, columns * batch)
                product(dM, (r0 * columns + c0, columns), pushed, left, z, right, size, steps, False)
            done = s


@numba.njit(**COMPILE, cache=True)
def forward(f, parts, shape, x, M, leaks, state, y, marks):  # type: ignore[no-untyped-def]
    """Set the outputs y, and marks: the state before each segment."""
    time, batch, features, units, outputs, rows, span = shape
    columns, one, top, held = units + features + 1, units * batch, rows - outputs, state.shape[1] // LANES
    current, drive = np.empty_like(state[0]), np.empty(rows * batch * LANES, x.dtype)
    z, kept = np.ones((span + 1) * columns * batch * LANES, x.dtype), np.empty(2 * span * one * LANES, x.dtype)
    for net in range(len(M)):
        mark = state[net]
        for segment in range(-(-time // span)):
            first = segment * span
            count = min(time - first, span)
            _copy(marks[net], segment * held, mark, 0, held)
            _steps(
                f, parts, shape, first, count, rows, x[net], M[net], leaks[net], mark, z, kept, drive, current, y[net]
            )
            mark = current.copy()
            end = count * columns * batch
            _copy(mark, held - one, z, end, one)
        size = (outputs, batch, columns)
        product(drive, (0, batch), M[net], (top * columns, columns, 1), z, (end, batch, 1), size, ONCE, True)
        _copy(y[net], (time - 1) * outputs * batch, drive, 0, outputs * batch)


@numba.njit(**COMPILE, cache=True)
def backward(f, parts, shape, near, grad, x, M, leaks, marks, dx, dM, dleaks, dstate):  # type: ignore[no-untyped-def]
    """Set the gradients, given that of y; dx unless it is empty.

    The steps are made once more, segment by segment: that costs less than to write them to memory and to read them.
    """
    time, batch, features, units, outputs, rows, span = shape
    columns, one, top, held = units + features + 1, units * batch, rows - outputs, dstate.shape[1] // LANES
    current, drive = np.empty_like(dstate[0]), np.empty(rows * batch * LANES, x.dtype)
    z, kept = np.ones((span + 1) * columns * batch * LANES, x.dtype), np.empty(2 * span * one * LANES, x.dtype)
    pushed, said = np.empty(span * rows * batch * LANES, x.dtype), outputs * batch
    g, g_I = np.empty((units + features * (dx.size > 0)) * batch * LANES, x.dtype), np.empty(one * LANES, x.dtype)
    for net in range(len(M)):
        Ms, dMs, moved = M[net], dM[net], dleaks[net]
        for array in (g, g_I, moved, dMs):
            array[:] = 0
        for segment in range(-(-time // span) - 1, -1, -1):
            first = segment * span
            count, mark = min(time - first, span), marks[net, segment * held * LANES : (segment + 1) * held * LANES]
            _steps(f, parts, shape, first, count, top, x[net], Ms, leaks[net], mark, z, kept, drive, current, drive)
            if first + count == time:  # the outputs of the last step
                _copy(pushed, 0, grad[net], (time - 1) * said, said)
                left, size = (top * columns, 1, columns), (units, batch, outputs)
                product(g, (0, batch), Ms, left, pushed, (0, batch, 1), size, ONCE, True)
                right, size = (count * columns * batch, 1, batch), (outputs, columns, batch)
                product(dMs, (top * columns, columns), pushed, (0, batch, 1), z, right, size, ONCE, True)
            for s in range(count):
                at = (s * rows + top) * batch
                if first + s > 0:
                    _copy(pushed, at, grad[net], (first + s - 1) * said, said)
                else:
                    pushed[at * LANES : (at + said) * LANES] = 0
            into = dx[net, first * features * batch * LANES :]
            _steps_back(f, parts, shape, count, near, Ms, leaks[net], z, kept, pushed, g, g_I, moved, dMs, into)
        _copy(dstate[net], 0, g_I, 0, held - one)
        _copy(dstate[net], held - one, g, 0, one)
