"""Worked examples of what the book's own claims measure."""

import numpy as np
import pytest
import xarray as xr
from notebook_code import check, functions

DIALS = functions("synthesis/four-dials")
CLAMPED, DIRECT, LOG, GATE = DIALS.FOUR
FULL, NAN, INF, ALL = "full gate", np.nan, np.inf, slice(None)
LABELS = dict(task=[*DIALS.TASKS], dial=DIALS.KINDS, start=DIALS.STARTS, rate=DIALS.RATES)


def made(**cells):
    """Two seeds, three evaluations, nothing solved but what is set: by variable cells, each with its value last."""
    sizes = {name: len(labels) for name, labels in LABELS.items()} | dict(seed=2, look=3)

    def filled(value, *more):
        dims = ["task", "dial", "start", *more]
        return dims, np.full([sizes[dim] for dim in dims], value)

    results = xr.Dataset(
        dict(
            loss=filled(1.0, "seed", "look"), end=filled(1.0, "seed", "rate"), apart=filled(9.0, "seed"),
            least=filled(0.5, "seed", "look"), greatest=filled(0.5, "seed", "look"),
            step=(["task", "look"], np.full((6, 3), [0, 5, 10])),
            many=(["task", "dial", "repetition"], np.full((6, 5, 3), NAN)),
        ),
        LABELS,
    )  # fmt: skip
    for name, values in cells.items():
        for *cell, value in values:
            results[name].loc[dict(zip(results[name].dims, cell, strict=False))] = value
    return results


PAIR = made(  # of log tau and gate's bias; on the sines apart at all evaluations, and at most
    loss=[("sines", LOG, "terrible", [[2, 4, 6], [1, 1, 5]]), ("sines", GATE, "terrible", [[1, 2, 3], [4, 4, 5]]),
          ("oscillator", LOG, "terrible", [[3, 3, 3], [1, 2, 1]])],
)  # fmt: skip
BACK = made(  # levels 0.25, 0.05, 0.1, 0.25; a loss that is not finite is not below
    end=[("sines", LOG, "terrible", [[0.3], [0.2]]), ("teacher", LOG, "terrible", [[NAN], [0.04]]),
         ("recall", LOG, "terrible", [[0.05], [0.2]]), ("warps", LOG, "terrible", 0.1),
         (ALL, CLAMPED, "terrible", [[0.2], [0.01]])],
)  # fmt: skip
OUT = made(least=[("sines", DIRECT, "terrible", 1, [1, -0.1, 1])], greatest=[("oscillator", LOG, "bad", 0, [1, 2, 1])])
GATES = made(  # adding's level is 0.1; the loss falls to 1/2 and not at all on recall, to 1/4 and not at all on warps
    many=[("adding", FULL, [0.05, 0.2, INF]), ("adding", DIALS.FOUR, [0.2, 0.3, NAN]),
          ("adding", GATE, [0.2, 0.05, NAN]),
          ("recall", FULL, [0.2, 0.3, NAN]), ("recall", GATE, [0.4, 0.3, NAN]),
          ("warps", FULL, [0.1, 0.1, NAN]), ("warps", GATE, [0.4, 0.1, NAN])],
)  # fmt: skip
SPREAD = made(  # seed 0: 64 times over starts on recall; seed 1: a clamped tau is 64 times behind on the oscillator
    end=[("recall", ALL, "good", 0, 1 / 64), ("recall", LOG, "terrible", 0, NAN),
         ("oscillator", 1e-9), ("oscillator", CLAMPED, "good", 1, 0.064)],
)  # fmt: skip
RATES = made(  # seed 0: of 27, log solves 9, a gate's bias 18, alpha 3, of the last two tasks; a clamped tau none
    end=[("recall", LOG, ALL, 0, 0), (["recall", "teacher"], GATE, ALL, 0, 0), ("recall", DIRECT, "bad", 0, 0)],
)
FOUND = made(
    apart=[("oscillator", LOG, "good", np.log([1.2, 1.3])), ("teacher", LOG, "terrible", np.log([2, 1.01])),
           ("teacher", CLAMPED, "bad", [9, 0]), ("teacher", CLAMPED, "good", 0)],
)  # fmt: skip

EXAMPLES = {
    "S1/slow": (PAIR, [2, 4] + 8 * [1]),
    "S1/fast": (PAIR, [3, 1]),
    "S2/clamped": (BACK, dict(sines=[1, 1], teacher=[0, 1], recall=[0, 1], warps=[1, 1])),
    "S2/log": (BACK, dict(sines=[0, 1], teacher=[0, 1], recall=[1, 0], warps=[1, 1])),
    "S3/direct_below_0": (OUT, [0, 1] + 8 * [0]),
    "S3/log_above_1": (OUT, [0, 0, 1] + 33 * [0]),
    "S4/adding_gate": (GATES, [1, 0, 0]),
    "S4/adding_dials": (GATES, {CLAMPED: [0, 0], DIRECT: [0, 0], LOG: [0, 0], GATE: [0, 1]}),
    "S4/contrast": (GATES, [2, 1]),
    "S5/start_over_dial": (SPREAD, [2, 1]),
    "S5/start_over_dial/with the clamped tau on the oscillator": (SPREAD, [2, 1 / 2]),
    "S6/log_direct": (RATES, [2 / 9, 0]),
    "S6/gate_direct": (RATES, [5 / 9, 0]),
    "S6/log_clamped": (RATES, [1 / 3, 0]),
    "S6/gate_clamped": (RATES, [2 / 3, 0]),
    "S7/log": (FOUND, [1, 0] + 9 * [0] + [1]),
    "S7/clamped": (FOUND, [0, 0, 0, 0, 0, 1, 0, 0]),
}


@pytest.mark.parametrize("key", EXAMPLES)
def test_quantity_has_the_value_of_a_worked_example(key):
    check(key, *EXAMPLES[key])
