import numpy as np
import pytest
import torch

from ts_helpers.cells import CTRNNCell, MTRNNCell, unroll
from ts_helpers.timescales import Clamped, Direct, Gate, LogTau


def cell_of(input_size=2, hidden_size=3, alpha=0.3, dial=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return CTRNNCell(input_size, hidden_size, alpha, dial or Direct(), generator=generator).double()


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


def mtrnn_of(layers=(3, 2, 4), tau=None, dial=None, update="simultaneous", input_size=2, seed=0):
    tau = tau or [2.0 + 1.5 * k for k in range(len(layers))]
    generator = torch.Generator().manual_seed(seed)
    return MTRNNCell(input_size, layers, tau, dial or Clamped(), update=update, generator=generator).double()


def numpy_mtrnn(cell, tau, x, h):
    """Section 2.1 of Benureau & Tani (2018), layer by layer and neuron by neuron; all layers side by side."""
    L, S, H, b = ([p.detach().numpy() for p in ps] for ps in (cell.L, cell.S, cell.H, cell.b))
    x, h, starts = x.numpy(), h.numpy(), np.cumsum([0, *cell.layers])
    states = []
    for x_t in x:
        new = h.copy()
        for s in range(h.shape[0]):
            for k, n in enumerate(cell.layers):
                source = new if cell.update == "sequential" else h  # the layer below: as it has become, or as it was
                for j in range(n):
                    drive = b[k][j]
                    if k == 0:
                        for i in range(x.shape[2]):
                            drive += L[0][j, i] * x_t[s, i]
                    else:
                        for i in range(cell.layers[k - 1]):
                            drive += L[k][j, i] * np.tanh(source[s, starts[k - 1] + i])
                    for i in range(n):
                        drive += S[k][j, i] * np.tanh(h[s, starts[k] + i])
                    if k + 1 < len(cell.layers):
                        for i in range(cell.layers[k + 1]):
                            drive += H[k][j, i] * np.tanh(h[s, starts[k + 1] + i])
                    place = s, starts[k] + j
                    new[place] = (1 - 1 / tau[k]) * h[place] + 1 / tau[k] * drive
        h = new
        states.append(h)
    return np.stack(states)


def mtrnn_data(cell, time=5, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(time, batch, cell.L[0].shape[1], generator=generator, dtype=torch.float64)
    return x, torch.randn(batch, sum(cell.layers), generator=generator, dtype=torch.float64)


def stepped(cell, x, h):
    states = []
    for x_t in x:
        h = cell(x_t, h)
        states.append(h)
    return torch.stack(states)


NO_FLOOR = pytest.param(lambda: Clamped(0), id="no floor")
ORDERS = pytest.mark.parametrize("update", ["simultaneous", "sequential"])
STACKS = pytest.mark.parametrize("layers", [(3,), (2, 3), (3, 2, 4), (2, 1, 3, 2)], ids=len)


@ORDERS
@STACKS
def test_mtrnn_equals_numpy_transcription(layers, update):
    tau = [2.0, 5.0, 1.25, 30.0][: len(layers)]
    cell = mtrnn_of(layers, tau, update=update)
    x, h = mtrnn_data(cell)
    cell.alpha = 1 / torch.tensor(tau, dtype=torch.float64)  # the constructor's are single precision
    expected = numpy_mtrnn(cell, tau, x, h)
    np.testing.assert_allclose(stepped(cell, x, h).detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(unroll(cell, x, h).detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_mtrnn_orders_differ_only_where_there_is_a_layer_below():
    for layers, same in (((3,), True), ((3, 2), False)):
        made = [unroll(c, *mtrnn_data(c)) for c in (mtrnn_of(layers, update=u) for u in ("simultaneous", "sequential"))]
        assert torch.allclose(*made) == same


@ORDERS
@pytest.mark.parametrize("time", [1, 2, 9])
@STACKS
def test_mtrnn_unroll_equals_stepping_cell_by_cell(layers, time, update):
    cell = mtrnn_of(layers, update=update)
    x, h = (t.requires_grad_(True) for t in mtrnn_data(cell, time))
    made = []
    for states in (unroll(cell, x, h), stepped(cell, x, h)):
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        wanted = [x, h, *cell.parameters()]
        grads = torch.autograd.grad((states * weights).sum(), wanted)
        made.append((states, grads))
    torch.testing.assert_close(*made, rtol=1e-10, atol=1e-12)


@ORDERS
def test_mtrnn_in_single_precision_unrolls_as_it_steps(update):
    cell = mtrnn_of((25, 25, 25), (100, 8, 4), update=update, input_size=1).float()
    x, h = (t.float() for t in mtrnn_data(cell, time=100, batch=5))
    torch.testing.assert_close(unroll(cell, x, h), stepped(cell, x, h), rtol=1e-4, atol=1e-5)


def test_mtrnn_dense_matrix_equals_the_layers():
    cell = mtrnn_of((3, 2, 4))
    dense, (x, h) = cell.dense(), mtrnn_data(cell, time=1)
    assert dense.shape == (9, 9)
    assert not bool(dense[:3, 5:].any())  # the ends do not hear each other
    assert not bool(dense[5:, :3].any())
    alpha = cell.alpha.repeat_interleave(torch.tensor([3, 2, 4]))
    heard = torch.cat([x[0] @ cell.L[0].T, h.new_zeros(3, 6)], 1)
    whole = (1 - alpha) * h + alpha * (torch.tanh(h) @ dense.T + heard + torch.cat(list(cell.b)))
    torch.testing.assert_close(whole, cell(x[0], h))


@ORDERS
@pytest.mark.parametrize("dial", [Clamped, NO_FLOOR, LogTau, Direct, Gate])
def test_mtrnn_gradients_pass_gradcheck(dial, update):
    cell = mtrnn_of((2, 1, 2), (1.5, 4.0, 9.0), dial(), update, input_size=1)
    x, h = mtrnn_data(cell, time=4, batch=2)
    names = [name for name, _ in cell.named_parameters()]

    class Unrolled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x, h):
            return unroll(self.cell, x, h)

    def states(x, h, *values):
        parameters = {f"cell.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Unrolled(), parameters, (x, h))

    tensors = [t.detach().clone().requires_grad_(True) for t in (x, h, *cell.parameters())]
    assert torch.autograd.gradcheck(states, tensors)


@ORDERS
def test_mtrnn_tau_below_its_floor_has_no_gradient(update):
    cell = mtrnn_of((2, 2), (1.5, 4.0), update=update)
    raw = cell.parametrizations.alpha.original
    with torch.no_grad():
        raw[0] = 0.7
    unroll(cell, *mtrnn_data(cell)).square().sum().backward()
    assert raw.grad[0] == 0
    assert raw.grad[1] != 0


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("dial", [Clamped, LogTau])
def test_mtrnn_tau_moves_only_when_trainable(dial, trainable):
    cell = mtrnn_of(dial=dial())
    raw = cell.parametrizations.alpha.original.requires_grad_(trainable)
    before, weights = raw.detach().clone(), cell.S[0].detach().clone()
    optimizer = torch.optim.SGD([p for p in cell.parameters() if p.requires_grad], lr=0.1)
    unroll(cell, *mtrnn_data(cell)).sum().backward()
    optimizer.step()
    assert bool((raw.detach() != before).all()) == trainable
    assert not torch.equal(cell.S[0], weights)


def test_mtrnn_reads_the_time_constants_it_was_given():
    cell = mtrnn_of(tau=(100, 8, 4))
    torch.testing.assert_close(1 / cell.alpha, torch.tensor([100.0, 8, 4], dtype=torch.float64), rtol=1e-6, atol=0)


def test_mtrnn_takes_a_floor_of_any_height():
    cell = mtrnn_of(tau=(8, 4, 16), dial=Clamped(4))
    torch.testing.assert_close(1 / cell.alpha, torch.tensor([8.0, 4, 16], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"alpha of a Clamped dial must lie in \(0, 0.25\], got 0.5"):
        mtrnn_of(tau=(8, 2, 16), dial=Clamped(4))


def test_mtrnn_holds_state_when_tau_is_huge():
    cell = mtrnn_of(tau=(1e12, 1e12, 1e12))
    x, h = mtrnn_data(cell, time=20)
    torch.testing.assert_close(unroll(cell, x, h)[-1], h)


def test_mtrnn_starts_at_zero_unless_told_otherwise():
    cell = mtrnn_of()
    x, _ = mtrnn_data(cell)
    assert torch.equal(unroll(cell, x), unroll(cell, x, torch.zeros(3, 9).double()))


def test_mtrnn_weights_repeat_with_their_seed_and_stay_within_their_bound():
    one, same, other = mtrnn_of(seed=3), mtrnn_of(seed=3, tau=(9, 9, 9), update="sequential"), mtrnn_of(seed=4)
    for name in ("L", "S", "H", "b"):
        for p, q, r in zip(*(getattr(cell, name) for cell in (one, same, other)), strict=True):
            assert torch.equal(p, q)
            assert not torch.equal(p, r)
            fan_in = p.shape[-1] if name != "b" else len(p)
            assert float(p.detach().abs().max()) <= fan_in**-0.5
    assert [tuple(p.shape) for p in one.H] == [(3, 2), (2, 4)]  # the top hears nothing above


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(input_size=0), r"input_size and every layer must be 1 or more, got input_size=0, layers=\(3, 2, 4\)"),
        (dict(layers=()), r"every layer must be 1 or more, got input_size=2, layers=\(\)"),
        (dict(layers=(3, 0), tau=(2, 4)), r"every layer must be 1 or more, got .*layers=\(3, 0\)"),
        (dict(tau=(2, 4)), "tau must have one number a layer, 3, got 2"),
        (dict(update="random"), "update must be simultaneous or sequential, got 'random'"),
        (dict(tau=(2, 4, 0.5)), r"alpha of a Clamped dial must lie in \(0, 1\], got 2"),
        (dict(tau=(2, 4, -8)), r"alpha of a Clamped dial must lie in \(0, 1\], got -0.125"),
        (dict(tau=(2, 4, 3), dial=Clamped(1.5), layers=(1, 1)), "tau must have one number a layer, 2, got 3"),
    ],
)
def test_mtrnn_refuses_what_it_cannot_use(change, message):
    with pytest.raises(ValueError, match=message):
        mtrnn_of(**change)


# Read-outs


@pytest.mark.parametrize("kind", ["leaky", "simultaneous", "sequential"])
def test_read_out_equals_a_linear_map_of_the_activity(kind):
    cell = cell_of() if kind == "leaky" else mtrnn_of((2, 1), update=kind)
    generator = torch.Generator().manual_seed(3)
    x, u, V, c = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((6, 4, 2), (4, 3), (5, 3), (5,))
    )
    expected = torch.stack([torch.tanh(h) @ V.T + c for h in stepped(cell, x, u)])
    assert expected.shape == (6, 4, 5)
    made = [(y, torch.autograd.grad(y.square().sum(), [x, u, V, c, *cell.parameters()]))
            for y in (unroll(cell, x, u, read_out=(V, c)), expected)]  # fmt: skip
    torch.testing.assert_close(*made, rtol=1e-10, atol=1e-12)


def test_read_out_of_a_cell_without_activity_reads_its_state():
    class Adder:
        def __call__(self, x, state):
            return state + x

        def initial_state(self, x):
            return torch.zeros_like(x)

    x, V, c = torch.ones(3, 2, 4), torch.full((1, 4), 0.5), torch.ones(1)
    assert unroll(Adder(), x, read_out=(V, c))[:, 0, 0].tolist() == [3, 5, 7]
