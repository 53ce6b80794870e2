"""The look of the book's figures, what several of them draw, and a slider without a kernel; no chapter's own figure."""

import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

# Of Okabe and Ito (2008), for colour blindness; neighbours differ in lightness, and in dash, for a grey print.
COLOURS = BLUE, ORANGE, BLACK, GREEN = "#0072b2", "#e69f00", "#000000", "#009e73"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))


def use_style(scale: str) -> None:
    """Set matplotlib up for the book, whatever the reader's own; a figure of smoke scale says it shows no result."""
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
    ax.plot(x, runs.T, color=color, lw=0.5, alpha=min(1.0, 0.1 + 3 / len(runs)), ls="-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where every run has diverged there is no median
        ax.plot(x, np.nanmedian(runs, axis=0), color=color, lw=2.2, label=label, ls=dash)


def dots(ax: Axes, x: float, values: ArrayLike, color: str, marker: str = "o", label: str | None = None) -> None:
    """Draw values, one a run, as points above x, and their median as a bar."""
    values = np.asarray(values, dtype=float).ravel()
    ax.plot(np.full(values.size, x), values, marker, color=color, ms=3.5, ls="none", alpha=0.7, label=label)
    if np.isfinite(values).any():
        ax.plot([x - 0.07, x + 0.07], [np.nanmedian(values)] * 2, color=color, lw=2.5, ls="-")


def levels(ax: Axes, *values: float, vertical: bool = False) -> None:
    """Draw dotted lines at values to compare with."""
    for value in values:
        (ax.axvline if vertical else ax.axhline)(value, color="0.4", ls=":", lw=1)


def slider(
    draw: Callable[[float], Figure], values: Sequence[float], label: str, alt: Callable[[float], str], start: int = 0
) -> widgets.VBox:
    """Return a slider, without a kernel, over figures drawn beforehand, with texts ``alt``; index ``start`` first."""
    pages = []
    for value in values:
        fig, buffer = draw(value), io.BytesIO()
        fig.savefig(buffer, format="svg", metadata={"Date": None})
        width, height = (round(96 * inches) for inches in fig.get_size_inches())
        plt.close(fig)
        source = quote(buffer.getvalue().decode(), safe=" /:;,=()")  # text: it shrinks under gzip, base64 would not
        size = f'width="{width}" height="{height}"'
        pages.append(widgets.HTML(f'<img {size} alt="{html.escape(alt(value))}" src="data:image/svg+xml,{source}">'))
    stack = widgets.Stack(pages, selected_index=start)
    options = [(f"{value:g}", i) for i, value in enumerate(values)]
    look = dict(style={"description_width": "initial"}, layout={"width": "auto"})
    pick = widgets.SelectionSlider(options=options, value=start, description=label, **look)
    widgets.jslink((pick, "index"), (stack, "selected_index"))
    return widgets.VBox([pick, stack])


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
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend(fontsize=8, **legend)
    return fig
