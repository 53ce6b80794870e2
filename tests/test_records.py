import dataclasses
import json

import numpy as np
import pytest
import xarray as xr

from ts_helpers.book.claims import Finding, Measured
from ts_helpers.book.paths import record_folder
from ts_helpers.book.records import FILES, Recorder, keep, kept, load

FINDING = Finding(
    "X1", "book", "partly", (Measured("a", 0.5, 0.4, 0.6, 100, None), Measured("b", None, None, None, 3, None))
)


KEPT_FINDING = dataclasses.replace(FINDING, claim="X2", scale="paper", verdict="reproduced")


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    monkeypatch.setenv("TS_RECORDS", str(tmp_path))
    return Recorder("doe2020/leak", "book", 3, "cpu", {"n_runs": None, "eta": 0.1}, {"n_runs": 100, "eta": 0.1})


def results(scale=1.0):
    values = scale * np.random.default_rng(0).normal(size=(4, 3))
    values[0, 0] = np.nan
    return xr.Dataset(
        {"loss": (("seed", "epoch"), values, {"units": "1", "long_name": "loss"})},
        coords={"epoch": ("epoch", [0, 10, 20], {"units": "epochs", "long_name": "epoch"})},
    )


def test_record_comes_back_as_it_was_saved(recorder):
    record = load(recorder.save(results(), [FINDING]))
    xr.testing.assert_identical(record.results, results())
    assert record.findings == {"X1": FINDING}
    assert record.kept_findings == {}
    assert record.provenance["parameters"] == {"n_runs": None, "eta": 0.1}
    assert record.provenance["settings"] == {"n_runs": 100, "eta": 0.1}
    assert {"commit", "dirty", "packages", "device", "threads", "start", "seconds"} <= set(record.provenance)


def test_same_results_give_the_same_bytes(recorder):
    path = recorder.save(results(), [FINDING])
    first = [(path / name).read_bytes() for name in FILES[:2]]
    recorder.save(results(), [FINDING])
    assert [(path / name).read_bytes() for name in FILES[:2]] == first


def test_a_new_record_takes_the_place_of_the_old(recorder):
    recorder.save(results(), [FINDING])
    path = recorder.save(results(2.0), [])
    assert load(path).findings == {}
    assert sorted(p.name for p in path.parent.iterdir()) == ["leak"]


@pytest.mark.parametrize("name", FILES)
def test_truncated_record_is_refused(recorder, name):
    path = recorder.save(results(), [FINDING])
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is truncated"):
        load(path)


def test_foreign_files_are_refused(recorder, tmp_path):
    path = recorder.save(results(), [FINDING])
    (path / "results.nc").write_bytes(b"not a NetCDF file")
    with pytest.raises(ValueError, match=r"results\.nc is truncated, or not the file"):
        load(path)
    (path / "provenance.json").write_text(json.dumps({"other": "project"}))
    with pytest.raises(ValueError, match="was not written by this project"):
        load(path)


def test_missing_record_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"is not a record: it has no results\.nc"):
        load(tmp_path)


def test_failed_save_leaves_the_old_record(recorder, monkeypatch):
    path = recorder.save(results(), [FINDING])
    monkeypatch.setattr(Recorder, "_provenance", lambda self: {"not json": object()})
    with pytest.raises(TypeError):
        recorder.save(results(2.0), [])
    assert load(path).findings == {"X1": FINDING}
    assert sorted(p.name for p in path.parent.iterdir()) == ["leak"]


def test_results_without_units_are_refused(recorder):
    bare = xr.Dataset({"loss": (("seed",), [1.0], {"long_name": "loss"})})
    with pytest.raises(ValueError, match="got 'loss' without"):
        recorder.save(bare, [])


def test_records_go_where_the_environment_says(recorder, tmp_path):
    assert record_folder("doe2020/leak") == tmp_path / "doe2020" / "leak"


def test_findings_of_the_kept_run_come_back_apart_from_those_of_this_one(recorder):
    record = load(recorder.save(results(), [FINDING], [KEPT_FINDING]))
    assert record.findings == {"X1": FINDING}
    assert record.kept_findings == {"X2": KEPT_FINDING}


@pytest.fixture
def paper(recorder, tmp_path, monkeypatch):
    """The folder of a record at scale paper, and an empty folder for what is kept."""
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    recorder.scale = "paper"
    return recorder.save(results(), [FINDING])


def test_kept_results_come_back_with_their_provenance(paper, tmp_path):
    assert kept("doe2020/leak") is None
    assert keep(paper) == tmp_path / "results" / "doe2020" / "leak.paper.nc"
    assert sorted(p.name for p in (tmp_path / "results" / "doe2020").iterdir()) == ["leak.paper.json", "leak.paper.nc"]
    back = kept("doe2020/leak")
    xr.testing.assert_identical(back.results, results())
    whole = load(paper).provenance
    assert back.provenance == whole | {"sha256": {"results.nc": whole["sha256"]["results.nc"]}}
    assert "scale paper: n_runs = 100, eta = 0.1, seed 3" in back.line()


def test_seconds_are_those_of_all_trainings_where_these_are_more(recorder):
    recorder.trained = 7200.0
    assert load(recorder.save(results(), [])).provenance["seconds"] == 7200
    recorder.trained = 0.0
    assert load(recorder.save(results(), [])).provenance["seconds"] < 60


def test_kept_results_make_way_for_new_ones(paper, recorder):
    keep(paper)
    keep(recorder.save(results(2.0), []))
    xr.testing.assert_identical(kept("doe2020/leak").results, results(2.0))


NAMED = ("arm", ["a"], {"long_name": "arm"})


def arm_record(recorder, tmp_path, name, only, offset):
    """A record of one arm, as `-p only` makes it."""
    recorder.scale, recorder.settings = "paper", {"n_seeds": 3, "only": only}
    one = results(offset).expand_dims("arm").assign_coords(arm=("arm", [name], {"long_name": "arm"}))
    return recorder.save(one, []).rename(tmp_path / f"{name} {offset}")


def test_arms_run_one_at_a_time_are_kept_together(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    wide, narrow = (arm_record(recorder, tmp_path, name, i, 1.0 + i) for i, name in enumerate(("wide", "narrow")))
    keep(wide, narrow)
    new = arm_record(recorder, tmp_path, "wide", 0, 7.0)
    keep(new)  # makes way for itself, and leaves the other
    keep(arm_record(recorder, tmp_path, "a third", 2, 3.0))
    back = kept("doe2020/leak")
    for arm, offset in (("wide", 7.0), ("narrow", 2.0), ("a third", 3.0)):
        for name, variable in results(offset).data_vars.items():
            np.testing.assert_array_equal(back.results[name].sel(arm=arm), variable)
    assert back.results.sizes["arm"] == 3
    parts = back.provenance["parts"]
    assert [part["settings"]["only"] for part in parts] == [0, 1, 2]
    assert [p["sha256"] for p in parts[:2]] == [load(f).provenance["sha256"] for f in (new, narrow)]
    assert back.provenance["settings"]["only"] is None


def test_several_whole_runs_are_not_kept_as_one(paper, tmp_path):
    with pytest.raises(ValueError, match="several records must be parts, run with -p only or -p only_run, got"):
        keep(paper, paper)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("part, along", [("only", "arm"), ("only_run", "seed")])
def test_part_of_a_run_that_cannot_be_joined_is_refused(recorder, tmp_path, part, along):
    recorder.scale, recorder.settings = "paper", {"n_seeds": 3, part: 0}
    made = results() if along == "arm" else results().expand_dims(arm=["a"]).assign_coords(arm=NAMED)
    with pytest.raises(ValueError, match=f"must have the coordinate {along} to be joined along"):
        keep(recorder.save(made, []))
    assert not (tmp_path / "results").exists()


def test_whole_run_is_not_joined_with_a_part(recorder, paper, tmp_path):
    whole = paper.rename(tmp_path / "whole")
    part = arm_record(recorder, tmp_path, "wide", 0, 1.0)
    with pytest.raises(ValueError, match="several records must be parts"):
        keep(part, whole)
    assert not (tmp_path / "results").exists()


def run_record(recorder, tmp_path, arm, run, offset, **settings):
    """A record of one run of one arm, as `-p only` and `-p only_run` make it."""
    recorder.scale = "paper"
    recorder.settings = {"n_seeds": 3, "only": "ab".index(arm), "only_run": run, "hours": 1.0 / (1 + run)} | settings
    one = results(offset).isel(seed=[run]).expand_dims("arm")
    one = one.assign_coords(
        arm=("arm", [arm], {"long_name": "arm"}), seed=("seed", [run], {"units": "1", "long_name": "run"})
    )
    return recorder.save(one, []).rename(tmp_path / f"{arm} {run} {offset}")


def test_runs_made_one_at_a_time_are_kept_together(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    keep(arm_record(recorder, tmp_path, "b", 1, 9.0))
    keep(run_record(recorder, tmp_path, "a", 2, 1.0), run_record(recorder, tmp_path, "a", 0, 2.0))
    keep(run_record(recorder, tmp_path, "a", 2, 3.0))  # makes way for itself, and leaves the other
    back = kept("doe2020/leak")
    for run, offset in ((0, 2.0), (1, np.nan), (2, 3.0)):
        loss = back.results.loss.sel(arm="a", seed=run)
        np.testing.assert_array_equal(loss, results(offset).loss[run])
    np.testing.assert_array_equal(back.results.loss.sel(arm="b"), results(9.0).loss)
    parts = back.provenance["parts"]
    assert [(p["settings"]["only"], p["settings"].get("only_run")) for p in parts] == [(0, 0), (0, 2), (1, None)]
    assert {"only", "only_run", "hours"} & set(back.line().replace(",", " ").split()) == set()


def test_run_is_added_to_a_whole_one_and_to_one_of_more_runs(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    recorder.scale, recorder.settings = "paper", {"n_seeds": 3}
    keep(recorder.save(results(5.0).expand_dims(arm=["a"]).assign_coords(arm=NAMED), []))
    whole = kept("doe2020/leak").provenance
    keep(run_record(recorder, tmp_path, "a", 2, 1.0, n_seeds=4))
    back = kept("doe2020/leak")
    for run, offset in enumerate((5.0, 5.0, 1.0, 5.0)):
        np.testing.assert_array_equal(back.results.loss.sel(arm="a", seed=run), results(offset).loss[run])
    assert [part["sha256"] for part in back.provenance["parts"]][1:] == [whole["sha256"]]
    assert "n_seeds = 4 or 3, " in back.line()


def test_run_of_other_settings_replaces_nothing_and_all_runs_of_an_arm_do(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    file = keep(*(run_record(recorder, tmp_path, "a", run, 1.0, n_steps=10) for run in (0, 1)))
    before = file.read_bytes()
    for how in ({"n_steps": 20}, {"lr": 0.1, "n_steps": 10}):
        with pytest.raises(ValueError, match=f"the settings of what is kept of its arm, .* others: {next(iter(how))};"):
            keep(run_record(recorder, tmp_path, "a", 2, 1.0 + len(how), **how))
    assert file.read_bytes() == before
    keep(arm_record(recorder, tmp_path, "a", 0, 9.0))
    back = kept("doe2020/leak")
    np.testing.assert_array_equal(back.results.loss.sel(arm="a"), results(9.0).loss)
    assert [part["settings"].get("n_steps") for part in back.provenance["parts"]] == [None]


@pytest.mark.parametrize("scale", ["smoke", "book"])
def test_only_a_paper_scale_run_is_kept(recorder, paper, tmp_path, scale):
    recorder.scale = scale
    with pytest.raises(ValueError, match=f"records must be of one notebook at scale paper, got .* at scale {scale}"):
        keep(recorder.save(results(), [FINDING]))
    assert not (tmp_path / "results").exists()


def test_damaged_record_is_not_kept(paper, tmp_path):
    (paper / "results.nc").write_bytes(b"")
    with pytest.raises(ValueError, match=r"results\.nc is truncated"):
        keep(paper)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["leak.paper.nc", "leak.paper.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "foreign"])
def test_kept_pair_that_does_not_belong_together_is_refused(paper, recorder, name, damage):
    file = keep(paper).with_name(name)
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "foreign":
        recorder.save(results(2.0), [])
        made = json.loads((paper / "provenance.json").read_text())
        file.write_bytes((paper / "results.nc").read_bytes() if name.endswith("nc") else json.dumps(made).encode())
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"")
    with pytest.raises(ValueError, match=r"leak\.paper\.nc and leak\.paper\.json do not belong together"):
        kept("doe2020/leak")


def test_keeping_that_is_cut_short_leaves_no_pair_taken_for_whole(paper, recorder, monkeypatch):
    keep(paper)
    new = recorder.save(results(2.0), [])

    def cut(source, target):
        target.write_bytes(source.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("ts_helpers.book.records.shutil.copyfile", cut)
    with pytest.raises(KeyboardInterrupt):
        keep(new)
    with pytest.raises(ValueError, match="do not belong together"):
        kept("doe2020/leak")
