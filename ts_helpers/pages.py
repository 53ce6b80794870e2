"""Pages made from the records: verdicts, assumptions, run times; and a check that prose says what was measured.

    python -m ts_helpers.pages

It writes Markdown below ``_build/pages``, which pages of ``book/`` include, and exits 1 if a chapter or the README
claims a verdict other than the recorded one.
"""

import re
import sys
from pathlib import Path

from ts_helpers.claims import Claim, Finding, read_claims
from ts_helpers.places import ROOT, record_folder
from ts_helpers.records import Record, load
from ts_helpers.run import Job, find

PAGES = ROOT / "_build" / "pages"
PAPERS = {
    "benureau2018": "A. Benureau & Tani (2018)",
    "quax2020": "B. Quax, D'Asaro & van Gerven (2020)",
    "matsuki2018": "C. Matsuki & Shibata (2018)",
    "tallec2018": "D. Tallec & Ollivier (2018)",
}
VERDICTS = "reproduced|partly|not reproduced|inconclusive"
VERDICT_LINE = re.compile(rf"^% prose (\w+): ({VERDICTS})$", re.M)
DEPARTURES = ["id", "the paper", "ours", "others", "tested by"]


def records(claims: dict[str, Claim]) -> dict[str, Record]:
    """Return the record of every chapter that has claims and was run."""
    chapters = dict.fromkeys(claim.chapter for claim in claims.values())
    return {chapter: load(record_folder(chapter)) for chapter in chapters if record_folder(chapter).is_dir()}


def verdicts(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return the verdicts, a paper at a time: first the claims, then what was measured for each."""
    parts = []
    for paper, title in PAPERS.items():
        mine = [claim for claim in claims.values() if claim.paper == paper]
        if not mine:
            continue
        parts.append(f"## {title}\n")
        parts.append(table(["id", "what the paper says", "verdict", "runs", "scale", "figure"], [
            [claim.id, f"{claim.claim} *({claim.source})*", *state(claim, found), f"{{numref}}`{claim.figure}`"]
            for claim in mine
        ]))  # fmt: skip
        parts.append(table(["id", "what we measure", "criterion", "estimate, 95 % interval"], [
            [claim.id, quantity.meaning, quantity.criterion.text, measured]
            for claim in mine
            for quantity, measured in zip(claim.quantities, estimates(claim, found), strict=True)
        ]))  # fmt: skip
    return "\n".join(parts)


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


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def contradictions(claims: dict[str, Claim], found: dict[str, Record], readme: str) -> list[str]:
    """Return what prose says against the records.

    A chapter must say for each of its claims, in a comment ``% prose C2: reproduced``, which verdict its paragraph was
    written for; the README names verdicts in its table. Records at smoke scale, or with other parameters than the
    chapter's own, cannot contradict them.
    """
    wrong = []
    in_readme = dict(re.findall(rf"\b([A-DS]\d+\w?) ({VERDICTS})\b", readme))
    for claim in claims.values():
        source = Job(claim.chapter).source
        said = [word for name, word in VERDICT_LINE.findall(source.read_text()) if name == claim.id]
        if len(said) != 1:
            wrong.append(
                f"{source.relative_to(ROOT)} must have one line '% prose {claim.id}: <verdict>', it has {len(said)}"
            )
            continue
        finding = finding_of(claim, found)
        if finding is None or finding.scale == "smoke":
            continue
        given = found[claim.chapter].provenance["parameters"].values()
        if claim.id not in found[claim.chapter].kept_findings and any(value is not None for value in given):
            continue
        for where, word in ((source.relative_to(ROOT), said[0]), ("README.md", in_readme.get(claim.id, "nothing"))):
            if word != finding.verdict:
                wrong.append(
                    f"{where} says {word} of {claim.id}, the record says {finding.verdict}: rewrite that paragraph"
                )
    return wrong


def main() -> int:
    """Write the pages; return 1 if prose contradicts the records."""
    claims, names = read_claims(), find([])
    try:
        found = records(claims)
        made = {"verdicts": verdicts(claims, found), "assumptions": assumptions(names), "times": times(names)}
    except ValueError as error:
        print(f"cannot make the pages: {error}", file=sys.stderr)
        return 1
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        Path(PAGES / f"{name}.md").write_text(text)
    wrong = contradictions(claims, found, (ROOT / "README.md").read_text())
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
