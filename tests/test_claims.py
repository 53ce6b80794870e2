import numpy as np
import pytest
import yaml
from scipy import stats

from ts_helpers.book.claims import Criterion, describe, interval, judge, read_claims


def book_of(tmp_path, min_seeds=5, **quantities):
    entry = dict(paper="p", chapter="p/c", figure="f", source="s", claim="it works", min_seeds=min_seeds)
    entry["quantities"] = {
        name: dict(meaning="m", statistic=statistic, criterion=criterion)
        for name, (statistic, criterion) in quantities.items()
    }
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump({"X1": entry}))
    return read_claims(path)


def test_interval_of_a_median_is_scipys_percentile_bootstrap():
    x = np.random.default_rng(1).normal(size=30)
    got = interval(x, "median")
    boot = stats.bootstrap((x,), np.median, n_resamples=9999, method="percentile", rng=np.random.default_rng(0))
    assert got == (np.median(x), boot.confidence_interval.low, boot.confidence_interval.high)


def test_interval_of_a_mean_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    ends = [interval(rng.normal(3, 1, size=40), "mean")[1:] for _ in range(100)]
    assert 85 <= sum(low <= 3 <= high for low, high in ends) <= 100


def test_interval_of_a_rate_keeps_its_width_at_all_and_at_none():
    for hits in (0, 20):
        estimate, low, high = interval([1] * hits + [0] * (20 - hits), "rate")
        assert estimate == hits / 20
        assert high - low == pytest.approx(1 - 0.025 ** (1 / 20))  # Clopper-Pearson in closed form


def test_interval_is_the_same_twice():
    x = np.random.default_rng(3).normal(size=50)
    assert interval(x, "mean") == interval(x, "mean")


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf]])
def test_interval_refuses_values_that_are_not_finite(values):
    with pytest.raises(ValueError, match="values must be finite"):
        interval(values, "mean")


def test_interval_refuses_a_rate_that_is_not_zero_or_one():
    with pytest.raises(ValueError, match=r"0 or 1, got 0\.5"):
        interval([0, 0.5], "rate")


@pytest.mark.parametrize(
    ("text", "low", "high", "holds"),
    [
        (">= 0.9", 0.9, 1.0, True),
        (">= 0.9", 0.85, 0.95, None),
        (">= 0.9", 0.1, 0.2, False),
        ("<= 0.1", 0.0, 0.1, True),
        ("<= 0.1", 0.05, 0.2, None),
        ("in [-2.2, -1.8]", -2.0, -1.9, True),
        ("in [-2.2, -1.8]", -3.0, -1.0, None),
        ("in [-2.2, -1.8]", -1.0, 0.0, False),
    ],
)
def test_criterion_is_held_against_the_whole_interval(text, low, high, holds):
    assert Criterion(text).holds(low, high) is holds


@pytest.mark.parametrize("text", ["> 0.9", ">= ", "about 2", "in [1 2]", ">= 1 or so"])
def test_malformed_criterion_is_refused(text):
    with pytest.raises(ValueError, match="a criterion must read"):
        _ = Criterion(text).range


GOOD, BAD, OPEN = [1.0, 1.1, 1.2, 1.1, 1.0], [0.0, 0.1, 0.0, 0.1, 0.0], [0.0, 2.0, 0.1, 1.9, 1.0]


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (GOOD, GOOD, "reproduced"),
        (GOOD, BAD, "partly"),
        (BAD, BAD, "not reproduced"),
        (GOOD, OPEN, "inconclusive"),
        (BAD, OPEN, "inconclusive"),
    ],
)
def test_verdict_follows_from_the_quantities(tmp_path, a, b, verdict):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"), b=("mean", ">= 0.9"))
    assert judge("X1", dict(a=a, b=b), "book", claims).verdict == verdict


def test_an_open_quantity_cannot_change_partly(tmp_path):
    claims = book_of(tmp_path, **{name: ("mean", ">= 0.9") for name in "abc"})
    assert judge("X1", dict(a=GOOD, b=BAD, c=OPEN), "book", claims).verdict == "partly"


def test_too_few_seeds_are_inconclusive(tmp_path):
    finding = judge("X1", dict(a=GOOD), "book", book_of(tmp_path, min_seeds=6, a=("mean", ">= 0.9")))
    assert (finding.verdict, finding.note) == ("inconclusive", "5 seeds, the claim asks for 6")


def test_smoke_scale_is_inconclusive(tmp_path):
    finding = judge("X1", dict(a=GOOD), "smoke", book_of(tmp_path, a=("mean", ">= 0.9")))
    assert finding.verdict == "inconclusive"
    assert "smoke" in finding.note


def test_data_that_stands_in_for_the_papers_is_inconclusive_and_named(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"))
    for values in (GOOD, BAD, GOOD[:2]):
        finding = judge("X1", dict(a=values), "paper", claims, stand_in="the data is pebbles, not gold")
        assert (finding.verdict, finding.note) == ("inconclusive", "the data is pebbles, not gold")
    assert finding.measured[0].estimate == np.mean(GOOD[:2])
    assert judge("X1", dict(a=GOOD), "paper", claims, stand_in="").verdict == "reproduced"


def test_values_that_are_not_finite_are_counted_and_decide_nothing(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"))
    finding = judge("X1", dict(a=[*GOOD, np.nan, np.inf]), "book", claims)
    assert finding.verdict == "inconclusive"
    assert finding.measured[0].estimate is None
    assert finding.measured[0].describe("mean") == "2 of 7 values are not finite"


def test_unknown_claim_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="claim must be one of X1, got 'X2'"):
        judge("X2", {}, "book", book_of(tmp_path, a=("mean", ">= 0.9")))


def test_quantities_must_be_the_claims(tmp_path):
    with pytest.raises(ValueError, match="X1 has the quantities a, got b"):
        judge("X1", dict(b=GOOD), "book", book_of(tmp_path, a=("mean", ">= 0.9")))


def test_claim_without_a_quantity_is_refused(tmp_path):
    with pytest.raises(ValueError, match="claim X1 must have at least one quantity"):
        book_of(tmp_path)


def test_malformed_book_of_claims_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"statistic of X1\.a must be rate, mean or median, got 'mode'"):
        book_of(tmp_path, a=("mode", ">= 0.9"))
    (tmp_path / "claims.yml").write_text("X1: {paper: p}")
    with pytest.raises(ValueError, match="claim X1 must have the fields"):
        read_claims(tmp_path / "claims.yml")


def test_measured_reads_well():
    assert describe(1.0, 0.9638, 1.0, "rate").replace("\N{NO-BREAK SPACE}", " ") == "100 % [96, 100]"
    assert describe(-1.985, -1.99, -1.98, "median").replace("\N{NO-BREAK SPACE}", " ") == "-1.99 [-1.99, -1.98]"


def test_every_claim_of_the_book_can_be_read():
    assert {"C1", "C2", "C3", "C4", "C5"} <= set(read_claims())
