"""Pages made from claims, chapters and records, and a check that prose agrees with them; no chapter's own figure.

``python -m ts_helpers.book.pages`` writes what is included, below ``_build/pages``; with ``--readme`` the README.
"""

import argparse
import json
import re
import sys
from typing import Any, get_args

from ts_helpers.book import forest_plot
from ts_helpers.book.claims import Claim, Finding, Verdict, read_claims, table
from ts_helpers.book.paths import RESULTS, ROOT, record_folder
from ts_helpers.book.records import Record, load
from ts_helpers.book.run import Job, chapters

PAGES = ROOT / "_build" / "pages"
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
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
WRITTEN = r"(<!-- {0}, written by make readme -->\n).*?(<!-- end of {0} -->)"
NUMBER = re.compile(r"\{(\w+)-(\w+)\}")  # of a finding: a claim's quantity
DEPARTURES = "| id | the paper | ours | others | tested by |"


def records(claims: dict[str, Claim]) -> dict[str, Record]:
    """Return the record of every chapter that has claims and was run."""
    folders = {claim.chapter: record_folder(claim.chapter) for claim in claims.values()}
    return {chapter: load(at) for chapter, at in folders.items() if (at / "provenance.json").is_file()}


def by_paper(claims: dict[str, Claim]) -> dict[str, list[Claim]]:
    """Return the claims of each paper, by its title."""
    return {title: [claim for claim in claims.values() if claim.paper == paper] for paper, title in PAPERS.items()}


def text_of(chapter: str) -> str:
    """Return a chapter's source."""
    return Job(chapter).source.read_text()


def finding_of(claim: Claim, found: dict[str, Record]) -> Finding | None:
    """Return the finding on a claim, if its chapter was run: that of the archived run, or else of the last."""
    record = found.get(claim.chapter)
    return (record.archived.get(claim.id) or record.findings.get(claim.id)) if record else None


def changed(claim: Claim, found: dict[str, Record]) -> dict[str, object]:
    """Return the parameters of the run that the finding on a claim is of, where they are not the chapter's own."""
    record = found[claim.chapter]
    given = {} if claim.id in record.archived else record.provenance["parameters"]
    return {name: value for name, value in given.items() if value is not None}


def earlier(claim: Claim) -> list[str]:
    """Return of each earlier edition of a claim, in the order of events, verdict, reason of the change, what stood."""
    told = []
    for n, edition in enumerate(claim.editions):
        after = next((later.quantities for later in claim.editions[n + 1 :] if later.quantities), claim.quantities)
        asked = [f"{q.meaning.partition('; ')[0]}, {q.words}" for q in edition.quantities if q not in after]
        stood: dict[str, Any] = {"claimed: {}": edition.claim, "cited {}.": edition.source}
        stood |= {"measured: {}.": "; ".join(asked), "asked for {} runs.": edition.min_seeds}
        stood["had {} runs planned."] = edition.planned
        words = "".join(f" It {text.format(what)}" for text, what in stood.items() if what)
        told.append(f"{ORDINALS[n]} edition: {edition.verdict}. Changed because {edition.reason}.{words}")
    return told


def verdicts(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return, a paper at a time, the claims and what was measured for each; ``verdicts.html#B3a`` leads to a claim."""
    parts = ['<div id="verdict-filters"></div>\n']  # filled by book/static/verdicts.js
    for title, mine in by_paper(claims).items():
        rows, measured = [], []
        for claim in mine:
            finding = finding_of(claim, found)
            planned = f"planned: {claim.planned}" if claim.planned else ""
            row = ["not run yet", planned, ""]
            if finding:
                given = "".join(f", {name} = {value}" for name, value in changed(claim, found).items())
                verdict = finding.words.replace(finding.verdict, f"**{finding.verdict}**", 1)
                runs = str(min(m.seeds for m in finding.measured))
                row = [verdict, f"{runs}, {planned}" if planned else runs, finding.scale + given]
            text = f"{claim.claim} *({claim.source})*"
            rows.append([f'<span id="{claim.id}">{claim.id}</span>', text, *row, f"{{numref}}`{claim.figure}`"])
            measured += [[claim.id, q.meaning, q.words, claim.estimates(finding)[q.name]] for q in claim.quantities]
            over = finding.over.items() if finding else ()
            measured += [[claim.id, f"the same, {value}", "", words] for value, words in over]
            measured += [[claim.id, told, "", ""] for told in earlier(claim)]
        parts += [f"## {title}\n", table(["id", "claim", "verdict", "runs", "scale", "figure"], rows)]
        parts.append(table(["id", "what we measure", "criterion", "estimate, 95 % interval"], measured))
    return "\n".join(parts)


def editions(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return of the claims that were changed which had what verdict at first, and have what now."""
    groups: dict[tuple[str, str], list[str]] = {}
    for claim in (claim for _, claim in sorted(claims.items()) if claim.editions):
        now = finding.verdict if (finding := finding_of(claim, found)) else "not run yet"
        groups.setdefault((claim.editions[0].verdict, now), []).append(f"[{claim.id}](verdicts.md#{claim.id})")
    return table(["first edition", "now", "claims"], [[*both, ", ".join(ids)] for both, ids in sorted(groups.items())])


def findings(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return ``book/findings.md`` with its numbers; ValueError: it asks for one that no claim has."""

    def number(name: re.Match) -> str:
        estimates = claims[name[1]].estimates(finding_of(claims[name[1]], found), "–") if name[1] in claims else {}
        if name[2] not in estimates:
            raise ValueError(f"{FINDINGS} asks for {name[0]}, which no claim has")
        return estimates[name[2]]

    return NUMBER.sub(number, FINDINGS.read_text())


def strip(claims: dict[str, Claim], found: dict[str, Record]) -> str:
    """Return all verdicts in a line a paper: the claims' ids, which link to them, in the look of their verdict."""
    rows = []
    for title, mine in by_paper(claims).items():
        told = [(claim, f.verdict if (f := finding_of(claim, found)) else "not run yet") for claim in mine]
        link = '<a class="verdict {}" href="verdicts.html#{id}" title="{id}: {}">{id}</a>'
        rows.append([title, " ".join(link.format(word.replace(" ", "-"), word, id=claim.id) for claim, word in told)])
    return table(["paper", "claims"], rows)


def fragments(claims: dict[str, Claim], found: dict[str, Record]) -> dict[str, str]:
    """Return what chapters include: by chapter the table of its claims; by id what was measured for a claim."""
    made: dict[str, str] = {}
    lists: dict[str, list[list[str]]] = {}
    for claim in claims.values():
        finding, record = finding_of(claim, found), found.get(claim.chapter)
        verdict = finding.words if finding else "not run yet"
        linked = f'<span id="{claim.id}">[{claim.id}](../../book/verdicts.md#{claim.id})</span>'
        row = [linked, claim.claim, claim.source, f"{{numref}}`{claim.figure}`", verdict]
        lists[claim.chapter] = [*lists.get(claim.chapter, []), row]
        # of a meaning, what is before the semicolon: after it the criterion is explained
        columns = {claim.id: [q.meaning.partition("; ")[0] for q in claim.quantities]}
        columns["criterion"] = [q.words for q in claim.quantities]
        if record and record.archived:
            columns["recorded"] = [*claim.estimates(record.archived.get(claim.id), "–").values()]
        if record:
            title = "this run" if record.archived else "measured"
            columns[title] = [*claim.estimates(record.findings.get(claim.id), "–").values()]
        planned, rows = f" Planned: {claim.planned} runs." if claim.planned else "", zip(*columns.values(), strict=True)
        made[claim.id] = f"{table([*columns], [*rows])}\n**{claim.id}: {verdict}.**{planned}\n"
        if finding and finding.over:
            made[claim.id] += "\n" + table([f"{claim.id}, over a choice", "verdict"], [*finding.over.items()])
        made[claim.id] += "".join(f"\n{told[0].upper()}{told[1:]}\n" for told in earlier(claim))
    head = ["id", "claim", "in the paper", "our figure", "verdict"]
    return made | {chapter: table(head, rows) for chapter, rows in lists.items()}


def assumptions(names: list[str]) -> str:
    """Return the *Departures* of each chapter; ValueError if one has none, or a table of other columns."""
    parts = []
    for name in names:
        found = re.search(r"^# (.*?)\n.*^## Departures\n(.*?)(?=^## |\Z)", text_of(name), re.M | re.S)
        title, departures = found.groups() if found else ("", "")
        lines = [line for line in departures.splitlines() if line.startswith("|")]
        if not lines or lines[0] != DEPARTURES:
            raise ValueError(f"{name} needs a section Departures with a table {DEPARTURES}")
        parts.append(f"## [{title}](../notebooks/{name}.ipynb)\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def times(names: list[str]) -> str:
    """Return how long each notebook took when it last ran."""
    last = {name: {"scale": "not run yet", "seconds": ""} | Job(name).last for name in names}
    rows = [[name, ran["scale"], f"{ran['seconds']:.0f}" if ran["seconds"] else ""] for name, ran in last.items()]
    return table(["notebook", "scale", "seconds"], rows)


def noted(name: str) -> str:
    """Return what is noted below ``results/``: ``stress``, what was ``reproduced``, or ``costs`` foreseen."""
    path, below = RESULTS / f"{name}.json", ""
    if not path.exists():
        return "None was made again yet.\n" if name == "reproduced" else "Not recorded yet.\n"
    made = json.loads(path.read_text())
    if name == "stress":
        head = ["what was done", "times", "with what loss"]
        rows = [[row["what"], f"{row['tried']:,}", f"{row['of']}: {row['bad']}"] for row in made["rows"]]
        below = f"\nAt commit {(made['commit'] or 'unknown')[:7]}.\n"  # whole, it is wider than a phone
    elif name == "reproduced":
        head = ["record", "made again, it is", "with", "seconds"]
        rows = [[record, *words, f"{seconds:,}"] for record, (*words, seconds) in made.items()]
    else:
        head = ["notebook", "expected, seconds", "took", "ratio"]
        rows = [[of, f"{told:.0f}", f"{took:.0f}", f"{told / took:.2f}"] for of, (told, took) in made.items()]
        near = sum(1 / 1.5 <= told / took <= 1.5 for told, took in made.values())
        below = f"\nWithin a factor of 1.5: {near} of {len(made)}.\n"
    return table(head, rows) + below


def said(claim: Claim) -> list[str]:
    """Return the verdicts a chapter's prose was written for, of one claim; there should be one."""
    return [word for name, word in PROSE.findall(text_of(claim.chapter)) if name == claim.id]


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
            heading = re.findall(r"^# (.+)$", text_of(chapter), re.M)[0]
            rows.append([title, listed, f"[{heading}](notebooks/{chapter}.md)"])
            title = ""
    made = {"verdicts": table(["paper", "claims and verdicts", "chapter"], rows)}
    named = {name for name, _ in NUMBER.findall(FINDINGS.read_text())}
    if named <= {name for record in found.values() for name in record.archived}:
        made["findings"] = findings(claims, found)
    for name, part in made.items():
        text = re.sub(WRITTEN.format(name), lambda around, part=part: around[1] + part + around[2], text, flags=re.S)
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
    """Write the pages, or the README; return 1 if that cannot be done, or prose contradicts the records."""
    parser = argparse.ArgumentParser(description="Write the pages that are made from the records of the last runs.")
    parser.add_argument("--readme", action="store_true", help="write the README's findings and verdicts instead")
    claims, names, text = read_claims(), chapters(), README.read_text()
    try:
        found = records(claims)
        if parser.parse_args().readme:
            README.write_text(readme(text, claims, found))
            return 0
        made = {"verdicts.md": verdicts(claims, found), "editions.md": editions(claims, found)}
        told = re.sub(r"\]\((notebooks/.+?)\.md\)", r"](../\1.ipynb)", findings(claims, found))
        made |= {"findings.md": told, "strip.md": strip(claims, found)}
        made |= {"assumptions.md": assumptions(names), "times.md": times(names)}
        made |= {f"{name}.md": noted(name) for name in ("stress", "reproduced", "costs")}
        wrong = contradictions(claims, found, text)
    except ValueError as error:
        print(f"cannot make the pages: {error}", file=sys.stderr)
        return 1
    papers = by_paper(claims).items()
    made["verdicts.svg"] = forest_plot.svg({title: [(c, finding_of(c, found)) for c in mine] for title, mine in papers})
    made |= {f"claims/{name}.md": page for name, page in fragments(claims, found).items()}
    for name, page in made.items():
        (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / name).write_text(page)
    print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
