import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ts_helpers.datasets.warping import ALPHABET, DUMMY, MEMORYLESS, memoryless_warped, padded, warp, warped

TASKS = {"warped": warped, "padded": padded}
RANGES = [(1, 1), (4, 4), (1, 7), (3, 5), (30, 90)]


def drawn(task, least=1, most=7, n_steps=60, n_sequences=200, seed=0):
    return TASKS[task](n_steps, n_sequences, least, most, generator=torch.Generator().manual_seed(seed))


def runs(sequence):
    """Letters in their order and how often each comes in a row."""
    letters, times = [], []
    for letter in sequence:
        if letters and letters[-1] == letter:
            times[-1] += 1
        else:
            letters.append(letter)
            times.append(1)
    return letters, times


def warped_text(text, lengths):
    letters = torch.tensor([0 if c == " " else ord(c) for c in text])[:, None]
    x, y, _ = warp(letters, torch.tensor(lengths)[:, None], sum(lengths))
    return ["".join(chr(c or ord(" ")) for c in z[:, 0].tolist()) for z in (x, y)]


def test_warped_sentences_are_those_of_the_papers_figure_2():
    x, y = warped_text("All human", 9 * [4])
    assert x == "AAAAllllllll    hhhhuuuummmmaaaannnn"
    assert y == "    AAAAllllllll    hhhhuuuummmmaaaa"
    x, y = warped_text("All human beings", [1, 3, 3, 2, 3, 1, 4, 2, 3, 1, 4, 2, 3, 1, 1, 4])
    assert x == "Allllll  hhhummmmaannn bbbbeeiiingssss"
    assert y == " AAAlllll   huuuummaaan    bbeeeingggg"


def each(task, least, most):
    x, y = drawn(task, least, most)
    assert x.shape == y.shape == (60, 200)
    assert x.dtype == y.dtype == torch.int64
    return zip(x.T.tolist(), y.T.tolist(), strict=True)


@pytest.mark.parametrize(("least", "most"), RANGES)
def test_warped_letters_last_within_the_range_and_the_target_is_the_one_before(least, most):
    # runs are letters only because neighbours differ: one that did not would last too long in the uniform warpings
    for sequence, target in each("warped", least, most):
        letters, times = runs(sequence)
        assert set(letters) <= set(range(1, ALPHABET))
        assert all(least <= n <= most for n in times[:-1])
        assert 1 <= times[-1] <= most  # cut
        assert target == [before for before, n in zip([DUMMY, *letters], times, strict=False) for _ in range(n)]


@pytest.mark.parametrize(("least", "most"), [(0, 0), *RANGES])
def test_padded_letters_are_followed_by_dummies_and_the_target_is_the_one_before(least, most):
    for sequence, target in each("padded", least, most):
        places = [t for t, letter in enumerate(sequence) if letter != DUMMY]
        gaps = np.diff([*places, len(sequence)]) - 1  # the last is cut
        assert places[0] == 0
        assert all(least <= gaps[:-1])
        assert all(gaps <= most)
        letters = [sequence[t] for t in places]
        assert all(a != b for a, b in itertools.pairwise(letters))
        expected = np.full(len(sequence), DUMMY)
        expected[places] = [DUMMY, *letters[:-1]]
        assert target == expected.tolist()


@pytest.mark.parametrize("task", TASKS)
def test_variable_warpings_take_every_length_equally_often(task):
    x = drawn(task, 2, 6, n_steps=6, n_sequences=50_000)[0]
    # steps that the first letter lasts, or dummies after it: in 6 steps, 5 dummies and 6 look the same
    lengths = ((x == x[0]) if task == "warped" else (x[1:] == DUMMY)).cumprod(0).sum(0)
    often = torch.bincount(lengths, minlength=7)[2:] / len(lengths)
    expected = torch.full((5,), 0.2) if task == "warped" else torch.tensor([0.2, 0.2, 0.2, 0.4, 0.0])
    torch.testing.assert_close(often, expected, atol=0.009, rtol=0)  # 5 standard errors


@pytest.mark.parametrize("task", TASKS)
def test_letters_and_pairs_of_neighbours_are_equally_likely(task):
    least = {"warped": 1, "padded": 0}[task]  # no warping
    x, y = (z[-1] for z in drawn(task, least, least, 7, 100_000))
    pairs = torch.bincount(y * ALPHABET + x, minlength=100).view(ALPHABET, ALPHABET) / len(x)
    expected = torch.full((ALPHABET, ALPHABET), 1 / 72)
    expected[DUMMY] = expected[:, DUMMY] = 0
    expected.fill_diagonal_(0)
    torch.testing.assert_close(pairs, expected, atol=0.0019, rtol=0)  # 5 standard errors
    assert bool((pairs[expected == 0] == 0).all())


@pytest.mark.parametrize("task", TASKS)
def test_first_letters_are_equally_likely(task):
    often = torch.bincount(drawn(task, 1, 1, 1, 100_000)[0][0], minlength=ALPHABET) / 100_000
    torch.testing.assert_close(often, torch.tensor([0.0] + 9 * [1 / 9]), atol=0.005, rtol=0)  # 5 standard errors


def best_guess(task, least, most, ignore_index=-100):
    """Cross entropy of the frequencies of y given x, counted in some sequences, in others."""
    n = 1000 + 25 * min(least, 100)  # long warpings have few letters, and chance in the counts adds to the score
    x, y = drawn(task, least, most, 500, n)
    counts = torch.bincount((x * ALPHABET + y).flatten(), minlength=100).view(ALPHABET, ALPHABET).double()
    if ignore_index >= 0:
        counts[:, ignore_index] = 0
    x, y = drawn(task, least, most, 500, n, seed=1)
    guess = (counts / counts.sum(1, keepdim=True).clamp(min=1)).clamp(min=1e-9).log()
    return F.nll_loss(guess[x.flatten()], y.flatten(), ignore_index=ignore_index).item()


@pytest.mark.parametrize(("least", "most"), [(1, 1), (10, 10), (1, 40), (100, 100), (100, 300), (400, 800), (500, 500)])
def test_memoryless_guess_scores_as_stated(least, most):
    assert best_guess("warped", least, most) == pytest.approx(memoryless_warped(500, least, most), abs=0.015)
    for task in TASKS if most < 400 else ():
        assert best_guess(task, least, most, DUMMY) == pytest.approx(MEMORYLESS, abs=0.015)


def test_first_letter_counts_in_the_memoryless_score():
    assert pytest.approx(2.08, abs=0.005) == MEMORYLESS
    assert memoryless_warped(500, 500, 500) == 0  # the target is the dummy only
    q = 0.2
    entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
    assert memoryless_warped(500, 100, 100) == pytest.approx(entropy + (1 - q) * math.log(8))
