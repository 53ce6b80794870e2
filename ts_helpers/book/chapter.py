"""What every chapter does besides its experiment: set up, label, judge, save, give prose its numbers; no drawing."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import xarray as xr
from IPython.display import Markdown
from myst_nb import glue
from numpy.typing import ArrayLike

from ts_helpers._checkpoint import TOUCHED
from ts_helpers.book import claims, figures, records  # chapters take claims and figures from here
from ts_helpers.book.parameters import SCALES
from ts_helpers.book.paths import checkpoint_folder, remove_checkpoints

interval = claims.summary  # by its short name in prose
Entries = Mapping[str, tuple]
Quantity = Callable[[xr.Dataset], claims.Values]
Quantities = Mapping[str, Sequence[Quantity] | Mapping[str, Quantity]]
Choices = Mapping[str, Mapping[str, Callable[[xr.Dataset], xr.Dataset]]]


@dataclass
class Found:
    """Results by title, and those that verdicts rest on, with their title and words for prose; the recorded run."""

    title: str
    which: str
    runs: dict[str, xr.Dataset]
    best: xr.Dataset
    recorded: records.Record | None


class Chapter:
    """A notebook's run: its settings, and the record that is made of it.

    Args:
        name: ``<paper>/<idea>``, whose claims and archived run are meant; a copy run under another name leaves a record
            of its own.
        parameters: the notebook's ``globals()``; has scale, seed, device and the parameters among the settings.
        auto: what the device "auto" is where there is a GPU; "cpu" for what is faster there.
        settings: by name, a tuple of the values at scales smoke, book and paper, or one value for all; a parameter of
            that name that is not None takes its place.

    Settings, scale, seed and device are this run's; from the folder ``checkpoints`` an interrupted training goes on.
    An unknown scale or device, a tuple of another length, or something in the way of the record, is a ValueError.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any], *, auto: str = "cuda", **settings: Any):
        self.name, self.scale, self.seed = name, parameters["scale"], parameters["seed"]
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")
        for key, each in settings.items():
            if isinstance(each, tuple) and len(each) != len(SCALES):
                raise ValueError(f"{key} must have a value for each of {', '.join(SCALES)}, got {each}")
            try:  # now, not when hours of training are to be saved
                records.as_json(each)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key} must be what JSON can hold, got {each!r}: {error}") from None
        own = {k: each[SCALES.index(self.scale)] if isinstance(each, tuple) else each for k, each in settings.items()}
        self.given = {key: parameters[key] for key in settings if key in parameters}
        self.settings = SimpleNamespace(**own | {k: each for k, each in self.given.items() if each is not None})
        self.device = torch_device(parameters["device"], auto)
        own_name = os.environ.get("TS_NOTEBOOK") or name  # it may run in a copy
        self.checkpoints = checkpoint_folder(own_name, self.scale)
        records.folder_to_write(own_name)  # refused now, not after hours of training
        self.made = dict(notebook=own_name, **records.git_state(own_name), data=records.data_digests(self.given))
        self.judged: tuple[list[claims.Finding], ...] = [], []  # of this run, of the recorded one
        self.start, self.clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
        torch.set_num_threads(1)  # other notebooks run on the other cores
        figures.use_style(self.scale)

    def dataset(self, variables: Entries, coords: Entries | None = None, **attrs: Any) -> xr.Dataset:
        """Return a dataset of entries (dims, values, long_name[, units]); dims default to the name, units to "1"."""
        made = [{name: _labelled(name, *entry) for name, entry in each.items()} for each in (variables, coords or {})]
        return xr.Dataset(made[0], made[1], attrs)

    def concat(self, arms: Mapping[str, xr.Dataset], long_name: str, **how: Any) -> xr.Dataset:
        """Join arms along a labelled dimension ``arm``; ``how`` goes to ``xr.concat``."""
        join = dict(data_vars="all", join="outer", combine_attrs="drop_conflicts") | how
        return xr.concat(arms.values(), xr.Variable("arm", list(arms), {"long_name": long_name}), **join)

    def judge(
        self, results: xr.Dataset, size: Callable[[xr.Dataset], str], quantities: Quantities | None = None,
        stand_in: Callable[[xr.Dataset, str], str] = lambda results, claim: "", over: Choices | None = None,
    ) -> Found:  # fmt: skip
        """Judge the chapter's claims on this run and on the recorded one, and give both to the prose.

        The prose gets ``recorded``, ``<claim>-verdict`` and ``<claim>-<quantity>``, of this run with ``-live``. Titles
        get ``size``, how large a run was. ``quantities`` has for each claim functions of results that return one value
        a seed, called (or named) as in ``book/claims.yml``. ``stand_in`` says what data is not the paper's, if any.
        ``over`` has, for a claim that hangs on a choice the paper leaves open, by value of it what results to judge; a
        KeyError says that there are none.
        """
        recorded = records.archived(self.name)
        best = recorded.results if recorded else results
        runs = {f"recorded: {size(best)}": best} if recorded else {}
        runs[f"this run: {size(results)}"] = results

        def judged(of: xr.Dataset, scale: str) -> Iterator[claims.Finding]:
            for claim, each in (quantities or {}).items():
                named = each if isinstance(each, Mapping) else {quantity.__name__: quantity for quantity in each}
                parts, found, words = {"": of}, dict[str, claims.Finding](), dict[str, str]()
                for value, pick in (over or {}).get(claim, {}).items():
                    with suppress(KeyError):
                        parts[value] = pick(of)
                for value, part in parts.items():
                    values = {name: quantity(part) for name, quantity in named.items()}
                    found[value] = one = claims.judge(claim, values, scale, stand_in=stand_in(part, claim))
                    words[value] = f"{one.words}: {'; '.join(asked[claim].estimates(one).values())}"
                words.pop("")
                yield replace(found[""], over=words)

        asked = claims.read_claims()
        live = [*judged(results, self.scale)]
        archived = [*judged(recorded.results, "paper")] if recorded else []
        told = {"recorded": recorded.line() if recorded else "No paper-scale run is recorded."}
        for finding, suffix in [(f, "-live") for f in live] + [(f, "") for f in archived or live]:
            told[f"{finding.claim}-verdict{suffix}"] = finding.words
            estimates = asked[finding.claim].estimates(finding)
            told |= {f"{finding.claim}-{name}{suffix}": estimate for name, estimate in estimates.items()}
        for key, text in told.items():
            glue(key, text, display=False)
        which = f"{'the recorded run' if recorded else 'the run of this page'} ({size(best)})"
        self.results, self.judged = results, (live, archived)
        return Found(next(iter(runs)), which, runs, best, recorded)

    def save(self, results: xr.Dataset | None = None) -> None:
        """Save the record of what was judged, or of ``results``; remove own checkpoints.

        The variable ``seconds``, which trainings took, those of an interrupted run included, goes to the provenance.
        """
        results = self.results if results is None else results
        trained = float(results.seconds.sum()) if "seconds" in results else 0.0
        device = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.machine() + " CPU"
        made = self.made | dict(scale=self.scale, seed=self.seed, device=device, start=self.start)
        made |= dict(parameters=self.given, settings=vars(self.settings), threads=torch.get_num_threads())
        made["seconds"] = round(max(trained, time.perf_counter() - self.clock), 1)
        at, by_runner = self.checkpoints, "TS_CHECKPOINTS" in os.environ
        own = sorted(f.relative_to(at).as_posix() for f in TOUCHED if f.is_relative_to(at))
        made |= {"checkpoints": own} if by_runner else {}  # it removes them once the executed notebook is in its place
        records.save(made, results.drop_vars("seconds", errors="ignore"), *self.judged)
        if not by_runner:
            remove_checkpoints(own, at)


def median(values: ArrayLike, spec: str) -> str:
    """Return the median of the finite values in a format; "none" where there is none."""
    finite = _finite(values)
    return f"{np.median(finite):{spec}}" if finite.size else "none"


def span(values: ArrayLike, spec: str) -> str:
    """Return the least and the greatest of the finite values in a format, ``2 to 5``; ``2`` if they read alike."""
    finite = np.sort(_finite(values))
    return " to ".join(dict.fromkeys(f"{end:{spec}}" for end in finite[:: max(1, finite.size - 1)])) or "none"


def share(mask: ArrayLike) -> str:
    """Return how many are true of how many, ``3 of 5``."""
    return f"{np.sum(mask):.0f} of {np.size(mask)}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """Return a table that a cell shows."""
    return Markdown(claims.table(head, rows))


def torch_device(name: str, auto: str = "cuda") -> torch.device:
    """Return the device a notebook runs on; "auto" is ``auto`` where there is one, else the CPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be one of auto, cpu, cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be auto or cpu here, got 'cuda': torch finds no CUDA device")
    if name == "auto":
        name = auto if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # it has 10 bits to the mantissa: products are to be in float32
    return torch.device(name)


def _labelled(name: str, *entry: Any) -> tuple[Any, Any, dict[str, str]]:
    dims, values, long_name, *units = entry if isinstance(entry[0], str) else (name, *entry)
    label = {"units": units[0] if units else "1"} if units or np.asarray(values).dtype.kind not in "OUS" else {}
    return dims.split(), values, label | {"long_name": long_name}


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    return values[np.isfinite(values)]
