import itertools
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.func import functional_call

from ts_helpers.cells import GatedCell, unroll
from ts_helpers.fit import fit
from ts_helpers.papers.tallec2018 import text_models
from ts_helpers.papers.tallec2018.text_models import BatchNormLSTM, LSTMState, RecurrentHighway, nll, tbptt_nll

BOTH = pytest.mark.parametrize("make", [BatchNormLSTM, RecurrentHighway], ids=["LSTM", "highway"])
NORMS = ("norm_h", "norm_x", "norm_u")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network_of(make, third=3, input_size=2, hidden_size=4, seed=0):
    """An LSTM with so many steps of statistics, or a highway network so deep; no number is as it starts by default."""
    network, draws = make(input_size, hidden_size, third, generator=generator(seed)).double(), generator(10 + seed)
    for name, value in network.state_dict().items():
        if not name.startswith(("W", "U")):
            value.add_(torch.rand(value.shape, generator=draws, dtype=torch.float64))
    return network


def random(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def first_state(make, batch=3, hidden=4):
    """A state that is not 0."""
    h, u = random(batch, hidden, seed=2), random(batch, hidden, seed=3)
    return LSTMState(h, u, 0) if make is BatchNormLSTM else h


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def numpy_lstm(network, x, h, u, training):
    """Eqs. 6 to 8 of Cooijmans et al. (2016); the states and the statistics at the end."""
    p = {name: value.detach().numpy() for name, value in network.named_parameters()}
    kept = {name: value.numpy().copy() for name, value in network.named_buffers()}

    def normalised(a, norm, step):
        k = min(step, len(kept[f"{norm}.mean"]) - 1)
        mean, variance = kept[f"{norm}.mean"][k].copy(), kept[f"{norm}.variance"][k].copy()
        if training:
            mean, variance = a.sum(0) / len(a), ((a - a.sum(0) / len(a)) ** 2).sum(0) / len(a)
            unbiased = variance * len(a) / (len(a) - 1)
            kept[f"{norm}.mean"][k] = 0.95 * kept[f"{norm}.mean"][k] + 0.05 * mean
            kept[f"{norm}.variance"][k] = 0.95 * kept[f"{norm}.variance"][k] + 0.05 * unbiased
        return p[f"{norm}.gain"] * (a - mean) / np.sqrt(variance + 1e-5) + p.get(f"{norm}.shift", 0)

    states, n = [], h.shape[1]
    for step, x_t in enumerate(x):
        drive = normalised(h @ p["W"].T, "norm_h", step) + normalised(x_t @ p["U"].T, "norm_x", step) + p["b"]
        i, f, g, o = (drive[:, j * n : (j + 1) * n] for j in range(4))
        u = sigmoid(f) * u + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(normalised(u, "norm_u", step))
        states.append(h)
    return np.stack(states), u, kept


def numpy_highway(network, x, s):
    """Eqs. 6 to 9 of Zilly et al. (2017), with transform gates t and carry gates c = 1 - t."""
    p = {name: value.detach().numpy() for name, value in network.named_parameters()}
    states = []
    for x_t in x:
        for layer in range(len(p["W"])):
            h, t = p["b"][layer] + s @ p["W"][layer].T, p["b_g"][layer] + s @ p["W_g"][layer].T
            if layer == 0:
                h, t = h + x_t @ p["U"].T, t + x_t @ p["U_g"].T
            h, t = np.tanh(h), sigmoid(t)
            s = h * t + s * (1 - t)
        states.append(s)
    return np.stack(states)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_lstm_equals_numpy_transcription(training):
    network = network_of(BatchNormLSTM).train(training)
    x, state = random(6, 5, 2), first_state(BatchNormLSTM, batch=5)  # longer than there are statistics
    before = {name: value.clone() for name, value in network.named_buffers()}
    states, u, kept = numpy_lstm(network, x.numpy(), state.h.numpy(), state.u.numpy(), training)
    ours, last = network(x, state)
    np.testing.assert_allclose(ours.detach().numpy(), states, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(last.u.detach().numpy(), u, rtol=1e-11, atol=1e-11)
    assert torch.equal(last.h, ours[-1]) and last.steps == 6
    for name, value in network.named_buffers():
        np.testing.assert_allclose(value.numpy(), kept[name], rtol=1e-11, atol=1e-11)
        assert torch.equal(value, before[name]) != training


@torch.no_grad()
def test_lstm_whose_gains_undo_its_statistics_is_that_of_torch():
    network, plain = network_of(BatchNormLSTM, third=1).eval(), nn.LSTM(2, 4).double()
    for norm in (getattr(network, name) for name in NORMS):
        norm.gain.copy_((norm.variance[0] + 1e-5).sqrt())
    network.norm_u.shift.copy_(network.norm_u.mean[0])
    bias = network.b - network.norm_h.mean[0] - network.norm_x.mean[0]
    for p, value in zip(plain.parameters(), (network.U, network.W, bias, 0 * bias), strict=True):
        p.copy_(value)
    x, state = random(6, 3, 2), first_state(BatchNormLSTM)
    theirs, (h, u) = plain(x, (state.h[None], state.u[None]))
    ours, last = network(x, state)
    torch.testing.assert_close((ours, last.h, last.u), (theirs, h[0], u[0]), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_lstm_in_training_does_not_depend_on_offset_and_scale_of_its_input_and_in_evaluation_does_so_on_average():
    network, x = network_of(BatchNormLSTM, third=5), random(5, 40, 2)
    plain, moved, scaled = (network(signal)[0] for signal in (100 * x, 3 + 100 * x, 1000 * x))
    torch.testing.assert_close(moved, plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-6)  # but for epsilon
    fresh = network_of(BatchNormLSTM, third=5).eval()
    assert (fresh(3 + x)[0] - fresh(x)[0]).abs().max() > 0.1
    for _ in range(600):  # 0.95^600 is 4e-14
        trained, _ = network(x)
    for norm in NORMS:
        getattr(network, norm).variance.mul_(39 / 40)  # from the unbiased one
    torch.testing.assert_close(network.eval()(x)[0], trained, rtol=0, atol=1e-8)


def test_lstm_starts_orthonormal_with_gains_of_a_tenth_one_shift_and_forget_biases_of_one():
    network = BatchNormLSTM(5, 7, 2, generator=generator())
    for weights in (network.W, network.U):
        torch.testing.assert_close(weights.T @ weights, torch.eye(weights.shape[1]), rtol=0, atol=1e-5)
    assert all(bool((getattr(network, norm).gain == 0.1).all()) for norm in NORMS)
    assert network.norm_h.shift is network.norm_x.shift is None and not network.norm_u.shift.any()
    assert network.b.tolist() == [0.0] * 7 + [1.0] * 7 + [0.0] * 14
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(6, 1, 5))  # of one sequence there are no statistics


# The highway network


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_highway_equals_numpy_transcription_and_at_depth_one_the_gated_cell(depth):
    network, x, s = network_of(RecurrentHighway, depth), random(6, 3, 2), first_state(RecurrentHighway)
    states, last = network(x, s)
    np.testing.assert_allclose(states.detach().numpy(), numpy_highway(network, x.numpy(), s.numpy()), rtol=1e-11)
    assert torch.equal(last, states[-1])
    if depth == 1:
        cell = GatedCell(2, 4, generator=generator()).double()
        cell.load_state_dict({name: network.state_dict()[name].reshape(p.shape) for name, p in cell.named_parameters()})
        torch.testing.assert_close(states, unroll(cell, x, s), rtol=1e-12, atol=1e-12)


def test_highway_starts_with_gates_at_minus_two_and_other_weights_within_their_bound():
    for name, p in RecurrentHighway(3, 400, 2, generator=generator()).named_parameters():
        assert bool((p == -2).all()) if name == "b_g" else 0.045 < p.abs().max() <= 0.05


@BOTH
def test_chrono_start_draws_times_evenly_for_the_gates_and_changes_nothing_else(make):
    network, same = (make(2, 500, 3, generator=generator()) for _ in range(2))
    network.chrono_init_(8 if make is BatchNormLSTM else 7, generator=generator())
    if make is BatchNormLSTM:
        i, b, g, o = network.b.detach().chunk(4)
        assert torch.equal(i, -b) and not g.any() and not o.any()
    else:
        b = -network.b_g[0].detach()
        assert all(torch.equal(b_g, network.b_g[0]) for b_g in network.b_g)
    assert kstest(b.exp().numpy(), "uniform", args=(1, 6)).pvalue > 0.01
    for (name, p), q in zip(network.named_parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q) == (name != ("b" if make is BatchNormLSTM else "b_g"))


@pytest.mark.parametrize("depth", [None, 1, 10], ids=["LSTM", "highway", "deep highway"])
def test_units_forget_in_their_times_over_the_depth(depth):
    network = (RecurrentHighway if depth else BatchNormLSTM)(2, 5, depth or 1, generator=generator()).double().eval()
    network.chrono_init_(2000, generator=generator())
    with torch.no_grad():  # gates have no input, and nothing comes in
        for name, p in network.named_parameters():
            if name in (("U", "W", "b", "U_g", "W_g") if depth else ("norm_h.gain", "norm_x.gain")):
                p.zero_()
    T = 1 + (-network.b_g[0] if depth else network.b.chunk(4)[1]).detach().exp()
    state = first_state(type(network), hidden=5)
    last = network(random(10, 3, 2), state)[1]
    kept = last / state if depth else last.u / state.u
    torch.testing.assert_close(kept, ((1 - 1 / T) ** (10 * (depth or 1))).expand(3, 5))


@BOTH
def test_text_in_windows_is_read_as_one_from_zeros_without_gradient_from_one_to_the_next(make):
    network, x, state = network_of(make).eval(), random(9, 3, 2), None
    windows = []
    for window in x.split([1, 3, 5]):  # within the steps that have statistics of their own, and beyond them
        states, state = network(window, state)
        state = state.detach()
        windows.append(states)
    whole, last = network(x)
    torch.testing.assert_close(torch.cat(windows), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tuple(state), tuple(last.detach()), rtol=1e-12, atol=1e-12)
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    assert torch.equal(whole, network(x, LSTMState(zeros, zeros, 0) if make is BatchNormLSTM else zeros)[0])
    assert not torch.allclose(whole, network(x, first_state(make))[0])
    x = random(4, 3, 2).requires_grad_(True)
    states, _ = network(x[2:], network(x[:2])[1].detach())
    states.square().sum().backward()
    assert not x.grad[:2].any() and x.grad[2:].any()


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@BOTH
def test_gradients_pass_gradcheck(make, training):
    network = network_of(make, third=2, hidden_size=2).train(training)
    names, values = zip(*network.named_parameters(), strict=True)

    def states(x, h, u, *values):
        state = LSTMState(h, u, 0) if make is BatchNormLSTM else h + 0 * u
        return functional_call(network, dict(zip(names, values, strict=True)), (x, state))[0]

    inputs = random(3, 3, 2), random(3, 2, seed=2), random(3, 2, seed=3)
    assert torch.autograd.gradcheck(states, [t.detach().clone().requires_grad_(True) for t in (*inputs, *values)])


@BOTH
def test_weights_repeat_with_their_generator_and_sizes_below_one_are_refused(make):
    one, same, other = (make(2, 4, 3, generator=generator(seed)) for seed in (3, 3, 4))
    drawn = {"U", "W"} if make is BatchNormLSTM else {"U", "W", "b", "U_g", "W_g"}
    for name, p in one.named_parameters():
        assert torch.equal(p, same.get_parameter(name))
        assert torch.equal(p, other.get_parameter(name)) != (name in drawn)
    third = "max_steps" if make is BatchNormLSTM else "depth"
    for a, b, c in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        with pytest.raises(ValueError, match=f"1 or more, got input_size={a}, hidden_size={b}, {third}={c}"):
            make(a, b, c, generator=generator())


# Language models, and their losses

N = 5  # symbols


def model_of(make, carried=False):
    core, embedding, read_out = network_of(make, input_size=3), nn.Embedding(N, 3).double(), nn.Linear(4, N).double()
    for p in (embedding.weight, *read_out.parameters()):
        nn.init.normal_(p, generator=generator(20))
    carried = torch.zeros(3, 4, dtype=torch.float64) if carried else None
    return text_models.LanguageModel(embedding, core, read_out, carried)


def symbols(*shape, seed=5):
    return torch.randint(N, shape, generator=generator(seed), dtype=torch.uint8)


def surprise(scores, y):
    """Mean of -log P over all symbols, by a loop."""
    p = scores.detach().exp()
    p = p / p.sum(-1, keepdim=True)
    return -np.mean([math.log(p[t, b, int(y[t, b])]) for t in range(len(y)) for b in range(y.shape[1])])


@BOTH
def test_nll_is_the_surprise_at_windows_each_read_from_zeros_however_many_at_once(make, monkeypatch):
    model, x, y = model_of(make).eval(), symbols(6, 7), symbols(6, 7, seed=6)
    states, _ = model.core(model.embedding.weight[x.long()])
    scores = states @ model.read_out.weight.T + model.read_out.bias
    torch.testing.assert_close(model(x)[0], scores)
    assert nll(model, x, y).item() == pytest.approx(surprise(scores, y), rel=1e-6)
    monkeypatch.setattr(text_models, "AT_ONCE", 3)
    assert nll(model, x, y).item() == pytest.approx(surprise(scores, y), rel=1e-6)


@BOTH
def test_tbptt_nll_in_evaluation_reads_windows_as_one_text(make):
    model, x, y = model_of(make).eval(), symbols(4, 6, 3), symbols(4, 6, 3, seed=6)
    expected = surprise(model(x.flatten(0, 1))[0], y.flatten(0, 1))
    assert tbptt_nll(model, x, y, torch.tensor(True)).item() == pytest.approx(expected, rel=1e-6)
    assert model.carried is None


def test_tbptt_nll_in_training_goes_on_where_the_window_before_ended_unless_a_text_begins():
    model, x, y = model_of(RecurrentHighway, carried=True), symbols(3, 6, 3), symbols(3, 6, 3, seed=6)
    whole = model(x.flatten(0, 1))[0].unflatten(0, (3, 6))
    for window, scores in enumerate(whole):
        loss = tbptt_nll(model, x[window, None], y[window, None], torch.tensor(window == 0))
        assert loss.item() == pytest.approx(surprise(scores, y[window]), rel=1e-6)
        loss.backward()  # through this window alone: the one before has been freed
    assert not model.carried.requires_grad
    assert "carried" in model.state_dict()
    again = tbptt_nll(model, x[:1], y[:1], torch.tensor(True))
    assert again.item() == pytest.approx(surprise(whole[0], y[0]), rel=1e-6)
    before = model.carried.clone()
    onward = tbptt_nll(model.eval(), x[1:2], y[1:2], torch.tensor(False))
    assert onward.item() == pytest.approx(surprise(whole[1], y[1]), rel=1e-6)
    tbptt_nll(model, symbols(2, 6, 2), symbols(2, 6, 2), torch.tensor(True))
    assert torch.equal(model.carried, before)  # an evaluation leaves the state of training as it is


@BOTH
def test_training_that_was_interrupted_goes_on_with_all_that_it_carried(make, tmp_path, monkeypatch):
    x, y = symbols(8, 6, 3), symbols(8, 6, 3, seed=6)

    def batch(step, until=None):
        if step == until:
            raise KeyboardInterrupt
        k = step % len(x)
        return (x[k], y[k]) if make is BatchNormLSTM else (x[k, None], y[k, None], torch.tensor(k == 0))

    def trained(until=None, **more):
        model = model_of(make, carried=make is RecurrentHighway)
        loss, held = (nll, (x[0], y[0])) if make is BatchNormLSTM else (tbptt_nll, (x, y, torch.tensor(True)))
        how = dict(n_steps=20, eval_interval=5, lr=0.01, clip_norm=0.5, patience=9, **more)
        history = fit(model, loss, partial(batch, until=until), eval_data=held, **how)
        return history.metrics["loss"].tolist(), model.state_dict()

    expected, whole = trained()
    minutes = itertools.count()  # one passes with each look at the clock
    monkeypatch.setattr(time, "perf_counter", lambda: 60.0 * next(minutes))
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=tmp_path, until=10)
    assert [5 < torch.load(saved)["step"] < 15 for saved in tmp_path.glob("*.pt")] == [True]
    losses, state = trained(checkpoint=tmp_path)
    assert losses == expected
    assert all(torch.equal(state[name], whole[name]) for name in whole)
