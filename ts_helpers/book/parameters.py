"""The parameters cell of a notebook: what it declares, which values it takes, and what a scale makes of it."""

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SCALES = ("smoke", "book", "paper")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell, ``name = default  # rule; meaning``.

    The rule is ``one of a, b, c``, a type and a range (``int in [1, inf)``, ``float in (0, 1]``), an existing file
    with a suffix, ``file *.npy``, or an existing ``folder``. A default of None means "what the scale says", and is
    always allowed.
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
        """Refuse a value that breaks the rule.

        Raises:
            ValueError: naming the parameter, the rule and the value.
        """
        if value is None and self.default is None:
            return
        if not self._fits(value):
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
        above = value >= low if ends.startswith("[") else value > low
        return above and (value <= high if ends.endswith("]") else value < high)


_RULE = r"one of [^;]+|folder|file \S+|(?:int|float) in [(\[][^;]+[)\]]"


def read_parameters(cell: str) -> dict[str, Parameter]:
    """Read the source of a parameters cell.

    Raises:
        ValueError: a line is not ``name = literal  # rule; meaning``, or a default breaks its own rule.
    """
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


def resolve(scale: str, table: dict[str, dict[str, Any]], **given: Any) -> SimpleNamespace:
    """Take a scale's settings from the notebook's table, with the given ones that are not None in their place.

    Raises:
        ValueError: the scale is not in the table, or something given is not.
    """
    if scale not in table:
        raise ValueError(f"scale must be one of {', '.join(table)}, got {scale!r}")
    unknown = set(given) - set(table[scale])
    if unknown:
        raise ValueError(f"the table of scales has no {', '.join(sorted(unknown))}; it has {', '.join(table[scale])}")
    return SimpleNamespace(**table[scale] | {name: value for name, value in given.items() if value is not None})


def torch_device(name: str, auto: str = "cuda") -> "torch.device":
    """Return the device a notebook runs on; "auto" is ``auto`` where there is one, else the CPU.

    On CUDA, products are taken in float32: TF32, which libraries may use in its place, has 10 bits to the mantissa.

    Raises:
        ValueError: the name is none of auto, cpu, cuda; or cuda is asked for and there is none.
    """
    import torch  # here, so that the runner, which reads parameters, starts without it

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be one of auto, cpu, cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be auto or cpu here, got 'cuda': torch finds no CUDA device")
    if name == "auto":
        name = auto if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)
