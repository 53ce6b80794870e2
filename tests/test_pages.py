import dataclasses
import functools
import re

import pytest
import xarray as xr

from ts_helpers.book import pages
from ts_helpers.book.claims import judge, read_claims
from ts_helpers.book.records import Record

CLAIMS = read_claims()
README = pages.README.read_text()


@functools.cache  # a thousand bootstraps else
def finding(claim_id, scale):
    return judge(claim_id, {q.name: [1.0] * 100 for q in CLAIMS[claim_id].quantities}, scale, CLAIMS)


def record_of(chapter, verdict=None, scale="book", parameters=None, kept=None):
    """A record in which every claim of the chapter has the verdict its prose was written for, or the one given.

    ``kept``: the verdict of all of them in the kept paper-scale run; None where there is no such run.
    """
    said = pages.VERDICT_LINE.findall(pages.Job(chapter).source.read_text())
    findings = {}
    for claim_id, prose in said:
        findings[claim_id] = dataclasses.replace(finding(claim_id, scale), verdict=verdict or prose)
    kept_findings = {
        claim_id: dataclasses.replace(live, scale="paper", verdict=kept) for claim_id, live in findings.items() if kept
    }
    return Record(xr.Dataset(), findings, kept_findings, {"parameters": parameters or {}})


def found(**how):
    chapters = {claim.chapter for claim in CLAIMS.values() if pages.written(claim)}
    return {chapter: record_of(chapter, **how) for chapter in chapters}


def test_prose_that_says_what_was_measured_is_no_contradiction():
    assert pages.contradictions(CLAIMS, found(), README) == []


def test_prose_that_says_otherwise_is_named():
    wrong = pages.contradictions(CLAIMS, found(verdict="not reproduced"), README)
    assert any("oscillator.md says reproduced of C2, the record says not reproduced" in line for line in wrong)
    assert "README.md has other verdicts than the records: make readme writes its table anew" in wrong


def test_pages_fail_the_build_if_prose_says_otherwise(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    monkeypatch.setattr("sys.argv", ["pages"])
    for verdict, status in ((None, 0), ("not reproduced", 1)):
        monkeypatch.setattr(pages, "records", lambda claims, v=verdict: found(verdict=v))
        assert pages.main() == status
    assert "says reproduced of C2" in capsys.readouterr().err


@pytest.mark.parametrize("how", [dict(scale="smoke"), dict(parameters={"eta_tau": 0.5})])
def test_smoke_runs_and_other_parameters_contradict_nothing(how):
    assert pages.contradictions(CLAIMS, found(verdict="not reproduced", **how), README) == []


def test_claim_without_its_line_in_the_prose_is_named():
    claims = CLAIMS | {"C9": dataclasses.replace(CLAIMS["C2"], id="C9")}
    [line, _] = pages.contradictions(claims, {}, pages.readme(README, CLAIMS, {}))
    assert "must have one line '% prose C9: <verdict>', it has 0" in line


def test_readme_has_the_verdicts_that_the_chapters_were_written_for():
    assert pages.readme(README, CLAIMS, {}) == README


def test_readme_takes_its_verdicts_from_the_records_that_count():
    text = pages.readme(README, CLAIMS, found(verdict="not reproduced", kept="partly"))
    assert re.search(
        r"\| C2 partly, C3 partly, .*\| \[Learning an oscillation\]\(notebooks/matsuki2018/oscillator.md\)", text
    )
    assert "not reproduced" not in text
    assert pages.contradictions(CLAIMS, found(), text)[-1].startswith("README.md has other verdicts")
    for how in (dict(scale="smoke"), dict(parameters={"eta_tau": 0.5})):
        assert pages.readme(README, CLAIMS, found(verdict="not reproduced", **how)) == README


def test_readme_keeps_every_word_outside_its_table():
    before, after = (
        README.split("<!-- verdicts, written by make readme -->")[0],
        README.split("<!-- end of verdicts -->")[1],
    )
    text = pages.readme(README, CLAIMS, found(verdict="not reproduced"))
    assert text.startswith(before)
    assert text.endswith(after)
    assert text.count("| paper |") == 1


def test_readme_without_a_place_for_its_table_is_refused():
    with pytest.raises(ValueError, match="must have one place for verdicts"):
        pages.readme("# Bare\n", CLAIMS, {})


def test_readme_alone_is_written_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(pages, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(pages, "records", lambda claims: found())
    monkeypatch.setattr("sys.argv", ["pages", "--readme"])
    pages.README.write_text(README.replace("C2 reproduced", "C2 partly"))
    assert pages.main() == 0
    assert pages.README.read_text() == README
    assert not pages.PAGES.exists()


def test_claim_whose_chapter_is_not_written_yet_breaks_nothing():
    early = dataclasses.replace(CLAIMS["C2"], id="S99", paper="synthesis", chapter="synthesis/nowhere")
    claims = CLAIMS | {"S99": early}
    [row] = [line for line in pages.verdicts(claims, {}).splitlines() if 'id="S99"' in line]
    assert "not run yet" in row
    assert "numref" not in row  # there is no figure to refer to
    assert pages.contradictions(claims, found(), README) == []
    assert "S99" not in pages.readme(README, claims, {})


def test_every_claim_is_of_a_paper_with_a_title():
    assert {claim.paper for claim in CLAIMS.values()} <= set(pages.PAPERS)


def test_figure_of_all_claims_says_in_words_what_came_out():
    text = pages.picture(CLAIMS, found())
    alt = re.search(r"^:alt: (.+)\.$", text, re.M)[1]
    ids = {word: names.split(", ") for word, names in re.findall(r"; ([a-z ]+): ([\w, ]+)", alt)}
    assert "C2" in ids["reproduced"]
    assert "C4" in ids["partly"]
    assert sorted(name for names in ids.values() for name in names) == sorted(CLAIMS)


def test_verdicts_show_every_claim_run_or_not():
    text = pages.verdicts(CLAIMS, {"matsuki2018/oscillator": record_of("matsuki2018/oscillator")})
    rows = dict(re.findall(r'^\| <span id="(\w+)">\1</span> \| (.*)$', text, re.M))
    assert set(rows) == set(CLAIMS)
    assert "{numref}`fig-matsuki-task1`" in rows["C2"]
    assert "not run yet" in rows["C1"]
    assert "**reproduced**" in rows["C2"]
    assert "| 100 | book |" in rows["C2"]


def test_verdicts_say_which_parameters_were_changed():
    changed = record_of("matsuki2018/oscillator", parameters={"eta_tau": 0.5, "n_runs": None})
    assert "book, eta_tau = 0.5" in pages.verdicts(CLAIMS, {"matsuki2018/oscillator": changed})


def test_kept_findings_go_before_those_of_the_last_run():
    chapter = "matsuki2018/oscillator"
    text = pages.verdicts(CLAIMS, {chapter: record_of(chapter, parameters={"eta_tau": 0.5}, kept="partly")})
    [row] = [line for line in text.splitlines() if 'id="C2"' in line]
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
