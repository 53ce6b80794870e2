import copy
import itertools
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from plan import plan
from scipy import stats

from ts_helpers.book.claims import Edition, Quantity, describe, interval, judge, read_claims, table
from ts_helpers.book.pages import PROSE
from ts_helpers.book.paths import CLAIMS
from ts_helpers.book.records import _git as git


def entry_of(min_seeds=5, *, more=None, **quantities):
    entry = dict(paper="p", chapter="p/c", figure="f", source="s", claim="it works", min_seeds=min_seeds)
    entry["quantities"] = {
        name: dict(meaning="m", statistic=statistic, criterion=criterion)
        for name, (statistic, criterion) in quantities.items()
    }
    return entry | (more or {})


def book_of(tmp_path, min_seeds=5, **fields):
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump({"X1": entry_of(min_seeds, **fields)}))
    read_claims.cache_clear()
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


def test_interval_of_strata_leaves_out_what_lies_between_them():
    rng = np.random.default_rng(3)
    strata = {level: level + rng.normal(size=40) for level in (0, 10, 20)}
    flat = [*strata.values()]
    estimate, low, high = interval(strata, "mean")
    assert estimate == np.mean(flat)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(np.mean(np.var(flat, axis=1)) / 120), rel=0.05)
    low, high = interval(flat, "mean")[1:]
    assert high - low == pytest.approx(2 * 1.96 * np.std(flat) / np.sqrt(120), rel=0.05)
    assert interval({"a": [1.0] * 3, "b": [5.0] * 4}, "median") == (5, 5, 5)  # nothing varies within


def test_interval_of_strata_that_cannot_be_resampled_or_are_but_one_is_that_of_all_values():
    assert interval({"a": [1.0, 2.0], "b": [4.0]}, "mean") == interval([1.0, 2.0, 4.0], "mean")
    assert interval({"a": [1.0, 2.0, 4.0]}, "median") == interval([1.0, 2.0, 4.0], "median")


def test_interval_of_a_rate_over_strata_is_exact_and_no_narrower_at_all_and_at_none():
    for a, b in (([1] * 9, [1] * 9), ([0] * 9, [1] * 9), ([0] * 9, [0] * 9)):
        assert interval({"a": a, "b": b}, "rate") == interval([*a, *b], "rate")


def test_interval_of_a_rate_holds_the_mean_of_unequal_shares_at_least_as_often_as_it_says():
    ways = [stats.binom(10, share).pmf(np.arange(11)) for share in (0.1, 0.6, 0.95)]
    chance = np.convolve(np.convolve(ways[0], ways[1]), ways[2])
    ends = [interval([1] * hits + [0] * (30 - hits), "rate")[1:] for hits in range(31)]
    holds = [low <= 0.55 <= high for low, high in ends]
    assert chance @ holds > stats.binom(30, 0.55).pmf(np.arange(31)) @ holds > 0.95


def test_strata_are_handed_in_as_xarray_groups_them():
    of = xr.DataArray([[1.0, 2.0], [5.0, 7.0]], {"teacher": ["a", "b"]}, dims=("teacher", "seed"))
    assert interval(dict(of.groupby("teacher")), "mean") == interval({"a": [1.0, 2.0], "b": [5.0, 7.0]}, "mean")


@pytest.mark.parametrize(
    ("values", "statistic", "message"),
    [
        ([], "mean", "finite"),
        ({}, "mean", "finite"),
        ([1.0, np.nan], "mean", "finite"),
        ([0, 0.5], "rate", r"0 or 1, got 0\.5"),
    ],
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
    assert plain(describe(1.0, 0.9638, 1.0, "rate", 2)) == "100 % [96, 100]"
    assert plain(describe(-1.985, -1.99, -1.98, "median", 3)) == "-1.99 [-1.99, -1.98]"
    assert plain(describe(-1.985, -1.99, -1.98, "median", 2)) == "-1.99 (n = 2)"


@pytest.mark.parametrize(
    ("values", "criterion", "needed"),
    [
        ([1] * 18, ">= 0.8", 17),  # 0.8^n <= 0.025, n >= 16.5
        ([0] * 20, "<= 0.1", 36),  # 0.9^n <= 0.025, n >= 35.01
        ([0] * 4, ">= 0.8", 3),  # 0.2^n < 0.025, n > 2.3
        ([1, 0], "<= 1", 1), ([1] * 4 + [0], ">= 0.8", None),  # at the edge for ever
    ],
)  # fmt: skip
def test_plan_of_a_rate_has_the_number_of_its_closed_form(values, criterion, needed):
    assert plan(quantity(criterion, "rate"), values, 50) == (needed, needed)


@pytest.mark.parametrize(
    ("rate", "criterion"),
    [(0.95, ">= 0.6"), (0.5, ">= 0.9"), (0.3, "<= 0.6"), (0.5, "in [0.2, 0.85]"), (0.1, "in [0.4, 0.6]")],
)
def test_plan_of_a_rate_is_the_first_number_with_that_chance_by_the_intervals_themselves(rate, criterion):
    of, values = quantity(criterion, "rate"), [1] * round(20 * rate) + [0] * round(20 * (1 - rate))

    def chance(n):
        says = [of.holds(*interval([1] * hits + [0] * (n - hits), "rate")[1:]) for hits in range(n + 1)]
        return stats.binom.pmf(range(n + 1), n, rate) @ [each is of.holds(rate, rate) for each in says]

    needed, _ = plan(of, values, 50)
    assert chance(needed) >= 0.9
    assert all(chance(n) < 0.9 for n in range(1, needed))


@pytest.mark.parametrize(
    ("statistic", "values", "criterion", "needed"),
    [  # normal theory, 1.96 for the interval and 1.28 for the chance
        ("mean", [-1.0, 1.0] * 10, ">= -0.5", (3.24 / 0.5) ** 2),
        ("mean", [-1.0, 1.0] * 10, "<= -0.5", (3.24 / 0.5) ** 2),  # that it fails takes as many
        ("median", np.arange(0.025, 1, 0.05), ">= 0.25", ((1.96 * 0.5 + 1.28 * 0.433) / 0.25) ** 2),
    ],
)
def test_plan_of_a_mean_or_median_is_about_what_normal_theory_says(statistic, values, criterion, needed):
    found = plan(quantity(criterion, statistic), values, 100)
    assert found == plan(quantity(criterion, statistic), values, 100)  # the same twice
    assert found[0] == pytest.approx(needed, rel=0.2)


def test_plan_that_is_not_affordable_says_how_many_it_would_take():
    assert plan(quantity(">= 0.8", "rate"), [1] * 18, 16) == (None, 17)
    planned, needed = plan(quantity(">= -0.5"), [-1.0, 1.0] * 10, 20)
    assert planned is None
    assert needed > 20


def test_plan_takes_five_values_at_least_where_a_bootstrap_judges():
    for statistic in ("mean", "median"):
        assert plan(quantity(">= 0.9", statistic), [1.0, 1.1, 1.2], 9) == (5, 5)


def test_plan_of_strata_counts_the_values_of_all_and_needs_no_more_than_differ_within():
    strata = {"a": [-1.1, -0.9] * 5, "b": [0.9, 1.1] * 5, "c": [-0.1, 0.1] * 5}
    assert plan(quantity(">= -0.5"), strata, 50) == (6, 6)
    assert plan(quantity(">= -0.5"), [*strata.values()], 50)[0] > 20
    assert plan(quantity(">= 0.8", "rate"), {"a": [1] * 9, "b": [1] * 9, "c": [1] * 9}, 50) == (
        18,
        18,
    )  # 17 is no three parts


def test_plan_of_values_that_are_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        plan(quantity(">= 0"), [1.0, np.nan], 50)


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


def test_a_claim_with_a_plan_is_decided_by_as_many_runs_as_planned(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"), more=dict(planned=6))
    assert judge("X1", dict(a=GOOD), "paper", claims).words == "inconclusive (5 seeds, the claim asks for 6)"
    assert judge("X1", dict(a=[*GOOD, 1.0]), "paper", claims).words == "reproduced"


def test_a_claim_that_no_affordable_number_decides_says_what_it_would_take(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"), more=dict(undecidable="it would take about 900"))
    for values, words in (
        (OPEN, "inconclusive (undecidable here: it would take about 900)"),
        (GOOD, "reproduced"),
        (OPEN[:2], "inconclusive (2 seeds, the claim asks for 5)"),
        ([*OPEN, np.nan], "inconclusive (undecidable here: it would take about 900)"),  # runs that were not affordable
    ):
        assert judge("X1", dict(a=values), "paper", claims).words == words


def test_a_verdict_over_strata_rests_on_their_interval_and_counts_all_values(tmp_path):
    claims = book_of(tmp_path, a=("mean", "in [4.5, 5.5]"))
    strata = {"a": [0.0, 0.1, 0.0], "b": [10.0, 9.9, 10.0]}
    finding = judge("X1", dict(a=strata), "paper", claims)
    assert (finding.verdict, finding.measured[0].seeds) == ("reproduced", 6)
    assert judge("X1", dict(a=[*strata.values()]), "paper", claims).verdict == "inconclusive"


def test_values_that_are_not_finite_are_counted_and_decide_nothing(tmp_path):
    claims = book_of(tmp_path, a=("mean", ">= 0.9"))
    finding = judge("X1", dict(a=[*GOOD, np.nan, np.inf]), "book", claims)
    assert (finding.verdict, finding.measured[0].estimate) == ("inconclusive", None)
    assert finding.measured[0].describe("mean") == "2 of 7 values are not finite"
    assert judge("X1", dict(a=[np.nan] * 5), "book", claims).measured[0].describe("mean") == "no value"


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


OLD = dict(verdict="partly", reason="the paper says less", min_seeds=3)


def test_editions_are_read_in_their_order_with_what_stood_before(tmp_path):
    stood = entry_of(a=("mean", ">= 0.5"))["quantities"]
    more = dict(
        planned=7, undecidable="who knows", editions=[OLD, dict(verdict="inconclusive", reason="r", quantities=stood)]
    )
    claim = book_of(tmp_path, a=("mean", ">= 0.9"), more=more)["X1"]
    assert (claim.planned, claim.undecidable) == (7, "who knows")
    quantities = (Quantity("a", "m", "mean", ">= 0.5"),)
    assert claim.editions == (Edition(**OLD), Edition("inconclusive", "r", quantities=quantities))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(editions=[OLD, OLD | dict(verdict="maybe")]), "X1: verdict must be one of .*, got 'maybe'"),
        (dict(editions=[dict(verdict="partly", min_seeds=3)]), "X1: .*'reason'"),
        (dict(editions=[OLD | dict(criterion=">= 0.9")]), "X1: .*'criterion'"),
        (
            dict(editions=[OLD | dict(quantities={"a": dict(meaning="m", statistic="mean", criterion="> 1")})]),
            "X1: a crit",
        ),
        (dict(planned="1,400"), "X1: planned must be a whole number, at least min_seeds, got '1,400'"),
        (dict(planned=4), "X1: planned must be"),
    ],
)
def test_malformed_edition_or_plan_is_refused_by_claim_and_field(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        book_of(tmp_path, a=("mean", ">= 0.9"), more=more)


def test_every_claim_quotes_its_paper_or_names_the_derivation_and_every_quantity_has_an_example():
    files = sorted(Path(__file__).parent.glob("test_quantities_*.py"))
    examples = {tuple(key.split("/")[:2]) for file in files for key in import_module(file.stem).EXAMPLES}
    claims = read_claims().values()
    assert {claim.id for claim in claims if not re.search(r'"[^"]{20,}"|^\{ref\}', claim.source)} == set()
    assert {(claim.id, quantity.name) for claim in claims for quantity in claim.quantities} - examples == set()


def rewritten(old, new):
    """What a version of the book of claims did to the one before that it may not do."""
    wrong = []
    for name, was in old.items():
        now, before = new.get(name, {}), was.get("editions", [])
        added = now.get("editions", [])[len(before) :]
        changed = [
            field
            for field in ("claim", "min_seeds", "planned", "quantities")
            if field in was and was[field] != now.get(field)
        ]
        kept = [field for edition in added for field in edition if field not in ("verdict", "reason")]
        if not now:
            wrong.append(f"{name} is gone")
        elif now.get("editions", [])[: len(before)] != before or len(added) > 1:
            wrong.append(f"{name}: editions stay as they are, and come one at a time")
        elif changed and not added:
            wrong.append(f"{name}: {', '.join(changed)} changed without a new edition")
        elif any(added[0].get(field) != was.get(field) for field in {*changed, *kept} if added):
            wrong.append(f"{name}: the new edition does not hold what stood before")
        elif added and all(was.get(field) == now.get(field) for field in kept):
            wrong.append(f"{name}: a new edition, and nothing changed")
    return wrong


def test_a_claim_may_be_added_planned_or_changed_with_an_edition_and_in_no_other_way():
    stood = entry_of(a=("mean", ">= 0.5"))
    old = {"X1": stood}
    edition = dict(verdict="partly", reason="r", quantities=stood["quantities"])
    new = {"X1": entry_of(a=("mean", ">= 0.9"), more=dict(editions=[edition]))}
    second = dict(verdict="reproduced", reason="r", min_seeds=5, source="s")
    newer = {"X1": new["X1"] | dict(min_seeds=9, source="s, Fig. 2", editions=[edition, second])}
    for one, other in (
        (old, old),
        (old, new),
        (new, newer),
        (old, old | {"X2": stood}),
        (old, {"X1": stood | dict(planned=9)}),
    ):
        assert rewritten(one, other) == []

    def edited(book, **fields):
        return {"X1": copy.deepcopy(book["X1"]) | fields}

    looser = entry_of(a=("mean", ">= 0.4"))["quantities"]
    planned = edited(new, planned=9)
    for one, other, message in (
        (old, {}, "X1 is gone"),
        (old, edited(old, quantities=looser), "X1: quantities changed without"),
        (old, edited(old, min_seeds=2, claim="it may work"), "X1: claim, min_seeds changed without"),
        (old, edited(old, quantities=looser, editions=[edition | dict(quantities=looser)]), "does not hold what stood"),
        (old, edited(new, min_seeds=2), "does not hold what stood"),
        (old, edited(old, editions=[edition]), "nothing changed"),
        (old, newer, "one at a time"),
        (new, edited(new, editions=[edition | dict(verdict="reproduced")]), "stay as they are"),
        (new, edited(new, editions=[]), "stay as they are"),
        (planned, edited(planned, planned=12), "X1: planned changed without"),
        (planned, new, "X1: planned changed without"),
    ):
        [line] = rewritten(one, other)
        assert message in line


def test_editions_of_the_book_are_append_only_and_hold_what_stood_by_its_history():
    if not (commits := git("log", "--first-parent", "--reverse", "--format=%H", "--", "book/claims.yml")):
        pytest.skip("no history of book/claims.yml here")
    if git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone, without the history of book/claims.yml")
    versions = [(f"{commit}^", git("show", f"{commit}:book/claims.yml")) for commit in commits.split()]
    versions.append(("HEAD", CLAIMS.read_text()))
    ruled = [(before, yaml.safe_load(text)) for before, text in versions if "editions:" in text]  # since it is a rule
    for (_, old), (before, new) in itertools.pairwise(ruled):
        assert rewritten(old, new) == []
        for name, was in old.items():
            for edition in new[name].get("editions", [])[len(was.get("editions", [])) :]:
                prose = dict(PROSE.findall(git("show", f"{before}:notebooks/{was['chapter']}.md")))
                assert edition["verdict"] == prose[name], f"{name}: no such verdict stood on the page"


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
        for text in (claim.undecidable, *(edition.reason for edition in claim.editions)):
            assert not text.endswith(".")
