"""Compiled kernels: the steps of a layer of LSTM units, and their gradients.

The order here is i, f, o, g, the three with a sigmoid first; torch's is i, f, g, o.
"""

import numba

from ts_helpers.kernels import COMPILE, SIGMOID, TANH, activate
from ts_helpers.products import add_product, copy, padded, zeros

GATES = (0, 1, 3, 2)  # which block of torch's is which here
ROWS = 128  # of steps and sequences, in one product for the gradient of the weights: they stay in the second cache


@numba.njit(**COMPILE)
def _hear(h, x, z):  # type: ignore[no-untyped-def]
    """Set z (batch, heard) to what units hear: their states, the input, and the constant 1 that stands there already.

    Where h has no rows, units were at 0.
    """
    units = h.shape[1]
    for i in range(len(z)):
        for j in range(units):
            z[i, j] = h[i, j] if len(h) else 0
        for j in range(x.shape[1]):
            z[i, units + j] = x[i, j]


@numba.njit(**COMPILE, cache=True)
def forward(x, weights, kept, states):  # type: ignore[no-untyped-def]
    """Set states (time, batch, units), and kept (time, 5, batch, padded units) to gates and cells.

    weights (4 units, units + features + 1) have the bias last. Kept may have room for the last two steps only.
    """
    time, batch, units = states.shape
    heard, wide = weights.shape[1], padded(units, x)
    z, h, columns = zeros(1, batch, heard, x)[0], zeros(1, batch, wide, x)[0], zeros(4, heard, wide, x)
    drives, room, old = zeros(1, batch, wide, x)[0], zeros(1, batch, wide, x).ravel(), zeros(1, batch, wide, x).ravel()
    drive, state = drives.ravel(), h.ravel()
    for k in range(4):
        copy(weights[GATES[k] * units : (GATES[k] + 1) * units].T, columns[k])
    z[:, heard - 1] = 1
    for t in range(time):
        _hear(states[t - 1] if t else states[:0, 0], x[t], z)
        new = kept[t % len(kept)]
        cell = new[4].ravel()
        for k in range(4):
            drive[:] = 0
            add_product(drives, z, heard, 1, columns[k], batch, heard, wide)
            activate(SIGMOID if k < 3 else TANH, drive, new[k].ravel(), room)
        i, f, o, g = new[0].ravel(), new[1].ravel(), new[2].ravel(), new[3].ravel()
        for j in range(cell.size):
            cell[j] = f[j] * old[j] + i[j] * g[j]
        activate(TANH, cell, state, room)
        for j in range(cell.size):
            state[j] *= o[j]
        copy(h, states[t])
        old = cell


@numba.njit(**COMPILE, cache=True)
def backward(grad, x, weights, kept, states, dweights):  # type: ignore[no-untyped-def]
    """Set dweights, all 0 before, given the gradient of the states.

    The products that sum over steps wait for several of them: each reads and writes all sums.
    """
    time, batch, units = states.shape
    heard, wide, steps = weights.shape[1], padded(units, x), max(1, ROWS // batch)
    z, p, rows = zeros(steps, batch, heard, x), zeros(4, steps * batch, wide, x), zeros(4, units, wide, x)
    sums, back, a = zeros(4, heard, wide, x), zeros(1, batch, wide, x)[0], zeros(1, batch, wide, x).ravel()
    push, pull, room = back.ravel(), zeros(1, batch, wide, x).ravel(), zeros(1, batch, wide, x).ravel()
    none, one = zeros(1, batch, wide, x).ravel(), x.dtype.type(1)
    z[:, :, heard - 1] = 1
    for k in range(4):
        copy(weights[GATES[k] * units : (GATES[k] + 1) * units], rows[k])
    for t in range(time - 1, -1, -1):
        at = t % steps
        here = slice(at * batch, (at + 1) * batch)
        _hear(states[t - 1] if t else states[:0, 0], x[t], z[at])
        i, f, o, g = kept[t, 0].ravel(), kept[t, 1].ravel(), kept[t, 2].ravel(), kept[t, 3].ravel()
        cell, old = kept[t, 4].ravel(), kept[t - 1, 4].ravel() if t else none
        di, df, do, dg = p[0, here].ravel(), p[1, here].ravel(), p[2, here].ravel(), p[3, here].ravel()
        for b in range(batch):
            for j in range(units):
                back[b, j] += grad[t, b, j]
        activate(TANH, cell, a, room)
        for j in range(cell.size):
            do[j] = push[j] * a[j] * o[j] * (one - o[j])
            pull[j] += push[j] * o[j] * (one - a[j] * a[j])
            di[j] = pull[j] * g[j] * i[j] * (one - i[j])
            df[j] = pull[j] * old[j] * f[j] * (one - f[j])
            dg[j] = pull[j] * i[j] * (one - g[j] * g[j])
            pull[j] *= f[j]
        push[:] = 0
        for k in range(4):
            add_product(back, p[k, here], wide, 1, rows[k], batch, units, wide)
        if at == 0:
            n = min(steps, time - t) * batch
            for k in range(4):
                add_product(sums[k], z.reshape(-1, heard), 1, heard, p[k], heard, n, wide)
    for k in range(4):
        copy(sums[k].T[:units], dweights[GATES[k] * units : (GATES[k] + 1) * units])
