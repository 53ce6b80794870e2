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
EXAMPLES = {
    "D6/in_order": (PIXELS, [0.1, -0.1]),
    "D6/permuted": (PIXELS, [0.25, np.nan]),
    "D7a/fewer": (TEXT, [1, 1, 0]),
    "D7a/throughout": (TEXT, [0.5, 1, 1]),
    "D7b/ratio": (TEXT, [1, 0.9, 1.1]),
}


@pytest.mark.parametrize("key", EXAMPLES)
def test_quantity_has_the_value_of_a_worked_example(key):
    check(key, *EXAMPLES[key])
