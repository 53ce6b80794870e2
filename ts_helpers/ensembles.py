"""Many networks of one architecture, trained at once."""

import hashlib
import inspect
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ts_helpers.optimizers import Plateau, adam
from ts_helpers.progress import progress

Measure = Callable[..., Tensor]
PerNetwork = float | Sequence[float] | Tensor
Optimizer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], None]


@dataclass
class History:
    """What `train` saw.

    Attributes:
        epoch: (points,), at which the networks were watched, the first before any training.
        watched: for each name given to `train`, an array (networks, points, ...).
        diverged: (networks,), the epoch at which a network's loss or gradient stopped being finite, -1 if it never did.
        seconds: spent training, over all interruptions.
    """

    epoch: np.ndarray
    watched: dict[str, np.ndarray]
    diverged: np.ndarray
    seconds: float


AT_ONCE, NUMBERS = 32, 100_000  # networks in one stack, or as many more as have so many parameters together: beyond
# that, more bring no speed on a CPU, and fall out of its cache
MEMORY, STATES = 4 * 2**30, 8  # bytes that a step of a stack may take, and arrays (time, batch, units) that a network
# keeps for its backward pass; it has no more units than the square root of its parameters


def train(
    networks: Sequence[nn.Module],
    loss: Measure,
    data: Sequence[Tensor] = (),
    *,
    epochs: int,
    batch: int | None = None,
    steps: int | None = None,
    order: int = 0,
    optimizer: Optimizer = adam,
    lr: PerNetwork = 1e-3,
    factors: Mapping[str, PerNetwork] | None = None,
    floors: Mapping[str, PerNetwork] | None = None,
    clip: float | None = None,
    clip_norm: float = 2.0,
    watch: Mapping[str, Measure] | None = None,
    watch_on: Sequence[Tensor] | None = None,
    every: int = 100,
    patience: int | None = None,
    checkpoint: Path | None = None,
    name: str = "train",
) -> History:
    """Train networks side by side, each as if alone: descent on its own loss, with its own clipping and rates.

    The networks are stacked, `AT_ONCE` or more at a time, or less where they would take more than `MEMORY`, and run
    under `torch.func.vmap`; their parameters are changed in place at the end. A network whose loss or gradient is no
    longer finite is frozen as it was, and noted; the others go on.

    Args:
        networks: of one architecture; their parameters may differ.
        loss: ``loss(network, *data) -> scalar``, of one network.
        data: tensors whose first dimension is the networks; each network sees its own slice.
        epochs: passes through the data, unless steps says otherwise.
        batch: sequences in a minibatch, in a new order in each pass, the same for all networks; the data are then
            (networks, time, sequences, ...). None: all of them at once, a pass is one step.
        steps: minibatches in an epoch, wherever in a pass it ends; for looks and checkpoints within long passes.
        order: seeds the order of the sequences.
        optimizer: `optimizers.adam` or `optimizers.rmsprop`.
        lr: learning rate, one number or one a network.
        factors: for names of parameters, wild cards allowed, what multiplies their learning rate: one number or
            one a network. 0 keeps the parameter as it is, and out of the gradient's norm; so does
            ``requires_grad = False``.
        floors: for names of parameters, the least value they are set back to after each step (projection).
        clip: largest norm of a network's gradient; a longer one is scaled down to it.
        clip_norm: which norm, 2 or ``math.inf``.
        watch: measures ``measure(network, *data) -> tensor`` by name, taken without gradient.
        watch_on: what they take in the place of data, if anything else.
        every: epochs between two looks.
        patience: a network's learning rates are halved each time so many epochs in a row have ended without its loss,
            on the data of watch_on, having fallen, see `optimizers.Plateau`. None: never.
        checkpoint: folder in which the state is kept once a minute; a run with the same inputs, measures and helper
            code goes on from there, and ends at the same numbers as one that was not interrupted. What a measure takes
            from around it, other than data, is not looked at.
        name: stands before the progress bar.

    Returns:
        What was watched, networks in the order given.

    Raises:
        ValueError: no network, networks that do not fit together, data of another length, a rate or size out of
            range, or a name that fits no parameter.
    """
    if epochs < 1 or every < 1:
        raise ValueError(f"epochs and every must be 1 or more, got {epochs=}, {every=}")
    if any(given is not None and given < 1 for given in (steps, patience)):
        raise ValueError(f"steps and patience must be 1 or more, or None, got {steps=}, {patience=}")
    if batch is not None:
        sizes = {tensor.shape[2] if tensor.ndim > 2 else 0 for tensor in data}
        if len(sizes) != 1 or not 1 <= batch <= max(sizes):
            raise ValueError(f"batch must be 1 or more and at most the sequences of the data, got {batch=}, {sizes=}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if clip_norm not in (2.0, math.inf):
        raise ValueError(f"clip_norm must be 2 or infinity, got {clip_norm}")
    stack = _Stack(networks, data)
    rates = stack.spread(factors or {}, 1.0) * stack.column(lr, "lr") * stack.trainable
    if not bool(((rates >= 0) & torch.isfinite(rates)).all()):
        raise ValueError("lr times factors must be finite and 0 or more for every network")
    least = stack.spread(floors or {}, -math.inf)
    at_once = min(max(AT_ONCE, NUMBERS // stack.values.shape[1]), max(1, int(MEMORY / stack.footprint(batch))))
    parts = [slice(i, i + at_once) for i in range(0, len(networks), at_once)]
    _Stack(networks, watch_on or ())  # refuses what does not fit
    histories = []
    for i, part in enumerate(parts):
        which = name if len(parts) == 1 else f"{name} {i + 1}/{len(parts)}"
        stack = _Stack(networks[part], [tensor[part] for tensor in data])
        looks = _Looks(dict(watch or {}), None if watch_on is None else [tensor[part] for tensor in watch_on], every)
        how = _How(epochs, batch, steps, order, optimizer, clip, clip_norm, patience)
        run = _Run(stack, loss, how, rates[part].clone(), least[part], looks)
        histories.append(run.go(checkpoint, which))
    return History(
        histories[0].epoch,
        {key: np.concatenate([history.watched[key] for history in histories]) for key in histories[0].watched},
        np.concatenate([history.diverged for history in histories]),
        sum(history.seconds for history in histories),
    )


class _Looks:
    """What is watched of one stack, and what was seen."""

    def __init__(self, watch: dict[str, Measure], data: list[Tensor] | None, every: int):
        self.watch, self.data, self.every = watch, data, every
        self.seen: dict[str, list[np.ndarray]] = {key: [] for key in watch}


@dataclass
class _How:
    """What `train` was told of how to train."""

    epochs: int
    batch: int | None
    steps: int | None
    order: int
    optimizer: Optimizer
    clip: float | None
    clip_norm: float
    patience: int | None


class _Run:
    """The training of one stack."""

    def __init__(self, stack: "_Stack", loss: Measure, how: _How, rates: Tensor, least: Tensor, looks: _Looks):
        self.stack, self.loss, self.how, self.rates, self.looks = stack, loss, how, rates, looks
        self.least = least if bool((least > -math.inf).any()) else None
        self.m, self.v = torch.zeros_like(stack.values), torch.zeros_like(stack.values)
        self.diverged = torch.full((len(stack.networks),), -1, device=rates.device)
        self.plateau = Plateau(how.patience, rates[:, 0]) if how.patience else None
        self.learned = rates > 0
        self.epoch, self.seconds = 0, 0.0

    def go(self, checkpoint: Path | None, name: str) -> History:
        """Train from the last checkpoint, if there is one, to the end."""
        file = checkpoint / f"{self.digest()}.npz" if checkpoint else None
        if file and file.exists():
            self.restore(file)
        before, start = self.seconds, time.perf_counter()
        saved = start
        epochs = self.how.epochs
        for epoch in progress(range(self.epoch, epochs), name, epochs, self.epoch):
            if epoch % self.looks.every == 0:
                self.look()
            for step, data in enumerate(self.batches(epoch), 1 + epoch * self.steps):
                self.step(epoch, step, data)
            if self.plateau:
                with torch.no_grad():
                    self.plateau(self.rates, self.stack.measure(self.loss, self.watched))
            now = time.perf_counter()
            self.epoch, self.seconds = epoch + 1, before + now - start
            if file and now - saved > 60 and self.epoch < epochs:
                self.save(file)
                saved = now
        points = np.array([*range(0, epochs, self.looks.every), epochs])
        if any(len(values) < len(points) for values in self.looks.seen.values()):
            self.look()
        if file:
            self.save(file)
        self.stack.write_back()
        watched = {key: np.stack(values, 1) for key, values in self.looks.seen.items()}
        return History(points, watched, self.diverged.cpu().numpy(), self.seconds)

    @property
    def a_pass(self) -> int:
        """Steps in a pass through the data."""
        return 1 if self.how.batch is None else -(-self.stack.data[0].shape[2] // self.how.batch)

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return self.how.steps or self.a_pass

    @property
    def watched(self) -> Sequence[Tensor]:
        """The data of measures."""
        return self.stack.data if self.looks.data is None else self.looks.data

    def batches(self, epoch: int) -> Iterator[Sequence[Tensor]]:
        """Yield the minibatches of an epoch; the last of a pass holds what is left."""
        if self.how.batch is None:
            yield from itertools.repeat(self.stack.data, self.steps)
            return
        start, end = epoch * self.steps, (epoch + 1) * self.steps
        for number in range(start // self.a_pass, -(-end // self.a_pass)):
            first = number * self.a_pass
            for some in self.order_of(number).split(self.how.batch)[max(0, start - first) : end - first]:
                yield [tensor.index_select(2, some) for tensor in self.stack.data]

    def order_of(self, number: int) -> Tensor:
        """Return the order of the sequences in a pass."""
        seed = int(np.random.SeedSequence([self.how.order, number]).generate_state(1)[0])
        n, generator = self.stack.data[0].shape[2], torch.Generator().manual_seed(seed)
        return torch.randperm(n, generator=generator).to(self.rates.device)

    def step(self, epoch: int, step: int, data: Sequence[Tensor]) -> None:
        """Take one step with every network that has not diverged."""
        p = self.stack.values.requires_grad_(True)
        losses = self.stack.measure(self.loss, data)
        (grad,) = torch.autograd.grad(losses.sum(), p)
        p.requires_grad_(False)
        grad = torch.where(self.learned, grad, 0.0)
        finite = torch.isfinite(losses.detach()) & torch.isfinite(grad.sum(1))
        if not bool(finite.all()):
            self.diverged[~finite & (self.diverged < 0)] = epoch
            self.rates[~finite] = 0.0
            grad[~finite] = 0.0
        if self.how.clip is not None:
            norm = torch.linalg.vector_norm(grad, self.how.clip_norm, dim=1, keepdim=True)
            grad *= (self.how.clip / norm).clamp(max=1)
        self.how.optimizer(p, self.m, self.v, grad, self.rates, step)
        if self.least is not None:
            torch.maximum(p, self.least, out=p)

    def look(self) -> None:
        """Take every measure, and keep it."""
        with torch.no_grad():
            for key, function in self.looks.watch.items():
                self.looks.seen[key].append(self.stack.measure(function, self.watched).cpu().numpy())

    def tensors(self) -> dict[str, Tensor]:
        """Return what changes from step to step."""
        waits = dict(best=self.plateau.best, waited=self.plateau.waited) if self.plateau else {}
        return dict(p=self.stack.values, m=self.m, v=self.v, rates=self.rates, diverged=self.diverged, **waits)

    def save(self, file: Path) -> None:
        """Write a checkpoint as a whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in self.tensors().items()}
        arrays |= {f"look_{key}": np.array(values) for key, values in self.looks.seen.items()}
        part = file.with_name(f".{file.stem}.{os.getpid()}.npz")
        try:
            np.savez(part, epoch=self.epoch, seconds=self.seconds, **arrays)
            os.replace(part, file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def restore(self, file: Path) -> None:
        """Go back to a checkpoint."""
        with np.load(file, allow_pickle=False) as kept:
            for key, tensor in self.tensors().items():
                tensor.copy_(torch.as_tensor(kept[key]))
            self.looks.seen = {key: list(kept[f"look_{key}"]) for key in self.looks.seen}
            self.epoch, self.seconds = int(kept["epoch"]), float(kept["seconds"])

    def digest(self) -> str:
        """Return a digest of all that decides the numbers: settings, values, the measures' text, the helpers' text."""
        network, looks, how = repr(self.stack.networks[0]), self.looks, self.how
        settings = [vars(how) | {"optimizer": how.optimizer.__name__}, looks.every, sorted(looks.watch)]
        digest = hashlib.sha256(repr([*settings, network, torch.__version__]).encode())
        tensors = [self.stack.values, self.rates, *self.stack.buffers.values(), *self.stack.data, *(looks.data or ())]
        for tensor in tensors if self.least is None else [*tensors, self.least]:
            digest.update(repr((tensor.shape, tensor.dtype)).encode() + tensor.cpu().contiguous().numpy().tobytes())
        for function in (self.loss, *looks.watch.values()):
            digest.update(inspect.getsource(function).encode())
        for path in sorted(Path(__file__).parent.rglob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


class _Stack:
    """The parameters of all networks as one matrix, a row a network, and measures on it."""

    def __init__(self, networks: Sequence[nn.Module], data: Sequence[Tensor]):
        if not networks:
            raise ValueError("networks must hold one or more networks, got none")
        shapes = [{key: value.shape for key, value in network.named_parameters()} for network in networks]
        for other, shape in enumerate(shapes):
            if shape != shapes[0] or repr(networks[other]) != repr(networks[0]):
                raise ValueError(f"networks must be of one architecture, number {other} differs from the first")
        for tensor in data:
            if len(tensor) != len(networks):
                raise ValueError(f"data must have {len(networks)} networks in its first dimension, got {len(tensor)}")
        self.networks, self.data = networks, tuple(data)
        self.names, self.shapes = list(shapes[0]), list(shapes[0].values())
        self.sizes = [shape.numel() for shape in self.shapes]
        rows = [torch.cat([value.detach().flatten() for value in net.parameters()]) for net in networks]
        self.values = torch.stack(rows)
        trained = [torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()]) for net in networks]
        self.trainable = torch.stack(trained).to(self.values.device)
        _, self.buffers = stack_module_state(list(networks))
        self.base = _Call(networks[0])

    def footprint(self, batch: int | None) -> float:
        """Return about how many bytes a step of one network takes: minibatch, states, and the optimiser's numbers."""
        size, numbers = self.values.shape[1], 4.0 * self.values.shape[1]
        for i, tensor in enumerate(self.data):
            share = 1.0 if batch is None else batch / tensor.shape[2]
            numbers += share * tensor[0].numel()
            if i == 0:  # time and batch, if it has them
                numbers += share * math.prod(tensor.shape[1:3]) * STATES * math.sqrt(size)
        return numbers * self.values.element_size()

    def column(self, value: PerNetwork, what: str) -> Tensor:
        """Return one number, or one a network, as a column (networks, 1)."""
        column = torch.as_tensor(value, dtype=self.values.dtype, device=self.values.device).reshape(-1, 1)
        if len(column) not in (1, len(self.networks)):
            raise ValueError(
                f"{what} must be one number or one for each of {len(self.networks)} networks, got {len(column)}"
            )
        return column

    def spread(self, given: Mapping[str, PerNetwork], default: float) -> Tensor:
        """Return a matrix (networks, numbers) of what was given for names of parameters, else the default."""
        parts = torch.full_like(self.values, default).split(self.sizes, 1)
        for pattern, value in given.items():
            fitting = [i for i, name in enumerate(self.names) if fnmatchcase(name, pattern)]
            if not fitting:
                raise ValueError(f"no parameter is called {pattern!r}; there are {', '.join(self.names)}")
            for i in fitting:
                parts[i].copy_(self.column(value, pattern).expand_as(parts[i]))
        return torch.cat(parts, 1)

    def measure(self, function: Measure, data: Sequence[Tensor]) -> Tensor:
        """Return ``function(network, *data)`` of every network, stacked."""
        parts = self.values.split(self.sizes, 1)
        parameters = {
            f"network.{name}": part.unflatten(1, shape) if shape else part[:, 0]
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }
        buffers = {f"network.{name}": buffer for name, buffer in self.buffers.items()}

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], data: tuple[Tensor, ...]) -> Tensor:
            return functional_call(self.base, (parameters, buffers), (function, *data))

        return torch.vmap(one)(parameters, buffers, tuple(data))

    def write_back(self) -> None:
        """Put the rows into the networks."""
        with torch.no_grad():
            for network, row in zip(self.networks, self.values, strict=True):
                for parameter, part in zip(network.parameters(), row.split(self.sizes), strict=True):
                    parameter.copy_(part.view_as(parameter))


class _Call(nn.Module):
    """Gives a function of a network the network whose parameters `functional_call` has put in."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, function: Measure, *data: Tensor) -> Tensor:
        """Return ``function(network, *data)``."""
        return function(self.network, *data)
