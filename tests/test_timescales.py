import math

import pytest
import torch
from torch import nn

from ts_helpers.timescales import Clamped, Dial, Direct, Gate, LogTau, raw_name, set_dial

DIALS = {"clamped": Clamped(), "direct": Direct(), "log_tau": LogTau(0.01), "gate": Gate()}


class Leaky(nn.Module):
    def __init__(self, dial: Dial, shape: tuple[int, ...] = (4,)):
        super().__init__()
        self.alpha = nn.Parameter(torch.full(shape, 0.5, dtype=torch.float64))
        set_dial(self, "alpha", dial)


@pytest.mark.parametrize("name", DIALS)
def test_setting_alpha_sets_the_raw_number_that_gives_it(name):
    cell = Leaky(type(DIALS[name])(*([0.01] if name == "log_tau" else [])))
    for alpha in (0.3, 0.001, torch.tensor([0.1, 0.2, 0.3, 0.9])):
        cell.alpha = alpha
        torch.testing.assert_close(cell.alpha, torch.as_tensor(alpha, dtype=torch.float64).expand(4))


@pytest.mark.parametrize(
    ("dial", "raw", "alpha"),
    [
        (Clamped(), 8.0, 1 / 8),
        (Clamped(), 0.5, 1.0),
        (Direct(), 0.7, 0.7),
        (LogTau(0.01), math.log(2.0), 0.005),
        (Gate(), 0.4, 1 / (1 + math.exp(-0.4))),
    ],
)
def test_dial_maps_raw_number_as_its_paper_says(dial, raw, alpha):
    assert dial(torch.tensor(raw)).item() == pytest.approx(alpha)


@pytest.mark.parametrize("name", DIALS)
def test_dial_gradients_pass_gradcheck(name):
    raw = torch.tensor([1.3, 2.0, 0.6 if name != "clamped" else 1.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(DIALS[name], raw)


def test_clamped_tau_below_one_has_no_gradient():
    tau = torch.tensor([0.5, 2.0], requires_grad=True)
    Clamped()(tau).sum().backward()
    assert tau.grad[0] == 0
    assert tau.grad[1] == pytest.approx(-1 / 4)


def test_gate_is_log_tau_under_backward_euler():
    T = torch.linspace(-5, 5, 21, dtype=torch.float64)
    forward = LogTau(0.01)(T)
    torch.testing.assert_close(Gate()(math.log(0.01) - T), forward / (1 + forward))


@pytest.mark.parametrize(("name", "alpha"), [("clamped", 1.5), ("direct", 2.0), ("log_tau", 0.0), ("gate", 1.0)])
def test_alpha_outside_the_dial_is_refused_by_value(name, alpha):
    cell = Leaky(type(DIALS[name])(*([0.01] if name == "log_tau" else [])))
    with pytest.raises(ValueError, match=rf"alpha of a \w+ dial must lie in .*, got {alpha:g}"):
        cell.alpha = alpha


def test_alpha_that_is_not_a_number_is_refused():
    cell = Leaky(Direct())
    with pytest.raises(ValueError, match="got nan"):
        cell.alpha = math.nan


def test_alpha_of_wrong_shape_is_refused():
    cell = Leaky(Gate())
    with pytest.raises(ValueError, match=r"broadcast to shape \(4,\), got \(3,\)"):
        cell.alpha = torch.full((3,), 0.5)


def test_shared_alpha_stays_one_number():
    cell = Leaky(LogTau(0.01), shape=())
    cell.alpha = 0.2
    assert cell.parametrizations.alpha.original.shape == ()


def test_dial_follows_its_cell_to_another_type():
    cell = Leaky(Gate()).float()
    cell.alpha = 0.25
    assert cell.alpha.dtype == torch.float32


def test_log_tau_rejects_nonpositive_dt():
    with pytest.raises(ValueError, match="dt must be positive, got dt=0"):
        LogTau(0)


@pytest.mark.parametrize("floor", [0.5, 1.0, 2.5])
def test_clamped_gradient_is_zero_below_the_floor_and_one_sided_at_it(floor):
    tau = torch.tensor([0.9 * floor, floor, 1.1 * floor], requires_grad=True)
    alpha = Clamped(floor)(tau)
    alpha.sum().backward()
    torch.testing.assert_close(alpha.detach(), torch.tensor([1 / floor, 1 / floor, 1 / (1.1 * floor)]))
    torch.testing.assert_close(tau.grad, torch.tensor([0.0, -(floor**-2), -((1.1 * floor) ** -2)]))


def test_clamped_without_floor_lets_tau_below_one():
    cell = Leaky(Clamped(0))
    cell.alpha = 1 / 0.6
    torch.testing.assert_close(cell.alpha, torch.full((4,), 1 / 0.6, dtype=torch.float64))
    torch.testing.assert_close(
        cell.parametrizations.alpha.original.detach(), torch.full((4,), 0.6, dtype=torch.float64)
    )
    cell.alpha.sum().backward()
    assert bool((cell.parametrizations.alpha.original.grad < 0).all())


def test_clamped_takes_its_floor_as_tau_and_nothing_below():
    cell = Leaky(Clamped(1.6))
    cell.alpha = 1 / 1.6
    with pytest.raises(ValueError, match=r"must lie in \(0, 0.625\], got 0.7"):
        cell.alpha = 0.7


@pytest.mark.parametrize("floor", [-0.1, math.nan, math.inf])
def test_clamped_refuses_a_floor_that_is_none(floor):
    with pytest.raises(ValueError, match=f"floor must be 0 or positive, got floor={floor}"):
        Clamped(floor)


def test_raw_name_is_the_name_that_pytorch_lists():
    cell = Leaky(Gate())
    assert [name for name, _ in cell.named_parameters()] == [raw_name("alpha")]
    assert [name for name, _ in nn.ModuleDict({"cell": cell}).named_parameters()] == [raw_name("cell.alpha")]


def test_dial_on_a_parameter_of_any_module_keeps_its_value_and_shape():
    module = torch.nn.Linear(2, 2)
    module.leak = torch.nn.Parameter(torch.tensor([[0.5, 0.1]]))
    set_dial(module, "leak", Gate())
    torch.testing.assert_close(module.leak, torch.tensor([[0.5, 0.1]]))
    assert module.parametrizations.leak.original.shape == (1, 2)


def test_dial_on_a_parameter_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="name 'alpha'"):
        set_dial(torch.nn.Linear(2, 2), "alpha", Gate())
