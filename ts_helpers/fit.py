"""The one training loop, for one network or for many of one architecture at once; no task, no model and no plot."""

import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ts_helpers._identity import Identity, difference
from ts_helpers.progress import progress

Metric = Callable[..., Tensor]
PerNetwork = float | Sequence[float] | Tensor
Data = Sequence[Tensor] | Callable[[int], Sequence[Tensor]]

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as everywhere
ALPHA = 0.9  # RMSprop's moving average, as in Tieleman & Hinton's lecture; torch's own default is 0.99
AT_ONCE, NUMBERS = 32, 100_000  # networks in one stack, or as many more as have so many parameters together: beyond
# that, more bring no speed on a CPU, and fall out of its cache
MEMORY, STATES = 4 * 2**30, 8  # bytes that a step of a stack may take, and arrays (time, batch, units) that a network
# keeps for its backward pass; it has no more units than the square root of its parameters
ROW = 3  # evaluations in a row that must be at or below `stop_below`


def adam(p: Tensor, m: Tensor, v: Tensor, grad: Tensor, rates: Tensor, step: int) -> None:
    """One step of Adam, as `torch.optim.Adam` takes it, with a learning rate for every number."""
    m.lerp_(grad, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    spread = (v / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    p.sub_((m / spread).mul_(rates).div_(1 - BETAS[0] ** step))


def rmsprop(p: Tensor, m: Tensor, v: Tensor, grad: Tensor, rates: Tensor, step: int) -> None:
    """One step of RMSprop, as `torch.optim.RMSprop` takes it with ``alpha=ALPHA``; Adam's m and step go unused."""
    v.mul_(ALPHA).addcmul_(grad, grad, value=1 - ALPHA)
    p.sub_((grad / v.sqrt().add_(EPSILON)).mul_(rates))


OPTIMIZERS = {"adam": adam, "rmsprop": rmsprop}


@dataclass
class History:
    """How a training went.

    Attributes:
        at: (points,), epochs or steps before each evaluation; the first is before any training.
        unit: "epoch" or "step".
        metrics: for each name an array (networks, points, ...), NaN after a network stopped.
        diverged: (networks,), epoch or step at which loss or gradient stopped being finite, -1 if they never did.
        n_steps: (networks,), steps of the optimiser that were taken.
        seconds: spent, over all interruptions.
    """

    at: np.ndarray
    unit: str
    metrics: dict[str, np.ndarray]
    diverged: np.ndarray
    n_steps: np.ndarray
    seconds: float


def fit(
    networks: nn.Module | Sequence[nn.Module],
    loss: Metric,
    data: Data,
    *,
    epochs: int | None = None,
    n_steps: int | None = None,
    batch_size: int | None = None,
    shuffle_seed: int = 0,
    optimizer: str = "adam",
    lr: PerNetwork = 1e-3,
    lr_scale: Mapping[str, PerNetwork] | None = None,
    lower_bounds: Mapping[str, PerNetwork] | None = None,
    clip_norm: float | None = None,
    norm_type: float = 2.0,
    metrics: Mapping[str, Metric] | None = None,
    eval_data: Sequence[Tensor] | None = None,
    eval_interval: int = 1,
    patience: int | None = None,
    lr_patience: int | None = None,
    stop_below: float | None = None,
    time_limit: float | None = None,
    checkpoint: Path | None = None,
    name: str = "fit",
) -> History:
    """Train a network, or many of one architecture, each as if alone: descent on its own loss, at its own rates.

    Many are stacked, `AT_ONCE` or more at a time, or less where they would take more than `MEMORY`, and run under
    `torch.func.vmap`. One alone is called as in any loop of PyTorch. Modules are in training mode for steps and in
    evaluation mode for metrics. A network whose loss or gradient is no longer finite keeps its parameters from then
    on; the others go on.

    Args:
        networks: one, or a sequence of networks that differ in nothing but parameters and buffers.
        loss: ``loss(network, *data)``, a scalar, of one network.
        data: tensors, (time, sequences, ...) where minibatches are cut, or ``batch(step)`` that makes them for a step,
            0, 1, ..., the same whenever it is asked. For a sequence of networks a first dimension, the networks, is
            added to all of them.
        epochs: passes through the data; without batch_size a pass is one step.
        n_steps: steps of the optimiser, in the place of epochs.
        batch_size: sequences in a minibatch, in a new order in each pass, the same for all networks; the last of a
            pass holds what is left. None: all of them at once.
        shuffle_seed: of these orders.
        optimizer: "adam" or "rmsprop".
        lr: learning rate, one number or one a network.
        lr_scale: for names of parameters, wild cards allowed, what multiplies their learning rate: one number or one a
            network. 0 keeps the parameter as it is, and out of the gradient's norm; so does ``requires_grad = False``.
        lower_bounds: for names of parameters, the least value they are set back to after each step (projection).
        clip_norm: largest norm of a network's gradient; a longer one is scaled down to it.
        norm_type: which norm, 2 or ``math.inf``.
        metrics: ``metric(network, *eval_data) -> tensor`` by name, taken without gradient. None: the loss.
        eval_data: what they take. None: data.
        eval_interval: epochs or steps between two evaluations; one more is after the last step.
        patience: evaluations in a row whose first metric was not below the least before, after which a network stops.
            It is then left, however its training ended, as it was at the first evaluation that had the least.
        lr_patience: evaluations in a row after which, likewise, its learning rates are halved; the one before the
            first step does not count.
        stop_below: a network stops after three evaluations in a row with a first metric at or below this.
        time_limit: hours that this call may take, at once if 0; the next call goes on from the checkpoint.
        checkpoint: folder in which the state is kept once a minute and at the end. A call with the same networks, data,
            functions (their code, what they hold and the helper modules they come from) and settings goes on from
            there, and ends at the same numbers as one that was not interrupted.
        name: stands before the progress bar.

    Returns:
        What was measured, networks in the order given.

    Raises:
        ValueError: networks that cannot be trained together, data that do not fit them, a loss that is no scalar, a
            rate or size out of range, or a name that fits no parameter.
    """
    single = isinstance(networks, nn.Module)
    nets = [networks] if isinstance(networks, nn.Module) else list(networks)
    metrics = {"loss": loss} if metrics is None else dict(metrics)
    how = _How(
        epochs, n_steps, batch_size, shuffle_seed, optimizer, clip_norm, norm_type, eval_interval, patience,
        lr_patience, stop_below,
    )  # fmt: skip
    how.check(callable(data), bool(metrics))
    if callable(data) and eval_data is None:
        raise ValueError("eval_data must be given where data is a function")
    if time_limit is not None and (checkpoint is None or not time_limit >= 0):
        raise ValueError(f"time_limit must be 0 or more and needs a checkpoint, got {time_limit=}, {checkpoint=}")
    identity = Identity()
    described = _together(nets, identity)
    first = data(0) if callable(data) else data
    for tensor in () if single else (*first, *(eval_data or ())):
        if len(tensor) != len(nets):
            raise ValueError(f"data must have {len(nets)} networks in its first dimension, got {len(tensor)}")
    alone = len(nets) == 1
    rows = _Alone(nets) if alone else _Stack(nets)
    rates = rows.spread(lr_scale or {}, 1.0) * rows.column(lr, "lr") * rows.trainable
    if not bool(((rates >= 0) & torch.isfinite(rates)).all()):
        raise ValueError("lr times lr_scale must be finite and 0 or more for every network")
    least = rows.spread(lower_bounds or {}, -math.inf)
    size = 1 if alone else rows.at_once(first, batch_size)
    whole = size >= len(nets)
    settled = ""
    if checkpoint:
        functions = identity.of([loss, metrics, data if callable(data) else None])
        settled = repr([astuple(how), described, functions, identity.sources(), torch.__version__])
    until = math.inf if time_limit is None else time.perf_counter() + 3600 * time_limit
    histories = []
    for start in range(0, len(nets), size):

        def cut(tensors: Sequence[Tensor], start: int = start) -> list[Tensor]:
            if single:
                return list(tensors)
            return [tensor[0] if alone else tensor[start : start + size] for tensor in tensors]

        source = (lambda step, cut=cut: cut(data(step))) if callable(data) else cut(data)
        held = cut(data if eval_data is None else eval_data)  # type: ignore[arg-type]
        part = slice(start, start + size)
        run = _Run(
            rows if whole else _Stack(nets[part]), loss, source, how, rates[part].clone(), least[part], metrics, held
        )
        file = None
        if checkpoint:
            decides = [run.rows.values, run.rows.buffers, run.rates, run.least, cut(first), held]
            file = checkpoint / f"{hashlib.sha256((settled + identity.of(decides)).encode()).hexdigest()[:16]}.pt"
        which = name if whole else f"{name} {start // size + 1}/{-(-len(nets) // size)}"
        histories.append(run.go(file, until, which))
    return History(
        histories[0].at,
        histories[0].unit,
        {key: np.concatenate([history.metrics[key] for history in histories]) for key in metrics},
        np.concatenate([history.diverged for history in histories]),
        np.concatenate([history.n_steps for history in histories]),
        sum(history.seconds for history in histories),
    )


@dataclass(frozen=True)
class _How:
    """What `fit` was told of how to train, besides learning rates."""

    epochs: int | None
    n_steps: int | None
    batch_size: int | None
    shuffle_seed: int
    optimizer: str
    clip_norm: float | None
    norm_type: float
    eval_interval: int
    patience: int | None
    lr_patience: int | None
    stop_below: float | None

    def check(self, made: bool, measured: bool) -> None:
        """Refuse what cannot be, for batches that are made or not, and with metrics or without."""
        if (self.epochs is None) == (self.n_steps is None):
            raise ValueError(f"give either epochs or n_steps, got epochs={self.epochs}, n_steps={self.n_steps}")
        if made and (self.n_steps is None or self.batch_size is not None):
            raise ValueError("a function makes its own batches: give n_steps with it, no epochs and no batch_size")
        for key in ("epochs", "n_steps", "eval_interval", "patience", "lr_patience"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be 1 or more, got {value}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, got {self.clip_norm}")
        if self.norm_type not in (2.0, math.inf):
            raise ValueError(f"norm_type must be 2 or infinity, got {self.norm_type}")
        if not measured and any(each is not None for each in (self.patience, self.lr_patience, self.stop_below)):
            raise ValueError("patience, lr_patience and stop_below need a metric, got none")


def _together(nets: Sequence[nn.Module], identity: Identity) -> dict[str, str]:
    """Return what the networks are besides their parameters and buffers; refuse those that differ in it."""
    if not nets:
        raise ValueError("networks must hold one or more networks, got none")
    described = identity.network(nets[0])
    owners: dict[int, int] = {}
    for number, network in enumerate(nets if len(nets) > 1 else ()):
        for path, module in network.named_modules():
            if isinstance(module, nn.RNNBase):
                raise ValueError(
                    f"torch cannot run {path or 'the network'}, an nn.{type(module).__name__}, for several networks at "
                    "once: call fit for each network by itself, or build it of a cell and cells.unroll"
                )
        for path, tensor in (*network.named_parameters(), *network.named_buffers()):
            owner = owners.setdefault(id(tensor), number)
            if owner != number:
                raise ValueError(
                    f"networks {owner} and {number} share the tensor {path!r}: give each its own, as copy.deepcopy does"
                )
        path = difference(described, identity.network(network))
        if path:
            raise ValueError(
                f"networks must be of one architecture and differ in nothing but parameters and buffers: number "
                f"{number} differs from the first in {path!r}; train it apart, or make that a buffer"
            )
    return described


class _Least:
    """The least value of each network so far, and for how many evaluations in a row there was none below it."""

    def __init__(self, values: Tensor):
        self.best, self.waited = torch.full_like(values, torch.inf), torch.zeros_like(values)

    def __call__(self, values: Tensor) -> Tensor:
        """Take note of values (networks,), and return which of them fell."""
        fell = values < self.best
        self.best.copy_(torch.where(fell, values, self.best))
        self.waited.add_(1).masked_fill_(fell, 0)
        return fell


class _Run:
    """The training of one stack, or of one network alone."""

    def __init__(
        self,
        rows: "_Stack",
        loss: Metric,
        data: Data,
        how: _How,
        rates: Tensor,
        least: Tensor,
        metrics: Mapping[str, Metric],
        eval_data: Sequence[Tensor],
    ):
        self.rows, self.loss, self.data, self.how, self.rates = rows, loss, data, how, rates
        self.least, self.metrics, self.eval_data = least, metrics, eval_data
        self.bounded = bool((least > -math.inf).any())
        self.learned = rates > 0
        self.optimizer = OPTIMIZERS[how.optimizer]
        self.m = torch.zeros_like(rows.values[:, :0] if how.optimizer == "rmsprop" else rows.values)
        self.v = torch.zeros_like(rows.values)
        self.per_pass, self.order = 1, (-1, ())
        if how.batch_size is not None and not callable(data):
            sizes = {tensor.shape[rows.dim] if tensor.ndim > rows.dim else 0 for tensor in data}
            if len(sizes) != 1 or not 1 <= how.batch_size <= max(sizes):
                raise ValueError(
                    "batch_size must be 1 or more and at most the sequences of the data, got "
                    f"batch_size={how.batch_size}, {sizes=}"
                )
            self.n_sequences = sizes.pop()
            self.per_pass = -(-self.n_sequences // how.batch_size)
        units = how.epochs or how.n_steps or 0
        self.unit = self.per_pass if how.epochs else 1  # steps
        self.total = units * self.unit
        self.points = np.array([*range(0, units, how.eval_interval), units])
        self.stopped = torch.full((len(rates),), -1, device=rates.device)  # steps before a network stopped, -1: it goes
        self.diverged = torch.zeros_like(self.stopped, dtype=torch.bool)
        self.going = len(rates)
        self.fall, self.lr_fall, self.low = _Least(rates[:, 0]), _Least(rates[:, 0]), torch.zeros_like(self.stopped)
        self.keeps = how.patience is not None or how.stop_below is not None
        self.kept = torch.zeros_like(self.diverged)  # networks to be left as they were when they were kept
        self.kept_values = rows.values.clone() if self.keeps else rows.values[:, :0]
        self.kept_buffers: dict[str, Tensor] = {}
        self.measured: dict[str, np.ndarray] = {}
        self.step, self.evaluated, self.seconds = 0, 0, 0.0

    def go(self, file: Path | None, until: float, name: str) -> History:
        """Train from the checkpoint, if there is one, until the end or that time."""
        if file:
            self.restore(file)
        before, start = self.seconds, time.perf_counter()
        saved = now = start
        modes = [(module, module.training) for module in self.rows.base.modules()]
        self.rows.base.train()
        try:
            for step in progress(range(self.step, self.total), name, self.total, self.step):
                self.evaluate()
                if not self.going or now >= until:
                    break
                self.take(step)
                self.step = step + 1
                now = time.perf_counter()
                self.seconds = before + now - start
                if file and now - saved > 60:
                    self.save(file)
                    saved = now
            else:
                self.evaluate()
        finally:
            for module, mode in modes:
                module.training = mode
        if file:
            self.save(file)
        values, buffers = self.rows.values, self.rows.buffers
        if bool(self.kept.any()):
            values = torch.where(self.kept[:, None], self.kept_values, values)
            buffers = _chosen(self.kept, self.kept_buffers, buffers)
        self.rows.write_back(values, buffers)
        stopped, unit = self.stopped.cpu().numpy(), self.unit
        return History(
            self.points,
            "epoch" if self.how.epochs else "step",
            self.measured,
            np.where(self.diverged.cpu().numpy(), stopped // unit, -1),
            np.where(stopped < 0, self.step, stopped),
            self.seconds,
        )

    def batch(self, step: int) -> Sequence[Tensor]:
        """Return the minibatch of a step; the last of a pass holds what is left."""
        if callable(self.data):
            return self.data(step)
        if self.how.batch_size is None:
            return self.data
        number, k = divmod(step, self.per_pass)
        if self.order[0] != number:
            seed = int(np.random.SeedSequence([self.how.shuffle_seed, number]).generate_state(1)[0])
            order = torch.randperm(self.n_sequences, generator=torch.Generator().manual_seed(seed))
            self.order = number, order.to(self.rates.device).split(self.how.batch_size)
        return [tensor.index_select(self.rows.dim, self.order[1][k]) for tensor in self.data]

    def take(self, step: int) -> None:
        """Take one step with every network that has not stopped."""
        losses, grad = self.rows.gradient(self.loss, self.batch(step))
        grad = torch.where(self.learned, grad, 0.0)
        finite = torch.isfinite(losses) & torch.isfinite(grad.sum(1))
        if not bool(finite.all()):
            diverged = ~finite & (self.stopped < 0)
            self.diverged |= diverged
            self.stop(diverged)
            grad[~finite] = 0.0
            if not self.going:
                return
        if self.how.clip_norm is not None:
            norm = torch.linalg.vector_norm(grad, self.how.norm_type, dim=1, keepdim=True)
            grad *= (self.how.clip_norm / norm).clamp(max=1)
        self.optimizer(self.rows.values, self.m, self.v, grad, self.rates, step + 1)
        if self.bounded:
            torch.maximum(self.rows.values, self.least, out=self.rows.values)
        self.rows.stepped()

    def stop(self, which: Tensor) -> None:
        """Stop networks, at the steps taken so far."""
        self.stopped[which] = self.step
        self.rates[which] = 0.0
        self.going = int((self.stopped < 0).sum())

    def evaluate(self) -> None:
        """Take every metric where an evaluation is due, and stop whom it tells to stop."""
        k = self.evaluated
        if k == len(self.points) or self.step != self.points[k] * self.unit or not self.going:
            return
        self.rows.base.eval()
        with torch.no_grad():
            values = {key: self.rows.measure(metric, self.eval_data) for key, metric in self.metrics.items()}
        self.rows.base.train()
        there = (self.stopped < 0).cpu().numpy()
        for key, value in values.items():
            array = value.cpu().numpy()
            if k == 0:
                kind = np.result_type(array.dtype, np.float32)
                self.measured[key] = np.full((len(array), len(self.points), *array.shape[1:]), np.nan, kind)
            self.measured[key][there, k] = array[there]
        self.evaluated = k + 1
        if self.keeps or self.how.lr_patience:
            key, first = next(iter(values.items()))
            if first.ndim != 1:
                raise ValueError(
                    "patience, lr_patience and stop_below need a first metric that is a scalar, got "
                    f"{key!r} of shape {tuple(first.shape[1:])}"
                )
            self.judge(first, k == 0)

    def judge(self, values: Tensor, first: bool) -> None:
        """Keep, stop and slow down networks by the values (networks,) of the first metric."""
        how, going = self.how, self.stopped < 0
        fell = self.fall(values) | first
        self.fall.waited.masked_fill_(fell, 0)
        stopping = torch.zeros_like(going)
        if how.patience:
            stopping |= self.fall.waited >= how.patience
        if how.stop_below is not None:
            self.low = torch.where(values <= how.stop_below, self.low + 1, 0)
            stopping |= self.low >= ROW
        if how.lr_patience and not first:
            self.lr_fall(values)
            late = self.lr_fall.waited == how.lr_patience
            self.rates[late] /= 2
            self.lr_fall.waited[late] = 0
        stopping &= going
        keeping = (fell if how.patience else stopping) & going
        if self.keeps and bool(keeping.any()):
            self.kept |= keeping
            self.kept_values[keeping] = self.rows.values[keeping]
            self.kept_buffers = _chosen(keeping, self.rows.buffers, self.kept_buffers)
        if bool(stopping.any()):
            self.stop(stopping)

    def tensors(self) -> dict[str, Tensor]:
        """Return what changes in place from step to step."""
        return dict(
            values=self.rows.values, m=self.m, v=self.v, rates=self.rates, stopped=self.stopped, diverged=self.diverged,
            best=self.fall.best, waited=self.fall.waited, lr_best=self.lr_fall.best, lr_waited=self.lr_fall.waited,
            low=self.low, kept=self.kept, kept_values=self.kept_values,
        )  # fmt: skip

    def save(self, file: Path) -> None:
        """Write a checkpoint as a whole or not at all."""
        measured = {key: torch.from_numpy(array) for key, array in self.measured.items()}
        numbers = dict(step=self.step, evaluated=self.evaluated, seconds=self.seconds)
        state = dict(of=file.stem, measured=measured, buffers=self.rows.buffers, kept_buffers=self.kept_buffers)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.stem}.{os.getpid()}.pt")
        try:
            torch.save(self.tensors() | numbers | state, part)
            os.replace(part, file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def restore(self, file: Path) -> None:
        """Go back to a checkpoint, if there is one; set aside what is none of this training."""
        if not file.exists():
            return
        device = self.rates.device
        try:
            state = torch.load(file, map_location=device, weights_only=True)
            if state["of"] != file.stem:
                raise ValueError(f"it is that of {state['of']}")
        except OSError:
            raise
        except Exception as error:  # whatever a file of other content makes of a reader
            aside = file.with_suffix(".damaged")
            os.replace(file, aside)
            print(
                f"{file} is no checkpoint of this training ({error!r}): now {aside.name}; beginning anew",
                file=sys.stderr,
            )
            return
        for key, tensor in self.tensors().items():
            tensor.copy_(state[key])
        self.measured = {key: tensor.cpu().numpy() for key, tensor in state["measured"].items()}
        self.kept_buffers = state["kept_buffers"]
        self.step, self.evaluated, self.seconds = state["step"], state["evaluated"], state["seconds"]
        self.going = int((self.stopped < 0).sum())
        self.rows.write_back(self.rows.values, state["buffers"])


def _chosen(which: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for the networks of which (networks,) new buffers, for others the old ones, if they have any."""

    def one(key: str, buffer: Tensor) -> Tensor:
        if key not in old or old[key].shape != buffer.shape:
            return buffer.clone()
        return torch.where(which.view(-1, *[1] * (buffer.ndim - 1)), buffer, old[key])

    return {key: one(key, buffer) for key, buffer in new.items()}


class _Stack:
    """The parameters of all networks as one matrix, a row a network, and measures on it."""

    dim = 2  # of the sequences, in data

    def __init__(self, networks: Sequence[nn.Module]):
        self.networks = networks
        named = dict(networks[0].named_parameters())
        self.names, self.shapes = list(named), [value.shape for value in named.values()]
        self.sizes = [shape.numel() for shape in self.shapes]
        rows = [torch.cat([value.detach().flatten() for value in net.parameters()]) for net in networks]
        self.values = torch.stack(rows)
        trained = [torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()]) for net in networks]
        self.trainable = torch.stack(trained).to(self.values.device)
        self.base: nn.Module = self.stack()

    def stack(self) -> nn.Module:
        """Stack the buffers too, and return the module that is called."""
        several = [dict(network.named_buffers()) for network in self.networks]
        self.buffers = {key: torch.stack([each[key].detach() for each in several]) for key in several[0]}
        return _Call(self.networks[0])

    def at_once(self, data: Sequence[Tensor], batch_size: int | None) -> int:
        """Return how many of the networks to train in one stack."""
        return min(max(AT_ONCE, NUMBERS // len(self.values[0])), max(1, int(MEMORY / self.footprint(data, batch_size))))

    def footprint(self, data: Sequence[Tensor], batch_size: int | None) -> float:
        """Return about how many bytes a step of one network takes: minibatch, states, and the optimiser's numbers."""
        size, numbers = self.values.shape[1], 4.0 * self.values.shape[1]
        for i, tensor in enumerate(data):
            share = 1.0 if batch_size is None or tensor.ndim < 3 else batch_size / tensor.shape[2]
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

    def measure(self, function: Metric, data: Sequence[Tensor]) -> Tensor:
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

    def gradient(self, loss: Metric, data: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the losses (networks,) and their gradients (networks, numbers)."""
        p = self.values.requires_grad_(True)
        losses = _scalar(self.measure(loss, data), 1)
        (grad,) = torch.autograd.grad(losses.sum(), p)
        p.requires_grad_(False)
        return losses.detach(), grad

    def stepped(self) -> None:
        """Let the networks have the rows after a step, where that is what is called."""

    def write_back(self, values: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """Put rows and buffers into the networks."""
        for key, buffer in buffers.items():
            self.buffers[key].copy_(buffer)
        with torch.no_grad():
            for i, (network, row) in enumerate(zip(self.networks, values, strict=True)):
                for parameter, part in zip(network.parameters(), row.split(self.sizes), strict=True):
                    parameter.copy_(part.view_as(parameter))
                for key, buffer in network.named_buffers():
                    buffer.copy_(buffers[key][i])


class _Alone(_Stack):
    """The same of one network, which is called as it is; its buffers are its own."""

    dim = 1

    def stack(self) -> nn.Module:
        """Return the network, and remember what to write to it."""
        (network,) = self.networks
        self.parameters = list(network.parameters())
        self.learned = [p for p in self.parameters if p.requires_grad]
        self.zeros = {id(p): torch.zeros(p.numel(), dtype=p.dtype, device=p.device) for p in self.parameters}
        return network

    @property
    def buffers(self) -> dict[str, Tensor]:  # type: ignore[override]
        """The network's buffers as they are now, with the network as first dimension."""
        return {key: buffer.detach()[None] for key, buffer in self.base.named_buffers()}

    def measure(self, function: Metric, data: Sequence[Tensor]) -> Tensor:
        """Return ``function(network, *data)``, with the network as first dimension."""
        return function(self.base, *data)[None]

    def gradient(self, loss: Metric, data: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss (1,) and its gradient (1, numbers)."""
        losses = _scalar(self.measure(loss, data), 1)
        found = torch.autograd.grad(losses[0], self.learned, allow_unused=True)
        grads = {id(p): grad.flatten() for p, grad in zip(self.learned, found, strict=True) if grad is not None}
        return losses.detach(), torch.cat([grads.get(id(p), self.zeros[id(p)]) for p in self.parameters])[None]

    def stepped(self) -> None:
        """Copy the row into the parameters."""
        with torch.no_grad():
            for p, part in zip(self.parameters, self.values[0].split(self.sizes), strict=True):
                p.copy_(part.view_as(p))

    def write_back(self, values: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """Put the row and the buffers into the network; in place, where a buffer has kept its shape."""
        with torch.no_grad():
            for p, part in zip(self.parameters, values[0].split(self.sizes), strict=True):
                p.copy_(part.view_as(p))
            for key, value in buffers.items():
                path, _, name = key.rpartition(".")
                module = self.base.get_submodule(path)
                now = module._buffers[name]
                if now is not None and now.shape == value[0].shape:
                    now.copy_(value[0])
                else:
                    setattr(module, name, value[0].clone())


def _scalar(losses: Tensor, ndim: int) -> Tensor:
    if losses.ndim != ndim:
        raise ValueError(
            f"loss must return a scalar, got shape {tuple(losses.shape[1:])}: end it with .mean() or .sum()"
        )
    return losses


class _Call(nn.Module):
    """Gives a function of a network the network whose parameters `functional_call` has put in."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.held = [(each._buffers, key, path) for path, each in network.named_modules() for key in each._buffers]

    def forward(self, function: Metric, *data: Tensor) -> Tensor:
        """Return ``function(network, *data)``."""
        before = [buffers[key] for buffers, key, _ in self.held]
        found = function(self.network, *data)
        for tensor, (buffers, key, path) in zip(before, self.held, strict=True):
            if buffers[key] is not tensor:
                raise ValueError(
                    f"buffer {f'{path}.{key}'.lstrip('.')!r} was assigned anew, which is lost in a stack: change it in "
                    "place (copy_), or call fit for each network by itself"
                )
        return found
