"""Pages made from the records: verdicts, assumptions, run times; and a check that prose says what was measured.

    python -m ts_helpers.book.pages [--readme]

It writes Markdown and a figure below ``_build/pages``, which pages of ``book/`` include, and exits 1 if a chapter or
the README claims a verdict other than the recorded one. With ``--readme`` it writes the README's table of verdicts
anew, and nothing else.
"""

import argparse
import re
import sys
from pathlib import Path

from ts_helpers.book import forest_plot
from ts_helpers.book.claims import Claim, Finding, read_claims, table
from ts_helpers.book.paths import ROOT, record_folder
from ts_helpers.book.records import Record, load
from ts_helpers.book.run import Job, find

PAGES = ROOT / "_build" / "pages"
PAPERS = {
    "benureau2018": "A. Benureau & Tani (2018)",
    "quax2020": "B. Quax, D'Asaro & van Gerven (2020)",
    "matsuki2018": "C. Matsuki & Shibata (2018)",
    "tallec2018": "D. Tallec & Ollivier (2018)",
    "synthesis": "S. One leak, four dials",
}
VERDICTS = "reproduced|partly|not reproduced|inconclusive"
VERDICT_LINE = re.compile(rf"^% prose (\w+): ({VERDICTS})$", re.M)
README = ROOT / "README.md"
README_TABLE = re.compile(r"(<!-- verdicts, written by make readme -->\n).*?(<!-- end of verdicts -->)", re.S)
DEPARTURES = ["id", "the paper", "ours", "others", "tested by"]


def records(claims: dict[str, Claim]) -> dict[str, Record]:
    """Return the record of every chapter that has claims and was run."""
    chapters = dict.fromkeys(claim.chapter for claim in claims.values())
    return {chapter: load(record_folder(chapter)) for chapter in chapters if record_folder(chapter).is_dir()}


def by_paper(claims: dict[str, Claim]) -> dict[str, list[Claim]]:
    """Return the claims of each paper that has any, by the paper's title."""
    mine = {title: [c for c in claims.values() if c.paper == paper] for paper, title in PAPERS.items()}
    return {title: group for title, group in mine.items() if group}


def verdicts(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return the figure of all claims, then, a paper at a time, the claims, and what was measured for each.

    A claim's id is an anchor, ``verdicts.html#B3a``. A claim stands there before its chapter does.
    """
    parts = [picture(claims, found), '<div id="verdict-filters"></div>\n']  # filled by book/static/verdicts.js
    for title, mine in by_paper(claims).items():
        parts.append(f"## {title}\n")
        parts.append(table(["id", "claim", "verdict", "runs", "scale", "figure"], [
            [f'<span id="{claim.id}">{claim.id}</span>', f"{claim.claim} *({claim.source})*", *state(claim, found),
             f"{{numref}}`{claim.figure}`" if written(claim) else ""]
            for claim in mine
        ]))  # fmt: skip
        parts.append(table(["id", "what we measure", "criterion", "estimate, 95 % interval"], [
            [claim.id, quantity.meaning, quantity.criterion.text, measured]
            for claim in mine
            for quantity, measured in zip(claim.quantities, estimates(claim, found), strict=True)
        ]))  # fmt: skip
    return "\n".join(parts)


def picture(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return the directive that shows the figure of all claims, which ``main`` draws; its words say which came out."""
    ids: dict[str, list[str]] = {}
    for claim in (claim for mine in by_paper(claims).values() for claim in mine):
        finding = finding_of(claim, found)
        ids.setdefault(finding.verdict if finding else "not run yet", []).append(claim.id)
    lists = "; ".join(f"{word}: {', '.join(ids[word])}" for word in (*forest_plot.LOOKS, "not run yet") if word in ids)
    return (
        "```{figure} ../_build/pages/verdicts.svg\n:name: fig-verdicts\n"
        f":alt: Intervals of all quantities, each seen from the edge of its criterion, a row each; {lists}.\n\n"
        f"{forest_plot.CAPTION}\n```\n"
    )


def written(claim: Claim) -> bool:
    """Say whether the chapter of a claim exists; the claim is there first."""
    return Job(claim.chapter).source.exists()


def state(claim: Claim, found: dict[str, Record]) -> list[str]:
    """Return verdict, number of runs and scale of a claim."""
    finding = finding_of(claim, found)
    if finding is None:
        return ["not run yet", "", ""]
    record = found[claim.chapter]
    given = {} if claim.id in record.kept_findings else record.provenance["parameters"]
    changed = ", ".join(f"{name} = {value}" for name, value in given.items() if value is not None)
    verdict = f"**{finding.verdict}**" + (f" ({finding.note})" if finding.note else "")
    return [verdict, str(min(m.seeds for m in finding.measured)), finding.scale + (f", {changed}" if changed else "")]


def estimates(claim: Claim, found: dict[str, Record]) -> list[str]:
    """Return what was measured for each quantity of a claim."""
    finding = finding_of(claim, found)
    if finding is None:
        return ["" for _ in claim.quantities]
    return [m.describe(q.statistic) for m, q in zip(finding.measured, claim.quantities, strict=True)]


def finding_of(claim: Claim, found: dict[str, Record]) -> Finding | None:
    """Return the finding on a claim, if its chapter was run: that of the kept paper-scale run, or else of the last."""
    if claim.chapter not in found:
        return None
    record = found[claim.chapter]
    return record.kept_findings.get(claim.id) or record.findings.get(claim.id)


def assumptions(names: list[str]) -> str:
    """Return the chapters' *Departures*, gathered.

    Raises:
        ValueError: a chapter has none, or its table has other columns.
    """
    rows = []
    for name in names:
        source = Job(name).source
        found = re.search(r"^## Departures\n(.*?)(?=^## |\Z)", source.read_text(), re.M | re.S)
        lines = [line for line in found[1].splitlines() if line.startswith("|")] if found else []
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        if not cells or cells[0] != DEPARTURES:
            raise ValueError(f"{source} needs a section Departures with the columns {', '.join(DEPARTURES)}")
        rows += [[*row, f"[{name}](../notebooks/{name}.ipynb)"] for row in cells[2:]]
    return table(["id", "the paper", "ours", "others' code", "tested by", "chapter"], rows)


def times(names: list[str]) -> str:
    """Return how long each notebook took when it last ran."""
    rows = []
    for name in names:
        last = Job(name).last()
        rows.append([name, last["scale"], f"{last['seconds']:.0f}"] if last else [name, "not run yet", ""])
    return table(["notebook", "scale", "seconds"], rows)


def said(claim: Claim) -> list[str]:
    """Return the verdicts a chapter's prose was written for, of one claim: one, if the chapter is as it should be."""
    return [word for name, word in VERDICT_LINE.findall(Job(claim.chapter).source.read_text()) if name == claim.id]


def measured_verdict(claim: Claim, found: dict[str, Record]) -> str | None:
    """Return the verdict that prose must agree with.

    None where the chapter was not run, or was at smoke scale, or with other parameters than its own; that cannot
    contradict what is said of the last run that counted.
    """
    finding = finding_of(claim, found)
    if finding is None or finding.scale == "smoke":
        return None
    given = found[claim.chapter].provenance["parameters"].values()
    changed = claim.id not in found[claim.chapter].kept_findings and any(value is not None for value in given)
    return None if changed else finding.verdict


def readme(text: str, claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return the README with its table of verdicts written anew.

    Verdicts are those of the records; where a record does not count, the one that the chapter's prose was written for.

    Raises:
        ValueError: the README has not one place for the table, between two comments.
    """
    rows = []
    for title, mine in by_paper({name: claim for name, claim in claims.items() if written(claim)}).items():
        for chapter in dict.fromkeys(claim.chapter for claim in mine):
            words = {c.id: measured_verdict(c, found) or ", ".join(said(c)) for c in mine if c.chapter == chapter}
            heading = re.search(r"^# (.+)$", Job(chapter).source.read_text(), re.M)
            link = f"[{heading[1] if heading else chapter}](notebooks/{chapter}.md)"
            rows.append([title, ", ".join(f"{name} {word}" for name, word in words.items()), link])
            title = ""
    made = table(["paper", "claims and verdicts", "chapter"], rows)
    text, places = README_TABLE.subn(lambda marks: marks[1] + made + marks[2], text)
    if places != 1:
        raise ValueError(f"README.md must have one place for verdicts, {README_TABLE.pattern!r}, it has {places}")
    return text


def contradictions(claims: dict[str, Claim], found: dict[str, Record], text: str) -> list[str]:
    """Return what prose says against the records.

    A chapter must say for each of its claims, in a comment ``% prose C2: reproduced``, which verdict its paragraph was
    written for; the table in ``text``, the README, must be the one that `readme` writes.
    """
    wrong = []
    for claim in claims.values():
        if not written(claim):
            continue
        where, words = Job(claim.chapter).source.relative_to(ROOT), said(claim)
        if len(words) != 1:
            wrong.append(f"{where} must have one line '% prose {claim.id}: <verdict>', it has {len(words)}")
            continue
        verdict = measured_verdict(claim, found)
        if verdict not in (None, words[0]):
            wrong.append(f"{where} says {words[0]} of {claim.id}, the record says {verdict}: rewrite that paragraph")
    if readme(text, claims, found) != text:
        wrong.append("README.md has other verdicts than the records: make readme writes its table anew")
    return wrong


def main() -> int:
    """Write the pages, or the README's table; return 1 if that cannot be done, or prose contradicts the records."""
    parser = argparse.ArgumentParser(description="Write the pages that are made from the records of the last runs.")
    parser.add_argument("--readme", action="store_true", help="write the README's table of verdicts instead")
    claims, names, text = read_claims(), find([]), README.read_text()
    try:
        found = records(claims)
        if parser.parse_args().readme:
            README.write_text(readme(text, claims, found))
            return 0
        made = {"verdicts": verdicts(claims, found), "assumptions": assumptions(names), "times": times(names)}
        wrong = contradictions(claims, found, text)
    except ValueError as error:
        print(f"cannot make the pages: {error}", file=sys.stderr)
        return 1
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, page in made.items():
        Path(PAGES / f"{name}.md").write_text(page)
    groups = {title: [(c, finding_of(c, found)) for c in mine] for title, mine in by_paper(claims).items()}
    Path(PAGES / "verdicts.svg").write_text(forest_plot.svg(groups))
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
