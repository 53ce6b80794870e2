"""Compiled recurrences, known by their equations, and `compiled`, the one door to them, which `cells.unroll` opens.

No cell, no dial and no training. Under `torch.func.vmap` a stack of networks is shared out over torch's threads.
"""

from typing import Any

import torch
from torch import Tensor

from ts_helpers.engine.gated import gated_recurrence, leaky_rnn_recurrence
from ts_helpers.engine.recurrence import ACTIVATIONS, aru_network, aru_recurrence, in_turn_recurrence, leaky_recurrence


def compiled(
    x: Tensor, state: Tensor, family: str, *given: Any, read_out: tuple[Tensor, Tensor] | None = None
) -> Tensor | None:
    r"""Make all steps of a sequence in one call, the same as in a loop, sooner; they can be differentiated once.

    ============  =====================================  ==========================================================
    family        given                                  equation
    ============  =====================================  ==========================================================
    ``leaky``     U, W, b, alpha                         h += alpha (W tanh(h) + U x + b - h)
    ``layers``    sizes, U, W, b, alpha                  the same; layers of such sizes take a step one after the
                                                         other, or with no sizes all at once
    ``aru``       f, U, W, b, alpha_s, alpha_r           I += alpha_s (W r + U x + b - I); r += alpha_r (f(I) - r)
    ``rnn``       U, W, b, alpha                         h += alpha (tanh(W h + U x + b) - h)
    ``gated``     U, W, b, U_g, W_g, b_g                 the same, with alpha = sigmoid(W_g h + U_g x + b_g)
    ============  =====================================  ==========================================================

    Args:
        x: (time, batch, input).
        state: (batch, state) before the first step; of adaptive units I and r side by side.
        family: see above.
        given: weights and leak rates, (units,) or matrices (units, ...); f None for the identity.
        read_out: V (features, units) and c (features,).

    Returns:
        The states after each step, (time, batch, state); with a read-out V tanh(h) + c or V r + c, (time, batch,
        features). None where nothing that is compiled applies: for another family or f, elsewhere than on a CPU, in
        another type than float32 or float64, or with a read-out of other than adaptive units or layers at once.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return None
    match family, read_out:
        case "leaky", None:
            return leaky_recurrence(x, state, *given)
        case "layers", None:
            sizes, *weights = given
            return in_turn_recurrence(sizes, x, state, *weights) if sizes else leaky_recurrence(x, state, *weights)
        case "layers", (V, c) if not given[0]:  # adaptive units whose rate is tanh of their current at once
            _, U, W, b, alpha = given
            return aru_network(torch.tanh, x, state, torch.tanh(state), V, c, U, W, b, alpha, torch.ones_like(alpha))
        case "aru", _ if given[0] in ACTIVATIONS:
            f, *weights = given
            I, r = state.chunk(2, -1)  # noqa: E741
            if read_out is None:
                return torch.cat(aru_recurrence(f, x, I, r, *weights), -1)
            return aru_network(f, x, I, r, *read_out, *weights)
        case "rnn", None:
            return leaky_rnn_recurrence(x, state, *given)
        case "gated", None:
            return gated_recurrence(x, state, *given)
    return None
