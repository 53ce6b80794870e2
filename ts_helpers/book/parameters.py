"""The parameters cell of a notebook: what it declares, and which values it takes."""

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCALES = ("smoke", "book", "paper")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, ``name = default  # rule; meaning``.

    The rule is ``one of a, b, c``, ``int in [1, inf)``, ``float in (0, 1]``, an existing file, ``file *.npy``, or an
    existing ``folder``. A default of None means "what the scale says", and is always allowed.
    """

    name: str
    default: Any
    rule: str
    meaning: str

    @property
    def is_path(self) -> bool:
        """True if the value names a file or a folder."""
        return self.rule == "folder" or self.rule.startswith("file ")

    def check(self, value: Any) -> None:
        """Raise a ValueError that names parameter, rule and value, if it breaks the rule."""
        if not ((value is None and self.default is None) or self._fits(value)):
            raise ValueError(f"{self.name} must be {self.rule}, got {value!r}")

    def _fits(self, value: Any) -> bool:
        if self.rule.startswith("one of "):
            return value in [choice.strip() for choice in self.rule.removeprefix("one of ").split(",")]
        if self.rule == "folder":
            return isinstance(value, str) and Path(value).is_dir()
        if self.is_path:
            path = Path(str(value))
            return path.match(self.rule.removeprefix("file ")) and path.is_file()
        kind, _, ends = self.rule.partition(" in ")
        numbers = int if kind == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, numbers) or not math.isfinite(value):
            return False
        low, high = (float(end) for end in ends.strip("([])").split(","))
        return low < value < high or (value == low and ends[0] == "[") or (value == high and ends[-1] == "]")


_RULE = r"one of [^;]+|folder|file \S+|(?:int|float) in [(\[][^;]+[)\]]"


def read_parameters(cell: str) -> dict[str, Parameter]:
    """Read a parameters cell; ValueError if a line is none of a `Parameter`, or a default breaks its own rule."""
    lines, found = cell.splitlines(), {}
    for node in ast.parse(cell).body:
        line = lines[node.lineno - 1]
        comment = re.search(rf"#\s*({_RULE});\s*(.+)$", line)
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and comment):
            raise ValueError(f"a parameter must read 'name = literal  # rule; meaning', got {line!r}")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"the default of a parameter must be a literal, got {line!r}") from None
        parameter = Parameter(node.targets[0].id, default, comment[1].strip(), comment[2].strip())
        parameter.check(default)
        found[parameter.name] = parameter
    return found


def read_value(text: str) -> Any:
    """Read a value from a command line: a Python literal (``3``, ``1e-2``, ``None``), else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
