from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr

from ts_helpers.book.claims import judge, read_claims
from ts_helpers.cells import MTRNNCell, unroll
from ts_helpers.datasets.sines import sums_of_sines
from ts_helpers.fit import fit
from ts_helpers.papers import benureau2018
from ts_helpers.papers.benureau2018 import (
    ALPHA,
    QUANTITIES,
    SETTINGS,
    Choices,
    NextStep,
    at_end,
    closed_loop_error,
    closed_ratio,
    distance_ratio,
    errors,
    experiment,
    low,
    mean_loss,
    network,
    quantities,
    ratio,
    roughness_ratio,
    stable,
    summed_loss,
    time_constants,
    volatility,
)
from ts_helpers.timescales import Clamped

X = sums_of_sines(n_steps=12)
SMALL = Choices(units=3)


# The network and its errors


def next_step(features=2, n_sequences=3, layers=(4, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    cell = MTRNNCell(features, layers, [2.0 * 2**k for k in range(len(layers))], Clamped(), generator=generator)
    net = NextStep(cell, features, n_sequences, generator=generator).double()
    assert net.h0.shape == (n_sequences, sum(layers)) and not net.h0.any()
    with torch.no_grad():
        net.h0.copy_(torch.randn(net.h0.shape, generator=generator, dtype=torch.float64))
    return net


def sequences(time=8, n_sequences=3, features=2, seed=1):
    return torch.randn(time, n_sequences, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_prediction_reads_the_lowest_layer_only():
    net, h = next_step(), sequences(4, 3, 7)
    V, c = net.V.detach().numpy(), net.c.detach().numpy()
    expected = [[V @ np.tanh(units[:4]) + c for units in each.numpy()] for each in h]
    np.testing.assert_allclose(net.read_out(h).detach().numpy(), expected, rtol=1e-12)


def test_open_loop_equals_stepping_and_closed_loop_feeding_outputs_back_by_hand():
    net, x = next_step(), sequences()
    h, expected = net.h0, []
    for x_t in x:
        h = net.cell(x_t, h)
        expected.append(net.read_out(h))
    torch.testing.assert_close(net(x), torch.stack(expected))
    inputs, expected = [x[0]], []
    for _ in range(6):
        expected.append(net(torch.stack(inputs))[-1])  # each time from the start, in open loop
        inputs.append(expected[-1])
    torch.testing.assert_close(net.generate(x[0], 6), torch.stack(expected))
    assert not torch.allclose(net.generate(x[0], 5)[1:], net(x)[1:5])


class _Generate(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        return self.net.generate(torch.full((2, 1), 0.3).double(), 4)


def test_gradient_through_the_closed_loop_passes_gradcheck_and_reaches_the_initial_state():
    net = next_step(layers=(2, 2), features=1, n_sequences=2)
    names, values = zip(*net.named_parameters(prefix="net"), strict=True)

    def generated(*values):
        return torch.func.functional_call(_Generate(net), dict(zip(names, values, strict=True)), ())

    assert torch.autograd.gradcheck(generated, [p.detach().clone().requires_grad_(True) for p in values])
    for made in (net(torch.ones(6, 2, 1).double()), net.generate(torch.ones(2, 1).double(), 6)):
        (gradient,) = torch.autograd.grad(made.square().sum(), net.h0)
        assert bool((gradient != 0).all())


def test_closed_loop_error_equals_numpy_transcription():
    x, generated = sequences(), sequences(7, seed=2)
    aligned = off = 0.0
    for s, f, t in np.ndindex(3, 2, 7):
        aligned += (generated[t, s, f] - x[t + 1, s, f]).item() ** 2
        late = x[0, s, f] if t == 0 else generated[t - 1, s, f]
        off += (late - x[t + 1, s, f]).item() ** 2
    assert closed_loop_error(generated, x).item() == pytest.approx(aligned / 3)
    assert closed_loop_error(generated, x, "one step off").item() == pytest.approx(off / 3)
    assert torch.isnan(closed_loop_error(torch.full((7, 3, 2), torch.nan), x))
    assert torch.isinf(closed_loop_error(torch.full((7, 3, 2), torch.inf), x))


def test_perfect_reproduction_and_constant_mean_score_what_the_data_say():
    x = sums_of_sines().double()
    assert closed_loop_error(x[1:], x).item() == 0
    off = closed_loop_error(x[1:], x, "one step off").item()
    assert off == pytest.approx(((x[1:] - x[:-1]) ** 2).sum((0, 2)).mean().item())
    assert off == pytest.approx(8.22, abs=0.005)
    constant = closed_loop_error(x.mean(0).expand(99, 5, 1), x)
    assert constant.item() == pytest.approx(42.0, abs=0.3)  # 99 of its 100 steps
    assert (constant + ((x[0] - x.mean(0)) ** 2).mean()).item() == pytest.approx(42.0, abs=0.05)


def test_losses_and_metrics_equal_their_definitions():
    net = network(SETTINGS["learn 16-8-4"], SMALL, 5, 1, seed=(0,))
    with torch.no_grad():
        open_loop, generated = net(X[:-1]), net.generate(X[0], 11)
        loss, closed, off = errors(net, X).tolist()
        states = np.stack([h.numpy() for h in unroll(net.cell, X[:-1], net.h0)])
    squares = ((open_loop - X[1:]) ** 2).numpy()
    assert loss == pytest.approx(squares.mean(), rel=1e-5) == pytest.approx(mean_loss(net, X).item())
    penalty = sum((h**2).sum() / 9 for h in states)  # 3 layers of 3 units
    assert summed_loss(net, X).item() == pytest.approx(0.999 * squares.sum() + 0.001 * penalty, rel=1e-5)
    assert closed == pytest.approx(closed_loop_error(generated, X).item())
    assert off == pytest.approx(closed_loop_error(generated, X, "one step off").item())
    np.testing.assert_allclose(time_constants(net, X).tolist(), [16, 8, 4], rtol=1e-6)


# The experiment


def tried(names=("learn 8", "fixed 8"), x=X, choices=SMALL, **change):
    return experiment(names, x, choices=choices, **dict(n_seeds=2, seed=5, epochs=20) | change)


CALLS = {
    **{
        f"generated of shape {shape}": (
            partial(closed_loop_error, torch.zeros(shape), sequences()),
            r"generated must have shape \(7, 3, 2\), one step less than x, got .*\d",
        )
        for shape in [(8, 3, 2), (7, 3, 1), (7, 1, 2), (7, 3)]
    },
    "alignment": (
        partial(closed_loop_error, torch.zeros(7, 3, 2), sequences(), "off"),
        "against must be 'aligned' or 'one step off', got 'off'",
    ),
    "features": (
        partial(next_step().__init__, next_step().cell, 0, 3, generator=None),
        "got features=0, n_sequences=3",
    ),
    "sequences": (partial(next_step().__init__, next_step().cell, 2, -1, generator=None), "features=2, n_sequences=-1"),
    "input": (partial(next_step(), torch.zeros(6, 2, 2).double()), "must have shape"),
    "names": (partial(tried, ["learn 9"]), r"names must be of learn 100, .*, got 'learn 9'"),
    "seeds": (partial(tried, x=X.expand(3, *X.shape)), "x must have sequences for each of 2 seeds, got 3"),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_does_not_fit_is_refused(call):
    function, message = CALLS[call]
    with pytest.raises(ValueError, match=message):
        function()


@pytest.fixture(scope="module")
def all_settings():
    return tried(list(SETTINGS))


def test_experiment_returns_what_it_says(all_settings):
    assert {name: " ".join(v.dims) for name, v in all_settings.data_vars.items()} == {
        "tau": "setting seed epoch layer",
        **dict.fromkeys(("loss", "closed", "closed_off"), "setting seed epoch"),
        "generated": "setting seed step sequence feature",
        "diverged": "setting seed",
    }
    assert dict(all_settings.sizes) == dict(setting=9, seed=2, epoch=11, layer=3, step=11, sequence=5, feature=1)
    assert all_settings.setting.values.tolist() == list(SETTINGS)
    assert all_settings.epoch.values.tolist() == list(range(0, 21, 2))
    assert all_settings.step.values.tolist() == list(range(1, 12))
    assert all(variable.attrs["long_name"] for variable in all_settings.variables.values())
    assert all_settings.attrs["seconds"] > 0


def test_settings_start_where_the_paper_says_and_fixed_ones_stay_there(all_settings):
    starts = {"100": (100, 100, 100), "16-8-4": (16, 8, 4), "4-8-16": (4, 8, 16), "8": (8, 8, 8)}
    for name, setting in SETTINGS.items():
        tau = all_settings.tau.sel(setting=name)
        start = np.broadcast_to(starts[name.split()[-1]], (2, 3))
        np.testing.assert_allclose(tau.sel(epoch=0).values, start, rtol=1e-6)
        assert bool((tau == tau.isel(epoch=0)).all()) == name.startswith("fixed") == (setting.lr_scale == 0)
        dial = network(setting, SMALL, 5, 1, seed=(0,)).cell.parametrizations.alpha[0]
        assert dial.floor == (0 if name.startswith("no clamp") else 1)
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


def test_networks_of_one_seed_start_with_the_same_weights_and_errors_in_every_setting(all_settings):
    for choices in (SMALL, Choices(units=3, dial="log"), Choices(units=3, update="sequential")):
        one, same = (network(SETTINGS[name], choices, 5, 1, seed=(5, 1)) for name in ("learn 100", "no clamp 4-8-16"))
        other = network(SETTINGS["learn 100"], choices, 5, 1, seed=(5, 0))
        for name, p in one.named_parameters():
            assert torch.equal(p, same.get_parameter(name)) == (name != ALPHA)
            assert torch.equal(p, other.get_parameter(name)) == (name in (ALPHA, "h0"))
    first = all_settings.isel(epoch=0)
    for name in ("loss", "closed", "closed_off"):
        for one, other in (("learn 8", "fixed 8"), ("learn 100", "fixed 100"), ("learn 4-8-16", "no clamp 4-8-16")):
            np.testing.assert_allclose(first[name].sel(setting=one), first[name].sel(setting=other), rtol=1e-5)


def test_experiment_repeats_with_its_seed_and_in_other_company():
    one, same, other = tried(epochs=10), tried(epochs=10), tried(epochs=10, seed=6)
    xr.testing.assert_identical(one.drop_attrs(deep=False), same.drop_attrs(deep=False))
    assert (one.loss != other.loss).all()
    alone, together = tried(["fixed 8"]), tried(["learn 16-8-4", "fixed 8"])
    xr.testing.assert_allclose(alone.sel(setting="fixed 8"), together.sel(setting="fixed 8"), rtol=1e-4)


def test_networks_can_have_sequences_of_their_own():
    made, first = tried(x=torch.stack([X, X.flip(1) / 2])), tried()
    xr.testing.assert_allclose(made.isel(seed=0), first.isel(seed=0), rtol=1e-4)
    assert (abs(made.loss.isel(seed=1) - first.loss.isel(seed=1)) > 1e-6).all()


def test_generated_is_what_the_last_errors_are_of(all_settings):
    generated = torch.as_tensor(all_settings.generated.values)
    for i, s in np.ndindex(len(SETTINGS), 2):
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
    monkeypatch.setattr(benureau2018, "fit", lambda *words, **options: seen.append(options) or fit(*words, **options))
    for change in (dict(), dict(dial="projection"), dict(loss="sum")):
        tried(["learn 8"], choices=Choices(units=3, **change), epochs=1)
    assert [options["lower_bounds"] for options in seen] == [None, {ALPHA: [1.0, 1.0]}, None]
    assert [options["clip_norm"] for options in seen] == [None, None, 1.0]
    assert seen[2]["norm_type"] == np.inf


def test_network_that_diverged_has_no_error_from_then_on(monkeypatch):
    monkeypatch.setattr(benureau2018, "summed_loss", lambda net, x: mean_loss(net, x) * torch.nan)
    made = tried(choices=Choices(units=3, loss="sum"))
    assert (made.diverged == 0).all()
    assert made.closed.isnull().all()
    assert made.tau.notnull().all()


# Quantities, from small data sets of which they are known


def results_of(settings, epochs=41, seeds=2):
    """Data like an experiment's: tau 8 and errors 1 everywhere, but for what is given of a setting."""
    shape = (len(settings), seeds, epochs)
    made = {
        "tau": (("setting", "seed", "epoch", "layer"), np.full((*shape, 3), 8.0)),
        **{name: (("setting", "seed", "epoch"), np.ones(shape)) for name in ("loss", "closed", "closed_off")},
    }
    coords = {"setting": list(settings), "seed": range(seeds), "epoch": 100 * np.arange(epochs), "layer": range(3)}
    data = xr.Dataset(made, coords=coords)
    for name, given in settings.items():
        for variable, value in given.items():
            data[variable].loc[dict(setting=name)] = np.array(value, float)
    return data


def moving(start, end, epochs=41):
    """Time constants (epoch, layer) that go straight from start to end in the first half."""
    way = np.clip(np.linspace(0, 2, epochs), 0, 1)[:, None]
    return (1 - way) * np.array(start, float) + way * np.array(end, float)


def from_100(*end):
    return {"learn 100": dict(tau=moving((100, 100, 100), end))}


def from_16(quarter, *end):
    tau = moving((16, 8, 4), end)
    tau[:10, 0] = 16
    tau[10, 0] = quarter  # of 40 intervals
    return {"learn 16-8-4": dict(tau=tau)}


def exponential(*end):
    return {"learn 4-8-16": dict(tau=moving((4, 8, 16), end))}


def two_starts(exponential, eight):
    return {"learn 4-8-16": dict(tau=exponential), "learn 8": dict(tau=eight)}


EIGHT = {
    "learn 8": dict(closed=4, tau=moving((8, 8, 8), (1.02, 8, 8))),
    "fixed 8": dict(closed=2),
    "learn 4-8-16": dict(tau=moving((4, 8, 16), (1, 8, 16))),
}
HUNDRED = {"learn 100": dict(loss=0.5, closed=9, closed_off=1), "fixed 100": dict(loss=2, closed=3)}


@pytest.mark.parametrize(
    ("claim", "settings", "expected"),
    [
        ("A2", from_100(5, 80, 120), dict(low=1, stable=1, ordered=1)),
        ("A2", from_100(10, 80, 120), dict(low=1, stable=1, ordered=1)),
        ("A2", from_100(10.1, 120, 80), dict(low=0, stable=1, ordered=0)),
        ("A2", from_100(5, 49, 120), dict(low=1, stable=0, ordered=1)),
        ("A2", from_100(5, 80, 201), dict(low=1, stable=0, ordered=1)),
        ("A2", from_100(90, 80, 120), dict(low=0, stable=1, ordered=0)),
        ("A3", from_16(4, 2, 6, 5), dict(fast=1, unordered=1)),
        ("A3", from_16(4.1, 2, 5, 6), dict(fast=0, unordered=0)),
        ("A4a", HUNDRED, dict(loss_ratio=0.25)),
        ("A4b", HUNDRED, dict(closed_ratio=3)),
        ("A6a", exponential(1, 10, 20), dict(hardly=1)),
        ("A6a", exponential(1, 6, 12), dict(hardly=1)),
        ("A6a", exponential(1, 10.1, 16), dict(hardly=0)),
        ("A6a", exponential(1, 8, 11.9), dict(hardly=0)),
        ("A6a", exponential(9, 8, 16), dict(hardly=1)),
        ("A6b", two_starts((4, 8, 16), (8, 8, 8)), dict(distance_ratio=1, ordered=0)),
        ("A6b", two_starts((1, 8, 16), (1, 8, 32)), dict(distance_ratio=2**-0.5, ordered=1)),
        ("A6b", two_starts((1, 9, 15), (1, 9, 15)), dict(distance_ratio=0, ordered=1)),
        ("A7", EIGHT, dict(closed_ratio=0.5)),
        ("A8a", EIGHT, dict(at_floor_exponential=1, at_floor_8=0)),
    ],
)
def test_quantities_of_known_results(claim, settings, expected):
    found = quantities(results_of(settings))[claim]
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value] * 2), name


def test_stable_means_at_every_evaluation_and_the_end_is_the_median_of_the_last_ten():
    tau = from_100(5, 80, 120)["learn 100"]["tau"]
    dip, four, six = (tau.copy() for _ in range(3))
    dip[7, 1], four[-4:, 0], six[-6:, 0] = 49, 99, 99
    assert stable(results_of({"learn 100": dict(tau=dip)})).tolist() == [0, 0]
    assert [low(results_of({"learn 100": dict(tau=tau)})).tolist() for tau in (four, six)] == [[1, 1], [0, 0]]
    assert at_end(xr.DataArray(np.arange(30.0), dims="epoch")).item() == 24.5


def alternating(size, epochs=41):
    """An error that goes up and down by a factor, 10 ** size."""
    return 10.0 ** (size * (np.arange(epochs) % 2))


def test_volatility_of_an_alternating_error_is_the_spread_of_its_steps():
    error = xr.DataArray(alternating(0.3), dims="epoch")
    steps = np.array([0.3, -0.3] * 10)  # 21 evaluations in the second half
    assert volatility(error).item() == pytest.approx(steps.std()) == pytest.approx(0.3)
    assert volatility(7 * error).item() == pytest.approx(0.3)  # the level does not count
    trend = xr.DataArray(10.0 ** np.linspace(0, -3, 41), dims="epoch")
    assert volatility(trend).item() == pytest.approx(0, abs=1e-12)
    assert volatility(trend * error).item() == pytest.approx(0.3)
    first = xr.DataArray(np.where(np.arange(41) < 20, alternating(2.0), 1.0), dims="epoch")
    assert volatility(first).item() == 0  # nor does the first half


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_network_that_diverged_counts_as_100_above_and_a_hundredth_below(wrong):
    two = [xr.DataArray(values) for values in ([2, wrong, 2, wrong], [4, 4, wrong, wrong])]
    assert ratio(*two).tolist() == [0.5, 100, 0.01, 1]
    data = results_of({"learn 100": dict(closed=alternating(0.1)), "learn 16-8-4": dict(closed=alternating(0.25))})
    assert roughness_ratio(data).tolist() == pytest.approx([2.5, 2.5])
    data["closed"].loc[dict(setting="learn 16-8-4", seed=1, epoch=slice(3000, None))] = wrong
    assert roughness_ratio(data).tolist() == pytest.approx([2.5, 100])
    assert closed_ratio(data, "learn 16-8-4", "learn 100")[1] == 100


def test_the_lowest_and_the_ratios_without_clamp():
    free = moving((4, 8, 16), (0.9, 8, 16))
    free[30, 0] = 0.6
    clamped = dict(closed=2 * alternating(0.1))
    found = quantities(
        results_of({"no clamp 4-8-16": dict(tau=free, closed=6 * alternating(0.2)), "learn 4-8-16": clamped})
    )
    # the last ten evaluations alternate: the median lies half way
    expected = dict(lowest=0.6, roughness_ratio=2, closed_ratio=3 * (1 + 10**0.2) / (1 + 10**0.1))
    assert {name: values.tolist() for name, values in found["A8b"].items()} == {
        name: pytest.approx([value] * 2) for name, value in expected.items()
    }
    free[25:] = np.nan
    free[24, 0] = 0.7
    gone = dict(tau=free, closed=np.where(np.arange(41) < 25, 1.0, np.nan))  # counts with its lowest before
    found = quantities(results_of({"no clamp 4-8-16": gone, "learn 4-8-16": clamped}))["A8b"]
    assert {name: values.tolist() for name, values in found.items()} == dict(
        lowest=[0.7] * 2, closed_ratio=[100] * 2, roughness_ratio=[100] * 2
    )


def test_every_claim_of_the_paper_gets_exactly_its_quantities(all_settings):
    claims = {key: claim for key, claim in read_claims().items() if claim.paper == "benureau2018"}
    for closed in ("closed", "closed_off"):
        found = quantities(all_settings, closed)
        assert {key: set(values) for key, values in found.items()} == {
            key: {quantity.name for quantity in claim.quantities} for key, claim in claims.items()
        }
        for key, values in found.items():
            assert all(value.shape == (2,) for value in values.values())
            assert judge(key, values, "smoke").verdict == "inconclusive"


def test_closed_loop_error_can_be_chosen_and_claims_whose_settings_were_not_run_are_left_out():
    assert closed_ratio(results_of(HUNDRED), closed="closed_off").tolist() == [1, 1]
    assert quantities(results_of(HUNDRED), "closed_off")["A4b"]["closed_ratio"].tolist() == [1, 1]
    assert set(quantities(results_of({"learn 100": {}}))) == {"A2"}
    assert set(quantities(results_of({"fixed 8": {}, "fixed 100": {}}))) == set()
    assert set(quantities(results_of({"learn 8": {}, "fixed 8": {}}))) == {"A7"}
    with pytest.raises(KeyError):
        distance_ratio(results_of({"learn 8": {}}))
    assert set(QUANTITIES) == {"A2", "A3", "A4a", "A4b", "A5", "A6a", "A6b", "A7", "A8a", "A8b"}
