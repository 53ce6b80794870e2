"""What is timed: a network of each kind that the book trains, with its sizes, its loss and a minibatch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ts_helpers.cells import GatedCell, Network
from ts_helpers.datasets.recall import recall
from ts_helpers.datasets.sines import COMPONENTS, sums_of_sines
from ts_helpers.papers import benureau2018, quax2020
from ts_helpers.seeding import generator_of


@dataclass(frozen=True)
class Workload:
    """A step of it is forward, backward and Adam of one network on one minibatch.

    Attributes:
        cell: its kind, by which peers know it.
        networks: trained at once.
        units, steps, batch, features, outputs: of one network, and of its minibatch (steps, batch, features).
        make: builds network number i.
        data: makes a minibatch, x and what else the loss takes.
        loss: ``loss(network, *data)``.
        gates: matrices (units, units) in one.
        states: numbers of each unit that the backward pass needs of each step.
        lr: of Adam.
        lr_scale: what multiplies the learning rate, for names of parameters.
    """

    cell: str
    networks: int
    units: int
    steps: int
    batch: int
    features: int
    outputs: int
    make: Callable[["Workload", int], nn.Module]
    data: Callable[["Workload"], list[Tensor]]
    loss: Callable[..., Tensor] = quax2020.loss
    gates: int = 1
    states: int = 1
    lr: float = 1e-3
    lr_scale: Mapping[str, float] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        """Return the learning rate of a parameter."""
        return self.lr * next((factor for pattern, factor in self.lr_scale.items() if fnmatchcase(name, pattern)), 1.0)

    def sizes(self) -> dict[str, int]:
        """Return what a reader wants to know of the size."""
        names = ("networks", "units", "steps", "batch", "features", "outputs")
        parameters = sum(p.numel() for p in self.make(self, 0).parameters())
        return {name: getattr(self, name) for name in names} | {"parameters": parameters}


class LSTM(nn.Module):
    """Long short-term memory, a step at a time, with parameters as torch's own; the state is (h, c) side by side."""

    def __init__(self, input_size: int, hidden_size: int, *, generator: torch.Generator):
        super().__init__()
        self.lstm = nn.LSTMCell(input_size, hidden_size)
        with torch.no_grad():
            for p in self.lstm.parameters():
                p.uniform_(-(hidden_size**-0.5), hidden_size**-0.5, generator=generator)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map x (batch, input) and the state (batch, 2 hidden) to the next state."""
        h, c = state.chunk(2, -1)
        U, W, b, c_b = self.lstm.parameters()
        i, f, g, o = (F.linear(x, U, b) + F.linear(h, W, c_b)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    def activity(self, state: Tensor) -> Tensor:
        """Return h of states (..., 2 hidden)."""
        return state.chunk(2, -1)[0]

    def initial_state(self, x: Tensor) -> Tensor:
        """Return zeros (batch, 2 hidden) for an input x (batch, input)."""
        return x.new_zeros(len(x), 2 * self.lstm.hidden_size)


def recalled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error over the steps at which there is something to recall."""
    wrong = torch.where(y.isnan(), 0.0, net(x) - y)
    return wrong.square().sum() / (~y.isnan()).sum()


def surprise(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of symbols y (time, batch)."""
    return F.cross_entropy(net(x).flatten(0, 1), y.flatten())


def _adaptive(work: Workload, i: int) -> nn.Module:
    alpha: Any = torch.full((work.units,), 0.5) if work.features == 1 else 0.5
    return quax2020.network(alpha, alpha, features=(work.features, work.outputs), units=work.units, seed=(0, i))


def _taught(work: Workload) -> list[Tensor]:
    teacher = quax2020.network(0.34, 0.68, seed=(1,))
    x = torch.rand(work.steps, work.batch, work.features, generator=generator_of(2))
    with torch.no_grad():
        return [x, teacher(x)]


def _layered(work: Workload, i: int) -> nn.Module:
    choices = benureau2018.Choices(units=work.units // 3)
    return benureau2018.network(benureau2018.SETTINGS["learn 8"], choices, work.batch, work.features, seed=(0, i))


def _gated(cell: Any) -> Callable[[Workload, int], nn.Module]:
    def make(work: Workload, i: int) -> nn.Module:
        generator = generator_of(0, i)
        built = cell(work.features, work.units, generator=generator)
        return Network(built, work.units, work.outputs, generator=generator)

    return make


def _symbols(work: Workload) -> list[Tensor]:
    """Random ones: what they are makes no difference to the time."""
    x, y = torch.randint(work.features, (2, work.steps, work.batch), generator=generator_of(3))
    return [F.one_hot(x, work.features).float(), y]


WORKLOADS = {
    "MTRNN": Workload(
        "mtrnn", 20, 75, 99, 5, 1, 1, _layered,
        lambda work: [sums_of_sines(COMPONENTS[: work.batch], work.steps + 1)],
        benureau2018.mean_loss, lr_scale={benureau2018.ALPHA: 10.0},
    ),
    "landscape, 10 units": Workload("aru", 196, 10, 20, 20, 2, 2, _adaptive, _taught, states=2),
    "landscape, 100 units": Workload("aru", 196, 100, 20, 20, 2, 2, _adaptive, _taught, states=2),
    "recall": Workload(
        "aru", 20, 10, 125, 20, 1, 1, _adaptive,
        lambda work: list(recall(work.steps * 2 // 5, work.batch, generator=generator_of(2))),
        recalled, states=2,
    ),
    "gated warp": Workload(
        "gated", 8, 64, 500, 32, 10, 10, _gated(GatedCell), _symbols, surprise, gates=2, states=3
    ),
    "LSTM copy": Workload("lstm", 5, 128, 520, 32, 10, 10, _gated(LSTM), _symbols, surprise, gates=4, states=6),
}  # fmt: skip
