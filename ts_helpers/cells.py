"""One step of each cell of the book, and `unroll`, which makes a sequence of them."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ts_helpers.engine.gated import gated_recurrence, leaky_rnn_recurrence
from ts_helpers.engine.recurrence import applies_to, aru_network, aru_recurrence, leaky_recurrence
from ts_helpers.timescales import Dial, set_dial


class Cell(Protocol):
    """What `unroll` needs of a cell."""

    def __call__(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and a state (batch, hidden) to the next state."""

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the state before the first step, for an input x (batch, input)."""


@runtime_checkable
class HasActivity(Protocol):
    """A cell whose units show something else than their state."""

    def activity(self, state: Tensor) -> Tensor:
        """Map states (..., state) to what the units show (..., hidden)."""


@runtime_checkable
class HasSequence(Protocol):
    """A cell that can also make all its steps in one call, the same numbers sooner."""

    def applies_to(self, x: Tensor) -> bool:
        """True where it can do so for the input x."""

    def sequence(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (time, batch, input) and the state before the first step to the states after each, stacked."""


@runtime_checkable
class HasOutputs(HasSequence, Protocol):
    """A cell that can do so together with its read-out."""

    def outputs(self, x: Tensor, state: Tensor, V: Tensor, c: Tensor) -> Tensor:
        """Map x (time, batch, input) and the state before the first step to V a + c for each activity a."""


class CTRNNCell(nn.Module):
    r"""Continuous-time neurons, each with its own time constant, stepped by forward Euler.

    .. math::
        u_t = (1 - \alpha) \odot u_{t-1} + \alpha \odot \big( W \tanh(u_{t-1}) + U x_t \big),
        \qquad \alpha = \Delta t / \tau

    The output of a neuron is ``tanh(u)``.

    Source: Matsuki & Shibata (2018), Eqs. 1-3. Departure: they have no input; with ``input_size = 0`` neither
    has the cell.

    Args:
        input_size: features of ``x_t``; 0 for a network that only listens to itself.
        hidden_size: neurons.
        alpha: initial leak rate, one number or one a neuron.
        dial: where alpha comes from, see `ts_helpers.timescales`.
        generator: draws the weights, normal with standard deviation ``1 / sqrt(fan-in)``.

    Raises:
        ValueError: a size is negative or no neuron is asked for; alpha lies outside the dial's limits.
    """

    alpha: Any  # reads as a Tensor; a number can be assigned too

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: float | Tensor,
        dial: Dial,
        *,
        generator: torch.Generator,
    ):
        super().__init__()
        if input_size < 0 or hidden_size < 1:
            raise ValueError(f"sizes must be input >= 0 and hidden >= 1, got {input_size=}, {hidden_size=}")
        self.U = nn.Parameter(torch.randn(hidden_size, input_size, generator=generator) / max(input_size, 1) ** 0.5)
        self.W = nn.Parameter(torch.randn(hidden_size, hidden_size, generator=generator) / hidden_size**0.5)
        self.alpha = nn.Parameter(torch.as_tensor(alpha, dtype=torch.get_default_dtype()).expand(hidden_size).clone())
        set_dial(self, "alpha", dial)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Map x (batch, input) and u (batch, hidden) to the next u."""
        drive = F.linear(torch.tanh(u), self.W) + F.linear(x, self.U)
        return (1 - self.alpha) * u + self.alpha * drive

    def activity(self, u: Tensor) -> Tensor:
        """Return the outputs of states (..., hidden)."""
        return torch.tanh(u)

    def applies_to(self, x: Tensor) -> bool:
        """True where `sequence` can take the place of a loop."""
        return applies_to(x)

    def sequence(self, x: Tensor, u: Tensor) -> Tensor:
        """Map x (time, batch, input) and u (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return leaky_recurrence(x, self.U, self.W, torch.zeros_like(self.W[0]), self.alpha, u)

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, hidden) for an input x (batch, input)."""
        return x.new_zeros(len(x), len(self.W))


class MTRNNCell(nn.Module):
    r"""A stack of layers, each with one time constant: the multiple time scales recurrent neural network.

    .. math::
        h^k_t = (1 - \alpha_k) h^k_{t-1} + \alpha_k \big( L^k d^{k-1} + S^k d^k_{t-1} + H^k d^{k+1}_{t-1} + b^k \big),
        \qquad d^k = \tanh(h^k), \quad \alpha_k = 1 / \tau_k

    with the input :math:`x_t` in the place of :math:`d^{-1}`, and no :math:`H` at the top. The state is the
    layers' side by side, lowest first.

    Source: Benureau & Tani (2018), Section 2.1. The text does not say whether a layer hears the layer below as it was,
    :math:`d^{k-1}_{t-1}` (``update="simultaneous"``), or as it has just become, :math:`d^{k-1}_t`
    (``"sequential"``, their code).

    Args:
        input_size: features of ``x_t``.
        layers: units of each layer, lowest first.
        tau: initial time constant of each layer, in steps.
        dial: where alpha comes from, see `ts_helpers.timescales`.
        update: "simultaneous" or "sequential".
        generator: draws weights and biases, uniform within ``1 / sqrt(fan-in)`` of 0 as in `torch.nn.Linear`.

    Raises:
        ValueError: sizes below 1, no layer, not one tau a layer, ``1 / tau`` outside the dial's limits, or an unknown
            update.
    """

    alpha: Any  # (layers,); reads as a Tensor, a number can be assigned too

    def __init__(
        self,
        input_size: int,
        layers: Sequence[int],
        tau: Sequence[float],
        dial: Dial,
        *,
        update: Literal["simultaneous", "sequential"] = "simultaneous",
        generator: torch.Generator,
    ):
        super().__init__()
        if input_size < 1 or not layers or min(layers) < 1:
            raise ValueError(f"input_size and every layer must be 1 or more, got {input_size=}, {layers=}")
        if len(tau) != len(layers):
            raise ValueError(f"tau must have one number a layer, {len(layers)}, got {len(tau)}")
        if update not in ("simultaneous", "sequential"):
            raise ValueError(f"update must be simultaneous or sequential, got {update!r}")
        self.layers, self.update = tuple(layers), update

        def draw(rows: int, columns: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(rows, columns, generator=generator) - 1) / fan_in**0.5)

        below = (input_size, *layers[:-1])
        self.L = nn.ParameterList(draw(n, m, m) for n, m in zip(layers, below, strict=True))
        self.S = nn.ParameterList(draw(n, n, n) for n in layers)
        self.H = nn.ParameterList(draw(n, m, m) for n, m in pairwise(layers))
        self.b = nn.ParameterList(draw(1, n, n)[0].detach() for n in layers)
        self.alpha = nn.Parameter(1 / torch.as_tensor(tau, dtype=torch.get_default_dtype()))
        set_dial(self, "alpha", dial)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, all layers) to the next h."""
        below, new = x, []
        before = h.split(self.layers, -1)
        d = [torch.tanh(h_k) for h_k in before]
        for k, h_k in enumerate(before):
            drive = F.linear(below, self.L[k], self.b[k]) + F.linear(d[k], self.S[k])
            if k + 1 < len(d):
                drive = drive + F.linear(d[k + 1], self.H[k])
            new.append((1 - self.alpha[k]) * h_k + self.alpha[k] * drive)
            below = torch.tanh(new[k]) if self.update == "sequential" else d[k]
        return torch.cat(new, -1)

    def activity(self, h: Tensor) -> Tensor:
        """Return the activity of states (..., all layers)."""
        return torch.tanh(h)

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, all layers) for an input x (batch, input)."""
        return x.new_zeros(len(x), sum(self.layers))

    def extra_repr(self) -> str:
        """Tell networks of other layers or updates apart."""
        return f"layers={self.layers}, update={self.update!r}"

    def dense(self) -> Tensor:
        """Return L, S and H as the blocks of one matrix, (all layers, all layers)."""
        rows = []
        for k, n in enumerate(self.layers):
            blocks = {k - 1: self.L[k], k: self.S[k], k + 1: self.H[k] if k < len(self.H) else None}
            row = [blocks.get(j) for j in range(len(self.layers))]
            rows.append([self.b[k].new_zeros(n, m) if c is None else c for c, m in zip(row, self.layers, strict=True)])
        return torch.cat([torch.cat(row, 1) for row in rows])

    def applies_to(self, x: Tensor) -> bool:
        """True where `sequence` can take the place of a loop."""
        return applies_to(x)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, all layers) to the states after each step.

        Simultaneous layers are one leaky recurrence with the dense matrix. So are sequential ones, at half steps:
        layer k takes its step t at half step 2 t + k, when the layers beside it have taken theirs, and rests at
        every other.
        """
        U, b, alpha = self._whole()
        if self.update == "simultaneous":
            return leaky_recurrence(x, U, self.dense(), b, alpha, h)
        steps, rest = len(x), len(self.layers) - 1
        x = F.pad(torch.stack([x, torch.zeros_like(x)], 1).flatten(0, 1)[:-1], (0, 0, 0, 0, 0, rest))
        turn = torch.arange(len(x), device=x.device)[:, None] - torch.arange(len(self.layers), device=x.device)
        moves = (turn >= 0) & (turn < 2 * steps) & (turn % 2 == 0)
        sizes = torch.tensor(self.layers, device=x.device)
        moves = moves.repeat_interleave(sizes, 1, output_size=sum(self.layers))
        halves = leaky_recurrence(x, U, self.dense(), b, alpha * moves, h).split(self.layers, -1)
        return torch.cat([layer[k : k + 2 * steps : 2] for k, layer in enumerate(halves)], -1)

    def outputs(self, x: Tensor, h: Tensor, V: Tensor, c: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, all layers) to V tanh(h) + c after each step.

        Simultaneous layers are adaptive recurrent units whose rate is tanh of their current at once.
        """
        if self.update == "sequential":
            return F.linear(self.activity(self.sequence(x, h)), V, c)
        U, b, alpha = self._whole()
        return aru_network(x, U, self.dense(), b, alpha, torch.ones_like(alpha), h, torch.tanh(h), V, c, f=torch.tanh)

    def _whole(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return U, b and alpha of the one layer that the stack is."""
        sizes = torch.tensor(self.layers, device=self.b[0].device)
        alpha = self.alpha.repeat_interleave(sizes, output_size=sum(self.layers))
        return F.pad(self.L[0], (0, 0, 0, sum(self.layers[1:]))), torch.cat(tuple(self.b)), alpha


class ARUCell(nn.Module):
    r"""Adaptive recurrent units: a current that follows what it hears, and a firing rate that follows the current.

    .. math::
        I_t &= (1 - \alpha_s) \odot I_{t-1} + \alpha_s \odot ( W r_{t-1} + U x_t + b ) \\
        r_t &= (1 - \alpha_r) \odot r_{t-1} + \alpha_r \odot f(I_t)

    The state is (I, r) side by side; a unit shows its rate r. With both alphas 1 the unit is Elman's, with
    ``alpha_r = 1`` a leaky unit whose current is the state.

    Source: Quax, D'Asaro & van Gerven (2020), Eqs. 12 and 13; b is the weight of their constant input 1, and the state
    before the first step is learned, as theirs.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        alpha_s: initial leak rate of the currents: a number, shared by all units, or a tensor (hidden,), one a unit.
        alpha_r: the same of the rates.
        dial: where both alphas come from, see `ts_helpers.timescales`.
        f: activation function; with `torch.sigmoid`, `torch.tanh`, `torch.relu` or `recurrence.identity` a sequence is
            compiled.
        scale: of the weights.
        generator: draws U, W and b, uniform within ``scale / sqrt(fan-in)`` of 0; the fan-in counts input, units and
            the constant 1.

    Raises:
        ValueError: a size is below 1, an alpha has another shape or lies outside the dial's limits.
    """

    alpha_s: Any  # reads as a Tensor; a number can be assigned too
    alpha_r: Any

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha_s: float | Tensor,
        alpha_r: float | Tensor,
        dial: Dial,
        *,
        f: Callable[[Tensor], Tensor] = torch.sigmoid,
        scale: float = 1.0,
        generator: torch.Generator,
    ):
        super().__init__()
        if input_size < 1 or hidden_size < 1:
            raise ValueError(f"sizes must be 1 or more, got {input_size=}, {hidden_size=}")
        self.f = f
        width = scale / (input_size + hidden_size + 1) ** 0.5

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * width)

        self.U, self.W, self.b = draw(hidden_size, input_size), draw(hidden_size, hidden_size), draw(hidden_size)
        self.start = nn.Parameter(torch.zeros(2 * hidden_size))  # I and r before the first step
        for name, alpha, its_dial in (("alpha_s", alpha_s, dial), ("alpha_r", alpha_r, copy.deepcopy(dial))):
            value = torch.as_tensor(alpha, dtype=torch.get_default_dtype())
            if value.shape not in ((), (hidden_size,)):
                raise ValueError(f"{name} must be a number or one for each of {hidden_size} units, got {value.shape}")
            setattr(self, name, nn.Parameter(value.clone()))
            set_dial(self, name, its_dial)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and the state (batch, 2 hidden) to the next state."""
        I, r = state.chunk(2, -1)  # noqa: E741
        I = (1 - self.alpha_s) * I + self.alpha_s * (F.linear(r, self.W) + F.linear(x, self.U, self.b))  # noqa: E741
        r = (1 - self.alpha_r) * r + self.alpha_r * self.f(I)
        return torch.cat([I, r], -1)

    def activity(self, state: Tensor) -> Tensor:
        """Return the rates of states (..., 2 hidden)."""
        return state.chunk(2, -1)[1]

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the learned state (batch, 2 hidden) for an input x (batch, input)."""
        return self.start.expand(len(x), -1)

    def applies_to(self, x: Tensor) -> bool:
        """True where `sequence` can take the place of a loop."""
        return applies_to(x, self.f)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return U, W, b and both leak rates, one a unit."""
        return self.U, self.W, self.b, self.alpha_s.expand_as(self.b), self.alpha_r.expand_as(self.b)

    def sequence(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (time, batch, input) and the state before the first step to the states after each step."""
        I, r = state.chunk(2, -1)  # noqa: E741
        return torch.cat(aru_recurrence(x, *self.weights(), I, r, f=self.f), -1)

    def outputs(self, x: Tensor, state: Tensor, V: Tensor, c: Tensor) -> Tensor:
        """Map x (time, batch, input) and the state before the first step to V r + c after each step."""
        I, r = state.chunk(2, -1)  # noqa: E741
        return aru_network(x, *self.weights(), I, r, V, c, f=self.f)


class ARUStack(nn.Module):
    """Two layers of adaptive recurrent units; each hears the other as it was a step ago, and the lower one the input.

    The state is the currents of the lower and the upper layer, then the rates of both; what is shown is the rates.

    Source: Quax, D'Asaro & van Gerven (2020), Fig. 8A, "feedforward and feedback connections between both layers".

    Args:
        lower: hears the input and the upper layer, side by side.
        upper: hears the lower layer.

    Raises:
        ValueError: the layers do not fit together.
    """

    def __init__(self, lower: ARUCell, upper: ARUCell):
        super().__init__()
        n, m = len(lower.b), len(upper.b)
        if lower.U.shape[1] <= m:
            raise ValueError(f"lower must hear the input and {m} upper units, got {lower.U.shape[1]} features")
        if upper.U.shape[1] != n:
            raise ValueError(f"upper must hear {n} lower units, got {upper.U.shape[1]} features")
        if upper.f is not lower.f:
            raise ValueError(f"upper must have the activation function of lower, {lower.f!r}, got {upper.f!r}")
        self.lower, self.upper, self.sizes = lower, upper, [n, m]

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and the state (batch, 2 units) to the next state."""
        I_1, I_2, r_1, r_2 = state.split(2 * self.sizes, -1)
        lower = self.lower(torch.cat([x, r_2], -1), torch.cat([I_1, r_1], -1)).chunk(2, -1)
        upper = self.upper(r_1, torch.cat([I_2, r_2], -1)).chunk(2, -1)
        return torch.cat([lower[0], upper[0], lower[1], upper[1]], -1)

    def activity(self, state: Tensor) -> Tensor:
        """Return the rates of states (..., 2 units), the lower layer's first."""
        return state.chunk(2, -1)[1]

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the learned state (batch, 2 units) for an input x (batch, input)."""
        lower, upper = self.lower.start.chunk(2), self.upper.start.chunk(2)
        return torch.cat([lower[0], upper[0], lower[1], upper[1]]).expand(len(x), -1)

    def applies_to(self, x: Tensor) -> bool:
        """True where `sequence` can take the place of a loop."""
        return self.lower.applies_to(x)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return U, W, b and both leak rates of the one layer that the stack is, its weights made of blocks."""
        m = self.sizes[1]
        lower, upper = self.lower.weights(), self.upper.weights()
        U, feedback = lower[0].split([lower[0].shape[1] - m, m], 1)
        W = torch.cat([torch.cat([lower[1], feedback], 1), torch.cat([upper[0], upper[1]], 1)])
        b, alpha_s, alpha_r = (torch.cat(both) for both in zip(lower[2:], upper[2:], strict=True))
        return F.pad(U, (0, 0, 0, m)), W, b, alpha_s, alpha_r

    def sequence(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (time, batch, input) and the state before the first step to the states after each step."""
        I, r = state.chunk(2, -1)  # noqa: E741
        return torch.cat(aru_recurrence(x, *self.weights(), I, r, f=self.lower.f), -1)

    def outputs(self, x: Tensor, state: Tensor, V: Tensor, c: Tensor) -> Tensor:
        """Map x (time, batch, input) and the state before the first step to V r + c after each step."""
        I, r = state.chunk(2, -1)  # noqa: E741
        return aru_network(x, *self.weights(), I, r, V, c, f=self.lower.f)


class RNNCell(nn.Module):
    r"""Units that take over what they hear.

    .. math:: h_t = \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eq. 2, where the new state is :math:`h_{t+1}`. The text gives no initial weights;
    these are those of `torch.nn.RNN`.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        generator: draws U, W and b, uniform within ``1 / sqrt(hidden_size)`` of 0.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int, *, generator: torch.Generator):
        super().__init__()
        if input_size < 1 or hidden_size < 1:
            raise ValueError(f"sizes must be 1 or more, got {input_size=}, {hidden_size=}")
        self.U, self.W, self.b = _draw(hidden_size, input_size, hidden_size, generator)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        return torch.tanh(F.linear(x, self.U, self.b) + F.linear(h, self.W))

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, hidden) for an input x (batch, input)."""
        return x.new_zeros(len(x), len(self.W))

    def applies_to(self, x: Tensor) -> bool:
        """True where `sequence` can take the place of a loop."""
        return applies_to(x)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return leaky_rnn_recurrence(x, self.U, self.W, self.b, torch.ones_like(self.b), h)


class LeakyRNNCell(RNNCell):
    r"""Units that take over a part of what they hear.

    .. math:: h_t = (1 - \alpha) \odot h_{t-1} + \alpha \odot \tanh(U x_t + W h_{t-1} + b)

    The units of `CTRNNCell` have their tanh elsewhere: they hear each other through it.

    Source: Tallec & Ollivier (2018), Eq. 5, which has one alpha; their experiments have one a unit (Section 3).

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        alpha: initial leak rate: a number, shared by all units, or a tensor (hidden,), one a unit.
        dial: where alpha comes from, see `ts_helpers.timescales`.
        generator: draws the weights, see `RNNCell`.

    Raises:
        ValueError: a size is below 1, alpha has another shape or lies outside the dial's limits.
    """

    alpha: Any  # reads as a Tensor; a number can be assigned too

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        alpha: float | Tensor,
        dial: Dial,
        *,
        generator: torch.Generator,
    ):
        super().__init__(input_size, hidden_size, generator=generator)
        value = torch.as_tensor(alpha, dtype=torch.get_default_dtype())
        if value.shape not in ((), (hidden_size,)):
            raise ValueError(f"alpha must be a number or one for each of {hidden_size} units, got {tuple(value.shape)}")
        self.alpha = nn.Parameter(value.clone())
        set_dial(self, "alpha", dial)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        return (1 - self.alpha) * h + self.alpha * super().forward(x, h)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return leaky_rnn_recurrence(x, self.U, self.W, self.b, self.alpha.expand_as(self.b), h)


class GatedCell(RNNCell):
    r"""Units whose leak is a gate, opened and closed by what the network hears.

    .. math::
        g_t &= \sigma(U_g x_t + W_g h_{t-1} + b_g) \\
        h_t &= (1 - g_t) \odot h_{t-1} + g_t \odot \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eqs. 9 and 10, one gate a unit, as in their experiments; ``shared`` makes it
    Eq. 8. The gates' bias, drawn as the other weights are, is what their Section 2 sets by the range of time scales.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        shared: one gate for all units, in the place of one a unit.
        generator: draws the weights and then the gates' weights, see `RNNCell`.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, input_size: int, hidden_size: int, *, shared: bool = False, generator: torch.Generator):
        super().__init__(input_size, hidden_size, generator=generator)
        self.U_g, self.W_g, self.b_g = _draw(1 if shared else hidden_size, input_size, hidden_size, generator)

    def gate(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the gates (..., gates) for inputs x (..., input) and the states h (..., hidden) before."""
        return torch.sigmoid(F.linear(x, self.U_g, self.b_g) + F.linear(h, self.W_g))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        g = self.gate(x, h)
        return (1 - g) * h + g * super().forward(x, h)

    def sequence(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (time, batch, input) and h (batch, hidden) to the states after each step, (time, batch, hidden)."""
        return gated_recurrence(x, self.U, self.W, self.b, self.U_g, self.W_g, self.b_g, h)


def _draw(rows: int, input_size: int, hidden_size: int, generator: torch.Generator) -> list[nn.Parameter]:
    """Return weights from the input and from the units, and a bias, for so many units or gates."""
    shapes, width = ((rows, input_size), (rows, hidden_size), (rows,)), hidden_size**-0.5
    return [nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * width) for shape in shapes]


class GRU(nn.Module):
    r"""A gated recurrent unit with the parameters of torch's own `GRUCell`, and a learned initial state.

    .. math::
        g &= \sigma(U_g x_t + W_g h_{t-1} + b_g), \quad z = \sigma(U_z x_t + W_z h_{t-1} + b_z) \\
        n &= \tanh\big(U_n x_t + b_n + g \odot (W_n h_{t-1} + c_n)\big), \quad h_t = (1 - z) \odot n + z \odot h_{t-1}

    Written out, because `torch.func.vmap` cannot go into torch's.

    Args:
        input_size: features of ``x_t``.
        hidden_size: units.
        generator: draws the weights, uniform within ``1 / sqrt(hidden_size)`` of 0 as torch does.
    """

    def __init__(self, input_size: int, hidden_size: int, *, generator: torch.Generator):
        super().__init__()
        self.gru = nn.GRUCell(input_size, hidden_size)
        with torch.no_grad():
            for p in self.gru.parameters():
                p.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
        self.start = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        from_x = F.linear(x, self.gru.weight_ih, self.gru.bias_ih).chunk(3, -1)
        from_h = F.linear(h, self.gru.weight_hh, self.gru.bias_hh).chunk(3, -1)
        g, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
        n = torch.tanh(from_x[2] + g * from_h[2])
        return n + z * (h - n)

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the learned state (batch, hidden) for an input x (batch, input)."""
        return self.start.expand(len(x), -1)


class Network(nn.Module):
    r"""A cell, or two stacked, with a linear read-out of the first units.

    .. math:: y_t = V r_t + c

    Source: Quax, D'Asaro & van Gerven (2020), Eqs. 20 and 21; c is the weight of their constant input 1.

    Args:
        cell: what is unrolled.
        units: of the cell.
        read: how many of them are read, the first ones; None for all.
        features: of the output.
        scale: of the weights.
        generator: draws V and c, uniform within ``scale / sqrt(read + 1)`` of 0.
    """

    def __init__(
        self,
        cell: ARUCell | ARUStack | GRU,
        units: int,
        features: int,
        *,
        read: int | None = None,
        scale: float = 1.0,
        generator: torch.Generator,
    ):
        super().__init__()
        self.cell, self.unread = cell, units - (read or units)
        width = scale / ((read or units) + 1) ** 0.5
        self.V = nn.Parameter((2 * torch.rand(features, read or units, generator=generator) - 1) * width)
        self.c = nn.Parameter((2 * torch.rand(features, generator=generator) - 1) * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (time, batch, input) to y (time, batch, features)."""
        return unroll(self.cell, x, read_out=(F.pad(self.V, (0, self.unread)), self.c))


def unroll(
    cell: Cell, x: Tensor, state: Tensor | None = None, *, read_out: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Step a cell through a sequence.

    Args:
        cell: a module with ``forward(x, state) -> state`` and ``initial_state(x)``.
        x: (time, batch, input).
        state: (batch, state) before the first step; the cell's own if not given.
        read_out: V (features, hidden) and c (features,), to read the activity of the units out: what the cell's
            ``activity`` makes of a state, or the state itself where it has none.

    Returns:
        The states after each step, (time, batch, state), or with a read-out ``V a + c`` of each activity ``a``,
        (time, batch, features).

    Raises:
        ValueError: ``x`` has not three dimensions, or no time step.
    """
    if x.ndim != 3 or len(x) == 0:
        raise ValueError(f"x must have shape (time >= 1, batch, input), got {tuple(x.shape)}")
    with parametrize.cached():  # a dial is turned once a sequence, not once a step
        if state is None:
            state = cell.initial_state(x[0])
        if isinstance(cell, HasSequence) and cell.applies_to(x):
            if read_out is not None and isinstance(cell, HasOutputs):
                return cell.outputs(x, state, *read_out)
            states = cell.sequence(x, state)
        else:
            steps = []
            for x_t in x.unbind(0):  # x[t] would cost O(time^2) in the backward pass
                state = cell(x_t, state)
                steps.append(state)
            states = torch.stack(steps)
    if read_out is None:
        return states
    return F.linear(cell.activity(states) if isinstance(cell, HasActivity) else states, *read_out)
