"""Every cell of the book and what holds for it: its paper's equation, its limits, and that compiled it is the same."""

import copy
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ts_helpers import cells, engine
from ts_helpers.cells import ARUStack, identity, unroll
from ts_helpers.engine import LARGEST, kernels
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
WITH_DIALS = [kind for kind in KINDS if not kind.startswith(("rnn", "gated", "gru"))]
FEW = ["ctrnn", "mtrnn simultaneous, 3", "mtrnn sequential, 3", "aru sigmoid", "leaky", "gated"]  # one of each sort

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_COMPILED = pytest.mark.parametrize("kind", COMPILED)
EVERY_SORT = pytest.mark.parametrize("kind", FEW)
READ_OR_NOT = pytest.mark.parametrize("read", [True, False], ids=["outputs", "states"])
BOTH_TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
DIALS = pytest.mark.parametrize("dial", [Direct, LogTau, Gate, Clamped, partial(Clamped, 0)])


def stepped(cell, x, state):
    states = []
    for x_t in x:
        state = cell(x_t, state)
        states.append(state)
    return torch.stack(states)


class Unrolled(nn.Module):
    """A cell unrolled, or for comparison stepped in a loop; read out or not."""

    def __init__(self, cell, loop=False, read=True):
        super().__init__()
        self.cell, self.loop, self.read = cell, loop, read

    def forward(self, x, state, V, c):
        if not self.loop:
            return unroll(self.cell, x, state, read_out=(V, c) if self.read else None)
        states = stepped(self.cell, x, state)
        if not self.read:
            return states
        return nn.functional.linear(self.cell.activity(states) if hasattr(self.cell, "activity") else states, V, c)


class Case:
    """A cell, and drawn anew its input, state, read-out and weights: ``tensors`` by name, networks first."""

    def __init__(self, kind, networks=9, time=6, batch=3, features=2, units=4, outputs=2, dtype=F64):
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

    def outputs(self, tensors=None, loop=False, read=True, dims=0):
        """Outputs or states, compiled or of torch's own operations in a loop; several networks at once."""
        tensors, module = tensors or self.tensors, Unrolled(self.cell, loop, read)

        def one(tensors):
            given = [tensors[name] for name in ("x", "state", "V", "c")]
            return functional_call(module, {k: v for k, v in tensors.items() if k.startswith("cell.")}, tuple(given))

        return torch.vmap(one, (dims,))(tensors) if self.networks else one(tensors)

    def made(self, loop=False, read=True, dims=0):
        """The outputs or states, and the gradient of a random sum of them with respect to every tensor, by name."""
        tensors = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.tensors.items()}
        y = self.outputs(tensors, loop, read, dims)
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


def aru_step(cell, x, I, r):
    """Eqs. 12 and 13 of Quax et al. (2020); b is the weight of the constant input 1."""
    U, W, b = array(cell.U), array(cell.W), array(cell.b)
    alpha_s, alpha_r = (array(a.expand_as(cell.b)) for a in (cell.alpha_s, cell.alpha_r))
    I_new, r_new = np.empty_like(I), np.empty_like(r)
    for n in range(len(b)):
        I_new[n] = (1 - alpha_s[n]) * I[n] + alpha_s[n] * (total(W[n], r) + total(U[n], x) + b[n])
        r_new[n] = (1 - alpha_r[n]) * r[n] + alpha_r[n] * FUNCTIONS[cell.f](I_new[n])
    return I_new, r_new


def numpy_aru(cell, x, state):
    I, r = np.split(state, 2)
    for x_t in x:
        I, r = aru_step(cell, x_t, I, r)
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
    case = Case(kind, None, units=6)
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


@pytest.fixture
def told(monkeypatch):
    """The shapes that the forward kernel is told; only the two types of numbers are ever compiled."""
    forward, shapes = kernels.forward, []

    def spy(f, parts, shape, *arrays):
        shapes.append(shape)
        forward(f, parts, shape, *arrays)

    for dtype in engine.TYPES:
        engine.ready(dtype)
    monkeypatch.setattr(kernels, "forward", spy)
    yield shapes
    assert len(forward.signatures) == len(kernels.backward.signatures) == 2


STACKS = [1, 2, 3, 7, 8, 9, 19, 100]


@READ_OR_NOT
@pytest.mark.parametrize("networks", STACKS)
@EVERY_COMPILED
def test_stack_is_compiled_and_equals_the_loop_with_its_gradients(kind, networks, read, told):
    sizes = np.random.default_rng([COMPILED.index(kind), networks]).integers(1, 25, 6)
    sizes[STACKS.index(networks) % 6] = 1  # time, batch, features, units, outputs; once none of them
    case = Case(kind, networks, *sizes[:5].tolist())
    assert_same(case.made(read=read), case.made(loop=True, read=read), 1e-10)
    assert len(told) == 1


@pytest.mark.parametrize("sizes", [dict(units=LARGEST), dict(features=0)], ids=str)
def test_largest_networks_and_those_without_input_are_compiled(sizes, told):
    for case in (Case("ctrnn", **sizes), Case("aru relu")):
        case.cell.f = nn.functional.relu  # is torch.relu by another name
        assert_same(case.made(), case.made(loop=True), 1e-10)
    assert len(told) == 2


@READ_OR_NOT
@EVERY_COMPILED
def test_steps_that_go_back_by_segments_have_the_same_gradients(kind, read, told, monkeypatch):
    case = Case(kind, time=7)
    loops, _ = case.made(loop=True, read=read), case.made(read=read)
    _, batch, features, units, _, rows, whole = told[-1]
    columns = features + units + 1
    assert whole == 7
    for span, near in ((1, 1), (2, 1), (3, 1), (3, 2), (4, 3), (6, 5), (7, 2), (7, 4)):
        monkeypatch.setattr(engine, "HISTORY", span * (3 * columns + rows) * batch * 64)
        monkeypatch.setattr(engine, "NEAR", near * (columns + rows) * batch * 64)
        assert_same(case.made(read=read), loops, 1e-10)
        assert told[-1][-1] == span


@READ_OR_NOT
@EVERY_COMPILED
def test_single_precision_is_right_to_1e_5_of_the_largest(kind, read, told):
    case = Case(kind, time=50, batch=5, units=25, dtype=torch.float32)
    for name, weights in case.tensors.items():
        if re.match(r"cell\.(W|S|H|L\.[1-9]|lower\.[WU]|upper\.W)", name):
            weights.div_(4)  # no chaos to blow errors up
    ours = case.made(read=read)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert len(told) == 1
    exact = case.changed(torch.Tensor.double, cell=copy.deepcopy(case.cell).double())
    assert_same(ours, exact.made(loop=True, read=read), 1e-5, of_largest=True)


@BOTH_TYPES
@pytest.mark.parametrize("f", [f for f in FUNCTIONS if f is not torch.sin], ids=lambda f: f.__name__)
def test_compiled_activation_is_right_everywhere(f, dtype, told):
    far = torch.logspace(-30, 38, 69)
    h = torch.cat([torch.linspace(-30, 30, 60001), far, -far, torch.tensor([torch.inf, -torch.inf, 0.0, torch.nan])])
    cell, h = aru(1, 1, alpha_s=1, alpha_r=1, f=f).to(dtype), h.to(dtype)
    x, one = torch.zeros(1, 1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)

    def rate(b):  # of a network whose drive this is
        fixed = {"cell.b": b, "cell.W": 0 * one, "cell.U": one}
        return functional_call(Unrolled(cell), fixed, (x, cell.initial_state(x[0]), one, 0 * one[0])).flatten()

    rates = torch.vmap(rate)(h[:, None])[:, 0].detach()
    atol = 1.5e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(rates.double(), f(h.double()), rtol=0, atol=atol, equal_nan=True)
    assert f is not torch.tanh or bool((rates.nan_to_num(0).abs() <= 1).all())
    assert told == [(1, 1, 1, 1, 1, 2, 1)]


@EVERY_COMPILED
def test_first_and_second_derivatives_of_a_stack_are_those_of_its_outputs(kind, told):
    case = Case(kind, 2, time=3, batch=2, features=1, units=2, outputs=1)

    def outputs(*values):
        return case.outputs(dict(zip(case.tensors, values, strict=True)))

    tensors = [tensor.requires_grad_() for tensor in case.tensors.values()]
    assert torch.autograd.gradcheck(outputs, tensors)
    assert torch.autograd.gradgradcheck(outputs, tensors)
    assert told


@READ_OR_NOT
@EVERY_SORT
def test_grad_under_vmap_and_vmap_of_vmap_and_twice_equal_the_loop(kind, read, told):
    case = Case(kind, 6)
    alone, x = case.changed(lambda t: t[0], networks=None), case.tensors.pop("x")

    def loss(weights, x, loop=False):
        return alone.outputs(weights | {"x": x}, loop, read).square().mean()

    def slope(weights, x, loop=False):
        return sum(grad.square().sum() for grad in torch.func.grad(loss)(weights, x, loop).values())

    for function in (loss, slope):
        grads = torch.vmap(torch.func.grad(function))(case.tensors, x)
        assert_same(grads, torch.vmap(torch.func.grad(partial(function, loop=True)))(case.tensors, x), 1e-10)
        split = case.changed(lambda t: t.unflatten(0, (2, 3))).tensors
        twice = torch.vmap(torch.vmap(torch.func.grad(function)))(split, x.unflatten(0, (2, 3)))
        assert_same({name: grad.flatten(0, 1) for name, grad in twice.items()}, grads, 1e-12)
    assert len(told) == 4


@pytest.mark.parametrize("shared", [("x",), ("V", "c"), ("state", "weights")], ids=str)
@EVERY_SORT
def test_what_a_stack_shares_counts_for_every_network(kind, shared, told):
    case, dims = Case(kind), {}
    for name, tensor in case.tensors.items():
        one = name in shared or ("weights" in shared and name.startswith("cell.") and "alpha" not in name)
        dims[name], case.tensors[name] = (None, tensor[0]) if one else (0, tensor)
    assert_same(case.made(dims=dims), case.made(loop=True, dims=dims), 1e-10)
    assert told


@EVERY_KIND
def test_lone_networks_and_what_is_not_compiled_take_the_loop(kind, monkeypatch):
    monkeypatch.setattr(engine, "ready", None)  # called before any kernel
    lone, half, large = Case(kind, None), Case(kind, dtype=torch.bfloat16), Case(kind, 2, time=2, units=LARGEST + 1)
    for case in (lone, half, large, *[Case(kind)] * (kind not in COMPILED)):
        for read in (True, False):
            assert torch.equal(case.outputs(read=read), case.outputs(read=read, loop=True))
    assert_same(lone.made(), lone.made(loop=True), 1e-12)
    grads = [torch.func.grad(lambda t, loop=loop: lone.outputs(t, loop).sum())(lone.tensors) for loop in (False, True)]
    assert_same(*grads, 1e-12)
    elsewhere = Case(kind).changed(lambda t: t.to("meta")).outputs()
    assert elsewhere.device.type == "meta"


def test_compiling_is_announced_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine.numba.config, "CACHE_DIR", str(tmp_path))
    for kernel in ("forward", "backward"):
        monkeypatch.setattr(kernels, kernel, SimpleNamespace(compile=lambda signature: None))
    for said in (r"compiling recurrences for torch.float32, once \.\.\. 0 s\n", ""):
        engine.ready.__wrapped__(torch.float32)
        assert re.fullmatch(said, capsys.readouterr().err)


@BOTH_TYPES
@READ_OR_NOT
@EVERY_SORT
def test_threads_do_not_change_the_bits(kind, read, dtype, told, monkeypatch):
    case, made = Case(kind, 19, units=8, dtype=dtype), []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        made.append(case.made(read=read))
        assert_equal(made[-1], made[0])
    assert len(told) == 1 + 2 + 3 + 3  # threads that three groups of eight have occupied


@BOTH_TYPES
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@EVERY_SORT
def test_what_is_not_finite_stays_in_its_network_and_shows_there(kind, wrong, dtype):
    good, others = Case(kind, dtype=dtype).made(), [n for n in range(9) if n != 5]
    for name in good.keys() - {"outputs", "cell.start"}:
        case = Case(kind, dtype=dtype)
        case.tensors[name][5].view(-1)[-1] = wrong  # of x: at the last step
        bad = case.made()
        if name == "x":
            kept = torch.ones(9, 6, dtype=torch.bool)
            kept[5, -1] = False
            outputs = [made.pop("outputs")[kept] for made in (bad, good.copy())]
            torch.testing.assert_close(*outputs)
        assert_equal(bad, {k: good[k] for k in bad}, others)
        ours = {name: tensor[5] for name, tensor in bad.items()}
        loop = case.changed(lambda t: t[5].clone(), networks=None).made(loop=True)
        shows = [not all(torch.isfinite(t).all() for t in made.values()) for made in (ours, loop)]
        assert shows[0] >= shows[1], name  # training looks at these


@BOTH_TYPES
@EVERY_COMPILED
def test_nan_reaches_all_outputs_that_receive_it_and_no_other(kind, dtype):
    for name in Case(kind).tensors:
        case = Case(kind, batch=5, units=9, dtype=dtype)
        case.tensors[name].view(-1)[len(case.tensors["x"][0].flatten()) // 2 if name == "x" else 0] = torch.nan
        ours, loops = (case.outputs(loop=loop).isnan() for loop in (False, True))
        assert bool(loops.any()) != name.endswith("start")
        assert torch.equal(ours, loops), name


@EVERY_SORT
def test_tensors_that_are_not_contiguous_are_taken_and_left_as_they_were(kind):
    straight, crooked = Case(kind), Case(kind)
    for name, tensor in crooked.tensors.items():
        crooked.tensors[name] = torch.stack([tensor, -tensor], -1)[..., 0]
        assert not crooked.tensors[name].is_contiguous()
    assert_equal(crooked.made(), straight.made())
    last = straight.changed(lambda t: t.movedim(0, -1)).outputs(dims=dict.fromkeys(straight.tensors, -1))
    assert torch.equal(last, straight.outputs())
    y = straight.outputs({name: tensor.clone().requires_grad_() for name, tensor in crooked.tensors.items()})
    y.movedim(-1, 0).contiguous().movedim(0, -1).square().sum().backward()  # a gradient that is not contiguous
    assert_equal(crooked.tensors, Case(kind).tensors)


@pytest.mark.parametrize(("kind", "alphas"), [("ctrnn", ["alpha"]), ("aru per unit", ["alpha_s", "alpha_r"])])
def test_unit_with_alpha_zero_rests_exactly_and_has_its_true_gradient(kind, alphas):
    case = Case(kind)
    for alpha in alphas:
        case.tensors[name := f"cell.parametrizations.{alpha}.original"][:, 1] = 0
    loops, states = case.made(loop=True), case.outputs(read=False)
    assert bool((loops[name][:, 1].abs() > 1e-3).all())
    assert_same(case.made(), loops, 1e-10)
    resting = states[..., [1, -3]]  # the second unit's state, or its I and r
    assert torch.equal(resting, case.tensors["state"][:, None, :, [1, -3]].expand_as(resting))
    assert not torch.equal(states[:, -1, :, 0], states[:, 0, :, 0])


def raw_of(cell):
    return {name: p for name, p in cell.named_parameters() if "alpha" in name}


@DIALS
@pytest.mark.parametrize("kind", WITH_DIALS)
def test_alphas_move_only_when_trainable(kind, dial):
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


def test_tau_below_its_floor_of_any_height_has_no_gradient():
    cell = mtrnn(layers=2, tau=(1.5, 4.0)).double()
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
    torch.testing.assert_close(unroll(cell, x, state)[-1], state, rtol=0, atol=1e-9)


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
        h, g = torch.tanh(u), cell.gate(x_t, torch.tanh(u))
        u = (1 - g) * u + g * torch.tanh(x_t @ cell.U.T + h @ cell.W.T + cell.b)
        tied.append(torch.tanh(u))
    torch.testing.assert_close(found, torch.stack(tied))


def test_open_gates_and_leak_rates_of_one_replace_the_whole_state():
    x, h, plain = normal(6, 3, 2), normal(3, 4, seed=1), rnn().double()
    opened = gated().double()
    nn.init.constant_(opened.b_g, 50)
    for cell in (opened, leaky(alpha=1.0).double()):
        torch.testing.assert_close(unroll(cell, x, h), unroll(plain, x, h), rtol=1e-12, atol=1e-12)
    cell = ctrnn(alpha=1.0, dial=Clamped).double()
    nn.init.zeros_(cell.W)
    torch.testing.assert_close(unroll(cell, x, 9 * h), x @ cell.U.T)


def test_leaky_cell_is_gated_by_gates_without_input():
    leaks, gates = leaky(dial=Gate, per_unit=True).double(), gated().double()
    with torch.no_grad():
        gates.U_g.zero_()
        gates.W_g.zero_()
        gates.b_g.copy_(torch.logit(leaks.alpha))
    made = [unroll(cell, normal(6, 3, 2), normal(3, 4, seed=1)) for cell in (leaks, gates)]
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
    h = torch.zeros(1, 4, dtype=F64)
    assert torch.equal(unroll(cell, padded[:, None], h)[when], unroll(cell, letters[:, None], h))


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


X = torch.ones(5, 3, 2)
REFUSED = [
    (lambda: ctrnn(units=0), "hidden_size must be 1 or more, got hidden_size=0"),
    (lambda: ctrnn(alpha=1.5, dial=Gate), r"alpha of a Gate dial must lie in \(0, 1\), got 1.5"),
    (lambda: layered(0, 3, 2), "input_size and layers must be 1 or more, got input_size=0, layers=3"),
    (lambda: layered(2), "layers must be 1 or more, got input_size=2, layers=0"),
    (lambda: layered(2, 3, 0), "layers must be 1 or more, got input_size=2, layers=0"),
    (lambda: mtrnn(tau=(2, 4)), r"tau must have one number a layer, 3, got shape \(2,\)"),
    (lambda: mtrnn(update="random"), "update must be one of simultaneous, sequential, got 'random'"),
    (lambda: mtrnn(tau=(2, 4, 0.5)), r"alpha of a Clamped dial must lie in \(0, 1\], got 2"),
    (lambda: aru(features=0), "input_size and hidden_size must be 1 or more, got input_size=0, hidden_size=4"),
    (lambda: aru(alpha_s=torch.ones(2)), r"alpha_s must be a number or one for each of 4 units, got \(2,\)"),
    (lambda: aru(alpha_r=torch.ones(1, 4)), r"alpha_r must be a number or one for each of 4 units, got \(1, 4\)"),
    (lambda: aru(alpha_r=torch.tensor([0.5, -1, 0.5, 1])), r"alpha of a Direct dial must lie in \(0, 2\), got -1"),
    (lambda: ARUStack(aru(2), aru(4, 2)), "lower must receive the input and 2 upper units, got 2 features"),
    (lambda: ARUStack(aru(4), aru(2, 2)), "upper must receive 4 lower units, got 2 features"),
    (lambda: ARUStack(aru(4), aru(4, 2, f=torch.tanh)), "upper must have the .* of lower, .*sigmoid.*, got .*tanh"),
    (lambda: rnn(features=0), "input_size and hidden_size must be 1 or more, got input_size=0, hidden_size=4"),
    (lambda: leaky(alpha=torch.ones(2)), r"alpha must be a number or one for each of 4 units, got \(2,\)"),
    (lambda: unroll(ctrnn(), torch.zeros(3, 2)), r"x must have shape \(time >= 1, batch, input\), got \(3, 2\)"),
    (lambda: unroll(ctrnn(), torch.zeros(0, 1, 2)), r"x must have shape .*, got \(0, 1, 2\)"),
    (lambda: unroll(None, X), "cell must be a module with an initial_state.*, got NoneType"),
    (lambda: unroll(rnn(), X.tolist()), r"x must be a Tensor, got \[\["),
    (lambda: unroll(rnn(), X.to("meta")), "x must .* be torch.float32 on cpu for these weights, got .*, meta"),
    (lambda: unroll(rnn(), X, state="0"), "state must be a Tensor, got '0'"),
    (lambda: unroll(aru(), X, state=torch.tensor(2)), r"state must have shape \(batch, state\), got \(\)"),
    (lambda: unroll(rnn(), X, read_out=(X,)), "read_out must be None or two Tensors, V and c, got tuple"),
    (lambda: rnn(features=True), "input_size must be a whole number, got True"),
    (lambda: rnn(units=2**31), r"input_size times hidden_size must be 2\^28 or less, got "),
    (lambda: cells.RNNCell(2, 4, generator=None), "generator must be a torch.Generator, got None"),
    (lambda: cells.GRU(2, 0, generator=torch.Generator()), "must be 1 or more, got input_size=2, hidden_size=0"),
    (lambda: leaky(alpha="0.5"), "alpha must be a number, or a tensor of them, got '0.5'"),
    (lambda: leaky(alpha=math.nan), r"alpha of a .* dial must lie in .*, got nan"),
    (lambda: aru(scale=math.inf), r"scale must be in \[0, 1e30\], got scale=inf"),
    (lambda: aru(f=None), "f must be a function, got None"),
    (lambda: ARUStack(aru(4), None), "upper must be an ARUCell, got None"),
    *(
        (lambda n=n: cells.Network(rnn(), 4, 2, read=n, generator=torch.Generator()), f"{message}, got .*{value}")
        for n, message, value in ((0, "read must be 1 or more", "read=0"), (5, "units must be 5 or more", "units=4"))
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_used_is_refused_by_name(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_step_that_cannot_be_taken_says_what_does_not_fit(kind):
    cell, x = KINDS[kind](), torch.ones(3, 2)
    state = cell.initial_state(x)
    rules = [rf"have shape \(batch, {n}\) and be torch.float32 on cpu, got " for n in (2, state.shape[1])]
    for name, rule, args in (
        ("x", rules[0] + r"\(3, 1\)", (x[:, :1], state)),
        ("x", rules[0] + r"\(3, 2\), torch.float64", (x.double(), state)),
        ("state", rules[1] + rf"\(3, {state.shape[1] + 1}\)", (x, torch.cat([state, state[:, :1]], 1))),
        ("state", rules[1] + rf"\(2, {state.shape[1]}\)", (x, state[:2])),
        ("state", "be a Tensor, got None", (x, None)),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{name} must {rule}"):
            cell(*args)


@pytest.mark.parametrize("networks", [None, 9])
@EVERY_SORT
def test_tensors_that_do_not_fit_are_refused_by_name(kind, networks):
    case = Case(kind, networks)
    x, state, V, c = (case.tensors[name] for name in ("x", "state", "V", "c"))
    units = V.shape[-1]
    for name, shape, *wrongs in (
        ("x", (6, 3, 2), x[..., :1], x.float()),
        ("state", (3, units), state[..., :2, :], state[..., 2:], state.float()),
        ("V", (2, units), V[..., 1:], V.float()),
        ("c", (2,), c[..., 1:], c[..., None], c.float()),
    ):
        message = re.escape(f"{name} must have shape {shape} and be torch.float64 on cpu for these weights, got (")
        for wrong in wrongs:
            for read in (True, False) if name in ("x", "state") else (True,):
                with pytest.raises(ValueError, match=rf"^{message}.*\), {wrong.dtype}, cpu$"):
                    case.outputs(case.tensors | {name: wrong}, read=read)
