"""What prose says of claims, held against the records; what pages include is made as they are built, in ``book/_ext``.

``python -m ts_helpers.book.pages`` names what prose says otherwise; with ``--readme`` it writes the README anew.
"""

import argparse
import re
import sys
from typing import get_args

from ts_helpers.book.claims import Claim, Finding, Verdict, read_claims, table
from ts_helpers.book.paths import ROOT, record_folder
from ts_helpers.book.records import Record, load
from ts_helpers.book.run import Job

PAPERS = {
    "benureau2018": "A. Benureau & Tani (2018)",
    "quax2020": "B. Quax, D'Asaro & van Gerven (2020)",
    "matsuki2018": "C. Matsuki & Shibata (2018)",
    "tallec2018": "D. Tallec & Ollivier (2018)",
    "synthesis": "S. One leak, four dials",
}
VERDICTS = "|".join(get_args(Verdict))
PROSE = re.compile(rf"^% prose (\w+): ({VERDICTS})$", re.M)
README, FINDINGS = ROOT / "README.md", ROOT / "book" / "findings.md"
WRITTEN = r"(<!-- {0}, written by make readme -->\n).*?(<!-- end of {0} -->)"
NUMBER = re.compile(r"\{(\w+)-(\w+)\}")  # of a finding: a claim's quantity


def records(claims: dict[str, Claim]) -> dict[str, Record]:
    """Return the record of every chapter that has claims and was run."""
    folders = {claim.chapter: record_folder(claim.chapter) for claim in claims.values()}
    return {chapter: load(at) for chapter, at in folders.items() if (at / "provenance.json").is_file()}


def by_paper(claims: dict[str, Claim]) -> dict[str, list[Claim]]:
    """Return the claims of each paper, by its title."""
    return {title: [claim for claim in claims.values() if claim.paper == paper] for paper, title in PAPERS.items()}


def finding_of(claim: Claim, found: dict[str, Record]) -> Finding | None:
    """Return the finding on a claim, if its chapter was run: that of the archived run, or else of the last."""
    record = found.get(claim.chapter)
    return (record.archived.get(claim.id) or record.findings.get(claim.id)) if record else None


def changed(claim: Claim, found: dict[str, Record]) -> dict[str, object]:
    """Return the parameters of the run that the finding on a claim is of, where they are not the chapter's own."""
    record = found[claim.chapter]
    given = {} if claim.id in record.archived else record.provenance["parameters"]
    return {name: value for name, value in given.items() if value is not None}


def findings(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return ``book/findings.md`` with its numbers; a KeyError names one that no claim has."""

    def number(name: re.Match) -> str:
        return claims[name[1]].estimates(finding_of(claims[name[1]], found), "–")[name[2]]

    return NUMBER.sub(number, FINDINGS.read_text())


def said(claim: Claim) -> list[str]:
    """Return the verdicts a chapter's prose was written for, of one claim; there should be one."""
    return [word for name, word in PROSE.findall(Job(claim.chapter).source.read_text()) if name == claim.id]


def measured_verdict(claim: Claim, found: dict[str, Record]) -> str | None:
    """Return the verdict that prose must agree with; None of no run, one at smoke scale or with other parameters."""
    finding = finding_of(claim, found)
    return finding.verdict if finding and finding.scale != "smoke" and not changed(claim, found) else None


def readme(text: str, claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return the README, its verdicts and findings anew, of recorded runs.

    Where no record counts, verdicts are the prose's; where findings are not all of recorded runs, they stay.
    """
    rows = []
    for title, mine in by_paper(claims).items():
        for chapter in dict.fromkeys(claim.chapter for claim in mine):
            words = {c.id: measured_verdict(c, found) or ", ".join(said(c)) for c in mine if c.chapter == chapter}
            listed = ", ".join(f"{name} {word}" for name, word in words.items())
            heading = re.findall(r"^# (.+)$", Job(chapter).source.read_text(), re.M)[0]
            rows.append([title, listed, f"[{heading}](notebooks/{chapter}.md)"])
            title = ""
    made = {"verdicts": table(["paper", "claims and verdicts", "chapter"], rows)}
    named = {name for name, _ in NUMBER.findall(FINDINGS.read_text())}
    if named <= {name for record in found.values() for name in record.archived}:
        made["findings"] = findings(claims, found)
    for name, part in made.items():
        around = re.split(WRITTEN.format(name), text, flags=re.S)
        text = "".join([*around[:2], part, *around[2:]])
    return text


def contradictions(claims: dict[str, Claim], found: dict[str, Record], text: str) -> list[str]:
    """Return what prose says against the records: a chapter's lines ``% prose C2: reproduced``, and the README."""
    wrong = []
    for claim in claims.values():
        where, words, verdict = f"notebooks/{claim.chapter}.md", said(claim), measured_verdict(claim, found)
        if len(words) != 1:
            wrong.append(f"{where} must have one line '% prose {claim.id}: <verdict>', it has {len(words)}")
        elif verdict not in (None, words[0]):
            wrong.append(f"{where} says {words[0]} of {claim.id}, the record says {verdict}: rewrite that paragraph")
    if readme(text, claims, found) != text:
        wrong.append("README.md has other verdicts or numbers than the records: make readme writes them anew")
    return wrong


def main() -> int:
    """Name what prose says against the records, or write the README; return 1 if it does, or a record is damaged."""
    parser = argparse.ArgumentParser(description="Name what prose says against the records of the last runs.")
    parser.add_argument("--readme", action="store_true", help="write the README's findings and verdicts instead")
    options, claims = parser.parse_args(), read_claims()
    try:
        if options.readme:
            README.write_text(readme(README.read_text(), claims, records(claims)))
            return 0
        wrong = contradictions(claims, records(claims), README.read_text())
    except ValueError as error:
        wrong = [f"cannot make the pages: {error}"]
    print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
