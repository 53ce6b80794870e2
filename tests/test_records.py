import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ts_helpers.book.claims import Finding, Measured
from ts_helpers.book.paths import RECORD, RESULTS, ROOT, digest, record_folder
from ts_helpers.book.records import archived, load, put, save

FINDING = Finding(
    "X1", "book", "partly", (Measured("a", 0.5, 0.4, 0.6, 100, None), Measured("b", None, None, None, 3, None))
)
OF_ARCHIVE = dataclasses.replace(FINDING, claim="X2", scale="paper", verdict="reproduced")


class Recorder:
    """Saves results as they are said to have been made."""

    scale, settings, parameters = "book", {"n_runs": 100, "eta": 0.1}, {"n_runs": None, "eta": 0.1}

    def save(self, results, findings=(), archived=()):
        made = dict(notebook="doe2020/leak", scale=self.scale, seed=3, device="CPU", start="now", threads=1)
        made |= dict(seconds=36.0, commit=None, dirty=None, data={}, checkpoints=["a.pt"])
        return save(made | dict(parameters=self.parameters, settings=self.settings), results, findings, archived)


def archive(folder):
    return put(folder / "results.nc", load(folder).provenance)


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    monkeypatch.setenv("TS_RECORDS", str(tmp_path))
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    return Recorder()


@pytest.fixture
def paper(recorder):
    """The folder of a record at scale paper."""
    recorder.scale = "paper"
    return recorder.save(results(), [FINDING])


def results(scale=1.0):
    values = scale * np.random.default_rng(0).normal(size=(4, 3))
    values[0, 0] = np.nan
    return xr.Dataset(
        {"loss": (("seed", "epoch"), values, {"units": "1", "long_name": "loss"})},
        coords={"epoch": ("epoch", [0, 10, 20], {"units": "epochs", "long_name": "epoch"})},
    )


def test_record_comes_back_as_it_was_saved(recorder, tmp_path):
    path = recorder.save(results(), [FINDING], [OF_ARCHIVE])
    assert path == record_folder("doe2020/leak") == tmp_path / "doe2020" / "leak"
    record = load(path)
    xr.testing.assert_identical(record.results, results())
    assert (record.findings, record.archived) == ({"X1": FINDING}, {"X2": OF_ARCHIVE})
    assert record.provenance["parameters"] == {"n_runs": None, "eta": 0.1}
    assert record.provenance["settings"] == {"n_runs": 100, "eta": 0.1}
    assert {"packages", "device", "seconds"} <= set(record.provenance)
    assert ", commit unknown, CPU" in record.line()


def test_same_results_give_the_same_bytes_and_a_new_record_takes_the_place_of_the_old(recorder):
    path = recorder.save(results(), [FINDING])
    first = [(path / name).read_bytes() for name in RECORD[:2]]
    assert load(recorder.save(results(2.0))).findings == {}
    recorder.save(results(), [FINDING])
    assert [(path / name).read_bytes() for name in RECORD[:2]] == first
    assert [p.name for p in path.parent.iterdir()] == ["leak"]


def test_record_that_is_truncated_foreign_or_missing_is_refused_by_name(recorder, tmp_path):
    path = recorder.save(results(), [FINDING])
    for name in RECORD:
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"{name} is truncated"):
            load(path)
        (path / name).write_bytes(whole)
    (path / "results.nc").write_bytes(b"not a NetCDF file")
    with pytest.raises(ValueError, match=r"results\.nc is truncated, or not the file"):
        load(path)
    (path / "provenance.json").write_text(json.dumps({"other": "project"}))
    with pytest.raises(ValueError, match="was not written by this project"):
        load(path)
    with pytest.raises(ValueError, match=r"is not a record: it has no results\.nc"):
        load(tmp_path)


def own(folder):
    """A picture and a folder of a reader's, and what a file manager leaves."""
    (folder / "talk").mkdir(parents=True)
    for name in ("plot.png", "talk/slides.txt", ".DS_Store"):
        (folder / name).write_text("mine")
    return lambda: all((folder / name).read_text() == "mine" for name in ("plot.png", "talk/slides.txt", ".DS_Store"))


@pytest.mark.parametrize("before", ["a record", "no record"])
def test_new_record_leaves_what_else_lies_in_its_folder(recorder, tmp_path, before):
    is_there = own(tmp_path / "doe2020" / "leak")
    if before == "a record":
        recorder.save(results(), [FINDING])
    path = recorder.save(results(2.0))
    xr.testing.assert_identical(load(path).results, results(2.0))
    assert is_there()


@pytest.mark.parametrize(
    ("name", "recorded"), [*((name, recorded) for name in RECORD for recorded in (False, True)), (".", False)]
)
def test_what_the_book_did_not_make_or_was_changed_is_in_the_way_by_name_and_stays(recorder, tmp_path, name, recorded):
    if recorded:
        recorder.save(results())
    file = tmp_path / "doe2020" / "leak" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=re.escape(f"{file} is in the way of the record of doe2020/leak")):
        recorder.save(results(2.0))
    assert file.read_text() == "mine"


@pytest.mark.parametrize("before", ["a record", "no record"])
@pytest.mark.parametrize("renames", range(3))
def test_record_whose_writing_was_cut_short_is_whole_or_none_and_the_next_takes_its_place(
    recorder, tmp_path, monkeypatch, renames, before
):
    is_there, replace, done = own(tmp_path / "doe2020" / "leak"), Path.replace, []
    path = recorder.save(results()) if before == "a record" else record_folder("doe2020/leak")

    def cut(source, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(source)
        return replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", cut)
        recorder.save(results(2.0), [FINDING])
    with pytest.raises(ValueError, match=r"is not a record: it has no .*provenance\.json"):
        load(path)
    if renames:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # again, sooner
            done.clear()
            renames = 0
            patch.setattr(Path, "replace", cut)
            recorder.save(results(4.0))
    xr.testing.assert_identical(load(recorder.save(results(3.0))).results, results(3.0))
    assert is_there()
    assert [p.name for p in path.parent.iterdir()] == ["leak"]


def test_two_that_save_at_once_leave_the_record_of_one(recorder):
    with ThreadPoolExecutor(2) as pool:
        *_, path = pool.map(recorder.save, [results(n) for n in range(8)])
    assert any(load(path).results.identical(results(n)) for n in range(8))
    assert [p.name for p in path.parent.iterdir()] == ["leak"]


def test_failed_save_leaves_the_old_record(recorder):
    path = recorder.save(results(), [FINDING])
    recorder.settings = {"not json": object()}
    with pytest.raises(TypeError):
        recorder.save(results(2.0))
    assert load(path).findings == {"X1": FINDING}
    assert [p.name for p in path.parent.iterdir()] == ["leak"]


def edited(path, name, change):
    """The folder of a record, one file of which is another's that fits in all digests."""
    file, made = path / name, json.loads((path / "provenance.json").read_text())
    if name == "results.nc":
        file.write_bytes(change)
    else:
        content = made if name == "provenance.json" else json.loads(file.read_text())
        file.write_text(json.dumps(change(content)))
    if name != "provenance.json":
        made["sha256"][name] = digest(file)
        (path / "provenance.json").write_text(json.dumps(made))
    return path


def in_finding(**change):
    return lambda lists: lists | {"findings": [lists["findings"][0] | change]}


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("provenance.json", lambda made: [made], ""),
        ("provenance.json", lambda made: {"sha256": made["sha256"]}, "it has no commit, device, .*, threads"),
        *(("provenance.json", lambda made, c=change: made | c, f"{next(iter(change))} must be .*, got ")
          for change in (dict(notebook="/doe2020/leak"), dict(notebook="../leak"))),
        ("claims.json", lambda lists: [], ""),
        ("claims.json", lambda lists: {"findings": []}, "kept_findings"),
        ("claims.json", in_finding(mood="good"), "unexpected keyword argument 'mood'"),
        ("claims.json", in_finding(measured=[{"name": "a"}]), "missing .* 'estimate'"),
        ("results.nc", b"not a NetCDF file", ""),
    ],
)  # fmt: skip
def test_record_that_this_project_did_not_write_is_refused_by_file_and_rule(recorder, name, change, rule):
    path = edited(recorder.save(results(), [FINDING]), name, change)
    with pytest.raises(
        ValueError, match=rf"{re.escape(name)} is truncated, or was not written by this project: .*{rule}"
    ):
        load(path)


def test_every_archived_record_is_read_and_nothing_else_that_lies_there(recorder, monkeypatch, paper):
    archive(paper)
    own(record_folder("results/doe2020"))
    assert archived("doe2020/leak")
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", RESULTS)
    names = [file.relative_to(RESULTS).as_posix().removesuffix(".paper.nc") for file in RESULTS.rglob("*.paper.nc")]
    assert len(names) > 10
    lines = [archived(name).line() for name in names]
    assert all(line.startswith("Recorded at scale paper: ") and "[" not in line for line in lines)


def test_nothing_that_is_read_could_run_code():
    texts = [file.read_text() for top in ("ts_helpers", "notebooks") for file in (ROOT / top).rglob("*.[pm][yd]")]
    assert len(texts) > 60
    assert not [t for t in texts if re.search(r"\bpickle\.|import pickle|weights_only=False|allow_pickle=True", t)]
    assert not [t for t in texts if re.search(r"torch\.load\((?!.*weights_only=True)", t)]


def test_results_without_units_are_refused(recorder):
    with pytest.raises(ValueError, match="got 'loss' without"):
        recorder.save(xr.Dataset({"loss": (("seed",), [1.0], {"long_name": "loss"})}))


def test_archived_results_come_back_with_their_provenance_until_new_ones_replace_them(recorder, paper, tmp_path):
    assert archived("doe2020/leak") is None
    assert archive(paper) == tmp_path / "results" / "doe2020" / "leak.paper.nc"
    back, whole = archived("doe2020/leak"), load(paper).provenance
    assert whole.pop("checkpoints")
    xr.testing.assert_identical(back.results, results())
    assert back.provenance == whole | {"sha256": {"results.nc": whole["sha256"]["results.nc"]}}
    assert "scale paper: n_runs = 100; eta = 0.1; seed 3" in back.line()
    archive(recorder.save(results(2.0)))
    xr.testing.assert_identical(archived("doe2020/leak").results, results(2.0))


def test_what_is_damaged_is_not_archived(paper, tmp_path):
    (paper / "results.nc").write_bytes(b"")
    with pytest.raises(ValueError, match=r"results\.nc is truncated"):
        archive(paper)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["leak.paper.nc", "leak.paper.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "foreign"])
def test_archived_pair_that_does_not_belong_together_is_refused(paper, recorder, name, damage):
    file = archive(paper).with_name(name)
    whole = file.read_bytes()
    recorder.save(results(2.0))
    foreign = paper / ("results.nc" if name.endswith("nc") else "provenance.json")
    file.write_bytes({"truncated": whole[: len(whole) // 2], "foreign": foreign.read_bytes()}.get(damage, b""))
    if damage == "missing":
        file.unlink()
    with pytest.raises(ValueError, match=r"leak\.paper\.nc and leak\.paper\.json do not belong together"):
        archived("doe2020/leak")


def test_archiving_that_is_cut_short_leaves_no_pair_taken_for_whole(paper, recorder, monkeypatch):
    archive(paper)
    new = recorder.save(results(2.0))

    def cut(source, target):
        target.write_bytes(source.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("ts_helpers.book.records.shutil.copyfile", cut)
    with pytest.raises(KeyboardInterrupt):
        archive(new)
    with pytest.raises(ValueError, match="do not belong together"):
        archived("doe2020/leak")
