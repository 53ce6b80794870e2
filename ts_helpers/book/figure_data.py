"""What a figure shows, as a table: a row for each point drawn, which goes with the image; nothing is drawn here."""

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from IPython.core.getipython import get_ipython
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

MOST = 1_000_000  # characters of a table
RUN = "(run)"  # the label of one line of many ends so


def keep_tables() -> None:
    """Let the notebook that runs keep the table of every figure it shows, beside the image."""
    if shown := getattr(get_ipython(), "display_formatter", None):
        shown.mimebundle_formatter.for_type(Figure, lambda fig, **_: {"text/csv": table(fig)})


def table(fig: Figure) -> str:
    """Return as CSV the points of all lines, marks, areas and maps, in the units of the axes, to 6 digits.

    A series is what it is called, or its colour; what has a number is one line, area, map or group of marks. Comments
    come first: panels, axes, colours. Of a table above ``MOST``, single runs keep every second point, or fourth, and so
    on, and a comment says so. A panel without axes has no data.
    """
    panels = [ax for ax in fig.axes if ax.get_label() != "<colorbar>" and ax.axison and ax.get_visible()]
    legends = [*fig.legends, *(legend for ax in panels if (legend := ax.get_legend()))]
    keys = [(key, text) for each in legends for key, text in zip(each.legend_handles, each.texts, strict=True)]
    told = [fig.get_suptitle(), *(f"panel {n}: {_described(ax)}" for n, ax in enumerate(panels, 1))]
    told += [f"value: {_described(ax)}" for ax in fig.axes if ax.get_label() == "<colorbar>"]
    told.append("; ".join(dict.fromkeys(f"{_colours(key)[0]} is {text.get_text()}" for key, text in keys)))
    drawn = [(n, *each) for n, ax in enumerate(panels, 1) for each in _drawn(ax)]
    for step in (1, 2, 4, 8, 16, 32):
        rows = csv.writer(text := io.StringIO(), lineterminator="\n")
        left_out = f"left out: of single runs all but every {step}th point" if step > 1 else ""
        text.writelines(f"# {' '.join(line.split())}\n" for line in (left_out, *told) if line)
        rows.writerow(["panel", "series", "number", "x", "y", "value"])
        for n, series, number, points in drawn:
            rows.writerows([n, series, number, *point] for point in points[:: step if series.endswith(RUN) else 1])
        if text.tell() <= MOST:
            break
    return text.getvalue() if drawn else ""


def _described(ax: Axes) -> str:
    """Return title and axes of a panel, in words, with what is written at ticks in place of numbers."""
    inside = [text.get_text() for text in ax.texts if text.get_transform() == ax.transAxes]
    told = [" ".join(filter(None, [ax.get_title("left"), ax.get_title("center"), ax.get_title("right"), *inside]))]
    for name, axis, shared in (("x", ax.xaxis, ax.get_shared_x_axes()), ("y", ax.yaxis, ax.get_shared_y_axes())):
        labels = (getattr(each, f"{name}axis").get_label_text() for each in (ax, *shared.get_siblings(ax)))
        told += [f"{name}: {label}" for label in labels if label][:1]
        if isinstance(formatter := axis.get_major_formatter(), (FuncFormatter, StrCategoryFormatter)):
            at = [*map(float, axis.get_majorticklocs())]
            ticks = zip((f"{x:g}" for x in at), formatter.format_ticks(at), strict=True)
            told.append(", ".join(f"{name} = {x} is {text}" for x, text in ticks if x != text))
    return "; ".join(filter(None, told))


def _drawn(ax: Axes) -> Iterator[tuple]:
    """Yield series, number and points, as text, of all that is drawn in data coordinates, in x, y or both."""
    number = 0
    for artist in [*ax.images, *ax.collections, *ax.patches, *ax.lines]:
        place = artist.get_offset_transform() if isinstance(artist, PathCollection) else artist.get_transform()
        in_data = np.array(place.contains_branch_seperately(ax.transData))
        label, colours = str(artist.get_label()), _colours(artist)
        for k, (points, value) in enumerate(_parts(artist) if in_data.any() else ()):
            values = np.broadcast_to(np.nan if value is None else value, len(points))
            rows = np.column_stack([np.where(in_data, np.asarray(points, float), np.nan), values])
            rows = rows[(np.isfinite(rows[:, :2]) == in_data).all(1)]
            told = [tuple(f"{x:.6g}" if np.isfinite(x) else "" for x in row) for row in rows.tolist()]
            number += 1
            named = "" if label.startswith(("_child", "_nolegend_")) else label.removeprefix("_")
            series = named or ("map" if value is not None else colours[k % len(colours)])
            yield series, number, told if in_data.all() else [*dict.fromkeys(told)]


def _parts(artist: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the points (n, 2) of each part of an artist and, where colours show values, these."""
    kind, values = type(artist), getattr(artist, "get_array", lambda: None)()  # type: type, Any
    if issubclass(kind, Line2D):
        yield artist.get_xydata(), None
    elif issubclass(kind, Patch):
        yield artist.get_patch_transform().transform(artist.get_path().vertices), None
    elif issubclass(kind, AxesImage):
        left, right, *ends = artist.get_extent()
        low, high = ends if artist.origin == "lower" else ends[::-1]
        y, x = ((np.arange(n) + 0.5) / n for n in values.shape[:2])
        centres = np.meshgrid(left + x * (right - left), low + y * (high - low))
        yield np.stack(centres, -1).reshape(-1, 2), values.ravel()
    elif issubclass(kind, QuadMesh):
        c = artist.get_coordinates()
        yield ((c[:-1, :-1] + c[1:, 1:] + c[:-1, 1:] + c[1:, :-1]) / 4).reshape(-1, 2), values.ravel()
    elif issubclass(kind, PathCollection):
        yield artist.get_offsets(), values
    else:
        yield from ((path.vertices, None if values is None else values[k]) for k, path in enumerate(artist.get_paths()))


def _colours(artist: Any) -> list[str]:
    """Return the colours of an artist's parts, without the sign that begins a comment."""
    if isinstance(artist, AxesImage):
        return []
    found = artist.get_color() if isinstance(artist, Line2D) else artist.get_facecolor()
    found = found if np.size(found) else artist.get_edgecolor()
    return [to_hex(each).removeprefix("#") for each in to_rgba_array(found)]
