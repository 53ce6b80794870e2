"""Gather the records of a sweep: one dataset with what was swept as dimensions, and a page of verdicts over it.

python workflow/gather.py runs/tmax               # the last step of `make sweep`
python workflow/gather.py runs/paper --archive    # and what was run goes below results/
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from ts_helpers.book import figures
from ts_helpers.book.claims import Claim, read_claims
from ts_helpers.book.forest_plot import LOOKS, MARK, span
from ts_helpers.book.paths import RECORD, ROOT, archive_files
from ts_helpers.book.records import PART, Record, archived, load, put

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 62rem; margin: auto; padding: 1rem }}
svg {{ max-width: 100%; height: auto }} div {{ overflow-x: auto }}
td, th {{ padding: 0 1em 0 0; text-align: left }}</style>
<h1>{title}</h1>
"""
LEGEND = """<p>A panel for each claim, a mark for each of its quantities. Above the line the criterion is met, at the
top as well as can be; bars are 95 % intervals. Blue discs: reproduced; green triangles: partly; orange crosses: not
reproduced; white squares: inconclusive.</p>
"""


def read(folder: Path) -> dict[str, list[Record]]:
    """Read all records below a folder, by notebook, in the order of their values; ValueError: none, or one damaged."""
    made = [load(path.parent) for path in sorted(folder.rglob(RECORD[2]))]
    if not made:
        raise ValueError(f"no record lies below {folder}")
    made.sort(key=lambda record: (record.provenance["notebook"], list(map(_order, _given(record.provenance).values()))))
    return {name: list(of) for name, of in groupby(made, lambda record: record.provenance["notebook"])}


def swept(records: Sequence[Record]) -> list[str]:
    """Return the parameters, scale and seed among them, in which records of one notebook differ."""
    given = [_given(record.provenance) for record in records]
    return [name for name in given[0] if any(each.get(name) != given[0][name] for each in given)]


def gather(records: Sequence[Record], first: int | None = None) -> xr.Dataset:
    """Join records of one notebook along what was swept; what was not run is NaN.

    ``only`` picks a part that results are labelled by; repetitions are numbered on from those of the ``first`` seed,
    the least if None. Every other parameter becomes a dimension. ValueError: two records have the same parameters.
    """
    names, made = swept(records), dict[tuple[Any, ...], xr.Dataset]()
    first = min(record.provenance["seed"] for record in records) if first is None else first
    for record in records:
        given, each = _given(record.provenance), record.results.drop_encoding()
        texts = {name: c.astype(object) for name, c in each.coords.items() if c.dtype.kind in "UT"}  # not to be cut
        each = each.assign_coords(texts)
        if n := each.sizes.get("seed"):
            each = each.assign({name: each[name].expand_dims(seed=n) for name in _once(record, records)})
            numbers = n * (given["seed"] - first) + np.arange(n)
            each = each.assign_coords(seed=("seed", numbers, {"units": "1", "long_name": "index of the repetition"}))
        for name in (name for name in names if name != "only" and name not in each.dims):
            each = each.drop_vars(name, errors="ignore").expand_dims({name: [given[name]]})
            each[name].attrs = {"units": "1", "long_name": f"parameter {name}"}
        if (place := tuple(given[name] for name in names)) in made:
            raise ValueError(f"records must differ in a parameter, got two with {dict(zip(names, place, strict=True))}")
        made[place] = each
    return xr.merge(made.values(), join="outer", compat="no_conflicts", combine_attrs="drop_conflicts")


def _once(record: Record, records: Sequence[Record]) -> list[Any]:
    """Return what there is once a run, and not the same with other seeds: it stands at each of its repetitions."""
    given = _given(record.provenance) | {"seed": None}
    others = [other.results for other in records if _given(other.provenance) | {"seed": None} == given]
    of = {name: values for name, values in record.results.data_vars.items() if "seed" not in values.dims}
    return [name for name, values in of.items() if not all(values.equals(other.get(name)) for other in others)]


def archive(records: Sequence[Record]) -> Path:
    """Put the paper-scale records of one notebook below ``results/``: a whole run, or parts joined to those before.

    Parts are arms, by ``only``, and repetitions, by ``seed``. ValueError: another scale or parameter was swept; or what
    is archived is whole, has other settings, or is another run of a part, and has to be moved away first.
    """
    names, new = swept(records), [record.provenance for record in records]
    notebook, scale = new[0]["notebook"], new[0]["scale"]
    if scale != "paper" or not {*names} <= {"only", "seed"}:
        got = f"{notebook} at scale {scale}, over {', '.join(names) or 'nothing'}"
        raise ValueError(f"what is archived must be of scale paper, and swept over only or seed, got {got}")
    old, results, made = archived(notebook), records[0].results, new[0]
    if len(records) > 1 or made["settings"].get("only") is not None:
        first = old.provenance["seed"] if old else min(each["seed"] for each in new)
        results = gather(records, first).combine_first(old.results) if old else gather(records, first)
        parts = _parts(old, new)
        which = {name: made[name] | dict.fromkeys(PART[:1]) for name in ("parameters", "settings")}
        seconds = round(sum(part["seconds"] for part in parts), 1)
        made = made | which | dict(seed=first, seconds=seconds, parts=parts)
    with tempfile.TemporaryDirectory() as folder:
        packed = {name: {"zlib": True} for name in results.data_vars}  # most of what is joined may be NaN
        results.to_netcdf(file := Path(folder, RECORD[0]), engine="h5netcdf", encoding=packed)
        return put(file, made)


def _parts(old: Record | None, new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how all parts were made, in order; ValueError if they are not of one whole, or one is there twice."""
    parts, file = dict[str, dict[str, Any]](), archive_files(new[0]["notebook"])[0]

    def alike(made: dict[str, Any]) -> list[Any]:
        others = {name: value for name, value in made["settings"].items() if name not in PART}
        return [others, made["settings"].get("only") is None]

    for made in [*(old.parts if old else []), *new]:
        part = f"only {made['settings'].get('only')}, seed {made['seed']}"
        if (old and "parts" not in old.provenance) or alike(made) != alike(new[0]):
            raise ValueError(f"{file} is whole, or of other settings: move it away")
        if parts.setdefault(part, made)["sha256"] != made["sha256"]:
            raise ValueError(f"{file} has another run of {part}: move it away")
    return [parts[part] for part in sorted(parts)]


def draw(records: Sequence[Record], claims: Sequence[Claim]) -> str:
    """Return small multiples as SVG, a panel a claim: where its quantities stand over the parameter swept first."""
    first, *others = swept(records) or ["seed"]
    values = list(dict.fromkeys(_given(record.provenance)[first] for record in records))
    lines = list(dict.fromkeys(tuple(_given(record.provenance).get(name) for name in others) for record in records))
    with plt.rc_context():
        figures.use_style("book")
        rows = -(-len(claims) // 3)
        fig, axes = plt.subplots(rows, 3, figsize=(9.6, 2.4 * rows), squeeze=False, sharey=True)
        for ax, claim in zip(axes.flat, claims, strict=False):
            ax.axhspan(0, 1.1, color="#e8f0f6", lw=0, zorder=0)
            ax.axhline(0, color="black", lw=0.8, ls="-")
            for record in records:
                given, finding = _given(record.provenance), record.findings[claim.id]
                line = lines.index(tuple(given.get(name) for name in others))
                for n, (measured, quantity) in enumerate(zip(finding.measured, claim.quantities, strict=True)):
                    if places := span(measured, quantity):
                        beside = (line * len(claim.quantities) + n + 1) / (len(lines) * len(claim.quantities) + 1) - 0.5
                        x, look = values.index(given[first]) + 0.8 * beside, LOOKS[finding.verdict]
                        ax.plot([x, x], places[1:], color=look["color"], lw=2, ls="-", solid_capstyle="butt")
                        ax.plot(x, places[0], ls="", zorder=3, **MARK | {"ms": 4} | look)
            ax.set(title=claim.id, ylim=(-1.1, 1.1), yticks=[-1, 0, 1], xlim=(-0.6, len(values) - 0.4), xlabel=first)
            ax.set_yticklabels(["furthest", "edge", "best"])
            ax.set_xticks(range(len(values)), [f"{value:g}" if isinstance(value, float) else value for value in values])
        for ax in axes.flat[len(claims) :]:
            ax.remove()
        fig.savefig(made := io.StringIO(), format="svg", metadata={"Date": None})
        plt.close(fig)
    return made.getvalue()[made.getvalue().index("<svg") :]


def table(records: Sequence[Record], claims: Sequence[Claim]) -> str:
    """Return what the panels show in words: each claim and its quantities; then a row a record, with its verdicts."""
    names = swept(records)
    rows = [[*(_given(record.provenance)[name] for name in names), *(record.findings[c.id].verdict for c in claims)]
            for record in records]  # fmt: skip
    cells = [[f"<th>{escape(name)}</th>" for name in (*names, *(claim.id for claim in claims))]]
    cells += [[f"<td>{escape(str(value))}</td>" for value in row] for row in rows]
    said = [(claim.id, claim.claim, ", ".join(q.name.replace("_", " ") for q in claim.quantities)) for claim in claims]
    told = "".join("<p><b>{}</b> {} From left to right: {}.</p>\n".format(*map(escape, each)) for each in said)
    return told + "<div><table>" + "\n".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table></div>\n"


def build(folder: Path, keep: bool = False) -> Path:
    """Gather all records below a folder into ``<notebook>.nc`` there, and a page; archive them, too, if asked to."""
    body = LEGEND
    for notebook, records in read(folder).items():
        if keep:
            print(f"archived    {archive(records).relative_to(ROOT)}")
        (file := folder / f"{notebook}.nc").parent.mkdir(parents=True, exist_ok=True)
        gather(records).to_netcdf(file, engine="h5netcdf")
        over = f"{len(records)} runs, over {', '.join(swept(records)) or 'nothing'}"
        body += f"<h2>{escape(notebook)}</h2>\n<p><a href='{notebook}.nc'>{file.name}</a>: {over}.</p>\n"
        if claims := [claim for claim in read_claims().values() if claim.id in records[0].findings]:
            body += draw(records, claims) + table(records, claims)
    (page := folder / "index.html").write_text(PAGE.format(title=escape(folder.name)) + body)
    return page


def _given(made: dict[str, Any]) -> dict[str, Any]:
    return made["parameters"] | {"scale": made["scale"], "seed": made["seed"]}


def _order(value: Any) -> tuple[str, Any]:
    return type(value).__name__, 0 if value is None else value


def main(argv: list[str] | None = None) -> None:
    """Gather what lies below the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Gather the records of a sweep: datasets, and a page of verdicts.")
    parser.add_argument("folder", type=Path, help="runs/<sweep>; records lie anywhere below it")
    parser.add_argument("--archive", action="store_true", help="put them below results/, too; scale paper only")
    options = parser.parse_args(argv)
    try:
        print(f"open {build(options.folder, options.archive)}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
