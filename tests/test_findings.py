import numpy as np
import pytest
import xarray as xr

from ts_helpers.book import findings
from ts_helpers.book.records import Kept


@pytest.fixture
def told(monkeypatch):
    """What is given to the prose."""
    given = {}
    monkeypatch.setattr(findings, "glue", lambda name, value, display: given.update({name: value}))
    monkeypatch.setattr(findings.figures, "glue", lambda name, value, display: given.update({name: value}))
    return given


def results(n, good):
    """Runs of the oscillator's first task, of which some succeed."""
    return xr.Dataset({"ok": ("seed", np.arange(n) < good)})


def quantities(results):
    values = results.ok.values.astype(float)
    return {"C2": {"taus_recovered": values, "outputs_match": values}}


def judge(results, of=quantities, **more):
    return findings.judge("doe2020/leak", "book", results, lambda r: f"{r.sizes['seed']} runs", of, **more)


def test_verdicts_rest_on_the_recorded_run(told, monkeypatch):
    made = dict(scale="paper", settings={}, seed=0, commit="a" * 40, device="CPU", seconds=3600)
    kept = Kept(results(200, 0), made)
    monkeypatch.setattr(findings.records, "kept", lambda notebook: kept)
    found = judge(results(100, 100))
    assert list(found.runs) == ["recorded: 200 runs", "this run: 100 runs"]
    assert found.best is kept.results
    assert [f.verdict for f in found.live] == ["reproduced"]
    assert [f.verdict for f in found.kept] == ["not reproduced"]
    assert (told["C2-verdict"], told["C2-verdict-live"]) == ("not reproduced", "reproduced")
    assert told["recorded"] == kept.line()


def test_each_run_is_judged_by_its_own_data(told, monkeypatch):
    made = dict(scale="paper", settings={}, seed=0, commit="a" * 40, device="CPU", seconds=3600)
    kept = Kept(results(200, 200).assign_attrs(data="gold"), made)
    monkeypatch.setattr(findings.records, "kept", lambda notebook: kept)
    judge(
        results(100, 100).assign_attrs(data="pebbles"),
        stand_in=lambda r, claim: (
            "" if r.attrs["data"] == "gold" else f"the data is {r.attrs['data']}, not the gold of {claim}"
        ),
    )
    assert told["C2-verdict"] == "reproduced"
    assert told["C2-verdict-live"] == "inconclusive (the data is pebbles, not the gold of C2)"


def test_without_a_recorded_run_verdicts_rest_on_this_one(told):
    live = results(100, 100)
    found = judge(live)
    assert found.best is live
    assert found.kept == []
    assert found.recorded is None
    assert told["C2-verdict"] == told["C2-verdict-live"] == "reproduced"
    assert told["recorded"] == "No paper-scale run is recorded."


def test_chapter_without_claims_has_no_findings(told):
    found = judge(results(3, 3), of=None)
    assert found.live == found.kept == []
    assert set(told) == {"recorded"}
