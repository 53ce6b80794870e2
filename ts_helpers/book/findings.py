"""What a chapter's run found, beside what the recorded run of the same chapter at paper scale found."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import xarray as xr
from myst_nb import glue
from numpy.typing import ArrayLike

from ts_helpers.book import claims, figures, records

Quantities = Callable[[xr.Dataset], Mapping[str, dict[str, ArrayLike]]]


@dataclass
class Found:
    """Results and findings of a chapter.

    Attributes:
        runs: results by title, the recorded ones first, to be drawn side by side.
        best: the results that the verdicts rest on, the recorded ones where there are any.
        recorded: the recorded run, if there is one.
        live: findings of this run.
        kept: findings of the recorded run.
    """

    runs: dict[str, xr.Dataset]
    best: xr.Dataset
    recorded: records.Record | None
    live: list[claims.Finding]
    kept: list[claims.Finding]

    @property
    def title(self) -> str:
        """Return the title of the results that the verdicts rest on."""
        return next(iter(self.runs))


def judge(
    notebook: str,
    scale: str,
    results: xr.Dataset,
    size: Callable[[xr.Dataset], str],
    quantities: Quantities | None,
    stand_in: Callable[[xr.Dataset, str], str] = lambda results, claim: "",
) -> Found:
    """Judge a chapter's claims on its run and on the recorded one, and give both to the prose.

    The prose gets ``recorded``, where the recorded run comes from, and everything of `figures.glue_finding`, of this
    run with the suffix ``-live``.

    Args:
        notebook: the chapter's name.
        scale: of this run.
        results: of this run.
        size: says how large a run was, for titles.
        quantities: of results, for each claim the values of its quantities; None where no claim is tested.
        stand_in: says of results and a claim, where it is not the paper's data that tests it, what that is; see
            `claims.judge`.
    """
    recorded = records.kept(notebook)
    runs = {f"this run: {size(results)}": results}
    if recorded:
        runs = {f"recorded: {size(recorded.results)}": recorded.results} | runs

    def judged(results: xr.Dataset, scale: str) -> list[claims.Finding]:
        each = quantities(results) if quantities else {}
        return [claims.judge(name, values, scale, stand_in=stand_in(results, name)) for name, values in each.items()]

    live = judged(results, scale)
    kept = judged(recorded.results, "paper") if recorded else []
    for finding in live:
        figures.glue_finding(finding, "-live")
    for finding in kept or live:
        figures.glue_finding(finding)
    glue("recorded", recorded.line() if recorded else "No paper-scale run is recorded.", display=False)
    return Found(runs, recorded.results if recorded else results, recorded, live, kept)
