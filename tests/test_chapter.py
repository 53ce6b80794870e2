"""What a chapter's object does, and the numbers in a chapter's prose."""

import nbformat.v4 as nb
import numpy as np
import pytest
import torch
import xarray as xr

from ts_helpers.book import chapter as module
from ts_helpers.book.chapter import Chapter, median, share, span
from ts_helpers.book.inline import expand
from ts_helpers.book.records import Record, load

MADE = dict(scale="paper", settings={}, seed=0, commit="a" * 40, device="CPU", seconds=3600)


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What is given to the prose, where records and checkpoints lie in a folder of their own."""
    given = {}
    monkeypatch.setattr(module, "glue", lambda name, value, display: given.update({name: value}))
    monkeypatch.setattr(module, "checkpoint_folder", lambda name, scale: tmp_path / "checkpoints" / scale)
    monkeypatch.setenv("TS_RECORDS", str(tmp_path))
    return given


def chapter(scale="book", device="cpu", **parameters):
    settings = dict(n=(1, 10, 100), tau=2.0, unused=(1, 2, 3))
    return Chapter("doe2020/leak", dict(scale=scale, seed=3, device=device, n=None, **parameters), **settings)


def results(n, good, **attrs):
    """Runs of the oscillator's first task, of which some succeed."""
    of = dict(ok=("seed", np.arange(n) < good, "success"), loss=("seed epoch", np.zeros((n, 2)), "loss", "steps"))
    return chapter().dataset(of, dict(epoch=([0, 10], "epoch", "epochs"), seed=([*range(n)], "run")), **attrs)


def outputs_match(results):
    return results.ok.values.astype(float)


QUANTITIES = {"C2": {"taus_recovered": outputs_match, "outputs_match": outputs_match}}


def judge(results, quantities=QUANTITIES, **more):
    return chapter().judge(results, lambda r: f"{r.sizes['seed']} runs", quantities, **more)


def test_settings_are_those_of_the_scale_unless_a_parameter_is_given(told):
    assert vars(chapter().settings) == {"n": 10, "tau": 2.0, "unused": 2}
    assert vars(chapter("paper", tau=0.5).settings) == {"n": 100, "tau": 0.5, "unused": 3}
    with pytest.raises(ValueError, match="scale must be one of smoke, book, paper, got 'huge'"):
        chapter("huge")
    with pytest.raises(ValueError, match=r"n must have a value for each of smoke, book, paper, got \(1, 2\)"):
        Chapter("doe2020/leak", dict(scale="book", seed=0, device="cpu"), n=(1, 2))


def test_device_is_the_one_asked_for_or_refused(told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chapter(device="auto").device == torch.device("cpu")
    for name in ("cuda", "tpu"):
        with pytest.raises(ValueError, match=f"device must be .*, got '{name}'"):
            chapter(device=name)


def test_dataset_is_labelled_and_its_numbers_have_units(told):
    made = results(3, 2, data="gold")
    assert made.loss.dims == ("seed", "epoch")
    assert made.loss.attrs == {"units": "steps", "long_name": "loss"}
    assert (made.ok.attrs["units"], made.epoch.attrs["units"], made.attrs) == ("1", "epochs", {"data": "gold"})
    text = chapter().dataset({"arm": (["a"], "arm")})
    assert (text.arm.dims, text.arm.attrs) == (("arm",), {"long_name": "arm"})


def test_verdicts_rest_on_the_recorded_run_where_there_is_one(told, monkeypatch):
    live = results(100, 100)
    found = judge(live)
    assert (found.best, found.recorded, found.title) == (live, None, "this run: 100 runs")
    assert told["C2-verdict"] == told["C2-verdict-live"] == "reproduced"
    assert told["recorded"] == "No paper-scale run is recorded."
    record = Record(results(200, 0), MADE)
    monkeypatch.setattr(module.records, "archived", lambda notebook: record)
    found = judge(live)
    assert list(found.runs) == ["recorded: 200 runs", "this run: 100 runs"]
    assert found.best is record.results
    assert [f.verdict for f in (*found.live, *found.archived)] == ["reproduced", "not reproduced"]
    assert (told["C2-verdict"], told["C2-verdict-live"]) == ("not reproduced", "reproduced")
    assert told["C2-outputs_match"].startswith("0\N{NO-BREAK SPACE}%")
    assert told["recorded"] == record.line()


def test_each_run_is_judged_by_its_own_data(told, monkeypatch):
    record = Record(results(200, 200, data="gold"), MADE)
    monkeypatch.setattr(module.records, "archived", lambda notebook: record)
    says = {"gold": "", "pebbles": "pebbles, not the gold of {}"}
    judge(results(100, 100, data="pebbles"), stand_in=lambda r, claim: says[r.attrs["data"]].format(claim))
    assert told["C2-verdict"] == "reproduced"
    assert told["C2-verdict-live"] == "inconclusive (pebbles, not the gold of C2)"


def test_quantity_is_named_by_its_function(told):
    with pytest.raises(ValueError, match="C2 has the quantities taus_recovered, outputs_match, got outputs_match"):
        judge(results(3, 3), {"C2": [outputs_match]})
    assert judge(results(3, 3), None).live == []


def test_record_is_saved_with_its_settings_and_checkpoints_go_when_all_is_trained(told, tmp_path):
    one, made = chapter(tau=0.5), results(3, 3)
    one.judge(made, lambda r: "", QUANTITIES)
    one.checkpoints.mkdir(parents=True)
    one.save(trained=7200.0, whole=False)
    assert one.checkpoints.exists()
    record = load(tmp_path / "doe2020" / "leak")
    xr.testing.assert_identical(record.results, made)
    assert [*record.findings] == ["C2"]
    assert record.provenance["parameters"] == {"n": None, "tau": 0.5}
    assert record.provenance["settings"] == vars(one.settings)
    assert (record.provenance["seed"], record.provenance["threads"], record.provenance["seconds"]) == (3, 1, 7200)
    one.save(made[["ok"]])
    assert not one.checkpoints.exists()
    assert load(tmp_path / "doe2020" / "leak").provenance["seconds"] < 60


def test_numbers_over_runs_read_well():
    assert (median([1, np.nan, 3], ".1f"), span([5, np.inf, 2], "g"), share([True, False])) == (
        "2.0",
        "2 to 5",
        "1 of 2",
    )
    assert median([np.nan], ".1f") == span([], ".1f") == "none"


def expanded(*texts):
    """Cells of the notebook of these texts, and what its code gives to the prose."""
    made = expand(nb.new_notebook(cells=[nb.new_markdown_cell(text) for text in texts])).cells
    given = {}
    code = "\n".join(cell.source for cell in made if cell.cell_type == "code").replace("from myst_nb import glue", "")
    exec(code, {"glue": lambda name, value, display: given.update({name: value}), "tau": 2.5, "words": {"a": "b"}})
    return made, given


def test_prose_has_the_values_of_its_expressions_where_they_stand():
    made, given = expanded("50 %: {eval}`tau:.2f` {eval}`2 * tau`", "None {eval.", 'Then {eval}`words["a"]`.')
    assert [cell.cell_type for cell in made] == ["code", "markdown", "markdown", "code", "markdown"]
    assert made[1].source == "50 %: {glue:text}`eval-0` {glue:text}`eval-1`"
    assert (made[2].source, made[4].source) == ("None {eval.", "Then {glue:text}`eval-2`.")
    assert given == {"eval-0": "2.50", "eval-1": "5.0", "eval-2": "b"}
    assert made[0].metadata["tags"] == ["remove-cell"]


def test_expression_that_fails_is_named():
    with pytest.raises(NameError, match="nosuch"):
        expanded("{eval}`nosuch`")
