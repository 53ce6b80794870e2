"""Worked examples of what the claims of Benureau and Tani measure, from small data of which it can be seen."""

import numpy as np
import pytest
import xarray as xr
from notebook_code import check

from ts_helpers.book.claims import read_claims
from ts_helpers.papers import benureau2018 as paper
from ts_helpers.papers.benureau2018 import quantities, volatility


def results_of(settings):
    """Data like an experiment's: tau 8 and errors 1 everywhere, but for what is given of a setting."""
    shape = (len(settings), 2, 41)
    made = {name: (("setting", "seed", "epoch"), np.ones(shape)) for name in ("loss", "closed", "closed_off")}
    made["tau"] = ("setting", "seed", "epoch", "layer"), np.full((*shape, 3), 8.0)
    data = xr.Dataset(made, coords={"setting": list(settings), "epoch": 100 * np.arange(41), "layer": range(3)})
    for name, given in settings.items():
        for variable, value in given.items():
            data[variable].loc[dict(setting=name)] = np.array(value, float)
    return data


def moving(start, end):
    """Time constants (epoch, layer) that go straight from start to end in the first half."""
    way = np.clip(np.linspace(0, 2, 41), 0, 1)[:, None]
    return (1 - way) * np.array(start, float) + way * np.array(end, float)


def changed(tau, *entries):
    for epochs, layer, value in entries:
        tau[epochs, layer] = value
    return tau


def alternating(size):
    """An error that goes up and down by a factor, 10 ** size."""
    return 10.0 ** (size * (np.arange(41) % 2))


def from_100(*end):
    return {"learn 100": dict(tau=moving((100, 100, 100), end))}


def from_16(quarter, *end):
    return {"learn 16-8-4": dict(tau=changed(moving((16, 8, 4), end), (slice(10), 0, 16), (10, 0, quarter)))}


def exponential(*end):
    return {"learn 4-8-16": dict(tau=moving((4, 8, 16), end))}


def two_starts(exponential, eight):
    return {"learn 4-8-16": dict(tau=exponential), "learn 8": dict(tau=eight)}


def four_starts(**eight):
    """All at the clamp but from 16, where the lowest layer comes near; and from 8, as given."""
    taus = {
        "learn 100": (1, 90, 90),
        "learn 16-8-4": (1.02, 8, 4),
        "learn 4-8-16": (1, 8, 16),
        "learn 8": (1.005, 8, 8),
    }
    made = {name: dict(tau=moving([float(n) for n in "888"], end)) for name, end in taus.items()}
    return made | {"learn 8": dict(tau=changed(made["learn 8"]["tau"], *eight.values()))}


def free(closed, *entries):
    tau = changed(moving((4, 8, 16), (0.9, 8, 16)), *entries)
    return {"no clamp 4-8-16": dict(tau=tau, closed=closed), "learn 4-8-16": dict(closed=2 * alternating(0.1))}


NAN = np.nan
EIGHT = {"learn 8": dict(closed=4), "fixed 8": dict(closed=2)}
WRONG = {"learn 16-8-4": dict(loss=0.5, closed=9, closed_off=1), "fixed 16-8-4": dict(loss=2, closed=3)}
ROUGH = {"learn 8": dict(closed=alternating(0.25)), "fixed 8": dict(closed=alternating(0.1))}
STABLE = from_100(5, 80, 120)["learn 100"]["tau"]


CASES = [
    ("A2", from_100(5, 80, 120), dict(low=1, stable=1)),
    ("A2", from_100(10, 80, 120), dict(low=1, stable=1)),
    ("A2", from_100(10.1, 120, 80), dict(low=0, stable=1)),
    ("A2", from_100(5, 49, 120), dict(low=1, stable=0)),
    ("A2", from_100(5, 80, 201), dict(low=1, stable=0)),
    ("A2", from_100(90, 80, 120), dict(low=0, stable=1)),
    ("A2", {"learn 100": dict(tau=changed(STABLE.copy(), (7, 1, 49)))}, dict(low=1, stable=0)),
    (
        "A2",
        {"learn 100": dict(tau=changed(STABLE.copy(), (slice(-4, None), 0, 99)))},
        dict(low=1, stable=1),
    ),
    (
        "A2",
        {"learn 100": dict(tau=changed(STABLE.copy(), (slice(-6, None), 0, 99)))},
        dict(low=0, stable=1),
    ),
    ("A3", from_16(4, 2, 6, 5), dict(fast=1, unordered=1)),
    ("A3", from_16(4.1, 2, 5, 6), dict(fast=0, unordered=0)),
    ("A4a", WRONG, dict(loss_ratio=0.25)),
    ("A4b", WRONG, dict(closed_ratio=3)),
    ("A5", ROUGH, dict(roughness_ratio=2.5)),
    ("A6a", exponential(1, 10, 20), dict(hardly=1)),
    ("A6a", exponential(1, 6, 12), dict(hardly=1)),
    ("A6a", exponential(1, 10.1, 16), dict(hardly=0)),
    ("A6a", exponential(1, 8, 11.9), dict(hardly=0)),
    ("A6a", exponential(9, 8, 16), dict(hardly=1)),
    ("A6b", two_starts((4, 8, 16), (8, 8, 8)), dict(distance_ratio=1, ordered=0)),
    ("A6b", two_starts((1, 8, 16), (1, 8, 32)), dict(distance_ratio=2**-0.5, ordered=1)),
    ("A6b", two_starts((1, 9, 15), (1, 9, 15)), dict(distance_ratio=0, ordered=1)),
    ("A7", EIGHT, dict(closed_ratio=0.5)),
    ("A8a", four_starts(), dict(ever=[1, 1, 0, 0, 1, 1, 1, 1], at_end=[1, 1, 0, 0, 1, 1, 1, 1])),
    (  # left again
        "A8a",
        four_starts(after=(slice(30, None), 0, 1.1)),
        dict(ever=[1, 1, 0, 0, 1, 1, 1, 1], at_end=[1, 1, 0, 0, 1, 1, 0, 0]),
    ),
    (  # the last ten evaluations alternate: the median lies half way
        "A8b",
        free(6 * alternating(0.2), (30, 0, 0.6)),
        dict(lowest=0.6, roughness_ratio=2, closed_ratio=3 * (1 + 10**0.2) / (1 + 10**0.1)),
    ),
    (  # one that diverged counts with its lowest before
        "A8b",
        free(np.where(np.arange(41) < 25, 1.0, NAN), (slice(25, None), slice(None), NAN), (24, 0, 0.7)),
        dict(lowest=0.7, roughness_ratio=100, closed_ratio=100),
    ),
]
EXAMPLES = {f"{claim}/{name}" for claim, _, expected in CASES for name in expected}


@pytest.mark.parametrize(("claim", "settings", "expected"), CASES)
def test_quantity_has_the_value_of_a_worked_example(claim, settings, expected):
    assert set(expected) == {quantity.name for quantity in read_claims()[claim].quantities}
    for name, value in expected.items():
        check(f"{claim}/{name}", results_of(settings), np.ravel(value) if np.size(value) > 1 else [value] * 2)


def test_claims_are_of_25_units_but_a7_of_ten_and_the_other_size_is_beside_them():
    small, large = (results_of(EIGHT | {"fixed 8": dict(closed=value)}) for value in (2, 8))
    both = xr.concat([large, small], xr.Variable("units", [25, 10]), "all")
    check("A7/closed_ratio", both, [0.5, 0.5])
    check("A7/closed_ratio/25 units", both, [2, 2])
    calm = results_of(ROUGH | {"learn 8": dict(closed=alternating(0.1))})
    rough = xr.concat([results_of(ROUGH), calm], xr.Variable("units", [25, 10]), "all")
    check("A5/roughness_ratio", rough, [2.5, 2.5])
    check("A5/roughness_ratio/10 units", rough, [1, 1])
    with pytest.raises(KeyError):  # a size that was not run
        check("A7/closed_ratio/25 units", both.sel(units=[10]), [])


def test_networks_started_at_100_are_the_many_where_they_were_trained_and_those_of_ten_units_beside_them():
    few = [results_of(from_100(*end)) for end in ((5, 80, 120), (20, 80, 120))]
    both = xr.concat(few, xr.Variable("units", [25, 10]), "all")
    taus = np.stack([from_100(*end)["learn 100"]["tau"] for end in ((5, 80, 120), (5, 40, 120), (50, 80, 120))])
    both["tau_many"] = ("network", "epoch", "layer"), taus
    check("A2/low", both, [1, 1, 0])
    check("A2/stable", both, [1, 0, 1])
    check("A2/low/10 units", both, [0, 0])
    check("A2/low", both.drop_vars("tau_many"), [1, 1])


def test_volatility_of_an_alternating_error_is_the_spread_of_its_steps():
    error = xr.DataArray(alternating(0.3), dims="epoch")
    trend = xr.DataArray(10.0 ** np.linspace(0, -3, 41), dims="epoch")
    first = xr.DataArray(np.where(np.arange(41) < 20, alternating(2.0), 1.0), dims="epoch")
    found = [volatility(each).item() for each in (error, 7 * error, trend * error, trend, first)]
    assert found == pytest.approx([0.3, 0.3, 0.3, 0, 0], abs=1e-12)  # level, trend and first half do not count


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_network_that_diverged_counts_as_100_above_and_a_hundredth_below(wrong):
    two = [xr.DataArray(values) for values in ([2, wrong, 2, wrong], [4, 4, wrong, wrong])]
    assert paper.ratio(*two).tolist() == [0.5, 100, 0.01, 1]
    data = results_of(ROUGH)
    data["closed"].loc[dict(setting="learn 8", seed=1, epoch=slice(3000, None))] = wrong
    assert paper.roughness_ratio(data, "learn 8", "fixed 8").tolist() == pytest.approx([2.5, 100])
    assert paper.closed_ratio(data, "learn 8", "fixed 8")[1] == 100


def test_closed_loop_error_can_be_chosen_and_claims_whose_settings_were_not_run_are_left_out():
    results = results_of(WRONG)
    assert paper.closed_ratio(results, *WRONG, closed="closed_off").tolist() == [1, 1]
    assert quantities(results, "closed_off")["A4b"]["closed_ratio"].tolist() == [1, 1]
    for names, claims in (["learn 100"], {"A2"}), (["fixed 8", "fixed 100"], set()), (EIGHT, {"A5", "A7"}):
        assert set(quantities(results_of({name: {} for name in names}))) == claims
