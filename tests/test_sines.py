import io
import math

import numpy as np
import pytest
import torch

from ts_helpers.datasets.sines import COMPONENTS, FORMER, fast_share, load_sequences, random_components, sums_of_sines


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
    x = x.numpy().astype(float)
    constant = ((x - x.mean(0)) ** 2).sum((0, 2)).mean()
    before = ((x[1:] - x[:-1]) ** 2).sum((0, 2)).mean()
    assert constant == pytest.approx(42.1, rel=0.01)  # the authors'
    assert before == pytest.approx(8.24, rel=0.01)
    assert constant == pytest.approx(42.1, abs=0.05)  # ours, as the docstring states
    assert before == pytest.approx(8.24, abs=0.005)


def test_share_of_fast_power_is_that_of_the_authors_sequences_and_of_one_wave_all_or_nothing():
    theirs, former = [0.22, 0.16, 0.71, 0.15, 0.08], [0.55, 0, 0.10, 0, 0.04]
    np.testing.assert_allclose(fast_share(sums_of_sines().numpy())[:, 0], theirs, atol=0.01)
    np.testing.assert_allclose(fast_share(sums_of_sines(FORMER).numpy())[:, 0], former, atol=0.01)
    slow, fast, both = fast_share(7 + sums_of_sines([[(5, 1)], [(20, 3)], [(5, 1), (20, 1)]]).numpy())[:, 0]
    assert (slow, fast, both) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4), pytest.approx(0.5, abs=1e-3))


def drawn(n, seed):
    return random_components(n, generator=torch.Generator().manual_seed(seed))


def test_random_components_keep_their_stated_bounds(double):
    components = drawn(20, 0)
    assert len(components) == 20
    assert drawn(2, 0) == components[:2]
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


GOOD = np.random.default_rng(0).normal(size=(4, 7, 2))


@pytest.mark.parametrize("array", [GOOD, GOOD.astype(np.float32), (10 * GOOD).astype(int), GOOD[:1, :3, :1]])
def test_own_sequences_come_back_as_time_sequences_features(array, tmp_path):
    np.save(tmp_path / "mine.npy", array)
    x = load_sequences(tmp_path / "mine.npy")
    assert x.dtype == torch.get_default_dtype()
    np.testing.assert_allclose(x.numpy(), array.swapaxes(0, 1), rtol=1e-6)
    assert torch.equal(load_sequences(str(tmp_path / "mine.npy")), x)


@pytest.mark.parametrize("kind", [">f8", ">i4", ">u2", "<f2", np.longdouble], ids=str)
def test_numbers_of_any_order_and_length_are_converted(kind, tmp_path):
    np.save(tmp_path / "mine.npy", np.round(GOOD * 8).astype(kind))
    assert (
        load_sequences(tmp_path / "mine.npy").tolist()
        == np.round(GOOD * 8).astype(kind).swapaxes(0, 1).astype(float).tolist()
    )


def with_value(value):
    array = GOOD.copy()
    array[1, 2, 0] = value
    return array


SHAPE = r"sequences in .*mine\.npy must have shape \(sequences >= 1, time >= 3, features >= 1\), got "
NUMBERS = r"sequences in .*mine\.npy must be finite numbers in torch.float32, got "
BAD = [
    (GOOD[0], SHAPE + r"\(7, 2\)"),
    (GOOD[None], SHAPE + r"\(1, 4, 7, 2\)"),
    (np.float64(3), SHAPE + r"\(\)"),
    (GOOD[:, :2], SHAPE + r"\(4, 2, 2\)"),
    (GOOD[:0], SHAPE + r"\(0, 7, 2\)"),
    (GOOD[..., :0], SHAPE + r"\(4, 7, 0\)"),
    (with_value(np.nan), NUMBERS + "1 of float64 that are not"),
    (with_value(-np.inf), NUMBERS + "1 of float64 that are not"),
    (with_value(1e300), NUMBERS + "1 of float64 that are not"),  # infinity, as float32
    (GOOD.astype(str), NUMBERS + "56 of <U32 that are not"),
    (GOOD > 0, NUMBERS + "56 of bool that are not"),
    (GOOD.astype(complex), NUMBERS + "56 of complex128 that are not"),
    (GOOD.astype([("a", float)]), NUMBERS + "56 of .*a.* that are not"),
    (np.full((1, 3, 1), np.longdouble("1e4000")), NUMBERS + "3 of float128 that are not"),
]


@pytest.mark.parametrize(("array", "message"), BAD)
def test_own_sequences_that_are_none_are_refused_by_rule_and_value(array, message, tmp_path):
    np.save(tmp_path / "mine.npy", array)
    with pytest.raises(ValueError, match=message):
        load_sequences(tmp_path / "mine.npy")


def saved(save, *arrays, **how):
    stream = io.BytesIO()
    save(stream, *arrays, **how)
    return stream.getvalue()


UNREADABLE = {
    "truncated": saved(np.save, GOOD)[:-8],
    "header cut": saved(np.save, GOOD)[:40],
    "empty": b"",
    "text": b"1, 2, 3\n",
    "pickle": saved(np.save, np.array([{}]), allow_pickle=True),
    "truncated archive": saved(np.savez, GOOD)[:-30],
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_file_that_holds_no_array_is_refused_by_name(content, tmp_path):
    (tmp_path / "mine.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read sequences from .*mine\.npy: "):
        load_sequences(tmp_path / "mine.npy")


def test_archive_and_missing_file_are_refused_by_name(tmp_path):
    (tmp_path / "mine.npy").write_bytes(saved(np.savez, GOOD))
    with pytest.raises(ValueError, match=r"mine\.npy must hold one array, as numpy.save writes it, got an archive"):
        load_sequences(tmp_path / "mine.npy")
    with pytest.raises(ValueError, match=r"cannot read sequences from .*nosuch\.npy: .*No such file"):
        load_sequences(tmp_path / "nosuch.npy")
    with pytest.raises(ValueError, match="cannot read sequences from"):
        load_sequences(tmp_path)
