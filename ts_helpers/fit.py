"""The one training loop, for one network or for many of one architecture at once; no task, no model and no plot."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ts_helpers._checkpoint import Identity, read, write
from ts_helpers._stack import Alone, Metric, PerNetwork, Stack, described_together
from ts_helpers.progress import progress

Data = Sequence[Tensor] | Callable[[int], Sequence[Tensor]]

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as everywhere
ALPHA = 0.9  # RMSprop's moving average, as in Tieleman & Hinton's lecture; torch's own default is 0.99
AT_ONCE, NUMBERS = 32, 100_000  # networks in one stack, or as many more as have so many parameters together: beyond
# that, more bring no speed on a CPU, and fall out of its cache
MEMORY = 4 * 2**30  # bytes that a step of a stack may take


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
    `torch.func.vmap`; one alone is called as in any loop of PyTorch. Modules are in training mode for steps, in
    evaluation mode for metrics. A network whose loss or gradient is not finite keeps its parameters from then on.

    Args:
        networks: one, or a sequence of networks that differ in nothing but parameters and buffers.
        loss: ``loss(network, *data)``, a scalar, of one network.
        data: tensors, (time, sequences, ...) where minibatches are cut, or ``batch(step)`` that makes them for a step,
            0, 1, ..., the same whenever it is asked. With a sequence of networks all have one dimension more, the
            first: the networks.
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
        lr_patience: as many such evaluations after which its learning rates are halved, and again after as many more.
        stop_below: a network stops after three evaluations in a row with a first metric at or below this.
        time_limit: hours that this call may take, at once if 0; the next call goes on from the checkpoint.
        checkpoint: folder in which the state is kept once a minute and at the end. A call with the same networks, data,
            functions (see `Identity`) and settings goes on from there, to the same numbers as without interruption.
        name: stands before the progress bar.

    Returns:
        What was measured, networks in the order given.

    Raises:
        ValueError: networks that cannot be trained together, data that do not fit them, a loss that is no scalar, a
            rate or size out of range, or a name that fits no parameter.
    """
    metrics = {"loss": loss} if metrics is None else dict(metrics)
    how = (epochs, n_steps, batch_size, shuffle_seed, optimizer, clip_norm, norm_type)
    plan = _Plan(*how, eval_interval, patience, lr_patience, stop_below)
    plan.check(callable(data), bool(metrics))
    if callable(data) and eval_data is None:
        raise ValueError("eval_data must be given where data is a function")
    if time_limit is not None and (checkpoint is None or not time_limit >= 0):
        raise ValueError(f"time_limit must be 0 or more and needs a checkpoint, got {time_limit=}, {checkpoint=}")
    single = isinstance(networks, nn.Module)
    nets = [networks] if isinstance(networks, nn.Module) else list(networks)
    identity = Identity()
    described = described_together(nets, identity)
    first = data(0) if callable(data) else data
    for tensor in () if single else (*first, *(eval_data or ())):
        if len(tensor) != len(nets):
            raise ValueError(f"data must have {len(nets)} networks in its first dimension, got {len(tensor)}")
    rows = Stack(nets) if len(nets) > 1 else Alone(nets)
    rates = rows.spread(lr_scale or {}, 1.0) * rows.column(lr, "lr") * rows.trainable
    if not bool(((rates >= 0) & torch.isfinite(rates)).all()):
        raise ValueError("lr times lr_scale must be finite and 0 or more for every network")
    least = rows.spread(lower_bounds or {}, -math.inf)
    settled = ""
    if checkpoint:
        functions = identity.of([loss, metrics, data if callable(data) else None])
        settled = repr([astuple(plan), described, functions, identity.sources(), torch.__version__])
    until = math.inf if time_limit is None else time.perf_counter() + 3600 * time_limit
    size = max(AT_ONCE, NUMBERS // rows.values.shape[1])
    if len(nets) > 1:
        size = min(size, max(1, int(MEMORY / rows.footprint(first, batch_size))))
    histories = []
    for start in range(0, len(nets), size):
        part = slice(start, start + size)

        def cut(tensors: Sequence[Tensor], index: slice = part) -> list[Tensor]:
            return list(tensors) if single else [tensor[index if len(nets) > 1 else 0] for tensor in tensors]

        own = (lambda step, cut=cut: cut(data(step))) if callable(data) else cut(data)
        held = cut(first if eval_data is None else eval_data)
        some = rows if size >= len(nets) else Stack(nets[part])
        run = _Run(plan, some, loss, own, metrics, held, rates[part].clone(), least[part])
        file = None
        if checkpoint:
            decides = identity.of([some.values, some.buffers, rates[part], least[part], cut(first), held])
            file = checkpoint / f"{hashlib.sha256((settled + decides).encode()).hexdigest()[:16]}.pt"
        which = name if some is rows else f"{name} {start // size + 1}/{-(-len(nets) // size)}"
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
class _Plan:
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


class _Run:
    """The training of one stack, or of one network alone."""

    def __init__(
        self,
        plan: _Plan,
        rows: Stack,
        loss: Metric,
        data: Data,
        metrics: Mapping[str, Metric],
        eval_data: Sequence[Tensor],
        rates: Tensor,
        least: Tensor,
    ):
        self.plan, self.rows, self.loss, self.data, self.metrics = plan, rows, loss, data, metrics
        self.eval_data, self.rates, self.least = eval_data, rates, least
        self.bounded, self.learned = bool((least > -math.inf).any()), rates > 0
        self.per_pass, self.n_sequences, self.orders = 1, 0, (-1, ())  # the orders of a pass: its number, and each
        if plan.batch_size is not None and not callable(data):
            sizes = {tensor.shape[rows.dim] if tensor.ndim > rows.dim else 0 for tensor in data}
            self.n_sequences = max(sizes, default=0)
            if len(sizes) != 1 or not 1 <= plan.batch_size <= self.n_sequences:
                got = f"batch_size={plan.batch_size}, {sizes=}"
                raise ValueError(f"batch_size must be 1 or more and at most the sequences of the data, got {got}")
            self.per_pass = -(-self.n_sequences // plan.batch_size)
        units = plan.epochs or plan.n_steps or 0
        self.unit = self.per_pass if plan.epochs else 1  # steps
        self.total, self.points = units * self.unit, [*range(0, units, plan.eval_interval), units]
        self.step, self.evaluated, self.seconds, self.over = 0, 0, 0.0, False
        self.measured: dict[str, np.ndarray] = {}
        self.kept_buffers: dict[str, Tensor] = {}
        keeps = plan.patience is not None or plan.stop_below is not None
        none = torch.zeros(len(rates), dtype=torch.int64, device=rates.device)
        least_before = torch.full_like(rates[:, 0], torch.inf)
        self.state = dict(  # all that changes in place
            values=rows.values, rates=rates, v=torch.zeros_like(rows.values),
            m=torch.zeros_like(rows.values if plan.optimizer == "adam" else rates[:, :0]),
            stopped=none - 1, diverged=none > 0,  # steps before a network stopped, -1 while it goes on; and why
            best=least_before, waited=none.clone(), lr_best=least_before.clone(), lr_waited=none.clone(), low=none,
            kept=none > 0, kept_values=rows.values.clone() if keeps else rates[:, :0],  # to be left so; and how
        )  # fmt: skip

    @property
    def going(self) -> Tensor:
        """Which networks (networks,) have not stopped."""
        return self.state["stopped"] < 0

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
                if now >= until or self.over:
                    break
                self.take(step)
                now = time.perf_counter()
                self.step, self.seconds = step + 1, before + now - start
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
        kept, values, buffers = self.state["kept"], self.rows.values, self.rows.buffers
        values = torch.where(kept[:, None], self.state["kept_values"], values) if bool(kept.any()) else values
        self.rows.write_back(values, _chosen(kept, self.kept_buffers, buffers))
        stopped = self.state["stopped"].cpu().numpy()
        return History(
            np.array(self.points),
            "epoch" if self.plan.epochs else "step",
            self.measured,
            np.where(self.state["diverged"].cpu().numpy(), stopped // self.unit, -1),
            np.where(stopped < 0, self.step, stopped),
            self.seconds,
        )

    def batch(self, step: int) -> Sequence[Tensor]:
        """Return the minibatch of a step."""
        if callable(self.data):
            return self.data(step)
        if self.plan.batch_size is None:
            return self.data
        number, k = divmod(step, self.per_pass)
        if self.orders[0] != number:
            seed = int(np.random.SeedSequence([self.plan.shuffle_seed, number]).generate_state(1)[0])
            order = torch.randperm(self.n_sequences, generator=torch.Generator().manual_seed(seed))
            self.orders = number, order.to(self.rates.device).split(self.plan.batch_size)
        return [tensor.index_select(self.rows.dim, self.orders[1][k]) for tensor in self.data]

    def take(self, step: int) -> None:
        """Take one step with every network that has not stopped."""
        losses, grad = self.rows.gradient(self.loss, self.batch(step))
        if losses.ndim != 1:
            raise ValueError(f"loss must return a scalar, got shape {tuple(losses.shape[1:])}: take its mean or sum")
        grad = torch.where(self.learned, grad, 0.0)
        finite = torch.isfinite(losses) & torch.isfinite(grad.sum(1))
        if not bool(finite.all()):
            diverged = ~finite & self.going
            self.state["diverged"] |= diverged
            self.stop(diverged)
            grad[~finite] = 0.0
        if self.plan.clip_norm is not None:
            norm = torch.linalg.vector_norm(grad, self.plan.norm_type, dim=1, keepdim=True)
            grad *= (self.plan.clip_norm / norm).clamp(max=1)
        values = self.rows.values
        OPTIMIZERS[self.plan.optimizer](values, self.state["m"], self.state["v"], grad, self.rates, step + 1)
        if self.bounded:
            torch.maximum(values, self.least, out=values)
        if isinstance(self.rows, Alone):
            self.rows.write_back(values, {})

    def stop(self, which: Tensor) -> None:
        """Stop networks after the steps taken so far."""
        self.state["stopped"][which] = self.step
        self.rates[which] = 0.0
        self.over = not bool(self.going.any())

    def evaluate(self) -> None:
        """Take every metric where an evaluation is due, and see who is to stop."""
        k = self.evaluated
        if self.over or k == len(self.points) or self.step != self.points[k] * self.unit:
            return
        self.rows.base.eval()
        with torch.no_grad():
            values = {key: self.rows.measure(metric, self.eval_data) for key, metric in self.metrics.items()}
        self.rows.base.train()
        going = self.going.cpu().numpy()
        for key, value in values.items():
            array = value.detach().cpu().numpy()
            shape, kind = (len(array), len(self.points), *array.shape[1:]), np.result_type(array.dtype, np.float32)
            self.measured.setdefault(key, np.full(shape, np.nan, kind))[going, k] = array[going]
        self.evaluated = k + 1
        if any(each is not None for each in (self.plan.patience, self.plan.lr_patience, self.plan.stop_below)):
            self.judge(*next(iter(values.items())), k == 0)

    def judge(self, name: str, values: Tensor, first: bool) -> None:
        """Keep, slow down and stop networks by the values (networks,) of the first metric."""
        plan, state, going = self.plan, self.state, self.going
        if values.ndim != 1:
            shape = tuple(values.shape[1:])
            raise ValueError(f"patience, lr_patience and stop_below need a scalar first, {name!r} has shape {shape}")
        fell = _fell(values, state["best"], state["waited"]) | first
        waited = state["waited"].masked_fill_(fell, 0)
        if plan.lr_patience and not first:
            _fell(values, state["lr_best"], state["lr_waited"])
            late = state["lr_waited"] == plan.lr_patience
            self.rates[late] /= 2
            state["lr_waited"][late] = 0
        stopping = torch.zeros_like(going)
        if plan.patience:
            stopping |= waited >= plan.patience
        if plan.stop_below is not None:
            low = values <= plan.stop_below
            stopping |= state["low"].add_(1).masked_fill_(~low, 0) >= 3
        stopping &= going
        if plan.patience or plan.stop_below is not None:
            keeping = going & (fell if plan.patience else stopping)
            state["kept"] |= keeping
            state["kept_values"].copy_(torch.where(keeping[:, None], self.rows.values, state["kept_values"]))
            if bool(keeping.any()):
                self.kept_buffers = _chosen(keeping, self.rows.buffers, self.kept_buffers)
        self.stop(stopping)

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        numbers = dict(step=self.step, evaluated=self.evaluated, seconds=self.seconds)
        measured = {key: torch.from_numpy(array) for key, array in self.measured.items()}
        buffers = dict(buffers=self.rows.buffers, kept_buffers=self.kept_buffers)
        write(file, dict(self.state, measured=measured) | buffers | numbers)

    def restore(self, file: Path) -> None:
        """Go back to a checkpoint, if there is one."""
        found = read(file, self.rates.device)
        if found is None:
            return
        for key, tensor in self.state.items():
            tensor.copy_(found[key])
        self.measured = {key: tensor.cpu().numpy() for key, tensor in found["measured"].items()}
        self.step, self.evaluated, self.seconds = found["step"], found["evaluated"], found["seconds"]
        self.kept_buffers, self.over = found["kept_buffers"], not bool(self.going.any())
        self.rows.buffers.update(found["buffers"])  # a stack's; those of a network alone are its own
        self.rows.write_back(self.rows.values, found["buffers"])


def _fell(values: Tensor, best: Tensor, waited: Tensor) -> Tensor:
    """Return where values (networks,) are below the best before; note these, and count those in a row that are not."""
    fell = values < best
    best.copy_(torch.where(fell, values, best))
    waited.add_(1).masked_fill_(fell, 0)
    return fell


def _chosen(which: Tensor, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return new buffers for the networks of which (networks,), the old ones for others."""
    found = dict(old)
    for key, buffer in new.items():
        same = key in old and old[key].shape == buffer.shape
        mask = which.view(-1, *[1] * (buffer.ndim - 1))
        found[key] = torch.where(mask, buffer, old[key]) if same else buffer.clone()
    return found
