"""One step of each cell of the book, `unroll`, which makes a sequence of them, and a network of a cell and a read-out.

No training, no dial (`timescales`), and no compiled code (`engine`, which `unroll` alone calls). Of all cells
``input_size`` and ``hidden_size`` are features of ``x_t`` and units, 1 or more; ``alpha`` is the initial leak rate, a
number for all units or a tensor (hidden,), and ``dial`` where it comes from, see `timescales`; ``generator`` draws the
weights, ``scale``, up to 1e30, is a factor on them. Other sizes, shapes and numbers, or an alpha outside the dial's
limits, raise a ValueError; other types may raise a TypeError.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ts_helpers._check import as_tensor, at_least, instance, one_of, within
from ts_helpers.engine import compiled
from ts_helpers.timescales import Dial, set_dial

# A module that maps x (batch, input) and a state (batch, state) to the next state, and ``initial_state(x)``, the state
# before the first step; ``activity(state)``, if it has one, maps states (..., state) to what is read.
Cell = Any


def unroll(
    cell: Cell, x: Tensor, state: Tensor | None = None, *, read_out: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Step a cell through x (time >= 1, batch, input), from a state (batch, state) or its own.

    Return states after each step, (time, batch, state), or with a read-out of V (features, hidden) and c (features,)
    ``V a + c``, (time, batch, features), of each activity a (or state, see `Cell`).
    """
    if not callable(cell) or not (hasattr(cell, "initial_state") or isinstance(state, Tensor)):
        raise TypeError(f"cell must be a module with an initial_state(x), got {type(cell).__name__}")
    if read_out is not None and (not isinstance(read_out, tuple) or len(read_out) != 2):
        raise TypeError(f"read_out must be None or two Tensors, V and c, got {type(read_out).__name__}")
    V, c = read_out or (x, x)
    instance(Tensor, "a Tensor", x=x, V=V, c=c, state=x if state is None else state)
    if x.ndim != 3 or len(x) == 0:
        raise ValueError(f"x must have shape (time >= 1, batch, input), got {tuple(x.shape)}")
    if state is not None and state.ndim != 2:
        raise ValueError(f"state must have shape (batch, state), got {tuple(state.shape)}")
    with parametrize.cached():  # a dial is evaluated once a sequence, not once a step
        state = cell.initial_state(x[0]) if state is None else state
        known = cell._recurrence(state) if hasattr(cell, "_recurrence") else ()
        if known and (made := compiled(x, read_out, *known)) is not None:
            return made
        states = torch.stack([state := cell(x_t, state) for x_t in x.unbind(0)])  # x[t]: O(time^2) backward
    shown = cell.activity(states) if read_out and hasattr(cell, "activity") else states
    return F.linear(shown, *read_out) if read_out else states


def identity(h: Tensor) -> Tensor:
    """Return h: the activation of a linear unit."""
    return h


def _uniform(width: float, units: int, *sizes: int, generator: Generator) -> list[nn.Parameter]:
    """Draw a matrix (units, size) for each of the sizes, and biases (units,), all within ``width`` of 0."""
    shapes = *((units, size) for size in sizes), (units,)
    return [nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * width) for shape in shapes]


def _leak(name: str, alpha: float | Tensor, units: int) -> nn.Parameter:
    """Return a leak rate, shared by all units or one a unit."""
    value = as_tensor(name, alpha, dtype=torch.get_default_dtype(), device="cpu")
    if value.shape not in ((), (units,)):
        raise ValueError(f"{name} must be a number or one for each of {units} units, got {tuple(value.shape)}")
    return nn.Parameter(value.clone())


def _leaky(layers: tuple[int, ...], h: Tensor, U: Tensor, W: Tensor, b: Tensor, alpha: Tensor) -> tuple[Any, ...]:
    """Return leaky units as adaptive ones whose rate is tanh of their current at once."""
    return slice(len(W)), "aru", torch.tanh, layers, h, torch.tanh(h), U, W, b, alpha, torch.ones_like(alpha)


class _Step(nn.Module):
    """A step that says what does not fit, where torch finds that it cannot be taken."""

    features: int  # of x

    def __call__(self, x: Tensor, state: Tensor) -> Tensor:
        """Take a step."""
        try:
            return super().__call__(x, state)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
            instance(Tensor, "a Tensor", x=x, state=state)
            like: Tensor = next(self.parameters())
            units: int = self.initial_state(like.new_zeros(1, 0)).shape[1]  # type: ignore[operator]
            for name, tensor, size in (("x", x, self.features), ("state", state, units)):
                if tensor.shape != (*x.shape[:1], size) or (tensor.dtype, tensor.device) != (like.dtype, like.device):
                    rule = f"have shape (batch, {size}) and be {like.dtype} on {like.device}"
                    got = f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}"
                    raise ValueError(f"{name} must {rule}, got {got}") from None
            raise


class CTRNNCell(_Step):
    r"""Continuous-time neurons, each with its own time constant, stepped by forward Euler.

    .. math::
        u_t = (1 - \alpha) \odot u_{t-1} + \alpha \odot \big( W \tanh(u_{t-1}) + U x_t \big),
        \qquad \alpha = \Delta t / \tau

    Source: Matsuki & Shibata (2018), Eqs. 1-3. Departure: they have no input; with ``input_size = 0`` neither has the
    cell. Weights are drawn normal with standard deviation ``1 / sqrt(fan-in)``.
    """

    def __init__(self, input_size: int, hidden_size: int, alpha: float | Tensor, dial: Dial, *, generator: Generator):
        super().__init__()
        at_least(0, input_size=input_size, generator=generator)
        at_least(1, hidden_size=hidden_size)
        self.features = input_size
        self.U = nn.Parameter(torch.randn(hidden_size, input_size, generator=generator) / max(input_size, 1) ** 0.5)
        self.W = nn.Parameter(torch.randn(hidden_size, hidden_size, generator=generator) / hidden_size**0.5)
        self.alpha: Any = nn.Parameter(_leak("alpha", alpha, hidden_size).detach().expand(hidden_size).clone())
        set_dial(self, "alpha", dial)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Map x (batch, input) and u (batch, hidden) to the next u."""
        drive = F.linear(torch.tanh(u), self.W) + F.linear(x, self.U)
        return (1 - self.alpha) * u + self.alpha * drive

    activity = staticmethod(torch.tanh)  # the outputs of neurons, for states (..., hidden)

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, hidden) for an input x (batch, input)."""
        return x.new_zeros(len(x), len(self.W))

    def _recurrence(self, u: Tensor) -> tuple[Any, ...]:
        return _leaky((), u, self.U, self.W, torch.zeros_like(self.W[0]), self.alpha)


class MTRNNCell(_Step):
    r"""A stack of layers, each with one time constant: the multiple time scales recurrent neural network.

    .. math::
        h^k_t = (1 - \alpha_k) h^k_{t-1} + \alpha_k \big( L^k d^{k-1} + S^k d^k_{t-1} + H^k d^{k+1}_{t-1} + b^k \big),
        \qquad d^k = \tanh(h^k), \quad \alpha_k = 1 / \tau_k

    with the input :math:`x_t` in the place of :math:`d^{-1}`, and no :math:`H` at the top. The state is the layers'
    side by side, lowest first. Source: Benureau & Tani (2018), Section 2.1. The text does not say which activity of
    the layer below a layer receives, that of the step before, :math:`d^{k-1}_{t-1}` (``update="simultaneous"``), or the
    new one, :math:`d^{k-1}_t` (``"sequential"``, their code). Each layer has a tau in steps; ``alpha`` is (layers,).
    Weights and biases are drawn uniform within ``1 / sqrt(fan-in)`` of 0, as in `torch.nn.Linear`.
    """

    def __init__(
        self, input_size: int, layers: Sequence[int], tau: Sequence[float], dial: Dial, *,
        update: Literal["simultaneous", "sequential"] = "simultaneous", generator: Generator,
    ):  # fmt: skip
        super().__init__()
        instance(Sequence, "a sequence", layers=layers)
        for n in layers or (0,):
            at_least(1, input_size=input_size, layers=n, generator=generator)
        given = as_tensor("tau", tau, dtype=torch.get_default_dtype(), device="cpu")
        if given.shape != (len(layers),):
            raise ValueError(f"tau must have one number a layer, {len(layers)}, got shape {tuple(given.shape)}")
        one_of(("simultaneous", "sequential"), update=update)
        self.features, self.layers, self.update = input_size, tuple(layers), update

        def draw(fan_in: int, *shape: int) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) / fan_in**0.5)

        below = (input_size, *layers[:-1])
        self.L = nn.ParameterList(draw(m, n, m) for n, m in zip(layers, below, strict=True))
        self.S = nn.ParameterList(draw(n, n, n) for n in layers)
        self.H = nn.ParameterList(draw(m, n, m) for n, m in pairwise(layers))
        self.b = nn.ParameterList(draw(n, n) for n in layers)
        self.alpha: Any = nn.Parameter(1 / given)
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

    activity = staticmethod(torch.tanh)  # d, for states h (..., all layers)

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, all layers) for an input x (batch, input)."""
        return x.new_zeros(len(x), sum(self.layers))

    def dense(self) -> Tensor:
        """Return L, S and H as the blocks of one matrix, (all layers, all layers)."""
        rows, L, H = [], self.L, list(self.H)
        for k, S_k in enumerate(self.S):
            row, left = torch.cat([*[L[k]] * (k > 0), S_k, *H[k : k + 1]], 1), sum(self.layers[: max(k - 1, 0)])
            rows.append(F.pad(row, (left, sum(self.layers) - left - row.shape[1])))
        return torch.cat(rows)

    def _recurrence(self, h: Tensor) -> tuple[Any, ...]:
        alpha = torch.cat([a.expand(n) for a, n in zip(self.alpha, self.layers, strict=True)])
        U = F.pad(self.L[0], (0, 0, 0, sum(self.layers[1:])))
        layers, b = self.layers if self.update == "sequential" else (), torch.cat(tuple(self.b))
        return _leaky(layers, h, U, self.dense(), b, alpha)


class ARUCell(_Step):
    r"""Adaptive recurrent units: a current that follows the input, and a firing rate that follows the current.

    .. math::
        I_t &= (1 - \alpha_s) \odot I_{t-1} + \alpha_s \odot ( W r_{t-1} + U x_t + b ) \\
        r_t &= (1 - \alpha_r) \odot r_{t-1} + \alpha_r \odot f(I_t)

    The state is (I, r) side by side, the activity r. With both alphas 1 the unit is Elman's, with ``alpha_r = 1`` a
    leaky unit whose current is the state.
    Source: Quax, D'Asaro & van Gerven (2020), Eqs. 12 and 13; b is the weight of their constant input 1, and the state
    before the first step is learned, as theirs. U, W and b are drawn uniform within ``scale / sqrt(fan-in)`` of 0, the
    fan-in being input, units and 1. A stack of them with f `torch.sigmoid`, `tanh`, `relu` or `identity` is compiled.
    """

    def __init__(
        self, input_size: int, hidden_size: int, alpha_s: float | Tensor, alpha_r: float | Tensor, dial: Dial, *,
        f: Callable[[Tensor], Tensor] = torch.sigmoid, scale: float = 1.0, generator: Generator,
    ):  # fmt: skip
        super().__init__()
        at_least(1, input_size=input_size, hidden_size=hidden_size, generator=generator)
        instance(Callable, "a function", f=f)
        within("[0, 1e30]", scale=scale)
        self.features, self.f, width = input_size, f, scale / (input_size + hidden_size + 1) ** 0.5
        self.U, self.W, self.b = _uniform(width, hidden_size, input_size, hidden_size, generator=generator)
        self.start = nn.Parameter(torch.zeros(2 * hidden_size))  # I and r before the first step
        self.alpha_s: Any = _leak("alpha_s", alpha_s, hidden_size)
        set_dial(self, "alpha_s", copy.deepcopy(dial))
        self.alpha_r: Any = _leak("alpha_r", alpha_r, hidden_size)
        set_dial(self, "alpha_r", dial)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and the state (batch, 2 hidden) to the next state."""
        I, r = state.chunk(2, -1)
        drive = F.linear(r, self.W) + F.linear(x, self.U, self.b)
        I = (1 - self.alpha_s) * I + self.alpha_s * drive
        r = (1 - self.alpha_r) * r + self.alpha_r * self.f(I)
        return torch.cat([I, r], -1)

    def activity(self, state: Tensor) -> Tensor:
        """Return the rates of states (..., 2 hidden)."""
        return state.chunk(2, -1)[1]

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the learned start for each sequence of an input x (batch, input)."""
        return self.start.expand(len(x), -1)

    def _recurrence(self, state: Tensor) -> tuple[Any, ...]:
        f, alphas = None if self.f is identity else self.f, (a.expand_as(self.b) for a in (self.alpha_s, self.alpha_r))
        return slice(None), "aru", f, (), *state.chunk(2, -1), self.U, self.W, self.b, *alphas


class ARUStack(_Step):
    """Two layers of adaptive recurrent units; each receives the other's rates of a step ago, the lower one the input.

    The state is the currents of the lower and the upper layer, then the rates of both; the activity is the rates. The
    lower layer receives the input and the upper layer side by side; layers that do not fit raise a ValueError.
    Source: Quax, D'Asaro & van Gerven (2020), Fig. 8A, "feedforward and feedback connections between both layers".
    """

    def __init__(self, lower: ARUCell, upper: ARUCell):
        super().__init__()
        instance(ARUCell, "an ARUCell", lower=lower, upper=upper)
        n, m = len(lower.b), len(upper.b)
        if lower.U.shape[1] <= m:
            raise ValueError(f"lower must receive the input and {m} upper units, got {lower.U.shape[1]} features")
        if upper.U.shape[1] != n:
            raise ValueError(f"upper must receive {n} lower units, got {upper.U.shape[1]} features")
        if upper.f is not lower.f:
            raise ValueError(f"upper must have the activation function of lower, {lower.f!r}, got {upper.f!r}")
        self.lower, self.upper, self.sizes, self.features = lower, upper, [n, m], lower.features - m

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and the state (batch, 2 units) to the next state."""
        I_1, I_2, r_1, r_2 = state.split(2 * self.sizes, -1)
        lower = self.lower.forward(torch.cat([x, r_2], -1), torch.cat([I_1, r_1], -1))
        upper = self.upper.forward(r_1, torch.cat([I_2, r_2], -1))
        (I_1, r_1), (I_2, r_2) = lower.chunk(2, -1), upper.chunk(2, -1)
        return torch.cat([I_1, I_2, r_1, r_2], -1)

    activity = ARUCell.activity  # the lower layer's first

    def initial_state(self, x: Tensor) -> Tensor:
        """Return the learned state (batch, 2 units) for an input x (batch, input)."""
        lower, upper = self.lower.start.chunk(2), self.upper.start.chunk(2)
        return torch.cat([lower[0], upper[0], lower[1], upper[1]]).expand(len(x), -1)

    def _recurrence(self, state: Tensor) -> tuple[Any, ...]:
        known, (up, above, *upper) = self.lower._recurrence(state), self.upper._recurrence(state)[-5:]
        (U, W, *lower), m = known[-5:], self.sizes[1]
        U, down = U.split([U.shape[1] - m, m], 1)
        W = torch.cat([torch.cat([W, down], 1), torch.cat([up, above], 1)])
        return *known[:-5], F.pad(U, (0, 0, 0, m)), W, *map(torch.cat, zip(lower, upper, strict=True))


class RNNCell(_Step):
    r"""Units whose state is replaced at every step.

    .. math:: h_t = \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eq. 2, where the new state is :math:`h_{t+1}`. The text gives no initial weights;
    these are those of `torch.nn.RNN`, uniform within ``1 / sqrt(hidden_size)`` of 0.
    """

    def __init__(self, input_size: int, hidden_size: int, *, generator: Generator):
        super().__init__()
        at_least(1, input_size=input_size, hidden_size=hidden_size, generator=generator)
        self.features = input_size
        self.U, self.W, self.b = _uniform(hidden_size**-0.5, hidden_size, input_size, hidden_size, generator=generator)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        return torch.tanh(F.linear(x, self.U, self.b) + F.linear(h, self.W))

    initial_state = CTRNNCell.initial_state

    def _recurrence(self, h: Tensor) -> tuple[Any, ...]:
        one = torch.ones_like(self.b)
        return slice(len(one), None), "aru", torch.tanh, (), torch.zeros_like(h), h, self.U, self.W, self.b, one, one


class LeakyRNNCell(RNNCell):
    r"""Units of which a part is replaced at every step.

    .. math:: h_t = (1 - \alpha) \odot h_{t-1} + \alpha \odot \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eq. 5, which has one alpha, shared by all units; their experiments have one a unit
    (Section 3). Weights as in `RNNCell`. `CTRNNCell` has its tanh between states and what others receive.
    """

    def __init__(self, input_size: int, hidden_size: int, alpha: float | Tensor, dial: Dial, *, generator: Generator):
        super().__init__(input_size, hidden_size, generator=generator)
        self.alpha: Any = _leak("alpha", alpha, hidden_size)
        set_dial(self, "alpha", dial)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        return (1 - self.alpha) * h + self.alpha * super().forward(x, h)

    def _recurrence(self, h: Tensor) -> tuple[Any, ...]:
        return *super()._recurrence(h)[:-1], self.alpha.expand_as(self.b)


class GatedCell(RNNCell):
    r"""Units whose leak is a gate, computed from the input and the state.

    .. math::
        g_t &= \sigma(U_g x_t + W_g h_{t-1} + b_g) \\
        h_t &= (1 - g_t) \odot h_{t-1} + g_t \odot \tanh(U x_t + W h_{t-1} + b)

    Source: Tallec & Ollivier (2018), Eqs. 9 and 10, one gate a unit, as in their experiments; ``shared``, one for all
    units, makes it Eq. 8. Their Section 2 sets b_g by the range of time scales. Weights as in `RNNCell`, gates' last.
    """

    def __init__(self, input_size: int, hidden_size: int, *, shared: bool = False, generator: Generator):
        super().__init__(input_size, hidden_size, generator=generator)
        instance(bool, "True or False", shared=shared)
        gates, width = 1 if shared else hidden_size, hidden_size**-0.5
        self.U_g, self.W_g, self.b_g = _uniform(width, gates, input_size, hidden_size, generator=generator)

    def gate(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (..., input) and the h before (..., hidden) to gates (..., gates)."""
        return torch.sigmoid(F.linear(x, self.U_g, self.b_g) + F.linear(h, self.W_g))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        g = self.gate(x, h)
        return (1 - g) * h + g * super().forward(x, h)

    def _recurrence(self, h: Tensor) -> tuple[Any, ...]:
        return slice(None), "gated", h, self.U, self.W, self.b, self.U_g, self.W_g, self.b_g


class GRU(_Step):
    r"""A gated recurrent unit with the parameters of torch's `GRUCell`, which `vmap` can map; its start is learned.

    .. math::
        g &= \sigma(U_g x_t + W_g h_{t-1} + b_g), \quad z = \sigma(U_z x_t + W_z h_{t-1} + b_z) \\
        n &= \tanh\big(U_n x_t + b_n + g \odot (W_n h_{t-1} + c_n)\big), \quad h_t = (1 - z) \odot n + z \odot h_{t-1}

    Weights are drawn uniform within ``1 / sqrt(hidden_size)`` of 0, as torch does.
    """

    def __init__(self, input_size: int, hidden_size: int, *, generator: Generator):
        super().__init__()
        at_least(1, input_size=input_size, hidden_size=hidden_size, generator=generator)
        self.features, self.gru = input_size, nn.GRUCell(input_size, hidden_size)
        with torch.no_grad():
            for p in self.gru.parameters():
                p.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
        self.start = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Map x (batch, input) and h (batch, hidden) to the next h."""
        from_x = F.linear(x, self.gru.weight_ih, self.gru.bias_ih).chunk(3, -1)
        from_h = F.linear(h, self.gru.weight_hh, self.gru.bias_hh).chunk(3, -1)
        g = torch.sigmoid(from_x[0] + from_h[0])
        z = torch.sigmoid(from_x[1] + from_h[1])
        n = torch.tanh(from_x[2] + g * from_h[2])
        return n + z * (h - n)

    initial_state = ARUCell.initial_state


class Network(nn.Module):
    r"""A cell, or two stacked, with a linear read-out of the first units.

    .. math:: y_t = V r_t + c

    Source: Quax, D'Asaro & van Gerven (2020), Eqs. 20 and 21; c is the weight of their constant input 1. Of the cell's
    units as many are read as ``read`` says, or all; V and c are drawn uniform within ``scale / sqrt(read + 1)`` of 0.
    """

    def __init__(
        self, cell: Cell, units: int, features: int, *, read: int | None = None, scale: float = 1, generator: Generator
    ):
        super().__init__()
        read = units if read is None else read
        at_least(1, units=units, read=read, generator=generator)
        at_least(read, units=units)
        at_least(1, features=features)
        within("[0, 1e30]", scale=scale)
        self.cell, self.unread, width = cell, units - read, scale / (read + 1) ** 0.5
        self.V, self.c = _uniform(width, features, read, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (time, batch, input) to y (time, batch, features)."""
        return unroll(self.cell, x, read_out=(F.pad(self.V, (0, self.unread)), self.c))
