"""Networks, training and loss landscapes that chapters on Quax et al. (2020) share; tasks stay there."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.colors import LogNorm
from torch import Tensor

from ts_helpers._check import at_least, instance, within
from ts_helpers.cells import ARUCell, Network
from ts_helpers.datasets.teachers import smoothed_noise
from ts_helpers.fit import History, fit
from ts_helpers.seeding import generator_of
from ts_helpers.timescales import Direct, raw_name

LR, BATCH_SIZE = 1e-3, 20  # of Adam, "Simulations"; the size of a minibatch is open there
ALPHAS = tuple(raw_name(f"cell.{name}") for name in ("alpha_s", "alpha_r"))
Activation = Callable[[Tensor], Tensor]


def network(
    alpha_s: float | Tensor, alpha_r: float | Tensor, *, features: tuple[int, int] = (2, 2), units: int = 10,
    f: Activation = torch.sigmoid, scale: float = 1.0, seed: Sequence[int],
) -> Network:  # fmt: skip
    """Return a network of adaptive recurrent units; its weights depend on the seed alone.

    Args:
        alpha_s, alpha_r: to start from, numbers or one a unit.
        features: of input and output.
        units: hidden ones.
        f: activation function.
        scale: of the weights.
        seed: path of seeds.
    """
    instance(Sequence, "a path of seeds", seed=seed)
    generator = generator_of(*seed)
    cell = ARUCell(features[0], units, alpha_s, alpha_r, Direct(), f=f, scale=scale, generator=generator)
    return Network(cell, units, features[1], scale=scale, generator=generator)


def resting(cell: ARUCell, level: float = 0.5) -> Tensor:
    """Return the state (2 hidden,) in which a constant input leaves a cell, whatever its alphas.

    Found by going back and forth between ``I = W r + U x + b`` and ``r = f(I)``, which settles where units excite one
    another weakly.
    """
    instance(ARUCell, "an ARUCell", cell=cell)
    within("[-1e6, 1e6]", level=level)
    with torch.no_grad():
        r = torch.zeros_like(cell.b)
        for _ in range(500):
            I = cell.W @ r + cell.U.sum(1) * level + cell.b
            r = cell.f(I)
    return torch.cat([I, r])


def teacher_data(
    teacher: Network, *, features: int = 2, n_train: int = 400, n_valid: int = 100, window: int = 7, order: int = 3,
    seed: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    """Return inputs and what a teacher makes of them: x and y to train on, x and y held out.

    Source: "Simulations": 500 sequences of 20 steps, 400 for training, 100 for validation. Window and order of the
    filter are open there, see `smoothed_noise`; 1 and 0 leave the noise white.

    Returns:
        Four tensors (20, sequences, features).
    """
    instance(Network, "a Network", teacher=teacher)
    instance(Sequence, "a path of seeds", seed=seed)
    at_least(1, n_train=n_train, n_valid=n_valid)
    generator = generator_of(*seed)
    x = smoothed_noise(20, n_train + n_valid, features, window=window, order=order, generator=generator)
    with torch.no_grad():
        y = teacher(x)
    return [x[:, :n_train], y[:, :n_train], x[:, n_train:], y[:, n_train:]]


def loss(net: Network, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of the outputs."""
    return (net(x) - y).square().mean()


def alphas(net: Network, x: Tensor, y: Tensor) -> Tensor:
    """Return alpha_s and alpha_r, (2, ...)."""
    cell: Any = net.cell
    return torch.stack([cell.alpha_s, cell.alpha_r])


def train(
    networks: Sequence[Network],
    data: Sequence[Tensor],
    learn: Sequence[bool] | bool,
    *,
    epochs: int,
    batch_size: int = BATCH_SIZE,
    shuffle_seed: int = 0,
    eval_interval: int,
    loss: Callable[..., Tensor] = loss,
    metrics: Mapping[str, Callable[..., Tensor]] | None = None,
    checkpoint: Path | None = None,
    name: str,
) -> History:
    """Train networks, with learned alphas or fixed ones in one stack, and evaluate them on held-out data.

    Args:
        networks: of one architecture.
        data: x and y to train on, x and y held out, each (networks, time, sequences, features).
        learn: whether a network learns its alphas; for networks that have none, False.
        epochs, batch_size, shuffle_seed, eval_interval, checkpoint, name: see `fit`.
        loss: what is trained, and the metric ``loss``.
        metrics: further ones.
    """
    learned = [float(each) for each in ([learn] * len(networks) if isinstance(learn, bool) else learn)]
    adaptive = any("alpha" in key for key, _ in networks[0].named_parameters())
    return fit(
        networks,
        loss,
        data[:2],
        epochs=epochs,
        batch_size=batch_size,
        shuffle_seed=shuffle_seed,
        lr=LR,
        lr_scale={"*alpha*": learned} if adaptive else None,
        metrics={"loss": loss, **(metrics or {})},
        eval_data=data[2:],
        eval_interval=eval_interval,
        checkpoint=checkpoint,
        name=name,
    )


def for_each(data: Sequence[Tensor], n: int) -> list[Tensor]:
    """Give n networks the same data, without copying them."""
    return [tensor.expand(n, *tensor.shape) for tensor in data]


def coords(at: np.ndarray, rates: np.ndarray | None = None) -> dict[str, tuple]:
    """Return coordinates and their labels: which leak rate, epochs ``at``, and ``rates`` of a map, if there is one."""
    words = {"alpha_s": "current", "alpha_r": "firing rate"}
    fixed = {} if rates is None else {name: (rates, f"leak rate of the {word}, fixed") for name, word in words.items()}
    return {"which": (list(words), "leak rate")} | fixed | {"epoch": (at, "epoch of training", "epochs")}


def grid(step: float) -> np.ndarray:
    """Return leak rates 0.001, step, 2 step, ... up to 1.3; 1 is among them.

    Source: "Influence of time constants": 0.001 to 1.3.

    Raises:
        ValueError: 1 is not a multiple of the step, or it is below 1e-4.
    """
    within("[1e-4, 1]", step=step)
    if abs(1 / step - round(1 / step)) > 1e-9:
        raise ValueError(f"step must be 1 over a whole number, for 1 to be on the grid, got {step}")
    return np.array([0.001, *(round(k * step, 9) for k in range(1, int(1.3 / step + 1e-9) + 1))])


def minimum(landscape: xr.DataArray) -> tuple[float, float]:
    """Return alpha_s and alpha_r of the lowest point of a landscape (alpha_s, alpha_r)."""
    at = landscape.argmin(("alpha_s", "alpha_r"))
    return float(landscape.alpha_s[at["alpha_s"]]), float(landscape.alpha_r[at["alpha_r"]])


def area(landscape: xr.DataArray) -> float:
    """Return the share of a landscape within a factor of 2 of its lowest point."""
    return float((landscape <= 2 * landscape.min()).mean())


def depth(landscape: xr.DataArray) -> float:
    """Return log10 of a landscape's median over its lowest point."""
    return float(np.log10(landscape.median() / landscape.min()))


def asymmetry(landscape: xr.DataArray) -> float:
    """Return the root mean square of the log loss's antisymmetric part, over that of its deviation from the mean."""
    log = np.log(landscape.transpose("alpha_s", "alpha_r").values)
    return float(np.sqrt(np.mean(((log - log.T) / 2) ** 2)) / np.std(log))


# Quantities of claims B2a to B2c, named as in ``book/claims.yml``, by teacher a value a repetition: from results whose
# ``landscape`` is the validation loss (repetition, teacher, alpha_s, alpha_r), with teachers named "0.34 0.68".


def _of_each(
    results: xr.Dataset,
    value: Callable[[xr.DataArray, float, float], float],
    where: Callable[[float, float], bool] = lambda s, r: True,
) -> dict[str, list[float]]:
    """Return, by teacher, ``value(landscape, alpha_s, alpha_r)`` of each of its landscapes; of the teachers wanted."""
    teachers = {str(name): tuple(map(float, str(name).split())) for name in results.teacher.values}
    landscapes = results.landscape.transpose("teacher", "repetition", ...)
    return {
        name: [value(here, *alphas) for here in mine]
        for (name, alphas), mine in zip(teachers.items(), landscapes, strict=True)
        if where(*alphas)
    }


def minimum_near(results: xr.Dataset) -> dict[str, list[float]]:
    """B2a: the lowest point lies within 0.2 of the teacher's pair."""
    return _of_each(results, lambda here, s, r: float(np.hypot(*np.subtract(minimum(here), (s, r))) <= 0.2))


def elman_ratio(results: xr.Dataset) -> dict[str, list[float]]:
    """B2b: lowest loss over that at (1, 1)."""
    return _of_each(results, lambda here, s, r: float(here.min()) / float(here.sel(alpha_s=1, alpha_r=1)))


def line_ratio(results: xr.Dataset) -> dict[str, list[float]]:
    """B2b: lowest loss over the lowest with an alpha of 1, of teachers that have none."""

    def value(here: xr.DataArray, s: float, r: float) -> float:
        return float(here.min()) / min(float(here.sel(alpha_s=1).min()), float(here.sel(alpha_r=1).min()))

    return _of_each(results, value, lambda s, r: s != 1 and r != 1)


def swap_ratio(results: xr.Dataset) -> dict[str, list[float]]:
    """B2c: loss nearest the teacher's pair exchanged over that nearest the pair, of teachers with unequal alphas."""

    def value(here: xr.DataArray, s: float, r: float) -> float:
        own, other = (here.sel(alpha_s=a, alpha_r=b, method="nearest") for a, b in ((s, r), (r, s)))
        return float(other / own)

    return _of_each(results, value, lambda s, r: s != r)


def draw_landscapes(
    axes: np.ndarray, landscapes: Sequence[xr.DataArray], teachers: Sequence[tuple[float, float]], titles: Sequence[str]
) -> None:
    """Draw landscapes as multiples of their lowest points, with a cross for each teacher's pair.

    Args:
        axes: (rows, columns), one for each landscape.
        landscapes: each (alpha_s, alpha_r).
        teachers: alpha_s and alpha_r of each.
        titles: of each.
    """
    for ax, landscape, teacher, title in zip(axes.flat, landscapes, teachers, titles, strict=True):
        relative = (landscape / landscape.min()).transpose("alpha_r", "alpha_s")
        at = relative.alpha_s, relative.alpha_r
        image = ax.pcolormesh(*at, relative, norm=LogNorm(1, 1000), cmap="cividis", shading="nearest", rasterized=True)
        ax.plot(*teacher, "x", color="w", ms=9, mew=2.5, zorder=3)
        ax.set(xlabel=r"$\alpha_s$", ylabel=r"$\alpha_r$")
        ax.set_title(title, size=9)
        ax.label_outer()
        ax.grid(False)
    axes.flat[0].figure.colorbar(image, ax=axes, shrink=0.8, label="loss over the lowest", extend="max")
