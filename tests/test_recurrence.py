import numpy as np
import pytest
import torch

from ts_helpers.engine.recurrence import applies_to, leaky_recurrence

NAMES = ("x", "U", "W", "b", "alpha", "h")


def inputs(time=6, batch=3, features=2, units=4, *, per_step=False, networks=None, dtype=torch.float64, seed=0):
    """x, U, W, b, alpha and h, of one network or of a stack."""
    generator = torch.Generator().manual_seed(seed)
    stack = () if networks is None else (networks,)

    def draw(*shape):
        return torch.randn(*stack, *shape, generator=generator, dtype=torch.float64).to(dtype)

    alpha = torch.sigmoid(draw(time, units) if per_step else draw(units))
    x, h = draw(time, batch, features), draw(batch, units)
    return x, draw(units, features), draw(units, units), draw(units), alpha, h


def numpy_leaky(x, U, W, b, alpha, h):
    """The first equation of Benureau & Tani (2018), one layer, unit by unit."""
    states, h = [], h.copy()
    for t in range(len(x)):
        a = alpha[t] if alpha.ndim == 2 else alpha
        new = np.empty_like(h)
        for k in range(h.shape[0]):
            for j in range(h.shape[1]):
                drive = b[j]
                for i in range(h.shape[1]):
                    drive += W[j, i] * np.tanh(h[k, i])
                for f in range(x.shape[2]):
                    drive += U[j, f] * x[t, k, f]
                new[k, j] = (1 - a[j]) * h[k, j] + a[j] * drive
        h = new
        states.append(h)
    return np.stack(states)


def torch_loop(x, U, W, b, alpha, h):
    """The same in torch, for gradients."""
    states = []
    for t in range(len(x)):
        a = alpha[t] if alpha.ndim == 2 else alpha
        h = (1 - a) * h + a * (torch.tanh(h) @ W.T + x[t] @ U.T + b)
        states.append(h)
    return torch.stack(states)


def gradients(function, tensors, seed=7):
    """Gradients, to every input, of a random weighing of the states."""
    tensors = [t.detach().clone().requires_grad_(True) for t in tensors]
    states = function(*tensors)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad((states * weights.to(states.dtype)).sum(), tensors)


SHAPES = [
    dict(),
    dict(features=0),
    dict(features=1, units=1, batch=1),
    dict(time=1),
    dict(batch=1),
    dict(batch=4, units=9),
    dict(batch=7, features=3),
]


@pytest.mark.parametrize("per_step", [False, True], ids=["fixed alpha", "alpha per step"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_recurrence_equals_numpy_transcription(shape, per_step):
    tensors = inputs(**shape, per_step=per_step)
    expected = numpy_leaky(*(t.numpy() for t in tensors))
    np.testing.assert_allclose(leaky_recurrence(*tensors).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_step", [False, True], ids=["fixed alpha", "alpha per step"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_recurrence_gradients_equal_those_of_a_loop(shape, per_step):
    tensors = inputs(**shape, per_step=per_step)
    for name, ours, loops in zip(
        NAMES, gradients(leaky_recurrence, tensors), gradients(torch_loop, tensors), strict=True
    ):
        torch.testing.assert_close(ours, loops, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("per_step", [False, True], ids=["fixed alpha", "alpha per step"])
def test_recurrence_in_single_precision_is_right_to_1e_5(per_step):
    tensors = inputs(time=50, batch=5, units=25, per_step=per_step, dtype=torch.float32)
    tensors[NAMES.index("W")].div_(5)  # no chaos to blow errors up
    exact = [t.double() for t in tensors]
    states = leaky_recurrence(*tensors)
    assert states.dtype == torch.float32
    expected = numpy_leaky(*(t.numpy() for t in exact))
    np.testing.assert_allclose(states.numpy(), expected, rtol=1e-5, atol=1e-5)
    for ours, loops in zip(gradients(leaky_recurrence, tensors), gradients(torch_loop, exact), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), loops, rtol=1e-5, atol=1e-5 * float(loops.abs().max()))


@pytest.mark.parametrize("per_step", [False, True], ids=["fixed alpha", "alpha per step"])
@pytest.mark.parametrize("features", [0, 2])
def test_recurrence_gradients_pass_gradcheck(features, per_step):
    tensors = inputs(time=3, batch=2, features=features, units=3, per_step=per_step)
    assert torch.autograd.gradcheck(leaky_recurrence, [t.requires_grad_(True) for t in tensors])


def tanh_of(h):
    """tanh(h) as the recurrence takes it: what a unit at 0 with alpha = 1 takes over from one at h in one step."""
    n, W = len(h), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    none = h.new_zeros(1, n, 0), h.new_zeros(2, 0)
    return leaky_recurrence(*none, W, h.new_zeros(2), h.new_ones(2), torch.stack([h, torch.zeros_like(h)], 1))[0, :, 1]


def test_tanh_in_single_precision_is_right_everywhere():
    far = torch.logspace(-30, 38, 69)
    h = torch.cat([torch.linspace(-30, 30, 60001), far, -far, torch.tensor([torch.inf, -torch.inf, 0.0])])
    torch.testing.assert_close(tanh_of(h).double(), torch.tanh(h.double()), rtol=0, atol=1.5e-7)
    assert bool((tanh_of(h).abs() <= 1).all())
    near = torch.linspace(0.01, 1, 1000)
    torch.testing.assert_close(tanh_of(near).double(), torch.tanh(near.double()), rtol=1e-5, atol=0)
    assert tanh_of(torch.zeros(1)).item() == 0
    assert bool(tanh_of(torch.tensor([torch.nan])).isnan().all())


@pytest.mark.parametrize("per_step", [False, True], ids=["fixed alpha", "alpha per step"])
@pytest.mark.parametrize("features", [0, 2])
def test_vmap_gives_every_network_its_own_values_and_gradients(features, per_step):
    stacked = inputs(features=features, per_step=per_step, networks=5)
    together = torch.vmap(leaky_recurrence)(*stacked)
    grads = gradients(torch.vmap(leaky_recurrence), stacked)
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for n in range(5):
        alone = [t[n].clone().requires_grad_(True) for t in stacked]
        states = leaky_recurrence(*alone)
        torch.testing.assert_close(together[n], states.detach(), rtol=0, atol=1e-14)
        for ours, single in zip(grads, torch.autograd.grad((states * weights[n]).sum(), alone), strict=True):
            torch.testing.assert_close(ours[n], single, rtol=1e-13, atol=1e-13)


def test_vmap_shares_what_is_not_mapped():
    x, *others = inputs(networks=3)
    together = torch.vmap(leaky_recurrence, (None, 0, 0, 0, 0, 0))(x[0], *others)
    last = torch.vmap(leaky_recurrence, (None, 0, 0, 0, 0, 1))(x[0], *others[:-1], others[-1].movedim(0, 1))
    for n in range(3):
        torch.testing.assert_close(together[n], leaky_recurrence(x[0], *(t[n] for t in others)))
    assert torch.equal(together, last)


@pytest.mark.parametrize("shared", [False, True], ids=["own input", "shared input"])
def test_vmap_over_grad_equals_the_gradients_of_single_networks(shared):
    stacked = inputs(networks=4)

    def loss(W, alpha, x, U, b, h):
        return leaky_recurrence(x, U, W, b, alpha, h).square().mean()

    x, U, W, b, alpha, h = stacked
    mapped = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, 0, None if shared else 0, 0, 0, 0))
    for_W, for_alpha = mapped(W, alpha, x[0] if shared else x, U, b, h)
    for n in range(4):
        own_W, own_alpha = W[n].clone().requires_grad_(True), alpha[n].clone().requires_grad_(True)
        states = torch_loop(x[0 if shared else n], U[n], own_W, b[n], own_alpha, h[n])
        expected = torch.autograd.grad(states.square().mean(), (own_W, own_alpha))
        torch.testing.assert_close((for_W[n], for_alpha[n]), expected)


def test_vmap_of_vmap_folds_twice():
    stacked = inputs(networks=6)
    pairs = [t.unflatten(0, (2, 3)) for t in stacked]
    twice = torch.vmap(torch.vmap(leaky_recurrence))(*pairs)
    assert torch.equal(twice.flatten(0, 1), torch.vmap(leaky_recurrence)(*stacked))


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_threads_do_not_change_the_numbers(threads):
    stacked = inputs(time=12, units=8, per_step=True, networks=7, dtype=torch.float32)
    before = torch.get_num_threads()
    made = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            states = torch.vmap(leaky_recurrence)(*stacked)
            made.append((states, *gradients(torch.vmap(leaky_recurrence), stacked)))
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*made, strict=True):
        assert torch.equal(one, many)


def test_recurrence_leaves_its_inputs_as_they_were():
    tensors = inputs()
    before = [t.clone() for t in tensors]
    leaky_recurrence(*(t.requires_grad_(True) for t in tensors)).square().sum().backward()
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


def test_recurrence_takes_tensors_that_are_not_contiguous():
    tensors = inputs(networks=2)
    crooked = [t.movedim(0, -1).contiguous().movedim(-1, 0)[1] for t in tensors]
    straight = [t[1].contiguous() for t in tensors]
    assert not crooked[0].is_contiguous()
    assert torch.equal(leaky_recurrence(*crooked), leaky_recurrence(*straight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_unit_with_alpha_zero_rests_exactly(dtype):
    x, U, W, b, alpha, h = inputs(dtype=dtype)
    alpha[1] = 0
    states = leaky_recurrence(x, U, W, b, alpha, h)
    assert torch.equal(states[..., 1], h[:, 1].expand(len(x), -1))
    assert not torch.equal(states[-1, :, 0], h[:, 0])


def test_alpha_zero_has_no_gradient_and_leaves_the_others_theirs():
    tensors = inputs(per_step=True)
    tensors[4][2, 1] = 0
    ours, loops = gradients(leaky_recurrence, tensors), gradients(torch_loop, tensors)
    assert ours[4][2, 1] == 0
    loops[4][2, 1] = 0  # the true derivative is not 0: the one documented departure
    for a, b in zip(ours, loops, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivative_is_refused():
    x, U, W, b, alpha, h = inputs()
    W.requires_grad_(True)
    (first,) = torch.autograd.grad(leaky_recurrence(x, U, W, b, alpha, h).square().sum(), W, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only; step the cell in a loop instead"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("U", (4, 3), r"U must have shape \(4, 2\) for .*, got \(4, 3\)"),
        ("W", (4, 3), r"W must have shape \(4, 4\) for .*, got \(4, 3\)"),
        ("b", (3,), r"b must have shape \(4,\) for .*, got \(3,\)"),
        ("b", (1, 4), r"b must have shape"),
        ("alpha", (), r"alpha must have shape \(4,\) or \(6, 4\) for .*, got \(\)"),
        ("alpha", (5, 4), r"alpha must have shape \(4,\) or \(6, 4\) for .*, got \(5, 4\)"),
        ("h", (4,), r"h must have shape \(3, 4\) for .*, got \(4,\)"),
        ("h", (2, 4), r"h must have shape \(3, 4\) for .*, got \(2, 4\)"),
    ],
)
def test_wrong_shape_is_refused_by_name(name, shape, message):
    tensors = dict(zip(NAMES, inputs(), strict=True))
    with pytest.raises(ValueError, match=message):
        leaky_recurrence(**tensors | {name: torch.zeros(shape, dtype=torch.float64)})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_stays_in_its_network(name, wrong, dtype, threads):
    stacked = inputs(networks=3, dtype=dtype)
    good = torch.vmap(leaky_recurrence)(*stacked), gradients(torch.vmap(leaky_recurrence), stacked)
    stacked[NAMES.index(name)][1].view(-1)[0] = wrong
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bad = torch.vmap(leaky_recurrence)(*stacked), gradients(torch.vmap(leaky_recurrence), stacked)
    finally:
        torch.set_num_threads(before)
    for others in ([0], [2]):
        assert torch.equal(bad[0][others], good[0][others])
        assert all(torch.equal(b[others], g[others]) for b, g in zip(bad[1], good[1], strict=True))
    assert not bool(torch.isfinite(bad[0][1, -1]).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nan_in_one_unit_reaches_all_that_hear_it(dtype):
    x, U, W, b, alpha, h = inputs(dtype=dtype)
    h[0, 0] = torch.nan
    states = leaky_recurrence(x, U, W, b, alpha, h)
    assert torch.equal(torch.isnan(states), torch.isnan(torch_loop(x, U, W, b, alpha, h)))


def test_recurrence_applies_to_floats_on_a_cpu_only():
    assert applies_to(torch.zeros(1))
    assert applies_to(torch.zeros(1).double())
    assert not applies_to(torch.zeros(1).half())
    assert not applies_to(torch.zeros(1).long())
    assert not applies_to(torch.zeros(1, device="meta"))
