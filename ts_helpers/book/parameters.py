"""The parameters cell of a notebook: what it declares, and which values it takes."""

import ast
import os.path
import re
from contextlib import suppress
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

    def read(self, text: str) -> Any:
        """Return what a text stands for by this rule and no other, a path whole; ValueError if it breaks the rule."""
        if self.default is None and text == "None":
            return None
        value: Any = text
        if kind := {"int": int, "float": float}.get(self.rule.split()[0]):
            with suppress(ValueError):
                value = kind(text)
        self.check(value)
        return os.path.realpath(value) if self.is_path else value

    def check(self, value: Any) -> None:
        """Raise a ValueError that names parameter, rule and value, if it breaks the rule."""
        if not ((value is None and self.default is None) or self._fits(value)):
            rule = self.rule.replace("inf)", "2**63)") if self.rule.startswith("int ") else self.rule
            raise ValueError(f"{self.name} must be {rule}, got {value!r}")

    def _fits(self, value: Any) -> bool:
        if self.rule.startswith("one of "):
            return value in [choice.strip() for choice in self.rule.removeprefix("one of ").split(",")]
        if self.rule == "folder":
            return isinstance(value, str) and os.path.isdir(value)
        if self.is_path:
            named = isinstance(value, str) and os.path.isfile(value)  # False, too, for what cannot name a file
            return named and Path(value).match(self.rule.removeprefix("file "))
        kind, _, ends = self.rule.partition(" in ")
        if isinstance(value, bool) or not isinstance(value, int if kind == "int" else int | float):
            return False
        low, high = (float(end) for end in ends.strip("([])").split(","))
        inside = low < value < high or (value == low and ends[0] == "[") or (value == high and ends[-1] == "]")
        return inside and (isinstance(value, float) or -(2**63) <= value < 2**63)  # what generators and arrays can hold


_NUMBER = r"-?(?:inf|\d[\d.e+-]*)"
_RULE = rf"one of [^;]+|folder|file \S+|(?:int|float) in [(\[]{_NUMBER}, {_NUMBER}[)\]]"


def read_parameters(cell: str) -> dict[str, Parameter]:
    """Read a parameters cell; ValueError if a line is none of a `Parameter`, or a default breaks its own rule."""
    found = {}
    for line in filter(str.strip, cell.splitlines()):
        if not (parts := re.fullmatch(rf"(\w+)(?:: [^=]+)? = (.+?) *# *({_RULE}); *(.+)", line)):
            raise ValueError(f"a parameter must read 'name = literal  # rule; meaning', got {line!r}")
        name, literal, rule, meaning = parts.groups()
        try:
            default = ast.literal_eval(literal)
        except (ValueError, TypeError, SyntaxError):
            raise ValueError(f"the default of a parameter must be a literal, got {line!r}") from None
        found[name] = Parameter(name, default, rule.strip(), meaning.strip())
        found[name].check(default)
    return found
