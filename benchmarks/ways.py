"""Ways to train the same networks on the same data: each takes steps and says how long they took.

Of each, ``networks`` is how many it trains, ``train(steps)`` takes steps and returns seconds, and ``measure()`` returns
loss and norm of the gradient of the first network.
Time is the processor's own: on one core with one thread it is what a clock shows when nothing else runs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import limits
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrize
from workloads import LSTM, Workload

from ts_helpers import _stack, cells, fit
from ts_helpers.papers import benureau2018

Unroll = Callable[..., Tensor]


class Absent(Exception):
    """There is no such way for a workload; says why."""


@contextmanager
def unrolling(by: Unroll) -> Iterator[None]:
    """Let networks make their sequences by another function than `cells.unroll`."""
    with mock.patch.object(cells, "unroll", by), mock.patch.object(benureau2018, "unroll", by):
        yield


def _shown(cell: Any, state: Tensor) -> Tensor:
    return cell.activity(state) if hasattr(cell, "activity") else state


def naive(cell: Any, x: Tensor, state: Tensor | None = None, *, read_out: Any = None) -> Tensor:
    """As it is written down first: time is indexed, dials are evaluated and units read out at every step."""
    state, steps = cell.initial_state(x[0]) if state is None else state, []
    for t in range(len(x)):
        state = cell(x[t], state)
        steps.append(state if read_out is None else F.linear(_shown(cell, state), *read_out))
    return torch.stack(steps)


def careful(cell: Any, x: Tensor, state: Tensor | None = None, *, read_out: Any = None) -> Tensor:
    """Time is taken apart once, dials are evaluated once, and units read out in one product."""
    with parametrize.cached():
        state, steps = cell.initial_state(x[0]) if state is None else state, []
        for x_t in x.unbind(0):
            state = cell(x_t, state)
            steps.append(state)
    states = torch.stack(steps)
    return states if read_out is None else F.linear(_shown(cell, states), *read_out)


def built_in(cell: Any, x: Tensor, *, read_out: Any) -> Tensor:
    """The call behind `torch.nn.LSTM`, on the parameters of the cell."""
    h = x.new_zeros(1, x.shape[1], cell.lstm.hidden_size)
    states = torch.lstm(x, (h, h), list(cell.lstm.parameters()), True, 1, 0.0, True, False, False)[0]
    return F.linear(states, *read_out)


class Loop:
    """One network with torch's own Adam: what each costs if they are trained one after the other."""

    networks = 1

    def __init__(self, work: Workload, unroll: Unroll, fused: bool):
        self.work, self.unroll, self.fused = work, unroll, fused
        self.net, self.data = work.make(work, 0), work.data(work)

    def train(self, steps: int) -> float:
        """Take steps; see above."""
        groups = [{"params": [p], "lr": self.work.rate(name)} for name, p in self.net.named_parameters()]
        adam = torch.optim.Adam(groups, fused=self.fused)
        start = time.process_time()
        with unrolling(self.unroll):
            for _ in range(steps):
                adam.zero_grad()
                self.work.loss(self.net, *self.data).backward()
                adam.step()
        return time.process_time() - start

    def measure(self) -> list[float]:
        """Return loss and norm of the gradient."""
        with unrolling(self.unroll):
            loss = self.work.loss(self.net, *self.data)
        grads = torch.autograd.grad(loss, list(self.net.parameters()))
        return [loss.item(), torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads])).item()]


class Stack:
    """All networks at once, by `fit`."""

    def __init__(self, work: Workload, unroll: Unroll):
        self.work, self.unroll, self.networks = work, unroll, work.networks
        self.nets = [work.make(work, i) for i in range(work.networks)]
        self.data = [tensor.repeat(work.networks, *[1] * tensor.ndim) for tensor in work.data(work)]

    def train(self, steps: int) -> float:
        """Take steps; see above."""
        clock = SimpleNamespace(perf_counter=time.process_time)
        how = dict(n_steps=steps, lr=self.work.lr, lr_scale=self.work.lr_scale, metrics={})
        with unrolling(self.unroll), mock.patch.object(fit, "time", clock):
            return fit.fit(self.nets, self.work.loss, self.data, **how).seconds

    def measure(self) -> list[float]:
        """Return loss and norm of the gradient of the first network, taken of all."""
        with unrolling(self.unroll):
            losses, grads = _stack.Stack(self.nets).gradient(self.work.loss, self.data)
        return [losses[0].item(), torch.linalg.vector_norm(grads[0]).item()]


def _engine(work: Workload) -> Any:
    if not hasattr(getattr(work.make(work, 0), "cell", None), "_recurrence"):
        raise Absent("no compiled cell")
    return Stack(work, cells.unroll)


def _built_in(work: Workload) -> Any:
    if not isinstance(getattr(work.make(work, 0), "cell", None), LSTM):
        raise Absent("no such cell")
    return Loop(work, built_in, fused=True)


def _jax(work: Workload) -> Any:
    from peers_jax import Compiled  # here: nothing else needs JAX

    return Compiled(work)


WAYS: dict[str, Callable[[Workload], Any]] = {
    "naive loop": lambda work: Loop(work, naive, fused=False),
    "careful loop": lambda work: Loop(work, careful, fused=True),
    "torch.nn": _built_in,
    "plain vmap": lambda work: Stack(work, careful),
    "engine": _engine,
    "JAX": _jax,
    "products alone": limits.Products,
    "memory alone": limits.Traffic,
}
