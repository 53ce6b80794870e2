"""Claims as data: quantities over seeds, 95 % intervals, verdicts by criteria; no record, no page."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import scipy  # its `stats` is loaded when first used: the runner, which reads claims, starts without it
import yaml
from numpy.typing import ArrayLike

from ts_helpers.book.paths import CLAIMS

CONFIDENCE, NBSP = 0.95, "\N{NO-BREAK SPACE}"
STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}
Verdict = Literal["reproduced", "partly", "not reproduced", "inconclusive"]
Values = ArrayLike | Mapping[Any, ArrayLike]  # one a seed; of several strata (teachers, tasks) a mapping, by stratum


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
        least, most = (f"{100 * end:g}{NBSP}%" if rate else f"{end:g}" for end in self.range)
        return {">": f"at least {least}", "<": f"at most {most}", "i": f"between {least} and {most}"}[self.criterion[0]]


@dataclass(frozen=True)
class Edition:
    """What stood in a claim before it was changed, as far as it was, with the verdict of the time and the reason."""

    verdict: Verdict
    reason: str
    source: str | None = None
    claim: str | None = None
    min_seeds: int | None = None
    planned: int | None = None
    quantities: tuple[Quantity, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {', '.join(get_args(Verdict))}, got {self.verdict!r}")


@dataclass(frozen=True)
class Claim:
    """One entry of ``book/claims.yml``; ``editions`` are the earlier ones, in the order of events."""

    id: str
    paper: str
    chapter: str
    figure: str
    source: str
    claim: str
    min_seeds: int
    quantities: tuple[Quantity, ...]
    planned: int | None = None
    undecidable: str = ""
    editions: tuple[Edition, ...] = ()

    def __post_init__(self) -> None:
        if not self.quantities:
            raise ValueError("there must be at least one quantity")
        if self.planned is not None and not (isinstance(self.planned, int) and self.planned >= self.min_seeds):
            raise ValueError(f"planned must be a whole number, at least min_seeds, got {self.planned!r}")

    def estimates(self, finding: "Finding | None", none: str = "") -> dict[str, str]:
        """Return, by the names of the quantities, what was measured for a reader; ``none`` without a finding."""
        measured = finding.measured if finding else [None] * len(self.quantities)
        both = zip(self.quantities, measured, strict=True)
        return {quantity.name: of.describe(quantity.statistic) if of else none for quantity, of in both}


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
        return describe(self.estimate, self.low, self.high, statistic, self.seeds)


@dataclass(frozen=True)
class Finding:
    """A claim, as measured at one scale."""

    claim: str
    scale: str
    verdict: Verdict
    measured: tuple[Measured, ...]
    note: str = ""
    over: dict[str, str] = field(default_factory=dict)  # by value of a choice the paper leaves open: verdict, estimates

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
            editions = tuple(Edition(quantities=_quantities(old), **old) for old in entry.pop("editions", []))
            claims[key] = Claim(id=key, quantities=_quantities(entry), editions=editions, **entry)
        except (TypeError, ValueError) as error:  # a field too many or too few is a TypeError that names it
            raise ValueError(f"claim {key}: {error}") from None
    return claims


def _quantities(entry: dict[str, Any]) -> tuple[Quantity, ...]:
    return tuple(Quantity(name, **of) for name, of in entry.pop("quantities", {}).items())


def interval(values: Values, statistic: str) -> tuple[float, float, float]:
    """Return the estimate and the ends of its 95 % interval: a seeded percentile bootstrap of 9,999 resamples.

    A rate has the exact (Clopper-Pearson) interval: at 0 of n and n of n a bootstrap has no width. No values, one that
    is not finite, or, for a rate, is neither 0 nor 1, are a ValueError.

    Of several strata the estimate is that of all values; each is resampled by itself, unless one has a single value.
    The interval of a rate stays as it is: it errs to wide, for hits of unequal chances stray less (Hoeffding 1956).
    """
    x = np.concatenate(parts := strata_of(values))
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
    how |= dict(statistic=lambda *of, axis: function(np.concatenate(of, axis), axis), rng=np.random.default_rng(0))
    ends = scipy.stats.bootstrap(parts, **how).confidence_interval
    return float(function(x)), float(ends.low), float(ends.high)


def strata_of(values: Values) -> list[np.ndarray]:
    """Return the values of each stratum; all together where one has a single value, which resampling cannot vary."""
    parts = [np.asarray(part, float).ravel() for part in (values.values() if isinstance(values, Mapping) else [values])]
    return parts if min((part.size for part in parts), default=0) > 1 else [np.concatenate([*parts, []])]


def judge(
    claim_id: str, values: Mapping[str, Values], scale: str, claims: dict[str, Claim] | None = None, stand_in: str = ""
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
    elif not note and fewest < (asked := claim.planned or claim.min_seeds):
        note = f"{fewest} seed{'s' * (fewest != 1)}, the claim asks for {asked}"
    holds = {m.holds for m in measured}
    verdict: Verdict = "inconclusive"
    if not note and {True, False} <= holds:
        verdict = "partly"  # however an undecided one falls
    elif not note and None not in holds:
        verdict = "reproduced" if True in holds else "not reproduced"
    elif not note and claim.undecidable:
        note = f"undecidable here: {claim.undecidable}"
    return Finding(claim_id, scale, verdict, measured, note)


def _measure(quantity: Quantity, values: Values) -> Measured:
    x = np.concatenate(strata_of(values))
    if wild := int((~np.isfinite(x)).sum()):
        note = "no value" if wild == x.size else f"{wild} of {x.size} values are not finite"
        return Measured(quantity.name, None, None, None, x.size, None, note)
    estimate, low, high = interval(values, quantity.statistic)
    return Measured(quantity.name, estimate, low, high, x.size, quantity.holds(low, high))


def describe(estimate: float, low: float, high: float, statistic: str, seeds: int) -> str:
    """Return an estimate and its interval for a reader: ``97 % [92, 99]``, ``2.1 [1.9, 2.4]``, ``2.1 (n = 2)``."""
    rate = statistic == "rate"
    middle, *ends = (f"{100 * x:.0f}" if rate else f"{x:#.3g}".rstrip(".") for x in (estimate, low, high))
    within = f"[{', '.join(ends)}]" if rate or seeds > 2 else f"(n = {seeds})"  # two can have none of 95 %
    return f"{middle}{f'{NBSP}%' * rate} {within.replace(' ', NBSP)}"


def summary(values: Values, statistic: str = "median") -> str:
    """Return estimate and 95 % interval of values, one a seed, for a reader; see `interval` and `describe`."""
    return describe(*interval(values, statistic), statistic, sum(part.size for part in strata_of(values)))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", str(c)) for c in line) + " |\n" for line in lines)
