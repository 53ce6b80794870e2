"""How well counts of the few symbols before predict the next: a score for networks to beat; no network is here."""

import numpy as np
from torch import Tensor

from ts_helpers._check import at_least, numbered


def witten_bell_bits(train: Tensor, held: Tensor, n_symbols: int, longest: int) -> np.ndarray:
    r"""Return the bits per symbol that are left when k symbols before it are known, for k = 0 to ``longest``.

    .. math::
        P_k(s \mid c) = \frac{n(c s) + d(c) P_{k-1}(s \mid c')}{n(c) + d(c)}, \qquad P_{-1}(s) = 1 / n_\text{symbols}

    for a context c of k symbols, c' without its oldest. In the training part n(c) counts how often c is followed by
    something, n(c s) how often by s, and d(c) by how many different ones; a context that is not there leaves
    :math:`P_{k-1}` as it is. So a symbol never seen after c still has its chance, and the score is that of a text not
    counted, where an entropy of the counts themselves falls to 0 as contexts become unique.

    Source: Witten & Bell (1991), method C, in its interpolated form.

    Args:
        train: (symbols,), whole numbers from 0; what is counted.
        held: the same; every symbol of it from the one at ``longest`` on is scored, for each k the same ones.
        n_symbols: how many there are.
        longest: the greatest k.

    Returns:
        (longest + 1,).

    Raises:
        ValueError: ``longest`` is negative, or so great that contexts have no number of 63 bits; or a text has not more
            symbols than that.
    """
    at_least(0, longest=longest)
    at_least(1, n_symbols=n_symbols)
    numbered(train=train, held=held)
    if longest > 62 or n_symbols ** (longest + 1) >= 2**63:
        raise ValueError(f"longest must be such that {n_symbols} ** (longest + 1) is below 2 ** 63, got {longest}")
    for name, codes in (("train", train), ("held", held)):
        if codes.ndim != 1 or len(codes) <= longest:
            raise ValueError(f"{name} must have more than {longest} symbols, in one row, got {tuple(codes.shape)}")
        if codes.is_floating_point() or not 0 <= int(codes.min()) <= int(codes.max()) < n_symbols:
            raise ValueError(f"{name} must hold whole numbers from 0 to {n_symbols - 1}, got others, {codes.dtype}")
    seen, asked = (codes.numpy().astype(np.int64) for codes in (train, held))
    runs, asked_runs = np.int64(0), np.int64(0)  # symbol and context as digits, the symbol last
    p, bits = np.full(len(asked) - longest, 1 / n_symbols), []
    for k in range(longest + 1):
        runs = runs + seen[longest - k : len(seen) - k] * n_symbols**k
        asked_runs = asked_runs + asked[longest - k : len(asked) - k] * n_symbols**k
        found, n_found = np.unique(runs, return_counts=True)
        contexts, first = np.unique(found // n_symbols, return_index=True)
        n, d = np.add.reduceat(n_found, first), np.diff(first, append=len(found))
        n_asked, d_asked = (_look_up(contexts, counts, asked_runs // n_symbols) for counts in (n, d))
        more = _look_up(found, n_found, asked_runs) + d_asked * p
        p = np.where(n_asked > 0, more / np.maximum(n_asked + d_asked, 1), p)
        bits.append(-np.log2(p).mean())
    return np.array(bits)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each key wanted, 0 where there is no such key; keys are sorted."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
