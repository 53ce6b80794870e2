"""Numbers in a chapter's prose: the role ``{eval}`` holds an expression, which is worked out where it stands."""

import itertools
import re
from copy import deepcopy

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROLE = re.compile(r"\{eval\}`([^`]+)`")


def expand(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook with a cell before each text that asks for numbers, and their names in the text.

    ``{eval}`tau:.1f``` is what ``f"{tau:.1f}"`` makes of it. Sphinx, which runs nothing, finds it by its name in glue.
    """
    made, count = deepcopy(notebook), itertools.count()
    made.cells = []
    for cell in deepcopy(notebook.cells):
        if cell.cell_type == "markdown" and (expressions := ROLE.findall(cell.source)):
            names = {f"eval-{next(count)}": expression for expression in expressions}
            lines = [f'glue("{name}", f"""{{{expression}}}""", display=False)' for name, expression in names.items()]
            source = "\n".join(["from myst_nb import glue", *lines])
            made.cells.append(new_code_cell(source, id=next(iter(names)), metadata={"tags": ["remove-cell"]}))
            for name in names:
                cell.source = ROLE.sub(f"{{glue:text}}`{name}`", cell.source, count=1)
        made.cells.append(cell)
    return made
