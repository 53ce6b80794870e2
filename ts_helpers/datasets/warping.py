"""Letters warped in time, with the letter before as target: the warping tasks of Tallec & Ollivier (2018), no network.

Letters are 1 to 9, the dummy 0; `torch.nn.functional.one_hot` with ``ALPHABET`` makes features of them.
"""

import math

import torch
from torch import Generator, Tensor

from ts_helpers._check import MOST, at_least, numbered

ALPHABET, DUMMY = 10, 0
LETTERS = ALPHABET - 1
MEMORYLESS = math.log(LETTERS - 1)  # of what the present letter says of the one before: that it is another


def warp(
    letters: Tensor,
    lengths: Tensor,
    n_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Let letters, (letters, sequences), last for their lengths.

    Source: Tallec & Ollivier (2018), Fig. 2. Lengths, of the same shape, are steps,
    each 1 or more, in sum ``n_steps`` or more; else a ValueError.

    Returns:
        Three tensors (time, sequences), of ``n_steps``: the letter of each step; the
        letter before that one, the dummy for the first; and whether the step is its
        letter's first.
    """
    at_least(1, n_steps=n_steps)
    numbered(letters=letters, lengths=lengths)
    whole = lengths.dtype in (torch.int32, torch.int64)
    whole = whole and bool(((lengths >= 1) & (lengths <= MOST)).all())
    if letters.ndim != 2 or lengths.shape != letters.shape or not whole:
        rule = "whole numbers from 1 on, must be (letters, sequences)"
        got = f"{tuple(letters.shape)} and {tuple(lengths.shape)}"
        raise ValueError(f"letters and lengths, {rule}, got {got}")
    ends = lengths.cumsum(0)
    if not bool((lengths.sum(0) >= n_steps).all()):
        least = int(lengths.sum(0).min())
        raise ValueError(f"lengths must last for {n_steps} steps, got {least}")
    steps = torch.arange(n_steps).expand(letters.shape[1], -1).contiguous()
    # how many letters are over
    which = torch.searchsorted(ends.T.contiguous(), steps, right=True).T
    before = torch.cat([torch.full_like(letters[:1], DUMMY), letters[:-1]])
    first = torch.ones_like(which[:1], dtype=torch.bool)
    starts = torch.cat([first, which[1:] > which[:-1]])
    return letters.gather(0, which), before.gather(0, which), starts


def warped(n_steps: int, n_sequences: int, least: int, most: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Random letters, each repeated least (1 or more) to most times; while one lasts, the target is the one before it.

    Source: Tallec & Ollivier (2018), Section 3, "Pure warpings and paddings", and Fig. 2: "remember the previous
    character of a random sequence of characters". Contiguous letters differ; a uniform warping is ``least = most``, a
    variable one ``least = 1``. Departure: the dummy, one of their 10 characters, has no stated place here; it is the
    target while the first letter lasts, where Fig. 2 has a blank. x and y are (time, sequences), x 1 to 9, y 0 to 9.
    Knowing x at the same step only, the best guess scores a cross entropy of `MEMORYLESS`, 2.08, but for the dummy
    (``ignore_index=DUMMY``), else `memoryless_warped`.
    """
    present, before, _ = _draw(n_steps, n_sequences, least, most, 1, generator)
    return present, before


def padded(n_steps: int, n_sequences: int, least: int, most: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Random letters, each followed by least (0 or more) to most dummies; at each, the target is the one before it.

    Source: Tallec & Ollivier (2018), Section 3, "Pure warpings and paddings": "each time the input is nonzero, the
    network has to output the previous nonzero character seen". Departure: what to output elsewhere is open there; ours
    is not scored, which fits the axes of their Fig. 1, up to 2.5 for paddings up to 100. x and y are (time, sequences),
    0 to 9, y the dummy where there is no letter or none before, to be left out by ``ignore_index=DUMMY``. Knowing x at
    the same step only, the best guess scores `MEMORYLESS` elsewhere.
    """
    present, before, starts = _draw(n_steps, n_sequences, least, most, 0, generator)
    return present.where(starts, DUMMY), before.where(starts, DUMMY)


def memoryless_warped(n_steps: int, least: int, most: int) -> float:
    r"""Return the best cross entropy, over all steps of `warped`, of a guess that knows x at the same step only.

    .. math:: H(q) + (1 - q) \log 8, \qquad q = \mathrm{E}[\min(D, n)] / n

    with q the share of the n steps that the first letter, lasting D, takes; H(q), in nats, the entropy of y = 0.
    """
    at_least(1, n_steps=n_steps, least=least)
    at_least(least, most=most)
    shorter = range(least, min(most, n_steps) + 1)
    total = (shorter.start + shorter.stop - 1) * len(shorter) // 2 + n_steps * (most + 1 - least - len(shorter))
    q = total / (most + 1 - least) / n_steps
    return -sum(p * math.log(p) for p in (q, 1 - q) if p > 0) + (1 - q) * MEMORYLESS


def _draw(
    n_steps: int, n_sequences: int, least: int, most: int, lowest: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    at_least(1, n_steps=n_steps, n_sequences=n_sequences, generator=generator)
    at_least(lowest, least=least)
    at_least(least, most=most)
    least, most = least + 1 - lowest, most + 1 - lowest  # steps that a letter takes, with its dummies
    shape = -(-n_steps // least), n_sequences  # enough letters even where each lasts least
    moves = torch.randint(1, LETTERS, shape, generator=generator)  # along a circle of letters, never 0
    moves[0] = torch.randint(LETTERS, (n_sequences,), generator=generator)
    return warp(1 + moves.cumsum(0) % LETTERS, torch.randint(least, most + 1, shape, generator=generator), n_steps)
