import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ts_helpers.cells import ARUCell, ARUStack, MTRNNCell, unroll
from ts_helpers.engine.recurrence import identity
from ts_helpers.timescales import Clamped, Direct, Gate, LogTau

ACTIVATIONS = {
    torch.sigmoid: lambda h: 1 / (1 + np.exp(-h)),
    torch.tanh: np.tanh,
    torch.relu: lambda h: np.maximum(h, 0),
    identity: lambda h: h,
    torch.sin: np.sin,  # not compiled
}
EVERY_F = pytest.mark.parametrize("f", ACTIVATIONS, ids=lambda f: f.__name__)
SHARED = pytest.mark.parametrize("per_unit", [False, True], ids=["shared alphas", "alpha per unit"])
RAW = [f"parametrizations.{name}.original" for name in ("alpha_s", "alpha_r")]


def cell_of(
    input_size=2,
    hidden_size=3,
    alpha_s=0.3,
    alpha_r=0.7,
    dial=None,
    *,
    per_unit=False,
    f=torch.sigmoid,
    scale=1,
    seed=0,
):
    generator = torch.Generator().manual_seed(seed)
    if per_unit:
        alpha_s, alpha_r = torch.linspace(0.1, 0.6, hidden_size), torch.linspace(0.9, 0.2, hidden_size)
    cell = ARUCell(
        input_size, hidden_size, alpha_s, alpha_r, dial or Direct(), f=f, scale=scale, generator=generator
    ).double()
    with torch.no_grad():
        cell.start.copy_(torch.randn(2 * hidden_size, generator=generator))
    return cell


def stack_of(n=3, m=2, input_size=2, *, per_unit=False, f=torch.sigmoid):
    lower = cell_of(input_size + m, n, 0.8, 0.6, f=f, per_unit=per_unit, seed=1)
    return ARUStack(lower, cell_of(n, m, 0.2, 0.5, f=f, per_unit=per_unit, seed=2))


def sequence(features=2, time=7, batch=4, seed=1):
    return torch.randn(time, batch, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drive_of(cell, x, r):
    """What the units of a cell hear of an input x (input,) and rates r (units,), in NumPy, term by term."""
    U, W, b = (p.detach().numpy() for p in (cell.U, cell.W, cell.b))
    return [
        b[n] + sum(W[n, i] * r[i] for i in range(len(r))) + sum(U[n, i] * x[i] for i in range(len(x)))
        for n in range(len(b))
    ]


def numpy_step(cell, x, I, r):  # noqa: E741
    """Eqs. 12 and 13 of Quax et al. (2020), for one sequence."""
    alpha_s, alpha_r = (a.detach().expand_as(cell.b).numpy() for a in (cell.alpha_s, cell.alpha_r))
    drive, f = drive_of(cell, x, r), ACTIVATIONS[cell.f]
    I = np.array([(1 - alpha_s[n]) * I[n] + alpha_s[n] * drive[n] for n in range(len(I))])  # noqa: E741
    return I, np.array([(1 - alpha_r[n]) * r[n] + alpha_r[n] * f(I[n]) for n in range(len(I))])


def stepped(cell, x, state):
    states = []
    for x_t in x:
        state = cell(x_t, state)
        states.append(state)
    return torch.stack(states)


def assert_same_values_and_gradients(one, other, wanted):
    weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((made * weights).sum(), wanted) for made in (one, other))
    torch.testing.assert_close((one, ours), (other, theirs), rtol=1e-10, atol=1e-12)


# One layer


@EVERY_F
@SHARED
def test_aru_equals_numpy_transcription(per_unit, f):
    cell, x = cell_of(f=f, per_unit=per_unit), sequence()
    for b in range(x.shape[1]):
        I, r = cell.start.detach().numpy().reshape(2, 3)  # noqa: E741
        expected = []
        for x_t in x[:, b].numpy():
            I, r = numpy_step(cell, x_t, I, r)  # noqa: E741
            expected.append([*I, *r])
        for states in (unroll(cell, x), stepped(cell, x, cell.initial_state(x[0]))):
            np.testing.assert_allclose(states[:, b].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@EVERY_F
@SHARED
@pytest.mark.parametrize("time", [1, 7])
def test_aru_unroll_equals_stepping(time, per_unit, f):
    cell, x = cell_of(f=f, per_unit=per_unit), sequence(time=time).requires_grad_(True)
    state = sequence(6, 1)[0].requires_grad_(True)
    wanted = [x, state, *(p for name, p in cell.named_parameters() if name != "start")]
    assert_same_values_and_gradients(unroll(cell, x, state), stepped(cell, x, state), wanted)


def test_aru_with_both_alphas_one_is_elmans_unit():
    cell, x = cell_of(alpha_s=1, alpha_r=1, f=torch.tanh), sequence()
    elman = torch.nn.RNN(2, 3, nonlinearity="tanh", dtype=torch.float64)
    with torch.no_grad():
        for name, value in (("weight_ih_l0", cell.U), ("weight_hh_l0", cell.W), ("bias_ih_l0", cell.b)):
            getattr(elman, name).copy_(value)
        elman.bias_hh_l0.zero_()
    r = cell.activity(cell.initial_state(x[0]))
    expected, _ = elman(x, r[None].contiguous())
    torch.testing.assert_close(cell.activity(unroll(cell, x)), expected, rtol=1e-12, atol=1e-12)


def test_aru_with_alpha_r_one_is_a_leaky_unit_whose_state_is_the_current():
    cell, x = cell_of(alpha_s=0.25, alpha_r=1, f=torch.tanh), sequence()
    leaky = MTRNNCell(2, (3,), (4.0,), Clamped(), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for mine, its in ((cell.U, leaky.L[0]), (cell.W, leaky.S[0]), (cell.b, leaky.b[0])):
            its.copy_(mine)
    h = sequence(3, 1)[0]
    states = unroll(cell, x, torch.cat([h, torch.tanh(h)], -1))
    torch.testing.assert_close(states[..., :3], unroll(leaky, x, h), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cell.activity(states), torch.tanh(states[..., :3]), rtol=1e-12, atol=1e-12)


def test_aru_shared_alpha_equals_the_same_alpha_in_every_unit():
    shared, each = (
        cell_of(alpha_s=0.25, alpha_r=0.5),
        cell_of(alpha_s=torch.full((3,), 0.25), alpha_r=torch.full((3,), 0.5)),
    )
    assert shared.alpha_s.shape == ()
    assert each.alpha_s.shape == (3,)
    made = []
    for cell in (shared, each):
        states = unroll(cell, sequence())
        made.append(
            (
                states,
                [torch.autograd.grad(states.sum(), cell.get_parameter(name), retain_graph=True)[0] for name in RAW],
            )
        )
    assert torch.equal(made[0][0], made[1][0])
    for one, several in zip(made[0][1], made[1][1], strict=True):
        torch.testing.assert_close(one, several.sum())


def test_aru_starts_where_it_has_learned_to():
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(ARUCell(2, 3, 0.3, 0.7, Direct(), generator=generator).start, torch.zeros(6))
    cell, x = cell_of(), sequence()
    assert torch.equal(cell.initial_state(x[0]), cell.start.expand(4, 6))
    assert torch.equal(unroll(cell, x), unroll(cell, x, cell.start.expand(4, 6)))
    unroll(cell, x).sum().backward()
    assert bool((cell.start.grad != 0).all())


def test_aru_holds_its_state_when_both_alphas_are_tiny():
    cell = cell_of(alpha_s=1e-12, alpha_r=1e-12)
    torch.testing.assert_close(unroll(cell, sequence(time=100))[-1], cell.start.expand(4, 6))


@EVERY_F
def test_aru_read_out_equals_a_linear_map_of_the_rates(f):
    cell, x = cell_of(f=f, per_unit=True), sequence().requires_grad_(True)
    V, c = (t.requires_grad_(True) for t in (sequence(3, 1, 5)[0], sequence(5, 1, 1)[0, 0]))
    states = stepped(cell, x, cell.initial_state(x[0]))
    expected = F.linear(states[..., 3:], V, c)
    assert_same_values_and_gradients(unroll(cell, x, read_out=(V, c)), expected, [x, V, c, *cell.parameters()])


@pytest.mark.parametrize("read", [False, True], ids=["states", "read-out"])
@SHARED
@pytest.mark.parametrize("dial", [Direct, LogTau, Gate, Clamped])
def test_aru_gradients_pass_gradcheck(dial, per_unit, read):
    cell, x = cell_of(dial=dial(), per_unit=per_unit), sequence(time=4, batch=2)
    names = [name for name, _ in cell.named_parameters()]
    read_out = (sequence(3, 1, 2)[0], sequence(2, 1, 1)[0, 0]) if read else None

    class Unrolled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            return unroll(self.cell, x, read_out=read_out)

    def made(x, *values):
        parameters = {f"cell.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(Unrolled(), parameters, (x,))

    tensors = [t.detach().clone().requires_grad_(True) for t in (x, *cell.parameters())]
    assert torch.autograd.gradcheck(made, tensors)


@pytest.mark.parametrize("dial", [Direct, LogTau, Gate, Clamped])
@pytest.mark.parametrize("trainable", [(True, False), (False, True), (True, True)], ids=str)
def test_aru_alphas_move_only_when_trainable(trainable, dial):
    cell = cell_of(dial=dial())
    raw = [cell.get_parameter(name) for name in RAW]
    for p, moves in zip(raw, trainable, strict=True):
        p.requires_grad_(moves)
    before = [p.detach().clone() for p in raw]
    optimizer = torch.optim.SGD([p for p in cell.parameters() if p.requires_grad], lr=0.1)
    unroll(cell, sequence()).square().sum().backward()
    optimizer.step()
    assert tuple(not torch.equal(p, b) for p, b in zip(raw, before, strict=True)) == trainable


def test_aru_reads_the_alphas_it_was_given_and_takes_others():
    for dial in (Direct(), LogTau(), Gate(), Clamped()):
        cell = cell_of(dial=dial, alpha_s=0.25, alpha_r=0.75)
        torch.testing.assert_close((cell.alpha_s.item(), cell.alpha_r.item()), (0.25, 0.75), rtol=1e-6, atol=0)
        cell.alpha_s = 0.5
        torch.testing.assert_close((cell.alpha_s.item(), cell.alpha_r.item()), (0.5, 0.75), rtol=1e-6, atol=0)


def test_aru_weights_repeat_with_their_seed_and_keep_their_scale():
    one, same, other = cell_of(2, 97, seed=3), cell_of(2, 97, seed=3, per_unit=True, scale=4), cell_of(2, 97, seed=4)
    for name in ("U", "W", "b"):
        p, q, r = (getattr(cell, name).detach() for cell in (one, same, other))
        torch.testing.assert_close(4 * p, q)
        assert not torch.equal(p, r)
        assert 0.09 < float(p.abs().max()) <= 0.1  # 1 / sqrt(2 + 97 + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(input_size=0), "sizes must be 1 or more, got input_size=0, hidden_size=3"),
        (dict(hidden_size=0), "sizes must be 1 or more, got input_size=2, hidden_size=0"),
        (dict(alpha_s=torch.ones(2)), r"alpha_s must be a number or one for each of 3 units, got torch.Size\(\[2\]\)"),
        (dict(alpha_r=torch.ones(1, 3)), r"alpha_r must be a number or one for each of 3 units, got .*\[1, 3\]"),
        (dict(alpha_s=2.0), r"alpha of a Direct dial must lie in \(0, 2\), got 2"),
        (dict(alpha_r=1.0, dial=Gate()), r"alpha of a Gate dial must lie in \(0, 1\), got 1"),
        (dict(alpha_r=torch.tensor([0.5, -1, 0.5])), r"alpha of a Direct dial must lie in \(0, 2\), got -1"),
        (dict(alpha_s=1.3, dial=Clamped()), r"alpha of a Clamped dial must lie in \(0, 1\], got 1.3"),
    ],
    ids=str,
)
def test_aru_refuses_what_it_cannot_use(change, message):
    with pytest.raises(ValueError, match=message):
        cell_of(**change)


# Two layers


def numpy_stack(stack, x):
    """Fig. 8A of Quax et al. (2020): both layers step at once, and hear each other's rates of a step ago."""
    n, m = len(stack.lower.b), len(stack.upper.b)
    I_1, r_1 = stack.lower.start.detach().numpy().reshape(2, n)
    I_2, r_2 = stack.upper.start.detach().numpy().reshape(2, m)
    states = []
    for x_t in x:
        lower = numpy_step(stack.lower, [*x_t, *r_2], I_1, r_1)
        upper = numpy_step(stack.upper, r_1, I_2, r_2)
        (I_1, r_1), (I_2, r_2) = lower, upper
        states.append([*I_1, *I_2, *r_1, *r_2])
    return np.array(states)


@EVERY_F
@SHARED
@pytest.mark.parametrize("sizes", [(3, 2), (1, 1), (2, 4)], ids=str)
def test_stack_equals_two_layers_stepped_in_numpy(sizes, per_unit, f):
    stack, x = stack_of(*sizes, f=f, per_unit=per_unit), sequence()
    expected = np.stack([numpy_stack(stack, x[:, b].numpy()) for b in range(x.shape[1])], 1)
    for states in (unroll(stack, x), stepped(stack, x, stack.initial_state(x[0]))):
        np.testing.assert_allclose(states.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@EVERY_F
@SHARED
def test_stack_unroll_equals_stepping(per_unit, f):
    stack, x = stack_of(f=f, per_unit=per_unit), sequence().requires_grad_(True)
    states = stepped(stack, x, stack.initial_state(x[0]))
    assert_same_values_and_gradients(unroll(stack, x), states, [x, *stack.parameters()])


@EVERY_F
def test_stack_read_out_equals_a_linear_map_of_the_rates(f):
    stack, x = stack_of(f=f), sequence().requires_grad_(True)
    V, c = (t.requires_grad_(True) for t in (sequence(5, 1, 2)[0], sequence(2, 1, 1)[0, 0]))
    expected = F.linear(stepped(stack, x, stack.initial_state(x[0]))[..., 5:], V, c)
    assert_same_values_and_gradients(unroll(stack, x, read_out=(V, c)), expected, [x, V, c, *stack.parameters()])


def test_stack_hears_feedback_one_step_late():
    x, made = sequence(), []
    for shift in (0.0, 1.0):
        stack = stack_of()
        with torch.no_grad():
            stack.upper.b.add_(shift)
        made.append(stack.activity(unroll(stack, x)).detach().split([3, 2], -1))
    (lower, upper), (other_lower, other_upper) = made
    assert bool((upper[0] != other_upper[0]).all())
    assert torch.equal(lower[0], other_lower[0])
    assert bool((lower[1] != other_lower[1]).all())


def test_stack_hears_the_input_in_its_lower_layer_first():
    stack, x = stack_of(), sequence()
    other = x.clone()
    other[0] += 1
    lower, upper = ((unroll(stack, x) != unroll(stack, other))[..., 5:]).split([3, 2], -1)
    assert bool(lower[0].all())
    assert not bool(upper[0].any())
    assert bool(upper[1].all())


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (dict(input_size=2), dict(), "lower must hear the input and 2 upper units, got 2 features"),
        (dict(input_size=1), dict(), "lower must hear the input and 2 upper units, got 1 features"),
        (dict(), dict(input_size=2), "upper must hear 3 lower units, got 2 features"),
        (dict(), dict(f=torch.tanh), "upper must have the activation function of lower, .*sigmoid.*, got .*tanh"),
    ],
)
def test_stack_refuses_layers_that_do_not_fit(lower, upper, message):
    with pytest.raises(ValueError, match=message):
        ARUStack(cell_of(**dict(input_size=4) | lower), cell_of(**dict(input_size=3, hidden_size=2) | upper))
