import gather
import numpy as np
import pytest
import xarray as xr

from ts_helpers.book import records
from ts_helpers.book.claims import judge, read_claims

CLAIM = "C1"  # any claim will do: what is judged here is made up


def made(folder, seed=0, scale="book", loss=0.0, **parameters):
    """A record of a run with an arm for each value of `only`, two repetitions a seed, below a folder of its own."""
    settings = {"only": None, "lr": 0.1} | parameters
    arms = "ab" if settings["only"] is None else "ab"[settings["only"]]
    values = loss + 10 * seed + np.arange(2.0) + 100 * np.array(["ab".index(arm) for arm in arms])[:, None]
    results = xr.Dataset(
        {
            "loss": (("arm", "seed"), values, {"units": "1", "long_name": "loss"}),
            "map": ("arm", values.mean(1), {"units": "1", "long_name": "one a run, whatever it repeats"}),
            "T": ((), 5, {"units": "steps", "long_name": "the same in all"}),
        },
        {"arm": ("arm", list(arms), {"long_name": "arm"})},
    )
    measured = {quantity.name: [settings["lr"]] * 100 for quantity in read_claims()[CLAIM].quantities}
    where = folder / "-".join(f"{name}{value}" for name, value in ({"seed": seed} | parameters).items())
    how = dict(commit=None, dirty=None, device="CPU", start="now", threads=1, seconds=2.0, data={})
    how |= dict(notebook="doe2020/leak", scale=scale, seed=seed, parameters=settings, settings=settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TS_RECORDS", str(where))
        records.save(how, results, [judge(CLAIM, measured, scale)], [])
    return where


def test_what_was_swept_becomes_a_dimension_and_seeds_become_repetitions(tmp_path):
    for seed in (0, 2):
        for lr in (0.1, 10.0):
            made(tmp_path, seed=seed, lr=lr)
    assert gather.build(tmp_path) == tmp_path / "index.html"
    joined = xr.load_dataset(tmp_path / "doe2020" / "leak.nc", engine="h5netcdf")
    assert joined.loss.sizes == {"lr": 2, "arm": 2, "seed": 4}
    assert joined.lr.values.tolist() == [0.1, 10.0] and joined.lr.attrs["long_name"] == "parameter lr"
    assert joined.seed.values.tolist() == [0, 1, 4, 5]
    assert joined.loss.sel(lr=10.0, arm="b", seed=5).item() == 121.0
    assert joined["map"].sel(lr=0.1, arm="b").values.tolist() == [100.5, 100.5, 120.5, 120.5]
    assert "seed" not in joined["T"].dims


def test_page_has_a_panel_for_each_claim_and_a_row_for_each_run(tmp_path):
    for lr in (0.1, 0.02):
        made(tmp_path, lr=lr)
    page = gather.build(tmp_path).read_text()
    verdicts = [record.findings[CLAIM].verdict for record in gather.read(tmp_path)["doe2020/leak"]]
    assert page.count("<svg") == 1 and f"<th>{CLAIM}</th>" in page
    assert page.index("<td>0.02</td>") < page.index("<td>0.1</td>")  # in their order, however folders are called
    assert page.count("<tr>") == 3 and all(f"<td>{verdict}</td>" in page for verdict in verdicts)
    assert gather.build(tmp_path).read_text() == page


def test_parts_are_archived_together_and_beside_those_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    monkeypatch.setattr("gather.ROOT", tmp_path)
    first, later = tmp_path / "first", tmp_path / "later"
    for only in (0, 1):
        made(first, scale="paper", only=only)
    gather.build(first, keep=True)
    for only, seed in ((0, 0), (0, 1)):
        made(later, scale="paper", only=only, seed=seed)
    gather.build(later, keep=True)
    back = records.archived("doe2020/leak")
    assert back.results.loss.sel(seed=0).values.tolist() == [0.0, 100.0]
    assert back.results.loss.sel(arm="a").values.tolist() == [0.0, 1.0, 10.0, 11.0]
    assert bool(back.results.loss.sel(arm="b", seed=[2, 3]).isnull().all())
    assert [(part["settings"]["only"], part["seed"]) for part in back.parts] == [(0, 0), (0, 1), (1, 0)]
    assert back.provenance["seconds"] == 6.0 and back.provenance["settings"]["only"] is None
    assert "seed 0 or 1" in back.line() and "only" not in back.line()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([dict(), dict(seed=1)], "must be of scale paper, and swept over only or seed, got doe2020/leak at scale book"),
        ([dict(scale="paper"), dict(scale="paper", lr=1.0)], "got doe2020/leak at scale paper, over lr"),
        ([dict(scale="paper", only=0, lr=1.0)], "of other settings: move it away"),
        ([dict(scale="paper"), dict(scale="paper", seed=1)], "of other settings: move it away"),
        ([dict(scale="paper", only=0, loss=5.0)], "has another run of only 0, seed 0: move it away"),
    ],
)
def test_what_does_not_belong_together_is_not_archived(tmp_path, monkeypatch, given, message):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    monkeypatch.setattr("gather.ROOT", tmp_path)
    made(tmp_path / "first", scale="paper", only=0)
    gather.build(tmp_path / "first", keep=True)
    before = records.archived("doe2020/leak")
    for each in given:
        made(tmp_path / "next", **each)
    with pytest.raises(ValueError, match=message):
        gather.build(tmp_path / "next", keep=True)
    assert records.archived("doe2020/leak").provenance == before.provenance


def test_whole_run_archived_and_two_runs_alike_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("ts_helpers.book.paths.RESULTS", tmp_path / "results")
    whole = made(tmp_path / "whole", scale="paper") / "doe2020" / "leak"
    records.put(whole / "results.nc", records.load(whole).provenance)
    made(tmp_path / "next", scale="paper", only=1)
    with pytest.raises(ValueError, match="is whole, or of other settings: move it away"):
        gather.build(tmp_path / "next", keep=True)
    made(tmp_path / "next" / "again", scale="paper", only=1)
    with pytest.raises(ValueError, match="records must differ in a parameter, got two with {}"):
        gather.build(tmp_path / "next")
    with pytest.raises(ValueError, match="no record lies below"):
        gather.build(tmp_path / "nothing")
