import torch

from ts_helpers.papers.tallec2018.lstm import LSTMNetwork


def network_of(seed=0, units=7):
    return LSTMNetwork(3, units, 2, generator=torch.Generator().manual_seed(seed)).double()


def test_scores_are_those_of_the_equations():
    network, x = network_of(), torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lstm, h, u = network.lstm, torch.zeros(4, 7, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64)
    scores = []
    for x_t in x:
        drive = x_t @ lstm.weight_ih_l0.T + h @ lstm.weight_hh_l0.T + lstm.bias_ih_l0 + lstm.bias_hh_l0
        i, f, g, o = drive.chunk(4, 1)
        u = f.sigmoid() * u + i.sigmoid() * g.tanh()
        h = o.sigmoid() * u.tanh()
        scores.append(h @ network.read_out.weight.T + network.read_out.bias)
    torch.testing.assert_close(network(x), torch.stack(scores), rtol=1e-12, atol=1e-12)


def test_weights_are_drawn_from_the_generator():
    first, again, other = network_of(), network_of(), network_of(seed=1)
    for p, q, r in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r)
        assert p.abs().max() <= 7**-0.5
