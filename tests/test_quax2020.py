import numpy as np
import pytest
import torch
import xarray as xr

from ts_helpers.cells import GRU, ARUCell, ARUStack, Network, unroll
from ts_helpers.datasets.teachers import smoothed_noise
from ts_helpers.papers import quax2020
from ts_helpers.seeding import generator_of
from ts_helpers.timescales import Direct


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator_of(seed), dtype=torch.float64)


def network(alpha=(0.3, 0.6), seed=(0, 1), **how):
    return quax2020.network(*alpha, units=4, seed=seed, **how)


def stacked(alpha=(0.3, 0.6), seed=(0, 1)):
    """Two layers of 3 and 2 units; the lower one is read."""
    drawn = generator_of(*seed)
    cell = ARUStack(ARUCell(4, 3, *alpha, Direct(), generator=drawn), ARUCell(3, 2, *alpha, Direct(), generator=drawn))
    return Network(cell, 5, 2, read=3, generator=drawn)


def gated(seed=(0, 1)):
    drawn = generator_of(*seed)
    return Network(GRU(2, 4, generator=drawn), 4, 2, generator=drawn)


# Networks


@pytest.mark.parametrize("read", [None, 5, 2, 1])
def test_network_reads_the_first_units(read):
    cell, x = ARUCell(2, 5, 0.3, 0.6, Direct(), generator=generator_of(0)).double(), normal(6, 4, 2)
    net = Network(cell, 5, 3, read=read, generator=generator_of(2)).double()
    V, c = net.V.detach().numpy(), net.c.detach().numpy()
    assert V.shape == (3, read or 5)
    rates = cell.activity(unroll(cell, x)).detach().numpy()
    expected = np.array([[V @ r[: read or 5] + c for r in r_t] for r_t in rates])
    np.testing.assert_allclose(net(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_network_reads_the_lower_of_two_layers_and_the_state_of_gated_units():
    x, two, gru = normal(6, 4, 2), stacked().double(), gated().double()
    rates = two.cell.activity(unroll(two.cell, x))
    torch.testing.assert_close(two(x), rates[..., :3] @ two.V.T + two.c)
    torch.testing.assert_close(gru(x), unroll(gru.cell, x) @ gru.V.T + gru.c)


def test_network_weights_depend_on_the_seed_alone_and_keep_their_bounds():
    one, other = network(), network(seed=(0, 2))
    drawn = ("cell.U", "cell.W", "cell.b", "V", "c")
    for same in (
        network((1.0, 0.001)),
        network((torch.rand(4, generator=generator_of(0)), 0.5)),
        network(f=torch.relu),
    ):
        assert all(torch.equal(one.get_parameter(name), same.get_parameter(name)) for name in drawn)
    for name in drawn:
        torch.testing.assert_close(network(scale=4).get_parameter(name), 4 * one.get_parameter(name))
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    net = quax2020.network(0.25, 0.75, features=(3, 5), units=12, seed=(0,))
    assert [tuple(net.get_parameter(name).shape) for name in ("cell.U", "V", "c")] == [(12, 3), (5, 12), (5,)]
    for name, width in (("cell.U", 1 / 4), ("cell.W", 1 / 4), ("V", 13**-0.5)):
        assert 0.8 * width < float(net.get_parameter(name).detach().abs().max()) <= width
    assert [net.get_parameter(name).item() for name in quax2020.ALPHAS] == [0.25, 0.75]


@pytest.mark.parametrize("alpha", [(0.3, 0.6), (1.0, 0.05)])
def test_resting_cell_stays_where_it_is_while_the_input_does(alpha):
    cell = network(alpha).cell.double().requires_grad_(False)
    rest = quax2020.resting(cell, 0.7)
    states = unroll(cell, torch.full((30, 2, 2), 0.7, dtype=torch.float64), rest.expand(2, -1))
    torch.testing.assert_close(states, rest.expand(30, 2, -1), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(rest, quax2020.resting(cell), atol=1e-3)


# Data and training


def test_teacher_data_are_400_sequences_and_100_held_out():
    teacher = network()
    data = quax2020.teacher_data(teacher, seed=(0, 2))
    assert [tuple(t.shape) for t in data] == [(20, 400, 2), (20, 400, 2), (20, 100, 2), (20, 100, 2)]
    assert not any(t.requires_grad for t in data)
    for x, y in (data[:2], data[2:]):
        assert quax2020.loss(teacher, x, y).item() < 1e-12  # the teacher's own outputs
        assert quax2020.loss(network(seed=(0, 3)), x, y).item() > 1e-4
    held_out = data[2].movedim(1, 0)
    assert not any(bool((x == data[0].movedim(1, 0)).flatten(1).all(1).any()) for x in held_out)


@pytest.mark.parametrize("how", [dict(window=1, order=0), dict(window=15), dict(window=5, order=2)], ids=str)
def test_teacher_data_smooth_their_noise_as_told_and_repeat_with_their_seed(how):
    one, same, other = (quax2020.teacher_data(network(), n_train=3, n_valid=2, seed=(0, k), **how) for k in (2, 2, 3))
    expected = smoothed_noise(20, 5, 2, generator=generator_of(0, 2), **dict(order=3) | how)
    torch.testing.assert_close(torch.cat([one[0], one[2]], 1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_loss_is_the_mean_squared_error_and_alphas_are_those_of_current_and_rate():
    net, x, y = network().double(), normal(6, 4, 2), normal(6, 4, 2, seed=1)
    errors = [(a - b) ** 2 for a, b in zip(net(x).detach().flatten().tolist(), y.flatten().tolist(), strict=True)]
    assert quax2020.loss(net, x, y).item() == pytest.approx(sum(errors) / 48)
    assert quax2020.alphas(network((0.25, 0.75)), x, y).tolist() == [0.25, 0.75]
    each = torch.tensor([0.25, 0.5, 0.75, 1.0])
    assert quax2020.alphas(network((each, 1.5 * each)), x, y).tolist() == [each.tolist(), (1.5 * each).tolist()]


def test_the_same_data_are_given_to_each_network_without_a_copy():
    data = [normal(6, 4, 2), normal(6, 4, 1)]
    for tensor, given in zip(data, quax2020.for_each(data, 3), strict=True):
        assert given.data_ptr() == tensor.data_ptr()
        assert given.shape == (3, *tensor.shape)
        assert all(torch.equal(one, tensor) for one in given)


def some_data():
    made = quax2020.teacher_data(network((0.8, 0.4), seed=(1,)), n_train=40, n_valid=10, seed=(2,))
    return [tensor.double() for tensor in made]


def trained(networks, learn, **how):
    how = dict(epochs=5, shuffle_seed=0, eval_interval=2, name="train") | how
    return quax2020.train(networks, quax2020.for_each(some_data(), len(networks)), learn, **how)


@pytest.mark.parametrize("make", [network, stacked])
def test_learned_and_fixed_alphas_are_trained_in_one_stack(make):
    learn = [False, True, True] * 3
    before, together, alone = ([make((0.3, 0.6 + k / 10), (3, k)).double() for k in range(9)] for _ in range(3))
    history = trained(together, learn)
    assert history.at.tolist() == [0, 2, 4, 5]
    for start, net, one, learned, seen in zip(before, together, alone, learn, history.metrics["loss"], strict=True):
        first, last = (quax2020.loss(each, *some_data()[2:]).item() for each in (start, net))  # held out
        assert seen[[0, -1]].tolist() == pytest.approx([first, last])
        for (name, p), (_, q) in zip(start.named_parameters(), net.named_parameters(), strict=True):
            assert torch.equal(p, q) == ("alpha" in name and not learned)
        np.testing.assert_allclose(trained([one], learned).metrics["loss"][0], seen, rtol=1e-9)
        for p, q in zip(one.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch_size", [7, 40])
def test_minibatches_have_the_size_that_is_asked_for(batch_size):
    sizes = []

    def seen(net, x, y):
        sizes.append(x.shape[1])
        return quax2020.loss(net, x, y)

    trained([network().double()], True, loss=seen, batch_size=batch_size, epochs=1)
    left = [40 % batch_size] if 40 % batch_size else []
    assert sizes == [10, *[batch_size] * (40 // batch_size), *left, 10]  # held out at both ends


def test_gated_units_are_trained_though_they_have_no_alphas():
    nets = [gated((3, k)).double() for k in range(2)]
    metrics = {"error": lambda net, x, y: (net(x) - y).abs().mean()}
    history = trained(nets, False, metrics=metrics, epochs=20)
    assert bool((history.metrics["loss"][:, -1] < history.metrics["loss"][:, 0]).all())
    expected = [metrics["error"](net, *some_data()[2:]).item() for net in nets]
    assert history.metrics["error"][:, -1].tolist() == pytest.approx(expected)


# Landscapes


@pytest.mark.parametrize(("step", "n"), [(0.1, 14), (0.05, 27), (1.0, 2), (1 / 3, 4)])
def test_grid_goes_in_steps_from_0_001_to_1_3_by_way_of_1(step, n):
    grid = quax2020.grid(step)
    assert (len(grid), grid[0]) == (n, 0.001)
    assert 1.0 in grid.tolist()
    np.testing.assert_allclose(grid[1:], step * np.arange(1, n), rtol=1e-8)
    assert 1.3 - step < grid[-1] <= 1.3


def test_coordinates_are_of_leak_rates_and_epochs_and_of_a_map_where_there_is_one():
    at, rates = np.arange(3), quax2020.grid(0.5)
    assert [*quax2020.coords(at)] == ["which", "epoch"]
    made = quax2020.coords(at, rates)
    assert [*made] == ["which", *made["which"][0], "epoch"] == ["which", "alpha_s", "alpha_r", "epoch"]
    assert made["alpha_s"][0] is made["alpha_r"][0] is rates and made["epoch"][0] is at


@pytest.mark.parametrize("step", [0, -0.1, 0.3, 2, float("nan"), 1e-300])
def test_grid_without_1_is_refused(step):
    with pytest.raises(ValueError, match=rf"step must be (in \[1e-4, 1\]|1 over a whole number.*), got (step=)?{step}"):
        quax2020.grid(step)


def landscape(values):
    rates = [0.3, 0.6, 1.0]
    return xr.DataArray(np.array(values, float), {"alpha_s": rates, "alpha_r": rates}, ("alpha_s", "alpha_r"))


HILLS = landscape([[8, 1, 9], [3, 4, 7], [2, 6, 5]])


def test_landscape_has_its_minimum_area_depth_and_asymmetry():
    for same in (HILLS, HILLS.transpose()):
        assert quax2020.minimum(same) == (0.3, 0.6)
        assert quax2020.area(same) == pytest.approx(2 / 9)  # 1 and 2
        assert quax2020.depth(same) == pytest.approx(np.log10(5))
    A = np.array([[0, 1, -2], [-1, 0, 3], [2, -3, 0]])
    symmetric = np.array([[0, 1, 2], [1, 5, 3], [2, 3, -1]])
    assert quax2020.asymmetry(landscape(np.exp(symmetric))) == pytest.approx(0, abs=1e-12)
    assert quax2020.asymmetry(landscape(np.exp(A + 7))) == pytest.approx(1)
    expected = np.sqrt((A**2).mean()) / (A + symmetric).std()
    assert quax2020.asymmetry(landscape(np.exp(A + symmetric))) == pytest.approx(expected)
