import pytest
import torch
from torch import nn

from ts_helpers.lstm import LSTMNetwork


def network_of(units=7, dtype=torch.float64, seed=0):
    return LSTMNetwork(3, units, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("units", "batch", "time"), [(7, 5, 9), (16, 4, 1), (128, 32, 30)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_compiled_states_and_gradients_are_torchs_own(units, batch, time, dtype, close):
    network = network_of(units, dtype)
    x = torch.randn(time, batch, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    made = []
    for scores in (network(x), network.read_out(network.lstm(x)[0])):
        gradients = torch.autograd.grad(scores.square().sum(), list(network.parameters()))
        made.append([scores.detach(), *gradients])
    for mine, theirs in zip(*made, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close * float(theirs.abs().max()))


def test_input_that_wants_gradients_gets_them():
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network_of(), x)


def test_weights_are_drawn_from_the_generator():
    first, again, other = network_of(), network_of(), network_of(seed=1)
    for p, q, r in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r)
        assert p.abs().max() <= 7**-0.5
    assert isinstance(first.lstm, nn.LSTM)
