import numpy as np
import pytest
import torch
from torch.func import functional_call

from ts_helpers.cells import GatedCell, LeakyRNNCell, RNNCell, unroll
from ts_helpers.engine.gated import gated_recurrence
from ts_helpers.ensembles import train
from ts_helpers.timescales import Direct, Gate, LogTau

NAMES = ("x", "U", "W", "b", "U_g", "W_g", "b_g", "h")
KINDS = ("plain", "leaky", "leaky units", "shared gate", "gated")
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
GATES = pytest.mark.parametrize("shared", [False, True], ids=["a gate a unit", "one gate"])
BOTH_TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def cell_of(kind="gated", input_size=2, hidden_size=4, dial=None, seed=0):
    """A cell of a kind; the units of "leaky units" have leaks of their own, from 0.1 to 0.9."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "plain":
        cell = RNNCell(input_size, hidden_size, generator=generator)
    elif kind.startswith("leaky"):
        alpha = 0.3 if kind == "leaky" else torch.linspace(0.1, 0.9, hidden_size)
        cell = LeakyRNNCell(input_size, hidden_size, alpha, dial or Gate(), generator=generator)
    else:
        cell = GatedCell(input_size, hidden_size, shared=kind == "shared gate", generator=generator)
    return cell.double()


def data_of(cell, time=6, batch=3, seed=1, dtype=torch.float64):
    """An input and a state before the first step."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (time, batch, cell.U.shape[1]), (batch, len(cell.W))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def stepped(cell, x, h):
    """What the readable cell makes of a sequence."""
    states = []
    for x_t in x:
        h = cell(x_t, h)
        states.append(h)
    return torch.stack(states)


def numpy_gated(x, U, W, b, h, gate_of):
    """Eq. 10 of Tallec & Ollivier (2018), unit by unit; ``gate_of(k, i, x_t, h)`` of sequence k and unit i."""
    states, h = [], h.copy()
    for x_t in x:
        new = np.empty_like(h)
        for k in range(len(h)):
            for i in range(len(W)):
                drive = b[i]
                for j in range(x.shape[2]):
                    drive += U[i, j] * x_t[k, j]
                for j in range(len(W)):
                    drive += W[i, j] * h[k, j]
                g = gate_of(k, i, x_t, h)
                new[k, i] = g * np.tanh(drive) + (1 - g) * h[k, i]
        h = new
        states.append(h)
    return np.stack(states)


def numpy_gates(U_g, W_g, b_g):
    """Eq. 9, which hears the states of the main network."""

    def gate_of(k, i, x_t, h):
        i = min(i, len(b_g) - 1)  # one gate for all, or one each
        drive = sum(U_g[i, j] * x_t[k, j] for j in range(x_t.shape[1]))
        return 1 / (1 + np.exp(-drive - sum(W_g[i, j] * h[k, j] for j in range(h.shape[1])) - b_g[i]))

    return gate_of


def numpy_cell(kind, cell, x, h):
    """What the paper's equation of a cell makes of a sequence."""
    numbers = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    if "b_g" in numbers:
        gate_of = numpy_gates(numbers["U_g"], numbers["W_g"], numbers["b_g"])
    else:
        alpha = np.ones(len(cell.W)) if kind == "plain" else cell.alpha.detach().expand(len(cell.W)).numpy()

        def gate_of(k, i, x_t, h):
            return alpha[i]

    return numpy_gated(x.numpy(), numbers["U"], numbers["W"], numbers["b"], h.numpy(), gate_of)


def gradients(function, tensors, seed=7):
    """Gradients, to every input, of a random weighing of the states."""
    tensors = [t.detach().clone().requires_grad_(True) for t in tensors]
    states = function(*tensors)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad((states * weights.to(states.dtype)).sum(), tensors)


# Cells


@EVERY_KIND
def test_cell_equals_numpy_transcription(kind):
    cell = cell_of(kind)
    x, h = data_of(cell)
    expected = numpy_cell(kind, cell, x, h)
    np.testing.assert_allclose(stepped(cell, x, h).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(unroll(cell, x, h).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_plain_cell_equals_the_rnn_of_torch():
    cell = cell_of("plain")
    x, h = data_of(cell)
    rnn = torch.nn.RNN(2, 4).double()
    with torch.no_grad():
        for theirs, ours in ((rnn.weight_ih_l0, cell.U), (rnn.weight_hh_l0, cell.W), (rnn.bias_ih_l0, cell.b)):
            theirs.copy_(ours)
        rnn.bias_hh_l0.zero_()
    (theirs, _), ours = rnn(x, h[None]), unroll(cell, x, h)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    for a, b in ((cell.U, rnn.weight_ih_l0), (cell.W, rnn.weight_hh_l0), (cell.b, rnn.bias_ih_l0)):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def test_gated_cell_is_the_gru_of_torch_with_its_reset_gate_open():
    cell = cell_of("gated")
    x, h = data_of(cell)
    gru = torch.nn.GRU(2, 4, dtype=torch.float64)  # r, z, n; z is what is kept
    with torch.no_grad():
        gru.weight_ih_l0.copy_(torch.cat([0 * cell.U, -cell.U_g, cell.U]))
        gru.weight_hh_l0.copy_(torch.cat([0 * cell.W, -cell.W_g, cell.W]))
        gru.bias_ih_l0.copy_(torch.cat([torch.full_like(cell.b, 1000), -cell.b_g, cell.b]))
        gru.bias_hh_l0.zero_()
    torch.testing.assert_close(stepped(cell, x, h), gru(x, h[None])[0])


def test_lstm_of_torch_with_opposite_gates_is_tied():
    cell = cell_of("gated")
    x, u = data_of(cell)
    lstm = torch.nn.LSTM(2, 4, dtype=torch.float64)  # i, f, candidate, o; the output gate is open
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.cat([cell.U_g, -cell.U_g, cell.U, 0 * cell.U]))
        lstm.weight_hh_l0.copy_(torch.cat([cell.W_g, -cell.W_g, cell.W, 0 * cell.W]))
        lstm.bias_ih_l0.copy_(torch.cat([cell.b_g, -cell.b_g, cell.b, torch.full_like(cell.b, 1000)]))
        lstm.bias_hh_l0.zero_()
    found, tied = lstm(x, (torch.tanh(u)[None], u[None]))[0], []
    for x_t in x:
        h = torch.tanh(u)
        g = cell.gate(x_t, h)
        u = (1 - g) * u + g * torch.tanh(x_t @ cell.U.T + h @ cell.W.T + cell.b)
        tied.append(torch.tanh(u))
    torch.testing.assert_close(found, torch.stack(tied))


def test_leaky_cell_with_alpha_one_is_plain():
    leaky, plain = cell_of("leaky", dial=Direct()), cell_of("plain")
    leaky.alpha = 1.0
    x, h = data_of(plain)
    for make in (stepped, unroll):
        torch.testing.assert_close(make(leaky, x, h), make(plain, x, h), rtol=1e-14, atol=1e-14)


def test_leaky_cell_is_gated_by_gates_that_hear_nothing():
    leaky, gated = cell_of("leaky units"), cell_of("gated")
    with torch.no_grad():
        gated.U_g.zero_()
        gated.W_g.zero_()
        gated.b_g.copy_(torch.logit(leaky.alpha))
    x, h = data_of(leaky)
    made = []
    for cell, raw in ((leaky, leaky.parametrizations.alpha.original), (gated, gated.b_g)):
        states = unroll(cell, x, h)
        made.append((states, torch.autograd.grad(states.square().sum(), [cell.U, cell.W, cell.b, raw])))
    torch.testing.assert_close(*made, rtol=1e-12, atol=1e-12)


def test_shared_gate_is_as_many_equal_gates():
    shared, own = cell_of("shared gate"), cell_of("gated")
    with torch.no_grad():
        for name in ("U_g", "W_g", "b_g"):
            getattr(own, name).copy_(getattr(shared, name))
    x, h = data_of(own)
    assert torch.equal(unroll(shared, x, h), unroll(own, x, h))


@pytest.mark.parametrize("kind", ["shared gate", "gated"])
def test_gates_that_are_all_but_closed_hold_the_state(kind):
    cell = cell_of(kind)
    x, h = data_of(cell, time=100)
    with torch.no_grad():
        cell.b_g.fill_(-30.0)
    for make in (stepped, unroll):
        torch.testing.assert_close(make(cell, x, h)[-1], h, rtol=0, atol=1e-9)


def test_gates_that_are_open_take_all_over():
    gated, plain = cell_of("gated"), cell_of("plain")
    x, h = data_of(plain)
    with torch.no_grad():
        gated.b_g.fill_(50.0)
    torch.testing.assert_close(unroll(gated, x, h), unroll(plain, x, h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["shared gate", "gated"])
def test_gate_says_which_part_was_taken_over(kind):
    cell = cell_of(kind)
    x, h = data_of(cell)
    states = unroll(cell, x, h)
    before = torch.cat([h[None], states[:-1]])
    g, candidate = cell.gate(x, before), torch.tanh(x @ cell.U.T + before @ cell.W.T + cell.b)
    assert g.shape == (6, 3, 1 if kind == "shared gate" else 4)
    torch.testing.assert_close(states - before, g * (candidate - before), rtol=1e-10, atol=1e-12)


def test_gated_units_that_close_at_blanks_do_not_notice_how_many_there_are():
    cell = cell_of("gated", input_size=3)
    with torch.no_grad():
        cell.U_g[:, 2] = -1000.0  # the blank's feature
    generator = torch.Generator().manual_seed(1)
    letters = torch.eye(3, dtype=torch.float64)[torch.randint(2, (5,), generator=generator)]
    when = torch.cumsum(torch.randint(1, 6, (5,), generator=generator), 0)
    padded = torch.eye(3, dtype=torch.float64)[2].repeat(int(when[-1]) + 1, 1)
    padded[when] = letters
    for make in (stepped, unroll):
        h = torch.zeros(1, 4, dtype=torch.float64)
        assert torch.equal(make(cell, padded[:, None], h)[when], make(cell, letters[:, None], h))


def test_leaky_units_follow_stretched_time_with_a_smaller_leak_and_plain_ones_do_not():
    cell = cell_of("leaky", dial=Direct())
    x, h = data_of(cell)

    def end(stretch):
        cell.alpha = 0.5 / stretch
        return unroll(cell, x.repeat_interleave(stretch, 0), h)[-1].detach()

    errors = [(end(stretch) - end(2 * stretch)).abs().max() for stretch in (8, 16, 32)]
    assert 1.8 < errors[0] / errors[1] < 2.2  # forward Euler: half the step, half the error
    assert 1.8 < errors[1] / errors[2] < 2.2
    plain = cell_of("plain")
    assert (unroll(plain, x.repeat_interleave(8, 0), h)[-1] - unroll(plain, x, h)[-1]).abs().max() > 10 * errors[0]


@EVERY_KIND
def test_cell_starts_at_zero_unless_told_otherwise(kind):
    cell = cell_of(kind)
    x, h = data_of(cell)
    assert torch.equal(unroll(cell, x), unroll(cell, x, torch.zeros_like(h)))
    assert not torch.allclose(unroll(cell, x), unroll(cell, x, h))


def test_weights_repeat_with_their_seed_are_shared_by_the_cells_and_stay_within_their_bound():
    one, same, other = cell_of(seed=3), cell_of(seed=3), cell_of(seed=4)
    for name, p in one.named_parameters():
        assert torch.equal(p, getattr(same, name))
        assert not torch.equal(p, getattr(other, name))
        assert p.detach().abs().max() <= 4**-0.5
    for kind in KINDS:
        assert all(torch.equal(getattr(cell_of(kind, seed=3), name), getattr(one, name)) for name in ("U", "W", "b"))
    wide = cell_of(hidden_size=400)
    assert 0.045 < wide.W.detach().abs().max() <= 0.05
    assert abs(wide.W_g.detach().std() / (0.05 / 3**0.5) - 1) < 0.01


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("kind", ["leaky", "leaky units"])
def test_alpha_moves_only_when_trainable(kind, trainable):
    cell = cell_of(kind, dial=LogTau())
    raw = cell.parametrizations.alpha.original.requires_grad_(trainable)
    before, weights = raw.detach().clone(), cell.W.detach().clone()
    assert before.shape == (() if kind == "leaky" else (4,))
    optimizer = torch.optim.SGD([p for p in cell.parameters() if p.requires_grad], lr=0.1)
    unroll(cell, *data_of(cell)).sum().backward()
    optimizer.step()
    assert bool((raw.detach() != before).all()) == trainable
    assert not torch.equal(cell.W, weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: RNNCell(0, 3, generator=g), "sizes must be 1 or more, got input_size=0, hidden_size=3"),
        (lambda g: GatedCell(2, 0, generator=g), "sizes must be 1 or more, got input_size=2, hidden_size=0"),
        (lambda g: LeakyRNNCell(2, 0, 0.1, Gate(), generator=g), "sizes must be 1 or more, got input_size=2"),
        (lambda g: LeakyRNNCell(2, 3, 1.0, Gate(), generator=g), r"alpha of a Gate dial must lie in \(0, 1\), got 1"),
        (
            lambda g: LeakyRNNCell(2, 3, torch.ones(2) / 2, Gate(), generator=g),
            r"alpha must be a number or one for each of 3 units, got \(2,\)",
        ),
    ],
)
def test_cells_refuse_what_they_cannot_use(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.Generator())


# Cells, compiled


@EVERY_KIND
@pytest.mark.parametrize("shape", [dict(), dict(time=1), dict(batch=1)], ids=str)
def test_unroll_equals_stepping(kind, shape):
    cell = cell_of(kind)
    x, h = (t.requires_grad_(True) for t in data_of(cell, **shape))
    V, c = torch.ones(2, 4, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    made = []
    for outputs in (unroll(cell, x, h, read_out=(V, c)), stepped(cell, x, h) @ V.T + c):
        grads = torch.autograd.grad(outputs.square().sum(), [x, h, *cell.parameters()])
        made.append((outputs, grads))
    torch.testing.assert_close(*made, rtol=1e-10, atol=1e-10)


@EVERY_KIND
def test_unroll_in_single_precision_is_right_to_1e_5_of_the_largest(kind):
    cell = cell_of(kind, hidden_size=33)
    exact, h = data_of(cell, time=100, batch=5)
    expected = stepped(cell, exact, h)
    for_cell = torch.autograd.grad(expected.square().sum(), list(cell.parameters()))
    cell.float()
    states = unroll(cell, exact.float(), h.float())
    assert states.dtype == torch.float32
    torch.testing.assert_close(states.double(), expected, rtol=0, atol=1e-5)
    ours = torch.autograd.grad(states.square().sum(), list(cell.parameters()))
    for a, e in zip(ours, for_cell, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=0, atol=1e-5 * float(e.abs().max()))


@EVERY_KIND
@pytest.mark.parametrize("shared_input", [False, True])
def test_networks_under_vmap_equal_single_ones(kind, shared_input):
    class Loss(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.cell = cell_of(kind, seed=seed)

        def forward(self, x):
            return unroll(self.cell, x).square().sum()

    networks = [Loss(seed) for seed in range(3)]
    x = torch.stack([data_of(network.cell, seed=seed)[0] for seed, network in enumerate(networks)])
    parameters, buffers = torch.func.stack_module_state(networks)

    def loss(parameters, buffers, x):
        return functional_call(networks[0], (parameters, buffers), (x,))

    dims = (0, 0, None if shared_input else 0)
    grads = torch.vmap(torch.func.grad(loss), dims)(parameters, buffers, x[0] if shared_input else x)
    for n, cell in enumerate(network.cell for network in networks):
        expected = stepped(cell, x[0 if shared_input else n], torch.zeros(3, 4, dtype=torch.float64)).square().sum()
        for name, e in zip(grads, torch.autograd.grad(expected, list(cell.parameters())), strict=True):
            torch.testing.assert_close(grads[name][n], e, rtol=1e-10, atol=1e-10)


@EVERY_KIND
def test_unroll_gradients_pass_gradcheck(kind):
    cell = cell_of(kind, hidden_size=3)
    names = [name for name, _ in cell.named_parameters()]

    class Unrolled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x, h):
            return unroll(self.cell, x, h)

    def states(x, h, *values):
        parameters = {f"cell.{name}": value for name, value in zip(names, values, strict=True)}
        return functional_call(Unrolled(), parameters, (x, h))

    tensors = [t.detach().clone().requires_grad_(True) for t in (*data_of(cell, 3, 2), *cell.parameters())]
    assert torch.autograd.gradcheck(states, tensors)


@EVERY_KIND
def test_unroll_is_compiled_and_refuses_a_second_derivative(kind):
    cell = cell_of(kind)
    (first,) = torch.autograd.grad(unroll(cell, *data_of(cell)).square().sum(), cell.W, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only; step the cell in a loop instead"):
        first.sum().backward()


@EVERY_KIND
def test_unroll_steps_numbers_that_are_not_compiled(kind):
    cell = cell_of(kind).bfloat16()
    x, h = data_of(cell, dtype=torch.bfloat16)
    assert not cell.applies_to(x)
    states = unroll(cell, x, h)
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, stepped(cell, x, h))


@pytest.mark.parametrize("kind", ["leaky", "gated"])
def test_unroll_refuses_a_state_that_does_not_fit(kind):
    cell = cell_of(kind)
    x, h = data_of(cell)
    with pytest.raises(ValueError, match=r"h must have shape \(3, 4\) for .*, got \(3, 3\)"):
        unroll(cell, x, h[:, :3])
    with pytest.raises(ValueError, match=r"U must have shape \(4, 1\) for .*, got \(4, 2\)"):
        unroll(cell, x[..., :1], h)


class Reader(torch.nn.Module):
    """A gated cell and a read-out."""

    def __init__(self, seed):
        super().__init__()
        self.cell = GatedCell(2, 4, generator=torch.Generator().manual_seed(seed))
        self.V, self.c = torch.nn.Parameter(torch.ones(1, 4) / 2), torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return unroll(self.cell, x, read_out=(self.V, self.c))


def squared_error(network, x, y):
    return (network(x) - y).square().mean()


def test_gated_networks_trained_together_equal_each_trained_alone():
    together, alone = ([Reader(seed).double() for seed in range(3)] for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(3, 6, 2, features, generator=generator, dtype=torch.float64) for features in (2, 1)]
    watch = {"loss": squared_error}
    history = train(together, squared_error, data, epochs=20, lr=0.01, watch=watch)
    for n, network in enumerate(alone):
        train([network], squared_error, [t[n : n + 1] for t in data], epochs=20, lr=0.01)
        for ours, single in zip(together[n].parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(ours, single, rtol=1e-10, atol=1e-12)
    assert np.all(history.watched["loss"][:, -1] < history.watched["loss"][:, 0])


# The recurrence


def inputs(time=6, batch=3, features=2, units=4, *, shared=False, networks=None, dtype=torch.float64, seed=0):
    """What `gated_recurrence` takes, of one network or of a stack."""
    generator = torch.Generator().manual_seed(seed)
    stack, gates = () if networks is None else (networks,), 1 if shared else units

    def draw(*shape):
        return torch.randn(*stack, *shape, generator=generator, dtype=torch.float64)

    made = [draw(time, batch, features), draw(units, features), draw(units, units) / units**0.5, draw(units)]
    made += [draw(gates, features), draw(gates, units) / units**0.5, draw(gates), draw(batch, units)]
    return [tensor.to(dtype) for tensor in made]


def torch_loop(x, U, W, b, U_g, W_g, b_g, h):
    """Eqs. 9 and 10 in torch, for gradients."""
    states = []
    for x_t in x:
        g = torch.sigmoid(x_t @ U_g.T + h @ W_g.T + b_g)
        h = g * torch.tanh(x_t @ U.T + h @ W.T + b) + (1 - g) * h
        states.append(h)
    return torch.stack(states)


def network_by_network(*stacked):
    """What a loop makes of each network of a stack."""
    return torch.stack([torch_loop(*(t[n] for t in stacked)) for n in range(len(stacked[0]))])


def assert_equal_by_name(ours, expected, **tolerance):
    for name, a, e in zip(NAMES, ours, expected, strict=True):
        torch.testing.assert_close(a, e, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


SHAPES = [
    dict(),
    dict(time=1),
    dict(batch=1),
    dict(units=1),
    dict(features=0),
    dict(time=1, batch=1, features=1, units=1),
    dict(batch=4, units=16),  # whole tiles and vectors
    dict(batch=5, features=19, units=37),  # a row and a vector left over
]
SIZES = ("time", "batch", "features", "units")
SHAPES += [dict(zip(SIZES, sizes, strict=True)) for sizes in np.random.default_rng(0).integers(1, 50, (4, 4)).tolist()]
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


@GATES
@EVERY_SHAPE
def test_recurrence_equals_a_loop_in_values_and_gradients(shape, shared):
    tensors = inputs(**shape, shared=shared)
    torch.testing.assert_close(gated_recurrence(*tensors), torch_loop(*tensors), rtol=1e-10, atol=1e-10)
    ours, loops = gradients(gated_recurrence, tensors), gradients(torch_loop, tensors)
    assert_equal_by_name(ours, loops, rtol=1e-10, atol=1e-10)


@GATES
def test_recurrence_equals_numpy_transcription(shared):
    x, U, W, b, *gate, h = (t.numpy() for t in inputs(units=9, shared=shared))
    expected = numpy_gated(x, U, W, b, h, numpy_gates(*gate))
    ours = gated_recurrence(*inputs(units=9, shared=shared))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-12)


@GATES
@EVERY_SHAPE
def test_recurrence_in_single_precision_is_right_to_1e_5_of_the_largest(shape, shared):
    tensors = inputs(**shape, shared=shared, dtype=torch.float32)
    exact = [t.double() for t in tensors]
    states = gated_recurrence(*tensors)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states.double(), torch_loop(*exact), rtol=0, atol=1e-5)
    for name, a, e in zip(NAMES, gradients(gated_recurrence, tensors), gradients(torch_loop, exact), strict=True):
        assert a.dtype == torch.float32
        atol = 1e-5 * float(e.abs().max()) if e.numel() else 0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=atol, msg=name)


@GATES
def test_recurrence_gradients_pass_gradcheck(shared):
    tensors = [t.requires_grad_(True) for t in inputs(time=3, batch=2, units=3, shared=shared)]
    assert torch.autograd.gradcheck(gated_recurrence, tensors)


def test_gradients_reach_only_what_asks_for_them():
    tensors = inputs()
    everything = gradients(gated_recurrence, tensors)
    for which in range(len(NAMES)):
        chosen = [t.clone().requires_grad_(i == which) for i, t in enumerate(tensors)]
        states = gated_recurrence(*chosen)
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        (states * weights).sum().backward()
        assert [t.grad is not None for t in chosen] == [i == which for i in range(len(NAMES))]
        assert torch.equal(chosen[which].grad, everything[which])


@GATES
@BOTH_TYPES
def test_stack_gives_every_network_its_own_values_and_gradients(dtype, shared):
    stacked = inputs(networks=5, units=9, shared=shared, dtype=dtype)
    together, grads = torch.vmap(gated_recurrence)(*stacked), gradients(torch.vmap(gated_recurrence), stacked)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    for n in range(5):
        alone = [t[n].clone().requires_grad_(True) for t in stacked]
        states = gated_recurrence(*alone)
        assert torch.equal(together[n], states.detach())
        single = torch.autograd.grad((states * weights[n]).sum(), alone)
        tolerance = dict(rtol=1e-13, atol=1e-13) if dtype == torch.float64 else dict(rtol=1e-5, atol=1e-5)
        assert_equal_by_name([grad[n] for grad in grads], single, **tolerance)


@pytest.mark.parametrize("shared", [("x",), ("U_g", "W_g", "b_g"), ("U", "W", "b", "h")], ids=str)
def test_what_a_stack_shares_counts_for_every_network(shared):
    stacked = inputs(networks=3)
    tensors = [t[0] if name in shared else t for name, t in zip(NAMES, stacked, strict=True)]
    mapped = torch.vmap(gated_recurrence, tuple(None if name in shared else 0 for name in NAMES))

    def loops(*tensors):
        each = [t.expand(3, *t.shape) if name in shared else t for name, t in zip(NAMES, tensors, strict=True)]
        return network_by_network(*each)

    torch.testing.assert_close(mapped(*tensors), loops(*tensors), rtol=1e-12, atol=1e-12)
    assert_equal_by_name(gradients(mapped, tensors), gradients(loops, tensors), rtol=1e-10, atol=1e-10)


def test_vmap_of_vmap_folds_networks_twice():
    stacked = inputs(networks=6)
    twice = torch.vmap(torch.vmap(gated_recurrence))(*(t.unflatten(0, (2, 3)) for t in stacked))
    assert torch.equal(twice.flatten(0, 1), torch.vmap(gated_recurrence)(*stacked))


@BOTH_TYPES
def test_threads_do_not_change_the_bits(dtype):
    stacked, before, made = inputs(networks=7, units=9, dtype=dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            states = torch.vmap(gated_recurrence)(*stacked)
            made.append([states, *gradients(torch.vmap(gated_recurrence), stacked)])
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(one, many) for one, many in zip(made[0], other, strict=True))


def test_recurrence_takes_tensors_that_are_not_contiguous_and_leaves_them_as_they_were():
    stacked = inputs(networks=4)
    crooked = [t.movedim(0, -1).contiguous().movedim(-1, 0)[::2] for t in stacked]
    straight = [t[::2].contiguous() for t in stacked]
    assert not any(t.is_contiguous() for t in crooked[:3])
    made = [gradients(torch.vmap(gated_recurrence), tensors) for tensors in (crooked, straight)]
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(crooked, straight, strict=True))


@BOTH_TYPES
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_network(name, wrong, dtype):
    stacked = inputs(networks=3, dtype=dtype)
    good = torch.vmap(gated_recurrence)(*stacked), *gradients(torch.vmap(gated_recurrence), stacked)
    stacked[NAMES.index(name)][1].view(-1)[0] = wrong
    bad = torch.vmap(gated_recurrence)(*stacked), *gradients(torch.vmap(gated_recurrence), stacked)
    assert all(torch.equal(b[[0, 2]], g[[0, 2]]) for b, g in zip(bad, good, strict=True))
    loops = network_by_network(*stacked), *gradients(network_by_network, stacked)
    for b, e in zip(bad, loops, strict=True):
        assert not bool((torch.isfinite(b) & ~torch.isfinite(e)).any())  # `train` sees what it would see of a loop


@BOTH_TYPES
@pytest.mark.parametrize("name", NAMES)
def test_nan_reaches_all_that_hear_it_and_no_one_else(name, dtype):
    tensors = inputs(batch=5, units=9, dtype=dtype)
    tensors[NAMES.index(name)].view(-1)[0] = torch.nan
    assert torch.equal(gated_recurrence(*tensors).isnan(), torch_loop(*tensors).isnan())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("U", (4, 3), r"U must have shape \(4, 2\) for .*, got \(4, 3\)"),
        ("W", (4, 3), r"W must have shape \(4, 4\) for .*, got \(4, 3\)"),
        ("b", (3,), r"b must have shape \(4,\) for .*, got \(3,\)"),
        ("U_g", (1, 2), r"U_g must have shape \(4, 2\) for .*, got \(1, 2\)"),
        ("W_g", (4, 3), r"W_g must have shape \(4, 4\) for .*, got \(4, 3\)"),
        ("b_g", (2,), r"b_g must have shape \(4,\) or \(1,\) for .*, got \(2,\)"),
        ("b_g", (), r"b_g must have shape \(4,\) or \(1,\) for .*, got \(\)"),
        ("h", (2, 4), r"h must have shape \(3, 4\) for .*, got \(2, 4\)"),
    ],
)
def test_wrong_shape_is_refused_by_name(name, shape, message):
    tensors = dict(zip(NAMES, inputs(), strict=True)) | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=message):
        gated_recurrence(**tensors)


@pytest.mark.parametrize("name", NAMES[1:])
def test_another_type_is_refused_by_name(name):
    tensors = dict(zip(NAMES, inputs(), strict=True))
    with pytest.raises(ValueError, match=rf"^{name} must have the type of x, torch.float64, got torch.float32"):
        gated_recurrence(**tensors | {name: tensors[name].float()})
