import math

import pytest
import torch
from torch.nn import functional as F

from ts_helpers.datasets.copying import (
    ADDING_MEMORYLESS,
    ALPHABET,
    SIGNAL,
    adding,
    copying,
    memoryless,
    variable_copying,
)

TASKS = {"copying": copying, "variable": variable_copying, "adding": adding}
COPIES = ["copying", "variable"]


def drawn(task, T=30, n_sequences=200, seed=0):
    return TASKS[task](T, n_sequences, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("T", [1, 2, 30, 500])
@pytest.mark.parametrize("task", COPIES)
def test_copying_is_what_the_paper_writes(task, T):
    x, y = drawn(task, T)
    assert x.shape == y.shape == (T + (20 if task == "copying" else 21), 200)
    assert x.dtype == y.dtype == torch.int64
    for sequence, target in zip(x.T.tolist(), y.T.tolist(), strict=True):
        symbols, pause = sequence[:10], sequence.index(SIGNAL) - 10
        assert set(symbols) <= set(range(8))
        assert pause == T - 1 if task == "copying" else 1 <= pause <= T
        # the ninth is the dummy, the tenth the signal
        assert sequence == symbols + pause * [8] + [9] + (len(x) - 11 - pause) * [8]
        assert target == (10 + pause + 1) * [8] + symbols + (len(x) - 21 - pause) * [8]


def test_variable_pauses_are_equally_likely():
    x = drawn("variable", 5, 50_000)[0]
    pauses = (x == SIGNAL).int().argmax(0) - 10
    often = torch.bincount(pauses, minlength=6)[1:] / len(pauses)
    torch.testing.assert_close(often, torch.full((5,), 0.2), atol=0.009, rtol=0)  # 5 standard errors


@pytest.mark.parametrize("task", COPIES)
def test_symbols_are_equally_likely_and_independent(task):
    symbols = drawn(task, 1, 50_000)[0][:10]
    often = torch.stack([torch.bincount(row, minlength=8) for row in symbols]) / symbols.shape[1]
    torch.testing.assert_close(often, torch.full((10, 8), 1 / 8), atol=0.0074, rtol=0)  # 5 standard errors
    correlations = torch.corrcoef(symbols.double())
    torch.testing.assert_close(correlations, torch.eye(10, dtype=torch.float64), atol=0.023, rtol=0)


def since(task, x):
    """What a guess without memory of symbols may know, (time, sequences): the step, and how long ago a signal was."""
    t = torch.arange(len(x))[:, None].expand_as(x)
    return t if task == "copying" else (t - (x == SIGNAL).int().argmax(0)).clamp(min=0)


@pytest.mark.parametrize("T", [1, 30, 100])
@pytest.mark.parametrize("task", COPIES)
def test_memoryless_guess_scores_as_stated(task, T):
    x, y = drawn(task, T, 5000)
    counts = torch.bincount((since(task, x) * ALPHABET + y).flatten(), minlength=len(x) * ALPHABET)
    guess = counts.view(-1, ALPHABET).double()
    guess = (guess / guess.sum(1, keepdim=True).clamp(min=1)).clamp(min=1e-12).log()
    x, y = drawn(task, T, 5000, seed=1)
    score = F.nll_loss(guess[since(task, x).flatten()], y.flatten()).item()
    assert score == pytest.approx(memoryless(len(x)), rel=0.01)
    assert memoryless(len(x)) == pytest.approx(10 * math.log(8) / (T + (20 if task == "copying" else 21)))


@pytest.mark.parametrize("T", [2, 3, 20, 201])
def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum(T):
    x, y = drawn("adding", T, 100)
    assert x.shape == (T, 100, 2)
    assert y.shape == (100, 1)
    assert x.dtype == y.dtype == torch.get_default_dtype()
    for s in range(100):
        marked = [t for t in range(T) if x[t, s, 1] == 1]
        assert x[:, s, 1].sum() == 2
        assert len(marked) == 2
        assert marked[0] < T // 2 <= marked[1]
        assert y[s, 0].item() == pytest.approx(sum(x[t, s, 0].item() for t in marked), abs=1e-6)


def test_adding_takes_every_step_of_a_half_equally_often_and_numbers_uniform():
    x, y = drawn("adding", 11, 50_000)
    often = x[..., 1].mean(1)
    expected = torch.tensor(5 * [1 / 5] + 6 * [1 / 6])
    torch.testing.assert_close(often, expected, atol=0.009, rtol=0)  # 5 standard errors
    numbers = x[..., 0].flatten()
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert torch.histc(numbers, 10, 0, 1).div(len(numbers)).sub(0.1).abs().max() < 0.003
    assert bool((y >= 0).all() & (y < 2).all())


def test_constant_1_is_the_best_constant_of_adding_and_scores_a_sixth():
    y = drawn("adding", 20, 200_000)[1].double()
    assert y.mean().item() == pytest.approx(1, abs=0.005)  # 5 standard errors
    assert (y - 1).square().mean().item() == pytest.approx(ADDING_MEMORYLESS, abs=0.0023)
    assert round(ADDING_MEMORYLESS, 3) == 0.167  # the paper's
