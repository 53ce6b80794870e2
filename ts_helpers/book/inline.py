"""Numbers in a chapter's prose: the role ``{eval}`` holds an expression, which is worked out where it stands."""

import re
from copy import deepcopy

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

ROLE = re.compile(r"\{eval\}`([^`]+)`")


def expand(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook with a cell before each text that asks for numbers, and their names in the text.

    ``{eval}`tau.median():.1f``` is what ``f"{tau.median():.1f}"`` makes of it. Sphinx, which runs nothing, finds the
    values by their names, `myst_nb.glue`'s.
    """
    made, count = deepcopy(notebook), 0
    made.cells = []
    for cell in deepcopy(notebook.cells):
        expressions = ROLE.findall(cell.source) if cell.cell_type == "markdown" else []
        if expressions:
            names = [f"eval-{count + k}" for k in range(len(expressions))]
            count += len(names)
            lines = [
                f'glue("{name}", f"""{{{expression}}}""", display=False)'
                for name, expression in zip(names, expressions, strict=True)
            ]
            source = "\n".join(["from myst_nb import glue", *lines])
            made.cells.append(new_code_cell(source, id=names[0], metadata={"tags": ["remove-cell"]}))
            cell.source = ROLE.sub("{glue:text}`%s`", cell.source.replace("%", "%%")) % tuple(names)
        made.cells.append(cell)
    return made
