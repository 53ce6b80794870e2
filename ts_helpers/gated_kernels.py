"""Compiled kernels: the steps of units that a gate or a leak rate holds back, and their gradients.

One network goes after the other, and what a step of it needs stays in the processor's nearest caches.
"""

import numba

from ts_helpers.kernels import COMPILE, SIGMOID, TANH, activate
from ts_helpers.products import add_product, copy, padded, zeros


@numba.njit(**COMPILE)
def _take(weights, alpha, columns, gates):  # type: ignore[no-untyped-def]
    """Set columns to the transpose of each block of weights, and gates to the leak rates where there are any."""
    units = len(weights) // len(columns)
    for k in range(len(columns)):
        copy(weights[k * units : (k + 1) * units].T, columns[k])
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
        add_product(drives[k], z, z.shape[1], 1, columns[k], len(z), columns.shape[1], columns.shape[2])
        activate(SIGMOID if k else TANH, drive, active[k].ravel(), room)


@numba.njit(**COMPILE, cache=True)
def forward(x, weights, alpha, h0, states):  # type: ignore[no-untyped-def]
    """Set states (networks, time, batch, units).

    weights (networks, rows, units + features + 1) have a row for each unit and, where alpha (networks, units) has no
    units, another one for each gate; the last column is the bias.
    """
    networks, time, batch = x.shape[:3]
    units, heard, blocks = h0.shape[2], weights.shape[2], 1 if alpha.shape[1] else 2
    wide = padded(units, x)
    z, h, columns = zeros(1, batch, heard, x)[0], zeros(1, batch, wide, x)[0], zeros(blocks, heard, wide, x)
    drives, active, room = zeros(blocks, batch, wide, x), zeros(2, batch, wide, x), zeros(1, batch, wide, x).ravel()
    state, candidate, gate = h.ravel(), active[0].ravel(), active[1].ravel()
    z[:, heard - 1] = 1
    for n in range(networks):
        _take(weights[n], alpha[n], columns, active[1])
        state[:] = 0
        copy(h0[n], h)
        for t in range(time):
            _look(h, x[n, t], columns, z, drives, active, room)
            for j in range(state.size):
                state[j] += gate[j] * (candidate[j] - state[j])
            copy(h, states[n, t])


@numba.njit(**COMPILE, cache=True)
def backward(grad, x, weights, alpha, h0, states, dx, dweights, dalpha, dh):  # type: ignore[no-untyped-def]
    """Set the gradients, all 0 before, given that of the states.

    Candidates and gates are made once more: that costs less than to write them to memory and to read them again.
    """
    networks, time, batch, features = x.shape
    units, heard, blocks = h0.shape[2], weights.shape[2], 1 if alpha.shape[1] else 2
    wide, wider, asked = padded(units, x), padded(heard, x), padded(heard if dx.shape[3] else units, x)
    z, h, columns = zeros(1, batch, wider, x)[0], zeros(1, batch, wide, x)[0], zeros(blocks, heard, wide, x)
    drives, active, room = zeros(blocks, batch, wide, x), zeros(2, batch, wide, x), zeros(1, batch, wide, x).ravel()
    state, candidate, gate = h.ravel(), active[0].ravel(), active[1].ravel()
    z[:, heard - 1], one = 1, x.dtype.type(1)
    rows, sums = zeros(blocks, units, wider, x), zeros(blocks, units, wider, x)
    p, back, g = zeros(2, batch, wide, x), zeros(1, batch, wider, x)[0], zeros(2, batch, wide, x)
    through, to_gate, push, pull = p[0].ravel(), p[1].ravel(), g[0].ravel(), g[1].ravel()
    for n in range(networks):
        _take(weights[n], alpha[n], columns, active[1])
        for k in range(blocks):
            copy(weights[n, k * units : (k + 1) * units], rows[k])
        state[:] = 0
        push[:] = 0
        pull[:] = 0
        sums[:] = 0
        for t in range(time - 1, -1, -1):
            copy(states[n, t - 1] if t else h0[n], h)
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
                add_product(back, p[k], wide, 1, rows[k], batch, units, asked)
                add_product(sums[k], p[k], 1, wide, z, units, batch, wider)
            for i in range(batch):
                for j in range(units):
                    g[0, i, j] += back[i, j]
            if dx.shape[3]:
                for i in range(batch):
                    for j in range(features):
                        dx[n, t, i, j] = back[i, units + j]
        for k in range(blocks):
            copy(sums[k], dweights[n, k * units : (k + 1) * units])
        for j in range(alpha.shape[1]):
            dalpha[n, j] = g[1, :, j].sum()
        copy(g[0], dh[n])
