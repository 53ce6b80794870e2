"""Arguments checked by name, rule and value, the same way everywhere; what is made of them is elsewhere."""

import sys
from math import prod
from numbers import Integral
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

MOST = 2**28  # numbers of a tensor that sizes may ask for


def instance(kind: Any, rule: str, /, **values: Any) -> None:
    """Raise a TypeError unless all values are of a kind, of which the rule is the name, "a Tensor"."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {rule}, got {short(value)}")


def numbered(**values: Any) -> None:
    """Raise a TypeError unless all values are tensors with numbers, which those on the meta device have not."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.is_meta:
            raise TypeError(f"{name} must be a Tensor with numbers, got {short(value)}")


def at_least(least: int, /, **sizes: Any) -> None:
    """Raise an error unless sizes are whole numbers from the least on, and a tensor of them of `MOST` numbers or fewer.

    Among them may be the generator that draws it, on the CPU.
    """
    if "generator" in sizes:
        instance(Generator, "a torch.Generator", generator=sizes.pop("generator"))
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{name} must be a whole number, got {short(size)}")
    got = ", ".join(f"{name}={short(size)}" for name, size in sizes.items())
    if min(sizes.values()) < least:
        raise ValueError(f"{' and '.join(sizes)} must be {least} or more, got {got}")
    if prod(map(int, sizes.values())) > MOST:
        raise ValueError(f"{' times '.join(sizes)} must be 2^28 or less, got {got}")


def one_of(choices: Any, /, **values: Any) -> None:
    """Raise a ValueError unless all values are among some words."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {short(value)}")


def within(interval: str, /, **numbers: Any) -> None:
    """Raise an error unless all are numbers within an interval such as ``(0, 1]``."""
    low, high = map(float, interval[1:-1].split(","))
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float | np.integer | np.floating):
            raise TypeError(f"{name} must be a number, got {short(number)}")
        inside = low < number < high and abs(number) <= sys.float_info.max  # type: ignore[operator]
        if not (inside or (number == low and interval[0] == "[") or (number == high and interval[-1] == "]")):
            raise ValueError(f"{name} must be in {interval}, got {name}={short(number)}")


def as_tensor(name: str, value: Any, **how: Any) -> Tensor:
    """Return a real number, or a tensor or list of them, as a tensor; else raise a TypeError."""
    try:
        if (kind := torch.as_tensor(value).dtype) == torch.bool or kind.is_complex:
            raise TypeError
        numbered(**{name: (made := torch.as_tensor(value, **how))})
        return made
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be a number, or a tensor of them, got {short(value)}") from None


def plain_file(name: str, path: Any) -> Path:
    """Return the path of a file; raise an OSError where there is none, or no plain one: a pipe would be waited for."""
    instance(str | PathLike, "a path", **{name: path})
    if not (path := Path(path)).is_file():
        path.stat()
        raise OSError("it is no file")
    return path
