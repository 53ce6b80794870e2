"""The one training loop, for one network or for many of one architecture at once; no task, no model and no plot."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ts_helpers._check import at_least, instance, numbered, one_of, within
from ts_helpers._checkpoint import Identity, read, write
from ts_helpers._stack import Metric, PerNetwork, Stack, described_together
from ts_helpers.progress import progress
from ts_helpers.seeding import generator_of

Data = Sequence[Tensor] | Callable[[int], Sequence[Tensor]]

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as everywhere
ALPHA = 0.9  # RMSprop's moving average, as in Tieleman & Hinton's lecture; torch's own default is 0.99
AT_ONCE, NUMBERS = 32, 100_000  # networks in a stack, or as many as have so many parameters: more outgrow a CPU's cache
MEMORY = 4 * 2**30  # bytes that a step of a stack may take


def adam(p: Tensor, m: Tensor, v: Tensor, grad: Tensor, rates: Tensor, step: int) -> None:
    """One step of Adam, as `torch.optim.Adam` takes it, with a learning rate for every number."""
    m.lerp_(grad, 1 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
    spread = (v / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    p.sub_((m / spread).mul_(rates).div_(1 - BETAS[0] ** step))


def rmsprop(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    rates: Tensor,
    step: int,
) -> None:
    """One step of `torch.optim.RMSprop` at ``alpha=ALPHA``; m and step go unused."""
    v.mul_(ALPHA).addcmul_(grad, grad, value=1 - ALPHA)
    p.sub_((grad * rates).div_(v.sqrt().add_(EPSILON)))  # in torch's order, to the bit


OPTIMIZERS = {"adam": adam, "rmsprop": rmsprop}


@dataclass
class History:
    """How a training went."""

    at: np.ndarray  # (points,), epochs or steps before each evaluation; the first is before any training
    unit: str  # "epoch" or "step"
    metrics: dict[str, np.ndarray]  # each (networks, points, ...), NaN after a network stopped
    diverged: np.ndarray  # (networks,), epoch or step at which loss or gradient stopped being finite, -1 if never
    n_steps: np.ndarray  # (networks,), steps of the optimiser that were taken
    seconds: float  # spent, over all interruptions


def fit(
    networks: nn.Module | Sequence[nn.Module], loss: Metric, data: Data, *,
    epochs: int | None = None, n_steps: int | None = None, batch_size: int | None = None, shuffle_seed: int = 0,
    optimizer: str = "adam", lr: PerNetwork = 1e-3, lr_scale: Mapping[str, PerNetwork] | None = None,
    lower_bounds: Mapping[str, PerNetwork] | None = None, clip_norm: float | None = None, norm_type: float = 2.0,
    metrics: Mapping[str, Metric] | None = None, eval_data: Sequence[Tensor] | None = None, eval_interval: int = 1,
    patience: int | None = None, lr_patience: int | None = None, stop_below: float | None = None,
    checkpoint: Path | str | None = None, name: str = "fit",
) -> History:  # fmt: skip
    """Train a network, or many of one architecture, each as if alone: descent on its own loss, at its own rates.

    Many are stacked, `AT_ONCE` or more at a time, or less where they would take more than `MEMORY`, and run under
    `torch.func.vmap`; one alone is called as in any loop of PyTorch. Modules are in training mode for steps, in
    evaluation mode for metrics. Subnormal numbers count as 0 meanwhile. A network whose loss or gradient is not finite
    keeps its parameters from then on. What cannot be trained (together), data that do not fit, and settings out of
    range raise a ValueError, other types a TypeError.

    Args:
        networks: one, or several that differ in parameters and buffers alone.
        loss: ``loss(network, *data)``, a scalar.
        data: tensors, (time, sequences, ...) where minibatches are cut, or ``batch(step)`` that makes them for a step,
            0, 1, ..., the same whenever asked. With a sequence of networks all have these as first dimension.
        epochs: passes through the data (without batch_size one step each).
        n_steps: steps of the optimiser, in the place of epochs.
        batch_size: sequences in a minibatch (None: all; the last has the rest).
        shuffle_seed: seed of the minibatches' orders.
        optimizer: "adam" or "rmsprop".
        lr: its learning rate, one number or one a network.
        lr_scale: by name of parameter (wild cards allowed), what multiplies its learning rate, one number or one a
            network; 0 keeps it as it is, and out of the gradient's norm, as does ``requires_grad = False``.
        lower_bounds: by name of parameter, the least value it is set back to after each step (projection).
        clip_norm: to which norm a network's longer gradient is scaled down.
        norm_type: which norm that is, 2 or ``math.inf``.
        metrics: ``metric(network, *eval_data) -> tensor`` by name, without gradient; None: the loss.
        eval_data: what metrics are evaluated on; None: data.
        eval_interval: epochs or steps between two evaluations; one more is after the last step.
        patience: evaluations in a row whose first metric was not below the least before, after which a network stops.
            However its training ends, the network is then left as it was at its first evaluation with the least.
        lr_patience: such evaluations after which its learning rates are halved, and again after as many more.
        stop_below: a network stops after three evaluations in a row with a first metric at or below this.
        checkpoint: folder that keeps the state once a minute and at the end. A call with the same networks, data,
            functions (see `Identity`) and settings goes on from there, to the same numbers as without interruption.
        name: stands before the progress bar.
    """
    instance((nn.Module, Sequence), "a module or several", networks=networks)
    instance((Callable, Sequence), "tensors or a function", data=data, eval_data=() if eval_data is None else eval_data)
    instance(Callable, "a function", loss=loss)
    instance(Mapping | None, "functions by name", metrics=metrics)
    instance(str | Path | None, "a folder", checkpoint=checkpoint)
    metrics, made = {"loss": loss} if metrics is None else dict(metrics), callable(data)
    counts = dict(epochs=epochs, n_steps=n_steps, eval_interval=eval_interval, batch_size=batch_size)
    counts |= dict(patience=patience, lr_patience=lr_patience)
    for key, n in counts.items():
        if n is not None:
            at_least(1, **{key: n})
            counts[key] = int(n)  # of NumPy's too
    generator_of(shuffle_seed)
    one_of(OPTIMIZERS, optimizer=optimizer)
    for interval, key, number in (
        ("(0, inf]", "clip_norm", clip_norm), ("(-inf, inf)", "stop_below", stop_below),
        ("[2, inf]", "norm_type", norm_type),
    ):  # fmt: skip
        if number is not None:
            within(interval, **{key: number})
    judged = (patience, lr_patience, stop_below) != (None, None, None)
    for broken, rule in (
        ((epochs is None) == (n_steps is None), f"give either epochs or n_steps, got {epochs=}, {n_steps=}"),
        (made and (n_steps is None or batch_size is not None),
         "data that is a function makes its own batches: give n_steps with it, no epochs and no batch_size"),
        (made and eval_data is None, "eval_data must be given where data is a function"),
        (norm_type not in (2.0, math.inf), f"norm_type must be 2 or infinity, got {norm_type}"),
        (judged and not metrics, "patience, lr_patience and stop_below need a metric, got none"),
    ):  # fmt: skip
        if broken:
            raise ValueError(rule)
    single = isinstance(networks, nn.Module)
    nets = [networks] if isinstance(networks, nn.Module) else list(networks)
    identity = Identity()
    described = described_together(nets, identity)
    if not any(p.requires_grad for net in nets for p in net.parameters()):
        raise ValueError("networks must have a parameter to learn: requires_grad is False of all, or there is none")
    first = data(0) if callable(data) else data
    for key, tensors in dict(networks=nets[0].parameters(), data=first, eval_data=eval_data or ()).items():
        for tensor in tensors:
            numbered(**{key: tensor})
    for tensor in () if single else (*first, *(eval_data or ())):
        if tensor.shape[:1] != (len(nets),):
            raise ValueError(f"data must have {len(nets)} networks in its first dimension, got {tuple(tensor.shape)}")
    rows = Stack(nets, alone=len(nets) == 1)
    rates = rows.spread({} if lr_scale is None else lr_scale, 1.0, "lr_scale") * rows.column(lr, "lr") * rows.trainable
    if not bool(((rates >= 0) & torch.isfinite(rates)).all()):
        raise ValueError("lr times lr_scale must be finite and 0 or more for every network")
    least = rows.spread({} if lower_bounds is None else lower_bounds, -math.inf, "lower_bounds")
    if bool(least.isnan().any()):
        raise ValueError("lower_bounds must be numbers, got NaN")
    how = dict(shuffle_seed=shuffle_seed, optimizer=optimizer, clip_norm=clip_norm)
    plan = SimpleNamespace(**counts, **how, norm_type=norm_type, stop_below=stop_below, judged=judged)
    functions = identity.of([loss, metrics, data if made else None]) if checkpoint else ""
    settled = repr([plan, described, functions, identity.sources() if checkpoint else "", torch.__version__])
    size = max(AT_ONCE, NUMBERS // rows.values.shape[1])
    if not rows.alone:
        size = min(size, max(1, int(MEMORY / rows.footprint(first, batch_size))))
    found = []
    for start in range(0, len(nets), size):
        part = slice(start, start + size)

        def cut(tensors: Sequence[Tensor], index: slice | int = 0 if rows.alone else part) -> list[Tensor]:
            return list(tensors) if single else [tensor[index] for tensor in tensors]

        own = (lambda step, cut=cut: cut(data(step))) if callable(data) else cut(data)
        held = cut(first if eval_data is None else eval_data)
        some = rows if size >= len(nets) else Stack(nets[part])
        run = _Run(plan, some, loss, own, metrics, held, least[part], rates[part].clone())
        file = None
        if checkpoint:
            decides = identity.of([some.values, some.buffers, rates[part], least[part], cut(first), held])
            file = Path(checkpoint) / f"{hashlib.sha256((settled + decides).encode()).hexdigest()[:16]}.pt"
        which = f"{name} {start // size + 1}/{-(-len(nets) // size)}"
        found.append(run.go(file, which.removesuffix(" 1/1")))
    joined = {key: np.concatenate([each.metrics[key] for each in found]) for key in metrics}
    diverged, taken = (np.concatenate([getattr(each, key) for each in found]) for key in ("diverged", "n_steps"))
    return History(found[0].at, found[0].unit, joined, diverged, taken, sum(each.seconds for each in found))


class _Run:
    """The training of one stack, or of one network alone, by what `fit` was told."""

    def __init__(
        self, plan: SimpleNamespace, rows: Stack, loss: Metric, data: Data, metrics: Mapping[str, Metric],
        eval_data: Sequence[Tensor], least: Tensor, rates: Tensor,
    ):  # fmt: skip
        self.plan, self.rows, self.loss, self.data = plan, rows, loss, data
        self.metrics, self.eval_data, self.least = metrics, eval_data, least
        self.bounded, self.learned = bool((least > -math.inf).any()), rates > 0
        self.per_pass, self.n_sequences, self.orders = 1, 0, (-1, ())  # the orders of a pass: its number, and each
        if plan.batch_size is not None and not callable(self.data):
            sizes = {tensor.shape[rows.dim] if tensor.ndim > rows.dim else 0 for tensor in self.data}
            self.n_sequences = max(sizes, default=0)
            if len(sizes) != 1 or plan.batch_size > self.n_sequences:
                got = f"batch_size={plan.batch_size}, {sizes=}"
                raise ValueError(f"batch_size must be at most the sequences of the data, as many in all, got {got}")
            self.per_pass = -(-self.n_sequences // plan.batch_size)
        units, self.unit = plan.epochs or plan.n_steps, self.per_pass if plan.epochs else 1  # in steps
        self.points = [*range(0, units, plan.eval_interval), units]
        keeps = plan.patience is not None or plan.stop_below is not None
        none = torch.zeros(len(rates), dtype=torch.int64, device=rates.device)
        high = torch.full_like(rates[:, 0], torch.inf)
        self.now = SimpleNamespace(  # all that changes
            step=0, evaluated=0, seconds=0.0, over=False, measured={}, kept_buffers={},
            values=rows.values, rates=rates, v=torch.zeros_like(rows.values),
            m=torch.zeros_like(rows.values if plan.optimizer == "adam" else rates[:, :0]),
            stopped=none - 1, diverged=none > 0,  # steps before a network stopped, -1 while it goes on; and why
            best=high, waited=none.clone(), lr_best=high.clone(), lr_waited=none.clone(), low=none,
            kept=none > 0, kept_values=rows.values.clone() if keeps else rates[:, :0],  # to be left so; and how
        )  # fmt: skip

    def go(self, file: Path | None, name: str) -> History:
        """Train to the end, from the checkpoint if there is one."""
        now, rows = self.now, self.rows
        if file and (found := read(file, rows.values.device)):
            vars(now).update(found, measured={key: tensor.cpu() for key, tensor in found["measured"].items()})
            rows.values = now.values
            rows.stacked.update(found["buffers"])  # those of a network alone are its own
            rows.write_back(now.values, found["buffers"])
        before, start, total = now.seconds, time.perf_counter(), self.points[-1] * self.unit
        saved = clock = start
        modes = [(module, module.training) for module in rows.base.modules()]
        rows.base.train()
        try:
            with _without_subnormals():
                for step in progress(range(now.step, total), name, total, now.step, len(self.points)):
                    self.evaluate()
                    if now.over:
                        break
                    self.take(step)
                    clock = time.perf_counter()
                    now.step, now.seconds = step + 1, before + clock - start
                    if file and clock - saved > 60:
                        write(file, vars(now) | {"buffers": rows.buffers})
                        saved = clock
                else:
                    self.evaluate()
        finally:
            for module, mode in modes:
                module.training = mode
        if file:
            write(file, vars(now) | {"buffers": rows.buffers})
        values = torch.where(now.kept[:, None], now.kept_values, now.values) if bool(now.kept.any()) else now.values
        rows.write_back(values, _chosen(now.kept, now.kept_buffers, rows.buffers))
        stopped, unit = now.stopped.cpu().numpy(), "epoch" if self.plan.epochs else "step"
        diverged = np.where(now.diverged.cpu().numpy(), stopped // self.unit, -1)
        measured = {key: tensor.numpy() for key, tensor in now.measured.items()}
        taken = np.where(stopped < 0, now.step, stopped)
        return History(np.array(self.points), unit, measured, diverged, taken, now.seconds)

    def batch(self, step: int) -> Sequence[Tensor]:
        """Return the minibatch of a step."""
        if callable(self.data):
            return self.data(step)
        if self.plan.batch_size is None:
            return self.data
        number, k = divmod(step, self.per_pass)
        if self.orders[0] != number:
            order = torch.randperm(self.n_sequences, generator=generator_of(self.plan.shuffle_seed, number))
            self.orders = number, order.to(self.least.device).split(self.plan.batch_size)
        return [tensor.index_select(self.rows.dim, self.orders[1][k]) for tensor in self.data]

    def take(self, step: int) -> None:
        """Take one step with every network that has not stopped."""
        plan, now, rows = self.plan, self.now, self.rows
        losses, grad = rows.gradient(self.loss, self.batch(step))
        if losses.ndim != 1:
            got = f"got shape {tuple(losses.shape[1:])}: take its mean or sum"
            raise ValueError(f"loss must return a scalar, {got}")
        grad = torch.where(self.learned, grad, 0.0)
        finite = torch.isfinite(losses) & torch.isfinite(grad.sum(1))
        if not bool(finite.all()):
            diverged = ~finite & (now.stopped < 0)
            now.diverged |= diverged
            self.stop(diverged)
            grad[~finite] = 0.0
        if plan.clip_norm is not None:
            norm = torch.linalg.vector_norm(grad, plan.norm_type, dim=1, keepdim=True)
            grad *= (float(plan.clip_norm) / norm).clamp(max=1)
        OPTIMIZERS[plan.optimizer](now.values, now.m, now.v, grad, now.rates, step + 1)
        if self.bounded:
            torch.maximum(now.values, self.least, out=now.values)
        if rows.alone:
            rows.write_back(now.values, {})

    def stop(self, which: Tensor) -> None:
        """Stop networks after the steps taken so far."""
        self.now.stopped[which] = self.now.step
        self.now.rates[which] = 0.0
        self.now.over = not bool((self.now.stopped < 0).any())

    def evaluate(self) -> None:
        """Take every metric where an evaluation is due, and see who is to stop."""
        now, k = self.now, self.now.evaluated
        if now.over or k == len(self.points) or now.step != self.points[k] * self.unit:
            return
        self.rows.base.eval()
        with torch.no_grad():
            values = {key: self.rows.measure(metric, self.eval_data) for key, metric in self.metrics.items()}
        self.rows.base.train()
        going = (now.stopped < 0).cpu().numpy()
        for key, value in values.items():
            array = value.detach().cpu().numpy()
            shape, kind = (len(array), len(self.points), *array.shape[1:]), np.result_type(array.dtype, np.float32)
            whole = now.measured.setdefault(key, torch.from_numpy(np.full(shape, np.nan, kind)))
            whole.numpy()[going, k] = array[going]
        now.evaluated = k + 1
        if self.plan.judged:
            self.judge(*next(iter(values.items())), k == 0)

    def judge(self, name: str, values: Tensor, first: bool) -> None:
        """Keep, slow down and stop networks by the values (networks,) of the first metric."""
        plan, now, going = self.plan, self.now, self.now.stopped < 0
        if values.ndim != 1:
            shape = tuple(values.shape[1:])
            raise ValueError(f"patience, lr_patience and stop_below need a scalar first, {name!r} has shape {shape}")
        fell = _fell(values, now.best, now.waited) | first
        now.waited.masked_fill_(fell, 0)
        if plan.lr_patience and not first:
            _fell(values, now.lr_best, now.lr_waited)
            late = now.lr_waited == plan.lr_patience
            now.rates[late] /= 2
            now.lr_waited[late] = 0
        stopping = now.waited >= (plan.patience or math.inf)
        if plan.stop_below is not None:
            stopping |= now.low.add_(1).masked_fill_(~(values <= float(plan.stop_below)), 0) >= 3
        stopping &= going
        if plan.patience or plan.stop_below is not None:
            keeping = going & (fell if plan.patience else stopping)
            now.kept |= keeping
            now.kept_values.copy_(torch.where(keeping[:, None], now.values, now.kept_values))
            if bool(keeping.any()):
                now.kept_buffers = _chosen(keeping, self.rows.buffers, now.kept_buffers)
        self.stop(stopping)


@contextmanager
def _without_subnormals() -> Iterator[None]:
    """Take numbers too small for a full mantissa, below 1e-38 in float32, as 0: gradients that vanish over many steps.

    A processor may be a hundred times slower at them. Threads that begin meanwhile do the same.
    """
    before = bool(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1 == 0)  # whatever the defaults are
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


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
