"""Networks, training and quantities that chapters on Benureau & Tani (2018) share; what is drawn is theirs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ts_helpers._check import at_least, instance, numbered, one_of
from ts_helpers.cells import MTRNNCell, unroll
from ts_helpers.fit import fit
from ts_helpers.seeding import generator_of
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
        instance(MTRNNCell, "an MTRNNCell", cell=cell)
        at_least(1, features=features, n_sequences=n_sequences, generator=generator)
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
        """Predict in closed loop: the input is the first value x (sequences, features), then each own prediction.

        Returns:
            (n_steps, sequences, features): what follows x.
        """
        at_least(1, n_steps=n_steps)
        h: Tensor = self.h0
        outputs = []
        with parametrize.cached():
            for _ in range(n_steps):
                h = self.cell(x, h)
                x = self.read_out(h)
                outputs.append(x)
        return torch.stack(outputs)


def closed_loop_error(
    generated: Tensor,
    x: Tensor,
    against: Literal["aligned", "one step off"] = "aligned",
) -> Tensor:
    """Return the squared error: sum over steps and features, mean over sequences.

    "one step off" is the error that the code of Benureau & Tani (2018) takes: it holds
    the first value and the predictions against the sequence without its first value,
    each prediction against the value after the one it was to predict. A perfect
    reproduction then scores the sum of squared steps of the data.

    Args:
        generated: (time - 1, sequences, features), from `NextStep.generate`.
        x: (time, sequences, features), the sequences to reproduce.

    Raises:
        ValueError: shapes do not fit, or an unknown ``against``.
    """
    numbered(generated=generated, x=x)
    one_of(("aligned", "one step off"), against=against)
    if x.ndim != 3 or generated.shape != x[1:].shape:
        rule = "generated must be as x, (time, sequences, features), but a step less"
        raise ValueError(f"{rule}, got {generated.shape}")
    if against == "one step off":
        generated = torch.cat([x[:1], generated[:-1]])
    return ((generated - x[1:]) ** 2).sum((0, 2)).mean()


@dataclass(frozen=True)
class Setting:
    """A network of the paper: where its time constants start, and how they move.

    Attributes:
        tau: time constants of layers 0, 1 and 2 at the start, in steps.
        lr_scale: learning rate of tau over that of the weights; 0 for fixed ones.
        floor: least tau; 0 for none.
    """

    tau: tuple[float, float, float]
    lr_scale: float
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

    def __post_init__(self) -> None:
        one_of(("clamp", "projection", "log"), dial=self.dial)
        one_of(("mean", "sum"), loss=self.loss)


def network(setting: Setting, choices: Choices, n_sequences: int, features: int, *, seed: Sequence[int]) -> NextStep:
    """Return a network; its weights depend on the seed alone, so that settings can be compared pair by pair."""
    generator = generator_of(*seed)
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
        checkpoint: folder to go on from, see `fit`.

    Returns:
        tau (setting, seed, epoch, layer); loss, closed and closed_off (setting, seed, epoch); predicted and generated
        (setting, seed, step, sequence, feature), what the trained networks put out in open and in closed loop;
        diverged (setting, seed); seconds, what training took. A network that diverged has no errors from then on; its
        tau stays what it was.

    Raises:
        ValueError: an unknown name, or x with sequences for another number of seeds.
    """
    instance(Sequence, "a sequence", names=names)
    for name in names or ("",):
        one_of(SETTINGS, names=name)
    at_least(1, n_seeds=n_seeds, epochs=epochs)
    numbered(x=x)
    if x.ndim not in (3, 4) or (x.ndim == 4 and len(x) != n_seeds):
        raise ValueError(f"x must be (time, sequences, features), or that for each of {n_seeds} seeds, got {x.shape}")
    each = x if x.ndim == 4 else x.expand(n_seeds, *x.shape)
    settings = [SETTINGS[name] for name in names for _ in range(n_seeds)]
    sizes = x.shape[-2:]
    networks = [
        network(setting, choices, *sizes, seed=(seed, i % n_seeds)).to(x.device) for i, setting in enumerate(settings)
    ]
    lr_scale = [setting.lr_scale and (1.0 if choices.dial == "log" else setting.lr_scale) for setting in settings]
    history = fit(
        networks,
        mean_loss if choices.loss == "mean" else summed_loss,
        [each.repeat(len(names), 1, 1, 1)],
        epochs=epochs,
        lr=LR,
        lr_scale={ALPHA: lr_scale},
        lower_bounds={ALPHA: [setting.floor for setting in settings]} if choices.dial == "projection" else None,
        clip_norm=1.0 if choices.loss == "sum" else None,
        norm_type=np.inf,
        metrics={"errors": errors, "tau": time_constants},
        eval_interval=max(1, epochs // min(200, max(10, epochs // 10))),  # 200 of them; fewer in a short training
        checkpoint=checkpoint,
        name=" ".join(f"{value}" for value in vars(choices).values()),
    )
    with torch.no_grad():
        open_loop = [net(each[i % n_seeds, :-1]) for i, net in enumerate(networks)]
        made = [net.generate(each[i % n_seeds, 0], x.shape[-3] - 1) for i, net in enumerate(networks)]
        final = np.stack([time_constants(net, x).cpu().numpy() for net in networks])
    shape, outputs = (len(names), n_seeds), "setting seed step sequence feature"

    def variable(dims: str, values: np.ndarray, units: str, long_name: str) -> tuple:
        return dims.split(), values.reshape(*shape, *values.shape[1:]), {"units": units, "long_name": long_name}

    measured, tau = history.metrics["errors"], history.metrics["tau"]
    after = (history.diverged >= 0)[:, None] & (history.at >= history.diverged[:, None])
    measured[after] = np.nan  # a network frozen at its last numbers has no error of its own any more
    tau = np.where(np.isnan(tau), final[:, None], tau)  # but time constants
    return xr.Dataset(
        {
            "tau": variable("setting seed epoch layer", tau, "steps", "time constant"),
            "loss": variable("setting seed epoch", measured[..., 0], "1", "mean squared error of the next step"),
            "closed": variable("setting seed epoch", measured[..., 1], "1", "closed-loop error, summed over steps"),
            "closed_off": variable("setting seed epoch", measured[..., 2], "1", "the same, taken one step off"),
            "predicted": variable(outputs, torch.stack(open_loop).cpu().numpy(), "1", "output in open loop"),
            "generated": variable(outputs, torch.stack(made).cpu().numpy(), "1", "output in closed loop"),
            "diverged": variable("setting seed", history.diverged, "epochs", "when it diverged, -1 if it did not"),
            "seconds": ((), history.seconds, {"units": "s", "long_name": "time that training took"}),
        },
        coords={
            "setting": (
                "setting",
                np.array(names, dtype=object),
                {"long_name": "time constants at the start, learned or fixed"},
            ),
            "seed": ("seed", np.arange(n_seeds), {"units": "1", "long_name": "network of the setting"}),
            "epoch": ("epoch", history.at, {"units": "epochs", "long_name": "epoch of training"}),
            "layer": ("layer", np.arange(3), {"units": "1", "long_name": "layer, lowest first"}),
            "step": ("step", np.arange(1, x.shape[-3]), {"units": "steps", "long_name": "step of the sequence"}),
        },
    )


def sizes(units: Sequence[int], names: Sequence[str], x: Tensor, **how: Any) -> xr.Dataset:
    """Return what `experiment` does of networks of several sizes, along ``units``."""
    made = [experiment(names, x, choices=Choices(n), **how) for n in units]
    return xr.concat(made, xr.Variable("units", units, {"units": "1", "long_name": "units in each layer"}), "all")


def at(results: xr.Dataset, units: int) -> xr.Dataset:
    """Return results of one size; of the only one, where there are no two."""
    if "units" not in results.dims:
        return results
    return results.isel(units=0) if results.sizes["units"] == 1 else results.sel(units=units)


def runs_at(runs: Mapping[str, xr.Dataset], *units: int) -> dict[str, xr.Dataset]:
    """Return runs by title, as `Found` has them, each of one size, which titles say, on two lines of several."""
    parts = [(title.partition(":")[0], at(results, n)) for title, results in runs.items() for n in units]
    of = " of " if len(units) == 1 else "\nof "
    return {f"{which}: {size(part).replace(' of ', of)}": part for which, part in parts}


def size(results: xr.Dataset) -> str:
    """Say how large a run was."""
    units = " and ".join(str(n) for n in np.ravel(results.units)) if "units" in results.coords else ""
    of = f" of {units} units" if units else ""
    return f"{results.sizes['seed']} networks{of}, {int(results.epoch[-1]):,} epochs"


def at_end(values: xr.DataArray) -> xr.DataArray:
    """Return the median of the last ten evaluations."""
    return values.isel(epoch=slice(-10, None)).median("epoch", skipna=False)


def ratio(above: xr.DataArray, below: xr.DataArray) -> np.ndarray:
    """Return above over below, seed by seed; 100 where only above is not finite, 0.01 where only below is not, 1 where
    neither is."""
    top, bottom = np.isfinite(above.values), np.isfinite(below.values)
    with np.errstate(invalid="ignore"):
        quotient = above.values / below.values
    return np.select([top & bottom, bottom, top], [quotient, 100.0, 0.01], 1.0)


def volatility(closed: xr.DataArray) -> xr.DataArray:
    """Return the standard deviation, over the second half, of the log error's change between evaluations."""
    second = xr.apply_ufunc(np.log10, closed.isel(epoch=slice(closed.sizes["epoch"] // 2, None)))
    return second.diff("epoch").std("epoch", skipna=False)


# Quantities, named as in ``book/claims.yml``: of what `experiment` returned, one value a network. They raise a KeyError
# where a setting was not run.


def _tau(results: xr.Dataset, setting: str, layer: int) -> np.ndarray:
    """Time constants at the end, (seed,)."""
    return at_end(results.tau.sel(setting=setting, layer=layer)).values


def low(results: xr.Dataset) -> np.ndarray:
    """A2: tau_0 of 10 or less at the end."""
    return _tau(results, "learn 100", 0) <= 10


def stable(results: xr.Dataset) -> np.ndarray:
    """A2: tau_1 and tau_2 within a factor of 2 of 100 throughout."""
    upper = results.tau.sel(setting="learn 100", layer=[1, 2])
    return ((upper >= 50) & (upper <= 200)).all(("epoch", "layer")).values


def ordered(results: xr.Dataset, setting: str = "learn 8") -> np.ndarray:
    """A6b: tau_0 < tau_1 < tau_2 at the end."""
    tau = [_tau(results, setting, layer) for layer in range(3)]
    return (tau[0] < tau[1]) & (tau[1] < tau[2])


def fast(results: xr.Dataset) -> np.ndarray:
    """A3: tau_0 of 4 or less after a quarter of the training."""
    tau = results.tau.sel(setting="learn 16-8-4", layer=0)
    return tau.isel(epoch=results.sizes["epoch"] // 4).values <= 4


def unordered(results: xr.Dataset) -> np.ndarray:
    """A3: tau_2 < tau_1 at the end."""
    return _tau(results, "learn 16-8-4", 2) < _tau(results, "learn 16-8-4", 1)


def loss_ratio(results: xr.Dataset) -> np.ndarray:
    """A4a: loss at the end, learned over fixed."""
    learned, fixed = (at_end(results.loss.sel(setting=name)) for name in WRONG)
    return ratio(learned, fixed)


def closed_ratio(results: xr.Dataset, over: str, under: str, closed: str = "closed") -> np.ndarray:
    """A4b, A7 and A8b: closed-loop error at the end, "closed" or "closed_off", of one setting over another's."""
    return ratio(*(at_end(results[closed].sel(setting=name)) for name in (over, under)))


def roughness_ratio(results: xr.Dataset, over: str, under: str, closed: str = "closed") -> np.ndarray:
    """A5 and A8b: volatility of the log closed-loop error; arguments as in `closed_ratio`."""
    return ratio(*(volatility(results[closed].sel(setting=name)) for name in (over, under)))


def hardly(results: xr.Dataset) -> np.ndarray:
    """A6a: tau_1 and tau_2 end within 25 % of their start."""
    change = [_tau(results, "learn 4-8-16", layer) / start for layer, start in ((1, 8), (2, 16))]
    return np.all([abs(c - 1) <= 0.25 for c in change], axis=0)


def distance_ratio(results: xr.Dataset) -> np.ndarray:
    """A6b: distance between the time constants from 8 and from (4, 8, 16), in octaves, at the end over the start."""
    apart = [np.log2(_tau(results, "learn 8", k) / _tau(results, "learn 4-8-16", k)) for k in range(3)]
    return np.sqrt(np.sum(np.square(apart), axis=0)) / np.sqrt(2)


def _at_clamp(tau_0: xr.DataArray) -> np.ndarray:
    """Whether within 1 % of 1; NaN of networks that were not run."""
    return (tau_0 <= 1.01).where(tau_0.notnull()).values.ravel()


def ever(results: xr.Dataset) -> np.ndarray:
    """A8a: tau_0 within 1 % of 1 at any evaluation, networks of the four starts one after the other."""
    return _at_clamp(results.tau.sel(setting=STARTS, layer=0).min("epoch"))


def in_the_end(results: xr.Dataset) -> np.ndarray:
    """A8a: the same at the end."""
    return _at_clamp(at_end(results.tau.sel(setting=STARTS, layer=0)))


def lowest(results: xr.Dataset) -> np.ndarray:
    """A8b: lowest tau_0 of any evaluation without clamp."""
    return results.tau.sel(setting="no clamp 4-8-16", layer=0).min("epoch").values


STARTS = ["learn 100", "learn 16-8-4", "learn 4-8-16", "learn 8"]
WRONG, EIGHT, FREE = ("learn 16-8-4", "fixed 16-8-4"), ("learn 8", "fixed 8"), ("no clamp 4-8-16", "learn 4-8-16")
QUANTITIES: dict[str, dict[str, Callable[[xr.Dataset], np.ndarray]]] = {
    "A2": {"low": low, "stable": stable},
    "A3": {"fast": fast, "unordered": unordered},
    "A4a": {"loss_ratio": loss_ratio},
    "A4b": {"closed_ratio": lambda results: closed_ratio(results, *WRONG)},
    "A5": {"roughness_ratio": lambda results: roughness_ratio(results, *EIGHT)},
    "A6a": {"hardly": hardly},
    "A6b": {"distance_ratio": distance_ratio, "ordered": ordered},
    "A7": {"closed_ratio": lambda results: closed_ratio(results, *EIGHT[::-1])},
    "A8a": {"ever": ever, "at_end": in_the_end},
    "A8b": {
        "lowest": lowest,
        "closed_ratio": lambda results: closed_ratio(results, *FREE),
        "roughness_ratio": lambda results: roughness_ratio(results, *FREE),
    },
}
# Units in each layer of the networks that a claim is about: 25 by the text, but A7 by the authors' own figure, of 10
UNITS = {claim: 10 if claim == "A7" else 25 for claim in QUANTITIES}


def judged(claim: str) -> dict[str, Callable[[xr.Dataset], np.ndarray]]:
    """Return a claim's quantities, of those networks, or of the only size that was trained."""

    def of_size(of: Callable[[xr.Dataset], np.ndarray], results: xr.Dataset) -> np.ndarray:
        return of(at(results, UNITS[claim]))

    return {name: partial(of_size, of) for name, of in QUANTITIES[claim].items()}


def other_size(claim: str) -> dict[str, Callable[[xr.Dataset], xr.Dataset]]:
    """Return the size beside it, for `Chapter.judge` to judge over."""
    units = {10: 25, 25: 10}[UNITS[claim]]
    return {f"{units} units": lambda results: results.sel(units=[units])}


def quantities(results: xr.Dataset, closed: str = "closed") -> dict[str, dict[str, np.ndarray]]:
    """Return the quantities of every claim whose settings were run; ``closed`` as in `closed_ratio`."""
    results, found = results.assign(closed=results[closed]), {}
    for claim, functions in QUANTITIES.items():
        with suppress(KeyError):  # a setting that was not run
            found[claim] = {name: function(results).astype(float) for name, function in functions.items()}
    return found


def short(value: SupportsFloat, spec: str = ".1g") -> str:
    """Return a number for prose: in a format, or, below 1e-4, as one digit and a power of ten, ``9 × 10⁻⁷``."""
    if not float(value) < 1e-4:  # NaN too
        return f"{float(value):{spec}}"
    digit, exponent = f"{float(value):.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digit}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{power}"
