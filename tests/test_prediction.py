import numpy as np
import pytest
import torch

from ts_helpers.cells import MTRNNCell
from ts_helpers.datasets.sines import sums_of_sines
from ts_helpers.papers.benureau2018 import NextStep, closed_loop_error
from ts_helpers.timescales import Clamped


def network(features=2, n_sequences=3, layers=(4, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    cell = MTRNNCell(features, layers, [2.0 * 2**k for k in range(len(layers))], Clamped(), generator=generator)
    net = NextStep(cell, features, n_sequences, generator=generator).double()
    with torch.no_grad():
        net.h0.copy_(torch.randn(net.h0.shape, generator=generator, dtype=torch.float64))
    return net


def sequences(time=8, n_sequences=3, features=2, seed=1):
    return torch.randn(time, n_sequences, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_prediction_reads_the_lowest_layer_only():
    net = network()
    h = sequences(4, 3, 7)
    expected = np.zeros((4, 3, 2))
    for place in np.ndindex(4, 3):
        for f in range(2):
            expected[(*place, f)] = net.c[f].item()
            for i in range(4):
                expected[(*place, f)] += net.V[f, i].item() * np.tanh(h[place][i].item())
    np.testing.assert_allclose(net.read_out(h).detach().numpy(), expected, rtol=1e-12)


def test_open_loop_equals_stepping_by_hand():
    net, x = network(), sequences()
    h, expected = net.h0, []
    for x_t in x:
        h = net.cell(x_t, h)
        expected.append(net.read_out(h))
    torch.testing.assert_close(net(x), torch.stack(expected))


def test_closed_loop_equals_feeding_outputs_back_by_hand():
    net, x = network(), sequences()
    heard, expected = [x[0]], []
    for _ in range(6):
        expected.append(net(torch.stack(heard))[-1])  # each time from the start, in open loop
        heard.append(expected[-1])
    torch.testing.assert_close(net.generate(x[0], 6), torch.stack(expected))


def test_closed_loop_hears_nothing_but_the_first_value():
    net, x = network(), sequences()
    torch.testing.assert_close(net.generate(x[0], 1)[0], net(x)[0])
    assert not torch.allclose(net.generate(x[0], 5)[1:], net(x)[1:5])


def test_initial_state_starts_at_zero_and_gets_a_gradient():
    generator = torch.Generator().manual_seed(0)
    cell = MTRNNCell(1, (3, 2), (2, 4), Clamped(), generator=generator)
    net = NextStep(cell, 1, 4, generator=generator)
    assert net.h0.shape == (4, 5)
    assert not bool(net.h0.any())
    net(torch.ones(6, 4, 1)).square().sum().backward()
    assert bool((net.h0.grad != 0).all())
    net.h0.grad = None
    net.generate(torch.ones(4, 1), 6).square().sum().backward()
    assert bool((net.h0.grad != 0).all())


def test_gradient_through_the_closed_loop_passes_gradcheck():
    net = network(layers=(2, 2), features=1, n_sequences=2)
    names = [name for name, _ in net.named_parameters()]

    def generated(*values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Generate(net), {f"net.{k}": v for k, v in parameters.items()}, ())

    assert torch.autograd.gradcheck(generated, [p.detach().clone().requires_grad_(True) for p in net.parameters()])


class _Generate(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        return self.net.generate(torch.full((2, 1), 0.3).double(), 4)


def test_weights_repeat_with_their_seed():
    assert torch.equal(network(seed=3).V, network(seed=3).V)
    assert not torch.equal(network(seed=3).V, network(seed=4).V)


def test_closed_loop_error_equals_numpy_transcription():
    x, generated = sequences(), sequences(7, seed=2)
    aligned = off = 0.0
    for s in range(3):
        for f in range(2):
            for t in range(7):
                aligned += (generated[t, s, f] - x[t + 1, s, f]).item() ** 2
                late = x[0, s, f] if t == 0 else generated[t - 1, s, f]
                off += (late - x[t + 1, s, f]).item() ** 2
    assert closed_loop_error(generated, x).item() == pytest.approx(aligned / 3)
    assert closed_loop_error(generated, x, "one step off").item() == pytest.approx(off / 3)


def test_perfect_reproduction_scores_zero_aligned_and_the_squared_steps_one_step_off():
    x = sums_of_sines().double()
    assert closed_loop_error(x[1:], x).item() == 0
    off = closed_loop_error(x[1:], x, "one step off").item()
    assert off == pytest.approx(((x[1:] - x[:-1]) ** 2).sum((0, 2)).mean().item())
    assert off == pytest.approx(8.22, abs=0.005)


def test_constant_mean_scores_what_the_data_say():
    x = sums_of_sines().double()
    constant = x.mean(0).expand(99, 5, 1)
    assert closed_loop_error(constant, x).item() == pytest.approx(42.0, abs=0.3)  # 99 of its 100 steps
    total = closed_loop_error(constant, x) + ((x[0] - x.mean(0)) ** 2).mean()
    assert total.item() == pytest.approx(42.0, abs=0.05)


def test_sequence_that_diverged_scores_no_finite_error():
    x = sequences()
    assert torch.isnan(closed_loop_error(torch.full((7, 3, 2), torch.nan), x))
    assert torch.isinf(closed_loop_error(torch.full((7, 3, 2), torch.inf), x))


@pytest.mark.parametrize("shape", [(8, 3, 2), (7, 3, 1), (7, 1, 2), (7, 3)])
def test_generated_of_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"generated must have shape \(7, 3, 2\), one step less than x, got .*\d"):
        closed_loop_error(torch.zeros(shape), sequences())


def test_unknown_alignment_is_refused():
    with pytest.raises(ValueError, match="against must be 'aligned' or 'one step off', got 'off'"):
        closed_loop_error(torch.zeros(7, 3, 2), sequences(), "off")


@pytest.mark.parametrize("wrong", [dict(features=0), dict(n_sequences=0), dict(n_sequences=-1)])
def test_network_refuses_wrong_sizes(wrong):
    cell = network().cell
    message = ", ".join(f"{k}={v}" for k, v in (dict(features=2, n_sequences=3) | wrong).items())
    with pytest.raises(ValueError, match=f"features and n_sequences must be 1 or more, got {message}"):
        NextStep(cell, **dict(features=2, n_sequences=3) | wrong, generator=torch.Generator())


@pytest.mark.parametrize("shape", [(6, 2, 2), (6, 3, 1)])
def test_network_refuses_sequences_it_was_not_made_for(shape):
    with pytest.raises(ValueError, match="must have shape"):
        network()(torch.zeros(shape).double())
