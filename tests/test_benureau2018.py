import numpy as np
import pytest
import torch
import xarray as xr

from ts_helpers.book.claims import judge, read_claims
from ts_helpers.cells import MTRNNCell, unroll
from ts_helpers.datasets.sines import sums_of_sines
from ts_helpers.fit import fit
from ts_helpers.papers import benureau2018 as paper
from ts_helpers.papers.benureau2018 import ALPHA, SETTINGS, Choices, NextStep, closed_loop_error, quantities
from ts_helpers.timescales import Clamped

X = sums_of_sines(n_steps=12)
SMALL = Choices(units=3)


# The network and its errors


def next_step(features=2, n_sequences=3, layers=(4, 3)):
    generator = torch.Generator().manual_seed(0)
    cell = MTRNNCell(features, layers, [2.0 * 2**k for k in range(len(layers))], Clamped(), generator=generator)
    net = NextStep(cell, features, n_sequences, generator=generator).double()
    assert net.h0.shape == (n_sequences, sum(layers)) and not net.h0.any()
    with torch.no_grad():
        net.h0.copy_(torch.randn(net.h0.shape, generator=generator, dtype=torch.float64))
    return net


def sequences(time=8, n_sequences=3, features=2, seed=1):
    return torch.randn(time, n_sequences, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_open_loop_equals_stepping_and_closed_loop_feeding_outputs_back_by_hand():
    net, x = next_step(), sequences()
    V, c = net.V.detach().numpy(), net.c.detach().numpy()
    h, expected = net.h0, []
    for x_t in x:
        h = net.cell(x_t, h)
        expected.append([V @ np.tanh(units[:4]) + c for units in h.detach().numpy()])  # of the lowest layer only
    np.testing.assert_allclose(net(x).detach().numpy(), expected, rtol=1e-9)
    inputs, expected = [x[0]], []
    for _ in range(6):
        expected.append(net(torch.stack(inputs))[-1])  # each time from the start, in open loop
        inputs.append(expected[-1])
    torch.testing.assert_close(net.generate(x[0], 6), torch.stack(expected))
    assert not torch.allclose(net.generate(x[0], 5)[1:], net(x)[1:5])


def test_gradient_through_the_closed_loop_passes_gradcheck_and_reaches_the_initial_state(monkeypatch):
    net = next_step(layers=(2, 2), features=1, n_sequences=2)
    names, values = zip(*net.named_parameters(), strict=True)
    x = torch.full((2, 1), 0.3).double()
    for made in (net(x.expand(6, 2, 1)), net.generate(x, 6)):
        (gradient,) = torch.autograd.grad(made.square().sum(), net.h0)
        assert bool((gradient != 0).all())
    monkeypatch.setattr(NextStep, "forward", lambda self: self.generate(x, 4))
    generated = lambda *values: torch.func.functional_call(net, dict(zip(names, values, strict=True)), ())  # noqa: E731
    assert torch.autograd.gradcheck(generated, [p.detach().clone().requires_grad_(True) for p in values])


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
    assert off == pytest.approx(((x[1:] - x[:-1]) ** 2).sum((0, 2)).mean().item()) == pytest.approx(8.24, abs=0.005)
    constant = closed_loop_error(x.mean(0).expand(99, 5, 1), x) + ((x[0] - x.mean(0)) ** 2).mean()  # of all 100 steps
    assert constant.item() == pytest.approx(42.1, abs=0.05)


def test_losses_and_metrics_equal_their_definitions():
    net = paper.network(SETTINGS["learn 16-8-4"], SMALL, 5, 1, seed=(0,))
    with torch.no_grad():
        open_loop, generated, states = net(X[:-1]), net.generate(X[0], 11), unroll(net.cell, X[:-1], net.h0).numpy()
        loss, closed, off = paper.errors(net, X).tolist()
    squares = ((open_loop - X[1:]) ** 2).numpy()
    assert loss == pytest.approx(squares.mean(), rel=1e-5) == pytest.approx(paper.mean_loss(net, X).item())
    penalty = sum((h**2).sum() / 9 for h in states)  # 3 layers of 3 units
    assert paper.summed_loss(net, X).item() == pytest.approx(0.999 * squares.sum() + 0.001 * penalty, rel=1e-5)
    assert closed == pytest.approx(closed_loop_error(generated, X).item())
    assert off == pytest.approx(closed_loop_error(generated, X, "one step off").item())
    np.testing.assert_allclose(paper.time_constants(net, X).tolist(), [16, 8, 4], rtol=1e-6)


# The experiment


def tried(names=("learn 8", "fixed 8"), x=X, choices=SMALL, **change):
    return paper.experiment(names, x, choices=choices, **dict(n_seeds=2, seed=5, epochs=20) | change)


SHAPE = r"generated must be as x, \(time, sequences, features\), but a step less, got .*\d"
AGAINST = "against must be one of aligned, one step off, got 'off'"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda shape=shape: closed_loop_error(torch.zeros(shape), sequences()), SHAPE)
            for shape in [(8, 3, 2), (7, 3, 1), (7, 1, 2), (7, 3)]
        ),
        (lambda: closed_loop_error(torch.zeros(7, 3, 2), sequences(), "off"), AGAINST),
        (lambda: NextStep(next_step().cell, 0, 3, generator=torch.Generator()), "features=0, n_sequences=3"),
        (lambda: NextStep(next_step().cell, 2, -1, generator=torch.Generator()), "features=2, n_sequences=-1"),
        (lambda: Choices(dial="clmp"), "dial must be one of clamp, projection, log, got 'clmp'"),
        (lambda: Choices(loss="mse"), "loss must be one of mean, sum, got 'mse'"),
        (lambda: tried([]), "names must be one of learn 100"),
        (lambda: next_step()(torch.zeros(6, 2, 2).double()), "state must have shape"),
        (lambda: next_step()(torch.zeros(6, 3, 1).double()), "x must have shape"),
        (lambda: tried(["learn 9"]), "names must be one of learn 100, .*, got 'learn 9'"),
        (lambda: tried(x=X.expand(3, *X.shape)), r"x must be .*, or that for each of 2 seeds, got torch.Size\(\[3, "),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def all_settings():
    return tried(list(SETTINGS))


def test_experiment_returns_what_it_says_and_what_was_generated_has_the_last_errors(all_settings):
    assert {name: " ".join(v.dims) for name, v in all_settings.data_vars.items()} == {
        "tau": "setting seed epoch layer",
        **dict.fromkeys(("loss", "closed", "closed_off"), "setting seed epoch"),
        **dict.fromkeys(("predicted", "generated"), "setting seed step sequence feature"),
        "diverged": "setting seed",
        "seconds": "",
    }
    assert dict(all_settings.sizes) == dict(setting=9, seed=2, epoch=11, layer=3, step=11, sequence=5, feature=1)
    coords = {name: all_settings[name].values.tolist() for name in ("setting", "epoch", "step")}
    assert coords == dict(setting=list(SETTINGS), epoch=list(range(0, 21, 2)), step=list(range(1, 12)))
    assert all(variable.attrs["long_name"] for variable in all_settings.variables.values())
    assert all_settings.seconds > 0
    for i, s in np.ndindex(len(SETTINGS), 2):
        one = all_settings.isel(setting=i, seed=s)
        for name, against in (("closed", "aligned"), ("closed_off", "one step off")):
            error = closed_loop_error(torch.as_tensor(one.generated.values), X, against)
            assert error.item() == pytest.approx(one[name][-1].item(), rel=1e-4)
        assert ((one.predicted.values - X[1:].numpy()) ** 2).mean() == pytest.approx(one.loss[-1].item(), rel=1e-4)


def test_sizes_are_trained_beside_each_other_and_one_of_them_or_the_only_one_can_be_had():
    how = dict(n_seeds=2, seed=5, epochs=20)
    both, one = paper.sizes([3, 4], ["learn 8"], X, **how), paper.sizes([3], ["learn 8"], X, **how)
    alone = tried(["learn 8"]).drop_vars("seconds")
    for made in (paper.at(both, 3), paper.at(one, 3), paper.at(one, 25), alone):
        xr.testing.assert_allclose(made.drop_vars(["units", "seconds"], errors="ignore"), alone, rtol=1e-4)
    assert (paper.at(both, 4).loss != alone.loss).all() and both.seconds.shape == (2,)
    assert paper.size(both) == "2 networks of 3 and 4 units, 20 epochs" and paper.size(alone) == "2 networks, 20 epochs"
    assert [*paper.runs_at({"recorded: all": both, "this run: all": one}, 4)] == [
        "recorded: 2 networks of 4 units, 20 epochs",
        "this run: 2 networks of 3 units, 20 epochs",
    ]


def test_settings_start_where_the_paper_says_and_fixed_ones_stay_there(all_settings):
    starts = {"100": (100, 100, 100), "16-8-4": (16, 8, 4), "4-8-16": (4, 8, 16), "8": (8, 8, 8)}
    for name, setting in SETTINGS.items():
        tau = all_settings.tau.sel(setting=name)
        np.testing.assert_allclose(tau.sel(epoch=0), np.broadcast_to(starts[name.split()[-1]], (2, 3)), rtol=1e-6)
        assert bool((tau == tau.isel(epoch=0)).all()) == name.startswith("fixed") == (setting.lr_scale == 0)
        dial = paper.network(setting, SMALL, 5, 1, seed=(0,)).cell.parametrizations.alpha[0]
        assert dial.floor == (0 if name.startswith("no clamp") else 1)
    assert (all_settings.loss.isel(epoch=0) != all_settings.loss.isel(epoch=-1)).all()


def test_tau_first_moves_by_its_learning_rate():
    """The first step of Adam is the learning rate, whatever the gradient; less where that is next to nothing."""
    made = tried(["learn 100", "learn 8", "learn 16-8-4"], epochs=1)
    relative = abs(made.tau.diff("epoch")).values[:, :, 0] / np.array([0.1, 0.01, 0.01])[:, None, None]
    assert (relative <= 1.001).all()
    np.testing.assert_allclose(relative[..., 0], 1, rtol=0.02)
    log = np.log(tried(["learn 100"], epochs=1, choices=Choices(units=3, dial="log")).tau)
    np.testing.assert_allclose(abs(log.diff("epoch")).values[..., 0], 1e-3, rtol=0.02)


def test_networks_of_one_seed_start_with_the_same_weights_and_errors_in_every_setting(all_settings):
    for choices in (SMALL, Choices(units=3, dial="log"), Choices(units=3, update="sequential")):
        one, same, other = (
            paper.network(SETTINGS[name], choices, 5, 1, seed=(5, seed))
            for name, seed in (("learn 100", 1), ("no clamp 4-8-16", 1), ("learn 100", 0))
        )
        for name, p in one.named_parameters():
            assert torch.equal(p, same.get_parameter(name)) == (name != ALPHA)
            assert torch.equal(p, other.get_parameter(name)) == (name in (ALPHA, "h0"))
    first = all_settings[["loss", "closed", "closed_off"]].isel(epoch=0)
    for one, other in (("learn 8", "fixed 8"), ("learn 100", "fixed 100"), ("learn 4-8-16", "no clamp 4-8-16")):
        both = [first.sel(setting=name, drop=True) for name in (one, other)]
        xr.testing.assert_allclose(*both, rtol=1e-5)


def test_experiment_repeats_with_its_seed_in_other_company_and_with_sequences_of_its_own():
    one, same, other = (made.drop_vars("seconds") for made in (tried(), tried(), tried(seed=6)))
    xr.testing.assert_identical(one, same)
    assert (one.loss != other.loss).all()
    beside = tried(["learn 16-8-4", "fixed 8"]).sel(setting="fixed 8").drop_vars("seconds")
    xr.testing.assert_allclose(one.sel(setting="fixed 8"), beside, rtol=1e-4)
    each = tried(x=torch.stack([X, X.flip(1) / 2])).drop_vars("seconds")
    xr.testing.assert_allclose(each.isel(seed=0), one.isel(seed=0), rtol=1e-4)
    assert (abs(each.loss - one.loss).isel(seed=1) > 1e-6).all()


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
@pytest.mark.parametrize("dial", ["clamp", "projection", "log"])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_every_choice_reaches_the_training_and_learns(update, dial, loss, monkeypatch):
    seen = {}
    monkeypatch.setattr(paper, "fit", lambda *words, **how: seen.update(how) or fit(*words, **how))
    made = tried(["learn 8"], choices=Choices(3, update, dial, loss), epochs=60, n_seeds=1)
    assert made.loss.values[0, 0, -1] < made.loss.values[0, 0, 0]
    assert made.diverged.values.tolist() == [[-1]]
    assert seen["lower_bounds"] == ({ALPHA: [1.0]} if dial == "projection" else None)
    assert (seen["clip_norm"], seen["norm_type"]) == (1.0 if loss == "sum" else None, np.inf)


def test_network_that_diverged_has_no_error_from_then_on(monkeypatch):
    monkeypatch.setattr(paper, "summed_loss", lambda net, x: paper.mean_loss(net, x) * torch.nan)
    made = tried(choices=Choices(units=3, loss="sum"))
    assert (made.diverged == 0).all() and made.closed.isnull().all() and (made.tau == made.tau.isel(epoch=0)).all()


def test_every_claim_of_the_paper_gets_exactly_its_quantities(all_settings):
    named = {
        key: {q.name for q in claim.quantities} for key, claim in read_claims().items() if claim.paper == "benureau2018"
    }
    for closed in ("closed", "closed_off"):
        found = quantities(all_settings, closed)
        assert {key: set(values) for key, values in found.items()} == named
        for key, values in found.items():
            assert all(value.shape == (8 if key == "A8a" else 2,) for value in values.values())
            assert judge(key, values, "smoke").verdict == "inconclusive"
