import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from torch.nn.functional import mse_loss, one_hot

from ts_helpers.datasets.copying import ADDING_MEMORYLESS, DUMMY, adding, copying, memoryless
from ts_helpers.papers.tallec2018.lstm import LSTMNetwork
from ts_helpers.papers.tallec2018.memory_tasks import (
    TASKS,
    Task,
    at_end,
    came_below,
    chrono,
    compare,
    cost,
    halfway,
    plot_starts,
    runs_of,
    size,
    standard,
    steps_taken,
)
from ts_helpers.seeding import generator_of
from ts_helpers.timescales import chrono_init_

STARTS = {"standard": standard, "chrono": chrono(20)}


def compared(task="adding", T=5, starts=STARTS, **how):
    how = dict(n_seeds=2, n_steps=20, n_evaluations=4, units=6, lr=0.01) | how
    return compare(task, T, starts, **how)


def test_lstm_scores_are_those_of_the_equations_and_weights_those_of_the_generator():
    network, again, other = (LSTMNetwork(3, 7, 2, generator=generator_of(k)).double() for k in (0, 0, 1))
    lstm, h, u = network.lstm, torch.zeros(4, 7).double(), torch.zeros(4, 7).double()
    x, scores = torch.randn(5, 4, 3, dtype=torch.float64, generator=generator_of(1)), []
    for x_t in x:
        drive = x_t @ lstm.weight_ih_l0.T + h @ lstm.weight_hh_l0.T + lstm.bias_ih_l0 + lstm.bias_hh_l0
        i, f, g, o = drive.chunk(4, 1)
        u = f.sigmoid() * u + i.sigmoid() * g.tanh()
        h = o.sigmoid() * u.tanh()
        scores.append(h @ network.read_out.weight.T + network.read_out.bias)
    torch.testing.assert_close(network(x), torch.stack(scores), rtol=1e-12, atol=1e-12)
    for p, q, r in zip(network.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r)
        assert p.abs().max() <= 7**-0.5


def test_starts_set_the_biases_of_forget_and_input_gates():
    lstm = torch.nn.LSTM(2, 400)
    before = [p.clone() for p in lstm.parameters()]
    standard(lstm, torch.Generator())
    i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    was_i, _, was_g, was_o = (before[2] + before[3]).chunk(4)
    assert bool((f == 1).all())
    assert all(torch.equal(now, was) for now, was in ((i, was_i), (g, was_g), (o, was_o)))
    chrono(50)(lstm, generator_of(0))
    i, f, g, o = (lstm.bias_ih_l0 + lstm.bias_hh_l0).chunk(4)
    times = 1 + f.exp()
    assert times.min() >= 2 and times.max() <= 50 and 24 < times.mean() < 28
    assert all(torch.equal(now, was) for now, was in ((i, -f), (g, was_g), (o, was_o)))
    assert torch.equal(lstm.weight_hh_l0, before[1])


# The experiment


@pytest.mark.parametrize("task", TASKS)
def test_each_task_trains_from_both_starts(task):
    results = compared(task)
    assert dict(results.sizes) == {"start": 2, "seed": 2, "look": 5}
    assert results.step.values.tolist() == [0, 5, 10, 15, 20]
    assert bool(np.isfinite(results.loss).all())
    assert bool((results.isel(look=-1).loss < results.isel(look=0).loss).all())
    assert bool((results.taken == 20).all()) and not results.diverged.any() and bool((results.seconds > 0).all())


def test_losses_are_those_of_a_training_written_out():
    found = compared().loss.sel(start="chrono")[1] * ADDING_MEMORYLESS
    network = LSTMNetwork(2, 6, 1, generator=generator_of(0, 0, 1))
    chrono_init_(network.lstm, 20, generator=generator_of(0, 1, 1))
    optimizer = torch.optim.RMSprop(network.parameters(), lr=0.01, alpha=0.9)
    losses = []
    for step in range(21):
        if step % 5 == 0:
            x, y = adding(5, 500, generator=generator_of(0, 2, 1))
            losses.append(mse_loss(network(x)[-1], y).item())
        x, y = adding(5, 32, generator=generator_of(0, 3, 1, step))
        optimizer.zero_grad()
        mse_loss(network(x)[-1], y).backward()
        optimizer.step()
    np.testing.assert_allclose(found, losses, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("task", ["copying", "adding"])
def test_networks_on_a_gpu_have_the_losses_of_those_on_the_cpu(task):
    cpu, gpu = (compared(task, units=128, lr=1e-3, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.loss, cpu.loss, rtol=1e-3)


def test_starts_of_a_run_share_weights_and_sequences_and_runs_and_seeds_do_not():
    same = {"one": standard, "other": standard}
    first, again, another = (compared(starts=same, seed=seed).loss.values for seed in (0, 0, 1))
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(first, again) and not np.array_equal(first, another)


def test_training_that_is_done_stops_and_says_so():
    results = compared(stop_below=1e6)
    assert bool((results.taken == 10).all())
    assert bool(np.isnan(results.loss.isel(look=slice(3, None))).all())
    assert bool((compared(stop_below=1e-6).taken == 20).all())


class Guesser(torch.nn.Module):
    """Outputs the dummy at every step, as sure as can be."""

    def __init__(self):
        super().__init__()
        self.sure = torch.nn.Parameter(torch.tensor(30.0))

    def forward(self, x):
        return self.sure * one_hot(torch.full(x.shape[:2], DUMMY), 10)


def test_cross_entropy_is_over_all_steps_and_dummies_count():
    x, y = copying(7, 50, generator=generator_of(0))
    assert TASKS["copying"].loss(Guesser(), x, y).item() == pytest.approx(30 * 10 / 27, rel=1e-5)


@pytest.mark.parametrize("late", [0, 9])
def test_late_targets_are_due_so_many_steps_later_and_the_score_is_that_of_longer_sequences(late, monkeypatch):
    inputs = []

    def noting(network, x, y):
        inputs.append((x, y))
        return network(one_hot(x, 10).float()).square().mean()

    monkeypatch.setitem(TASKS, "copying", Task(copying, (10, 10), noting, memoryless))
    loss = compared("copying", late=late).loss
    x, y = inputs[0]
    plain_x, plain_y = copying(5, 500, generator=generator_of(0, 2, 0))
    assert len(x) == len(y) == 25 + late
    assert torch.equal(x[:25], plain_x) and bool((x[25:] == DUMMY).all())
    assert torch.equal(y[late:], plain_y) and bool((y[:late] == DUMMY).all())
    monkeypatch.setitem(TASKS, "copying", Task(copying, (10, 10), noting, lambda n_steps: 1.0))
    np.testing.assert_allclose(loss * memoryless(25 + late), compared("copying", late=late).loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(task="reading"), "task must be one of copying, variable copying, adding, got 'reading'"),
        (dict(starts={}), "starts must name one or more, got {}"),
        (dict(late=3), "late must be 0 for adding, got 3"),
        (dict(task="copying", late=-3), "late must be 0 or more, got late=-3"),
        (dict(n_seeds=0), "n_seeds must be 1 or more, got n_seeds=0"),
        (dict(n_evaluations=3), "n_evaluations must divide n_steps, got n_evaluations=3, n_steps=20"),
        (dict(n_evaluations=0), "n_evaluations must be 1 or more, got n_evaluations=0"),
        (dict(units=2.5), "hidden_size must be a whole number, got 2.5"),
    ],
)
def test_what_cannot_be_is_refused(how, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compared(**how)


# What is said and drawn of it


def test_runs_of_an_arm_are_those_that_were_trained_and_the_title_names_them():
    arms = xr.Dataset(
        {"taken": (("arm", "start", "seed"), [[[9.0, 9, 9]], [[np.nan, np.nan, 9]]]), "T": ("arm", [500, 50])},
        coords={"arm": ["all", "one"], "seed": [0, 1, 2]},
    )
    assert [runs_of(arms, arm).seed.values.tolist() for arm in ("all", "one")] == [[0, 1, 2], [2]]
    titles = [size(arms), size(arms.sel(arm=["all"])), size(arms.sel(arm=["one"]))]
    assert [title.replace("\N{NO-BREAK SPACE}", " ") for title in titles] == [
        "T = 50, 500; 1 to 3 runs",
        "T = 500; 3 runs",
        "T = 50; 1 run",
    ]
    assert steps_taken(xr.DataArray([[2000.0, np.nan], [2000, 2000]])) == "2,000"
    assert steps_taken(xr.DataArray([[2000.0, np.nan], [1000, 1500]])) == "1,000 to 2,000"
    assert steps_taken(xr.DataArray([np.nan, np.nan])) == "none"


def test_end_is_the_median_of_the_last_three_evaluations_made_and_halfway_the_first_below():
    loss = xr.DataArray([[5.0, 1, 2, 9, np.nan], [np.nan] * 5], dims=("start", "look"))
    np.testing.assert_array_equal(at_end(loss), [2, np.nan])
    loss = xr.DataArray([[1.0, 0.4, 0.6, 0.1], [1, 0.5, 0.5, 0.5], [1, np.nan, np.nan, np.nan]], dims=("start", "look"))
    step = xr.DataArray([0, 10, 20, 30], dims="look")
    np.testing.assert_array_equal(halfway(loss, step), [10, np.inf, np.inf])
    np.testing.assert_array_equal(halfway(loss, step, 0.2), [30, np.inf, np.inf])


def test_networks_below_a_level_are_counted_and_costs_told_where_an_arm_was_run():
    made = {
        "loss": (("arm", "start", "seed", "look"), [[[[1.0, 0.4, 0.6], [1, 0.6, 0.6]], [[1, 0.1, 0.1], [np.nan] * 3]]]),
        "seconds": (("arm", "start", "seed"), [[[1.0, 1], [2, np.nan]]]),
        "taken": (("arm", "start", "seed"), [[[100.0, 300], [400, np.nan]]]),
        "T": ("arm", [7]),
    }
    results = xr.Dataset(made, coords={"arm": ["one"], "start": ["standard", "chrono"]})
    assert came_below(results, 0.5, ["one", "other"], ["standard"]) == "1 of 2"
    assert came_below(results, 0.5, ["one"], ["standard", "chrono"]) == "2 of 3"
    assert came_below(results, 0.5, ["other"], ["chrono"]) == "0 of 0"
    assert (cost(results, ["one", "other"]), cost(results, ["other"])) == ("5.0 ms at T = 7", "not measured")


def test_arm_that_was_not_run_is_called_so():
    fig, ax = plt.subplots()
    plot_starts(ax, xr.Dataset(coords={"arm": ["one"]}), "other", ["standard"])
    plt.close(fig)
    assert [text.get_text() for text in ax.texts] == ["other: not run"] and not ax.lines


def test_more_starts_than_can_be_told_apart_are_not_drawn():
    with pytest.raises(ValueError, match="starts must be 3 at most, got a, b, c, d"):
        plot_starts(None, None, "arm", "abcd")


def test_drawn_median_goes_on_for_a_network_that_is_done_and_ends_where_another_was_cut_short():
    loss = np.ones((1, 3, 6))
    loss[0, 0, 3:] = np.nan  # cut short
    loss[0, 1, 1:4] = 0.005
    loss[0, 1, 4:] = np.nan  # done
    made = {
        "loss": (("start", "seed", "look"), loss),
        "step": ("look", np.arange(6) * 10),
        "diverged": (("start", "seed"), np.zeros((1, 3))),
    }
    results = xr.Dataset(made, coords={"start": ["standard"]}).expand_dims(arm=["one"])

    def median(results):
        fig, ax = plt.subplots()
        plot_starts(ax, results, "one", ["standard"])
        plt.close(fig)
        [line] = [line for line in ax.lines if line.get_label() == "standard"]
        return line.get_ydata()

    np.testing.assert_array_equal(median(results), [1, 1, 1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(median(results.isel(seed=[1])), [1, 0.005, 0.005, 0.005, 0.005, 0.005])
    results = results.copy(deep=True)
    results["diverged"][0, 0, 0] = 1
    assert np.isfinite(median(results)).all()
