import numpy as np
import pytest

from ts_helpers.book import forest_plot
from ts_helpers.book.claims import Claim, Quantity, judge, read_claims

CRITERIA = ">= 0.9", "<= 0.1", ">= 1.1", "<= 0.5", ">= -0.2", ">= 0.0", "in [-2.2, -1.8]", "in [0.5, 2]", "in [0, 0.03]"


def quantity(criterion, statistic="median", name="q0"):
    return Quantity(name, "", statistic, criterion)


def claim_of(name, criterion, quantities=1):
    several = tuple(quantity(criterion, name=f"q{n}") for n in range(quantities))
    return Claim(name, "doe2020", "doe2020/idea", "fig-idea", "", "", 1, several)


def finding_of(claim, values, scale="book"):
    return judge(claim.id, {q.name: values for q in claim.quantities}, scale, {claim.id: claim})


@pytest.mark.parametrize("text", CRITERIA)
@pytest.mark.parametrize("statistic", ["median", "rate"])
def test_place_is_positive_exactly_where_the_criterion_holds_and_rises_towards_it(text, statistic):
    asked = quantity(text, statistic)
    values = np.linspace(0, 1, 501) if statistic == "rate" else [-1e6, *np.linspace(-5, 5, 2001), 1e6]
    places = np.array([forest_plot.place(value, asked) for value in values])
    assert (abs(places) <= 1).all()
    assert all(place == 0 or (place > 0) == asked.holds(v, v) for place, v in zip(places, values, strict=True))
    if "in" not in text:
        assert (np.diff(places) * (1 if ">" in text else -1) >= 0).all()


@pytest.mark.parametrize(
    ("value", "text", "statistic", "place"),
    [
        (1, ">= 0.9", "rate", 1), (0, ">= 0.9", "rate", -1), (0.45, ">= 0.9", "rate", -0.5),  # all runs, none, half way
        (0, "<= 0.1", "rate", 1), (1, "<= 0.1", "rate", -1),
        (0, "<= 0.5", "mean", 1), (1, "<= 0.5", "mean", -0.5), (5, "<= 0.5", "mean", -0.9),  # no loss, 2 and 10 times
        (2.2, ">= 1.1", "mean", 0.5), (0.55, ">= 1.1", "mean", -0.5), (-4, ">= 1.1", "mean", -1),
        (0.0, ">= -0.2", "mean", 0.5), (-0.4, ">= -0.2", "mean", -0.5),
        (1.25, "in [0.5, 2]", "mean", 1), (2.75, "in [0.5, 2]", "mean", -0.5), (0.5, "in [0.5, 2]", "mean", 0),
    ],
)  # fmt: skip
def test_place_is_where_the_caption_says(value, text, statistic, place):
    assert forest_plot.place(value, quantity(text, statistic)) == pytest.approx(place)


def test_span_lies_on_one_side_exactly_where_the_interval_decides():
    seen, noise = set(), 0.1 * np.random.default_rng(0).standard_normal(20)
    for claim in (claim_of("X1", text) for text in CRITERIA):
        edge = next(end for end in claim.quantities[0].range if np.isfinite(end))
        for shift in np.linspace(-1, 1, 11):
            [measured] = finding_of(claim, edge + shift + noise).measured
            _, low, high = forest_plot.span(measured, claim.quantities[0])
            assert measured.holds == (True if low >= 0 else False if high < 0 else None)
            seen.add(measured.holds)
    assert seen == {True, False, None}


def test_span_reaches_the_best_where_an_interval_holds_the_middle_of_a_range():
    claim = claim_of("X1", "in [0, 1]")
    span = forest_plot.span(finding_of(claim, [0.2, 0.3, 0.7]).measured[0], claim.quantities[0])
    assert span == pytest.approx((0.6, 0.4, 1))


def test_figure_names_every_claim_and_quantity_and_says_where_there_is_no_value():
    early, wild, told = claim_of("X1", ">= 0.9", quantities=2), claim_of("X2", ">= 0.9"), claim_of("X3", ">= 0.9")
    papers = {"X. Doe": [(early, None), (wild, finding_of(wild, [np.nan])), (told, finding_of(told, [1.0, 2.0]))]}
    found = [text.get_text() for ax in forest_plot.draw(papers).axes for text in ax.texts]
    expected = {"X1": 1, "X2": 1, "X3": 1, "q0": 3, "q1": 1, "not run yet": 2, "no value": 1}
    assert {word: found.count(word) for word in expected} == expected


def test_figure_draws_each_verdict_in_its_own_colour_and_mark():
    looks = forest_plot.LOOKS.values()
    assert len({look["color"] for look in looks}) == len({look["marker"] for look in looks}) == 4
    for value, verdict in ((2.0, "reproduced"), (0.0, "not reproduced")):
        claim, look = claim_of("X1", ">= 0.9"), forest_plot.LOOKS[verdict]
        fig = forest_plot.draw({"X. Doe": [(claim, finding_of(claim, [value] * 3))]})
        marks = [line for ax in fig.axes for line in ax.lines if line.get_marker() == look["marker"]]
        assert [line.get_color() for line in marks] == [look["color"]]


def test_papers_are_in_two_columns_in_order_and_whole():
    claims = [claim_of(f"X{n}", ">= 1") for n in range(10)]
    papers = {title: [(claim, None) for claim in claims[:size]] for title, size in dict(A=4, B=3, C=8, D=1).items()}
    assert [list(column) for column in forest_plot.halves(papers)] == [["A", "B"], ["C", "D"]]
    assert forest_plot.halves({"A": papers["A"]}) != [{}, {}]


def test_figure_is_the_same_letter_for_letter_and_says_when_it_shows_no_result():
    claims, values = [read_claims()[name] for name in ("A2", "B2b")], np.tile([0.0, 1.0], 50)
    svgs = [
        forest_plot.svg({"A": [(claim, finding_of(claim, values, scale)) for claim in claims]})
        for scale in ("book", "book", "smoke")
    ]
    assert svgs[0] == svgs[1]
    assert ["smoke scale" in svg for svg in svgs] == [False, False, True]
