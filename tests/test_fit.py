import io
import math
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ts_helpers import _checkpoint, progress
from ts_helpers import fit as module
from ts_helpers.book import paths
from ts_helpers.cells import MTRNNCell, unroll
from ts_helpers.fit import fit
from ts_helpers.timescales import Clamped, raw_name, set_dial

TAU = raw_name("cell.alpha")


class Layers(nn.Module):
    """Two small layers and a read-out, with a scale of no dimension."""

    def __init__(self, seed, update="simultaneous", hidden=2):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.cell = MTRNNCell(1, (3, hidden), (2, 6), Clamped(), update=update, generator=generator)
        self.V = nn.Parameter(torch.randn(3, generator=generator) / 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * (torch.tanh(unroll(self.cell, x)[..., :3]) @ self.V)


class Leaky(nn.Module):
    """A leak and a weight of its own, without a cell."""

    def __init__(self, tau=2.0, turn=torch.tanh):
        super().__init__()
        self.tau, self.turn, self.w = tau, turn, nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.turn(self.w * x[..., 0] / self.tau)


def loss(network, x, y):
    return (network(x) - y).square().mean()


def time_constants(network, x, y):
    return 1 / network.cell.alpha


def furthest(network, x, y):
    return (network(x) - y).abs().max()


METRICS = {"loss": loss, "tau": time_constants}


def networks_of(n, **how):
    return [Layers(seed, **how).double() for seed in range(n)]


def data_of(n, sequences=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, sequences, 1, generator=generator, dtype=torch.float64)
    return [x, torch.randn(n, 6, sequences, generator=generator, dtype=torch.float64)]


def values(networks):
    return torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in networks])


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def batch(step):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


HELD = batch(10_000)


def alone(network=None, loss=loss, data=batch, **how):
    """A network, and its history, trained by itself on batches made as they are needed."""
    network = network or linear()
    how = dict(n_steps=40, eval_interval=10, optimizer="rmsprop", lr=0.01, eval_data=HELD) | how
    return network, fit(network, loss, data, **how)


@pytest.fixture
def small(monkeypatch):
    """Sets how many networks a stack may have."""

    def at_once(n):
        monkeypatch.setattr(module, "AT_ONCE", n)
        monkeypatch.setattr(module, "NUMBERS", 0)

    return at_once


# Steps of the optimisers


def plain_loop(network, batches, optimizer, lr, tau_scale=1.0, clip_norm=None, norm_type=2.0, bound=None, loss=loss):
    """As PyTorch has it; returns the losses before each step."""
    tau = [p for name, p in network.named_parameters() if name == TAU]
    groups = [{"params": [p for p in network.parameters() if p is not (tau or [None])[0]]}]
    groups += [{"params": tau, "lr": lr * tau_scale}] if tau else []
    made = torch.optim.Adam(groups, lr=lr) if optimizer == "adam" else torch.optim.RMSprop(groups, lr=lr, alpha=0.9)
    losses = []
    for some in batches:
        made.zero_grad()
        error = loss(network, *some)
        error.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip_norm, norm_type)
        made.step()
        if bound is not None:
            with torch.no_grad():
                tau[0].clamp_(min=bound)
        losses.append(error.item())
    return losses


PLAIN = [dict(), dict(optimizer="rmsprop"), dict(clip_norm=0.05, norm_type=2.0), dict(tau_scale=100.0, bound=1.5)]
PLAIN += [dict(clip_norm=0.02, norm_type=math.inf, tau_scale=10.0), dict(clip_norm=1e6, tau_scale=10.0)]


@pytest.mark.parametrize("how", PLAIN, ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_networks_learn_as_in_a_plain_loop_of_torch(how, n):
    networks, plain, data = networks_of(n), networks_of(n), data_of(n)
    mine = {key: how[key] for key in ("clip_norm", "norm_type", "optimizer") if key in how}
    mine |= dict(lr_scale={TAU: how.get("tau_scale", 1.0)})
    mine |= dict(lower_bounds={TAU: how["bound"]}) if "bound" in how else {}
    history = fit(networks, loss, data, epochs=25, lr=0.02, metrics=METRICS, **mine)
    for i, network in enumerate(plain):
        expected = plain_loop(network, 25 * [[t[i] for t in data]], **dict(optimizer="adam", lr=0.02) | how)
        np.testing.assert_allclose(history.metrics["loss"][i, :-1], expected, rtol=1e-5)
    # torch adds 1e-6 to the norm before it clips; without clipping the two agree to rounding
    tolerance = 1e-4 if "clip_norm" in how else 1e-9
    torch.testing.assert_close(values(networks), values(plain), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_network_alone_agrees_with_torch_for_hundreds_of_steps(optimizer, clip_norm):
    mine, plain = (nn.ModuleList([linear(), linear(1), linear(2)]).double() for _ in range(2))
    mine[1].requires_grad_(False), plain[1].requires_grad_(False)  # fixed, where the third is not used

    def noisy(step):  # gradients that never vanish: none is made of rounding
        x, y = batch(step)
        return x.double(), (y + batch(step + 1)[1]).double()

    def of_two(network, x, y):
        return loss(lambda x: network[0](x) + network[1](x), x, y)

    how = dict(optimizer=optimizer, lr=0.01, clip_norm=clip_norm)
    history = fit(mine, of_two, noisy, n_steps=500, eval_data=noisy(9), **how)
    plain_loop(plain, map(noisy, range(500)), loss=of_two, **how)
    tolerance = 1e-4 if clip_norm else 1e-10
    torch.testing.assert_close(values([mine]), values([plain]), rtol=tolerance, atol=tolerance)
    assert torch.equal(values(mine[1:]), values([linear(1).double(), linear(2).double()]))
    assert history.metrics["loss"][0, -1] < 0.8 * history.metrics["loss"][0, 0]


@pytest.mark.parametrize("at_once", [20, 3])
def test_networks_trained_together_equal_each_trained_alone(at_once, small):
    small(at_once)
    together, apart, data = networks_of(4), networks_of(4), data_of(4, 5)
    lr, scale = [0.001, 0.01, 0.02, 0.03], [1, 10, 0, 3]
    how = dict(epochs=6, batch_size=2, shuffle_seed=3, clip_norm=0.1, metrics=METRICS, eval_interval=2)
    held = data_of(4, 3, seed=1)
    history = fit(together, loss, data, lr=lr, lr_scale={TAU: scale}, eval_data=held, **how)
    for i in range(4):
        own, unseen = [t[i] for t in data], [t[i] for t in held]
        one = fit(apart[i], loss, own, lr=lr[i], lr_scale={TAU: scale[i]}, eval_data=unseen, **how)
        for key in METRICS:
            np.testing.assert_allclose(history.metrics[key][i], one.metrics[key][0], rtol=1e-10)
        assert torch.equal(together[i].cell.alpha, networks_of(4)[i].cell.alpha) == (scale[i] == 0)
    torch.testing.assert_close(values(together), values(apart), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("limit", "fitting", "stacks"), [("MEMORY", 0, 5), ("MEMORY", 2, 3), ("AT_ONCE", 2, 3)])
def test_more_networks_than_fit_at_once_learn_the_same(limit, fitting, stacks, small, tmp_path, monkeypatch):
    bounds, how = [0, 1, 1.9, 0, 0], dict(lr=[0.01 * (i + 1) for i in range(5)], lr_scale={TAU: [0, 1, 2, 3, 4]})
    how |= dict(epochs=8, batch_size=2, lower_bounds={TAU: bounds}, metrics=METRICS, eval_interval=3)
    whole, parts, data = networks_of(5), networks_of(5), data_of(5, 5)
    expected = fit(whole, loss, data, **how)
    if limit == "AT_ONCE":
        small(fitting)
    else:
        monkeypatch.setattr(module, "MEMORY", (fitting + 0.5) * module.Stack(parts).footprint(data, 2))
    history = fit(parts, loss, data, checkpoint=tmp_path, **how)
    assert len(list(tmp_path.glob("*.pt"))) == stacks
    torch.testing.assert_close(values(parts), values(whole), rtol=1e-10, atol=1e-12)
    assert history.diverged.tolist() == [-1] * 5 and history.n_steps.tolist() == [24] * 5
    for key in METRICS:
        np.testing.assert_allclose(history.metrics[key], expected.metrics[key], rtol=1e-10)


def test_scale_and_bound_are_each_networks_own():
    networks, plain, data = networks_of(3), networks_of(3), data_of(3)
    before = [{name: p.detach().clone() for name, p in net.named_parameters()} for net in networks]
    scale = {TAU: [0, 5, 1], "cell.S.*": [0, 1, 1]}
    how = dict(lr=[0.05, 0.2, 0], clip_norm=0.05, lower_bounds={TAU: [0, 1.8, 0]}, metrics=METRICS)
    history = fit(networks, loss, data, epochs=60, lr_scale=scale, **how)
    kept = [{name for name, p in net.named_parameters() if torch.equal(p, start[name])} for net, start in
            zip(networks, before, strict=True)]  # fmt: skip
    assert kept == [{TAU, "cell.S.0", "cell.S.1"}, set(), set(before[2])]
    assert history.metrics["tau"][1].min() == pytest.approx(1.8, abs=1e-12)  # it was reached, and held
    for name, p in plain[0].named_parameters():  # what is fixed does not count in the norm
        p.requires_grad_(name not in kept[0])
    plain_loop(plain[0], 60 * [[t[0] for t in data]], "adam", 0.05, clip_norm=0.05)
    torch.testing.assert_close(values(networks[:1]), values(plain[:1]), rtol=1e-3, atol=1e-3)


# Minibatches


@pytest.fixture
def minibatches(monkeypatch):
    """What every step was taken on, in a list."""
    seen, made = [], module._Run.batch
    monkeypatch.setattr(module._Run, "batch", lambda run, step: seen.append(made(run, step)) or seen[-1])
    return seen


def orders_of(minibatches, data):
    """Which sequences each minibatch held, found in the input and in the target of every network."""
    orders = []
    for some in minibatches:
        (order,) = {
            tuple(next(k for k, whole in enumerate(full[i].unbind(1)) if torch.equal(whole, part)) for part in each)
            for t, full in zip(some, data, strict=True)
            for i, each in enumerate([network.unbind(1) for network in t])
        }  # the same in all of them
        orders.append(order)
    return orders


def test_every_pass_takes_each_sequence_once_in_an_order_of_its_own(minibatches):
    data, orders = data_of(3, 5), {}
    for seed in (0, 1, 0):
        minibatches.clear()
        fit(networks_of(3), loss, data, epochs=4, batch_size=2, shuffle_seed=seed)
        found = orders_of(minibatches, data)
        assert [len(some) for some in found] == [2, 2, 1] * 4  # the last holds what is left
        passes = [sum(found[3 * k : 3 * k + 3], ()) for k in range(4)]
        assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes)
        assert len(set(passes)) == 4
        assert orders.setdefault(seed, passes) == passes
    assert not set(orders[0]) & set(orders[1])


@pytest.mark.parametrize("n_steps", [4, 9, 11])
def test_steps_go_through_the_same_passes_as_epochs(n_steps, minibatches):
    whole, parts, data = networks_of(2), networks_of(2), data_of(2, 5)
    fit(whole, loss, data, epochs=3, batch_size=2, shuffle_seed=5, lr=0.02)
    passes = orders_of(minibatches, data)
    minibatches.clear()
    history = fit(parts, loss, data, n_steps=n_steps, batch_size=2, shuffle_seed=5, lr=0.02, eval_interval=2)
    assert orders_of(minibatches, data)[:9] == passes[:n_steps]
    assert (history.unit, history.at.tolist()) == ("step", sorted({*range(0, n_steps, 2), n_steps}))
    assert torch.equal(values(parts), values(whole)) == (n_steps == 9)


# Evaluation, modes and buffers


@pytest.mark.parametrize(
    ("how", "at"),
    [
        (dict(epochs=6, eval_interval=2), [0, 2, 4, 6]),
        (dict(epochs=7, eval_interval=3, batch_size=1), [0, 3, 6, 7]),
        (dict(n_steps=1, eval_interval=100), [0, 1]),
        (dict(n_steps=3), [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_metrics_are_taken_before_during_and_after(how, at, n):
    networks, plain, held = networks_of(n), networks_of(n), data_of(n, 3, seed=1)
    parameters = [list(net.parameters()) for net in networks]
    history = fit(networks, loss, data_of(n), metrics=METRICS, eval_data=held, **how)
    assert history.at.tolist() == at and history.unit == ("epoch" if "epochs" in how else "step")
    assert history.metrics["loss"].shape == (n, len(at)) and history.metrics["tau"].shape == (n, len(at), 2)
    for k, some in ((0, plain), (-1, networks)):
        there = [loss(net, *(t[i] for t in held)).item() for i, net in enumerate(some)]
        np.testing.assert_allclose(history.metrics["loss"][:, k], there)
    assert history.seconds > 0
    for network, same in zip(networks, parameters, strict=True):  # ready to learn on
        assert all(p is q and p.requires_grad for p, q in zip(network.parameters(), same, strict=True))
    fit(plain, loss, data_of(n), **how | dict(metrics={}))
    assert torch.equal(values(networks), values(plain))


def test_steps_are_in_training_mode_and_metrics_in_evaluation_mode():
    modes = []

    def listening(network, x, y, first):
        modes.append("training" if network.training else "evaluation")
        return loss(network, x, y) * first

    network, one = linear().eval(), torch.ones(())
    alone(network, listening, lambda step: (*batch(step), one), n_steps=2, eval_interval=2, eval_data=(*HELD, one))
    assert modes == ["evaluation", "training", "training", "evaluation"]
    assert not network.training  # as it was found


class Normed(nn.Module):
    """Batch normalisation, whose averages are buffers."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.norm = nn.Linear(3, 1, bias=False), nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(self.layer(x))


def test_batch_statistics_are_kept_as_in_any_loop():
    mine, plain = Normed(0), Normed(0)
    alone(mine)
    plain_loop(plain, map(batch, range(40)), "rmsprop", 0.01)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[key], value)
    stacked = [Normed(0), Normed(1)]
    history = fit(stacked, loss, lambda step: [t.expand(2, *t.shape) for t in batch(step)], n_steps=40, lr=0.01,
                  optimizer="rmsprop", eval_data=[t.expand(2, *t.shape) for t in HELD])  # fmt: skip
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(stacked[0].state_dict()[key], value)
    assert history.metrics["loss"][1, -1] == pytest.approx(loss(stacked[1].eval(), *HELD).item(), rel=1e-5)


class Carrying(nn.Linear):
    """Goes on from the state in which the last step has left it."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(3, 1)
        self.register_buffer("carried", None)

    def forward(self, x):
        out = super().forward(x) + (0 if self.carried is None else self.carried)
        if self.training:
            self.carried = out.detach().mean() / 2
        return out


# When a training stops


def wild_loss(network, x, y, blow):
    """As `loss`, but infinite once the read-out's scale has moved far enough."""
    return loss(network, x, y) + torch.exp(blow * (network.scale - 1).abs())


def test_network_that_diverges_is_noted_and_leaves_the_others_alone():
    blow = torch.tensor([0.0, 3e3, 0.0], dtype=torch.float64)
    networks, others = networks_of(3), networks_of(3)
    metrics = dict(seen=wild_loss, alpha=lambda network, x, y, blow: network.cell.alpha)
    how = dict(epochs=12, lr=[0.01, 0.5, 0.01], metrics=metrics)
    history = fit(networks, wild_loss, [*data_of(3), blow], **how)
    calm = fit(others, wild_loss, [*data_of(3), 0 * blow], **how)
    epoch = history.diverged[1]
    assert 0 < epoch < 12 and history.diverged.tolist() == [-1, epoch, -1] and calm.diverged.tolist() == [-1, -1, -1]
    assert history.n_steps.tolist() == [12, epoch, 12]
    for key in metrics:
        found = history.metrics[key]
        assert np.isfinite(found[1, :epoch]).all() and np.isnan(found[1, epoch + 1 :]).all()
        assert np.array_equal(found[[0, 2]], calm.metrics[key][[0, 2]])
    assert bool(torch.isfinite(values(networks)).all())
    assert torch.equal(values(networks)[[0, 2]], values(others)[[0, 2]])


@pytest.mark.parametrize("how", [dict(clip_norm=0.1), dict(batch_size=1, optimizer="rmsprop", lr_patience=1)])
def test_network_with_wrong_data_keeps_its_numbers_and_leaves_the_others_alone(how):
    made, data = [], data_of(3)
    for wrong in (0.0, torch.nan):
        data[1][1] = wrong
        networks = networks_of(3)
        made.append((fit(networks, loss, data, epochs=8, lr=0.3, **how).diverged.tolist(), values(networks)))
    assert [diverged for diverged, _ in made] == [[-1, -1, -1], [-1, 0, -1]]
    assert torch.equal(made[0][1][[0, 2]], made[1][1][[0, 2]])
    assert torch.equal(made[1][1][1], values(networks_of(3))[1])


def wild(step):
    """Data with a loss that is not finite in step 15."""
    x, y = batch(step)
    return x, y * (torch.inf if step == 15 else 1)


def test_loss_that_is_not_finite_stops_a_network_before_it_is_touched():
    (mine, history), (other, _) = alone(data=wild), alone(n_steps=15)
    assert (history.diverged.tolist(), history.n_steps.tolist()) == ([15], [15])
    assert torch.equal(mine.weight, other.weight)
    assert np.isnan(history.metrics["loss"][:, 2:]).all()


@pytest.mark.parametrize("held", [None, data_of(3, 4, seed=1)], ids=["data", "held out"])
@pytest.mark.parametrize(("patience", "lr", "scale"), [(1, 0.3, 1.0), (2, 0.3, 0.1), (3, [0.4, 0.001, 0.2], 1.0)])
def test_rates_are_halved_as_torchs_scheduler_does_network_by_network(patience, lr, scale, held, minibatches):
    networks, plain, data = networks_of(3), networks_of(3), data_of(3, 5)
    how = dict(n_steps=60, batch_size=2, optimizer="rmsprop", lr=lr, lr_scale={TAU: scale}, eval_interval=2)
    fit(networks, loss, data, lr_patience=patience, eval_data=held, **how)
    rates = []
    for i, network in enumerate(plain):
        start = lr if isinstance(lr, float) else lr[i]
        tau = network.cell.parametrizations.alpha.original
        groups = [{"params": [p for p in network.parameters() if p is not tau]}, {"params": [tau], "lr": start * scale}]
        optimizer = torch.optim.RMSprop(groups, lr=start, alpha=0.9)
        # the one more that torch waits is too many, not the last to be borne
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.5, patience - 1, threshold=0, eps=0)
        rates.append([])
        for step, some in enumerate(minibatches, 1):
            optimizer.zero_grad()
            loss(network, *(t[i] for t in some)).backward()
            optimizer.step()
            if step % 2 == 0:
                with torch.no_grad():
                    scheduler.step(loss(network, *(t[i] for t in held or data)))
                rates[i].append(optimizer.param_groups[0]["lr"] / start)
    torch.testing.assert_close(values(networks), values(plain), rtol=1e-6, atol=1e-6)
    assert len({tuple(each) for each in rates}) > 1  # each at its own times
    assert min(each[-1] for each in rates) <= 1 / 4


def turning(step):
    """Data whose target turns round after step 30, so that what was learned until then was the best for HELD."""
    x, y = batch(step)
    return x, y if step < 30 else -y


@pytest.mark.parametrize("make", [linear, lambda: Normed(0)], ids=["linear", "with statistics"])
def test_patience_stops_and_leaves_the_network_as_it_was_at_its_best_evaluation(make):
    network, history = alone(make(), data=turning, n_steps=400, patience=4)
    seen = history.metrics["loss"][0]
    best = int(np.nanargmin(seen))
    assert 0 < best < 8 and history.n_steps.tolist() == [10 * (best + 4)] and history.diverged.tolist() == [-1]
    assert np.isfinite(seen[: best + 5]).all() and np.isnan(seen[best + 5 :]).all()
    assert loss(network.eval(), *HELD).item() == seen[best]
    network, history = alone(make(), data=turning)  # without it, as it ended
    assert loss(network.eval(), *HELD).item() == history.metrics["loss"][0, -1] > history.metrics["loss"].min()
    network, history = alone(make(), n_steps=60, patience=4, metrics={"flat": lambda network, x, y: torch.ones(())})
    assert torch.equal(state(network), state(make())) and history.n_steps.tolist() == [40]  # the first of the least


def test_networks_of_a_stack_stop_each_at_its_own_time():
    def made(step):  # turns round at different times, or never
        x, y = batch(step)
        return x.expand(3, *x.shape), torch.stack([y if step < turn else -y for turn in (30, 10, 200)])

    networks, how = [linear(), linear(), linear()], dict(n_steps=100, patience=4)
    _, history = alone(networks, data=made, eval_data=[t.expand(3, *t.shape) for t in HELD], **how)
    assert history.n_steps.tolist() == [70, 50, 100]
    for i, network in enumerate(networks):
        one, single = alone(data=lambda step, i=i: [t[i] for t in made(step)], **how)
        np.testing.assert_allclose(history.metrics["loss"][i], single.metrics["loss"][0], rtol=1e-4)
        torch.testing.assert_close(network.weight, one.weight, rtol=1e-4, atol=1e-5)


def test_training_stops_when_three_evaluations_are_low_enough():
    seen = alone(n_steps=400)[1].metrics["loss"][0]
    enough = float(seen[10])
    network, history = alone(n_steps=400, stop_below=enough)
    low = seen <= enough
    stop = next(k for k in range(2, len(low)) if low[k - 2 : k + 1].all())
    assert history.n_steps[0] == history.at[stop] < 400
    assert history.metrics["loss"][0, : stop + 1].tolist() == seen[: stop + 1].tolist()
    assert np.isnan(history.metrics["loss"][0, stop + 1 :]).all()
    assert loss(network, *HELD).item() == seen[stop]


# Checkpoints


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture
def minutes(monkeypatch):
    """A clock that jumps a minute and more at every look at it, so that every step leaves a checkpoint."""
    clock = iter(range(0, 1_000_000, 61))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))


@pytest.fixture
def killing(monkeypatch):
    """Counts steps, and ends a run in the one that is asked for."""
    steps, take = SimpleNamespace(done=[], at=None), module._Run.take

    def counted(run, step):
        if step == steps.at:
            raise Killed
        steps.done.append(step)
        take(run, step)

    monkeypatch.setattr(module._Run, "take", counted)
    return steps


STACK = dict(lr=[0.01, 0.02, 0.5], lr_scale={TAU: [1, 0, 5]}, lower_bounds={TAU: 1.5}, clip_norm=0.3, eval_interval=3)
HALVED = dict(batch_size=2, optimizer="rmsprop", lr=0.3, eval_data=data_of(3, 4, seed=1), lr_patience=2)


def stacked(networks=None, data=None, **change):
    networks = networks or networks_of(3)
    return networks, fit(networks, loss, data or data_of(3, 5), **dict(epochs=12, metrics=METRICS) | change)


def twice(data):
    return [t.expand(2, 8, -1) for t in data]


def norms(**how):
    how |= dict(n_steps=40, metrics={"loss": loss}, patience=2, eval_interval=4, eval_data=twice(HELD))
    return stacked([Normed(0), Normed(1)], lambda step: twice(turning(step)), epochs=None, **how)


def carried(**how):
    return alone(Carrying(), data=turning, patience=4, clip_norm=0.5, n_steps=100, **how)


WRONG = [data_of(3)[0], torch.tensor([0, math.nan, 1]).view(3, 1, 1).expand(3, 6, 2)]
WAYS = {
    "stack": lambda **how: stacked(**STACK, **how),
    "minibatches": lambda **how: stacked(batch_size=2, shuffle_seed=7, patience=3, **how),
    "halved": lambda **how: stacked(**HALVED, **how),
    "enough": lambda **how: stacked(lr=[0.1, 0.02, 0.01], stop_below=0.9, **how),
    "alone": lambda **how: alone(optimizer="adam", lr_patience=1, lr=0.5, **how),
    "carried": carried,
    "diverged": lambda **how: alone(data=wild, **how),
    "wrong": lambda **how: stacked(data=WRONG, **how),
    "norms": norms,
    "normed": lambda **how: alone(Normed(0), data=turning, n_steps=60, stop_below=0.1, **how),
}


def state(networks):
    networks = networks if isinstance(networks, list) else [networks]
    return torch.cat([value.detach().flatten().double() for net in networks for value in net.state_dict().values()])


def same(one, other):
    assert torch.equal(state(one[0]), state(other[0]))
    for key in one[1].metrics:
        np.testing.assert_array_equal(one[1].metrics[key], other[1].metrics[key])
    for what in ("at", "diverged", "n_steps"):
        assert getattr(one[1], what).tolist() == getattr(other[1], what).tolist()


@pytest.mark.parametrize("kill", [1, 5, 8])
@pytest.mark.parametrize("way", WAYS)
def test_interrupted_training_goes_on_to_the_same_bits(way, kill, tmp_path, minutes, killing):
    whole = WAYS[way]()
    steps, killing.at = len(killing.done), kill * len(killing.done) // 9
    with pytest.raises(Killed):
        WAYS[way](checkpoint=tmp_path)
    killing.at, killing.done = None, []
    same(WAYS[way](checkpoint=tmp_path), whole)
    assert killing.done == list(range(kill * steps // 9, steps))  # what was done is not done again
    killing.done = []
    same(WAYS[way](checkpoint=tmp_path), whole)
    assert not killing.done and [file.suffix for file in tmp_path.iterdir()] == [".pt"]


def other_tau(network, x, y):
    return 2 / network.cell.alpha


CHANGES = [
    dict(epochs=13), dict(epochs=None, n_steps=12), dict(lr=0.01), dict(lr_scale={TAU: [1, 0, 4]}),
    dict(lower_bounds={TAU: 1.4}), dict(clip_norm=0.2), dict(clip_norm=0.2, norm_type=math.inf), dict(lr_patience=2),
    dict(optimizer="rmsprop"), dict(eval_interval=4), dict(batch_size=3), dict(batch_size=3, shuffle_seed=8),
    dict(data=data_of(3, seed=1)), dict(eval_data=data_of(3, seed=2)), dict(metrics={"loss": loss}),
    dict(metrics={"loss": loss, "tau": other_tau}),
]  # fmt: skip
OF_ONE = [dict(n_steps=41), dict(stop_below=0.1), dict(data=turning), dict(eval_data=batch(9)), dict(loss=furthest)]
OTHERS = [*((stacked, change) for change in CHANGES), *((alone, change) for change in OF_ONE)]


@pytest.mark.parametrize(("way", "change"), OTHERS, ids=[f"{way.__name__}-{'-'.join(c)}" for way, c in OTHERS])
def test_checkpoint_of_another_training_is_not_taken(way, change, tmp_path, killing):
    way(checkpoint=tmp_path)
    killing.done.clear()
    expected = way(**change)
    steps = len(killing.done)
    same(way(checkpoint=tmp_path, **change), expected)
    assert len(killing.done) == 2 * steps > 0 and len(list(tmp_path.iterdir())) == 2


def held_by(number):
    return lambda network, x, y: number * loss(network, x, y)


def test_what_networks_and_functions_hold_tells_trainings_apart(tmp_path):
    data = [torch.ones(4, 2, 1), torch.ones(4, 2)]
    cases = [(Leaky(), loss), (Leaky(10.0), loss), (Leaky(turn=torch.sin), loss), (Leaky(), held_by(1))]
    cases += [(Leaky(), held_by(2)), (Leaky(), lambda n, x, y: loss(n, x, y)), (Leaky(), lambda n, x, y: loss(n, y, x))]
    for count, (network, function) in enumerate(cases, 1):
        fit(network, function, data, epochs=1, checkpoint=tmp_path, metrics={"w": lambda network, x, y: network.w})
        assert len(list(tmp_path.iterdir())) == count
    fit(Leaky(), held_by(2), data, epochs=1, checkpoint=tmp_path, metrics={"w": lambda network, x, y: network.w})
    assert len(list(tmp_path.iterdir())) == len(cases)


@pytest.mark.parametrize(
    ("file", "anew"), [("cells.py", True), ("_stack.py", True), ("book/paths.py", False), ("datasets/text.py", False)]
)
def test_only_helpers_that_the_training_imports_orphan_its_checkpoint(file, anew, tmp_path, monkeypatch, killing):
    shutil.copytree(_checkpoint.PACKAGE, tmp_path / "ts_helpers", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_checkpoint, "PACKAGE", tmp_path / "ts_helpers")
    metrics = {"loss": lambda network, x, y, _=paths: loss(network, x, y)}
    stacked(checkpoint=tmp_path / "kept", metrics=metrics)
    killing.done.clear()
    with (tmp_path / "ts_helpers" / file).open("a") as stream:
        stream.write("# touched\n")
    stacked(checkpoint=tmp_path / "kept", metrics=metrics)
    assert bool(killing.done) == anew


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "of another training", "of something else"])
def test_damaged_or_foreign_checkpoint_is_named_and_set_aside(damage, tmp_path, capsys):
    whole = alone(checkpoint=tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if damage == "of another training":
        alone(n_steps=30, checkpoint=tmp_path / "other")
        content = next((tmp_path / "other").iterdir()).read_bytes()
        shutil.rmtree(tmp_path / "other")
    elif damage == "of something else":
        torch.save({"weight": torch.ones(3)}, file)
        content = file.read_bytes()
    file.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello"}.get(damage, content))
    same(alone(checkpoint=tmp_path), whole)
    assert str(file) in capsys.readouterr().err
    assert sorted(each.suffix for each in tmp_path.iterdir()) == [".damaged", ".pt"]
    same(alone(checkpoint=tmp_path), whole)
    assert capsys.readouterr().err == ""


def test_failed_save_leaves_nothing_half_written(tmp_path, minutes, killing, monkeypatch):
    def full(state, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    killing.at, folder = 5, tmp_path / "new" / "folder"
    with pytest.raises(Killed):
        alone(checkpoint=folder)
    (file,), killing.at = folder.iterdir(), None
    before = file.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(torch, "save", full)
        alone(checkpoint=folder)
    assert [each.read_bytes() for each in folder.iterdir()] == [before]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_training_on_a_gpu_has_the_losses_of_one_on_the_cpu(tmp_path):
    def there(step):
        return [part.cuda() for part in batch(step)]

    how = dict(data=there, eval_data=[part.cuda() for part in HELD], patience=4, checkpoint=tmp_path)
    one, other = alone(linear().cuda(), **how), alone(linear().cuda(), **how)
    same(one, other)
    np.testing.assert_allclose(one[1].metrics["loss"], alone()[1].metrics["loss"], rtol=1e-4)


# What makes one architecture, and what is refused


def test_dial_of_the_model_itself_learns_in_a_stack_and_keeps_its_own_floor():
    def dialled():
        networks = [Leaky(), Leaky()]
        for network, floor in zip(networks, (1.0, 3.0), strict=True):
            network.alpha = nn.Parameter(torch.tensor(0.3))
            set_dial(network, "alpha", Clamped(floor))
        return networks

    def filtered(network, x, y):
        return (network.alpha * network(x) - y).square().mean()

    together, apart, data = dialled(), dialled(), [t.float() for t in data_of(2)]
    fit(together, filtered, data, epochs=40, lr=0.1, clip_norm=1.0)
    for i, network in enumerate(apart):
        fit(network, filtered, [t[i] for t in data], epochs=40, lr=0.1, clip_norm=1.0)
    torch.testing.assert_close(values(together), values(apart))
    assert bool((values(together) != values(dialled())).all())


class Other(Layers):
    """The same parameters, another class."""


def shared():
    one, other = networks_of(2)
    other.V = one.V
    return [one, other]


REFUSED = [
    (dict(networks=[]), "networks must hold one or more networks, got none"),
    (dict(networks=[Layers(0), Layers(1, hidden=3)]), "number 1 differs from the first in 'cell.layers'"),
    (dict(networks=[Layers(0), Other(1)]), "number 1 differs from the first in 'class'"),
    (dict(networks=[Layers(0), Layers(1, update="sequential")]), "number 1 differs from the first in 'cell.update'"),
    (dict(networks=[Leaky(1.0), Leaky(10.0)]), "number 1 differs from the first in 'tau'; train it apart, or make"),
    (dict(networks=[Leaky(), Leaky(turn=torch.sin)]), "number 1 differs from the first in 'turn'"),
    (dict(networks=shared()), "networks 0 and 1 share the tensor 'V': copy.deepcopy"),
    (dict(networks=[nn.LSTM(1, 1), nn.LSTM(1, 1)]), "torch cannot run the network, an nn.LSTM, .* call fit for each"),
    (dict(networks=[Carrying(), Carrying()], data=twice(HELD)), "buffer 'carried' .* anew"),
    (dict(loss=lambda network, x, y: network(x)), r"loss must return a scalar, got shape \(6, 2\): take its mean"),
    (dict(data=data_of(3)), r"data must have 2 networks in its first dimension, got \(3, "),
    (dict(eval_data=data_of(3)), r"data must have 2 networks in its first dimension, got \(3, "),
    (dict(networks=Leaky().requires_grad_(False), data=data_of(1)), "networks must have a parameter to learn"),
    (dict(networks=None), "networks must be a module or several, got None"),
    (dict(networks=linear().to("meta")), "networks must be a Tensor with numbers, got Parameter.*"),
    (dict(networks=["net"]), "networks must be modules, got 'net'"),
    (dict(data=None), "data must be tensors or a function, got None"),
    (dict(loss="mse"), "loss must be a function, got 'mse'"),
    (dict(loss=lambda network, x, y: 1.0, networks=Leaky(), data=HELD), "must be a Tensor: a loss .*, got 1.0"),
    (dict(loss=lambda network, x, y: y.mean()), "loss must depend on a parameter that is learned"),
    (dict(lr="fast"), "lr must be a number, or a tensor of them, got 'fast'"),
    (dict(lr_scale=0.1), "lr_scale must be numbers by name of parameter, got 0.1"),
    (dict(lower_bounds={"V": math.nan}), "lower_bounds must be numbers, got NaN"),
    (dict(norm_type="2"), "norm_type must be a number, got '2'"),
    (dict(epochs=2.5), "epochs must be a whole number, got 2.5"),
    (dict(epochs=10**400), r"epochs must be 2\^28 or less, got epochs=1000"),
    (dict(shuffle_seed=-1), "seed must be whole numbers, 0 or more, got"),
    (dict(stop_below=math.nan), r"stop_below must be in \(-inf, inf\), got stop_below=nan"),
    (dict(checkpoint=3), "checkpoint must be a folder, got 3"),
    (dict(data=batch), "give n_steps with it, no epochs and no batch_size"),
    (dict(data=batch, epochs=None, n_steps=3), "eval_data must be given where data is a function"),
    (dict(data=batch, epochs=None, n_steps=3, batch_size=2), "give n_steps with it, no epochs and no batch_size"),
    (dict(lr_scale={"cell.tau": 0}), "no parameter is called 'cell.tau'; there are V, scale, cell.L.0"),
    (dict(lower_bounds={"nosuch*": 0}), r"no parameter is called 'nosuch\*'; there are"),
    *[(dict(lr=lr), "lr times lr_scale must be finite and 0 or more") for lr in (-0.1, [0.1, -1], math.nan, math.inf)],
    (dict(lr_scale={"V": -1}), "lr times lr_scale must be finite and 0 or more"),
    (dict(lr=[0.1, 0.1, 0.1]), "lr must be one number or one for each of 2 networks, got 3"),
    (dict(lr_scale={"V": [1, 2, 3]}), "V must be one number or one for each of 2 networks, got 3"),
    (dict(optimizer="sgd"), "optimizer must be one of adam, rmsprop, got 'sgd'"),
    *[
        (dict(clip_norm=norm), rf"clip_norm must be in \(0, inf\], got clip_norm={norm}")
        for norm in (0, -1.0, math.nan)
    ],
    (dict(norm_type=3), "norm_type must be 2 or infinity, got 3"),
    *[(dict(epochs=n, n_steps=n), f"give either epochs or n_steps, got epochs={n}, n_steps={n}") for n in (None, 3)],
    *[
        (dict([(key, 0)]), f"{key} must be 1 or more, got {key}=0")
        for key in ("epochs", "eval_interval", "patience", "batch_size")
    ],
    (dict(batch_size=3), "at most the sequences of the data, .*, got batch_size=3, sizes=.2."),
    (dict(batch_size=1, data=()), r"batch_size must be at most .*, got batch_size=1, sizes=set\(\)"),
    (dict(batch_size=1, data=[torch.zeros(2, 6)]), "batch_size must be .*, got batch_size=1, sizes=.0."),
    (dict(batch_size=1, data=[data_of(2)[0], data_of(2, 5)[1]]), "batch_size must be .*, sizes=.2, 5."),
    (dict(patience=1, metrics={}), "patience, lr_patience and stop_below need a metric"),
    (dict(patience=1, metrics={"tau": time_constants}), r"need a scalar first, 'tau' has shape \(2,\)"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[f"{i}-{'-'.join(c)}" for i, (c, _) in enumerate(REFUSED)])
def test_training_refuses_what_it_cannot_use(change, message):
    how = dict(networks=networks_of(2), loss=loss, data=data_of(2), epochs=3) | change
    with pytest.raises((ValueError, TypeError), match=message):
        fit(**how)


@pytest.mark.parametrize("set_before", [False, True])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_subnormal_numbers_are_0_while_it_trains_and_afterwards_as_they_were(set_before, fails, default, request):
    for undo in (partial(torch.set_flush_denormal, False), partial(torch.set_default_dtype, torch.float32)):
        request.addfinalizer(undo)
    torch.set_default_dtype(default)
    if not torch.set_flush_denormal(set_before):
        pytest.skip("this processor always keeps subnormal numbers")

    def flushed(*_):
        return (torch.tensor(1e-40, dtype=torch.float32) * 1 == 0).float()

    def learned(network, x):
        assert not fails
        return network(x).square().sum()

    def train():
        return fit(Leaky(), learned, [torch.ones(3, 1)], n_steps=2, metrics={"flushed": flushed})

    if fails:
        with pytest.raises(AssertionError):
            train()
    else:
        assert train().metrics["flushed"].all()
    assert flushed() == set_before


def test_numbers_of_numpy_are_as_good():
    how = dict(data=[torch.ones(5, 2, 3)], loss=lambda network, x: network(x).square().mean())
    one, other = linear(), linear()
    fit(one, n_steps=3, lr=0.5, clip_norm=1.0, batch_size=2, **how)
    numbers = dict(n_steps=np.int64(3), lr=np.float32(0.5), clip_norm=np.float64(1), batch_size=np.int32(2))
    fit(other, **numbers, **how)
    torch.testing.assert_close(values([one]), values([other]), rtol=0, atol=0)


# The bar


def stderr(monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))  # pytest has its hands on the true one
    return stream


def test_short_loop_leaves_nothing_in_a_log(monkeypatch):
    log = stderr(monkeypatch, terminal=False)
    assert list(progress.progress(range(1000), "fit", 1000)) == list(range(1000))
    assert log.getvalue() == ""


def test_long_loop_leaves_whole_lines_in_a_log(monkeypatch):
    log, clock, init = stderr(monkeypatch, terminal=False), [0.0], progress.tqdm.__init__

    def with_clock(self, *words, **options):  # tqdm takes the time from an attribute it sets at its start
        init(self, *words, **options)
        self._time = lambda: clock[0]
        self.start_t = self.last_print_t = clock[0]

    monkeypatch.setattr(progress.tqdm, "__init__", with_clock)
    for _ in progress.progress(range(20, 100), "fit", 100, first=20):
        clock[0] += 10
    lines = log.getvalue().splitlines()
    assert log.getvalue().endswith("\n") and len(lines) == 27  # one every 30 s of 800, and the end
    assert all(re.fullmatch(r"fit: [^\r\x1b]*/100[^\r\x1b]*", line) for line in lines) and "100/100" in lines[-1]


@pytest.mark.parametrize("until", [3, 10])
def test_terminal_shows_a_bar_that_goes_when_done_or_left(until, monkeypatch):
    terminal = stderr(monkeypatch, terminal=True)
    for item in progress.progress(range(10), "fit", 10):
        if item == until:
            break
    assert "\rfit:   0%|" in terminal.getvalue() and terminal.getvalue().endswith("\r")
    assert "\n" not in terminal.getvalue()


def test_rehearsal_takes_a_few_steps_and_tells_what_the_others_would_take(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setenv("TS_REHEARSE", str(tmp_path / "told"))

    def taken(total, first, **how):
        done = []
        for step in progress.progress(range(first, total), "fit", total, first, **how):
            clock[0] += 1.0 + 2.0 * (step == first)
            done.append(step)
        return done

    assert taken(100, 0, long=10) == list(range(6))
    assert taken(104, 4, long=10) == list(range(4, 10))
    assert taken(3, 0, long=1) == list(range(3))
    assert taken(50, 0) == list(range(50))  # no training
    rest = 10 * 3 + 90 * 1 - 8
    assert [float(line) for line in (tmp_path / "told").read_text().split()] == [rest, rest, 0]

    (tmp_path / "told").unlink()  # the first step takes long for once, every tenth is evaluated, which the tenth tells
    for step in progress.progress(range(1000), "fit", 1000, long=101):
        clock[0] += 3.0 * (step == 0) + 0.25 * (step % 10 == 0) + 0.0625
    assert step == 10
    assert float((tmp_path / "told").read_text()) == 0.0625 * (1000 - 11) + 0.25 * (101 - 2)
