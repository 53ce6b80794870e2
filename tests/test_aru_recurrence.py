from functools import partial

import numpy as np
import pytest
import torch

from ts_helpers.engine.lanes import LARGEST
from ts_helpers.engine.recurrence import applies_to, aru_network, aru_recurrence, identity

ACTIVATIONS = {
    torch.tanh: np.tanh,
    torch.sigmoid: lambda h: 1 / (1 + np.exp(-h)),
    torch.relu: lambda h: max(h, 0.0),
    identity: lambda h: h,
}
NAMES = ("x", "U", "W", "b", "alpha_s", "alpha_r", "I", "r", "V", "c")
EVERY_F = pytest.mark.parametrize("f", ACTIVATIONS, ids=lambda f: f.__name__)
BOTH_TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
SHAPES = [
    dict(),
    dict(batch=1),
    dict(units=1),
    dict(time=1),
    dict(features=1),
    dict(outputs=3),
    dict(batch=15, units=13, features=7, outputs=6),  # every width of product that is held in registers
    dict(units=LARGEST + 1),
]
BLOCKS = dict(time=30, batch=4, features=50, units=41, outputs=50)  # products that go to BLAS in parts
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)


def inputs(time=6, batch=3, features=2, units=4, outputs=2, *, networks=None, alphas=None, dtype=torch.float64, seed=0):
    """What `aru_network` takes, of one network or of a stack; without the last two, what `aru_recurrence` takes."""
    generator = torch.Generator().manual_seed(seed)
    stack = () if networks is None else (networks,)

    def draw(*shape):
        return torch.randn(*stack, *shape, generator=generator, dtype=torch.float64)

    x, U, W, b = draw(time, batch, features), draw(units, features), draw(units, units) / units**0.5, draw(units)
    alpha_s, alpha_r = torch.sigmoid(draw(2, units)).unbind(-2)
    if alphas is not None:
        alpha_s, alpha_r = torch.full_like(alpha_s, alphas[0]), torch.full_like(alpha_r, alphas[1])
    made = x, U, W, b, alpha_s, alpha_r, draw(batch, units), draw(batch, units), draw(outputs, units), draw(outputs)
    return [tensor.to(dtype) for tensor in made]


def numpy_aru(f, x, U, W, b, alpha_s, alpha_r, I, r, V=None, c=None):  # noqa: E741
    """Eqs. 12, 13 and 21 of Quax et al. (2020), unit by unit; b and c are the weights of the constant input 1."""
    currents, rates, outputs = [], [], []
    for x_t in x:
        I_new, r_new = np.empty_like(I), np.empty_like(r)
        for k in range(len(I)):
            for n in range(len(W)):
                drive = b[n]
                for i in range(len(W)):
                    drive += W[n, i] * r[k, i]
                for i in range(x.shape[2]):
                    drive += U[n, i] * x_t[k, i]
                I_new[k, n] = (1 - alpha_s[n]) * I[k, n] + alpha_s[n] * drive
                r_new[k, n] = (1 - alpha_r[n]) * r[k, n] + alpha_r[n] * f(I_new[k, n])
        I, r = I_new, r_new  # noqa: E741
        currents.append(I)
        rates.append(r)
        if V is not None:
            y_t = [[sum(V[o, n] * r[k, n] for n in range(len(W))) + c[o] for o in range(len(V))] for k in range(len(r))]
            outputs.append(y_t)
    return (np.stack(currents), np.stack(rates)) if V is None else np.array(outputs)


def torch_loop(x, U, W, b, alpha_s, alpha_r, I, r, V=None, c=None, *, f):  # noqa: E741
    """The same in torch, for gradients."""
    currents, rates = [], []
    for x_t in x:
        I = (1 - alpha_s) * I + alpha_s * (r @ W.T + x_t @ U.T + b)  # noqa: E741
        r = (1 - alpha_r) * r + alpha_r * f(I)
        currents.append(I)
        rates.append(r)
    if V is None:
        return torch.stack(currents), torch.stack(rates)
    return torch.stack(rates) @ V.T + c


def gradients(function, tensors, *, only=None, seed=7):
    """Gradients, to every input, of a random weighing of what a function returns, or of one of several things."""
    tensors = [t.detach().clone().requires_grad_(True) for t in tensors]
    made = function(*tensors)
    made = [made] if torch.is_tensor(made) else list(made)
    total = torch.zeros((), dtype=made[0].dtype)
    for which, states in enumerate(made):
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if only in (None, which):
            total = total + (states * weights.to(states.dtype)).sum()
    return torch.autograd.grad(total, tensors)


def network_by_network(f, *stacked):
    """What a loop makes of each network of a stack."""
    return torch.stack([torch_loop(*(t[n] for t in stacked), f=f) for n in range(len(stacked[0]))])


def assert_equal_by_name(ours, expected, **tolerance):
    for name, a, e in zip(NAMES[: len(ours)], ours, expected, strict=True):
        torch.testing.assert_close(a, e, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


# Values


@EVERY_F
@pytest.mark.parametrize("shape", [*SHAPES, BLOCKS], ids=str)
def test_aru_recurrence_equals_numpy_transcription(shape, f):
    tensors = inputs(**shape)[:8]
    expected = numpy_aru(ACTIVATIONS[f], *(t.numpy() for t in tensors))
    for ours, theirs in zip(aru_recurrence(*tensors, f=f), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-12)


@EVERY_F
@EVERY_SHAPE
def test_stack_of_aru_networks_equals_numpy_transcription(shape, f):
    stacked = inputs(**shape, networks=9)  # eight at a time, and one alone
    together = torch.vmap(partial(aru_network, f=f))(*stacked)
    for n in (0, 3, 7, 8):
        expected = numpy_aru(ACTIVATIONS[f], *(t[n].numpy() for t in stacked))
        np.testing.assert_allclose(together[n].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_products_in_parts_equal_numpy_transcription():
    tensors = inputs(**BLOCKS)
    expected = numpy_aru(ACTIVATIONS[torch.tanh], *(t.numpy() for t in tensors))
    np.testing.assert_allclose(aru_network(*tensors, f=torch.tanh).numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("networks", [1, 8])
@pytest.mark.parametrize("alphas", [(0.001, 0.001), (1.3, 1.3), (0.001, 1.3), (1.0, 1.0)], ids=str)
def test_aru_network_is_right_at_extreme_alphas(alphas, networks):
    stacked = inputs(time=20, networks=networks, alphas=alphas)
    expected = numpy_aru(ACTIVATIONS[torch.sigmoid], *(t[0].numpy() for t in stacked))
    np.testing.assert_allclose(torch.vmap(aru_network)(*stacked)[0].numpy(), expected, rtol=1e-12, atol=1e-12)
    ours = gradients(torch.vmap(aru_network), stacked)
    loops = gradients(partial(network_by_network, torch.sigmoid), stacked)
    assert_equal_by_name(ours, loops, rtol=1e-10, atol=1e-10)


@EVERY_F
@BOTH_TYPES
def test_activation_is_right_everywhere(dtype, f):
    far = torch.logspace(-30, 38, 69)
    h = torch.cat([torch.linspace(-30, 30, 60001), far, -far, torch.tensor([torch.inf, -torch.inf, 0.0, torch.nan])])
    h, one, none = h.to(dtype), torch.ones(1, dtype=dtype), torch.zeros(len(h), 1, dtype=dtype)
    currents, rates = aru_recurrence(h[None, :, None], one[None], 0 * one[None], 0 * one, one, one, none, none, f=f)
    assert torch.equal(currents.nan_to_num(2.5), h[None, :, None].nan_to_num(2.5))
    atol = 1.5e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(rates[0, :, 0].double(), f(h.double()), rtol=0, atol=atol, equal_nan=True)


def test_relu_of_torch_nn_functional_is_known_too():
    tensors = inputs()
    assert torch.equal(aru_network(*tensors, f=torch.nn.functional.relu), aru_network(*tensors, f=torch.relu))


# Gradients


@EVERY_F
@pytest.mark.parametrize("shape", [*SHAPES, BLOCKS], ids=str)
def test_aru_recurrence_gradients_equal_those_of_a_loop(shape, f):
    tensors = inputs(**shape)[:8]
    ours, loops = (gradients(partial(function, f=f), tensors) for function in (aru_recurrence, torch_loop))
    assert_equal_by_name(ours, loops, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("only", [0, 1], ids=["currents", "rates"])
def test_aru_recurrence_has_the_gradients_of_either_output_alone(only):
    tensors = inputs()[:8]
    ours, loops = (
        gradients(partial(function, f=torch.sigmoid), tensors, only=only) for function in (aru_recurrence, torch_loop)
    )
    assert_equal_by_name(ours, loops, rtol=1e-10, atol=1e-10)


@EVERY_F
@EVERY_SHAPE
def test_stack_of_aru_networks_has_the_gradients_of_loops(shape, f):
    stacked = inputs(**shape, networks=9)
    ours = gradients(torch.vmap(partial(aru_network, f=f)), stacked)
    assert_equal_by_name(ours, gradients(partial(network_by_network, f), stacked), rtol=1e-10, atol=1e-10)


def test_products_in_parts_have_the_gradients_of_a_loop():
    ours, loops = (
        gradients(partial(function, f=torch.tanh), inputs(**BLOCKS)) for function in (aru_network, torch_loop)
    )
    assert_equal_by_name(ours, loops, rtol=1e-9, atol=1e-9)


@EVERY_F
@pytest.mark.parametrize("networks", [1, 8])
@pytest.mark.parametrize("alphas", [None, (0.001, 0.001)], ids=str)
def test_aru_network_in_single_precision_is_right_to_1e_5_of_the_largest(alphas, networks, f):
    stacked = inputs(time=50, batch=5, units=25, networks=networks, alphas=alphas, dtype=torch.float32)
    stacked[NAMES.index("W")].div_(4)  # no growth to blow errors up
    exact = [t.double() for t in stacked]
    y, expected = torch.vmap(partial(aru_network, f=f))(*stacked), network_by_network(f, *exact)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    ours = gradients(torch.vmap(partial(aru_network, f=f)), stacked)
    for name, a, e in zip(NAMES, ours, gradients(partial(network_by_network, f), exact), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), e, rtol=0, atol=1e-5 * float(e.abs().max()), msg=name)


@EVERY_F
def test_aru_gradients_pass_gradcheck(f):
    tensors = [t.requires_grad_(True) for t in inputs(time=3, batch=2, units=3)]
    assert torch.autograd.gradcheck(partial(aru_recurrence, f=f), tensors[:8])
    assert torch.autograd.gradcheck(partial(aru_network, f=f), tensors)


def test_gradients_reach_only_what_asks_for_them():
    tensors = inputs()
    everything = gradients(aru_network, tensors)
    for which in range(len(NAMES)):
        chosen = [t.clone().requires_grad_(i == which) for i, t in enumerate(tensors)]
        y = aru_network(*chosen)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        (y * weights).sum().backward()
        assert [t.grad is not None for t in chosen] == [i == which for i in range(len(NAMES))]
        assert torch.equal(chosen[which].grad, everything[which])


def alpha_s_zero(networks):
    stacked = inputs(networks=networks)
    stacked[NAMES.index("alpha_s")][..., 1] = 0
    stacked[NAMES.index("alpha_r")][..., 2] = 0
    return stacked


def test_alpha_zero_has_its_true_gradient_in_eight_aru_networks():
    stacked = alpha_s_zero(8)
    loops = gradients(partial(network_by_network, torch.sigmoid), stacked)
    assert bool((loops[NAMES.index("alpha_s")][:, 1].abs() > 1e-3).all())
    assert bool((loops[NAMES.index("alpha_r")][:, 2].abs() > 1e-3).all())
    assert_equal_by_name(gradients(torch.vmap(aru_network), stacked), loops, rtol=1e-10, atol=1e-10)


def test_alpha_s_zero_has_no_gradient_in_aru_recurrence_and_leaves_the_others_theirs():
    tensors = alpha_s_zero(None)[:8]
    ours, loops = (gradients(partial(function, f=torch.sigmoid), tensors) for function in (aru_recurrence, torch_loop))
    for_alpha_s = NAMES.index("alpha_s")
    assert loops[for_alpha_s][1].abs() > 1e-3
    assert ours[for_alpha_s][1] == 0
    loops[for_alpha_s][1] = 0  # the one documented departure
    assert_equal_by_name(ours, loops, rtol=1e-10, atol=1e-10)


@BOTH_TYPES
@pytest.mark.parametrize("networks", [1, 8])
def test_unit_with_both_alphas_zero_rests_exactly(networks, dtype):
    stacked = inputs(networks=networks, dtype=dtype)
    for name in ("alpha_s", "alpha_r", "c"):
        stacked[NAMES.index(name)][:] = 0
    stacked[NAMES.index("V")][:] = torch.eye(4)[:2]
    y, r = torch.vmap(aru_network)(*stacked), stacked[NAMES.index("r")]
    assert torch.equal(y, r[:, None, :, :2].expand_as(y))


@pytest.mark.parametrize("function", [aru_recurrence, aru_network])
def test_second_derivative_of_aru_is_refused(function):
    tensors = inputs()[: 8 if function is aru_recurrence else 10]
    W = tensors[2].requires_grad_(True)
    made = function(*tensors)
    y = made if torch.is_tensor(made) else made[1]
    (first,) = torch.autograd.grad(y.square().sum(), W, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only; step the cell in a loop instead"):
        first.sum().backward()


# Stacks


@BOTH_TYPES
@pytest.mark.parametrize("networks", [1, 2, 3, 7, 8, 9, 19])
def test_stack_of_any_size_equals_single_networks(networks, dtype):
    stacked = inputs(networks=networks, dtype=dtype)
    together, grads = torch.vmap(aru_network)(*stacked), gradients(torch.vmap(aru_network), stacked)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    tolerance = dict(rtol=1e-12, atol=1e-12) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
    for n in range(networks):
        alone = [t[n].clone().requires_grad_(True) for t in stacked]
        y = aru_network(*alone)
        torch.testing.assert_close(together[n], y.detach(), **tolerance)
        single = torch.autograd.grad((y * weights[n]).sum(), alone)
        assert_equal_by_name([grad[n] for grad in grads], single, **tolerance)


def test_stack_of_aru_recurrences_equals_single_ones():
    stacked = inputs(networks=9)[:8]
    together = torch.vmap(aru_recurrence)(*stacked)
    grads = gradients(torch.vmap(aru_recurrence), stacked)
    loops = gradients(torch.vmap(partial(torch_loop, f=torch.sigmoid)), stacked)
    for n in range(9):
        for ours, alone in zip(together, aru_recurrence(*(t[n] for t in stacked)), strict=True):
            assert torch.equal(ours[n], alone)
    assert_equal_by_name(grads, loops, rtol=1e-10, atol=1e-10)


def test_vmap_of_vmap_folds_networks_twice():
    stacked = inputs(networks=18)
    twice = torch.vmap(torch.vmap(aru_network))(*(t.unflatten(0, (6, 3)) for t in stacked))
    assert torch.equal(twice.flatten(0, 1), torch.vmap(aru_network)(*stacked))


@pytest.mark.parametrize("shared", [("x",), ("V", "c"), ("x", "U", "W", "b", "I", "r")], ids=str)
def test_what_a_stack_shares_counts_for_every_network(shared):
    stacked = inputs(networks=9)
    tensors = [t[0] if name in shared else t for name, t in zip(NAMES, stacked, strict=True)]
    dims = tuple(None if name in shared else 0 for name in NAMES)

    def loops(*tensors):
        each = [t.expand(9, *t.shape) if name in shared else t for name, t in zip(NAMES, tensors, strict=True)]
        return network_by_network(torch.sigmoid, *each)

    mapped = torch.vmap(aru_network, dims)
    torch.testing.assert_close(mapped(*tensors), loops(*tensors), rtol=1e-12, atol=1e-12)
    assert_equal_by_name(gradients(mapped, tensors), gradients(loops, tensors), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shared", [False, True], ids=["own input", "shared input"])
def test_vmap_over_grad_equals_the_gradients_of_single_aru_networks(shared):
    x, *others = inputs(networks=9)

    def loss(others, x, function=aru_network):
        return function(x, *others).square().mean()

    mapped = torch.func.vmap(torch.func.grad(loss), (0, None if shared else 0))(others, x[0] if shared else x)
    for n in (0, 7, 8):
        own = [t[n].clone().requires_grad_(True) for t in others]
        expected = torch.autograd.grad(loss(own, x[0 if shared else n], partial(torch_loop, f=torch.sigmoid)), own)
        for ours, theirs in zip(mapped, expected, strict=True):
            torch.testing.assert_close(ours[n], theirs, rtol=1e-10, atol=1e-10)


@BOTH_TYPES
@pytest.mark.parametrize("shape", [dict(), dict(units=LARGEST + 1)], ids=str)
def test_threads_do_not_change_the_bits(shape, dtype):
    stacked = inputs(**shape, networks=19, dtype=dtype)
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, grads = torch.vmap(aru_network)(*stacked), gradients(torch.vmap(aru_network), stacked)
            states = torch.vmap(aru_recurrence)(*stacked[:8])
            made.append([y, *grads, *states, *gradients(torch.vmap(aru_recurrence), stacked[:8])])
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(one, many) for one, many in zip(made[0], other, strict=True))


@BOTH_TYPES
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_aru_network(name, wrong, dtype):
    stacked = inputs(networks=16, dtype=dtype)
    good = torch.vmap(aru_network)(*stacked), *gradients(torch.vmap(aru_network), stacked)
    stacked[NAMES.index(name)][5].view(-1)[0] = wrong
    bad = torch.vmap(aru_network)(*stacked), *gradients(torch.vmap(aru_network), stacked)
    others = [n for n in range(16) if n != 5]
    assert all(torch.equal(b[others], g[others]) for b, g in zip(bad, good, strict=True))
    own = torch.cat([b[5].flatten() for b in bad])
    assert not bool(torch.isfinite(own).all())  # in outputs or gradients: what `train` looks at


@EVERY_F
@BOTH_TYPES
@pytest.mark.parametrize("networks", [1, 8])
def test_nan_in_one_current_reaches_all_that_hear_it(networks, dtype, f):
    stacked = inputs(networks=networks, dtype=dtype)
    stacked[NAMES.index("I")][0, 0, 0] = torch.nan
    y, loops = torch.vmap(partial(aru_network, f=f))(*stacked), network_by_network(f, *stacked)
    assert bool(loops.isnan().any())
    assert torch.equal(y.isnan(), loops.isnan())


# What is taken, and what is refused


@pytest.mark.parametrize("networks", [1, 8])
def test_aru_takes_tensors_that_are_not_contiguous(networks):
    stacked = inputs(networks=2 * networks)
    crooked = [t.movedim(0, -1).contiguous().movedim(-1, 0)[::2] for t in stacked]
    straight = [t[::2].contiguous() for t in stacked]
    assert not any(t.is_contiguous() for t in crooked[:3])
    assert torch.equal(torch.vmap(aru_network)(*crooked), torch.vmap(aru_network)(*straight))
    ours, theirs = gradients(torch.vmap(aru_network), crooked), gradients(torch.vmap(aru_network), straight)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("networks", [1, 8])
def test_aru_leaves_its_inputs_as_they_were(networks):
    stacked = inputs(networks=networks)
    before = [t.clone() for t in stacked]
    torch.vmap(aru_network)(*(t.requires_grad_(True) for t in stacked)).square().sum().backward()
    torch.vmap(aru_recurrence)(*stacked[:8])[1].square().sum().backward()
    assert all(torch.equal(t, b) for t, b in zip(stacked, before, strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("U", (4, 3), r"U must have shape \(4, 2\) for .*, got \(4, 3\)"),
        ("W", (4, 3), r"W must have shape \(4, 4\) for .*, got \(4, 3\)"),
        ("b", (3,), r"b must have shape \(4,\) for .*, got \(3,\)"),
        ("alpha_s", (), r"alpha_s must have shape \(4,\) for .*, got \(\)"),
        ("alpha_s", (6, 4), r"alpha_s must have shape \(4,\) for .*, got \(6, 4\)"),
        ("alpha_r", (1, 4), r"alpha_r must have shape \(4,\) for .*, got \(1, 4\)"),
        ("I", (4,), r"I must have shape \(3, 4\) for .*, got \(4,\)"),
        ("r", (2, 4), r"r must have shape \(3, 4\) for .*, got \(2, 4\)"),
        ("V", (2, 3), r"V and c must be \(features, 4\) and \(features,\), got \(2, 3\), \(2,\)"),
        ("V", (4,), r"V and c must be \(features, 4\) and \(features,\), got \(4,\), \(2,\)"),
        ("c", (3,), r"V and c must be \(features, 4\) and \(features,\), got \(2, 4\), \(3,\)"),
        ("c", (1, 2), r"V and c must be .*, got \(2, 4\), \(1, 2\)"),
    ],
)
def test_wrong_shape_is_refused_by_its_name(name, shape, message):
    tensors = dict(zip(NAMES, inputs(), strict=True)) | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=message):
        aru_network(**tensors)
    if name not in ("V", "c"):
        with pytest.raises(ValueError, match=message):
            aru_recurrence(**{name: tensors[name] for name in NAMES[:8]})


@pytest.mark.parametrize("name", NAMES[1:8])
def test_another_type_is_refused_by_name(name):
    tensors = dict(zip(NAMES, inputs(), strict=True))
    with pytest.raises(ValueError, match=rf"^{name} must have the type of x, torch.float64, got torch.float32"):
        aru_network(**tensors | {name: tensors[name].float()})


def test_unknown_activation_is_refused_by_name():
    message = r"f must be torch.tanh, torch.sigmoid, torch.relu or recurrence.identity, got <built-in method sin"
    with pytest.raises(ValueError, match=message):
        aru_network(*inputs(), f=torch.sin)
    with pytest.raises(ValueError, match=message):
        aru_recurrence(*inputs()[:8], f=torch.sin)


def test_compiled_recurrence_applies_to_the_activations_it_knows():
    x = torch.zeros(1)
    assert all(applies_to(x, f) for f in [*ACTIVATIONS, torch.nn.functional.relu])
    assert not applies_to(x, torch.sin)
    assert not applies_to(x.to("meta"), torch.sigmoid)
