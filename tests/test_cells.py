"""Every cell of the book and what holds for it: its paper's equation, its limits, and that compiled it is the same."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ts_helpers import cells
from ts_helpers.cells import ARUStack, identity, unroll
from ts_helpers.engine import compiled
from ts_helpers.engine import LARGEST
from ts_helpers.timescales import Clamped, Direct, Gate, LogTau

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64).to(dtype)


def of(cell, features=2, units=4, *more, seed=0, **how):
    return cell(features, units, *more, generator=seeded(seed), **how)


def ctrnn(features=2, units=4, dial=Direct, alpha=0.3, seed=0):
    return of(cells.CTRNNCell, features, units, alpha, dial(), seed=seed)


def mtrnn(features=2, units=6, dial=Clamped, layers=3, update="simultaneous", tau=None, seed=0):
    upper = [max(1, units // layers)] * (layers - 1)
    sizes = [max(1, units - sum(upper)), *upper]
    tau = tau or [2.0 + 1.5 * k for k in range(layers)]
    return of(cells.MTRNNCell, features, sizes, tau, dial(), update=update, seed=seed)


def aru(features=2, units=4, dial=Direct, alpha_s=0.3, alpha_r=0.7, f=torch.sigmoid, per_unit=False, scale=1, seed=0):
    if per_unit:
        alpha_s, alpha_r = torch.linspace(0.1, 0.6, units), torch.linspace(0.9, 0.2, units)
    return of(cells.ARUCell, features, units, alpha_s, alpha_r, dial(), f=f, scale=scale, seed=seed)


def stack(features=2, units=5, dial=Direct, f=torch.sigmoid, per_unit=False):
    above = max(1, units // 2)
    below = max(1, units - above)
    lower = aru(features + above, below, dial, 0.8, 0.6, f, per_unit, seed=1)
    return ARUStack(lower, aru(below, above, dial, 0.2, 0.5, f, per_unit, seed=2))


def leaky(features=2, units=4, dial=Direct, per_unit=False, alpha=0.3, seed=0):
    alpha = torch.linspace(0.1, 0.9, units) if per_unit else alpha
    return of(cells.LeakyRNNCell, features, units, alpha, dial(), seed=seed)


rnn, gated, gru = (partial(of, cell) for cell in (cells.RNNCell, cells.GatedCell, cells.GRU))
FUNCTIONS = {
    torch.sigmoid: lambda h: 1 / (1 + np.exp(-h)),
    torch.tanh: np.tanh,
    torch.relu: lambda h: np.maximum(h, 0),
    identity: lambda h: h,
    torch.sin: np.sin,  # not compiled
}
KINDS = {"ctrnn": ctrnn}
for n in (1, 2, 3, 4):
    KINDS |= {f"mtrnn {u}, {n}": partial(mtrnn, layers=n, update=u) for u in ("simultaneous", "sequential")}
for f in FUNCTIONS:
    KINDS[f"aru {f.__name__}"], KINDS[f"stack {f.__name__}"] = partial(aru, f=f), partial(stack, f=f)
KINDS |= {f"{make.__name__} per unit": partial(make, per_unit=True) for make in (aru, stack, leaky)}
KINDS |= dict(rnn=rnn, leaky=leaky, gated=gated, gru=gru) | {"gated shared": partial(gated, shared=True)}
COMPILED = [kind for kind in KINDS if kind != "gru" and "sin" not in kind.split(" ")]
WITH_READ_OUT = [kind for kind in COMPILED if kind.startswith(("mtrnn simultaneous", "aru", "stack"))]
WITH_DIALS = [kind for kind in KINDS if not kind.startswith(("rnn", "gated", "gru"))]
FEW = ["ctrnn", "mtrnn simultaneous, 3", "mtrnn sequential, 3", "aru sigmoid", "leaky", "gated"]  # one of each sort

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_COMPILED = pytest.mark.parametrize("kind", COMPILED)
EVERY_SORT = pytest.mark.parametrize("kind", FEW)
BOTH_TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
DIALS = pytest.mark.parametrize("dial", [Direct, LogTau, Gate, Clamped, partial(Clamped, 0)])


def stepped(cell, x, state):
    states = []
    for x_t in x:
        state = cell(x_t, state)
        states.append(state)
    return torch.stack(states)


class Unrolled(nn.Module):
    """A ``cell`` unrolled, or for comparison stepped in a ``loop``; ``read`` out or not."""

    def forward(self, x, state, V, c):
        if not self.loop:
            return unroll(self.cell, x, state, read_out=(V, c) if self.read else None)
        states = stepped(self.cell, x, state)
        if not self.read:
            return states
        return (self.cell.activity(states) if hasattr(self.cell, "activity") else states) @ V.T + c


class Case:
    """A cell, and drawn anew its input, state, read-out and weights: ``tensors`` by name, networks first."""

    def __init__(self, kind, time=6, batch=3, features=2, units=4, outputs=2, networks=None, dtype=F64):
        self.cell, self.networks = KINDS[kind](features, units).to(dtype), networks
        stacked, generator = (networks,) if networks else (), seeded()

        def draw(*shape):
            return torch.randn((*stacked, *shape), generator=generator, dtype=F64)

        state = self.cell.initial_state(torch.zeros(1, features)).shape[1]
        shown = state // 2 if kind.startswith(("aru", "stack")) else state
        made = dict(x=draw(time, batch, features), state=draw(batch, state), V=draw(outputs, shown), c=draw(outputs))
        for name, p in self.cell.named_parameters():
            drawn = draw(*p.shape) / max(1, p.shape[-1]) ** 0.5 if p.ndim > 1 else draw(*p.shape)
            if "alpha" in name:
                drawn = 1 + drawn.exp() if kind.startswith("mtrnn") else 1.4 * (2 * drawn).sigmoid()  # tau or alpha
            made[f"cell.{name}"] = drawn
        self.tensors = {name: tensor.to(dtype) for name, tensor in made.items()}

    def changed(self, change, **attributes):
        """The same with other tensors."""
        case = copy.copy(self)
        case.tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        case.__dict__ |= attributes
        return case

    def outputs(self, tensors=None, read=False, loop=False, dims=0):
        """States or outputs, compiled or of torch's own operations in a loop; several networks at once."""
        tensors, module = tensors or self.tensors, Unrolled()
        module.cell, module.read, module.loop = self.cell, read, loop

        def one(tensors):
            given = [tensors[name] for name in ("x", "state", "V", "c")]
            return functional_call(module, {k: v for k, v in tensors.items() if k.startswith("cell.")}, tuple(given))

        return torch.vmap(one, (dims,))(tensors) if self.networks else one(tensors)

    def made(self, read=False, loop=False, dims=0):
        """The outputs, and the gradient of a random weighing of them with respect to every tensor, by name."""
        tensors = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.tensors.items()}
        y = self.outputs(tensors, read, loop, dims)
        weights = normal(*y.shape, seed=7, dtype=y.dtype)
        grads = torch.autograd.grad((y * weights).sum(), list(tensors.values()), materialize_grads=True)
        return {"outputs": y.detach()} | dict(zip(tensors, grads, strict=True))


def assert_same(ours, theirs, tolerance, of_largest=False):
    for name, expected in theirs.items():
        scale = float(expected.abs().max()) if of_largest and expected.numel() else 1.0
        bounds = dict(rtol=0 if of_largest else tolerance, atol=tolerance * scale)
        torch.testing.assert_close(ours[name].double(), expected, **bounds, msg=lambda m, name=name: f"{name}: {m}")


def assert_equal(ours, theirs, where=...):
    assert [k for k in theirs if not torch.equal(ours[k][where], theirs[k][where])] == []


def array(tensor):
    return tensor.detach().numpy()


def total(weights, activities):
    return sum(weights[i] * activities[i] for i in range(len(activities)))


def numpy_ctrnn(cell, x, u):  # as the oracles below: the states of one sequence after each step, unit by unit
    """Eqs. 2 and 3 of Matsuki & Shibata (2018), with an input."""
    U, W, alpha = array(cell.U), array(cell.W), array(cell.alpha)
    for x_t in x:
        new = np.empty_like(u)
        for j in range(len(u)):
            new[j] = (1 - alpha[j]) * u[j] + alpha[j] * (total(W[j], np.tanh(u)) + total(U[j], x_t))
        yield (u := new)


def numpy_mtrnn(cell, x, h):
    """Section 2.1 of Benureau & Tani (2018), layer by layer and neuron by neuron; all layers side by side."""
    L, S, H, b = ([array(p) for p in ps] for ps in (cell.L, cell.S, cell.H, cell.b))
    tau, ends = 1 / array(cell.alpha), np.cumsum(cell.layers)
    layer = [slice(end - n, end) for n, end in zip(cell.layers, ends, strict=True)]
    for x_t in x:
        new = h.copy()
        for k, n in enumerate(cell.layers):
            below = x_t if k == 0 else np.tanh((new if cell.update == "sequential" else h)[layer[k - 1]])
            for j in range(n):  # sequential: the layer below as it has become, not as it was
                drive = b[k][j] + total(L[k][j], below) + total(S[k][j], np.tanh(h[layer[k]]))
                if k + 1 < len(cell.layers):
                    drive += total(H[k][j], np.tanh(h[layer[k + 1]]))
                new[layer[k]][j] = (1 - 1 / tau[k]) * h[layer[k]][j] + 1 / tau[k] * drive
        yield (h := new)


def aru_step(cell, x, I, r):  # noqa: E741
    """Eqs. 12 and 13 of Quax et al. (2020); b is the weight of the constant input 1."""
    U, W, b = array(cell.U), array(cell.W), array(cell.b)
    alpha_s, alpha_r = (array(a.expand_as(cell.b)) for a in (cell.alpha_s, cell.alpha_r))
    I_new, r_new = np.empty_like(I), np.empty_like(r)
    for n in range(len(b)):
        I_new[n] = (1 - alpha_s[n]) * I[n] + alpha_s[n] * (total(W[n], r) + total(U[n], x) + b[n])
        r_new[n] = (1 - alpha_r[n]) * r[n] + alpha_r[n] * FUNCTIONS[cell.f](I_new[n])
    return I_new, r_new


def numpy_aru(cell, x, state):
    I, r = np.split(state, 2)  # noqa: E741
    for x_t in x:
        I, r = aru_step(cell, x_t, I, r)  # noqa: E741
        yield np.concatenate([I, r])


def numpy_stack(cell, x, state):
    """Fig. 8A of Quax et al. (2020): both layers step at once, and receive each other's rates of a step ago."""
    n, m = len(cell.lower.b), len(cell.upper.b)
    I_1, I_2, r_1, r_2 = np.split(state, [n, n + m, 2 * n + m])
    for x_t in x:
        lower, upper = aru_step(cell.lower, [*x_t, *r_2], I_1, r_1), aru_step(cell.upper, r_1, I_2, r_2)
        (I_1, r_1), (I_2, r_2) = lower, upper
        yield np.concatenate([I_1, I_2, r_1, r_2])


def numpy_gated(cell, x, h):
    """Eqs. 9 and 10 of Tallec & Ollivier (2018), unit by unit; Eq. 5 with a leak rate and Eq. 2 without."""
    U, W, b = array(cell.U), array(cell.W), array(cell.b)
    for x_t in x:
        new = np.empty_like(h)
        for i in range(len(h)):
            if isinstance(cell, cells.GatedCell):
                U_g, W_g, b_g, k = *map(array, (cell.U_g, cell.W_g, cell.b_g)), min(i, len(cell.b_g) - 1)  # one or each
                g = 1 / (1 + np.exp(-total(U_g[k], x_t) - total(W_g[k], h) - b_g[k]))
            else:
                g = array(cell.alpha.expand(len(h)))[i] if isinstance(cell, cells.LeakyRNNCell) else 1.0
            new[i] = g * np.tanh(total(U[i], x_t) + total(W[i], h) + b[i]) + (1 - g) * h[i]
        yield (h := new)


ORACLES = dict(ctrnn=numpy_ctrnn, mtrnn=numpy_mtrnn, aru=numpy_aru, stack=numpy_stack)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gru"])  # that is held against torch's own
def test_cell_equals_numpy_transcription_stepped_and_unrolled(kind):
    case = Case(kind, units=6)
    cell, (x, state, V, c, *weights) = case.cell, case.tensors.values()
    cell.load_state_dict(dict(zip(dict(cell.named_parameters()), weights, strict=True)))
    oracle = ORACLES.get(kind.split(" ")[0], numpy_gated)
    expected = np.stack([np.stack(list(oracle(cell, array(x[:, k]), array(state[k])))) for k in range(len(state))], 1)
    shown = expected
    if kind.startswith(("ctrnn", "mtrnn")):
        shown = np.tanh(expected)
    elif kind.startswith(("aru", "stack")):
        shown = np.split(expected, 2, -1)[1]
    read = np.array([[array(V) @ a + array(c) for a in a_t] for a_t in shown])
    for made, wanted in (
        (stepped(cell, x, state), expected),
        (unroll(cell, x, state), expected),
        (unroll(cell, x, state, read_out=(V, c)), read),
    ):
        np.testing.assert_allclose(array(made), wanted, rtol=1e-12, atol=1e-12)


SHAPES = [(6, 3, 2, 4, 2), (1, 3, 2, 4, 2), (6, 1, 2, 4, 2), (6, 1, 1, 1, 2)]
SHAPES += np.random.default_rng(0).integers(1, 25, (2, 5)).tolist()
SHAPES += [(6, 4, 2, 16, 2), (6, 5, 19, 37, 2), (6, 15, 7, 13, 6)]  # whole tiles; rows left over; every width of block
BLOCKS = dict(time=30, batch=4, features=50, units=41, outputs=50)  # products that go to BLAS in parts


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(map(str, shape)))
@EVERY_COMPILED
def test_unroll_equals_stepping_in_outputs_and_gradients(kind, shape):
    for networks in (None, 9):  # alone; eight at a time and one
        for read in (False, True) if kind in WITH_READ_OUT or shape == SHAPES[0] else (False,):
            case = Case(kind, *shape, networks=networks)
            assert_same(case.made(read), case.made(read, loop=True), 1e-10)


@pytest.mark.parametrize(
    ("kind", "shape", "read"),
    [(kind, BLOCKS, True) for kind in ("aru tanh", "ctrnn", "mtrnn simultaneous, 3")]
    + [("aru sigmoid", BLOCKS, False), ("aru relu", dict(units=LARGEST + 1, networks=9), True)]
    + [("ctrnn", dict(features=0, networks=networks), False) for networks in (None, 9)],
    ids=str,
)
def test_large_networks_and_those_without_input_unroll_as_they_step(kind, shape, read):
    case = Case(kind, **shape)
    assert_same(case.made(read), case.made(read, loop=True), 1e-9)


@pytest.mark.parametrize("networks", [None, 9])
@EVERY_COMPILED
def test_single_precision_is_right_to_1e_5_of_the_largest(kind, networks):
    case = Case(kind, time=50, batch=5, units=25, networks=networks, dtype=torch.float32)
    for name, weights in case.tensors.items():
        if name.startswith(("cell.S", "cell.W", "cell.lower.W", "cell.lower.U", "cell.upper.W")):
            weights.div_(4)  # no chaos to blow errors up
    read = kind in WITH_READ_OUT
    ours = case.made(read)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    exact = case.changed(torch.Tensor.double, cell=copy.deepcopy(case.cell).double())
    assert_same(ours, exact.made(read, loop=True), 1e-5, of_largest=True)


@BOTH_TYPES
@pytest.mark.parametrize("f", [f for f in FUNCTIONS if f is not torch.sin], ids=lambda f: f.__name__)
def test_compiled_activation_is_right_everywhere(f, dtype):
    far = torch.logspace(-30, 38, 69)
    h = torch.cat([torch.linspace(-30, 30, 60001), far, -far, torch.tensor([torch.inf, -torch.inf, 0.0, torch.nan])])
    cell, h = aru(1, 1, alpha_s=1, alpha_r=1, f=f).to(dtype).requires_grad_(False), h.to(dtype)
    for p, value in ((cell.U, 1), (cell.W, 0), (cell.b, 0)):
        p.fill_(value)
    rate = unroll(cell, h[None, :, None])[0, :, 1]
    atol = 1.5e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(rate.double(), f(h.double()), rtol=0, atol=atol, equal_nan=True)
    if f is torch.tanh:
        assert bool((rate.nan_to_num(0).abs() <= 1).all())
        near = torch.linspace(0.01, 1, 1000, dtype=dtype)
        rates = cell.activity(unroll(cell, near[None, :, None]))[0, :, 0]
        torch.testing.assert_close(rates.double(), torch.tanh(near.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("kind", "read"),
    [(kind, read) for kind in COMPILED for read in ([False, True] if kind in WITH_READ_OUT else [False])],
)
def test_gradients_pass_gradcheck(kind, read):
    case = Case(kind, time=3, batch=2, units=3)

    def outputs(*values):
        return case.outputs(dict(zip(case.tensors, values, strict=True)), read)

    assert torch.autograd.gradcheck(outputs, [tensor.requires_grad_() for tensor in case.tensors.values()])


@EVERY_COMPILED
def test_unroll_is_compiled_and_refuses_a_second_derivative(kind):
    case = Case(kind).changed(torch.Tensor.requires_grad_)
    for read in (False, True):
        loss = case.outputs(read=read).square().sum()
        (first,) = torch.autograd.grad(loss, case.tensors["state"], create_graph=True)
        with pytest.raises(RuntimeError, match="can be differentiated once only; step the cell in a loop instead"):
            first.sum().backward()


@EVERY_KIND
def test_unroll_steps_what_is_not_compiled(kind):
    for dtype in (torch.bfloat16, F64) if kind not in COMPILED else (torch.bfloat16,):
        case = Case(kind, dtype=dtype)
        states = case.outputs()
        assert states.dtype == dtype
        assert torch.equal(states, case.outputs(loop=True))


def test_engine_declines_what_it_has_not_compiled():
    x, h, weights = normal(5, 3, 2), normal(3, 4), (normal(4, 2), normal(4, 4), normal(4), torch.ones(4).double())
    read_out, alphas = (normal(2, 4), normal(2)), (torch.ones(4).double(),)
    assert compiled(x, h, "leaky", *weights) is not None
    assert compiled(x, h, "layers", (), *weights, read_out=read_out) is not None
    relus = [compiled(x, torch.cat([h, h], -1), "aru", f, *weights, *alphas) for f in (torch.relu, nn.functional.relu)]
    assert torch.equal(*relus)
    for declined in (
        compiled(x, h, "of no family", *weights),
        compiled(x.to("meta"), h, "leaky", *weights),
        compiled(x, torch.cat([h, h], -1), "aru", torch.sin, *weights, *alphas),
        compiled(x, h, "layers", (2, 2), *weights, read_out=read_out),
        *(compiled(x, h, family, *weights, read_out=read_out) for family in ("leaky", "rnn", "gated")),
    ):
        assert declined is None


@pytest.mark.parametrize("networks", [1, 2, 3, 7, 8, 19])
@EVERY_SORT
def test_stack_of_any_size_equals_single_networks(kind, networks):
    for dtype, tolerance in ((F64, 1e-12), (torch.float32, 1e-4)):
        case, read = Case(kind, units=9, networks=networks, dtype=dtype), kind in WITH_READ_OUT
        y = case.outputs(read=read)
        for n in range(networks):
            alone = case.changed(lambda t, n=n: t[n].clone(), networks=None).outputs(read=read)
            torch.testing.assert_close(y[n], alone, rtol=tolerance, atol=tolerance)
            assert read or torch.equal(y[n], alone)


@pytest.mark.parametrize("shared", [("x",), ("V", "c"), ("state", "weights")], ids=str)
@EVERY_SORT
def test_what_a_stack_shares_counts_for_every_network(kind, shared):
    case = Case(kind, networks=9)
    dims = {name: 0 for name in case.tensors}
    for name in case.tensors:
        if name in shared or ("weights" in shared and name.startswith("cell.") and "alpha" not in name):
            dims[name], case.tensors[name] = None, case.tensors[name][0]
    assert_same(case.made(read=True, dims=dims), case.made(read=True, loop=True, dims=dims), 1e-10)


@EVERY_SORT
def test_vmap_over_grad_and_vmap_of_vmap_equal_single_networks(kind):
    case = Case(kind, networks=6)
    alone = case.changed(lambda t: t[5].clone(), networks=None)

    def loss(tensors, loop=False):
        return alone.outputs(tensors, read=True, loop=loop).square().mean()

    grads = torch.vmap(torch.func.grad(loss))(case.tensors)
    twice = torch.vmap(torch.vmap(torch.func.grad(loss)))(case.changed(lambda t: t.unflatten(0, (2, 3))).tensors)
    assert_equal({name: grad.flatten(0, 1) for name, grad in twice.items()}, grads)
    expected = torch.func.grad(partial(loss, loop=True))(alone.tensors)
    assert_same({k: grad[5] for k, grad in grads.items()}, expected, 1e-10)


@BOTH_TYPES
@EVERY_SORT
def test_threads_do_not_change_the_bits(kind, dtype):
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            made += [Case(kind, units=8, networks=19, dtype=dtype).made(kind in WITH_READ_OUT)]
    finally:
        torch.set_num_threads(before)
    for several in made[1:]:
        assert_equal(several, made[0])


@BOTH_TYPES
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@EVERY_SORT
def test_what_is_not_finite_stays_in_its_network_and_shows_there(kind, wrong, dtype):
    good, others = Case(kind, networks=9, dtype=dtype).made(read=True), [n for n in range(9) if n != 5]
    for name in good.keys() - {"outputs", "cell.start"}:
        case = Case(kind, networks=9, dtype=dtype)
        case.tensors[name][5].view(-1)[0] = wrong
        bad = case.made(read=True)
        assert_equal(bad, good, others)
        ours = {name: tensor[5] for name, tensor in bad.items()}
        loop = case.changed(lambda t: t[5].clone(), networks=None).made(read=True, loop=True)
        shows = [not all(torch.isfinite(t).all() for t in made.values()) for made in (ours, loop)]
        assert shows[0] >= shows[1], name  # training looks at these


@BOTH_TYPES
@pytest.mark.parametrize("networks", [None, 9])
@EVERY_COMPILED
def test_nan_reaches_all_units_that_receive_it_and_no_other(kind, networks, dtype):
    for name in Case(kind).tensors if kind in ("gated", "gated shared", "leaky") else ["state"]:
        case = Case(kind, batch=5, units=9, networks=networks, dtype=dtype)
        case.tensors[name].view(-1)[0] = torch.nan
        ours, loops = (case.outputs(read=True, loop=loop).isnan() for loop in (False, True))
        assert bool(loops.any())
        assert torch.equal(ours, loops)


@pytest.mark.parametrize("networks", [None, 9])
@EVERY_SORT
def test_tensors_that_are_not_contiguous_are_taken_and_left_as_they_were(kind, networks):
    straight, crooked = (Case(kind, networks=networks) for _ in range(2))
    for name, tensor in crooked.tensors.items():
        doubled = torch.stack([tensor, -tensor], -1)
        crooked.tensors[name] = doubled[..., 0]
        assert tensor.numel() < 2 or not crooked.tensors[name].is_contiguous()
    for read in (False, True):
        ours, theirs = (case.outputs(read=read) for case in (crooked, straight))
        assert torch.equal(ours, theirs)
    y = straight.outputs({name: tensor.clone().requires_grad_() for name, tensor in crooked.tensors.items()})
    y.movedim(-1, 0).contiguous().movedim(0, -1).square().sum().backward()  # a gradient that is not contiguous
    assert_equal(crooked.tensors, Case(kind, networks=networks).tensors)


def resting(kind, *alphas, **sizes):
    """A case in which the second unit has these leak rates 0."""
    case = Case(kind, **sizes)
    for name in alphas:
        case.tensors[name := f"cell.parametrizations.{name}.original"][..., 1] = 0
    return case, name


@BOTH_TYPES
def test_unit_with_alpha_zero_rests_exactly(dtype):
    case, _ = resting("ctrnn", "alpha", dtype=dtype)
    y = case.outputs()
    assert torch.equal(y[..., 1], case.tensors["state"][:, 1].expand(len(y), -1))
    assert not torch.equal(y[-1, :, 0], case.tensors["state"][:, 0])
    for networks in (None, 8):
        case, _ = resting("aru per unit", "alpha_s", "alpha_r", dtype=dtype, networks=networks)
        case.tensors["c"].zero_()
        case.tensors["V"][:] = torch.eye(4)[:2]
        y, r = case.outputs(read=True), case.tensors["state"][..., 5]
        assert torch.equal(y[..., 1], r.unsqueeze(-2).expand_as(y[..., 1]))


def test_alpha_zero_has_no_gradient_in_states_and_its_true_one_in_the_outputs_of_eight_networks():
    for kind, which in (("ctrnn", "alpha"), ("aru per unit", "alpha_s")):
        case, name = resting(kind, which)
        ours, loops = case.made(), case.made(loop=True)
        assert ours[name][1] == 0
        assert loops[name][1].abs() > 1e-3
        loops[name][1] = 0  # the one documented departure
        assert_same(ours, loops, 1e-10)
    case, name = resting("aru per unit", "alpha_s", networks=8)
    loops = case.made(read=True, loop=True)
    assert bool((loops[name][:, 1].abs() > 1e-3).all())
    assert_same(case.made(read=True), loops, 1e-10)


def raw_of(cell):
    return {name: p for name, p in cell.named_parameters() if "alpha" in name}


@DIALS
@pytest.mark.parametrize("kind", WITH_DIALS)
def test_alphas_move_only_when_trainable_and_have_their_gradient(kind, dial):
    made = []
    for trainable in (True, False):
        cell = KINDS[kind](units=6, dial=dial).double()
        raw, before = raw_of(cell), copy.deepcopy(cell.state_dict())
        for p in raw.values():
            p.requires_grad_(trainable)
        optimizer = torch.optim.SGD([p for p in cell.parameters() if p.requires_grad], lr=0.1)
        unroll(cell, normal(5, 3, 2)).square().sum().backward()
        optimizer.step()
        moved = {name for name, p in cell.named_parameters() if not torch.equal(p, before[name])}
        assert moved >= before.keys() - raw.keys() if trainable else moved == before.keys() - raw.keys()
        assert all(bool((p != before[name]).all()) == trainable for name, p in raw.items())
        made.append([p.grad for p in cell.parameters()])
    cell, x = KINDS[kind](units=6, dial=dial).double(), normal(5, 3, 2)
    stepped(cell, x, cell.initial_state(x[0])).square().sum().backward()
    for ours, expected in zip(made[0], [p.grad for p in cell.parameters()], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@DIALS
def test_cells_read_the_alphas_they_were_given_and_take_others(dial):
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)
    for cell in (ctrnn(dial=dial, alpha=0.25), leaky(dial=dial, alpha=0.25)):
        close(cell.alpha.detach(), torch.full_like(cell.alpha, 0.25))
    close(1 / mtrnn(dial=dial, tau=(100, 8, 4)).alpha.detach(), torch.tensor([100.0, 8, 4]))
    cell = aru(dial=dial, alpha_s=0.25, alpha_r=0.75)
    close((cell.alpha_s.item(), cell.alpha_r.item()), (0.25, 0.75))
    cell.alpha_s = 0.5  # their dials are two
    close((cell.alpha_s.item(), cell.alpha_r.item()), (0.5, 0.75))


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_tau_below_its_floor_of_any_height_has_no_gradient(update):
    cell = mtrnn(layers=2, update=update, tau=(1.5, 4.0)).double()
    (raw,) = raw_of(cell).values()
    with torch.no_grad():
        raw[0] = 0.7
    unroll(cell, normal(5, 3, 2)).square().sum().backward()
    assert raw.grad[0] == 0
    assert raw.grad[1] != 0
    assert mtrnn(tau=(8, 4, 16), dial=partial(Clamped, 4)).alpha.tolist() == [1 / 8, 1 / 4, 1 / 16]


@EVERY_KIND
def test_cell_starts_at_zero_or_where_it_has_learned_to_unless_told_otherwise(kind):
    cell, x = KINDS[kind]().double(), normal(7, 4, 2)
    assert not bool(cell.initial_state(x[0]).any())
    learned = [p for name, p in cell.named_parameters() if name.endswith("start")]
    with torch.no_grad():
        for k, p in enumerate(learned):
            p.copy_(normal(*p.shape, seed=k))
    first = cell.initial_state(x[0])
    assert bool(first.all()) == bool(learned)
    assert torch.equal(unroll(cell, x), unroll(cell, x, first))
    assert not torch.allclose(unroll(cell, x), unroll(cell, x, normal(*first.shape, seed=3)))
    unroll(cell, x).sum().backward()
    assert all(bool((p.grad != 0).all()) for p in learned)


def test_weights_repeat_with_their_seed_whatever_the_rest_and_keep_their_bounds():
    changes = {ctrnn: dict(alpha=0.9), mtrnn: dict(tau=(9, 9, 9), update="sequential"), aru: dict(per_unit=True)}
    for make, change in (changes | {gated: {}, gru: {}}).items():
        theirs, others = make(seed=3, **change).state_dict(), make(seed=4).state_dict()
        for name, p in make(seed=3).named_parameters():
            if "alpha" not in name and name != "start":
                assert torch.equal(p, theirs[name])
                assert not torch.equal(p, others[name])
    assert all(torch.equal(getattr(make(), name), getattr(gated(), name)) for make in (rnn, leaky) for name in "UWb")
    cell = mtrnn(seed=3)
    assert [tuple(p.shape) for p in cell.H] == [(2, 2), (2, 2)]  # the top has nothing above
    for p in (*cell.L, *cell.S, *cell.H, *cell.b):
        assert float(p.detach().abs().max()) <= p.shape[-1] ** -0.5
    assert abs(ctrnn(units=400).W.detach().std() * 20 - 1) < 0.01
    narrow, wide = aru(2, 97), aru(2, 97, scale=4)
    for name in ("U", "W", "b"):
        p, q = getattr(narrow, name).detach(), getattr(wide, name).detach()
        torch.testing.assert_close(4 * p, q)
        assert 0.09 < float(p.abs().max()) <= 0.1  # 1 / sqrt(2 + 97 + 1)
    for p in (gated(units=400).W, gated(units=400).W_g, gru(units=400).gru.weight_hh):
        assert 0.045 < p.detach().abs().max() <= 0.05
        assert abs(p.detach().std() / (0.05 / 3**0.5) - 1) < 0.01


HOLDING = dict(ctrnn=lambda: ctrnn(dial=partial(LogTau, 0.01), alpha=1e-12), mtrnn=lambda: mtrnn(tau=(1e12,) * 3))
HOLDING |= dict(aru=lambda: aru(alpha_s=1e-12, alpha_r=1e-12), leaky=lambda: leaky(alpha=1e-12), gated=gated)
HOLDING["gated shared"] = partial(gated, shared=True)


@pytest.mark.parametrize("kind", HOLDING)
def test_cell_holds_its_state_when_its_leak_is_all_but_closed(kind):
    cell, x = HOLDING[kind]().double(), normal(100, 3, 2)
    if kind.startswith("gated"):
        nn.init.constant_(cell.b_g, -30)
    state = normal(*cell.initial_state(x[0]).shape, seed=1)
    for states in (unroll(cell, x, state), stepped(cell, x, state)):
        torch.testing.assert_close(states[-1], state, rtol=0, atol=1e-9)


def torchs(make, cell, order="n"):
    """A layer of torch's with a cell's weights: candidate n, gate g, its opposite k, and o, a gate always open."""
    theirs = make(2, 4).double()
    with torch.no_grad():
        for name, w in (("weight_ih_l0", "U"), ("weight_hh_l0", "W"), ("bias_ih_l0", "b")):
            own, gate = getattr(cell, w), getattr(cell, f"{w}_g", torch.zeros(0))
            blocks = dict(n=own, g=gate, k=-gate, o=torch.full_like(own, 1000.0 * (w == "b")))
            getattr(theirs, name).copy_(torch.cat([blocks[letter] for letter in order]))
        theirs.bias_hh_l0.zero_()
    return theirs


def test_plain_units_and_adaptive_ones_with_both_alphas_one_are_the_rnn_of_torch():
    x, h = normal(7, 3, 2), normal(3, 4, seed=1)
    for cell, start in ((rnn(), h), (aru(alpha_s=1, alpha_r=1, f=torch.tanh), torch.cat([0 * h, h], -1))):
        theirs, ours = torchs(nn.RNN, cell.double()), unroll(cell, x, start)[..., -4:]
        torch.testing.assert_close(ours, theirs(x, h[None])[0], rtol=1e-12, atol=1e-12)
        ours.square().sum().backward()
        theirs(x, h[None])[0].square().sum().backward()
        for a, b in ((cell.U, theirs.weight_ih_l0), (cell.W, theirs.weight_hh_l0), (cell.b, theirs.bias_ih_l0)):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def test_adaptive_units_with_alpha_r_one_are_leaky_ones_whose_state_is_the_current():
    cell, x = aru(alpha_s=0.25, alpha_r=1, f=torch.tanh).double(), normal(7, 4, 2)
    layer = mtrnn(units=4, layers=1, tau=(4.0,)).double()
    with torch.no_grad():
        for mine, its in ((cell.U, layer.L[0]), (cell.W, layer.S[0]), (cell.b, layer.b[0])):
            its.copy_(mine)
    h = normal(4, 4, seed=1)
    states = unroll(cell, x, torch.cat([h, torch.tanh(h)], -1))
    torch.testing.assert_close(states[..., :4], unroll(layer, x, h), rtol=1e-12, atol=1e-12)


def test_gated_cell_is_the_gru_of_torch_with_its_reset_gate_open():
    cell, x, h = gated().double(), normal(6, 3, 2), normal(3, 4, seed=1)
    torch.testing.assert_close(stepped(cell, x, h), torchs(nn.GRU, cell, "okn")(x, h[None])[0])  # z is what is kept


def test_lstm_of_torch_with_opposite_gates_and_an_open_one_is_tied():
    cell, x, u = gated().double(), normal(6, 3, 2), normal(3, 4, seed=1)
    found, tied = torchs(nn.LSTM, cell, "gkno")(x, (torch.tanh(u)[None], u[None]))[0], []
    for x_t in x:
        h = torch.tanh(u)
        g = cell.gate(x_t, h)
        u = (1 - g) * u + g * torch.tanh(x_t @ cell.U.T + h @ cell.W.T + cell.b)
        tied.append(torch.tanh(u))
    torch.testing.assert_close(found, torch.stack(tied))


def test_open_gates_and_leak_rates_of_one_replace_the_whole_state():
    x, h, plain = normal(6, 3, 2), normal(3, 4, seed=1), rnn().double()
    opened = gated().double()
    nn.init.constant_(opened.b_g, 50)
    for cell in (opened, leaky(alpha=1.0).double()):
        for make in (stepped, unroll):
            torch.testing.assert_close(make(cell, x, h), make(plain, x, h), rtol=1e-12, atol=1e-12)
    cell = ctrnn(alpha=1.0, dial=Clamped).double()
    nn.init.zeros_(cell.W)
    torch.testing.assert_close(unroll(cell, x, 9 * h), x @ cell.U.T)


def test_leaky_cell_is_gated_by_gates_without_input():
    leaks, gates = leaky(dial=Gate, per_unit=True).double(), gated().double()
    with torch.no_grad():
        gates.U_g.zero_()
        gates.W_g.zero_()
        gates.b_g.copy_(torch.logit(leaks.alpha))
    made = []
    for cell, raw in ((leaks, *raw_of(leaks).values()), (gates, gates.b_g)):
        states = unroll(cell, normal(6, 3, 2), normal(3, 4, seed=1))
        made.append((states, torch.autograd.grad(states.square().sum(), [cell.U, cell.W, cell.b, raw])))
    torch.testing.assert_close(*made, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_gate_is_the_part_that_is_replaced(shared):
    cell, x, h = gated(shared=shared).double(), normal(6, 3, 2), normal(3, 4, seed=1)
    states = unroll(cell, x, h)
    before = torch.cat([h[None], states[:-1]])
    g, candidate = cell.gate(x, before), torch.tanh(x @ cell.U.T + before @ cell.W.T + cell.b)
    assert g.shape == (6, 3, 1 if shared else 4)
    torch.testing.assert_close(states - before, g * (candidate - before), rtol=1e-10, atol=1e-12)


def test_gated_units_that_close_at_blanks_do_not_notice_how_many_there_are():
    cell = gated(features=3).double()
    nn.init.constant_(cell.U_g[:, 2], -1000.0)  # the blank's feature
    letters = torch.eye(3, dtype=F64)[torch.randint(2, (5,), generator=seeded(1))]
    when = torch.cumsum(torch.randint(1, 6, (5,), generator=seeded(2)), 0)
    padded = torch.eye(3, dtype=F64)[2].repeat(int(when[-1]) + 1, 1)
    padded[when] = letters
    for make in (stepped, unroll):
        h = torch.zeros(1, 4, dtype=F64)
        assert torch.equal(make(cell, padded[:, None], h)[when], make(cell, letters[:, None], h))


def test_leaky_units_follow_stretched_time_with_a_smaller_leak_and_plain_ones_do_not():
    cell, plain, x, h = leaky().double(), rnn().double(), normal(6, 3, 2), normal(3, 4, seed=1)

    def end(stretch):
        cell.alpha = 0.5 / stretch
        return unroll(cell, x.repeat_interleave(stretch, 0), h)[-1].detach()

    errors = [(end(stretch) - end(2 * stretch)).abs().max() for stretch in (8, 16, 32)]
    assert 1.8 < errors[0] / errors[1] < 2.2  # forward Euler: half the step, half the error
    assert 1.8 < errors[1] / errors[2] < 2.2
    assert (unroll(plain, x.repeat_interleave(8, 0), h)[-1] - unroll(plain, x, h)[-1]).abs().max() > 10 * errors[0]


def layered(features, *sizes):
    return of(cells.MTRNNCell, features, sizes, [2.0] * len(sizes), Clamped())


REFUSED = [
    (lambda: ctrnn(units=0), "sizes must be input >= 0 and hidden >= 1, got input_size=2, hidden_size=0"),
    (lambda: ctrnn(alpha=1.5, dial=Gate), r"alpha of a Gate dial must lie in \(0, 1\), got 1.5"),
    (lambda: layered(0, 3, 2), r"got input_size=0, layers=\(3, 2\)"),
    (lambda: layered(2), r"every layer must be 1 or more, .* layers=\(\)"),
    (lambda: layered(2, 3, 0), r"input_size and every .*layers=\(3, 0\)"),
    (lambda: mtrnn(tau=(2, 4)), "tau must have one number a layer, 3, got 2"),
    (lambda: mtrnn(update="random"), "update must be simultaneous or sequential, got 'random'"),
    (lambda: mtrnn(tau=(2, 4, 0.5)), r"alpha of a Clamped dial must lie in \(0, 1\], got 2"),
    (lambda: aru(features=0), "sizes must be 1 or more, got input_size=0, hidden_size=4"),
    (lambda: aru(alpha_s=torch.ones(2)), r"alpha_s must be a number or one for each of 4 units, got \(2,\)"),
    (lambda: aru(alpha_r=torch.ones(1, 4)), r"alpha_r must be a number or one for each of 4 units, got \(1, 4\)"),
    (lambda: aru(alpha_r=torch.tensor([0.5, -1, 0.5, 1])), r"alpha of a Direct dial must lie in \(0, 2\), got -1"),
    (lambda: ARUStack(aru(2), aru(4, 2)), "lower must receive the input and 2 upper units, got 2 features"),
    (lambda: ARUStack(aru(4), aru(2, 2)), "upper must receive 4 lower units, got 2 features"),
    (lambda: ARUStack(aru(4), aru(4, 2, f=torch.tanh)), "upper must have the .* of lower, .*sigmoid.*, got .*tanh"),
    (lambda: rnn(features=0), "sizes must be 1 or more, got input_size=0, hidden_size=4"),
    (lambda: leaky(alpha=torch.ones(2)), r"alpha must be a number or one for each of 4 units, got \(2,\)"),
    (lambda: unroll(ctrnn(), torch.zeros(3, 2)), r"x must have shape \(time >= 1, batch, input\), got \(3, 2\)"),
    (lambda: unroll(ctrnn(), torch.zeros(0, 1, 2)), r"x must have shape .*, got \(0, 1, 2\)"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_used_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [*FEW, "mtrnn simultaneous, 1"])
def test_tensors_that_do_not_fit_are_refused_by_name(kind):
    def refused(message, read=False, **change):
        case = Case(kind)
        with pytest.raises(ValueError, match=message):
            case.outputs(case.tensors | change, read)

    state, x = Case(kind).tensors["state"], Case(kind).tensors["x"]
    n = len(state[0])
    which, units = ("I", n // 2) if kind.startswith("aru") else ("h", n)
    time = 13 if kind.startswith("mtrnn seq") else 6  # half steps
    refused(rf"^{which} must have shape \(3, {units}\) for tuple\(x.shape\)=\({time}, 3, 2\), got ", state=state[:, 2:])
    refused(rf"^{which} must have shape \(3, {units}\) for .*, got \(2, {units}\)", state=state[:2])
    refused(rf"^U must have shape \({units}, 1\) for .*, got \({units}, 2\)", x=x[..., :1])
    refused("^U must have the type of x, torch.float32, got torch.float64", x=x.float())
    refused(rf"^{which} must have the type of x, torch.float64, got torch.float32", state=state.float())
    for name, tensor in Case(kind).tensors.items():
        if name.startswith("cell.") and name.count(".") == 1 and name != "cell.start":
            letter = name.removeprefix("cell.")
            refused(f"^{letter} must have the type of x, torch.float64, got torch.float32", **{name: tensor.float()})
    if kind in WITH_READ_OUT:
        fitting = rf"V and c must be \(features, {units}\) and \(features,\), got "
        refused(fitting + rf"\(2, {units - 1}\), \(2,\)", read=True, V=normal(2, units - 1))
        refused(fitting + rf"\(2, {units}\), \(3,\)", read=True, c=normal(3))
        refused(fitting + rf"\(2, {units}\), \(1, 2\)", read=True, c=normal(1, 2))


def test_weights_that_do_not_fit_are_refused_by_name():
    x, h, U, W, b = normal(6, 3, 2), normal(3, 4), normal(4, 2), normal(4, 4), normal(4)
    for wrong, message in (
        ((normal(1, 2), W, b), r"U_g must have shape \(4, 2\) for .*, got \(1, 2\)"),
        ((U, normal(4, 3), b), r"W_g must have shape \(4, 4\) for .*, got \(4, 3\)"),
        ((U, W, normal(2)), r"b_g must have shape \(4,\) or \(1,\) for .*, got \(2,\)"),
        ((U, W, normal(4)[0]), r"b_g must have shape \(4,\) or \(1,\) for .*, got \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled(x, h, "gated", U, W, b, *wrong)
    for weights, message in (
        ((U, W[:, :3], b, b), r"W must have shape \(4, 4\) for .*, got \(4, 3\)"),
        ((U, W, b[:3], b), r"b must have shape \(4,\) for .*, got \(3,\)"),
        ((U, W, b, normal(5, 4)), r"alpha must have shape \(4,\) or \(6, 4\) for .*, got \(5, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled(x, h, "leaky", *weights)
