import csv
import io
import re

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ts_helpers.book import figure_data, figures


def draw(value):
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1, 2], [0, value, 1 / 3], "o-", label="$\\tau$")
    ax.legend(fontsize=8.5)
    return fig


def made(label="tau", values=(1, 2, 5)):
    return figures.slider(draw, values, label, lambda v: f'a "quoted" line to {v}', start=1).data


def test_slider_has_a_frame_for_each_value_and_shows_the_first():
    page = made()
    frames = re.findall(r'<div data-value="(.*?)" role="img" aria-label="(.*?)"( hidden)?>', page)
    assert frames == [(str(v), f"a &quot;quoted&quot; line to {v}", " hidden" * (v != 2)) for v in (1, 2, 5)]
    assert page.count('<svg width="192" height="96"') == 3
    assert 'min="0" max="2" value="1" aria-valuetext="2"' in page
    assert not plt.get_fignums()  # nothing left open


def test_slider_leaves_a_search_index_its_label_and_value_alone():
    words = re.sub("<[^<]+?>", "", made("time constant τ"))  # as Sphinx does
    assert words.split() == ["time", "constant", "τ", "2"]


def test_slider_defines_once_what_its_frames_refer_to_and_nothing_of_another_slider():
    page, other = made(), made(values=(1, 2, 6))
    ids, others = (re.findall(r' id="(.*?)"', each) for each in (page, other))
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(others)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) == set(ids)


def places(path):
    """The points of a path of lines, in steps or not, by a loop."""
    found, at = [], np.zeros(2)
    for letter, *place in re.findall(r"([MLl]) ?(-?[\d.]+) (-?[\d.]+)", path):
        at = np.array(place, float) + (at if letter == "l" else 0)
        found.append(at)
    return found


def test_slider_moves_no_line_by_more_than_a_twentieth_of_a_point():
    x = np.linspace(0, 1, 400)
    fig, ax = plt.subplots()
    ax.plot(x, np.sin(30 * x))
    ax.plot(x, np.where(x % 0.2 < 0.1, np.cos(30 * x), np.nan))  # with gaps
    fig.savefig(buffer := io.StringIO(), format="svg")
    plt.close(fig)
    svgs = buffer.getvalue(), figures._slim(buffer.getvalue(), {})[1]
    paths = [[path for path in re.findall(r' d="([MLlz\d.\s-]*)"', svg) if len(path) > 400] for svg in svgs]
    assert len(paths[0]) == len(paths[1]) == 2
    for was, now in zip(*paths, strict=True):
        np.testing.assert_allclose(places(now), places(was), atol=0.0501)


def test_plot_runs_draws_each_run_and_the_median():
    fig, ax = plt.subplots()
    figures.plot_runs(ax, [0, 1], [[0, 1], [0, 2], [0, np.nan]], "C0", "runs")
    assert len(ax.lines) == 4
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0, 1.5])
    figures.plot_runs(ax, [0, 1], [[0, np.nan], [1, np.nan]], "C0", "all diverged")
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0.5, np.nan])
    plt.close(fig)


def test_figures_of_smoke_scale_say_so():
    for scale, said in (("smoke", True), ("book", False)):
        figures.use_style(scale)
        fig = plt.figure()
        assert any("smoke scale" in text.get_text() for text in fig.texts) == said
        plt.close(fig)


def lightness(colour):
    """CIE L* of a colour: what remains of it in a grey print."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)]
    y = np.dot([0.2126, 0.7152, 0.0722], linear)
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_neighbouring_colours_differ_in_a_grey_print_and_each_has_its_dash():
    assert (abs(np.diff([lightness(colour) for colour in figures.COLOURS])) > 10).all()
    assert len(figures.DASHES) == len(figures.COLOURS) == len(set(map(str, figures.DASHES)))


def drawn():
    figures.use_style("book")
    fig, ax = plt.subplots(figsize=(2, 1))
    figures.plot_runs(ax, [0, 1], [[0, 1], [0, 2]], "C0", "runs $x$")
    fig.savefig(made := io.BytesIO(), format="svg", metadata={"Date": None})
    plt.close(fig)
    return made.getvalue()


@pytest.mark.parametrize("own", [{"text.usetex": True}, "dark_background", {"svg.fonttype": "none", "font.size": 30}])
def test_readers_matplotlibrc_changes_no_figure(own):
    with plt.rc_context():
        expected, backend = drawn(), matplotlib.get_backend()
        plt.style.use(own)
        assert drawn() == expected
        assert matplotlib.get_backend() == backend


def read(table):
    """Comments, and by panel and series the points, with the number of what they are of first."""
    lines = table.splitlines()
    points = {}
    for row in csv.DictReader(line for line in lines if line[0] != "#"):
        values = [float(row[name] or "nan") for name in ("number", "x", "y", "value")]
        points.setdefault((int(row["panel"]), row["series"]), []).append(values)
    return [line for line in lines if line[0] == "#"], points


def test_table_of_a_figure_has_every_point_of_what_is_drawn():
    nan = np.nan
    fig, axes = plt.subplots(1, 4)
    figures.plot_runs(axes[0], [0, 10], [[1, 2], [3, nan]], "C0", "runs")
    figures.levels(axes[0], 0.123456789)
    axes[0].plot([0.5], [0.5], transform=axes[0].transAxes)  # is no data
    axes[0].set(title="recorded", xlabel="time (s)")
    axes[0].legend()
    axes[1].fill_between([0, 1], [0, 0], [2, 3], color="#123456")
    axes[1].scatter([7], [8], label="points")
    axes[1].vlines([4, 5], 0, 1, colors=["#ff0000", "#00ff00"])
    fig.colorbar(axes[2].pcolormesh([1, 2], [10, 20], [[3, 4], [5, nan]], shading="nearest"), label="loss")
    axes[3].imshow([[1, 2, 3]])
    axes[3].set_yticks([0], ["input"])
    told, points = read(figure_data.table(fig))
    plt.close(fig)
    assert {"# panel 1: recorded; x: time (s)", "# panel 4: y = 0 is input", "# value: y: loss"} <= set(told)
    assert told[-1].endswith(" is runs")
    expected = {
        (1, "runs (run)"): [[1, 0, 1, nan], [1, 10, 2, nan], [2, 0, 3, nan]],
        (1, "runs"): [[3, 0, 2, nan], [3, 10, 2, nan]],
        (1, "level"): [[4, nan, 0.123457, nan]],
        (2, "points"): [[2, 7, 8, nan]],
        (2, "ff0000"): [[3, 4, 0, nan], [3, 4, 1, nan]],
        (2, "00ff00"): [[4, 5, 0, nan], [4, 5, 1, nan]],
        (3, "map"): [[1, 1, 10, 3], [1, 2, 10, 4], [1, 1, 20, 5], [1, 2, 20, nan]],
        (4, "map"): [[1, 0, 0, 1], [1, 1, 0, 2], [1, 2, 0, 3]],
    }
    area = {(x, y) for _, x, y, _ in points.pop((2, "123456"))}
    assert area == {(0, 0), (1, 0), (0, 2), (1, 3)}
    assert points.keys() == expected.keys()
    for key, each in expected.items():
        np.testing.assert_array_equal(points[key], each, str(key))


def test_table_that_is_too_large_has_fewer_points_of_single_runs_alone_and_says_so(monkeypatch):
    fig, ax = plt.subplots()
    figures.plot_runs(ax, range(100), np.zeros((50, 100)), "C0", "runs")
    whole = figure_data.table(fig)
    monkeypatch.setattr(figure_data, "MOST", len(whole) // 3)
    told, points = read(figure_data.table(fig))
    plt.close(fig)
    assert told[0] == "# left out: of single runs all but every 4th point"
    assert [len(points[1, series]) for series in ("runs", "runs (run)")] == [100, 50 * 25]


@pytest.mark.parametrize("shown", [True, False])
def test_panel_beside_one_that_shows_nothing_has_labels_of_its_own(shown):
    def draw(axes, run):
        axes[0].set(ylabel="loss")
        if not run:
            axes[0].set_axis_off()

    fig = figures.beside(draw, {"recorded": shown, "this run": True})
    assert fig.axes[1].yaxis.label.get_visible() != shown
    assert fig.axes[1].yaxis.get_tick_params()["labelleft"] != shown
    plt.close(fig)
