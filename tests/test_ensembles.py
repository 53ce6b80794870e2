import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ts_helpers import ensembles
from ts_helpers.cells import MTRNNCell, unroll
from ts_helpers.ensembles import train
from ts_helpers.optimizers import rmsprop
from ts_helpers.timescales import Clamped, raw_name

TAU = raw_name("cell.alpha")


class Reader(nn.Module):
    """Two small layers and a read-out, with a scale of no dimension."""

    def __init__(self, seed, update="simultaneous", hidden=2):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.cell = MTRNNCell(1, (3, hidden), (2, 6), Clamped(), update=update, generator=generator)
        self.V = nn.Parameter(torch.randn(3, generator=generator) / 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * (torch.tanh(unroll(self.cell, x)[..., :3]) @ self.V)


def loss(network, x, y):
    return (network(x) - y).square().mean()


def time_constants(network, x, y):
    return 1 / network.cell.alpha


MEASURES = {"loss": loss, "tau": time_constants}


def networks_of(n, **how):
    return [Reader(seed, **how).double() for seed in range(n)]


def data_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, 2, 1, generator=generator, dtype=torch.float64)
    return [x, torch.randn(n, 6, 2, generator=generator, dtype=torch.float64)]


def values(networks):
    return torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()]) for net in networks])


def plain_loop(network, data, epochs, lr, tau_factor=1.0, clip=None, clip_norm=2.0, floor=None):
    """Adam as PyTorch has it; returns the losses before each step."""
    tau = network.cell.parametrizations.alpha.original
    others = [p for p in network.parameters() if p is not tau]
    optimizer = torch.optim.Adam([{"params": others}, {"params": [tau], "lr": lr * tau_factor}], lr=lr)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        error = loss(network, *data)
        error.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip, clip_norm)
        optimizer.step()
        if floor is not None:
            with torch.no_grad():
                tau.clamp_(min=floor)
        losses.append(error.item())
    return losses


@pytest.mark.parametrize(
    "how",
    [
        dict(),
        dict(clip=0.05, clip_norm=2.0),
        dict(clip=0.02, clip_norm=math.inf),
        dict(clip=1e6),
        dict(tau_factor=10.0),
        dict(tau_factor=10.0, clip=0.02, clip_norm=math.inf),
        dict(tau_factor=100.0, floor=1.5),
    ],
    ids=str,
)
def test_networks_learn_as_in_a_plain_loop_with_torchs_adam(how):
    networks, plain, data = networks_of(3), networks_of(3), data_of(3)
    mine = {key: how[key] for key in ("clip", "clip_norm") if key in how}
    history = train(
        networks,
        loss,
        data,
        epochs=25,
        lr=0.02,
        factors={TAU: how.get("tau_factor", 1.0)},
        floors={TAU: how["floor"]} if "floor" in how else None,
        watch=MEASURES,
        every=1,
        **mine,
    )
    for i, network in enumerate(plain):
        expected = plain_loop(network, [t[i] for t in data], 25, 0.02, **how)
        np.testing.assert_allclose(history.watched["loss"][i, :-1], expected, rtol=1e-5)
    # torch adds 1e-6 to the norm before it clips; without clipping the two agree to rounding
    tolerance = 1e-4 if "clip" in how else 1e-9
    torch.testing.assert_close(values(networks), values(plain), rtol=tolerance, atol=tolerance)


def test_networks_trained_together_equal_each_trained_alone():
    together, alone, data = networks_of(4), networks_of(4), data_of(4)
    how = dict(epochs=15, clip=0.1, watch=MEASURES, every=4)
    lr = [0.001, 0.01, 0.02, 0.03]
    history = train(together, loss, data, lr=lr, factors={TAU: [1, 10, 0, 3]}, **how)
    for i, factor in enumerate([1, 10, 0, 3]):
        one = train([alone[i]], loss, [t[i : i + 1] for t in data], lr=lr[i], factors={TAU: factor}, **how)
        for key in MEASURES:
            np.testing.assert_allclose(history.watched[key][i], one.watched[key][0], rtol=1e-10)
    torch.testing.assert_close(values(together), values(alone), rtol=1e-10, atol=1e-12)


def test_more_networks_than_fit_at_once_learn_the_same(monkeypatch):
    lr, factors, floors = [0.01 * (i + 1) for i in range(5)], {TAU: [0, 1, 2, 3, 4]}, {TAU: [0, 1, 1.9, 0, 0]}
    made = []
    for at_once in (20, 2, 1):
        monkeypatch.setattr(ensembles, "AT_ONCE", at_once)
        monkeypatch.setattr(ensembles, "NUMBERS", 0)
        networks, how = networks_of(5), dict(epochs=8, lr=lr, factors=factors, floors=floors, watch=MEASURES, every=3)
        made.append((train(networks, loss, data_of(5), **how), values(networks)))
    for history, weights in made[1:]:
        torch.testing.assert_close(weights, made[0][1], rtol=1e-11, atol=1e-13)
        assert history.diverged.tolist() == [-1] * 5
        assert history.epoch.tolist() == [0, 3, 6, 8]
        for key in MEASURES:
            np.testing.assert_allclose(history.watched[key], made[0][0].watched[key], rtol=1e-11)


def test_factor_zero_keeps_a_parameter_exactly_and_out_of_the_norm():
    networks, plain, data = networks_of(2), networks_of(2), data_of(2)
    before = [{name: p.detach().clone() for name, p in net.named_parameters()} for net in networks]
    train(networks, loss, data, epochs=10, lr=0.05, factors={TAU: 0, "cell.S.*": [0, 1]}, clip=0.05)
    for i, (network, start) in enumerate(zip(networks, before, strict=True)):
        kept = {name for name, p in network.named_parameters() if torch.equal(p, start[name])}
        assert kept == {TAU} | ({"cell.S.0", "cell.S.1"} if i == 0 else set())
    for name, p in plain[0].named_parameters():
        p.requires_grad_(name != TAU and not name.startswith("cell.S."))
    optimizer = torch.optim.Adam([p for p in plain[0].parameters() if p.requires_grad], lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        loss(plain[0], *(t[0] for t in data)).backward()
        torch.nn.utils.clip_grad_norm_(plain[0].parameters(), 0.05)
        optimizer.step()
    torch.testing.assert_close(values(networks[:1]), values(plain[:1]), rtol=1e-4, atol=1e-4)


def test_learning_rate_zero_keeps_a_network_exactly():
    networks = networks_of(2)
    before = values(networks)
    train(networks, loss, data_of(2), epochs=5, lr=torch.tensor([0.0, 0.01]))
    assert torch.equal(values(networks)[0], before[0])
    assert not torch.equal(values(networks)[1], before[1])


def test_floor_holds_a_parameter_after_every_step():
    networks = networks_of(3)
    floors = {TAU: [1.8, 1.0, 0.0]}
    history = train(
        networks, loss, data_of(3), epochs=60, lr=0.2, factors={TAU: 5}, floors=floors, watch=MEASURES, every=1
    )
    assert history.watched["tau"][0].min() == pytest.approx(1.8, abs=1e-12)  # it was reached, and held
    for network, floor in zip(networks, (1.8, 1.0, 0.0), strict=True):
        assert float(network.cell.parametrizations.alpha.original.detach().min()) >= floor


def wild_loss(network, x, y, blow):
    """As `loss`, but infinite once the read-out's scale has moved far enough."""
    return loss(network, x, y) + torch.exp(blow * (network.scale - 1).abs())


def test_network_that_diverges_is_noted_and_leaves_the_others_alone():
    blow = torch.tensor([0.0, 3e3, 0.0], dtype=torch.float64)
    networks, others = networks_of(3), networks_of(3)
    watch = dict(seen=wild_loss, tau=lambda network, x, y, blow: network.cell.alpha)
    how = dict(epochs=12, lr=[0.01, 0.5, 0.01], watch=watch, every=1)
    history = train(networks, wild_loss, [*data_of(3), blow], **how)
    calm = train(others, wild_loss, [*data_of(3), 0 * blow], **how)
    assert history.diverged.tolist()[::2] == [-1, -1]
    epoch = history.diverged[1]
    seen = history.watched["seen"]
    assert 0 < epoch < 12
    assert np.isfinite(seen[1, :epoch]).all()  # as it was noted ...
    assert len(np.unique(history.watched["tau"][1, epoch:], axis=0)) == 1  # ... so it stayed
    assert bool(torch.isfinite(values(networks)).all())
    assert calm.diverged.tolist() == [-1, -1, -1]
    for key in ("seen", "tau"):
        assert np.array_equal(history.watched[key][[0, 2]], calm.watched[key][[0, 2]])
    assert torch.equal(values(networks)[[0, 2]], values(others)[[0, 2]])


def test_network_that_starts_with_nan_is_noted_at_epoch_zero():
    networks, others = networks_of(2), networks_of(2)
    data = data_of(2)
    data[0][1, 0, 0, 0] = torch.nan
    before = values(networks)
    history = train(networks, loss, data, epochs=5, lr=0.01, clip=0.1, floors={TAU: 1.0})
    train(others, loss, data_of(2), epochs=5, lr=0.01, clip=0.1, floors={TAU: 1.0})
    assert history.diverged.tolist() == [-1, 0]
    assert torch.equal(values(networks)[1], before[1])
    assert torch.equal(values(networks)[0], values(others)[0])


@pytest.mark.parametrize(
    ("epochs", "every", "points"),
    [(6, 2, [0, 2, 4, 6]), (7, 3, [0, 3, 6, 7]), (1, 100, [0, 1]), (3, 1, [0, 1, 2, 3])],
)
def test_networks_are_watched_before_during_and_after(epochs, every, points):
    networks = networks_of(2)
    start, data = [loss(net, *(t[i] for t in data_of(2))).item() for i, net in enumerate(networks)], data_of(2)
    history = train(networks, loss, data, epochs=epochs, every=every, watch=MEASURES)
    assert history.epoch.tolist() == points
    assert history.watched["loss"].shape == (2, len(points))
    assert history.watched["tau"].shape == (2, len(points), 2)
    assert history.seconds > 0
    end = [loss(net, *(t[i] for t in data)).item() for i, net in enumerate(networks)]
    np.testing.assert_allclose(history.watched["loss"][:, 0], start)
    np.testing.assert_allclose(history.watched["loss"][:, -1], end)
    assert bool((values(networks) != values(networks_of(2))).any())


def test_parameters_stay_the_same_objects_ready_to_learn_on():
    networks = networks_of(2)
    before = [list(net.parameters()) for net in networks]
    train(networks, loss, data_of(2), epochs=2)
    for network, parameters in zip(networks, before, strict=True):
        assert all(p is q and p.requires_grad for p, q in zip(network.parameters(), parameters, strict=True))
        loss(network, *(t[0] for t in data_of(2))).backward()


def test_each_network_keeps_its_own_floor_in_its_dial():
    networks = networks_of(2)
    with torch.no_grad():
        for network, floor in zip(networks, (1.0, 3.0), strict=True):
            network.cell.parametrizations.alpha[0].floor.fill_(floor)
    history = train(networks, loss, data_of(2), epochs=1, lr=0.0, watch=MEASURES)
    np.testing.assert_allclose(history.watched["tau"][:, 0], [[2, 6], [3, 6]], rtol=1e-6)


# Minibatches and held-out data


def sequences_of(n, sequences=5, seed=0):
    """Data of which every sequence is another, (networks, time, sequences, ...)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, sequences, 1, generator=generator, dtype=torch.float64)
    return [x, torch.randn(n, 6, sequences, generator=generator, dtype=torch.float64)]


@pytest.fixture
def minibatches(monkeypatch):
    """What every step of Adam was taken on, in a list."""
    seen, step = [], ensembles._Run.step

    def spy(run, epoch, number, data):
        seen.append(list(data))
        return step(run, epoch, number, data)

    monkeypatch.setattr(ensembles._Run, "step", spy)
    return seen


def order_of(minibatches, data):
    """Which sequences each minibatch held, found in the input and in the target of every network."""
    orders = []
    for some in minibatches:
        whole = [[list(t[i].unbind(1)) for i in range(len(t))] for t in data]
        places = {
            tuple(next(k for k, full in enumerate(fulls) if torch.equal(full, part)) for part in t[i].unbind(1))
            for t, each in zip(some, whole, strict=True)
            for i, fulls in enumerate(each)
        }
        (order,) = places  # the same in all of them
        orders.append(order)
    return orders


def test_every_epoch_takes_each_sequence_once_in_an_order_of_its_own(minibatches):
    data = sequences_of(3)
    orders = {}
    for order in (0, 1, 0):
        minibatches.clear()
        train(networks_of(3), loss, data, epochs=4, batch=2, order=order)
        found = order_of(minibatches, data)
        assert [len(some) for some in found] == [2, 2, 1] * 4  # the last holds what is left
        epochs = [sum(found[3 * k : 3 * k + 3], ()) for k in range(4)]
        assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
        assert len(set(epochs)) == 4
        assert orders.setdefault(order, epochs) == epochs
    assert not set(orders[0]) & set(orders[1])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_minibatches_learn_as_in_a_plain_loop_with_torchs_adam(batch, minibatches):
    networks, plain, data = networks_of(3), networks_of(3), sequences_of(3)
    train(networks, loss, data, epochs=6, batch=batch, lr=0.02)
    assert len(minibatches) == 6 * math.ceil(5 / batch)
    for i, network in enumerate(plain):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for some in minibatches:
            optimizer.zero_grad()
            loss(network, *(t[i] for t in some)).backward()
            optimizer.step()
    torch.testing.assert_close(values(networks), values(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at_once", [20, 2])
def test_minibatches_are_those_of_each_network_trained_alone(at_once, monkeypatch):
    monkeypatch.setattr(ensembles, "AT_ONCE", at_once)
    monkeypatch.setattr(ensembles, "NUMBERS", 0)
    together, alone, data = networks_of(4), networks_of(4), sequences_of(4)
    before, factors = values(together), [0, 1, 0, 1]  # fixed and learned time constants, side by side
    how = dict(epochs=6, batch=2, order=3, lr=0.02, watch=MEASURES, watch_on=sequences_of(4, 3, seed=1), every=2)
    history = train(together, loss, data, factors={TAU: factors}, **how)
    for i, factor in enumerate(factors):
        own = how | dict(watch_on=[t[i : i + 1] for t in how["watch_on"]])
        one = train([alone[i]], loss, [t[i : i + 1] for t in data], factors={TAU: factor}, **own)
        for key in MEASURES:
            np.testing.assert_allclose(history.watched[key][i], one.watched[key][0], rtol=1e-10)
        kept = torch.equal(together[i].cell.alpha, networks_of(4)[i].cell.alpha)
        assert kept == (factor == 0)
    torch.testing.assert_close(values(together), values(alone), rtol=1e-10, atol=1e-12)
    assert bool((values(together) != before).any(1).all())


def test_minibatch_of_all_sequences_is_the_whole():
    made = []
    for batch in (None, 5):
        networks = networks_of(2)
        train(networks, loss, sequences_of(2), epochs=6, batch=batch, lr=0.02)
        made.append(values(networks))
    torch.testing.assert_close(*made, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [None, 2])
def test_networks_are_watched_on_held_out_data(batch):
    networks, unwatched, held = networks_of(2), networks_of(2), sequences_of(2, 3, seed=1)
    start = [loss(net, *(t[i] for t in held)).item() for i, net in enumerate(networks)]
    history = train(
        networks, loss, sequences_of(2), epochs=4, batch=batch, lr=0.02, every=1, watch={"loss": loss}, watch_on=held
    )
    end = [loss(net, *(t[i] for t in held)).item() for i, net in enumerate(networks)]
    np.testing.assert_allclose(history.watched["loss"][:, 0], start)
    np.testing.assert_allclose(history.watched["loss"][:, -1], end)
    train(unwatched, loss, sequences_of(2), epochs=4, batch=batch, lr=0.02)
    assert torch.equal(values(networks), values(unwatched))


def test_network_that_diverges_on_a_minibatch_is_noted_and_leaves_the_others_alone():
    made, data = [], sequences_of(3)
    for wrong in (0.0, torch.nan):
        data[1][1, 0, 2] = wrong  # one of five sequences
        networks = networks_of(3)
        history = train(networks, loss, data, epochs=3, batch=2, lr=0.02)
        made.append((history.diverged.tolist(), values(networks)))
    assert made[0][0] == [-1, -1, -1]
    assert made[1][0] == [-1, 0, -1]
    assert torch.equal(made[0][1][[0, 2]], made[1][1][[0, 2]])
    assert bool(torch.isfinite(made[1][1]).all())


@pytest.mark.parametrize(("steps", "epochs"), [(1, 7), (2, 4), (4, 2), (7, 1), (3, 2)])
def test_epochs_of_so_many_steps_go_through_the_same_passes(steps, epochs, minibatches):
    whole, parts, data = networks_of(2), networks_of(2), sequences_of(2)
    train(whole, loss, data, epochs=3, batch=2, order=5, lr=0.02)
    passes = order_of(minibatches, data)
    minibatches.clear()
    history = train(parts, loss, data, epochs=epochs, steps=steps, batch=2, order=5, lr=0.02, watch=MEASURES, every=1)
    assert order_of(minibatches, data) == passes[: steps * epochs]
    assert history.epoch.tolist() == list(range(epochs + 1))
    assert torch.equal(values(parts), values(whole)) == (steps * epochs == len(passes))


def test_steps_of_an_epoch_without_minibatches_are_on_all_sequences():
    whole, parts = networks_of(2), networks_of(2)
    train(whole, loss, sequences_of(2), epochs=6, lr=0.02)
    train(parts, loss, sequences_of(2), epochs=2, steps=3, lr=0.02)
    assert torch.equal(values(parts), values(whole))


# RMSprop, and learning rates that are halved


@pytest.mark.parametrize("lr", [0.001, 0.02])
def test_networks_learn_as_in_a_plain_loop_with_torchs_rmsprop(lr, minibatches):
    networks, plain, data = networks_of(3), networks_of(3), sequences_of(3)
    train(networks, loss, data, epochs=6, batch=2, optimizer=rmsprop, lr=lr)
    for i, network in enumerate(plain):
        optimizer = torch.optim.RMSprop(network.parameters(), lr=lr, alpha=0.9)
        for some in minibatches:
            optimizer.zero_grad()
            loss(network, *(t[i] for t in some)).backward()
            optimizer.step()
    torch.testing.assert_close(values(networks), values(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("held", [None, sequences_of(3, 4, seed=1)], ids=["data", "held out"])
@pytest.mark.parametrize(("patience", "lr", "factor"), [(1, 0.3, 1.0), (2, 0.3, 0.1), (3, [0.4, 0.001, 0.2], 1.0)])
def test_rates_are_halved_as_torchs_scheduler_does_network_by_network(patience, lr, factor, held, minibatches):
    networks, plain, data = networks_of(3), networks_of(3), sequences_of(3)
    how = dict(epochs=30, steps=2, batch=2, optimizer=rmsprop, lr=lr, factors={TAU: factor})
    train(networks, loss, data, patience=patience, watch_on=held, **how)
    rates = []
    for i, network in enumerate(plain):
        start = lr if isinstance(lr, float) else lr[i]
        tau = network.cell.parametrizations.alpha.original
        others = [p for p in network.parameters() if p is not tau]
        groups = [{"params": others}, {"params": [tau], "lr": start * factor}]
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


def test_rates_are_kept_without_patience_and_while_the_loss_falls():
    falling, plain = networks_of(2), networks_of(2)
    how = dict(epochs=10, optimizer=rmsprop, lr=1e-4, watch=MEASURES, every=1)
    history = train(falling, loss, data_of(2), patience=1, **how)
    assert (np.diff(history.watched["loss"]) < 0).all()
    train(plain, loss, data_of(2), **how)
    assert torch.equal(values(falling), values(plain))


def test_network_that_diverges_halves_no_rate_but_its_own():
    networks, others, data = networks_of(3), networks_of(3), data_of(3)
    how = dict(epochs=12, optimizer=rmsprop, lr=0.3, patience=1)
    calm = train(others, loss, data, **how)
    data[0][1, 0, 0, 0] = torch.nan
    history = train(networks, loss, data, **how)
    assert calm.diverged.tolist() == [-1, -1, -1]
    assert history.diverged.tolist() == [-1, 0, -1]
    assert torch.equal(values(networks)[[0, 2]], values(others)[[0, 2]])


# Checkpoints


@pytest.fixture
def minutes(monkeypatch):
    """A clock that jumps a minute and more at every look at it, so that every epoch leaves a checkpoint."""
    clock = [0.0]

    def tick():
        clock[0] += 61
        return clock[0]

    monkeypatch.setattr(ensembles, "time", SimpleNamespace(perf_counter=tick))


@pytest.fixture(autouse=True)
def helpers(tmp_path, monkeypatch):
    """Helper code of its own, which nobody edits meanwhile."""
    (tmp_path / "root" / "ts_helpers").mkdir(parents=True)
    (tmp_path / "root" / "ts_helpers" / "some.py").write_text("first = 1\n")
    monkeypatch.setattr(ensembles, "ROOT", tmp_path / "root")
    return tmp_path / "root" / "ts_helpers"


HOW = dict(epochs=12, lr=[0.01, 0.02, 0.5], factors={TAU: [1, 0, 5]}, floors={TAU: 1.5}, clip=0.3, every=3)
STOP = SimpleNamespace(at=None, calls=0)


def interrupting_loss(network, x, y):
    STOP.calls += 1
    if STOP.calls == STOP.at:
        raise KeyboardInterrupt
    return loss(network, x, y)


def trained(folder, networks=None, data=None, stop=None, measures=MEASURES, **change):
    STOP.at, STOP.calls = stop, 0
    networks = networks or networks_of(3)
    how = HOW | dict(watch=measures) | change
    history = train(networks, interrupting_loss, data or data_of(3), checkpoint=folder, **how)
    return history, values(networks), STOP.calls


@pytest.mark.parametrize("stop", [2, 4, 5, 12])
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path, minutes, stop):
    whole, weights, _ = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=stop)
    resumed, again, calls = trained(tmp_path)
    assert calls == 12 - (stop - 1)  # what was done is not done again
    assert torch.equal(weights, again)
    assert resumed.epoch.tolist() == whole.epoch.tolist()
    assert resumed.diverged.tolist() == whole.diverged.tolist()
    for key in MEASURES:
        assert np.array_equal(resumed.watched[key], whole.watched[key])
    assert resumed.seconds > 0


def test_divergence_is_remembered_over_an_interruption(tmp_path, minutes):
    data = data_of(3)
    data[1][1] = torch.nan
    whole, weights, _ = trained(None, data=data)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, data=data, stop=6)
    resumed, again, _ = trained(tmp_path, data=data)
    assert resumed.diverged.tolist() == whole.diverged.tolist() == [-1, 0, -1]
    assert torch.equal(weights, again)


def test_every_stack_has_its_own_checkpoint(tmp_path, minutes, monkeypatch):
    monkeypatch.setattr(ensembles, "AT_ONCE", 2)
    monkeypatch.setattr(ensembles, "NUMBERS", 0)
    whole, weights, calls = trained(None)
    assert calls == 24
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=12 + 5)
    resumed, again, calls = trained(tmp_path)
    assert calls == 12 - 4
    assert torch.equal(weights, again)
    assert np.array_equal(resumed.watched["loss"], whole.watched["loss"])
    assert len(list(tmp_path.glob("*.npz"))) == 2


@pytest.mark.parametrize(("fit", "stacks"), [(0, 5), (2, 3), (5, 1)])
def test_ensemble_larger_than_memory_is_split_and_ends_the_same(fit, stacks, tmp_path, monkeypatch):
    whole, parts, data = networks_of(5), networks_of(5), sequences_of(5)
    how = dict(epochs=3, batch=2, lr=0.02, watch=MEASURES, every=1)
    expected = train(whole, loss, data, **how)
    one = ensembles._Stack(parts[:1], [tensor[:1] for tensor in data]).footprint(2)
    monkeypatch.setattr(ensembles, "MEMORY", (fit + 0.5) * one)
    history = train(parts, loss, data, checkpoint=tmp_path, **how)
    assert len(list(tmp_path.glob("*.npz"))) == stacks
    for key in MEASURES:
        np.testing.assert_allclose(history.watched[key], expected.watched[key], rtol=1e-10)
    torch.testing.assert_close(values(parts), values(whole), rtol=1e-9, atol=1e-9)


def test_finished_training_is_not_done_again(tmp_path):
    first, weights, _ = trained(tmp_path / "new" / "folder")
    second, again, calls = trained(tmp_path / "new" / "folder")
    assert calls == 0
    assert torch.equal(weights, again)
    assert second.seconds == first.seconds
    assert np.array_equal(first.watched["tau"], second.watched["tau"])


@pytest.mark.parametrize(("stop", "done"), [(4, 1), (5, 1), (12, 3), (36, 11)])
def test_interrupted_minibatches_go_on_to_the_same_bits(tmp_path, minutes, stop, done):
    how = dict(batch=2, order=7, watch_on=sequences_of(3, 4, seed=1))
    whole, weights, calls = trained(None, data=sequences_of(3), **how)
    assert calls == 12 * 3
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, data=sequences_of(3), stop=stop, **how)
    resumed, again, calls = trained(tmp_path, data=sequences_of(3), **how)
    assert calls == (12 - done) * 3  # an epoch that was broken off is done again
    assert torch.equal(weights, again)
    for key in MEASURES:
        assert np.array_equal(resumed.watched[key], whole.watched[key])


@pytest.mark.parametrize("stop", [2, 9, 13, 24])
def test_interrupted_rmsprop_goes_on_to_the_same_bits_with_the_same_halvings(tmp_path, minutes, stop):
    how = dict(batch=2, steps=2, optimizer=rmsprop, lr=0.3, patience=2, watch_on=sequences_of(3, 4, seed=1))
    whole, weights, calls = trained(None, data=sequences_of(3), **how)
    assert calls == 12 * (2 + 1)  # two minibatches an epoch, and the loss on held-out data
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, data=sequences_of(3), stop=stop, **how)
    resumed, again, calls = trained(tmp_path, data=sequences_of(3), **how)
    assert calls == (12 - (stop - 1) // 3) * 3
    assert torch.equal(weights, again)
    assert not torch.equal(weights, trained(None, data=sequences_of(3), **how | dict(patience=None))[1])
    for key in MEASURES:
        assert np.array_equal(resumed.watched[key], whole.watched[key])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(dict(batch=3), id="other size"),
        pytest.param(dict(batch=None), id="all at once"),
        pytest.param(dict(steps=4), id="other steps"),
        pytest.param(dict(patience=2), id="patience"),
        pytest.param(dict(order=8), id="other order"),
        pytest.param(dict(watch_on=None), id="nothing held out"),
        pytest.param(dict(watch_on=sequences_of(3, seed=2)), id="other held out"),
    ],
)
def test_checkpoint_of_other_minibatches_or_held_out_data_is_not_taken(tmp_path, change):
    how = dict(data=sequences_of(3), batch=2, order=7, watch_on=sequences_of(3, seed=1))
    trained(tmp_path, **how)
    expected, weights, calls = trained(None, **how | change)
    found, again, as_many = trained(tmp_path, **how | change)
    assert as_many == calls
    assert torch.equal(again, weights)
    assert np.array_equal(found.watched["loss"], expected.watched["loss"])


def other_tau(network, x, y):
    return 2 / network.cell.alpha


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=13),
        dict(lr=0.01),
        dict(factors={TAU: [1, 0, 4]}),
        dict(floors={TAU: 1.4}),
        dict(floors=None),
        dict(clip=0.2),
        dict(clip_norm=math.inf),
        dict(optimizer=rmsprop),
        dict(every=4),
        dict(data=data_of(3, seed=1)),
        dict(measures={"loss": loss}),
        dict(measures={"loss": loss, "tau": other_tau}),
        dict(networks=[Reader(seed + 1).double() for seed in range(3)]),
        dict(networks=[Reader(seed, update="sequential").double() for seed in range(3)]),
    ],
    ids=lambda change: next(iter(change)),
)
def test_checkpoint_of_another_training_is_not_taken(tmp_path, change):
    trained(tmp_path)
    expected = trained(None, **_fresh(change))[1]
    _, weights, calls = trained(tmp_path, **_fresh(change))
    assert calls > 0
    assert torch.equal(weights, expected)


def _fresh(change):
    if "networks" not in change:
        return change
    copies = networks_of(3, update=change["networks"][0].cell.update)
    for copy, network in zip(copies, change["networks"], strict=True):
        copy.load_state_dict(network.state_dict())
    return {"networks": copies}


def test_checkpoint_of_other_helper_code_is_not_taken(tmp_path, helpers):
    trained(tmp_path)
    (helpers / "some.py").write_text("first = 2\n")
    assert trained(tmp_path)[2] == 12


def test_failed_save_leaves_nothing_half_written(tmp_path, minutes, monkeypatch):
    folder = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):
        trained(folder, stop=5)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 1

    def full_disk(file, **arrays):
        with open(file, "wb") as stream:
            stream.write(b"PK half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert torch.equal(trained(folder)[1], trained(None)[1])


# What is refused


class Other(Reader):
    """The same parameters, another class."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(networks=[]), "networks must hold one or more networks, got none"),
        (dict(networks=[Reader(0), Reader(1, hidden=3)]), "networks must be of one architecture, number 1 differs"),
        (dict(networks=[Reader(0), Reader(1), Other(2)]), "networks must be of one architecture, number 2 differs"),
        (dict(data=data_of(3)), "data must have 2 networks in its first dimension, got 3"),
        (dict(factors={"cell.tau": 0}), "no parameter is called 'cell.tau'; there are V, scale, cell.L.0"),
        (dict(floors={"nosuch*": 0}), r"no parameter is called 'nosuch\*'; there are"),
        (dict(lr=-0.1), "lr times factors must be finite and 0 or more for every network"),
        (dict(lr=[0.1, -0.1]), "lr times factors must be finite and 0 or more for every network"),
        (dict(lr=math.nan), "lr times factors must be finite"),
        (dict(lr=math.inf), "lr times factors must be finite"),
        (dict(factors={"V": -1}), "lr times factors must be finite and 0 or more"),
        (dict(lr=[0.1, 0.1, 0.1]), "lr must be one number or one for each of 2 networks, got 3"),
        (dict(factors={"V": [1, 2, 3]}), "V must be one number or one for each of 2 networks, got 3"),
        (dict(clip=0), "clip must be positive or None, got 0"),
        (dict(clip=-1.0), "clip must be positive or None, got -1"),
        (dict(clip=math.nan), "clip must be positive or None, got nan"),
        (dict(clip=1.0, clip_norm=3), "clip_norm must be 2 or infinity, got 3"),
        (dict(epochs=0), "epochs and every must be 1 or more, got epochs=0, every=100"),
        (dict(every=0), "epochs and every must be 1 or more, got epochs=3, every=0"),
        (dict(steps=0), "steps and patience must be 1 or more, or None, got steps=0, patience=None"),
        (dict(patience=0), "steps and patience must be 1 or more, or None, got steps=None, patience=0"),
        (dict(batch=0), "batch must be 1 or more and at most the sequences of the data, got batch=0, sizes=.2."),
        (dict(batch=3), "batch must be 1 or more and at most the sequences of the data, got batch=3, sizes=.2."),
        (dict(batch=1, data=()), r"batch must be 1 or more .*, got batch=1, sizes=set\(\)"),
        (dict(batch=1, data=[torch.zeros(2, 6)]), "batch must be 1 or more .*, got batch=1, sizes=.0."),
        (dict(batch=1, data=[data_of(2)[0], sequences_of(2)[1]]), "batch must be .*, got batch=1, sizes=.2, 5."),
        (dict(watch_on=data_of(3)), "data must have 2 networks in its first dimension, got 3"),
    ],
    ids=str,
)
def test_training_refuses_what_it_cannot_use(change, message):
    how = dict(networks=[Reader(0), Reader(1)], loss=loss, data=data_of(2), epochs=3) | change
    with pytest.raises(ValueError, match=message):
        train(**how)


def test_networks_that_step_differently_are_not_of_one_architecture():
    networks = [Reader(0), Reader(1, update="sequential")]
    with pytest.raises(ValueError, match="networks must be of one architecture, number 1 differs from the first"):
        train(networks, loss, [t.float() for t in data_of(2)], epochs=1)
