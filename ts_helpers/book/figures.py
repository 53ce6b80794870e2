"""The look of the book's figures, what several of them draw, and a slider without a kernel; no chapter's own figure."""

import html
import io
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ts_helpers.book import figure_data

# Of Okabe and Ito (2008), for colour blindness; neighbours differ in lightness, and in dash, for a grey print.
COLOURS = BLUE, ORANGE, BLACK, GREEN = "#0072b2", "#e69f00", "#000000", "#009e73"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def use_style(scale: str) -> None:
    """Set matplotlib up for the book, whatever the reader's own; a figure of smoke scale says it shows no result.

    In a notebook, what a figure shows goes with it as a table.
    """
    figure_data.keep_tables()
    plt.style.use("default")
    plt.rcParams.update({
        "figure.hooks": ["ts_helpers.book.figures:label_smoke"] if scale == "smoke" else [],
        "figure.figsize": (7, 3.2), "figure.dpi": 110, "figure.constrained_layout.use": True,
        "savefig.bbox": "standard", "svg.hashsalt": "learnable time scales", "font.size": 10,
        "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES), "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "axes.titlelocation": "left",
        "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6,
    })  # fmt: skip


def label_smoke(fig: Figure) -> None:
    """Write on a figure that it was made at smoke scale."""
    said = "smoke scale: proves the code, shows no result"
    fig.text(0.995, 0.005, said, ha="right", va="bottom", size=6, color="0.4")


def plot_runs(ax: Axes, x: ArrayLike, runs: ArrayLike, color: str, label: str | None, dash: str | tuple = "-") -> None:
    """Draw every run, of ``runs`` (runs, points), thin and their median thick; what is not finite is left out."""
    runs = np.asarray(runs, dtype=float)
    each = f"_{label or ''} {figure_data.RUN}"  # no legend shows what begins so
    ax.plot(x, runs.T, color=color, lw=0.5, alpha=min(1.0, 0.1 + 3 / len(runs)), ls="-", label=each)
    middle = pd.DataFrame(runs).median()  # none, and no warning, where every run has diverged
    ax.plot(x, middle, color=color, lw=2.2, label=label or "_median", ls=dash)


def dots(ax: Axes, x: float, values: ArrayLike, color: str, marker: str = "o", label: str | None = None) -> None:
    """Draw values, one a run, as points above x, and their median as a bar."""
    values = np.asarray(values, dtype=float).ravel()
    ax.plot(np.full(values.size, x), values, marker, color=color, ms=3.5, ls="none", alpha=0.7, label=label)
    if np.isfinite(values).any():
        ax.plot([x - 0.07, x + 0.07], [np.nanmedian(values)] * 2, color=color, lw=2.5, ls="-", label="_median")


def levels(ax: Axes, *values: float, vertical: bool = False) -> None:
    """Draw dotted lines at values to compare with."""
    for value in values:
        (ax.axvline if vertical else ax.axhline)(value, color="0.4", ls=":", lw=1, label="_level")


def slider(
    draw: Callable[[float], Figure], values: Sequence[float], label: str, alt: Callable[[float], str], start: int = 0
) -> HTML:
    """Return a slider, without a kernel, over figures drawn beforehand, with texts ``alt``; index ``start`` first.

    It is HTML with a few words of script. The figures are SVG in the page: what they share, letters say, is there once.
    """
    shared, frames = dict[str, str](), []
    for i, value in enumerate(values):
        fig, buffer = draw(value), io.StringIO()
        fig.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        width, height = (round(96 * inches) for inches in fig.get_size_inches())
        plt.close(fig)
        box, drawing = _slim(buffer.getvalue(), shared)
        size = f'width="{width}" height="{height}" viewBox="{box}"'
        said = f'data-value="{value:g}" role="img" aria-label="{html.escape(alt(value))}"{" hidden" * (i != start)}'
        frame = f'<svg {size} style="max-width: 100%; height: auto; stroke-linejoin: round">{drawing}</svg>'
        frames.append(f"<div {said}>{frame if i == start else f'<template>{frame}</template>'}</div>")
    once = f'<svg width="0" height="0" style="position: absolute" aria-hidden="true">{"".join(shared.values())}</svg>'
    numbers = {name: i for i, name in enumerate(shared)}
    drawn = "\n".join([once, *frames])
    key = f"s{zlib.crc32(drawn.encode()):x}"  # another slider of the page has other ids
    drawn = re.sub(r'( id="|href="#|url\(#)([^")]+)', lambda found: f"{found[1]}{key}-{numbers[found[2]]}", drawn)
    shown, room = f"{values[start]:g}", max(len(f"{value:g}") for value in values)
    # JupyterLab leaves a slider its arrow keys if shortcuts are suppressed; the value is read out once, by the handle
    return HTML(f"""<div class="slider" oninput="{MOVE}">
<div style="display: flex; gap: 1em; align-items: center">
<label style="display: flex; flex: 0 1 36em; flex-wrap: wrap; align-items: center; gap: 0 0.6em">{html.escape(label)}
<input type="range" min="0" max="{len(values) - 1}" value="{start}" aria-valuetext="{shown}" autocomplete="off"
style="flex: 1 1 12em; margin: 0.4em" data-lm-suppress-shortcuts="true"></label>
<output aria-live="off" style="min-width: {room}ch">{shown}</output>
</div>
<figure style="margin: 0.5em 0">
{drawn}
</figure>
</div>""")


# A frame is no part of the page until it is wanted. No sign for greater: it would end the tag for Sphinx's search.
MOVE = """const frames = this.querySelectorAll('[role=img]'), now = frames[event.target.value];
for (const frame of frames) frame.hidden = frame != now;
for (const kept of now.querySelectorAll('template')) kept.replaceWith(kept.content);
event.target.setAttribute('aria-valuetext', this.querySelector('output').value = now.dataset.value);"""


def _slim(svg: str, shared: dict[str, str]) -> tuple[str, str]:
    """Return viewBox and content of matplotlib's SVG, in fewer bytes; what is defined there goes to ``shared``."""

    def steps(found: re.Match) -> str:  # from point to point, in tenths of a point: most repeat, or nearly
        places = np.rint(10 * np.array(re.findall(r"-?[\d.]+", found[0]), float).reshape(-1, 2))
        (x, y), *moves = np.diff(places, axis=0, prepend=0) / 10
        return f"M{x:g} {y:g}" + "".join(f"l{dx:g} {dy:g}" for dx, dy in moves)

    def rounded(found: re.Match) -> str:  # but the scale of letters, which is small
        return found[0] if found[1] else f"{round(float(found[0]), 2):g}"

    def keep(found: re.Match) -> str:
        shared.update((each[2], each[0]) for each in re.finditer(r'<(\w+) id="(.*?)"([^>]*/>|.*?</\1>)', found[1]))
        return ""

    _, box, svg = re.split(r'viewBox="(.*?)".*?>', re.sub(r"\s+", " ", svg).removesuffix("</svg> "), maxsplit=1)
    for pattern, by in (
        ("<!--.*?-->", ""), ("> <", "><"), ("xlink:href", "href"),
        (r"M [\d. -]+(L [\d. -]+)+", steps), (r"(scale|matrix)\(.*?\)|\d+\.\d{3,}", rounded),
        (r'(<use href=".*?") transform="translate\(([\d.]+) 0\)"', r'\1 x="\2"'),
        ("<defs>(.*?)</defs>", keep), (' id=".*?"', ""),
    ):  # fmt: skip
        svg = re.sub(pattern, by, svg)
    return box, svg


def beside(
    draw: Callable[[Sequence[Axes], Any], None], runs: Mapping[str, Any],
    rows: int = 1, height: float = 2.6, sharex: bool = True, **legend: Any,
) -> Figure:  # fmt: skip
    """Draw the same figure of several runs, by title, side by side: an archived one and the page's own, say.

    ``draw`` draws a run into a column of axes, top to bottom, of ``height`` inches each, one x axis if ``sharex``. The
    first axes have a legend if anything there has a label; ``legend`` is how, ``loc`` or ``ncols``.
    """
    how: dict[str, Any] = dict(sharex="col" if sharex else False, sharey="row", squeeze=False)
    fig, axes = plt.subplots(rows, len(runs), figsize=(7.8, height * rows), **how)
    for column, (title, results) in zip(axes.T, runs.items(), strict=True):
        draw(column, results)
        column[0].set_title(title)
    for left, ax in zip(axes[:, :-1].flat, axes[:, 1:].flat, strict=True):
        ax.yaxis.label.set_visible(alone := not left.axison)  # beside a panel that has nothing to show
        ax.tick_params(labelleft=alone)
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(fontsize=8, **legend)
    return fig
