"""The online learning of Matsuki & Shibata (2018), for many networks at once; tasks and figures stay in chapters."""

import math
from reprlib import repr as short

import numba
import numpy as np
import torch
from torch import Tensor

from ts_helpers._check import as_tensor, at_least, numbered, one_of, within
from ts_helpers.engine.lanes import COMPILE, LANES, compiling, exp_of_negative, load, store, tanh, where_negative

BOUNDS = (0.01, 100.0)  # Section 3.1: "the range of time constants is limited from 0.01 to 100"
LOG_BOUNDS = (math.log(BOUNDS[0]), math.log(BOUNDS[1]))
UPDATES, GRADIENTS, FORCINGS = ("log", "scaled", "direct"), ("local", "exact"), ("after", "before")


class OnlineLearner:
    r"""A stack of networks of continuous-time neurons, each taught at every step by the desired outputs.

    One call of `step` runs Eq. 2, then learns, and draws the state to its target (partial teacher forcing, Eq. 16):

    .. math::
        u_t &= (1 - \alpha) \odot u_{t-1} + \alpha \odot W x_{t-1}, \quad \alpha = \Delta t / \tau,
               \quad x = \tanh(u) && (2, 3) \\
        \Delta w_{ji} &= \eta_w (d_j - x_j)(1 - x_j^2) \, \alpha_j \, x_{i,t-1} && (6) \\
        a_t &= -\tfrac{1}{\tau} (u_t - u_{t-1}) + (1 - \alpha) a_{t-1} && (11) \\
        \Delta T &= \eta_T \, \tau (d - x)(1 - x^2) \, a_t, \quad \tau = e^T && (12) \\
        \Delta u &= \eta_u (d - x) / (1 - x^2) && (16)

    Source: Matsuki & Shibata (2018), Section 2. Departures: Eq. 15 prints a minus before (d - x), which would
    climb the error: it is a plus. Eq. 15 steps tau by ``tau * dT``; ``update="log"`` steps T itself, which is the
    same to first order and keeps tau positive; ``update="scaled"`` is Eq. 15 to the letter.

    Networks come last in every tensor. `teach` and `run` take many steps in one call; on a CPU they are compiled, and
    far faster than `step`, `teach` only with local gradients.

    Args:
        W: weights, (n, n, networks), ``W[j, i]`` from neuron i to j.
        tau: time constants, (n, networks).
        u: internal states, (n, networks).
        dt: time step.
        eta_w, eta_tau, eta_u: rates of Eqs. 6, 12 (the paper's eta_T) and 16; 0 switches a rule off. A tensor
            (networks,) gives each network its own.
        update: what the gradient with respect to tau moves: "log" is T = log tau, "scaled" is tau by Eq. 15,
            "direct" is tau by Eq. 7.
        tau_gradient: "local" is Eq. 11; "exact" keeps the influence of tau through the network, which
            Eq. 9 drops, and through the forcing.
        weight_gradient: "local" is Eq. 6; "exact" keeps the influence of a weight through all earlier steps.
        forcing: whether it comes "after" the update of weights and tau, or "before" the error is taken.

    Raises:
        ValueError: shapes do not fit, tau lies outside `BOUNDS`, a rate is negative, or a choice is unknown.
    """

    def __init__(
        self, W: Tensor, tau: Tensor, u: Tensor, *, dt: float = 0.01,
        eta_w: float | Tensor = 0.0, eta_tau: float | Tensor = 0.0, eta_u: float | Tensor = 0.0,
        update: str = "log", tau_gradient: str = "local", weight_gradient: str = "local", forcing: str = "after",
    ):  # fmt: skip
        numbered(W=W, tau=tau, u=u)
        within("(0, inf)", dt=dt)
        n, networks = u.shape if u.ndim == 2 else (0, 0)
        one_type = u.is_floating_point() and u.dtype == W.dtype == tau.dtype
        if W.shape != (n, n, networks) or tau.shape != (n, networks) or u.ndim != 2 or not one_type:
            got = f"W {tuple(W.shape)}, tau {tuple(tau.shape)}, of {W.dtype}, {tau.dtype}, {u.dtype}"
            rule = f"W must be (n, n, networks) and tau (n, networks) for u {tuple(u.shape)}, of one type of floats"
            raise ValueError(f"{rule}, got {got}")
        low, high = BOUNDS
        if not bool(((tau >= low) & (tau <= high)).all()):
            raise ValueError(f"tau must lie in [{low:g}, {high:g}], got {tau.min().item():g} to {tau.max().item():g}")
        for name, eta in (("eta_w", eta_w), ("eta_tau", eta_tau), ("eta_u", eta_u)):
            rate = as_tensor(name, eta, dtype=u.dtype)
            if rate.shape not in ((), (networks,)) or not bool(((rate >= 0) & rate.isfinite()).all()):
                raise ValueError(f"{name} must be 0 or positive, a number or one for each network, got {short(eta)}")
        self.eta_w, self.eta_tau, self.eta_u = (torch.as_tensor(eta, dtype=u.dtype) for eta in (eta_w, eta_tau, eta_u))
        self.update, self.forcing = update, forcing
        self.tau_gradient, self.weight_gradient = tau_gradient, weight_gradient
        known = dict(update=UPDATES, tau_gradient=GRADIENTS, weight_gradient=GRADIENTS, forcing=FORCINGS)
        for name, choices in known.items():
            one_of(choices, **{name: getattr(self, name)})
        self.W, self.tau, self.T, self.u = W.clone(), tau.clone(), tau.log(), u.clone()
        self.x, self.dt, rates = torch.tanh(u), dt, (self.eta_w, self.eta_tau, self.eta_u)
        self.learns_w, self.learns_tau, self.forces = (bool((eta > 0).any()) for eta in rates)
        self.a = torch.zeros_like(tau)  # Eq. 11
        self.P = u.new_zeros(n, n, networks)  # exact: P[k, j] = du_k / dtau_j
        self.Q = u.new_zeros(n, n, n, networks)  # exact: Q[k, j, i] = du_k / dw_ji
        self.eye = torch.eye(n, dtype=u.dtype, device=u.device)[..., None]
        self.touched = torch.zeros(networks, dtype=torch.bool, device=u.device)

    def step(self, d: Tensor | None = None) -> Tensor:
        """Run one step; learn from the desired outputs d, (n, networks), if given.

        Returns:
            The outputs x, (n, networks), that Eq. 2 gave, before any forcing.
        """
        W, tau, x_before = self.W, self.tau, self.x
        alpha = self.dt / tau
        change = alpha * ((W * x_before).sum(1) - self.u)  # Eq. 8
        self.u = self.u + change  # Eq. 2
        self.x = x = torch.tanh(self.u)
        if d is None:
            return x
        self._accumulate(W, tau, alpha, change, x_before)
        if self.forcing == "before":
            self._force(d)
        delta = (d - self.x) * (1 - self.x * self.x)  # -dE/du
        if self.learns_w:
            if self.weight_gradient == "local":
                downhill = (delta * alpha)[:, None] * x_before  # -dE/dW by Eq. 6
            else:
                downhill = (delta[:, None, None] * self.Q).sum(0)
            self.W = W + self.eta_w * downhill
        if self.learns_tau:
            self._step_tau(tau, delta)
        if self.forcing == "after":
            self._force(d)
        return x

    @torch.no_grad()
    def teach(self, d: Tensor, which: Tensor | None = None) -> None:
        """Take a step, and learn, for each of the desired outputs d, (time, n, sequences).

        Network k is taught the sequence which[k]; without which, each its own, or all the only one. Else a ValueError.
        """
        numbered(d=d, which=d if which is None else which)
        (n, networks), last = self.u.shape, d.shape[-1] if d.ndim else 0
        which = torch.arange(last, device=d.device) if which is None else which
        named = (
            which.dtype == torch.int64
            and which.ndim == 1
            and len(which) in (1, networks)
            and bool(((which >= 0) & (which < last)).all())
        )
        if d.is_complex() or d.ndim != 3 or d.shape[1] != n or not named:
            got = f"d {tuple(d.shape)}, which {short(which.tolist())}"
            raise ValueError(f"d must be (time, {n}, sequences), and which name one or {networks} of these, got {got}")
        if self.u.is_cpu and "exact" not in (self.tau_gradient, self.weight_gradient):
            self._run(d.to(self.u), which.expand(self.u.shape[1:]), self.u.new_empty(0, *self.u.shape))
        else:
            for d_t in d:
                self.step(d_t.index_select(-1, which))

    @torch.no_grad()
    def run(self, steps: int) -> Tensor:
        """Take so many steps without a teacher; return the outputs x, (time, n, networks)."""
        at_least(0, steps=steps)
        x = self.u.new_empty(steps, *self.u.shape)
        if self.u.is_cpu:
            self._run(x[:0], torch.zeros(x.shape[2:], dtype=torch.int64), x)
        else:
            for x_t in x:
                x_t.copy_(self.step())
        return x

    def _run(self, d: Tensor, which: Tensor, x: Tensor) -> None:
        """Take compiled steps."""
        parts, rates = [self.W.flatten(0, 1), self.tau, self.u, self.x], (self.eta_w, self.eta_tau, self.eta_u)
        if len(d):
            parts += [self.T, self.a, self.touched[None], *(eta.expand(1, len(self.touched)) for eta in rates)]
        state, how = torch.cat(parts), (self.learns_w, self.learns_tau, self.forces, self.forcing == "before")
        arrays = [t.contiguous().numpy() for t in (state, d, which, x)]
        with compiling(f"online learning for {state.dtype}"):
            _steps(*arrays, len(self.u), self.dt, UPDATES.index(self.update), how)
        W, self.tau, self.u, self.x, *learned = state.split([len(part) for part in parts])
        self.W = W.unflatten(0, self.W.shape[:2])
        if len(d):
            self.T, self.a, touched, *_ = learned
            self.touched = touched[0] != 0

    def restart(self, u: Tensor) -> None:
        """Set the internal states, (n, networks), and keep what was learned."""
        self.u = u.expand_as(self.u).clone()
        self.x = torch.tanh(self.u)

    def _accumulate(self, W: Tensor, tau: Tensor, alpha: Tensor, change: Tensor, x_before: Tensor) -> None:
        """Carry the sensitivities of the state one step on."""
        if self.tau_gradient == "local":
            self.a = (1 - alpha) * self.a - change / tau  # Eq. 11
        if "exact" not in (self.tau_gradient, self.weight_gradient):
            return
        slope = 1 - x_before * x_before
        J = self.eye + alpha[:, None] * (W * slope - self.eye)  # J[k, l] = du_k,t / du_l,t-1
        if self.tau_gradient == "exact":
            self.P = (J[:, :, None] * self.P).sum(1) - (change / tau)[:, None] * self.eye
        if self.weight_gradient == "exact":
            own = (alpha[:, None] * self.eye)[:, :, None] * x_before  # [k, j, i]: only w_ki acts on u_k at once
            self.Q = (J[:, :, None, None] * self.Q).sum(1) + own

    def _step_tau(self, tau: Tensor, delta: Tensor) -> None:
        """Move the time constants down the error, and keep them within `BOUNDS`."""
        downhill = delta * self.a if self.tau_gradient == "local" else (delta[:, None] * self.P).sum(0)
        if self.update == "log":
            moved = self.T + self.eta_tau * tau * downhill  # Eq. 12
            self.T = held = moved.clamp(*LOG_BOUNDS)
            self.tau = held.exp()
        else:
            gain = tau**2 if self.update == "scaled" else 1  # Eq. 15, Eq. 7
            moved = tau + self.eta_tau * gain * downhill
            self.tau = held = moved.clamp(*BOUNDS)
        self.touched |= (held != moved).any(0)  # true of NaN too

    def _force(self, d: Tensor) -> None:
        """Draw the state towards the one that would put out d."""
        if not self.forces:
            return
        pull = (d - self.x) / (1 - self.x * self.x)
        if "exact" in (self.tau_gradient, self.weight_gradient):
            through = 1 - self.eta_u + 2 * self.eta_u * self.x * pull  # d(forced u) / du
            if self.tau_gradient == "exact":
                self.P = through[:, None] * self.P
            if self.weight_gradient == "exact":
                self.Q = through[:, None, None] * self.Q
        self.u = self.u + self.eta_u * pull  # Eq. 16
        self.x = torch.tanh(self.u)


@numba.njit(**COMPILE)
def _held(h, bounds):  # type: ignore[no-untyped-def]
    """Return h within bounds; NaN stays."""
    low, high = bounds
    h = where_negative(h - low, low, h)
    return where_negative(high - h, high, h)


@numba.njit(**COMPILE)
def _draw(s, n, eta_u, u, x, d):  # type: ignore[no-untyped-def]
    """Draw the states in s towards those that would put out d."""
    for j in range(n):
        u_j, x_j = load(s, u + j), load(s, x + j)
        u_j = u_j + load(s, eta_u) * ((load(s, d + j) - x_j) / (1 - x_j * x_j))  # Eq. 16
        store(s, u + j, u_j)
        store(s, x + j, tanh(u_j))


@numba.njit(**COMPILE, cache=True)
def _steps(state, desired, which, outputs, n, dt, update, how):  # type: ignore[no-untyped-def]
    """Take the steps of `OnlineLearner`, eight networks at a time; learn where there are desired outputs.

    The rows of a state are W, tau, u, x, and then T, a, one that leaves 0 once a tau is held or NaN, and three rates.
    A loop over neurons does a part of a step: what one of them does need not wait for another then.
    """
    (rows, networks), (learns_w, learns_tau, forces, before), taught = state.shape, how, len(desired) > 0
    tau = n * n
    u, x, T, a, touched = tau + n, tau + 2 * n, tau + 3 * n, tau + 4 * n, tau + 5 * n
    eta_w, eta_tau, eta_u = touched + 1, touched + 2, touched + 3
    rate, x_before, d = rows, rows + n, rows + 2 * n  # rate: 1 / tau
    room, sequence = np.empty((rows + 3 * n + 1) * LANES, state.dtype), np.empty(LANES, np.uint64)
    s = room[-room.ctypes.data % (LANES * room.itemsize) // room.itemsize :]  # Lanes across cache lines are slow
    for first in range(0, networks, LANES):
        for lane in range(LANES):
            network = min(first + lane, networks - 1)
            sequence[lane] = which[network]
            for row in range(rows):
                s[row * LANES + lane] = state[row, network]
        for j in range(n):
            store(s, rate + j, 1 / load(s, tau + j))
        for t in range(len(desired) + len(outputs)):
            for j in range(n):
                store(s, x_before + j, load(s, x + j))
            for j in range(n if taught else 0):
                wanted, given = s[(d + j) * LANES :], desired[t, j]
                for lane in range(LANES):
                    wanted[lane] = given[sequence[lane]]
            for j in range(n):
                u_j, rate_j = load(s, u + j), load(s, rate + j)
                pull = -1 * u_j
                for i in range(n):
                    pull = pull + load(s, j * n + i) * load(s, x_before + i)
                change = dt * rate_j * pull  # Eq. 8
                u_j = u_j + change  # Eq. 2
                store(s, u + j, u_j)
                store(s, x + j, tanh(u_j))
                if taught:
                    store(s, a + j, (1 - dt * rate_j) * load(s, a + j) - rate_j * change)  # Eq. 11
            if not taught:
                for j in range(n):
                    for lane in range(min(LANES, networks - first)):
                        outputs[t, j, first + lane] = s[(x + j) * LANES + lane]
                continue
            if forces and before:
                _draw(s, n, eta_u, u, x, d)
            for j in range(n):
                x_j, tau_j = load(s, x + j), load(s, tau + j)
                delta = (load(s, d + j) - x_j) * (1 - x_j * x_j)  # -dE/du
                if learns_w:
                    step = load(s, eta_w) * (delta * (dt * load(s, rate + j)))
                    for i in range(n):
                        store(s, j * n + i, load(s, j * n + i) + step * load(s, x_before + i))  # Eq. 6
                if learns_tau:
                    step = load(s, eta_tau) * (delta * load(s, a + j))
                    if update == 0:
                        moved = load(s, T + j) + tau_j * step  # Eq. 12
                        held = _held(moved, LOG_BOUNDS)
                        small = exp_of_negative(held)
                        large = 1 / small
                        store(s, T + j, held)
                        store(s, tau + j, where_negative(held, small, large))
                        store(s, rate + j, where_negative(held, large, small))
                    else:
                        moved = tau_j + (tau_j * tau_j * step if update == 1 else step)  # Eq. 15, Eq. 7
                        held = _held(moved, BOUNDS)
                        store(s, tau + j, held)
                        store(s, rate + j, 1 / held)
                    store(s, touched, load(s, touched) + (held - moved) * (held - moved))
            if forces and not before:
                _draw(s, n, eta_u, u, x, d)
        for lane in range(min(LANES, networks - first)):
            for row in range(rows):
                state[row, first + lane] = s[row * LANES + lane]


def ready() -> None:
    """Compile what `OnlineLearner.teach` and `run` call, or find it compiled."""
    one = torch.ones(1, 1, dtype=torch.float64)
    OnlineLearner(one[None], one, one).run(1)
