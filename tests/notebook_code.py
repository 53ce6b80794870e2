"""The code of chapters without their training, for worked examples of what their claims measure.

A paper's examples are in ``tests/test_quantities_<paper>.py``: results made by hand, as small as can be, with what a
reader sees that a quantity must be of them, a seed each (of strata a mapping). A quantity's key is its claim and its
name; of a claim that is judged over a choice too, the value of the choice may come third::

    EXAMPLES = {
        "X1/loss_ratio": (xr.Dataset(dict(loss=(["model", "seed"], [[1, 2], [4, 4]]))), [0.25, 0.5]),
        "X1/loss_ratio/252 epochs": (...),
    }


    @pytest.mark.parametrize("key", EXAMPLES)
    def test_quantity_has_the_value_of_a_worked_example(key):
        check(key, *EXAMPLES[key])

So quantities have to be functions of results, which can be defined before anything is trained.
"""

import ast
import inspect
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from unittest.mock import patch

import numpy as np
import torch
from matplotlib import rc_context

from ts_helpers.book.chapter import Chapter
from ts_helpers.book.claims import read_claims
from ts_helpers.book.run import Job


class Names(dict):
    """The names of a chapter, up to where its claims are judged; each is made when it is first asked for."""

    def __init__(self, name):
        self._statements = []
        cells = [cell.source for cell in Job(name).notebook.cells if cell.cell_type == "code"]
        default, threads = torch.get_default_dtype(), torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TS_RECORDS=folder), rc_context():
            while "chapter" not in self.keys():
                exec(cells.pop(0), self)
        del self["chapter"].checkpoints  # what trains asks for them
        torch.set_default_dtype(default)
        torch.set_num_threads(threads)
        last = next(i for i, source in enumerate(cells) if "chapter.judge(" in source)
        self._statements = [node for source in cells[: last + 1] for node in ast.parse(source).body]

    def __missing__(self, name):
        binding = [node for node in self._statements if name in bound(node)]
        if not binding:
            raise KeyError(name)
        self._statements = [node for node in self._statements if node not in binding]
        exec(compile(ast.Module(binding, []), name, "exec"), self)
        return self[name]

    __getattr__ = dict.__getitem__


def bound(node):
    """Return the names that a statement defines, imports, assigns, or changes an item or attribute of."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.alias):
            found.add((inner.asname or inner.name).partition(".")[0])
        elif isinstance(getattr(inner, "ctx", None), ast.Store):
            while isinstance(inner, ast.Subscript | ast.Attribute):
                inner = inner.value
            found.add(getattr(inner, "id", None))
    return found


@cache
def functions(name):
    """Return the functions of a chapter, and its imports and constants, as attributes; nothing is trained."""
    return Names(name)


@cache
def judged(name):
    """Return what the chapter judges its claims by: by claim the quantities, and what they are judged over."""
    names = functions(name)
    calls = [n for node in names._statements for n in ast.walk(node) if isinstance(n, ast.Call)]
    call = next(n for n in calls if ast.unparse(n.func) == "chapter.judge")
    given = dict(zip(inspect.signature(Chapter.judge).parameters, [None, *call.args], strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords}
    expressions = (ast.Expression(given.get(key) or ast.parse("{}").body[0].value) for key in ("quantities", "over"))
    return [eval(compile(each, name, "eval"), names) for each in expressions]


def check(key, results, expected):
    """Assert that a quantity, ``<claim>/<quantity>`` or ``<claim>/<quantity>/<value of a choice>``, is as expected."""
    claim, name, *value = key.split("/", 2)
    quantities, over = judged(read_claims()[claim].chapter)
    each = quantities[claim]
    named = each if isinstance(each, Mapping) else {quantity.__name__: quantity for quantity in each}
    values = named[name](over[claim][value[0]](results) if value else results)
    assert isinstance(values, Mapping) == isinstance(expected, Mapping)
    if isinstance(expected, Mapping):
        assert [*values] == [*expected]
    else:
        values, expected = {"": values}, {"": expected}
    for stratum in expected:
        np.testing.assert_allclose(np.ravel(values[stratum]), expected[stratum], rtol=1e-6, atol=1e-9)
