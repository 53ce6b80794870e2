import numpy as np
import pytest
import torch
import xarray as xr

from ts_helpers.book.claims import judge, read_claims
from ts_helpers.cells import unroll
from ts_helpers.datasets.sines import sums_of_sines
from ts_helpers.ensembles import train
from ts_helpers.papers import benureau2018
from ts_helpers.papers.benureau2018 import (
    ALPHA,
    SETTINGS,
    Choices,
    at_end,
    closed_loop_error,
    errors,
    experiment,
    mean_loss,
    network,
    quantities,
    ratio,
    roughness,
    summed_loss,
    time_constants,
)

X = sums_of_sines(n_steps=12)
SMALL = Choices(units=3)
LEARN = [name for name in SETTINGS if SETTINGS[name].factor]


def tried(names=("learn 8", "fixed 8"), x=X, choices=SMALL, **change):
    return experiment(names, x, choices=choices, **dict(n_seeds=2, seed=5, epochs=20) | change)


@pytest.fixture(scope="module")
def all_settings():
    return tried(list(SETTINGS))


def test_experiment_returns_what_it_says(all_settings):
    sizes = dict(setting=9, seed=2, epoch=11, layer=3, step=11, sequence=5, feature=1)
    dims = {
        "tau": "setting seed epoch layer",
        "loss": "setting seed epoch",
        "closed": "setting seed epoch",
        "closed_off": "setting seed epoch",
        "generated": "setting seed step sequence feature",
        "diverged": "setting seed",
    }
    assert {name: " ".join(v.dims) for name, v in all_settings.data_vars.items()} == dims
    assert dict(all_settings.sizes) == sizes
    assert all_settings.setting.values.tolist() == list(SETTINGS)
    assert all_settings.epoch.values.tolist() == list(range(0, 21, 2))
    assert all_settings.step.values.tolist() == list(range(1, 12))
    for name, variable in all_settings.variables.items():
        assert variable.attrs["long_name"], name
    assert all_settings.attrs["seconds"] > 0


def test_settings_start_where_the_paper_says(all_settings):
    starts = {"100": (100, 100, 100), "16-8-4": (16, 8, 4), "4-8-16": (4, 8, 16), "8": (8, 8, 8)}
    for name in SETTINGS:
        start = all_settings.tau.sel(setting=name, epoch=0).values
        np.testing.assert_allclose(start, np.broadcast_to(starts[name.split()[-1]], (2, 3)), rtol=1e-6)


def test_fixed_settings_keep_tau_exactly_and_the_others_move_it(all_settings):
    for name in SETTINGS:
        tau = all_settings.tau.sel(setting=name)
        same = bool((tau == tau.isel(epoch=0)).all())
        assert same == (name not in LEARN)
    assert (all_settings.loss.isel(epoch=0) != all_settings.loss.isel(epoch=-1)).all()


def test_tau_first_moves_by_its_learning_rate():
    """The first step of Adam is the learning rate, whatever the gradient; less where that is next to nothing."""
    made = tried(["learn 100", "learn 8", "learn 16-8-4"], epochs=1)
    moved = abs(made.tau.diff("epoch")).values[:, :, 0]
    rates = np.array([0.1, 0.01, 0.01])[:, None, None]
    assert (moved <= 1.001 * rates).all()
    np.testing.assert_allclose(moved[..., 0], np.broadcast_to(rates[..., 0], (3, 2)), rtol=0.02)
    log = np.log(tried(["learn 100"], epochs=1, choices=Choices(units=3, dial="log")).tau)
    np.testing.assert_allclose(abs(log.diff("epoch")).values[..., 0], 1e-3, rtol=0.02)


def test_networks_of_one_seed_start_with_the_same_weights_in_every_setting():
    for choices in (SMALL, Choices(units=3, dial="log"), Choices(units=3, update="sequential")):
        one, same = (network(SETTINGS[name], choices, 5, 1, seed=(5, 1)) for name in ("learn 100", "no clamp 4-8-16"))
        other = network(SETTINGS["learn 100"], choices, 5, 1, seed=(5, 0))
        for name, p in one.named_parameters():
            assert torch.equal(p, dict(same.named_parameters())[name]) == (name != ALPHA)
            if name not in (ALPHA, "h0"):
                assert not torch.equal(p, dict(other.named_parameters())[name])


def test_settings_that_differ_in_nothing_yet_start_with_the_same_errors(all_settings):
    first = all_settings.isel(epoch=0)
    for name in ("loss", "closed", "closed_off"):
        for one, other in (("learn 8", "fixed 8"), ("learn 100", "fixed 100"), ("learn 4-8-16", "no clamp 4-8-16")):
            np.testing.assert_allclose(first[name].sel(setting=one), first[name].sel(setting=other), rtol=1e-5)
    assert (first.loss.isel(seed=0) != first.loss.isel(seed=1)).all()


def test_experiment_repeats_with_its_seed():
    one, same, other = tried(epochs=10), tried(epochs=10), tried(epochs=10, seed=6)
    xr.testing.assert_identical(one.drop_attrs(deep=False), same.drop_attrs(deep=False))
    assert (one.loss != other.loss).all()


def test_a_setting_learns_the_same_in_other_company():
    alone, together = tried(["fixed 8"]), tried(["learn 16-8-4", "fixed 8"])
    xr.testing.assert_allclose(alone.sel(setting="fixed 8"), together.sel(setting="fixed 8"), rtol=1e-4)


def test_networks_can_have_sequences_of_their_own():
    each = torch.stack([X, X.flip(1) / 2])
    made, first = tried(x=each), tried()
    xr.testing.assert_allclose(made.isel(seed=0), first.isel(seed=0), rtol=1e-4)
    assert (abs(made.loss.isel(seed=1) - first.loss.isel(seed=1)) > 1e-6).all()


def test_generated_is_what_the_last_errors_are_of(all_settings):
    generated = torch.as_tensor(all_settings.generated.values)
    for i in range(len(SETTINGS)):
        for s in range(2):
            for name, against in (("closed", "aligned"), ("closed_off", "one step off")):
                last = all_settings[name].isel(setting=i, seed=s, epoch=-1).item()
                assert closed_loop_error(generated[i, s], X, against).item() == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
@pytest.mark.parametrize("dial", ["clamp", "projection", "log"])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_every_choice_learns(update, dial, loss):
    made = tried(["learn 8"], choices=Choices(3, update, dial, loss), epochs=60, n_seeds=1)
    assert made.loss.values[0, 0, -1] < made.loss.values[0, 0, 0]
    assert made.diverged.values.tolist() == [[-1]]


def test_choices_reach_the_training(monkeypatch):
    seen = []
    monkeypatch.setattr(
        benureau2018, "train", lambda *words, **options: seen.append(options) or train(*words, **options)
    )
    for change in (dict(), dict(dial="projection"), dict(loss="sum")):
        tried(["learn 8"], choices=Choices(units=3, **change), epochs=1)
    assert [options["floors"] for options in seen] == [None, {ALPHA: [1.0, 1.0]}, None]
    assert [options["clip"] for options in seen] == [None, None, 1.0]
    assert seen[2]["clip_norm"] == np.inf


@pytest.mark.parametrize("name", SETTINGS)
def test_only_networks_without_clamp_have_no_floor(name):
    dial = network(SETTINGS[name], SMALL, 5, 1, seed=(0,)).cell.parametrizations.alpha[0]
    assert dial.floor == (0 if name.startswith("no clamp") else 1)


def test_network_that_diverged_has_no_error_from_then_on(monkeypatch):
    monkeypatch.setattr(benureau2018, "summed_loss", lambda net, x: mean_loss(net, x) * torch.nan)
    made = tried(choices=Choices(units=3, loss="sum"))
    assert (made.diverged == 0).all()
    assert made.closed.isnull().all()
    assert made.tau.notnull().all()


def test_experiment_refuses_unknown_names_and_other_seeds():
    with pytest.raises(ValueError, match=r"names must be of learn 100, .*, got 'learn 9'"):
        tried(["learn 9"])
    with pytest.raises(ValueError, match="x must have sequences for each of 2 seeds, got 3"):
        tried(x=X.expand(3, *X.shape))


def test_measures_equal_their_definitions():
    net = network(SETTINGS["learn 16-8-4"], SMALL, 5, 1, seed=(0,))
    with torch.no_grad():
        open_loop, generated = net(X[:-1]), net.generate(X[0], 11)
        loss, closed, off = errors(net, X).tolist()
    squares = ((open_loop - X[1:]) ** 2).numpy()
    assert loss == pytest.approx(squares.mean(), rel=1e-5) == pytest.approx(mean_loss(net, X).item())
    with torch.no_grad():
        states = np.stack([h.numpy() for h in unroll(net.cell, X[:-1], net.h0)])
    penalty = sum((h**2).sum() / 9 for h in states)  # 3 layers of 3 units
    assert summed_loss(net, X).item() == pytest.approx(0.999 * squares.sum() + 0.001 * penalty, rel=1e-5)
    assert closed == pytest.approx(closed_loop_error(generated, X).item())
    assert off == pytest.approx(closed_loop_error(generated, X, "one step off").item())
    np.testing.assert_allclose(time_constants(net, X).tolist(), [16, 8, 4], rtol=1e-6)


# Quantities, from small data sets of which they are known


def results_of(epochs=41, seeds=2, **settings):
    """Data like an experiment's: tau 8 and errors 1 everywhere, unless ``name=dict(tau=..., closed=..., loss=...)``."""
    shape = (len(settings), seeds, epochs)
    made = {
        "tau": (("setting", "seed", "epoch", "layer"), np.full((*shape, 3), 8.0)),
        **{name: (("setting", "seed", "epoch"), np.ones(shape)) for name in ("loss", "closed", "closed_off")},
        "diverged": (("setting", "seed"), np.full(shape[:2], -1)),
    }
    names = [key.replace("_", " ").replace(".", "-") for key in settings]
    data = xr.Dataset(
        made, coords={"setting": names, "seed": range(seeds), "epoch": 100 * np.arange(epochs), "layer": range(3)}
    )
    for name, given in zip(names, settings.values(), strict=True):
        for variable, value in given.items():
            data[variable].loc[dict(setting=name)] = np.array(value, float)
    return data


def of(results, claim, **how):
    return {name: value.tolist() for name, value in quantities(results, **how)[claim].items()}


def moving(start, end, epochs=41):
    """Time constants (epoch, layer) that go straight from start to end in the first half."""
    way = np.clip(np.linspace(0, 2, epochs), 0, 1)[:, None]
    return (1 - way) * np.array(start, float) + way * np.array(end, float)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ((5, 80, 120), dict(low=1, stable=1, ordered=1)),
        ((10, 80, 120), dict(low=1, stable=1, ordered=1)),
        ((10.1, 120, 80), dict(low=0, stable=1, ordered=0)),
        ((5, 49, 120), dict(low=1, stable=0, ordered=1)),
        ((5, 80, 201), dict(low=1, stable=0, ordered=1)),
        ((90, 80, 120), dict(low=0, stable=1, ordered=0)),
    ],
)
def test_quantities_of_A2(end, expected):
    data = results_of(**{"learn_100": dict(tau=moving((100, 100, 100), end))})
    assert of(data, "A2") == {name: [value] * 2 for name, value in expected.items()}


def test_stable_means_at_every_look():
    tau = moving((100, 100, 100), (5, 80, 120))
    tau[7, 1] = 49
    assert of(results_of(**{"learn_100": dict(tau=tau)}), "A2")["stable"] == [0, 0]


def test_the_end_is_the_median_of_the_last_ten_looks():
    tau = moving((100, 100, 100), (5, 80, 120))
    tau[-4:, 0] = 99
    assert of(results_of(**{"learn_100": dict(tau=tau)}), "A2")["low"] == [1, 1]
    tau[-6:, 0] = 99
    assert of(results_of(**{"learn_100": dict(tau=tau)}), "A2")["low"] == [0, 0]
    values = xr.DataArray(np.arange(30.0), dims="epoch")
    assert at_end(values).item() == 24.5


@pytest.mark.parametrize(
    ("quarter", "end", "expected"),
    [(4, (2, 6, 5), dict(fast=1, unordered=1)), (4.1, (2, 5, 6), dict(fast=0, unordered=0))],
)
def test_quantities_of_A3(quarter, end, expected):
    tau = moving((16, 8, 4), end)
    tau[:, 0] = 16
    tau[10, 0] = quarter  # of 40 intervals
    data = results_of(**{"learn_16-8-4": dict(tau=tau)})
    assert of(data, "A3") == {name: [value] * 2 for name, value in expected.items()}


def test_quantities_of_A4_are_ratios_of_the_end():
    learned, fixed = np.linspace(9, 9, 41), np.linspace(3, 3, 41)
    data = results_of(learn_100=dict(loss=0.5, closed=learned, closed_off=1), fixed_100=dict(loss=2, closed=fixed))
    assert of(data, "A4a") == {"loss_ratio": [0.25, 0.25]}
    assert of(data, "A4b") == {"closed_ratio": [3, 3]}
    assert of(data, "A4b", closed="closed_off") == {"closed_ratio": [1, 1]}


def test_network_that_diverged_counts_as_100_above_and_a_hundredth_below():
    nan = np.where(np.arange(41) < 20, 1.0, np.nan)
    good = np.ones(41)
    data = results_of(
        seeds=4,
        learn_100=dict(closed=np.stack([good, nan, good, nan])),
        fixed_100=dict(closed=np.stack([good, good, nan, nan])),
    )
    assert of(data, "A4b")["closed_ratio"] == [1, 100, 0.01, 1]
    for wrong in (np.inf, np.nan):
        two = [xr.DataArray(values) for values in ([2, wrong, 2, wrong], [4, 4, wrong, wrong])]
        assert ratio(*two).tolist() == [0.5, 100, 0.01, 1]


def alternating(size, epochs=41):
    """An error that goes up and down by a factor, 10 ** size."""
    return 10.0 ** (size * (np.arange(epochs) % 2))


def test_roughness_of_an_alternating_error_is_the_spread_of_its_steps():
    error = xr.DataArray(alternating(0.3), dims="epoch")
    steps = np.array([0.3, -0.3] * 10)  # 21 looks in the second half
    assert roughness(error).item() == pytest.approx(steps.std()) == pytest.approx(0.3)
    assert roughness(7 * error).item() == pytest.approx(0.3)  # the level does not count
    trend = xr.DataArray(10.0 ** np.linspace(0, -3, 41), dims="epoch")
    assert roughness(trend).item() == pytest.approx(0, abs=1e-12)
    assert roughness(trend * error).item() == pytest.approx(0.3)
    first = xr.DataArray(np.where(np.arange(41) < 20, alternating(2.0), 1.0), dims="epoch")
    assert roughness(first).item() == 0  # nor does the first half


def test_quantities_of_A5_compare_roughness():
    data = results_of(**{"learn_100": dict(closed=alternating(0.1)), "learn_16-8-4": dict(closed=alternating(0.25))})
    assert of(data, "A5")["roughness_ratio"] == pytest.approx([2.5, 2.5])
    data["closed"].loc[dict(setting="learn 16-8-4", seed=1, epoch=slice(3000, None))] = np.nan
    assert of(data, "A5")["roughness_ratio"] == pytest.approx([2.5, 100])


def test_error_that_overflows_counts_as_diverged_in_roughness():
    data = results_of(**{"learn_100": dict(closed=alternating(0.1)), "learn_16-8-4": dict(closed=alternating(0.25))})
    data["closed"].loc[dict(setting="learn 16-8-4", seed=1, epoch=slice(3000, None))] = np.inf
    assert of(data, "A5")["roughness_ratio"] == pytest.approx([2.5, 100])


@pytest.mark.parametrize(
    ("end", "hardly"), [((1, 10, 20), 1), ((1, 6, 12), 1), ((1, 10.1, 16), 0), ((1, 8, 11.9), 0), ((9, 8, 16), 1)]
)
def test_quantities_of_A6a(end, hardly):
    data = results_of(**{"learn_4-8-16": dict(tau=moving((4, 8, 16), end))})
    assert of(data, "A6a") == {"hardly": [hardly] * 2}


def test_quantities_of_A6b():
    start = results_of(**{"learn_4-8-16": dict(tau=(4, 8, 16)), "learn_8": dict(tau=(8, 8, 8))})
    assert of(start, "A6b")["distance_ratio"] == pytest.approx([1, 1])
    assert of(start, "A6b")["ordered"] == [0, 0]
    end = results_of(**{"learn_4-8-16": dict(tau=(1, 8, 16)), "learn_8": dict(tau=(1, 8, 32))})
    assert of(end, "A6b")["distance_ratio"] == pytest.approx([2**-0.5] * 2)
    assert of(end, "A6b")["ordered"] == [1, 1]
    same = results_of(**{"learn_4-8-16": dict(tau=(1, 9, 15)), "learn_8": dict(tau=(1, 9, 15))})
    assert of(same, "A6b")["distance_ratio"] == [0, 0]


def test_quantities_of_A7_and_A8a():
    data = results_of(
        **{
            "learn_8": dict(closed=4, tau=moving((8, 8, 8), (1.02, 8, 8))),
            "fixed_8": dict(closed=2),
            "learn_4-8-16": dict(tau=moving((4, 8, 16), (1, 8, 16))),
        }
    )
    assert of(data, "A7") == {"closed_ratio": [0.5, 0.5]}
    assert of(data, "A8a") == {"at_floor_exponential": [1, 1], "at_floor_8": [0, 0]}


def test_quantities_of_A8b():
    free = moving((4, 8, 16), (0.9, 8, 16))
    free[30, 0] = 0.6
    data = results_of(
        **{
            "no_clamp_4-8-16": dict(tau=free, closed=6 * alternating(0.2)),
            "learn_4-8-16": dict(closed=2 * alternating(0.1)),
        }
    )
    found = of(data, "A8b")
    assert found["lowest"] == pytest.approx([0.6, 0.6])
    assert found["roughness_ratio"] == pytest.approx([2, 2])
    # the last ten looks alternate: the median lies half way
    assert found["closed_ratio"] == pytest.approx([6 * (1 + 10**0.2) / 2 / (2 * (1 + 10**0.1) / 2)] * 2)


def test_network_that_diverged_without_clamp_counts_with_its_lowest_before():
    free = moving((4, 8, 16), (0.7, 8, 16))
    free[25:] = np.nan
    gone = np.where(np.arange(41) < 25, 1.0, np.nan)
    data = results_of(**{"no_clamp_4-8-16": dict(tau=free, closed=gone), "learn_4-8-16": dict(closed=alternating(0.1))})
    found = of(data, "A8b")
    assert found["lowest"] == pytest.approx([0.7, 0.7])
    assert found["closed_ratio"] == found["roughness_ratio"] == [100, 100]


CLAIMS = {key: claim for key, claim in read_claims().items() if claim.paper == "benureau2018"}


def test_every_claim_of_the_paper_gets_exactly_its_quantities(all_settings):
    for closed in ("closed", "closed_off"):
        found = quantities(all_settings, closed)
        assert {key: set(values) for key, values in found.items()} == {
            key: {quantity.name for quantity in claim.quantities} for key, claim in CLAIMS.items()
        }
        for key, values in found.items():
            assert all(value.shape == (2,) for value in values.values())
            assert judge(key, values, "smoke").verdict == "inconclusive"


def test_claims_whose_settings_were_not_run_are_left_out():
    assert set(quantities(results_of(learn_100={}))) == {"A2"}
    assert set(quantities(results_of(fixed_8={}, fixed_100={}))) == set()
    assert set(quantities(results_of(learn_8={}, fixed_8={}))) == {"A7"}
