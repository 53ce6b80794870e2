"""Worked examples of what the claims of Quax, D'Asaro and van Gerven measure."""

import numpy as np
import pytest
import xarray as xr
from notebook_code import check

HILLS = np.array([[8, 1, 9], [3, 4, 7], [2, 6, 5]])  # from alpha_s 0.3, 0.6, 1 down; alpha_r to the right
ODD = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
DEEP = 10.0 ** (3 * ODD)  # the median is 1,000 times the lowest value, which a third has; all of it is antisymmetric
ROUND = 10.0 ** (
    0.5 * ODD + np.diag([1.5, 0, -1.5])
)  # half as deep; the lowest value is one; a quarter of the variance
RATES = dict(alpha_s=[0.3, 0.6, 1.0], alpha_r=[0.3, 0.6, 1.0])
LANDSCAPES = xr.Dataset(
    dict(landscape=(["repetition", "teacher", *RATES], [[HILLS] * 4, [HILLS.T] * 4])),
    dict(teacher=["0.31 0.59", "0.6 1.0", "0.6 0.6", "1.0 0.3"], **RATES),
)
ENDS = xr.Dataset(  # of each of two teachers, two networks from two starts; the epoch before would be misleading
    dict(
        learned=(
            ["target", "seed", "start", "epoch", "which"],
            [
                [
                    [[[0, 0], [0.34, 0.68]], [[0, 0], [0.43, 0.59]]],
                    [[[0.3, 0.7], [0.34, 0.79]], [[0, 0], [0.68, 0.34]]],
                ],
                [
                    [[[0, 0], [0.34, 0.68]], [[0, 0], [0.43, 0.59]]],
                    [[[0.7, 0.3], [0.57, 0.34]], [[0, 0], [0.68, 0.34]]],
                ],
            ],
        ),
        loss=(["target", "seed", "start", "epoch"], [[[[9, 9], [8, 2]], [[9, 9], [8, 3]]]] * 2),
        elman=(["target", "seed", "epoch"], [[[8, 4], [8, 2]]] * 2),
    ),
    dict(start=["0.1 0.1", "1.0 1.0"]),
)
ARMS = xr.Dataset(  # distances from the teacher: 5 units 0.1, 0.05; 100 units 0.05, 0.1
    dict(
        landscape=(["arm", "repetition", *RATES], [[ROUND, DEEP], [DEEP, ROUND], [DEEP, ROUND], [ROUND, DEEP]]),
        learned=(
            ["arm", "seed", "epoch", "which"],
            [
                [[[0, 0], [0.44, 0.68]], [[0, 0], [0.34, 0.63]]],
                [[[0, 0], [0.34, 0.68]], [[0, 0], [0.34, 0.68]]],
                [[[0, 0], [0.37, 0.72]], [[0, 0], [0.34, 0.78]]],
                [[[0, 0], [0.43, 0.6]], [[0, 0], [0.45, 0.68]]],
            ],
        ),
    ),
    dict(arm=["5 units", "10 units", "100 units", "ReLU"], **RATES),
)
WIDTHS = xr.Dataset(  # two repetitions; the epoch before would be misleading
    dict(
        spread=(["width", "seed", "epoch", "which"], [
            [[[9, 9], [0.1, 0.2]], [[9, 9], [0.3, 0.2]]],
            [[[9, 9], [0.5, 0.5]], [[9, 9], [0.5, 0.5]]],
            [[[9, 9], [0.3, 0.3]], [[9, 9], [0.2, 0.6]]],
        ]),
        loss=(["model", "width", "seed", "epoch"], [
            [[[7, 1], [7, 1]], [[7, 1], [7, 2]], [[7, 1], [7, 2]]],
            [[[7, 2], [7, 4]], [[7, 4], [7, 2]], [[7, 8], [7, 6]]],
            [[[7, 4], [7, 5]], [[7, 4], [7, 4]], [[7, 8], [7, 2]]],
            [[[7, 1], [7, 2]], [[7, 5], [7, 4]], [[7, 10], [7, 20]]],
        ]),
    ),
    dict(model=["individual", "global", "Elman", "GRU"], width=[0.1, 0.2, 0.3], which=["alpha_s", "alpha_r"]),
)  # fmt: skip

STEPS = [5, 10, 20, 30, 40, 50, 100]
ERRORS = {  # over chance at the end; of two repetitions, by number of steps back
    "Elman": [[0.1, 0.8, 0.89, 0.91, 1, 1, 1], [0.1, 0.95, 1, 1, 1, 1, 1]],
    "global": [[0.8, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], [0.4, 0.8, 0.8, 0.8, 0.91, 1, 1]],
    "individual": [[0.1, 0.1, 0.1, 0.1, 0.1, 0.8, 0.5], [0.1, 0.8, 0.8, 0.8, 0.8, 0.1, 0.1]],
    "GRU": [[0.1] * 5 + [0.04, 0.2], [0.1] * 6 + [0.5]],
    "global, from 1": [[0.1] * 4 + [1, 1, 1], [0.1] * 7],
    "individual, from 1": [[1] * 7, [0.4] * 7],
}
FALL = {"global": -1, "individual": 0.5, "global, from 1": -0.5, "individual, from 1": 0}  # exponents of alpha
MEMORY = xr.Dataset(
    dict(
        loss=(
            ["model", "seed", "arm", "epoch"],
            np.stack([np.ones((6, 2, 7)), np.array([*ERRORS.values()]) + 0.05, [*ERRORS.values()]], -1),
        ),
        chance=(["arm", "seed"], np.ones((7, 2))),
        alpha=(
            ["dial", "arm", "seed", "which"],  # a fifth and nine fifths of the mean; where it learned nothing, 9
            [
                [
                    [[0.2 * n**power, 1.8 * n**power] if ERRORS[dial][seed][k] < 0.5 else [9, 9] for seed in (0, 1)]
                    for k, n in enumerate(STEPS)
                ]
                for dial, power in FALL.items()
            ],
        ),
    ),
    dict(arm=[f"{n} back" for n in STEPS], model=[*ERRORS], dial=[*FALL], epoch=[0, 252, 600]),
)
STACK = xr.Dataset(  # tau_s + tau_r of first and second layer: 2 and 4; 4 and 3; 2 and for ever; a run not made
    dict(
        alpha=(
            ["arm", "seed", "epoch", "layer", "which"],
            [
                [
                    [[[1, 1], [1, 1]], [[1, 1], [0.5, 0.5]]],
                    [[[1, 1], [1, 1]], [[0.5, 0.5], [1, 0.5]]],
                    [[[1, 1], [1, 1]], [[1, 1], [-0.1, 9]]],
                    np.full((2, 2, 2), np.nan),
                ]
            ],
        ),
        signal=(["arm", "seed", "time"], [[[0], [0], [0], [np.nan]]]),
    ),
    dict(arm=["one pair a layer"], layer=["first", "second"], epoch=[0, 600]),
)

EXAMPLES = {
    "B2a/minimum_near": (LANDSCAPES, {"0.31 0.59": [1, 0], "0.6 1.0": [0, 0], "0.6 0.6": [0, 0], "1.0 0.3": [0, 0]}),
    "B2b/elman_ratio": (LANDSCAPES, {name: [1 / 5] * 2 for name in LANDSCAPES.teacher.values}),
    "B2b/line_ratio": (
        LANDSCAPES,
        {"0.31 0.59": [1 / 2] * 2, "0.6 0.6": [1 / 2] * 2},
    ),  # of teachers with no alpha of 1
    "B2c/swap_ratio": (LANDSCAPES, {"0.31 0.59": [3, 1 / 3], "0.6 1.0": [6 / 7, 7 / 6], "1.0 0.3": [9 / 2, 2 / 9]}),
    "B3a/recovered": (ENDS, [1, 1, 0, 0, 0, 0, 0, 1]),
    "B3b/elman_ratio": (ENDS, [1 / 2, 3 / 2] * 2),
    "B4a/area_ratio": (ARMS, [3, 1 / 3]),
    "B4b/distance_ratio": (ARMS, [0.5, 2]),
    "B5a/depth_ratio": (ARMS, [1 / 2, 2]),
    "B5a/area_ratio": (ARMS, [1 / 3, 3]),
    "B5b/asymmetry_ratio": (ARMS, [1 / 2, 2]),
    "B5c/recovered": (ARMS, [1, 0]),
    "B6a/wider_s": (WIDTHS, [0.2, -0.1]),
    "B6a/wider_r": (WIDTHS, [0.1, 0.4]),
    "B6b/global_ratio": (WIDTHS, {0.1: [1 / 2, 1 / 4], 0.2: [1 / 4, 1], 0.3: [1 / 8, 1 / 3]}),
    "B6b/elman_ratio": (WIDTHS, {0.1: [1 / 4, 1 / 5], 0.2: [1 / 4, 1 / 2], 0.3: [1 / 8, 1]}),
    "B6b/gru_ratio": (WIDTHS, {0.1: [1, 1 / 2], 0.2: [1 / 5, 1 / 2], 0.3: [1 / 10, 1 / 10]}),
    "B6c/over_narrow": (WIDTHS, [8 / 2, 3 / 4]),
    "B6c/over_middle": (WIDTHS, [8 / 4, 3 / 1]),
    "B7a/near": (MEMORY, [1, 1, 1, 0]),  # 5 and 10 steps of one, of the other
    "B7a/far": (MEMORY, [1, 0] + [0] * 6),
    "B7a/far/after at most 252 epochs": (MEMORY, [0] * 8),
    "B7a/near/below half of chance": (MEMORY, [1, 0, 1, 0]),
    "B7b/global_40": (MEMORY, [1, 0]),
    "B7b/global_40/leak rates from 1": (MEMORY, [0, 1]),
    "B7b/local_40": (MEMORY, [1, 1]),
    "B7b/local_40/below half of chance": (MEMORY, [1, 0]),
    "B7b/local_40/leak rates from 1": (MEMORY, [0, 1]),
    "B7c/error_50": (MEMORY, [0.1, 1]),
    "B7c/error_100": (MEMORY, [0.5, 5]),
    "B7d/global_exponent": (MEMORY, [-1]),  # the other one is trained successfully at a single length
    "B7d/global_exponent/leak rates from 1": (MEMORY, [-0.5, -0.5]),
    "B7d/individual_exponent": (MEMORY, [0.5, 0.5]),
    "B7d/individual_exponent/leak rates from 1": (MEMORY, [0]),
    "B8/first_faster": (STACK, [1, 0, 1]),
}


@pytest.mark.parametrize("key", EXAMPLES)
def test_quantity_has_the_value_of_a_worked_example(key):
    check(key, *EXAMPLES[key])


def test_recall_that_was_not_run_and_exponents_of_networks_that_learned_nothing_are_no_numbers():
    check("B7b/global_40", MEMORY.sel(arm=["50 back"]), [np.nan] * 2)
    check("B7d/global_exponent", MEMORY.assign(loss=0 * MEMORY.loss + 1), [np.nan] * 2)
