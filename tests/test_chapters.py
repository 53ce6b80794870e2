"""Every notebook at smoke scale."""

import nbformat
import pytest
from conftest import run

from ts_helpers.book.claims import read_claims
from ts_helpers.book.records import FILES, load
from ts_helpers.book.run import find

CHAPTERS = find([])


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_runs(project, name):
    record = load(project / "_build" / "records" / name)
    assert record.provenance["scale"] == "smoke"
    assert set(record.findings) == {claim.id for claim in read_claims().values() if claim.chapter == name}
    assert {finding.verdict for finding in record.findings.values()} <= {"inconclusive"}


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_shows_no_warning(project, name):
    notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
    shown = [o.text for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "stream"]
    assert not [text for text in shown if "Warning" in text]


def test_papermill_alone_runs_a_chapter(project):
    executed, out = project / "notebooks" / "matsuki2018" / "gradient-of-tau.ipynb", project / "by-hand"
    words = ["papermill", str(executed), str(project / "by-hand.ipynb"), "-p", "scale", "smoke", "-p", "n_runs", "3"]
    done = run(project, *words, TS_RECORDS=str(out))
    assert done.returncode == 0, done.stderr
    assert load(out / "matsuki2018" / "gradient-of-tau").results.sizes["run"] == 3


def test_same_seed_gives_the_same_records_bit_for_bit_and_another_seed_does_not(project):
    for out, seed in (("again", "0"), ("other", "1")):
        done = run(project, "ts_helpers.run", "--scale", "smoke", "-p", "seed", seed, "--out", out, "--jobs", "2")
        assert done.returncode == 0, done.stderr
    for name in CHAPTERS:
        first, again, other = (project / where / name for where in ("_build/records", "again", "other"))
        for file in FILES[:2]:
            assert (first / file).read_bytes() == (again / file).read_bytes()
        assert (first / "results.nc").read_bytes() != (other / "results.nc").read_bytes()
