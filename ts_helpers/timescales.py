r"""Where a leak rate comes from, four dials, and where gates start, chrono starts; the cells are in `cells`.

A leaky unit replaces the fraction ``alpha = dt / tau`` of its state in one step. A dial, `Clamped`, `Direct`, `LogTau`
or `Gate`, maps the raw number that the optimiser moves, tau, alpha, log tau or a gate's bias, to ``alpha``, and back.
`set_dial` attaches it; then ``cell.alpha`` reads ``alpha``, and ``cell.alpha = 0.3`` sets the raw number to the one
that gives 0.3. Fixed or learned is its ``requires_grad``; shared, per layer or per unit its shape.

A gate with bias b and no other input keeps the fraction :math:`\sigma(b)` of a unit's state in a step, so that it
forgets in :math:`T = 1 / (1 - \sigma(b)) = 1 + e^b` steps. `chrono_init_` and `unknown_range_init_` draw T and set
``b = log(T - 1)`` or ``log(T)``: the forget gate of an LSTM to b and its input gate to -b; the update gate of a GRU to
b, since torch's z multiplies the old state; a tensor, the bias of a `GatedCell`, to -b, since g multiplies the new.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from ts_helpers._check import as_tensor, at_least, instance, one_of, within

Gated = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell


class Dial(nn.Module):
    """Checks and broadcasts what is assigned to ``alpha``; ``forward`` maps raw to alpha, ``inverse`` back."""

    limits, closed = (0.0, 2.0), False  # alpha is between these, or at the upper one where that is closed
    inverse: Callable[[Tensor], Tensor]
    like: Tensor

    def right_inverse(self, alpha: Tensor | float) -> Tensor:
        """Return the raw tensor for ``alpha``, which broadcasts and is within the limits, else a ValueError."""
        if not hasattr(self, "like"):  # registration: from now on a plain number takes this shape, type and device
            self.register_buffer("like", torch.zeros_like(as_tensor("alpha", alpha)), persistent=False)
        alpha, shape = as_tensor("alpha", alpha, dtype=self.like.dtype, device=self.like.device), self.like.shape
        try:
            alpha = alpha.expand(shape)
        except RuntimeError:
            raise ValueError(f"alpha must broadcast to shape {tuple(shape)}, got {tuple(alpha.shape)}") from None
        (low, high), raw = self.limits, self.inverse(alpha.detach())
        inside = (alpha > low) & ((alpha <= high * (1 + 1e-6)) if self.closed else (alpha < high))
        wrong = alpha[~(inside & alpha.isfinite() & raw.isfinite())]
        if len(wrong):  # by more than rounding, where the end belongs to the interval
            limits = f"({low:g}, {high:g}{']' if self.closed else ')'}"
            raise ValueError(f"alpha of a {type(self).__name__} dial must lie in {limits}, got {wrong[0].item():g}")
        return raw.clone()


class Clamped(Dial):
    r"""The time constant itself, in steps, held at a floor or above.

    .. math:: \alpha = 1 / \max(\tau, \text{floor})

    Source: Benureau & Tani (2018), Section 2, where the floor is 1. Below it the gradient is zero: a tau that has
    stepped there cannot come back. A floor of 0 is none; one that is negative or above 1e30 raises a ValueError.
    """

    closed = True
    floor: Tensor  # a buffer, and the limits made of it: networks of several floors make one stack

    def __init__(self, floor: float = 1.0):
        super().__init__()
        within("[0, 1e30]", floor=floor)
        self.register_buffer("floor", torch.tensor(float(floor)), persistent=False)

    @property
    def limits(self) -> tuple[float, float]:  # type: ignore[override]
        """0, and 1 over the floor."""
        return 0.0, 1 / float(self.floor) if self.floor else math.inf

    def forward(self, tau: Tensor) -> Tensor:
        """Map tau (steps) to alpha."""
        return 1 / tau.clamp(min=self.floor)

    inverse = staticmethod(torch.reciprocal)


class Direct(Dial):
    """Alpha itself, as in Quax, D'Asaro & van Gerven (2020), Eqs. 10-12: not held in (0, 1], unstable beyond 2."""

    def forward(self, alpha: Tensor) -> Tensor:
        """Return alpha unchanged."""
        return alpha

    inverse = forward


class LogTau(Dial):
    r"""The logarithm of the time constant, stepped by forward Euler.

    .. math:: \alpha = \Delta t \, e^{-T}, \qquad T = \log \tau

    Source: Matsuki & Shibata (2018), Section 2.2. ``dt``, positive (else a ValueError), is in the unit of tau.
    """

    def __init__(self, dt: float = 1.0):
        super().__init__()
        within("(0, inf)", dt=dt)
        self.log_dt = math.log(dt)

    def forward(self, T: Tensor) -> Tensor:
        """Map T = log tau to alpha."""
        return torch.exp(self.log_dt - T)

    def inverse(self, alpha: Tensor) -> Tensor:
        """Map alpha to T = log tau."""
        return self.log_dt - torch.log(alpha)


class Gate(Dial):
    r"""The bias of a gate that has no input.

    .. math:: \alpha = \sigma(b) = 1 / (1 + e^{-b}), \qquad \tau = 1 + e^{-b}

    Source: Tallec & Ollivier (2018), Section 2 and Eq. 10. It is `LogTau` stepped by backward Euler:
    ``sigmoid(log(dt / tau)) = (dt / tau) / (1 + dt / tau)``.
    """

    limits = (0.0, 1.0)
    forward, inverse = staticmethod(torch.sigmoid), staticmethod(torch.logit)


def set_dial(module: nn.Module, name: str, dial: Dial) -> None:
    """Let a parameter of any module come from a dial, a new one for each; its value, within the limits, is kept.

    ``module.<name>`` then reads as alpha, and what is assigned to it is alpha, a number or a tensor that broadcasts.
    The raw number, of the same shape, is the parameter ``module.parametrizations.<name>.original``, see `raw_name`.
    """
    instance(nn.Module, "a module", module=module)
    instance(Dial, "a dial", dial=dial)
    instance(str, "a name", name=name)
    parametrize.register_parametrization(module, name, dial)


def raw_name(name: str) -> str:
    """Return what PyTorch calls the raw number behind the dial on the parameter ``name``, such as ``cell.alpha``."""
    instance(str, "a name", name=name)
    path, _, last = name.rpartition(".")
    return f"{path}.parametrizations.{last}.original".lstrip(".")


def set_gate_bias_(gates: Gated, gate: str, b: Tensor | float) -> None:
    """Set the bias of one gate, in every layer and direction.

    Torch adds two bias vectors in each gate, ``bias_ih`` and ``bias_hh``: the first
    becomes b, the second 0. Both are learned, by equal gradients, so that their sum
    moves twice as far in a step as one bias would. ``set_gate_bias_(lstm, "f", 1.0)``
    is the baseline of Tallec & Ollivier (2018), Section 3.

    Args:
        gates: LSTM or GRU, layers or a cell, else a TypeError; a ValueError if it has
            no biases.
        gate: "i", "f" or "o" of an LSTM; "r" or "z" of a GRU; else a ValueError.
        b: a number, or a tensor (hidden,) or (layers * directions, hidden); else a
            ValueError.
    """
    pairs = _bias_pairs(gates)
    lstm = isinstance(gates, nn.LSTM | nn.LSTMCell)
    order = ["i", "f", None, "o"] if lstm else ["r", "z", None]  # None: no gate
    one_of([name for name in order if name], gate=gate)
    b, shape = as_tensor("b", b), (len(pairs), gates.hidden_size)
    if b.shape not in ((), shape[1:], shape) or not bool(b.isfinite().all()):
        rule = f"b must be a finite number or have shape {shape[1:]} or {shape}"
        raise ValueError(f"{rule}, got {b.item() if b.ndim == 0 else tuple(b.shape)}")
    with torch.no_grad():
        for (ih, hh), b_layer in zip(pairs, b.expand(shape), strict=True):
            ih.chunk(len(order))[order.index(gate)].copy_(b_layer)
            hh.chunk(len(order))[order.index(gate)].zero_()


def chrono_init_(
    gates: Gated | Tensor,
    T_max: float,
    T_min: float = 2.0,
    *,
    generator: Generator,
) -> None:
    r"""Let each unit of each layer forget in a time drawn evenly from the task's range.

    .. math:: b \sim \log(\mathcal{U}([T_{\min}, T_{\max}]) - 1)

    Source: Tallec & Ollivier (2018), Section 2: for one tied gate :math:`b_g = -b`;
    Eq. 16 for an LSTM, :math:`b_f \sim \log(\mathcal{U}([1, T_{\max} - 1]))` and
    :math:`b_i = -b_f`, where :math:`T_{\min}` is 2. A range, in steps, that is not
    ``1 < T_min < T_max <= 1e18`` raises a ValueError; gates are refused as by
    `set_gate_bias_`.
    """
    within("(1, 1e18]", T_min=T_min, T_max=T_max)
    instance(Generator, "a torch.Generator", generator=generator)
    if not T_min < T_max:
        raise ValueError(f"T_min must be below T_max, got {T_min=}, {T_max=}")

    def draw(*shape: int) -> Tensor:
        u = torch.rand(shape, generator=generator)
        return torch.log(T_min - 1 + (T_max - T_min) * u)

    _start_(gates, draw)


def unknown_range_init_(gates: Gated | Tensor, T_max: int, *, generator: Generator) -> None:
    r"""Let each unit of each layer forget in a time T of the law `heavy_tailed`, where no range is known: b = log(T).

    Source: Tallec & Ollivier (2018), footnote 7. Departure: T is at most T_max. ValueError: as of
    `heavy_tailed` and `set_gate_bias_`.
    """
    instance(Generator, "a torch.Generator", generator=generator)
    law = heavy_tailed(T_max)

    def draw(*shape: int) -> Tensor:
        times = 1 + torch.multinomial(law, math.prod(shape), replacement=True, generator=generator)
        return times.double().log().reshape(shape)

    _start_(gates, draw)


def heavy_tailed(T_max: int) -> Tensor:
    r"""Return P(T = k) for k = 1 to T_max, (T_max,) in double precision.

    .. math:: P(T = k) \propto 1 / (k \log^2(k + 1))

    Source: Tallec & Ollivier (2018), footnote 7. Departure: cut at T_max, and scaled to sum to 1. Uncut, the tail
    beyond k still holds about ``1 / (3.39 log(k))``, 2 % beyond a million steps, more than any sequence can teach, and
    from ``2^24`` on sigmoid(log(T)) is 1 in single precision. A T_max not in 1 to ``2^23`` raises a ValueError.
    """
    at_least(1, T_max=T_max)
    if T_max > 2**23:
        raise ValueError(f"T_max must be in 1 to 2^23, got {T_max}")
    k = torch.arange(1, T_max + 1, dtype=torch.float64)
    weights = 1 / (k * torch.log(k + 1) ** 2)
    return weights / weights.sum()


def _start_(gates: Gated | Tensor, draw: Callable[..., Tensor]) -> None:
    if isinstance(gates, Tensor):
        if not gates.is_floating_point() or gates.is_meta or gates.numel() == 0:
            got = f"{gates.dtype}, {gates.device}, {tuple(gates.shape)}"
            raise TypeError(f"gates must be an LSTM, a GRU or a tensor of floats, got {got}")
        with torch.no_grad():
            gates.copy_(-draw(*gates.shape))
        return
    b = draw(len(_bias_pairs(gates)), gates.hidden_size)
    for gate, sign in [("i", -1), ("f", 1)] if isinstance(gates, nn.LSTM | nn.LSTMCell) else [("z", 1)]:
        set_gate_bias_(gates, gate, sign * b)


def _bias_pairs(gates: Gated) -> list[tuple[Tensor, Tensor]]:
    """Return the two bias vectors of each layer and direction."""
    if not isinstance(gates, Gated):
        raise TypeError(f"gates must be an LSTM or a GRU, layers or a cell, got {type(gates).__name__}")
    names = [name for name, _ in gates.named_parameters() if name.startswith("bias_ih")]
    if not names:
        raise ValueError(f"gates must have biases, got {gates}")
    return [(getattr(gates, name), getattr(gates, name.replace("ih", "hh"))) for name in names]
