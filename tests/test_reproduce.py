import json
import sys
import tarfile
from subprocess import CompletedProcess
from types import SimpleNamespace

import included
import numpy as np
import pytest
import xarray as xr

from ts_helpers.book import records, reproduce, run

LABEL = {"units": "1", "long_name": "made up"}


def results(change=0.0, at=(1, 2), seed=(0, 1)):
    loss = np.arange(8.0).reshape(2, 4)
    loss[0, 0] = np.nan
    loss[at] += change
    arms = np.array(["a", "b"])[: len(seed)]
    data = {"loss": (("seed", "step"), loss[list(seed)], LABEL), "arm": ("seed", arms, LABEL)}
    return xr.Dataset(data, {"seed": ("seed", list(seed), LABEL)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (0.0, "identical"),
        (7e-7, "equal within 1e-05: loss differ by 1e-07 at most"),
        (7e-4, "different: loss by 0.0001 at seed = 1, step = 2"),
        (np.nan, "different: loss by inf at seed = 1, step = 2"),
    ],
)
def test_what_differs_is_told_by_how_much_and_where(change, words):
    assert reproduce.words_for(reproduce.compare(results(), results(change))) == words


def test_part_is_compared_with_its_part_of_the_record():
    whole, part = results(), results(seed=(1,))
    part["arm"] = ("seed", ["b"], LABEL)
    assert reproduce.compare(whole, part) == {}
    part["arm"] = ("seed", ["c"], LABEL)
    part["new"] = part.loss
    assert sorted(reproduce.compare(whole, part)) == ["arm", "new"]


def test_what_a_run_has_fewer_of_is_nan():
    whole = results().drop_vars(["seed", "arm"])
    one = whole.isel(seed=[0])
    assert reproduce.compare(whole.where([[True], [False]]), one) == {}
    assert [*reproduce.compare(whole, one)] == ["loss"]


@pytest.mark.parametrize("known", [True, False])
def test_every_part_runs_with_code_and_packages_of_the_commit_that_made_it(known, tmp_path, monkeypatch):
    whole, asked = results(), []
    ran = whole.isel(seed=[0]).assign(other=whole.loss), results(9, at=(0, 3))  # the record took a part of each
    gave = dict(variables=["loss"]), dict(sel=dict(seed=[1]))
    parts = [dict(commit=name, dirty=False, parameters=dict(only=k), scale="paper", seed=0) | gave[k]
             for k, name in enumerate(("1" * 40, "2" * 40))]  # fmt: skip
    made = parts[0] | dict(notebook="doe2020/leak", packages={"torch": "2", "numpy": "2"}, parts=parts)
    monkeypatch.setattr(reproduce, "archived", lambda name: records.Record(whole, made))

    def load(folder):
        run = xr.load_dataset(folder / "results.nc", engine="h5netcdf")
        return records.Record(run, {"packages": {"torch": "3", "numpy": "2"}})

    def execute(words, cwd, capture_output=False, check=False):
        asked.append([str(word) for word in words])
        if words[0] == "git" and known:
            with tarfile.open(words[3], "w"):
                pass
        if words[0] in ("git", "make"):
            return CompletedProcess(words, not known)
        assert check
        (folder := words[-1] / "doe2020/leak").mkdir(parents=True)
        ran[int(words[words.index("only") + 1])].to_netcdf(folder / "results.nc", engine="h5netcdf")
        return CompletedProcess(words, 0)

    monkeypatch.setattr(reproduce, "load", load)
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=execute))
    said, how = reproduce.reproduce(reproduce.RESULTS / "doe2020/leak.paper.nc")
    assert said == "identical"
    steps = [words[-1 if words[0] == "git" else 0] for words in asked]
    which = [f"commit {n * 7}" if known else f"this code, as git has no commit {n * 40}" for n in "12"]
    assert how == f"{which[0]}; torch 3, not 2; {which[1]}"
    if known:
        assert steps[:2] == ["1" * 40, "make"]
        assert steps[2].endswith("/code/.venv/bin/python")
    else:
        assert steps == ["1" * 40, sys.executable, "2" * 40, sys.executable]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("results/doe2020/leak.paper.nc", "a record must be its folder, or one of results/*/*.paper.nc, got"),
        *((path, "is not in the subpath of") for path in ("nowhere", "README.md")),
    ],
)
@pytest.mark.parametrize("keep", [[], ["--archive"]])  # whose scale is the record's
def test_what_is_no_record_is_refused(path, rule, keep, capsys):
    with pytest.raises(SystemExit) as left:
        run.main(["--reproduce", path, *keep])
    assert left.value.code == 2
    assert rule in capsys.readouterr().err


def test_answers_are_a_table_of_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(included, "RESULTS", tmp_path)
    assert included.noted("reproduced") == "None was made again yet.\n"
    (tmp_path / "reproduced.json").write_text(
        json.dumps({"doe2020/leak, paper": ["identical", "commit 1234567", 3600]})
    )
    assert "| doe2020/leak, paper | identical | commit 1234567 | 3,600 |" in included.noted("reproduced")
