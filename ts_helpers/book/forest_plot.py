"""All claims in one figure: where each interval lies, seen from the edge of its criterion; no other figure."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ts_helpers.book import figures
from ts_helpers.book.claims import Claim, Finding, Measured, Quantity

# Colour and mark of a verdict: the shape alone tells them apart too, in a grey print as well.
LOOKS: dict[str, dict[str, Any]] = {
    "reproduced": dict(color=figures.BLUE, marker="o", mfc=figures.BLUE),
    "partly": dict(color=figures.GREEN, marker="^", mfc=figures.GREEN),
    "not reproduced": dict(color=figures.ORANGE, marker="X", mfc=figures.ORANGE),
    "inconclusive": dict(color=figures.BLACK, marker="s", mfc="white"),
}
MARK: dict[str, Any] = dict(ms=6, mec="black", mew=0.7)
WIDTH, LABELS, ROW, ABOVE, BELOW = 7.1, 1.7, 0.17, 0.65, 0.3  # inches: figure, words left of an axis, line, margins
Group = Sequence[tuple[Claim, Finding | None]]


def place(value: float, quantity: Quantity) -> float:
    """Return where a value stands: 0 at the criterion's edge, 1 where it is met best, -1 as far as can be from it.

    Linear to a finite end; to an infinite one ``d / (d + unit)``, d from the edge, where the unit is the size of the
    edge or half the range's width. Values go down to 0 where the edge is above it, those of a rate up to 1.
    """
    least, most = quantity.range
    if np.isfinite(least) and np.isfinite(most):
        half, within = (most - least) / 2, min(value - least, most - value)
        return within / half if within >= 0 else within / (half - within)
    edge, side = (least, 1) if np.isfinite(least) else (most, -1)
    end = (1.0 if quantity.statistic == "rate" else np.inf) if value > edge else (0.0 if edge > 0 else -np.inf)
    side, distance = side if value > edge else -side, abs(value - edge)
    if distance == 0:
        return 0.0
    return side * (distance / (distance + (abs(edge) or 1.0)) if np.isinf(end) else min(1, distance / abs(end - edge)))


def span(measured: Measured, quantity: Quantity) -> tuple[float, float, float] | None:
    """Return the places of an estimate and of the ends of its interval, lower first; None where there is none."""
    if measured.estimate is None or measured.low is None or measured.high is None:
        return None
    middle = float(np.clip(np.mean(quantity.range), measured.low, measured.high))  # it may be best within the interval
    ends = [place(value, quantity) for value in (measured.low, middle, measured.high)]
    return place(measured.estimate, quantity), min(ends), max(ends)


def svg(papers: Mapping[str, Group]) -> str:
    """Return the figure in the book's style, the same letters for the same findings."""
    made = io.StringIO()
    with plt.rc_context():
        figures.use_style("book")
        fig = draw(papers)
        if any(finding and finding.scale == "smoke" for group in papers.values() for _, finding in group):
            figures.label_smoke(fig)
        fig.savefig(made, format="svg", metadata={"Date": None})
    return made.getvalue()


def draw(papers: Mapping[str, Group]) -> Figure:
    """Draw all claims in two columns, a paper never broken, and what was found on each: None before its chapter ran."""
    height = max(map(rows, columns := halves(papers)))
    inches = ABOVE + ROW * height + BELOW
    fig = Figure(figsize=(WIDTH, inches))
    fig.set_layout_engine("none")
    for left, column in zip((LABELS, WIDTH / 2 + LABELS), columns, strict=True):
        if lines := rows(column):
            box = (left / WIDTH, 1 - (ABOVE + ROW * lines) / inches, 0.485 - LABELS / WIDTH, ROW * lines / inches)
            _column(fig.add_axes(box), column, lines)
    marks = [Line2D([], [], ls="-", label=verdict, **MARK, **look) for verdict, look in LOOKS.items()]
    fig.legend(handles=marks, loc="upper center", ncols=4)
    return fig


def rows(papers: Mapping[str, Group]) -> float:
    """Return how many lines of the figure the papers take: title, quantities, and a gap after each claim."""
    return sum(1.5 + sum(len(claim.quantities) + 0.4 for claim, _ in group) for group in papers.values())


def halves(papers: Mapping[str, Group]) -> list[dict[str, Group]]:
    """Return the papers in two columns, in order, the longer one as short as can be."""
    cuts = [[dict([*papers.items()][part]) for part in (slice(n), slice(n, None))] for n in range(len(papers) + 1)]
    return min(cuts, key=lambda cut: max(map(rows, cut)))


def _column(ax: Axes, papers: Mapping[str, Group], height: float) -> None:
    ax.set(xlim=(-1.04, 1.04), ylim=(height, 0), yticks=[])
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["furthest", "", "edge", "", "best"], size=8)
    ax.tick_params(axis="x", labeltop=True, length=0)
    ax.spines["left"].set_visible(False)
    ax.axvspan(0, 1.04, color="#e8f0f6", lw=0, zorder=0)
    ax.axvline(0, color="black", lw=0.8, ls="-")
    words: dict[str, Any] = dict(transform=ax.get_yaxis_transform(), va="center")  # x in widths of the axes
    inch = 1 / (0.485 * WIDTH - LABELS)
    left, y = (0.1 - LABELS) * inch, 0.0
    for title, group in papers.items():
        ax.text(left, y + 0.9, title, size=9, weight="bold", bbox=dict(fc="white", ec="none", pad=0.5), **words)
        y += 1.5
        for claim, finding in group:
            ax.text(left, y + 0.5, claim.id, size=8, weight="bold", **words)
            for n, quantity in enumerate(claim.quantities):
                ax.text(left + 0.35 * inch, y + 0.5, quantity.name.replace("_", " "), size=7.5, **words)
                _row(ax, y + 0.5, quantity, finding, n)
                y += 1
            y += 0.4
            ax.axhline(y - 0.2, left, 1, color="#d0d0d0", lw=0.5, ls="-", clip_on=False)


def _row(ax: Axes, y: float, quantity: Quantity, finding: Finding | None, n: int) -> None:
    places = span(finding.measured[n], quantity) if finding else None
    if finding and places:
        ax.plot(places[1:], [y, y], color=LOOKS[finding.verdict]["color"], lw=2, ls="-", solid_capstyle="butt")
        ax.plot(places[0], y, ls="", clip_on=False, zorder=3, **MARK, **LOOKS[finding.verdict])
    else:
        ax.text(-1, y, "no value" if finding else "not run yet", size=7.5, va="center", color="0.35", style="italic")
