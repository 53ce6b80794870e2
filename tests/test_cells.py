import numpy as np
import pytest
import torch

from ts_helpers.cells import LeakyCell, unroll
from ts_helpers.timescales import Clamped, Direct, Gate, LogTau


def cell_of(input_size=2, hidden_size=3, alpha=0.3, dial=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LeakyCell(input_size, hidden_size, alpha, dial or Direct(), generator=generator).double()


def numpy_leaky(U, W, alpha, x, u):
    """Eqs. 2 and 3 of Matsuki & Shibata (2018), neuron by neuron, with an input."""
    states = []
    for x_t in x:
        new = np.empty_like(u)
        for b in range(u.shape[0]):
            for j in range(u.shape[1]):
                drive = sum(W[j, i] * np.tanh(u[b, i]) for i in range(u.shape[1]))
                drive += sum(U[j, i] * x_t[b, i] for i in range(x.shape[2]))
                new[b, j] = (1 - alpha[j]) * u[b, j] + alpha[j] * drive
        u = new
        states.append(u)
    return np.stack(states)


def test_leaky_step_equals_numpy_transcription():
    cell = cell_of(alpha=torch.tensor([0.1, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 4, 2, generator=generator, dtype=torch.float64)
    u = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    expected = numpy_leaky(*(p.detach().numpy() for p in (cell.U, cell.W, cell.alpha, x, u)))
    np.testing.assert_allclose(unroll(cell, x, u).detach().numpy(), expected, rtol=1e-12)


def test_leaky_holds_state_when_tau_is_huge():
    cell = cell_of(dial=LogTau(0.01), alpha=1e-12)
    u = torch.ones(1, 3, dtype=torch.float64)
    torch.testing.assert_close(unroll(cell, torch.ones(100, 1, 2).double(), u)[-1], u)


def test_leaky_forgets_at_once_when_alpha_is_one():
    cell = cell_of(alpha=1.0, dial=Clamped())
    with torch.no_grad():
        cell.W.zero_()
    x = torch.ones(1, 1, 2).double()
    torch.testing.assert_close(unroll(cell, x, torch.full((1, 3), 9.0).double())[0], x[0] @ cell.U.T)


@pytest.mark.parametrize("dial", [Direct(), LogTau(0.1), Gate(), Clamped()], ids=lambda d: type(d).__name__)
def test_leaky_gradients_pass_gradcheck(dial):
    cell = cell_of(dial=dial)
    raw = cell.parametrizations.alpha.original.detach().clone().requires_grad_(True)
    x = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def states(raw):
        names = {"parametrizations.alpha.original": raw}
        u = torch.zeros(2, 3, dtype=torch.float64)
        for x_t in x:
            u = torch.func.functional_call(cell, names, (x_t, u))
        return u

    assert torch.autograd.gradcheck(states, raw)


@pytest.mark.parametrize("trainable", [True, False])
def test_leaky_tau_moves_only_when_trainable(trainable):
    cell = cell_of(dial=LogTau(0.1))
    raw = cell.parametrizations.alpha.original.requires_grad_(trainable)
    before = raw.detach().clone()
    optimizer = torch.optim.SGD([p for p in cell.parameters() if p.requires_grad], lr=0.1)
    unroll(cell, torch.ones(5, 1, 2).double()).sum().backward()
    optimizer.step()
    assert torch.equal(raw.detach(), before) != trainable


def test_unroll_gives_the_same_gradients_as_a_plain_loop():
    x = torch.ones(6, 1, 2).double()
    one, other = cell_of(dial=Gate()), cell_of(dial=Gate())
    unroll(one, x)[-1].sum().backward()
    u = torch.zeros(1, 3).double()
    for x_t in x:
        u = other(x_t, u)
    u.sum().backward()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_leaky_repeats_with_its_seed():
    assert torch.equal(cell_of(seed=3).W, cell_of(seed=3).W)
    assert not torch.equal(cell_of(seed=3).W, cell_of(seed=4).W)


def test_leaky_without_input_listens_only_to_itself():
    cell = cell_of(input_size=0)
    states = unroll(cell, torch.zeros(4, 2, 0).double(), torch.ones(2, 3).double())
    assert states.shape == (4, 2, 3)


def test_leaky_rejects_bad_sizes():
    with pytest.raises(ValueError, match="hidden_size=0"):
        cell_of(hidden_size=0)


def test_leaky_rejects_alpha_outside_its_dial():
    with pytest.raises(ValueError, match="got 1.5"):
        cell_of(alpha=1.5, dial=Gate())


@pytest.mark.parametrize("shape", [(3, 2), (0, 1, 2)])
def test_unroll_rejects_input_that_is_no_sequence(shape):
    with pytest.raises(ValueError, match="x must have shape"):
        unroll(cell_of(), torch.zeros(shape).double())
