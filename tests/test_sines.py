import io
import math

import numpy as np
import pytest
import torch

from ts_helpers.datasets.sines import COMPONENTS, as_sequences, load_sequences, random_components, sums_of_sines


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_sums_of_sines_equal_numpy_transcription(double):
    expected = np.zeros((100, 5, 1))
    for t in range(100):
        for s, sines in enumerate(COMPONENTS):
            for cycles, amplitude in sines:
                expected[t, s, 0] += amplitude * math.sin(2 * math.pi * cycles * t / 100)
    np.testing.assert_allclose(sums_of_sines().numpy(), expected, atol=1e-13)


def test_sines_are_of_the_kind_that_the_authors_code_gives_away():
    cycles = [c for sines in COMPONENTS for c, _ in sines]
    assert len(COMPONENTS) == 5
    assert {len(sines) for sines in COMPONENTS} == {4, 5}
    assert min(cycles) == pytest.approx(0.1)
    assert max(cycles) == pytest.approx(18, abs=0.5)
    x = sums_of_sines()
    assert x.shape == (100, 5, 1)
    assert x.min().item() == pytest.approx(-1.9, abs=0.02)
    assert x.max().item() == pytest.approx(1.6, abs=0.02)
    assert bool((x[0] == 0).all())


def test_trivial_answers_score_what_the_authors_code_implies():
    x = sums_of_sines().numpy().astype(float)
    constant = ((x - x.mean(0)) ** 2).sum((0, 2)).mean()
    before = ((x[1:] - x[:-1]) ** 2).sum((0, 2)).mean()
    assert constant == pytest.approx(42.1, rel=0.01)  # the authors'
    assert before == pytest.approx(8.24, rel=0.01)
    assert constant == pytest.approx(42.0, abs=0.05)  # ours, as the docstring states
    assert before == pytest.approx(8.22, abs=0.005)


def test_sums_of_sines_take_the_default_type(double):
    assert sums_of_sines().dtype == torch.float64


@pytest.mark.parametrize(
    ("components", "n_steps", "got"),
    [
        ((), 100, r"n_steps=100 and \[\] sines"),
        ((((1, 1),), ()), 100, r"n_steps=100 and \[1, 0\] sines"),
        (COMPONENTS, 2, r"n_steps=2 and \[4, 5, 4, 5, 5\] sines"),
    ],
)
def test_sums_of_nothing_are_refused(components, n_steps, got):
    with pytest.raises(ValueError, match=f"components must name a sine for each .* n_steps be 3 or more, got {got}"):
        sums_of_sines(components, n_steps)


def drawn(n, seed):
    return random_components(n, generator=torch.Generator().manual_seed(seed))


def test_random_components_repeat_with_their_seed():
    assert drawn(3, 4) == drawn(3, 4)
    assert drawn(3, 4) != drawn(3, 5)
    assert drawn(2, 4) == drawn(3, 4)[:2]


def test_random_components_keep_their_stated_bounds(double):
    components = drawn(20, 0)
    assert len(components) == 20
    assert {len(sines) for sines in components} == {4, 5}
    for sines in components:
        cycles, amplitudes = np.array(sines).T
        assert cycles.min() >= 0.1
        assert cycles.max() <= 18
        assert (cycles[1:] / cycles[:-1]).min() > 1.3 - 1e-6
        assert amplitudes.min() >= 0.1
        assert amplitudes.max() <= 0.7 + 1e-6
    x = sums_of_sines(components)[..., 0]
    assert x.min() > -1.95
    assert x.max() < 1.65
    squares = ((x - x.mean(0)) ** 2).sum(0)
    assert squares.min() > 18
    assert squares.max() < 75


def test_random_components_refuse_no_sequence():
    with pytest.raises(ValueError, match="n_sequences must be 1 or more, got 0"):
        drawn(0, 0)


GOOD = np.random.default_rng(0).normal(size=(4, 7, 2))


@pytest.mark.parametrize("array", [GOOD, GOOD.astype(np.float32), (10 * GOOD).astype(int), GOOD[:1, :3, :1]])
def test_own_sequences_come_back_as_time_sequences_features(array, tmp_path):
    x = as_sequences(array)
    assert x.dtype == torch.get_default_dtype()
    assert x.shape == (array.shape[1], array.shape[0], array.shape[2])
    np.testing.assert_allclose(x[2, 0].numpy(), array[0, 2], rtol=1e-6)
    np.save(tmp_path / "mine.npy", array)
    assert torch.equal(load_sequences(tmp_path / "mine.npy"), x)
    assert torch.equal(load_sequences(str(tmp_path / "mine.npy")), x)


def test_own_sequences_are_a_copy():
    array = GOOD.copy()
    x = as_sequences(array)
    array[:] = 0
    assert bool((x != 0).all())


def with_value(value):
    array = GOOD.copy()
    array[1, 2, 0] = value
    return array


SHAPE = r"sequences must have shape \(sequences >= 1, time >= 3, features >= 1\), got "
NUMBERS = "sequences must be finite numbers, got type "
BAD = [
    (GOOD[0], SHAPE + r"\(7, 2\)"),
    (GOOD[None], SHAPE + r"\(1, 4, 7, 2\)"),
    (np.float64(3), SHAPE + r"\(\)"),
    (GOOD[:, :2], SHAPE + r"\(4, 2, 2\)"),
    (GOOD[:0], SHAPE + r"\(0, 7, 2\)"),
    (GOOD[..., :0], SHAPE + r"\(4, 7, 0\)"),
    (with_value(np.nan), NUMBERS + "float64 with 1 that are not"),
    (with_value(-np.inf), NUMBERS + "float64 with 1 that are not"),
    (GOOD.astype(str), NUMBERS + "<U32 with 56 that are not"),
    (GOOD > 0, NUMBERS + "bool with 56 that are not"),
    (GOOD.astype(complex), NUMBERS + "complex128 with 56 that are not"),
]


@pytest.mark.parametrize(("array", "message"), BAD)
def test_own_sequences_that_are_none_are_refused_by_rule_and_value(array, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        as_sequences(array)
    np.save(tmp_path / "mine.npy", array)
    with pytest.raises(ValueError, match=message):
        load_sequences(tmp_path / "mine.npy")


def test_value_too_large_for_the_type_is_refused():
    with pytest.raises(ValueError, match="finite"):
        as_sequences(with_value(1e300))  # infinity, as float32


def archive(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def saved(array, **how):
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(GOOD)[:-8], r"cannot read sequences from .*mine\.npy: "),
        (saved(GOOD)[:40], r"cannot read sequences from .*mine\.npy: "),
        (b"", r"cannot read sequences from .*mine\.npy: "),
        (b"1, 2, 3\n", r"cannot read sequences from .*mine\.npy: "),
        (saved(np.array([{}]), allow_pickle=True), r"cannot read sequences from .*mine\.npy: "),
        (archive(a=GOOD), r"mine\.npy must hold one array, as numpy.save writes it, got an archive of several"),
        (archive(a=GOOD)[:-30], r"cannot read sequences from .*mine\.npy: "),
    ],
    ids=["truncated", "header cut", "empty", "text", "pickle", "archive", "truncated archive"],
)
def test_file_that_holds_no_array_is_refused_by_name(content, message, tmp_path):
    (tmp_path / "mine.npy").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_sequences(tmp_path / "mine.npy")


def test_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read sequences from .*nosuch\.npy: .*No such file"):
        load_sequences(tmp_path / "nosuch.npy")
    with pytest.raises(ValueError, match="cannot read sequences from"):
        load_sequences(tmp_path)
