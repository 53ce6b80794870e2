"""Below every figure of a chapter: its data as CSV, and of each run that it can show the provenance and the command."""

import html
import json
import shlex
import shutil
from pathlib import Path


def _take_tables(notebook):
    """Take out of an executed notebook the tables of figures, which nothing renders; return them by cell."""
    outputs = [[out["data"] for out in cell.get("outputs", []) if "data" in out] for cell in notebook["cells"]]
    return ["".join("".join(data.pop("text/csv", "")) for data in each) for each in outputs]


def _runs(app, chapter):
    """Yield of this run and of the recorded one, if there is, what it is called, its provenance, and the command."""
    live = Path(app.srcdir, "_build", "records", chapter, "provenance.json")
    for title, file in ("this run", live), ("recorded run", Path(app.srcdir, "results", f"{chapter}.paper.json")):
        if file.is_file():
            made = json.loads(file.read_text())
            given = {name: made[name] for name in ("scale", "seed")} | made["parameters"]
            words = [word for name, value in given.items() if value is not None for word in ("-p", name, str(value))]
            words = ["--reproduce", f"results/{chapter}.paper.nc"] if "parts" in made else [chapter, *words]
            yield title, file, shlex.join(["python", "-m", "ts_helpers.run", *words])


def _link_data(app, docname, source):
    """Write the tables of a chapter's figures beside its pages, and link to them below the captions."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook, chapter = json.loads(source[0]), docname.removeprefix("notebooks/")
    tables = _take_tables(notebook)
    if app.builder.name == "html":
        folder, at = Path(app.outdir, "_static", "data", chapter), f"{'../' * docname.count('/')}_static/data/{chapter}"
        folder.mkdir(parents=True, exist_ok=True)
        runs = []
        for title, file, command in _runs(app, chapter):
            name = shutil.copyfile(file, folder / f"{title.replace(' ', '-')}.json").name
            told = f"{title.capitalize()}: <code>{html.escape(command)}</code>"
            runs.append((f"# {title}: {command}\n", f'<p>{told} (<a href="{at}/{name}">provenance</a>)</p>'))
        for cell, table in zip(notebook["cells"], tables, strict=True):
            if figure := cell["metadata"].get("mystnb", {}).get("figure"):
                shown = runs if "recorded" in table else runs[:1]  # what shows the recorded run says so in a title
                heads, links = ("".join(each[k] for each in shown) for k in (0, 1))
                if table:
                    name, size = f"{figure['name']}.csv", f"{len(table) / 1000:,.0f} kB"
                    page = f"# {app.config.html_baseurl}{docname}.html#{figure['name']}\n"
                    (folder / name).write_text(page + heads + table)
                    links = f'<p><a href="{at}/{name}">What is drawn, as CSV</a> ({size})</p>{links}'
                figure["caption"] += f'\n\n<details class="data"><summary>Data</summary>{links}</details>\n'
    source[0] = json.dumps(notebook)


def _slim_downloads(app, exception):
    """Take the tables out of the notebooks to download: most of their bytes."""
    for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text())
        if any(_take_tables(notebook)):
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def setup(app):
    """Do so before a notebook is parsed, and once all is written."""
    app.connect("source-read", _link_data)
    app.connect("build-finished", _slim_downloads)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
