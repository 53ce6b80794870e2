"""Claims as data: quantities over seeds, their 95 % intervals, and verdicts by their criteria; no record, no page."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy  # its `stats` is loaded when first used: the runner, which reads claims, starts without it
import yaml
from numpy.typing import ArrayLike

from ts_helpers.book.paths import CLAIMS

CONFIDENCE = 0.95
STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}
Verdict = Literal["reproduced", "partly", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Quantity:
    """What is measured for a claim, once a seed; the criterion is ``>= x``, ``<= x`` or ``in [low, high]``."""

    name: str
    meaning: str
    statistic: str
    criterion: str

    def __post_init__(self) -> None:
        if self.statistic not in ("rate", *STATISTICS):
            raise ValueError(f"the statistic of {self.name} must be rate, mean or median, got {self.statistic!r}")
        self.range  # noqa: B018  (refuses a malformed one now, not after hours of training)

    @cached_property
    def range(self) -> tuple[float, float]:
        """The values that meet the criterion, ends included; ValueError, if it is none of the three forms."""
        number = r"([-+]?[\d.]+(?:e[-+]?\d+)?)"
        if not (found := re.fullmatch(rf">= {number}|<= {number}|in \[{number}, {number}\]", self.criterion)):
            raise ValueError(f"a criterion must read '>= x', '<= x' or 'in [low, high]', got {self.criterion!r}")
        return float(found[1] or found[3] or -np.inf), float(found[2] or found[4] or np.inf)

    def holds(self, low: float, high: float) -> bool | None:
        """True if all of [low, high] meets the criterion, False if none of it does, None if it straddles."""
        least, most = self.range
        return (least <= low and high <= most) or (None if least <= high and low <= most else False)

    @property
    def words(self) -> str:
        """The criterion for a reader, that of a rate in percent: ``at least 80 %``, ``between 0.5 and 2``."""
        rate = self.statistic == "rate"
        least, most = (f"{100 * end:g}\N{NO-BREAK SPACE}%" if rate else f"{end:g}" for end in self.range)
        return {">": f"at least {least}", "<": f"at most {most}", "i": f"between {least} and {most}"}[self.criterion[0]]


@dataclass(frozen=True)
class Claim:
    """One entry of ``book/claims.yml``."""

    id: str
    paper: str
    chapter: str
    figure: str
    source: str
    claim: str
    min_seeds: int
    quantities: tuple[Quantity, ...]


@dataclass(frozen=True)
class Measured:
    """A quantity over seeds: its estimate, its interval, and whether the criterion holds (None: cannot tell)."""

    name: str
    estimate: float | None
    low: float | None
    high: float | None
    seeds: int
    holds: bool | None
    note: str = ""

    def describe(self, statistic: str) -> str:
        """Return estimate and interval for a reader, or why there are none."""
        if self.estimate is None or self.low is None or self.high is None:
            return self.note
        return describe(self.estimate, self.low, self.high, statistic)


@dataclass(frozen=True)
class Finding:
    """A claim, as measured at one scale."""

    claim: str
    scale: str
    verdict: Verdict
    measured: tuple[Measured, ...]
    note: str = ""

    @property
    def words(self) -> str:
        """The verdict, with its note if there is one."""
        return self.verdict + f" ({self.note})" * bool(self.note)


@cache
def read_claims(path: Path = CLAIMS) -> dict[str, Claim]:
    """Read the book of claims, once; ValueError if a field is missing or unknown, or a statistic or criterion is."""
    claims = {}
    for key, entry in yaml.load(path.read_text(), yaml.CSafeLoader).items():
        try:
            quantities = tuple(Quantity(name, **of) for name, of in entry.pop("quantities", {}).items())
            claims[key] = Claim(id=key, **entry, quantities=quantities)
            if not quantities:
                raise ValueError("there must be at least one quantity")
        except (TypeError, ValueError) as error:  # a field too many or too few is a TypeError that names it
            raise ValueError(f"claim {key}: {error}") from None
    return claims


def interval(values: ArrayLike, statistic: str) -> tuple[float, float, float]:
    """Return the estimate and the ends of its 95 % interval: a seeded percentile bootstrap of 9,999 resamples.

    A rate has the exact (Clopper-Pearson) interval: at 0 of n and n of n a bootstrap has no width. No values, one that
    is not finite, or, for a rate, is neither 0 nor 1, are a ValueError.
    """
    x = np.asarray(values, dtype=float).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"values must be finite numbers, at least one, got {x.size}")
    if statistic == "rate":
        if (wrong := x[(x != 0) & (x != 1)]).size:
            raise ValueError(f"values of a rate must be 0 or 1, got {wrong[0]:g}")
        ends = scipy.stats.binomtest(int(x.sum()), x.size).proportion_ci(CONFIDENCE, method="exact")
        return x.sum().item() / x.size, float(ends.low), float(ends.high)
    if x.size == 1:
        return float(x[0]), float(x[0]), float(x[0])
    function, how = STATISTICS[statistic], dict(n_resamples=9999, confidence_level=CONFIDENCE, method="percentile")
    ends = scipy.stats.bootstrap((x,), function, **how, rng=np.random.default_rng(0)).confidence_interval
    return float(function(x)), float(ends.low), float(ends.high)


def judge(
    claim_id: str, values: dict[str, ArrayLike], scale: str, claims: dict[str, Claim] | None = None, stand_in: str = ""
) -> Finding:
    """Hold the values of a claim's quantities, one a seed, against their criteria.

    *reproduced*: all criteria hold for the whole interval; *not reproduced*: all fail for it; *partly*: some hold, some
    fail; *inconclusive*: a straddled criterion or a value that is not finite leaves the verdict open, seeds are fewer
    than asked for, the scale is smoke, or ``stand_in`` says what data is not the paper's. ValueError: unknown names.
    """
    claims = claims or read_claims()
    if not (claim := claims.get(claim_id)):
        raise ValueError(f"claim must be one of {', '.join(claims)}, got {claim_id!r}")
    names = [q.name for q in claim.quantities]
    if set(values) != set(names):
        raise ValueError(f"claim {claim_id} has the quantities {', '.join(names)}, got {', '.join(values)}")
    measured = tuple(_measure(q, values[q.name]) for q in claim.quantities)
    note, fewest = stand_in, min(m.seeds for m in measured)
    if scale == "smoke":
        note = "smoke scale: too small to tell"
    elif not note and fewest < claim.min_seeds:
        note = f"{fewest} seed{'s' * (fewest != 1)}, the claim asks for {claim.min_seeds}"
    holds = {m.holds for m in measured}
    verdict: Verdict = "inconclusive"
    if not note and {True, False} <= holds:
        verdict = "partly"  # however an undecided one falls
    elif not note and None not in holds:
        verdict = "reproduced" if True in holds else "not reproduced"
    return Finding(claim_id, scale, verdict, measured, note)


def _measure(quantity: Quantity, values: ArrayLike) -> Measured:
    x = np.asarray(values, dtype=float).ravel()
    if wild := int((~np.isfinite(x)).sum()):
        return Measured(quantity.name, None, None, None, x.size, None, f"{wild} of {x.size} values are not finite")
    estimate, low, high = interval(x, quantity.statistic)
    return Measured(quantity.name, estimate, low, high, x.size, quantity.holds(low, high))


def describe(estimate: float, low: float, high: float, statistic: str) -> str:
    """Return an estimate and its interval for a reader: ``97 % [92, 99]`` or ``-1.93 [-1.98, -1.90]``."""
    percent = f"{100 * estimate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    text = percent if statistic == "rate" else f"{estimate:.3g} [{low:.3g}, {high:.3g}]"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def summary(values: ArrayLike, statistic: str = "median") -> str:
    """Return estimate and 95 % interval of values, one a seed, for a reader; see `interval` and `describe`."""
    return describe(*interval(values, statistic), statistic)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", str(c)) for c in line) + " |\n" for line in lines)
