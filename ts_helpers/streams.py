"""Train one network on batches that are made as they are needed.

For networks whose products fill a processor by themselves; small ones are trained side by side, see `ensembles`.
"""

import copy
import hashlib
import inspect
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ts_helpers.progress import progress

Loss = Callable[..., Tensor]
Batch = Callable[[int], Sequence[Tensor]]


@dataclass
class Course:
    """How a training went.

    Attributes:
        step: (looks,), steps taken before each look.
        loss: (looks,), or what else was looked at, on held-out data; NaN after the training had stopped.
        diverged: whether loss or gradient stopped being finite.
        seconds: spent, over all runs from checkpoint to checkpoint.
        taken: steps of training taken in all.
    """

    step: np.ndarray
    loss: np.ndarray
    diverged: bool
    seconds: float
    taken: int


def train(
    network: nn.Module,
    loss: Loss,
    batch: Batch,
    held: Sequence[Tensor],
    *,
    steps: int,
    every: int,
    optimizer: torch.optim.Optimizer,
    clip: float = math.inf,
    enough: float = 0.0,
    look: Loss | None = None,
    patience: int | None = None,
    precision: str = "float32",
    gradient: Callable[..., Tensor] | None = None,
    hours: float | None = None,
    checkpoint: Path | None = None,
    name: str = "train",
) -> Course:
    """Train a network in place, and look at its loss on held-out data, for which it is in evaluation mode.

    It stops early where loss or gradient is no longer finite, before they have touched the network.

    Args:
        network: what is trained.
        loss: ``loss(network, *data) -> scalar``.
        batch: ``batch(step) -> data`` of a step, 0 to steps - 1; the same whenever it is asked for.
        held: data for the looks.
        steps: to take.
        every: steps between two looks; the first is before any step, the last after all.
        optimizer: of the network's parameters.
        clip: norm that a gradient is cut down to where it is longer, all parameters taken together.
        enough: stop once three looks in a row were at or below this loss.
        look: ``look(network, *held) -> scalar``, what is looked at in the place of the loss.
        patience: stop once so many looks in a row were not below the least before them; and leave the network, however
            the training ends, as it was at the first look of all that had the least.
        precision: "float32", or "bfloat16", in which products are then taken while weights stay as they are.
        gradient: ``gradient(*data)``, how to take that of this loss, as `captured` has it, in float32; None: as it
            comes. Checkpoints take it for the same.
        hours: stop after so many hours of this run, at once if 0; the next run goes on from the checkpoint.
        checkpoint: folder in which the state is kept once a minute and at the end; a run with the same settings,
            weights, first batch, held-out data and helper code goes on from there, to the same numbers.
        name: stands before the progress bar.

    Returns:
        The losses, and how far it went.

    Raises:
        ValueError: ``steps``, ``every`` or ``patience`` is below 1, ``clip`` not positive, ``hours`` negative or
            without a checkpoint, no such precision, or one that is not that of the ``gradient``.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be 1 or more, got {steps=}, {every=}")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be None, or 1 or more, got {patience}")
    if not clip > 0:
        raise ValueError(f"clip must be positive, got {clip}")
    if hours is not None and (checkpoint is None or not hours >= 0):
        raise ValueError(f"hours must be 0 or more, and need a checkpoint to go on from, got {hours=}, {checkpoint=}")
    if gradient and precision != "float32":
        raise ValueError(f"precision must be float32, which gradient is in, got {precision!r}")
    look = look or loss
    looks = np.unique([*range(0, steps, every), steps])
    losses = np.full(len(looks), np.nan)
    taken, diverged, seconds = 0, False, 0.0
    best: dict[str, Tensor] = {}  # the network at its best look, for who has patience
    settings = (
        repr(
            [
                steps,
                every,
                clip,
                enough,
                patience,
                precision,
                optimizer,
                network,
                str(held[0].device),
                torch.__version__,
            ]
        ),
        inspect.getsource(loss) + inspect.getsource(look),
    )
    loss, look = _within(precision, loss), _within(precision, look)
    file = checkpoint / f"{_digest(settings, network, batch(0), held)}.pt" if checkpoint else None
    if file and file.exists():
        kept = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        losses[:], best = kept["losses"].numpy(), kept["best"]
        taken, diverged, seconds = kept["taken"], kept["diverged"], kept["seconds"]

    def keep() -> None:
        if file:
            state = dict(network=network.state_dict(), optimizer=optimizer.state_dict(), losses=torch.tensor(losses))
            spent = seconds + time.perf_counter() - start
            _write(file, state | dict(best=best, taken=taken, diverged=diverged, seconds=spent))

    gradient = gradient or partial(_gradient, network, loss)
    start = saved = time.perf_counter()
    for step in progress(range(taken, steps + 1), name, steps, taken):
        if step in looks:
            losses[looks == step] = _looked(network, look, held)
            seen = losses[looks <= step]
            least = int(np.argmin(np.nan_to_num(seen, nan=np.inf)))
            if patience and least == len(seen) - 1:
                best = copy.deepcopy(network.state_dict())
            done = len(seen) >= 3 and bool((seen[-3:] <= enough).all())
            if done or (patience and len(seen) - 1 - least >= patience):
                break
        if step == steps or diverged or (hours is not None and time.perf_counter() - start >= 3600 * hours):
            break
        diverged = not _step(network, gradient(*batch(step)), optimizer, clip)
        if diverged:
            break
        taken = step + 1
        if time.perf_counter() - saved > 60:
            keep()
            saved = time.perf_counter()
    keep()
    if best:  # only now: who goes on from the checkpoint does so from the last step
        network.load_state_dict(best)
    return Course(looks, losses, diverged, seconds + time.perf_counter() - start, taken)


def predict(
    network: nn.Module,
    loss: Loss,
    batch: Batch,
    held: Sequence[Tensor],
    *,
    steps: int,
    every: int,
    look: Loss | None = None,
    precision: str = "float32",
) -> float:
    """Return the seconds that `train` will take on this device, by three steps and a look of a copy of the network.

    The arguments are those of `train`.
    """
    network, loss, look = copy.deepcopy(network), _within(precision, loss), _within(precision, look or loss)
    optimizer = torch.optim.RMSprop(network.parameters())
    clock = [time.perf_counter()]
    for step in range(3):
        _step(network, _gradient(network, loss, *batch(step)), optimizer)
        clock.append(time.perf_counter())
    _looked(network, look, held)
    a_look = time.perf_counter() - clock[-1]
    return steps * float(np.diff(clock).min()) + (1 + steps / every) * a_look  # the least: the first step warms up


def captured(network: nn.Module, loss: Loss, data: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Capture taking the gradient on a GPU as a CUDA graph, where kernels take less time than launching each does.

    Nothing else may run on the GPU meanwhile.

    Args:
        network: on the GPU, in the mode that it is to be trained in.
        loss: see `train`; it must not wait for the GPU.
        data: a batch, on the GPU; others must have its shapes.

    Returns:
        ``gradient(*data)``, which leaves the gradient with the parameters, and says whether it and the loss are finite.
    """
    heard = [part.clone() for part in data]
    aside = torch.cuda.Stream()  # libraries set themselves up on first use, which must not be captured
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        _gradient(network, loss, *heard)
    torch.cuda.current_stream().wait_stream(aside)
    torch._C._cuda_clearCublasWorkspaces()  # it gets its own: graphs that share one cannot be replayed at once
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        finite = _gradient(network, loss, *heard)

    def replayed(*data: Tensor) -> Tensor:
        for mine, part in zip(heard, data, strict=True):
            mine.copy_(part)
        graph.replay()
        return finite

    return replayed


def _looked(network: nn.Module, look: Loss, held: Sequence[Tensor]) -> float:
    """Return what there is to see, and leave the network in training mode."""
    network.eval()
    with torch.no_grad():
        seen = float(look(network, *held))
    network.train()
    return seen


def _gradient(network: nn.Module, loss: Loss, *data: Tensor) -> Tensor:
    """Take the gradient, and return whether it and the loss are finite, where they are: asking would be waiting."""
    network.zero_grad()
    value = loss(network, *data)
    value.backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.isfinite(value) & torch.stack([g.isfinite().all() for g in grads]).all()


def _step(network: nn.Module, finite: Tensor, optimizer: torch.optim.Optimizer, clip: float = math.inf) -> bool:
    """Take a step along the gradient, unless that or the loss was not finite; return whether it was taken."""
    if not bool(finite):
        return False
    if clip < math.inf:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimizer.step()
    return True


def _within(precision: str, loss: Loss) -> Loss:
    """Return the same loss, with products taken in this precision."""
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
    if precision == "float32":
        return loss

    def mixed(network: nn.Module, *data: Tensor) -> Tensor:
        with torch.autocast(data[0].device.type, torch.bfloat16):
            return loss(network, *data)

    return mixed


def _digest(settings: tuple[str, str], network: nn.Module, batch: Sequence[Tensor], held: Sequence[Tensor]) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in (*network.state_dict().values(), *batch, *held):
        digest.update(repr((tensor.shape, tensor.dtype)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _write(file: Path, state: dict) -> None:
    """Write a checkpoint as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.stem}.{os.getpid()}.pt")
    try:
        torch.save(state, part)
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
