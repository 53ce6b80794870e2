"""What pages include: claims with their verdicts, a figure of all, departures, times; made as the book is built.

It is written below ``_build/pages``, from claims, chapters and records, before any page is read.
"""

import json
import re
from pathlib import Path
from typing import Any

from ts_helpers.book import forest_plot
from ts_helpers.book.claims import Claim, read_claims, table
from ts_helpers.book.pages import by_paper, changed, finding_of, findings, records
from ts_helpers.book.paths import RESULTS
from ts_helpers.book.records import Record
from ts_helpers.book.run import Job, chapters

ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
DEPARTURES = "| id | the paper | ours | others | tested by |"


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
            told = claim.estimates(finding)  # by names, which are those of the figure's rows
            measured += [[claim.id, f"**{q.name.replace('_', ' ')}:** {q.meaning}", q.words, told[q.name]]
                         for q in claim.quantities]  # fmt: skip
            over = finding.over.items() if finding else ()
            measured += [[claim.id, f"the same, {value}", "", words] for value, words in over]
            measured += [[claim.id, words, "", ""] for words in earlier(claim)]
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
        found = re.search(r"^# (.*?)\n.*^## Departures\n(.*?)(?=^## |\Z)", Job(name).source.read_text(), re.M | re.S)
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


def write(app):
    """Write all of it."""
    claims, names = read_claims(), chapters()
    found = records(claims)
    made = {"verdicts.md": verdicts(claims, found), "editions.md": editions(claims, found)}
    told = re.sub(r"\]\((notebooks/.+?)\.md\)", r"](../\1.ipynb)", findings(claims, found))
    made |= {"findings.md": told, "strip.md": strip(claims, found)}
    made |= {"assumptions.md": assumptions(names), "times.md": times(names)}
    made |= {f"{name}.md": noted(name) for name in ("stress", "reproduced", "costs")}
    papers = by_paper(claims).items()
    made["verdicts.svg"] = forest_plot.svg({title: [(c, finding_of(c, found)) for c in mine] for title, mine in papers})
    made |= {f"claims/{name}.md": page for name, page in fragments(claims, found).items()}
    for name, page in made.items():
        file = Path(app.srcdir, "_build", "pages", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page)


def setup(app):
    """Do so before a page is read."""
    app.connect("builder-inited", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
