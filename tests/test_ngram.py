import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from ts_helpers.papers.tallec2018.ngram import witten_bell_bits


def text(n, symbols=3, seed=0):
    """Symbols, the first of them the most frequent, each of which depends on the one before."""
    rng = np.random.default_rng(seed)
    codes = [0]
    for _ in range(n - 1):
        codes.append(codes[-1] if rng.random() < 0.5 else int(rng.integers(symbols) * rng.integers(2)))
    return torch.tensor(codes, dtype=torch.uint8)


def by_dictionary(train, held, n_symbols, longest):
    """The formula, as a recursion for each symbol."""
    train, held = train.tolist(), held.tolist()
    after = defaultdict(Counter)
    for i in range(longest, len(train)):
        for k in range(longest + 1):
            after[tuple(train[i - k : i])][train[i]] += 1

    def chance(symbol, context):
        lower = chance(symbol, context[1:]) if context else 1 / n_symbols
        counts = after.get(context)
        if not counts:
            return lower
        n, d = sum(counts.values()), len(counts)
        return (counts[symbol] + d * lower) / (n + d)

    return [
        -np.mean([math.log2(chance(held[i], tuple(held[i - k : i]))) for i in range(longest, len(held))])
        for k in range(longest + 1)
    ]


@pytest.mark.parametrize("longest", [0, 1, 4])
def test_bits_equal_those_of_a_recursion_over_dictionaries(longest):
    train, held = text(200), text(60, symbols=4, seed=1)  # the symbol 3 is never seen in training
    assert 3 in held and 3 not in train
    assert np.allclose(witten_bell_bits(train, held, 4, longest), by_dictionary(train, held, 4, longest), rtol=1e-12)


def test_chances_of_all_symbols_sum_to_one():
    train, context = text(100), [0, 1, 2]
    each = [witten_bell_bits(train, torch.tensor([*context, s]), 4, 3) for s in range(4)]
    assert np.allclose(sum(2**-bits for bits in each), 1)


def test_periodic_text_is_predicted_from_a_period_and_text_without_rule_never():
    bits = witten_bell_bits(torch.tensor([0, 0, 1] * 500), torch.tensor([0, 0, 1] * 20), 2, 2)
    assert 0.9 < bits[0] < 0.93  # of two thirds and one third
    assert 0.6 < bits[1] < 0.7  # after 1 comes 0; after 0, either
    assert bits[2] < 0.01
    train, held = (torch.randint(27, (3000,), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    bits = witten_bell_bits(train, held, 27, 6)
    assert bits.min() > math.log2(27) - 0.05
    assert bits[6] < 2 * bits[0]  # contexts seen once deceive, but not without bound


@pytest.mark.parametrize(
    ("sizes", "longest", "message"),
    [
        ((9, 9), -1, "longest must be 0 or more, got longest=-1"),
        ((99, 99), 13, r"27 \*\* \(longest \+ 1\) is below 2 \*\* 63, got 13"),
        ((3, 9), 3, r"train must have more than 3 symbols, in one row, got \(3,\)"),
        ((9, 3), 3, r"held must have more than 3 symbols, in one row, got \(3,\)"),
    ],
)
def test_contexts_too_long_are_refused(sizes, longest, message):
    with pytest.raises(ValueError, match=message):
        witten_bell_bits(*(torch.zeros(n, dtype=torch.uint8) for n in sizes), 27, longest)


def test_longest_contexts_that_have_a_number_are_told_apart():
    train = torch.tensor([26] * 13 + [25] + [26] * 12 + [24], dtype=torch.uint8)
    assert np.isfinite(witten_bell_bits(train, train, 27, 12)).all()


@pytest.mark.parametrize("codes", [torch.tensor([0, 1, 27]), torch.tensor([0, -1, 2]), torch.tensor([0.0, 1.0, 2.0])])
def test_symbols_that_are_none_are_refused(codes):
    with pytest.raises(ValueError, match="held must hold whole numbers from 0 to 26, got others"):
        witten_bell_bits(torch.arange(3), codes, 27, 1)
