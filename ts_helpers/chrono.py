r"""Where gates start: the biases that Tallec & Ollivier (2018) give them before training.

A gate with bias b and no other input keeps the fraction :math:`\sigma(b)` of a unit's state in a step, so that the
unit forgets in :math:`T = 1 / (1 - \sigma(b)) = 1 + e^b` steps. `chrono_init_` and `unknown_range_init_` draw T and
set ``b = log(T - 1)`` or ``log(T)``, each in the gates at hand:

=================================  =======================================================
gates                              biases
=================================  =======================================================
``nn.LSTM``, ``nn.LSTMCell``       forget gate b, input gate -b
``nn.GRU``, ``nn.GRUCell``         update gate b: torch's z multiplies the old state
a tensor, bias of the g of Eq. 10  -b: g multiplies the new state
=================================  =======================================================

Every other weight and bias stays as it is.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Gated = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell


def set_gate_bias_(gates: Gated, gate: str, b: Tensor | float) -> None:
    """Set the bias of one gate, in every layer and direction.

    Torch adds two bias vectors in each gate, ``bias_ih`` and ``bias_hh``. What counts is their sum: the first becomes
    b, the second 0. Both are learned, by equal gradients, so that their sum moves twice as far in a step as one bias
    would.

    ``set_gate_bias_(lstm, "f", 1.0)`` is the baseline of Tallec & Ollivier (2018), Section 3.

    Args:
        gates: LSTM or GRU, layers or a cell.
        gate: "i", "f" or "o" of an LSTM; "r" or "z" of a GRU.
        b: a number, or a tensor (hidden,) or (layers * directions, hidden).

    Raises:
        TypeError: ``gates`` is another module.
        ValueError: it has no biases, or no such gate, or b has another shape.
    """
    pairs = _bias_pairs(gates)
    order = ["i", "f", None, "o"] if isinstance(gates, nn.LSTM | nn.LSTMCell) else ["r", "z", None]  # None: no gate
    if gate not in order:
        names = ", ".join(filter(None, order))
        raise ValueError(f"gate of {type(gates).__name__} must be one of {names}, got {gate!r}")
    b, shape = torch.as_tensor(b), (len(pairs), gates.hidden_size)
    if b.shape not in ((), shape[1:], shape):
        raise ValueError(f"b must be a number or have shape {shape[1:]} or {shape}, got {tuple(b.shape)}")
    with torch.no_grad():
        for (ih, hh), b_layer in zip(pairs, b.expand(shape), strict=True):
            ih.chunk(len(order))[order.index(gate)].copy_(b_layer)
            hh.chunk(len(order))[order.index(gate)].zero_()


def chrono_init_(gates: Gated | Tensor, T_max: float, T_min: float = 2.0, *, generator: torch.Generator) -> None:
    r"""Let each unit forget in a time drawn evenly from the range of times that the task asks for.

    .. math:: b \sim \log(\mathcal{U}([T_{\min}, T_{\max}]) - 1)

    Source: Tallec & Ollivier (2018), Section 2: for one tied gate :math:`b_g = -b`; Eq. 16 for an LSTM,
    :math:`b_f \sim \log(\mathcal{U}([1, T_{\max} - 1])), \; b_i = -b_f`, where :math:`T_{\min}` is 2.

    Args:
        gates: see the module.
        T_max: longest time, steps.
        T_min: shortest.
        generator: draws a time for each unit of each layer and direction.

    Raises:
        TypeError, ValueError: as `set_gate_bias_`.
        ValueError: the range is not finite, or not ``1 < T_min < T_max``.
    """
    if not 1 < T_min < T_max < math.inf:
        raise ValueError(f"T_min and T_max must be finite with 1 < T_min < T_max, got {T_min=}, {T_max=}")
    _start_(gates, lambda *shape: torch.log(T_min - 1 + (T_max - T_min) * torch.rand(shape, generator=generator)))


def unknown_range_init_(gates: Gated | Tensor, T_max: int, *, generator: torch.Generator) -> None:
    r"""Let each unit forget in a time drawn from a law with a long tail, where no range is known.

    .. math:: b = \log(T), \qquad P(T = k) \propto 1 / (k \log^2(k + 1))

    Source: Tallec & Ollivier (2018), footnote 7. Departure: T goes no further than T_max, see `heavy_tailed`.

    Args:
        gates: see the module.
        T_max: longest time, steps.
        generator: draws a time for each unit of each layer and direction.

    Raises:
        TypeError, ValueError: as `set_gate_bias_`.
        ValueError: as `heavy_tailed`.
    """
    law = heavy_tailed(T_max)

    def draw(*shape: int) -> Tensor:
        times = 1 + torch.multinomial(law, math.prod(shape), replacement=True, generator=generator)
        return times.double().log().reshape(shape)

    _start_(gates, draw)


def heavy_tailed(T_max: int) -> Tensor:
    r"""Return P(T = k) for k = 1 to T_max, (T_max,) in double precision.

    .. math:: P(T = k) \propto 1 / (k \log^2(k + 1))

    Source: Tallec & Ollivier (2018), footnote 7. Departure: cut at T_max, and scaled to sum to 1. Uncut, the tail
    beyond k still holds about ``1 / (3.39 log(k))``, 2 % beyond a million steps, and log(T) has no mean. No sequence
    is long enough to learn with such gates, and from ``2^24`` on sigmoid(log(T)) is 1 in single precision.

    Raises:
        ValueError: ``T_max`` is not in 1 to ``2^23``.
    """
    if not 1 <= T_max <= 2**23:
        raise ValueError(f"T_max must be in 1 to 2^23, got {T_max}")
    k = torch.arange(1, T_max + 1, dtype=torch.float64)
    weights = 1 / (k * torch.log(k + 1) ** 2)
    return weights / weights.sum()


def _start_(gates: Gated | Tensor, draw: Callable[..., Tensor]) -> None:
    if isinstance(gates, Tensor):
        with torch.no_grad():
            gates.copy_(-draw(*gates.shape))
        return
    b = draw(len(_bias_pairs(gates)), gates.hidden_size)
    if isinstance(gates, nn.LSTM | nn.LSTMCell):
        set_gate_bias_(gates, "f", b)
        set_gate_bias_(gates, "i", -b)
    else:
        set_gate_bias_(gates, "z", b)


def _bias_pairs(gates: Gated) -> list[tuple[Tensor, Tensor]]:
    """Return the two bias vectors of each layer and direction."""
    if not isinstance(gates, Gated):
        raise TypeError(f"gates must be an LSTM or a GRU, layers or a cell, got {type(gates).__name__}")
    names = [name for name, _ in gates.named_parameters() if name.startswith("bias_ih")]
    if not names:
        raise ValueError(f"gates must have biases, got {gates}")
    return [(getattr(gates, name), getattr(gates, name.replace("ih", "hh"))) for name in names]
