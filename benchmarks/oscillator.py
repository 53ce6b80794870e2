"""The same question for a network that learns while it runs: it has no backward pass, and a step is one of time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ts_helpers.datasets.ring import ring_oscillation, ring_teacher
from ts_helpers.papers.matsuki2018 import BOUNDS, OnlineLearner

DT, ETA_W, ETA_TAU, ETA_U = 0.01, 0.1, 0.01, 0.01
LOW, HIGH = np.log(BOUNDS).tolist()
State = tuple[Any, ...]


@dataclass(frozen=True)
class Ring:
    """Three neurons that learn weights and time constants from a teacher's ``steps`` outputs: that is a step of it."""

    networks: int = 1000
    steps: int = 100

    def sizes(self) -> dict[str, int]:
        """Return what a reader wants to know of the size."""
        return dict(networks=self.networks, units=3, steps=self.steps, batch=1, features=0, outputs=3, parameters=12)

    def desired(self) -> Tensor:
        """Return the teacher's outputs, (time, 3)."""
        return ring_oscillation(self.steps, ring_teacher())[:, 0]


def learn(xp: Any, state: State, d: Any) -> State:
    """One network, one step, in torch or JAX: `OnlineLearner.step`; W (3, 3), and log tau, u, x and a, all (3,)."""
    W, T, u, before, a = state
    tau = xp.exp(T)
    alpha = DT / tau
    change = alpha * (W @ before - u)
    u = u + change
    x = xp.tanh(u)
    a = (1 - alpha) * a - change / tau
    delta = (d - x) * (1 - x * x)
    W = W + ETA_W * (delta * alpha)[:, None] * before
    T = xp.clip(T + ETA_TAU * tau * delta * a, LOW, HIGH)
    u = u + ETA_U * (d - x) / (1 - x * x)
    return W, T, u, xp.tanh(u), a


def start(*networks: int) -> State:
    """Return the state before the first step, of one network or of several, which come first."""
    u = torch.full((*networks, 3), 0.1, dtype=torch.float64)
    return torch.zeros(*networks, 3, 3, dtype=torch.float64), u.log(), u, u.tanh(), 0 * u


def naive(state: State, desired: Tensor) -> State:
    """As it is written down first."""
    for t in range(len(desired)):
        state = learn(torch, state, desired[t])
    return state


@torch.inference_mode()
def careful(state: State, desired: Tensor) -> State:
    """Time is taken apart once, and nothing is noted down for a backward pass."""
    for d in desired.unbind(0):
        state = learn(torch, state, d)
    return state


@torch.inference_mode()
def mapped(state: State, desired: Tensor) -> State:
    """The same of several networks, by `torch.vmap`."""
    step = torch.vmap(lambda *words: learn(torch, words[:-1], words[-1]), (0,) * 5 + (None,))
    for d in desired.unbind(0):
        state = step(*state, d)
    return state


class Online:
    """Networks whose state a function carries through the desired outputs."""

    def __init__(self, ring: Ring, networks: int, run: Callable[[State, Any], State]):
        self.networks, self.run = networks, run
        self.state, self.desired = start(*[networks] * (networks > 1)), ring.desired()

    def train(self, steps: int) -> float:
        """Go through the desired outputs so many times; see `ways`."""
        begin = time.process_time()
        for _ in range(steps):
            self.state = self.run(self.state, self.desired)
        return time.process_time() - begin

    def measure(self) -> list[float]:
        """Return the last squared error and the norm of the weights of the first network."""
        W, x = (np.asarray(self.state[i]).reshape(self.networks, -1)[0] for i in (0, 3))
        return [float(np.square(x - self.desired[-1].numpy()).sum()), float(np.linalg.norm(W))]


class Engine(Online):
    """`OnlineLearner`, in which networks come last."""

    def __init__(self, ring: Ring):
        super().__init__(ring, ring.networks, self.carry)
        W, T, u, *_ = (tensor.movedim(0, -1).contiguous() for tensor in self.state)
        self.learner = OnlineLearner(W, T.exp(), u, dt=DT, eta_w=ETA_W, eta_tau=ETA_TAU, eta_u=ETA_U)

    @torch.inference_mode()
    def carry(self, state: State, desired: Tensor) -> State:
        """Teach the learner."""
        self.learner.teach(desired[..., None])
        learner = self.learner
        return tuple(t.movedim(-1, 0) for t in (learner.W, learner.T, learner.u, learner.x, learner.a))


class InJax(Online):
    """All networks by ``jit(vmap(scan))``, in double precision as the others."""

    def __init__(self, ring: Ring):
        import jax  # here: nothing else needs it

        super().__init__(ring, ring.networks, self.carry)
        self.jax = jax
        over = jax.vmap(
            lambda state, desired: jax.lax.scan(lambda s, d: (learn(jax.numpy, s, d), None), state, desired)[0],
            (0, None),
        )
        with jax.enable_x64(True):
            self.state = tuple(jax.numpy.array(tensor.numpy()) for tensor in self.state)
            self.given = jax.numpy.array(self.desired.numpy())
            self.pass_through = jax.jit(over, donate_argnums=0)

    def carry(self, state: State, desired: Tensor) -> State:
        """Run the compiled function."""
        with self.jax.enable_x64(True):
            return self.jax.block_until_ready(self.pass_through(state, self.given))


@numba.njit(cache=True, fastmath=True)
def _products(W, x, out):  # type: ignore[no-untyped-def]
    """W x of every network; networks come last."""
    for j in range(3):
        out[j] = 0
        for i in range(3):
            for n in range(x.shape[1]):
                out[j, n] += W[j, i, n] * x[i, n]


@numba.njit(cache=True)
def _traffic(state):  # type: ignore[no-untyped-def]
    """Read and write W, tau, u, x and a of every network once, a row each."""
    for row in state:
        for n in range(len(row)):
            row[n] += 1


class Limit:
    """What a step of time cannot do without, by a compiled function."""

    def __init__(self, ring: Ring, function: Callable[..., None], *shapes: tuple[int, ...]):
        self.networks, self.steps, self.function = ring.networks, ring.steps, function
        self.arrays = [np.zeros((*shape, ring.networks)) for shape in shapes]

    def train(self, steps: int) -> float:
        """Do it for every step of so many passes; see `ways`."""
        begin = time.process_time()
        for _ in range(steps * self.steps):
            self.function(*self.arrays)
        return time.process_time() - begin


RING_WAYS: dict[str, Callable[[Ring], Any]] = {
    "naive loop": lambda ring: Online(ring, 1, naive),
    "careful loop": lambda ring: Online(ring, 1, careful),
    "plain vmap": lambda ring: Online(ring, ring.networks, mapped),
    "engine": Engine,
    "JAX": InJax,
    "products alone": lambda ring: Limit(ring, _products, (3, 3), (3,), (3,)),
    "memory alone": lambda ring: Limit(ring, _traffic, (3 * 3 + 4 * 3,)),
}
