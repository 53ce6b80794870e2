"""What a chapter's object does, and the numbers in a chapter's prose."""

import hashlib
import os
import subprocess

import nbformat.v4 as nb
import numpy as np
import pytest
import torch
import xarray as xr

from ts_helpers import _checkpoint
from ts_helpers.book import chapter as module
from ts_helpers.book.chapter import Chapter, median, share, span
from ts_helpers.book.records import Record, load
from ts_helpers.book.run import Job, expand, find


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What is given to the prose, where records and checkpoints lie in a folder of their own."""
    given = {}
    monkeypatch.setattr(module, "glue", lambda name, value, display: given.update({name: value}))
    monkeypatch.setattr(module, "checkpoint_folder", lambda name, scale: tmp_path / "checkpoints" / scale / name)
    monkeypatch.setenv("TS_RECORDS", str(tmp_path))
    return given


def chapter(scale="book", device="cpu", n=(1, 10, 100), **parameters):
    return Chapter("doe2020/leak", dict(scale=scale, seed=3, device=device, n=None, **parameters), n=n, tau=2.0)


def results(n, good, **attrs):
    """Runs of the oscillator's first task, of which some succeed."""
    of = dict(ok=("seed", np.arange(n) < good, "success"), loss=("seed epoch", np.zeros((n, 2)), "loss", "steps"))
    return chapter().dataset(of, dict(epoch=([0, 10], "epoch", "epochs"), arm=("arm", ["a"], "arm")), **attrs)


def outputs_match(results):
    return results.ok.values.astype(float)


def judge(results, quantities=None, of=None, **more):
    quantities = quantities or {"C2": {"taus_recovered": outputs_match, "outputs_match": outputs_match}}
    return (of or chapter()).judge(results, lambda r: f"{r.sizes['seed']} runs", quantities, **more)


@pytest.fixture
def recorded(monkeypatch):
    """A recorded run that fails."""
    made = dict(scale="paper", settings={}, seed=0, commit="a" * 40, device="CPU", seconds=3600)
    record = Record(results(200, 0, data="gold"), made)
    monkeypatch.setattr(module.records, "archived", lambda notebook: record)
    return record


def test_settings_are_those_of_the_scale_unless_a_parameter_is_given(told):
    assert vars(chapter().settings) == {"n": 10, "tau": 2.0}
    assert vars(chapter("paper", tau=0.5).settings) == {"n": 100, "tau": 0.5}
    with pytest.raises(ValueError, match="scale must be one of smoke, book, paper, got 'huge'"):
        chapter("huge")
    with pytest.raises(ValueError, match=r"n must have a value for each of smoke, book, paper, got \(1, 2\)"):
        chapter(n=(1, 2))
    for value in (np.ones(2), float("inf"), {1}):
        with pytest.raises(ValueError, match="rate must be what JSON can hold, got "):
            Chapter("doe2020/leak", dict(scale="book", seed=3, device="cpu"), rate=value)


def test_device_is_the_one_asked_for_or_refused(told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chapter(device="auto").device == torch.device("cpu")
    for name in ("cuda", "tpu"):
        with pytest.raises(ValueError, match=f"device must be .*, got '{name}'"):
            chapter(device=name)


def test_dataset_is_labelled_and_its_numbers_have_units(told):
    made = results(3, 2, data="gold")
    assert (made.loss.dims, made.loss.attrs) == (("seed", "epoch"), {"units": "steps", "long_name": "loss"})
    assert (made.ok.attrs["units"], made.epoch.attrs["units"]) == ("1", "epochs")
    assert (made.arm.attrs, made.attrs) == ({"long_name": "arm"}, {"data": "gold"})


def test_verdicts_rest_on_this_run_where_none_is_recorded(told):
    found = judge(live := results(100, 100))
    assert (found.best, found.recorded, found.title) == (live, None, "this run: 100 runs")
    assert found.which == "the run of this page (100 runs)"
    assert told["C2-verdict"] == told["C2-verdict-live"] == "reproduced"
    assert told["recorded"] == "No paper-scale run is recorded."


def test_verdicts_rest_on_the_recorded_run_and_each_is_judged_by_its_own_data(told, recorded):
    says = {"gold": "", "pebbles": "pebbles, not the gold of {}"}
    live = results(100, 100, data="pebbles")
    found = judge(live, of=(one := chapter()), stand_in=lambda r, claim: says[r.attrs["data"]].format(claim))
    assert (list(found.runs), found.best) == (["recorded: 200 runs", "this run: 100 runs"], recorded.results)
    assert found.which == "the recorded run (200 runs)"
    assert [f.verdict for findings in one.judged for f in findings] == ["inconclusive", "not reproduced"]
    assert told["C2-verdict-live"] == "inconclusive (pebbles, not the gold of C2)"
    assert told["C2-verdict"] == "not reproduced"
    assert told["C2-outputs_match"].startswith("0\N{NO-BREAK SPACE}%")
    assert told["recorded"] == recorded.line()


def test_quantity_is_named_by_its_function(told):
    with pytest.raises(ValueError, match="C2 has the quantities taus_recovered, outputs_match, got outputs_match"):
        judge(results(3, 3), {"C2": [outputs_match]})


def test_record_is_saved_with_its_settings_and_seconds_by_themselves(told, tmp_path):
    one, made = chapter(tau=0.5), results(3, 3)
    judge(made.assign(seconds=("seed", [7200.0, np.nan, 1.0])), of=one)
    one.save()
    record = load(tmp_path / "doe2020" / "leak")
    xr.testing.assert_identical(record.results, made)
    assert record.provenance["seconds"] == 7201
    assert [*record.findings] == ["C2"]
    assert record.provenance["parameters"] == {"n": None, "tau": 0.5}
    assert record.provenance["settings"] == vars(one.settings)
    assert {"seed", "device", "threads", "start"} <= set(record.provenance)
    one.save(made)
    assert load(tmp_path / "doe2020" / "leak").provenance["seconds"] < 60


def written(folder, name):
    _checkpoint.write(folder / f"{name}.pt", {"measured": {}})
    (folder / f".{name}.1.pt").touch()  # as left by one that was killed
    return [f".{name}.1.pt", f"{name}.pt"]


def test_checkpoints_of_this_run_go_when_all_is_trained_and_no_others(told, monkeypatch):
    one = Chapter("doe2020/leak", dict(scale="book", seed=3, device="cpu"))
    others = written(one.checkpoints, "other seed")
    monkeypatch.setattr(_checkpoint, "TOUCHED", touched := set())  # that was another process
    monkeypatch.setattr(module, "TOUCHED", touched)
    written(one.checkpoints, "mine")
    written(one.checkpoints, "read")
    touched.clear()
    assert _checkpoint.read(one.checkpoints / "read.pt", torch.device("cpu"))
    written(one.checkpoints, "mine")
    (one.checkpoints / "mine.damaged").touch()
    one.save(results(3, 3))
    left = sorted(file.name for file in one.checkpoints.iterdir())
    assert left == sorted([*others, "mine.damaged"])


def test_checkpoints_are_left_to_the_runner_which_is_told_their_names(told, tmp_path, monkeypatch):
    monkeypatch.setenv("TS_CHECKPOINTS", "somewhere")
    written((one := chapter()).checkpoints, "mine")
    one.save(results(3, 3))
    assert (one.checkpoints / "mine.pt").exists()
    assert load(tmp_path / "doe2020" / "leak").provenance["checkpoints"] == ["mine.pt"]


def test_empty_folder_of_checkpoints_goes(told):
    written((one := chapter()).checkpoints, "mine")
    one.save(results(3, 3))
    assert not one.checkpoints.exists()


def test_a_choice_left_open_has_a_verdict_for_each_value_beside_the_main_one(told, recorded, tmp_path):
    picks = {"the first hundred": lambda r: r.isel(seed=slice(100)), "few": lambda r: r.isel(seed=slice(3))}
    judge(results(200, 100), of=(one := chapter()), over={"C2": picks})
    one.save()
    [finding] = load(tmp_path / "doe2020" / "leak").findings.values()
    assert finding.verdict == "not reproduced"
    assert finding.over["the first hundred"].startswith("reproduced: 100\N{NO-BREAK SPACE}%")
    assert finding.over["few"].startswith("inconclusive (3 seeds, the claim asks for 100): ")


def test_copy_under_another_name_leaves_its_own_record_and_is_judged_as_the_original(told, tmp_path, monkeypatch):
    chapter().save(results(3, 3))
    asked = []
    monkeypatch.setattr(module.records, "archived", asked.append)
    monkeypatch.setenv("TS_NOTEBOOK", "mine/my leak")
    judge(results(2, 2), of=(copy := chapter()))
    copy.save()
    assert (asked, copy.name) == (["doe2020/leak"], "doe2020/leak")
    assert copy.checkpoints == tmp_path / "checkpoints" / "book" / "mine" / "my leak"
    for name, n in (("doe2020/leak", 3), ("mine/my leak", 2)):
        record = load(tmp_path / name)
        assert (record.provenance["notebook"], record.results.sizes["seed"]) == (name, n)


def test_record_names_the_data_that_parameters_name_and_their_digests(told, tmp_path):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "train").write_bytes(b"one")
    (own := tmp_path / "own.npy").write_bytes(b"two")
    given = dict(own=str(own), images=str(folder), kind="digits", none=None)
    one = Chapter("doe2020/leak", dict(scale="book", seed=3, device="cpu", **given), **dict.fromkeys(given))
    own.unlink()  # it is read at the start, as by the run
    one.save(results(3, 3))
    made = load(tmp_path / "doe2020" / "leak").provenance
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    assert made["data"] == {"own": {"own.npy": two}, "images": {"train": one}}
    assert made["parameters"] == given


@pytest.mark.parametrize(
    ("case", "known", "dirty"),
    [
        ("by hand", True, None),
        ("as committed", True, False),
        ("changed", True, True),
        ("new notebook", True, True),
        ("new helper", True, True),
        ("new file beside", True, False),
        ("unpacked in another repository", False, None),
        ("no git", False, None),
    ],
)
def test_record_names_a_commit_only_if_it_is_the_books(told, tmp_path, monkeypatch, case, known, dirty):
    root = tmp_path / "checkout"
    for name in ("notebooks/doe2020/leak.md", "ts_helpers/cells.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    top = tmp_path if case == "unpacked in another repository" else root
    git = ["git", "-C", top, "-c", "user.name=Doe", "-c", "user.email=doe@example.org"]
    added = "ts_helpers" if case == "new notebook" else "."
    for words in (["init", "-q"], ["add", added], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    written = {"changed": "ts_helpers/cells.py", "new helper": "ts_helpers/new.py", "new file beside": "notes.txt"}
    if case in written:
        (root / written[case]).write_text("new")
    monkeypatch.setattr(module.records, "ROOT", root)
    if case != "by hand":
        monkeypatch.setenv("TS_NOTEBOOK", "doe2020/leak")
    if case == "no git":
        monkeypatch.setenv("PATH", "")
    chapter().save(results(3, 3))
    made = load(tmp_path / "doe2020" / "leak").provenance
    assert (made["dirty"], made["commit"] is not None) == (dirty, known)
    if known:
        assert made["commit"] == subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()


@pytest.mark.parametrize("name", find([]))
def test_every_parameter_of_a_chapter_is_in_its_record(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TS_RECORDS", str(tmp_path))
    names, default, threads = {}, torch.get_default_dtype(), torch.get_num_threads()
    for cell in Job(name).notebook.cells:
        if cell.cell_type == "code" and "chapter" not in names:
            exec(cell.source, names)
    torch.set_default_dtype(default)
    torch.set_num_threads(threads)
    assert set(Job(name).declared) == {*names["chapter"].given, "scale", "seed", "device"}


def test_arms_are_joined_along_a_labelled_dimension(told):
    arms = {name: results(3, n).drop_vars("arm").assign_coords(epoch=[0, n]) for n, name in ((1, "a"), (2, "b"))}
    joined = chapter().concat(arms, "what differs")
    assert (joined.arm.values.tolist(), joined.arm.attrs) == (["a", "b"], {"long_name": "what differs"})
    assert (joined.ok.dims, joined.loss.shape) == (("arm", "seed"), (2, 3, 3))


def test_numbers_over_runs_read_well():
    assert (median([1, np.nan, 3], "g"), span([5, np.inf, 2], "g"), share([True, False])) == ("2", "2 to 5", "1 of 2")
    assert median([np.nan], ".1f") == span([], ".1f") == "none"
    assert (span([3, 1, 2], "g"), span([7], "g"), span([1.01, 1.02], ".1f")) == ("1 to 3", "7", "1.0")


def test_prose_has_the_values_of_its_expressions_where_they_stand_and_above_the_parameters_those_at_the_end():
    texts = ["50 %: {eval}`tau:.2f` {eval}`2 * tau`", "None {eval.", 'Then {eval}`words["a"]`.']
    cells = [nb.new_markdown_cell(text) for text in texts]
    cells.insert(1, nb.new_code_cell("tau = 2", metadata={"tags": ["parameters"]}))
    made = expand(nb.new_notebook(cells=cells)).cells
    assert [cell.cell_type for cell in made] == ["markdown", "code", "markdown", "code", "markdown", "code"]
    assert made[0].source == "50 %: {glue:text}`eval-0` {glue:text}`eval-1`"
    assert (made[2].source, made[4].source) == ("None {eval.", "Then {glue:text}`eval-2`.")
    assert made[3].metadata["tags"] == made[5].metadata["tags"] == ["remove-cell"]
    given = {}
    names = {"glue": lambda name, value, display: given.update({name: value}), "tau": 2.5, "words": {"a": "b"}}
    for cell in (made[3], made[5]):
        exec(cell.source.removeprefix("from myst_nb import glue\n"), names)
    assert given == {"eval-0": "2.50", "eval-1": "5.0", "eval-2": "b"}
