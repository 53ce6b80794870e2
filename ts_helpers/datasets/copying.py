"""Symbols to repeat after a pause, and two numbers to add: the memory tasks of Tallec & Ollivier (2018), no network.

Symbols are 0 to 7, the dummy 8, the signal 9; `torch.nn.functional.one_hot` with ``ALPHABET`` makes features of them.
"""

import math

import torch
from torch import Generator, Tensor

from ts_helpers._check import at_least

ALPHABET, DUMMY, SIGNAL = 10, 8, 9
SYMBOLS = 10  # to copy
ADDING_MEMORYLESS = 1 / 6  # mean squared error of the constant 1, the variance of a sum of two uniform numbers


def copying(T: int, n_sequences: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ten symbols, a pause of T steps that ends with the signal, and the symbols as targets.

    Source: Tallec & Ollivier (2018), Section 3, "Copy tasks": "remembering an input sequence for exactly T timesteps",
    from last symbol to first target. x and y are (time, sequences), of ``T + 20`` steps: x 10 symbols, T - 1 dummies,
    the signal, 10 dummies; y T + 10 dummies, then the symbols. Guessing these scores ``memoryless(T + 20)``.
    """
    at_least(1, T=T, n_sequences=n_sequences, generator=generator)
    return _copy(torch.full((n_sequences,), T - 1), T + 2 * SYMBOLS, generator)


def variable_copying(T: int, n_sequences: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Ten symbols, a pause of 1 to T dummies, drawn for each sequence, the signal, and the symbols as targets.

    Source: Tallec & Ollivier (2018), Section 3, "Copy tasks": "the number of characters between the end of the sequence
    to copy and the signal character is drawn at random between 1 and T". Departure: theirs may be as long as they must;
    ours have the length of the longest, and end in dummies. ``copying(g + 1, ...)`` has one pause g and no such end.
    x and y, (time, sequences), have ``T + 21`` steps: x has 10 symbols, 1 to T dummies, the signal, dummies, and y
    dummies, but the symbols after the signal. Guessing these scores ``memoryless(T + 21)``.
    """
    at_least(1, T=T, n_sequences=n_sequences, generator=generator)
    pauses = torch.randint(1, T + 1, (n_sequences,), generator=generator)
    return _copy(pauses, T + 1 + 2 * SYMBOLS, generator)


def memoryless(n_steps: int) -> float:
    """Return the cross entropy, over n steps, of guessing each of 10 symbols and knowing the dummies, 10 log(8) / n.

    Source: Tallec & Ollivier (2018), Section 3, "Copy tasks", with n = T + 20, the length of the sequences.
    """
    at_least(1, n_steps=n_steps)
    return SYMBOLS * math.log(DUMMY) / n_steps


def adding(T: int, n_sequences: int, *, generator: Generator) -> tuple[Tensor, Tensor]:
    """Random numbers, T of them, 2 or more, of which two are marked, and the sum of the two.

    Source: Tallec & Ollivier (2018), Section 3, "Adding task". x (time, sequences, 2) has numbers uniform in
    [0, 1), and marks: 1 at one step of each half (of an odd T, our second half is the longer one), 0 elsewhere; y
    (sequences, 1) the sum. Predicting 1 scores a mean squared error of `ADDING_MEMORYLESS`, 1/6.
    """
    at_least(2, T=T)
    at_least(1, T=T, n_sequences=n_sequences, generator=generator)
    numbers, marks = torch.rand(T, n_sequences, generator=generator), torch.zeros(T, n_sequences)
    for start, end in ((0, T // 2), (T // 2, T)):
        marks.scatter_(0, torch.randint(start, end, (1, n_sequences), generator=generator), 1.0)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)[:, None]


def _copy(pauses: Tensor, n_steps: int, generator: Generator) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(DUMMY, (SYMBOLS, len(pauses)), generator=generator)
    x = torch.full((n_steps, len(pauses)), DUMMY)
    y = x.clone()
    x[:SYMBOLS] = symbols
    x.scatter_(0, SYMBOLS + pauses[None], SIGNAL)
    return x, y.scatter_(0, SYMBOLS + pauses + 1 + torch.arange(SYMBOLS)[:, None], symbols)
