import dataclasses

import pytest
import xarray as xr

from ts_helpers import pages
from ts_helpers.claims import judge, read_claims
from ts_helpers.records import Record

CLAIMS = read_claims()
README = (pages.ROOT / "README.md").read_text()


def record_of(chapter, verdict=None, scale="book", parameters=None, kept=None):
    """A record in which every claim of the chapter has the verdict its prose was written for, or the one given.

    ``kept``: the verdict of all of them in the kept paper-scale run; None where there is no such run.
    """
    said = pages.VERDICT_LINE.findall(pages.Job(chapter).source.read_text())
    findings = {}
    for claim_id, prose in said:
        values = {q.name: [1.0] * 100 for q in CLAIMS[claim_id].quantities}
        findings[claim_id] = dataclasses.replace(judge(claim_id, values, scale), verdict=verdict or prose)
    kept_findings = {
        claim_id: dataclasses.replace(finding, scale="paper", verdict=kept)
        for claim_id, finding in findings.items()
        if kept
    }
    return Record(xr.Dataset(), findings, kept_findings, {"parameters": parameters or {}})


def found(**how):
    return {chapter: record_of(chapter, **how) for chapter in {claim.chapter for claim in CLAIMS.values()}}


def test_prose_that_says_what_was_measured_is_no_contradiction():
    assert pages.contradictions(CLAIMS, found(), README) == []


def test_prose_that_says_otherwise_is_named():
    wrong = pages.contradictions(CLAIMS, found(verdict="not reproduced"), README)
    assert any("oscillator.md says reproduced of C2, the record says not reproduced" in line for line in wrong)
    assert any("README.md says reproduced of C2" in line for line in wrong)


def test_pages_fail_the_build_if_prose_says_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    for verdict, status in ((None, 0), ("not reproduced", 1)):
        monkeypatch.setattr(pages, "records", lambda claims, v=verdict: found(verdict=v))
        assert pages.main() == status
    assert "says reproduced of C2" in capsys.readouterr().err


@pytest.mark.parametrize("how", [dict(scale="smoke"), dict(parameters={"eta_tau": 0.5})])
def test_smoke_runs_and_other_parameters_contradict_nothing(how):
    assert pages.contradictions(CLAIMS, found(verdict="not reproduced", **how), README) == []


def test_claim_without_its_line_in_the_prose_is_named():
    claims = {"C9": dataclasses.replace(CLAIMS["C2"], id="C9")}
    [line] = pages.contradictions(claims, {}, README)
    assert "must have one line '% prose C9: <verdict>', it has 0" in line


def test_verdicts_show_every_claim_run_or_not():
    text = pages.verdicts(CLAIMS, {"matsuki2018/oscillator": record_of("matsuki2018/oscillator")})
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "{numref}" in line}
    assert "not run yet" in rows["C1"]
    assert "**reproduced**" in rows["C2"]
    assert "| 100 | book |" in rows["C2"]


def test_verdicts_say_which_parameters_were_changed():
    changed = record_of("matsuki2018/oscillator", parameters={"eta_tau": 0.5, "n_runs": None})
    assert "book, eta_tau = 0.5" in pages.verdicts(CLAIMS, {"matsuki2018/oscillator": changed})


def test_kept_findings_go_before_those_of_the_last_run():
    chapter = "matsuki2018/oscillator"
    text = pages.verdicts(CLAIMS, {chapter: record_of(chapter, parameters={"eta_tau": 0.5}, kept="partly")})
    [row] = [line for line in text.splitlines() if line.startswith("| C2 |") and "{numref}" in line]
    assert "**partly**" in row
    assert "| paper |" in row  # with its own parameters, whatever the last run's were
    for how in (dict(), dict(scale="smoke"), dict(parameters={"eta_tau": 0.5})):
        wrong = pages.contradictions(CLAIMS, {chapter: record_of(chapter, kept="not reproduced", **how)}, README)
        assert any("oscillator.md says reproduced of C2, the record says not reproduced" in line for line in wrong)


def test_assumptions_gather_every_chapters_departures():
    text = pages.assumptions(["matsuki2018/gradient-of-tau", "matsuki2018/oscillator"])
    ids = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
    assert len(ids) == len(set(ids)) > 8


def test_chapter_without_departures_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bare.md").write_text("# Bare\n")
    monkeypatch.setattr("ts_helpers.run.NOTEBOOKS", tmp_path)
    with pytest.raises(ValueError, match="needs a section Departures"):
        pages.assumptions(["bare"])
