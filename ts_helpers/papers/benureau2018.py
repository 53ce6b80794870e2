"""The experiment of Benureau & Tani (2018): networks with learned and fixed time constants, and measures of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ts_helpers.cells import MTRNNCell, unroll
from ts_helpers.ensembles import train
from ts_helpers.timescales import Clamped, Dial, LogTau, raw_name

LR = 1e-3  # of Adam, Section 2.2
ALPHA = raw_name("cell.alpha")
PENALTY = 0.001  # weight of the states in the loss of the authors' code


class NextStep(nn.Module):
    r"""An `MTRNNCell` with a linear read-out of its lowest layer and a learnable initial state for each sequence.

    .. math:: \hat x_{t+1} = V d^0_t + c

    Source: Benureau & Tani (2018), Section 2. The learnable initial states, one per sequence and layer and 0 at
    the start, are from their code; without them a network could not tell which sequence to generate.

    Args:
        cell: the recurrent layers.
        features: values to predict at each step.
        n_sequences: sequences to be learned.
        generator: draws V and c, uniform within ``1 / sqrt(units of the lowest layer)`` of 0.

    Raises:
        ValueError: ``features`` or ``n_sequences`` is below 1.
    """

    def __init__(self, cell: MTRNNCell, features: int, n_sequences: int, *, generator: torch.Generator):
        super().__init__()
        if features < 1 or n_sequences < 1:
            raise ValueError(f"features and n_sequences must be 1 or more, got {features=}, {n_sequences=}")
        self.cell = cell
        n = cell.layers[0]
        self.V = nn.Parameter((2 * torch.rand(features, n, generator=generator) - 1) / n**0.5)
        self.c = nn.Parameter((2 * torch.rand(features, generator=generator) - 1) / n**0.5)
        self.h0 = nn.Parameter(torch.zeros(n_sequences, sum(cell.layers)))

    def read_out(self, h: Tensor) -> Tensor:
        """Map states (..., all layers) to predictions (..., features)."""
        return nn.functional.linear(torch.tanh(h[..., : self.cell.layers[0]]), self.V, self.c)

    def forward(self, x: Tensor) -> Tensor:
        """Predict in open loop: map x (time, sequences, features) to what comes one step later, same shape."""
        V = nn.functional.pad(self.V, (0, sum(self.cell.layers[1:])))
        return unroll(self.cell, x, self.h0, read_out=(V, self.c))

    def generate(self, x: Tensor, n_steps: int) -> Tensor:
        """Predict in closed loop: hear the first value x (sequences, features), then each own prediction.

        Returns:
            (n_steps, sequences, features): what follows x.
        """
        h, outputs = self.h0, []
        with parametrize.cached():
            for _ in range(n_steps):
                h = self.cell(x, h)
                x = self.read_out(h)
                outputs.append(x)
        return torch.stack(outputs)


def closed_loop_error(generated: Tensor, x: Tensor, against: Literal["aligned", "one step off"] = "aligned") -> Tensor:
    """Return the squared error of a generated sequence, summed over steps and features, averaged over sequences.

    "one step off" is the error that the code of Benureau & Tani (2018) takes: it holds the first value and the
    predictions against the sequence without its first value, each prediction against the value after the one it was
    to predict. A perfect reproduction then scores the sum of squared steps of the data.

    Args:
        generated: (time - 1, sequences, features), from `NextStep.generate`.
        x: (time, sequences, features), the sequences to reproduce.

    Raises:
        ValueError: shapes do not fit, or an unknown ``against``.
    """
    if generated.shape != x[1:].shape:
        raise ValueError(f"generated must have shape {tuple(x[1:].shape)}, one step less than x, got {generated.shape}")
    if against == "one step off":
        generated = torch.cat([x[:1], generated[:-1]])
    elif against != "aligned":
        raise ValueError(f"against must be 'aligned' or 'one step off', got {against!r}")
    return ((generated - x[1:]) ** 2).sum((0, 2)).mean()


@dataclass(frozen=True)
class Setting:
    """A network of the paper: where its time constants start, and how they move.

    Attributes:
        tau: time constants of layers 0, 1 and 2 at the start, in steps.
        factor: learning rate of tau over that of the weights; 0 for fixed ones.
        floor: least tau; 0 for none.
    """

    tau: tuple[float, float, float]
    factor: float
    floor: float = 1.0


SETTINGS = {
    "learn 100": Setting((100, 100, 100), 100),  # "we pushed the learning rate of the tau to 0.1 for this network"
    "fixed 100": Setting((100, 100, 100), 0),
    "learn 16-8-4": Setting((16, 8, 4), 10),  # 0.01, "ten times higher"
    "fixed 16-8-4": Setting((16, 8, 4), 0),
    "learn 4-8-16": Setting((4, 8, 16), 10),
    "learn 8": Setting((8, 8, 8), 10),
    "fixed 8": Setting((8, 8, 8), 0),
    "no clamp 4-8-16": Setting((4, 8, 16), 10, 0),
    "no clamp 8": Setting((8, 8, 8), 10, 0),
}


@dataclass(frozen=True)
class Choices:
    """What the text leaves open, or does otherwise than the code.

    Attributes:
        units: in each of the three layers.
        update: of the layers, see `MTRNNCell`.
        dial: "clamp" is 1 / max(tau, floor), absorbing; "projection" sets tau back to its floor after a step; "log"
            steps log tau, which needs no floor, at the learning rate of the weights (steps of 0.1 % of tau, as 0.1 is
            of 100).
        loss: "mean" squared error; "sum" of squared errors with a penalty on the states, and the gradient clipped at 1
            in the infinity norm.
    """

    units: int = 25
    update: Literal["simultaneous", "sequential"] = "simultaneous"
    dial: Literal["clamp", "projection", "log"] = "clamp"
    loss: Literal["mean", "sum"] = "mean"


def network(setting: Setting, choices: Choices, n_sequences: int, features: int, *, seed: Sequence[int]) -> NextStep:
    """Return a network; its weights depend on the seed alone, so that settings can be compared pair by pair."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    dial: Dial = LogTau() if choices.dial == "log" else Clamped(setting.floor)
    cell = MTRNNCell(features, (choices.units,) * 3, setting.tau, dial, update=choices.update, generator=generator)
    return NextStep(cell, features, n_sequences, generator=generator)


def mean_loss(net: NextStep, x: Tensor) -> Tensor:
    """Return the mean squared error of the next step, in open loop."""
    return ((net(x[:-1]) - x[1:]) ** 2).mean()


def summed_loss(net: NextStep, x: Tensor) -> Tensor:
    """Return the loss of the authors' code: summed, with a penalty on the mean square of a network's states."""
    h = unroll(net.cell, x[:-1], net.h0)
    error = ((net.read_out(h) - x[1:]) ** 2).sum()
    return (1 - PENALTY) * error + PENALTY * h.square().mean(-1).sum()


def errors(net: NextStep, x: Tensor) -> Tensor:
    """Return loss, closed-loop error, and closed-loop error one step off, (3,)."""
    generated = net.generate(x[0], len(x) - 1)
    closed = [closed_loop_error(generated, x), closed_loop_error(generated, x, "one step off")]
    return torch.stack([mean_loss(net, x), *closed])


def time_constants(net: NextStep, x: Tensor) -> Tensor:
    """Return the time constants in effect, in steps, (layers,)."""
    return 1 / net.cell.alpha


def experiment(
    names: Sequence[str],
    x: Tensor,
    *,
    n_seeds: int,
    seed: int,
    epochs: int,
    choices: Choices = Choices(),
    checkpoint: Path | None = None,
) -> xr.Dataset:
    """Train networks of the named settings, ``n_seeds`` of each, all with the same weights for the same seed.

    Args:
        names: keys of `SETTINGS`.
        x: sequences (time, sequences, features), or (n_seeds, time, sequences, features) for each seed its own.
        n_seeds: networks of each setting.
        seed: of the weights.
        epochs: of training, full batch.
        choices: what the text leaves open.
        checkpoint: folder to go on from, see `train`.

    Returns:
        tau (setting, seed, epoch, layer); loss, closed and closed_off (setting, seed, epoch); generated (setting,
        seed, step, sequence, feature), what the trained networks put out in closed loop; diverged (setting, seed).
        A network that diverged has no errors from then on; its tau stays what it was. The attribute ``seconds`` is
        the time spent training.

    Raises:
        ValueError: an unknown name, or x with sequences for another number of seeds.
    """
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        raise ValueError(f"names must be of {', '.join(SETTINGS)}, got {unknown[0]!r}")
    if x.ndim == 4 and len(x) != n_seeds:
        raise ValueError(f"x must have sequences for each of {n_seeds} seeds, got {len(x)}")
    each = x if x.ndim == 4 else x.expand(n_seeds, *x.shape)
    networks, factors, floors = [], [], []
    for name in names:
        setting = SETTINGS[name]
        for s in range(n_seeds):
            net = network(setting, choices, x.shape[-2], x.shape[-1], seed=(seed, s)).to(x.device)
            networks.append(net)
            factors.append(setting.factor and (1.0 if choices.dial == "log" else setting.factor))
            floors.append(setting.floor)
    history = train(
        networks,
        mean_loss if choices.loss == "mean" else summed_loss,
        [each.repeat(len(names), 1, 1, 1)],
        epochs=epochs,
        lr=LR,
        factors={ALPHA: factors},
        floors={ALPHA: floors} if choices.dial == "projection" else None,
        clip=1.0 if choices.loss == "sum" else None,
        clip_norm=np.inf,
        watch={"errors": errors, "tau": time_constants},
        every=max(1, epochs // min(200, max(10, epochs // 10))),  # 200 looks; fewer where the training is short
        checkpoint=checkpoint,
        name=" ".join(f"{value}" for value in vars(choices).values()),
    )
    with torch.no_grad():
        made = [net.generate(each[i % n_seeds, 0], x.shape[-3] - 1) for i, net in enumerate(networks)]
    shape = (len(names), n_seeds)

    def variable(dims: str, values: np.ndarray, units: str, long_name: str) -> tuple:
        return dims.split(), values.reshape(*shape, *values.shape[1:]), {"units": units, "long_name": long_name}

    looks = history.watched["errors"]
    after = (history.diverged >= 0)[:, None] & (history.epoch >= history.diverged[:, None])
    looks[after] = np.nan  # a network frozen at its last numbers has no error of its own any more
    return xr.Dataset(
        {
            "tau": variable("setting seed epoch layer", history.watched["tau"], "steps", "time constant"),
            "loss": variable("setting seed epoch", looks[..., 0], "1", "mean squared error of the next step"),
            "closed": variable("setting seed epoch", looks[..., 1], "1", "closed-loop error, summed over steps"),
            "closed_off": variable("setting seed epoch", looks[..., 2], "1", "the same, taken one step off"),
            "generated": variable(
                "setting seed step sequence feature", torch.stack(made).cpu().numpy(), "1", "output in closed loop"
            ),
            "diverged": variable("setting seed", history.diverged, "epochs", "when it diverged, -1 if it did not"),
        },
        coords={
            "setting": (
                "setting",
                np.array(names, dtype=object),
                {"long_name": "time constants at the start, learned or fixed"},
            ),
            "seed": ("seed", np.arange(n_seeds), {"units": "1", "long_name": "network of the setting"}),
            "epoch": ("epoch", history.epoch, {"units": "epochs", "long_name": "epoch of training"}),
            "layer": ("layer", np.arange(3), {"units": "1", "long_name": "layer, lowest first"}),
            "step": ("step", np.arange(1, x.shape[-3]), {"units": "steps", "long_name": "step of the sequence"}),
        },
        attrs={"seconds": round(history.seconds, 1)},
    )


def size(results: xr.Dataset) -> str:
    """Say how large a run was."""
    return f"{results.sizes['seed']} networks, {int(results.epoch[-1]):,} epochs"


def at_end(values: xr.DataArray) -> xr.DataArray:
    """Return the median of the last ten looks."""
    return values.isel(epoch=slice(-10, None)).median("epoch", skipna=False)


def ratio(above: xr.DataArray, below: xr.DataArray) -> np.ndarray:
    """Return above over below, seed by seed; 100 where only above is not finite, 0.01 where only below is not, 1 where
    neither is."""
    top, bottom = np.isfinite(above.values), np.isfinite(below.values)
    with np.errstate(invalid="ignore"):
        quotient = above.values / below.values
    return np.select([top & bottom, bottom, top], [quotient, 100.0, 0.01], 1.0)


def roughness(closed: xr.DataArray) -> xr.DataArray:
    """Return the standard deviation, over the second half, of the log error's change from one look to the next."""
    second = xr.apply_ufunc(np.log10, closed.isel(epoch=slice(closed.sizes["epoch"] // 2, None)))
    return second.diff("epoch").std("epoch", skipna=False)


def quantities(results: xr.Dataset, closed: str = "closed") -> dict[str, dict[str, np.ndarray]]:
    """Return, for every claim whose settings were run, its quantities (``book/claims.yml``), one value a seed.

    Args:
        results: from `experiment`.
        closed: which closed-loop error, "closed" or "closed_off".
    """
    here = set(results.setting.values.tolist())
    of = {name: results.sel(setting=name) for name in here}

    def tau(name: str, layer: int) -> np.ndarray:
        return at_end(of[name].tau).sel(layer=layer).values

    def ordered(name: str) -> np.ndarray:
        return (tau(name, 0) < tau(name, 1)) & (tau(name, 1) < tau(name, 2))

    def closed_ratio(above: str, below: str) -> np.ndarray:
        return ratio(at_end(of[above][closed]), at_end(of[below][closed]))

    def rougher(above: str, below: str) -> np.ndarray:
        return ratio(roughness(of[above][closed]), roughness(of[below][closed]))

    found: dict[str, Mapping[str, np.ndarray]] = {}
    if "learn 100" in here:
        upper = of["learn 100"].tau.sel(layer=[1, 2])
        found["A2"] = {
            "low": tau("learn 100", 0) <= 10,
            "stable": ((upper >= 50) & (upper <= 200)).all(("epoch", "layer")).values,
            "ordered": ordered("learn 100"),
        }
    if "learn 16-8-4" in here:
        quarter = of["learn 16-8-4"].tau.sel(layer=0).isel(epoch=results.sizes["epoch"] // 4)
        found["A3"] = {"fast": quarter.values <= 4, "unordered": tau("learn 16-8-4", 2) < tau("learn 16-8-4", 1)}
    if {"learn 100", "fixed 100"} <= here:
        found["A4a"] = {"loss_ratio": ratio(at_end(of["learn 100"].loss), at_end(of["fixed 100"].loss))}
        found["A4b"] = {"closed_ratio": closed_ratio("learn 100", "fixed 100")}
    if {"learn 100", "learn 16-8-4"} <= here:
        found["A5"] = {"roughness_ratio": rougher("learn 16-8-4", "learn 100")}
    if "learn 4-8-16" in here:
        change = [tau("learn 4-8-16", layer) / start for layer, start in ((1, 8), (2, 16))]
        found["A6a"] = {"hardly": np.all([abs(c - 1) <= 0.25 for c in change], axis=0)}
    if {"learn 4-8-16", "learn 8"} <= here:
        apart = [np.log2(tau("learn 8", layer) / tau("learn 4-8-16", layer)) for layer in range(3)]
        distance = np.sqrt(np.sum(np.square(apart), axis=0))
        found["A6b"] = {"distance_ratio": distance / np.sqrt(2), "ordered": ordered("learn 8")}
        found["A8a"] = {
            f"at_floor_{start}": tau(f"learn {name}", 0) <= 1.01
            for start, name in (("exponential", "4-8-16"), ("8", "8"))
        }
    if {"learn 8", "fixed 8"} <= here:
        found["A7"] = {"closed_ratio": closed_ratio("fixed 8", "learn 8")}
    if {"learn 4-8-16", "no clamp 4-8-16"} <= here:
        found["A8b"] = {
            "lowest": of["no clamp 4-8-16"].tau.sel(layer=0).min("epoch").values,
            "closed_ratio": closed_ratio("no clamp 4-8-16", "learn 4-8-16"),
            "roughness_ratio": rougher("no clamp 4-8-16", "learn 4-8-16"),
        }
    return {claim: {name: np.asarray(value, float) for name, value in found[claim].items()} for claim in found}
