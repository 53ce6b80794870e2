import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ts_helpers.book import figures


def test_slider_links_handle_and_figures_without_a_kernel():
    def draw(value):
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, value])
        return fig

    box = figures.slider(draw, [1, 2, 5], "tau", lambda v: f'a "quoted" line to {v}', start=1)
    pick, stack = box.children
    assert [label for label, _ in pick.options] == ["1", "2", "5"]
    assert stack.selected_index == pick.value == 1
    assert 'alt="a &quot;quoted&quot; line to 5"' in stack.children[2].value
    assert len({page.value for page in stack.children}) == 3
    assert not plt.get_fignums()  # nothing left open


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
