"""The rooms of ts_helpers and the arrows between them: core <- engine, core <- papers, and nothing <- book."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

from ts_helpers.book.run import Job, find

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "ts_helpers").rglob("*.py")
}


def imports(code):
    """The modules of ts_helpers that this code imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides the room"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in FILES else node.module for name in whole}
    return names & FILES.keys()


def room(module):
    """The room of a module: engine, one of papers, book, or core."""
    first, *rest = [*module.split(".")[1:], ""]
    if first == "papers":
        return f"papers/{rest[0]}"
    return first if first in ("engine", "book") else "book" if first == "run" else "core"  # run: the book's door


USED = {module: imports(path.read_text()) for module, path in FILES.items()}
COMPILED = "ts_helpers.papers.matsuki2018"  # has a recurrence that no cell has, of the engine's numbers


def test_only_cells_one_paper_and_its_own_chapter_use_the_engine():
    chapters = {
        name: "\n".join(c.source for c in Job(name).notebook.cells if c.cell_type == "code") for name in find([])
    }
    used = {module: used for module, used in USED.items() if room(module) != "engine"}
    used |= {name: imports(code) for name, code in chapters.items()}
    who = {name for name, modules in used.items() if "engine" in map(room, modules)}
    assert who == {"ts_helpers.cells", COMPILED, "engine/speed"}
    assert {used for used in USED[COMPILED] if room(used) == "engine"} == {"ts_helpers.engine.lanes"}


@pytest.mark.parametrize("module", FILES)
def test_module_uses_no_room_above_its_own_and_opens_with_what_belongs_in_it(module):
    below = {"engine": set(), "core": {"engine"}}.get(room(module), {"core", *["engine"] * (module == COMPILED)})
    assert {room(used) for used in USED[module]} <= below | {room(module)}
    assert ast.get_docstring(ast.parse(FILES[module].read_text())).split("\n\n")[0].endswith((".", ":"))


def test_no_module_imports_itself_through_others():
    assert len(list(TopologicalSorter(USED).static_order())) > 20  # raises where there is a circle
