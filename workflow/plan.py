"""How many runs to plan for a claim, before a sweep makes them, so that they decide it; nothing is run here."""

from bisect import bisect_left
from functools import partial

import numpy as np
import scipy

from ts_helpers.book.claims import CONFIDENCE, Quantity, Values, interval, strata_of

CHANCE, TRIES, MOST = 0.9, 400, 100_000  # to decide; records drawn to tell; values at the very most


def plan(quantity: Quantity, values: Values, affordable: int) -> tuple[int | None, int | None]:
    """Return how many values decide a quantity with 90 % chance, None if more than affordable; and how many do at all.

    The second is None beyond 100,000. To decide is to say of the criterion what today's estimate says, new values being
    like these. The chance is exact for a rate; else it is the share of 400 records, drawn from the values, whose own
    bootstrap says it, the number is found to 2 %, and it is at least five: of four values, the ends enclose the median
    in 7 of 8 cases, which is no 95 %. Numbers are of all strata together, each of which has its equal part.
    """
    estimate, parts = interval(values, quantity.statistic)[0], strata_of(values)
    holds, strata = quantity.holds(estimate, estimate), len(parts)
    if quantity.statistic == "rate":
        n = np.arange(strata, MOST + 1, strata)
        needed = next(iter(n[_chances(quantity, estimate, n) >= CHANCE].tolist()), MOST + 1)
    else:
        decides, first = partial(_decides, quantity, parts, holds), max(-(-5 // strata), 2)
        while strata * (last := 2 * first) <= MOST and not decides(last):
            first = last
        steps = [*range(first, last, first // 50 + 1), last]
        needed = strata * steps[bisect_left(steps, True, hi=len(steps) - 1, key=decides)]
    return needed if needed <= min(affordable, MOST) else None, needed if needed <= MOST else None


def _chances(quantity: Quantity, rate: float, n: np.ndarray) -> np.ndarray:
    """Return the chance, for each n, that the exact interval of n values says of the criterion what the rate says."""
    (least, most), binom, tail = quantity.range, scipy.stats.binom, (1 - CONFIDENCE) / 2
    if quantity.holds(rate, rate):  # up to so many hits the upper end is in the range, beyond so many the lower one
        up_to = binom.ppf(tail, n, most) - 1 if most < 1 else n
        return binom.cdf(up_to, n, rate) - (binom.cdf(binom.isf(tail, n, least), n, rate) if least > 0 else 0)
    below = binom.cdf(binom.ppf(tail, n, least) - 1, n, rate) if least > 0 else np.zeros(n.shape)
    return below + (binom.sf(binom.isf(tail, n, most), n, rate) if most < 1 else 0)


def _decides(quantity: Quantity, parts: list[np.ndarray], holds: bool | None, each: int) -> bool:
    """Return whether enough of the records, drawn with so many values of each stratum, say ``holds``."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(TRIES):
        drawn = (rng.multinomial(each, np.full(part.size, 1 / part.size)) for part in parts)
        counts = np.concatenate([rng.multinomial(each, of / each, TRIES) for of in drawn], -1)
        made, tail = _of_counts(np.concatenate(parts), counts, quantity.statistic), (1 - CONFIDENCE) / 2
        wrong += quantity.holds(*np.quantile(made, [tail, 1 - tail]).tolist()) is not holds
        if wrong > (1 - CHANCE) * TRIES:
            return False
    return True


def _of_counts(x: np.ndarray, counts: np.ndarray, statistic: str) -> np.ndarray:
    """Return the mean or median of the samples in which each value comes as often as a row of counts says."""
    if statistic == "mean":
        return counts @ x / counts[0].sum()
    n, up_to, x = counts[0].sum(), counts[:, order := np.argsort(x)].cumsum(-1), x[order]
    return (x[(up_to < (n + 1) // 2).sum(-1)] + x[(up_to < n // 2 + 1).sum(-1)]) / 2
