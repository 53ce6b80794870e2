import re
import subprocess

import nbformat
import pytest
import yaml
from conftest import ROOT

from ts_helpers.book.claims import read_claims
from ts_helpers.book.run import Job, find

CHAPTERS = find([])
SECTIONS = ["Parameters", "Departures", "Exercises"]


def test_toc_lists_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert sorted(f for f in files if f.startswith("notebooks/")) == [f"notebooks/{name}.ipynb" for name in CHAPTERS]


def test_there_are_chapters():
    assert len(CHAPTERS) >= 2


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_declares_scale_seed_and_device(name):
    declared = Job(name).declared
    assert list(declared)[:3] == ["scale", "seed", "device"]
    assert (declared["scale"].default, declared["seed"].default, declared["device"].default) == ("book", 0, "auto")


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_has_its_sections_in_order(name):
    headings = re.findall(r"^## (.+)$", Job(name).source.read_text(), re.M)
    assert [h for h in headings if h in SECTIONS] == SECTIONS
    assert headings[0].startswith("The claim")


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_shows_every_claim_of_its_own_with_figure_and_verdict(name):
    text = Job(name).source.read_text()
    for claim in read_claims().values():
        if claim.chapter == name:
            assert f"{{numref}}`{claim.figure}` | {{glue:text}}`{claim.id}-verdict` |" in text
            assert f"name: {claim.figure}\n" in text
            for quantity in claim.quantities:
                assert f"{{glue:text}}`{claim.id}-{quantity.name}`" in text


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_types_no_verdict_into_its_prose(name):
    prose = "\n".join(c.source for c in Job(name).notebook.cells if c.cell_type == "markdown")
    prose = re.sub("(?m)^% .*$", "", prose)  # there it must stand, for the check against the record
    typed = re.search(r"\b[A-DS]\d\w?\b[^.|`]{0,20}\b(reproduced|partly|inconclusive)\b", prose)
    assert not typed, typed


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_gives_every_figure_alt_text_and_caption(name):
    for cell in Job(name).notebook.cells:
        if cell.cell_type == "code" and re.search(r"plt\.(subplots|figure)\(|^show\(", cell.source, re.M):
            if "def " in cell.source and not cell.metadata.get("mystnb"):
                continue  # helpers, and pages of a slider, which has its own
            assert cell.metadata["mystnb"]["image"]["alt"].endswith(".")
            assert cell.metadata["mystnb"]["figure"]["caption"]


def test_no_executed_notebook_is_in_git():
    listed = subprocess.run(["git", "ls-files", "*.ipynb"], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout == ""


def test_glossary_points_from_every_word_to_where_it_is_explained():
    blocks = re.findall(r"```\{glossary\}\n(.*?)```", (ROOT / "book" / "glossary.md").read_text(), re.S)
    entries = [entry for block in blocks for entry in block.strip().split("\n\n")]
    assert len(entries) > 40
    for entry in entries:
        words, _, meaning = entry.partition("\n  ")
        assert "\n" not in meaning, words
        assert re.search(r"\{(ref|eq)\}`|\]\(", meaning), words


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 80


def test_ci_runs_test_and_then_book():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert lines == ["make test", "make book"]


def test_constraints_pin_every_dependency_exactly():
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    project = (ROOT / "pyproject.toml").read_text()
    block = project[project.index("dependencies = [") : project.index("[tool.setuptools]")]
    names = re.findall(r'"([a-zA-Z][\w-]+?)(?:[<>=].*?)?"', block)
    assert len(names) > 20
    for name in names:
        assert re.search(rf"^{name.lower().replace('_', '-')}==\d", pins, re.M), name


@pytest.mark.parametrize(("python", "message"), [("nosuchpython", "no 'nosuchpython' here"), ("false", "is needed")])
def test_missing_prerequisite_is_one_clear_line(python, message):
    done = subprocess.run(["sh", "tools/preflight.sh", python], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_executed_notebooks_are_valid(project):
    for name in CHAPTERS:
        nbformat.validate(nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4))
