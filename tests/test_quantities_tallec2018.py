"""Worked examples of what the claims of Tallec and Ollivier measure."""

import numpy as np
import pytest
import xarray as xr
from notebook_code import check

PIXELS = xr.Dataset(  # chrono is ahead by 0.1 in run 1 in order; permuted, neither tells half of run 1 right
    dict(test=(["arm", "start", "seed"], [[[0.6, 0.8], [0.7, 0.7]], [[0.5, 0.2], [0.75, 0.4]]])),
    dict(arm=["row by row", "permuted"], start=["standard", "chrono"]),
)
TEXT = xr.Dataset(  # characters: chrono is ahead by 1, 1, 0 bits, and at 1 of 2, 2 of 2, 1 of 1 looks after the first
    dict(
        test=(["arm", "start", "seed"], np.log([[[4, 8, 8], [2, 4, 8]], [[100, 100, 100], [100, 90, 110]]])),
        valid=(
            ["arm", "start", "seed", "look"],
            [
                [[[9, 5, 5], [9, 5, 5], [9, 5, np.nan]], [[1, 4, 6], [9, 4, 4], [9, 4, 4]]],
                np.zeros((2, 3, 3)),
            ],
        ),
    ),
    dict(arm=["characters", "words"], start=["standard", "chrono"]),
)


def compared(steps, **arms):
    """Losses of networks, by arm a run at a time, each of the standard and of the chrono one, every ``steps`` steps."""
    loss = np.array([*arms.values()]).transpose(0, 2, 1, 3)
    name = [arm.replace("_", ", ") for arm in arms]
    step, taken = steps * np.arange(loss.shape[-1]), steps * (np.isfinite(loss).sum(-1) - 1.0)
    of = dict(diverged=(["arm", "start", "seed"], 0 * taken), taken=(["arm", "start", "seed"], taken))
    of |= dict(loss=(["arm", "start", "seed", "look"], loss), step=("look", step))
    return xr.Dataset(of, dict(arm=name, start=["standard", "chrono"], seed=[0, 1, 2]))


PLATEAU, DONE, CUT = [4] + 12 * [1], [4, 1] + 3 * [0.01] + 8 * [np.nan], [4, 1, 0.2] + 10 * [np.nan]
COPYING = compared(  # of 1200 steps, the last quarter is three evaluations
    100,
    copying_shorter=[
        [[4] + 11 * [1] + [300], [4] + 9 * [1] + [0.6, 0.5, 0.4]],  # thrown off at the end: a plateau still
        [PLATEAU, PLATEAU],  # too short to tell
        [PLATEAU, DONE],
    ],
    variable_shorter=[
        [[4] + 9 * [1] + [0.5, 0.3, 0.1], [4] + 9 * [1] + [0.4, 0.2, 0.1]],
        [CUT, PLATEAU],  # for want of hours
        [PLATEAU, [4] + 12 * [0.6]],  # neither below half
    ],
    variable_longer=[
        [PLATEAU, [4] + 12 * [0.4]],
        [[4] + 12 * [0.5], [4] + 12 * [0.2]],
        [PLATEAU, DONE],
    ],
)
SHORTER, LONGER = "the shorter $T$, 500 in the paper", "the longer $T$, 2000 in the paper"
NOT_RUN = {"copying, longer": [np.nan] * 3}
ADDING = compared(
    100,
    shorter=[
        [[1, 1, 1, 1, 0.4], [1, 0.4, 0.4, 0.4, 0.4]],  # after 400 steps and after 100
        [[1, 1, 1, 1, 1], [1, 1, 0.4, 0.4, 0.4]],  # more than 400, and 200
        [[1, 1, 1, 1, 1], [1, 1, 1, 0.4, 0.4]],  # more than 400, and 300: at least 4/3, which is not at least 2
    ],
    longer=[
        [[1, 0.4, 0.4, 0.4, 0.4], [1, 1, 1, 1, 1]],  # the standard one alone
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],  # neither
        [[1, 0.4, 0.4, 0.4, 0.4], [1, 0.4, 0.4, 0.4, 0.4]],
    ],
)


def letters():
    """Losses at three maximum warpings and accuracies, of two runs: variable tasks cost twice, other scores less."""
    plain, leaky, gated = (
        [[1, 1], [0.6, 0.8], [0.8, 1]],
        [[0, 0], [0.1, 0.2], [0.2, 0.4]],
        [[0, 0], [0, 0.1], [0.1, 0.1]],
    )
    loss = np.multiply.outer([1, 1, 2, 2, 1], [plain, leaky, gated])
    right = np.full((5, 3, 2, 10, 3), np.nan)
    right[4] = 0.5
    right[4, :, :, 0, 1] = [[0.8, 0.7], [0.9, 0.9], [1, 0.98]]
    right[4, :, :, 6, 1] = [[0.7, 0.7], [0.4, 0.5], [0.6, 0.68]]  # ten times the warps
    right[4, :, :, 6, ::2] = right[4, :, :, 6, 1:2] * [1 / 2, 1 / 4]
    right[4, 0, 1, 3, 1] = 0.9  # the best of the plain ones is at another span
    of = dict(loss=(["arm", "model", "warping", "seed"], loss))
    of |= dict(accuracy=(["arm", "model", "seed", "span", "score"], right))
    panels = [f"{how} {what}" for how in ("uniform", "variable") for what in ("warping", "padding")]
    scores = "in sequences of four letters", "of so many steps as in training", "from the first step"
    arms = dict(arm=[*panels, "longer warps"], model=["plain", "leaky", "gated"], warping=[10, 50, 100])
    return xr.Dataset(of, arms | dict(score=[*scores]))


LETTERS = letters()
FOUR = "in sequences of four letters"
EXAMPLES = {
    **{
        f"D1a/{how}_{what}": (LETTERS, [0, 0.125, 0.125, 0.1])
        for how in ("uniform", "variable")
        for what in ("warping", "padding")
    },
    **{f"D1b/leaky_{what}": (LETTERS, [0, 0, 0.1, 0.2, 0.2, 0.4]) for what in ("warping", "padding")},
    **{f"D1b/gated_{what}": (LETTERS, [0, 0, 0, 0.1, 0.1, 0.1]) for what in ("warping", "padding")},
    **{f"D1c/{what}": (LETTERS, [0.2, 0.4, 0.4, 0.8]) for what in ("warping", "padding")},
    **{f"D1c/{what}_ratio": (LETTERS, [np.inf, 2, 2, 4]) for what in ("warping", "padding")},
    **{f"D1d/{what}": (LETTERS, [0, 0, 0, 0.2, 0.2, 0.2]) for what in ("warping", "padding")},
    "D5a/gated_within": (LETTERS, [1, 0.98]),
    "D5a/plain_ten": (LETTERS, [0.7, 0.7]),
    f"D5a/plain_ten/{FOUR}": (LETTERS, [0.35, 0.35]),
    "D5a/leaky_ten": (LETTERS, [0.4, 0.5]),
    "D5a/gated_ten": (LETTERS, [0.6, 0.68]),
    "D5b/faster": (LETTERS, [0.3, 0.3]),
    "D5a/plain_ten/from the first step": (LETTERS, [0.175, 0.175]),
    f"D5b/faster/{FOUR}": (LETTERS, [0.05, 0.01]),
    "D5b/plain_most": (LETTERS, [0.8, 0.9]),
    "D3a/standard": (COPYING, {"copying, shorter": [1, np.nan, 1]} | NOT_RUN),
    f"D3a/standard/{SHORTER}": (COPYING, [1, np.nan, 1]),
    f"D3a/standard/{LONGER}": (COPYING, [np.nan] * 3),
    "D3b/chrono": (COPYING, {"copying, shorter": [0.5, np.nan, 0.01]} | NOT_RUN),
    f"D3b/chrono/{SHORTER}": (COPYING, [0.5, np.nan, 0.01]),
    "D3b/ratio": (COPYING, {"copying, shorter": [0.5, np.nan, 0.01]} | NOT_RUN),
    "D3c/standard_shorter": (COPYING, [0.3, np.nan, np.nan]),
    "D3c/chrono_shorter": (COPYING, [0.2, 1, np.nan]),
    "D3c/ratio_longer": (COPYING, [0.4, 0.4, 0.01]),
    "D4/shorter": (ADDING, [4, 2, np.nan]),
    "D4/longer": (ADDING, [0, np.nan, 1]),
    "D6/in_order": (PIXELS, [0.1, -0.1]),
    "D6/permuted": (PIXELS, [0.25, np.nan]),
    "D7a/fewer": (TEXT, [1, 1, 0]),
    "D7a/throughout": (TEXT, [0.5, 1, 1]),
    "D7b/ratio": (TEXT, [1, 0.9, 1.1]),
}


@pytest.mark.parametrize("key", EXAMPLES)
def test_quantity_has_the_value_of_a_worked_example(key):
    check(key, *EXAMPLES[key])
