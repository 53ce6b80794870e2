import numpy as np
import pytest
import yaml
from scipy import stats

from ts_helpers.book.claims import Quantity, describe, interval, judge, read_claims, table


def book_of(tmp_path, min_seeds=5, **quantities):
    entry = dict(paper="p", chapter="p/c", figure="f", source="s", claim="it works", min_seeds=min_seeds)
    entry["quantities"] = {
        name: dict(meaning="m", statistic=statistic, criterion=criterion)
        for name, (statistic, criterion) in quantities.items()
    }
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump({"X1": entry}))
    return read_claims(path)


def quantity(criterion, statistic="mean"):
    return Quantity("a", "m", statistic, criterion)


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_interval_of_a_median_is_scipys_percentile_bootstrap():
    x = np.random.default_rng(1).normal(size=30)
    boot = stats.bootstrap((x,), np.median, n_resamples=9999, method="percentile", rng=np.random.default_rng(0))
    for _ in range(2):  # the same twice
        assert interval(x, "median") == (np.median(x), boot.confidence_interval.low, boot.confidence_interval.high)


def test_interval_of_a_mean_holds_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    ends = [interval(rng.normal(3, 1, size=40), "mean")[1:] for _ in range(100)]
    assert 85 <= sum(low <= 3 <= high for low, high in ends) <= 100


def test_interval_of_a_rate_keeps_its_width_at_all_and_at_none():
    for hits in (0, 20):
        estimate, low, high = interval([1] * hits + [0] * (20 - hits), "rate")
        assert estimate == hits / 20
        assert high - low == pytest.approx(1 - 0.025 ** (1 / 20))  # Clopper-Pearson in closed form


@pytest.mark.parametrize(
    ("values", "statistic", "message"),
    [([], "mean", "finite"), ([1.0, np.nan], "mean", "finite"), ([0, 0.5], "rate", r"0 or 1, got 0\.5")],
)
def test_interval_refuses_values_that_it_has_no_meaning_for(values, statistic, message):
    with pytest.raises(ValueError, match=message):
        interval(values, statistic)


@pytest.mark.parametrize(
    ("text", "low", "high", "holds"),
    [
        (">= 0.9", 0.9, 1.0, True), (">= 0.9", 0.85, 0.95, None), (">= 0.9", 0.1, 0.2, False),
        ("<= 0.1", 0.0, 0.1, True), ("<= 0.1", 0.05, 0.2, None), (">= 0.0", 0.0, 1.0, True),
        ("in [-2.2, -1.8]", -2.0, -1.9, True), ("in [-2.2, -1.8]", -3.0, -1.0, None),
        ("in [-2.2, -1.8]", -1.0, 0.0, False), ("in [0, 1e-1]", 0.0, 0.1, True),
    ],
)  # fmt: skip
def test_criterion_is_held_against_the_whole_interval(text, low, high, holds):
    assert quantity(text).holds(low, high) is holds


def test_criterion_and_measured_read_well():
    for criterion, words in ((">= 0.8", "at least 80 %"), ("<= 0.07", "at most 7 %")):
        assert plain(quantity(criterion, "rate").words) == words
    for criterion, words in (("<= 0.9", "at most 0.9"), ("in [0.0, 0.03]", "between 0 and 0.03")):
        assert quantity(criterion).words == words
    assert plain(describe(1.0, 0.9638, 1.0, "rate")) == "100 % [96, 100]"
    assert plain(describe(-1.985, -1.99, -1.98, "median")) == "-1.99 [-1.99, -1.98]"


@pytest.mark.parametrize("text", ["> 0.9", ">= ", "about 2", "in [1 2]", ">= 1 or so"])
def test_malformed_criterion_is_refused_when_claims_are_read(tmp_path, text):
    with pytest.raises(ValueError, match="a criterion must read"):
        book_of(tmp_path, a=("mean", text))


GOOD, BAD, OPEN = [1.0, 1.1, 1.2, 1.1, 1.0], [0.0, 0.1, 0.0, 0.1, 0.0], [0.0, 2.0, 0.1, 1.9, 1.0]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([GOOD, GOOD], "reproduced"), ([GOOD, BAD], "partly"), ([BAD, BAD], "not reproduced"),
        ([GOOD, OPEN], "inconclusive"), ([BAD, OPEN], "inconclusive"),
        ([GOOD, BAD, OPEN], "partly"),  # however the open one falls
    ],
)  # fmt: skip
def test_verdict_follows_from_the_quantities(tmp_path, values, verdict):
    names = "abc"[: len(values)]
    claims = book_of(tmp_path, **{name: ("mean", ">= 0.9") for name in names})
    assert judge("X1", dict(zip(names, values, strict=True)), "book", claims).verdict == verdict


def test_a_run_too_small_to_tell_is_inconclusive_and_says_so(tmp_path):
    claims = book_of(tmp_path, min_seeds=6, a=("mean", ">= 0.9"))
    for scale, note in (("book", "5 seeds, the claim asks for 6"), ("smoke", "smoke scale: too small to tell")):
        assert judge("X1", dict(a=GOOD), scale, claims).words == f"inconclusive ({note})"


def test_data_that_stands_in_for_the_papers_is_inconclusive_and_named(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"))
    for values in (GOOD, BAD, GOOD[:2]):
        finding = judge("X1", dict(a=values), "paper", claims, stand_in="the data is pebbles, not gold")
        assert (finding.verdict, finding.note) == ("inconclusive", "the data is pebbles, not gold")
    assert finding.measured[0].estimate == np.mean(GOOD[:2])
    assert judge("X1", dict(a=GOOD), "paper", claims, stand_in="").verdict == "reproduced"


def test_values_that_are_not_finite_are_counted_and_decide_nothing(tmp_path):
    finding = judge("X1", dict(a=[*GOOD, np.nan, np.inf]), "book", book_of(tmp_path, a=("mean", ">= 0.9")))
    assert (finding.verdict, finding.measured[0].estimate) == ("inconclusive", None)
    assert finding.measured[0].describe("mean") == "2 of 7 values are not finite"


def test_unknown_claim_or_quantity_is_refused_by_name(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"))
    with pytest.raises(ValueError, match="claim must be one of X1, got 'X2'"):
        judge("X2", {}, "book", claims)
    with pytest.raises(ValueError, match="X1 has the quantities a, got b"):
        judge("X1", dict(b=GOOD), "book", claims)


def test_malformed_book_of_claims_is_refused(tmp_path):
    with pytest.raises(ValueError, match="claim X1: there must be at least one quantity"):
        book_of(tmp_path)
    with pytest.raises(ValueError, match=r"claim X1: the statistic of a must be rate, mean or median, got 'mode'"):
        book_of(tmp_path, a=("mode", ">= 0.9"))
    (tmp_path / "claims.yml").write_text("X1: {paper: p}")
    with pytest.raises(ValueError, match="claim X1: .* missing .*'chapter'"):
        read_claims(tmp_path / "claims.yml")


def test_table_keeps_a_bar_within_its_cell():
    rows = "| a | b |\n| --- | --- |\n| $\\|x\\|$ | 1 |\n| \\| | 2 |\n"
    assert table(["a", "b"], [["$|x|$", 1], [r"\|", 2]]) == rows


def test_texts_of_the_book_read_as_cells_of_a_table():
    assert {"C1", "C2", "C3", "C4", "C5"} <= set(read_claims())
    for claim in read_claims().values():
        assert claim.claim.endswith(".")
        for each in claim.quantities:
            assert each.meaning[0].islower()
            assert not each.meaning.endswith(".")
            assert each.meaning.partition("; ")[0].count("$") % 2 == 0
