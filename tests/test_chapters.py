"""The chapters as they are written: nothing here runs them."""

import re

import pytest
from sphinx.config import Config
from sphinx.directives.code import LiteralIncludeReader

from ts_helpers.book.claims import read_claims
from ts_helpers.book.pages import VERDICTS
from ts_helpers.book.run import Job, chapters

CHAPTERS = chapters()
SECTIONS = ["Parameters", "Departures", "Exercises"]
INCLUDE = re.compile(r"^```\{include\} \.\./\.\./_build/pages/claims/(\S+)\.md\n```$", re.M)
every_chapter = pytest.mark.parametrize("name", CHAPTERS)


def claims_of(name):
    return [claim for claim in read_claims().values() if claim.chapter == name]


def plain(text):
    return re.sub(r"[\s$`*\\{}^]+", "", text)


@every_chapter
def test_chapter_has_its_parameters_and_sections_in_order(name):
    declared = list(Job(name).declared.values())[:3]
    assert [(p.name, p.default) for p in declared] == [("scale", "book"), ("seed", 0), ("device", "auto")]
    headings = re.findall(r"^## (.+)$", Job(name).source.read_text(), re.M)
    assert [h for h in headings if h in SECTIONS] == SECTIONS
    assert headings[0].startswith("The claim")


@every_chapter
def test_chapter_includes_its_claims_first_and_each_with_its_figure_and_verdict_after(name):
    text, claims = Job(name).source.read_text(), claims_of(name)
    included = INCLUDE.findall(text)
    if not claims:  # a derivation may show those of the chapters that follow
        assert all(chapter.startswith(name.partition("/")[0]) and chapter in CHAPTERS for chapter in included)
        return
    assert included[0] == name
    assert sorted(included[1:]) == sorted(claim.id for claim in claims)
    assert INCLUDE.search(text).start() < text.index("## Parameters")
    for claim in claims:
        assert f"name: {claim.figure}\n" in text
        assert len(re.findall(rf"^% prose {claim.id}: (?:{VERDICTS})$", text, re.M)) == 1


@every_chapter
def test_chapter_types_no_claim_no_criterion_and_no_verdict(name):
    text = Job(name).source.read_text()
    for claim in claims_of(name):
        for typed in (claim.claim, *(quantity.meaning for quantity in claim.quantities)):
            assert plain(typed) not in plain(text)
    assert not re.search(r"^\|.*\| ?(criterion|verdict) ?\|.*\n\| ?:?-", text, re.M | re.I)
    prose = "\n".join(c.source for c in Job(name).notebook.cells if c.cell_type == "markdown")
    prose = re.sub("(?m)^% .*$", "", prose)  # there it must stand, for the check against the record
    assert not re.search(r"\b[A-DS]\d\w?\b[^.|`]{0,20}\b(reproduced|partly|inconclusive)\b", prose)


@every_chapter
def test_chapter_has_code_no_wider_than_the_page(name):
    source = Job(name).source
    shown = [cell.source for cell in Job(name).notebook.cells if cell.cell_type == "code"]
    for file, given in re.findall(r"^```\{literalinclude\} (\S+)\n((?::.*\n)*)", source.read_text(), re.M):
        options = {key: value or None for key, value in re.findall(r"^:(\S+?): *(.*)$", given, re.M)}
        shown.append(LiteralIncludeReader(source.parent / file, options, Config()).read()[0])
    assert [line for each in shown for line in each.splitlines() if len(line) > 88] == []


@every_chapter
def test_chapter_gives_every_figure_alt_text_and_caption(name):
    for cell in Job(name).notebook.cells:
        slider, figure = "figures.slider(" in cell.source, cell.metadata.get("mystnb", {})
        drawn = slider or re.search(r"plt\.(subplots|figure)\(|^show\(", cell.source, re.M)
        if cell.cell_type == "code" and drawn:
            if "def " in cell.source and not figure:
                assert not slider
                continue  # helpers
            assert slider or figure["image"]["alt"].endswith(".")  # a slider has one of its own for each value
            assert figure["figure"]["caption"]
