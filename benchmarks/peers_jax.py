"""The same networks in JAX: one compiled function takes a step of all of them, Adam's included."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from workloads import Workload

from ts_helpers.fit import BETAS, EPSILON
from ts_helpers.timescales import raw_name

Parameters = dict[str, Any]  # by the names that they have in torch


def _mtrnn(p: Parameters, x: Any) -> Any:
    L, S, H, b = ([p[name] for name in sorted(p) if name.startswith(f"cell.{part}.")] for part in "LSHb")
    n, none = len(b[0]), jnp.zeros_like(S[0])
    W = jnp.block([[S[0], H[0], none], [L[1], S[1], H[1]], [none, L[2], S[2]]])
    alpha = jnp.repeat(1 / jnp.maximum(p[raw_name("cell.alpha")], 1), n)
    drive = jnp.pad(x[:-1] @ L[0].T, ((0, 0), (0, 0), (0, 2 * n))) + jnp.concatenate(b)

    def step(h: Any, drive: Any) -> Any:
        h = h + alpha * (jnp.tanh(h) @ W.T + drive - h)
        return h, h

    h = lax.scan(step, p["h0"], drive, unroll=5)[1]  # the fastest of 1, 2 and 5; the other cells are so with 1
    return jnp.tanh(h[..., :n]) @ p["V"].T + p["c"]


def _aru(p: Parameters, x: Any) -> Any:
    alpha_s, alpha_r = (p[raw_name(f"cell.{name}")] for name in ("alpha_s", "alpha_r"))
    W, drive = p["cell.W"], x @ p["cell.U"].T + p["cell.b"]

    def step(state: Any, drive: Any) -> Any:
        I, r = state
        I = I + alpha_s * (r @ W.T + drive - I)
        r = r + alpha_r * (nn.sigmoid(I) - r)
        return (I, r), r

    start = jnp.broadcast_to(p["cell.start"].reshape(2, 1, -1), (2, *drive.shape[1:]))
    return lax.scan(step, (start[0], start[1]), drive)[1] @ p["V"].T + p["c"]


def _gated(p: Parameters, x: Any) -> Any:
    W, n = jnp.concatenate([p["cell.W"], p["cell.W_g"]]), len(p["cell.W"])
    drive = x @ jnp.concatenate([p["cell.U"], p["cell.U_g"]]).T + jnp.concatenate([p["cell.b"], p["cell.b_g"]])

    def step(h: Any, drive: Any) -> Any:
        z = h @ W.T + drive
        h = h + nn.sigmoid(z[..., n:]) * (jnp.tanh(z[..., :n]) - h)
        return h, h

    return lax.scan(step, jnp.zeros((x.shape[1], n)), drive)[1] @ p["V"].T + p["c"]


def _lstm(p: Parameters, x: Any) -> Any:
    W = p["cell.lstm.weight_hh"]
    drive = x @ p["cell.lstm.weight_ih"].T + p["cell.lstm.bias_ih"] + p["cell.lstm.bias_hh"]

    def step(state: Any, drive: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(h @ W.T + drive, 4, -1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], W.shape[1]))
    return lax.scan(step, (zeros, zeros), drive)[1] @ p["V"].T + p["c"]


def _next(output: Any, x: Any) -> Any:
    return jnp.square(output - x[1:]).mean()


def _error(output: Any, x: Any, y: Any) -> Any:
    asked = ~jnp.isnan(y)
    return jnp.square(jnp.where(asked, output - jnp.where(asked, y, 0), 0)).sum() / asked.sum()


def _surprise(output: Any, x: Any, y: Any) -> Any:
    return -jnp.take_along_axis(nn.log_softmax(output), y[..., None], -1).mean()


CELLS = {"mtrnn": (_mtrnn, _next), "aru": (_aru, _error), "gated": (_gated, _surprise), "lstm": (_lstm, _surprise)}


class Compiled:
    """All networks at once, by ``jit(vmap(scan))``."""

    def __init__(self, work: Workload):
        output, error = CELLS[work.cell]
        self.networks = work.networks
        nets = [dict(work.make(work, i).named_parameters()) for i in range(work.networks)]
        self.p = {name: jnp.stack([net[name].detach().numpy() for net in nets]) for name in nets[0]}
        self.data = [jnp.array(np.stack([tensor.numpy()] * work.networks)) for tensor in work.data(work)]

        def loss(p: Parameters, *data: Any) -> Any:
            return error(output(p, data[0]), *data)

        def step(p: Parameters, m: Parameters, v: Parameters, data: Any, t: Any) -> Any:
            grad = jax.grad(loss)(p, *data)
            m = {k: BETAS[0] * m[k] + (1 - BETAS[0]) * grad[k] for k in p}
            v = {k: BETAS[1] * v[k] + (1 - BETAS[1]) * grad[k] ** 2 for k in p}
            spread = {k: jnp.sqrt(v[k] / (1 - BETAS[1] ** t)) + EPSILON for k in p}
            return {k: p[k] - work.rate(k) * m[k] / (1 - BETAS[0] ** t) / spread[k] for k in p}, m, v

        over = (0, 0, 0, 0, None)
        self.step = jax.jit(jax.vmap(step, over), donate_argnums=(0, 1, 2))
        self.gradient = jax.jit(jax.vmap(jax.value_and_grad(loss)))

    def train(self, steps: int) -> float:
        """Take steps; see `ways`."""
        zeros = partial(jax.tree.map, jnp.zeros_like)
        p, m, v = self.p, zeros(self.p), zeros(self.p)
        start = time.process_time()
        for t in range(steps):
            p, m, v = self.step(p, m, v, self.data, jnp.float32(t + 1))
        self.p = jax.block_until_ready(p)
        return time.process_time() - start

    def measure(self) -> list[float]:
        """Return loss and norm of the gradient of the first network, taken of all."""
        loss, grad = self.gradient(self.p, *self.data)
        return [float(loss[0]), float(jnp.sqrt(sum(jnp.square(g[0]).sum() for g in grad.values())))]
