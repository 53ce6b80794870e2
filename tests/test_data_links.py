"""What stands below the figures of built pages: their data, and what made it."""

import json
import re

import pytest
from conftest import CANARY

pytestmark = [pytest.mark.book, pytest.mark.canary]
FIGURE = re.compile(r'<figure class="[^"]*" id="([^"]+)">(.*?)</figcaption>', re.S)
# drawings, which have no axes, hence no data, and sliders, which have many figures' data
DRAWINGS = {"fig-quax-unit", "fig-quax-stack", "fig-engine-lanes"}
SLIDERS = {
    *("fig-matsuki-tuned", "fig-matsuki-rates-taus", "fig-stack-pulse", "fig-quax-noise", "fig-quax-trajectories"),
    *("fig-leak-period", "fig-tallec-twin", "fig-tallec-uneven", "fig-tallec-sentence", "fig-tallec-copying-kept"),
}


def test_every_captioned_figure_links_to_its_data_and_to_the_provenance_of_its_runs(site, chapters):
    for name in chapters:
        page = site / "notebooks" / f"{name}.html"
        figures = FIGURE.findall(page.read_text())
        assert figures, name
        for label, html in figures:
            data = re.search(r'<details class="data"><summary>Data</summary>(.*?)</details>', html)
            files = [page.parent / link for link in re.findall(r'href="(.+?)"', data[1])]
            assert f"python -m ts_helpers.run {name} " in data[1], label
            if label not in DRAWINGS | SLIDERS:
                table = files.pop(0)
                assert table.name == f"{label}.csv"
                rows = [line for line in table.read_text().splitlines() if line[0] != "#"]
                assert rows[0] == "panel,series,number,x,y,value"
                assert len(rows) > 1, label
            for file in files:
                assert json.loads(file.read_text())["notebook"] == name
            assert files, label


def test_figures_but_the_first_are_fetched_late_and_keep_their_room(site):
    images = re.findall(r"<img [^>]*_images/[^>]*>", (site / "notebooks" / f"{CANARY}.html").read_text())
    assert ['loading="lazy"' in image for image in images] == [False, *[True] * (len(images) - 1)]
    assert len(images) > 1
    assert all(' width="' in image and ' height="' in image for image in images)


def test_notebook_to_download_is_without_the_tables(site):
    assert "text/csv" not in (site / "_sources" / "notebooks" / f"{CANARY}.ipynb").read_text()
