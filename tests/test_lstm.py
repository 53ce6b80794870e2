import numpy as np
import pytest
import torch
from torch.func import functional_call

from ts_helpers import lstm
from ts_helpers.chrono import chrono_init_, set_gate_bias_
from ts_helpers.lstm import LSTMNetwork, lstm_states

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
SIZES = [(6, 3, 2, 4), (1, 1, 1, 1), (1, 5, 3, 2), (9, 1, 2, 33), (7, 13, 10, 17), (5, 130, 2, 40), (20, 32, 10, 128)]
EVERY_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)  # time, batch, features, units
BOTH_TYPES = pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)


def network_of(input_size=2, hidden_size=4, output_size=3, seed=0, dtype=torch.float64):
    return LSTMNetwork(input_size, hidden_size, output_size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def torchs_own(network, x):
    return network.lstm(x)[0]


def ours(network, x):
    return lstm_states(network.lstm, x)


def made_by(states_of, network, x):
    """The states, and the gradients of a random weighing of them."""
    states = states_of(network, x)
    weighed = (states * drawn(*states.shape, seed=7, dtype=states.dtype)).sum()
    return [states, *torch.autograd.grad(weighed, [getattr(network.lstm, name) for name in NAMES])]


def numpy_lstm(network, x):
    """Eqs. 11 to 15 of Tallec & Ollivier (2018), unit by unit; torch's blocks of weights are i, f, candidate, o."""
    W_x, W_h, b, b_h = (getattr(network.lstm, name).detach().numpy() for name in NAMES)
    (time, batch, _), units = x.shape, W_h.shape[1]
    states = np.zeros((time + 1, batch, units))
    for k in range(batch):
        cell = np.zeros(units)
        for t in range(time):
            for unit in range(units):
                drives = [
                    W_x[row] @ x[t, k].numpy() + W_h[row] @ states[t, k] + b[row] + b_h[row]
                    for row in range(unit, 4 * units, units)
                ]
                i, f, _, o = (1 / (1 + np.exp(-drive)) for drive in drives)
                cell[unit] = f * cell[unit] + i * np.tanh(drives[2])
                states[t + 1, k, unit] = o * np.tanh(cell[unit])
    return states[1:]


@EVERY_SIZE
@BOTH_TYPES
def test_states_and_gradients_equal_those_of_torch(size, dtype, error):
    time, batch, features, units = size
    network, x = network_of(features, units, dtype=dtype), drawn(time, batch, features, dtype=dtype)
    for mine, theirs in zip(*(made_by(states_of, network, x) for states_of in (ours, torchs_own)), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=error * max(1, float(theirs.detach().abs().max())))


def test_states_equal_numpy_transcription():
    network, x = network_of(3, 5), drawn(8, 4, 3)
    np.testing.assert_allclose(ours(network, x).detach().numpy(), numpy_lstm(network, x), rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck():
    network, x = network_of(hidden_size=3), drawn(4, 2, 2)

    def scores(*weights):
        return functional_call(network, {f"lstm.{name}": w for name, w in zip(NAMES, weights, strict=True)}, (x,))

    assert torch.autograd.gradcheck(scores, [getattr(network.lstm, name) for name in NAMES])


def test_states_without_gradients_are_the_same():
    network, x = network_of(), drawn(6, 3, 2)
    expected = ours(network, x)
    with torch.no_grad():
        states = ours(network, x)
    assert torch.equal(states, expected)
    assert not states.requires_grad


def test_inputs_and_gradients_need_not_be_contiguous():
    network, x = network_of(), drawn(3, 6, 2).transpose(0, 1)
    for of in (lambda states: states.sum(), lambda states: (states.transpose(0, 2) * drawn(4, 3, 6)).sum()):
        mine, theirs = (
            torch.autograd.grad(of(states_of(network, x)), list(network.lstm.parameters()))
            for states_of in (ours, torchs_own)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_long_sequences_in_single_precision_are_right_to_1e_4_of_the_largest():
    exact, network, x = network_of(10, 64), network_of(10, 64, dtype=torch.float32), drawn(500, 4, 10)
    for layer in (exact.lstm, network.lstm):
        set_gate_bias_(layer, "f", 3.0)  # such units carry errors of rounding along: torch's own reach 2e-5
    for mine, theirs in zip(made_by(ours, network, x.float()), made_by(torchs_own, exact, x), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-4 * float(theirs.detach().abs().max()))


def test_training_by_rmsprop_has_the_losses_of_torch(monkeypatch):
    x, y = drawn(12, 5, 2), drawn(12, 5, 3, seed=2)

    def losses():
        network, made = network_of(hidden_size=9), []
        optimizer = torch.optim.RMSprop(network.parameters(), lr=0.01, alpha=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            loss = (network(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            made.append(float(loss.detach()))
        return made

    mine = losses()
    monkeypatch.setattr(lstm, "lstm_states", lambda layer, x: layer(x)[0])
    np.testing.assert_allclose(mine, losses(), rtol=1e-8)
    assert mine[-1] < mine[0]


def test_graphs_that_live_at_once_do_not_share_memory():
    networks, x = [network_of(seed=seed) for seed in range(3)], drawn(6, 3, 2)
    alone = [made_by(ours, network, x)[1:] for network in networks]
    sums = [(ours(network, x) * drawn(6, 3, 4, seed=7)).sum() for network in networks]
    for network, total, expected in zip(networks, sums, alone, strict=True):
        weights = [getattr(network.lstm, name) for name in NAMES]
        for again in (True, False):
            torch.testing.assert_close(list(torch.autograd.grad(total, weights, retain_graph=again)), expected)


def test_memory_of_a_step_serves_the_next(monkeypatch):
    monkeypatch.setattr(lstm, "_FREE", [])
    network = network_of()
    for time in (6, 9, 9, 4):
        made_by(ours, network, drawn(time, 3, 2))
        assert len(lstm._FREE) == 1
    assert len(lstm._FREE[0]) == 9 * 5 * 3 * 8 * 8


def test_gradient_of_the_input_is_torchs_own():
    network, x = network_of(), drawn(6, 3, 2).requires_grad_()
    mine, theirs = (torch.autograd.grad(states_of(network, x).square().sum(), x) for states_of in (ours, torchs_own))
    assert torch.equal(*mine, *theirs)


def test_layer_is_compiled_and_refuses_a_second_derivative():
    network = network_of()
    (first,) = torch.autograd.grad(
        ours(network, drawn(6, 3, 2)).square().sum(), network.lstm.weight_hh_l0, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def test_numbers_that_are_not_compiled_are_stepped_by_torch():
    network, x = network_of(dtype=torch.bfloat16), drawn(6, 3, 2, dtype=torch.bfloat16)
    assert torch.equal(ours(network, x), torchs_own(network, x))


@pytest.mark.parametrize("x", [drawn(6, 3, 5), drawn(6, 3, 2).float(), drawn(0, 3, 2)], ids=["features", "type", "no"])
def test_inputs_that_do_not_fit_are_refused_by_torch(x):
    with pytest.raises((RuntimeError, ValueError)):
        ours(network_of(), x)


def test_vmap_is_refused():
    network = network_of()
    with pytest.raises(RuntimeError, match="must override the setup_context"):
        torch.vmap(lambda x: ours(network, x))(drawn(2, 6, 3, 2))


def test_network_reads_out_every_step():
    network, x = network_of(), drawn(6, 3, 2)
    torch.testing.assert_close(network(x), network.read_out(network.lstm(x)[0]), rtol=1e-12, atol=1e-12)


def test_weights_repeat_with_their_seed_and_stay_within_their_bound():
    one, same, other = network_of(seed=3), network_of(seed=3), network_of(seed=4)
    for name, p in one.named_parameters():
        assert torch.equal(p, same.get_parameter(name))
        assert not torch.equal(p, other.get_parameter(name))
        assert p.detach().abs().max() <= 4**-0.5
    wide = network_of(hidden_size=400)
    assert 0.045 < wide.lstm.weight_hh_l0.detach().abs().max() <= 0.05
    assert 0.045 < wide.read_out.weight.detach().abs().max() <= 0.05


@pytest.mark.parametrize(
    "start",
    [
        lambda layer: set_gate_bias_(layer, "f", 5.0),
        lambda layer: chrono_init_(layer, 50.0, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["forget biases", "chrono"],
)
def test_where_gates_start_acts_on_the_states(start):
    network, x = network_of(), drawn(6, 3, 2)
    before = ours(network, x)
    start(network.lstm)
    assert not torch.allclose(ours(network, x), before, atol=1e-2)
    torch.testing.assert_close(ours(network, x), torchs_own(network, x), rtol=1e-12, atol=1e-12)
