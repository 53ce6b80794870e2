import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import included
import pytest
import xarray as xr

from ts_helpers.book import pages
from ts_helpers.book.claims import Edition, Quantity, judge, read_claims
from ts_helpers.book.records import Record

CLAIMS = read_claims()
README = pages.README.read_text()
CHAPTER = "matsuki2018/oscillator"
SAYS = "oscillator.md says reproduced of C2, the record says not reproduced"
UNCOUNTED = [dict(scale="smoke"), dict(parameters={"eta_tau": 0.5})]


@functools.cache  # a thousand bootstraps else
def finding(claim_id, scale):
    return judge(claim_id, {q.name: [1.0] * 100 for q in CLAIMS[claim_id].quantities}, scale, CLAIMS)


def record_of(chapter, verdict=None, scale="book", parameters=None, archived=None):
    """A record in which every claim has the verdict that its prose was written for, or this one."""
    said = pages.PROSE.findall(pages.Job(chapter).source.read_text())
    live = {name: dataclasses.replace(finding(name, scale), verdict=verdict or prose) for name, prose in said}
    how = dict(scale="paper", verdict=archived, note="")
    old = {name: dataclasses.replace(each, **how) for name, each in live.items() if archived}
    return Record(xr.Dataset(), {"parameters": parameters or {}}, live, old)


def found(**how):
    return {claim.chapter: record_of(claim.chapter, **how) for claim in CLAIMS.values()}


def row_of(claim_id, text):
    [row] = [line for line in text.splitlines() if f'id="{claim_id}"' in line]
    return row


def test_prose_that_says_what_was_measured_is_no_contradiction_and_what_says_otherwise_is_named():
    assert pages.contradictions(CLAIMS, found(), README) == []
    wrong = pages.contradictions(CLAIMS, found(verdict="not reproduced"), README)
    assert any(SAYS in line for line in wrong)
    assert "README.md has other verdicts or numbers than the records: make readme writes them anew" in wrong


@pytest.mark.parametrize("how", UNCOUNTED)
def test_smoke_runs_and_other_parameters_contradict_nothing(how):
    assert pages.contradictions(CLAIMS, found(verdict="not reproduced", **how), README) == []
    assert pages.readme(README, CLAIMS, found(verdict="not reproduced", **how)) == README


def test_prose_that_says_otherwise_fails_the_build_which_writes_what_pages_include(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pages"])
    for verdict, status in ((None, 0), ("not reproduced", 1)):
        for module in (pages, included):
            monkeypatch.setattr(module, "records", lambda claims, v=verdict: found(verdict=v))
        assert pages.main() == status
    assert SAYS in capsys.readouterr().err
    included.write(SimpleNamespace(srcdir=tmp_path))
    names = {"verdicts.md", "verdicts.svg", "assumptions.md", "times.md", "claims/C2.md", f"claims/{CHAPTER}.md"}
    assert all((tmp_path / "_build" / "pages" / name).stat().st_size for name in names)


def test_claim_without_its_line_in_the_prose_is_named():
    claims = CLAIMS | {"C9": dataclasses.replace(CLAIMS["C2"], id="C9")}
    [line, _] = pages.contradictions(claims, {}, pages.readme(README, CLAIMS, {}))
    assert "must have one line '% prose C9: <verdict>', it has 0" in line


def test_readme_takes_its_verdicts_from_the_records_that_count_or_else_from_the_prose():
    assert pages.readme(README, CLAIMS, {}) == README
    text = pages.readme(README, CLAIMS, found(verdict="not reproduced", archived="partly"))
    line = r"\| C2 partly, C3 partly, .*\| \[Learning an oscillation\]\(notebooks/matsuki2018/oscillator.md\)"
    assert re.search(line, text)
    assert "not reproduced" not in text
    assert pages.contradictions(CLAIMS, found(), text)[-1].startswith("README.md has other verdicts")
    written = re.compile(r"<!-- (\w+), written .*?<!-- end of \1 -->", re.S)
    assert written.sub("", text) == written.sub("", README)  # every other word stays
    assert text.count("| paper |") == 1


def test_readme_alone_is_written_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(pages, "records", lambda claims: found())
    monkeypatch.setattr("sys.argv", ["pages", "--readme"])
    pages.README.write_text(README.replace("C2 reproduced", "C2 partly"))
    assert pages.main() == 0
    assert pages.README.read_text() == README


def test_verdicts_show_every_claim_run_or_not_and_which_parameters_were_changed():
    assert {claim.paper for claim in CLAIMS.values()} <= set(pages.PAPERS)
    changed = record_of(CHAPTER, parameters={"eta_tau": 0.5, "n_runs": None})
    text = included.verdicts(CLAIMS, {CHAPTER: changed})
    rows = dict(re.findall(r'^\| <span id="(\w+)">\1</span> \| (.*)$', text, re.M))
    assert set(rows) == set(CLAIMS)
    assert rows["C2"].endswith("| **reproduced** | 100 | book, eta_tau = 0.5 | {numref}`fig-matsuki-task1` |")
    assert "not run yet" in rows["C1"]


@pytest.mark.parametrize("how", [{}, *UNCOUNTED])
def test_archived_findings_go_before_those_of_the_last_run(how):
    records = {CHAPTER: record_of(CHAPTER, archived="not reproduced", **how)}
    assert "| **not reproduced** | 100 | paper |" in row_of("C2", included.verdicts(CLAIMS, records))
    assert any(SAYS in line for line in pages.contradictions(CLAIMS, records, README))


def test_chapter_includes_its_claims_and_what_was_measured_beside_what_is_recorded():
    for record, head, measured, verdict in (
        (None, "C2 | criterion", 0, "not run yet"),
        (record_of(CHAPTER), "C2 | criterion | measured", 1, "reproduced"),
        (record_of(CHAPTER, archived="partly"), "C2 | criterion | recorded | this run", 2, "partly"),
    ):
        made = included.fragments(CLAIMS, {CHAPTER: record} if record else {})
        lines = made["C2"].splitlines()
        assert lines[0] == f"| {head} |"
        assert lines[2].startswith("| share of runs whose three time constants all end within 10 % of the teacher's")
        assert lines[2].split(" | ")[1].strip(" |") == "at least 90\xa0%"
        assert lines[2].count("100\xa0% [96,\xa0100]") == measured
        assert lines[-1] == f"**C2: {verdict}.**"
        assert f"| {CLAIMS['C2'].source} | {{numref}}`fig-matsuki-task1` | {verdict} |\n" in made[CHAPTER]
        linked = r'^\| <span id="(C\d)">\[\1\]\(../../book/verdicts.md#\1\)</span>'
        assert re.findall(linked, made[CHAPTER], re.M) == ["C2", "C3", "C4", "C5"]
    assert "usual geometric" not in made["A2"]  # why the criterion is what it is, is said on the page of verdicts
    assert "usual geometric" in included.verdicts(CLAIMS, {})


def test_earlier_editions_stand_in_order_below_what_is_measured_now_and_in_the_chapter():
    [_, outputs] = now = CLAIMS["C2"].quantities
    old = Quantity("a", "share of runs | all of them; why", "rate", ">= 0.8")
    first = Edition("partly", "the paper says less", claim="It learns.", min_seeds=20, quantities=(old, outputs))
    second = Edition("inconclusive", "the runs were few", source="Fig. 2", planned=50, quantities=now[:1])
    claims = CLAIMS | {"C2": dataclasses.replace(CLAIMS["C2"], editions=(first, second))}
    told = [
        "first edition: partly. Changed because the paper says less. It claimed: It learns. It measured: share of runs "
        "| all of them, at least 80\xa0%; share of runs with $R^2 \\ge 0.9$ for each of the three outputs over the "
        "test phase, at least 90\xa0%. It asked for 20 runs.",
        "second edition: inconclusive. Changed because the runs were few. It cited Fig. 2. It had 50 runs planned.",
    ]
    assert included.earlier(claims["C2"]) == told
    text = included.verdicts(claims, {CHAPTER: record_of(CHAPTER)})
    rows = [line for line in text.splitlines() if line.startswith("| C2 |")]
    assert rows[2:] == [f"| C2 | {told[0].replace('|', chr(92) + '|')} |  |  |", f"| C2 | {told[1]} |  |  |"]
    made = included.fragments(claims, {CHAPTER: record_of(CHAPTER)})
    paragraphs = made["C2"].split("\n\n")[1:]
    assert paragraphs == [
        "**C2: reproduced.**",
        told[0].replace("first", "First", 1),
        told[1].replace("s", "S", 1) + "\n",
    ]
    assert made["C3"] == included.fragments(CLAIMS, {CHAPTER: record_of(CHAPTER)})["C3"]
    of = {name: dataclasses.replace(CLAIMS[name], editions=claims["C2"].editions) for name in ("C5", "C2", "A3", "A4a")}
    linked = "[{0}](verdicts.md#{0})".format
    table = included.editions(of | {"S1": CLAIMS["S1"]}, {CHAPTER: record_of(CHAPTER, verdict="reproduced")})
    assert table.splitlines()[2:] == [
        f"| partly | not run yet | {linked('A3')}, {linked('A4a')} |",
        f"| partly | reproduced | {linked('C2')}, {linked('C5')} |",
    ]


def test_verdicts_over_a_choice_stand_below_the_main_one_and_in_the_chapter():
    record = found()
    kept = record[CHAPTER].findings
    kept["C2"] = dataclasses.replace(kept["C2"], over={"for half as long": "partly: 3 %"})
    lines = included.verdicts(CLAIMS, record).splitlines()
    assert "| C2 | the same, for half as long |  | partly: 3 % |" in lines
    chapter = included.fragments(CLAIMS, record)
    assert "| for half as long | partly: 3 % |" in chapter["C2"]
    assert "over a choice" not in chapter["C4"]


def test_planned_runs_stand_beside_those_that_were_made():
    claims = CLAIMS | {"C2": dataclasses.replace(CLAIMS["C2"], planned=120)}
    assert "| not run yet | planned: 120 |  |" in row_of("C2", included.verdicts(claims, {}))
    records = {CHAPTER: record_of(CHAPTER)}
    assert "| **reproduced** | 100, planned: 120 | book |" in row_of("C2", included.verdicts(claims, records))
    assert included.fragments(claims, records)["C2"].endswith("\n**C2: reproduced.** Planned: 120 runs.\n")


def test_pages_are_of_the_chapters_that_the_toc_lists_whatever_else_lies_beside_them(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").write_text("root: book/intro\nchapters:\n- file: notebooks/a/b.ipynb\n- file: book/c\n")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "mine.md").touch()
    (tmp_path / "notebooks" / "mine.ipynb").write_text("null")
    monkeypatch.setattr("ts_helpers.book.run.NOTEBOOKS", tmp_path / "notebooks")
    assert "| mine | not run yet |  |" in included.times(["mine"])
    monkeypatch.setattr("ts_helpers.book.run.ROOT", tmp_path)
    assert included.chapters() == ["a/b"]
    monkeypatch.setenv("TS_RECORDS", str(tmp_path))
    (tmp_path / CHAPTER).mkdir(parents=True)
    (tmp_path / CHAPTER / "plot.png").touch()
    assert pages.records(CLAIMS) == {}  # a folder of one's own is no record


def test_stress_is_a_table_of_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(included, "RESULTS", tmp_path)
    assert included.noted("stress") == "Not recorded yet.\n"
    row = {"what": "kill -9", "tried": 300, "bad": 0, "of": "lost"}
    for commit, shown in ((None, "unknown"), ("0123456" * 5, "0123456")):
        (tmp_path / "stress.json").write_text(json.dumps({"commit": commit, "rows": [row]}))
        assert f"| kill -9 | 300 | lost: 0 |\n\nAt commit {shown}.\n" in included.noted("stress")


def test_assumptions_gather_every_chapters_departures(tmp_path, monkeypatch):
    text = included.assumptions(["matsuki2018/gradient-of-tau", CHAPTER])
    assert re.findall("^## .*", text, re.M)[1] == f"## [Learning an oscillation](../notebooks/{CHAPTER}.ipynb)"
    ids = re.findall(r"^\| ([A-Z]\w+) \|", text, re.M)
    assert len(ids) == len(set(ids)) > 8
    (tmp_path / "bare.md").write_text("# Bare\n")
    monkeypatch.setattr("ts_helpers.book.run.NOTEBOOKS", tmp_path)
    with pytest.raises(ValueError, match="needs a section Departures"):
        included.assumptions(["bare"])


def test_costs_are_a_table_of_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(included, "RESULTS", tmp_path)
    assert included.noted("costs") == "Not recorded yet.\n"
    (tmp_path / "costs.json").write_text(json.dumps({"doe2020/leak": [20.0, 40.0], "doe2020/gate": [140.0, 100.0]}))
    made = included.noted("costs")
    assert "| doe2020/leak | 20 | 40 | 0.50 |\n| doe2020/gate | 140 | 100 | 1.40 |" in made
    assert made.endswith("Within a factor of 1.5: 1 of 2.\n")


def test_findings_have_the_numbers_of_the_records_and_every_claim_a_link_in_the_strip(tmp_path, monkeypatch):
    (tmp_path / "findings.md").write_text("Found in {C2-taus_recovered} ([here](notebooks/x.md)).\n")
    monkeypatch.setattr(pages, "FINDINGS", tmp_path / "findings.md")
    told = "Found in {} ([here](notebooks/x.md)).\n".format("100\xa0% [96,\xa0100]")
    assert pages.findings(CLAIMS, found()) == told
    assert pages.findings(CLAIMS, {}) == "Found in – ([here](notebooks/x.md)).\n"
    assert told not in pages.readme(README, CLAIMS, found())  # no recorded run's
    assert told in pages.readme(README, CLAIMS, found(archived="partly"))
    link = '<a class="verdict not-reproduced" href="verdicts.html#C2" title="C2: not reproduced">C2</a>'
    made = included.strip(CLAIMS, found(verdict="not reproduced"))
    assert link in made
    assert made.count('href="verdicts.html#') == len(CLAIMS)
