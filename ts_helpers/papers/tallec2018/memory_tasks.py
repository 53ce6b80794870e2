"""An LSTM from different starts on copying and adding, and what is read off its losses; the claims stay in chapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.nn import functional as F

from ts_helpers._check import at_least, instance, one_of, within
from ts_helpers.datasets import copying
from ts_helpers.fit import History, fit
from ts_helpers.papers.tallec2018.lstm import LSTMNetwork
from ts_helpers.seeding import generator_of
from ts_helpers.timescales import chrono_init_, set_gate_bias_

Start = Callable[[nn.LSTM, torch.Generator], None]
N_HELD_OUT = 500  # sequences that metrics are taken on
STOP_BELOW = 0.01  # share of the memoryless score at which a network is done
_STYLES: list[tuple[str, Any]] = [
    ("C1", (0, (4, 1.5))),
    ("C0", "-"),
    ("C3", (0, (1, 1))),
]


@dataclass(frozen=True)
class Task:
    """What is asked of a network.

    Attributes:
        make: ``make(T, n, generator=...)``, inputs and targets.
        features: of a step's input, and of its output.
        loss: ``loss(network, x, y)``.
        memoryless: ``memoryless(n_steps)``, the best loss without memory, for sequences of so many steps.
    """

    make: Callable[..., tuple[Tensor, Tensor]]
    features: tuple[int, int]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    memoryless: Callable[[int], float]


def cross_entropy(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over all steps, dummies included; symbols (time, batch)."""
    input = F.one_hot(x, copying.ALPHABET).to(next(network.parameters()).dtype)
    return F.cross_entropy(network(input).flatten(0, 1), y.flatten())


def squared_error(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of the output at the last step; x (time, batch, 2), y (batch, 1)."""
    return F.mse_loss(network(x)[-1], y)


_SYMBOLS = (copying.ALPHABET, copying.ALPHABET), cross_entropy, copying.memoryless
TASKS = {
    "copying": Task(copying.copying, *_SYMBOLS),
    "variable copying": Task(copying.variable_copying, *_SYMBOLS),
    "adding": Task(copying.adding, (2, 1), squared_error, lambda n_steps: copying.ADDING_MEMORYLESS),
}


def standard(lstm: nn.LSTM, generator: torch.Generator) -> None:
    """Forget biases of 1, all else as it was."""
    set_gate_bias_(lstm, "f", 1.0)


def chrono(T_max: float) -> Start:
    """Return the chrono start, with forgetting times up to T_max steps."""
    return lambda lstm, generator: chrono_init_(lstm, T_max, generator=generator)


def compare(
    task: str,
    T: int,
    starts: Mapping[str, Start],
    *,
    n_seeds: int,
    n_steps: int,
    n_evaluations: int,
    units: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    late: int = 0,
    stop_below: float | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    name: str = "",
) -> xr.Dataset:
    """Train an LSTM from each start, by RMSprop without clipping, on fresh sequences in every step.

    In each run all starts have the same weights but for the biases that they set, and the same sequences.

    Args:
        task: one of TASKS.
        T: of the task, steps.
        starts: what sets biases, by name.
        n_seeds: runs.
        n_steps: of RMSprop.
        n_evaluations: how often the loss on held-out sequences is taken, besides once before any step.
        units: of the LSTM.
        batch_size: sequences in a step.
        lr: learning rate.
        late: how many more steps the targets of a copying task are due after the signal.
        stop_below: share of the memoryless score; a network is done after three evaluations in a row at or below it.
        seed: of the experiment.
        device: where.
        checkpoint: folder, see `fit`.
        name: stands before progress bars.

    Returns:
        loss (start, seed, look) over the memoryless score, NaN where training had stopped; step (look); diverged,
        taken and seconds (start, seed). The coordinate ``seed`` has the indices of the runs.

    Raises:
        ValueError: no such task; no start; targets that are early, or late where there is one at the end; evaluations
            that do not divide n_steps; no run.
    """
    instance(Mapping, "functions by name", starts=starts)
    at_least(1, n_seeds=n_seeds)
    at_least(0, late=late)
    within("(-inf, inf)", lr=lr, stop_below=0 if stop_below is None else stop_below)
    at_least(1, n_evaluations=n_evaluations)
    at_least(1, n_steps=n_steps)
    one_of(TASKS, task=task)
    if not starts:
        raise ValueError(f"starts must name one or more, got {starts}")
    if late and task == "adding":
        raise ValueError(f"late must be 0 for adding, got {late}")
    if n_steps % n_evaluations:
        raise ValueError(f"n_evaluations must divide n_steps, got {n_evaluations=}, {n_steps=}")
    of = TASKS[task]

    def sequences(n: int, *path: int) -> Sequence[Tensor]:
        x, y = of.make(T, n, generator=generator_of(seed, *path))
        if late:
            x, y = (F.pad(x, (0, 0, 0, late), value=copying.DUMMY), F.pad(y, (0, 0, late, 0), value=copying.DUMMY))
        return x.to(device), y.to(device)

    base = of.memoryless(len(sequences(1, 0)[0]))

    def train(index: int, start: str) -> History:
        network = LSTMNetwork(of.features[0], units, of.features[1], generator=generator_of(seed, 0, index))
        starts[start](network.lstm, generator_of(seed, 1, index))
        return fit(
            network.to(device),
            of.loss,
            partial(sequences, batch_size, 3, index),
            n_steps=n_steps,
            optimizer="rmsprop",
            lr=lr,
            eval_data=sequences(N_HELD_OUT, 2, index),
            eval_interval=n_steps // n_evaluations,
            stop_below=None if stop_below is None else stop_below * base,
            checkpoint=checkpoint,
            name=f"{name} {start} {index + 1}/{n_seeds}".strip(),
        )

    histories = [[train(index, start) for start in starts] for index in range(n_seeds)]

    def of_all(what: Callable[[History], Any]) -> np.ndarray:
        return np.array([[what(history) for history in row] for row in histories], float).swapaxes(0, 1)

    dims = "start", "seed"
    how = "whether loss or gradient stopped being finite"
    return xr.Dataset(
        {
            "loss": (
                (*dims, "look"),
                of_all(lambda history: history.metrics["loss"][0]) / base,
                {"units": "1", "long_name": "held-out loss over the memoryless score"},
            ),
            "step": ("look", histories[0][0].at, {"units": "steps", "long_name": "step of RMSprop"}),
            "diverged": (dims, of_all(lambda history: history.diverged[0] >= 0), {"units": "1", "long_name": how}),
            "taken": (
                dims,
                of_all(lambda history: history.n_steps[0]),
                {"units": "steps", "long_name": "steps trained"},
            ),
            "seconds": (
                dims,
                of_all(lambda history: history.seconds),
                {"units": "s", "long_name": "time that training took"},
            ),
        },
        coords={
            "start": ("start", list(starts), {"long_name": "where gates start"}),
            "seed": ("seed", range(n_seeds), {"units": "1", "long_name": "index of the run"}),
        },
    )


def runs_of(results: xr.Dataset, arm: str) -> xr.Dataset:
    """Return an arm with the runs in which it was trained; taken (arm, start, seed) is NaN in the others."""
    each = results.sel(arm=arm)
    return each.isel(seed=each.taken.notnull().any("start").values)


def size(results: xr.Dataset) -> str:
    """Return the lengths T of all arms, and how many runs the arms have, for a title."""
    runs = sorted({runs_of(results, arm).sizes["seed"] for arm in results.arm.values})
    many = f"{runs[0]} to {runs[-1]} runs" if len(runs) > 1 else "1 run" if runs == [1] else f"{runs[0]} runs"
    return f"T\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{', '.join(str(int(T)) for T in np.unique(results['T']))}; {many}"


def steps_taken(taken: xr.DataArray) -> str:
    """Return the steps that networks were trained for, of the one with the fewest to that with the most, or "none"."""
    most = np.unique([taken.min(), taken.max()])
    return " to ".join(f"{int(n):,}" for n in most if np.isfinite(n)) or "none"


def at_end(loss: xr.DataArray) -> xr.DataArray:
    """Return the median of the last three evaluations of each network that were made; loss (..., look)."""
    return xr.apply_ufunc(
        lambda each: np.median(each[np.isfinite(each)][-3:]) if np.isfinite(each).any() else np.nan,
        loss,
        input_core_dims=[["look"]],
        vectorize=True,
    )


def halfway(loss: xr.DataArray, step: xr.DataArray, level: float = 0.5) -> xr.DataArray:
    """Return the step of the first evaluation at which a loss is below a level; infinity where it never is.

    Args:
        loss: (..., look).
        step: (look) or (..., look).
        level: in the unit of the loss.

    Returns:
        (...), steps.
    """
    return step.where(loss < level).min("look").fillna(np.inf)


def came_below(results: xr.Dataset, level: float, arms: Sequence[str], starts: Sequence[str]) -> str:
    """Return how many networks of these arms and starts, as far as they were run, ever came below a level."""
    here = [arm for arm in arms if arm in results.arm]
    least = results.loss.sel(arm=here, start=list(starts)).min("look")
    return f"{int((least < level).sum())} of {int(least.count())}"


def cost(results: xr.Dataset, arms: Sequence[str]) -> str:
    """Return what a step of training took in these arms, as far as they were run; needs T, taken and seconds."""
    of = results.sel(arm=[arm for arm in arms if arm in results.arm])
    each = 1000 * of.seconds.sum(["start", "seed"]) / of.taken.sum(["start", "seed"])
    told = [f"{took:.1f} ms at T = {T:.0f}" for took, T in zip(each.values, of["T"].values, strict=True)]
    return " and ".join(told) or "not measured"


def plot_starts(
    ax: Axes, results: xr.Dataset, arm: str, starts: Sequence[str], batch_size: int = 32, least: float = 3e-3
) -> None:
    """Draw the losses of one arm, every run thin and medians thick, and a level for no memory and for a half.

    A network that is done counts in the median with its last evaluations, one that diverged does not count. The median
    ends where training has stopped for any other. The lower axis has steps, the upper one thousands of sequences.

    Args:
        ax: where.
        results: of `compare`, joined along ``arm``, with or without T; an arm that is not there is called "not run".
        arm: which.
        starts: which to draw, each with a colour and dash by its place; one without losses is left out.
        batch_size: sequences in a step.
        least: losses below are drawn there.

    Raises:
        ValueError: more starts than there are colours.
    """
    if len(starts) > len(_STYLES):
        raise ValueError(f"starts must be {len(_STYLES)} at most, got {', '.join(starts)}")
    ax.set(xlabel="step of RMSprop", ylabel="loss over memoryless", yscale="log", ylim=(least, 30))
    if arm not in results.arm:
        ax.set_axis_off()
        ax.text(0.5, 0.5, f"{arm}: not run", transform=ax.transAxes, ha="center", fontsize=8)
        return
    results = results.sel(arm=arm)
    what = f"{arm}, $T = {int(results['T'])}$" if "T" in results else arm
    ax.text(0.98, 0.94, what, transform=ax.transAxes, ha="right", va="top", fontsize=8)
    for start, (color, dash) in zip(starts, _STYLES, strict=False):
        if start not in results.start or results.loss.sel(start=start).isnull().all():
            continue
        loss = results.loss.sel(start=start)
        last = at_end(loss)
        held = loss.where(loss.notnull(), last.where(last <= STOP_BELOW))
        held = held.isel(seed=((results.diverged.sel(start=start) == 0) & last.notnull()).values)
        ax.plot(results.step, loss.T.clip(least), color=color, lw=0.5, ls="-")
        if held.sizes["seed"]:
            median = held.median("seed", skipna=False).clip(least)
            ax.plot(results.step, median, color=color, lw=2.2, ls=dash, label=start.replace("T_max", r"$T_{\max}$"))
    for level in (1, 0.5):
        ax.axhline(level, color="0.4", ls=":", lw=1)
    both_ways: Any = (lambda step: batch_size * step / 1000, lambda seen: 1000 * seen / batch_size)
    above = ax.secondary_xaxis("top", functions=both_ways)
    above.set_xlabel("thousands of sequences", fontsize=8)
    above.tick_params(labelsize=7)
    for axis in (ax.xaxis, above.xaxis):
        axis.set_major_locator(MaxNLocator(4))  # five-figure steps side by side
