"""The networks of Quax et al. (2020), their training against a teacher, and measures of what came out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ts_helpers.cells import ARUCell, Network
from ts_helpers.datasets.teachers import smoothed_noise
from ts_helpers.ensembles import History, train
from ts_helpers.seeding import generator_of
from ts_helpers.timescales import Direct, raw_name

LR, BATCH = 1e-3, 20  # of Adam, "Simulations"; the size of a minibatch is open there
ALPHAS = tuple(raw_name(f"cell.{name}") for name in ("alpha_s", "alpha_r"))
Activation = Callable[[Tensor], Tensor]


def network(
    alpha_s: float | Tensor,
    alpha_r: float | Tensor,
    *,
    features: tuple[int, int] = (2, 2),
    units: int = 10,
    f: Activation = torch.sigmoid,
    scale: float = 1.0,
    seed: Sequence[int],
) -> Network:
    """Return a network of adaptive recurrent units; its weights depend on the seed alone.

    Args:
        alpha_s, alpha_r: to start from, numbers or one a unit.
        features: of input and output.
        units: hidden ones.
        f: activation function.
        scale: of the weights.
        seed: path of seeds.
    """
    generator = generator_of(*seed)
    cell = ARUCell(features[0], units, alpha_s, alpha_r, Direct(), f=f, scale=scale, generator=generator)
    return Network(cell, units, features[1], scale=scale, generator=generator)


def resting(cell: ARUCell, level: float = 0.5) -> Tensor:
    """Return the state (2 hidden,) in which a constant input leaves a cell, whatever its alphas.

    Found by going back and forth between ``I = W r + U x + b`` and ``r = f(I)``, which settles where units excite one
    another weakly.
    """
    with torch.no_grad():
        r = torch.zeros_like(cell.b)
        for _ in range(500):
            I = cell.W @ r + cell.U.sum(1) * level + cell.b  # noqa: E741
            r = cell.f(I)
    return torch.cat([I, r])


def teacher_data(
    teacher: Network,
    *,
    features: int = 2,
    n_train: int = 400,
    n_valid: int = 100,
    window: int = 7,
    order: int = 3,
    seed: Sequence[int],
) -> list[Tensor]:
    """Return inputs and what a teacher makes of them: x and y to train on, x and y held out.

    Source: "Simulations": 500 sequences of 20 steps, 400 for training, 100 for validation. Window and order of the
    filter are open there, see `smoothed_noise`; 1 and 0 leave the noise white.

    Returns:
        Four tensors (20, sequences, features).
    """
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


def fit(
    networks: Sequence[Network],
    data: Sequence[Tensor],
    learn: Sequence[bool] | bool,
    *,
    epochs: int,
    batch: int = BATCH,
    order: int,
    every: int,
    loss: Callable[..., Tensor] = loss,
    watch: Mapping[str, Callable[..., Tensor]] | None = None,
    checkpoint: Path | None = None,
    name: str,
) -> History:
    """Train networks, with learned alphas or fixed ones side by side, and watch them on held-out data.

    Args:
        networks: of one architecture.
        data: x and y to train on, x and y held out, each (networks, time, sequences, features).
        learn: whether a network learns its alphas; for networks that have none, False.
        epochs, batch, order, every, checkpoint, name: see `train`.
        loss: what is trained; it is watched as ``loss``.
        watch: further measures.
    """
    learned = [float(each) for each in ([learn] * len(networks) if isinstance(learn, bool) else learn)]
    adaptive = any("alpha" in key for key, _ in networks[0].named_parameters())
    return train(
        networks,
        loss,
        data[:2],
        epochs=epochs,
        batch=batch,
        order=order,
        lr=LR,
        factors={"*alpha*": learned} if adaptive else None,
        watch={"loss": loss, **(watch or {})},
        watch_on=data[2:],
        every=every,
        checkpoint=checkpoint,
        name=name,
    )


def for_each(data: Sequence[Tensor], n: int) -> list[Tensor]:
    """Give n networks the same data, without copying them."""
    return [tensor.expand(n, *tensor.shape) for tensor in data]


def grid(step: float) -> np.ndarray:
    """Return leak rates 0.001, step, 2 step, ... up to 1.3; 1 is among them.

    Source: "Influence of time constants": 0.001 to 1.3.

    Raises:
        ValueError: 1 is not a multiple of the step.
    """
    if not 0 < step <= 1 or abs(1 / step - round(1 / step)) > 1e-9:
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


def landscape_quantities(landscapes: xr.DataArray, teachers: Sequence[tuple[float, float]]) -> dict[str, dict]:
    """Return the quantities of claims B2a to B2c, one value a landscape.

    Args:
        landscapes: validation loss (repetition, teacher, alpha_s, alpha_r).
        teachers: their alphas.
    """
    near, elman, line, swap = [], [], [], []
    for repetition in landscapes:
        for (s, r), here in zip(teachers, repetition, strict=True):
            low = float(here.min())
            near.append(np.hypot(*np.subtract(minimum(here), (s, r))) <= 0.2)
            elman.append(low / float(here.sel(alpha_s=1, alpha_r=1)))
            if s != 1 and r != 1:
                line.append(low / min(float(here.sel(alpha_s=1).min()), float(here.sel(alpha_r=1).min())))
            if s != r:
                own, other = (here.sel(alpha_s=a, alpha_r=b, method="nearest") for a, b in ((s, r), (r, s)))
                swap.append(float(other / own))
    return {
        "B2a": {"minimum_near": np.array(near, float)},
        "B2b": {"elman_ratio": np.array(elman), "line_ratio": np.array(line)},
        "B2c": {"swap_ratio": np.array(swap)},
    }
