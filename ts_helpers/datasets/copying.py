"""Symbols to repeat after a pause, and two numbers to add: the memory tasks of Tallec & Ollivier (2018).

Symbols are 0 to 7, the dummy 8, the signal 9; `torch.nn.functional.one_hot` with ``ALPHABET`` makes features of them.
"""

import math

import torch
from torch import Tensor

ALPHABET, DUMMY, SIGNAL = 10, 8, 9
SYMBOLS = 10  # to copy
ADDING_MEMORYLESS = 1 / 6  # mean squared error of the constant 1, the variance of a sum of two uniform numbers


def copying(T: int, n_sequences: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ten symbols, a pause, a signal; then the symbols are asked for.

    Source: Tallec & Ollivier (2018), Section 3, "Copy tasks". The text calls this "remembering an input sequence for
    exactly T timesteps": T steps lie between the last symbol and the first answer, so that each symbol is asked for
    ``T + 10`` steps after it was shown.

    Args:
        T: length of the pause, the signal included, steps.
        n_sequences: how many.
        generator: draws the symbols.

    Returns:
        x: (time, sequences), ``T + 20`` steps: 10 symbols, T - 1 dummies, the signal, 10 dummies.
        y: the same shape: T + 10 dummies, then the symbols. Guessing these at random, and the dummy else, scores a
            cross entropy of ``memoryless(T + 20)``, averaged over all steps.

    Raises:
        ValueError: ``T`` or ``n_sequences`` is below 1.
    """
    _check(T, n_sequences, 1)
    return _copy(torch.full((n_sequences,), T - 1), T + 2 * SYMBOLS, generator)


def variable_copying(T: int, n_sequences: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ten symbols, a pause of random length, a signal; then the symbols are asked for.

    Source: Tallec & Ollivier (2018), Section 3, "Copy tasks": "the number of characters between the end of the sequence
    to copy and the signal character is drawn at random between 1 and T". Departure: theirs may be as long as they
    must; ours all have the length of the longest, and end in dummies. For a batch of one random pause g and no such
    end, take ``copying(g + 1, ...)``.

    Args:
        T: most dummies between the symbols and the signal.
        n_sequences: how many, each with a pause of its own.
        generator: draws symbols and pauses.

    Returns:
        x: (time, sequences), ``T + 21`` steps: 10 symbols, 1 to T dummies, the signal, dummies.
        y: the same shape: dummies, but the symbols right after the signal. Guessing these at random, and the dummy
            else, scores a cross entropy of ``memoryless(T + 21)``, averaged over all steps.

    Raises:
        ValueError: ``T`` or ``n_sequences`` is below 1.
    """
    _check(T, n_sequences, 1)
    pauses = torch.randint(1, T + 1, (n_sequences,), generator=generator)
    return _copy(pauses, T + 1 + 2 * SYMBOLS, generator)


def memoryless(n_steps: int) -> float:
    r"""Return the mean cross entropy of guessing the ten symbols, each one of 8, when they are due.

    .. math:: 10 \log(8) / n

    Source: Tallec & Ollivier (2018), Section 3, "Copy tasks", with n = T + 20. Such a guess remembers no symbol, but
    counts the steps since the signal.

    Args:
        n_steps: n, length of the sequences.
    """
    return SYMBOLS * math.log(DUMMY) / n_steps


def adding(T: int, n_sequences: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random numbers, two of them marked, whose sum is asked for at the end.

    Source: Tallec & Ollivier (2018), Section 3, "Adding task". Departure: for an odd T they do not say which half is
    longer; ours is the second.

    Args:
        T: length of a sequence.
        n_sequences: how many.
        generator: draws numbers and marks.

    Returns:
        x: (time, sequences, 2): numbers uniform in [0, 1), and marks: 1 at one step of the first half and at one of
            the second, 0 elsewhere.
        y: (sequences, 1), the sum of the two marked numbers. Predicting 1 scores a mean squared error of
            `ADDING_MEMORYLESS`, 1/6.

    Raises:
        ValueError: ``T`` is below 2 or ``n_sequences`` below 1.
    """
    _check(T, n_sequences, 2)
    numbers, marks = torch.rand(T, n_sequences, generator=generator), torch.zeros(T, n_sequences)
    for start, end in ((0, T // 2), (T // 2, T)):
        marks.scatter_(0, torch.randint(start, end, (1, n_sequences), generator=generator), 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)[:, None]


def _copy(pauses: Tensor, n_steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(DUMMY, (SYMBOLS, len(pauses)), generator=generator)
    x = torch.full((n_steps, len(pauses)), DUMMY)
    y = x.clone()
    x[:SYMBOLS] = symbols
    x.scatter_(0, SYMBOLS + pauses[None], SIGNAL)
    return x, y.scatter_(0, SYMBOLS + pauses + 1 + torch.arange(SYMBOLS)[:, None], symbols)


def _check(T: int, n_sequences: int, least: int) -> None:
    if least > T or n_sequences < 1:
        raise ValueError(f"T must be {least} or more and n_sequences 1 or more, got {T=}, {n_sequences=}")
