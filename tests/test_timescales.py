import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ts_helpers.timescales import (
    Clamped,
    Dial,
    Direct,
    Gate,
    LogTau,
    chrono_init_,
    heavy_tailed,
    raw_name,
    set_dial,
    set_gate_bias_,
    unknown_range_init_,
)

INSIDE = torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64)
# alpha of a raw number, each as its paper writes it; an alpha that is refused, and the limits that are named
DIALS = {
    "clamped": (Clamped(), lambda tau: 1 / np.maximum(tau, 1), 1.5, r"Clamped dial must lie in \(0, 1\]"),
    "floor": (Clamped(2.5), lambda tau: 1 / np.maximum(tau, 2.5), 0.41, r"Clamped dial must lie in \(0, 0.4\]"),
    "no floor": (Clamped(0), lambda tau: 1 / tau, 0.0, r"Clamped dial must lie in \(0, inf\]"),
    "direct": (Direct(), lambda alpha: alpha, 2.0, r"Direct dial must lie in \(0, 2\)"),
    "log_tau": (LogTau(0.01), lambda T: 0.01 / np.exp(T), 0.0, r"LogTau dial must lie in \(0, 2\)"),
    "gate": (Gate(), lambda b: 1 / (1 + np.exp(-b)), 1.0, r"Gate dial must lie in \(0, 1\)"),
}
each_dial = pytest.mark.parametrize(("dial", "forward", "outside", "limits"), DIALS.values(), ids=DIALS)


class Leaky(nn.Module):
    def __init__(self, dial: Dial, shape: tuple[int, ...] = (4,)):
        super().__init__()
        self.alpha = nn.Parameter(torch.full(shape, 0.3, dtype=torch.float64))
        set_dial(self, "alpha", copy.deepcopy(dial))

    @property
    def raw(self):
        return self.parametrizations.alpha.original


@each_dial
def test_dial_maps_raw_number_as_its_paper_says(dial, forward, outside, limits):
    raw = np.linspace(0.2, 9, 45)
    np.testing.assert_allclose(dial(torch.tensor(raw)).numpy(), forward(raw), rtol=1e-12)
    assert torch.autograd.gradcheck(dial, torch.tensor([0.6, 1.6, 4.0], dtype=torch.float64, requires_grad=True))


@each_dial
def test_setting_alpha_sets_the_raw_number_that_gives_it(dial, forward, outside, limits):
    cell = Leaky(dial)
    assert [name for name, _ in cell.named_parameters()] == [raw_name("alpha")]
    assert [name for name, _ in nn.ModuleDict({"cell": cell}).named_parameters()] == [raw_name("cell.alpha")]
    torch.testing.assert_close(cell.alpha.detach(), torch.full((4,), 0.3, dtype=torch.float64))  # the value it had
    for alpha in (0.3, 0.001, INSIDE * 0.4):
        cell.alpha = alpha
        torch.testing.assert_close(cell.alpha.detach(), torch.as_tensor(alpha, dtype=torch.float64).expand(4))
        np.testing.assert_allclose(forward(cell.raw.detach().numpy()), np.broadcast_to(alpha, 4), rtol=1e-12)


@each_dial
def test_alpha_outside_the_dial_is_refused_by_value(dial, forward, outside, limits):
    cell = Leaky(dial)
    for alpha, got in ((outside, f"{outside:g}"), (-0.1, "-0.1"), (math.nan, "nan")):
        with pytest.raises(ValueError, match=f"alpha of a {limits}, got {got}"):
            cell.alpha = alpha


@pytest.mark.parametrize("floor", [0.1, 0.5, 1.0, 1.1, 1.6, 2.5])
def test_clamped_gradient_is_zero_below_the_floor_and_one_sided_at_it(floor):
    tau = torch.tensor([0.9 * floor, floor, 1.1 * floor], requires_grad=True)
    alpha = Clamped(floor)(tau)
    alpha.sum().backward()
    torch.testing.assert_close(alpha.detach(), torch.tensor([1 / floor, 1 / floor, 1 / (1.1 * floor)]))
    torch.testing.assert_close(tau.grad, torch.tensor([0.0, -(floor**-2), -((1.1 * floor) ** -2)]))
    cell = Leaky(Clamped(floor))
    for alpha in (1 / floor, torch.tensor(1 / floor)):  # the floor itself is a tau, in either precision
        cell.alpha = alpha
        torch.testing.assert_close(cell.raw.detach(), torch.full((4,), floor, dtype=torch.float64))


def test_gate_is_log_tau_under_backward_euler():
    T = torch.linspace(-5, 5, 21, dtype=torch.float64)
    forward = LogTau(0.01)(T)
    torch.testing.assert_close(Gate()(math.log(0.01) - T), forward / (1 + forward))


def test_shared_alpha_stays_one_number_and_a_wrong_shape_is_refused():
    cell = Leaky(LogTau(0.01), shape=())
    cell.alpha = 0.2
    assert cell.raw.shape == ()
    with pytest.raises(ValueError, match=r"alpha must broadcast to shape \(4,\), got \(3,\)"):
        Leaky(Gate()).alpha = torch.full((3,), 0.5)


def test_dial_follows_its_cell_to_another_type():
    cell = Leaky(Gate()).float()
    cell.alpha = 0.25
    assert cell.alpha.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [(Clamped, v, rf"floor must be in \[0, 1e30\], got floor={v}") for v in (-0.1, math.nan, math.inf)]
    + [(LogTau, v, rf"dt must be in \(0, inf\), got dt={v}") for v in (0, -1, math.nan)]
    + [(make, v, f"must be a number, got {v!r}") for make in (Clamped, LogTau) for v in (None, "1", True)],
)
def test_dials_refuse_what_is_none(make, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(value)


def test_dial_on_a_parameter_of_any_module_keeps_its_value_and_shape():
    module = nn.Linear(2, 2)
    module.leak = nn.Parameter(torch.tensor([[0.5, 0.1]]))
    set_dial(module, "leak", Gate())
    torch.testing.assert_close(module.leak, torch.tensor([[0.5, 0.1]]))
    assert module.parametrizations.leak.original.shape == (1, 2)
    with pytest.raises(ValueError, match="name 'alpha'"):
        set_dial(module, "alpha", Gate())


# --- where gates start

MAKES = {
    "LSTM": lambda: nn.LSTM(3, 7, num_layers=2, bidirectional=True),
    "LSTMCell": lambda: nn.LSTMCell(3, 7),
    "GRU": lambda: nn.GRU(3, 7, num_layers=2, bidirectional=True),
    "GRUCell": lambda: nn.GRUCell(3, 7),
}
INITS = {"chrono": (chrono_init_, 50.0), "unknown range": (unknown_range_init_, 50)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKES[name]()


def gate_biases(rnn):
    """The sums of the two biases, gate by gate in torch's order: i, f, g, o or r, z, n; (layers, gates, hidden)."""
    ih, hh = ([p for name, p in rnn.named_parameters() if f"bias_{part}" in name] for part in ("ih", "hh"))
    return (torch.stack(ih) + torch.stack(hh)).detach().unflatten(1, (-1, rnn.hidden_size))


def after_a_step(rnn, candidate):
    """What a state of 1 becomes in a step as torch makes it, with no weights and tanh(candidate) to come in."""
    with torch.no_grad():
        for name, p in rnn.named_parameters():
            (p if "weight" in name else p.view(-1, 7)[2]).fill_(0.0 if "weight" in name else candidate / 2)
    x, ones = torch.zeros(1, 3), torch.ones(1, 7)
    return rnn(x, (ones, ones))[1][0] if isinstance(rnn, nn.LSTMCell) else rnn(x, ones)[0]


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_chrono_makes_torch_forget_in_the_range_of_times_and_take_in_as_much(name):
    rnn = made(name)
    chrono_init_(rnn, 50, 10, generator=generator())
    times = 1 / (1 - after_a_step(rnn, 0.0))
    assert times.min() >= 10 * (1 - 1e-4)
    assert times.max() <= 50 * (1 + 1e-4)
    assert times.std() > 5
    torch.testing.assert_close(after_a_step(rnn, 100.0), torch.ones(7))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", MAKES)
def test_inits_set_the_gates_that_keep_the_state_and_leave_the_rest_alone(name, init):
    rnn, untouched = made(name), made(name)
    INITS[init][0](rnn, INITS[init][1], generator=generator())
    keeps = gate_biases(rnn)[:, 1]  # f, z
    assert bool((keeps >= 0).all())
    assert keeps.max() > 1
    assert len(keeps.unique()) > 2  # drawn for each unit,
    assert len({tuple(layer.tolist()) for layer in keeps}) == len(keeps)  # each layer and each direction
    if "LSTM" in name:
        assert torch.equal(gate_biases(rnn)[:, 0], -keeps)  # i
    for (path, p), q in zip(rnn.named_parameters(), untouched.parameters(), strict=True):
        gates = p.view(-1, 7, *p.shape[1:]), q.view(-1, 7, *p.shape[1:])
        same = [torch.equal(*gate) for gate in zip(*gates, strict=True)]
        moved = [0, 1] if "LSTM" in name else [1]
        assert same == [("weight" in path) or k not in moved for k in range(len(same))], path


def distance(b, cdf):
    """Kolmogorov and Smirnov's distance between the values b and a law."""
    b = np.sort(np.asarray(b, dtype=float).ravel())
    theory, steps = cdf(b), np.arange(len(b) + 1) / len(b)
    return max(abs(theory - steps[1:]).max(), abs(theory - steps[:-1]).max())


@pytest.mark.parametrize(("T_min", "T_max"), [(2.0, 750.0), (100, 800), (1.5, 1.9), (2, 500)])
def test_chrono_biases_of_all_layers_follow_the_law_of_the_paper(T_min, T_max):
    rnn = nn.LSTM(1, 64, num_layers=20)
    chrono_init_(rnn, T_max, *([] if T_min == 2 else [T_min]), generator=generator())
    f = gate_biases(rnn)[:, 1]
    assert distance(f, lambda b: (np.exp(b) + 1 - T_min) / (T_max - T_min)) < 1.95 / f.numel() ** 0.5  # 1 in 1000
    assert distance(f, lambda b: (np.exp(b) + 1 - T_min) / (1.2 * T_max - T_min)) > 0.1  # another would be noticed


def test_tied_gate_starts_between_its_limits_with_the_sign_turned():
    b_g = nn.Parameter(torch.full((100_000,), math.nan))
    chrono_init_(b_g, 100, 20, generator=generator())
    assert torch.sigmoid(b_g).min() >= 1 / 100 - 1e-6
    assert torch.sigmoid(b_g).max() <= 1 / 20 + 1e-6
    assert distance(-b_g.detach(), lambda b: (np.exp(b) + 1 - 20) / 80) < 1.95 / len(b_g) ** 0.5
    assert b_g.requires_grad
    assert b_g.is_leaf


def test_inits_leave_the_global_generator_and_the_type_alone():
    rnn, before = made("LSTM").double(), torch.random.get_rng_state()
    for init, T_max in INITS.values():
        init(rnn, T_max, generator=generator())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {p.dtype for p in rnn.parameters()} == {torch.float64}


def test_sum_of_two_biases_moves_twice_as_far_as_one():
    rnn = made("LSTMCell")
    c = rnn(torch.ones(1, 3), (torch.ones(1, 7), torch.ones(1, 7)))[1]
    c.sum().backward()
    assert torch.equal(rnn.bias_ih.grad, rnn.bias_hh.grad)
    assert bool((rnn.bias_ih.grad[7:14] != 0).all())


@pytest.mark.parametrize(
    ("name", "gate", "place"), [("GRU", "r", 0), ("GRU", "z", 1), ("LSTM", "f", 1), ("LSTM", "o", 3)]
)
def test_gate_biases_take_a_number_a_unit_or_a_layer_and_nothing_else_moves(name, gate, place):
    rnn, others = made(name), [k for k in range(4 if name == "LSTM" else 3) if k != place]
    for b in (1.0, -2.0, torch.rand(7, generator=generator()).log(), torch.arange(28.0).view(4, 7)):
        set_gate_bias_(rnn, gate, b)
        assert torch.equal(gate_biases(rnn)[:, place], torch.as_tensor(b).expand(4, 7))
        assert torch.equal(gate_biases(rnn)[:, others], gate_biases(made(name))[:, others])


def test_heavy_tailed_law_equals_numpy_transcription():
    weights = np.array([1 / (k * math.log(k + 1) ** 2) for k in range(1, 301)])
    np.testing.assert_allclose(heavy_tailed(300).numpy(), weights / weights.sum(), rtol=1e-12)
    assert heavy_tailed(1).tolist() == [1]
    # the gates of the longest times are not yet 1; of longer ones they are
    assert torch.sigmoid(torch.tensor(float(2**23)).log()) < 1 == torch.sigmoid(torch.tensor(float(2**25)).log())


def test_heavy_tailed_law_has_the_tail_that_its_docstring_states():
    million = heavy_tailed(10**6)
    total = 1 / math.log(2) ** 2 / float(million[0])  # of the weights up to a million
    tail = 1 / math.log(10**6)  # beyond: the integral of 1 / (k log^2 k)
    longer = heavy_tailed(2**21)
    assert total + tail == pytest.approx(3.39, abs=0.005)
    assert tail / (total + tail) == pytest.approx(0.02, abs=0.002)
    between = 1 / math.log(10**6) - 1 / math.log(2**21)
    assert float(longer[10**6 :].sum() / longer[0]) * (1 / math.log(2) ** 2) == pytest.approx(between, rel=1e-4)


def test_unknown_range_draws_times_as_often_as_the_law_says():
    b_g = torch.empty(100_000)
    unknown_range_init_(b_g, 50, generator=generator())
    times = torch.exp(-b_g.double())
    torch.testing.assert_close(times, times.round(), atol=1e-4, rtol=0)
    often = torch.bincount(times.round().long(), minlength=51)[1:] / len(b_g)
    law = heavy_tailed(50)
    assert bool(((often - law).abs() < 5 * (law * (1 - law) / len(b_g)).sqrt()).all())


RANGES = [(2.0, 2), (2.0, -5), (1, 10), (-3, 10), (20, 10), (2.0, math.inf), (2.0, math.nan), (math.nan, 9)]


@pytest.mark.parametrize(("T_min", "T_max"), RANGES)
def test_chrono_refuses_a_range_that_is_none(T_min, T_max):
    rnn = made("LSTM")
    message = rf"T_(min|max) must be (in \(1, 1e18\]|below T_max), got .*(T_min={T_min}|T_max={T_max})"
    with pytest.raises(ValueError, match=message):
        chrono_init_(rnn, T_max, T_min, generator=generator())
    assert torch.equal(gate_biases(rnn), gate_biases(made("LSTM")))


LAW = "T_max must be .*1 .*, got (T_max=)?"
NO_GATES = "gates must be an LSTM or a GRU, layers or a cell, got RNN"
NO_BIASES = r"gates must have biases, got LSTM\(3, 7, bias=False\)"
SHAPES = r"b must be a finite number or have shape \(7,\) or \(4, 7\), got "


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        *(
            (lambda T=T: unknown_range_init_(torch.zeros(3), T, generator=generator()), ValueError, f"{LAW}{T}")
            for T in (0, -3, 2**23 + 1)
        ),
        *((lambda i=i, T=T: i(nn.RNN(3, 7), T, generator=generator()), TypeError, NO_GATES) for i, T in INITS.values()),
        (lambda: chrono_init_(nn.LSTM(3, 7, bias=False), 9, generator=generator()), ValueError, NO_BIASES),
        (lambda: set_gate_bias_(made("LSTM"), "z", 1.0), ValueError, "gate must be one of i, f, o, got 'z'"),
        (lambda: set_gate_bias_(made("GRUCell"), "n", 1.0), ValueError, "gate must be one of r, z, got 'n'"),
        (lambda: set_gate_bias_(made("LSTM"), "f", torch.zeros(4)), ValueError, SHAPES + r"\(4,\)"),
        (lambda: set_gate_bias_(made("LSTM"), "f", math.nan), ValueError, SHAPES + "nan"),
        (lambda: set_gate_bias_(made("LSTM"), "f", "1"), TypeError, "b must be a number, or a tensor of them, got '1'"),
        (lambda: heavy_tailed(2.5), TypeError, "T_max must be a whole number, got 2.5"),
        (
            lambda: chrono_init_(torch.zeros(3, dtype=int), 9, generator=generator()),
            TypeError,
            "floats, got torch.int64",
        ),
        (lambda: unknown_range_init_(torch.zeros(0), 9, generator=generator()), TypeError, r"got .*, cpu, \(0,\)"),
        (lambda: chrono_init_(torch.zeros(3), 9, generator=None), TypeError, "generator must be a torch.Generator"),
        (lambda: set_dial(Leaky(Gate()), "alpha", None), TypeError, "dial must be a dial, got None"),
        (lambda: Leaky(Clamped(0.0)).__setattr__("alpha", math.inf), ValueError, r"must lie in \(0, inf\], got inf"),
        (lambda: Leaky(Clamped(0.0)).float().__setattr__("alpha", 1e-45), ValueError, "got 1.4013e-45"),  # tau infinite
        (lambda: Leaky(Gate()).__setattr__("alpha", None), TypeError, "alpha must be a number, or .*, got None"),
    ],
)
def test_gates_and_laws_that_are_none_are_refused(start, error, message):
    with pytest.raises(error, match=message):
        start()
